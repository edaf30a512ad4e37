"""The exact posterior of the factors of a few samples, by importance sampling.

Draws of z and of the noise from a Gaussian at the optimum of the bound are weighed by

    p(x | z, eps) p(z) p(eps) / q(z, eps),

densities of eps being those of its log-ratios: along 1, which softmax ignores, weights would have
no use and all the variance.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from countvae.evidence import solve_noise
from countvae.inference import factor_covariance
from countvae.metrics import tail_shape

DRAWS = 1000


class Exact(NamedTuple):
    """Posterior mean and standard deviation of z, and what the estimate is worth."""

    mean: np.ndarray
    sd: np.ndarray
    pareto_k: np.ndarray
    """Shape of the tail of the weights of each sample: `countvae.metrics.tail_shape`."""


def exact_posterior(
    counts: np.ndarray,
    V: np.ndarray,
    mu: np.ndarray,
    sigma2: float,
    mean: np.ndarray,
    sd: np.ndarray,
    *,
    seed: int = 0,
) -> Exact:
    """Posterior of z of each sample (b, k) at a given decoder, from an optimum of the bound."""
    x, V_, mu_, z, D = (torch.as_tensor(part).double() for part in (counts, V, mu, mean, sd**2))
    noise = solve_noise(mu_ + z @ V_.T, D @ V_.square().T, x, torch.tensor(sigma2).double())
    covariance = factor_covariance(V_, noise.w)
    generator = torch.Generator().manual_seed(seed)
    means, sds, log_weights = [], [], []
    for i in range(len(x)):
        L = torch.linalg.cholesky(covariance[i])
        unit = torch.randn(DRAWS, len(L), generator=generator, dtype=torch.float64)
        deviation = unit @ L.T
        e, w = sigma2 * noise.r[i], noise.w[i]
        spread = sigma2 - sigma2**2 * w
        around = e - sigma2 * w * (deviation @ V_.T)
        own = torch.randn(DRAWS, len(w), generator=generator, dtype=torch.float64)
        eps = around + spread.sqrt() * own
        factors = z[i] + deviation
        log_weight = torch.log_softmax(mu_ + factors @ V_.T + eps, 1) @ x[i]
        log_weight += 0.5 * (unit.square() - factors.square()).sum(1)
        log_weight += _of_log_ratios(eps - around, spread) - _of_log_ratios(
            eps, torch.full_like(spread, sigma2)
        )
        weight = torch.softmax(log_weight, 0)
        at = weight @ factors
        means.append(at)
        sds.append((weight @ (factors - at).square()).sqrt())
        log_weights.append(log_weight)
    mean, sd_, of_draws = (torch.stack(part).numpy() for part in (means, sds, log_weights))
    return Exact(mean, sd_, tail_shape(of_draws.T))


def _of_log_ratios(deviation: Tensor, variance: Tensor) -> Tensor:
    """Half the squared distance of the log-ratios of a draw under N(0, diag(variance))."""
    scaled = deviation / variance
    along = scaled.sum(1).square() / (1 / variance).sum()
    return 0.5 * ((deviation * scaled).sum(1) - along)
