"""Depth of the encoder against the pseudocount, at several numbers of reads."""

import itertools

import pandas as pd
from matplotlib.figure import Figure

from countvae_simulations.runner import Cell
from countvae_simulations.scenarios.base import Scenario

MEASURES = (
    "table",
    "covariance",
    "noise_and_centre",
    "gap",
    "factors",
    "exact",
    "coverage",
)
DESIGNS = ("flat", "wide")
TABLE = {"n": 1000, "d": 200, "k": 10}
DEPTHS = (1, 2, 3, 4, 5)
MANY_SEEDS = 10
MIDDLE = 1000
BAR = 10
"""Times that the gap is to fall from one layer to three, at 1,000 reads."""

SPREAD_BAR = 0.25
"""Share of the spread at L = 1, and of PCA's, that is to be left over the pseudocounts."""

SHADES = ("#9ecae1", "#4292c6", "#08519c", "#08306b")


def cells(full: bool) -> list[Cell]:
    """Designs × reads × pseudocounts × layers, PCA at the same pseudocounts, and a learned one."""
    reads = (30, 100, 1000, 10_000, 100_000) if full else (100, 1000, 10_000)
    pseudocounts = (0.1, 0.5, 1.0, 2.0) if full else (0.1, 1.0, 2.0)
    grid = []
    for design, N, c in itertools.product(DESIGNS, reads, pseudocounts):
        table = TABLE | {"reads": N, "design": design}
        for seed in range(_seeds(full, design, N)):
            for L in DEPTHS if full else DEPTHS[:3]:
                settings = {"encoder_depth": L, "pseudocount": c}
                grid.append(Cell(table, "ours", 10, seed, settings, MEASURES))
            grid.append(Cell(table, "log_ppca", 10, seed, {"pseudocount": c}, ("covariance",)))
    for design, L in itertools.product(DESIGNS, DEPTHS[:3]):
        table = TABLE | {"reads": MIDDLE, "design": design}
        settings = {"encoder_depth": L, "pseudocount": 1.0}
        for seed in range(_seeds(full, design, MIDDLE) if full else 1):
            grid.append(Cell(table, "learned_pseudocount", 10, seed, settings, MEASURES))
    return grid


def _seeds(full: bool, design: str, N: int) -> int:
    if full or (N == MIDDLE and design == "flat"):
        return MANY_SEEDS
    return 4 if N == MIDDLE else 1


def conclude(rows: pd.DataFrame) -> list[str]:
    """How far the gap falls, how much the pseudocount still matters, and what refinement leaves."""
    ours = rows[rows["method"] == "ours"]
    said = [_answer(ours)]
    for (design, N), some in ours.groupby(["table.design", "table.reads"], sort=False):
        said.append(_fall(str(design), int(str(N)), some))
    said.append(
        "The two differ because an encoder learns the samples that it is fitted to, noise and "
        "all, the more so the deeper it is; trials with endless samples are in benchmarks/LOG.md."
    )
    exact = ours.dropna(subset="exact_error_2")
    said.append(
        "After two Newton steps, which every answer takes by default, the gap held out is "
        f"{ours['held_gap_2'].median():.2g} nats (median over fits), at most "
        f"{ours['held_gap_2'].max():.2g}. Where importance weights are even enough to tell "
        f"({len(exact)} of {len(ours)} fits), that answer differs from the exact posterior mean by "
        f"{exact['exact_error_2'].median():.2g} posterior standard deviations beyond the "
        f"Monte-Carlo error of {exact['exact_noise'].median():.2g} (90 % of fits by at most "
        f"{exact['exact_error_2'].quantile(0.9):.2g}), the encoder's own by "
        f"{exact['exact_error_0'].median():.2g}."
    )
    for design, N in rows[["table.design", "table.reads"]].drop_duplicates().to_numpy():
        some = rows[(rows["table.design"] == design) & (rows["table.reads"] == N)]
        said.append(_spread(design, N, some))
    learned = rows[rows["method"] == "learned_pseudocount"]
    by = "settings.encoder_depth"
    for design, some in learned.groupby("table.design", sort=False):
        here = ours[
            (ours["table.design"] == design)
            & (ours["table.reads"] == MIDDLE)
            & (ours["settings.pseudocount"] == 1.0)
            & ours["seed"].isin(some["seed"])
            & ours[by].isin(some[by])
        ]
        gap, error = (
            [(t.groupby(by)[name].median()) for t in (here, some)]
            for name in ("gap_0", "covariance")
        )
        said.append(
            f"{_of(design, MIDDLE)}, a pseudocount learned from 1: gap at L = 1, 2, 3 "
            f"{_list(gap[1])} nats instead of {_list(gap[0])}, covariance error {_list(error[1])} "
            f"instead of {_list(error[0])}."
        )
    return said


