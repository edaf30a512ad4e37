"""Pictures that one would show: `python -m benchmarks.images.pictures`.

Of each set: what was seen of a picture when few of its photons were kept, what each model makes of
that, and the whole picture; and pictures drawn from the prior of each model, beside real ones.
"""

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.core.common import ROOT
from benchmarks.images.scene import HERE, PCA, SETS, models, pictures

SHOWN = 8
KEPT = {"digits": 0.1, "spots": 0.05}


def _row(axes, shares: np.ndarray, shape: tuple[int, int], name: str) -> None:
    for axis, share in zip(axes, shares, strict=True):
        axis.imshow(share.reshape(shape), cmap="magma", interpolation="nearest")
        axis.set_xticks([], [])
        axis.set_yticks([], [])
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel(name, rotation=0, ha="right", va="center")


def draw(name: str) -> None:
    """Fit each model, and write two figures."""
    data, rng = pictures(name, 0), np.random.default_rng(0)
    whole = data.held[:SHOWN].astype(int)
    seen = rng.binomial(whole, KEPT[name])
    denoised, drawn = {}, {}
    for method, model in models(data.shape, 0).items():
        model.fit(data.fitted)
        denoised[method] = model.denoise(seen.astype(float))[0]
        if not isinstance(model, PCA):
            drawn[method] = model.sample(SHOWN, random_state=0)[0].toarray()
    kept = f"{KEPT[name]:.0%} of the photons"
    original = "true light" if data.held_light is not None else "the picture"
    truth = whole if data.held_light is None else data.held_light[:SHOWN]
    for what, rows in (
        ("denoised", {kept: seen, **denoised, original: truth}),
        ("drawn", {**drawn, "real ones": data.held[SHOWN : 2 * SHOWN]}),
    ):
        figure, axes = plt.subplots(
            len(rows), SHOWN, figsize=(8.5, 0.82 * len(rows)), layout="constrained", squeeze=False
        )
        for of_row, (label, shares) in zip(axes, rows.items(), strict=True):
            _row(of_row, shares, data.shape, label)
        path = HERE / "results" / f"{name}-{what}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    for name in SETS:
        draw(name)
