"""Cells to rows: jobs through joblib, each result kept as soon as it is there."""

import csv
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import joblib
import pandas as pd

from countvae.errors import ArgumentError, CountvaeWarning, MissingPackage
from countvae.files import claimed
from countvae_simulations.cell import PACKAGES, Cell, code, run_cell, versions
from countvae_simulations.methods.peer import PeerMissing

COLUMNS = 3
TIMINGS = ("seconds", "compile_seconds", "before_mb", "peak_mb")
"""Measures that a second run does not repeat to the bit."""


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
        of_key = versions()
        tasks = (joblib.delayed(do)(key, cell, threads, of_key) for key, cell in todo.items())
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


def _keyed(
    key: str, cell: Cell, threads: int, of_key: Mapping[str, str]
) -> tuple[str, dict[str, float] | str]:
    """Run a cell; if its method cannot, say why: the other cells go on.

    A process that began later, or elsewhere, may have other code or packages than those that the
    key is of. Another processor is let pass: it moves the last bits, and is what clusters have.
    """
    changed = f"{_short(cell)}: the code is not that with which the run began"
    here = versions()
    for name in (*PACKAGES, "python"):
        if here[name] != of_key[name]:
            return key, (
                f"{_short(cell)}: a worker has {name} {here[name]}, and the run began with "
                f"{of_key[name]}"
            )
    try:
        if code() != of_key["code"]:
            return key, changed
        measured = run_cell(cell, threads)
        return key, measured if code() == of_key["code"] else changed
    except PeerMissing as error:
        return key, str(error)
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
        return key, f"{_short(cell)}: {str(error) or type(error).__name__}"


def _short(cell: Cell) -> str:
    return f"{cell.method} with seed {cell.seed}"


def _in_fresh_process(
    key: str, cell: Cell, threads: int, of_key: Mapping[str, str]
) -> tuple[str, dict[str, float] | str]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            return pool.submit(_keyed, key, cell, threads, of_key).result()
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
    with connected(cluster), joblib.parallel_config("dask", wait_for_workers_timeout=60):
        yield


@contextmanager
def connected(cluster: str) -> Iterator[None]:
    """Connect to a Dask scheduler.

    Raises
    ------
    MissingPackage
        If dask.distributed is not installed.
    ArgumentError
        If no scheduler answers.
    """
    try:
        from distributed import Client

        client = Client(cluster, set_as_default=True, timeout=20)
    except ImportError as error:
        raise MissingPackage(
            "--cluster: needs the extra `cluster`: pip install 'countvae[cluster]'."
        ) from error
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--cluster: no Dask scheduler answers at '{cluster}'.") from error
    with client:
        yield
