"""Cells to rows: jobs through joblib, each result kept as soon as it is there."""

import csv
import functools
import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch

import countvae
import countvae_simulations
from countvae.checks import CountvaeWarning
from countvae_simulations.measures import MEASURES
from countvae_simulations.methods import METHODS
from countvae_simulations.methods.base import timed
from countvae_simulations.methods.peer import PeerMissing
from countvae_simulations.tables import draw

PACKAGES = ("countvae", "torch", "numpy", "scipy", "scikit-learn")
COLUMNS = 3
TIMINGS = ("seconds", "peak_mb")
"""Measures that a second run does not repeat to the bit."""


@dataclass(frozen=True)
class Cell:
    """One job: a method on a table.

    Attributes
    ----------
    table : mapping
        What `tables.draw` takes.
    method : str
        A name in `METHODS`.
    k : int
        Factors to look for.
    seed : int
        Of the table and of the method.
    settings : mapping
        Of the method.
    measures : sequence of str
        Names in `MEASURES`.
    """

    table: Mapping[str, Any]
    method: str
    k: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    measures: Sequence[str] = ("covariance",)

    @property
    def text(self) -> str:
        """All that decides the result, the versions among it, as JSON."""
        return json.dumps({**asdict(self), "versions": versions()}, sort_keys=True)

    @property
    def key(self) -> str:
        """A hash of that."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@functools.cache
def versions() -> dict[str, str]:
    """What results depend on: packages, Python, and a digest of the code that makes them."""
    numbers = {name: version(name) for name in PACKAGES}
    return numbers | {"python": platform.python_version(), "code": _code()}


def _code() -> str:
    """Hash countvae and this suite, but for what only reads results."""
    digest = hashlib.sha256()
    for package in (countvae, countvae_simulations):
        folder = Path(str(package.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            if file.relative_to(folder).parts[0] not in ("scenarios", "page.py", "cli.py"):
                digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def run_cell(cell: Cell, threads: int) -> dict[str, float]:
    """Draw the table, fit, measure."""
    torch.set_num_threads(threads)
    _warm_up()
    truth, held_out = draw(cell.table, cell.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CountvaeWarning)
        found = timed(METHODS[cell.method], truth, cell.k, cell.seed, **cell.settings)
        measured = {"seconds": found.seconds, "peak_mb": found.peak_mb}
        for name in cell.measures:
            measured |= MEASURES[name](truth, held_out, found)
    return measured


@functools.cache
def _warm_up() -> None:
    """Fit something small: the peers' clocks start after their imports, and so do ours."""
    METHODS["ours"](draw({"n": 20, "d": 10, "k": 1, "reads": 100}, 0)[0], 1, 0, max_epochs=1)


def run(
    cells: Sequence[Cell],
    store: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    cluster: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Run the cells that the store lacks, and return the rows of all, in the order of the cells.

    Parameters
    ----------
    cells : sequence of Cell
    store : Path
        A CSV of key, name and value: the cell with its versions, then its measures. A cell is
        appended when it is done; what was broken off is not in it, and is done again.
    jobs : int
        Processes on this machine.
    threads : int
        Of each cell. Results depend on it to rounding, so it does not follow from `jobs`.
    cluster : str, optional
        Address of a Dask scheduler whose workers run the cells instead.
    progress : callable, optional
        Called with the cells done and all cells, after each.

    Returns
    -------
    DataFrame
        One row a cell: `table.*`, `settings.*`, method, k, seed, and every measure.
    """
    done = read_store(store)
    todo = {cell.key: cell for cell in cells if cell.key not in done}
    finished = len({cell.key for cell in cells}) - len(todo)
    total = finished + len(todo)
    with _backend(cluster), store_for_appending(store) as append:
        parallel = joblib.Parallel(
            n_jobs=-1 if cluster else jobs, return_as="generator_unordered", batch_size=1
        )
        tasks = (joblib.delayed(_keyed)(cell, threads) for cell in todo.values())
        for key, measured in parallel(tasks):
            if measured is not None:
                append(todo[key], measured)
                done[key] = measured
            finished += 1
            if progress is not None:
                progress(finished, total)
    return frame([(cell, done[cell.key]) for cell in cells if cell.key in done])


def frame(results: Iterable[tuple[Cell, dict[str, float]]]) -> pd.DataFrame:
    """One row a cell."""
    rows = []
    for cell, measured in results:
        rows.append(
            {
                **{f"table.{name}": value for name, value in cell.table.items()},
                "method": cell.method,
                **{f"settings.{name}": value for name, value in cell.settings.items()},
                "k": cell.k,
                "seed": cell.seed,
                **measured,
            }
        )
    return pd.DataFrame(rows)


def read_store(store: Path) -> dict[str, dict[str, float]]:
    """Measures by key; a last line that was cut short takes its cell with it."""
    if not store.exists():
        return {}
    found: dict[str, dict[str, float]] = {}
    whole: set[str] = set()
    with store.open(newline="") as file:
        for row in csv.reader(file):
            if len(row) != COLUMNS:
                continue
            if row[1] == "end":
                whole.add(row[0])
            elif row[1] != "cell":
                found.setdefault(row[0], {})[row[1]] = float(row[2])
    return {key: measured for key, measured in found.items() if key in whole}


@contextmanager
def store_for_appending(store: Path) -> Iterator[Callable[[Cell, dict[str, float]], None]]:
    """Append a cell at a time, each on the disk before the next."""
    store.parent.mkdir(parents=True, exist_ok=True)
    cut = store.exists() and not store.read_bytes().endswith(b"\n")
    with store.open("a", newline="") as file:
        if cut:
            file.write("\n")
        writer = csv.writer(file, lineterminator="\n")

        def append(cell: Cell, measured: dict[str, float]) -> None:
            rows = [("cell", cell.text), *((name, repr(float(v))) for name, v in measured.items())]
            writer.writerows([cell.key, *row] for row in [*rows, ("end", 1)])
            file.flush()
            os.fsync(file.fileno())

        yield append


def _keyed(cell: Cell, threads: int) -> tuple[str, dict[str, float] | None]:
    try:
        return cell.key, run_cell(cell, threads)
    except PeerMissing as error:
        warnings.warn(str(error), stacklevel=2)
        return cell.key, None


@contextmanager
def _backend(cluster: str | None) -> Iterator[None]:
    if cluster is None:
        yield
        return
    from distributed import Client

    with Client(cluster, set_as_default=True), joblib.parallel_config("dask"):
        yield
