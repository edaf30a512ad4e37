"""Every error of the package: when it is raised, in its docstring, and what cures it.

The bottom room: it imports nothing of the package. ``docs/errors.md`` is made from it.
"""

import errno
from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = [
    "ArgumentError",
    "BasisError",
    "CannotRead",
    "CannotWrite",
    "CheckpointOfAnother",
    "CountvaeWarning",
    "DamagedFile",
    "DamagedModel",
    "Diverged",
    "EmptySamples",
    "FeaturesDiffer",
    "ForeignFile",
    "FormulaError",
    "InUse",
    "InputError",
    "MetadataError",
    "Misfit",
    "MissingPackage",
    "NewerModel",
    "NoSuchDevice",
    "NoSuchFile",
    "NoSuchLayer",
    "NotAModel",
    "NotCounts",
    "NotReplaced",
    "NotStreamable",
    "OlderModel",
    "OutputExists",
    "ProcessLost",
    "RepeatedIds",
    "TooLarge",
    "TooSmall",
    "Unfinished",
    "UnsafeIds",
    "out_of_memory",
]


_NO_MEMORY = ("can't allocate memory", "memory allocation failed", "bad allocation", "bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is of memory that was not to be had, whatever library calls it what."""
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(text in str(error) for text in _NO_MEMORY)
    )


class CountvaeWarning(UserWarning):
    """The input is usable, but something about it should be known."""


class InputError(ValueError):
    """The input is wrong; the message is one sentence that says what, and where."""

    cure: ClassVar[str]


# ---- counts


class NotCounts(InputError):
    """A value is not a count: negative, not finite, not whole, above 2^53, or no number at all."""

    cure = (
        "Give raw counts: not proportions, logarithms or corrected values. Whole-number checks are "
        "lifted by `--allow-fractional`, which warns instead."
    )


class EmptySamples(InputError):
    """Samples have no read, so that nothing can be said of them; or all samples have none."""

    cure = "Leave them out, with `--drop-empty` or before."


class TooSmall(InputError):
    """Too few samples or features are left for what was asked."""

    cure = "Give more samples or features, loosen the filters, or hold fewer samples out."


class TooLarge(InputError):
    """The answer or the fit would not fit in memory."""

    cure = (
        "Ask for fewer factors, samples or features at a time, a smaller `batch_size` or "
        "`encoder_width`, or stream the table from disk (`--stream`)."
    )


# ---- names


class RepeatedIds(InputError):
    """An id stands for two samples or two features."""

    cure = "Rename or merge them; ids must be unique along each axis."


class UnsafeIds(InputError):
    """An id has a tab, a line end or the like, which would break the files written; or none."""

    cure = "Rename it."


class Misfit(InputError):
    """Parts that belong together differ in shape: ids and counts, metadata and samples."""

    cure = "Give each sample and feature one id, and each id its row."


class FeaturesDiffer(InputError):
    """The features of a table are not those of the model, or of the other table."""

    cure = (
        "Give a table with the model's features; what it may lack is set by `--min-overlap`, and "
        "`--zero-fill` reads missing features as zeros. If samples and features are exchanged, "
        "`--transpose` turns them."
    )


# ---- files that are read


class NoSuchFile(InputError):
    """A path leads to no file, or to an empty one."""

    cure = "Check the path; a relative one starts at the folder in which the command runs."


class CannotRead(InputError):
    """A file is there, but the system does not let it be read: no permission, or a failing disk."""

    cure = "Ask for permission to read it, or copy it to another disk."


class ForeignFile(InputError):
    """A file is of a kind that is not read here."""

    cure = "Give BIOM 2.1 or 1.0, `.h5ad` (anndata 0.7 or later), TSV or CSV in UTF-8."


class DamagedFile(InputError):
    """A file of a known kind cannot be read to its end, or contradicts itself."""

    cure = "Copy or write it anew, and leave it alone while it is read; a download may be cut off."


class NoSuchLayer(InputError):
    """The layer asked for is not in the file, or files of this kind have none."""

    cure = "Name one of the layers that the sentence lists."


class NotStreamable(InputError):
    """The samples of a file cannot be read one by one."""

    cure = "Write it as `.h5ad` with CSR counts or as BIOM 2.1, or read it without `--stream`."


# ---- metadata, formulas, bases


class MetadataError(InputError):
    """The metadata lack a sample, a column or a value, or have a level that the model lacks."""

    cure = "Complete the metadata, or leave out the samples (`--drop-missing`) or the column."


class FormulaError(InputError):
    """A formula cannot be read, or its columns do not make a regression."""

    cure = (
        "Write one side, names of columns with `+` or `:` between them, such as `~ age + C(run)`."
    )


class BasisError(InputError):
    """A tree or matrix is no ILR basis over the features of the table."""

    cure = "Give a Newick tree whose tips include all features, or use `--basis balanced`."


# ---- arguments and the machine


class ArgumentError(InputError):
    """An argument is outside what it takes, or contradicts another."""

    cure = "Give what the sentence expects; `countvae COMMAND --help` lists it."


class MissingPackage(InputError):
    """A package is needed that countvae does not require by itself."""

    cure = "Install the extra that the sentence names."


class NoSuchDevice(InputError):
    """The device asked for cannot be used by the installed torch."""

    cure = "Use `--device auto` or `cpu`, or install a torch built for the device."


# ---- outputs


class OutputExists(InputError):
    """Something is already where the output shall be."""

    cure = "Name another output, or add `--force` (`force=True`) to replace it."


class CannotWrite(InputError):
    """The output cannot be written: no such folder, no permission, a full or read-only disk."""

    cure = (
        "Make the folder, free space, or name another output; what was there before is untouched."
    )


class NotReplaced(InputError):
    """What is at the output was not written here, and is not replaced even with force."""

    cure = "Move it away, or name another output."


class InUse(InputError):
    """Another run is writing to the same output."""

    cure = "Wait for it, stop it, or name another output."


# ---- models and checkpoints


class NotAModel(InputError):
    """A folder is not one that this version of countvae reads as a model."""

    cure = "Name the folder that `countvae fit` wrote."


class DamagedModel(InputError):
    """A file of a model is missing, cut or altered since it was written."""

    cure = "Copy the folder anew, or fit again."


class NewerModel(InputError):
    """A model was written by a newer version of countvae."""

    cure = "Upgrade countvae."


class OlderModel(InputError):
    """A model was written by an older version of countvae, and cannot be made one of this."""

    cure = "Fit it again."


class Unfinished(InputError):
    """A fit to the same output was broken off, and has left a checkpoint."""

    cure = "Go on with it by `--resume`, or begin anew by `--force`."


class CheckpointOfAnother(InputError):
    """The checkpoint is that of a fit with other data or settings."""

    cure = "Resume with the command that was broken off, or begin anew by `--force`."


# ---- while a fit runs


class Diverged(ArithmeticError):
    """The bound stopped being finite, again after a retry with a smaller learning rate."""

    cure = "Lower `--learning-rate`, or leave out the samples that the sentence names."

    def __init__(
        self, sentence: str, samples: Sequence[int] = (), history: Sequence[dict[str, Any]] = ()
    ) -> None:
        super().__init__(sentence)
        self.samples, self.history = samples, history


class ProcessLost(RuntimeError):
    """Another process of the fit has ended, or cannot be reached."""

    cure = "Run the same command again with `--resume`."
