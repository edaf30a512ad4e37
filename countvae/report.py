"""One page about a fitted model: it opens anywhere, and fetches nothing."""

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib import pyplot as plt
from matplotlib import rc_context
from matplotlib.figure import Figure

from countvae import network, plots
from countvae.design import columns, variables
from countvae.errors import MissingPackage
from countvae.estimator import MultinomialVAE
from countvae.ordination import axis_names
from countvae.stream import CountFile
from countvae.table import CountTable

__all__ = ["page"]

MOST_POINTS = 4000
"""Samples drawn, at most: more make a page heavy and a picture no clearer."""

CHECKED = 1000
"""Samples that are set beside new ones and whose gap is found, at most."""

NAMED = 5
"""Features of a module that are named."""

TOP = 5
"""Features at either end of a factor."""

EDGES = 150
LISTED = 15
LABELLED = 8
UNASSIGNED = "unassigned"
SHORT = 12
"""Letters of an id that is shown whole beside a name."""

NETWORK_FEATURES = 10_000
"""Features beyond which all pairs are not looked at for a page."""

LEVELS = 10
"""Groups of a column that have a colour of their own."""

COLUMNS = 40
KNOWN = ("mean_clr", "noise_variance")
PATHS = ("output", "metadata", "tree", "init")
"""Settings that are paths."""


def page(
    model: MultinomialVAE,
    samples: pd.DataFrame,
    run: Mapping[str, Any],
    features: pd.DataFrame,
    table: CountTable | CountFile | None = None,
    *,
    title: str = "countvae",
    no_table: str = "The table is not at hand.",
) -> str:
    """Write the page.

    Parameters
    ----------
    model : MultinomialVAE
        A fitted model.
    samples : DataFrame
        Coordinates of the samples fitted, by id, a column an axis.
    run : mapping
        What `countvae fit` wrote to run.json.
    features : DataFrame
        What is known of the features, by id; of loadings the model's own are shown.
    table : CountTable or CountFile, optional
        The table fitted, in the order of `samples`: its metadata colour the samples, and it is
        laid beside one that the model draws.
    title : str
        Of the page.
    no_table : str
        What to say where there is none.

    Returns
    -------
    str
        HTML. Whatever names there are in tables and metadata are text in it, never markup.
    """
    axes = axis_names(model.n_components_)
    coordinates = samples[axes].to_numpy()
    metadata = None if table is None else table.sample_metadata
    shown = _some(len(samples), MOST_POINTS)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "countvae", "font.size": 9}):
        parts = {
            "title": title,
            **_facts(model, run),
            **_fit(model),
            **_samples(model, samples, coordinates, metadata, shown),
            **_factors(model, features),
            **_network(model, features),
            **_checks(model, table),
        }
    none = "" if metadata is not None else "There are no metadata to colour samples by."
    environment = Environment(loader=PackageLoader("countvae"), autoescape=True)
    return environment.get_template("report.html").render(
        parts, no_table=no_table, no_metadata=none, times=_times(run)
    )


def _facts(model: MultinomialVAE, run: Mapping[str, Any]) -> dict[str, Any]:
    before, after, result = run["before_filters"], run["after_filters"], run["result"]
    dropped = {
        name: before[name] - after[name] for name in ("samples", "features") if name in before
    }
    lost = 1 - after["reads"] / before["reads"] if before["reads"] else 0.0
    arguments = run["arguments"]
    source = _short("tables", arguments.get("tables", []))
    return {
        "subtitle": f"{source} ({run['input']['source']}), {run['started'][:10]}",
        "facts": [
            ("samples", f"{after['samples']:,}"),
            ("features", f"{after['features']:,}"),
            ("median reads", f"{np.median(model.depth_):,.0f}"),
            ("factors", f"{model.n_components_}"),
            ("bound, nats a sample", f"{result['bound']:,.1f}"),
            ("noise variance", f"{model.noise_variance_:.3g}"),
            ("seconds to fit", f"{run['seconds']['fit']:,.1f}"),
        ],
        "shapes": [
            (name, [f"{shape[key]:,.0f}" for key in ("samples", "features", "reads")])
            for name, shape in (("in the file", before), ("fitted", after))
        ],
        "dropped": (
            f"Filters left out {dropped['samples']:,} samples and {dropped['features']:,} features,"
            f" with {lost:.2%} of the reads."
            if any(dropped.values())
            else "Nothing was left out."
        ),
        "settings": [
            ("SHA-256", ", ".join(run["input"]["sha256"])),
            *(
                (name, _short(name, value))
                for name, value in arguments.items()
                if value is not None
            ),
        ],
    }


