"""The method less a part at a time, and the published recipe."""

import itertools

import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.cell import Cell
from countvae_simulations.methods.ablations import ABLATIONS
from countvae_simulations.methods.published import EPOCHS
from countvae_simulations.scenarios.base import Scenario, named, plain_log

MEASURES = ("covariance", "loadings", "gap", "noise_and_centre", "coverage")
TABLES = {
    "flat": {"n": 1000, "d": 200, "k": 10, "reads": 1000, "design": "flat"},
    "wide": {"n": 1000, "d": 500, "k": 12, "reads": 3000, "design": "wide"},
}
LONGER, FEW_SEEDS = 4, 3
"""Times the epochs of the published recipe, to see whether it had ended; on so many seeds."""

RECIPE_DEPTHS = (1, 2, 3)
LITTLE = 0.02
"""Share of our error below which a part is said to buy none."""


def cells(full: bool) -> list[Cell]:
    """Ours, ours less a part at a time, the published recipe, and the fit started at the truth."""
    methods = [("ours", {}), ("truth_start", {}), ("ours", {"shrink_loadings": False})]
    methods += [("ablation", {"part": part}) for part in ABLATIONS]
    methods += [("published", {"encoder_depth": L}) for L in RECIPE_DEPTHS]
    grid = []
    for table, seed in itertools.product(TABLES.values(), range(10 if full else 1)):
        longer = [("published", {"encoder_depth": 1, "epochs": LONGER * EPOCHS})]
        grid += [
            Cell(table, method, table["k"], seed, given, MEASURES)
            for method, given in methods + longer * (full and seed < FEW_SEEDS)
        ]
    return grid


def conclude(rows: pd.DataFrame) -> list[str]:
    """Error with and without, as a ratio to ours."""
    rows = rows.assign(label=named(rows))
    each, each_gap = (_to_ours(rows, name) for name in ("covariance", "held_gap_0"))
    ratios, gaps = (found.groupby("table.design").median() for found in (each, each_gap))
    longer = ratios.filter(like="epochs")
    recipe = ratios.filter(like="published").drop(columns=longer.columns)
    said = [
        f"The published recipe, {EPOCHS} epochs of Adam, has {recipe.min(axis=None):.2g} to "
        f"{recipe.max(axis=None):.2g} times our covariance error; without sigma2 it is "
        f"{ratios['without_sigma2'].max():.3g} times, with a frozen encoder "
        f"{ratios['frozen_encoder'].max():.3g} times ours at worst. "
        + _worth("The start", ratios, ["pca_start", "random_start"])
        + " "
        + _worth("The rescaling", ratios, ["without_rescaling"]),
        f"To the encoder's gap held out the start and the rescaling do this: from PCA or a random "
        f"start it is {_span(gaps, ['pca_start', 'random_start'])} times ours, without rescaling "
        f"{_span(gaps, ['without_rescaling'])} times; a start at the truth, which no fit has, "
        f"leaves {_span(gaps, ['truth_start'])} times, with {_span(ratios, ['truth_start'])} times "
        "our covariance error. Epochs that they may save are not measured here.",
    ]
    if not longer.empty:
        same = each.dropna(subset=list(longer)).groupby("table.design").median()
        shorter = same.filter(like="depth=1").drop(columns=longer.columns)
        said.append(
            f"With {LONGER} times its {EPOCHS} epochs (L = 1, {FEW_SEEDS} seeds) the published "
            f"recipe has {longer.min(axis=None):.2g} to {longer.max(axis=None):.2g} times our "
            f"covariance error instead of {shorter.min(axis=None):.2g} to "
            f"{shorter.max(axis=None):.2g} on the same tables."
        )
    said += _of_sigma2(rows)
    for design, of_design in ratios.iterrows():
        errors = [of_design[f"published, encoder_depth={L}"] for L in RECIPE_DEPTHS]
        if errors[0] < errors[1] < errors[2]:
            said.append(
                f"On the {design} table the published recipe gets worse with depth: "
                f"{', '.join(f'{error:.3g}' for error in errors)} times our covariance error at "
                f"L = {', '.join(map(str, RECIPE_DEPTHS))}."
            )
    for design, of_design in ratios.iterrows():
        median = rows[(rows["table.design"] == design) & (rows["label"] == "ours")]["covariance"]
        sorted_ = of_design.drop("ours").sort_values(ascending=False)
        text = ", ".join(f"{label} {ratio:.2f}" for label, ratio in sorted_.items())
        said.append(
            f"On the {design} table ours has covariance error {median.median():.3g}; "
            f"in units of it: {text}."
        )
    return said


