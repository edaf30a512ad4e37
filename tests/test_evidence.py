"""The bound against quadrature, importance sampling, finite differences and a plain bisection."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, wrightomega
from scipy.stats import multinomial, multivariate_normal
from torch.distributions import MultivariateNormal, Normal

from countvae import evidence
from countvae.evidence import factor_kl, log_coefficient, noise_bound, solve_noise
from countvae.simulate import simulate

NATS = 0.01  # how far from the optimum a solved bound may be
TIGHT = 1e-12
"""Tolerance that leaves nothing to Newton, so that what is left is arithmetic."""


@pytest.fixture(params=["single, compiled", "single", "double, compiled", "double"])
def dtype(request, monkeypatch):
    """Precision of the inputs, each with the compiled kernel and without it."""
    if "compiled" in request.param:
        assert evidence.kernel is not None, "the tests need numba, as countvae[fast] installs it"
    else:
        monkeypatch.setattr(evidence, "kernel", None)
    return torch.float64 if "double" in request.param else torch.float32


def draw(seed=0, b=4, d=7, reads=200, scale=2.0):
    """Return logits, factor variances and counts of a batch, in double precision."""
    rng = np.random.default_rng(seed)
    m0 = rng.normal(0, scale, (b, d))
    p = np.exp(m0 + rng.normal(0, 1, (b, d)))
    x = rng.multinomial(reads, p / p.sum(1, keepdims=True)).astype(float)
    return torch.tensor(m0), torch.tensor(rng.uniform(0, 2, (b, d))), torch.tensor(x)


def log_ratios(d):
    """Return an orthonormal basis of the vectors that sum to zero, d x (d - 1)."""
    whole = torch.cat([torch.ones(d, 1), torch.eye(d)[:, 1:]], 1).double()
    return torch.linalg.qr(whole)[0][:, 1:]


def best_posterior(x, V, mu, sigma2, steps=20):
    """Newton on z with the curvature of the solved noise, D in closed form, from z = 0."""
    n, k = len(x), V.shape[1]
    z, D, length = x.new_zeros(n, k), x.new_ones(n, k), x.new_ones(n, 1)
    noise = solve_noise(mu + z @ V.T, D @ (V * V).T, x, sigma2)
    for _ in range(steps):
        c = noise.curvature
        border = c @ V
        H = torch.einsum("ij,ja,jb->iab", c, V, V) + torch.eye(k, dtype=x.dtype)
        H -= border[:, :, None] * border[:, None, :] / c.sum(1)[:, None, None]
        z_new = z + length * torch.linalg.solve(H, noise.r @ V - z)
        D_new = 1 / (1 + noise.w @ (V * V))
        proposed = solve_noise(mu + z_new @ V.T, D_new @ (V * V).T, x, sigma2)
        rises = proposed.bound - factor_kl(z_new, D_new) >= noise.bound - factor_kl(z, D)
        rows = rises[:, None]
        z, D = torch.where(rows, z_new, z), torch.where(rows, D_new, D)
        noise, length = proposed.where(rises, noise), torch.where(rows, 1.0, 0.4 * length)
    return z, D, noise


def log_evidence_by_grid(x, V, mu, sigma2):
    """log p(x) for two or three features: the trapezoid rule over the log-ratios."""
    d = len(mu)
    psi = log_ratios(d).numpy()
    covariance = psi.T @ (V @ V.T + np.diag(np.broadcast_to(sigma2, d))) @ psi
    prior = multivariate_normal(mu @ psi, covariance)
    axes = [
        m + np.linspace(-9, 9, 20001 if d == 2 else 701) * s
        for m, s in zip(mu @ psi, np.sqrt(np.diag(covariance)), strict=True)
    ]
    eta = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    logits = eta @ psi.T
    log_p = logits - logsumexp(logits, axis=-1, keepdims=True)
    cell = sum(np.log(axis[1] - axis[0]) for axis in axes)
    coefficient = log_coefficient(torch.tensor(x)[None]).item()
    return coefficient + logsumexp(log_p @ x + prior.logpdf(eta)) + cell


@pytest.mark.parametrize("reads", [1, 20, 300])
@pytest.mark.parametrize("sigma2", [0.1, 2.0, "by feature"])
@pytest.mark.parametrize("d", [2, 3])
def test_bound_lies_below_log_evidence_by_quadrature_wherever_the_posterior_is(d, sigma2, reads):
    rng = np.random.default_rng(d + reads)
    V, mu = rng.normal(0, 1.5, (d, 1)), rng.normal(0, 1, d)
    V -= V.mean(0)
    s2 = np.array([0.2, 3.0, 0.7])[:d] if sigma2 == "by feature" else np.array(sigma2)
    x = rng.multinomial(reads, np.exp(mu) / np.exp(mu).sum()).astype(float)
    truth = log_evidence_by_grid(x, V, mu, s2)
    x, V, mu, s2 = (torch.tensor(a) for a in (x[None], V, mu, s2))

    z, D, noise = best_posterior(x, V, mu, s2)
    bound = (noise.bound - factor_kl(z, D) + log_coefficient(x)).item()
    reported = bound + noise.overcount.item()
    assert bound < reported < truth < reported + 1
    if reads == 300:
        assert truth - reported < 0.4 * (truth - bound)

    z, D = torch.tensor(rng.normal(0, 1.5, (30, 1))), torch.tensor(rng.gamma(1, 1, (30, 1)))
    noise = solve_noise(mu + z @ V.T, D @ (V * V).T, x.expand(30, -1), s2)
    anywhere = noise.bound + noise.overcount - factor_kl(z, D) + log_coefficient(x)
    assert (anywhere < truth).all()


def test_probabilities_given_by_the_bound_sum_to_a_little_less_than_one():
    x = torch.tensor([c for c in itertools.product(range(5), repeat=3) if sum(c) == 4]).double()
    V, mu = torch.tensor([[1.0], [-0.4], [-0.6]]).double(), torch.tensor([0.5, 0.0, -0.5]).double()
    z, D, noise = best_posterior(x, V, mu, torch.tensor(0.8, dtype=torch.float64))
    bound = noise.bound - factor_kl(z, D) + log_coefficient(x)
    assert 0.5 < bound.exp().sum() < (bound + noise.overcount).exp().sum() < 1


@pytest.mark.parametrize(
    ("design", "reads", "gain", "bar"),
    [
        ("flat", 100, 0.0, 0.08),
        ("flat", 1_000, 0.03, 0.4),
        ("flat", 10_000, 0.45, 0.7),
        ("wide", 100, 0.1, 1.5),
        ("wide", 1_000, 0.6, 1.5),
        ("wide", 10_000, 1.4, 1.5),
    ],
)
def test_distance_to_log_evidence_by_importance_sampling_is_as_stated(design, reads, gain, bar):
    table = simulate(8, 200, 10, reads, design=design, rng=np.random.default_rng(1))
    x = torch.tensor(table.counts.toarray()).double()
    V, mu, sigma2 = (torch.tensor(a).double() for a in (table.V, table.mu, table.sigma2))
    z, D, noise = best_posterior(x, V, mu, sigma2)
    reported = noise.bound + noise.overcount - factor_kl(z, D)
    e, slope, psi = sigma2 * noise.r, -sigma2 * noise.w, log_ratios(200)
    s2 = sigma2 * (1 + slope)
    generator = torch.Generator().manual_seed(0)
    distance, variance = [], []
    for i in range(len(x)):
        a = torch.randn(2000, 10, generator=generator).double()
        b = torch.randn(2000, 200, generator=generator).double()
        deviation = a * D[i].sqrt()
        factors = z[i] + deviation
        mean_of_noise = e[i] + slope[i] * (deviation @ V.T)
        eps = mean_of_noise + b * s2[i].sqrt()
        # weighed on the log-ratios: along 1 the weights would have no use and all the variance
        posterior = MultivariateNormal(torch.zeros(199).double(), psi.T @ s2[i].diag() @ psi)
        log_weight = torch.log_softmax(mu + factors @ V.T + eps, 1) @ x[i]
        log_weight -= 0.5 * (factors.square() - a.square()).sum(1) - 0.5 * D[i].log().sum()
        log_weight += Normal(0, sigma2.sqrt()).log_prob(eps @ psi).sum(1)
        log_weight -= posterior.log_prob((eps - mean_of_noise) @ psi)
        weight = (log_weight - reported[i]).exp()
        distance.append(weight.mean().log())
        variance.append(weight.var() / weight.mean() ** 2 / len(weight))
    mean = torch.stack(distance).mean()
    error = torch.stack(variance).sum().sqrt() / len(x)
    assert 3 * error < mean < bar - 3 * error
    assert noise.overcount.mean() > gain


def noise_variance(by_feature):
    return (
        torch.linspace(0.1, 5, 7).double() if by_feature else torch.tensor(0.5, dtype=torch.float64)
    )


def gaussian_kl(mean, covariance, prior):
    """KL( N(mean, covariance) || N(0, prior) ) where `mean` is random, by its second moment."""
    second = torch.linalg.solve(prior, mean + covariance)
    return 0.5 * (torch.trace(second) - len(prior) + prior.logdet() - covariance.logdet())


@pytest.mark.parametrize("reads", [1, 300, 100_000])
@pytest.mark.parametrize("by_feature", [False, True])
def test_overcount_is_the_divergence_that_the_log_ratios_do_not_have(reads, by_feature):
    rng = np.random.default_rng(4)
    m0, _, x = draw(4, b=1, reads=reads)
    V, S = torch.tensor(rng.normal(size=(7, 2))), torch.tensor([0.3, 0.8]).double().diag()
    Q, sigma2 = torch.einsum("jc,ce,je->j", V, S, V)[None], noise_variance(by_feature)
    noise = solve_noise(m0, Q, x, sigma2, tolerance=TIGHT)
    r, w = noise.r[0], noise.w[0]
    e, slope, s2 = sigma2 * r, -sigma2 * w, sigma2 - sigma2**2 * w
    mean = torch.outer(e, e) + slope[:, None] * V @ S @ V.T * slope
    covariance, prior = s2.diag(), sigma2.expand(7).diag()
    whole = gaussian_kl(mean, covariance, prior)
    torch.testing.assert_close(whole, noise.kl[0], rtol=1e-6, atol=1e-9)

    psi = log_ratios(7)
    of_log_ratios = gaussian_kl(*(psi.T @ A @ psi for A in (mean, covariance, prior)))
    coupling = 0.5 * (w @ V @ S @ V.T @ w) / prior.diag().reciprocal().sum()
    expected = whole - of_log_ratios - coupling
    torch.testing.assert_close(noise.overcount[0], expected, rtol=1e-6, atol=1e-9)


def test_overcount_is_that_divergence_at_most_before_the_solver_has_converged():
    m0, _, x = draw(4)
    sigma2, generator = noise_variance(by_feature=True), torch.Generator().manual_seed(0)
    psi = log_ratios(7)
    for _ in range(20):
        log_u = 2 * torch.randn(m0.shape, generator=generator).double()
        c = torch.randn(4, generator=generator).double()
        rho = 1 / (1 + log_u.exp())
        noise = evidence._evaluate(log_u, c, m0 + sigma2.log(), 0 * m0, x, x.sum(1), sigma2)
        for i in range(4):
            e = log_u[i] - sigma2.log() - m0[i] - c[i] - sigma2 * rho[i] / 2
            parts = torch.outer(e, e), (sigma2 * rho[i]).diag(), sigma2.diag()
            most = gaussian_kl(*parts) - gaussian_kl(*(psi.T @ A @ psi for A in parts))
            assert 0 < noise.overcount[i] < most


def test_overcount_is_never_negative(hard_cases, dtype):
    m0, Q, x = (torch.tensor(a, dtype=dtype) for a in hard_cases[:3])
    for sigma2 in (torch.tensor(0.05), torch.tensor(100.0), torch.logspace(-2, 2, 40)):
        assert (solve_noise(m0, Q, x, sigma2.to(dtype)).overcount > 0).all()


@pytest.mark.parametrize("reads", [1, 300, 100_000])
@pytest.mark.parametrize("by_feature", [False, True])
def test_gradient_of_the_noise_bound_equals_finite_differences(reads, by_feature):
    m0, Q, x = draw(reads=reads)
    sigma2 = noise_variance(by_feature)

    def bound(m0, Q):
        return noise_bound(m0, Q, solve_noise(m0.detach(), Q.detach(), x, sigma2, tolerance=TIGHT))

    inputs = (m0.requires_grad_(), Q.add(0.1).requires_grad_())
    assert torch.autograd.gradcheck(bound, inputs, eps=1e-4, atol=1e-6 + 1e-9 * reads)


def test_gradients_of_a_sum_are_those_that_weights_of_the_samples_multiply():
    m0, Q, x = draw()
    m0.requires_grad_(), Q.requires_grad_()
    noise = solve_noise(m0.detach(), Q.detach(), x, noise_variance(False))
    weights = torch.arange(1.0, len(x) + 1).double()

    def gradients(weights):
        return torch.autograd.grad((weights * noise_bound(m0, Q, noise)).sum(), (m0, Q))

    of_sum = torch.autograd.grad(noise_bound(m0, Q, noise).sum(), (m0, Q))
    for plain, weighted in zip(of_sum, gradients(weights), strict=True):
        torch.testing.assert_close(weighted, weights[:, None] * plain)
    torch.testing.assert_close(of_sum[1], -noise.w / 2)


def test_gradient_of_the_whole_bound_in_every_parameter_equals_finite_differences():
    _, _, x = draw(1, d=5)
    rng = np.random.default_rng(2)
    V, mu = torch.tensor(rng.normal(size=(5, 2))), torch.tensor(rng.normal(size=5))
    z, D = torch.tensor(rng.normal(size=(4, 2))), torch.tensor(rng.uniform(0.2, 1, (4, 2)))
    sigma2 = torch.tensor(0.7, dtype=torch.float64)

    def bound(V, mu, z, D):
        m0, Q = mu + z @ V.T, D @ (V * V).T
        noise = solve_noise(m0.detach(), Q.detach(), x, sigma2, tolerance=TIGHT)
        return noise_bound(m0, Q, noise) - factor_kl(z, D)

    inputs = [t.requires_grad_() for t in (V, mu, z, D)]
    assert torch.autograd.gradcheck(bound, inputs, eps=1e-5, atol=1e-6, rtol=1e-6)


def test_derivative_in_sigma2_is_zero_where_its_equation_holds():
    m0, Q, x = draw(3)
    sigma2, h = torch.tensor(0.8, dtype=torch.float64), 1e-5
    noise = solve_noise(m0, Q, x, sigma2, tolerance=TIGHT)
    up, down = (solve_noise(m0, Q, x, sigma2 + s, tolerance=TIGHT).bound.sum() for s in (h, -h))
    expected = 0.5 * (noise.r**2 + noise.w**2 * Q - noise.w).sum()
    torch.testing.assert_close((up - down) / (2 * h), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reads", [1, 300, 100_000])
@pytest.mark.parametrize("by_feature", [False, True])
def test_curvature_with_its_border_is_the_hessian_by_finite_differences(reads, by_feature):
    m0, Q, x = draw(b=1, reads=reads)
    sigma2 = noise_variance(by_feature)
    c = solve_noise(m0, Q, x, sigma2, tolerance=TIGHT).curvature[0]
    H = torch.empty(7, 7).double()
    for j, step in enumerate(torch.eye(7).double() * 1e-5):
        up, down = (solve_noise(m0 + s, Q, x, sigma2, tolerance=TIGHT).r[0] for s in (step, -step))
        H[:, j] = (up - down) / 2e-5
    expected = -(torch.diag(c) - torch.outer(c, c) / c.sum())
    torch.testing.assert_close(H, expected, rtol=1e-5, atol=1e-6)


def dense_bound(log_u, c, m0, Q, x, sigma2):
    """Write the bound out in e, s2 and rho, all defined by l, as the page of the model does."""
    rho = 1 / (1 + np.exp(log_u))
    s2 = sigma2 * rho
    h = rho**2 * Q + s2
    e = log_u - np.log(sigma2) - m0 - c[:, None] - h / 2
    m = m0 + e
    prior = (e**2 + (1 - rho) ** 2 * Q + s2) / (2 * sigma2) - np.log(s2 / sigma2) / 2 - 0.5
    return (x * m).sum(1) - x.sum(1) * logsumexp(m + h / 2, axis=1) - prior.sum(1)


def bisect(m0, Q, x, sigma2):
    """Find l and c by two nested bisections, nothing clever; sigma2 has a row for each sample."""
    N, widest = x.sum(1), (Q + sigma2) / 2
    fixed = m0 + np.log(sigma2) + sigma2 * x
    c_low = np.log(N) - logsumexp(m0 + sigma2 * x + widest, axis=1)
    c_high = np.log(N) - m0.min(1) + (sigma2 * N[:, None]).max(1) + 1
    for _ in range(64):
        c = (c_low + c_high) / 2
        Y = fixed + c[:, None]
        low = np.minimum(Y, 0) - 1
        high = np.minimum(Y, np.log(np.maximum(Y, 1))) + widest
        for _ in range(52):
            log_u = (low + high) / 2
            u = np.exp(log_u)
            rho = 1 / (1 + u)
            above = log_u + u - rho * (rho * Q + sigma2) / 2 > Y
            low, high = np.where(above, low, log_u), np.where(above, log_u, high)
        short = (u / sigma2).sum(1) < N
        c_low, c_high = np.where(short, c, c_low), np.where(short, c_high, c)
    return log_u, c


@pytest.fixture(scope="module")
def hard_cases():
    """Return inputs over reads 1 to 1e7, sigma2 0.05 to 100 and Q 0 to 200; bisected bounds."""
    rng = np.random.default_rng(0)
    reads, sigma2, Q = (
        np.array(column)[:, None]
        for column in zip(
            *itertools.product(
                (1, 30, 1e3, 1e5, 1e7), (0.05, 0.5, 5, 20, 100), (0, 0.1, 3, 50, 200)
            ),
            strict=True,
        )
    )
    m0 = rng.normal(0, 3, (len(reads), 40))
    logits = m0 + rng.normal(size=m0.shape) * np.sqrt(sigma2)
    p = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    x = rng.multinomial(reads[:, 0].astype(int), p).astype(float)
    Q = Q * rng.uniform(0, 2, m0.shape)
    m0, Q, sigma2 = (a.astype(np.float32).astype(float) for a in (m0, Q, sigma2))
    return m0, Q, x, sigma2, dense_bound(*bisect(m0, Q, x, sigma2), m0, Q, x, sigma2)


def test_solver_reaches_the_bisected_optimum(hard_cases, dtype):
    *inputs, sigma2, expected = hard_cases
    depth = inputs[2].sum(1)
    for s2, N in itertools.product(np.unique(sigma2), np.unique(depth)):
        rows = (sigma2[:, 0] == s2) & (
            depth == N
        )  # alone: a deep sample lends others its precision
        m0, Q, x = (torch.tensor(a[rows], dtype=dtype) for a in inputs)
        found = solve_noise(m0, Q, x, torch.tensor(s2, dtype=dtype)).bound.numpy()
        assert found.dtype == np.float64
        assert (np.abs(found - expected[rows]) < NATS).all()


def test_solved_fields_are_those_of_the_bisected_solution():
    m0, Q, x = draw(5)
    sigma2 = torch.full((4, 1), 0.8, dtype=torch.float64)
    log_u, c = (torch.tensor(a) for a in bisect(m0.numpy(), Q.numpy(), x.numpy(), sigma2.numpy()))
    u = log_u.exp()
    rate, rho = u / 0.8, 1 / (1 + u)
    slope = 1 + u + u * rho**2 * (rho * Q + 0.4)
    noise = solve_noise(m0, Q, x, sigma2[0, 0], tolerance=TIGHT)
    for found, expected in (
        (noise.r, x - rate),
        (noise.w, rate * rho),
        (noise.curvature, rate / slope),
        (noise.log_scale, c),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_bound_holds_before_the_solver_has_converged():
    m0, Q, x = draw(6)
    sigma2 = torch.tensor(0.8, dtype=torch.float64)
    best = solve_noise(m0, Q, x, sigma2).bound
    once = solve_noise(m0, Q, x, sigma2, tolerance=float("inf")).bound
    assert (once < best).all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        log_u = 2 * torch.randn(m0.shape, generator=generator).double()
        c = torch.randn(4, generator=generator).double()
        anywhere = evidence._evaluate(log_u, c, m0 + sigma2.log(), Q, x, x.sum(1), sigma2).bound
        written_out = dense_bound(*(t.numpy() for t in (log_u, c, m0, Q, x, sigma2)))
        np.testing.assert_allclose(anywhere, written_out, rtol=1e-12)
        assert (anywhere < best).all()


def assert_same(a, b, **tolerance):
    for mine, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def test_rows_do_not_influence_each_other():
    m0, Q, x = draw(7, b=6)
    x[1], x[2], Q[3] = 10_000 * x[1], x[2].clamp(max=1), 100 * Q[3]
    sigma2 = torch.tensor(0.8, dtype=torch.float64)
    together = solve_noise(m0, Q, x, sigma2, tolerance=1e-9)
    for i in range(6):
        alone = solve_noise(m0[i : i + 1], Q[i : i + 1], x[i : i + 1], sigma2, tolerance=1e-9)
        assert_same(alone, [field[i : i + 1] for field in together], rtol=1e-10, atol=1e-10)


def test_rows_move_each_others_bound_by_next_to_nothing_at_the_default_tolerance(hard_cases, dtype):
    m0, Q, x = (torch.tensor(a[::7], dtype=dtype) for a in hard_cases[:3])
    sigma2 = torch.tensor(0.8, dtype=dtype)
    together = solve_noise(m0, Q, x, sigma2).bound
    alone = [
        solve_noise(m0[i : i + 1], Q[i : i + 1], x[i : i + 1], sigma2).bound for i in range(len(x))
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=NATS)


def test_permuting_features_permutes_everything():
    m0, Q, x = draw(8)
    sigma2 = torch.linspace(0.1, 5, 7).double()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    plain = solve_noise(m0, Q, x, sigma2, tolerance=TIGHT)
    permuted = solve_noise(m0[:, order], Q[:, order], x[:, order], sigma2[order], tolerance=TIGHT)
    expected = [field[:, order] if field.ndim == 2 else field for field in plain]
    assert_same(permuted, expected, rtol=1e-9, atol=1e-9)


def test_a_constant_added_to_the_logits_moves_the_log_scale_alone():
    m0, Q, x = draw(9)
    sigma2 = torch.tensor(0.8, dtype=torch.float64)
    plain, shifted = (
        solve_noise(m0 + shift, Q, x, sigma2, tolerance=TIGHT) for shift in (0.0, 4.0)
    )
    moved = shifted._replace(log_scale=shifted.log_scale + 4.0)
    assert_same(moved, plain, rtol=1e-9, atol=1e-9)


def test_one_variance_for_all_features_is_the_shared_one():
    m0, Q, x = draw(10)
    shared = solve_noise(m0, Q, x, torch.tensor(0.8, dtype=torch.float64), tolerance=TIGHT)
    by_feature = solve_noise(m0, Q, x, torch.full((7,), 0.8, dtype=torch.float64), tolerance=TIGHT)
    assert_same(by_feature, shared, rtol=1e-12, atol=1e-12)


def test_a_sample_without_reads_says_nothing(dtype):
    m0, Q, x = (t.to(dtype) for t in draw(11))
    noise = solve_noise(m0, Q, 0 * x, torch.tensor(0.8, dtype=dtype))
    assert noise.log_scale.isfinite().all()
    for field in (noise.bound, noise.r, noise.w, noise.curvature):
        torch.testing.assert_close(field, torch.zeros_like(field), rtol=0, atol=1e-5)


def test_a_batch_without_samples_has_no_noise(dtype):
    """As one of several processes may have at the end of an epoch."""
    m0, Q, x = (t.to(dtype)[:0] for t in draw())
    sums = evidence.Sums(*(torch.ones(7, dtype=dtype) for _ in range(3)))
    noise = solve_noise(m0, Q, x, torch.tensor(0.8, dtype=dtype), sums=sums)
    alone = solve_noise(*(t.to(dtype) for t in draw()), torch.tensor(0.8, dtype=dtype))
    for field, of_some in zip(noise, alone, strict=True):
        assert field.shape == (0, *of_some.shape[1:]) and field.dtype == of_some.dtype
    assert all((part == 1).all() for part in sums)


@pytest.mark.parametrize("sigma2", [0.05, 100.0])
def test_counts_of_a_thousand_million_give_finite_values(dtype, sigma2):
    m0, Q, x = (t.to(dtype) for t in draw(12))
    x[:, 0], x[0, 1:] = 1e9, 0
    for field in solve_noise(m0, Q, x, torch.tensor(sigma2, dtype=dtype)):
        assert field.isfinite().all()


@pytest.mark.parametrize("away", [0.0, 0.5, -20.0, 20.0])
def test_a_warm_start_ends_where_the_cold_one_does(away):
    m0, Q, x = draw(13)
    sigma2 = torch.tensor(0.8, dtype=torch.float64)
    cold = solve_noise(m0, Q, x, sigma2, tolerance=TIGHT)
    warm = solve_noise(m0, Q, x, sigma2, cold.log_scale + away, tolerance=TIGHT)
    assert_same(warm, cold, rtol=1e-8, atol=1e-8)


@pytest.fixture
def bracketed(monkeypatch):
    """Count the samples that Newton, without the kernel, hands to the bracket."""
    monkeypatch.setattr(evidence, "kernel", None)
    counted, bracket = [], evidence._bracket

    def counting(m0, *rest):
        counted.append(len(m0))
        return bracket(m0, *rest)

    monkeypatch.setattr(evidence, "_bracket", counting)
    return counted


def test_a_sample_on_which_newton_wanders_is_bracketed_and_right(bracketed, hard_cases):
    m0, Q, x, sigma2, expected = hard_cases
    rows = (x.sum(1) == 1) & (sigma2[:, 0] < 0.1) & (Q.max(1) > 100)
    assert rows.sum() == 1
    m0, Q, x = (torch.tensor(a[rows]) for a in (m0, Q, x))
    found = solve_noise(m0, Q, x, torch.tensor(sigma2[rows][0, 0]))
    assert sum(bracketed) == 1
    np.testing.assert_allclose(found.bound, expected[rows], atol=1e-9)


def test_newton_alone_settles_all_but_the_most_uncertain_factors(bracketed, hard_cases):
    m0, Q, x, sigma2, _ = hard_cases
    x = np.concatenate([x, 0 * x[:1]])
    m0, Q, sigma2 = (np.concatenate([a, a[:1]]) for a in (m0, Q, sigma2))
    for s2 in np.unique(sigma2):
        rows = (sigma2[:, 0] == s2) & (Q.max(1) < 101)
        solve_noise(*(torch.tensor(a[rows]) for a in (m0, Q, x)), torch.tensor(s2))
    assert sum(bracketed) == 0


@pytest.mark.parametrize("away", [-50.0, -3.0, 3.0, 20.0])
def test_newton_alone_settles_every_warm_start_right(bracketed, hard_cases, away):
    *inputs, sigma2, expected = hard_cases
    depth = inputs[2].sum(1)
    for s2, N in itertools.product(np.unique(sigma2), np.unique(depth)):
        rows = (sigma2[:, 0] == s2) & (depth == N)  # alone: a block goes on till its last settles
        m0, Q, x = (torch.tensor(a[rows]) for a in inputs)
        cold = solve_noise(m0, Q, x, torch.tensor(s2))
        bracketed.clear()
        warm = solve_noise(m0, Q, x, torch.tensor(s2), cold.log_scale + away)
        assert (np.abs(warm.bound.numpy() - expected[rows]) < NATS).all()
        assert sum(bracketed) == 0


def test_the_bracket_agrees_with_newton(bracketed, monkeypatch):
    m0, Q, x = draw(14, b=12)
    x[1], x[2] = 10_000 * x[1], x[2].clamp(max=1)
    sigma2 = torch.linspace(0.1, 20, 7).double()
    newton = solve_noise(m0, Q, x, sigma2, tolerance=TIGHT)
    assert sum(bracketed) == 0
    monkeypatch.setattr(evidence, "NEWTON_PASSES", 1)
    assert_same(solve_noise(m0, Q, x, sigma2, tolerance=TIGHT), newton, rtol=1e-7, atol=1e-7)
    assert sum(bracketed) == 12


@pytest.mark.parametrize("rows", [0.5, 1, 3, 4])
def test_the_edges_of_blocks_change_nothing(monkeypatch, rows):
    m0, Q, x = draw(15, b=10)
    sigma2, log_scale = torch.tensor(0.8, dtype=torch.float64), torch.linspace(0, 9, 10).double()
    whole = solve_noise(m0, Q, x, sigma2, log_scale, tolerance=TIGHT)
    monkeypatch.setattr(evidence, "CACHED_ENTRIES", int(rows * 7))
    assert_same(
        solve_noise(m0, Q, x, sigma2, log_scale, tolerance=TIGHT), whole, rtol=1e-9, atol=1e-9
    )


def test_deeper_reads_of_the_same_proportions_tighten_the_posterior():
    V, mu = draw(16, b=2)[0].T, torch.zeros(7).double()
    x = torch.tensor([[5.0, 2, 1, 0, 3, 8, 1]]).double() * torch.tensor([[1.0], [10], [100]])
    _, D, noise = best_posterior(x, V, mu, torch.tensor(0.8, dtype=torch.float64))
    assert (noise.w.sum(1).diff() > 0).all()
    assert (D.diff(dim=0) < 0).all()
    assert (noise.w < 1 / 0.8).all()  # the noise itself is what no depth removes


def test_where_takes_each_sample_from_the_noise_chosen_for_it():
    sigma2 = torch.tensor(0.8, dtype=torch.float64)
    a, b = (solve_noise(*draw(seed), sigma2) for seed in (17, 18))
    mixed = a.where(torch.tensor([True, False, True, False]), b)
    for mine, theirs, taken in zip(a, b, mixed, strict=True):
        assert torch.equal(taken[::2], mine[::2])
        assert torch.equal(taken[1::2], theirs[1::2])


def test_factor_divergence_is_that_of_torch():
    z, D = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.2, 1.5]])
    expected = torch.distributions.kl_divergence(Normal(z, D.sqrt()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(factor_kl(z, D), expected)


def test_log_coefficient_completes_the_multinomial():
    x, p = np.array([[3.0, 0, 2], [0, 0, 1]]), np.array([0.5, 0.2, 0.3])
    found = log_coefficient(torch.tensor(x)).numpy() + x @ np.log(p)
    np.testing.assert_allclose(found, multinomial.logpmf(x, x.sum(1), p))


def test_threads_that_solve_a_block_each_change_nothing(monkeypatch):
    monkeypatch.setattr(evidence, "WORTH_THREADS", 1)
    generator = torch.Generator().manual_seed(0)
    m0 = torch.randn(7, 30, generator=generator, dtype=torch.float64)
    Q = torch.rand(7, 30, generator=generator, dtype=torch.float64)
    x = torch.poisson(5 * torch.rand(7, 30, generator=generator, dtype=torch.float64), generator)
    sigma2 = torch.tensor(0.5, dtype=torch.float64)
    before = torch.get_num_threads()
    alone = evidence.solve_noise(m0, Q, x, sigma2, tolerance=1e-10)
    try:
        torch.set_num_threads(3)
        together = evidence.solve_noise(m0, Q, x, sigma2, tolerance=1e-10)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for mine, theirs in zip(alone, together, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("passes, deepened", [(24, 1), (24, 1e4), (1, 1)])
def test_sums_of_squares_and_information_are_those_of_their_definition(
    dtype, passes, deepened, monkeypatch
):
    """Also of a sample too deep for single precision, and of ones that Newton has not settled."""
    monkeypatch.setattr(evidence, "NEWTON_PASSES", passes)
    m0, Q, x = (part.to(dtype) for part in draw())
    x[1] *= deepened
    sums = evidence.Sums(*(torch.full_like(m0[0], start) for start in (1.0, 2.0, 3.0)))
    noise = solve_noise(m0, Q, x, torch.tensor(0.5, dtype=dtype), sums=sums)
    squares, information, fisher = sums
    expected = 1 + (noise.r.double() ** 2 + noise.w.double() ** 2 * Q.double()).sum(0)
    torch.testing.assert_close(squares.double(), expected, rtol=1e-5, atol=1e-5)
    expected = 2 + noise.w.double().sum(0)
    torch.testing.assert_close(information.double(), expected, rtol=1e-5, atol=1e-5)
    expected = 3 + noise.w.double().square().sum(0)
    torch.testing.assert_close(fisher.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("Y", [-30.0, -4.1, -3.9, -1.0, 0.0, 1.5, 2.9, 3.1, 8.0, 1e4])
def test_newton_starts_near_the_root(Y):
    """Without h, the root of l + exp(l) = Y; with h, of l + exp(l) - h / 2 = Y less the largest."""
    root = float(np.log(wrightomega(Y).real)) if Y > -30 else Y
    Y, zero = torch.tensor([[Y]]).double(), torch.zeros(1, 1).double()
    start = evidence._start(Y, zero, zero[0])
    assert abs(start.item() - root) < 0.04
    Q, sigma2 = torch.full_like(Y, 0.3), torch.tensor([0.5]).double()
    started = evidence._start(Y, Q, sigma2)
    log_u = started
    for _ in range(50):
        u, _, h, slope = evidence._rates(log_u.exp(), Q, sigma2)
        log_u = log_u - (log_u + u - 0.5 * h + 0.5 * (Q + sigma2) - Y) / slope
    assert abs((started - log_u).item()) < 0.05
