"""Minibatches: rows of a sparse count table as dense tensors, a batch at a time."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.sparse import csr_array, issparse
from torch import Tensor

from countvae.devices import free_bytes
from countvae.processes import ALONE, Processes

GROUP_ENTRIES = 1 << 22
"""Non-zeros of a streamed table that are shuffled together in memory."""

RUN_ENTRIES = 1 << 16
"""Non-zeros of consecutive rows that are read at once."""

FOR_TABLE = 0.5
"""Share of an accelerator's free memory that the whole table may take."""

LANES = 8
"""Parts of a streamed table, each of which has its share in every batch."""


@runtime_checkable
class Counts(Protocol):
    """A table of which rows can be had as CSR: a csr_array, or a table on disk."""

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and features."""
        ...

    def __getitem__(self, rows: Any) -> csr_array:
        """Return a slice of the rows, or those at some positions."""
        ...


class Batch(NamedTuple):
    """Some samples of a step."""

    at: Tensor
    """Their row numbers."""
    x: Tensor
    """Their counts, (b, d)."""
    f: Tensor
    """Their covariates, (b, p)."""
    size: int
    """Samples of the step in all processes together."""


class _OnDevice:
    """Rows of a table as CSR in the memory of an accelerator."""

    def __init__(self, indptr: Tensor, indices: Tensor, data: Tensor, d: int) -> None:
        self.indptr, self.indices, self.data = indptr, indices, data
        self.shape = len(indptr) - 1, d

    @classmethod
    def of(cls, counts: csr_array, dtype: torch.dtype, device: torch.device) -> "_OnDevice":
        """Copy a table there."""
        indptr, indices, data = (
            torch.from_numpy(part).to(device, kind)
            for part, kind in (
                (counts.indptr, torch.int64),
                (counts.indices, torch.int64),
                (counts.data, dtype),
            )
        )
        return cls(indptr, indices, data, counts.shape[1])

    def __getitem__(self, rows: np.ndarray) -> "_OnDevice":
        """Return the chosen rows."""
        chosen = torch.from_numpy(rows).to(self.indptr.device)
        sizes = self.indptr[chosen + 1] - self.indptr[chosen]
        ends = sizes.cumsum(0)
        shift = (self.indptr[chosen] - ends + sizes).repeat_interleave(sizes)
        entries = shift + torch.arange(len(shift), device=shift.device)
        indptr = torch.cat([ends.new_zeros(1), ends])
        return _OnDevice(indptr, self.indices[entries], self.data[entries], self.shape[1])

    def toarray(self) -> Tensor:
        """Return all rows, dense."""
        out = self.data.new_zeros(self.shape)
        row = torch.arange(len(out), device=out.device).repeat_interleave(self.indptr.diff())
        out[row, self.indices] = self.data
        return out


class Rows:
    """A count table of which only a batch of rows is ever dense.

    On an accelerator a table in memory is copied whole, if it fits.

    A table in memory is shuffled whole. One on disk is cut into lanes of consecutive rows; every
    batch has an equal share of each lane, and within a lane runs of rows are read in random order
    and shuffled in groups. Several processes take their shares of the same batches, so that their
    sums do not depend on how many they are.

    Parameters
    ----------
    counts : csr_array or CountFile, (n, d)
        The table.
    batch_size : int
        Rows of a batch, over all processes.
    dtype, device
        Of the batches.
    processes : Processes
        Who shares the rows.
    covariates : (n, p), optional
        What else is known of each sample; nothing by default.

    Attributes
    ----------
    waited : float
        Seconds in which there was nothing to do until a streamed table was read.
    """

    def __init__(
        self,
        counts: Counts,
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        processes: Processes = ALONE,
        covariates: np.ndarray | None = None,
    ) -> None:
        self.counts = counts
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = torch.device(device)
        self.processes = processes
        self.n, self.d = counts.shape
        known = np.empty((self.n, 0)) if covariates is None else covariates
        self.covariates = torch.from_numpy(known.astype(self._numbers)).to(self.device)
        self.streamed = not issparse(counts)
        self.waited = 0.0
        self._there = None
        free = free_bytes(self.device)
        if self.device.type != "cpu" and bytes_on_device(counts, dtype, free):
            self._there = _OnDevice.of(counts, dtype, self.device)
        lanes = min(LANES, batch_size, self.n) if self.streamed else 1
        self._lanes_each = -(-lanes // processes.count)
        self._lanes = self._lanes_each * processes.count

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the chosen rows, dense."""
        return self._dense(self._chosen(index))

    def sample(self, most: int, generator: torch.Generator) -> "Rows":
        """Draw so many rows, or take all if there are no more, into the memory of each process."""
        if self.n > most:
            some = self.counts[torch.randperm(self.n, generator=generator)[:most].numpy()]
        else:
            some = self.counts[np.arange(self.n)] if self.streamed else self.counts
        return Rows(some, self.batch_size, self.dtype, self.device)

    @property
    def batches(self) -> int:
        """Batches of `in_order`."""
        low, high = self.processes.share(self.n)
        return -(-(high - low) // self.batch_size)

    def in_order(self) -> Iterator[Tensor]:
        """Yield all rows of this process once, in order."""
        batches = torch.arange(*self.processes.share(self.n)).split(self.batch_size)
        for _, some in self._read(_grouped(batches, self._batches_a_group)):
            yield self._dense(some)

    def covariates_in_order(self) -> Iterator[Tensor]:
        """Yield the covariates of the batches of `in_order`."""
        low, high = self.processes.share(self.n)
        yield from self.covariates[low:high].split(self.batch_size)

    def shuffled(self, generator: torch.Generator, first: int = 0) -> Iterator[Batch]:
        """Yield all rows of this process once in random order, from the batch of this number on."""
        steps = self._steps(generator)[first:]
        lane = self.processes.rank * self._lanes_each
        own = [torch.cat(lanes[lane : lane + self._lanes_each]) for lanes in steps]
        sizes = iter([sum(map(len, lanes)) for lanes in steps])
        for index, some in self._read(_grouped(own, self._batches_a_group)):
            f = self.covariates[index.to(self.device)]
            yield Batch(index, self._dense(some), f, next(sizes))

    def _bounds(self) -> list[tuple[int, int]]:
        cuts = [self.n * i // self._lanes for i in range(self._lanes + 1)]
        return list(itertools.pairwise(cuts))

    @property
    def _batches_a_group(self) -> int:
        """Batches that are read and shuffled together: one, of a table in memory."""
        rows_of = getattr(self.counts, "rows_of", None)
        return 1 if rows_of is None else max(1, rows_of(GROUP_ENTRIES) // self.batch_size)

    def _steps(self, generator: torch.Generator) -> list[list[Tensor]]:
        """Row numbers of an epoch: those of each lane, of each batch."""
        if not self.streamed:
            steps = torch.randperm(self.n, generator=generator).split(self.batch_size)
            return [[step[lane :: self._lanes] for lane in range(self._lanes)] for step in steps]
        count = -(-self.n // self.batch_size)
        lanes = [self._lane(low, high, count, generator) for low, high in self._bounds()]
        return [list(step) for step in zip(*lanes, strict=True)]

    def _lane(self, low: int, high: int, steps: int, generator: torch.Generator) -> list[Tensor]:
        """Cut a lane's rows, shuffled by runs and then in groups, into shares of the steps."""
        rows_of: Callable[[int], int] = self.counts.rows_of  # pyright: ignore
        runs = torch.arange(low, high).split(rows_of(RUN_ENTRIES))
        order = torch.cat([runs[i] for i in torch.randperm(len(runs), generator=generator)])
        cuts = [len(order) * step // steps for step in range(steps + 1)]
        shares = []
        for first in range(0, steps, self._batches_a_group):
            last = min(steps, first + self._batches_a_group)
            group = order[cuts[first] : cuts[last]]
            group = group[torch.randperm(len(group), generator=generator)]
            shares += group.split([cuts[i + 1] - cuts[i] for i in range(first, last)])
        return shares

    def _chosen(self, index: Tensor) -> csr_array | _OnDevice:
        return (self.counts if self._there is None else self._there)[index.numpy()]

    def _read(
        self, groups: Iterable[list[Tensor]]
    ) -> Iterator[tuple[Tensor, csr_array | _OnDevice]]:
        """Yield each batch's row numbers and rows; a group of batches is read at once."""

        def read(group: list[Tensor]) -> csr_array | _OnDevice:
            return self._chosen(torch.cat(group))

        for group, some in self._ahead(groups, read):
            end = 0
            for index in group:
                start, end = end, end + len(index)
                yield index, some if len(group) == 1 else some[start:end]

    def _ahead(
        self, groups: Iterable[list[Tensor]], read: Callable[[list[Tensor]], Any]
    ) -> Iterator[tuple[list[Tensor], Any]]:
        """Read a streamed table's next group while this one is worked on."""
        if not self.streamed:
            yield from ((group, read(group)) for group in groups)
            return
        with ThreadPoolExecutor(1, "countvae-reader") as reader:
            coming = None
            for group in groups:
                ready, coming = coming, (group, reader.submit(read, group))
                if ready is not None:
                    yield ready[0], self._awaited(ready[1])
            if coming is not None:
                yield coming[0], self._awaited(coming[1])

    def _awaited(self, some: Future) -> Any:
        begun = time.perf_counter()
        found = some.result()
        self.waited += time.perf_counter() - begun
        return found

    @property
    def _numbers(self) -> type[np.floating]:
        return np.float32 if self.dtype == torch.float32 else np.float64

    def _dense(self, some: csr_array | _OnDevice) -> Tensor:
        if isinstance(some, _OnDevice):
            return some.toarray()
        if self.device.type != "cpu":
            return _OnDevice.of(some, self.dtype, self.device).toarray()
        data = some.data.astype(self._numbers, copy=False)
        dense = csr_array((data, some.indices, some.indptr), shape=some.shape).toarray()
        return torch.from_numpy(dense)


def bytes_on_device(counts: Any, dtype: torch.dtype, free: int | None) -> int:
    """Bytes that a table takes on an accelerator; 0 if it stays here, and batches are sent."""
    if not issparse(counts):
        return 0
    needed = counts.nnz * (dtype.itemsize + 8)
    return needed if free is None or needed < FOR_TABLE * free else 0


def _grouped(batches: Iterable[Tensor], size: int) -> list[list[Tensor]]:
    batches = list(batches)
    return [batches[i : i + size] for i in range(0, len(batches), size)]
