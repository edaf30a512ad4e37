"""Tables of an unusual structure, and tables that break one assumption at a time."""

import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.cell import Cell
from countvae_simulations.scenarios.base import Scenario, plain_log
from countvae_simulations.scenarios.coverage import (
    NOMINAL,
    OF_ALL,
    coverage_verdict,
    covered,
    points_off,
)

MEASURES = ("covariance", "loadings", "coverage", "gap", "noise_and_centre")
PLAIN = {"n": 1000, "d": 1000, "k": 16, "reads": 3000}
RIGHT = {
    "as assumed": {},
    "5 % of the loadings non-zero": {"nonzero_loadings": 0.05},
    "factors that move balances of a caterpillar": {"tree": "caterpillar"},
    "factors that move clades of a phylogeny": {"tree": "phylogeny"},
}
"""The model is right, for loadings are free and the fit is the same in every basis."""

WRONG = {
    "half the factors": {},
    "twice the factors": {},
    "heavy-tailed noise": {"noise": "heavy"},
    "uneven noise": {"noise": "uneven"},
    "depth follows a factor": {"depth_correlation": 0.8},
    "a tenth of the counts lost": {"zero_inflation": 0.1},
    "a third of the counts lost": {"zero_inflation": 0.33},
    "2 % outlier samples": {"outliers": 0.02},
    "10 % outlier samples": {"outliers": 0.1},
}
TABLES = RIGHT | WRONG
MANY_SEEDS = 10
NAMES = {"ours": "ours", "log_ppca": "PPCA of log(x+1)", "oracle": "PPCA of the true log-ratios"}
WORST = 3
"""Cases that the answer names."""

ROUNDING = 1e-3
"""Change of the covariance error that single precision makes in a fit."""

FACTORS = {"half the factors": 8, "twice the factors": 32}


def cells(full: bool) -> list[Cell]:
    """Each structure and each way of being wrong, ours and PCA and the oracle."""
    grid = []
    for name, table in TABLES.items():
        for seed in range(MANY_SEEDS if full else 1):
            k = FACTORS.get(name, 16)
            for method in ("ours", "log_ppca", "oracle"):
                measures = MEASURES if method == "ours" else ("covariance", "loadings")
                grid.append(Cell(PLAIN | table, method, k, seed, {}, measures))
            if tree := table.get("tree"):
                measures = ("covariance", "loadings", "balances")
                grid.append(Cell(PLAIN | table, "in_balances", k, seed, {"tree": tree}, measures))
    return grid


def conclude(rows: pd.DataFrame) -> list[str]:
    """Error against that of the table as assumed, and coverage."""
    labelled = _labelled(rows)
    ours = labelled[labelled["method"] == "ours"]
    median = ours.groupby("case", sort=False)[["VV_common", *NOMINAL, *OF_ALL]].median()
    errors = ours.pivot_table("VV_common", "seed", "case", sort=False)
    each = errors.div(errors["as assumed"], axis=0)
    times = each.median()
    wrong = [case for case in WRONG if case in median.index]
    worse = times[wrong].sort_values(ascending=False)
    of_wrong = ours[ours["case"].isin(WRONG)]
    short, short_all = points_off(of_wrong, NOMINAL), points_off(of_wrong, OF_ALL)
    verdict, of_intervals = coverage_verdict(ours[ours["case"].isin(RIGHT)])
    said = [
        "Where the model is wrong, the error is, in units of that of the table as assumed, largest "
        f"with {_cases(worse.iloc[:WORST])}; elsewhere at most {worse.iloc[WORST:].max():.3g} "
        "times (medians over seeds of the ratio). Intervals of 50 and 90 %, for the factors of "
        f"which the data tell, are furthest off with {covered(ours, short.index[:WORST])}, and "
        f"elsewhere by at most {short.iloc[WORST:].max():.2g} points; for all factors most with "
        f"{_cases(short_all.iloc[:1], ' points')}. {verdict}",
        "For all factors intervals are furthest off where the model is wrong with "
        f"{_cases(short_all.iloc[:WORST], ' points')}, and elsewhere by at most "
        f"{short_all.iloc[WORST:].max():.2g} points.",
        *of_intervals,
    ]
    for case, row in median.drop(index="as assumed").iterrows():
        how = "right, its structure unusual" if case in RIGHT else "wrong"
        said.append(
            f"{str(case).capitalize()} (the model is {how}): error of VV' on common features "
            f"{row['VV_common']:.3g}, {times[str(case)]:.2f} times that of the table as assumed "
            f"({each[str(case)].min():.2f} to {each[str(case)].max():.2f} over the seeds); "
            f"coverage {100 * row['coverage_50']:.0f} and {100 * row['coverage_90']:.0f} %, of all "
            f"factors {100 * row['coverage_all_50']:.0f} and {100 * row['coverage_all_90']:.0f} %."
            + _floor(ours[ours["case"] == case])
        )
    for case, some in labelled[labelled["method"] == "in_balances"].groupby("case", sort=False):
        pairs = some.merge(ours[ours["case"] == case], on="seed", suffixes=("", "_other"))
        moved = (pairs["covariance"] - pairs["covariance_other"]).abs().max()
        said.append(
            f"{str(case).capitalize()}: with the basis of that tree instead of another the "
            f"covariance error changes by {moved:.2g}"
            + f": the fit {'does not depend' if moved < ROUNDING else 'depends'} on the basis"
            + "; a balance that a factor moves has a longer row of W than one that none moves with "
            f"probability {some['balances_auc'].median():.3f}."
        )
    return said