def _answer(ours: pd.DataFrame) -> str:
    here = ours[(ours["table.reads"] == MIDDLE) & (ours["settings.pseudocount"] == 1.0)]
    by = here.groupby(["table.design", "settings.encoder_depth"])
    median = by[["gap_0", "held_gap_0"]].median()
    falls = {
        (design, name): median.loc[(design, 1), name] / median.loc[(design, 3), name]
        for design, name in itertools.product(DESIGNS, ("gap_0", "held_gap_0"))
    }
    in_sample = [falls[design, "gap_0"] for design in DESIGNS]
    verdict = "yes" if min(in_sample) >= BAR else "in part" if max(in_sample) >= BAR else "no"
    return (
        f"On the samples it is fitted to, {verdict}: at {MIDDLE:,} reads its gap at L = 1 is "
        f"{falls['flat', 'gap_0']:.3g} times (flat tables) and {falls['wide', 'gap_0']:.3g} times "
        "(wide ones) that at L = 3; on new samples "
        f"{falls['flat', 'held_gap_0']:.2g} and {falls['wide', 'held_gap_0']:.2g} times. Two "
        f"Newton steps leave {ours['held_gap_2'].max():.2g} nats of it at most, whatever the depth."
    )


def _of(design: object, N: int) -> str:
    return f"{str(design).capitalize()} tables of {N:,} reads"


def _list(values: pd.Series) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _fall(design: str, N: int, some: pd.DataFrame) -> str:
    by = ["settings.encoder_depth", "settings.pseudocount"]
    names = ["gap_0", "held_gap_0", "z_error", "held_z_error", "held_z_bias", "covariance"]
    median = some.groupby(by)[names].median()
    first, third = median.loc[1], median.loc[3]
    ratios = first["gap_0"] / third["gap_0"]
    verdict = ""
    if N == MIDDLE:
        met = int((ratios >= BAR).sum())
        holds = "is met" if met == len(ratios) else f"is met by {met} of {len(ratios)} pseudocounts"
        verdict = f" The bar of {BAR} times {holds}."

    def change(name: str) -> str:
        return f"from {first.loc[1.0, name]:.3g} to {third.loc[1.0, name]:.3g}"

    return (
        f"{_of(design, N)}, pseudocount 1, from L = 1 to L = 3: the encoder's gap goes "
        f"{change('gap_0')} nats a sample, {ratios.loc[1.0]:.3g} times less ({ratios.min():.3g} to "
        f"{ratios.max():.3g} times over the pseudocounts), and the error of ẑ {change('z_error')} "
        f"posterior standard deviations; held out the gap {change('held_gap_0')}, the error "
        f"{change('held_z_error')}, and its mean over samples, the bias, {change('held_z_bias')}. "
        f"The covariance error goes {change('covariance')}.{verdict}"
    )