def _of_sigma2(rows: pd.DataFrame) -> list[str]:
    """Where sigma2 ends without its closed form, as a share of the true one."""
    recipe = "published, encoder_depth=1"
    called = {
        f"by the published recipe, L = 1, after {EPOCHS:,} epochs": recipe,
        f"after {LONGER * EPOCHS:,}": f"{recipe}, epochs={LONGER * EPOCHS}",
        "with noise drawn from its prior": "sampled_noise",
        "and shared by a minibatch": "shared_noise",
        "held at next to nothing": "without_sigma2",
    }
    said = []
    for design, some in rows.groupby("table.design", sort=False):
        ratio = some.groupby("label")["sigma2_ratio"].median()
        text = ", ".join(f"{ratio[of]:.2g} {how}" for how, of in called.items() if of in ratio)
        drawn = ratio.reindex(["sampled_noise", "shared_noise"]).dropna()
        alike = bool((drawn < 2 * ratio["without_sigma2"]).all())
        said.append(
            f"On the {design} table sigma2 ends, as a share of the true one, at {text}"
            + ("; drawn so it falls to the least allowed: these are nearly one fit." * alike or ".")
        )
    return said


def _to_ours(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Each table's measure by ours of the same table, a column a method."""
    found = rows.pivot_table(measure, ["table.design", "seed"], "label", sort=False)
    return found.div(found["ours"], axis=0)


def _worth(part: str, ratios: pd.DataFrame, labels: list[str]) -> str:
    """Whether a part lowers the covariance error, from the error without it."""
    least, worst = ratios[labels].min(axis=None), ratios[labels].max(axis=None)
    said = []
    if worst >= 1 + LITTLE:
        said.append(f"lowers the covariance error by up to {100 * (1 - 1 / worst):.1f} %")
    if least <= 1 - LITTLE:
        said.append(f"raises the covariance error by up to {100 * (1 / least - 1):.1f} %")
    verdict = " and ".join(said) or "buys no covariance error to speak of"
    return f"{part} {verdict} ({_span(ratios, labels)} times ours without it)."


def _span(ratios: pd.DataFrame, labels: list[str]) -> str:
    low, high = ratios[labels].min(axis=None), ratios[labels].max(axis=None)
    return f"{low:.3f} to {high:.3f}"


def draw(rows: pd.DataFrame) -> Figure:
    """Covariance error, a line a variant."""
    rows = rows.assign(label=named(rows))
    labels = list(dict.fromkeys(rows["label"]))
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots(1, len(TABLES), sharey=True)
    for ax, design in zip(axes, TABLES, strict=True):
        some = rows[rows["table.design"] == design].groupby("label")["covariance"]
        low, middle, high = (f.reindex(labels) for f in (some.min(), some.median(), some.max()))
        ax.hlines(range(len(labels)), low, high, color="#9ecae1", lw=4)
        ax.plot(middle, range(len(labels)), "o", color="#08519c")
        ax.set(xscale="log", xlabel="covariance error", title=f"{design} table")
        plain_log(ax.xaxis)
        ax.set_yticks(range(len(labels)), [label.replace("_", " ") for label in labels])
        ax.grid(axis="y", lw=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    return figure


SCENARIO = Scenario(
    "parts",
    "What is each part of the method worth?",
    cells,
    (
        "table.design",
        "method",
        "settings.part",
        "settings.encoder_depth",
        "settings.epochs",
        "settings.shrink_loadings",
    ),
    (
        "covariance",
        "VV_common",
        "subspace",
        "axis",
        "sigma2_ratio",
        "gap_0",
        "held_gap_0",
        "coverage_90",
    ),
    conclude,
    draw,
    "Points are medians over seeds, bars their range.",
)
