"""The evidence lower bound, one value a sample, its terms by name.

A sample has counts x of total N, logits m0 = mu + V z_hat and factor variances Q_j = v_j' S v_j.
Its noise eps ~ N(0, sigma2 I) is given the structured Gaussian posterior

    q(z, eps | x) = N(z; z_hat, S) prod_j N(eps_j; e_j + (rho_j - 1) v_j'(z - z_hat), s2_j)

and every parameter of it has a fixed point that is reached here without sampling. The derivation
is on the page "The model" of the documentation.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from countvae import omega
from countvae.compiled import kernel
from countvae.devices import widest
from countvae.threads import cut, share, worth

Sigma2 = Float[Tensor, ""] | Float[Tensor, " d"]

CACHED_ENTRIES = 1 << 17
"""Entries of a block of rows that is solved at once: about what a second-level cache holds."""

WORTH_THREADS = 1 << 16
"""Entries of a batch from which its blocks are shared out among threads."""

NEWTON_PASSES = 24
TOLERANCE = 0.02
"""Size in nats of the last Newton pass; Newton is quadratic, so what is left is far smaller."""

FLOAT32_DEPTH = 1e5
"""Reads beyond which the bound of a sample is no longer summed in single precision."""


class Noise(NamedTuple):
    """The noise posterior of a batch of samples at its fixed point, and what follows from it."""

    likelihood: Float[Tensor, " b"]
    """Lower bound on E log p(x | eta) in nats, multinomial coefficient left out."""
    kl: Float[Tensor, " b"]
    """E KL( q(eps | z, x) || N(0, sigma2 I) ) in nats."""
    overcount: Float[Tensor, " b"]
    """Nats of `kl` spent on the direction of the noise that softmax ignores; never negative."""
    r: Float[Tensor, "b d"]
    """x - lambda, the gradient of the bound with respect to the logits m0."""
    of_Q: Float[Tensor, "b d"]
    """-w / 2, the gradient with respect to Q."""
    curvature: Float[Tensor, "b d"]
    """d lambda / d m0 while the log-scale stands still: what a Newton step needs."""
    log_scale: Float[Tensor, " b"]
    """c, the log-scale at which the rates lambda sum to N; a warm start for the next solution."""

    @property
    def w(self) -> Float[Tensor, "b d"]:
        """What a sample tells of each logit: lambda / (1 + sigma2 lambda)."""
        return -2 * self.of_Q

    @property
    def bound(self) -> Float[Tensor, " b"]:
        """Likelihood minus divergence of the noise, in nats: stationary in all that is solved."""
        return self.likelihood - self.kl

    def where(self, chosen: Tensor, other: "Noise") -> "Noise":
        """Take the samples marked in `chosen` from this noise, the rest from the other."""
        rows = chosen[:, None]
        return Noise(
            *(
                torch.where(chosen if mine.ndim == 1 else rows, mine, theirs)
                for mine, theirs in zip(self, other, strict=True)
            )
        )


class Sums(NamedTuple):
    """What sigma2 depends on, added up over samples."""

    squares: Float[Tensor, " d"]
    """sum(r^2 + w^2 Q)"""
    information: Float[Tensor, " d"]
    """sum(w)"""
    fisher: Float[Tensor, " d"]
    """sum(w^2)"""

    @torch.no_grad()
    def add(self, noise: Noise, Q: Float[Tensor, "b d"]) -> None:
        """Add those of some samples."""
        w = noise.w
        square = w.square()
        self.squares.add_(torch.addcmul(noise.r.square(), square, Q).sum(0))
        self.information.add_(w.sum(0))
        self.fisher.add_(square.sum(0))


def solve_noise(
    m0: Float[Tensor, "b d"],
    Q: Float[Tensor, "b d"],
    x: Float[Tensor, "b d"],
    sigma2: Sigma2,
    log_scale: Float[Tensor, " b"] | None = None,
    tolerance: float = TOLERANCE,
    sums: Sums | None = None,
) -> Noise:
    """Solve the noise posterior of every sample of a batch.

    Parameters
    ----------
    m0 : (b, d)
        Expected logits without the noise, mu + V z_hat.
    Q : (b, d)
        Variance of the logits that comes from the factors, v_j' S v_j.
    x : (b, d)
        Counts.
    sigma2 : scalar or (d,)
        Variance of the noise, shared or by feature.
    log_scale : (b,), optional
        A warm start for the log-scale c.
    tolerance : float
        Newton stops after a pass that moved no sample's bound by more, in nats.
    sums : Sums, optional
        Are added to: less work here, where the samples are at hand, than later.

    Returns
    -------
    Noise
        Constants to autograd: the bound is stationary in all that is solved here.
    """
    b, d = x.shape
    if log_scale is None:
        log_scale = x.sum(1).clamp_min(1e-6).log() - m0.logsumexp(1)
    sigma2 = sigma2.expand(d)
    threads = worth(b * d, x.device, WORTH_THREADS)
    if kernel is not None and x.device.type == "cpu":
        return _solve_compiled(m0, Q, x, sigma2, log_scale, tolerance, threads, sums)
    parts = threads if x.device.type != "cpu" else max(threads, -(-b * d // CACHED_ENTRIES))
    blocks = [(m0[at], Q[at], x[at], sigma2, log_scale[at], tolerance) for at in cut(b, parts)]
    solved = share(lambda block: _solve_block(*block), blocks, threads)
    noise = Noise(*(torch.cat(field) for field in zip(*solved, strict=True)))
    if sums is not None:
        sums.add(noise, Q)
    return noise


class _Rates(NamedTuple):
    """At l = log(sigma2 lambda): u = sigma2 lambda, rho, h and the slope of the fixed point."""

    u: Tensor
    rho: Tensor
    h: Tensor
    slope: Tensor


def _rates(u: Tensor, Q: Tensor, sigma2: Tensor) -> _Rates:
    rho = (1 + u).reciprocal_()
    h = rho * torch.addcmul(sigma2.expand_as(u), rho, Q)
    slope = torch.addcmul(1 + u, u * rho, torch.addcmul(h, rho, sigma2, value=-0.5))
    return _Rates(u, rho, h, slope)


def omega_ceiling(Y: Tensor) -> Tensor:
    """Upper bound, at most 1 too high, of the root of l + exp(l) = Y."""
    return torch.where(Y > 1, Y.clamp_min(1).log(), Y)


def _start(Y: Tensor, Q: Tensor, sigma2: Tensor) -> Tensor:
    """Root of l + exp(l) = Y to within 0.04, and a Newton step from there on the whole equation.

    As exp(l) is then Y - l, neither needs an exponential.
    """
    middle = Y.clamp(omega.LOW, omega.HIGH)
    root = torch.zeros_like(Y)
    for coefficient in reversed(omega.COEFFICIENTS):
        root.mul_(middle).add_(coefficient)
    log = Y.clamp_min(1).log()
    root = torch.where(Y > omega.HIGH, log - log / (1 + Y), root)
    root = torch.where(Y < omega.LOW, Y, root)
    _, _, h, slope = _rates(Y - root, Q, sigma2)
    return root + 0.5 * (h - Q - sigma2) / slope


@torch.no_grad()
def _solve_compiled(m0, Q, x, sigma2, log_scale, tolerance, threads, sums) -> Noise:
    """Solve by the kernel; the samples that it gives up, or too deep for it, without it."""
    assert kernel is not None
    compiled = kernel.solve
    b = len(x)
    of_sample = [torch.empty(b, dtype=torch.float64) for _ in range(3)]
    of_feature = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(3)]
    deepest = FLOAT32_DEPTH if x.dtype == torch.float32 else torch.inf
    settled, c = x.sum(1) <= deepest, log_scale.double()
    shared = sigma2.contiguous().numpy(), sigma2.double().log().numpy()
    m, q, counts, scales = (given.contiguous().numpy() for given in (m0, Q, x, c))
    written = [tensor.numpy() for tensor in (*of_sample, *of_feature, settled)]

    def solve(at: slice) -> np.ndarray:
        added = np.zeros((3, 0 if sums is None else x.shape[1]), counts.dtype)
        out = (array[at] for array in written)
        of_samples = m[at], q[at], counts[at]
        compiled(*of_samples, *shared, scales[at], tolerance, NEWTON_PASSES, *out, *added)
        return added

    added = share(solve, cut(b, threads), threads)
    if sums is not None:
        for mine, theirs in zip(sums, torch.from_numpy(np.sum(added, axis=0)), strict=True):
            mine += theirs
    noise = Noise._make([*of_sample, *of_feature, c.to(x.dtype)])
    rest = ~settled
    if rest.any():
        solved = _solve_block(m0[rest], Q[rest], x[rest], sigma2, log_scale[rest], tolerance)
        for mine, theirs in zip(noise, solved, strict=True):
            mine[rest] = theirs
        if sums is not None:
            sums.add(solved, Q[rest])
    return noise


@torch.no_grad()
def _solve_block(m0, Q, x, sigma2, log_scale, tolerance) -> Noise:
    """Newton on (l, c) jointly: one increasing equation a feature, bordered by sum(lambda) = N."""
    N = x.sum(1).clamp_min(1e-6)
    prior = m0 + sigma2.log()
    fixed = torch.addcmul(prior, x, sigma2)
    c = log_scale
    log_u = _start(fixed + 0.5 * (Q + sigma2) + c[:, None], Q, sigma2)
    # N - sum(lambda) cancels in samples deeper than this; sum(e / sigma2) does not.
    deep = N > 10 * (1 / sigma2).sum()
    any_deep = bool(deep.any())
    unsettled = torch.ones_like(deep)
    for _ in range(NEWTON_PASSES):
        u, _, h, slope = _rates(log_u.exp(), Q, sigma2)
        e = (log_u - prior).sub_(c[:, None]).sub_(h, alpha=0.5)
        error = torch.addcmul(-u, x, sigma2).sub_(e)
        step = (error / slope).clamp_(-4, 4)
        rate = u / sigma2
        pull = (rate / slope).sum(1)
        excess = N - torch.addcmul(rate, rate, step).sum(1)
        if any_deep:
            by_noise = (torch.addcmul(e + error, u, step, value=-1) / sigma2).sum(1)
            excess = torch.where(deep, by_noise, excess)
        shift = (excess / pull).clamp_(-6, 6)
        log_u = (log_u + step).addcdiv_(shift[:, None].expand_as(slope), slope)
        c = c + shift
        moved = (step * error / sigma2).sum(1) + shift * excess
        unsettled = ~(moved < tolerance)
        if not unsettled.any():
            break
    if unsettled.any():
        log_u[unsettled], c[unsettled] = _bracket(m0[unsettled], Q[unsettled], x[unsettled], sigma2)
    return _evaluate(log_u, c, prior, Q, x, N, sigma2)


def _bracket(m0, Q, x, sigma2) -> tuple[Tensor, Tensor]:
    """Solve the rare sample on which Newton wanders, by bisection of c in double precision."""
    dtype = x.dtype
    m0, Q, x, sigma2 = (part.to(widest(x.device)) for part in (m0, Q, x, sigma2))
    N = x.sum(1).clamp_min(1e-6)
    reach = 0.5 * (Q + sigma2)
    fixed = m0 + sigma2.log() + sigma2 * x

    def log_u_at(c: Tensor) -> Tensor:
        Y = fixed + c[:, None]
        low, high = omega_ceiling(Y) - 1, omega_ceiling(Y + reach)
        log_u = high
        for _ in range(60):
            u, _, h, slope = _rates(log_u.exp(), Q, sigma2)
            error = Y + 0.5 * h - log_u - u
            low = torch.where(error > 0, log_u, low)
            high = torch.where(error > 0, high, log_u)
            proposed = log_u + error / slope
            inside = (proposed >= low) & (proposed <= high)
            proposed = torch.where(inside, proposed, (low + high) / 2)
            settled = (proposed - log_u).abs().max() < 1e-9
            log_u = proposed
            if settled:
                break
        return log_u

    low = N.log() - (m0 + sigma2 * x + reach).logsumexp(1) - 1
    high = low + (sigma2 * x).amax(1) + reach.amax(1) + sigma2.amax() * N + N.log().abs() + 10
    c = (low + high) / 2
    for _ in range(100):
        short = (log_u_at(c).exp() / sigma2).sum(1) < N
        low, high = torch.where(short, c, low), torch.where(short, high, c)
        c = (low + high) / 2
        if (high - low).max() < 1e-10:
            break
    return log_u_at(c).to(dtype), c.to(dtype)


def _evaluate(log_u, c, prior, Q, x, N, sigma2) -> Noise:
    """The bound at l, whatever l: e is defined by it, so the bound holds before convergence too."""
    dtype, wide = x.dtype, widest(x.device)
    if (N > FLOAT32_DEPTH).any():
        log_u, c, prior, Q, x, N, sigma2 = (
            part.to(wide) for part in (log_u, c, prior, Q, x, N, sigma2)
        )
    u, rho, h, slope = _rates(log_u.exp(), Q, sigma2)
    e = (log_u - prior).sub_(c[:, None]).sub_(h, alpha=0.5)
    rate = u / sigma2
    total = rate.sum(1, dtype=wide)
    expected_logit = (x * (log_u.to(wide) - sigma2.to(wide).log() - 0.5 * h)).sum(1)
    likelihood = expected_logit - x.sum(1, dtype=wide) * total.log()
    slack = u * rho
    kl = torch.addcmul(e * e, slack * slack, Q).div_(sigma2).sub_(slack).add_(u.log1p())
    rate = rate * (N / total)[:, None].to(x.dtype)
    w = rate * rho
    precision = (1 / sigma2).sum(dtype=wide)
    informed = (slack / sigma2).sum(1, dtype=wide)
    return Noise(
        likelihood,
        0.5 * kl.sum(1, dtype=wide),
        0.5 * (torch.log1p(total / precision) - informed / precision),
        torch.where(u > 1, e / sigma2, x - rate).to(dtype),
        (-0.5 * w).to(dtype),
        (rate / slope).to(dtype),
        c.to(dtype),
    )


class _AtFixedPoint(torch.autograd.Function):
    """The bound as a function of (m0, Q), differentiated by the envelope theorem."""

    @staticmethod
    def forward(ctx, m0, Q, bound, r, of_Q):
        ctx.save_for_backward(r, of_Q)
        return bound.clone()

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        r, of_Q = ctx.saved_tensors
        if not bool((grad == 1).all()):  # of a plain sum nothing has to be multiplied, or copied
            grad = grad[:, None].to(r.dtype)
            r, of_Q = grad * r, grad * of_Q
        return r, of_Q, None, None, None


def noise_bound(
    m0: Float[Tensor, "b d"], Q: Float[Tensor, "b d"], noise: Noise
) -> Float[Tensor, " b"]:
    """E log p(x | eta) - KL of the noise, in nats, differentiable in m0 and Q."""
    return _AtFixedPoint.apply(m0, Q, noise.bound, noise.r, noise.of_Q)


def factor_kl(z: Float[Tensor, "b k"], D: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """KL( N(z, diag D) || N(0, I) ), in nats."""
    return 0.5 * (z * z + D - D.log() - 1).sum(1)


def log_coefficient(x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """Multinomial coefficient log N! - sum_j log x_j!, in nats, in double precision."""
    x = x.double()
    return torch.lgamma(x.sum(1) + 1) - torch.lgamma(x + 1).sum(1)
