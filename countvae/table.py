"""CountTable: sparse counts with the names of their samples and features; files in and out.

Formats are told by content: BIOM 2.1 and ``.h5ad`` (both HDF5), BIOM 1.0 (JSON), and text.
Everything stays sparse: text is parsed line by line, a dense array in HDF5 a block of rows at a
time.
"""

import csv
import errno
import gzip
import io
import itertools
import json
import os
import re
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import anndata
import anndata.io
import biom
import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float, Integer, Num, Shaped
from scipy.sparse import coo_array, csr_array, csr_matrix, issparse, vstack
from skbio.metadata import SampleMetadata
from skbio.metadata.io import MetadataFileError

from countvae.checks import (
    check_counts,
    check_ids,
    check_unique,
    examples,
    one_line,
    samples_with_reads,
)
from countvae.errors import (
    ArgumentError,
    CannotRead,
    CountvaeWarning,
    DamagedFile,
    FeaturesDiffer,
    ForeignFile,
    InputError,
    MetadataError,
    Misfit,
    NoSuchFile,
    NoSuchLayer,
    NotCounts,
    TooSmall,
    out_of_memory,
)
from countvae.files import check_writable, new_file
from countvae.hdf5 import checked, claimed_bytes, unchanged
from countvae.memory import Room

__all__ = ["CountTable", "Overlap", "read", "write", "write_frame"]

_FEATURE_CORNERS = {"otuid", "featureid", "asvid", "geneid"}
_SAMPLE_CORNERS = {"id", "sampleid", "samplename"}
_TEXT_COLUMNS = {"taxonomy", "consensuslineage"}
_ZEROS = {"0", "0.0"}
_BLOCK = 2**22
_LONGEST_LINE = 2**27
"""Characters; a line of half a million features has some ten millions."""

_MOST_IDLE = 10**6
"""Lines without cells that a table may have."""

# Bytes in memory, about, until a table is made of what is read.
ENTRY_BYTES = 48  # of a non-zero: its value and place, three times
TEXT_BYTES = 100  # of a name
CELL_BYTES = 16  # of a character of a line of cells
JSON_BYTES = 24  # of a character of lists of lists
METADATA_BYTES = 64  # of a character of metadata


@dataclass(frozen=True)
class Overlap:
    """How the features of a table meet a list of features it is aligned to.

    Parameters
    ----------
    shared : int
        Features in both.
    missing : int
        Features of the list that the table lacks.
    extra : int
        Features of the table that the list lacks; they are left out.
    read_fraction : float
        The fraction of the table's reads that are in shared features.
    """

    shared: int
    missing: int
    extra: int
    read_fraction: float

    @classmethod
    def of(cls, place: np.ndarray, wanted: int, shared_reads: float, reads: float) -> "Overlap":
        """Count where the features of a table go (-1 for nowhere) among those wanted."""
        shared = int((place >= 0).sum())
        return cls(
            shared=shared,
            missing=wanted - shared,
            extra=len(place) - shared,
            read_fraction=float(shared_reads / reads) if reads else 0.0,
        )

    @property
    def least(self) -> float:
        """The share of the list that the table has, or of its reads that count: the less."""
        return min(self.shared / (self.shared + self.missing), self.read_fraction)

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"{self.shared} of {self.shared + self.missing} features are in the table, with "
            f"{100 * self.read_fraction:.1f} % of its reads; {self.missing} are not, and "
            f"{self.extra} others are left out."
        )


