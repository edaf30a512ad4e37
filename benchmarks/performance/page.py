"""Write docs/performance.md from the tables in benchmarks/performance/results."""
# ruff: noqa: E501

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from benchmarks.core.common import ROOT, markdown, origin_of, spread
from benchmarks.performance.common import HERE
from benchmarks.performance.convergence import NATS
from benchmarks.performance.growth import exponent
from benchmarks.performance.step import BATCH


def said(value: object) -> str:
    """Return a cell of a table; numbers to four digits."""
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return "–"
        return f"{value:.4g}" if abs(value) < 1e3 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def table(frame: pd.DataFrame) -> str:
    """Return a Markdown table."""
    return markdown(pd.DataFrame({name: frame[name].map(said) for name in frame}))


def goal(values: ArrayLike, bar: float, unit: str = "", at_least: bool = False) -> str:
    """Say what was to be reached, and by how many of some figures it was."""
    found = np.atleast_1d(np.asarray(values, dtype=float))
    met = int((found >= bar if at_least else found <= bar).sum())
    how = "met" if met == len(found) else "**missed**"
    of_all = f" by {len(found) - met} of {len(found)}" if met < len(found) > 1 else ""
    return f"goal: at {'least' if at_least else 'most'} {bar:,g}{unit}, {how}{of_all}"


def convergence(rows: pd.DataFrame) -> str:
    """One table at the size of a large study."""
    by_default = rows[rows["epochs"] == 9]["fit_s"]
    quickest = rows.loc[rows[rows["short_nats"] <= NATS].groupby("seed")["fit_s"].idxmin()]
    quickest = quickest.set_index("seed")
    close, both = quickest["fit_s"], quickest["fit_s"] + quickest["answers_s"]
    best = rows.groupby("seed")["encoder_bound"].max()
    of_encoder = (best - quickest["encoder_bound"]).median()
    medians = rows.drop(columns=["seed", "nonzero"]).groupby("epochs").median().reset_index()
    return f"""10,000 × 5,000, k = 32, {rows["nonzero"].mean():.0%} of the counts not zero, seeds: {rows["seed"].nunique()}. Seconds an epoch:
{spread(rows["epoch_s"])} ({goal(rows["epoch_s"], 1.5)}). The quickest whole fit, its start included, whose answers have a bound within a nat a
sample of that after {rows["epochs"].max()} epochs takes {spread(close)} s ({goal(close, 15)}); the default's 9 epochs {spread(by_default)} s ({goal(by_default, 15)}). That bound is after the Newton steps that answers take: of all samples
together they take as long again, fit and answers {spread(both)} s ({goal(both, 15)}), and the encoder alone is then {of_encoder:.0f} nats below its best. Medians by the number of epochs:

{table(medians)}"""


def peers(rows: pd.DataFrame) -> str:
    """Others on the same table."""
    parts = []
    for (n, d, k), some in rows.groupby(["n", "d", "k"]):
        columns = ["seconds", "peak_mb", "VV", "VV_common", "subspace_common", "held_out"]
        medians = some.groupby("method", sort=False)[columns].median()
        ours = medians.loc["countvae"]
        medians.insert(1, "× our time", medians["seconds"] / ours["seconds"])
        medians = medians.rename(
            columns={
                "peak_mb": "peak MB",
                "VV": "error of VVᵀ",
                "VV_common": "common features",
                "subspace_common": "subspace error",
                "held_out": "held-out nats a sample",
            }
        )
        sentences = [
            to_plnpca(some, error, of)
            for error, of in (("VV", "covariance error"), ("VV_common", "error on common features"))
        ]
        at_limit = [
            method
            for method, each in some.groupby("method", sort=False)["converged"]
            if each.eq(False).any()
        ]
        if at_limit:
            sentences.append(f"At its limit of iterations ended: {', '.join(at_limit)}.")
        sentence = " ".join(sentences)
        parts.append(
            f"{n:,} × {d:,}, k = {k}, 5,000 reads, seeds: {some['seed'].nunique()} (medians). {sentence} {to_a_bound(some)}\n\n{table(medians.reset_index())}"
        )
    return "\n\n".join(parts)


def to_plnpca(rows: pd.DataFrame, error: str, of: str) -> str:
    """How soon we are where PlnPCA ends, table by table."""
    told, default, by = [], [], set()
    for _, peer in rows[rows["method"] == "PlnPCA"].iterrows():
        mine = rows[rows["method"].str.startswith("countvae") & (rows["seed"] == peer["seed"])]
        mine = mine[mine[error] <= peer[error]]
        told.append(peer["seconds"] / mine["seconds"].min() if len(mine) else np.nan)
        by |= set(mine.nsmallest(1, "seconds")["method"])
        default += (peer["seconds"] / mine[mine["method"] == "countvae"]["seconds"]).tolist()
    if not told:
        return "PlnPCA was not run."
    return (
        f"To PlnPCA's own final {of} we take {spread(told)} times less time ({goal(told, 10, at_least=True)}; "
        f"reached in {np.isfinite(told).sum()} of {len(told)} tables), by the shortest fit that is there ({', '.join(sorted(by))}); "
        f"by the default fit, whose error is lower, {spread(default)} times less."
    )


