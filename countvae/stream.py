"""CountFile: a count table that stays on disk and is read a few samples at a time."""

import copy
import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from jaxtyping import Integer, Num, Shaped
from scipy.sparse import csr_array, vstack

from countvae.checks import (
    check_counts,
    check_depth,
    check_shape,
    check_unique,
    examples,
    samples_with_reads,
)
from countvae.errors import (
    ArgumentError,
    CountvaeWarning,
    DamagedFile,
    FeaturesDiffer,
    InputError,
    NoSuchLayer,
    NotStreamable,
)
from countvae.files import sha256
from countvae.hdf5 import check_unchanged, state_of
from countvae.processes import ALONE, Processes
from countvae.table import (
    Overlap,
    Parsed,
    canonical,
    check_indptr,
    format_of,
    moved,
    place_features,
    qualifying,
    reading,
    stored_biom,
    stored_h5ad,
    with_metadata,
)

__all__ = ["CountFile"]

PASS_ENTRIES = 1 << 21
"""Non-zeros in memory at once while a file is looked through."""

AT_ONCE = 1 << 20
"""Non-zeros of one request, about, at most."""

NAMED = 3
"""Files of a table that a sentence names, at most."""

GAP_ENTRIES = 1 << 12
"""Non-zeros of rows not asked for that are read: skipping them costs a request more."""