@dataclass(frozen=True, eq=False)
class CountTable:
    """Counts, samples × features, and the names that travel with them.

    Parameters
    ----------
    counts : csr_array, shape (n, d)
        Made canonical: indices sorted, no duplicates, no explicit zeros.
    sample_ids, feature_ids : ndarray of str
        Names, unique along each axis.
    sample_metadata, feature_metadata : DataFrame or None
        What else is known, a row for each sample or feature, indexed by its id.
    source : str
        Where in the file the counts were found.

    Raises
    ------
    InputError
        If names do not fit the counts, or are not unique.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> table = CountTable(
    ...     csr_array([[5, 0, 1], [0, 2, 2]]), np.array(["s1", "s2"]), np.array(["a", "b", "c"])
    ... )
    >>> table.n, table.d, table.depth
    (2, 3, array([6., 4.]))
    >>> table.filter(min_feature_samples=2).feature_ids
    array(['c'], dtype='<U1')
    """

    counts: Num[csr_array, "n d"]
    sample_ids: Shaped[np.ndarray, " n"]
    feature_ids: Shaped[np.ndarray, " d"]
    sample_metadata: pd.DataFrame | None = None
    feature_metadata: pd.DataFrame | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Make the counts canonical and check that the names fit them."""
        object.__setattr__(self, "counts", canonical(self.counts))
        for size, ids, frame, what in (
            (self.counts.shape[0], self.sample_ids, self.sample_metadata, "sample"),
            (self.counts.shape[1], self.feature_ids, self.feature_metadata, "feature"),
        ):
            if len(ids) != size:
                raise Misfit(f"{what}_ids: expected {size} ids; got {len(ids)}.")
            check_unique(ids, f"{what}_ids: ids")
            if frame is not None and list(frame.index) != list(ids):
                raise Misfit(f"{what}_metadata: expected a row for each {what}, in order.")

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.counts.shape[0]

    @property
    def d(self) -> int:
        """Number of features."""
        return self.counts.shape[1]

    @property
    def depth(self) -> Float[np.ndarray, " n"]:
        """Reads in each sample."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.float64))

    def select_samples(self, which: Shaped[np.ndarray, " chosen"]) -> "CountTable":
        """Keep samples, in the order given.

        Parameters
        ----------
        which : ndarray of bool or int
            A mask over the samples, or positions.

        Returns
        -------
        CountTable
        """
        at = np.arange(self.n)[which]
        return replace(
            self,
            counts=self.counts[at],
            sample_ids=self.sample_ids[at],
            sample_metadata=_rows(self.sample_metadata, at),
        )

    def select_features(self, which: Shaped[np.ndarray, " chosen"]) -> "CountTable":
        """Keep features, in the order given.

        Parameters
        ----------
        which : ndarray of bool or int
            A mask over the features, or positions.

        Returns
        -------
        CountTable
        """
        at = np.arange(self.d)[which]
        return replace(
            self,
            counts=self.counts[:, at],
            feature_ids=self.feature_ids[at],
            feature_metadata=_rows(self.feature_metadata, at),
        )

    def filter(
        self,
        min_sample_count: int = 0,
        min_feature_count: int = 0,
        min_feature_samples: int = 0,
    ) -> "CountTable":
        """Keep the largest part of the table in which every sample and feature qualifies.

        Dropping samples lowers the counts of features and the other way round, so both are
        repeated until nothing changes; the order does not matter.

        Parameters
        ----------
        min_sample_count : int
            Reads a sample must have, in the features kept.
        min_feature_count : int
            Reads a feature must have, in the samples kept.
        min_feature_samples : int
            Samples kept in which a feature must occur.

        Returns
        -------
        CountTable

        Raises
        ------
        InputError
            If no sample or no feature would be left.
        """
        samples, features = qualifying(
            lambda: [(0, self.counts)],
            self.counts.shape,
            min_sample_count=min_sample_count,
            min_feature_count=min_feature_count,
            min_feature_samples=min_feature_samples,
        )
        return self.select_samples(samples).select_features(features)

    def without_empty(self, argument: str = "table") -> "CountTable":
        """Leave out samples without a read.

        Parameters
        ----------
        argument : str
            The subject of the sentences: an argument's name, or a file.

        Returns
        -------
        CountTable

        Raises
        ------
        InputError
            If no sample has a read.

        Warns
        -----
        CountvaeWarning
            Of samples left out, by name.
        """
        return self.select_samples(samples_with_reads(self.depth, self.sample_ids, argument))

    def align_features(
        self, feature_ids: Shaped[np.ndarray, " features"]
    ) -> tuple["CountTable", Overlap]:
        """Bring the table to exactly these features, in this order, and say what that cost.

        Parameters
        ----------
        feature_ids : ndarray of str
            The features wanted; those the table lacks become zeros.

        Returns
        -------
        CountTable
            With ``feature_ids`` as its features.
        Overlap
            How many features were shared, missing and extra, and the reads in shared ones.

        Raises
        ------
        InputError
            If no feature is shared.
        """
        place = place_features(self.feature_ids, feature_ids, self.sample_ids)
        counts, known = moved(self.counts, place, len(feature_ids)), self.feature_metadata
        aligned = replace(
            self,
            counts=counts,
            feature_ids=feature_ids,
            feature_metadata=None if known is None else known.reindex(feature_ids),
        )
        reads, total = (some.sum(dtype=np.float64) for some in (counts, self.counts))
        return aligned, Overlap.of(place, len(feature_ids), reads, total)


