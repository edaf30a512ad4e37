"""Whether the number of factors is found: `python -m benchmarks.takehome.select`.

Tables of the model with a true k, by seed; the real tables, where only the verdict is told.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.core.common import DATA, arguments, tell, write
from countvae.select import Selection, select
from countvae.simulate import simulate
from countvae.table import read

TRIED = (2, 3, 4, 5, 6, 7, 8, 10)
TRUE_K = 5
DESIGNS = ("flat", "wide")
REAL = {"ecam": ("ecam/table.biom", 20), "ifnb_pbmc": ("ifnb_pbmc/counts.h5ad", 50)}
OF_REAL = (5, 10, 20, 40)


def about(found: Selection) -> dict[str, object]:
    """What a selection found, in figures."""
    return {
        "k": found.k,
        "best": int(found.table["k"][found.table["difference"].idxmax()]),
        "gain": found.gain,
        "gain_se": found.gain_se,
        "untrusted": float(found.table["untrusted"].max()),
    }


def simulated(design: str, seed: int) -> dict[str, object]:
    """Select on a table of known k."""
    rng = np.random.default_rng(seed)
    truth = simulate(400, 100, TRUE_K, 2000, design=design, rng=rng)
    found = select(truth.counts, TRIED, random_state=seed, max_epochs=30)
    return {"table": design, "seed": seed, "true_k": TRUE_K, **about(found)}


def real(name: str, seed: int) -> dict[str, object]:
    """Select on a real table."""
    file, samples = REAL[name]
    table = read(DATA / file).filter(min_feature_samples=samples)
    found = select(table, OF_REAL, random_state=seed, max_epochs=30)
    print(f"{name}: {found.verdict}")
    return {"table": name, "seed": seed, **about(found)}


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 10).seeds
    rows = []
    for design in DESIGNS:
        for seed in range(seeds):
            rows.append(simulated(design, seed))
            tell(rows[-1])
        of_design = [row for row in rows if row["table"] == design]
        near = sum(abs(int(row["k"]) - TRUE_K) <= 1 for row in of_design)
        print(f"{design}: k within one of the truth in {near} of {len(of_design)}")
    for name in REAL:
        rows.append(real(name, 0))
        tell(rows[-1])
    write("select", pd.DataFrame(rows), Path(__file__).parent)
