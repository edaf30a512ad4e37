"""Cold start: 2,000 x 1,000 wide tables, k = 16, 5,000 reads, against a fit started at the truth.

Ten tables with dense loadings and ten with 5 % of them non-zero. Both fits have the same settings;
`short` is how many nats a sample (refined bound) the cold one stays below the other.
"""

import time

import numpy as np
import pandas as pd
from countvae_simulations.methods.truth_start import started_at

from benchmarks.core.common import (
    arguments,
    fitted,
    loadings,
    plnpca,
    say_if_peers_are_missing,
    show,
    tell,
    verdict,
    write,
)
from countvae import MultinomialVAE
from countvae.metrics import common_features, covariance_error, subspace_error
from countvae.ppca import clr_counts, ppca
from countvae.simulate import Simulation, simulate

N, D, K, READS = 2000, 1000, 16, 5000
NONZERO = {"dense": None, "5 % non-zero": 0.05}
PEER_TABLES = 2
"""Tables of each kind that PlnPCA is given: it takes most of the time."""


def main() -> None:
    seeds = arguments(__doc__, seeds=10).seeds
    say_if_peers_are_missing()
    results = []
    for kind, nonzero in NONZERO.items():
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            truth = simulate(
                N, D, K, READS, nonzero_loadings=nonzero, keep_proportions=True, rng=rng
            )
            for row in compare(truth, seed):
                results.append({"loadings": kind, "seed": seed, **row})
                tell(results[-1])
    results = pd.DataFrame(results)
    show(
        results,
        ["loadings", "method"],
        ["short", "error", "error_VV", "subspace", "sigma2", "seconds", "converged"],
    )
    for kind in NONZERO:
        cold = results[(results.loadings == kind) & (results.method == "cold")]
        print(f"\n{kind}")
        verdict("  nats a sample short of the truth start", cold.short, 0.5)
        verdict("  covariance error (VV', common features)", cold.error_VV, 0.13)
        verdict("  covariance error (with noise, common features)", cold.error, 0.13)
        verdict("  seconds", cold.seconds, 6)
    write("cold_start", results)


def compare(truth: Simulation, seed: int) -> list[dict[str, object]]:
    """Fit one table cold, from the truth, by PCA of log(x + 1) and, at times, by PlnPCA."""
    cold, cold_seconds = fitted(MultinomialVAE(K, random_state=seed), truth.counts)
    with started_at(truth):
        best, best_seconds = fitted(MultinomialVAE(K, random_state=seed), truth.counts)
    reached = best.score(truth.counts)
    rows = [
        {
            "method": method,
            "short": reached - model.score(truth.counts),
            **errors(truth, loadings(model), model.noise_variance_),
            "seconds": seconds,
        }
        for method, model, seconds in (
            ("cold", cold, cold_seconds),
            ("from the truth", best, best_seconds),
        )
    ]
    # what is left when the log-ratios themselves are known: the error of 2,000 samples
    known = ppca(clr_counts(truth.proportions, 0.0), K, rank=D - 1, rng=np.random.default_rng(seed))
    found = errors(truth, known.loadings, known.noise_variance)
    rows.append({"method": "PCA of the true log-ratios", **found})
    begun = time.perf_counter()
    pca = ppca(clr_counts(truth.counts), K, rank=D - 1, rng=np.random.default_rng(seed))
    seconds = time.perf_counter() - begun
    found = errors(truth, pca.loadings, pca.noise_variance)
    rows.append({"method": "PCA of log(x+1)", **found, "seconds": seconds})
    peer = plnpca(truth.counts, K) if seed < PEER_TABLES else None
    if peer is not None:
        found = errors(truth, peer["loadings"], 0.0)
        seconds, converged = float(peer["seconds"]), float(peer["converged"])
        found |= {"sigma2": np.nan, "seconds": seconds, "converged": converged}
        rows.append({"method": "PlnPCA", **found})
    return rows


def errors(truth: Simulation, V: np.ndarray, sigma2: float) -> dict[str, float]:
    """Errors on features above median abundance."""
    common = common_features(truth.counts)
    return {
        "error": covariance_error(
            truth.V, V, sigma2_true=truth.sigma2, sigma2_est=sigma2, features=common
        ),
        "error_VV": covariance_error(truth.V, V, features=common),
        "subspace": subspace_error(truth.V, V, features=common),
        "sigma2": sigma2,
    }


if __name__ == "__main__":
    main()
