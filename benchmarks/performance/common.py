"""What the measurements share."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch


def machine() -> str:
    """Processor, threads and versions, in a line."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
        name = names[0] if names else name
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, numba {version('numba')}"
    )


def show(row: Mapping[str, object]) -> None:
    """Print a row of a table."""
    cells = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
    print("  ".join(cells), flush=True)
