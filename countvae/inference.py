"""The posterior of the factors of a batch of samples: the encoder's answer, then Newton steps."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm, qmc
from torch import Tensor

from countvae.decoder import Decoder, Given
from countvae.evidence import (
    TOLERANCE,
    Noise,
    factor_kl,
    log_coefficient,
    omega_ceiling,
    solve_noise,
)
from countvae.metrics import tail_shape
from countvae.threads import cut, share, worth

Law = Decoder | Given

BACKTRACK = 0.4
NODES = (-10.0, 6.0, 0.5)
"""Of the noise about its mode, in standard deviations there; the prior's tail is the wider one."""

OMEGA_STEPS = 6
LEVEL_STEPS = 2
LEAST = 1e-300
LARGEST = 300.0
"""Of what a rate is multiplied by, as a logarithm; its density has long been nothing by then."""

CACHED_ENTRIES = 1 << 15
DRAWS = 64
"""Draws of the factors by which an expectation is taken through a network."""

WEIGHED = 256
"""Draws of the factors whose weights stand for a posterior that is not normal."""

BLOCK_ENTRIES = 1 << 20
"""Entries of the products that are in memory at once."""


class Posterior(NamedTuple):
    """q(z | x) of a batch with its solved noise; without variance, D = 0, a point."""

    z: Float[Tensor, "b k"]
    D: Float[Tensor, "b k"]
    noise: Noise

    @property
    def bound(self) -> Float[Tensor, " b"]:
        """Bound on log p(x) in nats, multinomial coefficient left out; of a point, on log p(x | z).

        Of a network it is that of the decoder made straight at z: see `in_expectation`.
        """
        return self.noise.bound - factor_kl(self.z, self.D) if self.D.any() else self.noise.bound