def _spread(design: object, N: int, some: pd.DataFrame) -> str:
    by = ["method", "settings.encoder_depth", "settings.pseudocount"]
    some = some[some["method"] != "learned_pseudocount"]
    median = some.groupby(by, dropna=False)["covariance"].median()
    span = median.groupby(level=[0, 1], dropna=False).agg(
        lambda errors: errors.max() - errors.min()
    )
    ours = span.loc["ours"]
    pca, first, deep = span.loc["log_ppca"].iloc[0], ours.loc[1], ours[ours.index >= 2]
    text = ", ".join(f"{value:.2g} at L = {L:.0f}" for L, value in ours.items())
    met = [name for name, of in (("L = 1", first), ("PCA", pca)) if deep.max() < SPREAD_BAR * of]
    verdict = f"less than a quarter of that of {' and of '.join(met)}" if met else "not a quarter"
    return (
        f"{_of(design, N)}: over the pseudocounts the covariance error differs by {text}, and by "
        f"{pca:.2g} for PCA: at L >= 2 {verdict}."
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Gap and covariance error against depth: a column a number of reads, two rows a design."""
    reads = sorted(rows["table.reads"].unique())
    figure = Figure(figsize=(2.9 * len(reads) + 0.6, 9.5), layout="constrained")
    axes = figure.subplots(4, len(reads), sharex=True, sharey="row", squeeze=False)
    ours = rows[rows["method"] == "ours"]
    shades = dict(zip(sorted(ours["settings.pseudocount"].unique()), SHADES, strict=False))
    for (i, design), (j, N) in itertools.product(enumerate(DESIGNS), enumerate(reads)):
        gap, error = axes[2 * i, j], axes[2 * i + 1, j]
        here = rows[(rows["table.design"] == design) & (rows["table.reads"] == N)]
        for c, some in here[here["method"] == "ours"].groupby("settings.pseudocount"):
            for ax, measure, line in (
                (gap, "gap_0", "-"),
                (gap, "held_gap_0", "--"),
                (error, "covariance", "-"),
            ):
                by_depth = some.groupby("settings.encoder_depth")[measure]
                low, middle, high = by_depth.min(), by_depth.median(), by_depth.max()
                label = f"c = {c:g}" if line == "-" else None
                ax.plot(middle.index, middle, f"o{line}", color=shades[c], ms=3.5, label=label)
                if line == "-":
                    ax.fill_between(low.index, low, high, color=shades[c], alpha=0.2, lw=0)
        pca = here[here["method"] == "log_ppca"]
        for c, some in pca.groupby("settings.pseudocount"):
            error.axhline(some["covariance"].median(), color=shades[c], ls=":", lw=1.2)
        gap.set(yscale="log", title=f"{design}, {N:,} reads")
        error.set_ylim(0, None)
    for i in range(2):
        axes[2 * i, 0].set_ylabel("gap, nats a sample\n(dashed: held out)")
        axes[2 * i + 1, 0].set_ylabel("covariance error\n(dotted: PCA)")
    for ax in axes[-1]:
        ax.set_xlabel("layers of the encoder, L")
        ax.set_xticks(sorted(ours["settings.encoder_depth"].unique()))
    axes[0, -1].legend(title="pseudocount", frameon=False, fontsize=8)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


SCENARIO = Scenario(
    "depth",
    "Does a deeper encoder remove the bias that the pseudocount puts in?",
    cells,
    ("table.design", "table.reads", "settings.pseudocount", "method", "settings.encoder_depth"),
    (
        "gap_0",
        "gap_1",
        "gap_2",
        "gap_3",
        "held_gap_0",
        "held_gap_1",
        "held_gap_2",
        "held_gap_3",
        "z_error",
        "z_bias",
        "z_slope",
        "held_z_error",
        "held_z_bias",
        "held_z_slope",
        "z_r2",
        "exact_error_0",
        "exact_error_2",
        "exact_noise",
        "effective",
        "sd_ratio",
        "covariance",
        "mu",
        "sigma2_ratio",
        "coverage_50",
        "coverage_90",
        "coverage_all_50",
        "coverage_all_90",
        "told",
        "nonzero",
    ),
    conclude,
    draw,
    on_page=lambda rows: rows[rows["settings.pseudocount"] == 1.0],
    page_measures=(
        "gap_0",
        "held_gap_0",
        "held_gap_2",
        "z_error",
        "held_z_error",
        "held_z_bias",
        "covariance",
    ),
)
