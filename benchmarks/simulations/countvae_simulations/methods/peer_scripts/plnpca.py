"""PlnPCA (pyPLNmodels) of the counts of an npz; runs in the peers' environment.

python plnpca.py COUNTS.npz FOUND.npz --rank K --seed S
"""

import argparse
import resource
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
import torch  # noqa: E402
from pyPLNmodels import PlnPCA  # noqa: E402

MAXITER = 400
TOLERANCE = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description="PlnPCA of a table of counts")
    parser.add_argument("counts")
    parser.add_argument("found")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    counts = np.load(given.counts)["counts"].astype(float)
    # it fails on features without a count, of which it can know nothing
    present = counts.sum(axis=0) > 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    begun = time.perf_counter()
    model = PlnPCA(counts[:, present], rank=given.rank, compute_offsets_method="logsum")
    model.fit(maxiter=MAXITER, tol=TOLERANCE, verbose=False)
    seconds = time.perf_counter() - begun

    loadings, centre = np.zeros((len(present), given.rank)), np.full(len(present), np.nan)
    loadings[present] = model.components.detach().cpu().numpy()
    centre[present] = model.coef.detach().cpu().numpy().ravel()
    iterations = model.optim_details["Number of iterations done"]
    np.savez(
        given.found,
        loadings=loadings - loadings.mean(axis=0),
        centre=np.nan_to_num(centre - np.nanmean(centre), nan=np.nanmin(centre)),
        seconds=seconds,
        peak_mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        converged=iterations < MAXITER,
    )


if __name__ == "__main__":
    main()
