"""A table on disk against the same in memory: `python -m benchmarks.performance.streaming`.

Fits alternate; each has the same epochs, of which the first is left out. The system is asked to
drop the file from memory before it is streamed. In one case a fifth of the samples is held out, so
that the rest lie scattered in the file; in the last the file is compressed, as many are.
"""

import os
from pathlib import Path

from benchmarks.core.common import arguments, tell
from benchmarks.performance.common import Watched, scratch, write
from benchmarks.performance.tables import write as write_table
from countvae.metrics import subspace_error
from countvae.table import read

SIZES = (
    (20_000, 10_000, 0.02, 0.0, None),
    (20_000, 2000, 0.1, 0.0, None),
    (10_000, 5000, 0.25, 0.0, None),
    (20_000, 10_000, 0.02, 0.2, None),
    (20_000, 10_000, 0.02, 0.0, "gzip"),
)
K, EPOCHS = 16, 6


def drop_from_memory(path: Path) -> None:
    """Ask the system to read a file from the disk the next time."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    rows, repeats = [], arguments(__doc__ or "", 3).seeds
    with scratch() as folder:
        for n, d, nonzero, held_out, compression in SIZES:
            path = folder / "table.h5ad"
            write_table(path, n, d, 16, nonzero, 0, compression)
            table = read(path)
            for repeat in range(repeats):
                settings = {"max_epochs": EPOCHS, "validation_fraction": held_out}
                held = Watched(table, K, **settings)
                drop_from_memory(path)
                streamed = Watched(path, K, **settings)
                other = Watched(table, K, **settings, random_state=1)
                V, V_streamed, V_other = (
                    fit.model.components_.T for fit in (held, streamed, other)
                )
                rows.append(
                    {
                        "n": n,
                        "d": d,
                        "nonzero": nonzero,
                        "held_out": held_out,
                        "compression": compression or "none",
                        "repeat": repeat,
                        "in_memory_s": held.epoch,
                        "streamed_s": streamed.epoch,
                        "waited_s": streamed.wait,
                        "ratio": streamed.epoch / held.epoch,
                        "bound_difference": streamed.bound[-1] - held.bound[-1],
                        "subspace_between": subspace_error(V, V_streamed),
                        "subspace_between_seeds": subspace_error(V, V_other),
                    }
                )
                tell(rows[-1])
    write("streaming", rows)