def qualifying(
    blocks: Callable[[], Iterable[tuple[int, csr_array]]],
    shape: tuple[int, int],
    *,
    total: Callable[..., None] = lambda *sums: None,
    min_sample_count: int,
    min_feature_count: int,
    min_feature_samples: int,
) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " d"]]:
    """Find the samples and features that `CountTable.filter` keeps, as masks.

    Parameters
    ----------
    blocks : callable
        Gives all samples once, in blocks, each with the position of its first sample.
    shape : (int, int)
        Samples and features.
    total : callable
        Given sums over these blocks, adds what other processes have of the table.

    Raises
    ------
    InputError
        If no sample or no feature would be left.
    """
    samples, features = np.ones(shape[0], bool), np.ones(shape[1], bool)
    while True:
        enough = np.zeros(shape[0], np.int8)
        of_feature, seen_in = np.zeros(shape[1]), np.zeros(shape[1])
        for first, block in blocks():
            x = block.astype(np.float64)
            own = slice(first, first + x.shape[0])
            enough[own] = x @ features >= min_sample_count
            weights = samples[own].astype(np.float64)
            of_feature += x.T @ weights
            seen_in += np.bincount(x.indices, np.repeat(weights, np.diff(x.indptr)), shape[1])
        total(enough, of_feature, seen_in)
        kept_samples = samples & (enough > 0)
        kept_features = (
            features & (of_feature >= min_feature_count) & (seen_in >= min_feature_samples)
        )
        if (kept_samples == samples).all() and (kept_features == features).all():
            break
        samples, features = kept_samples, kept_features
    if not (samples.any() and features.any()):
        raise TooSmall(
            f"filter: nothing is left of {shape[0]} samples and {shape[1]} features with"
            f" min_sample_count={min_sample_count}, min_feature_count={min_feature_count},"
            f" min_feature_samples={min_feature_samples}."
        )
    return samples, features


def check_overlap(overlap: Overlap, min_overlap: float, argument: str) -> None:
    """Refuse a table that has too little of a model's features, or too many reads in others."""
    if overlap.least < min_overlap or overlap.shared < 2:
        raise FeaturesDiffer(
            f"{argument}: {overlap} Less than min_overlap={min_overlap:g} is shared."
        )


