"""Whether effects of covariates lie in their intervals: `python -m benchmarks.takehome.covariates`.

Simulated tables of 300 samples, 60 features and 3 factors, 2,000 reads a sample, in which age and a
batch move all log-ratios; three more columns do nothing: noise, a coin, and a copy of age with
noise (correlation 0.98). The batch has nothing to do with the factors, or goes with the first of
them (correlation of what decides it 0.6). Each formula is fitted; the share of 90 % intervals of
the coefficients that hold the truth, by column; and, beside a fit without covariates, the share of
the factor space that is missed, and, in 100 samples that were not fitted, that of the variance of
the coordinates which the batch explains: of the true factors as well. What covariates tell of the
factors the model counts to their effects, so the truth has that as well.
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from benchmarks.core.common import arguments, tell, write
from countvae import MultinomialVAE
from countvae.metrics import subspace_error
from countvae.simulate import Simulation, simulate
from countvae.table import CountTable

N, HELD, D, K, READS = 300, 100, 60, 3, 2000
DESIGNS = {"apart": 0.0, "with a factor": 0.6}
"""Correlation of the first factor with what decides the batch of a sample."""

FORMULAS = ("~ age + batch", "~ age + batch + noise + coin", "~ age + batch + alike")
WIDTH = 1.645


def drawn(seed: int, design: str) -> tuple[CountTable, pd.DataFrame, Simulation]:
    """Draw a table, the effects of its columns on the log-ratios, and what these are added to."""
    rng, n, share = np.random.default_rng(seed), N + HELD, DESIGNS[design]
    plain = simulate(n, D, K, READS, keep_proportions=True, rng=rng)
    decides = share * plain.z[:, 0] + np.sqrt(1 - share**2) * rng.normal(size=n)
    known = pd.DataFrame(
        {
            "age": rng.uniform(0, 10, n),
            "batch": (decides > 0).astype(float),
            "noise": rng.normal(size=n),
            "coin": rng.integers(0, 2, n).astype(float),
        }
    )
    known["alike"] = known["age"] + rng.normal(0, 0.6, n)
    effects = pd.DataFrame(0.0, index=known.columns, columns=np.arange(D))
    effects.loc["age"], effects.loc["batch"] = rng.normal(0, 0.15, D), rng.normal(0, 1, D)
    effects = effects.sub(effects.mean(axis=1), axis=0)
    logits = np.log(plain.proportions) + known.to_numpy() @ effects.to_numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    counts = np.array([rng.multinomial(READS, row) for row in shares])
    names = [np.array([f"{what}{i}" for i in range(m)], object) for what, m in (("s", n), ("f", D))]
    table = CountTable(csr_array(counts.astype(float)), *names, known.set_index(names[0]))
    # 2 rho sqrt(2 / pi) lies between the means of the first factor in the two batches
    effects.loc["batch"] += share * np.sqrt(8 / np.pi) * plain.V[:, 0]
    return table, effects, plain


def explained(y: np.ndarray, by: pd.Series) -> float:
    """Share of the variance of coordinates that a column explains."""
    y, of = y - y.mean(0), (by - by.mean()).to_numpy()
    return float(np.square(of @ y).sum() / (of @ of) / np.square(y).sum())


def measure(seed: int, design: str) -> list[dict[str, object]]:
    """Fit each formula, and count intervals that hold the truth."""
    whole, effects, plain = drawn(seed, design)
    table, held = (
        whole.select_samples(np.arange(whole.n)[at]) for at in (slice(N), slice(N, None))
    )
    without, rows = MultinomialVAE(K, random_state=seed).fit(table), []
    batch = held.sample_metadata["batch"]
    of_truth = explained(plain.z[N:] @ plain.V.T, batch)
    for formula in FORMULAS:
        model = MultinomialVAE(K, formula=formula, random_state=seed).fit(table)
        names = [str(name) for name in model.coefficient_names_]
        off = np.abs(model.coefficients_ - effects.loc[names].to_numpy())
        for name, inside in zip(names, off <= WIDTH * model.coefficients_sd_, strict=True):
            rows.append(
                {
                    "batch": design,
                    "formula": formula,
                    "column": name,
                    "seed": seed,
                    "coverage": inside.mean(),
                    "subspace": subspace_error(plain.V, model.clr_loadings_),
                    "subspace_without": subspace_error(plain.V, without.clr_loadings_),
                    "of_batch": explained(model.transform(held), batch),
                    "of_batch_without": explained(without.transform(held), batch),
                    "of_batch_true": of_truth,
                }
            )
            tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 10).seeds
    tables = itertools.product(DESIGNS, range(seeds))
    frame = pd.DataFrame([row for design, seed in tables for row in measure(seed, design)])
    by = ["batch", "formula", "column"]
    print(frame.drop(columns="seed").groupby(by, sort=False).mean().to_string())
    write("covariates", frame, Path(__file__).parent)
