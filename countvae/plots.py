"""Pictures of a fitted model; each function draws on axes, given or new, and returns them."""

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox
from scipy.sparse import csr_array
from scipy.special import entr
from sklearn.isotonic import IsotonicRegression

__all__ = [
    "agreement",
    "biplot",
    "history",
    "loadings",
    "network",
    "ordination",
    "predictive",
    "selection",
]

COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000"),
    *("#882255", "#999933"),
)
"""Okabe and Ito's eight, told apart by every eye, and two of Tol's."""

EDGES: dict[str, dict[str, Any]] = {
    "together": {"color": "#707070", "linestyle": "-"},
    "apart": {"color": "#b00020", "linestyle": "--"},
}
"""In colours that no module has."""

GREY = "#9a9a9a"
HALO = patheffects.withStroke(linewidth=2, foreground="white")
MAX_POINTS = 20_000
"""More points than these make a file large and a picture no clearer."""

BY_PATHS = 500
"""Nodes up to which a network is laid out by the lengths of all its paths."""


def ordination(
    y: Float[np.ndarray, "n k"],
    groups: pd.Series | None = None,
    *,
    axes: tuple[int, int] = (0, 1),
    ratio: Float[np.ndarray, " k"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw samples in two of their coordinates, on one scale: distances are as they look.

    Parameters
    ----------
    y : ndarray, shape (n, k)
        Coordinates, as `MultinomialVAE.transform` returns them.
    groups : Series, optional
        Something known of each sample: numbers are shown on a scale, the rest as groups, most
        frequent first; missing values are grey.
    axes : (int, int)
        Which coordinates to draw.
    ratio : ndarray, shape (k,), optional
        `explained_variance_ratio_`, for the labels.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
    """
    ax = _new_axes(ax)
    at = y[:, list(axes)]
    style: dict[str, Any] = {"s": 22, "linewidths": 0.3, "edgecolors": "white", "alpha": 0.9}
    if groups is None:
        ax.scatter(*at.T, color=COLOURS[0], **style)
    else:
        missing = groups.isna().to_numpy()
        if missing.any():
            ax.scatter(*at[missing].T, color=GREY, label="missing", **style)
        if pd.api.types.is_numeric_dtype(groups):
            values = groups.to_numpy(dtype=float)[~missing]
            points = ax.scatter(*at[~missing].T, c=values, cmap="viridis", **style)
            ax.figure.colorbar(points, ax=ax, label=str(groups.name or ""))
        else:
            for i, (name, size) in enumerate(groups.value_counts().items()):
                of_group = (groups == name).to_numpy()
                colour = COLOURS[i] if i < len(COLOURS) else GREY
                ax.scatter(*at[of_group].T, color=colour, label=f"{name} ({size})", **style)
            ax.legend(
                title=groups.name,
                frameon=False,
                loc="center left",
                bbox_to_anchor=(1, 0.5),
                handletextpad=0.1,
            )
    ax.set_aspect("equal", adjustable="datalim")
    for c, label in zip(axes, (ax.set_xlabel, ax.set_ylabel), strict=True):
        label(f"F{c + 1}" + ("" if ratio is None else f" ({100 * ratio[c]:.0f} % of variance)"))
    return ax


def biplot(
    y: Float[np.ndarray, "n k"],
    frame: pd.DataFrame,
    groups: pd.Series | None = None,
    *,
    axes: tuple[int, int] = (0, 1),
    top: int = 10,
    labels: Mapping[str, str] | None = None,
    ratio: Float[np.ndarray, " k"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw samples, and the features with the longest arrows in the same two coordinates.

    Parameters
    ----------
    y : ndarray, shape (n, k)
        Coordinates, as `MultinomialVAE.transform` returns them.
    frame : DataFrame
        Loadings by feature id, in columns F1, ..., Fk: see `countvae.ordination.feature_frame`.
        All arrows are lengthened by one factor, to be seen among the samples.
    groups, axes, ratio, ax
        As of `ordination`.
    top : int
        How many arrows.
    labels : mapping, optional
        What to call a feature in place of its id.

    Returns
    -------
    Axes
    """
    ax = ordination(y, groups, axes=axes, ratio=ratio, ax=ax)
    # by unit axes, as scikit-bio draws them: an arrow is what its feature adds to a coordinate
    V = frame[[f"F{c + 1}" for c in axes]]
    V = V / np.maximum(np.linalg.norm(V, axis=0), 1e-12)
    length = np.linalg.norm(V, axis=1)
    longest = V.iloc[np.argsort(-length, kind="stable")[:top]]
    reach = np.abs(y[:, list(axes)]).max()
    tips = longest.to_numpy() * 0.85 * reach / max(length.max(), 1e-12)
    names = [str((labels or {}).get(str(name), name)) for name in longest.index]
    for x, z in tips:
        ax.annotate("", (x, z), (0, 0), arrowprops={"arrowstyle": "->", "lw": 1, "color": "black"})
    for right in (True, False):
        chosen = [i for i, (x, _) in enumerate(tips) if (x >= 0) == right]
        heights = _apart(np.array([tips[i][1] for i in chosen]), 0.13 * reach)
        for i, height in zip(chosen, heights, strict=True):
            at = ((1.1 if right else -1.1) * reach, height)
            text = ax.annotate(
                names[i],
                tips[i],
                at,
                fontsize=8,
                ha="left" if right else "right",
                va="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": GREY, "shrinkB": 0},
            )
            text.set_path_effects([HALO])
    if ax.get_legend():
        # where `ordination` puts it there are labels
        title = None if groups is None else groups.name
        ax.legend(
            title=title, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3
        )
    ax.set_aspect("equal", adjustable="box")
    ax.set_xlim(-1.9 * reach, 1.9 * reach)
    ax.set_ylim(-1.15 * reach, 1.15 * reach)
    return ax


def _apart(heights: Float[np.ndarray, " m"], gap: float) -> Float[np.ndarray, " m"]:
    """Move heights as little as need be, in order, until no two are nearer than a gap."""
    order = np.argsort(heights, kind="stable")
    level = gap * np.arange(len(heights))
    placed = np.empty_like(heights)
    if len(heights):
        placed[order] = level + IsotonicRegression().fit_transform(level, heights[order] - level)
    return placed


def loadings(
    frame: pd.DataFrame, axis: str = "F1", *, top: int = 10, ax: Axes | None = None
) -> Axes:
    """Draw the features that weigh most on one axis, as bars.

    Parameters
    ----------
    frame : DataFrame
        Loadings, a column an axis, by feature id: see `countvae.ordination.feature_frame`.
    axis : str
        The column to draw.
    top : int
        How many features, those of the greatest loadings whatever their sign.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
    """
    ax = _new_axes(ax)
    largest = frame[axis].abs().nlargest(top).index
    chosen = frame.loc[largest, axis].sort_values()
    at = np.arange(len(chosen))
    ax.barh(at, chosen.to_numpy(), color=[COLOURS[0] if v > 0 else COLOURS[1] for v in chosen])
    ax.set_yticks(at, [str(name) for name in chosen.index])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"loading on {axis}")
    return ax


