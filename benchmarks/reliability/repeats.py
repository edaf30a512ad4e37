"""The same fit again: to the bit with the same seed, and how near with less the same."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.core.common import write
from benchmarks.reliability.scene import HERE, arguments, end, simulated
from countvae import MultinomialVAE
from countvae.table import CountTable
from countvae.table import write as write_table
from countvae.threads import WORTH_ENTRIES

COVARIANCE, NATS = 0.05, 0.05
"""Tolerances: of VV', relative, and of the mean bound of a sample, to another order of the table.

Another order makes other minibatches, so that this is the noise of optimisation, not of rounding.
"""

THREADS, THREADS_COVARIANCE = (1, 2, 3), 1e-4
"""Numbers of threads, and the tolerance of VV' to another number than one, relative."""

BATCH = 128
WIDE = -(-WORTH_ENTRIES // BATCH)
"""Features whose batches are worth sharing among threads."""

REPEATS = 2
"""Fits after the first of each kind, which are compared with it."""


def table(seed: int) -> CountTable:
    """Return a table of the size of a study."""
    return simulated(120, 60, 3, 1000, seed)


def bits(seeds: int) -> Iterator[dict[str, object]]:
    """Fit in processes of their own, from memory and from disk, with several numbers of threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.h5ad"
        for seed in range(seeds):
            write_table(simulated(2 * BATCH, WIDE, 3, 4000, seed), path, force=True)
            for stream in (False, True):
                by_one = None
                for threads in THREADS:
                    repeats = REPEATS if threads == THREADS[0] or not stream else 1
                    (bits, V), *again = (
                        _fitted(path, seed, stream, threads) for _ in range(1 + repeats)
                    )
                    by_one = V if by_one is None else by_one
                    yield {
                        "seed": seed,
                        "from": "disk" if stream else "memory",
                        "threads": threads,
                        "repeats": repeats,
                        "identical": sum(other == bits for other, _ in again),
                        "from_one_thread": _apart(V, by_one),
                    }


def _apart(V: np.ndarray, W: np.ndarray) -> float:
    """Return how far the covariances of two fits are apart, relative."""
    return float(np.linalg.norm(V @ V.T - W @ W.T) / np.linalg.norm(W @ W.T))


def _fitted(path: Path, seed: int, stream: bool, threads: int) -> tuple[str, np.ndarray]:
    """Fit by the command in a new process; return a digest of the parameters, and the loadings."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        command = [sys.executable, "-m", "countvae", "fit", str(path), "-o", str(out), "--quiet"]
        command += ["-k", "3", "--seed", str(seed), "--max-epochs", "9"]
        command += ["--batch-size", str(BATCH)]
        command += ["--stream"] * stream
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        bits = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
        return bits, MultinomialVAE.load(out).clr_loadings_


def _as_it_is(given: CountTable, rng: np.random.Generator) -> tuple[CountTable, np.ndarray]:
    return given, np.arange(given.d)


def _samples_moved(given: CountTable, rng: np.random.Generator) -> tuple[CountTable, np.ndarray]:
    return given.select_samples(rng.permutation(given.n)), np.arange(given.d)


def _features_moved(given: CountTable, rng: np.random.Generator) -> tuple[CountTable, np.ndarray]:
    order = rng.permutation(given.d)
    return given.select_features(order), order


def _renamed(given: CountTable, rng: np.random.Generator) -> tuple[CountTable, np.ndarray]:
    names = np.array([f"other {j}" for j in range(given.d)], object)
    return CountTable(given.counts, given.sample_ids, names), np.arange(given.d)


CHANGES: dict[str, Callable[[CountTable, np.random.Generator], tuple[CountTable, np.ndarray]]] = {
    "nothing": _as_it_is,
    "features renamed": _renamed,
    "samples in another order": _samples_moved,
    "features in another order": _features_moved,
    "another seed": _as_it_is,
}


def tolerances(seeds: int) -> Iterator[dict[str, object]]:
    """Fit what is the same table but for something that should not matter."""
    for seed in range(seeds):
        given, rng = table(seed), np.random.default_rng(seed)
        settings = {"n_components": 3, "random_state": seed}
        model = MultinomialVAE(**settings).fit(given)
        V = model.clr_loadings_
        for change, make in CHANGES.items():
            changed, order = make(given, rng)
            if change == "another seed":
                settings["random_state"] = 1000 + seed
            other = MultinomialVAE(**settings).fit(changed)
            W = np.empty_like(V)
            W[order] = other.clr_loadings_
            yield {
                "change": change,
                "seed": seed,
                "covariance": _apart(W, V),
                "bound": abs(other.score(changed) - model.score(given)),
            }


def summary(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Return the largest difference that each change makes."""
    found = pd.DataFrame(rows)
    return found.groupby("change", sort=False)[["covariance", "bound"]].max()


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 5)
    identical = pd.DataFrame(bits(seeds))
    print(identical.to_string())
    write("bits", identical, HERE)
    near = list(tolerances(seeds))
    print(summary(near).to_string())
    write("tolerances", pd.DataFrame(near), HERE)
    found = summary(near).drop(index="another seed")
    differs = identical["identical"] < identical["repeats"]
    apart = identical["from_one_thread"] > THREADS_COVARIANCE
    beyond = (found["covariance"] > COVARIANCE) | (found["bound"] > NATS)
    end(pd.concat([identical[differs | apart], found[beyond]]))
