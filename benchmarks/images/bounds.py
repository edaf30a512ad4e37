"""Held-out evidence a count, at equal latent size: `python -m benchmarks.images.bounds`.

A quarter of the digits, and 500 simulated pictures, are held out. The bound at the encoder's own
answer, that after twenty Newton steps (as many as PCA needs, from the prior), and the evidence by
100 importance draws, each in nats a count, the multinomial coefficient included; and the share of
the pictures whose weights are too uneven (Pareto k) for that.
"""

import time

import numpy as np

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import (
    HERE,
    PLAIN,
    answering_alike,
    on_all,
    pictures,
    with_control,
)
from countvae import MultinomialVAE
from countvae.metrics import trusted_below

DRAWS = 100


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Fit each model, and score what was held out."""
    data, rows = pictures(name, seed), []
    counts = data.held.sum()
    for method, model in with_control(data.shape, seed).items():
        began = time.perf_counter()
        model.fit(data.fitted)
        seconds = time.perf_counter() - began
        answering_alike(model)
        bound = model.score_samples(data.held).sum()
        evidence, pareto_k = model.evidence(data.held, DRAWS)
        amortised = np.nan
        if isinstance(model, MultinomialVAE):
            amortised = model.set_params(refinement_steps=0).score_samples(data.held).sum()
        if method == PLAIN:  # what it answers by is no bound on log p(x)
            amortised = bound = np.nan
        rows.append(
            {
                "pictures": name,
                "method": method,
                "seed": seed,
                "amortised": amortised / counts,
                "bound": bound / counts,
                "evidence": evidence.sum() / counts,
                "untrusted": (pareto_k >= trusted_below(DRAWS)).mean(),
                "seconds": seconds,
            }
        )
        tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 5).seeds
    frame = on_all(measure, seeds)
    print(frame.drop(columns="seed").groupby(["pictures", "method"], sort=False).mean().to_string())
    write("bounds", frame, HERE)
