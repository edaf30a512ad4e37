"""The posterior of the factors of a batch of samples: the encoder's answer, then Newton steps."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from countvae.decoder import Decoder
from countvae.evidence import TOLERANCE, Noise, factor_kl, solve_noise
from countvae.threads import cut, share, worth

BACKTRACK = 0.4
BLOCK_ENTRIES = 1 << 20
"""Entries of the products that are in memory at once."""


class Posterior(NamedTuple):
    """q(z | x) of a batch with its solved noise."""

    z: Float[Tensor, "b k"]
    D: Float[Tensor, "b k"]
    noise: Noise

    @property
    def bound(self) -> Float[Tensor, " b"]:
        """Bound on log p(x) in nats, multinomial coefficient left out."""
        return self.noise.bound - factor_kl(self.z, self.D)


@torch.no_grad()
def posterior_at(
    decoder: Decoder,
    x: Float[Tensor, "b d"],
    z: Float[Tensor, "b k"],
    D: Float[Tensor, "b k"],
    log_scale: Float[Tensor, " b"] | None = None,
    tolerance: float = TOLERANCE,
) -> Posterior:
    """Solve the noise of a batch at given factors."""
    m0, Q = decoder(z, D)
    return Posterior(z, D, solve_noise(m0, Q, x, decoder.sigma2, log_scale, tolerance))


@torch.no_grad()
def factor_precision(V: Float[Tensor, "d k"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b k k"]:
    """Information about the factors, I + V'(diag(c) - c c'/sum(c))V, of logits that have c."""
    (b, d), k = c.shape, V.shape[1]
    H = V.new_empty(b, k, k)
    rows = max(1, BLOCK_ENTRIES // (d * k))

    def work(at: slice) -> None:
        for weights, out in zip(c[at].split(rows), H[at].split(rows), strict=True):
            torch.matmul(weights[:, None, :] * V.T, V, out=out)

    threads = worth(b * d * k, c.device)
    share(work, cut(b, threads), threads)
    border = (c @ V) / c.sum(1, keepdim=True).sqrt()
    H -= border[:, :, None] * border[:, None, :]
    H.diagonal(dim1=1, dim2=2).add_(1)
    return H


@torch.no_grad()
def newton_step(decoder: Decoder, posterior: Posterior) -> Float[Tensor, "b k"]:
    """H^-1 gradient, exact at fixed D."""
    gradient = posterior.noise.r @ decoder.V - posterior.z
    H = factor_precision(decoder.V, posterior.noise.curvature)
    return torch.linalg.solve(H, gradient)


@torch.no_grad()
def best_D(decoder: Decoder, noise: Noise) -> Float[Tensor, "b k"]:
    """The variance at which the bound is stationary: 1/D_c = 1 + sum_j w_j V_jc^2."""
    return 1 / (1 + noise.w @ decoder.V.square())


@torch.no_grad()
def factor_covariance(V: Float[Tensor, "d k"], w: Float[Tensor, "b d"]) -> Float[Tensor, "b k k"]:
    """The covariance at which the bound is stationary if q(z | x) is free to have a whole one."""
    return torch.linalg.inv(factor_precision(V, w))


@torch.no_grad()
def refine(
    decoder: Decoder,
    x: Float[Tensor, "b d"],
    posterior: Posterior,
    steps: int,
    tolerance: float = TOLERANCE,
) -> Posterior:
    """Take Newton steps on z and fixed-point steps on D; no sample's bound ever falls.

    A sample whose bound would fall stays, and tries a shorter step next.
    """
    length = torch.ones_like(posterior.z[:, :1])
    for _ in range(steps):
        proposed = posterior_at(
            decoder,
            x,
            posterior.z + length * newton_step(decoder, posterior),
            best_D(decoder, posterior.noise),
            posterior.noise.log_scale,
            tolerance,
        )
        rises = proposed.bound >= posterior.bound
        rows = rises[:, None]
        length = torch.where(rows, 1.0, BACKTRACK * length)
        posterior = Posterior(
            torch.where(rows, proposed.z, posterior.z),
            torch.where(rows, proposed.D, posterior.D),
            proposed.noise.where(rises, posterior.noise),
        )
    return posterior
