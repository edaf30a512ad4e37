"""Fits on an accelerator against the processor's: `python -m benchmarks.performance.accelerator`.

The table of `convergence` is fitted on both, with the device's float32 products in full precision
and in its reduced one (TF32), and a large table on the device alone. How far two answers are apart
is said beside that between two seeds on the processor.
"""

from typing import Any

import numpy as np
import torch

from benchmarks.core.common import arguments, tell
from benchmarks.performance.common import Watched, sparse_table, write
from benchmarks.performance.convergence import READS, D, K, N
from countvae.metrics import common_features, subspace_error
from countvae.simulate import simulate

LARGE = {"n": 20_000, "d": 30_000, "nonzero": 0.05, "k": 50}


def fit(X: Any, k: int, device: str, precision: str = "highest", **settings: Any) -> dict[str, Any]:
    """Fit, and say how long it took; the model stands under "fit"."""
    on_gpu = device == "cuda"
    torch.set_float32_matmul_precision(precision)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found = Watched(X, k, device=device, **settings)
    torch.set_float32_matmul_precision("highest")
    return {
        "fit": found,
        "device": torch.cuda.get_device_name() if on_gpu else "processor",
        "products": precision,
        "epochs": len(found.seconds),
        "epoch_s": found.epoch,
        "fit_s": found.total,
        "device_peak_mb": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else np.nan,
    }


SCORED = 500
"""Fitted samples by whose bound fits are compared."""

WAYS = (
    ("cpu", "highest", 128, 0),
    ("cpu", "highest", 128, 1000),
    ("cuda", "highest", 128, 0),
    ("cuda", "high", 128, 0),
    ("cuda", "highest", 1024, 0),
)
"""Device, precision of products, batch, and what is added to the seed of the fit."""


def compared(seed: int) -> list[dict[str, Any]]:
    """One table on both devices."""
    truth = simulate(N, D, K, READS, rng=np.random.default_rng(seed))
    some, common = truth.counts[:SCORED], common_features(truth.counts)
    rows, first = [], None
    for device, precision, batch, added in WAYS:
        settings = {"batch_size": batch, "random_state": seed + added}
        row = fit(truth.counts, K, device, precision, **settings)
        model = row.pop("fit").model
        model.device = "cpu"
        V, bound = model.components_.T, model.score(some)
        first = first or (V, bound)
        rows.append(
            {"n": N, "d": D, "k": K, "batch": batch, "seed": seed, "fit_seed": seed + added}
            | row
            | {
                "bound": bound,
                "bound_from_first": bound - first[1],
                "subspace_from_first": subspace_error(first[0], V),
                "subspace_common": subspace_error(truth.V, model.clr_loadings_, features=common),
            }
        )
        tell(rows[-1])
    return rows


def large() -> list[dict[str, Any]]:
    """One large table on the device."""
    size = dict(LARGE)
    k = size.pop("k")
    counts, rows = sparse_table(**size, seed=0), []
    for batch in (128, 1024):
        row = fit(counts, k, "cuda", batch_size=batch, random_state=0)
        del row["fit"]
        of = {"n": size["n"], "d": size["d"], "k": k, "batch": batch, "seed": 0, "fit_seed": 0}
        rows.append(of | row)
        tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 2).seeds
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here.")
    fit(sparse_table(500, 500, 0.1, 0), 4, "cuda")  # what is only done once in a process
    write("accelerator", [*(row for seed in range(seeds) for row in compared(seed)), *large()])