def place_features(own: np.ndarray, wanted: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    """Position of each feature of a table among those wanted, -1 where it is not.

    Raises
    ------
    InputError
        If none is shared, or one is wanted twice.
    """
    check_unique(wanted, "feature_ids: ids")
    place = pd.Index(wanted, dtype=object).get_indexer(own.astype(object))
    if not (place >= 0).any():
        turned = np.isin(sample_ids.astype(str), wanted.astype(str)).any()
        raise FeaturesDiffer(
            f"table: none of its features ({examples(list(own))}) is among the"
            f" {len(wanted)} expected ({examples(list(wanted))})"
            f"{', but its samples are: the table looks transposed' if turned else ''}."
        )
    return place


def read(
    path: str | os.PathLike[str],
    *,
    layer: str | None = None,
    metadata: str | os.PathLike[str] | None = None,
    transpose: bool = False,
    allow_fractional: bool = False,
    drop_empty: bool = False,
) -> CountTable:
    """Read a count table, samples × features, and check it.

    Parameters
    ----------
    path : path
        BIOM 2.1 or 1.0, ``.h5ad``, TSV or CSV; text and JSON may be gzipped. Text holds samples in
        rows, unless its first column is headed ``#OTU ID`` (or feature, ASV, gene id).
    layer : str, optional
        The layer of an ``.h5ad`` file, or "X"; by default ``layers["counts"]``, else X.
    metadata : path, optional
        A metadata file (TSV, as QIIME 2 writes it), whose first column holds sample ids. It is
        aligned by id; samples it lacks have missing values.
    transpose : bool
        The file's axes are the other way round: the rows of a text file are features, the
        observations of a BIOM or ``.h5ad`` file are the other axis than usual.
    allow_fractional : bool
        Warn of values that are not whole, rather than refuse them.
    drop_empty : bool
        Leave out samples without a read, with a warning that names them.

    Returns
    -------
    CountTable

    Raises
    ------
    InputError
        If the file cannot be read, or does not hold counts: one sentence says what and where.

    Warns
    -----
    CountvaeWarning
        Of samples left out or without metadata, and of fractional values if they are allowed.
    """
    path = Path(path)
    form = format_of(path)
    if layer is not None and form != "h5ad":
        raise NoSuchLayer(f"{path}: layer={layer!r} can be had of an .h5ad file only.")
    with reading(path, form):
        parsed = _READERS[form](path, layer, transpose)
        if transpose and form != "text":
            parsed = parsed.transposed()
    check_unique(parsed.sample_ids, f"{path}: sample ids")
    check_unique(parsed.feature_ids, f"{path}: feature ids")
    try:
        check_counts(
            parsed.counts,
            parsed.sample_ids,
            parsed.feature_ids,
            fractional="warn" if allow_fractional else "error",
            empty_samples="ignore" if drop_empty else "error",
            argument=f"{path} ({parsed.source})",
        )
    except InputError as error:
        raise type(error)(f"{str(error).rstrip('.')}{parsed.hint}.") from None
    table = CountTable(
        parsed.counts,
        parsed.sample_ids,
        parsed.feature_ids,
        parsed.sample_metadata,
        parsed.feature_metadata,
        parsed.source,
    )
    if drop_empty:
        table = table.without_empty(str(path))
    if metadata is None:
        return table
    frame = with_metadata(
        table.sample_ids, table.feature_ids, table.sample_metadata, path, Path(metadata)
    )
    return replace(table, sample_metadata=frame)


def check_suffix(path: Path, known: Sequence[str] | None = None) -> None:
    """Refuse a file of another suffix than these, or than those that `write` knows.

    To be asked before a long job.

    Raises
    ------
    InputError
    """
    known = list(_WRITERS) if known is None else known
    if path.suffix not in known:
        raise ArgumentError(f"{path}: expected a suffix among {examples(known)}.")


def write(table: CountTable, path: str | os.PathLike[str], force: bool = False) -> None:
    """Write a count table in the format of the path's suffix.

    Parameters
    ----------
    table : CountTable
        The table.
    path : path
        ``.biom`` (2.1), ``.h5ad`` (counts in X) or ``.tsv`` (samples × features, no metadata).
    force : bool
        Whether to replace a file that is there.

    Raises
    ------
    InputError
        If the suffix is another, the file cannot be written, or text would not give an id back.
    """
    path = Path(path)
    check_writable(path, force)
    check_suffix(path)
    with new_file(path, force) as beside:
        _WRITERS[path.suffix](table, beside)


def write_frame(frame: pd.DataFrame, path: str | os.PathLike[str], force: bool = False) -> None:
    """Write a data frame as TSV, its ids first; text in its cells is brought to one line.

    Parameters
    ----------
    frame : DataFrame
        Rows are named by the index; its name, or "id", heads their column.
    path : path
        The file to write.
    force : bool
        Whether to replace a file that is there.

    Raises
    ------
    InputError
        If the file cannot be written, or would not give an id back as it is.
    """
    check_ids([name for name in frame.index if isinstance(name, str)], frame.index.name or "id")
    if len(texts := frame.select_dtypes(["object", "string", "category"]).columns):
        frame = frame.assign()
        frame[texts] = frame[texts].astype(object).map(one_line)
    with new_file(path, force) as beside:
        frame.to_csv(beside, sep="\t", index_label=frame.index.name or "id", lineterminator="\n")


class Parsed(NamedTuple):
    """What a file holds, before it is checked: counts, or an HDF5 matrix still to be read."""

    counts: Any
    sample_ids: np.ndarray
    feature_ids: np.ndarray
    sample_metadata: pd.DataFrame | None
    feature_metadata: pd.DataFrame | None
    source: str
    hint: str = ""

    def transposed(self) -> "Parsed":
        return self._replace(
            counts=canonical(csr_array(self.counts.T)),
            sample_ids=self.feature_ids,
            feature_ids=self.sample_ids,
            sample_metadata=self.feature_metadata,
            feature_metadata=self.sample_metadata,
            source=f"{self.source}, transposed",
        )


def canonical(counts: Any) -> csr_array:
    """Return sorted CSR of numbers without duplicates or zeros; never changes its argument."""
    canonical = csr_array(counts)
    if canonical.dtype.kind == "b":
        canonical = canonical.astype(np.int8)
    if canonical.dtype.kind not in "iuf":
        raise NotCounts(f"counts: expected numbers; got values of type {canonical.dtype}.")
    if not canonical.has_canonical_format or not canonical.data.all():
        canonical = canonical.copy()
        canonical.sum_duplicates()
        canonical.eliminate_zeros()
    return canonical


def moved(counts: csr_array, place: np.ndarray, d: int) -> csr_array:
    """Send each column to its new place among d, or nowhere (-1)."""
    column = place[counts.indices]
    kept = column >= 0
    before = np.concatenate([[0], np.cumsum(kept)])
    return canonical(
        csr_array(
            (counts.data[kept], column[kept], before[counts.indptr]), shape=(counts.shape[0], d)
        )
    )


def _rows(frame: pd.DataFrame | None, at: Integer[np.ndarray, " rows"]) -> pd.DataFrame | None:
    return None if frame is None else frame.iloc[at]


def _ids(values: Any) -> Shaped[np.ndarray, " ids"]:
    return np.array([_text(value) for value in values], dtype=object)


def _frame(columns: Mapping[str, Any], ids: np.ndarray) -> pd.DataFrame | None:
    return pd.DataFrame(dict(columns), index=pd.Index(ids, dtype=object)) if columns else None


def _text(value: Any) -> str:
    """Return text as it is, and a list of names, such as a lineage, in one line."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple, np.ndarray)):
        return "; ".join(text for text in map(_text, value) if text)
    return str(value)


# ---- reading


def check_file(path: Path) -> None:
    """Refuse what is no file; a pipe, which could be waited for without end, is none either.

    Raises
    ------
    InputError
    """
    with reading(path, "a file"):
        if not path.exists():
            raise NoSuchFile(f"{path}: there is no such file.")
        if not path.is_file():
            raise NoSuchFile(f"{path}: is not a file; write a pipe's content to one first.")


def format_of(path: Path) -> str:
    """Tell a file's format by its content."""
    check_file(path)
    with reading(path, "text"):
        with open(path, "rb") as file:
            head = file.read(8)
        if not head:
            raise NoSuchFile(f"{path}: is empty.")
        if head.startswith(b"PK\x03\x04"):
            raise ForeignFile(
                f"{path}: is a zip archive, not a table; export a QIIME 2 artifact first."
            )
        if head != b"\x89HDF\r\n\x1a\n":
            with _open_text(path) as lines:
                start = lines.read(256).lstrip()
            if "\0" not in start:
                return "BIOM 1.0" if start.startswith("{") else "text"
            raise ForeignFile(f"{path}: is neither BIOM nor .h5ad nor text in UTF-8.")
    with reading(path, "HDF5"), checked(path) as file:
        if "observation" in file and "sample" in file:
            return "BIOM 2.1"
        if "obs" in file and "var" in file:
            return "h5ad"
    raise ForeignFile(f"{path}: is HDF5, but neither a BIOM nor an .h5ad file.")


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn whatever goes wrong inside a reader into one sentence."""
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise ForeignFile(f"{path}: is neither BIOM nor .h5ad nor text in UTF-8.") from error
    except Exception as error:
        if out_of_memory(error):
            raise
        # HDF5 hands EINVAL on to the system of a file that is damaged
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise CannotRead(f"{path}: cannot be read ({os.strerror(error.errno)}).") from error
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DamagedFile(f"{path}: cannot be read as {form}: {reason}.") from error


def _open_text(path: Path) -> io.TextIOWrapper:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(
        io.TextIOWrapper,
        (gzip.open if zipped else open)(path, "rt", encoding="utf-8-sig", newline=""),
    )


def _read_biom_hdf5(path: Path, layer: str | None, transpose: bool) -> Parsed:
    with h5py.File(path) as file, unchanged(file, path):
        return _with_counts(stored_biom(file))


def stored_biom(file: h5py.File) -> Parsed:
    """Names of a BIOM 2.1 table, and its copy by sample."""
    for axis in (file["sample"], file["observation"]):
        _check_names(axis["ids"], *filter(None, [axis.get("metadata")]))
    sample_ids = _ids(_strings(file["sample/ids"]))
    feature_ids = _ids(_strings(file["observation/ids"]))
    _check_shape(file.attrs.get("shape"), (len(feature_ids), len(sample_ids)))
    return Parsed(
        file["sample/matrix"],
        sample_ids,
        feature_ids,
        _frame(_biom_columns(file["sample"]), sample_ids),
        _frame(_biom_columns(file["observation"]), feature_ids),
        "BIOM 2.1",
    )


def _with_counts(stored: Parsed) -> Parsed:
    """Read the matrix as well."""
    shape = (len(stored.sample_ids), len(stored.feature_ids))
    path = stored.counts.file.filename
    room = Room(f"{path}: reading its table", "a fit with --stream (a CountFile) leaves it on disk")
    return stored._replace(counts=_read_matrix(stored.counts, shape, room))


def _check_names(*parts: h5py.Group | h5py.Dataset) -> None:
    """Refuse names and metadata that would fill the memory, before they are read."""
    sizes = []

    def add(name: str, member: h5py.Group | h5py.Dataset) -> None:
        if isinstance(member, h5py.Dataset):
            text = TEXT_BYTES if h5py.check_string_dtype(member.dtype) else 0
            sizes.append((member.size or 0) * max(member.dtype.itemsize, text))

    for part in parts:
        add("", part)
        if isinstance(part, h5py.Group):
            part.visititems(add)
    what = f"{parts[0].file.filename}: reading its names and metadata"
    Room(what, "leave out columns that are not needed").check(sum(sizes))


def _check_shape(claimed: Any, found: tuple[int, int]) -> None:
    """Refuse a file whose header claims another shape than its ids have."""
    if claimed is not None and tuple(np.asarray(claimed).tolist()) != found:
        claim = " × ".join(map(str, np.atleast_1d(claimed)))
        raise ValueError(f"it claims the shape {claim}, and its ids are {found[0]} × {found[1]}")


def _strings(dataset: h5py.Dataset) -> np.ndarray:
    return dataset[()] if h5py.check_string_dtype(dataset.dtype) is None else dataset.asstr()[()]


def _biom_columns(axis: h5py.Group) -> dict[str, Any]:
    columns = {}
    for name, dataset in axis.get("metadata", {}).items():
        values = _strings(dataset)
        if values.ndim > 1 or values.dtype.kind not in "iuf":
            values = _ids(values)
        columns[name.replace("@@SLASH@@", "/")] = values
    return columns


def _read_biom_json(path: Path, layer: str | None, transpose: bool) -> Parsed:
    room = Room(f"{path}: reading BIOM 1.0", "write it as BIOM 2.1 or .h5ad first")
    with _open_text(path) as file:
        content = json.loads(_whole(file, room, JSON_BYTES))
    if not {"rows", "columns", "data", "matrix_type"} <= content.keys():
        raise ForeignFile(f"{path}: is JSON, but not a BIOM 1.0 table.")
    feature_ids = _ids(row["id"] for row in content["rows"])
    sample_ids = _ids(column["id"] for column in content["columns"])
    _check_shape(content.get("shape"), (len(feature_ids), len(sample_ids)))
    if content["matrix_type"] == "dense":
        entries = [
            (i, j, value)
            for i, row in enumerate(content["data"])
            for j, value in zip(range(len(sample_ids)), row, strict=True)
            if value != 0
        ]
    else:
        entries = content["data"]
    for i, j, value in entries:
        if not isinstance(value, (int, float)):
            raise NotCounts(
                f"{path}: expected numbers; got {value!r} in sample {sample_ids[j]!r},"
                f" feature {feature_ids[i]!r}."
            )
    row, column, data = np.array(entries, dtype=np.float64).reshape(-1, 3).T
    at = np.stack([column, row])
    if not np.array_equal(at, np.rint(at)):
        raise ValueError("a position is not a whole number")
    shape = (len(sample_ids), len(feature_ids))
    return Parsed(
        canonical(coo_array((data, at.astype(np.int64)), shape=shape)),
        sample_ids,
        feature_ids,
        _frame(_json_columns(content["columns"]), sample_ids),
        _frame(_json_columns(content["rows"]), feature_ids),
        "BIOM 1.0",
    )


def _json_columns(axis: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = [entry.get("metadata") or {} for entry in axis]
    columns = {}
    for name in dict.fromkeys(name for entry in known for name in entry):
        values = [entry.get(name) for entry in known]
        if not all(isinstance(value, (int, float)) for value in values):
            values = [_text(value) for value in values]
        columns[name] = values
    return columns


def _read_h5ad(path: Path, layer: str | None, transpose: bool) -> Parsed:
    with h5py.File(path) as file, unchanged(file, path):
        return _with_counts(stored_h5ad(file, path, layer))


def stored_h5ad(file: h5py.File, path: Path, layer: str | None) -> Parsed:
    """Names of an ``.h5ad`` table, and the matrix of the layer asked for.

    Raises
    ------
    InputError
        If there is no such layer, or the file is of an anndata before 0.7.
    """
    known = file.get("layers")
    layers = list(known) if isinstance(known, h5py.Group) else []
    if layer in layers or (layer is None and "counts" in layers):
        name = layer or "counts"
        matrix, source = file["layers"][name], f"layers[{name!r}]"
    elif layer in (None, "X") and "X" in file:
        matrix, source = file["X"], "X"
    else:
        raise NoSuchLayer(
            f"{path}: has no {'X' if layer in (None, 'X') else f'layer {layer!r}'};"
            f" its layers: {examples(layers, 10) if layers else 'none'}."
        )
    for axis in ("obs", "var"):
        if file[axis].attrs.get("encoding-type") != "dataframe":
            raise ForeignFile(
                f"{path}: is not in the format of anndata 0.7 or later; write it anew with a"
                " current anndata."
            )
    _check_columns(file, path)
    _check_names(file["obs"], file["var"])
    frames = [cast(pd.DataFrame, anndata.io.read_elem(file[axis])) for axis in ("obs", "var")]
    obs, var = (frame.set_axis(_ids(frame.index), axis="index") for frame in frames)
    hint = f"; other layers here: {examples(layers, 10) if layers else 'none'}"
    return Parsed(
        matrix,
        _ids(obs.index),
        _ids(var.index),
        obs if obs.columns.size else None,
        var if var.columns.size else None,
        source,
        hint if source == "X" else "",
    )


def read_whole(path: Path) -> anndata.AnnData:
    """Read all that an ``.h5ad`` file holds, not the counts alone.

    Raises
    ------
    InputError
        If a part of it cannot be read, or the memory would not hold them all.
    """
    with reading(path, "h5ad"), checked(path) as file:
        room = Room(f"{path}: reading all parts of it", "write the coordinates as a .tsv")
        room.check(claimed_bytes(file))
        _check_columns(file, path)
        return anndata.read_h5ad(path)


def _check_columns(file: h5py.File, path: Path) -> None:
    """Refuse frames with columns that are not in them, and so in none of their sizes."""
    for axis in (file["obs"], file["var"]):
        for name in (axis.attrs.get("_index", ""), *axis.attrs.get("column-order", ())):
            if (text := _text(name)).startswith("/"):
                raise DamagedFile(f"{path}: a column of {axis.name!r} is outside of it, {text!r}.")


def _read_matrix(matrix: Any, shape: tuple[int, int], room: Room) -> csr_array:
    """Read a sparse group, or a dense dataset a block of rows at a time."""
    if isinstance(matrix, h5py.Dataset):
        _check_shape(matrix.shape, shape)
        step, blocks, entries = max(1, _BLOCK // max(1, matrix.shape[1])), [], 0
        for i in range(0, matrix.shape[0], step):
            blocks.append(csr_array(matrix[i : i + step]))
            entries += blocks[-1].nnz
            room.check(ENTRY_BYTES * entries)
        return canonical(vstack(blocks, format="csr") if blocks else csr_array(matrix.shape))
    room.check(ENTRY_BYTES * max(matrix[part].size for part in ("data", "indices")))
    check_indptr(matrix, shape)
    if "encoding-type" in matrix.attrs:
        _check_shape(matrix.attrs.get("shape"), shape)
        counts = anndata.io.read_elem(matrix)
        if not issparse(counts):
            raise DamagedFile(f"{matrix.name}: expected a matrix.")
        counts = csr_array(counts)
    else:
        parts = (matrix[part][()] for part in ("data", "indices", "indptr"))
        counts = csr_array(tuple(parts), shape=shape)
    counts.check_format(full_check=True)
    return canonical(counts)


def check_indptr(matrix: h5py.Group, shape: tuple[int, int]) -> None:
    """Refuse a sparse group of other rows than there are names, before its pointers are read."""
    columnwise = matrix.attrs.get("encoding-type") == "csc_matrix"
    if matrix["indptr"].size != shape[columnwise] + 1:
        raise ValueError("the matrix does not fit the ids")


def _corner(line: str) -> str:
    """Return the first cell of a line, without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", re.split(r"[\t,]", line)[0].lower())


def _lines(file: io.TextIOBase, room: Room) -> Iterator[str]:
    """Read line by line, but for what would fill the memory or never end, as a packed one may."""
    idle = 0
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"a line is longer than {_LONGEST_LINE:,} characters")
        room.check(CELL_BYTES * len(line))
        idle += not line.strip() or line.startswith("#")
        if idle > _MOST_IDLE:
            raise ValueError(f"more than {_MOST_IDLE:,} lines are empty or comments")
        yield line


