"""Whether spoilt samples are found: `python -m benchmarks.takehome.score`.

A model is fitted to some samples of a table; others are scored, half of them spoilt: a third of the
reads taken from the features in another order ("contaminated"), or all features in another order
among those of like abundance ("swapped"). Simulated tables have depths from 100 to 10,000; ecam its
own. The area under the ROC curve of -t, and of |t|; the share of untouched samples with p <= 0.05,
by what the model draws and by ranks among 100 other samples that were not fitted ("clean"); and the
rank correlation of p with the depth among these. Of ecam also samples whose places were exchanged
with one another, scored by a model that knows the month of each.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.core.common import DATA, arguments, tell, write
from countvae import MultinomialVAE
from countvae.score import scores
from countvae.simulate import simulate
from countvae.table import read

N, D, K = 600, 150, 5
SCORED, CLEAN = 200, 100
REFERENCE = 200
"""Samples drawn for each month and depth."""

NEIGHBOURS = 10
SPOILT = ("contaminated", "swapped")


def contaminated(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace a third of the reads by some in another order."""
    foreign = rng.permutation(counts)
    return rng.binomial(counts, 2 / 3) + rng.binomial(foreign, 1 / 3)


def swapped(counts: np.ndarray, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute features within groups of neighbours in abundance: a shallower trace."""
    changed = counts.copy()
    for first in range(0, len(order), NEIGHBOURS):
        group = order[first : first + NEIGHBOURS]
        changed[group] = counts[rng.permutation(group)]
    return changed


def at_5_percent(found: pd.DataFrame) -> float:
    """Share of the samples with p <= 0.05."""
    return float((found["p_value"] <= 0.05).mean())


def judged(found: pd.DataFrame, is_spoilt: np.ndarray) -> dict[str, float]:
    """How well scores tell which samples are spoilt, and what they say of the others."""
    untouched = found[~is_spoilt]
    return {
        "area": roc_auc_score(is_spoilt, -found["t"]),
        "area_of_both_tails": roc_auc_score(is_spoilt, found["t"].abs()),
        "untouched_at_5_percent": at_5_percent(untouched),
        "p_with_depth": spearmanr(untouched["p_value"], untouched["depth"])[0],
    }


def exchanged(seed: int) -> dict[str, object]:
    """Exchange half of the samples of ecam that are scored, whose months are known."""
    rng, of_study = np.random.default_rng(seed), DATA / "ecam"
    table = read(of_study / "table.biom", metadata=of_study / "metadata.tsv")
    table = table.filter(min_feature_samples=20)
    order = rng.permutation(np.flatnonzero(table.sample_metadata["month"].notna()))
    fitted, new = (table.select_samples(at) for at in (order[SCORED:], order[:SCORED]))
    model = MultinomialVAE(10, formula="~ month", random_state=seed).fit(fitted)
    is_spoilt, places = np.arange(SCORED) % 2 == 0, np.arange(SCORED)
    places[is_spoilt] = np.roll(places[is_spoilt], 1)
    given = replace(new, counts=new.counts[places])
    found = scores(model, given, reference=REFERENCE, random_state=seed)
    row = {"table": "ecam", "spoilt": "exchanged", "seed": seed, **judged(found, is_spoilt)}
    tell(row)
    return row


def measure(table: str, seed: int) -> list[dict[str, object]]:
    """Fit, spoil and score."""
    rng = np.random.default_rng(seed)
    if table == "ecam":
        counts = read(DATA / "ecam/table.biom").filter(min_feature_samples=20).counts
        k = 10
    else:
        depths = np.exp(rng.uniform(np.log(100), np.log(10_000), N))
        counts = simulate(N, D, K, 10_000, design=table, rng=rng).counts
        share = depths / np.asarray(counts.sum(axis=1))
        counts = csr_array(
            rng.binomial(counts.toarray().astype(int), np.minimum(1, share)[:, None])
        )
        k = K
    order = rng.permutation(counts.shape[0])
    model = MultinomialVAE(k, random_state=seed).fit(counts[order[SCORED + CLEAN :]])
    clean = counts[order[SCORED : SCORED + CLEAN]]
    new = counts[order[:SCORED]].toarray().astype(int)
    by_abundance = np.argsort(np.asarray(counts.sum(axis=0)))
    rows = []
    for kind in SPOILT:
        is_spoilt = np.arange(SCORED) % 2 == 0
        given = new.copy()
        for i in np.flatnonzero(is_spoilt):
            own = (
                contaminated(new[i], rng)
                if kind == SPOILT[0]
                else swapped(new[i], by_abundance, rng)
            )
            given[i] = own
        found, ranked = (
            scores(model, csr_array(given), clean=beside, random_state=seed)
            for beside in (None, clean)
        )
        rows.append(
            {
                "table": table,
                "spoilt": kind,
                "seed": seed,
                **judged(found, is_spoilt),
                "untouched_at_5_percent_clean": at_5_percent(ranked[~is_spoilt]),
            }
        )
        tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 5).seeds
    tables = ("flat", "wide", "ecam")
    frame = pd.DataFrame(
        [row for table in tables for seed in range(seeds) for row in measure(table, seed)]
        + [exchanged(seed) for seed in range(seeds)]
    )
    print(frame.drop(columns="seed").groupby(["table", "spoilt"], sort=False).median().to_string())
    write("score", frame, Path(__file__).parent)
