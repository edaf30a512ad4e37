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
DEEPER = DEPTHS[1:]
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
    """From how many samples on deeper encoders are ahead of one layer, and by how much."""
    ahead: dict[int, list[str]] = {L: [] for L in DEEPER}
    learnt, by_table = [], []
    for design, some in rows.groupby("table.design", sort=False):
        held, fitted = (
            some.pivot_table(name, BY, "settings.encoder_depth").dropna()
            for name in ("held_gap_0", "gap_0")
        )
        for L in DEEPER:
            ahead[L].append(f"on {design} tables {_ahead(held[1] / held[L])}")
        of_new, of_fitted = (gaps.groupby("table.n").median() for gaps in (held, fitted))
        falls = of_fitted[1] / of_fitted[3]
        learnt.append(
            f"from {falls.iloc[0]:.3g} with {falls.index[0]:,} samples to {falls.iloc[-1]:.3g} "
            f"with {falls.index[-1]:,} on {design} tables"
        )
        each = "; ".join(
            f"with {n:,} samples {_list(gaps)} ({_list(of_fitted.loc[n])})"
            for n, gaps in of_new.iterrows()
        )
        by_table.append(
            f"{str(design).capitalize()} tables, gap of new samples in nats at L = "
            f"{', '.join(f'{L:g}' for L in held)}, and in brackets that of the samples fitted: "
            f"{each}."
        )
    deeper = "; ".join(f"L = {L} {', '.join(said)}" for L, said in ahead.items())
    return [
        f"On new samples a deeper encoder has a smaller gap than one layer, in every seed: {deeper}"
        f". Times by which the gap of fitted samples falls from L = 1 to L = 3: "
        f"{'; '.join(learnt)}.",
        *by_table,
    ]


def _ahead(times: pd.Series) -> str:
    """From how many samples on the gap of one layer is larger in every seed."""
    larger = (times > 1).groupby("table.n").all()
    ever_after = larger[::-1].cummin()[::-1]
    enough = ever_after.index[ever_after]
    if enough.empty:
        where = "at no number of samples that was tried"
    elif len(enough) == len(larger):
        where = "at every number that was tried"
    else:
        where = f"from {enough[0]:,} samples on"
    most = larger.index[-1]
    last = times.xs(most, level="table.n")
    in_some = "" if larger[most] else f", smaller in {(last > 1).sum()} of {len(last)} seeds"
    return f"{where} ({last.min():.3g} to {last.max():.3g} times smaller with {most:,}{in_some})"


def _list(gaps: pd.Series) -> str:
    return ", ".join(f"{gap:.3g}" for gap in gaps)


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
