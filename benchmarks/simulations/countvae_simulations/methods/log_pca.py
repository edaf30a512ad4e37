"""PCA of CLR(log(x + c)): what people do today."""

import numpy as np
from sklearn.decomposition import PCA

from countvae.ppca import clr_counts
from countvae.simulate import Simulation
from countvae_simulations.methods.base import Found


def fit(truth: Simulation, k: int, seed: int, *, pseudocount: float = 1.0) -> Found:
    """Fit PCA; it has no noise variance."""
    pca = PCA(k, random_state=seed).fit(clr_counts(truth.counts, pseudocount))
    return Found(pca.components_.T * np.sqrt(pca.explained_variance_), pca.mean_)
