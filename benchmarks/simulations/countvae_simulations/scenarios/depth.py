"""Depth of the encoder against the pseudocount, at several numbers of reads."""

import itertools
from collections.abc import Iterator
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from countvae import MultinomialVAE
from countvae_simulations.cell import Cell
from countvae_simulations.scenarios.base import Scenario, root
from countvae_simulations.scenarios.coverage import coverage_verdict

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
DEFAULT_DEPTH = signature(MultinomialVAE).parameters["encoder_depth"].default
PLACES = {"gap_0": "in sample", "held_gap_0": "held out"}
BIASES = {"held_z_bias_square": "held out", "z_bias_square": "in sample"}
MANY_SEEDS = 10
MIDDLE = 1000
SETTINGS = ["settings.encoder_depth", "settings.pseudocount"]
BAR = 10
"""Times that the gap is to fall from one layer to three, at 1,000 reads."""

SPREAD_BAR = 0.25
"""Share of the spread at L = 1, and of PPCA's, that is to be left over the pseudocounts."""

LITTLE = 0.01
"""Spread of the covariance error over the pseudocounts below which there is none to take away."""

RESAMPLES, LOW, HIGH = 2000, 0.05, 0.95
"""Draws of the seeds, and the ends of intervals over them."""

SHADES = ("#9ecae1", "#4292c6", "#08519c", "#08306b")


def cells(full: bool) -> list[Cell]:
    """Designs × reads × pseudocounts × layers, PPCA at the same pseudocounts, a learned one."""
    reads = (30, 100, 1000, 10_000, 100_000) if full else (100, 1000, 10_000)
    pseudocounts = (0.1, 0.5, 1.0, 2.0) if full else (0.1, 1.0)
    grid = []
    for design, N, c in itertools.product(DESIGNS, reads, pseudocounts):
        table = TABLE | {"reads": N, "design": design}
        for seed in range(_seeds(full, N)):
            for L in DEPTHS if full else DEPTHS[:3]:
                settings = {"encoder_depth": L, "pseudocount": c}
                grid.append(Cell(table, "ours", 10, seed, settings, MEASURES))
            grid.append(Cell(table, "log_ppca", 10, seed, {"pseudocount": c}, ("covariance",)))
    for design, L in itertools.product(DESIGNS, DEPTHS[:3]):
        table = TABLE | {"reads": MIDDLE, "design": design}
        settings = {"encoder_depth": L, "pseudocount": 1.0}
        for seed in range(MANY_SEEDS if full else 1):
            grid.append(Cell(table, "learned_pseudocount", 10, seed, settings, MEASURES))
    return grid


def _seeds(full: bool, N: int) -> int:
    return MANY_SEEDS if full else 2 if N == MIDDLE else 1


def conclude(rows: pd.DataFrame) -> list[str]:
    """How far the gap falls, how much the pseudocount still matters, and whether intervals hold."""
    ours = rows[rows["method"] == "ours"]
    spans = _spans(rows)
    default = ours[
        (ours["settings.encoder_depth"] == DEFAULT_DEPTH) & (ours["settings.pseudocount"] == 1.0)
    ]
    cases = default["table.design"] + default["table.reads"].map(" tables of {:,} reads".format)
    verdict, of_intervals = coverage_verdict(default.assign(case=cases))
    return [
        f"{_biases(ours)} {_answer(ours)} {_quarters(spans)} {verdict}",
        *_goals(ours),
        _of_pseudocounts(ours),
        *_against_truth(ours),
        *(_fall(design, fits) for design, fits in _settings(ours)),
        *_in_sample_alone(ours),
        *_refined(ours),
        "Brackets behind a bias are intervals of 90 %, from drawing the seeds again, which of ten "
        "seeds are a little too short; a bias within "
        "chance has the limit 0. Of fitted samples nothing is taken off for chance, as the encoder "
        "was fitted to them: an upper limit for these, and none for new ones; but at L = 1, where "
        "it is asked whether their bias falls enough, chance is taken off.",
        *(f"Intervals at L = {DEFAULT_DEPTH}, pseudocount 1. {said}" for said in of_intervals),
        *(_spread(design, N, span) for (design, N), span in spans.iterrows()),
        *_learned(rows, ours),
    ]


