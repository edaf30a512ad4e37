"""LinearSCVI (scvi-tools); runs in the peers' environment."""

import logging
import warnings

import anndata
import numpy as np
import scvi
from common import run, with_covariance
from scipy.sparse import csr_matrix

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)


def fit(counts: np.ndarray, rank: int, seed: int) -> dict[str, np.ndarray | bool]:
    """Fit at its default settings; the covariance of its factors is that of their posteriors."""
    scvi.settings.seed = seed
    adata = anndata.AnnData(csr_matrix(counts.astype(np.float32)))
    scvi.model.LinearSCVI.setup_anndata(adata)
    model = scvi.model.LinearSCVI(adata, n_latent=rank)
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False)
    z, variances = model.get_latent_representation(return_dist=True)
    return {"loadings": with_covariance(model.get_loadings().to_numpy(), z, variances.mean(axis=0))}


if __name__ == "__main__":
    run(fit)
