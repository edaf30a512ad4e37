"""What the checks share: a folder with tables and an earlier model, and what must hold of it."""

import argparse
import hashlib
import shlex
from pathlib import Path

import numpy as np
import pandas as pd

from countvae import MultinomialVAE
from countvae.errors import InputError
from countvae.simulate import simulate
from countvae.table import CountTable, read, write

HERE = Path(__file__).parent
MODEL = "fitted"
SHOWN = 100
"""Findings that are printed, at most."""

FIT = ("fit", "table.h5ad", "-k", "2", "--max-epochs", "40", "--seed", "1", "--quiet")


def arguments(description: str, tries: int) -> int:
    """Read --tries, how often."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--tries", type=int, default=tries, help=f"how often (default {tries})")
    return parser.parse_args().tries


def end(findings: pd.DataFrame) -> None:
    """End with 1 and what was found, or well where nothing was."""
    if len(findings):
        with pd.option_context("display.width", 250, "display.max_colwidth", 200):
            raise SystemExit(f"{len(findings)} findings:\n{findings[:SHOWN].to_string()}")


def simulated(n: int, d: int, k: int, reads: int, seed: int = 0) -> CountTable:
    """Return a table with names, drawn from the model."""
    truth = simulate(n, d, k, reads, rng=np.random.default_rng(seed))
    ids = (np.array(names, object) for names in (truth.sample_ids, truth.feature_ids))
    return CountTable(truth.counts, *ids)


def set_scene(folder: Path) -> None:
    """Write a table in the formats that are read."""
    table = simulated(60, 24, 2, 500)
    for suffix in ("h5ad", "biom", "tsv"):
        write(table, folder / f"table.{suffix}")


def address_space(pid: int | str = "self") -> int:
    """Bytes of the addresses that a process has taken."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmSize" in line)


COMMANDS: dict[str, tuple[str, ...]] = {
    MODEL: ("fit", "table.h5ad", "-k", "2", "--max-epochs", "4", "--seed", "2", "--quiet"),
    "coordinates.tsv": ("transform", "table.biom", "--model", MODEL, "--quiet"),
    "coordinates.h5ad": ("transform", "table.biom", "--model", MODEL, "--quiet"),
    "ordination.txt": ("transform", "table.tsv", "--model", MODEL, "--quiet"),
    "denoised.biom": ("denoise", "table.biom", "--model", MODEL, "--quiet"),
    "generated.h5ad": ("generate", "--model", MODEL, "--n-samples", "40"),
    "scores.tsv": ("score", "table.h5ad", "--model", MODEL, "--quiet"),
    "network": ("network", "--model", MODEL),
    "selected": ("select", "table.h5ad", "-k", "1,2", "--quiet"),
    "report.html": ("report", MODEL),
    "both.tsv": (
        *("transform", "table.biom", "--model", MODEL, "--quiet"),
        *("--distances", "distances.tsv"),
    ),
    "simulated.biom": ("simulate", "--samples", "60", "--features", "24"),
    "demo": ("demo", "--quiet"),
}
"""A command for each kind of output, by its name."""

BESIDE = {"both.tsv": "distances.tsv", "simulated.biom": "simulated-truth"}
"""What some of them write besides."""


def places(folder: Path, output: str) -> list[Path]:
    """Return all that the command for an output writes."""
    return [folder / name for name in (output, BESIDE.get(output)) if name]


def content(path: Path) -> str | None:
    """Return a digest of a file, or of all that a folder holds; None of what is not there."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return digest.hexdigest()


def loads(path: Path) -> bool:
    """Whether a model, a table or a text that was written is whole, as far as a reader can tell."""
    try:
        if path.is_dir():
            if (path / "config.json").exists():
                MultinomialVAE.load(path)
        elif path.suffix in (".biom", ".h5ad"):
            read(path, allow_fractional=True)
    except InputError:
        return False
    return True


def way_on(said: str) -> tuple[str, ...]:
    """Return the command by which a process says that it goes on; nothing if it does not."""
    _, says, command = said.rpartition("it goes on by: countvae ")
    return tuple(shlex.split(command)) if says else ()


def left_over(folder: Path) -> list[str]:
    """Names of what was begun and not finished, or not let go."""
    return sorted(path.name for path in folder.glob(".*"))
