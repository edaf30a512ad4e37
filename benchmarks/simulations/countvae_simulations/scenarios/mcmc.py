"""The same model by MCMC: its error, its time, and the posterior that it finds."""

import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.runner import Cell
from countvae_simulations.scenarios.base import Scenario, named, plain_log

TABLES = (
    {"n": 50, "d": 20, "k": 2, "reads": 500},
    {"n": 100, "d": 50, "k": 3, "reads": 500},
    {"n": 200, "d": 100, "k": 5, "reads": 1000},
)
DRAWS = (50, 200, 800)
LARGE = 20_000
"""Entries of a table from which the longest chains take more memory than most machines have."""

THOUSANDS = 1000
EQUAL = 1.05
"""An error within this factor of ours counts as equal."""


def cells(full: bool) -> list[Cell]:
    """Tables of growing size, ours and NUTS at growing budgets."""
    grid = []
    for table in TABLES if full else TABLES[:2]:
        large = table["n"] * table["d"] >= LARGE
        for seed in range(3 if full else 1):
            measures = ("covariance", "noise_and_centre")
            grid.append(Cell(table, "ours", table["k"], seed, {}, measures))
            # apart, so that this one alone needs the peers
            grid.append(Cell(table, "ours", table["k"], seed, {}, ("by_mcmc",)))
            for draws in DRAWS[: 3 if full and not large else 2]:
                settings = {"name": "nuts", "draws": draws}
                grid.append(Cell(table, "peer", table["k"], seed, settings, measures))
    return grid


def conclude(rows: pd.DataFrame) -> list[str]:
    """Time of NUTS to our error, as a ratio."""
    if "settings.draws" not in rows:
        return ["NUTS was not run."]
    said, ratios, unreached = [], [], 0
    for d, some in rows.groupby("table.d"):
        ours = some[some["method"] == "ours"]
        error, seconds = ours["covariance"].median(), ours["seconds"].median()
        size = f"{ours['table.n'].iloc[0]} x {d}, k = {ours['k'].iloc[0]}"
        nuts = some[some["method"] == "peer"].groupby("settings.draws")
        by_draws = nuts[["covariance", "seconds"]].median()
        if by_draws.empty:
            continue
        enough = by_draws[by_draws["covariance"] <= EQUAL * error]
        first = enough.iloc[0] if len(enough) else by_draws.iloc[-1]
        reached = "reaches that" if len(enough) else "has not reached that"
        ratios.append(first["seconds"] / seconds)
        unreached += not len(enough)
        said.append(
            f"{size}: ours has covariance error {error:.3g} in {seconds:.2g} s. NUTS {reached} "
            f"(within 5 %) with {first.name:.0f} draws a chain: error {first['covariance']:.3g} in "
            f"{first['seconds']:.3g} s, {first['seconds'] / seconds:.3g} times our time "
            "(compilation included)."
        )
        if "mcmc_error_2" in ours and ours["mcmc_error_2"].notna().any():
            said.append(
                f"{size}, posterior of z at the fitted decoder: the default answer differs from "
                f"the mean of long chains by {ours['mcmc_error_2'].median():.2g} posterior "
                "standard deviations, the importance-sampled mean by "
                f"{ours['mcmc_exact'].median():.2g}; the reported deviations are "
                f"{ours['mcmc_sd_ratio'].median():.3g} of the chains' (worst R-hat "
                f"{ours['mcmc_r_hat'].max():.3f})."
            )
    short = f" (on {unreached} of {len(ratios)} tables it had not reached it)" if unreached else ""
    return [
        f"NUTS takes {min(ratios):.3g} to {max(ratios):.3g} times our time to our covariance error"
        f"{short}; thousands of times "
        + ("is what we see" if min(ratios) >= THOUSANDS else "is not what we see")
        + ". "
        + _agreement(rows),
        *said,
    ]


def _agreement(rows: pd.DataFrame) -> str:
    if "mcmc_error_2" not in rows:
        return ""
    return (
        f"Our posterior means of z are {rows['mcmc_error_2'].median():.2g} standard deviations "
        "from those of long chains (median over tables)."
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Error against seconds, a panel a size."""
    sizes = sorted(rows["table.d"].unique())
    figure = Figure(figsize=(3.6 * len(sizes), 3.6), layout="constrained")
    axes = figure.subplots(1, len(sizes), squeeze=False)[0]
    for ax, d in zip(axes, sizes, strict=True):
        some = rows[rows["table.d"] == d]
        for label, part in some.assign(label=named(some)).groupby("label", sort=False):
            colour = "#08519c" if label == "ours" else "#888888"
            ax.plot(part["seconds"], part["covariance"], "o", color=colour, ms=4)
            middle = part[["seconds", "covariance"]].median()
            text = str(label).replace("nuts, draws=", "NUTS, ")
            ax.annotate(text, tuple(middle), (5, 4), textcoords="offset points", fontsize=8)
        ax.set(xscale="log", xlabel="seconds", title=f"{some['table.n'].iloc[0]} x {d}")
        ax.set_ylim(0, 1.1 * some["covariance"].max())
        ax.margins(x=0.4)
        plain_log(ax.xaxis)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("covariance error")
    return figure


SCENARIO = Scenario(
    "mcmc",
    "What does MCMC on the same model give, and in what time?",
    cells,
    ("table.n", "table.d", "method", "settings.draws"),
    (
        "covariance",
        "sigma2_ratio",
        "mcmc_error_2",
        "mcmc_exact",
        "mcmc_sd_ratio",
        "mcmc_r_hat",
        "seconds",
    ),
    conclude,
    draw,
    timed=True,
)
