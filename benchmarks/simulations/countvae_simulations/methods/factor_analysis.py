"""Factor analysis of CLR(log(x + c)): a noise variance for each feature."""

from sklearn.decomposition import FactorAnalysis

from countvae.ppca import clr_counts
from countvae.simulate import Simulation
from countvae_simulations.methods.base import Found


def fit(truth: Simulation, k: int, seed: int, *, pseudocount: float = 1.0) -> Found:
    """Fit by scikit-learn; its noise is summed up by the mean over features."""
    found = FactorAnalysis(k, random_state=seed).fit(clr_counts(truth.counts, pseudocount))
    V = found.components_.T
    return Found(V - V.mean(axis=0), found.mean_, float(found.noise_variance_.mean()))
