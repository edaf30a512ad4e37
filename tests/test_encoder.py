"""The encoder: linear at its start whatever its depth, and moved without changing its answer."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from countvae.encoder import DenseEncoder
from countvae.layers import ACTIVATIONS

EXACT = {"rtol": 1e-10, "atol": 1e-10}
N, D, K, P = 6, 8, 3, 2


def counts(seed=0):
    return torch.tensor(np.random.default_rng(seed).poisson(5, (N, D))).double()


def covariates(seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=(N, P)))


def make(depth=2, *, shared_D=False, activation="silu", pseudocount=1.0, seed=0, covariates=0):
    rng = np.random.default_rng(1)
    A, b, log_D, centre = (
        torch.tensor(rng.normal(size=shape)) for shape in ((D, K), (K,), (K,), (D,))
    )
    return DenseEncoder(
        A,
        b,
        log_D - 1,
        centre - centre.mean(),
        depth=depth,
        width=7,
        activation=activation,
        pseudocount=pseudocount,
        shared_D=shared_D,
        covariates=covariates,
        generator=torch.Generator().manual_seed(seed),
    )


def trained(depth=3, **settings):
    """Return an encoder whose last layer, and weights of covariates, are no longer zero."""
    encoder = make(depth, **settings)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in (*encoder.last.parameters(), encoder.A_f, encoder.G_f):
            parameter.normal_(0, 0.3, generator=generator)
    return encoder


def test_a_linear_encoder_is_the_map_of_the_definition():
    encoder, x = make(depth=1, pseudocount=0.5), counts()
    z, variance = encoder(x)
    logs = np.log(x.numpy() + 0.5)
    clr = logs - logs.mean(1, keepdims=True) - encoder.centre.numpy()
    np.testing.assert_allclose(
        z.detach(), clr @ encoder.A.detach().numpy() + encoder.b.detach().numpy()
    )
    torch.testing.assert_close(variance, encoder.log_D.exp().expand(N, K))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("shared_D", [False, True])
def test_a_deeper_encoder_starts_exactly_equal_to_the_linear_one(depth, activation, shared_D):
    linear, deep = make(1), make(depth, activation=activation, shared_D=shared_D)
    for mine, theirs in zip(deep(counts()), linear(counts()), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("shared_D", [False, True])
def test_every_layer_of_a_deep_encoder_learns(shared_D):
    encoder = trained(4, shared_D=shared_D, covariates=P)
    z, variance = encoder(counts(), covariates())
    (z.square().sum() + variance.sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_shared_variance_is_the_same_for_all_samples_and_the_other_is_not():
    assert torch.equal(*(trained(shared_D=True)(counts(s))[1] for s in (0, 1)))
    _, variance = trained(shared_D=True)(counts())
    assert torch.equal(variance, variance[:1].expand_as(variance))
    _, variance = trained(shared_D=False)(counts())
    assert (variance.std(0) > 1e-3).all()


@given(seed=st.integers(0, 10**6), depth=st.integers(1, 3))
def test_rescaling_keeps_the_mean_that_is_encoded(seed, depth):
    encoder = make(1, covariates=P) if depth == 1 else trained(depth, covariates=P)
    rng = np.random.default_rng(seed)
    Q1, Q2 = (torch.tensor(np.linalg.qr(rng.normal(size=(K, K)))[0]) for _ in range(2))
    A, shift = (
        Q1 @ torch.diag(torch.tensor([0.4, 1.0, 3.0]).double()) @ Q2,
        torch.tensor(rng.normal(size=K)),
    )
    f, slope = covariates(seed), torch.tensor(rng.normal(size=(K, P)))
    before, _ = encoder(counts(seed), f)
    encoder.rescale(A, shift, slope)
    after, _ = encoder(counts(seed), f)
    torch.testing.assert_close(after @ A.T + shift + f @ slope.T, before, **EXACT)


def test_rescaling_keeps_a_shared_variance_on_the_diagonal_of_the_covariance():
    encoder, x = trained(shared_D=True), counts()
    A = torch.eye(K).double() + 0.3 * torch.tensor(np.random.default_rng(2).normal(size=(K, K)))
    _, before = encoder(x)
    encoder.rescale(A, torch.zeros(K).double())
    inverse = torch.linalg.inv(A)
    expected = (inverse @ before[0].diag() @ inverse.T).diag()
    torch.testing.assert_close(encoder(x)[1][0], expected, **EXACT)


def test_rescaling_each_factor_keeps_the_variance_of_every_sample():
    encoder, x, a = trained(shared_D=False), counts(), torch.tensor([0.5, 2.0, 3.0]).double()
    _, before = encoder(x)
    encoder.rescale(a.diag(), torch.zeros(K).double())
    torch.testing.assert_close(encoder(x)[1], before / a.square(), **EXACT)


def test_reordering_factors_reorders_the_variance_of_every_sample():
    encoder, x = trained(shared_D=False), counts()
    A = torch.tensor([[0, 0, -1], [1, 0, 0], [0, -1, 0]]).double()
    _, before = encoder(x)
    encoder.rescale(A, torch.zeros(K).double())
    torch.testing.assert_close(encoder(x)[1], before @ A.square(), **EXACT)


@pytest.mark.parametrize("depth", [1, 3])
def test_another_centre_changes_no_answer(depth):
    encoder, x = make(1) if depth == 1 else trained(depth), counts()
    before = encoder(x)
    centre = torch.linspace(-1, 1, D).double()
    encoder.recentre(centre)
    assert torch.equal(encoder.centre, centre)
    for mine, theirs in zip(encoder(x), before, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_rows_do_not_influence_each_other():
    encoder, x = trained(), counts()
    together = encoder(x)
    for i in range(N):
        for mine, all_ in zip(encoder(x[i : i + 1]), together, strict=True):
            torch.testing.assert_close(mine[0], all_[i], **EXACT)


def test_only_ratios_of_pseudocounted_counts_matter():
    few, many = make(2, pseudocount=1.0), make(2, pseudocount=10.0)
    for mine, theirs in zip(many(10 * counts()), few(counts()), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_the_same_generator_gives_the_same_layers_and_another_seed_others():
    first, again, other = (make(3, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["G"], other["G"])
    assert not torch.equal(first["hidden.1.weight"], other["hidden.1.weight"])