class CountFile:
    """A count table on disk: BIOM 2.1 or ``.h5ad``, samples in rows, one file or several.

    Looked through once when it is opened, to check the counts and add up the depths; from then on
    only the rows asked for are read. Selections are notes of what to read; they copy no counts.

    Parameters
    ----------
    *paths : path
        Files of one table. The features of all must be the same, in whatever order; the samples
        follow one another and must have ids of their own.
    layer : str, optional
        The layer of ``.h5ad`` files, or "X"; by default ``layers["counts"]``, else X.
    allow_fractional : bool
        Warn of values that are not whole, rather than refuse them.
    allow_empty : bool
        Warn of samples without a read, rather than refuse them.
    drop_empty : bool
        Leave out samples without a read, with a warning that names them.
    processes : Processes
        Who shares the looking through: all of them have to open, filter and align alike.

    Attributes
    ----------
    sample_ids, feature_ids : ndarray of str
    sample_metadata, feature_metadata : DataFrame or None
        Sample metadata of several files have the columns that all have.
    depth : (n,)
        Reads in each sample.
    nnz : int
        Non-zeros in the files, whatever is selected of them.
    source : str
        Where in the file the counts were found.

    Raises
    ------
    InputError
        If a file cannot be read a row at a time, or does not hold counts.

    Examples
    --------
    >>> from countvae import MultinomialVAE
    >>> from countvae.stream import CountFile
    >>> with CountFile("atlas.h5ad") as table:  # doctest: +SKIP
    ...     model = MultinomialVAE(n_components=30).fit(table)
    """

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        layer: str | None = None,
        allow_fractional: bool = False,
        allow_empty: bool = False,
        drop_empty: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        if not paths:
            raise ArgumentError("paths: expected at least one file; got none.")
        self.name = ", ".join(map(str, paths[:NAMED])) + (
            f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        )
        self._processes = processes
        self._parts = [_Part(Path(path), layer) for path in paths]
        first = self._parts[0].stored
        self.feature_ids, self.feature_metadata = first.feature_ids, first.feature_metadata
        check_unique(self.feature_ids, f"{self._parts[0].path}: feature ids")
        for part in self._parts[1:]:
            part.follow(self._parts[0])
        self.sample_ids = np.concatenate([part.stored.sample_ids for part in self._parts])
        check_unique(self.sample_ids, f"{self.name}: sample ids")
        frames = [part.stored.sample_metadata for part in self._parts]
        known = [frame for frame in frames if frame is not None]
        whole = len(known) == len(frames)
        self.sample_metadata = pd.concat(known, join="inner") if whole else None
        self.source = first.source
        self.nnz = sum(part.nnz for part in self._parts)
        self._starts = np.cumsum([0, *(part.n for part in self._parts)])
        self._kept = np.arange(self._starts[-1])
        self._place: np.ndarray | None = None
        check_shape(self.shape, self.name)
        self.depth = self._checked(allow_fractional)
        if drop_empty:
            self.__dict__.update(self.without_empty(self.name).__dict__)
        else:
            policy = "warn" if allow_empty else "error"
            check_depth(self.depth, self.sample_ids, policy, self.name)

    def __enter__(self) -> "CountFile":
        """Give the table; `__exit__` closes its files."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files; selections of this table share them."""
        for part in self._parts:
            part.file.close()

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and features."""
        return len(self._kept), len(self.feature_ids)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self._kept)

    @property
    def d(self) -> int:
        """Number of features."""
        return len(self.feature_ids)

    def __getitem__(self, rows: slice | Integer[np.ndarray, " rows"]) -> Num[csr_array, "rows d"]:
        """Read samples, in the order given: a slice of them, or their positions."""
        at = self._kept[rows]
        order = np.argsort(at, kind="stable")
        found = self._read(at[order])
        if np.array_equal(order, np.arange(len(order))):
            return found
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return found[back]

    def blocks(self, entries: int = PASS_ENTRIES) -> Iterator[tuple[int, csr_array]]:
        """Read all samples in order, each block with the position of its first sample."""
        yield from self._blocks(0, self.n, entries)

    def _blocks(self, low: int, high: int, entries: int) -> Iterator[tuple[int, csr_array]]:
        step = self.rows_of(entries)
        for i in range(low, high, step):
            yield i, self[i : min(high, i + step)]

    def _own_blocks(self) -> Iterator[tuple[int, csr_array]]:
        """Read this process's share of the samples."""
        yield from self._blocks(*self._processes.share(self.n), PASS_ENTRIES)

    def _depths_of_all(self, own: list[np.ndarray]) -> np.ndarray:
        """Put together the depths that each process has found of its share."""
        found = torch.from_numpy(np.concatenate([np.empty(0), *own]))
        return self._processes.whole(found, self.n).numpy()

    def rows_of(self, entries: int) -> int:
        """Rows that hold about so many non-zeros, at least one."""
        return max(1, int(entries * self._starts[-1] / max(1, self.nnz)))

    def digests(self) -> list[str]:
        """Return the SHA-256 of each file, in hexadecimal; found once."""
        return [part.digest for part in self._parts]

    def select_samples(self, which: Shaped[np.ndarray, " chosen"]) -> "CountFile":
        """Keep samples, in the order given: a mask over them, or positions."""
        at = np.arange(self.n)[which]
        chosen = copy.copy(self)
        chosen._kept, chosen.sample_ids = self._kept[at], self.sample_ids[at]
        chosen.depth = self.depth[at]
        if self.sample_metadata is not None:
            chosen.sample_metadata = self.sample_metadata.iloc[at]
        return chosen

    def filter(
        self,
        min_sample_count: int = 0,
        min_feature_count: int = 0,
        min_feature_samples: int = 0,
    ) -> "CountFile":
        """Keep the largest part of the table in which every sample and feature qualifies.

        As `CountTable.filter`, reading the file once a round; two or three rounds are usual.
        """
        samples, features = qualifying(
            self._own_blocks,
            self.shape,
            total=lambda *sums: self._processes.total(*map(torch.from_numpy, sums)),
            min_sample_count=min_sample_count,
            min_feature_count=min_feature_count,
            min_feature_samples=min_feature_samples,
        )
        kept = self.select_samples(samples)
        if features.all():
            return kept
        frame = kept.feature_metadata
        return kept._with_features(
            np.where(features, np.cumsum(features) - 1, -1),
            kept.feature_ids[features],
            None if frame is None else frame.iloc[np.flatnonzero(features)],
        )

    def without_empty(self, argument: str = "table") -> "CountFile":
        """Leave out samples without a read, with a warning; as `CountTable.without_empty`."""
        return self.select_samples(samples_with_reads(self.depth, self.sample_ids, argument))

    def align_features(
        self, feature_ids: Shaped[np.ndarray, " features"]
    ) -> tuple["CountFile", Overlap]:
        """Bring the table to exactly these features; as `CountTable.align_features`."""
        place = place_features(self.feature_ids, feature_ids, self.sample_ids)
        frame = self.feature_metadata
        aligned = self._with_features(
            place, feature_ids, None if frame is None else frame.reindex(feature_ids)
        )
        return aligned, Overlap.of(place, len(feature_ids), aligned.depth.sum(), self.depth.sum())

    def with_metadata(self, path: str | os.PathLike[str]) -> "CountFile":
        """Add the columns of a metadata file, aligned by sample id."""
        chosen = copy.copy(self)
        chosen.sample_metadata = with_metadata(
            self.sample_ids, self.feature_ids, self.sample_metadata, Path(self.name), Path(path)
        )
        return chosen

    def _with_features(
        self, place: np.ndarray, feature_ids: np.ndarray, metadata: pd.DataFrame | None
    ) -> "CountFile":
        """Send each feature to a new place, or nowhere (-1)."""
        chosen = copy.copy(self)
        known = place if self._place is None else np.where(self._place >= 0, place[self._place], -1)
        chosen._place, chosen.feature_ids, chosen.feature_metadata = known, feature_ids, metadata
        same = len(feature_ids) == self.d and (place >= 0).all()
        if not same:
            own = [_depth(block) for _, block in chosen._own_blocks()]
            chosen.depth = chosen._depths_of_all(own)
        return chosen

    def _read(self, at: Integer[np.ndarray, " rows"]) -> csr_array:
        """Read stored samples of sorted numbers."""
        pieces = []
        part_of = np.searchsorted(self._starts, at, side="right") - 1
        for number in np.unique(part_of):
            part, start = self._parts[number], self._starts[number]
            own = at[part_of == number] - start
            if not part.file:
                raise ArgumentError(f"{part.path}: was closed; open it again.")
            with reading(part.path, "a count table"):
                pieces += [self._put(part.chosen(run)) for run in part.runs(own)]
                check_unchanged(part.file, part.path, part.state)
        if not pieces:
            return csr_array((0, self.d))
        return pieces[0] if len(pieces) == 1 else csr_array(vstack(pieces, format="csr"))

    def _put(self, counts: csr_array) -> csr_array:
        """Put the features that were read to their places."""
        return counts if self._place is None else moved(counts, self._place, self.d)

    def _checked(self, allow_fractional: bool) -> np.ndarray:
        """Check all counts, a block at a time, and return the depths."""
        with self._processes.in_step():
            own = self._own_checked(allow_fractional)
        return self._depths_of_all(own)

    def _own_checked(self, allow_fractional: bool) -> list[np.ndarray]:
        fractional = "warn" if allow_fractional else "error"
        depths = []
        for i, block in self._own_blocks():
            try:
                with warnings.catch_warnings(record=True) as noted:
                    warnings.simplefilter("always", CountvaeWarning)
                    check_counts(
                        block,
                        self.sample_ids[i : i + block.shape[0]],
                        self.feature_ids,
                        fractional=fractional,
                        empty_samples="ignore",
                        argument=f"{self.name} ({self.source})",
                    )
            except InputError as error:
                hint = self._parts[0].stored.hint
                raise type(error)(f"{str(error).rstrip('.')}{hint}.") from None
            for warning in noted:
                warnings.warn(warning.message, stacklevel=5)
                fractional = "ignore"
            depths.append(_depth(block))
        return depths


