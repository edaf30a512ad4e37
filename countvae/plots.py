"""Pictures of a fitted model; each function draws on one pair of axes and returns it."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

__all__ = ["agreement", "history", "loadings", "ordination"]

COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000"),
    *("#882255", "#999933"),
)
"""Okabe and Ito's eight, told apart by every eye, and two of Tol's."""

GREY = "#9a9a9a"
MAX_POINTS = 20_000
"""More points than these make a file large and a picture no clearer."""


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


def _new_axes(ax: Axes | None) -> Axes:
    if ax is None:
        ax = plt.figure(layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax
