"""Faults put into real runs: each must end in a sentence, and leave what was there before."""

import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.core.common import write
from benchmarks.reliability.scene import (
    COMMANDS,
    HERE,
    MODEL,
    address_space,
    content,
    end,
    left_over,
    loads,
    places,
    set_scene,
    simulated,
    way_on,
)
from benchmarks.reliability.warm import Done, Warm
from countvae.store import is_model
from countvae.table import write as write_table

MIB = 2**20
SHARES = (0.0, 0.1, 0.4, 0.7, 0.95)
"""Of the largest file that a command writes: so much fits on the disk."""

FAULTS = {
    "full_disk": "the disk is full",
    "no_memory": "too little memory",
    "memory_used_up": "memory used up in the midst of a fit",
    "one_writer": "two fits into one folder",
    "cannot_be_written": "an output that cannot be made",
    "vanished_input": "a table cut, emptied or overwritten while it is streamed",
    "not_finite": "a fit that does not stay finite",
    "damaged_checkpoint": "the last state damaged on the disk",
}

CODES = {
    "full_disk": {0, 3},
    "no_memory": {0, 3, 5},
    "memory_used_up": {5},
    "one_writer": {3},
    "cannot_be_written": {2, 3},
    "vanished_input": {3},
    "not_finite": {4},
    "damaged_checkpoint": {130},
}
"""Exit codes that each may end in."""

ENDLESS = ("fit", "table.h5ad", "-k", "2", "--max-epochs", "3000")
LONG = ("fit", "moving.h5ad", "-k", "2", "--max-epochs", "4000", "--stream", "--seed", "1")


def measure(
    commands: dict[str, tuple[str, ...]] | None = None, without: Collection[str] = ()
) -> pd.DataFrame:
    """Put every fault, but for those to do without, into every command that it may meet.

    Returns
    -------
    DataFrame
        A row a try: the fault, the output, how the process ended ("refused" is a sentence and an
        exit code of its own), what it said, and whether anything was lost.
    """
    commands = COMMANDS if commands is None else commands
    rows = []
    with tempfile.TemporaryDirectory() as name, Warm(Path(name)) as warm:
        folder = Path(name)
        set_scene(folder)
        for output, command in ({MODEL: COMMANDS[MODEL]} | commands).items():
            done = warm.run(*command, "-o", output)
            if done.outcome != "done":
                raise SystemExit(f"{output}: {done.said}")

        def put(fault: Callable[..., Iterator[dict[str, Any]]], *about: Any) -> None:
            if (name := fault.__name__) not in without:
                rows.extend({"fault": name, **row} for row in fault(warm, folder, *about))

        put(full_disk, commands)
        put(no_memory, commands)
        put(memory_used_up)
        put(one_writer)
        put(cannot_be_written)
        put(vanished_input)
        put(not_finite)
        put(damaged_checkpoint)
    for row in rows:
        if row["code"] not in CODES[row["fault"]]:
            row["outcome"] = f"exit code {row['code']}"
    return pd.DataFrame(rows)


