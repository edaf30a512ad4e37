"""The decoder against the law it stands for: softmax ignores constants, factors are free."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from countvae.decoder import SIGMA2_RANGE, Decoder
from countvae.evidence import factor_kl, solve_noise

EXACT = {"rtol": 1e-10, "atol": 1e-10}
TIGHT = 1e-12


def draw(seed=0, n=5, d=9, k=3):
    """Return a decoder, factors, their variances and counts, in double precision."""
    rng = np.random.default_rng(seed)
    V, mu = torch.tensor(rng.normal(size=(d, k))), torch.tensor(rng.normal(size=d))
    decoder = Decoder(V, mu, torch.tensor(0.4, dtype=torch.float64))
    z, D = torch.tensor(rng.normal(size=(n, k))), torch.tensor(rng.uniform(0.1, 1, (n, k)))
    return decoder, z, D, torch.tensor(rng.poisson(20, (n, d))).double()


def bound(decoder, z, D, x):
    m0, Q = decoder(z, D)
    return solve_noise(m0, Q, x, decoder.sigma2, tolerance=TIGHT).bound - factor_kl(z, D)


def orthogonal(seed, k=3):
    return torch.tensor(np.linalg.qr(np.random.default_rng(seed).normal(size=(k, k)))[0])


def test_logits_have_the_mean_and_variance_of_mu_plus_v_z():
    decoder, z, D, _ = draw()
    m0, Q = decoder(z, D)
    for i in range(len(z)):
        torch.testing.assert_close(m0[i], decoder.mu + decoder.V @ z[i])
        torch.testing.assert_close(Q[i], (decoder.V @ D[i].diag() @ decoder.V.T).diag())


def test_uncertain_loadings_add_the_variance_of_a_product_to_each_logit():
    decoder, z, D, _ = draw()
    U = torch.tensor(np.random.default_rng(1).uniform(0, 0.5, (9, 3)))
    _, Q = decoder(z, D, U)
    generator = torch.Generator().manual_seed(0)

    def normal(mean, variance):
        shape = (200_000, *mean.shape)
        noise = torch.randn(shape, generator=generator, dtype=mean.dtype)
        return mean + variance.sqrt() * noise

    logits = (normal(decoder.V[0].detach(), U[0]) * normal(z[0], D[0])).sum(1)
    assert Q[0, 0].item() == pytest.approx(logits.var().item(), rel=0.02)
    torch.testing.assert_close(decoder(z, D, torch.zeros_like(U)), decoder(z, D))


def test_constants_that_softmax_ignores_are_removed_and_change_no_bound():
    decoder, z, D, x = draw()
    torch.testing.assert_close(decoder.V.sum(0), torch.zeros(3).double())
    torch.testing.assert_close(decoder.mu.sum(), torch.tensor(0.0).double())
    shifted = Decoder(decoder.V + torch.tensor([1.0, -2.0, 3.0]), decoder.mu + 5, decoder.sigma2)
    torch.testing.assert_close(bound(shifted, z, D, x), bound(decoder, z, D, x), **EXACT)


@given(seed=st.integers(0, 10**6))
def test_rescaling_by_any_invertible_map_keeps_every_expected_logit(seed):
    decoder, z, D, _ = draw(seed)
    before, _ = decoder(z, D)
    A = orthogonal(seed) @ torch.diag(torch.tensor([0.3, 1.0, 4.0]).double()) @ orthogonal(seed + 1)
    shift = torch.tensor([1.0, -0.5, 2.0]).double()
    decoder.rescale(A, shift)
    after, _ = decoder(torch.linalg.solve(A, (z - shift).T).T, D)
    torch.testing.assert_close(after, before, **EXACT)


def test_an_orthogonal_change_of_factors_keeps_v_v_and_the_bound():
    decoder, z, _, x = draw()
    A, nothing, D = orthogonal(1), torch.zeros(3).double(), torch.full_like(z, 0.3)
    VV, before = decoder.V @ decoder.V.T, bound(decoder, z, D, x)
    decoder.rescale(A, nothing)
    torch.testing.assert_close(decoder.V @ decoder.V.T, VV, **EXACT)
    torch.testing.assert_close(bound(decoder, z @ A, D, x), before, **EXACT)


def test_reordered_factors_of_flipped_sign_keep_the_bound_whatever_their_variances():
    decoder, z, D, x = draw()
    A = torch.tensor([[0, 0, -1], [1, 0, 0], [0, -1, 0]]).double()
    before = bound(decoder, z, D, x)
    decoder.rescale(A, torch.zeros(3).double())
    torch.testing.assert_close(bound(decoder, z @ A, D @ A.square(), x), before, **EXACT)


def test_rescaled_factors_keep_the_likelihood_and_pay_only_their_own_divergence():
    decoder, z, D, x = draw()
    a, shift = torch.tensor([0.5, 2.0, 1.5]).double(), torch.tensor([0.2, -1.0, 0.0]).double()
    before = bound(decoder, z, D, x) + factor_kl(z, D)
    decoder.rescale(a.diag(), shift)
    u, Du = (z - shift) / a, D / a.square()
    torch.testing.assert_close(bound(decoder, u, Du, x) + factor_kl(u, Du), before, **EXACT)


@pytest.mark.parametrize(("ratio", "grows_by"), [(1.3, 1.3), (0.8, 0.8), (50.0, 2.0), (1e-3, 0.5)])
def test_noise_follows_its_own_equation_but_at_most_doubles_or_halves(ratio, grows_by):
    for shape in ((), (9,)):
        decoder = Decoder(torch.ones(9, 1), torch.zeros(9), torch.full(shape, 0.4))
        decoder.grow_sigma2(torch.full(shape, ratio))
        torch.testing.assert_close(decoder.sigma2, torch.full(shape, 0.4 * grows_by))


def test_noise_stays_in_its_range():
    decoder, *_ = draw()
    for ratio, edge in ((2.0, SIGMA2_RANGE[1]), (0.5, SIGMA2_RANGE[0])):
        for _ in range(30):
            decoder.grow_sigma2(torch.tensor(ratio).double())
        assert decoder.sigma2.item() == edge


def test_the_decoder_owns_its_noise():
    sigma2 = torch.tensor(0.4)
    Decoder(torch.ones(4, 1), torch.zeros(4), sigma2).grow_sigma2(torch.tensor(2.0))
    assert sigma2.item() == pytest.approx(0.4)


def leaves(dtype, d, k, b=6, seed=5):
    rng = np.random.default_rng(seed)
    shapes = (b, k), (b, k), (d, k), (d,)
    return [torch.tensor(rng.uniform(0.1, 1, shape), dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("with_U", [False, True])
def test_logits_and_their_gradients_are_those_of_autograd_in_any_number_of_threads(
    monkeypatch, threads, with_U
):
    monkeypatch.setattr("countvae.decoder.worth", lambda *given: threads)
    z, D, V, mu = (leaf.requires_grad_() for leaf in leaves(torch.float64, 9, 3))
    decoder = Decoder(V.detach(), mu.detach(), torch.tensor(1.0))
    U = torch.rand(9, 3, generator=torch.Generator().manual_seed(1)).double()
    U = U.requires_grad_() if with_U else None
    upstream = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(2)).double()
    found = decoder(z, D, U)
    V_, mu_ = decoder.V, decoder.mu
    m0 = mu_ + z @ V_.T
    Q = D @ V_.square().T + (0 if U is None else (z.square() + D) @ U.T)
    for mine, theirs in zip(found, (m0, Q), strict=True):
        torch.testing.assert_close(mine, theirs)
    variables = (z, D, V_, mu_) if U is None else (z, D, V_, mu_, U)
    mine = torch.autograd.grad(found, variables, tuple(upstream))
    theirs = torch.autograd.grad((m0, Q), variables, tuple(upstream))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_logits_of_frozen_loadings_still_have_gradients_in_the_factors():
    z, D, V, mu = leaves(torch.float64, 9, 3)
    decoder = Decoder(V, mu, torch.tensor(1.0)).requires_grad_(False)
    z.requires_grad_()
    m0, Q = decoder(z, D)
    (m0.sum() + Q.sum()).backward()
    torch.testing.assert_close(z.grad, decoder.V.sum(0).expand_as(z))
