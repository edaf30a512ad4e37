"""The residual start: ask the model without factors where it fails.

Principal components of pseudocounted logs contain the sequencing depth, for which the likelihood
has no use, and lose real directions to it. The scores of the model with V = 0 do not: their
leading singular vectors are the score test for one more factor.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from countvae.decoder import SIGMA2_RANGE, Decoder, oriented
from countvae.devices import factored
from countvae.evidence import solve_noise
from countvae.inference import best_D, posterior_at, refine
from countvae.logs import centred_logs
from countvae.rows import Rows

SUBSAMPLE = 400
"""Samples by which centre, noise and encoder are found."""

MOST_SAMPLES = 4096
"""Samples of which the residuals are looked at, at most."""

SWEEPS = 10
OVERSAMPLING = 10
POWER_PASSES = 2
NEWTON_STEPS = 4


class Start(NamedTuple):
    """Where training begins: a decoder and the linear encoder that fits it."""

    V: Float[Tensor, "d k"]
    mu: Float[Tensor, " d"]
    sigma2: Float[Tensor, ""]
    A: Float[Tensor, "d k"]
    b: Float[Tensor, " k"]
    log_D: Float[Tensor, " k"]

    @classmethod
    def zeros(cls, d: int, k: int, dtype: torch.dtype) -> "Start":
        """Make one of the right shapes, for what is restored."""
        shapes = (d, k), (d,), (), (d, k), (k,), (k,)
        return cls(*(torch.zeros(shape, dtype=dtype) for shape in shapes))


@torch.no_grad()
def residual_start(rows: Rows, k: int, *, pseudocount: float, generator: torch.Generator) -> Start:
    """Fit centre and noise without factors, read k factors off the residuals, fit an encoder.

    Parameters
    ----------
    rows : Rows
        The table.
    k : int
        Number of factors.
    pseudocount : float
        Enters the linear encoder only.
    generator : torch.Generator
        Draws the subsample and the random projection.
    """
    some = rows.sample(SUBSAMPLE, generator)
    many = rows.sample(MOST_SAMPLES, generator)
    mu, sigma2 = without_factors(some)
    V, sigma2 = _factors_of_residuals(many, mu, sigma2, k, generator)
    return start_at(some, Decoder(V, mu, sigma2), pseudocount)


@torch.no_grad()
def start_at(some: Rows, decoder: Decoder, pseudocount: float) -> Start:
    """Begin with a decoder, and the linear encoder that fits it on some samples."""
    V, mu, sigma2 = decoder.V.detach(), decoder.mu.detach(), decoder.sigma2
    A, b, log_D = _linear_encoder(some, decoder, pseudocount)
    return Start(V, mu, sigma2, A, b, log_D)


@torch.no_grad()
def without_factors(some: Rows, least: float = 0.05) -> tuple[Tensor, Tensor]:
    """Centre and noise variance of the model with V = 0, the latter at least so large.

    The centre by Newton under a weak ridge, the noise by moments: Var(r) = w under the model.
    """
    shares, reads = torch.zeros(some.d, dtype=some.dtype, device=some.device), 0.0
    for x in some.in_order():
        depth = x.sum(1, keepdim=True)
        shares += (x / depth.clamp_min(1)).sum(0)
        reads += depth.sum().item()
    mu = (shares / some.n + 0.5 / reads).log()
    mu -= mu.mean()
    sigma2 = mu.new_tensor(1.0)
    log_scales: list[Tensor] = []
    for _ in range(SWEEPS):
        score, information, squares = (torch.zeros_like(mu) for _ in range(3))
        scales_before, log_scales = log_scales or [None] * some.batches, []
        for x, log_scale in zip(some.in_order(), scales_before, strict=True):
            noise = solve_noise(mu.expand_as(x), torch.zeros_like(x), x, sigma2, log_scale)
            score += noise.r.sum(0)
            information += noise.w.sum(0)
            squares += noise.r.square().sum(0)
            log_scales.append(noise.log_scale)
        ridge = 1 / mu.var().clamp_min(0.1)
        mu = mu + ((score - ridge * mu) / (information + ridge)).clamp(-2, 2)
        shift = mu.mean()
        mu = mu - shift
        log_scales = [log_scale + shift for log_scale in log_scales]
        ratio = squares.sum() / information.sum()
        sigma2 = (sigma2 * ratio.clamp(0.5, 2)).clamp(least, SIGMA2_RANGE[1])
    return mu, sigma2


def _factors_of_residuals(
    rows: Rows, mu: Tensor, sigma2: Tensor, k: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Leading singular vectors of the standardised, winsorised residuals at V = 0.

    One pass over the table a product, never more than a batch of residuals in memory.
    """
    n, d = rows.n, rows.d
    zeros = mu.new_zeros(min(rows.batch_size, n), d)

    log_scales: list[Tensor] = []
    residual_sum, information = mu.new_zeros(d), mu.new_zeros(d)
    for x in rows.in_order():
        noise = solve_noise(mu.expand_as(x), zeros[: len(x)], x, sigma2)
        log_scales.append(noise.log_scale)
        residual_sum += noise.r.sum(0)
        information += noise.w.sum(0)
    residual_mean, information = residual_sum / n, information / n
    scale = (information + 1 / n).sqrt()
    cap = (n / 10) ** 0.5

    def residuals() -> Iterator[Tensor]:
        for x, log_scale in zip(rows.in_order(), log_scales, strict=True):
            noise = solve_noise(mu.expand_as(x), zeros[: len(x)], x, sigma2, log_scale)
            R = ((noise.r - residual_mean) / scale).clamp_(-cap, cap)
            squares = R.square().sum(1, keepdim=True)
            R *= (10 * squares.median() / squares.clamp_min(1e-12)).clamp_(max=1).sqrt_()
            yield R

    def gram_times(Y: Tensor) -> tuple[Tensor, Tensor]:
        product, energy = torch.zeros_like(Y), Y.new_zeros(())
        for R in residuals():
            product += R.T @ (R @ Y)
            energy += R.square().sum()
        return product / n, energy / n

    width = min(k + OVERSAMPLING, d - 1, n)
    Y = torch.randn(d, width, generator=generator, dtype=mu.dtype).to(mu)
    for _ in range(POWER_PASSES):
        Y, _ = gram_times(factored(torch.linalg.qr, Y)[0])
    Y = factored(torch.linalg.qr, Y)[0]
    product, energy = gram_times(Y)
    eigenvalues, rotation = factored(torch.linalg.eigh, Y.T @ product)
    strength = eigenvalues.flip(0)[:k].clamp_min(0)
    u = oriented((Y @ rotation).flip(1)[:, :k])
    background = ((energy - strength.sum()) / max(1, min(n, d) - k)).clamp_min(1e-6)
    V = u * (strength - background).clamp_min(0.05 * background).sqrt() / scale[:, None]
    V = V / (1 + V.square().sum(1, keepdim=True) / (4 * sigma2)).sqrt()
    return V, sigma2 * background.clamp(max=1)


