"""Probabilistic PCA of the true log-ratios, which no method sees: the error of n samples."""

import numpy as np

from countvae.ppca import clr_counts, ppca
from countvae.simulate import Simulation
from countvae_simulations.methods.base import Found


def fit(truth: Simulation, k: int, seed: int) -> Found:
    """Fit to the proportions that the counts were drawn from."""
    assert truth.proportions is not None
    y = clr_counts(truth.proportions, 0.0)
    found = ppca(y, k, rank=y.shape[1] - 1, rng=np.random.default_rng(seed))
    return Found(found.loadings, found.mean, found.noise_variance)
