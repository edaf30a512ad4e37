"""Fit PlnPCA to the counts of an npz; runs in the peers' environment and imports nothing of ours.

python benchmarks/core/peer_plnpca.py COUNTS.npz FIT.npz --rank K
"""

import argparse
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
from pyPLNmodels import PlnPCA  # noqa: E402

MAXITER = 400
TOLERANCE = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description="PlnPCA of a table of counts")
    parser.add_argument("counts")
    parser.add_argument("fit")
    parser.add_argument("--rank", type=int, required=True)
    given = parser.parse_args()
    counts = np.load(given.counts)["counts"].astype(float)
    # it fails on features without a count, of which it can know nothing
    present = counts.sum(axis=0) > 0
    X = counts[:, present]

    begun = time.perf_counter()
    model = PlnPCA(X, rank=given.rank, compute_offsets_method="logsum")
    model.fit(maxiter=MAXITER, tol=TOLERANCE, verbose=False)
    seconds = time.perf_counter() - begun

    C = np.zeros((len(present), given.rank))
    C[present] = model.components.detach().cpu().numpy()
    C -= C.mean(axis=0)
    iterations = model.optim_details["Number of iterations done"]
    np.savez(
        given.fit,
        loadings=C,
        covariance=C @ C.T,
        seconds=seconds,
        iterations=iterations,
        converged=iterations < MAXITER,
    )


if __name__ == "__main__":
    main()
