"""PlnPCA (pyPLNmodels); runs in the peers' environment."""

import warnings

import numpy as np
from common import on_all_features, run

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
import torch  # noqa: E402
from pyPLNmodels import PlnPCA  # noqa: E402

MAXITER = 400
TOLERANCE = 1e-6


def fit(
    counts: np.ndarray, rank: int, seed: int, maxiter: int = MAXITER
) -> dict[str, np.ndarray | bool]:
    """Fit at its default settings, totals as offsets."""
    torch.manual_seed(seed)
    # it fails on features without a count, of which it can know nothing
    present = counts.sum(axis=0) > 0
    model = PlnPCA(counts[:, present].astype(float), rank=rank, compute_offsets_method="logsum")
    model.fit(maxiter=int(maxiter), tol=TOLERANCE, verbose=False)
    loadings, centre = (part.detach().cpu().numpy() for part in (model.components, model.coef))
    return {
        **on_all_features(present, loadings, centre.ravel()),
        "converged": model.optim_details["Number of iterations done"] < maxiter,
    }


if __name__ == "__main__":
    run(fit)
