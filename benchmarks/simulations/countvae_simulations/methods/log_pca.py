"""PCA of CLR(log(x + c)): what people do today."""

import numpy as np
from scipy.sparse import csr_array
from sklearn.decomposition import PCA

from countvae.ppca import clr_counts
from countvae.simulate import Simulation
from countvae_simulations.methods.base import Found


def fit(truth: Simulation, k: int, seed: int, *, pseudocount: float = 1.0) -> Found:
    """Fit PCA; it has no noise variance."""
    pca = PCA(k, random_state=seed).fit(clr_counts(truth.counts, pseudocount))

    def reconstruct(counts: csr_array) -> np.ndarray:
        return pca.inverse_transform(pca.transform(clr_counts(counts, pseudocount)))

    V = pca.components_.T * np.sqrt(pca.explained_variance_)
    return Found(V, pca.mean_, reconstruct=reconstruct)
