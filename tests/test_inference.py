"""Newton steps on the factors against finite differences, autodiff and a grid."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from countvae.decoder import Decoder
from countvae.evidence import factor_kl, noise_bound, solve_noise
from countvae.inference import (
    _by_quadrature,
    best_D,
    drawn_factors,
    drawn_logits,
    factor_covariance,
    log_ratios,
    logits_given,
    newton_step,
    posterior_at,
    refine,
)
from countvae.simulate import simulate

TIGHT = 1e-12
STEP = 1e-5  # of finite differences
ROUNDING = 1e-9


def draw(seed=0, n=4, d=10, k=3, reads=300, by_feature=False):
    """Return a decoder and counts of its kind, in double precision."""
    rng = np.random.default_rng(seed)
    V, mu = rng.normal(size=(d, k)), rng.normal(0, 1.5, d)
    logits = mu + rng.normal(size=(n, k)) @ V.T + 0.7 * rng.normal(size=(n, d))
    p = np.exp(logits)
    x = rng.multinomial(reads, p / p.sum(1, keepdims=True))
    sigma2 = rng.uniform(0.1, 2, d) if by_feature else 0.5
    return Decoder(*(torch.tensor(a) for a in (V, mu, np.array(sigma2)))), torch.tensor(x).double()


def anywhere(seed, n, k=3, spread=2.0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(0, spread, (n, k))), torch.tensor(rng.uniform(0.05, 1, (n, k)))


def gradient(decoder, x, z, D):
    return posterior_at(decoder, x, z, D, tolerance=TIGHT).noise.r @ decoder.V - z


@pytest.mark.parametrize("by_feature", [False, True])
@pytest.mark.parametrize("reads", [20, 300, 20_000])
def test_the_newton_step_is_the_newton_step_of_the_profiled_bound(by_feature, reads):
    decoder, x = draw(reads=reads, by_feature=by_feature)
    z, D = anywhere(1, len(x), spread=0.5)
    step = newton_step(decoder.V, posterior_at(decoder, x, z, D, tolerance=TIGHT))

    slopes, columns = [], []
    for direction in torch.eye(3).double():
        ahead, behind = (z + sign * STEP * direction for sign in (1, -1))
        bounds = [posterior_at(decoder, x, at, D, tolerance=TIGHT).bound for at in (ahead, behind)]
        slopes.append((bounds[0] - bounds[1]) / (2 * STEP))
        columns.append(
            (gradient(decoder, x, ahead, D) - gradient(decoder, x, behind, D)) / (2 * STEP)
        )
    slope, hessian = torch.stack(slopes, 1), torch.stack(columns, 2)
    torch.testing.assert_close(slope, gradient(decoder, x, z, D), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(torch.linalg.solve(-hessian, slope), step, rtol=1e-4, atol=1e-5)


def test_newton_ends_where_the_gradient_is_zero_and_quickly():
    decoder, x = draw()
    z, D = anywhere(2, len(x))
    best = refine(decoder, x, posterior_at(decoder, x, z, D, tolerance=TIGHT), 12, TIGHT)
    assert gradient(decoder, x, best.z, best.D).abs().max() < 1e-5
    further = refine(decoder, x, best, 20, TIGHT)
    assert (further.bound - best.bound).max() < 1e-8


def test_the_optimum_of_one_factor_is_that_of_a_fine_grid():
    decoder, x = draw(n=1, k=1)
    start = posterior_at(decoder, x, torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    best = refine(decoder, x, start, 20, TIGHT)
    z = torch.linspace(-5, 5, 401).double()[:, None]
    D = torch.linspace(0.2, 3, 15).double() * best.D
    grid = [
        posterior_at(
            decoder, x.expand(401, -1), z, variance.expand(401, 1), tolerance=TIGHT
        ).bound.max()
        for variance in D[0]
    ]
    assert best.bound.item() >= max(grid).item() - ROUNDING
    assert best.bound.item() - max(grid).item() < 0.02


@pytest.mark.parametrize("by_feature", [False, True])
def test_best_variance_is_stationary_by_autodiff(by_feature):
    decoder, x = draw(by_feature=by_feature)
    z, D = anywhere(3, len(x))
    for _ in range(40):
        D = best_D(decoder.V, posterior_at(decoder, x, z, D, tolerance=TIGHT).noise)
    log_D = D.log().requires_grad_()
    m0, Q = decoder(z, log_D.exp())
    noise = solve_noise(m0.detach(), Q.detach(), x, decoder.sigma2, tolerance=TIGHT)
    (noise_bound(m0, Q, noise) - factor_kl(z, log_D.exp())).sum().backward()
    assert log_D.grad is not None and log_D.grad.abs().max() < 1e-8


@given(
    seed=st.integers(0, 10**6),
    reads=st.sampled_from([0, 1, 30, 3000, 10**6]),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
)
def test_no_refinement_step_lowers_the_bound_of_any_sample(seed, reads, spread):
    decoder, x = draw(seed, reads=reads)
    posterior = posterior_at(decoder, x, *anywhere(seed, len(x), spread=spread))
    for _ in range(4):
        refined = refine(decoder, x, posterior, 1)
        assert (refined.bound >= posterior.bound).all()
        posterior = refined
    torch.testing.assert_close(
        posterior.bound,
        posterior_at(decoder, x, posterior.z, posterior.D, tolerance=TIGHT).bound,
        rtol=1e-6,
        atol=0.02,
    )


def test_more_steps_never_end_lower():
    decoder, x = draw(seed=5, n=8)
    posterior = posterior_at(decoder, x, *anywhere(5, 8, spread=10.0))
    bounds = torch.stack([refine(decoder, x, posterior, steps).bound for steps in range(7)])
    assert (bounds.diff(dim=0) >= 0).all()
    assert (bounds[-1] > bounds[0]).all()


def test_no_step_is_no_change():
    decoder, x = draw()
    posterior = posterior_at(decoder, x, *anywhere(0, len(x)))
    assert refine(decoder, x, posterior, 0) is posterior


def test_a_sample_is_refined_the_same_alone_as_among_others():
    decoder, x = draw(n=6)
    z, D = anywhere(0, 6)
    together = refine(decoder, x, posterior_at(decoder, x, z, D, tolerance=TIGHT), 5, TIGHT)
    for i in range(6):
        row = slice(i, i + 1)
        alone = posterior_at(decoder, x[row], z[row], D[row], tolerance=TIGHT)
        alone = refine(decoder, x[row], alone, 5, TIGHT)
        torch.testing.assert_close(alone.z[0], together.z[i], rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(alone.D[0], together.D[i], rtol=ROUNDING, atol=ROUNDING)


def test_a_sample_without_reads_goes_back_to_the_prior():
    decoder, x = draw(n=2, reads=0)
    posterior = refine(decoder, x, posterior_at(decoder, x, *anywhere(0, 2)), 20, TIGHT)
    torch.testing.assert_close(posterior.z, torch.zeros(2, 3).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.D, torch.ones(2, 3).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("by_feature", [False, True])
def test_log_ratios_are_those_of_draws_from_the_posterior(by_feature):
    decoder, x = draw(n=4, d=8, k=2, by_feature=by_feature)
    x[1] //= 10
    start = posterior_at(decoder, x, *anywhere(0, 4, 2), tolerance=TIGHT)
    posterior = refine(decoder, x, start, 20, tolerance=TIGHT)
    S = factor_covariance(decoder.V.detach(), posterior.noise.w)
    proportions, clr, clr_sd = log_ratios(decoder, x, posterior, S)
    rng = np.random.RandomState(0)
    law = logits_given(decoder, x, posterior)
    z = drawn_factors(posterior, S, 20_000, rng)
    eta = torch.stack([drawn_logits(decoder, posterior, law, each, rng) for each in z])
    centred = eta - eta.mean(2, keepdim=True)
    torch.testing.assert_close(centred.mean(0), clr, atol=0.03, rtol=0)
    torch.testing.assert_close(centred.std(0), clr_sd, atol=0, rtol=0.03)
    torch.testing.assert_close(z.mean(0), posterior.z, atol=0.03, rtol=0)
    # the draws have the common level of what was read much, which the rates do not have
    expected = eta.softmax(2).mean(0)
    torch.testing.assert_close(proportions, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("x", [0, 1, 40, 10**6])
@pytest.mark.parametrize("sigma2", [1e-4, 0.5, 3.0, 10.0])
@pytest.mark.parametrize("log_rate", [-20.0, 0.0, 5.0])
def test_moments_of_the_noise_are_integrals(x, sigma2, log_rate):
    at = torch.tensor([[log_rate]]).double(), torch.tensor([[x]]).double()
    found = [float(part) for part in _by_quadrature(*at, torch.tensor([sigma2]).double())]

    def log_density(e):
        return x * e - np.exp(np.minimum(log_rate + e, 700)) - e**2 / (2 * sigma2)

    low, high = -50 * np.sqrt(sigma2), 50 * np.sqrt(sigma2) + sigma2 * x
    for _ in range(12):  # ever nearer to where the density is
        e = np.linspace(low, high, 4001)
        there = e[log_density(e) > log_density(e).max() - 40]
        step = e[1] - e[0]
        low, high = there[0] - step, there[-1] + step
    weight = np.exp(log_density(e) - log_density(e).max())
    weight /= weight.sum()
    rate = np.exp(log_rate + e)
    mean, mean_rate = weight @ e, weight @ rate
    expected = [mean, weight @ (e - mean) ** 2, mean_rate]
    np.testing.assert_allclose(found[:3], expected, rtol=0.01, atol=1e-7)
    information = mean_rate - weight @ (rate - mean_rate) ** 2
    assert found[3] == pytest.approx(information, rel=0.01, abs=1e-6 * mean_rate)


@pytest.mark.parametrize("d, noise", [(25, None), (120, 10.0)], ids=["plain", "sparse"])
def test_intervals_of_log_ratios_hold_the_truth_when_the_model_is_known(d, noise):
    given = {} if noise is None else {"sigma2": noise}
    rng = np.random.default_rng(3)
    truth = simulate(2000, d, 3, 300, keep_proportions=True, rng=rng, **given)
    V, mu, sigma2 = (torch.tensor(a) for a in (truth.V, truth.mu, np.array(truth.sigma2)))
    decoder, x = Decoder(V, mu, sigma2), torch.from_numpy(truth.counts.toarray()).double()
    posterior = posterior_at(decoder, x, x.new_zeros(2000, 3), x.new_ones(2000, 3))
    posterior = refine(decoder, x, posterior, 20, tolerance=TIGHT)
    S = factor_covariance(decoder.V.detach(), posterior.noise.w)
    _, clr, clr_sd = log_ratios(decoder, x, posterior, S)
    logs = np.log(truth.proportions)
    away = (clr.numpy() - logs + logs.mean(1, keepdims=True)) / clr_sd.numpy()
    for few, many in ((0, 0), (1, 20), (21, np.inf)):
        some = away[(truth.counts.toarray() >= few) & (truth.counts.toarray() <= many)]
        assert some.mean() == pytest.approx(0, abs=0.1)
        assert some.std() == pytest.approx(1, abs=0.05)
        assert (np.abs(some) < 1.645).mean() == pytest.approx(0.9, abs=0.02)
