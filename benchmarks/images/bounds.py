"""Held-out bound a count, at equal size of the latent space: `python -m benchmarks.images.bounds`.

A quarter of the digits, and 500 simulated pictures, are held out. The bound of the encoder alone,
that after two Newton steps, and the evidence by 100 importance draws, each in nats a count, the
multinomial coefficient included.
"""

import time

import numpy as np
import pandas as pd

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import HERE, PCA, SETS, models, pictures

DRAWS = 100


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Fit each model, and score what was held out."""
    data, rows = pictures(name, seed), []
    counts = data.held.sum()
    for method, model in models(data.shape, seed).items():
        began = time.perf_counter()
        model.fit(data.fitted)
        seconds = time.perf_counter() - began
        bound = model.score_samples(data.held).sum()
        evidence = model.evidence(data.held, DRAWS)[0].sum()
        amortised = np.nan
        if not isinstance(model, PCA):
            amortised = model.set_params(refinement_steps=0).score_samples(data.held).sum()
        rows.append(
            {
                "pictures": name,
                "method": method,
                "seed": seed,
                "amortised": amortised / counts,
                "bound": bound / counts,
                "evidence": evidence / counts,
                "seconds": seconds,
            }
        )
        tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 5).seeds
    frame = pd.DataFrame(
        [row for name in SETS for seed in range(seeds) for row in measure(name, seed)]
    )
    print(frame.drop(columns="seed").groupby(["pictures", "method"], sort=False).mean().to_string())
    write("bounds", frame, HERE)
