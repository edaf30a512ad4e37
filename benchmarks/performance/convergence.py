"""Seconds of an epoch, and to within a nat: `python -m benchmarks.performance.convergence`.

The table has 10,000 samples and 5,000 features, about a quarter of the counts not zero. Whole fits
of fewer and more epochs are compared by the bound of their answers, as `score` gives it, on samples
that were not fitted, and by that of the encoder alone. The converged bound is that of the longest
fit. What answers cost, two Newton steps a sample, is told beside them.
"""

import time

import numpy as np

from benchmarks.core.common import arguments, loadings, tell
from benchmarks.performance.common import Watched, write
from countvae.metrics import common_features, subspace_error
from countvae.simulate import simulate

N, D, K, READS = 10_000, 5000, 32, 10_000
EPOCHS = (81, 27, 9, 7, 5, 3)
"""Longest first; 9 is the default at this size."""

HELD_OUT = 500
NATS = 1.0


def measure(seed: int) -> list[dict[str, float]]:
    """Fit one table for longer and shorter."""
    truth = simulate(N + HELD_OUT, D, K, READS, rng=np.random.default_rng(seed))
    fitted, held_out = truth.counts[:N], truth.counts[N:]
    common = common_features(fitted)
    rows = []
    for epochs in EPOCHS:
        fit = Watched(fitted, K, max_epochs=epochs)
        begun = time.perf_counter()
        bound = fit.model.score(held_out)
        answered = (time.perf_counter() - begun) / HELD_OUT
        row = {
            "seed": seed,
            "nonzero": fitted.nnz / (N * D),
            "epochs": epochs,
            "epoch_s": fit.epoch,
            "start_s": fit.seconds[0] - fit.epoch,
            "fit_s": fit.total,
            "answers_s": N * answered,
            "bound": bound,
            "encoder_bound": fit.model.set_params(refinement_steps=0).score(held_out),
            "subspace_common": subspace_error(truth.V, loadings(fit.model), features=common),
        }
        rows.append(row)
        row["short_nats"] = rows[0]["bound"] - row["bound"]
        tell(row)
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    write("convergence", [row for seed in range(seeds) for row in measure(seed)])
