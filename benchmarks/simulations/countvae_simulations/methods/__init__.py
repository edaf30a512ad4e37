"""The methods that are compared, a file each, behind one function: `fit(truth, k, seed, ...)`."""

from countvae_simulations.methods import (
    ablations,
    factor_analysis,
    in_balances,
    learned_pseudocount,
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
    "in_balances": in_balances.fit,
    "learned_pseudocount": learned_pseudocount.fit,
    "ablation": ablations.fit,
    "truth_start": truth_start.fit,
    "oracle": oracle.fit,
    "published": published.fit,
    "log_pca": log_pca.fit,
    "log_ppca": log_ppca.fit,
    "factor_analysis": factor_analysis.fit,
    "peer": peer.fit,
}