def _whole(file: io.TextIOBase, room: Room, bytes_each: int) -> str:
    """Read all text, but for what would fill the memory once it is parsed."""
    pieces, size = [], 0
    while piece := file.read(_BLOCK):
        pieces.append(piece)
        size += len(piece)
        room.check(bytes_each * size)
    return "".join(pieces)


def _is_comment(line: str) -> bool:
    return (
        line.startswith("#")
        and "\t" not in line
        and _corner(line) not in _FEATURE_CORNERS | _SAMPLE_CORNERS
    )


def _read_text(path: Path, layer: str | None, transpose: bool) -> Parsed:
    room = Room(
        f"{path}: reading its table", "write it as BIOM 2.1 or .h5ad, which can be streamed"
    )
    with _open_text(path) as file:
        lines = _lines(file, room)
        head = next((line for line in lines if line.strip() and not _is_comment(line)), "")
        commas, tabs = head.count(","), head.count("\t")
        is_csv = commas > tabs if ".csv" in path.suffixes[-2:] else not tabs
        rows = csv.reader(
            itertools.chain([head], lines), delimiter="," if is_csv else "\t", strict=True
        )
        names = next(rows, [])
        features_first = transpose or _corner(head) in _FEATURE_CORNERS
        body = (row for row in rows if any(cell.strip() for cell in row))
        top = next(body, None)
        if top is not None and len(top) == len(names) + 1:  # as R writes it: no corner
            names = ["", *names]
        if len(names) < 2:
            raise ForeignFile(f"{path}: expected cells separated by tabs or commas; found none.")
        has_text = features_first and _corner(names[-1]) in _TEXT_COLUMNS
        columns = names[1:-1] if has_text else names[1:]
        ids, texts = [], []
        starts, at, values = array("q", [0]), array("q"), array("d")
        for row in itertools.chain([] if top is None else [top], body):
            if len(row) != len(names):
                raise DamagedFile(
                    f"{path}: expected {len(names)} cells in row {row[0]!r}; got {len(row)}."
                )
            ids.append(row[0])
            if has_text:
                texts.append(row.pop())
            cells = row[1:]
            for j in [j for j, cell in enumerate(cells) if cell not in _ZEROS]:
                value = _number(cells[j])
                if value is None:
                    sample, feature = (row[0], columns[j])[:: -1 if features_first else 1]
                    raise NotCounts(
                        f"{path}: expected numbers; got {cells[j]!r} in sample {sample!r},"
                        f" feature {feature!r}."
                    )
                at.append(j)
                values.append(value)
            starts.append(len(at))
            room.check(ENTRY_BYTES * len(at) + TEXT_BYTES * len(ids))
    if "" in ids or "" in columns:
        raise DamagedFile(f"{path}: a {'row' if '' in ids else 'column'} has no name.")
    counts = csr_array(
        (np.array(values), np.array(at), np.array(starts)), shape=(len(ids), len(columns))
    )
    parsed = Parsed(
        canonical(counts),
        _ids(ids),
        _ids(columns),
        _frame({names[-1]: texts} if has_text else {}, _ids(ids)),
        None,
        "text, rows are features" if features_first else "text, rows are samples",
    )
    return parsed.transposed()._replace(source=parsed.source) if features_first else parsed


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


