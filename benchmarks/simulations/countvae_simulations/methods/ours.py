"""countvae at its defaults, or with any of the estimator's settings."""

from countvae import MultinomialVAE
from countvae.simulate import Simulation
from countvae_simulations.methods.base import Found, of_model


def fit(truth: Simulation, k: int, seed: int, **settings: object) -> Found:
    """Fit the estimator."""
    return of_model(MultinomialVAE(k, random_state=seed, **settings).fit(truth.counts))
