"""Other methods on the same table, with their times."""

import itertools
from typing import Any

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
    ("peer", {"name": "glm_pca"}),
    ("published", {"encoder_depth": 1}),
    ("published", {"encoder_depth": 3}),
    ("log_pca", {}),
    ("log_ppca", {}),
    ("factor_analysis", {}),
    ("oracle", {}),
)


GOAL = (1 / 2, 1 / 3)
COLOURS = {"ours": "#08519c", "oracle": "#333333"}
SHORT = {
    "linear_scvi": "LinearSCVI",
    "plnpca": "PlnPCA",
    "rpca": "RPCA",
    "glm_pca": "GLM-PCA",
    "log_pca": "PCA",
    "log_ppca": "PPCA",
    "factor_analysis": "FA",
    "published, encoder_depth=1": "published, L = 1",
    "published, encoder_depth=3": "published, L = 3",
}


def cells(full: bool) -> list[Cell]:
    """Wide tables of 1,000 features and more at several depths, every method."""
    sizes = ((1000, 1000), (1000, 2000)) if full else ((1000, 1000),)
    reads = (1000, 5000, 10_000) if full else (1000, 10_000)
    grid = []
    for (n, d), N, seed in itertools.product(sizes, reads, range(3 if full else 1)):
        table = {"n": n, "d": d, "k": 16, "reads": N}
        grid += [Cell(table, method, 16, seed, given, MEASURES) for method, given in METHODS]
    return grid


def conclude(rows: pd.DataFrame) -> list[str]:
    """Ratios of error and time to the best peer; where a peer wins, that comes first."""
    wins, losses, ratios = [], [], []
    for (n, d, N), some in _tables(rows):
        median = some.groupby("label")[["VV_common", "VV", "seconds"]].median()
        rivals = median.drop(index=["ours", "oracle"])
        best, rank = rivals["VV_common"].idxmin(), rivals["VV"].idxmin()
        error = median.loc["ours", "VV_common"] / rivals.loc[best, "VV_common"]
        over_all = median.loc["ours", "VV"] / rivals.loc[rank, "VV"]
        seconds = median.loc["ours", "seconds"] / rivals.loc[best, "seconds"]
        floor = median.loc["oracle", "VV_common"] / rivals.loc[best, "VV_common"]
        ratios.append((error, seconds))
        faster = (rivals["seconds"] < median.loc["ours", "seconds"]).sum()
        goal = "met" if error < GOAL[0] and seconds < GOAL[1] else "not met"
        (wins if error < 1 else losses).append(
            f"{n:,} x {d:,}, {N:,} reads: our error of VVᵀ on common features is {error:.3g} times "
            f"that of the best other method, {best}, in {seconds:.3g} times its time (goal: half "
            f"the error in a third of the time, {goal}); probabilistic PCA of the true log-ratios, "
            f"which no method sees, would have {floor:.3g} times its error. Over all features "
            f"{over_all:.3g} times the error of the best, {rank}. Other methods faster than ours: "
            f"{faster} of {len(rivals)}."
        )
    (low, high), (quick, slow) = (sorted((min(r), max(r))) for r in zip(*ratios, strict=True))
    first = "" if not losses else f"On {len(losses)} of {len(ratios)} tables another method wins. "
    return [
        f"{first}Our error is {low:.2g} to {high:.2g} times that of the best other method, in "
        f"{quick:.2g} to {slow:.2g} times its time.",
        *losses,
        *wins,
    ]


def _tables(rows: pd.DataFrame) -> Any:
    return rows.assign(label=named(rows)).groupby(["table.n", "table.d", "table.reads"], sort=False)


def draw(rows: pd.DataFrame) -> Figure:
    """Error against seconds, a panel a table."""
    tables = list(_tables(rows))
    columns = min(3, len(tables))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for ax, ((n, d, N), some) in zip(axes.flat, tables, strict=False):
        for label, one in some.groupby("label", sort=False):
            seconds, error = one["seconds"].median(), one["VV_common"].median()
            ax.plot(seconds, error, "o", color=COLOURS.get(label, "#999999"))
            place = {"textcoords": "offset points", "fontsize": 7.5}
            ax.annotate(SHORT.get(label, label), (seconds, error), (4, 4), **place)
        ax.set(xscale="log", yscale="log", title=f"{n:,} x {d:,}, {N:,} reads")
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("seconds")
    for ax in axes[:, 0]:
        ax.set_ylabel("error of VVᵀ, common features")
    return figure


SCENARIO = Scenario(
    "peers",
    "How do others do on the same table, and in what time?",
    cells,
    (
        "table.n",
        "table.d",
        "table.reads",
        "method",
        "settings.name",
        "settings.encoder_depth",
    ),
    (
        "VV_common",
        "VV",
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
    page_measures=("VV_common", "VV", "subspace_common", "log_ratio_variances", "seconds"),
)
