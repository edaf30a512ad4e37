"""One job, what it depends on, and its result: all that makes a number is named or hashed here."""

import functools
import hashlib
import json
import os
import platform
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import countvae
import countvae_simulations
from countvae.errors import CountvaeWarning
from countvae_simulations.measures import MEASURES
from countvae_simulations.methods import METHODS
from countvae_simulations.methods.base import timed
from countvae_simulations.methods.peer import SCRIPTS
from countvae_simulations.methods.peer import versions as peer_versions
from countvae_simulations.tables import draw

PACKAGES = ("countvae", "torch", "numpy", "scipy", "scikit-learn", "scikit-bio", "numba")
NOT_OF_RESULTS = {
    countvae: (
        *("__main__.py", "cli.py", "console.py", "demo.py", "network.py"),
        *("ordination.py", "plots.py", "report.py", "score.py", "select.py", "tl.py"),
    ),
    countvae_simulations: (
        *("scenarios", "page.py", "glossary.py", "cli.py", "runner.py"),
        "methods/peer_scripts",
    ),
}
"""What orders, keeps or reads results, or does something else, and does not make them.

The peers' scripts make results of the peers alone: those have a digest of their own.
"""


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
    def needs_peers(self) -> bool:
        """Whether it is run, in part, in the environment of the peers."""
        return self.method == "peer" or "by_mcmc" in self.measures

    @property
    def versions(self) -> dict[str, str]:
        """What the result depends on, besides what the cell says."""
        if self.needs_peers:
            of_peers = peer_versions() | {"code": digest([(SCRIPTS, ())])}
            return versions() | {f"peers' {k}": v for k, v in of_peers.items()}
        return versions()

    @property
    def text(self) -> str:
        """All that decides the result, the versions among it, as JSON."""
        return json.dumps({**asdict(self), "versions": self.versions}, sort_keys=True)

    @property
    def key(self) -> str:
        """A hash of that."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@functools.cache
def versions() -> dict[str, str]:
    """What results depend on: packages, Python, and a digest of the code that makes them."""
    numbers = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return numbers | {"processor": f"{processor()}, {os.cpu_count()} cores", "code": code()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def processor() -> str:
    """Return what the system calls its processor; the last bits of results differ by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def code() -> str:
    """Hash countvae and what of this suite makes results, as they are on the disk now."""
    parts = (
        (Path(str(package.__file__)).parent, left_out)
        for package, left_out in NOT_OF_RESULTS.items()
    )
    return digest(parts)


def digest(parts: Iterable[tuple[Path, Sequence[str]]]) -> str:
    """Hash the Python files of folders, but for the files and folders named beside each."""
    found = hashlib.sha256()
    for folder, left_out in parts:
        for file in sorted(folder.rglob("*.py")):
            name = file.relative_to(folder)
            if not any(name.is_relative_to(other) for other in left_out):
                found.update(name.as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:12]


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
    """Fit something small: what a first call loads is in no method's clock."""
    METHODS["ours"](draw({"n": 20, "d": 10, "k": 1, "reads": 100}, 0)[0], 1, 0, max_epochs=1)
