"""Tables that lack features: `python -m benchmarks.takehome.subcomposition`.

A model is fitted to all features; new samples have some of them. Their coordinates as those of the
subcomposition, with zeros for what is missing, and from all features, against the truth: the share
of the variance of V z that is missed.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.core.common import arguments, tell, write
from countvae import MultinomialVAE
from countvae.simulate import simulate

N, D, K, READS, NEW = 800, 200, 6, 2000, 200
KEPT = (0.9, 0.5, 0.2)
DESIGNS = ("flat", "wide")


def missed(V: np.ndarray, z: np.ndarray, model: MultinomialVAE, y: np.ndarray) -> float:
    """Share of the variance of the true CLR of the factors that the coordinates miss."""
    truth = z @ V.T
    found = y @ model.components_
    found = found + (truth - found).mean(0)
    return float(np.square(truth - found).sum() / np.square(truth - truth.mean(0)).sum())


def measure(design: str, seed: int) -> list[dict[str, object]]:
    """Fit all, answer by some."""
    rng = np.random.default_rng(seed)
    truth = simulate(N + NEW, D, K, READS, design=design, rng=rng)
    model = MultinomialVAE(K, random_state=seed).fit(truth.counts[:N])
    new, z = truth.counts[N:], truth.z[N:]
    rows = []
    for kept in KEPT:
        at = np.sort(rng.choice(D, round(kept * D), replace=False))
        zeros = new.toarray()
        zeros[:, np.setdiff1d(np.arange(D), at)] = 0
        part = model.subcomposition(at)
        rows.append(
            {
                "design": design,
                "seed": seed,
                "features_kept": kept,
                "reads_kept": float(new[:, at].sum() / new.sum()),
                "subcomposition": missed(truth.V, z, model, part.transform(new[:, at])),
                "zeros": missed(truth.V, z, model, model.transform(zeros)),
                "all_features": missed(truth.V, z, model, model.transform(new)),
            }
        )
        tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 5).seeds
    rows = [row for design in DESIGNS for seed in range(seeds) for row in measure(design, seed)]
    write("subcomposition", pd.DataFrame(rows), Path(__file__).parent)
