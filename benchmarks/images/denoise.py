"""Pictures from a share of their photons: `python -m benchmarks.images.denoise`.

Each photon of a held-out picture is kept with a probability; from those kept the proportions are
estimated. The mean logarithm of the proportion of a photon that was not kept, in nats, less that of
the photons that all fitted pictures have there; and half the absolute difference from the true
proportions of the simulated pictures, or from those of all photons of a digit.

Without a model: the counts, and those counts blurred by a Gaussian, each with some photons of the
average picture added. How many, and how wide the blur, is chosen at each level by the first measure
on 300 of the fitted pictures.
"""

import itertools
from copy import copy

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import (
    HERE,
    NETWORK,
    Pictures,
    distance,
    on_all,
    pictures,
    with_control,
)

KEPT = (0.02, 0.05, 0.1, 0.2, 0.5)
ADDED = (0.3, 1, 3, 10, 30, 100, 300)
WIDTHS = (0.4, 0.6, 0.8, 1.2, 1.8)
TUNED_ON = 300


def smoothed(
    counts: np.ndarray, shape: tuple[int, int], common: np.ndarray, width: float, added: float
) -> np.ndarray:
    """Proportions of blurred counts with some of the average picture."""
    images = counts.reshape(-1, *shape).astype(float)
    blurred = gaussian_filter(images, (0, width, width)) if width else images
    found = blurred.reshape(len(counts), -1) + added * common
    return found / found.sum(1, keepdims=True)


def gain(found: np.ndarray, rest: np.ndarray, common: np.ndarray) -> float:
    """Nats by which a photon of the rest is likelier than by the average picture."""
    return float((rest * np.log(found / common)).sum() / rest.sum())


def tuned(
    data: Pictures, common: np.ndarray, share: float, widths: tuple[float, ...], seed: int
) -> tuple[float, float]:
    """Return the width and the photons added that do best on fitted pictures."""
    whole = data.fitted[:TUNED_ON].astype(int)
    counts = np.random.default_rng(seed).binomial(whole, share)

    def worth(setting: tuple[float, float]) -> float:
        return gain(smoothed(counts, data.shape, common, *setting), whole - counts, common)

    return max(itertools.product(widths, ADDED), key=worth)


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Fit each model once, and denoise at each level."""
    data, rng, rows = pictures(name, seed), np.random.default_rng(seed), []
    whole = data.held.astype(int)
    common = data.fitted.sum(0) + 0.5
    common = common / common.sum()
    true = whole / whole.sum(1, keepdims=True) if data.held_light is None else data.held_light
    kept = {share: rng.binomial(whole, share) for share in KEPT}

    def tell_row(method: str, share: float, found: np.ndarray) -> None:
        seen = kept[share].sum(1) > 0
        rows.append(
            {
                "pictures": name,
                "method": method,
                "kept": share,
                "seed": seed,
                "gain": gain(found, (whole - kept[share])[seen], common),
                "distance": distance(found, true[seen]),
            }
        )
        tell(rows[-1])

    for share, counts in kept.items():
        seen = counts[counts.sum(1) > 0]
        for method, widths in (("counts", (0.0,)), ("blurred counts", WIDTHS)):
            setting = tuned(data, common, share, widths, seed)
            tell_row(method, share, smoothed(seen, data.shape, common, *setting))
    for method, model in with_control(data.shape, seed).items():
        model.fit(data.fitted)
        for share, counts in kept.items():
            seen = counts[counts.sum(1) > 0].astype(float)
            tell_row(method, share, model.denoise(seen)[0])
            if method == NETWORK:  # as the plain one answers, whose codes no Newton step moves
                alone = copy(model).set_params(refinement_steps=0)
                tell_row(f"{NETWORK}, encoder alone", share, alone.denoise(seen)[0])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    frame = on_all(measure, seeds)
    mean = frame.groupby(["pictures", "method", "kept"], sort=False)[["gain", "distance"]].mean()
    print(mean.unstack("kept").to_string())
    write("denoise", frame, HERE)