def to_a_bound(rows: pd.DataFrame) -> str:
    """How soon we are at the best held-out bound that another method ends at."""
    told, best = [], set()
    for _, some in rows.dropna(subset="held_out").groupby("seed"):
        mine = some["method"].str.startswith("countvae")
        if mine.all():
            continue
        other = some[~mine].nlargest(1, "held_out").iloc[0]
        there = some[mine & (some["held_out"] >= other["held_out"])]
        told.append(other["seconds"] / there["seconds"].min() if len(there) else np.nan)
        best.add(other["method"])
    if not told:
        return ""
    reached = np.isfinite(told).sum()
    return f"The best held-out bound of the others ({', '.join(sorted(best))}) is reached in {reached} of {len(told)} tables, {spread(told)} times sooner."


def growth(rows: pd.DataFrame) -> str:
    """Fitted exponents."""
    lines = []
    for varied, some in rows.groupby("varied", sort=False):
        medians = some.groupby(varied)["epoch_s"].median()
        slope = exponent(some[varied].to_numpy(), some["epoch_s"].to_numpy())
        last = np.diff(np.log(medians.to_numpy()))[-1] / np.diff(np.log(medians.index))[-1]
        sizes = ", ".join(f"{size:g}: {t:.3g}" for size, t in medians.items())
        lines.append([varied, sizes, slope, last])
    frame = pd.DataFrame(
        lines, columns=["varied", "size: seconds an epoch", "exponent", "of the last two"]
    )
    return f"The rest as in 4,000 × 4,000, k = 32, 5 % not zero. An exponent of 1 is linear ({goal(frame['exponent'], 1.1)}; between the last two sizes alone, where what does not grow counts least, {goal(frame['of the last two'], 1.1)}). Above 15 % not zero the encoder's products are dense.\n\n{table(frame)}"


def streaming(rows: pd.DataFrame) -> str:
    """Disk against memory."""
    columns = [
        "n",
        "d",
        "nonzero",
        "held_out",
        "compression",
        "in_memory_s",
        "streamed_s",
        "waited_s",
        "ratio",
        "bound_difference",
        "subspace_between",
        "subspace_between_seeds",
    ]
    return (
        "Seconds an epoch of fits of one table in memory and on disk, their ratio ("
        f"{goal(rows['ratio'], 1.3)}), those among them in which the next rows were not there yet, "
        "and how far the results are apart: nats a sample, and the share of the factor space, beside that between two fits in memory from different seeds; the factors of these tables are faint.\n\n"
        + table(rows.groupby(columns[:5], sort=False)[columns[5:]].median().reset_index())
    )


def processes(rows: pd.DataFrame) -> str:
    """Two processes against one."""
    medians = rows.drop(columns="repeat").groupby("batch").median().reset_index()
    return (
        "10,000 × 5,000, a quarter of the counts not zero, k = 32, on disk; every process bound to one core. Seconds an epoch, and how many times the work of one "
        "process two do; how far their bounds are apart in nats a sample, and their factor spaces. "
        + " ".join(
            f"Batches of {batch}, {goal(some['throughput'], 1.6, at_least=True)}."
            for batch, some in rows.groupby("batch")
        )
        + f" The default is {BATCH}.\n\n"
        + table(medians)
    )


def memory(rows: pd.DataFrame) -> str:
    """Peaks and estimates."""
    return (
        "Peak resident memory of `countvae fit --stream -k 32`, of two epochs, above that after the imports (for the largest "
        f"{goal(rows['peak_mb'].iloc[-1], 1500, ' MB')}), and what the command expected.\n\n"
        + table(rows)
    )


def of_floor(rows: pd.DataFrame, floor: str) -> str:
    """Say what a step was to reach."""
    judged = rows[(rows["d"] == 10_000) & (rows["k"] == 50)]["times_floor"]
    return goal(judged, 3, f" times {floor} at d = 10,000 and k = 50")


def step(rows: pd.DataFrame) -> str:
    """One step against the floor."""
    return (
        f"The floor is six matrix products of B × d by k and eight exponentials of B × d entries at the rates of the machine, measured just before, for B = {BATCH} "
        f"({of_floor(rows, 'that')}).\n\n" + table(rows)
    )


def step_on_gpu(rows: pd.DataFrame) -> str:
    """One step of a GPU, which hardly depends on its size."""
    small = rows[rows["d"] <= 10_000]
    return (
        f"The same on a GPU. Up to d = 10,000 a step takes {small['step_ms'].min():.0f} to {small['step_ms'].max():.0f} ms whatever its size: it is made of many short kernels, whose launching the processor "
        f"is busy with, so larger batches are nearly free ({of_floor(rows, 'the floor')}).\n\n"
        + table(rows)
    )


