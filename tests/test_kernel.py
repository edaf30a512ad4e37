"""The compiled kernel: its functions against numpy's, its solution against the plain one's."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from countvae import evidence, kernel
from countvae.evidence import solve_noise
from countvae.simulate import simulate

ULP, ULP_DOUBLE = 2.0**-23, 2.0**-52


def relative(found, expected):
    return np.max(np.abs(np.array(found) / expected - 1))


def plain(m0, Q, x, sigma2):
    """Solve without the kernel, in double precision."""
    sigma2 = sigma2.double().expand(x.shape[1])
    N = x.sum(1).double()
    log_scale = N.clamp_min(1e-6).log() - m0.double().logsumexp(1)
    of_features = (part.double() for part in (m0, Q, x))
    return evidence._solve_block(*of_features, sigma2, log_scale, 1e-10)


def test_exp_is_within_two_units_of_the_last_place():
    x = np.linspace(-87, 88, 5001, dtype=np.float32)
    assert relative([kernel.exp(v) for v in x], np.exp(x.astype(float))) < 2 * ULP
    x = np.linspace(-700, 700, 5001)
    assert relative([kernel.exp_double(v) for v in x], np.exp(x)) < 2 * ULP_DOUBLE


@pytest.mark.parametrize(("x", "at"), [(-1000.0, -87.0), (1000.0, 88.0)])
def test_exp_is_clipped_to_what_single_precision_holds(x, at):
    assert kernel.exp(np.float32(x)) == kernel.exp(np.float32(at))


def test_log_is_within_two_units_of_the_last_place():
    y = np.exp(np.linspace(-87, 87, 5001)).astype(np.float32)
    expected = np.log(y.astype(float))
    found = np.array([kernel.log(v) for v in y])
    assert np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 0.5)) < 2 * ULP
    y = np.exp(np.linspace(-700, 700, 5001))
    found = np.array([kernel.log_double(v) for v in y])
    error = np.abs(found - np.log(y)) / np.maximum(np.abs(np.log(y)), 0.5)
    assert np.max(error) < 2 * ULP_DOUBLE


def test_log1p_keeps_small_arguments():
    u = np.exp(np.linspace(-60, 60, 5001)).astype(np.float32)
    assert relative([kernel.log1p(v) for v in u], np.log1p(u.astype(float))) < 4 * ULP
    u = np.exp(np.linspace(-60, 60, 5001))
    assert relative([kernel.log1p(v) for v in u], np.log1p(u)) < 4 * ULP_DOUBLE


@pytest.fixture
def given_up(monkeypatch):
    """Count the samples that the kernel leaves to the plain solver."""
    counted, solve = [], evidence._solve_block

    def counting(m0, *rest):
        counted.append(len(m0))
        return solve(m0, *rest)

    monkeypatch.setattr(evidence, "_solve_block", counting)
    return counted


@pytest.mark.parametrize("d", [2, 511, 512, 513, 1300])
@pytest.mark.parametrize("reads", [30, 3000, 20_000])
@pytest.mark.parametrize("noise", ["normal", "uneven"])
def test_the_kernel_solves_alone_what_the_plain_solver_finds_in_double(given_up, d, reads, noise):
    drawn = simulate(9, d, 1, reads, noise=noise, rng=np.random.default_rng(d))
    x = torch.tensor(drawn.counts.toarray(), dtype=torch.float32)
    m0 = torch.tensor(drawn.mu + drawn.z @ drawn.V.T, dtype=torch.float32)
    Q = torch.linspace(0, 3, d).expand_as(m0)
    sigma2 = torch.tensor(drawn.feature_sigma2, dtype=torch.float32)
    found = solve_noise(m0, Q, x, sigma2, tolerance=1e-4)
    assert not given_up
    expected = plain(m0, Q, x, sigma2)
    # rounding moves a logit by some units in the last place, and the bound by that for every read
    assert ((found.bound - expected.bound).abs() < 1e-3 + 4 * ULP * x.sum(1)).all()
    torch.testing.assert_close(found.overcount, expected.overcount, rtol=1e-5, atol=1e-5)
    for name in ("r", "w", "curvature", "log_scale"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert mine.dtype == torch.float32
        # an error of an ulp in a logit is one of so many reads
        error = (mine.double() - theirs).abs() / (1 + x.double() if mine.ndim == 2 else 1)
        assert error.max() < 3e-5, name


@pytest.mark.parametrize("d", [2, 513, 1300])
@pytest.mark.parametrize("reads", [1, 3000, 10**9])
@pytest.mark.parametrize("noise", ["normal", "uneven"])
def test_the_kernel_gives_in_double_what_the_plain_solver_gives(given_up, d, reads, noise):
    drawn = simulate(9, d, 1, reads, noise=noise, rng=np.random.default_rng(d))
    x = torch.tensor(drawn.counts.toarray(), dtype=torch.float64)
    m0 = torch.tensor(drawn.mu + drawn.z @ drawn.V.T)
    Q, sigma2 = torch.linspace(0, 3, d).double().expand_as(m0), torch.tensor(drawn.feature_sigma2)
    found = solve_noise(m0, Q, x, sigma2, tolerance=1e-10)
    assert not given_up
    expected = plain(m0, Q, x, sigma2)
    for name, mine, theirs in zip(found._fields, found, expected, strict=True):
        scale = 1 + (x.sum(1) if mine.ndim == 1 else x)
        assert mine.dtype == torch.float64
        assert ((mine - theirs).abs() / scale).max() < 1e-9, name


def test_with_a_warm_log_scale_two_newton_passes_are_enough(given_up, monkeypatch):
    drawn = simulate(9, 800, 3, 3000, rng=np.random.default_rng(0))
    x = torch.tensor(drawn.counts.toarray(), dtype=torch.float32)
    m0 = torch.tensor(drawn.mu + drawn.z @ drawn.V.T, dtype=torch.float32)
    Q, sigma2 = torch.full_like(m0, 0.05), torch.tensor(drawn.sigma2, dtype=torch.float32)
    warm = solve_noise(m0, Q, x, sigma2).log_scale + 0.02
    assert not given_up
    monkeypatch.setattr(evidence, "NEWTON_PASSES", 2)
    solve_noise(m0, Q, x, sigma2, warm)
    assert not given_up
    monkeypatch.setattr(evidence, "NEWTON_PASSES", 1)
    solve_noise(m0, Q, x, sigma2, warm)
    assert given_up


def test_what_the_kernel_gives_up_is_solved_in_its_place(given_up):
    x = torch.tensor([[1.0, 0, 0], [40, 2, 9], [0, 1, 0]])
    m0 = torch.tensor([[-30.0, 20, 9], [2, 0, 1], [30, -20, 0]])
    Q = torch.tensor([[400.0], [0.1], [400]]).expand(3, 3)
    sigma2 = torch.tensor(0.05)
    found = solve_noise(m0, Q, x, sigma2)
    assert given_up == [2]
    expected = plain(m0, Q, x, sigma2)
    torch.testing.assert_close(found.bound, expected.bound, rtol=1e-5, atol=1e-3)


def test_one_deep_sample_is_summed_in_double_and_the_others_stay_with_the_kernel(given_up):
    x = torch.tensor([[3.0, 1, 2], [3e6, 1e6, 2e6]])
    m0, sigma2 = torch.zeros(2, 3), torch.tensor(0.5)
    found = solve_noise(m0, torch.zeros_like(m0), x, sigma2)
    assert given_up == [1]
    expected = plain(m0, m0, x, sigma2)
    torch.testing.assert_close(found.bound, expected.bound, rtol=1e-9, atol=1e-3)


def test_inputs_are_not_changed_and_need_not_be_contiguous():
    x, m0 = torch.ones(6, 8).T[:, :5], torch.zeros(8, 5)
    log_scale, sigma2 = torch.zeros(8), torch.tensor(0.5)
    solve_noise(m0, torch.zeros_like(m0), x, sigma2, log_scale)
    assert (x == 1).all() and (m0 == 0).all() and (log_scale == 0).all() and sigma2 == 0.5


SOLVE_TWICE = """
import hashlib, torch
from countvae.evidence import kernel, solve_noise
assert kernel is not None
g = torch.Generator().manual_seed(0)
m0, Q = torch.randn(32, 300, generator=g), torch.rand(32, 300, generator=g)
x = torch.poisson(torch.full((32, 300), 5.0), generator=g)
noise = solve_noise(m0, Q, x, torch.tensor(0.3))
print(hashlib.sha256(b"".join(field.numpy().tobytes() for field in noise)).hexdigest())
"""


def test_the_process_that_compiles_and_those_that_follow_give_the_same_bits(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", SOLVE_TWICE],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert first == second != ""
    assert any(tmp_path.rglob("*.nbi"))
