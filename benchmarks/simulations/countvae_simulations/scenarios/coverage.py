"""What is said of the intervals where the model is right."""

import numpy as np
import pandas as pd

from countvae_simulations.tables import HELD_OUT

BAR = 3
"""Points that coverage may be off."""

NOMINAL = {"coverage_50": 50, "coverage_90": 90}


def coverage_verdict(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """Return the verdict in a sentence, and sentences on every `case`, failures first."""
    judged = rows.dropna(subset=list(NOMINAL))
    by_case = 100 * judged.set_index("case")[list(NOMINAL)]
    off = (by_case.groupby(level=0, sort=False).median() - pd.Series(NOMINAL)).abs().max(axis=1)
    off = off.sort_values(ascending=False, kind="stable")
    missed, met = off.index[off > BAR], off.index[off <= BAR]
    head = (
        f"Where the model is right, the bar of ±{BAR} points is met by intervals of 50 and 90 % at "
        f"{len(met)} of {len(off)} settings"
    )
    head += f", missed most with {missed[0]} ({off.iloc[0]:.2g} points)." if len(missed) else "."

    def covered(case: str) -> str:
        here = by_case.loc[[case]]
        return f"{case} {' and '.join(_range(here[name]) for name in NOMINAL)}"

    said = [
        f"The bar of ±{BAR} points is {word}, in % of the true coordinates that the intervals of "
        f"50 and 90 % cover (medians, ranges over seeds): {'; '.join(map(covered, cases))}."
        for word, cases in (("missed", missed), ("met", met))
        if len(cases)
    ]
    silent = [case for case in rows["case"].unique() if case not in off.index]
    if silent:
        said.append(f"Not judged, for the data tell of no factor: {'; '.join(silent)}.")
    if len(judged):
        coordinates = (judged["told"] * HELD_OUT * judged["table.n"]).median()
        chance = [100 * np.sqrt(p * (100 - p) / 1e4 / coordinates) for p in NOMINAL.values()]
        said.append(
            f"Chance alone moves the coverage of one fit by {chance[0]:.1f} and {chance[1]:.1f} "
            "points (binomial standard error)."
        )
    return head, said


def _range(values: pd.Series) -> str:
    said = f"{values.median():.1f}"
    return said if len(values) == 1 else f"{said} ({values.min():.1f} to {values.max():.1f})"
