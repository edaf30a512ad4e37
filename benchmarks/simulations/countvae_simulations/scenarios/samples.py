"""Samples that a deeper encoder needs to be ahead on new ones."""

import itertools

import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.cell import Cell
from countvae_simulations.scenarios.base import Scenario, gaps_against

MEASURES = ("gap", "factors")
TABLE = {"d": 200, "k": 10, "reads": 1000}
DESIGNS = ("flat", "wide")
DEPTHS = (1, 2, 3)
BY = ["table.n", "seed"]


def cells(full: bool) -> list[Cell]:
    """Samples × one to three layers, on flat and wide tables."""
    samples = (300, 1000, 3000, 10_000) if full else (300, 3000)
    return [
        Cell(TABLE | {"n": n, "design": design}, "ours", 10, seed, {"encoder_depth": L}, MEASURES)
        for design, n, L, seed in itertools.product(
            DESIGNS, samples, DEPTHS, range(5 if full else 1)
        )
    ]


def conclude(rows: pd.DataFrame) -> list[str]:
    """From how many samples on three layers are ahead of one, and by how much."""
    ahead, learnt, by_table = [], [], []
    for design, some in rows.groupby("table.design", sort=False):
        held = some.pivot_table("held_gap_0", BY, "settings.encoder_depth")
        fitted = some.pivot_table("gap_0", BY, "settings.encoder_depth")
        smaller = (held[3] < held[1]).groupby("table.n").all()
        ever_after = smaller[::-1].cummin()[::-1]
        enough = ever_after.index[ever_after]
        where = (
            "at no number that was tried"
            if enough.empty
            else "at every number that was tried"
            if len(enough) == len(smaller)
            else f"from {enough[0]:,} samples on"
        )
        ahead.append(f"on {design} tables {where}")
        times = (held[1] / held[3]).groupby("table.n")
        middle = held.groupby("table.n").median()
        of_fitted = fitted.groupby("table.n").median()
        falls = of_fitted[1] / of_fitted[3]
        learnt.append(
            f"from {falls.iloc[0]:.3g} with {falls.index[0]:,} samples to {falls.iloc[-1]:.3g} "
            f"with {falls.index[-1]:,} on {design} tables"
        )
        each = "; ".join(
            f"{n:,} samples, {row[1]:.3g} and {row[3]:.3g} nats ({times.min()[n]:.3g} to "
            f"{times.max()[n]:.3g} times over the seeds; of fitted samples "
            f"{of_fitted.loc[n, 1]:.3g} and {of_fitted.loc[n, 3]:.3g})"
            for n, row in middle.iterrows()
        )
        by_table.append(
            f"Gap of new samples of {design} tables at L = 1 and L = 3, by samples fitted: {each}."
        )
    return [
        "On new samples three layers have a smaller gap than one, in every seed, "
        f"{' and '.join(ahead)}. Times by which the gap of fitted samples falls from L = 1 to "
        f"L = 3: {'; '.join(learnt)}.",
        *by_table,
    ]


def draw(rows: pd.DataFrame) -> Figure:
    """Gap against samples, a panel a design."""
    return gaps_against(rows, "table.n", "samples fitted")


SCENARIO = Scenario(
    "samples",
    "How many samples does a deeper encoder need?",
    cells,
    ("table.design", "table.n", "settings.encoder_depth"),
    ("gap_0", "held_gap_0", "held_gap_2", "held_z_error", "held_z_bias_square"),
    conclude,
    draw,
    "Tables of 200 features, ten factors and 1,000 reads. Medians over seeds, shades their range.",
)