def full_disk(
    warm: Warm, folder: Path, commands: dict[str, tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """The disk is full after so many bytes, while an earlier result is to be replaced."""
    for output, command in commands.items():
        written = places(folder, output)
        files = [f for place in written for f in (place, *place.rglob("*")) if f.is_file()]
        largest = max(f.stat().st_size for f in files)
        for share in SHARES:
            limits = {"RLIMIT_FSIZE": int(share * largest)}
            yield tried(warm, folder, output, *command, limits=limits)


def no_memory(
    warm: Warm, folder: Path, commands: dict[str, tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """No more memory is given than so much over what the imports have taken."""
    taken = address_space(warm.pid)
    for output, command in commands.items():
        for more in (1, 4, 16, 64):
            limits = {"RLIMIT_AS": taken + more * MIB}
            yield tried(warm, folder, output, *command, limits=limits)


def memory_used_up(warm: Warm, folder: Path) -> Iterator[dict[str, Any]]:
    """No more memory is given from some epoch on: a state is left, and more memory goes on."""
    write_table(simulated(1000, 2000, 2, 3000), folder / "wide.h5ad")
    place, states = folder / "wide", folder / "wide.checkpoint"
    fit = ("fit", "wide.h5ad", "-k", "2", "--max-epochs", "16", "-o", "wide", "--force")
    for less in (0, 8, 64):
        before = content(place)
        pid = warm.start(*fit, often=True)
        _wait_for(states)
        taken = address_space(pid) - less * MIB
        resource.prlimit(pid, resource.RLIMIT_AS, (taken, taken))
        done = warm.wait(pid)
        again = way_on(done.said)
        lost = content(place) != before or bool(left_over(folder))
        row = {"output": f"{less} MiB less", **ended(done)}
        went_on = (
            bool(again) and warm.run(*again).code == 0 and loads(place) and not states.exists()
        )
        yield row | {"lost": lost or not went_on}
    shutil.rmtree(states, ignore_errors=True)


def one_writer(warm: Warm, folder: Path) -> Iterator[dict[str, Any]]:
    """Two fits into one folder: the second refuses, and the first is not disturbed."""
    before, states = content(folder / MODEL), folder / f"{MODEL}.checkpoint"
    first = warm.start(*ENDLESS, "-o", MODEL, "--force", often=True)
    _wait_for(states)
    row = tried(warm, folder, MODEL, *COMMANDS[MODEL], ignored=".lock")
    os.kill(first, signal.SIGTERM)
    done = warm.wait(first)
    left = any(map(is_model, states.glob("[0-9]*")))
    shutil.rmtree(states, ignore_errors=True)
    disturbed = done.code != 130 or not left or content(folder / MODEL) != before
    yield row | {"lost": row["lost"] or disturbed}


def cannot_be_written(warm: Warm, folder: Path) -> Iterator[dict[str, Any]]:
    """The output is in a folder that is missing, not writable by anybody, or a file."""
    for place in ("missing/out", "/proc/out", "table.tsv/out"):
        for output, command in COMMANDS.items():
            path = place + Path(output).suffix
            done = warm.run(*command, "-o", path)
            lost = bool(left_over(folder))
            yield {"output": path, **ended(done), "lost": lost}


def vanished_input(warm: Warm, folder: Path) -> Iterator[dict[str, Any]]:
    """A table on disk is cut or overwritten while it is read, epoch after epoch."""
    for what in ("cut", "emptied", "overwritten"):
        _write_wide(folder / "moving.h5ad")
        before = content(folder / MODEL)
        pid = warm.start(*LONG, "-o", MODEL, "--force")
        time.sleep(2)
        with (folder / "moving.h5ad").open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if what == "overwritten":
                file.seek(size // 4)
                file.write(np.random.default_rng(0).bytes(size // 2))
            else:
                file.truncate(0 if what == "emptied" else size // 2)
        done = warm.wait(pid)
        shutil.rmtree(folder / f"{MODEL}.checkpoint", ignore_errors=True)
        lost = before != content(folder / MODEL)
        yield {"output": what, **ended(done), "lost": lost}


def _write_wide(path: Path) -> None:
    """Write a table that no cache of HDF5 holds."""
    write_table(simulated(2000, 300, 2, 3000), path, force=True)


def not_finite(warm: Warm, folder: Path) -> Iterator[dict[str, Any]]:
    """A learning rate by which no fit stays finite."""
    for optimizer, rate in (("adam", "1e25"), ("sgd", "1e30")):
        extra = ("--optimizer", optimizer, "--learning-rate", rate)
        yield tried(warm, folder, MODEL, *COMMANDS[MODEL], *extra)


def damaged_checkpoint(warm: Warm, folder: Path) -> Iterator[dict[str, Any]]:
    """The last state of a fit is damaged on the disk: it goes on from the one before."""
    for damage in ("cut", "flipped", "gone"):
        pid = warm.start(*ENDLESS, "-o", "broken", often=True)
        states = folder / "broken.checkpoint"
        _wait_for(states, 2)
        os.kill(pid, signal.SIGTERM)
        warm.wait(pid)
        file = sorted(states.glob("[0-9]*"))[-1] / "model.safetensors"
        whole = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            cut = whole[: len(whole) // 2]
            file.write_bytes(cut if damage == "cut" else cut[:-1] + b"?" + whole[len(cut) :])
        pid = warm.start(*ENDLESS, "-o", "broken", "--resume")
        time.sleep(2)
        os.kill(pid, signal.SIGTERM)
        done = warm.wait(pid)
        went_on = "going on from the state before" in done.said
        shutil.rmtree(states)
        yield {
            "output": damage,
            **(ended(done) | ({} if went_on else {"outcome": "not gone on with"})),
            "lost": not went_on,
        }


def _wait_for(states: Path, count: int = 1) -> None:
    """Return when a fit has left so many states."""
    while len(list(states.glob("[0-9]*"))) < count:
        time.sleep(0.02)


def tried(
    warm: Warm,
    folder: Path,
    output: str,
    *command: str,
    limits: dict[str, int] | None = None,
    ignored: str = "nothing",
) -> dict[str, Any]:
    """Run a command that replaces an output, and say how it ended and what became of that."""
    written = places(folder, output)
    before = [content(place) for place in written]
    done = warm.run(*command, "-o", output, "--force", limits=limits)
    kept = [content(place) for place in written] == before
    kept = kept if done.code else all(map(loads, written))
    left = [name for name in left_over(folder) if not name.endswith(ignored)]
    lost = not kept or bool(left)
    return {"output": output, **ended(done), "lost": lost}


def ended(done: Done) -> dict[str, Any]:
    """Return how a process ended."""
    return {"code": done.code, "outcome": done.outcome, "said": last(done)}


def last(done: Done) -> str:
    """Return what a process said last; all of it where that was no sentence."""
    if done.outcome == "traceback":
        return done.said
    return (done.said.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    rows = measure()
    rows["lost"] = rows["lost"].astype(int)
    with pd.option_context("display.width", 250, "display.max_colwidth", 120):
        print(rows.to_string())
    print(rows.groupby(["fault", "outcome"]).agg({"lost": ["size", "sum"]}).to_string())
    write("faults", rows, HERE)
    end(rows[~rows["outcome"].isin(["refused", "done"]) | (rows["lost"] > 0)])
