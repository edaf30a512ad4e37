"""A small cohort after a large one: `python -m benchmarks.takehome.finetune`.

A model is fitted to a large cohort; a small one has loadings that differ by a share of their
variance, and another centre. Nats a sample on new samples of the small cohort, more than those of a
fit to it from scratch: of the large cohort's model as it is, of a fit that goes on from it, and of
one that does so without a prior at the loadings gone on from.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.special import softmax

from benchmarks.core.common import arguments, tell, write
from countvae import MultinomialVAE
from countvae.simulate import Simulation, simulate

D, K, READS = 150, 6, 2000
LARGE, NEW = 2000, 300
SMALL = (30, 100, 300)
CHANGED = (0.0, 0.1, 0.5)


def small_cohort(large: Simulation, changed: float, rng: np.random.Generator) -> csr_array:
    """Draw the largest small cohort, then new samples of it."""
    n = SMALL[-1] + NEW
    V = np.sqrt(1 - changed) * large.V + np.sqrt(changed) * rng.permutation(large.V)
    mu = large.mu + changed * rng.normal(0, 1, D)
    logits = mu + rng.standard_normal((n, K)) @ V.T
    logits += np.sqrt(large.sigma2) * rng.standard_normal(logits.shape)
    return csr_array(np.array([rng.multinomial(READS, p) for p in softmax(logits, axis=1)]))


def measure(changed: float, seed: int) -> list[dict[str, float]]:
    """Fit, go on, compare."""
    rng = np.random.default_rng(seed)
    large = simulate(LARGE, D, K, READS, rng=rng)
    small = small_cohort(large, changed, rng)
    settings = {"n_components": K, "random_state": seed}
    begun = MultinomialVAE(**settings).fit(large.counts)
    new, rows = small[SMALL[-1] :], []
    for n in SMALL:
        few = small[:n]
        scratch = MultinomialVAE(**settings).fit(few).score(new)
        rows.append(
            {
                "changed": changed,
                "seed": seed,
                "n": n,
                "scratch": scratch,
                "as_it_is": begun.score(new) - scratch,
                "going_on": MultinomialVAE(**settings, init=begun).fit(few).score(new) - scratch,
                "plain_prior": going_on_plainly(settings, begun, few).score(new) - scratch,
            }
        )
        tell(rows[-1])
    return rows


def going_on_plainly(
    settings: dict[str, int], begun: MultinomialVAE, few: csr_array
) -> MultinomialVAE:
    """Go on without a prior at the loadings of the large cohort."""
    return MultinomialVAE(**settings, init=begun, shrink_loadings=False).fit(few)


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 5).seeds
    rows = [row for changed in CHANGED for seed in range(seeds) for row in measure(changed, seed)]
    frame = pd.DataFrame(rows)
    print(frame.groupby(["changed", "n"]).median().drop(columns="seed").to_string())
    write("finetune", frame, Path(__file__).parent)
