"""Networks against a known truth: `python -m benchmarks.takehome.network`.

Each of k factors moves a group of features, some up and some down, or all one way; half of the
features belong to none. The true edges are the pairs whose true proportionality is at least a half
in size. Ours is compared with correlations
of CLR(x + 1), a SparCC-type estimate from the variances of log-ratios, and PlnPCA: average
precision of the pairs ranked by |weight|, and precision where half of the edges are found. PlnPCA
gives no noise variance, so it is ranked by its covariance, and by rho with our noise on the
diagonal. Ours is fitted with the true number of factors, half of it, and more than double. Of ours
also: false edges among those kept at a false-discovery rate of 10 %, of all pairs and of the ten
strongest of each feature, where an edge is false if the two features share no factor, and how many
of the 90 % intervals of all pairs hold the truth.
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_recall_curve

from benchmarks.core.common import (
    arguments,
    fitted,
    plnpca,
    say_if_peers_are_missing,
    show,
    tell,
    write,
)
from countvae import MultinomialVAE
from countvae.network import edges
from countvae.ppca import clr_counts
from countvae.simulate import Simulation, simulate

N, D, K = 300, 200, 8
READS = (300, 3000, 30_000)
EDGE = 0.5
FDR = 0.1
EXCLUSIONS = 10
SIGNS = {"both": [-1, 1], "one": [1]}
OTHER_K = (4, 20)
"""Too few factors, and too many."""


def draw(reads: int, seed: int, signs: str) -> tuple[Simulation, np.ndarray]:
    """Draw a table, and say which features share a factor."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(D) % (2 * K)
    V = np.zeros((D, K))
    for c in range(K):
        members = group == c
        V[members, c] = rng.choice(SIGNS[signs], members.sum()) * rng.uniform(
            0.4, 1.4, members.sum()
        )
    shared = (group[:, None] == group) & (group < K)
    return simulate(N, D, K, reads, V=V, rng=rng), shared


def rho(C: np.ndarray) -> np.ndarray:
    """Proportionality of every pair."""
    own = np.diagonal(C)
    return 2 * C / (own[:, None] + own)


def sparcc(counts: np.ndarray) -> np.ndarray:
    """Correlations of log abundances that explain the variances of log-ratios, if few are large."""
    logs = np.log((counts + 1) / (counts + 1).sum(1, keepdims=True))
    S = np.cov(logs.T)
    T = np.diagonal(S)[:, None] + np.diagonal(S) - 2 * S
    M, used = np.ones((D, D)) + np.diag(np.full(D, D - 2.0)), ~np.eye(D, dtype=bool)
    for _ in range(EXCLUSIONS + 1):
        variances = np.maximum(np.linalg.solve(M, (T * used).sum(1)), 1e-4)
        root = np.sqrt(variances)
        R = (variances[:, None] + variances - T) / (2 * root[:, None] * root)
        R = np.clip(R, -1, 1)
        strongest = np.argwhere(np.abs(np.where(used, R, 0)) > 0.1)
        if len(strongest) == 0:
            break
        i, j = strongest[np.abs(R[tuple(strongest.T)]).argmax()]
        for a, b in ((i, j), (j, i)):
            used[a, b] = False
            M[a, b] -= 1
            M[a, a] -= 1
    return R


def ranked(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Average precision, and precision where half of the edges are found."""
    pairs = np.triu_indices(D, 1)
    precision, recall, _ = precision_recall_curve(truth[pairs], np.abs(score[pairs]))
    return {
        "average_precision": average_precision_score(truth[pairs], np.abs(score[pairs])),
        "precision_at_half": float(precision[recall >= 0.5].max()),
    }


def ours(
    truth: Simulation, C: np.ndarray, shared: np.ndarray, k: int
) -> tuple[np.ndarray, dict, float]:
    """Weights of all pairs, what their uncertainty is worth, and the noise variance."""
    model, seconds = fitted(MultinomialVAE(k), truth.counts)
    frame = edges(model, partners=D - 1).astype({"feature_1": int, "feature_2": int})
    i, j = frame["feature_1"].to_numpy(), frame["feature_2"].to_numpy()
    weight = np.zeros((D, D))
    weight[i, j] = frame["weight"]
    kept = (frame["q_value"] <= FDR).to_numpy()
    right = shared[i, j]
    of_strongest = edges(model, fdr=FDR, draws=2).astype({"feature_1": int, "feature_2": int})
    true = shared[of_strongest["feature_1"], of_strongest["feature_2"]]
    inside = frame["low"].le(rho(C)[i, j]) & frame["high"].ge(rho(C)[i, j])
    return (
        weight,
        {
            "seconds": seconds,
            "false_share": float((~right & kept).sum() / max(1, kept.sum())),
            "found_share": float((right & kept).sum() / right.sum()),
            "false_share_strongest": float((~true).mean()) if len(true) else 0.0,
            "coverage_90": float(inside.mean()),
            "coverage_90_shared": float(inside[right].mean()),
        },
        model.noise_variance_,
    )


def measure(reads: int, seed: int, signs: str) -> list[dict[str, object]]:
    """Compare all methods on one table."""
    truth, shared = draw(reads, seed, signs)
    C = truth.V @ truth.V.T + truth.sigma2 * (np.eye(D) - 1 / D)
    edge = np.abs(rho(C)) >= EDGE
    counts = truth.counts.toarray()
    weight, about, noise = ours(truth, C, shared, K)
    methods = {
        "countvae": (weight, about),
        **{f"countvae, k = {k}": ours(truth, C, shared, k)[:2] for k in OTHER_K},
        "SparCC-type": (sparcc(counts), {}),
        "correlation of CLR(x + 1)": (np.corrcoef(clr_counts(counts).T), {}),
        "rho of CLR(x + 1)": (rho(np.cov(clr_counts(counts).T)), {}),
    }
    peer = plnpca(truth.counts, K)
    if peer is not None:
        V = peer["loadings"] - peer["loadings"].mean(0)
        seconds = {"seconds": float(peer["seconds"])}
        methods["PlnPCA, covariance"] = V @ V.T, seconds
        methods["PlnPCA, rho with our noise"] = rho(V @ V.T + noise * np.eye(D)), seconds
    rows = []
    for name, (score, more) in methods.items():
        about = {"signs": signs, "reads": reads, "seed": seed, "method": name}
        rows.append(about | ranked(score, edge) | more)
        tell(rows[-1])
    return rows


if __name__ == "__main__":
    say_if_peers_are_missing()
    seeds = arguments(__doc__ or "", 5).seeds
    tables = itertools.product(SIGNS, READS, range(seeds))
    rows = [row for signs, reads, seed in tables for row in measure(reads, seed, signs)]
    show(
        pd.DataFrame(rows),
        ["signs", "reads", "method"],
        ["average_precision", "precision_at_half", "false_share", "found_share", "coverage_90"],
    )
    write("network", pd.DataFrame(rows), Path(__file__).parent)
