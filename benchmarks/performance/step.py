"""One step against the machine's limit: `python -m benchmarks.performance.step [--device cuda]`.

The floor of a step is that of six matrix products of B x d by k and eight exponentials of B x d
entries, at the rates of torch on this machine, measured just before. Products are counted for
m0, Q, and the gradients of V (twice), z and D; what the encoder, the prior and Adam cost comes on
top, and is in the step. A device other than the processor has large batches as well, and a table of
its own: step_DEVICE.csv.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_array

from benchmarks.core.common import tell
from benchmarks.performance.common import sparse_table, write
from countvae import devices
from countvae.decoder import Decoder
from countvae.encoder import DenseEncoder
from countvae.rows import Rows
from countvae.start import Start, residual_start
from countvae.steps import Schedule
from countvae.threads import one_thread_an_operation
from countvae.training import train

BATCH = 128
LARGE_BATCH = 1024
STEPS = 64
EPOCHS = 8
WITH_PRIOR = slice(2, 7)
"""Epochs in which the loadings are shrunk: the most costly ones, and most of a fit."""
FEATURES = (1000, 10_000, 50_000)
FACTORS = (10, 50, 128)
NONZERO = 0.05
BLOCKS, IN_A_BLOCK = 10, 10
EXPONENTIALS = 8
PRODUCTS = 6


def waiting(device: torch.device) -> Callable[[], object]:
    """Return what waits until a device has done its work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Least time of some work among others of its kind, once warm: no launch is waited for."""
    wait, found = waiting(device), []
    work()
    for _ in range(BLOCKS):
        wait()
        begun = time.perf_counter()
        for _ in range(IN_A_BLOCK):
            work()
        wait()
        found.append((time.perf_counter() - begun) / IN_A_BLOCK)
    return min(found)


def rates(batch: int, d: int, k: int, device: torch.device) -> dict[str, float]:
    """Seconds of one product, one exponential and one copy of B x d entries."""
    x, V, z = (torch.randn(size, device=device) for size in ((batch, d), (d, k), (batch, k)))
    out = torch.empty_like(x)
    return {
        "product": min(
            seconds(lambda: torch.mm(z, V.T, out=out), device),
            seconds(lambda: torch.mm(x, V), device),
        ),
        "exponential": seconds(lambda: torch.exp(x, out=out), device),
        "copy": seconds(lambda: out.copy_(x), device),
    }


def steps(
    counts: csr_array, batch: int, k: int, seed: int, device: torch.device
) -> dict[str, float]:
    """Seconds a step of the loop itself, by phase; epochs' own work is shared out among steps."""
    rows = Rows(counts, batch, device=device)
    some = Rows(counts[: 4 * BATCH], BATCH, device=device)
    generator, wait = torch.Generator().manual_seed(seed), waiting(device)
    with one_thread_an_operation():
        found = residual_start(some, k, pseudocount=1.0, generator=generator)
        start = Start(*(part.cpu() for part in found))
        decoder = Decoder(start.V, start.mu, start.sigma2).to(device)
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
        ).to(device)
        at = [time.perf_counter()]

        def ended(row: dict[str, float | int]) -> None:
            wait()
            at.append(time.perf_counter())

        train(
            rows,
            encoder,
            decoder,
            Schedule(EPOCHS, 0.02, "adam", None),
            shrink_loadings=True,
            generator=generator,
            progress=ended,
        )
    each = np.diff(at) / -(-counts.shape[0] // batch)
    return {"step_early": float(each[1]), "step": float(np.median(each[WITH_PRIOR]))}


def measure(device: torch.device) -> list[dict[str, float]]:
    """Measure every size."""
    rows = []
    batches = (BATCH,) if device.type == "cpu" else (BATCH, LARGE_BATCH)
    for d in FEATURES:
        counts = sparse_table(STEPS * max(batches), d, NONZERO, 0)
        for k, batch in itertools.product(FACTORS, batches):
            rate = rates(batch, d, k, device)
            floor = PRODUCTS * rate["product"] + EXPONENTIALS * rate["exponential"]
            took = steps(counts[: STEPS * batch], batch, k, 0, device)
            row = {
                "d": d,
                "k": k,
                "batch": batch,
                "gflops": 2e-9 * batch * d * k / rate["product"],
                "copy_gb_s": 8e-9 * batch * d / rate["copy"],
                "floor_ms": 1e3 * floor,
                "step_ms": 1e3 * took["step"],
                "times_floor": took["step"] / floor,
                "times_floor_without_prior": took["step_early"] / floor,
            }
            rows.append(row)
            tell(row)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="what it runs on (default cpu)")
    device = devices.chosen(parser.parse_args().device)
    write("step" if device.type == "cpu" else f"step_{device.type}", measure(device))
