"""How time grows with the table: `python -m benchmarks.performance.growth`.

Seconds an epoch with one of samples, features, factors and non-zeros varied, the rest as in BASE.
"""

import numpy as np
import pandas as pd

from benchmarks.core.common import arguments, tell
from benchmarks.performance.common import Watched, sparse_table, write

BASE = {"n": 4000, "d": 4000, "k": 32, "nonzero": 0.05}
GRID = {
    "n": (2000, 4000, 8000, 16_000),
    "d": (1000, 4000, 16_000, 64_000),
    "k": (8, 32, 64, 128),
    "nonzero": (0.01, 0.04, 0.16, 0.64),
}
EPOCHS = 7


def exponent(sizes: np.ndarray, seconds: np.ndarray) -> float:
    """Slope of log seconds in log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


if __name__ == "__main__":
    rows = []
    for seed in range(arguments(__doc__ or "", 2).seeds):
        for varied, sizes in GRID.items():
            for size in sizes:
                given = BASE | {varied: size}
                X = sparse_table(given["n"], given["d"], given["nonzero"], seed)
                fit = Watched(X, given["k"], max_epochs=EPOCHS)
                rows.append({"varied": varied, **given, "seed": seed, "epoch_s": fit.epoch})
                tell(rows[-1])
    table = pd.DataFrame(rows)
    for varied, some in table.groupby("varied", sort=False):
        print(f"seconds grow as {varied}^{exponent(some[varied], some['epoch_s']):.3f}")
    write("growth", rows)