class _Part:
    """One file: rows of a CSR group, or of a dense dataset."""

    @functools.cached_property
    def digest(self) -> str:
        return sha256(self.path)

    def __init__(self, path: Path, layer: str | None) -> None:
        self.path = path
        self.form = form = format_of(path)
        if form not in ("BIOM 2.1", "h5ad"):
            raise NotStreamable(
                f"{path}: is {form}, which has no rows to be read from disk; write it as .h5ad or"
                " BIOM 2.1 first, or read all of it."
            )
        if layer is not None and form != "h5ad":
            raise NoSuchLayer(f"{path}: layer={layer!r} can be had of an .h5ad file only.")
        with reading(path, form):
            self.file = h5py.File(path)
            self.state = state_of(self.file)
            self.stored: Parsed = (
                stored_biom(self.file)
                if form == "BIOM 2.1"
                else stored_h5ad(self.file, path, layer)
            )
            self.matrix = self.stored.counts
            self.n, self.d = len(self.stored.sample_ids), len(self.stored.feature_ids)
            self.place: np.ndarray | None = None
            self._look()

    def _look(self) -> None:
        if isinstance(self.matrix, h5py.Dataset):
            if self.matrix.shape != (self.n, self.d):
                raise DamagedFile(f"{self.path}: the matrix does not fit the ids.")
            self.indptr = None
            self.nnz = self.n * self.d
            return
        kind = self.matrix.attrs.get("encoding-type", "csr_matrix")
        if kind != "csr_matrix":
            raise NotStreamable(
                f"{self.path}: {self.stored.source} is stored as {kind}, whose samples cannot be"
                " read one by one; write it as CSR first, or read all of it."
            )
        check_indptr(self.matrix, (self.n, self.d))
        self.indptr = self.matrix["indptr"][()].astype(np.int64)
        self.nnz = int(self.indptr[-1])
        if (
            self.indptr[0] != 0
            or (np.diff(self.indptr) < 0).any()
            or len(self.matrix["data"]) < self.nnz
            or len(self.matrix["indices"]) < self.nnz
        ):
            raise DamagedFile(f"{self.path}: the matrix does not fit the ids.")

    def follow(self, first: "_Part") -> None:
        """Put the features in the order of the first file, if both have the same kind of counts."""
        own, feature_ids = self.stored.feature_ids, first.stored.feature_ids
        if self.stored.source != first.stored.source and self.form == first.form:
            raise NoSuchLayer(
                f"{self.path}: its counts would be {self.stored.source}, those of {first.path}"
                f" {first.stored.source}; say which layer to read of all."
            )
        check_unique(own, f"{self.path}: feature ids")
        place = pd.Index(feature_ids).get_indexer(pd.Index(own))
        if len(own) != len(feature_ids) or (place < 0).any():
            alone = sorted(set(own.tolist()) ^ set(feature_ids.tolist()))
            raise FeaturesDiffer(
                f"{self.path}: its features are not those of {first.path}; only one of the two has"
                f" {examples(alone)}."
            )
        if not np.array_equal(own, feature_ids):
            self.place = place

    def runs(self, at: np.ndarray) -> list[np.ndarray]:
        """Cut sorted sample numbers into requests: where much lies between, or enough is asked."""
        begin, end = (
            number * self.d if self.indptr is None else self.indptr[number]
            for number in (at, at + 1)
        )
        cuts = (begin[1:] - end[:-1] > GAP_ENTRIES) | (np.diff(begin // AT_ONCE) > 0)
        return np.split(at, np.flatnonzero(cuts) + 1)

    def chosen(self, at: np.ndarray) -> csr_array:
        """Read samples of sorted numbers, and those between them, and keep the former."""
        first, last = int(at[0]), int(at[-1])
        rows = self._rows(first, last + 1)
        return rows if (np.diff(at) == 1).all() else rows[at - first]

    def _rows(self, start: int, stop: int) -> csr_array:
        """Read consecutive samples."""
        if self.indptr is None:
            counts = csr_array(self.matrix[start:stop])
        else:
            a, b = self.indptr[start], self.indptr[stop]
            counts = csr_array(
                (
                    self.matrix["data"][a:b],
                    self.matrix["indices"][a:b],
                    self.indptr[start : stop + 1] - a,
                ),
                shape=(stop - start, self.d),
            )
            counts.check_format(full_check=True)
        counts = canonical(counts)
        return counts if self.place is None else moved(counts, self.place, self.d)


def _depth(counts: csr_array) -> np.ndarray:
    return np.asarray(counts.sum(axis=1, dtype=np.float64))


def open_counts(given: Any, processes: Processes = ALONE) -> "CountFile | None":
    """Open what names files, one or several; None for anything else."""
    paths = given if isinstance(given, list | tuple) else [given]
    if not paths or not all(isinstance(path, str | os.PathLike) for path in paths):
        return None
    return CountFile(*paths, allow_fractional=True, allow_empty=True, processes=processes)
