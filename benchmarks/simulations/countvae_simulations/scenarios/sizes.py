"""Samples, features, factors, reads and sparsity, one at a time around a middle."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.cell import Cell
from countvae_simulations.scenarios.base import Scenario, named, plain_log

MEASURES = ("table", "covariance", "loadings", "gap", "noise_and_centre", "held_out_bound")
MIDDLE = {"n": 1000, "d": 500, "k": 8, "reads": 2000, "centre_sd": 2.0}
STEPS = {
    "n": (100, 300, 1000, 3000, 10_000),
    "d": (50, 150, 500, 1500, 5000),
    "k": (2, 4, 8, 16, 32),
    "reads": (50, 200, 700, 2000, 20_000),
    "centre_sd": (0.5, 1.0, 2.0, 3.0, 4.0),
}
TABLE = [f"table.{name}" for name in STEPS]
LABELS = {"reads": "reads a sample", "centre_sd": "sd of the centre (sparser to the right)"}
LITTLE = 0.1
METHODS = (
    ("ours", {}),
    ("log_ppca", {}),
    ("log_ppca", {"pseudocount": LITTLE}),
    ("oracle", {}),
)
NAMES = {
    "ours": "ours",
    "log_ppca": "PPCA of log(x+1)",
    f"log_ppca, pseudocount={LITTLE}": f"PPCA of log(x+{LITTLE})",
    "oracle": "PPCA of the true log-ratios",
}
COLOURS = dict(zip(NAMES, ("#08519c", "#bbbbbb", "#888888", "#444444"), strict=True))


def cells(full: bool) -> list[Cell]:
    """Five values of each, or the middle three."""
    tables: list[dict[str, Any]] = []
    for name, values in STEPS.items():
        for value in values if full else values[1:4]:
            tables += [table for table in [MIDDLE | {name: value}] if table not in tables]
    return [
        Cell(table, method, table["k"], seed, settings, MEASURES)
        for table in tables
        for seed in range(3 if full else 1)
        for method, settings in METHODS
    ]


def conclude(rows: pd.DataFrame) -> list[str]:
    """Error of the subspace at the ends of each range, beside PCA's and the oracle's."""
    rows = rows.assign(label=named(rows))
    subspace = rows.pivot_table("subspace_common", TABLE, "label", aggfunc="median")
    subspace = subspace.reindex(columns=NAMES)
    others = subspace.loc[:, [label for label in NAMES if label.startswith("log_ppca")]]
    said = [
        f"{_ahead('PCA of log(x+1)', others['log_ppca'] / subspace['ours'])} "
        + _ahead(f"the better of it and PPCA of log(x+{LITTLE})", others.min(1) / subspace["ours"])
    ]
    for name in STEPS:
        some = along(rows, name)
        median = some.groupby([f"table.{name}", "label"])["subspace_common"].median().unstack()
        median = median.reindex(columns=NAMES).dropna(subset=["ours", "log_ppca", "oracle"])
        if median.empty:
            continue
        low, high = median.iloc[0], median.iloc[-1]
        filled = some.groupby(f"table.{name}")["nonzero"].median()
        said.append(
            f"From {name} = {median.index[0]:,} to {median.index[-1]:,} "
            f"({100 * filled.iloc[0]:.3g} to {100 * filled.iloc[-1]:.3g} % of the entries "
            "non-zero) the share of the factor space that is missed (common features) goes from "
            f"{low['ours']:.3g} to {high['ours']:.3g}; for PPCA of log(x+1) from "
            f"{low['log_ppca']:.3g} to {high['log_ppca']:.3g}, given the true log-ratios from "
            f"{low['oracle']:.3g} to {high['oracle']:.3g}."
        )
        if name == "n":
            gaps = some[some["method"] == "ours"].groupby("table.n")[["gap_0", "held_gap_0"]]
            few, many = gaps.median().iloc[0], gaps.median().iloc[-1]
            said.append(
                f"Over the same n the encoder's gap in sample goes from {few['gap_0']:.3g} to "
                f"{many['gap_0']:.3g} nats, held out from {few['held_gap_0']:.3g} to "
                f"{many['held_gap_0']:.3g}."
            )
    return said


def _ahead(whom: str, times: pd.Series) -> str:
    """Say on how many tables we are ahead, and how far; tables without both are left out."""
    times = times.dropna()
    ahead = times[times > 1]
    if ahead.empty:
        return f"On none of {len(times)} tables we miss less of the factor space than {whom}."
    return (
        f"On {len(ahead)} of {len(times)} tables we miss less of the factor space than {whom}: "
        f"{ahead.min():.3g} to {ahead.max():.3g} times what we miss is missed there."
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Subspace error, a panel a dimension."""
    rows = rows.assign(label=named(rows))
    figure = Figure(figsize=(3.2 * len(STEPS), 3.5), layout="constrained")
    axes = figure.subplots(1, len(STEPS), sharey=True)
    for ax, name in zip(axes, STEPS, strict=True):
        for label, part in along(rows, name).groupby("label"):
            grouped = part.groupby(f"table.{name}")["subspace_common"]
            low, middle, high = grouped.min(), grouped.median(), grouped.max()
            colour = COLOURS[str(label)]
            ax.plot(middle, "o-", ms=4, color=colour, label=NAMES[str(label)])
            ax.fill_between(low.index, low, high, color=colour, alpha=0.2, lw=0)
        ax.set(xscale="log", yscale="log", xlabel=LABELS.get(name, name))
        plain_log(ax.xaxis)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of the factor space missed")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(NAMES), frameon=False)
    return figure


def along(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The tables that differ from the middle in one dimension at most."""
    same = [rows[f"table.{other}"] == MIDDLE[other] for other in STEPS if other != name]
    return rows[np.logical_and.reduce(same)]


SCENARIO = Scenario(
    "sizes",
    "How do samples, features, factors and reads bear on the error?",
    cells,
    (*TABLE, "method", "settings.pseudocount"),
    (
        "nonzero",
        "subspace_common",
        "covariance_common",
        "axis",
        "sigma2_ratio",
        "gap_0",
        "held_gap_0",
        "held_gap_2",
        "bound_a_read",
        "yardstick_a_read",
        "oracle_a_read",
    ),
    conclude,
    draw,
    "Points are medians over seeds, shades their range.",
    on_page=lambda rows: rows[rows["method"] == "ours"],
)
