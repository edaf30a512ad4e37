"""Write docs/performance.md from the tables in benchmarks/performance/results."""
# ruff: noqa: E501

import numpy as np
import pandas as pd

from benchmarks.core.common import ROOT, markdown, origin_of, spread
from benchmarks.performance.common import HERE
from benchmarks.performance.convergence import NATS
from benchmarks.performance.growth import exponent
from benchmarks.performance.step import BATCH, PRODUCTS


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


def convergence(rows: pd.DataFrame) -> str:
    """One table at the size of a large study."""
    close = rows[rows["short_nats"] <= NATS].groupby("seed")["fit_s"].min()
    medians = rows.drop(columns=["seed", "nonzero"]).groupby("epochs").median().reset_index()
    return f"""10,000 × 5,000, k = 32, {rows["nonzero"].mean():.0%} of the counts not zero, seeds: {rows["seed"].nunique()}. Seconds an epoch:
{spread(rows["epoch_s"])} (goal 1.5). The quickest whole fit, its start included, whose answers have a bound within a nat a
sample of that after {rows["epochs"].max()} epochs takes {spread(close)} s (goal 15). Medians by the number of epochs; 9 is the default here:

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
        plnpca = some[some["method"] == "PlnPCA"]
        told, default, by = [], [], set()
        for _, peer in plnpca.iterrows():
            mine = some[some["method"].str.startswith("countvae") & (some["seed"] == peer["seed"])]
            mine = mine[mine["VV"] <= peer["VV"]]
            told.append(peer["seconds"] / mine["seconds"].min() if len(mine) else np.nan)
            by |= set(mine.nsmallest(1, "seconds")["method"])
            whole = mine[mine["method"] == "countvae"]["seconds"]
            default += (peer["seconds"] / whole).tolist()
        reached = np.isfinite(told).sum()
        sentence = (
            f"To PlnPCA's own final covariance error we take {spread(told)} times less time (goal 10; "
            f"reached in {reached} of {len(told)} tables), by the shortest fit that is there ({', '.join(sorted(by))}); by the default fit, whose "
            f"error is far lower, {spread(default)} times less."
            if told
            else "PlnPCA was not run."
        )
        parts.append(
            f"{n:,} × {d:,}, k = {k}, 5,000 reads, seeds: {some['seed'].nunique()} (medians). {sentence} {to_a_bound(some)}\n\n{table(medians.reset_index())}"
        )
    return "\n\n".join(parts)


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
    return f"The rest as in 4,000 × 4,000, k = 32, 5 % not zero. An exponent of 1 is linear; the goal is at most 1.1.\n\n{table(frame)}"


def streaming(rows: pd.DataFrame) -> str:
    """Disk against memory."""
    columns = [
        "n",
        "d",
        "nonzero",
        "held_out",
        "in_memory_s",
        "streamed_s",
        "waited_s",
        "ratio",
        "bound_difference",
        "subspace_between",
        "subspace_between_seeds",
    ]
    return (
        "Seconds an epoch of fits of one table in memory and on disk (goal: a ratio of at most 1.3), those among them in which the next rows were not there yet, "
        "and how far the results are apart: nats a sample, and the share of the factor space, beside that between two fits in memory from different seeds; the factors of these tables are faint.\n\n"
        + table(rows.groupby(columns[:4], sort=False)[columns[4:]].median().reset_index())
    )


def processes(rows: pd.DataFrame) -> str:
    """Two processes against one."""
    medians = rows.drop(columns="repeat").groupby("batch").median().reset_index()
    return (
        "10,000 × 5,000, a quarter of the counts not zero, k = 32, on disk; every process bound to one core. Seconds an epoch, and how many times the work of one "
        "process two do (goal 1.6); how far their bounds are apart in nats a sample, and their factor spaces.\n\n"
        + table(medians)
    )


def memory(rows: pd.DataFrame) -> str:
    """Peaks and estimates."""
    return (
        "Peak resident memory above that after the imports, k = 32, the table on disk (goal: at most 1,500 MB for the largest), and what the fit expected.\n\n"
        + table(rows)
    )


def step(rows: pd.DataFrame) -> str:
    """One step against the floor."""
    return (
        f"The floor is six matrix products of B × d by k and eight exponentials of B × d entries at the rates of the machine, measured just before, for B = {BATCH} or as said "
        "(goal: at most 3 times that at d = 10,000, k = 50).\n\n" + table(rows)
    )


def accelerator(rows: pd.DataFrame) -> str:
    """Fits on a GPU."""
    columns = ["n", "d", "k", "device", "products", "batch", "epochs"]
    found = rows.groupby(columns, sort=False)[
        list(rows.columns.difference([*columns, "seed", "fit_seed"], sort=False))
    ]
    return (
        "One table on the processor, from two seeds, and on the GPU, with products in full precision and in its reduced one, and a large table there alone (medians). The bound is that of "
        "`score`, in nats a sample; it and the factor space beside those of the processor's first fit.\n\n"
        + table(found.median().reset_index())
    )


MILLION = {"n": 1_000_000, "d": 30_000, "k": 50, "nonzero": 0.05, "batch": 4096, "epochs": 9}
"""The fit that is projected."""

ASSUMED = {"copy_gb_s": 1500.0, "tflops": 20.0, "exchange_gb_s": 50.0, "share": 0.5}
"""Of one GPU, none of them measured: what it copies and multiplies, what the GPUs exchange, and the
share of these rates that the program reaches."""

PROJECTED_GPUS = (1, 8, 64)


def projection(rows: pd.DataFrame) -> str:
    """A million samples by what a step was measured to consist of."""
    n, d, k, B = (MILLION[name] for name in ("n", "d", "k", "batch"))
    some = rows[rows["k"] == k].sort_values("d")
    products_ms = PRODUCTS * 2e-6 * BATCH * some["d"] * k / some["gflops"]
    copy_ms = 8e-6 * BATCH * some["d"] / some["copy_gb_s"]
    copies = float(np.interp(d, some["d"], (some["step_ms"] - products_ms) / copy_ms))
    step_ms = float(np.interp(d, some["d"], some["step_ms"]))
    lines = [["2 cores, measured step", n / BATCH * step_ms / 1e3, np.nan]]
    for gpus in PROJECTED_GPUS:
        each = B / gpus
        products = PRODUCTS * 2 * each * d * k / (ASSUMED["tflops"] * 1e12)
        passes = copies * 8 * each * d / (ASSUMED["copy_gb_s"] * 1e9)
        gradients = 4 * d * (2 * k + 128)
        sent = 2 * (gpus - 1) / gpus * gradients / (ASSUMED["exchange_gb_s"] * 1e9)
        step = (products + passes + sent) / ASSUMED["share"]
        lines.append([f"{gpus} GPU{'s' * (gpus > 1)}, assumed rates", n / B * step, 1e3 * step])
    frame = pd.DataFrame(lines, columns=["where", "seconds an epoch", "ms a step"])
    frame["minutes, 9 epochs"] = MILLION["epochs"] * frame["seconds an epoch"] / 60
    gib = 12 * n * d * MILLION["nonzero"] / 2**30
    return f"""A projection, not a measurement: {n:,} × {d:,}, {MILLION["nonzero"]:.0%} not zero, k = {k}. A step on this machine, measured above, is its {PRODUCTS} matrix