def _learned(rows: pd.DataFrame, ours: pd.DataFrame) -> list[str]:
    said = []
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
        gap, held, error = (
            [(t.groupby(by)[name].median()) for t in (here, some)]
            for name in ("gap_0", "held_gap_0", "covariance")
        )
        said.append(
            f"{_of(design, MIDDLE)}, a pseudocount learned from 1: covariance error at L = 1, 2, 3 "
            f"{_list(error[1])} instead of {_list(error[0])}, gap held out {_list(held[1])} nats "
            f"instead of {_list(held[0])}, in sample {_list(gap[1])} instead of {_list(gap[0])}. "
            f"It pays in the error {_where_lower(*error)}, in the gap held out "
            f"{_where_lower(*held)}."
        )
    return said


def _where_lower(fixed: pd.Series, learned: pd.Series) -> str:
    lower = learned.index[learned < (1 - LITTLE) * fixed]
    return f"at L = {', '.join(f'{L:g}' for L in lower)}" if len(lower) else "nowhere"


def _gaps(ours: pd.DataFrame, depths: tuple[int, ...] = (1, 3)) -> pd.DataFrame:
    """Median gaps at some numbers of layers: a line a design and number of reads."""
    here = ours[(ours["settings.pseudocount"] == 1.0) & ours["settings.encoder_depth"].isin(depths)]
    by = ["table.design", "table.reads", "settings.encoder_depth"]
    return here.groupby(by, sort=False)[list(PLACES)].median().unstack()


def _biases(ours: pd.DataFrame) -> str:
    """Whether three layers have less of a bias than one, on new samples."""
    said = []
    for design, fits in _settings(ours):
        by_depth = fits[fits["settings.pseudocount"] == 1.0].groupby("settings.encoder_depth")
        first, third = (by_depth.get_group(L)["held_z_bias_square"] for L in (1, 3))
        lower = _bound(third, HIGH) < _bound(first, LOW)
        said.append(
            f"on {design} tables it {'falls' if lower else 'does not fall'}, "
            f"{_with_interval(first)} at L = 1 and {_with_interval(third)} at L = 3"
        )
    return (
        f"The bias of the encoder's ẑ on new samples, at {MIDDLE:,} reads and pseudocount 1, in "
        f"posterior standard deviations (with intervals of 90 %): {'; '.join(said)}."
    )


def _answer(ours: pd.DataFrame) -> str:
    """Whether the gap falls as it is to."""
    gaps = _gaps(ours).xs(MIDDLE, level="table.reads")
    places = (
        f"{place} it "
        + " and ".join(
            f"{_change(gap[1], gap[3])} on {design} tables" for design, gap in gaps[name].iterrows()
        )
        for name, place in reversed(PLACES.items())
    )
    met = [_enough(_fall_of(fits, name)) for _, fits in _settings(ours) for name in PLACES]
    word = "met" if all(met) else "met in part" if any(met) else "missed"
    return (
        f"The encoder's gap is to fall {BAR} times there, which is {word}: {'; '.join(places)} "
        "(what falls in sample alone was learnt from these samples). "
        "Two Newton steps, which every answer takes by default, leave at most "
        f"{ours['held_gap_2'].max():.2g} nats of the gap held out."
    )


def _goals(ours: pd.DataFrame) -> list[str]:
    """Whether gap and bias fall as they are to, and where the default lies."""
    gaps = _gaps(ours, (1, DEFAULT_DEPTH, 3)).xs(MIDDLE, level="table.reads")
    said = []
    for name, place in reversed(PLACES.items()):
        falls = (_fall_of(fits, name) for _, fits in _settings(ours))
        each = (
            f"on {design} tables {gap[1]:.3g}, {gap[DEFAULT_DEPTH]:.3g} and {gap[3]:.3g} nats "
            f"({_interval(fall)} times): " + ("met" if _enough(fall) else "missed")
            for (design, gap), fall in zip(gaps[name].iterrows(), falls, strict=True)
        )
        said.append(f"{place.capitalize()}, {'; '.join(each)}.")
    return [
        f"The gap at one layer, at the default of {DEFAULT_DEPTH} and at three, judged by the "
        f"lower end of the interval of its fall. {' '.join(said)} The bias of ẑ is to fall {BAR} "
        f"times as well, by its intervals (in sample chance is taken off at L = 1): it does "
        f"{_biases_fall(ours)}."
    ]


