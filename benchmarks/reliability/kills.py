"""Fits stopped at random moments and gone on with, which must end with the same bits."""

import os
import re
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.core.common import write
from benchmarks.reliability.scene import (
    FIT,
    HERE,
    MODEL,
    arguments,
    content,
    end,
    left_over,
    loads,
    set_scene,
    way_on,
)
from benchmarks.reliability.warm import Warm
from countvae import MultinomialVAE
from countvae.errors import InputError
from countvae.files import BEGUN
from countvae.store import load

HOW = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


def measure(tries: int, seed: int = 0) -> pd.DataFrame:
    """Kill fits and go on with them, until so many have been killed.

    Returns
    -------
    DataFrame
        A row a fit that was stopped and got to its end: how it was stopped, how often, how often
        while it wrote, whether anything was lost meanwhile (the earlier model, or an epoch of a
        state that was written), and whether the result is that of a fit left alone.
    """
    rng, rows = np.random.default_rng(seed), []
    with tempfile.TemporaryDirectory() as name, Warm(Path(name)) as warm:
        folder = Path(name)
        set_scene(folder)
        for _ in range(2):  # the first has a kernel to compile
            done = warm.run(*FIT, "-o", "alone", "--force", often=True)
        if done.outcome != "done":
            raise SystemExit(done.said)
        bits = (folder / "alone" / "model.safetensors").read_bytes()
        earlier = warm.run(*FIT, "-o", "earlier", "--seed", "2")
        if earlier.outcome != "done":
            raise SystemExit(earlier.said)
        killed = 0
        while killed < tries:
            how = list(HOW)[len(rows) % len(HOW)]
            MultinomialVAE.load(folder / "earlier").save(folder / MODEL, force=True)
            row = stopped_and_resumed(warm, folder, HOW[how], done.seconds, rng)
            whole = folder / MODEL / "model.safetensors"
            if row["stopped"]:
                rows.append({"how": how, **row, "equal": int(whole.read_bytes() == bits)})
            killed += row["stopped"]
    return pd.DataFrame(rows)


def stopped_and_resumed(
    warm: Warm, folder: Path, how: signal.Signals, takes: float, rng: np.random.Generator
) -> dict[str, int]:
    """Stop a fit that replaces a model, again and again, until it gets to its end."""
    stopped = writing = lost = last = 0
    before, checkpoint = content(folder / MODEL), folder / f"{MODEL}.checkpoint"
    first = (*FIT, "-o", MODEL, "--force")
    command, said = first, ""
    while True:
        begun = _begun(folder, checkpoint)
        pid = warm.start(*command, often=True)
        time.sleep(takes * rng.uniform(0.1, 1.0))
        if how is signal.SIGKILL and rng.random() < 0.5:
            _wait_for_a_write(begun, folder, checkpoint)
        os.kill(pid, how)
        done = warm.wait(pid)
        if done.code == 0:
            break
        stopped += 1
        replaced = before != content(folder / MODEL)
        reached = _last_epoch(checkpoint)
        lost += not loads(folder / MODEL) if replaced else reached < last
        last = max(last, reached)
        writing += bool(_begun(folder, checkpoint) - begun)
        lost += how is not signal.SIGKILL and (done.outcome, done.code) != ("refused", 130)
        command = way_on(done.said) or (*first, "--resume")
        said = done.said or said
        if stopped > 50:
            raise SystemExit(f"no end after 50 stops; the last said: {said}")
    lost += bool(left_over(folder))
    return {"stopped": stopped, "while_writing": writing, "lost": lost}


def _begun(*folders: Path) -> set[str]:
    """Names of what is begun in folders, and not finished."""
    names = (name for folder in folders if folder.exists() for name in os.listdir(folder))
    return {name for name in names if re.match(BEGUN, name)}


def _wait_for_a_write(begun: set[str], *folders: Path, seconds: float = 1.0) -> None:
    """Return in the middle of the next write, if there is one soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not _begun(*folders) - begun:
        pass


def _last_epoch(checkpoint: Path) -> int:
    """Epochs in the last state that is there, 0 without one, -1 if it is not whole."""
    try:
        for state in sorted(checkpoint.glob("[0-9]*"))[-1:]:
            _, settings = load(state)
            return len(settings["state"]["history"])
    except InputError:
        return -1
    return 0


if __name__ == "__main__":
    rows = measure(arguments(__doc__ or "", 60))
    print(rows.to_string())
    write("kills", rows, HERE)
    end(rows[(rows["lost"] > 0) | (rows["equal"] == 0)])