products and, for all the rest, as much time as {copies:.0f} copies of a batch take (interpolated in d). A GPU is *assumed* to copy {ASSUMED["copy_gb_s"]:,.0f} GB/s, to multiply {ASSUMED["tflops"]:.0f} TFLOP/s
in single precision and to exchange {ASSUMED["exchange_gb_s"]:.0f} GB/s with others, and the program to reach {ASSUMED["share"]:.0%} of that; none of it has been measured, as no GPU was at hand. Batches of
{B:,} over all GPUs ({BATCH} on the cores); each step then sums {4 * d * (2 * k + 128) / 2**20:.0f} MB of gradients over all. The table takes {gib:.0f} GiB of the GPUs' memory together.

{table(frame)}"""


PARTS = (
    ("peers", "Beside other methods", peers),
    ("convergence", "An epoch, and a whole fit", convergence),
    ("growth", "How time grows", growth),
    ("streaming", "From disk", streaming),
    ("processes", "Two processes", processes),
    ("memory", "Memory", memory),
    ("step", "A step against the machine", step),
    ("step_cuda", "A step on a GPU", step),
    ("accelerator", "Fits on a GPU", accelerator),
    ("step", "A million samples", projection),
)


def page() -> str:
    """Put together what has been measured."""
    no_gpu = (
        ""
        if (HERE / "results" / "accelerator.csv").exists()
        else " No figure here is from a GPU: none was at hand."
    )
    parts = [
        "# Performance",
        "Written by `python -m benchmarks.performance.page` from tables that `make bench-performance` makes; each part says by which "
        f"command, on which machine and of which commit. Ranges are least / median / largest.{no_gpu}",
    ]
    for name, title, tell in PARTS:
        path = HERE / "results" / f"{name}.csv"
        if path.exists():
            rows = pd.read_csv(path, comment="#")
            parts += [f"## {title}", tell(rows), "```text\n" + "\n".join(origin_of(path)) + "\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "performance.md").write_text(page())
