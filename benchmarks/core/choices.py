"""What each default is worth: held-out bound and encoder gap with it and without it.

A fifth of the samples is held out. `bound` is the held-out refined bound in nats a sample less the
default's; `gap` is what the encoder alone falls short of the optimum on the held-out samples.
"""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.core.common import DATA, arguments, fitted, show, write
from countvae import MultinomialVAE
from countvae.simulate import simulate
from countvae.table import read

VARIANTS = {
    "default": {},
    "D shared by all samples": {"posterior_variance": "shared"},
    "noise by feature": {"noise": "by_feature"},
    "loadings not shrunk": {"shrink_loadings": False},
    "one layer": {"encoder_depth": 1},
    "three layers": {"encoder_depth": 3},
    "width 64": {"encoder_width": 64},
    "gelu": {"activation": "gelu"},
    "softplus": {"activation": "softplus"},
    "relu": {"activation": "relu"},
    "tanh": {"activation": "tanh"},
    "sgd": {"optimizer": "sgd"},
}


def flat(seed: int) -> tuple[sp.csr_array, int]:
    rng = np.random.default_rng(seed)
    return simulate(1000, 200, 10, 1000, design="flat", rng=rng).counts, 10


def wide(seed: int) -> tuple[sp.csr_array, int]:
    rng = np.random.default_rng(seed)
    return simulate(2000, 1000, 16, 5000, design="wide", rng=rng).counts, 16


def ecam(seed: int) -> tuple[sp.csr_array, int]:
    del seed
    return read(DATA / "ecam" / "table.biom").filter(min_feature_samples=5).counts, 20


def main() -> None:
    seeds = arguments(__doc__, seeds=3).seeds
    results = []
    for table in (flat, wide, ecam):
        for seed in range(seeds):
            counts, k = table(seed)
            order = np.random.default_rng(seed).permutation(counts.shape[0])
            fifth = counts.shape[0] // 5
            fit_on, judge_by = counts[order[fifth:]], counts[order[:fifth]]
            default = None
            for variant, settings in VARIANTS.items():
                model, seconds = fitted(MultinomialVAE(k, random_state=seed, **settings), fit_on)
                score = model.score(judge_by)
                default = score if default is None else default
                results.append(
                    {
                        "table": table.__name__,
                        "variant": variant,
                        "seed": seed,
                        "bound": score - default,
                        "gap": model.amortization_gap(judge_by).mean(),
                        "seconds": seconds,
                    }
                )
                print("  ".join(f"{name} {value}" for name, value in results[-1].items()))
    results = pd.DataFrame(results)
    show(results, ["table", "variant"], ["bound", "gap", "seconds"])
    write("choices", results)


if __name__ == "__main__":
    main()
