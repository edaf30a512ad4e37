"""What the performance scripts share."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.core import common
from benchmarks.performance.tables import blocks
from countvae import MultinomialVAE

HERE = Path(__file__).parent


def sparse_table(n: int, d: int, nonzero: float, seed: int) -> sp.csr_array:
    """Draw a table in memory."""
    drawn = blocks(n, d, 16, nonzero, np.random.default_rng(seed))
    return sp.csr_array(sp.vstack(list(drawn), format="csr"))


class Watched:
    """A fit whose epochs are timed.

    Attributes
    ----------
    seconds : (epochs,)
        When each epoch ended, from the start of the fit.
    bound : (epochs,)
        Mean bound of each epoch in nats a sample.
    waited : (epochs,)
        Seconds until then in which a table on disk had yet to be read.
    total : float
        Seconds of the whole fit.
    """

    def __init__(self, X: Any, k: int, **settings: Any) -> None:
        ends, bounds, waited = [], [], []
        begun = time.perf_counter()

        def watch(row: dict[str, float | int]) -> None:
            ends.append(time.perf_counter() - begun)
            bounds.append(row["bound"])
            waited.append(row["waited"])

        self.model = MultinomialVAE(k, progress=watch, **settings).fit(X)
        self.total = time.perf_counter() - begun
        self.seconds, self.bound, self.waited = map(np.array, (ends, bounds, waited))

    @property
    def epoch(self) -> float:
        """Median seconds an epoch, the first left out."""
        return float(np.median(np.diff(self.seconds)))

    @property
    def wait(self) -> float:
        """Median seconds of an epoch that go by until a table on disk is read."""
        return float(np.median(np.diff(self.waited)))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for tables that are removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a script to performance/results/NAME.csv."""
    common.write(name, pd.DataFrame(rows), HERE)
