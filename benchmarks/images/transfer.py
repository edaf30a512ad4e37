"""What a fit to some digits is worth for others: `python -m benchmarks.images.transfer`.

A convolutional model with a network is fitted to the digits 0 to 4. Of 5 to 9 some pictures are
given, to a fit from scratch, to one that goes on from that model, and to one that keeps its encoder
and fits the decoder alone; the other pictures are scored, by the evidence a count.
"""

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import HERE, NETWORK, models
from countvae.estimator import MultinomialVAE

GIVEN = (30, 100, 300)
DRAWS = 100


def measure(seed: int) -> list[dict[str, object]]:
    """Fit to the one half of the digits, then to some of the other."""
    counts, label = load_digits(return_X_y=True)
    rng, rows = np.random.default_rng(seed), []
    known = counts[label < 5]
    new = rng.permutation(counts[label >= 5])
    held = new[-300:]

    def model(**settings: object) -> MultinomialVAE:
        return models((8, 8), seed)[NETWORK].set_params(**settings)  # pyright: ignore

    begun = model().fit(known)
    for given in GIVEN:
        for how, settings in (
            ("from scratch", {}),
            ("goes on", {"init": begun}),
            ("encoder kept", {"init": begun, "freeze": "encoder"}),
        ):
            fitted = model(**settings).fit(new[:given])
            encoder_alone = fitted.set_params(refinement_steps=0).score_samples(held)
            evidence, _ = fitted.set_params(refinement_steps=2).evidence(held, draws=DRAWS)
            rows.append(
                {
                    "given": given,
                    "how": how,
                    "seed": seed,
                    "amortised": encoder_alone.sum() / held.sum(),
                    "evidence": evidence.sum() / held.sum(),
                }
            )
            tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    frame = pd.DataFrame([row for seed in range(seeds) for row in measure(seed)])
    print(frame.drop(columns="seed").groupby(["given", "how"], sort=False).mean().to_string())
    write("transfer", frame, HERE)
