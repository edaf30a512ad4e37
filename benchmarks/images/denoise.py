"""Pictures from a share of their photons: `python -m benchmarks.images.denoise`.

Each photon of a held-out picture is kept with a probability; from those kept the proportions are
estimated. The mean logarithm of the proportion of a photon that was not kept, in nats, less that of
the photons that all fitted pictures have there; and half the absolute difference from the true
proportions of the simulated pictures, or from those of all photons of a digit.
"""

import numpy as np
import pandas as pd

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import HERE, SETS, models, pictures

KEPT = (0.02, 0.05, 0.1, 0.2, 0.5)


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Fit each model once, and denoise at each level."""
    data, rng, rows = pictures(name, seed), np.random.default_rng(seed), []
    whole = data.held.astype(int)
    common = data.fitted.sum(0) + 0.5
    common = common / common.sum()
    true = whole / whole.sum(1, keepdims=True) if data.held_light is None else data.held_light
    kept = {share: rng.binomial(whole, share) for share in KEPT}
    for method, model in {"none": None, **models(data.shape, seed)}.items():
        if model is not None:
            model.fit(data.fitted)
        for share, counts in kept.items():
            seen = counts.sum(1) > 0
            if model is None:
                found = counts[seen] + 0.5 * common * counts.shape[1]
                found = found / found.sum(1, keepdims=True)
            else:
                found = model.denoise(counts[seen].astype(float))[0]
            rest = (whole - counts)[seen]
            rows.append(
                {
                    "pictures": name,
                    "method": method,
                    "kept": share,
                    "seed": seed,
                    "gain": (rest * np.log(found / common)).sum() / rest.sum(),
                    "distance": np.abs(found - true[seen]).sum(1).mean() / 2,
                }
            )
            tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    frame = pd.DataFrame(
        [row for name in SETS for seed in range(seeds) for row in measure(name, seed)]
    )
    mean = frame.groupby(["pictures", "method", "kept"], sort=False)[["gain", "distance"]].mean()
    print(mean.unstack("kept").to_string())
    write("denoise", frame, HERE)