def _fall_of(fits: pd.DataFrame, name: str) -> np.ndarray:
    """How many times a median falls from one layer to three, for draws of the seeds."""
    wide = fits[fits["settings.pseudocount"] == 1.0].pivot_table(
        name, "seed", "settings.encoder_depth"
    )
    drawn = wide[[1, 3]].to_numpy()[_draws_of(len(wide))]
    middle = np.median(drawn, axis=1)
    return middle[:, 0] / middle[:, 1]


def _enough(falls: np.ndarray) -> bool:
    return bool(np.quantile(falls, LOW) >= BAR)


def _against_truth(ours: pd.DataFrame) -> list[str]:
    """How far the encoder's answer and the refined one lie from the true factors."""
    if "true_error_0" not in ours:
        return []
    said = []
    for design, fits in _settings(ours):
        settings = fits.groupby(SETTINGS)

        first, refined, third = (settings.get_group((L, 1.0)) for L in (1, DEFAULT_DEPTH, 3))
        said.append(
            f"{_of(design, MIDDLE)}, pseudocount 1, against the true factors of samples held out, "
            "in posterior standard deviations (factors of which the data tell; an exact posterior "
            "mean at the true decoder has error 1 and bias 0): from L = 1 to L = 3 the error of "
            f"the encoder's ẑ goes from {_median(first['true_error_0'])} to "
            f"{_median(third['true_error_0'])}, its bias from {root(first['true_bias_square_0'])} "
            f"to {root(third['true_bias_square_0'])}; after two Newton steps, at L = "
            f"{DEFAULT_DEPTH}, the error is {_median(refined['true_error_2'])} and the bias "
            f"{root(refined['true_bias_square_2'])}, which is that of the fitted decoder."
        )
    return said


def _median(values: pd.Series) -> str:
    return f"{values.median():.3g}"


def _settings(ours: pd.DataFrame) -> Iterator[tuple[object, pd.DataFrame]]:
    """Of each design, the fits in the middle of the reads."""
    yield from ours[ours["table.reads"] == MIDDLE].groupby("table.design", sort=False)


def _of_pseudocounts(ours: pd.DataFrame) -> str:
    """Size of the bias of ẑ on new samples by pseudocount, at one layer and at three."""
    said = []
    for design, fits in _settings(ours):
        sizes = fits.groupby(SETTINGS)["held_z_bias_square"].agg(_size)
        each = (
            f"{of_first:.2g} to {of_third:.2g} with {c:g}"
            for (c, of_first), of_third in zip(sizes[1].items(), sizes[3], strict=True)
        )
        said.append(f"on {design} tables {', '.join(each)}")
    return (
        "The size of the bias on new samples by pseudocount, from L = 1 to L = 3: "
        f"{'; '.join(said)}. Biases of one size need not have one direction."
    )


def _biases_fall(ours: pd.DataFrame) -> str:
    """Of each design, at how many pseudocounts the bias of ẑ surely falls enough.

    The bias of fitted samples has nothing taken off for chance, so it is an upper limit at three
    layers; at one layer that is taken off here.
    """
    said = []
    for design, fits in _settings(ours):
        fits = fits.assign(z_bias_square_less_chance=_less_chance(fits))
        for name, place in BIASES.items():
            at_one = "z_bias_square_less_chance" if name == "z_bias_square" else name
            settings = fits.groupby(SETTINGS)
            low = settings[at_one].agg(_bound, quantile=LOW).unstack("settings.encoder_depth")[1]
            high = settings[name].agg(_bound, quantile=HIGH).unstack("settings.encoder_depth")[3]
            met = ((low > 0) & (low >= BAR * high)).sum()
            first, third = settings.get_group((1, 1.0)), settings.get_group((3, 1.0))
            said.append(
                f"on {design} tables {place} at {met} of {len(low)} pseudocounts (where it is 1, "
                f"from {_with_interval(first[at_one])} to {_with_interval(third[name])} standard "
                "deviations)"
            )
    return ", ".join(said)


