"""What the scripts share: settings, fits with a clock, the peer, results with their origin."""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from countvae_simulations.cell import processor
from countvae_simulations.methods import peer

from countvae import MultinomialVAE
from countvae.table import CountTable
from countvae.table import write as write_table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DATA = Path(os.environ.get("COUNTVAE_DATA", ROOT.parent / "shared" / "data"))


def arguments(description: str, seeds: int) -> argparse.Namespace:
    """Read --seeds, the number of seeds."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=seeds, help=f"how many (default {seeds})")
    return parser.parse_args()


def fitted(model: MultinomialVAE, X: Any) -> tuple[MultinomialVAE, float]:
    """Fit, start included, and say how many seconds it took."""
    begun = time.perf_counter()
    model.fit(X)
    return model, time.perf_counter() - begun


def loadings(model: MultinomialVAE) -> np.ndarray:
    """Loadings of a fitted model in CLR space, V = Psi W, (d, k)."""
    return model.clr_loadings_


def plnpca(counts: sp.csr_array, rank: int) -> dict[str, Any] | None:
    """Fit PlnPCA in the peers' environment: loadings, centre, seconds, converged.

    None where that environment is missing.
    """
    if not peer.python().exists():
        return None
    found = peer.call("plnpca", rank, 0, counts=counts.toarray())
    return {name: value[()] for name, value in found.items()}


def say_if_peers_are_missing() -> None:
    if not peer.python().exists():
        print("PlnPCA is left out: there is no peers' environment (`make bench-peers`).")


def fitted_by_command(table: CountTable, *options: str) -> tuple[MultinomialVAE, float, float]:
    """`countvae fit` of a table: the model, seconds from start to end, and peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "table.h5ad", Path(folder) / "model"
        write_table(table, given)
        command = [sys.executable, "-m", "countvae", "fit", str(given), "-o", str(found)]
        begun = time.perf_counter()
        process = subprocess.Popen([*command, "--quiet", *options], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        if status:
            raise SystemExit(f"countvae fit ended with {os.waitstatus_to_exitcode(status)}.")
        return MultinomialVAE.load(found), seconds, usage.ru_maxrss / 1024


def spread(values: Sequence[float]) -> str:
    """Return min / median / max, or the one there is."""
    values = np.asarray(values, dtype=float)
    if np.isnan(values).all():
        return "-"
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return " / ".join(f"{v:.4g}" for v in np.nanquantile(values, [0, 0.5, 1]))


def tell(row: Mapping[str, Any]) -> None:
    """Print one run on one line."""
    said = (f"{name} {v:.5g}" if isinstance(v, float) else f"{name} {v}" for name, v in row.items())
    print("  ".join(said), flush=True)


def show(rows: pd.DataFrame, by: list[str], columns: list[str]) -> None:
    """Print min / median / max of the columns over the runs of each group."""
    table = rows.groupby(by, sort=False, dropna=False)[columns].agg(spread)
    print("\nmin / median / max over runs")
    with pd.option_context("display.width", 250, "display.max_columns", 30):
        print(table.to_string())


def verdict(claim: str, values: Sequence[float], most: float) -> None:
    """Say how many values lie within a bar, and the worst of them."""
    values = np.asarray(values, dtype=float)
    good = int((values <= most).sum())
    print(f"{claim} <= {most}: {good} of {len(values)}, worst {np.max(values):.4g}")


def write(name: str, rows: pd.DataFrame, folder: Path = HERE) -> None:
    """Write results/NAME.csv below comment lines that say where the figures come from."""
    path = folder / "results" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as out:
        out.writelines(f"# {line}\n" for line in origin())
        rows.to_csv(out, index=False, float_format="%.6g")
    print(f"\nwrote {path.relative_to(ROOT)}")


def origin_of(path: Path) -> list[str]:
    """Return the lines by which a result says where it comes from."""
    return [line[2:].strip() for line in path.read_text().splitlines() if line.startswith("#")]


def markdown(frame: pd.DataFrame) -> str:
    """Return the table in Markdown, its cells as they are."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * frame.shape[1]]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.to_numpy()]
    return "\n".join(lines)


def origin() -> list[str]:
    """Versions, the machine without its name, the command and the day."""
    program = Path(sys.argv[0])
    packages = ("countvae", "torch", "numpy", "scipy", "scikit-learn", "scikit-bio")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return [
        " ".join([f"python -m benchmarks.{program.parent.name}.{program.stem}", *sys.argv[1:]]),
        f"Python {platform.python_version()}, {versions}, commit {_commit()}",
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{platform.system()} {platform.machine()}{gpu}, {date.today()}",
    ]


def _commit() -> str:
    def told(*command: str) -> str:
        git = ["git", "-C", str(ROOT), *command]
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()

    # results that other scripts have just written change no figure
    changed = told("diff", "HEAD", "--name-only", "--", ".", ":!benchmarks/*/results/*")
    return (told("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")
