"""Whether the number of factors is found: `python -m benchmarks.takehome.select`.

Tables of the model with a true k, by seed. Real tables are in `select_real`.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.core.common import arguments, tell, write
from countvae.select import Selection, select
from countvae.simulate import simulate

TRIED = (2, 3, 4, 5, 6, 7, 8, 10)
TRUE_K = 5
DESIGNS = ("flat", "wide")


def about(found: Selection) -> dict[str, object]:
    """What a selection found, in figures."""
    return {
        "k": found.k,
        "best": int(found.table["k"][found.table["difference"].idxmax()]),
        **{f"{name}, {part}": value for (name, part), value in found.gains.stack().items()},
        "untrusted": float(found.table["untrusted"].max()),
    }


def simulated(design: str, seed: int) -> dict[str, object]:
    """Select on a table of known k."""
    rng = np.random.default_rng(seed)
    truth = simulate(400, 100, TRUE_K, 2000, design=design, rng=rng)
    found = select(truth.counts, TRIED, random_state=seed, max_epochs=30)
    return {"table": design, "seed": seed, "true_k": TRUE_K, **about(found)}


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
    write("select", pd.DataFrame(rows), Path(__file__).parent)
