"""The encoder's input, CLR(x + pseudocount) - centre, and its products with dense matrices.

Where x is zero the pseudocounted logarithm is that of the pseudocount, so

    CLR(x + c)_j - centre_j = s_j - mean(s) - centre_j,    s_j = log(x_j / c + 1),

and all but the sparse s is of rank two: a product costs what the non-zeros of x cost.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from countvae.compiled import kernel
from countvae.threads import cut, share, worth

__all__ = ["Logs", "centred_logs"]

SPARSE = 0.15
"""Share of non-zeros up to which sparse products are the faster ones."""


def centred_logs(
    x: Float[Tensor, "b d"], pseudocount: float | Tensor, centre: Float[Tensor, " d"]
) -> Float[Tensor, "b d"]:
    """Return CLR(x + pseudocount) - centre: all that an encoder sees of the counts."""
    logs = (x + pseudocount).log()
    return logs - logs.mean(1, keepdim=True) - centre


class Logs:
    """CLR(x + pseudocount) - centre of a batch; `logs @ W` is differentiable in W."""

    def __init__(
        self, x: Float[Tensor, "b d"], pseudocount: float, centre: Float[Tensor, " d"]
    ) -> None:
        self.threads = worth(x.numel(), x.device)
        single = x.dtype == torch.float32 and x.device.type == "cpu"
        sparse = None
        if kernel is not None and single:
            sparse = _Sparse.of(x.contiguous(), pseudocount, centre, self.threads)
        self.parts = sparse or _Dense(x, pseudocount, centre, self.threads)

    def __matmul__(self, W: Float[Tensor, "d h"]) -> Float[Tensor, "b h"]:
        """Multiply."""
        return _Product.apply(self.parts, W)


class _Product(torch.autograd.Function):
    """logs @ W, whose gradient with respect to W is logs' @ that of the product."""

    @staticmethod
    def forward(ctx, logs, W):
        ctx.logs = logs
        return logs.times(W.detach().contiguous())

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.logs.transposed_times(grad.contiguous())


class _Dense:
    """All entries, worked on by slices of the samples or of the features."""

    def __init__(self, x: Tensor, pseudocount: float, centre: Tensor, threads: int) -> None:
        self.threads = threads
        self.logs = torch.empty_like(x)

        def work(at: slice) -> None:
            self.logs[at] = centred_logs(x[at], pseudocount, centre)

        share(work, cut(len(x), threads), threads)

    def times(self, W: Tensor) -> Tensor:
        """Return logs @ W, (b, h)."""
        logs, out = self.logs, W.new_empty(len(self.logs), W.shape[1])
        share(
            lambda at: torch.mm(logs[at], W, out=out[at]),
            cut(len(logs), self.threads),
            self.threads,
        )
        return out

    def transposed_times(self, g: Tensor) -> Tensor:
        """Return logs' @ g, (d, h)."""
        logs, out = self.logs, g.new_empty(self.logs.shape[1], g.shape[1])
        share(
            lambda at: torch.mm(logs[:, at].T, g, out=out[at]),
            cut(len(out), self.threads),
            self.threads,
        )
        return out


class _Columns(NamedTuple):
    """The logs s of some features, column by column."""

    at: slice
    starts: np.ndarray
    rows: np.ndarray
    values: np.ndarray


class _Sparse:
    """The logs s where x is not zero, their means over each sample, and the centre."""

    def __init__(self, columns: list[_Columns], means: np.ndarray, centre: np.ndarray) -> None:
        self.columns, self.means, self.centre = columns, means, centre

    @classmethod
    def of(cls, x: Tensor, pseudocount: float, centre: Tensor, threads: int) -> "_Sparse | None":
        """Collect the logs; None where dense arithmetic is faster."""
        (b, d), counts = x.shape, x.numpy()

        def find(at: slice) -> tuple[np.ndarray, ...]:
            width = at.stop - at.start
            columns, ends = np.empty(b * width + 1, np.int32), np.empty(b, np.int64)
            starts = np.empty(width + 1, np.int64)
            kernel.find_counts(counts, at.start, columns, ends, starts)  # pyright: ignore
            return columns, ends, starts

        slices = cut(d, threads)
        found = share(find, slices, threads)
        if sum(starts[-1] for _, _, starts in found) > SPARSE * b * d:
            return None

        def gather(some: tuple[slice, tuple[np.ndarray, ...]]) -> tuple[_Columns, np.ndarray]:
            at, (columns, ends, starts) = some
            rows, values = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
            sums = np.empty(b, np.float32)
            of_slice = counts, np.float32(pseudocount), at.start, columns, ends, starts
            kernel.gather_logs(*of_slice, rows, values, sums)  # pyright: ignore
            return _Columns(at, starts, rows, values), sums

        parts = share(gather, list(zip(slices, found, strict=True)), threads)
        means = np.sum([sums for _, sums in parts], axis=0) / np.float32(d)
        return cls([columns for columns, _ in parts], means, centre.detach().numpy())

    def times(self, W: Tensor) -> Tensor:
        """Return logs @ W, (b, h)."""
        array = W.numpy()

        def work(columns: _Columns) -> np.ndarray:
            out = np.empty((len(self.means), array.shape[1]), np.float32)
            kernel.logs_times(*self._of(columns), array[columns.at], out)  # pyright: ignore
            return out

        return torch.from_numpy(np.sum(share(work, self.columns, len(self.columns)), axis=0))

    def transposed_times(self, g: Tensor) -> Tensor:
        """Return logs' @ g, (d, h)."""
        array, out = g.numpy(), np.empty((len(self.centre), g.shape[1]), np.float32)

        def work(columns: _Columns) -> None:
            kernel.transposed_logs_times(*self._of(columns), array, out[columns.at])  # pyright: ignore

        share(work, self.columns, len(self.columns))
        return torch.from_numpy(out)

    def _of(self, columns: _Columns) -> tuple[np.ndarray, ...]:
        return *columns[1:], self.means, self.centre[columns.at]