def _less_chance(fits: pd.DataFrame) -> pd.Series:
    """Bias of fitted samples, less what chance gives a regression on k factors and a constant."""
    square, n, p = fits["z_bias_square"], fits["table.n"], fits["k"] + 1
    return square - (fits["z_error"] ** 2 - square) * p / (n - p)


def _times(some: pd.DataFrame, name: str) -> pd.Series:
    """How many times a measure falls from one layer to three, table by table."""
    wide = some.pivot_table(name, ["settings.pseudocount", "seed"], "settings.encoder_depth")
    return wide[1] / wide[3]


def _change(first: float, third: float) -> str:
    if third < first:
        return f"falls {first / third:.3g} times, from {first:.3g} to {third:.3g} nats"
    grown = 100 * (third / first - 1)
    return f"grows by {grown:.0f} %, from {first:.3g} to {third:.3g} nats"


def _quarters(spans: pd.DataFrame) -> str:
    deep = spans[[L for L in spans if L not in ("pca", 1)]].max(axis=1)
    said = []
    for name, of in (("for PPCA", spans["pca"]), ("at L = 1", spans[1])):
        asked = of > LITTLE
        failed = spans.index[asked & (deep >= SPREAD_BAR * of)]
        where = ", ".join(f"{design} tables of {N:,} reads" for design, N in failed)
        met = f"{asked.sum() - len(failed)} of the {asked.sum()} settings"
        said.append(
            f"{name} at {met} where that is more than {LITTLE}" + f" (not {where})" * bool(where)
        )
    return (
        "Over the pseudocounts the covariance error at L >= 2 differs by less than a quarter of "
        f"what it does {' and of what it does '.join(said)}."
    )


def _of(design: object, N: int) -> str:
    return f"{str(design).capitalize()} tables of {N:,} reads"


def _list(values: pd.Series) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _fall(design: object, some: pd.DataFrame) -> str:
    names = ["gap_0", "held_gap_0", "z_error", "held_z_error", "covariance"]
    grouped = some.groupby(SETTINGS)
    median = grouped[names].median()
    first, third = median.loc[1], median.loc[3]
    ratios = first[list(PLACES)] / third[list(PLACES)]
    met = ", ".join(
        f"{place} at {(ratios[name] >= BAR).sum()} of {len(ratios)} pseudocounts"
        for name, place in PLACES.items()
    )

    def goes(name: str) -> str:
        return f"from {first.loc[1.0, name]:.3g} to {third.loc[1.0, name]:.3g}"

    def falls(name: str) -> str:
        over, each = ratios[name], _times(some, name)[1.0]
        return (
            f"{_change(first.loc[1.0, name], third.loc[1.0, name])} a sample (that at L = 1 is "
            f"{over.min():.3g} to {over.max():.3g} times that at L = 3 over the pseudocounts, and "
            f"{each.min():.3g} to {each.max():.3g} times over the seeds)"
        )

    return (
        f"{_of(design, MIDDLE)}, pseudocount 1, from L = 1 to L = 3: in sample the encoder's gap "
        f"{falls('gap_0')}, the error of ẑ goes {goes('z_error')} posterior standard deviations "
        f"and the bias in it {_bias(grouped, 'z_bias_square')}; held out the gap "
        f"{falls('held_gap_0')}, the error goes {goes('held_z_error')} and the bias "
        f"{_bias(grouped, 'held_z_bias_square')}. The covariance error goes "
        f"{goes('covariance')}. The bar of {BAR} times is met {met}."
    )


def _bias(grouped: Any, name: str) -> str:
    """From one layer to three, with intervals of 90 % over the seeds."""
    first, third = (grouped.get_group((L, 1.0))[name] for L in (1, 3))
    return f"from {_with_interval(first)} to {_with_interval(third)}"


