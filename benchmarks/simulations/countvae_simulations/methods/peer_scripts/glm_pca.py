"""GLM-PCA (glmpca), by default with the Poisson likelihood; runs in the peers' environment."""

import warnings

import numpy as np
from common import on_all_features, run, with_covariance
from glmpca.glmpca import glmpca

warnings.filterwarnings("ignore")


def fit(
    counts: np.ndarray, rank: int, seed: int, family: str | np.ndarray = "poi"
) -> dict[str, np.ndarray | bool]:
    """Fit at its default settings, totals as size factors; its factors are correlated.

    The dispersion of the negative binomial ("nb"), shared by all features, is estimated.
    """
    np.random.seed(seed)
    # it fails on features without a count, of which it can know nothing
    present = counts.sum(axis=0) > 0
    seen, totals = counts[:, present].T.astype(float), counts.sum(axis=1)
    found = glmpca(seen, rank, fam=str(family), sz=totals)
    loadings = with_covariance(found["loadings"], found["factors"])
    return {
        **on_all_features(present, loadings, found["coefX"].ravel()),
        "converged": len(found["dev"]) < 1000,
    }


if __name__ == "__main__":
    run(fit)
