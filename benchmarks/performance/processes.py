"""Two processes on two cores against one on one: `python -m benchmarks.performance.processes`.

Every process is bound to a core of its own and has one thread. The table stays on disk. Both fits
have the same batches; what is sent after each does not depend on their size.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.core.common import ROOT, arguments, tell
from benchmarks.performance.common import Watched, scratch, write
from benchmarks.performance.tables import write as write_table
from countvae.metrics import subspace_error
from countvae.processes import launched

N, D, NONZERO, K, EPOCHS = 10_000, 5000, 0.25, 32, 6
BATCHES = (128, 512)


def fit_as_one_of_several(table: Path, out: Path, batch_size: int) -> None:
    """Fit in this process, and write what the first process found and how long it took."""
    own = sorted(os.sched_getaffinity(0))[int(os.environ.get("LOCAL_RANK", "0"))]
    os.sched_setaffinity(0, {own})
    with launched(torch.device("cpu")) as processes:
        fit = Watched(table, K, max_epochs=EPOCHS, batch_size=batch_size)
        if processes.rank == 0:
            np.savez(out, epoch=fit.epoch, bound=fit.bound[-1], axes=fit.model.components_)


def fitted(count: int, table: Path, folder: Path, batch: int) -> dict[str, np.ndarray]:
    """Start so many processes, and read what they found."""
    out = folder / f"{count}.npz"
    module = ["-m", "benchmarks.performance.processes", str(table), str(out), str(batch)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *(launcher if count > 1 else []), *module]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with np.load(out) as found:
        return dict(found)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1].endswith(".h5ad"):
        fit_as_one_of_several(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
        raise SystemExit
    rows = []
    with scratch() as folder:
        path = folder / "table.h5ad"
        write_table(path, N, D, 16, NONZERO, 0)
        repeats = range(arguments(__doc__ or "", 3).seeds)
        for batch, repeat in itertools.product(BATCHES, repeats):
            one, two = (fitted(count, path, folder, batch) for count in (1, 2))
            rows.append(
                {
                    "batch": batch,
                    "repeat": repeat,
                    "one_process_s": float(one["epoch"]),
                    "two_processes_s": float(two["epoch"]),
                    "throughput": float(one["epoch"] / two["epoch"]),
                    "bound_difference": float(two["bound"] - one["bound"]),
                    "subspace_between": subspace_error(one["axes"].T, two["axes"].T),
                }
            )
            tell(rows[-1])
    write("processes", rows)
