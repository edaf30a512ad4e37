"""Minibatches: rows of a sparse count table as dense tensors, a batch at a time."""

from collections.abc import Iterator

import scipy.sparse as sp
import torch
from torch import Tensor


class Rows:
    """A count table of which only a batch of rows is ever dense.

    Parameters
    ----------
    counts : csr_array, (n, d)
        The table.
    batch_size : int
        Rows of a batch.
    dtype, device
        Of the batches.
    """

    def __init__(
        self,
        counts: sp.csr_array,
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.counts = counts
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = device
        self.n, self.d = counts.shape

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the chosen rows, dense."""
        return self._dense(self.counts[index.numpy()])

    def in_order(self) -> Iterator[Tensor]:
        """Yield all rows once, in order."""
        for i in range(0, self.n, self.batch_size):
            yield self._dense(self.counts[i : i + self.batch_size])

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all rows once in random order, each batch with its row numbers."""
        for index in torch.randperm(self.n, generator=generator).split(self.batch_size):
            yield index, self[index]

    def _dense(self, some: sp.csr_array) -> Tensor:
        dense = some.toarray()
        return torch.from_numpy(dense).to(self.device, self.dtype)
