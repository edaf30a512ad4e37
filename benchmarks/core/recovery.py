"""Recovery of a known covariance: the flat table, 1,000 x 200 with k = 10, at three depths.

Ours at L = 1, 2, 3 beside PCA of log(x + 1) and PlnPCA: the error of the covariance with noise and
of VV' alone, sigma2 (truth 0.1), seconds, and the amortization gap in nats a sample.
"""

import time

import numpy as np
import pandas as pd

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
from countvae.metrics import covariance_error
from countvae.ppca import clr_counts, ppca
from countvae.simulate import Simulation, simulate

N, D, K = 1000, 200, 10
READS = (100, 1_000, 100_000)
DEPTHS = (1, 2, 3)
MOST_GAP = {1: 0.45, 2: 0.05, 3: 0.03}


def main() -> None:
    seeds = arguments(__doc__, seeds=5).seeds
    say_if_peers_are_missing()
    results = []
    for reads in READS:
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            truth = simulate(N, D, K, reads, design="flat", keep_proportions=True, rng=rng)
            for row in compare(truth, seed):
                results.append({"reads": reads, "seed": seed, **row})
                tell(results[-1])
    results = pd.DataFrame(results)
    show(
        results,
        ["reads", "method"],
        ["error", "error_VV", "sigma2", "seconds", "gap", "bound", "converged"],
    )
    judge(results[results.reads == 1_000])
    write("recovery", results)


def compare(truth: Simulation, seed: int) -> list[dict[str, object]]:
    """Fit every method to one table."""
    rows = []
    for L in DEPTHS:
        model = MultinomialVAE(K, encoder_depth=L, random_state=seed)
        model, seconds = fitted(model, truth.counts)
        sigma2 = model.noise_variance_
        rows.append(
            {
                "method": f"countvae L={L}",
                **errors(truth, loadings(model), sigma2),
                "seconds": seconds,
                "gap": model.amortization_gap(truth.counts).mean(),
                "bound": model.score(truth.counts),
            }
        )
    # what is left when the log-ratios themselves are known: the error of 1,000 samples
    known = ppca(clr_counts(truth.proportions, 0.0), K, rank=D - 1)
    rows.append(
        {"method": "true log-ratios", **errors(truth, known.loadings, known.noise_variance)}
    )
    begun = time.perf_counter()
    pca = ppca(clr_counts(truth.counts), K, rank=D - 1)
    seconds = time.perf_counter() - begun
    found = errors(truth, pca.loadings, pca.noise_variance)
    rows.append({"method": "PCA of log(x+1)", **found, "seconds": seconds})
    peer = plnpca(truth.counts, K)
    if peer is not None:
        # its covariance has no noise, so the error with noise counts all of the truth's as missed
        found = errors(truth, peer["loadings"], 0.0)
        rows.append(
            {
                "method": "PlnPCA",
                **found,
                "sigma2": np.nan,
                "seconds": float(peer["seconds"]),
                "converged": float(peer["converged"]),
            }
        )
    return rows


def errors(truth: Simulation, V: np.ndarray, sigma2: float) -> dict[str, float]:
    """Error of the covariance with noise, of VV' alone, and the estimate of sigma2."""
    with_noise = covariance_error(truth.V, V, sigma2_true=truth.sigma2, sigma2_est=sigma2)
    return {"error": with_noise, "error_VV": covariance_error(truth.V, V), "sigma2": sigma2}


def judge(results: pd.DataFrame) -> None:
    """Set the figures at 1,000 reads against the bars."""
    print("\nat 1,000 reads")
    ours = {L: results[results.method == f"countvae L={L}"].set_index("seed") for L in DEPTHS}
    for L, rows in ours.items():
        print(f"L = {L}")
        verdict("  covariance error", rows.error, 0.22)
        verdict("  |sigma2 / 0.1 - 1|", (rows.sigma2 / 0.1 - 1).abs(), 0.1)
        verdict("  seconds", rows.seconds, 10)
        verdict("  gap", rows.gap, MOST_GAP[L])
    verdict("growth of the covariance error from L = 1 to 2", ours[2].error - ours[1].error, 0)
    verdict("growth of the covariance error from L = 2 to 3", ours[3].error - ours[2].error, 0)


if __name__ == "__main__":
    main()
