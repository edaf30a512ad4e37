"""The methods that are compared, a file each, behind one function: `fit(truth, k, seed, ...)`."""

from countvae_simulations.methods import (
    ablations,
    factor_analysis,
    log_pca,
    log_ppca,
    oracle,
    ours,
    peer,
    published,
    truth_start,
)
from countvae_simulations.methods.base import Fit

METHODS: dict[str, Fit] = {
    "ours": ours.fit,
    "ablation": ablations.fit,
    "truth_start": truth_start.fit,
    "oracle": oracle.fit,
    "published": published.fit,
    "log_pca": log_pca.fit,
    "log_ppca": log_ppca.fit,
    "factor_analysis": factor_analysis.fit,
    "peer": peer.fit,
}
