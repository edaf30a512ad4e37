"""Products with CLR(x + pseudocount) - centre that cost what the non-zeros of x cost.

Where x is zero the pseudocounted logarithm is that of the pseudocount, so

    CLR(x + c)_j - centre_j = s_j - mean(s) - centre_j,    s_j = log(x_j / c + 1),

and all but the sparse s is of rank two.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from countvae.compiled import kernel
from countvae.threads import available, cut, share

__all__ = ["SparseLogs"]

SPARSE = 0.15
"""Share of non-zeros up to which sparse products are the faster ones."""

WORTH_THREADS = 1 << 18
"""Entries of x from which products are shared out among threads."""


class SparseLogs:
    """CLR(x + pseudocount) - centre of a batch; `logs @ W` is its product with a dense matrix."""

    def __init__(self, parts: tuple[np.ndarray, ...], shape: tuple[int, int]) -> None:
        self.parts, self.shape = parts, shape

    @staticmethod
    def of(
        x: Float[Tensor, "b d"], pseudocount: float | Tensor, centre: Float[Tensor, " d"]
    ) -> "SparseLogs | None":
        """Collect the logs of a batch; None where dense arithmetic is faster, or the only one."""
        single = x.dtype == torch.float32 and x.device.type == "cpu"
        if kernel is None or not single or isinstance(pseudocount, Tensor):
            return None
        b, d = x.shape
        most = int(SPARSE * b * d)
        starts, rows = np.empty(d + 1, np.int64), np.empty(most, np.int32)
        values, means = np.empty(most, np.float32), np.empty(b, np.float32)
        counts = x.contiguous().numpy()
        found = kernel.gather_logs(
            counts, np.float32(pseudocount), most, starts, rows, values, means
        )
        if found > most:
            return None
        return SparseLogs((starts, rows, values, means, centre.detach().numpy()), (b, d))

    def __matmul__(self, W: Float[Tensor, "d h"]) -> Float[Tensor, "b h"]:
        """Multiply; differentiable in W."""
        return _Times.apply(self, W)

    def times(self, W: np.ndarray) -> np.ndarray:
        """Return logs @ W, (b, h)."""

        def work(at: slice) -> np.ndarray:
            out = np.empty((self.shape[0], W.shape[1]), np.float32)
            kernel.logs_times(*self._of(at), W[at], out)  # pyright: ignore
            return out

        return np.sum(self._share(work), axis=0)

    def transposed_times(self, g: np.ndarray) -> np.ndarray:
        """Return logs' @ g, (d, h)."""
        out = np.empty((self.shape[1], g.shape[1]), np.float32)

        def work(at: slice) -> None:
            kernel.transposed_logs_times(*self._of(at), g, out[at])  # pyright: ignore

        self._share(work)
        return out

    def _of(self, at: slice) -> tuple[np.ndarray, ...]:
        starts, rows, values, means, centre = self.parts
        return starts[at.start : at.stop + 1], rows, values, means, centre[at]

    def _share(self, work: Any) -> list[Any]:
        b, d = self.shape
        threads = available() if b * d >= WORTH_THREADS else 1
        return share(work, cut(d, threads), threads)


class _Times(torch.autograd.Function):
    """The product, whose gradient with respect to W is the product of the transposed."""

    @staticmethod
    def forward(ctx, logs, W):
        ctx.logs = logs
        return torch.from_numpy(logs.times(W.detach().contiguous().numpy()))

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, torch.from_numpy(ctx.logs.transposed_times(grad.contiguous().numpy()))