def _with_interval(squares: pd.Series) -> str:
    return f"{root(squares)} ({_bound(squares, LOW):.2g} to {_bound(squares, HIGH):.2g})"


def _in_sample_alone(ours: pd.DataFrame) -> list[str]:
    gaps = _gaps(ours)
    falls = gaps.xs(3, axis=1, level=1) < gaps.xs(1, axis=1, level=1)
    learnt = gaps.index[falls["gap_0"] & ~falls["held_gap_0"]]
    said = []
    if len(learnt):
        where = "; ".join(f"{design} tables of {N:,} reads" for design, N in learnt)
        said.append(
            f"In sample the gap falls and held out it does not, with pseudocount 1, on {where}: "
            "what a deeper encoder gains there it gains on the samples that it was fitted to (from "
            "how many samples on it gains on new ones is the next question)."
        )
    times = pd.DataFrame({name: gaps[name][1] / gaps[name][3] for name in PLACES})
    less = times[(times["held_gap_0"] > 1) & (times["held_gap_0"] < times["gap_0"])]
    if len(less):
        where = "; ".join(
            f"{design} tables of {N:,} reads {row['held_gap_0']:.3g} instead of {row['gap_0']:.3g}"
            for (design, N), row in less.iterrows()
        )
        said.append(
            f"Held out it falls with pseudocount 1, but fewer times than in sample, on {where}."
        )
    return said


def _refined(ours: pd.DataFrame) -> list[str]:
    """What Newton steps leave, of the optimum and of the exact posterior mean."""
    said = [
        "After two Newton steps, which every answer takes by default, the gap held out, a mean "
        f"over the samples of a fit, is {ours['held_gap_2'].median():.2g} nats (median over fits), "
        f"at most {ours['held_gap_2'].max():.2g}."
    ]
    silent = []
    for (design, N), some in ours.groupby(["table.design", "table.reads"], sort=False):
        tables, exact = _told_at_every_depth(some)
        if exact["seed"].nunique() < some["seed"].nunique() / 2:
            silent.append(f"{design} tables of {N:,} reads")
            continue
        of_exact = exact.filter(like="exact_")
        # fits of one seed are to one truth: a seed is drawn with all of its pseudocounts
        by_depth = of_exact.groupby([exact["settings.encoder_depth"], exact["seed"]]).mean()
        by_depth, refined = by_depth.groupby(level=0), of_exact.groupby(exact["seed"]).mean()
        distance, bias = (
            ", ".join(by_depth[name].agg(_with_interval))
            for name in ("exact_excess_0", "exact_bias_square_0")
        )
        by_pseudocount = exact.groupby(SETTINGS[::-1])["exact_excess_0"].agg(root).unstack()
        each = (f"{row[1]} and {row[3]} with {c:g}" for c, row in by_pseudocount.iterrows())
        said.append(
            f"{_of(design, N)}, against the exact posterior mean at the fitted decoder (told at "
            f"every L on {len(exact) // by_depth.ngroups} of {tables} tables and pseudocounts), in "
            f"its standard deviations: the encoder's ẑ at L = "
            f"{', '.join(f'{L:g}' for L in by_depth.groups)} is {distance} away, its bias "
            f"{bias}; after two Newton steps it is {_with_interval(refined['exact_excess_2'])} "
            f"away, its bias {_with_interval(refined['exact_bias_square_2'])} (Monte-Carlo error, "
            f"taken off, {root(exact['exact_noise_square'])}). By pseudocount the encoder's ẑ is "
            f"at L = 1 and 3 {'; '.join(each)} away."
        )
    if silent:
        said.append(
            "Importance weights are too uneven to tell the exact posterior mean at every L on half "
            f"of the seeds of {'; '.join(silent)}: nothing is said of it there."
        )
    return said


