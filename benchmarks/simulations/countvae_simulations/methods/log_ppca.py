"""Probabilistic PCA of CLR(log(x + c)), in closed form."""

import numpy as np

from countvae.ppca import clr_counts, ppca
from countvae.simulate import Simulation
from countvae_simulations.methods.base import Found


def fit(truth: Simulation, k: int, seed: int, *, pseudocount: float = 1.0) -> Found:
    """Fit by a randomized SVD."""
    y = clr_counts(truth.counts, pseudocount)
    found = ppca(y, k, rank=y.shape[1] - 1, rng=np.random.default_rng(seed))
    return Found(found.loadings, found.mean, found.noise_variance)
