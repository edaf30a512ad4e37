"""Whether a digit that was never fitted is found: `python -m benchmarks.images.anomaly`.

Models are fitted to nine of the ten digits, three quarters of their pictures; the other quarter,
and all pictures of the tenth, are scored. The area under the ROC curve of how much less evidence a
picture has than the model's own of that depth (`t` of `countvae score`), and for PCA of its bound
a count.
"""

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import HERE, PCA, models
from countvae.score import scores

REFERENCE = 200


def measure(digit: int, seed: int) -> list[dict[str, object]]:
    """Fit to the other digits, and score."""
    counts, label = load_digits(return_X_y=True)
    others = np.random.default_rng(seed).permutation(np.flatnonzero(label != digit))
    known, fitted = np.split(others, [len(others) // 4])
    at = np.concatenate([np.flatnonzero(label == digit), known])
    strange, rows = label[at] == digit, []
    for method, model in models((8, 8), seed).items():
        model.fit(counts[fitted])
        if isinstance(model, PCA):
            unusual = -model.score_samples(counts[at]) / counts[at].sum(1)
        else:
            unusual = -scores(model, counts[at], reference=REFERENCE, random_state=seed)["t"]
        area = roc_auc_score(strange, unusual)
        rows.append({"digit": digit, "method": method, "seed": seed, "area": area})
        tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 1).seeds
    frame = pd.DataFrame(
        [row for digit in range(10) for seed in range(seeds) for row in measure(digit, seed)]
    )
    print(frame.groupby(["digit", "method"], sort=False)["area"].mean().unstack().to_string())
    write("anomaly", frame, HERE)