def _told_at_every_depth(some: pd.DataFrame) -> tuple[int, pd.DataFrame]:
    """Number of seeds by pseudocounts, and the fits of those whose exact mean is told at every L.

    Depths would else be compared on different tables, the easy ones.
    """
    of_table = some.groupby(["seed", "settings.pseudocount"])
    if "exact_excess_2" not in some:
        return of_table.ngroups, some.iloc[:0]
    told = of_table["exact_excess_2"].transform(lambda values: values.notna().all())
    return of_table.ngroups, some[told.astype(bool)]


def _spans(rows: pd.DataFrame) -> pd.DataFrame:
    """Range of the covariance error over the pseudocounts at each depth, and of PPCA's (`pca`)."""
    rows = rows[rows["method"].isin(("ours", "log_ppca"))]
    by = ["table.design", "table.reads", "method", "settings.encoder_depth"]
    errors = rows.assign(**{by[3]: rows[by[3]].where(rows["method"] == "ours", 0)})
    median = errors.groupby([*by, "settings.pseudocount"], sort=False)["covariance"].median()
    over = median.groupby(level=by, sort=False)
    spans = (over.max() - over.min()).droplevel("method").unstack()
    return spans.rename(columns=lambda L: int(L) or "pca")


def _spread(design: object, N: int, span: pd.Series) -> str:
    ours = span.drop("pca")
    text = ", ".join(f"{value:.2g} at L = {L}" for L, value in ours.items())
    deep = ours.drop(1).max()
    met = [
        word for word, at in (("L = 1", 1), ("PPCA", "pca")) if deep < SPREAD_BAR * float(span[at])
    ]
    verdict = f"less than a quarter of that of {' and of '.join(met)}" if met else "not a quarter"
    return (
        f"{_of(design, N)}: over the pseudocounts the covariance error differs by {text}, and by "
        f"{span['pca']:.2g} for PPCA: at L >= 2 {verdict}."
    )


def _size(squares: pd.Series) -> float:
    """Root of an average of squares less what chance gives them; 0 for none beyond it."""
    return float(np.sqrt(max(squares.mean(), 0.0)))


def _draws_of(seeds: int) -> np.ndarray:
    """Draws of the seeds with replacement, (resamples, seeds)."""
    return np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))


def _interval(values: np.ndarray) -> str:
    return f"{np.quantile(values, LOW):.3g} to {np.quantile(values, HIGH):.3g}"


def _bound(squares: pd.Series, quantile: float) -> float:
    """Quantile of that over draws of the seeds with replacement."""
    means = squares.to_numpy()[_draws_of(len(squares))].mean(axis=1)
    return float(np.sqrt(max(np.quantile(means, quantile), 0.0)))


