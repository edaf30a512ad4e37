"""What the peers' scripts share: counts in, loadings, seconds and memory out.

python SCRIPT.py GIVEN.npz FOUND.npz --rank K --seed S

A script ends when its standard input does, so that it does not outlive who started it.
"""

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WARM_RANK = 2
"""The least that every peer takes."""

Fit = Callable[..., dict[str, np.ndarray | bool]]
"""fit(counts, rank, seed, **more): `loadings` and, where known, `centre`, `sigma2`, `converged`.

`compile_seconds`, where a fit compiles, are taken off its seconds.
"""


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


def run(fit: Fit, warm: bool = True) -> None:
    """Fit the counts of an npz, with a clock and a watch on the memory.

    A small table is fitted before, as with our own method: what a first call loads is in no clock.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("given")
    parser.add_argument("found")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    threading.Thread(target=_end_with_input, daemon=True).start()
    arrays = dict(np.load(given.given))
    counts = arrays.pop("counts")
    if warm:
        fit(np.random.default_rng(0).poisson(50, (40, 10)), WARM_RANK, 0, **arrays)
    with watched_memory() as memory:
        begun = time.perf_counter()
        found = fit(counts, given.rank, given.seed, **arrays)
        seconds = time.perf_counter() - begun - found.get("compile_seconds", 0.0)
    if "loadings" in found:
        found["loadings"] = found["loadings"] - found["loadings"].mean(axis=0)
    memory_mb = {"before_mb": memory.before_mb, "peak_mb": memory.peak_mb}
    np.savez(given.found, seconds=seconds, **memory_mb, **found)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


@dataclass
class Memory:
    """Resident memory of the process in MB: at the start, and the largest since."""

    before_mb: float = float("nan")
    peak_mb: float = float("nan")


@contextmanager
def watched_memory() -> Iterator[Memory]:
    """Look at the resident memory every 10 ms (Linux; elsewhere it is not known)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield Memory()
        return
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> float:
        return int(statm.read_text().split()[1]) * page / 2**20

    memory, done = Memory(resident(), resident()), threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            memory.peak_mb = max(memory.peak_mb, resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()
