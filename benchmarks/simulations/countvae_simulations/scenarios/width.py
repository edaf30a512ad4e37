"""Width of the encoder's hidden layers."""

import itertools
from inspect import signature

import pandas as pd
from matplotlib.figure import Figure

from countvae import MultinomialVAE
from countvae_simulations.cell import Cell
from countvae_simulations.scenarios.base import Scenario, gaps_against

MEASURES = ("covariance", "gap", "factors")
DEFAULT = signature(MultinomialVAE).parameters["encoder_width"].default
ENOUGH = 0.02
FAR_OFF = 3
"""Times the median of its setting from which on a gap is told by itself."""


def cells(full: bool) -> list[Cell]:
    """Width × two and three layers, on a flat and a wide table."""
    widths = (8, 32, 128, 512) if full else (8, 128, 512)
    return [
        Cell(
            {"n": 1000, "d": 200, "k": 10, "reads": 1000, "design": design},
            "ours",
            10,
            seed,
            {"encoder_depth": L, "encoder_width": width},
            MEASURES,
        )
        for design, L, width, seed in itertools.product(
            ("flat", "wide"), (2, 3), widths, range(5 if full else 1)
        )
    ]


def conclude(rows: pd.DataFrame) -> list[str]:
    """Gap and error from the narrowest to the widest."""
    by = ["table.design", "settings.encoder_depth", "settings.encoder_width"]
    median = rows.groupby(by, sort=False)[["gap_0", "held_gap_0", "covariance"]].median()
    widest = rows["settings.encoder_width"].max()
    times = median.xs(widest, level=2) / median.xs(DEFAULT, level=2)
    verdict = "are enough" if times["covariance"].min() > 1 - ENOUGH else "are too few"
    change = (times["covariance"] - 1).abs().max()
    said = [
        f"For the covariance {DEFAULT} units, the default, {verdict}: with {widest} its error "
        f"changes by at most {100 * change:.2g} %. The encoder's gap is then "
        f"{_span(times['gap_0'])} times as large in sample, and {_span(times['held_gap_0'])} times "
        "held out."
    ]
    of_setting = rows.groupby(by)["held_gap_0"].transform("median")
    for _, fit in rows[rows["held_gap_0"] > FAR_OFF * of_setting].iterrows():
        said.append(
            f"One fit (seed {fit['seed']:g}, {fit['table.design']} table, L = {fit[by[1]]:g}, "
            f"{fit[by[2]]:g} units) has a gap held out of {fit['held_gap_0']:.3g} nats, far above "
            "the median of its setting."
        )
    for (design, L), some in median.groupby(level=[0, 1], sort=False):
        some = some.droplevel([0, 1])
        text = ", ".join(
            f"{row['gap_0']:.2g} and {row['held_gap_0']:.2g} with {width} units"
            for width, row in some.iterrows()
        )
        said.append(
            f"{str(design).capitalize()} table, L = {L}: gap in sample and held out {text}; the "
            f"covariance error stays within {some['covariance'].min():.3g} to "
            f"{some['covariance'].max():.3g}."
        )
    return said


def _span(times: pd.Series) -> str:
    low, high = (f"{extreme:.3g}" for extreme in (times.min(), times.max()))
    return low if low == high else f"{low} to {high}"


def draw(rows: pd.DataFrame) -> Figure:
    """Gap against width, a panel a design."""
    return gaps_against(rows, "settings.encoder_width", "units of a hidden layer")


SCENARIO = Scenario(
    "width",
    "How wide must the encoder be?",
    cells,
    ("table.design", "settings.encoder_depth", "settings.encoder_width"),
    ("gap_0", "held_gap_0", "held_gap_2", "held_z_error", "covariance"),
    conclude,
    draw,
    "Tables of 1,000 x 200, ten factors, 1,000 reads. Medians over seeds, shades their range.",
)
