"""Robust Aitchison PCA (gemelli); runs in the peers' environment."""

import warnings

import biom
import numpy as np
from common import run

warnings.filterwarnings("ignore")
from gemelli.rpca import rpca  # noqa: E402


def fit(counts: np.ndarray, rank: int, seed: int) -> dict[str, np.ndarray | bool]:
    """Fit without its filters; axes are of unit length, and `eigvals` singular values."""
    np.random.seed(seed)
    n, d = counts.shape
    features, samples = [f"f{j}" for j in range(d)], [f"s{i}" for i in range(n)]
    table = biom.Table(counts.T, features, samples)
    ordination, _ = rpca(table, n_components=rank, min_feature_count=0, min_sample_count=0)
    kept = ordination.features.reindex(features).fillna(0.0).to_numpy()
    return {"loadings": kept * ordination.eigvals.to_numpy() / np.sqrt(n)}


if __name__ == "__main__":
    run(fit)
