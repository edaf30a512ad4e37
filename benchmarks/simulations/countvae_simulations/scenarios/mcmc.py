"""The same model by MCMC: its error, its time, and the posterior that it finds."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.cell import Cell
from countvae_simulations.scenarios.base import Scenario, named, plain_log

TABLES = (
    {"n": 50, "d": 20, "k": 2, "reads": 500},
    {"n": 100, "d": 50, "k": 3, "reads": 500},
    {"n": 200, "d": 100, "k": 5, "reads": 1000},
)
DRAWS = {20: (10, 50, 200, 800), 50: (10, 50, 200, 800), 100: (10, 50, 200)}
"""A chain keeps so many, by features; more of the largest would not fit most memories."""

FEW_DRAWS = {20: (10, 50, 200), 50: (50,)}
"""Those of the small grid; compiling takes most of its minutes."""

THOUSANDS = 1000
MIXED = 1.1
EQUAL = 1.05
"""An error within this factor of ours counts as equal."""


def cells(full: bool) -> list[Cell]:
    """Tables of growing size, ours and NUTS at growing budgets."""
    grid = []
    budgets = DRAWS if full else FEW_DRAWS
    tables = [table for table in TABLES if table["d"] in budgets]
    for table, seed in itertools.product(tables, range(3 if full else 1)):
        measures = ("covariance", "noise_and_centre")
        more = ("by_mcmc",) if seed == 0 else ()
        grid.append(Cell(table, "ours", table["k"], seed, {}, (*measures, *more)))
        for draws in budgets[table["d"]]:
            settings = {"name": "nuts", "draws": draws}
            grid.append(Cell(table, "peer", table["k"], seed, settings, measures))
    return grid


def conclude(rows: pd.DataFrame) -> list[str]:
    """Error of NUTS at its largest budget, and its time to our error."""
    if "settings.draws" not in rows:
        return ["NUTS was not run."]
    tables = [
        (f"{n} x {d}, k = {k}", some)
        for (n, d, k), some in rows.groupby(["table.n", "table.d", "k"])
        if (some["method"] == "peer").any()
    ]
    lower, said, ratios, reached_by, won, of_mixed_chains = [], [], [], [], [], []
    for size, some in tables:
        ours = some[some["method"] == "ours"]
        if ours.empty:
            said.append(f"{size}: no fit of ours to compare.")
            continue
        error, seconds = ours["covariance"].median(), ours["seconds"].median()
        nuts = some[some["method"] == "peer"]
        nuts = nuts.assign(whole=nuts["seconds"] + nuts["compile_seconds"])
        names = ["covariance", "seconds", "whole", "r_hat"]
        budgets = nuts.groupby("settings.draws")[names].median()
        last = budgets.iloc[-1]
        pairs = nuts[nuts["settings.draws"] == last.name].merge(ours, on="seed")
        won += list(pairs["covariance_x"] < pairs["covariance_y"])
        if last["covariance"] < error:
            lower.append(
                f"{size} ({last['covariance']:.3g} against {error:.3g}, R-hat "
                f"{last['r_hat']:.2f}, in {last['seconds'] / seconds:.3g} times our time)"
            )
        enough = budgets[budgets["covariance"] <= EQUAL * error]
        first = enough.iloc[0] if len(enough) else last
        reached = "reaches that" if len(enough) else "has not reached that"
        ratios.append(first[["seconds", "whole"]] / seconds)
        reached_by.append(bool(len(enough)))
        fewer = budgets.index[budgets.index < first.name]
        least = f" ({fewer[-1]:.0f} were too few)" if len(fewer) else " (the fewest tried)"
        mixed = enough[enough["r_hat"] < MIXED]
        of_mixed_chains.append(mixed["seconds"].iloc[0] / seconds if len(mixed) else np.nan)
        pairs = nuts[nuts["settings.draws"] == first.name].merge(ours, on="seed")
        each = pairs["seconds_x"] / pairs["seconds_y"]
        of_mixed = (
            f"with chains that had mixed (R-hat below {MIXED}) {of_mixed_chains[-1]:.3g} times"
            if len(mixed)
            else f"chains that had mixed (R-hat below {MIXED}) did not reach it"
        )
        said.append(
            f"{size}: ours has covariance error {error:.3g} in {seconds:.2g} s. NUTS {reached} "
            f"(within 5 %) with {first.name:.0f} draws a chain{least}: error "
            f"{first['covariance']:.3g}, R-hat {first['r_hat']:.2f}, in {first['seconds']:.3g} s "
            f"({first['whole']:.3g} s with compilation), {ratios[-1]['seconds']:.3g} "
            f"({ratios[-1]['whole']:.3g}) times our time, seed by seed {each.min():.3g} to "
            f"{each.max():.3g}; {of_mixed}. With {last.name:.0f} draws its error is "
            f"{last['covariance']:.3g}, R-hat {last['r_hat']:.2f}, in {last['seconds']:.3g} s."
        )
        said += _posterior(size, ours)
    if not ratios:
        return ["Nothing can be compared.", *said]
    at_best = (
        f"With its largest budget NUTS has the lower error on {sum(won)} of {len(won)} tables"
        + (f", and as medians {'; '.join(lower)}. " if lower else ". ")
    )
    return [
        f"{at_best}{_times(pd.DataFrame(ratios), np.array(reached_by))} "
        f"{_with_mixed(pd.Series(of_mixed_chains))} Tables are of "
        f"{tables[0][0].split(',')[0]} to {tables[-1][0].split(',')[0]}. {_agreement(rows)}",
        "NUTS has priors that a fit by maximum likelihood has not (on the scale of each factor, on "
        "the centre and on sigma): on tables of few samples they may be what it is ahead by.",
        *said,
    ]


def _times(ratios: pd.DataFrame, reached: np.ndarray) -> str:
    """How many times our time NUTS takes to our error, where it gets there."""
    said = []
    if reached.any():
        bare, whole = (ratios.loc[reached, name] for name in ("seconds", "whole"))
        seen = "is what we see" if bare.min() >= THOUSANDS else "is not what we see at these sizes"
        growing = len(bare) > 1 and bare.is_monotonic_increasing and bare.is_unique
        said.append(
            "To our covariance error (within 5 %), with the least budget tried that reaches it, it "
            f"takes {bare.min():.3g} to {bare.max():.3g} times our time "
            f"without compilation ({whole.min():.3g} to {whole.max():.3g} times with it); "
            f"thousands of times {seen}"
            + (
                f", but the ratio grows with the table ({', '.join(f'{r:.3g}' for r in bare)}), "
                "and of larger ones this says nothing."
                if growing
                else "."
            )
        )
    if not reached.all():
        least = ratios.loc[~reached, "seconds"].min()
        said.append(
            f"At {(~reached).sum()} of {len(reached)} sizes it had not reached our covariance "
            f"error in {least:.3g} times our time."
        )
    return " ".join(said)


def _with_mixed(ratios: pd.Series) -> str:
    """The same with chains that had mixed."""
    found = ratios.dropna()
    times = f"{found.min():.3g} to {found.max():.3g} times" if len(found) else "at no size"
    return (
        f"With chains that had mixed (R-hat below {MIXED}): {times}; at "
        f"{len(ratios) - len(found)} of {len(ratios)} sizes these did not reach it."
    )


def _posterior(size: str, ours: pd.DataFrame) -> list[str]:
    if "mcmc_error_2" not in ours or ours["mcmc_error_2"].isna().all():
        return []
    return [
        f"{size}, posterior of z at the fitted decoder: the default answer differs from the mean "
        f"of long chains by {ours['mcmc_error_2'].median():.2g} posterior standard deviations, "
        f"that of the encoder alone by {ours['mcmc_error_0'].median():.2g}, the "
        f"importance-sampled mean by {ours['mcmc_exact'].median():.2g} (Monte-Carlo errors: of the "
        f"chains {ours['mcmc_noise'].median():.2g}, of importance sampling "
        f"{ours['mcmc_exact_noise'].median():.2g}); the reported deviations are "
        f"{ours['mcmc_sd_ratio'].median():.3g} of the chains' (worst R-hat "
        f"{ours['mcmc_r_hat'].max():.3f})."
    ]


def _agreement(rows: pd.DataFrame) -> str:
    if "mcmc_error_2" not in rows:
        return ""
    looked = rows.dropna(subset="mcmc_error_2")
    low, high = looked["mcmc_error_2"].min(), looked["mcmc_error_2"].max()
    return (
        f"Our posterior means of z are {low:.2g} to {high:.2g} standard deviations from those of "
        f"long chains ({len(looked)} fits; the chains' own Monte-Carlo error is "
        f"{looked['mcmc_noise'].min():.2g} to {looked['mcmc_noise'].max():.2g})."
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
        ax.set(xscale="log", xlabel="seconds, compilation left out")
        ax.set_title(f"{some['table.n'].iloc[0]} x {d}")
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
    ("table.n", "table.d", "method", "settings.name", "settings.draws"),
    (
        "covariance",
        "sigma2_ratio",
        "mcmc_error_0",
        "mcmc_error_2",
        "mcmc_exact",
        "mcmc_exact_noise",
        "mcmc_noise",
        "mcmc_sd_ratio",
        "mcmc_r_hat",
        "r_hat",
        "seconds",
        "compile_seconds",
    ),
    conclude,
    draw,
    "A point a seed; names stand at the medians, NUTS with the draws that a chain keeps.",
    timed=True,
)
