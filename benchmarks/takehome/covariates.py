"""Whether effects of covariates lie in their intervals: `python -m benchmarks.takehome.covariates`.

Simulated tables of 300 samples, 60 features and 3 factors, 2,000 reads a sample, in which age and a
batch move all log-ratios; three more columns do nothing: noise, a coin, and a copy of age with
noise (correlation 0.98). Each formula is fitted; the share of 90 % intervals of the coefficients
that hold the truth, by column; and, beside a fit without covariates, the share of the factor space
that is missed, and that of the variance of the coordinates which the batch explains.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from benchmarks.core.common import arguments, tell, write
from countvae import MultinomialVAE
from countvae.metrics import subspace_error
from countvae.simulate import simulate
from countvae.table import CountTable

N, D, K, READS = 300, 60, 3, 2000
FORMULAS = ("~ age + batch", "~ age + batch + noise + coin", "~ age + batch + alike")
WIDTH = 1.645


def drawn(seed: int) -> tuple[CountTable, pd.DataFrame, np.ndarray]:
    """Draw a table, the effects of its columns on the log-ratios, and its loadings."""
    rng = np.random.default_rng(seed)
    known = pd.DataFrame(
        {
            "age": rng.uniform(0, 10, N),
            "batch": rng.integers(0, 2, N).astype(float),
            "noise": rng.normal(size=N),
            "coin": rng.integers(0, 2, N).astype(float),
        }
    )
    known["alike"] = known["age"] + rng.normal(0, 0.6, N)
    effects = pd.DataFrame(0.0, index=known.columns, columns=np.arange(D))
    effects.loc["age"], effects.loc["batch"] = rng.normal(0, 0.15, D), rng.normal(0, 1, D)
    effects = effects.sub(effects.mean(axis=1), axis=0)
    plain = simulate(N, D, K, READS, keep_proportions=True, rng=rng)
    logits = np.log(plain.proportions) + known.to_numpy() @ effects.to_numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    counts = np.array([rng.multinomial(READS, row) for row in shares])
    names = [np.array([f"{what}{i}" for i in range(m)], object) for what, m in (("s", N), ("f", D))]
    table = CountTable(csr_array(counts.astype(float)), *names, known.set_index(names[0]))
    return table, effects, plain.V


def explained(y: np.ndarray, by: pd.Series) -> float:
    """Share of the variance of coordinates that a column explains."""
    y, of = y - y.mean(0), (by - by.mean()).to_numpy()
    return float(np.square(of @ y).sum() / (of @ of) / np.square(y).sum())


def measure(seed: int) -> list[dict[str, object]]:
    """Fit each formula, and count intervals that hold the truth."""
    table, effects, V = drawn(seed)
    without, rows = MultinomialVAE(K, random_state=seed).fit(table), []
    batch = table.sample_metadata["batch"]
    for formula in FORMULAS:
        model = MultinomialVAE(K, formula=formula, random_state=seed).fit(table)
        names = [str(name) for name in model.coefficient_names_]
        off = np.abs(model.coefficients_ - effects.loc[names].to_numpy())
        for name, held in zip(names, off <= WIDTH * model.coefficients_sd_, strict=True):
            rows.append(
                {
                    "formula": formula,
                    "column": name,
                    "seed": seed,
                    "coverage": held.mean(),
                    "subspace": subspace_error(V, model.clr_loadings_),
                    "subspace_without": subspace_error(V, without.clr_loadings_),
                    "of_batch": explained(model.transform(table), batch),
                    "of_batch_without": explained(without.transform(table), batch),
                }
            )
            tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 10).seeds
    frame = pd.DataFrame([row for seed in range(seeds) for row in measure(seed)])
    print(frame.drop(columns="seed").groupby(["formula", "column"], sort=False).mean().to_string())
    write("covariates", frame, Path(__file__).parent)
