"""Other methods on the same table, in one run: `python -m benchmarks.performance.peers`.

Every method gives loadings, and most a centre. The held-out bound is that of our model at these,
with the factors of every sample at their optimum and sigma2 at its own fixed point on fitted
samples: a yardstick which favours none for its encoder. LDA has no log-ratio loadings.

Our fit is also run with fewer epochs; the quickest that reaches the final covariance error of
PlnPCA, or the best held-out bound of the others, counts as the time to it.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
from countvae_simulations import tables
from countvae_simulations.cell import warm_up
from countvae_simulations.measures import HELD_OUT, held_out_nats_a_read
from countvae_simulations.methods import METHODS
from countvae_simulations.methods.base import Found, timed
from countvae_simulations.methods.peer import PeerMissing
from sklearn.decomposition import LatentDirichletAllocation

from benchmarks.core.common import arguments, say_if_peers_are_missing, tell
from benchmarks.performance.common import write
from countvae.metrics import common_features, covariance_error, subspace_error
from countvae.simulate import Simulation

SIZES = ((2000, 1000, 16, 5000),)
SHORTER = (3, 5, 9, 15, 25)


def lda(truth: Simulation, k: int, seed: int) -> Found:
    """Latent Dirichlet allocation by scikit-learn, which has no loadings."""
    LatentDirichletAllocation(k, random_state=seed).fit(truth.counts)
    return Found(np.full((truth.counts.shape[1], k), np.nan))


COMPARED: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("countvae", METHODS["ours"], {}),
    *((f"countvae, {e} epochs", METHODS["ours"], {"max_epochs": e}) for e in SHORTER),
    ("PlnPCA", METHODS["peer"], {"name": "plnpca"}),
    ("LinearSCVI", METHODS["peer"], {"name": "linear_scvi"}),
    ("gemelli RPCA", METHODS["peer"], {"name": "rpca"}),
    ("PCA of CLR(x + 1)", METHODS["log_pca"], {}),
    ("factor analysis of CLR(x + 1)", METHODS["factor_analysis"], {}),
    ("LDA", lda, {}),
)


def fitted(at: int, truth: Simulation, k: int, seed: int) -> Found:
    """Fit by one of the methods, in a process that has imported and compiled all it needs."""
    _, fit, settings = COMPARED[at]
    warm_up()
    found = timed(fit, truth, k, seed, **settings)
    grown = found.peak_mb - found.before_mb
    return Found(found.V, found.mu, converged=found.converged, seconds=found.seconds, peak_mb=grown)


def measure(size: tuple[int, int, int, int], seed: int) -> list[dict[str, Any]]:
    """Fit one table by every method."""
    n, d, k, reads = size
    truth, held_out = tables.draw({"n": n, "d": d, "k": k, "reads": reads}, seed)
    reads_each = float(held_out.depth[:HELD_OUT].mean())
    common, rows = common_features(truth.counts), []
    for at, (name, _, _) in enumerate(COMPARED):
        try:
            # each in a process of its own, so that its peak of memory is its own
            with ProcessPoolExecutor(1, get_context("spawn")) as one:
                found = one.submit(fitted, at, truth, k, seed).result()
        except PeerMissing as error:
            print(error)
            continue
        here = {"n": n, "d": d, "k": k, "seed": seed, "method": name}
        here |= {"seconds": found.seconds, "peak_mb": found.peak_mb, "converged": found.converged}
        if not np.isnan(found.V).any():
            here |= {
                "VV": covariance_error(truth.V, found.V),
                "VV_common": covariance_error(truth.V, found.V, features=common),
                "subspace_common": subspace_error(truth.V, found.V, features=common),
                "held_out": reads_each * held_out_nats_a_read(found, truth, held_out),
            }
        rows.append(here)
        tell(here)
    return rows


def conclude(rows: pd.DataFrame) -> None:
    """Say how soon we are where PlnPCA ends, on each table."""
    for (n, d, seed), some in rows.groupby(["n", "d", "seed"]):
        ours = some[some["method"].str.startswith("countvae")].sort_values("seconds")
        for _, peer in some[some["method"] == "PlnPCA"].iterrows():
            for error in ("VV", "VV_common"):
                there = ours[ours[error] <= peer[error]]
                if there.empty:
                    print(f"{n} x {d}, seed {seed}: PlnPCA's {error} is not reached")
                    continue
                ratio = peer["seconds"] / there["seconds"].iloc[0]
                print(f"{n} x {d}, seed {seed}: {ratio:.1f} times faster to PlnPCA's {error}")


if __name__ == "__main__":
    say_if_peers_are_missing()
    seeds = arguments(__doc__ or "", 3).seeds
    rows = [row for size in SIZES for seed in range(seeds) for row in measure(size, seed)]
    conclude(pd.DataFrame(rows))
    write("peers", rows)
