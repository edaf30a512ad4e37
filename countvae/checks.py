"""What a count table must be, and every sentence a user reads when it is not."""

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Num
from scipy.sparse import csr_array

from countvae.errors import (
    CountvaeWarning,
    EmptySamples,
    InputError,
    NotCounts,
    RepeatedIds,
    TooSmall,
    UnsafeIds,
)

__all__ = [
    "check_counts",
    "check_depth",
    "check_ids",
    "check_shape",
    "check_unique",
    "examples",
    "one_line",
    "samples_with_reads",
]

MAX_COUNT = 2.0**53
"""Beyond it whole numbers have no exact double."""

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What a line of text cannot hold, or XML."""

Policy = Literal["error", "warn", "ignore"]
Ids = Sequence[str] | np.ndarray | None


def examples(ids: Sequence[Any] | np.ndarray, limit: int = 3) -> str:
    """Name a few of `ids` in a sentence, and say how many more there are.

    Parameters
    ----------
    ids : sequence
        What to name, in order; strings are quoted, numbers are not.
    limit : int
        How many to name.

    Returns
    -------
    str

    Examples
    --------
    >>> examples(["a", "b"])
    "'a', 'b'"
    >>> examples(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c' and 2 more"
    """
    named = ", ".join(repr(str(i)) if isinstance(i, str) else str(i) for i in ids[:limit])
    return named if len(ids) <= limit else f"{named} and {len(ids) - limit} more"


def check_ids(ids: Iterable[str], what: str) -> None:
    """Refuse ids that a text file, an ordination or GraphML would not give back as they are.

    Parameters
    ----------
    ids : sequence of str
        Names of samples or features.
    what : str
        What they are, the subject of the sentence.

    Raises
    ------
    InputError
        If an id is empty, begins with a blank, or holds a tab, the end of a line or another
        control character.

    Examples
    --------
    >>> check_ids(["s1", "s 2"], "sample ids")
    >>> check_ids(["s1", " s2"], "sample ids")
    Traceback (most recent call last):
    countvae.errors.UnsafeIds: sample ids: expected ids without tabs, line ends, control characters
    or a leading blank; got ' s2'.
    """
    for name in ids:
        if not name or name != name.lstrip() or CONTROL.search(name):
            raise UnsafeIds(
                f"{what}: expected ids without tabs, line ends, control characters or a leading"
                f" blank; got {name!r}."
            )


def one_line(value: Any) -> Any:
    r"""Put a blank for each tab, line end and control character of a text; leave the rest.

    Examples
    --------
    >>> one_line("a\tb\n"), one_line(3)
    ('a b ', 3)
    """
    return CONTROL.sub(" ", value) if isinstance(value, str) else value


def check_unique(ids: Sequence[str] | np.ndarray, what: str) -> None:
    """Refuse ids of which two are the same.

    Parameters
    ----------
    ids : sequence of str
        Names along one axis.
    what : str
        What they are, the subject of the sentence: "counts: sample ids".

    Raises
    ------
    InputError
        If an id occurs twice; up to three are named.

    Examples
    --------
    >>> check_unique(["a", "b", "a"], "counts: sample ids")
    Traceback (most recent call last):
    countvae.errors.RepeatedIds: counts: sample ids must be unique; got more than once 'a'.
    """
    index = pd.Index(ids, dtype=object)
    if index.has_duplicates:
        twice = index[index.duplicated()].unique()
        raise RepeatedIds(f"{what} must be unique; got more than once {examples(list(twice))}.")


def check_counts(
    counts: Num[csr_array, "n d"],
    sample_ids: Ids,
    feature_ids: Ids,
    *,
    fractional: Policy = "error",
    empty_samples: Policy = "error",
    argument: str = "counts",
) -> None:
    """Refuse what is not a table of counts, in one sentence that says where.

    Parameters
    ----------
    counts : csr_array, shape (n, d)
        Counts, samples × features. Looked at in O(nnz); never changed.
    sample_ids, feature_ids : sequence of str, or None
        Names for the sentences; None names samples and features by number, from 0.
    fractional : {"error", "warn", "ignore"}
        What to do about values that are not whole. Data that are plainly logarithms of
        normalised counts are refused by "error" and "warn" alike.
    empty_samples : {"error", "warn", "ignore"}
        What to do about samples without a read.
    argument : str
        The subject of the sentence: an argument's name, or a file.

    Raises
    ------
    InputError
        If there is no sample or fewer than two features; if a value is not finite, or negative;
        and, as asked, if values are fractional or samples empty.

    Warns
    -----
    CountvaeWarning
        As asked, of fractional values and empty samples.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> check_counts(csr_array([[3, 0], [-1, 2]]), ["s1", "s2"], ["a", "b"])
    Traceback (most recent call last):
    countvae.errors.NotCounts: counts: expected values >= 0; got -1 in sample 's2', feature 'a'
    (Negative values in data are not counts).
    """
    check_shape(counts.shape, argument)

    def first(wrong: np.ndarray) -> str:
        at = int(np.argmax(wrong))
        i = int(np.searchsorted(counts.indptr, at, side="right")) - 1
        sample, feature = _name(sample_ids, i), _name(feature_ids, int(counts.indices[at]))
        return f"{counts.data[at]:g} in sample {sample}, feature {feature}"

    data = counts.data
    wrong = ~np.isfinite(data)
    if wrong.any():
        raise NotCounts(f"{argument}: expected finite values, not NaN or inf; got {first(wrong)}.")
    wrong = data < 0
    if wrong.any():
        raise NotCounts(
            f"{argument}: expected values >= 0; got {first(wrong)}"
            " (Negative values in data are not counts)."
        )
    wrong = data > MAX_COUNT
    if wrong.any():
        raise NotCounts(f"{argument}: expected counts <= 2^53; got {first(wrong)}.")
    if fractional != "ignore" and data.dtype.kind == "f":
        wrong = data != np.rint(data)
        if wrong.any():
            if _are_logs(counts, wrong):
                raise NotCounts(
                    f"{argument}: looks log-normalised; pass raw counts (got {first(wrong)})."
                )
            totals = _sample_sums(counts, data)
            advice = "; every sample has the same sum: pass counts, not proportions"
            _report(
                fractional,
                NotCounts(
                    f"{argument}: expected whole numbers; got {first(wrong)}"
                    f" ({wrong.sum()} of {data.size} values are fractional"
                    f"{advice if _same(totals) else ''})."
                ),
            )
    if empty_samples != "ignore":
        check_depth(_sample_sums(counts, data), sample_ids, empty_samples, argument)


def check_shape(shape: tuple[int, int], argument: str) -> None:
    """Refuse a table without samples, or with fewer than two features.

    Raises
    ------
    InputError
    """
    n, d = shape
    if n == 0:
        raise TooSmall(f"{argument}: expected at least one sample; got n_samples = 0.")
    if d < 2:
        raise TooSmall(f"{argument}: expected at least two features; got n_features = {d}.")


def check_depth(
    depth: Float[np.ndarray, " n"], sample_ids: Ids, empty_samples: Policy, argument: str
) -> None:
    """Refuse, or warn of, samples without a read.

    Raises
    ------
    InputError
        As asked.

    Warns
    -----
    CountvaeWarning
        As asked.
    """
    empty = np.flatnonzero(depth == 0)
    if empty.size:
        names = empty if sample_ids is None else [str(sample_ids[int(i)]) for i in empty]
        _report(
            empty_samples,
            EmptySamples(
                f"{argument}: expected at least one read in every sample;"
                f" {empty.size} of {depth.size} {'has' if empty.size == 1 else 'have'} none:"
                f" {examples(names)}."
            ),
        )


def samples_with_reads(
    depth: Float[np.ndarray, " n"], sample_ids: np.ndarray, argument: str
) -> np.ndarray:
    """Mark the samples that have a read, and name those that have none in a warning.

    Raises
    ------
    InputError
        If no sample has a read.

    Warns
    -----
    CountvaeWarning
        Of samples without a read.
    """
    kept = depth > 0
    if not kept.any():
        raise EmptySamples(f"{argument}: expected at least one sample with reads; all are empty.")
    if not kept.all():
        warnings.warn(
            f"{argument}: left out {(~kept).sum()} of {kept.size} samples, without a read:"
            f" {examples(list(sample_ids[~kept]))}.",
            CountvaeWarning,
            stacklevel=4,
        )
    return kept


def _name(ids: Ids, i: int) -> str:
    return str(i) if ids is None else repr(str(ids[i]))


def _report(policy: Policy, wrong: InputError) -> None:
    if policy == "error":
        raise wrong
    warnings.warn(str(wrong), CountvaeWarning, stacklevel=3)


def _sample_sums(counts: csr_array, values: np.ndarray) -> Float[np.ndarray, " n"]:
    samples = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    # bincount of nothing is of integers, whatever the weights
    return np.bincount(samples, values, counts.shape[0]).astype(np.float64, copy=False)


def _same(totals: np.ndarray) -> bool:
    """Whether three samples or more, empty ones aside, have one and the same total."""
    totals = totals[totals > 0]
    return totals.size > 2 and bool(np.ptp(totals) <= 1e-3 * totals.mean())


def _are_logs(counts: csr_array, fractional: np.ndarray) -> bool:
    """Whether values are log(1 + counts), scaled by sample or not, to base e, 2 or 10.

    Undone, such values are whole numbers, or whole multiples of the sample's smallest, or
    have the same sum in every sample. Counts that are merely fractional (corrected for
    ambient RNA, say) are none of these.
    """
    values = counts.data.astype(np.float64)
    if values.max() > 20:
        return False
    samples = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    same_before = _same(_sample_sums(counts, values))
    for base in (np.e, 2.0, 10.0):
        undone = np.expm1(values * np.log(base))
        smallest = np.full(counts.shape[0], np.inf)
        np.minimum.at(smallest, samples, np.where(undone > 0, undone, np.inf))
        multiples = (undone / smallest[samples])[fractional]
        if (
            _are_whole(undone[fractional])
            or _are_whole(multiples[multiples > 1.5])
            or (not same_before and _same(_sample_sums(counts, undone)))
        ):
            return True
    return False


def _are_whole(values: np.ndarray) -> bool:
    """Whether at least five values are in reach of rounding, and 95 % of those are whole."""
    values = values[(values > 0.5) & (values < 20)]
    return values.size >= 5 and bool(np.mean(np.abs(values - np.rint(values)) < 0.02) >= 0.95)
