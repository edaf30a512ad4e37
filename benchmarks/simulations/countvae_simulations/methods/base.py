"""What a method finds, and how it is timed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from countvae import MultinomialVAE
from countvae.simulate import Simulation


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
    reconstruct : callable or None
        From counts to the logits that a method without a likelihood would plug in.
    converged : bool or None
        Whether it stopped by itself rather than at its limit, where a method says so.
    seconds, peak_mb : float
        What the fit took; memory above what was in use before it.
    """

    V: np.ndarray
    mu: np.ndarray | None = None
    sigma2: float | None = None
    model: MultinomialVAE | None = None
    reconstruct: Callable[[csr_array], np.ndarray] | None = None
    converged: bool | None = None
    seconds: float = field(default=float("nan"))
    peak_mb: float = field(default=float("nan"))


Fit = Callable[..., Found]
"""fit(truth, k, seed, **settings): only an oracle looks at more than the counts of the truth."""


def of_model(model: MultinomialVAE) -> Found:
    """What a fitted model of ours has found."""
    V = model.components_.T * np.sqrt(model.explained_variance_)
    return Found(V, model.mean_, model.noise_variance_, model)


def timed(fit: Fit, truth: Simulation, k: int, seed: int, **settings: object) -> Found:
    """Fit with a clock, and a watch on the memory, unless the method brought its own figures."""
    begun = time.perf_counter()
    with _peak() as peak:
        found = fit(truth, k, seed, **settings)
    if np.isnan(found.seconds):
        found.seconds = time.perf_counter() - begun
    if np.isnan(found.peak_mb):
        found.peak_mb = peak[0]
    return found


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Largest resident memory above that at the start, in MB, looked at every 10 ms (Linux)."""
    statm, page = Path("/proc/self/statm"), 4096
    if not statm.exists():
        yield [float("nan")]
        return

    def resident() -> float:
        return int(statm.read_text().split()[1]) * page / 2**20

    first, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], resident() - first)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
