"""No fit may end non-finite: all four shared tables, k = 2, 10, 40, L = 1 to 4, several seeds.

Whole tables and few epochs, at the default learning rate: what goes wrong goes wrong early, while
the rate is highest and the factors are new. A fit that was retried at a lower rate is counted.
"""

import itertools
import time
import warnings

import numpy as np
import pandas as pd

from benchmarks.core.common import arguments, show, tell, write
from benchmarks.core.tables import FILES, whole
from countvae import MultinomialVAE
from countvae.errors import CountvaeWarning, Diverged

EPOCHS = {"oaks": 20, "ecam": 4, "globalpatterns": 10, "ifnb_pbmc": 2}
COMPONENTS = (2, 10, 40)
DEPTHS = (1, 2, 3, 4)


def main() -> None:
    seeds = arguments(__doc__, seeds=2).seeds
    results = []
    for name in FILES:
        counts = whole(name).counts
        for k, L, seed in itertools.product(COMPONENTS, DEPTHS, range(seeds)):
            row = attempt(counts, k, L, seed, EPOCHS[name])
            results.append({"table": name, "k": k, "L": L, "seed": seed, **row})
            tell(results[-1])
    results = pd.DataFrame(results)
    show(results, ["table"], ["seconds", "bound", "sigma2"])
    print(f"\n{len(results)} fits")
    print(f"not finite: {(~results.finite).sum()}")
    print(f"ended as Diverged: {results.diverged.sum()}")
    print(f"retried at a lower rate: {(results.retries > 0).sum()}")
    write("robustness", results)


def attempt(counts, k: int, L: int, seed: int, epochs: int) -> dict[str, object]:
    """Fit once and look at everything that comes out."""
    begun = time.perf_counter()
    model = MultinomialVAE(k, encoder_depth=L, max_epochs=epochs, random_state=seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CountvaeWarning)
        try:
            y = model.fit_transform(counts)
        except Diverged:
            return {"diverged": True, "finite": False, "retries": 2}
    retries = sum("diverged" in str(warning.message) for warning in said)
    parts = (model.history_["bound"], model.components_, model.explained_variance_, y)
    return {
        "diverged": False,
        "finite": all(np.isfinite(part).all() for part in parts),
        "retries": retries,
        "bound": model.history_["bound"].iloc[-1],
        "sigma2": model.noise_variance_,
        "seconds": time.perf_counter() - begun,
    }


if __name__ == "__main__":
    main()
