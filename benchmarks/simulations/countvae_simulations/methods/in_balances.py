"""countvae with the basis of the tree that the table was drawn with."""

from countvae.simulate import Simulation
from countvae_simulations.methods import ours
from countvae_simulations.methods.base import Found
from countvae_simulations.tables import balances


def fit(truth: Simulation, k: int, seed: int, *, tree: str, **settings: object) -> Found:
    """Fit the estimator; V is the same whatever the basis, W is read off in this one."""
    return ours.fit(truth, k, seed, basis=balances(tree, truth.counts.shape[1]), **settings)
