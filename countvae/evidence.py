"""The evidence lower bound, one value a sample, its terms by name.

A sample has counts x (total N), logits m0 = mu + V z and factor variances Q_j = v_j' S v_j.
Its noise eps ~ N(0, sigma2 I) is given the structured Gaussian posterior

    q(z, eps | x) = N(z; z_hat, S) prod_j N(eps_j; e_j + (rho_j - 1) v_j'(z - z_hat), s2_j)

and every parameter of it has a fixed point, reached here without sampling. The derivation is
on the page "model" of the documentation.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MAX_PASSES = 40


class Noise(NamedTuple):
    """The noise of a batch of samples, solved, and what follows from it."""

    value: Float[Tensor, " b"]
    """Sum over features of log p(x | eta) - KL(noise), in nats, without the coefficient."""
    r: Float[Tensor, "b d"]
    """x - lambda: the gradient of the value with respect to the logits."""
    w: Float[Tensor, "b d"]
    """lambda / (1 + sigma2 lambda): minus twice the gradient with respect to Q."""
    curvature: Float[Tensor, "b d"]
    """d lambda / d m0 at a fixed log-scale: the diagonal of the exact Hessian."""
    log_scale: Float[Tensor, " b"]
    """c, the free log-scale at which the rates sum to N."""


def _omega_cap(Y: Tensor) -> Tensor:
    """Upper bound of the root of l + exp(l) = Y (the Wright omega function)."""
    return torch.where(Y > 1, Y.clamp_min(1).log(), Y)


def solve_noise(
    m0: Float[Tensor, "b d"],
    Q: Float[Tensor, "b d"],
    x: Float[Tensor, "b d"],
    sigma2: Float[Tensor, "*d"],
    log_scale: Float[Tensor, " b"] | None = None,
    tolerance: float = 1e-2,
) -> Noise:
    log_sigma2 = sigma2.log()
    N = x.sum(1)
    fixed = m0 + log_sigma2 + sigma2 * x
    ceiling = fixed + 0.5 * (Q + sigma2)
    c = N.log() - m0.logsumexp(1) if log_scale is None else log_scale
    l = _omega_cap(ceiling + c[:, None])
    rounding = torch.finfo(x.dtype).eps * N
    for _ in range(MAX_PASSES):
        u = l.exp()
        rho = 1 / (1 + u)
        half_h = 0.5 * rho * (rho * Q + sigma2)
        slope = 1 + u + u * rho * (2 * half_h - 0.5 * rho * sigma2)
        step = ((fixed + c[:, None] + half_h - l - u) / slope).clamp_(-4, 4)
        l = torch.minimum(l + step, _omega_cap(ceiling + c[:, None]))
        lam = l.exp() / sigma2
        total = lam.sum(1)
        pull = (lam / slope).sum(1)
        excess = N - total
        if (rounding > 1e-3 * pull).any():
            rho = 1 / (1 + l.exp())
            e = l - log_sigma2 - m0 - c[:, None] - 0.5 * rho * (rho * Q + sigma2)
            calm = (step.abs().amax(1) < 1) & (rounding > 1e-3 * pull)
            excess = torch.where(calm, (e / sigma2).sum(1), excess)
        dc = torch.where(total < 0.5 * N, (N / total).log() * total / pull, excess / pull)
        dc = dc.clamp(-3, 3)
        c = c + dc
        l = l + dc[:, None] / slope
        if max(step.abs().max(), dc.abs().max()) < tolerance:
            break
    u = l.exp()
    rho = 1 / (1 + u)
    half_h = 0.5 * rho * (rho * Q + sigma2)
    e = l - log_sigma2 - m0 - c[:, None] - half_h
    total = (u / sigma2).sum(1, keepdim=True)
    value = (x * (l - log_sigma2 - half_h)).sum(1, dtype=torch.float64) - N * total[:, 0].log()
    slack = 1 - rho
    value = value - 0.5 * (
        (e * e + slack * slack * Q) / sigma2 - slack - rho.log()
    ).sum(1, dtype=torch.float64)
    lam = u / sigma2 * (N[:, None] / total)
    w = lam * rho
    slope = 1 + u + u * rho * (2 * half_h - 0.5 * rho * sigma2)
    return Noise(value.to(x.dtype), x - lam, w, lam / slope, c)


class _Envelope(torch.autograd.Function):
    """The value, with the gradient that the envelope theorem gives at the solved noise."""

    @staticmethod
    def forward(ctx, m0, Q, noise_value, r, w):
        ctx.save_for_backward(r, w)
        return noise_value.clone()

    @staticmethod
    def backward(ctx, grad):
        r, w = ctx.saved_tensors
        return grad[:, None] * r, -0.5 * grad[:, None] * w, None, None, None


def expected_log_likelihood(m0, Q, noise: Noise):
    return _Envelope.apply(m0, Q, noise.value, noise.r, noise.w)


def factor_kl(z, D):
    """KL( N(z, diag D) || N(0, I) ), in nats."""
    return 0.5 * (z * z + D - D.log() - 1).sum(1)


def log_coefficient(x):
    """log N! / prod x_j!"""
    return torch.lgamma(x.sum(1) + 1) - torch.lgamma(x + 1).sum(1)
