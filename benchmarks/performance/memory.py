"""Peak memory of `countvae fit --stream`: `python -m benchmarks.performance.memory`.

Each command runs in a process of its own, checkpoint, coordinates of all samples and files written
included; the peak is resident memory above that after the imports, the estimate is what it says.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.core.common import ROOT, tell
from benchmarks.performance.common import scratch, write
from benchmarks.performance.tables import write as write_table
from countvae import MultinomialVAE, cli
from countvae.stream import CountFile

SIZES = ((2000, 5000, 0.1), (20_000, 20_000, 0.02), (100_000, 50_000, 0.01))
K, EPOCHS = 32, 2


def peak_mb() -> float:
    """Largest resident memory of this process until now; `ru_maxrss` begins at the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("memory: this system does not tell a process's peak.")


def measure(path: Path) -> dict[str, float]:
    """Fit a table as a user would."""
    after_import, out = peak_mb(), path.with_name("model")
    fit = ["fit", path, "-o", out, "-k", K, "--max-epochs", EPOCHS, "--stream", "--quiet"]
    cli.main([*map(str, fit)], standalone_mode=False)
    peak = peak_mb() - after_import
    model = MultinomialVAE(K, checkpoint=path.with_name("none"))
    return {
        "peak_mb": peak,
        "estimate_mb": model.estimate_memory(CountFile(path)) / 2**20,
        "import_mb": after_import,
        "fit_s": json.loads((out / "run.json").read_text(encoding="utf-8"))["seconds"]["fit"],
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
        raise SystemExit
    rows = []
    for n, d, nonzero in SIZES:
        with scratch() as folder:
            path = folder / "table.h5ad"
            write_table(path, n, d, 16, nonzero, 0)
            command = [sys.executable, "-m", "benchmarks.performance.memory", str(path)]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            file_mb = path.stat().st_size / 2**20
        rows.append({"n": n, "d": d, "nonzero": nonzero, "file_mb": file_mb} | found)
        tell(rows[-1])
    write("memory", rows)
