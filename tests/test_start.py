"""The residual start: closed forms, the PCA start, and tables that are hardly any."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from countvae.decoder import Decoder
from countvae.encoder import DenseEncoder
from countvae.inference import posterior_at, refine
from countvae.metrics import common_features, subspace_error
from countvae.ppca import clr_counts, ppca
from countvae.rows import Rows
from countvae.simulate import simulate
from countvae.start import residual_start


def start_on(counts, k, *, seed=0, dtype=torch.float32, batch_size=64, pseudocount=1.0):
    rows = Rows(csr_array(counts), batch_size, dtype)
    return residual_start(
        rows, k, pseudocount=pseudocount, generator=torch.Generator().manual_seed(seed)
    )


def scores_of(start, counts, pseudocount=1.0):
    """Factors by the linear encoder of a start, from its definition."""
    clr = clr_counts(counts, pseudocount)
    return (clr - start.mu.numpy()) @ start.A.numpy() + start.b.numpy()


def share_explained(y, scores):
    """R2 of the least squares of y on the scores."""
    design = np.column_stack([np.ones(len(scores)), scores])
    residual = y - design @ np.linalg.lstsq(design, y)[0]
    return 1 - residual.var() / y.var()


@pytest.fixture(name="wide", scope="module")
def wide_table_of_varying_depth():
    return simulate(300, 120, 4, 2000, rng=np.random.default_rng(0))


@pytest.fixture(name="deep", scope="module")
def table_so_deep_that_counts_are_gaussian():
    """400 samples of 10^8 reads over 12 even features: log-ratios without sampling noise."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(400, 2)) @ rng.normal(0, 0.4, (2, 12)) + 0.5 * rng.normal(
        size=(400, 12)
    )
    p = np.exp(logits)
    return rng.multinomial(10**8, p / p.sum(1, keepdims=True)).astype(float)


def test_with_a_gaussian_likelihood_the_start_is_closed_form_ppca(deep):
    """Where sampling noise vanishes the residuals are the centred log-ratios over sigma.

    The start then is PPCA over d dimensions, with its rows capped and its columns centred, but for
    terms of order 1/n (the ridge of its scale).
    """
    start = start_on(deep, 2, dtype=torch.float64)
    exact = ppca(clr_counts(deep), 2)
    assert start.sigma2.item() == pytest.approx(exact.noise_variance, rel=2e-3)
    variance = exact.noise_variance + (exact.loadings**2).sum() / 12  # of a log-ratio
    rows = (exact.loadings**2).sum(1, keepdims=True)
    V = exact.loadings / np.sqrt(1 + rows / (4 * variance))
    V -= V.mean(0)
    expected = V @ V.T
    found = (start.V @ start.V.T).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())


def test_with_a_gaussian_likelihood_the_starting_factors_are_those_of_ppca(deep):
    start = start_on(deep, 2, dtype=torch.float64)
    theirs = ppca(clr_counts(deep), 2).encode(clr_counts(deep))
    mine = scores_of(start, deep)
    for factor in theirs.T:
        assert share_explained(factor, mine) > 0.999


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_start_finds_the_factors_that_pca_loses(seed):
    table = simulate(300, 120, 4, 2000, rng=np.random.default_rng(seed))
    common = common_features(table.counts)
    mine = subspace_error(table.V, start_on(table.counts, 4).V.double().numpy(), features=common)
    pca = subspace_error(table.V, ppca(clr_counts(table.counts), 4).loadings, features=common)
    assert mine < 0.1
    assert mine < 0.7 * pca


def test_start_holds_less_of_the_depth_than_pca_does(wide):
    start = start_on(wide.counts, 4)
    log_depth = np.log(wide.depth)
    clr = clr_counts(wide.counts)
    by_pca = share_explained(log_depth, ppca(clr, 4).encode(clr))
    assert by_pca > 0.4
    assert share_explained(log_depth, scores_of(start, wide.counts)) < 0.5 * by_pca


