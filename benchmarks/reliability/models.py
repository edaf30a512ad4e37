"""Models kept from every schema: each must load, and give the numbers that it gave.

With --keep a model of each kind is kept that the present schema has none of, and its numbers.
"""

import sys

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from benchmarks.core.common import ROOT, write
from benchmarks.reliability.scene import HERE, end
from countvae import ConvMultinomialVAE, MultinomialVAE
from countvae.simulate import simulate
from countvae.store import SCHEMA_VERSION
from countvae.table import CountTable

KEPT = ROOT / "tests" / "data" / "models"
RELATIVE = 1e-9
"""How near the numbers must be: those of another machine are summed in another order."""

KINDS = {
    "plain": {},
    "by-feature": {"noise": "by_feature", "encoder_depth": 1},
    "deep-sgd": {"encoder_depth": 4, "optimizer": "sgd", "posterior_variance": "shared"},
    "covariates": {"formula": "~ site"},
    "balances": {"basis": "sequential"},
    "grid": {"grid": (2, 4)},
    "grid-covariates": {"grid": (2, 4), "decoder": "linear", "formula": "~ site"},
    "codes": {"posterior_variance": "none"},
}


def answers(model: MultinomialVAE, counts: np.ndarray) -> dict[str, np.ndarray]:
    """What a model says of some counts."""
    table = _with_sites(counts)
    mean, sd = model.posterior(table)
    proportions, clr, _ = model.denoise(table)
    return {
        "mean": mean,
        "sd": sd,
        "proportions": proportions,
        "clr": clr,
        "bound": model.score_samples(table),
        "loadings": model.loadings_.copy(),
        "noise": model.feature_noise_variance_,
    }


def _with_sites(counts: np.ndarray) -> CountTable:
    """Name samples and features, and put each sample in one of two sites."""
    samples, names = (
        np.array([f"{axis}{i}" for i in range(size)], object)
        for axis, size in zip("sf", counts.shape, strict=True)
    )
    site = pd.DataFrame({"site": ["a", "b"] * (len(counts) // 2)}, index=samples)
    return CountTable(csr_array(counts), samples, names, site)


def keep(kind: str) -> None:
    """Keep a model of the present schema, a table, and what the model says of it."""
    folder = KEPT / f"schema-{SCHEMA_VERSION}" / kind
    folder.mkdir(parents=True)
    truth = simulate(16, 8, 2, 200, rng=np.random.default_rng(0))
    counts = truth.counts.toarray().astype(np.int64)
    settings = {"n_components": 2, "encoder_width": 4, "max_epochs": 6, "random_state": 0}
    settings |= KINDS[kind]
    model = ConvMultinomialVAE(**settings) if "grid" in settings else MultinomialVAE(**settings)
    model.fit(_with_sites(counts)).save(folder / "model")
    model = MultinomialVAE.load(folder / "model")
    said = {name: np.ascontiguousarray(a) for name, a in answers(model, counts).items()}
    save_file({"counts": counts} | said, folder / "answers.safetensors")


def measure() -> pd.DataFrame:
    """Load every model that is kept and compare what it says."""
    rows = []
    for folder in sorted(KEPT.glob("schema-*/*")):
        kept = load_file(folder / "answers.safetensors")
        said = answers(MultinomialVAE.load(folder / "model"), kept.pop("counts"))
        rows.append(
            {
                "schema": folder.parent.name.removeprefix("schema-"),
                "model": folder.name,
                "apart": max(_apart(said[name], kept[name]) for name in kept),
            }
        )
    return pd.DataFrame(rows)


def _apart(found: np.ndarray, kept: np.ndarray) -> float:
    return float(np.abs(found - kept).max() / (np.abs(kept).max() or 1))


if __name__ == "__main__":
    if "--keep" in sys.argv:
        for kind in KINDS:
            if not (KEPT / f"schema-{SCHEMA_VERSION}" / kind).exists():
                keep(kind)
    rows = measure()
    print(rows.to_string())
    write("models", rows, HERE)
    end(rows[~(rows["apart"] <= RELATIVE)])
