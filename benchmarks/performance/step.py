"""One step against the machine's limit: `python -m benchmarks.performance.step`.

The floor of a step is that of six matrix products of B x d by k and eight exponentials of B x d
entries, at the rates of torch on this machine, measured just before. Products are counted for
m0, Q, and the gradients of V (twice), z and D; what the encoder, the prior and Adam cost comes on
top, and is in the step.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.core.common import tell
from benchmarks.performance.common import sparse_table, write
from countvae.decoder import Decoder
from countvae.encoder import DenseEncoder
from countvae.rows import Rows
from countvae.start import residual_start
from countvae.threads import one_thread_an_operation
from countvae.training import Schedule, train

BATCH = 128
STEPS = 64
EPOCHS = 8
WITH_PRIOR = slice(2, 7)
"""Epochs in which the loadings are shrunk: the most costly ones, and most of a fit."""
FEATURES = (1000, 10_000, 50_000)
FACTORS = (10, 50, 128)
NONZERO = 0.05
EXPONENTIALS = 8
PRODUCTS = 6


def seconds(work: Callable[[], object], repeats: int = 15) -> float:
    """Median time of some work, once warm."""
    work()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def rates(d: int, k: int) -> dict[str, float]:
    """Seconds of one product, one exponential and one copy of B x d entries."""
    x, V = torch.randn(BATCH, d), torch.randn(d, k)
    out, z = torch.empty(BATCH, d), torch.randn(BATCH, k)
    return {
        "product": min(seconds(lambda: torch.mm(z, V.T, out=out)), seconds(lambda: torch.mm(x, V))),
        "exponential": seconds(lambda: torch.exp(x, out=out)),
        "copy": seconds(lambda: out.copy_(x)),
    }


def steps(d: int, k: int, seed: int) -> dict[str, float]:
    """Seconds a step of the loop itself, by phase; epochs' own work is shared out among steps."""
    counts = sparse_table(STEPS * BATCH, d, NONZERO, seed)
    rows, generator = Rows(counts, BATCH), torch.Generator().manual_seed(seed)
    some = Rows(counts[: 4 * BATCH], BATCH)
    with one_thread_an_operation():
        start = residual_start(some, k, pseudocount=1.0, generator=generator)
        decoder = Decoder(start.V, start.mu, start.sigma2)
        encoder = DenseEncoder(
            start.A,
            start.b,
            start.log_D,
            decoder.mu.detach(),
            depth=2,
            width=128,
            activation="silu",
            pseudocount=1.0,
            shared_D=False,
            generator=generator,
        )
        at = [time.perf_counter()]
        train(
            rows,
            encoder,
            decoder,
            Schedule(EPOCHS, 0.02, "adam", None),
            shrink_loadings=True,
            generator=generator,
            progress=lambda row: at.append(time.perf_counter()),
        )
    each = np.diff(at) / STEPS
    return {"step_early": float(each[1]), "step": float(np.median(each[WITH_PRIOR]))}


def measure() -> list[dict[str, float]]:
    """Measure every size."""
    rows = []
    for d in FEATURES:
        for k in FACTORS:
            rate = rates(d, k)
            floor = PRODUCTS * rate["product"] + EXPONENTIALS * rate["exponential"]
            took = steps(d, k, 0)
            row = {
                "d": d,
                "k": k,
                "gflops": 2e-9 * BATCH * d * k / rate["product"],
                "copy_gb_s": 8e-9 * BATCH * d / rate["copy"],
                "floor_ms": 1e3 * floor,
                "step_ms": 1e3 * took["step"],
                "times_floor": took["step"] / floor,
                "times_floor_without_prior": took["step_early"] / floor,
            }
            rows.append(row)
            tell(row)
    return rows


if __name__ == "__main__":
    write("step", measure())