def draw(rows: pd.DataFrame) -> Figure:
    """Gap and bias of new samples by depth at the middle of the reads, a column a design."""
    figure = Figure(figsize=(7.6, 5.6), layout="constrained")
    axes = figure.subplots(2, len(DESIGNS), sharex=True, sharey="row")
    ours = rows[(rows["method"] == "ours") & (rows["table.reads"] == MIDDLE)]
    shades = _shades(ours)
    for (gap, bias), design in zip(axes.T, DESIGNS, strict=True):
        here = ours[ours["table.design"] == design]
        for c, some in here.groupby("settings.pseudocount"):
            by_depth = some.groupby("settings.encoder_depth")
            for measure, line in (("held_gap_0", "-"), ("gap_0", "--")):
                of = by_depth[measure]
                _line(gap, shades[c], line, c, of.median(), of.min(), of.max())
            _bias_line(bias, shades[c], "-", c, by_depth["held_z_bias_square"])
        gap.set(yscale="log", title=f"{design} tables, {MIDDLE:,} reads")
        bias.set_xlabel("layers of the encoder, L")
        bias.set_xticks(sorted(ours["settings.encoder_depth"].unique()))
    axes[0, 0].set_ylabel("gap, nats a sample\n(dashed: fitted samples)")
    axes[1, 0].set_ylabel("bias of ẑ of new samples,\nposterior sd")
    axes[1, 0].set_ylim(0, None)
    axes[1, 0].legend(frameon=False, fontsize=8, loc="upper right")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def draw_more(rows: pd.DataFrame) -> Figure:
    """Gap, bias and covariance error by depth: a column a number of reads, three rows a design."""
    reads = sorted(rows["table.reads"].unique())
    figure = Figure(figsize=(2.9 * len(reads) + 0.6, 13.5), layout="constrained")
    axes = figure.subplots(6, len(reads), sharex=True, sharey="row", squeeze=False)
    ours = rows[rows["method"] == "ours"]
    shades = _shades(ours)
    for (i, design), (j, N) in itertools.product(enumerate(DESIGNS), enumerate(reads)):
        gap, bias, error = axes[3 * i : 3 * i + 3, j]
        here = rows[(rows["table.design"] == design) & (rows["table.reads"] == N)]
        for c, some in here[here["method"] == "ours"].groupby("settings.pseudocount"):
            by_depth = some.groupby("settings.encoder_depth")
            for ax, measure, line in (
                (gap, "held_gap_0", "-"),
                (gap, "gap_0", "--"),
                (error, "covariance", "-"),
            ):
                of = by_depth[measure]
                _line(ax, shades[c], line, c, of.median(), of.min(), of.max())
            for measure, line in (("held_z_bias_square", "-"), ("z_bias_square", "--")):
                _bias_line(bias, shades[c], line, c, by_depth[measure])
        pca = here[here["method"] == "log_ppca"]
        for c, some in pca.groupby("settings.pseudocount"):
            error.axhline(some["covariance"].median(), color=shades[c], ls=":", lw=1.2)
        gap.set(yscale="log", title=f"{design}, {N:,} reads")
    for i in range(2):
        for row in (3 * i + 1, 3 * i + 2):
            axes[row, 0].set_ylim(0, None)
        axes[3 * i, 0].set_ylabel("gap, nats a sample\n(dashed: fitted samples)")
        axes[3 * i + 1, 0].set_ylabel("bias of ẑ, posterior sd\n(dashed: fitted samples)")
        axes[3 * i + 2, 0].set_ylabel("covariance error\n(dotted: PPCA)")
    for ax in axes[-1]:
        ax.set_xlabel("layers of the encoder, L")
        ax.set_xticks(sorted(ours["settings.encoder_depth"].unique()))
    axes[0, -1].legend(title="pseudocount", frameon=False, fontsize=8)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _shades(ours: pd.DataFrame) -> dict[float, str]:
    return dict(zip(sorted(ours["settings.pseudocount"].unique()), SHADES, strict=False))


def _bias_line(ax: Axes, shade: str, line: str, c: float, of: Any) -> None:
    low, high = (of.agg(_bound, quantile=q) for q in (LOW, HIGH))
    _line(ax, shade, line, c, of.agg(_size), low, high)


def _line(
    ax: Axes, shade: str, line: str, c: float, middle: pd.Series, low: pd.Series, high: pd.Series
) -> None:
    label = f"c = {c:g}" if line == "-" else None
    ax.plot(middle.index, middle, f"o{line}", color=shade, ms=3.5, label=label)
    ax.fill_between(low.index, low, high, color=shade, alpha=0.2, lw=0)


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
        "z_bias_square",
        "held_z_error",
        "held_z_bias_square",
        "true_error_0",
        "true_error_2",
        "true_bias_square_0",
        "true_bias_square_2",
        "z_explained",
        "exact_excess_0",
        "exact_excess_2",
        "exact_bias_square_0",
        "exact_bias_square_2",
        "exact_noise_square",
        "pareto_k",
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
    f"At {MIDDLE:,} reads, a line a pseudocount c. Gap: medians over seeds, shades their range. "
    "Bias of ẑ: roots of average squares less what chance gives them, shades intervals of 90 % "
    "from drawing the seeds again.",
    draw_more,
    on_page=lambda rows: rows[rows["settings.pseudocount"] == 1.0],
    page_measures=(
        "gap_0",
        "held_gap_0",
        "held_gap_2",
        "z_error",
        "z_bias_square",
        "held_z_error",
        "held_z_bias_square",
        "covariance",
        "coverage_50",
        "coverage_90",
        "coverage_all_50",
        "coverage_all_90",
        "told",
    ),
)
