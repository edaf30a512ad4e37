"""LinearSCVI (scvi-tools) of the counts of an npz; runs in the peers' environment.

python linear_scvi.py COUNTS.npz FOUND.npz --rank K --seed S
"""

import argparse
import logging
import resource
import time
import warnings

import anndata
import numpy as np
import scvi
from scipy.sparse import csr_matrix

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description="LinearSCVI of a table of counts")
    parser.add_argument("counts")
    parser.add_argument("found")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    scvi.settings.seed = given.seed
    counts = np.load(given.counts)["counts"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    begun = time.perf_counter()
    adata = anndata.AnnData(csr_matrix(counts.astype(np.float32)))
    scvi.model.LinearSCVI.setup_anndata(adata)
    model = scvi.model.LinearSCVI(adata, n_latent=given.rank)
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False)
    seconds = time.perf_counter() - begun

    z = model.get_latent_representation()
    loadings = model.get_loadings().to_numpy() * z.std(axis=0)
    np.savez(
        given.found,
        loadings=loadings - loadings.mean(axis=0),
        seconds=seconds,
        peak_mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        converged=True,
    )


if __name__ == "__main__":
    main()