def _floor(some: pd.DataFrame) -> str:
    """What of the error is of factors that were not looked for."""
    if "VV_floor_common" not in some or some["VV_floor_common"].isna().all():
        return ""
    floor = some["VV_floor_common"].median()
    return f" The leading factors of the truth, as many as were looked for, have {floor:.3g}."


def draw(rows: pd.DataFrame) -> Figure:
    """Error and coverage, a line a case."""
    rows = _labelled(rows)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    cases = list(TABLES)
    for method, colour in (("log_ppca", "#bbbbbb"), ("oracle", "#444444"), ("ours", "#08519c")):
        of_cases = rows[rows["method"] == method].groupby("case")["VV_common"]
        low, middle, high = (
            found.reindex(cases) for found in (of_cases.min(), of_cases.median(), of_cases.max())
        )
        left.hlines(range(len(cases)), low, high, color=colour, lw=1.5, alpha=0.4)
        left.plot(middle, range(len(cases)), "o", color=colour, label=NAMES[method])
    left.set(xlabel="error of VV', common features", xscale="log")
    left.set_yticks(range(len(cases)), cases)
    plain_log(left.xaxis)
    left.invert_yaxis()
    left.legend(frameon=False, fontsize=8, loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.1))
    for p, colour in ((50, "#9ecae1"), (90, "#08519c")):
        some = rows[rows["method"] == "ours"].groupby("case")[f"coverage_{p}"].median()
        right.plot(100 * some.reindex(cases), range(len(cases)), "o", color=colour, label=f"{p} %")
        right.axvline(p, color=colour, ls=":", lw=1)
    right.set(xlabel="% of the truth within the interval", xlim=(0, 100))
    right.legend(frameon=False, fontsize=8, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.1))
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", lw=0.3)
    return figure


def _cases(values: pd.Series, unit: str = " times") -> str:
    return ", ".join(f"{case} ({value:.3g}{unit})" for case, value in values.items())


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Name each row's case: the one whose table and number of factors are the row's."""

    def case(row: pd.Series) -> str:
        for name, table in reversed(TABLES.items()):
            same = all(row.get(f"table.{key}") == value for key, value in table.items())
            if same and row["k"] == FACTORS.get(name, 16) and (table or name in FACTORS):
                return name
        return "as assumed"

    return rows.assign(case=rows.apply(case, axis=1))


SCENARIO = Scenario(
    "wrong",
    "What happens where the model is wrong, or its structure unusual?",
    cells,
    (
        "table.noise",
        "table.depth_correlation",
        "table.zero_inflation",
        "table.outliers",
        "table.nonzero_loadings",
        "table.tree",
        "k",
        "method",
    ),
    (
        "VV_common",
        "covariance",
        "covariance_common",
        "VV_floor_common",
        "subspace_common",
        "sigma2_ratio",
        "coverage_50",
        "coverage_90",
        "coverage_all_50",
        "coverage_all_90",
        "told",
        "balances_auc",
        "gap_0",
        "held_gap_2",
    ),
    conclude,
    draw,
    "Medians over seeds, bars their range. Depths of all tables are unequal (log-normal, its "
    "logarithm with standard deviation 0.7); a table with half or twice the factors is one as "
    "assumed, looked at with another k.",
    on_page=lambda rows: rows[rows["method"] == "ours"],
    page_measures=(
        *("VV_common", "subspace_common", "sigma2_ratio"),
        *("coverage_50", "coverage_90", "coverage_all_90", "told"),
    ),
)
