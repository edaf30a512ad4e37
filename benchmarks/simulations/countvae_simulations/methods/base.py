"""What a method finds, and how it is timed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from countvae import MultinomialVAE
from countvae.simulate import Simulation
from countvae_simulations.methods.peer_scripts.common import watched_memory


@dataclass
class Found:
    """An estimate of the truth.

    Attributes
    ----------
    V : (d, k)
        Loadings in CLR space.
    mu : (d,) or None
        Centre in CLR space, where a method has one.
    sigma2 : float or None
        Noise variance, where a method has one.
    model : MultinomialVAE or None
        The fitted model, where it is one of ours.
    converged : bool or None
        Whether it stopped by itself rather than at its limit, where a method says so.
    seconds : float
        What the fit took, without compilation where a method says what that took.
    before_mb, peak_mb : float
        Resident memory of the process before the fit, and the largest during it.
    more : mapping
        What else a method says of its run, numbers by name.
    """

    V: np.ndarray
    mu: np.ndarray | None = None
    sigma2: float | None = None
    model: MultinomialVAE | None = None
    converged: bool | None = None
    seconds: float = field(default=float("nan"))
    before_mb: float = field(default=float("nan"))
    peak_mb: float = field(default=float("nan"))
    more: Mapping[str, float] = field(default_factory=dict)


Fit = Callable[..., Found]
"""fit(truth, k, seed, **settings): only an oracle looks at more than the counts of the truth."""


def of_model(model: MultinomialVAE) -> Found:
    """What a fitted model of ours has found."""
    return Found(model.clr_loadings_, model.mean_, model.noise_variance_, model)


def timed(fit: Fit, truth: Simulation, k: int, seed: int, **settings: object) -> Found:
    """Fit with a clock, and a watch on the memory, unless the method brought its own figures."""
    begun = time.perf_counter()
    with watched_memory() as memory:
        found = fit(truth, k, seed, **settings)
    if np.isnan(found.seconds):
        found.seconds = time.perf_counter() - begun
    if np.isnan(found.peak_mb):
        found.before_mb, found.peak_mb = memory.before_mb, memory.peak_mb
    return found