def agreement(
    truth: Shaped[np.ndarray, "*shape"],
    estimate: Shaped[np.ndarray, "*shape"],
    *,
    label: str | None = None,
    colour: str = COLOURS[0],
    ax: Axes | None = None,
) -> Axes:
    """Draw estimates against the truth, with the line on which they are equal.

    Parameters
    ----------
    truth, estimate : ndarray of one shape
        Each entry is a point; of very many, every so many-th is drawn.
    label : str, optional
        The name of the estimate, for a legend.
    colour : str
        Of the points.
    ax : Axes, optional
        Where to draw; by default on a new figure. Draw on it again for a second estimate.

    Returns
    -------
    Axes
    """
    ax = _new_axes(ax)
    step = -(-truth.size // MAX_POINTS)
    x, y = truth.ravel()[::step], estimate.ravel()[::step]
    ax.scatter(x, y, s=4, alpha=0.3, linewidths=0, color=colour, label=label, rasterized=True)
    if not ax.lines:
        ax.axline((0, 0), slope=1, color="black", linewidth=0.8, zorder=3)
    ax.set_xlabel("truth")
    ax.set_ylabel("estimate")
    if label is not None:
        legend = ax.legend(frameon=False, loc="upper left", markerscale=3, handletextpad=0.2)
        for handle in filter(None, legend.legend_handles):
            handle.set_alpha(1)
    return ax


def history(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the bound by epoch, and that of the samples held out where there were any.

    Parameters
    ----------
    history : DataFrame
        `MultinomialVAE.history_`.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
    """
    ax = _new_axes(ax)
    ax.plot(history["epoch"], history["bound"], color=COLOURS[0], label="fitted samples")
    if "validation_bound" in history:
        ax.plot(history["epoch"], history["validation_bound"], color=COLOURS[1], label="held out")
        ax.legend(frameon=False, loc="lower right")
    ax.set_xlabel("epoch")
    ax.set_ylabel("bound (nats a sample)")
    ax.ticklabel_format(axis="y", useOffset=False)
    return ax


def network(
    graph: nx.Graph,
    *,
    labels: Mapping[str, str] | None = None,
    top: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Draw a network: features that are tied lie close together.

    Parameters
    ----------
    graph : networkx.Graph
        From `countvae.network.graph`; edges of positive `weight` are grey, others red. Nodes
        are coloured by their attribute `module`, where they have one; those without an edge are
        left out.
    labels : mapping, optional
        What to write beside a node in place of its name.
    top : int
        How many nodes to label at most: that of the most edges in each of the largest modules, or
        those of the most edges where there are no modules. A name for which there is no room
        beside those before it is left out.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
    """
    ax = _new_axes(ax)
    graph = graph.subgraph([node for node, degree in graph.degree if degree])
    at = _laid_out(graph)
    for a, b, weight in graph.edges.data("weight"):
        style = EDGES["together" if weight > 0 else "apart"] | {"linewidth": 1.5 * abs(weight)}
        ax.plot(*zip(at[a], at[b], strict=True), **style, alpha=0.5, zorder=1)
    module = dict(graph.nodes(data="module", default=None))
    degree = dict(graph.degree)
    for node, (x, y) in at.items():
        of = module[node]
        colour = GREY if of is None or of > len(COLOURS) else COLOURS[of - 1]
        size = 14 + 3 * degree[node]
        ax.scatter(x, y, s=size, color=colour, edgecolors="white", linewidths=0.5, zorder=2)
    for label, style in EDGES.items():
        ax.plot([], [], label=label, **style)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
    ax.set_axis_off()
    ax.set_aspect("equal")
    leaders: dict[Any, Any] = {}
    by_degree = sorted(degree, key=degree.__getitem__, reverse=True)
    for node in by_degree:
        leaders.setdefault(module[node], node)
    leaders.pop(None, None)
    chosen = [leaders[of] for of in sorted(leaders)] or by_degree
    names = [(str((labels or {}).get(node, node)), at[node]) for node in chosen[:top]]
    _label(ax, names, np.array([*at.values()]))
    return ax


PLACES = (
    *((5, 4, "left", "bottom"), (5, -4, "left", "top")),
    *((-5, 4, "right", "bottom"), (-5, -4, "right", "top")),
    *((0, 8, "center", "bottom"), (0, -8, "center", "top")),
)
"""Of a name beside its point: the way there, in points of type, and the sides that face it."""


def _label(ax: Axes, names: Sequence[tuple[str, np.ndarray]], points: np.ndarray) -> None:
    """Write names where they hide the fewest points and no other name, or not at all."""
    figure: Any = ax.figure.figure
    figure.draw_without_rendering()  # where things are is known once they are laid out
    dots = ax.transData.transform(points.reshape(-1, 2))
    written: list[Bbox] = []
    for name, (x, y) in names:
        text = ax.annotate(name, (x, y), (0, 0), textcoords="offset points", fontsize=8, zorder=3)
        text.set(path_effects=[HALO], in_layout=False)
        free = []
        for dx, dy, across, up in PLACES:
            text.set(position=(dx, dy), ha=across, va=up)
            box = text.get_window_extent()
            inside = all(figure.bbox.contains(*corner) for corner in box.corners())
            if inside and not box.count_overlaps(written):
                free.append((box.count_contains(dots), len(free), (dx, dy, across, up), box))
        if not free:
            text.remove()
            continue
        _, _, (dx, dy, across, up), box = min(free)
        text.set(position=(dx, dy), ha=across, va=up)
        written.append(box)


def _laid_out(graph: nx.Graph) -> dict[Any, np.ndarray]:
    """Place nodes, each component by itself: the largest at the left, others in rows beside it."""
    components = sorted(nx.connected_components(graph), key=len, reverse=True)
    sides = [2 * len(nodes) ** 0.5 + 1 for nodes in components]
    first = max(sides, default=0.0)
    right = first + max(first, sum(1.5 * side**2 for side in sides[1:]) ** 0.5)
    placed: dict[Any, np.ndarray] = {}
    left = top = height = 0.0
    for nodes, side in zip(components, sides, strict=True):
        if left + side > right:
            left, top, height = first, top - height, 0.0
        part, scale = graph.subgraph(sorted(nodes, key=str)), (side - 1) / 2
        if len(part) <= BY_PATHS:
            at = nx.kamada_kawai_layout(part, weight=None, scale=scale)
        else:
            at = nx.spring_layout(part, weight=None, seed=0, k=3 / scale, scale=scale)
        centre = np.array([left + side / 2, top - side / 2])
        height = max(height, side) if placed else 0.0
        placed |= {node: centre + xy for node, xy in at.items()}
        left += side
    return placed


def predictive(
    observed: csr_array, drawn: csr_array, *, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Draw a table beside one that a model drew: zeros, depths, diversity, variance by mean.

    The diversity of a sample is the exponential of Shannon's entropy of its shares: so many
    features with equal shares would have it.

    Parameters
    ----------
    observed, drawn : csr_array, (n, d) and (m, d)
        Counts of the same features.
    axes : sequence of four Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    sequence of four Axes
    """
    if axes is None:
        axes = list(plt.figure(figsize=(13, 3.2), layout="constrained").subplots(1, 4))
    zeros, depths, diversity, spread = (_new_axes(ax) for ax in axes)
    for counts, colour, label in ((observed, COLOURS[0], "observed"), (drawn, COLOURS[1], "drawn")):
        present = counts > 0
        absent = 1 - np.asarray(present.sum(axis=0)) / counts.shape[0]
        zeros.plot(np.sort(absent), np.linspace(0, 1, len(absent)), color=colour, label=label)
        depth = np.maximum(np.asarray(counts.sum(axis=1), dtype=float), 1)
        shares = csr_array(counts.multiply(1 / depth[:, None]))
        entropy = shares.copy()
        entropy.data = entr(shares.data)
        effective = np.exp(np.asarray(entropy.sum(axis=1)))
        up_to = np.linspace(0, 1, len(depth))
        depths.plot(np.sort(depth), up_to, color=colour, label=label)
        diversity.plot(np.sort(effective), up_to, color=colour, label=label)
        mean = np.asarray(shares.mean(axis=0))
        square = np.asarray(shares.multiply(shares).mean(axis=0))
        seen = mean > 0
        variance = np.maximum(square - mean**2, 1e-300)
        spread.loglog(mean[seen], variance[seen], ".", color=colour, markersize=3, label=label)
    zeros.set_xlabel("share of samples without a feature")
    zeros.set_ylabel("share of features")
    depths.set_ylabel("share of samples")
    reads_along(depths)
    diversity.set(xlabel="effective features of a sample", ylabel="share of samples")
    spread.set_xlabel("mean of a feature's share")
    spread.set_ylabel("its variance")
    zeros.legend(frameon=False)
    return axes


def reads_along(ax: Axes) -> None:
    """Lay the reads of samples along a logarithmic axis, with few and plain numbers."""
    ax.set(xlabel="reads of a sample", xscale="log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def selection(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw held-out evidence by the number of factors, beside the best, a line for each depth.

    Parameters
    ----------
    table : DataFrame
        `countvae.select.Selection.table`. Models whose evidence is not to be trusted for most
        samples are drawn hollow.
    ax : Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    Axes
    """
    ax = _new_axes(ax)
    depths = list(table.groupby("encoder_depth"))
    for i, (depth, rows) in enumerate(depths):
        colour = COLOURS[i % len(COLOURS)]
        at = rows["k"] * 1.02 ** (i - (len(depths) - 1) / 2)
        bars = {"color": colour, "capsize": 3, "label": f"encoder depth {depth}"}
        ax.errorbar(at, rows["difference"], rows["difference_se"], **bars)
        faces = np.where(rows["untrusted"] > 0.5, "white", colour)
        ax.scatter(at, rows["difference"], s=30, c=faces, edgecolors=colour, zorder=2.5)
        for x, y in zip(at[rows["chosen"]], rows["difference"][rows["chosen"]], strict=True):
            ax.scatter([x], [y], s=120, facecolors="none", edgecolors=COLOURS[4], zorder=3)
            told = f"k = {rows['k'][rows['chosen']].iloc[0]}"
            ax.annotate(told, (x, y), (0, -18), textcoords="offset points", ha="center")
    if len(depths) > 1:
        ax.legend(frameon=False)
    ax.set_xticks(sorted(set(table["k"])))
    ax.set_xlabel("factors k")
    ax.set_ylabel("held-out evidence less the best\n(nats a read, ± one standard error)")
    return ax


def _new_axes(ax: Axes | None) -> Axes:
    if ax is None:
        ax = plt.figure(layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax
