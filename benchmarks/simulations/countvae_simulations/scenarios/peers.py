"""Other methods on the same table, with their times."""

import itertools

import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.runner import Cell
from countvae_simulations.scenarios.base import Scenario, named

MEASURES = ("covariance", "loadings", "noise_and_centre", "log_ratio_variances", "held_out_bound")
METHODS = (
    ("ours", {}),
    ("peer", {"name": "plnpca"}),
    ("peer", {"name": "linear_scvi"}),
    ("peer", {"name": "rpca"}),
    ("published", {"encoder_depth": 1}),
    ("published", {"encoder_depth": 3}),
    ("log_pca", {}),
    ("log_ppca", {}),
    ("factor_analysis", {}),
    ("oracle", {}),
)


def cells(full: bool) -> list[Cell]:
    """Wide tables of 1,000 features at three depths, every method."""
    reads = (500, 1000, 5000, 10_000) if full else (5000,)
    seeds = range(5 if full else 1)
    grid = []
    for N, seed in itertools.product(reads, seeds):
        table = {"n": 2000, "d": 1000, "k": 16, "reads": N}
        grid += [Cell(table, method, 16, seed, given, MEASURES) for method, given in METHODS]
    return grid


def conclude(rows: pd.DataFrame) -> list[str]:
    """Ratios of error and time to the best peer; where a peer wins, that comes first."""
    rows = rows.assign(label=named(rows))
    wins, losses = [], []
    for N, some in rows.groupby("table.reads"):
        median = some.groupby("label")[["VV_common", "seconds"]].median()
        rivals = median.drop(index=["ours", "oracle"], errors="ignore")
        best = rivals["VV_common"].idxmin()
        error = median.loc["ours", "VV_common"] / rivals.loc[best, "VV_common"]
        seconds = median.loc["ours", "seconds"] / rivals.loc[best, "seconds"]
        (wins if error < 1 else losses).append(
            f"At {N:,} reads our error of VV' on common features is {error:.3g} times that of the "
            f"best other method, {best}, in {seconds:.3g} times its time; the goal is half the "
            "error in a third of the time."
        )
    return losses + wins


def draw(rows: pd.DataFrame) -> Figure:
    """Error against seconds, a panel a depth."""
    rows = rows.assign(label=named(rows))
    reads = sorted(rows["table.reads"].unique())
    figure = Figure(figsize=(max(5, 3.6 * len(reads)), 4), layout="constrained")
    axes = figure.subplots(1, len(reads), sharey=True, squeeze=False)[0]
    for ax, N in zip(axes, reads, strict=True):
        median = rows[rows["table.reads"] == N].groupby("label")[["seconds", "VV_common"]].median()
        for label, (seconds, error) in median.iterrows():
            ax.plot(seconds, error, "o", color="#08519c" if label == "ours" else "#888888")
            ax.annotate(
                str(label), (seconds, error), (5, 3), textcoords="offset points", fontsize=8
            )
        ax.set(xscale="log", yscale="log", xlabel="seconds", title=f"{N:,} reads")
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.25)
    axes[0].set_ylabel("error of VV', common features")
    return figure


SCENARIO = Scenario(
    "peers",
    "How do others do on the same table, and in what time?",
    cells,
    ("table.reads", "method", "settings.name", "settings.encoder_depth"),
    (
        "VV_common",
        "covariance_common",
        "subspace_common",
        "sigma2_ratio",
        "log_ratio_variances",
        "bound_a_read",
        "plug_in_a_read",
        "oracle_a_read",
        "seconds",
        "peak_mb",
    ),
    conclude,
    draw,
    timed=True,
)
