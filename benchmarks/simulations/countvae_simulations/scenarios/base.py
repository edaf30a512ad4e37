"""What a scenario is, and the words and tables that all of them use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from countvae_simulations.cell import Cell
from countvae_simulations.measures import SQUARES

STATISTICS = ("min", "median", "max")
DEPTH_COLOURS = {1: "#9ecae1", 2: "#4292c6", 3: "#08306b"}


@dataclass(frozen=True)
class Scenario:
    """One question, its grid, and what is to be read off the results.

    Attributes
    ----------
    name, question : str
    cells : callable
        From `full` (all of the grid, or what fits in minutes) to the cells.
    by : sequence of str
        Columns that name a line of the summary.
    measures : sequence of str
        Columns that it sums up.
    conclude : callable
        From the rows to sentences: the answer, then what holds, what does not, by how much.
    draw : callable
        From the rows to the figure.
    caption : str
        What its points, lines and shades are.
    draw_more : callable, optional
        From the rows to a figure of all settings, where that of `draw` has the ones that decide.
    timed : bool
        Whether seconds matter: cells then run one at a time, on all threads.
    on_page : callable
        The rows that the page's table sums up; the file has all.
    page_measures : sequence of str, optional
        Its measures; by default all.
    """

    name: str
    question: str
    cells: Callable[[bool], list[Cell]]
    by: Sequence[str]
    measures: Sequence[str]
    conclude: Callable[[pd.DataFrame], list[str]]
    draw: Callable[[pd.DataFrame], Figure]
    caption: str
    draw_more: Callable[[pd.DataFrame], Figure] | None = None
    timed: bool = False
    on_page: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
    page_measures: Sequence[str] | None = None


NO_BIAS = "none beyond chance"


def root(squares: pd.Series) -> str:
    """Root of the average of squares that are less what chance gives them."""
    average = squares.mean()
    return f"{np.sqrt(average):.2g}" if average > 0 else NO_BIAS


def spread(values: pd.Series) -> str:
    """Minimum / median / maximum, or the one value there is."""
    values = values.dropna()
    if values.empty:
        return "-"
    if len(values) == 1:
        return f"{values.iloc[0]:.4g}"
    return " / ".join(f"{value:.4g}" for value in np.quantile(values, [0, 0.5, 1]))


def summary(rows: pd.DataFrame, scenario: Scenario) -> pd.DataFrame:
    """The table behind the figure: one line a group of seeds, in numbers."""
    grouped = groups(rows, scenario)
    measures = [column for column in scenario.measures if column in rows]
    how = {name: [*STATISTICS, *(["mean"] if name in SQUARES else [])] for name in measures}
    table = grouped.agg(how)
    table.columns = ["_".join(column) for column in table.columns]
    return table.assign(seeds=grouped["seed"].nunique()).reset_index()


def shown(
    rows: pd.DataFrame, scenario: Scenario, measures: Sequence[str] | None = None
) -> pd.DataFrame:
    """Show a line a group of seeds: minimum / median / maximum, of squares the average's root."""
    grouped = groups(rows, scenario)
    measures = [column for column in measures or scenario.measures if column in rows]
    how = {name: _root_or_none if name in SQUARES else spread for name in measures}
    table = grouped.agg(how).rename(columns={name: f"root of {name}" for name in SQUARES})
    return table.assign(seeds=grouped["seed"].nunique()).reset_index()


def groups(rows: pd.DataFrame, scenario: Scenario) -> Any:
    """The rows by setting: those of a group differ in their seed."""
    by = [column for column in scenario.by if column in rows]
    return rows.groupby(by, sort=False, dropna=False)


def _root_or_none(squares: pd.Series) -> str:
    return "-" if squares.isna().all() else root(squares)


def named(rows: pd.DataFrame) -> pd.Series:
    """A label for each method with its settings, short enough for a legend."""
    settings = [column for column in rows if column.startswith("settings.")]

    def label(row: pd.Series) -> str:
        given = {
            column.removeprefix("settings."): row[column]
            for column in settings
            if not pd.isna(row[column])
        }
        own = given.pop("name", given.pop("part", None))
        words = [str(own) if own else row["method"]]
        words += [f"{name}={_plain(value)}" for name, value in given.items()]
        return ", ".join(words)

    return rows.apply(label, axis=1)


def gaps_against(rows: pd.DataFrame, column: str, label: str) -> Figure:
    """Gap of fitted and of new samples against a column, a panel a design, a colour a depth."""
    designs = rows.groupby("table.design", sort=False)
    figure = Figure(figsize=(4 * len(designs), 3.4), layout="constrained")
    axes = figure.subplots(1, len(designs), sharey=True, squeeze=False)[0]
    for ax, (design, some) in zip(axes, designs, strict=True):
        for L, part in some.groupby("settings.encoder_depth"):
            for measure, line in (("held_gap_0", "-"), ("gap_0", "--")):
                grouped = part.groupby(column)[measure]
                of = f"L = {L}, {'fitted' if line == '--' else 'new'} samples"
                low, middle, high = grouped.min(), grouped.median(), grouped.max()
                colour = DEPTH_COLOURS[int(str(L))]
                ax.plot(middle, f"o{line}", color=colour, ms=4, label=of)
                ax.fill_between(low.index, low, high, color=colour, alpha=0.15, lw=0)
        ax.set(xscale="log", yscale="log", xlabel=label, title=f"{design} tables")
        plain_log(ax.xaxis)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("gap, nats a sample")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure


def plain_log(axis: Axis) -> None:
    """A logarithmic axis with numbers that do not collide."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 90 * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else value