_READERS: dict[str, Callable[[Path, str | None, bool], Parsed]] = {
    "BIOM 2.1": _read_biom_hdf5,
    "BIOM 1.0": _read_biom_json,
    "h5ad": _read_h5ad,
    "text": _read_text,
}


def with_metadata(
    sample_ids: np.ndarray,
    feature_ids: np.ndarray,
    known_so_far: pd.DataFrame | None,
    path: Path,
    metadata: Path,
) -> pd.DataFrame:
    """Read a metadata file, aligned to the samples of the table at `path`, and add what it has."""
    frame = read_metadata(metadata)
    known = np.isin(sample_ids.astype(str), frame.index.to_numpy(str))
    if not known.any():
        turned = np.isin(feature_ids.astype(str), frame.index.to_numpy(str)).sum()
        raise MetadataError(
            f"{metadata}: none of its {len(frame)} ids ({examples(list(frame.index))}) is a sample"
            f" of {path} ({examples(list(sample_ids))})"
            f"{f', but {turned} are features: the table looks transposed' if turned else ''}."
        )
    if not known.all():
        warnings.warn(
            f"{metadata}: has {known.sum()} of the {len(sample_ids)} samples of {path}, not"
            f" {examples(list(sample_ids[~known]))}.",
            CountvaeWarning,
            stacklevel=3,
        )
    frame = frame.reindex(pd.Index(sample_ids, dtype=object))
    if known_so_far is not None:
        frame = frame.join(known_so_far.drop(columns=frame.columns, errors="ignore"))
    return frame


