"""Seconds of an epoch, and to within a nat: `python -m benchmarks.performance.convergence`.

The table has 10,000 samples and 5,000 features, about a quarter of the counts not zero. Whole fits
of fewer and more epochs are compared by the bound of their answers, as `score` gives it, on some of
the samples fitted. The converged bound is that of the longest.
"""

import numpy as np

from benchmarks.core.common import arguments, loadings, tell
from benchmarks.performance.common import Watched, write
from countvae.metrics import common_features, subspace_error
from countvae.simulate import simulate

N, D, K, READS = 10_000, 5000, 32, 10_000
EPOCHS = (81, 27, 9, 7, 5, 3)
"""Longest first; 9 is the default at this size."""

SCORED = 500
NATS = 1.0


def measure(seed: int) -> list[dict[str, float]]:
    """Fit one table for longer and shorter."""
    truth = simulate(N, D, K, READS, rng=np.random.default_rng(seed))
    some, common = truth.counts[:SCORED], common_features(truth.counts)
    rows = []
    for epochs in EPOCHS:
        fit = Watched(truth.counts, K, max_epochs=epochs)
        row = {
            "seed": seed,
            "nonzero": truth.counts.nnz / (N * D),
            "epochs": epochs,
            "epoch_s": fit.epoch,
            "start_s": fit.seconds[0] - fit.epoch,
            "fit_s": fit.total,
            "bound": fit.model.score(some),
            "encoder_bound": fit.bound[-1],
            "subspace_common": subspace_error(truth.V, loadings(fit.model), features=common),
        }
        rows.append(row)
        row["short_nats"] = rows[0]["bound"] - row["bound"]
        tell(row)
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    write("convergence", [row for seed in range(seeds) for row in measure(seed)])
