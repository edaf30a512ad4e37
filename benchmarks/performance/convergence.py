"""Seconds of an epoch, and to within a nat: `python -m benchmarks.performance.convergence`.

The table has 10,000 samples and 5,000 features, about a quarter of the counts not zero. The
converged bound is that of a fit with three times the epochs; a fit's own bound is the mean over an
epoch, while parameters move.
"""

import numpy as np

from benchmarks.core.common import arguments, tell
from benchmarks.performance.common import Watched, write
from countvae.metrics import common_features, subspace_error
from countvae.simulate import simulate

N, D, K, READS = 10_000, 5000, 32, 5000
LONGER = 3
NATS = 1.0


def measure(seed: int) -> dict[str, float]:
    """Fit one table at the defaults, and for longer."""
    truth = simulate(N, D, K, READS, rng=np.random.default_rng(seed))
    usual = Watched(truth.counts, K)
    longer = Watched(truth.counts, K, max_epochs=LONGER * usual.model.n_iter_)
    converged = longer.bound[-1]
    close = usual.bound >= converged - NATS
    V = usual.model.components_.T * np.sqrt(usual.model.explained_variance_)
    return {
        "seed": seed,
        "nonzero": truth.counts.nnz / (N * D),
        "epoch_s": usual.epoch,
        "to_first_epoch_s": usual.seconds[0],
        "fit_s": usual.total,
        "epochs": usual.model.n_iter_,
        "to_a_nat_s": usual.seconds[np.argmax(close)] if close.any() else np.nan,
        "short_at_end_nats": converged - usual.bound[-1],
        "subspace_common": subspace_error(truth.V, V, features=common_features(truth.counts)),
    }


if __name__ == "__main__":
    rows = []
    for seed in range(arguments(__doc__ or "", 3).seeds):
        rows.append(measure(seed))
        tell(rows[-1])
    write("convergence", rows)
