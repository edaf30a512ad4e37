"""What the peers' scripts share: counts in, loadings, seconds and memory out.

python SCRIPT.py COUNTS.npz FOUND.npz --rank K --seed S
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np

Fit = Callable[[np.ndarray, int, int], dict[str, np.ndarray | bool]]
"""fit(counts, rank, seed): `loadings`, `converged` and, where it has one, `centre`."""


def run(fit: Fit) -> None:
    """Fit the counts of an npz, with a clock and a look at the memory above that of the imports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("counts")
    parser.add_argument("found")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts = np.load(given.counts)["counts"]
    before = _peak_mb()
    begun = time.perf_counter()
    found = fit(counts, given.rank, given.seed)
    seconds = time.perf_counter() - begun
    found["loadings"] = found["loadings"] - found["loadings"].mean(axis=0)
    np.savez(given.found, seconds=seconds, peak_mb=_peak_mb() - before, **found)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
