"""Pictures from a share of their photons: `python -m benchmarks.images.denoise`.

Each photon of a held-out picture is kept with a probability; from those kept the proportions are
estimated. The mean logarithm of the proportion of a photon that was not kept, in nats, less that of
the photons that all fitted pictures have there; and half the absolute difference from the true
proportions of the simulated pictures, or from those of all photons of a digit.

Without a model: the counts, and those counts blurred by a Gaussian, each with some photons of the
average picture added; and the proportions that principal components of log(x + c), of fitted
pictures with as many photons kept, reconstruct ("plug-in"). How many photons, how wide the blur,
and c are chosen at each level by the first measure on 300 of the fitted pictures. Every model
answers after twenty Newton steps, as PCA needs from the prior.
"""

import itertools
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import softmax
from sklearn.decomposition import PCA

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import (
    HERE,
    NETWORK,
    PSEUDOCOUNTS,
    TUNED_ON,
    K,
    Pictures,
    answering_alike,
    distance,
    on_all,
    pictures,
    with_control,
)
from countvae.ppca import clr_counts

KEPT = (0.02, 0.05, 0.1, 0.2, 0.5)
ADDED = (0.3, 1, 3, 10, 30, 100, 300)
WIDTHS = (0.4, 0.6, 0.8, 1.2, 1.8, 2.5, 3.5, 5)


def smoothed(
    shape: tuple[int, int], common: np.ndarray, counts: np.ndarray, width: float, added: float
) -> np.ndarray:
    """Proportions of blurred counts with some of the average picture."""
    images = counts.reshape(-1, *shape).astype(float)
    blurred = gaussian_filter(images, (0, width, width)) if width else images
    found = blurred.reshape(len(counts), -1) + added * common
    return found / found.sum(1, keepdims=True)


def gain(found: np.ndarray, rest: np.ndarray, common: np.ndarray) -> float:
    """Nats by which a photon of the rest is likelier than by the average picture."""
    return float((rest * np.log(found / common)).sum() / rest.sum())


def plug_in(fitted: np.ndarray, counts: np.ndarray, pseudocount: float) -> np.ndarray:
    """Proportions that principal components of log(x + c) make of counts."""
    known, asked = (clr_counts(X, pseudocount) for X in (fitted, counts))
    components = PCA(K, random_state=0).fit(known)
    return softmax(components.inverse_transform(components.transform(asked)), axis=1)


def tuned(
    make: Callable[..., np.ndarray],
    settings: Iterable[tuple[float, ...]],
    data: Pictures,
    common: np.ndarray,
    share: float,
    seed: int,
) -> tuple[float, ...]:
    """Return the settings that do best on some fitted pictures."""
    whole = data.fitted[:TUNED_ON].astype(int)
    counts = np.random.default_rng(seed).binomial(whole, share)
    return max(settings, key=lambda setting: gain(make(counts, *setting), whole - counts, common))


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Fit each model once, and denoise at each level."""
    data, rng, rows = pictures(name, seed), np.random.default_rng(seed), []
    whole = data.held.astype(int)
    common = data.fitted.sum(0) + 0.5
    common = common / common.sum()
    true = whole / whole.sum(1, keepdims=True) if data.held_light is None else data.held_light
    kept = {share: rng.binomial(whole, share) for share in KEPT}

    def tell_row(method: str, share: float, found: np.ndarray, setting: str = "") -> None:
        seen = kept[share].sum(1) > 0
        rows.append(
            {
                "pictures": name,
                "method": method,
                "kept": share,
                "seed": seed,
                "gain": gain(found, (whole - kept[share])[seen], common),
                "distance": distance(found, true[seen]),
                "setting": setting,
            }
        )
        tell(rows[-1])

    blurred = partial(smoothed, data.shape, common)
    for share, counts in kept.items():
        seen = counts[counts.sum(1) > 0]
        by_components = partial(plug_in, rng.binomial(data.fitted.astype(int), share))
        for method, make, settings in (
            ("counts", blurred, itertools.product((0.0,), ADDED)),
            ("blurred counts", blurred, itertools.product(WIDTHS, ADDED)),
            ("PCA, plug-in", by_components, itertools.product(PSEUDOCOUNTS)),
        ):
            setting = tuned(make, settings, data, common, share, seed)
            words = " ".join(f"{value:g}" for value in setting)
            tell_row(method, share, make(seen, *setting), words)
    for method, model in with_control(data.shape, seed).items():
        model.fit(data.fitted)
        answering_alike(model)
        for share, counts in kept.items():
            seen = counts[counts.sum(1) > 0].astype(float)
            tell_row(method, share, model.denoise(seen)[0])
            if method == NETWORK:  # as the plain one answers
                alone = copy(model).set_params(refinement_steps=0)
                tell_row(f"{NETWORK}, encoder alone", share, alone.denoise(seen)[0])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    frame = on_all(measure, seeds)
    mean = frame.groupby(["pictures", "method", "kept"], sort=False)[["gain", "distance"]].mean()
    print(mean.unstack("kept").to_string())
    write("denoise", frame, HERE)