def read_metadata(path: Path) -> pd.DataFrame:
    """Read metadata by scikit-bio, whatever the column of ids is called."""
    check_file(path)
    with reading(path, "metadata"):
        room = Room(f"{path}: reading its text", "leave out columns or samples that are not needed")
        with _open_text(path) as file:
            lines = list(io.StringIO(_whole(file, room, METADATA_BYTES), newline=""))
        for i, line in enumerate(lines):
            if line.strip() and not _is_comment(line):
                lines[i] = "id" + line[len(line.split("\t")[0].rstrip("\r\n")) :]
                break
        text = io.StringIO("".join(lines), newline="")
        try:
            return SampleMetadata.load(cast(str, text)).to_dataframe()
        except MetadataFileError as error:
            reason = str(error).partition("There may be more errors")[0]
            raise ValueError(reason) from error


# ---- writing


def _plain(frame: pd.DataFrame | None, ids: np.ndarray) -> pd.DataFrame:
    """Return columns of numbers or of text, and nothing else."""
    if frame is None:
        return pd.DataFrame(index=pd.Index(ids, dtype=object))
    columns = {
        str(name): column.to_numpy(np.float64, na_value=np.nan)
        if pd.api.types.is_numeric_dtype(column)
        else column.astype(object).where(column.notna(), "").astype(str).to_numpy(object)
        for name, column in frame.items()
    }
    return pd.DataFrame(columns, index=pd.Index(ids, dtype=object))


