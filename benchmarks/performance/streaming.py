"""A table on disk against the same in memory: `python -m benchmarks.performance.streaming`.

Fits alternate; each has the same epochs, of which the first is left out.
"""

from benchmarks.core.common import arguments, tell
from benchmarks.performance.common import Watched, scratch, write
from benchmarks.performance.tables import write as write_table
from countvae.metrics import subspace_error
from countvae.table import read

SIZES = ((20_000, 10_000, 0.02), (20_000, 2000, 0.1), (10_000, 5000, 0.25))
K, EPOCHS = 16, 6


if __name__ == "__main__":
    rows, repeats = [], arguments(__doc__ or "", 3).seeds
    with scratch() as folder:
        for n, d, nonzero in SIZES:
            path = folder / "table.h5ad"
            write_table(path, n, d, 16, nonzero, 0)
            table = read(path)
            for repeat in range(repeats):
                held = Watched(table, K, max_epochs=EPOCHS)
                streamed = Watched(path, K, max_epochs=EPOCHS)
                other = Watched(table, K, max_epochs=EPOCHS, random_state=1)
                V, V_streamed, V_other = (
                    fit.model.components_.T for fit in (held, streamed, other)
                )
                rows.append(
                    {
                        "n": n,
                        "d": d,
                        "nonzero": nonzero,
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
