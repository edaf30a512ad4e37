"""What is said of the intervals where the model is right."""

import pandas as pd

BAR = 3
"""Points that coverage may be off."""

NOMINAL = {"coverage_50": 50, "coverage_90": 90}
OF_ALL = {"coverage_all_50": 50, "coverage_all_90": 90}


def coverage_verdict(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """Return the verdict in a sentence, and sentences on every `case`, failures first."""
    judged = rows.dropna(subset=list(NOMINAL))
    by_case = 100 * judged.set_index("case")[list(NOMINAL)]
    off, all_off = points_off(judged, NOMINAL), points_off(rows, OF_ALL)
    missed, met = off.index[off > BAR], off.index[off <= BAR]
    head = (
        f"Where the model is right, the bar of ±{BAR} points is met by intervals of 50 and 90 % at "
        f"{len(met)} of {len(off)} settings{_worst(off)}, for the factors of which the data tell "
        "(by the fit's own account, less than half of their prior variance is left); for all "
        f"factors at {(all_off <= BAR).sum()} of {len(all_off)}{_worst(all_off)}."
    )

    def with_ranges(case: str) -> str:
        here = by_case.loc[[case]]
        return f"{case} {' and '.join(_range(here[name]) for name in NOMINAL)}"

    said = [
        f"The bar of ±{BAR} points is {word}, in % of the true coordinates that the intervals of "
        f"50 and 90 % cover (medians, ranges over seeds): {'; '.join(map(with_ranges, cases))}."
        for word, cases in (("missed", missed), ("met", met))
        if len(cases)
    ]
    every = 100 * rows.groupby("case", sort=False)[list(OF_ALL)].median()
    told = (f"{case} {of_50:.1f} and {of_90:.1f}" for case, of_50, of_90 in every.itertuples())
    said.append(
        "Over all factors, those included of which the data tell little and whose axes point "
        f"anywhere: {'; '.join(told)}."
    )
    silent = [case for case in rows["case"].unique() if case not in off.index]
    if silent:
        said.append(f"Not judged, for the data tell of no factor: {'; '.join(silent)}.")
    if len(judged):
        nominal = pd.Series(NOMINAL)
        within = ((by_case - nominal).abs() <= BAR).all(axis=1)
        scatter = by_case.groupby(level=0).std().median()
        said.append(
            f"Of single fits {within.sum()} of {len(within)} are within ±{BAR} points"
            + (
                f"; from seed to seed coverage scatters by {scatter.iloc[0]:.1f} and "
                f"{scatter.iloc[1]:.1f} points (standard deviation, median over settings)."
                if scatter.notna().all()
                else "."
            )
        )
    return head, said


def points_off(rows: pd.DataFrame, nominal: dict[str, int]) -> pd.Series:
    """Points by which the median coverage of each case is off at most, the worst first."""
    median = 100 * rows.groupby("case", sort=False)[list(nominal)].median()
    off = (median - pd.Series(nominal)).abs().max(axis=1)
    return off.sort_values(ascending=False, kind="stable")


def _worst(off: pd.Series) -> str:
    if off.empty or off.iloc[0] <= BAR:
        return ""
    return f" (missed most with {off.index[0]}, by {off.iloc[0]:.2g} points)"


def covered(rows: pd.DataFrame, cases: pd.Index) -> str:
    """What intervals of 50 and 90 % cover in each of some cases, in %."""
    median = 100 * rows.groupby("case")[list(NOMINAL)].median().loc[cases]
    return ", ".join(f"{case} ({a:.0f} and {b:.0f} %)" for case, a, b in median.itertuples())


def _range(values: pd.Series) -> str:
    said = f"{values.median():.1f}"
    return said if len(values) == 1 else f"{said} ({values.min():.1f} to {values.max():.1f})"
