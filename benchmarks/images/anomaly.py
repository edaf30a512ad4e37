"""Whether a digit that was never fitted is found: `python -m benchmarks.images.anomaly`.

Models are fitted to nine of the ten digits, three quarters of their pictures; the other quarter,
and all pictures of the tenth, are scored by how much less evidence a picture has than the model's
own of that depth (`t` of `countvae score`, which PCA is asked too), each after twenty Newton steps:
an encoder that has seen no such picture is not to find it by failing on it. Beside them what is
commonly done: the distance to the fifth nearest of the fitted pictures, what principal components
leave of a picture, both of the square roots of proportions, and what a plain autoencoder does not
reconstruct, the deviance a count. The area under the ROC curve; the curves of the first seed are
drawn.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.special import xlogy
from sklearn import decomposition
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from benchmarks.core.common import ROOT, arguments, tell, write
from benchmarks.images.scene import HERE, K, answering_alike, models
from countvae import ConvMultinomialVAE
from countvae.score import scores

REFERENCE = 200
NEIGHBOURS = 5
COLOURS = ("#08519c", "#6baed6", "#d95f02", "#999999", "#555555", "#31a354", "#74c476", "#e7298a")


def common_ways(fitted: np.ndarray, new: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """How unusual pictures are by methods that know no counting noise."""
    known, asked = (np.sqrt(X / X.sum(1, keepdims=True)) for X in (fitted, new))
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(known)
    components = decomposition.PCA(K, random_state=seed).fit(known)
    left = asked - components.inverse_transform(components.transform(asked))
    plain = ConvMultinomialVAE(K, grid=(8, 8), posterior_variance="none", random_state=seed)
    decoded = plain.fit(fitted).inverse_transform(plain.transform(new))
    depth = new.sum(1)
    deviance = 2 * (xlogy(new, new / depth[:, None]) - xlogy(new, decoded)).sum(1)
    return {
        "fifth neighbour": nearest.kneighbors(asked)[0][:, -1],
        "components' residual": np.square(left).sum(1),
        "plain autoencoder": deviance / depth,
    }


def measure(digit: int, seed: int) -> tuple[list[dict[str, object]], dict[str, np.ndarray]]:
    """Fit to the other digits, and score."""
    counts, label = load_digits(return_X_y=True)
    others = np.random.default_rng(seed).permutation(np.flatnonzero(label != digit))
    known, fitted = np.split(others, [len(others) // 4])
    at = np.concatenate([np.flatnonzero(label == digit), known])
    strange, rows, curves, by = label[at] == digit, [], {}, {}
    for method, model in models((8, 8), seed).items():
        answering_alike(model.fit(counts[fitted]))
        scored = scores(model, counts[at], reference=REFERENCE, random_state=seed)  # pyright: ignore
        by[method] = -scored["t"].to_numpy()
    for method, unusual in {**by, **common_ways(counts[fitted], counts[at], seed)}.items():
        area = roc_auc_score(strange, unusual)
        rows.append({"digit": digit, "method": method, "seed": seed, "area": area})
        curves[method] = np.stack(roc_curve(strange, unusual)[:2])
        tell(rows[-1])
    return rows, curves


def draw(curves: list[dict[str, np.ndarray]]) -> None:
    """Draw the curves, a panel a digit."""
    figure, axes = plt.subplots(
        2, 5, figsize=(9, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    for digit, (axis, of_digit) in enumerate(zip(axes.flat, curves, strict=True)):
        for (method, (false, true)), colour in zip(of_digit.items(), COLOURS, strict=True):
            axis.plot(false, true, color=colour, lw=1.2, label=method)
        axis.set_title(f"{digit} left out", fontsize=9)
        axis.set_aspect("equal")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("share of known digits called strange", fontsize=9)
    figure.supylabel("share of strange ones found", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    path = HERE / "results" / "anomaly.svg"
    with plt.rc_context({"svg.hashsalt": "countvae"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    found = {(digit, seed): measure(digit, seed) for seed in range(seeds) for digit in range(10)}
    frame = pd.DataFrame([row for rows, _ in found.values() for row in rows])
    print(frame.groupby(["digit", "method"], sort=False)["area"].mean().unstack().to_string())
    write("anomaly", frame, HERE)
    draw([found[digit, 0][1] for digit in range(10)])
