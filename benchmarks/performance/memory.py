"""Peak memory of fits of tables on disk: `python -m benchmarks.performance.memory`.

Each fit runs in a process of its own; the peak is resident memory above that after the imports,
the estimate is what the fit itself expects.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.core.common import ROOT, tell
from benchmarks.performance.common import Watched, scratch, write
from benchmarks.performance.tables import write as write_table
from countvae import MultinomialVAE
from countvae.stream import CountFile

SIZES = ((2000, 5000, 0.1), (20_000, 20_000, 0.02), (100_000, 50_000, 0.01))
K, EPOCHS, ENCODED = 32, 2, 500


def peak_mb() -> float:
    """Largest resident memory of this process until now; `ru_maxrss` begins at the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("memory: this system does not tell a process's peak.")


def measure(path: Path) -> dict[str, float]:
    """Fit a table, encode some of its samples."""
    after_import = peak_mb()
    fit = Watched(path, K, max_epochs=EPOCHS)
    of_fit = peak_mb() - after_import
    fit.model.transform(CountFile(path).select_samples(range(ENCODED)))
    return {
        "peak_mb": of_fit,
        "peak_with_encoding_mb": peak_mb() - after_import,
        "estimate_mb": MultinomialVAE(K).estimate_memory(CountFile(path)) / 2**20,
        "import_mb": after_import,
        "epoch_s": fit.epoch,
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
        raise SystemExit
    rows = []
    with scratch() as folder:
        for n, d, nonzero in SIZES:
            path = folder / "table.h5ad"
            write_table(path, n, d, 16, nonzero, 0)
            command = [sys.executable, "-m", "benchmarks.performance.memory", str(path)]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                {"n": n, "d": d, "nonzero": nonzero, "file_mb": path.stat().st_size / 2**20}
            )
            rows[-1] |= found
            tell(rows[-1])
    write("memory", rows)