def _linear_encoder(
    some: Rows, decoder: Decoder, pseudocount: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Regress the optimal factors of some samples on k information-weighted log-ratios."""
    V, mu, k = decoder.V.detach(), decoder.mu.detach(), decoder.V.shape[1]
    information = torch.zeros_like(mu)
    for x in some.in_order():
        without = solve_noise(mu.expand_as(x), torch.zeros_like(x), x, decoder.sigma2)
        information += without.w.sum(0)
    weighted = (information / some.n)[:, None] * V
    weighted = weighted - weighted.mean(0)
    features, factors, variances = [], [], []
    for x in some.in_order():
        z = x.new_zeros(len(x), k)
        posterior = posterior_at(decoder, x, z, torch.full_like(z, 0.5))
        posterior = refine(decoder, x, posterior, NEWTON_STEPS)
        features.append(centred_logs(x, pseudocount, mu) @ weighted)
        factors.append(posterior.z)
        variances.append(best_D(V, posterior.noise))
    inputs, z = torch.cat(features), torch.cat(factors)
    design = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    ridge = 1e-5 * inputs.square().sum() / k + 1e-6
    gram = design.T @ design + ridge * torch.eye(k + 1).to(design)
    coefficients = torch.linalg.solve(gram, design.T @ z)
    left_over = (z - design @ coefficients).var(0)
    D = torch.cat(variances).mean(0) + 0.5 * left_over
    return weighted @ coefficients[:k], coefficients[k], D.log()