def test_linear_encoder_is_close_to_the_optimum_of_its_decoder(wide):
    start = start_on(wide.counts, 4)
    x = torch.tensor(wide.counts.toarray()).float()
    decoder = Decoder(start.V, start.mu, start.sigma2)
    encoded = posterior_at(
        decoder,
        x,
        torch.tensor(scores_of(start, wide.counts)).float(),
        start.log_D.exp().expand(len(x), -1),
    )
    best = refine(decoder, x, encoded, 20)
    blind = posterior_at(decoder, x, torch.zeros_like(best.z), torch.ones_like(best.D))
    lost, gained = (best.bound - other.bound for other in (encoded, blind))
    assert lost.mean() < 0.1 * gained.mean()


def test_the_pseudocount_touches_the_encoder_only(wide):
    one, half = (start_on(wide.counts, 4, pseudocount=c) for c in (1.0, 0.5))
    for name in ("V", "mu", "sigma2"):
        assert torch.equal(getattr(one, name), getattr(half, name))
    assert not torch.equal(one.A, half.A)


def test_batches_change_nothing_but_rounding(deep):
    whole, batched = (
        start_on(deep, 2, dtype=torch.float64, batch_size=size) for size in (1000, 400)
    )
    for name in ("mu", "sigma2"):
        torch.testing.assert_close(getattr(whole, name), getattr(batched, name))
    V, W = whole.V, batched.V
    torch.testing.assert_close(V @ V.T, W @ W.T, rtol=1e-6, atol=1e-6)


def test_the_same_seed_gives_the_same_bits(wide):
    first, again = (start_on(wide.counts, 4, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_sample_order_hardly_matters(wide):
    order = np.random.default_rng(0).permutation(300)
    V, W = (start_on(c, 4).V.double().numpy() for c in (wide.counts, wide.counts[order]))
    assert subspace_error(V, W) < 0.01


def test_one_monstrous_sample_does_not_take_the_start_over(wide):
    counts = wide.counts.toarray().astype(float)
    counts[7] = 0
    counts[7, np.argsort(counts.sum(0))[:3]] = 1e6
    common = common_features(wide.counts)
    V = start_on(counts, 4).V.double().numpy()
    assert subspace_error(wide.V, V, features=common) < 0.1


FEW = np.random.default_rng(0).poisson(3, (20, 5))
HARDLY_TABLES = {
    "two samples of two features": (np.array([[3, 1], [0, 9]]), 1),
    "two samples of many features": (np.random.default_rng(0).poisson(2, (2, 40)), 1),
    "identical samples": (np.tile([5, 3, 2, 0], (9, 1)), 2),
    "features never seen": (
        np.c_[FEW, np.zeros((20, 4))],
        3,
    ),
    "one read a sample": (np.eye(8)[np.random.default_rng(0).integers(0, 8, 30)], 2),
    "an empty sample": (np.r_[FEW, np.zeros((1, 5))], 2),
    "billions of reads": (np.random.default_rng(0).poisson(10**9, (20, 6)), 2),
    "samples of one feature each": (np.eye(6)[np.arange(24) % 6] * 1000, 2),
}


@pytest.mark.parametrize("name", HARDLY_TABLES)
def test_the_start_is_finite_and_of_its_shape_on(name):
    counts, k = HARDLY_TABLES[name]
    start = start_on(counts.astype(float), k)
    assert all(part.isfinite().all() for part in start)
    assert start.V.shape == start.A.shape == (counts.shape[1], k)
    assert start.sigma2 > 0
    encoder = DenseEncoder(
        start.A,
        start.b,
        start.log_D,
        start.mu,
        depth=2,
        width=4,
        activation="silu",
        pseudocount=1.0,
        shared_D=False,
        generator=torch.Generator(),
    )
    assert all(part.isfinite().all() for part in encoder(torch.tensor(counts).float()))