def _short(name: str, value: Any) -> str:
    """Return a setting as text, of a path its name alone: a page may go to others."""
    if name == "tables":
        return ", ".join(Path(path).name for path in value)
    return Path(value).name if name in PATHS else str(value)


def _times(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = [(name, f"{value:,.1f} s") for name, value in run["seconds"].items()]
    return [("begun", run["started"]), *seconds, *run["versions"].items()]


def _bent(model: MultinomialVAE) -> bool:
    """Whether its decoder is a network."""
    return getattr(model, "decoder", "linear") == "network"


def _fit(model: MultinomialVAE) -> dict[str, Any]:
    ratio, history = model.explained_variance_ratio_, model.history_
    last = min(len(history), 5) - 1
    gained = history["bound"].iloc[-1] - history["bound"].iloc[-1 - last]

    def bars(ax: Any) -> None:
        ax.bar(np.arange(1, len(ratio) + 1), 100 * ratio, color=plots.COLOURS[0])
        ax.set_xlabel("factor")
        ax.set_ylabel("% of the variance")
        ax.spines[["top", "right"]].set_visible(False)

    return {
        "curve": _svg(lambda ax: plots.history(history, ax=ax)),
        "curve_says": (
            f"Bound by epoch, nats a sample without the multinomial coefficient; over the last"
            f" {last} of {len(history)} it rose by {gained:.2f}."
        ),
        "variances": _svg(bars),
        "noise_share": f"{1 - ratio.sum():.0%}",
        "bent": _bent(model),
    }


def _samples(
    model: MultinomialVAE,
    samples: pd.DataFrame,
    coordinates: np.ndarray,
    metadata: pd.DataFrame | None,
    shown: np.ndarray,
) -> dict[str, Any]:
    some = None if metadata is None else metadata.iloc[shown]
    columns, left_out = ([], []) if some is None else _columns(some)
    groups = None
    if some is not None and columns:
        groups = some[columns[0]["name"]]
        if not pd.api.types.is_numeric_dtype(groups):
            groups = groups.where(groups.isin(columns[0]["levels"]))

    def still(ax: Any) -> None:
        pair = (0, min(1, model.n_components_ - 1))
        ratio = model.explained_variance_ratio_
        plots.ordination(coordinates[shown], groups, axes=pair, ratio=ratio, ax=ax)

    ratio = zip(axis_names(model.n_components_), model.explained_variance_ratio_, strict=True)
    few = len(shown) < len(samples)
    return {
        "still": _png(still, (7.5, 4.6), "Samples in the first two factors"),
        "thinned": f" Every {len(samples) / len(shown):.1f}th sample is shown." if few else "",
        "left_out": f"Not to colour by: {'; '.join(left_out)}." if left_out else "",
        "data": {
            "samples": [str(name) for name in samples.index[shown]],
            "axes": [f"{name} ({share:.1%} of variance)" for name, share in ratio],
            "coordinates": [
                [float(f"{value:.4g}") for value in column] for column in coordinates[shown].T
            ],
            "columns": columns,
            "colours": list(plots.COLOURS[:LEVELS]),
        },
    }


def _columns(frame: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """Columns that samples can be coloured by, those with few groups first; and why not others."""
    found, left_out = [], []
    for name, values in frame.items():
        counts = values.value_counts()
        if pd.api.types.is_numeric_dtype(values) and len(counts) > 2:
            numbers = [float(f"{v:.5g}") if np.isfinite(v) else None for v in values.astype(float)]
            found.append({"name": str(name), "kind": "number", "values": numbers})
        elif why := _why_not(counts, len(frame)):
            left_out.append(f"{name} ({why})")
        else:
            levels = list(counts.index[:LEVELS])
            place = {level: i for i, level in enumerate(levels)}
            found.append(
                {
                    "name": str(name),
                    "kind": "group",
                    "levels": [str(level) for level in levels],
                    "rest": "missing" if len(counts) <= LEVELS else "other or missing",
                    "values": [place.get(value, -1) for value in values],
                }
            )
    found.sort(key=lambda column: len(column.get("levels", range(LEVELS + 1))))
    beyond = [f"{column['name']} (beyond {COLUMNS} columns)" for column in found[COLUMNS:]]
    return found[:COLUMNS], left_out + beyond


def _why_not(counts: pd.Series, n: int) -> str:
    """Say why groups of these sizes among n samples would colour nothing, if so."""
    if counts.empty:
        return "without a value"
    if len(counts) == 1:
        return f"{counts.index[0]} in every sample that has a value"
    if len(counts) <= max(LEVELS, n / 3):
        return ""
    return "another in every sample" if counts.max() == 1 else f"{len(counts)} groups"


def _factors(model: MultinomialVAE, features: pd.DataFrame) -> dict[str, Any]:
    names, annotated = axis_names(model.n_components_), _annotation(model, features)
    known = _known(model, features, annotated)
    V, sd, ids = model.clr_loadings_, model.clr_loadings_sd_, model.feature_ids_
    factors = []
    for c, name in enumerate(names):
        order = np.argsort(-V[:, c])
        ends = order if len(order) <= 2 * TOP else np.r_[order[:TOP], order[-TOP:]]
        longest = np.abs(V[ends, c]).max() or 1.0
        rows = [
            {
                "feature": ids[j],
                "annotation": known[ids[j]] or UNASSIGNED,
                "loading": f"{V[j, c]:+.2f}",
                "sd": "–" if np.isnan(sd[j, c]) else f"{sd[j, c]:.2f}",
                "down": V[j, c] < 0,
                "width": round(100 * abs(V[j, c]) / longest),
            }
            for j in ends
        ]
        share = f"{model.explained_variance_ratio_[c]:.1%}"
        factors.append({"name": name, "share": share, "rows": rows})
    return {"factors": factors, "annotated": annotated}


def _annotation(model: MultinomialVAE, features: pd.DataFrame) -> str:
    """The column that says most of a feature: taxonomy, or the first that is not the model's."""
    axes = axis_names(model.n_components_)
    own = {*axes, *(f"{name}_sd" for name in axes), *KNOWN}
    more = [str(name) for name in features.columns if name not in own]
    return next((name for name in more if name.lower() == "taxonomy"), next(iter(more), ""))


def _known(model: MultinomialVAE, features: pd.DataFrame, column: str) -> dict[str, str]:
    """What a column says of each feature, as text: nothing where it is empty."""
    if not column:
        return dict.fromkeys(model.feature_ids_, "")
    known = features[column].reindex(model.feature_ids_)
    return known.astype(object).where(known.notna(), "").map(str).to_dict()


def _called(model: MultinomialVAE, features: pd.DataFrame) -> dict[str, str]:
    """Short names: the last rank of a taxonomy that has one, and the beginning of a long id."""
    annotated = _annotation(model, features)
    if annotated.lower() != "taxonomy":
        return {name: name for name in model.feature_ids_}
    called = {}
    for name, lineage in _known(model, features, annotated).items():
        ranks = [rank.strip() for rank in lineage.split(";")]
        known = [rank.partition("__")[2] or rank for rank in ranks if not rank.endswith("__")]
        if len(known) > 1 and ranks[len(known) - 1].startswith("s__"):
            known = [f"{known[-2]} {known[-1]}"]
        last = known[-1] if known else ""
        if len(name) <= SHORT:
            called[name] = f"{last} ({name})" if last else name
        else:
            called[name] = f"{last or UNASSIGNED} ({name[:6]})"
    return called


def _no_network(says: str) -> dict[str, Any]:
    return {"network": "", "edges": [], "network_says": says}


def _network(model: MultinomialVAE, features: pd.DataFrame) -> dict[str, Any]:
    if _bent(model):
        says = "There is none of a model whose decoder is itself a network: it has no loadings."
        return _no_network(says)
    if model.n_features_in_ > NETWORK_FEATURES:
        says = f"Not drawn for more than {NETWORK_FEATURES:,} features; countvae network writes it."
        return _no_network(says)
    found = network.edges(model, partners=TOP, fdr=0.05)
    strongest = found[:EDGES]
    if strongest.empty:
        says = "No pair of features is tied at a false-discovery rate of 5 %."
        return _no_network(says)
    ids = pd.Index(pd.concat([strongest["feature_1"], strongest["feature_2"]]).unique())
    module = _modules(strongest).reindex(ids)
    nodes = pd.DataFrame({"module": module})
    graph, called = network.graph(strongest, nodes), _called(model, features)

    def draw(ax: Any) -> None:
        plots.network(graph, labels=called, top=LABELLED, ax=ax)

    return {
        "network": _png(draw, (8.0, 5.5), "Network of features"),
        "network_says": (
            f"The {len(strongest)} strongest of {len(found):,} pairs at a false-discovery rate of"
            " 5 %, by proportionality ρp of their log-ratios; the five strongest of each feature."
            " The rate is of all pairs, and holds if there are factors enough and samples are"
            " independent."
        ),
        "modules": [
            (f"{number}", f"{len(of)}", ", ".join(called[str(name)] for name in of[:NAMED]))
            for number, of in ids.groupby(module).items()
        ],
        "alone": f"{module.isna().sum()}",
        "edges": [
            {
                "one": called[str(row["feature_1"])],
                "other": called[str(row["feature_2"])],
                "weight": f"{row['weight']:+.2f}",
                "sd": f"{row['sd']:.2f}",
            }
            for row in strongest[:LISTED].to_dict("records")
        ],
    }


def _modules(edges: pd.DataFrame) -> pd.Series:
    """Modules of a network; none without igraph."""
    try:
        return network.modules(edges)
    except MissingPackage:
        return pd.Series(dtype="Int64")


def _checks(model: MultinomialVAE, table: CountTable | CountFile | None) -> dict[str, Any]:
    if table is None:
        return {"checks": ""}
    some = table.select_samples(_some(table.n, CHECKED))
    depth = np.rint(some.depth).astype(np.int64)
    if model.formula is None:
        drawn, _ = model.sample(some.n, depth, random_state=0)
    else:
        known = columns(variables(model.formula), some.sample_metadata)
        drawn, _ = model.sample_design(known, depth, random_state=0)
    figure = plt.figure(figsize=(12, 3.2), layout="constrained")
    counts = some.counts if isinstance(some, CountTable) else some[:]
    plots.predictive(counts, drawn, axes=list(figure.subplots(1, 4)))
    thinned = f" {some.n:,} of {table.n:,} samples." if some.n < table.n else ""
    return {
        "checks": _image(figure, "The table beside one that the model drew"),
        "checks_given": " and covariates" if model.formula else "",
        "checks_thinned": thinned,
        **_gap(model, some, thinned),
    }


def _gap(model: MultinomialVAE, some: CountTable | CountFile, thinned: str) -> dict[str, Any]:
    if model.posterior_variance == "none":
        says = "A plain autoencoder has no posterior that its encoder could fall short of."
        return {"gap": "", "gap_says": says}
    gap, depth = model.amortization_gap(some), some.depth

    def by_depth(ax: Any) -> None:
        ax.scatter(depth, np.maximum(gap, 1e-4), s=10, color=plots.COLOURS[0], alpha=0.6)
        ax.set_yscale("log")
        plots.reads_along(ax)
        ax.set_ylabel("gap of the encoder (nats)")
        ax.spines[["top", "right"]].set_visible(False)

    steps = model.refinement_steps
    newton = f" Answers take {steps} Newton steps from there." if steps else ""
    return {
        "gap": _png(by_depth, (6.0, 3.4), "Gap of the encoder by reads"),
        "gap_says": (
            f"What the encoder's own answer loses to the best one, by depth: {np.median(gap):.2g}"
            f" nats in the median, {gap.max():.2g} at most.{newton}{thinned}"
        ),
    }


def _some(n: int, most: int) -> np.ndarray:
    """Positions of at most so many of n, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int))


def _svg(draw: Callable[[Any], object]) -> Markup:
    figure = plt.figure(figsize=(5, 3.1), layout="constrained")
    draw(figure.subplots())
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return Markup(text[text.index("<svg") :])


def _png(draw: Callable[[Any], object], size: tuple[float, float], says: str) -> Markup:
    figure = plt.figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    return _image(figure, says)


def _image(figure: Figure, says: str) -> Markup:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    plt.close(figure)
    data = base64.b64encode(out.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(says, data)
