"""Cells to rows: jobs through joblib, each result kept as soon as it is there."""

import csv
import functools
import hashlib
import json
import multiprocessing
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch

import countvae
import countvae_simulations
from countvae.errors import ArgumentError, CountvaeWarning, MissingPackage
from countvae.files import claimed
from countvae_simulations.measures import MEASURES
from countvae_simulations.methods import METHODS
from countvae_simulations.methods.base import timed
from countvae_simulations.methods.peer import PeerMissing
from countvae_simulations.methods.peer import versions as peer_versions
from countvae_simulations.tables import draw

PACKAGES = ("countvae", "torch", "numpy", "scipy", "scikit-learn", "numba")
NOT_OF_RESULTS = ("scenarios", "page.py", "glossary.py", "cli.py", "runner.py")
"""Files that order, keep or read results, and do not make them."""

COLUMNS = 3
TIMINGS = ("seconds", "compile_seconds", "before_mb", "peak_mb")
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
        depends_on = versions()
        if self.method == "peer" or "by_mcmc" in self.measures:
            depends_on = depends_on | {f"peers' {k}": v for k, v in peer_versions().items()}
        return json.dumps({**asdict(self), "versions": depends_on}, sort_keys=True)

    @property
    def key(self) -> str:
        """A hash of that."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@functools.cache
def versions() -> dict[str, str]:
    """What results depend on: packages, Python, and a digest of the code that makes them."""
    numbers = {name: _version(name) for name in PACKAGES}
    return numbers | {"python": platform.python_version(), "code": _code()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _code() -> str:
    """Hash countvae and what of this suite makes results."""
    digest = hashlib.sha256()
    for package in (countvae, countvae_simulations):
        folder = Path(str(package.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            if file.relative_to(folder).parts[0] not in NOT_OF_RESULTS:
                digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


_alone = threading.Lock()


def run_cell(cell: Cell, threads: int) -> dict[str, float]:
    """Draw the table, fit, measure; one at a time in a process, for ablations patch modules."""
    with _alone:
        return _run_alone(cell, threads)


def _run_alone(cell: Cell, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    warm_up()
    truth, held_out = draw(cell.table, cell.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CountvaeWarning)
        found = timed(METHODS[cell.method], truth, cell.k, cell.seed, **cell.settings)
        measured = {}
        for name in ("effort", *cell.measures):
            measured |= MEASURES[name](truth, held_out, found)
    return measured


@functools.cache
def warm_up() -> None:
    """Fit something small: the peers' clocks start after their imports, and so do ours."""
    METHODS["ours"](draw({"n": 20, "d": 10, "k": 1, "reads": 100}, 0)[0], 1, 0, max_epochs=1)


def run(
    cells: Sequence[Cell],
    store: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    fresh: bool = False,
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
    fresh : bool
        Give each cell a process of its own, so that its peak of memory is its own.
    cluster : str, optional
        Address of a Dask scheduler whose workers run the cells instead.
    progress : callable, optional
        Called with the cells done and all cells, after each.

    Returns
    -------
    DataFrame
        One row a cell: `table.*`, `settings.*`, method, k, seed, and every measure.

    Raises
    ------
    InUse
        If another run holds the store.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    with claimed(store):
        return _run(cells, store, jobs, threads, fresh, cluster, progress)


def _run(
    cells: Sequence[Cell],
    store: Path,
    jobs: int,
    threads: int,
    fresh: bool,
    cluster: str | None,
    progress: Callable[[int, int], None] | None,
) -> pd.DataFrame:
    done = read_store(store)
    todo = {cell.key: cell for cell in cells if cell.key not in done}
    finished = len({cell.key for cell in cells}) - len(todo)
    total = finished + len(todo)
    with _backend(cluster), store_for_appending(store) as append:
        parallel = joblib.Parallel(
            n_jobs=-1 if cluster else jobs, return_as="generator_unordered", batch_size=1
        )
        do = _in_fresh_process if fresh else _keyed
        tasks = (joblib.delayed(do)(key, cell, threads) for key, cell in todo.items())
        for key, measured in parallel(tasks):
            if isinstance(measured, str):
                warnings.warn(f"left out: {measured}", CountvaeWarning, stacklevel=3)
            else:
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
    found: dict[str, dict[str, str]] = {}
    whole: set[str] = set()
    with store.open(newline="") as file:
        for row in csv.reader(file):
            if len(row) != COLUMNS:
                continue
            if row[1] == "end":
                whole.add(row[0])
            elif row[1] != "cell":
                found.setdefault(row[0], {})[row[1]] = row[2]
    # numbers are read now: the line that was cut is of a cell that has no end, or is done again
    return {
        key: {name: float(value) for name, value in measured.items()}
        for key, measured in found.items()
        if key in whole
    }


@contextmanager
def store_for_appending(store: Path) -> Iterator[Callable[[Cell, dict[str, float]], None]]:
    """Append a cell at a time, each on the disk before the next."""
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


def _keyed(key: str, cell: Cell, threads: int) -> tuple[str, dict[str, float] | str]:
    """Run a cell; if its method cannot, say why: the other cells go on."""
    try:
        return key, run_cell(cell, threads)
    except PeerMissing as error:
        return key, str(error)
    except (ArithmeticError, np.linalg.LinAlgError, MemoryError, RuntimeError) as error:
        return key, f"{_short(cell)}: {str(error) or type(error).__name__}"


def _short(cell: Cell) -> str:
    return f"{cell.method} with seed {cell.seed}"


def _in_fresh_process(key: str, cell: Cell, threads: int) -> tuple[str, dict[str, float] | str]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            return pool.submit(_keyed, key, cell, threads).result()
        except BrokenProcessPool:
            return key, f"{_short(cell)}: its process was killed, perhaps for want of memory"


def _end_with_parent() -> None:
    """Follow the run into death, however it dies: a cell may have hours to go."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _backend(cluster: str | None) -> Iterator[None]:
    if cluster is None:
        yield
        return
    try:
        from distributed import Client

        client = Client(cluster, set_as_default=True, timeout=20)
    except ImportError as error:
        raise MissingPackage(
            "--cluster: needs the extra `cluster`: pip install countvae[cluster]."
        ) from error
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--cluster: no Dask scheduler answers at '{cluster}'.") from error
    with client, joblib.parallel_config("dask", wait_for_workers_timeout=60):
        yield