@torch.no_grad()
def posterior_at(
    decoder: Law,
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
def in_expectation(decoder: Law, x: Float[Tensor, "b d"], posterior: Posterior) -> Posterior:
    """Give an answer the noise's likelihood and divergence in expectation under q(z | x).

    A linear decoder's have them. Through a network they are averages over draws, in pairs of
    opposite sign, that all samples share.
    """
    if decoder.linear or not posterior.D.any():
        return posterior
    z, noise, solved = posterior.z, posterior.noise, []
    for draw in balanced(shared_draws(x, z.shape[1], DRAWS)):
        m0 = decoder.logits(z + posterior.D.sqrt() * draw)
        noise = solve_noise(m0, torch.zeros_like(x), x, decoder.sigma2, noise.log_scale)
        solved.append(torch.stack([noise.likelihood, noise.kl, noise.overcount]))
    likelihood, kl, overcount = torch.stack(solved).mean(0)
    return posterior._replace(
        noise=posterior.noise._replace(likelihood=likelihood, kl=kl, overcount=overcount)
    )


def shared_draws(like: Tensor, k: int, count: int) -> Float[Tensor, "s 1 k"]:
    """Standard normal draws, the same each time: Sobol's points, in pairs of opposite sign."""
    points = qmc.Sobol(k, seed=0).random(count // 2)
    half = norm.ppf(points)[:, None]
    return torch.from_numpy(np.concatenate([half, -half])).to(like)


def balanced(draws: Float[Tensor, "s 1 k"]) -> Float[Tensor, "s 1 k"]:
    """Scale draws in pairs so that averages of a factor's squares are exact, as its own are."""
    return draws / draws.square().mean(0).sqrt()


def through(c: Float[Tensor, "b d"], J: Float[Tensor, "*b d k"]) -> Float[Tensor, "b k"]:
    """Return J' c of each sample, whether or not the slopes J are the same for all."""
    return c @ J if J.ndim == 2 else (c[:, None, :] @ J)[:, 0]


@torch.no_grad()
def factor_precision(J: Float[Tensor, "*b d k"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b k k"]:
    """Information about the factors, I + J'(diag(c) - c c'/sum(c))J, of logits that have c."""
    H = _of_shared_slopes(J, c) if J.ndim == 2 else _of_own_slopes(J, c)
    border = through(c, J) / c.sum(1, keepdim=True).sqrt()
    H -= border[:, :, None] * border[:, None, :]
    H.diagonal(dim1=1, dim2=2).add_(1)
    return H


def _of_shared_slopes(V: Float[Tensor, "d k"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b k k"]:
    """V' diag(c) V of each sample: one product of matrices, c and the products of two columns."""
    (b, d), k = c.shape, V.shape[1]
    pairs = torch.tril_indices(k, k, device=V.device)
    columns, found = V.mT.contiguous(), V.new_zeros(b, pairs.shape[1])
    rows = max(1, BLOCK_ENTRIES // pairs.shape[1])

    def work(at: slice) -> None:
        i, j = pairs[:, at]
        for some, weights in zip(columns.split(rows, 1), c.split(rows, 1), strict=True):
            found[:, at] += weights @ (some[i] * some[j]).mT

    threads = worth(b * d * k, c.device)
    share(work, cut(pairs.shape[1], threads), threads)
    H = V.new_empty(b, k, k)
    H[:, pairs[0], pairs[1]] = found
    H[:, pairs[1], pairs[0]] = found
    return H


def _of_own_slopes(J: Float[Tensor, "b d k"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b k k"]:
    """J' diag(c) J of each sample."""
    b, d, k = J.shape
    H = J.new_empty(b, k, k)
    rows = max(1, BLOCK_ENTRIES // (d * k))

    def work(at: slice) -> None:
        parts = (whole[at].split(rows) for whole in (c, J, H))
        for weights, slopes, out in zip(*parts, strict=True):
            torch.matmul(weights[:, None, :] * slopes.mT, slopes, out=out)

    threads = worth(b * d * k, c.device)
    share(work, cut(b, threads), threads)
    return H


@torch.no_grad()
def newton_step(J: Float[Tensor, "*b d k"], posterior: Posterior) -> Float[Tensor, "b k"]:
    """H^-1 gradient, exact at fixed D where the slopes J of the logits are constant."""
    gradient = through(posterior.noise.r, J) - posterior.z
    H = factor_precision(J, posterior.noise.curvature)
    return torch.linalg.solve(H, gradient)


@torch.no_grad()
def best_D(J: Float[Tensor, "*b d k"], noise: Noise) -> Float[Tensor, "b k"]:
    """The variance at which the bound is stationary: 1/D_c = 1 + sum_j w_j J_jc^2."""
    return 1 / (1 - 2 * through(noise.of_Q, J.square()))


@torch.no_grad()
def factor_covariance(
    J: Float[Tensor, "*b d k"], w: Float[Tensor, "b d"]
) -> Float[Tensor, "b k k"]:
    """The covariance at which the bound is stationary if q(z | x) is free to have a whole one."""
    return torch.linalg.inv(factor_precision(J, w))


class LogRatios(NamedTuple):
    """A normal law of the logits eta of each sample: see `logits_given`.

    Given z the logits are `mean` + A (z - z_hat) with A = diag(rho) J + (1 - rho) v_bar', and a
    covariance diag(own) + (1 - rho)(1 - rho)' / total of their own.
    """

    mean: Float[Tensor, "b d"]
    J: Float[Tensor, "*b d k"]
    rho: Float[Tensor, "b d"]
    own: Float[Tensor, "b d"]
    v_bar: Float[Tensor, "b k"]
    total: Float[Tensor, "b 1"]


@torch.no_grad()
def logits_given(decoder: Law, x: Float[Tensor, "b d"], posterior: Posterior) -> LogRatios:
    """Return the law of the logits, their common level and their own noise by quadrature.

    With its level c every feature is by itself, a count of Poisson's with rate exp(c + eta_j): see
    `_by_quadrature`. The level is at the maximum of its own posterior, where rates add up to the
    reads, and `total` is the information on it. That of the bound leaves out that all logits that
    were read much may move together against those that were not, and puts those not read too low.
    The variance of the loadings adds rho_j^2 sum_c U_jc (z_c^2 + D_c) to `own`.
    """
    m0, sigma2 = decoder.logits(posterior.z), decoder.sigma2.expand(x.shape[1])
    N = x.sum(1).clamp_min(1e-6)
    c = N.log() - (m0 + sigma2 * posterior.noise.r).logsumexp(1)
    for _ in range(LEVEL_STEPS):
        _, _, rate, information = _by_quadrature(c[:, None] + m0, x, sigma2)
        step = (N - rate.sum(1)) / information.sum(1).clamp_min(LEAST)
        c = c + step.clamp(-1, 1)
    e, variance, _, information = _by_quadrature(c[:, None] + m0, x, sigma2)
    rho, J = variance / sigma2, decoder.jacobian(posterior.z)
    total = information.sum(1, keepdim=True).clamp_min(LEAST)
    own = variance + rho.square() * decoder.unsure(posterior.z, posterior.D)
    return LogRatios(m0 + e, J, rho, own, through(information, J) / total, total)


def _by_quadrature(
    log_rate: Float[Tensor, "b d"], x: Float[Tensor, "b d"], sigma2: Float[Tensor, " d"]
) -> tuple[Float[Tensor, "b d"], ...]:
    """Posterior mean and variance of the noise of each feature, rate, and information on its level.

    Of e ~ N(0, sigma2) and a count x of Poisson's with rate r = exp(log_rate + e): E e, var e, E r
    and E r - var r. By the trapezoidal rule about the mode, where r = w / sigma2 with
    w + log w = log_rate + log sigma2 + sigma2 x.
    """
    b, d = x.shape
    threads = worth(b * d, x.device)
    blocks = cut(b, max(threads, -(-b * d // CACHED_ENTRIES)))
    parts = share(lambda at: _moments(log_rate[at], x[at], sigma2), blocks, threads)
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _moments(log_rate: Tensor, x: Tensor, sigma2: Tensor) -> tuple[Tensor, ...]:
    Y = log_rate + sigma2.log() + sigma2 * x
    log_w = omega_ceiling(Y)
    for _ in range(OMEGA_STEPS):
        w = log_w.exp()
        log_w = log_w - (log_w + w - Y) / (1 + w)
    w = log_w.exp()
    mode, scale, at_mode = log_w - sigma2.log() - log_rate, (sigma2 / (1 + w)).sqrt(), w / sigma2
    Z, first, second, rate, rate_square = (torch.zeros_like(x) for _ in range(5))
    slope, curvature = at_mode * scale, 0.5 / (1 + w)
    for node in torch.arange(*NODES).tolist():
        more = (scale * node).clamp_(max=LARGEST).expm1_().mul_(at_mode)
        # the log-density less that at the mode, whose slope is zero
        weight = (slope * node).sub_(more).sub_(curvature, alpha=node * node).exp_()
        Z += weight
        first.add_(weight, alpha=node)
        second.add_(weight, alpha=node * node)
        rate += weight.mul_(more)
        rate_square += weight.mul_(more)
    first, second, rate, rate_square = (total / Z for total in (first, second, rate, rate_square))
    return (
        mode + scale * first,
        scale.square() * (second - first.square()).clamp_min(0),
        at_mode + rate,
        (at_mode + rate - rate_square + rate.square()).clamp_min(0),
    )


@torch.no_grad()
def log_ratios(
    decoder: Law,
    x: Float[Tensor, "b d"],
    posterior: Posterior,
    S: Float[Tensor, "b k k"],
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Proportions, and mean and standard deviation of the centred log-ratios, of normal factors.

    Proportions are the rates lambda = x - r, which go as E exp(eta) under q.
    """
    law = logits_given(decoder, x, posterior)
    variance = _variance_of_noise(law)
    slopes = law.J.expand(len(x), *law.J.shape[-2:])
    of_samples = zip(variance, law.rho, law.v_bar, slopes, S, strict=True)
    for of_factors, rho, v_bar, J, covariance in of_samples:
        A = v_bar + rho[:, None] * (J - v_bar)
        A = A - A.mean(0)
        of_factors += ((A @ covariance) * A).sum(1)
    return _closed(_rates(x, posterior.noise)), _centred(law.mean), variance.sqrt()


@torch.no_grad()
def log_ratios_by_weight(
    decoder: Law, x: Float[Tensor, "b d"], posterior: Posterior
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Return what `log_ratios` does where factors are not normal: averages over weighed draws.

    All samples share the draws, so that they do not influence each other.
    """
    law, draws = logits_given(decoder, x, posterior), shared_draws(x, posterior.z.shape[1], WEIGHED)
    drawn = (
        (each.log_weight, _rates(x, each.noise), mean_logits(decoder, posterior, law, each.z))
        for each in proposals(decoder, x, posterior, draws)
    )
    log_weights, rates, logits = (torch.stack(part) for part in zip(*drawn, strict=True))
    weights = log_weights.softmax(0)[:, :, None]
    clr = _centred(logits)
    mean = (weights * clr).sum(0)
    variance = _variance_of_noise(law) + (weights * (clr - mean).square()).sum(0)
    return _closed((weights * rates).sum(0)), mean, variance.sqrt()


def _variance_of_noise(law: LogRatios) -> Float[Tensor, "b d"]:
    """Variance of the centred log-ratios given the factors."""
    d = law.own.shape[1]
    variance = law.own * (1 - 2 / d) + law.own.mean(1, keepdim=True) / d
    together = (law.rho.mean(1, keepdim=True) - law.rho).square_()
    return variance.add_(together / law.total)


def _rates(x: Tensor, noise: Noise) -> Tensor:
    return (x - noise.r).clamp_min(0)


def _closed(rates: Tensor) -> Tensor:
    return rates / rates.sum(-1, keepdim=True)


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


@torch.no_grad()
def mean_logits(
    decoder: Law, posterior: Posterior, law: LogRatios, z: Float[Tensor, "b k"]
) -> Float[Tensor, "b d"]:
    """Return the mean of the logits of each sample, whose `law` is `logits_given`'s, at factors."""
    level = ((z - posterior.z) * law.v_bar).sum(1, keepdim=True)
    moved = decoder.logits(z) - decoder.logits(posterior.z)
    return law.mean + level + law.rho * (moved - level)


@torch.no_grad()
def drawn_factors(
    posterior: Posterior, S: Float[Tensor, "b k k"], draws: int, rng: np.random.RandomState
) -> Float[Tensor, "s b k"]:
    """Draw normal factors of each sample."""
    root = torch.linalg.cholesky(S) if S.any() else S
    normal = torch.from_numpy(rng.standard_normal((draws, *posterior.z.shape))).to(S)
    return posterior.z + (root @ normal[..., None])[..., 0]


@torch.no_grad()
def factors_by_weight(
    decoder: Law,
    x: Float[Tensor, "b d"],
    posterior: Posterior,
    draws: int,
    rng: np.random.RandomState,
) -> Float[Tensor, "s b k"]:
    """Draw factors of each sample where they are not normal: of weighed draws, by their weight."""
    normal = rng.standard_normal((WEIGHED, *posterior.z.shape))
    drawn = [
        (each.log_weight, each.z)
        for each in proposals(decoder, x, posterior, torch.from_numpy(normal).to(x))
    ]
    log_weights, z = (torch.stack(part) for part in zip(*drawn, strict=True))
    at = torch.from_numpy(rng.random_sample((len(x), draws))).to(x)
    chosen = torch.searchsorted(log_weights.T.softmax(1).cumsum(1), at).clamp_(max=WEIGHED - 1)
    return z.gather(0, chosen.T[:, :, None].expand(-1, -1, z.shape[2]))


@torch.no_grad()
def drawn_logits(
    decoder: Law,
    posterior: Posterior,
    law: LogRatios,
    z: Float[Tensor, "b k"],
    rng: np.random.RandomState,
) -> Float[Tensor, "b d"]:
    """Draw the logits of each sample, whose `law` is that of `logits_given`, at factors."""

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).to(z)

    logits = mean_logits(decoder, posterior, law, z)
    logits += law.own.sqrt() * normal(*logits.shape)
    logits += (1 - law.rho) * normal(len(logits), 1) / law.total.sqrt()
    return logits


@torch.no_grad()
def proportion_interval(
    decoder: Law,
    x: Float[Tensor, "b d"],
    posterior: Posterior,
    factors: Float[Tensor, "s b k"],
    level: float,
    rng: np.random.RandomState,
) -> Float[Tensor, "2 b d"]:
    """Quantiles of the proportions, drawn at `factors`, between which `level` of them lie."""
    law = logits_given(decoder, x, posterior)
    drawn = [drawn_logits(decoder, posterior, law, z, rng).softmax(1) for z in factors]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2]).to(x)
    return torch.stack(drawn).quantile(ends, dim=0)


class Proposal(NamedTuple):
    """A draw of the factors of each sample: its solved noise, and log B(x | z) N(z; 0, I) / q(z).

    The coefficient is left out of the weight.
    """

    z: Float[Tensor, "b k"]
    noise: Noise
    log_weight: Float[Tensor, " b"]


@torch.no_grad()
def proposals(
    decoder: Law, x: Float[Tensor, "b d"], posterior: Posterior, draws: Float[Tensor, "s _ k"]
) -> Iterator[Proposal]:
    """Draw factors by standard normal `draws` from q, and weigh them.

    q is normal with the whole covariance of the factors, ten per cent wider. Behind a network,
    where the posterior may have other places than this, every second draw is of the prior.
    """
    of_prior = 0.0 if decoder.linear else (len(draws) // 2) / len(draws)
    J = decoder.jacobian(posterior.z)
    root = torch.linalg.cholesky(1.1 * factor_covariance(J, posterior.noise.w))
    log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
    none, noise = torch.zeros_like(x), posterior.noise
    for number, standard in enumerate(draws):
        if number % 2 and not decoder.linear:
            z = standard.expand_as(posterior.z)
            columns = (z - posterior.z)[:, :, None]
            away = torch.linalg.solve_triangular(root, columns, upper=False)[:, :, 0]
        else:
            z, away = posterior.z + (root @ standard[:, :, None])[:, :, 0], standard
        log_prior, log_q = -0.5 * z.square().sum(1), -0.5 * away.square().sum(1) - log_det
        if of_prior:
            log_q = torch.logaddexp(log_q + math.log1p(-of_prior), log_prior + math.log(of_prior))
        noise = solve_noise(decoder.logits(z), none, x, decoder.sigma2, noise.log_scale, TOLERANCE)
        yield Proposal(z, noise, noise.bound + noise.overcount + log_prior - log_q)


def importance_evidence(
    decoder: Law,
    x: Float[Tensor, "b d"],
    posterior: Posterior,
    draws: int,
    rng: np.random.RandomState,
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """Log p(x) by importance sampling in nats, coefficient included, and Pareto k."""
    normal = torch.from_numpy(rng.standard_normal((draws, *posterior.z.shape))).to(x)
    weights = torch.stack([each.log_weight for each in proposals(decoder, x, posterior, normal)])
    found = weights.logsumexp(0) - math.log(draws) + log_coefficient(x)
    return found.cpu().numpy(), tail_shape(weights.cpu().numpy())


@torch.no_grad()
def refine(
    decoder: Law,
    x: Float[Tensor, "b d"],
    posterior: Posterior,
    steps: int,
    tolerance: float = TOLERANCE,
) -> Posterior:
    """Take Newton steps on z and fixed-point steps on D; no sample's `bound` ever falls.

    A sample whose bound would fall stays, and tries a shorter step next.
    """
    length = torch.ones_like(posterior.z[:, :1])
    for _ in range(steps):
        J = decoder.jacobian(posterior.z)
        proposed = posterior_at(
            decoder,
            x,
            posterior.z + length * newton_step(J, posterior),
            best_D(J, posterior.noise),
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
