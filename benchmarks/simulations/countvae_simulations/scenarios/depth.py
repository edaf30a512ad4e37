"""Depth of the encoder against the pseudocount, at several numbers of reads."""

import itertools

import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.runner import Cell
from countvae_simulations.scenarios.base import Scenario

MEASURES = ("covariance", "gap", "factors", "coverage", "noise_and_centre")
BAR = 10
"""Times that the gap is to fall from one layer to three, at 1,000 reads."""


def cells(full: bool) -> list[Cell]:
    """Layers × pseudocount × reads, and PCA at the same pseudocounts."""
    reads = (30, 100, 1000, 10_000, 100_000) if full else (100, 1000, 10_000)
    depths = (1, 2, 3, 4, 5) if full else (1, 2, 3)
    pseudocounts = (0.1, 0.5, 1.0, 2.0) if full else (0.1, 1.0, 2.0)
    seeds = range(10 if full else 3)
    grid = []
    for N, c, seed in itertools.product(reads, pseudocounts, seeds):
        table = {"n": 1000, "d": 200, "k": 10, "reads": N, "design": "flat"}
        for L in depths:
            settings = {"encoder_depth": L, "pseudocount": c}
            grid.append(Cell(table, "ours", 10, seed, settings, MEASURES))
        grid.append(Cell(table, "log_ppca", 10, seed, {"pseudocount": c}, ("covariance",)))
    return grid


def conclude(rows: pd.DataFrame) -> list[str]:
    """How far the gap falls, and how much the pseudocount still matters."""
    ours = rows[rows["method"] == "ours"]
    said = []
    for N, some in ours.groupby("table.reads"):
        gap = some.groupby(["settings.encoder_depth", "settings.pseudocount"])["gap_0"].median()
        ratios = gap.loc[1] / gap.loc[3]
        said.append(
            f"At {N:,} reads the encoder's gap with pseudocount 1 falls from {gap.loc[1, 1.0]:.3g} "
            f"nats a sample at L = 1 to {gap.loc[3, 1.0]:.3g} at L = 3: "
            f"{ratios.loc[1.0]:.3g} times ({ratios.min():.3g} to {ratios.max():.3g} times over the "
            "pseudocounts)." + ("" if N != 1000 else f" The bar is {BAR} times.")
        )
    for N, some in rows.groupby("table.reads"):
        span = {}
        error = some.groupby(
            ["method", "settings.encoder_depth", "settings.pseudocount"], dropna=False
        )
        median = error["covariance"].median()
        for (method, L), errors in median.groupby(level=[0, 1], dropna=False):
            span["PCA" if method == "log_ppca" else f"L = {L:.0f}"] = errors.max() - errors.min()
        text = ", ".join(f"{span[name]:.2g} for {name}" for name in span)
        said.append(f"At {N:,} reads the covariance error differs over the pseudocounts by {text}.")
    return said


def draw(rows: pd.DataFrame) -> Figure:
    """Gap and covariance error against depth, a panel a number of reads."""
    reads = sorted(rows["table.reads"].unique())
    figure = Figure(figsize=(3.2 * len(reads), 6), layout="constrained")
    axes = figure.subplots(2, len(reads), sharex=True, sharey="row", squeeze=False)
    ours = rows[rows["method"] == "ours"]
    pseudocounts = sorted(ours["settings.pseudocount"].unique())
    shades = dict(zip(pseudocounts, ("#9ecae1", "#4292c6", "#08519c", "#08306b"), strict=False))
    for column, N in enumerate(reads):
        here = ours[ours["table.reads"] == N]
        for c, some in here.groupby("settings.pseudocount"):
            for line, measure in enumerate(("gap_0", "covariance")):
                by_depth = some.groupby("settings.encoder_depth")[measure]
                low, middle, high = by_depth.min(), by_depth.median(), by_depth.max()
                ax = axes[line, column]
                ax.plot(middle.index, middle, "o-", color=shades[c], ms=4, label=f"c = {c:g}")
                ax.fill_between(low.index, low, high, color=shades[c], alpha=0.2, lw=0)
        pca = rows[(rows["method"] == "log_ppca") & (rows["table.reads"] == N)]
        for c, some in pca.groupby("settings.pseudocount"):
            axes[1, column].axhline(some["covariance"].median(), color=shades[c], ls=":", lw=1.2)
        axes[0, column].set(yscale="log", title=f"{N:,} reads")
        axes[1, column].set_xlabel("layers of the encoder, L")
        axes[1, column].set_xticks(sorted(here["settings.encoder_depth"].unique()))
    axes[0, 0].set_ylabel("gap of the encoder, nats a sample")
    axes[1, 0].set_ylabel("covariance error (dotted: PCA)")
    axes[0, -1].legend(title="pseudocount", frameon=False, fontsize=8)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


SCENARIO = Scenario(
    "depth",
    "Does a deeper encoder remove the bias that the pseudocount puts in?",
    cells,
    ("table.reads", "settings.pseudocount", "method", "settings.encoder_depth"),
    (
        "gap_0",
        "gap_1",
        "gap_2",
        "held_gap_0",
        "held_gap_2",
        "z_error",
        "z_bias",
        "covariance",
        "coverage_50",
        "coverage_90",
    ),
    conclude,
    draw,
)