def accelerator(rows: pd.DataFrame) -> str:
    """Fits on a GPU."""
    columns = ["n", "d", "k", "device", "products", "batch", "random_state", "epochs"]
    rows = rows.assign(random_state=(rows["fit_seed"] - rows["seed"]).map(str)).drop(
        columns="fit_seed"
    )
    found = rows.groupby(columns, sort=False, dropna=False)
    medians = found.median().drop(columns="seed").reset_index()
    cores = rows[rows["device"] == "processor"]["epoch_s"].median()
    return (
        f"One table (seeds: {rows['seed'].nunique()}; medians) on the processor, from two random states, and on the GPU, with products in full precision and in its reduced one, and a large table on the GPU alone. "
        "The bound is that of `score`, in nats a sample; it and the factor space beside those of the processor's first fit. "
        f"An epoch takes {cores:.1f} s on the many cores of this machine, longer than on the two of the one above; why has not been found.\n\n"
        + table(medians)
    )


MILLION = {"n": 1_000_000, "d": 30_000, "k": 50, "nonzero": 0.05, "batch": 4096, "epochs": 9}
"""The fit that is projected."""

EXCHANGE_GB_S = 50.0
"""What GPUs exchange with each other: assumed."""

PROJECTED_GPUS = (1, 8, 64)


def projection(on_gpu: pd.DataFrame) -> str:
    """A million samples by the steps that were measured."""
    n, d, k, B = (MILLION[name] for name in ("n", "d", "k", "batch"))

    def at_d(rows: pd.DataFrame) -> float:
        some = rows[rows["k"] == k].sort_values("d")
        return float(np.interp(d, some["d"], some["step_ms"]))

    here = at_d(pd.read_csv(HERE / "results" / "step.csv", comment="#"))
    lines = [["2 cores, measured step", n / BATCH * here / 1e3, here]]
    measured = {batch: at_d(rows) for batch, rows in on_gpu.groupby("batch")}
    largest = max(measured)
    gradients = 4 * d * (2 * k + 128)
    for gpus in PROJECTED_GPUS:
        each = B / gpus
        parts = max(1.0, each / largest)
        work = parts * float(np.interp(each / parts, list(measured), list(measured.values())))
        sent = 2e3 * (gpus - 1) / gpus * gradients / (EXCHANGE_GB_S * 1e9)
        step = work + sent
        lines.append([f"{gpus} GPU{'s' * (gpus > 1)}, projected", n / B * step / 1e3, step])
    frame = pd.DataFrame(lines, columns=["where", "seconds an epoch", "ms a step"])
    frame["minutes, 9 epochs"] = MILLION["epochs"] * frame["seconds an epoch"] / 60
    gib, in_memory = (b * n * d * MILLION["nonzero"] / 2**30 for b in (12, 16))
    return f"""A projection, not a measurement: {n:,} × {d:,}, {MILLION["nonzero"]:.0%} not zero, k = {k}. Steps are those measured above, interpolated in d and in the batch of each GPU;
a batch above {largest:,} takes as many times longer, one below {min(measured)} no less than that. Batches are of {B:,} over all GPUs ({BATCH} on the cores). *Assumed*: that several GPUs exchange {EXCHANGE_GB_S:.0f} GB/s
with one another, within a machine or between two, {gradients / 2**20:.0f} MiB of gradients a step each way, while none of them works. Each process holds the whole table, {gib:.0f} GiB, in the memory of its GPU,
and {in_memory:.0f} GiB in that of its machine, unless it is streamed. *Left out*: reading and checking the file, the start, and the answers of all samples, which on the table above take as long as the fit.
No fit has been run on more than one GPU.

{table(frame)}"""


PARTS = (
    ("peers", "Beside other methods", peers),
    ("convergence", "An epoch, and a whole fit", convergence),
    ("growth", "How time grows", growth),
    ("streaming", "From disk", streaming),
    ("processes", "Two processes", processes),
    ("memory", "Memory", memory),
    ("step", "A step against the machine", step),
    ("step_cuda", "A step on a GPU", step_on_gpu),
    ("accelerator", "Fits on a GPU", accelerator),
    ("step_cuda", "A million samples", projection),
)


def page() -> str:
    """Put together what has been measured."""
    parts = [
        "# Performance",
        "Written by `python -m benchmarks.performance.page` from tables that `make bench-performance` makes, and those on a GPU the two scripts that are named there; each part says by which "
        "command, on which machine and of which commit. Ranges are least / median / largest.",
    ]
    for name, title, tell in PARTS:
        path = HERE / "results" / f"{name}.csv"
        if path.exists():
            rows = pd.read_csv(path, comment="#")
            parts += [f"## {title}", tell(rows), "```text\n" + "\n".join(origin_of(path)) + "\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "performance.md").write_text(page())