def _write_biom(table: CountTable, path: Path) -> None:
    samples = _plain(table.sample_metadata, table.sample_ids)
    features = _plain(table.feature_metadata, table.feature_ids)
    written = biom.Table(
        csr_matrix(table.counts.T, dtype=np.float64),
        list(table.feature_ids),
        list(table.sample_ids),
        observation_metadata=features.to_dict("records") if features.columns.size else None,
        sample_metadata=samples.to_dict("records") if samples.columns.size else None,
        type="OTU table",
    )
    # made in memory: HDF5 can crash as it closes a file on a full disk
    with h5py.File(path, "w", driver="core", backing_store=False) as file:
        written.to_hdf5(file, "countvae")
        file.flush()
        image = file.id.get_file_image()
    path.write_bytes(image)


def as_anndata(table: CountTable) -> anndata.AnnData:
    """Return what an .h5ad file has of a table."""
    return anndata.AnnData(
        X=table.counts,
        obs=_plain(table.sample_metadata, table.sample_ids),
        var=_plain(table.feature_metadata, table.feature_ids),
    )


def _write_h5ad(table: CountTable, path: Path) -> None:
    as_anndata(table).write_h5ad(path)


def _write_tsv(table: CountTable, path: Path) -> None:
    check_ids(table.sample_ids, "sample ids")
    check_ids(table.feature_ids, "feature ids")
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        rows.writerow(["sample_id", *table.feature_ids])
        for i, sample in enumerate(table.sample_ids):
            cells = ["0"] * table.d
            one = slice(table.counts.indptr[i], table.counts.indptr[i + 1])
            for j, value in zip(
                table.counts.indices[one], table.counts.data[one].tolist(), strict=True
            ):
                cells[j] = repr(int(value) if value == int(value) else value)
            rows.writerow([sample, *cells])


_WRITERS: dict[str, Callable[[CountTable, Path], None]] = {
    ".biom": _write_biom,
    ".h5ad": _write_h5ad,
    ".tsv": _write_tsv,
}
