"""What the peers' scripts share: counts in, loadings, seconds and memory out.

python SCRIPT.py GIVEN.npz FOUND.npz --rank K --seed S
"""

import argparse
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

Fit = Callable[..., dict[str, np.ndarray | bool]]
"""fit(counts, rank, seed, **more): `loadings` and, where known, `centre`, `sigma2`, `converged`."""


def with_covariance(
    loadings: np.ndarray, factors: np.ndarray, variances: np.ndarray | float = 0.0
) -> np.ndarray:
    """Loadings V such that VVᵀ is the covariance that factors (n, k) and loadings (d, k) make.

    `variances` are the mean posterior variances of the factors, where they have some.
    """
    covariance = np.atleast_2d(np.cov(factors.T)) + np.diag(
        np.broadcast_to(variances, factors.shape[1])
    )
    values, vectors = np.linalg.eigh(covariance)
    return loadings @ (vectors * np.sqrt(np.maximum(values, 0)))


def on_all_features(
    present: np.ndarray, loadings: np.ndarray, centre: np.ndarray
) -> dict[str, np.ndarray]:
    """Loadings and centre of the features that a fit had, put among those that it had not.

    Those without a count have no loadings, and the least of centres.
    """
    V, mu = np.zeros((len(present), loadings.shape[1])), np.full(len(present), np.nan)
    V[present], mu[present] = loadings, centre
    return {"loadings": V, "centre": np.nan_to_num(mu - np.nanmean(mu), nan=np.nanmin(mu))}


def run(fit: Fit) -> None:
    """Fit the counts of an npz, with a clock and a look at the memory above that of the imports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("given")
    parser.add_argument("found")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    arrays = dict(np.load(given.given))
    counts = arrays.pop("counts")
    with watched_memory() as peak:
        begun = time.perf_counter()
        found = fit(counts, given.rank, given.seed, **arrays)
        seconds = time.perf_counter() - begun
    if "loadings" in found:
        found["loadings"] = found["loadings"] - found["loadings"].mean(axis=0)
    np.savez(given.found, seconds=seconds, peak_mb=peak[0], **found)


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """Largest resident memory above that at the start, in MB, looked at every 10 ms (Linux)."""
    statm, page = Path("/proc/self/statm"), resource.getpagesize()
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
