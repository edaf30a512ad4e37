"""The prior of the loadings: EM that never falls, two limits, and what is left of zeros."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from countvae import shrinkage
from countvae.shrinkage import Shrinkage


def noisy(V, variance, seed=0):
    """Return the maximum-likelihood loadings that a table of this information would give."""
    return V + variance**0.5 * torch.randn(
        V.shape, generator=torch.Generator().manual_seed(seed), dtype=V.dtype
    )


def fitted(V, variance, sweeps=200):
    """Posterior means of V and the prior, by alternating both to convergence."""
    information = torch.full_like(V, 1 / variance)
    prior, mean = Shrinkage(V), V
    for _ in range(sweeps):
        mean = V * information / (information + 1 / prior.prior_var)
        prior.update(mean, information)
    return mean, prior


def test_with_plenty_of_degrees_of_freedom_tau2_is_the_variance_of_normal_loadings(monkeypatch):
    monkeypatch.setattr(shrinkage, "DEGREES_OF_FREEDOM", 1e9)
    truth = 0.7 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1)).double()
    _, prior = fitted(noisy(truth, 0.1), 0.1)
    assert prior.tau2.item() == pytest.approx(0.49, rel=0.05)
    torch.testing.assert_close(prior.prior_var, prior.tau2.expand_as(truth), rtol=1e-6, atol=0)
    assert prior.U[0, 0].item() == pytest.approx(1 / (10 + 1 / prior.tau2.item()))


def test_tau_is_the_scale_of_t_distributed_loadings():
    rng = np.random.default_rng(2)
    truth = torch.tensor(0.5 * rng.standard_t(3, (20_000, 1)))
    _, prior = fitted(truth, 1e-6)
    assert prior.tau2.item() == pytest.approx(
        student.fit(truth.numpy(), fdf=3, floc=0)[2] ** 2, rel=0.02
    )


def test_large_loadings_among_zeros_are_kept_and_the_zeros_shrunk():
    truth = torch.zeros(1000, 1).double()
    truth[:50] = 3.0
    V = noisy(truth, 0.1)
    mean, _ = fitted(V, 0.1)
    normal = V / (1 + 0.1 / V.square().mean())
    assert (mean - truth)[:50].abs().mean() < (normal - truth)[:50].abs().mean()
    assert mean[50:].square().mean() < 0.5 * normal[50:].square().mean()


def test_a_loading_without_information_has_the_variance_of_its_prior():
    prior = Shrinkage(torch.ones(4, 2))
    prior.update(torch.ones(4, 2), torch.zeros(4, 2))
    torch.testing.assert_close(prior.U, torch.ones(4, 2))


def test_the_gradient_added_is_that_of_the_prior():
    V = torch.tensor([[1.0, -2.0], [3.0, 0.5]], requires_grad=True)
    prior = Shrinkage(V.detach())
    density = torch.distributions.Normal(0.0, prior.prior_var.sqrt())
    (0.3 * density.log_prob(V).sum()).backward()
    gradient = torch.ones(2, 2)
    prior.add_gradient(V.detach(), gradient, 0.3)
    torch.testing.assert_close(gradient, 1 + V.grad)


def test_around_other_loadings_the_prior_is_that_of_what_differs():
    V, V0 = torch.randn(30, 2).double(), torch.randn(30, 2).double()
    information = torch.rand(30, 2).double() + 0.5
    plain, moved = Shrinkage(V), Shrinkage(V0 + V, around=V0)
    moved.tau2, moved.prior_var = plain.tau2, plain.prior_var
    for prior, at in ((plain, V), (moved, V0 + V)):
        prior.update(at, information)
    torch.testing.assert_close(moved.tau2, plain.tau2)
    torch.testing.assert_close(moved.prior_var, plain.prior_var)
    gradients = torch.zeros(30, 2).double(), torch.zeros(30, 2).double()
    plain.add_gradient(V, gradients[0], 2.0)
    moved.add_gradient(V0 + V, gradients[1], 2.0)
    torch.testing.assert_close(*gradients)
    A = torch.randn(2, 2).double()
    moved.rescale(A)
    torch.testing.assert_close(moved.around, V0 @ A)
