"""Simulated tables against the law they are said to follow."""

import numpy as np
import pytest

import countvae.simulate
from countvae.errors import InputError
from countvae.simulate import simulate


def draw(*size, seed=0, **options):
    return simulate(*size, rng=np.random.default_rng(seed), **options)


@pytest.mark.parametrize("options", [{}, {"nonzero_loadings": 0.05}, {"design": "flat"}])
def test_table_and_truth_belong_together(options):
    table = draw(30, 50, 4, 500, **options)
    assert table.counts.shape == (30, 50)
    assert table.counts.dtype == np.int64
    assert len(table.sample_ids) == 30
    assert len(table.feature_ids) == 50
    np.testing.assert_array_equal(table.counts.sum(axis=1), table.depth)
    np.testing.assert_allclose(table.V.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(table.mu.sum(), 0, atol=1e-12)


def test_same_generator_state_gives_the_same_table():
    one, two, other = draw(20, 30, 3, 100), draw(20, 30, 3, 100), draw(20, 30, 3, 100, seed=1)
    np.testing.assert_array_equal(one.counts.toarray(), two.counts.toarray())
    assert (one.counts.toarray() != other.counts.toarray()).any()


def test_flat_design_has_the_stated_eigenvalues_and_depth():
    table = draw(400, 200, 10, 1000, design="flat")
    C = table.V @ table.V.T + table.sigma2 * (np.eye(200) - 1 / 200)
    top = np.linalg.eigvalsh(C)[::-1]
    np.testing.assert_allclose(top[:10], np.linspace(5, 0.11, 10))
    np.testing.assert_allclose(top[10:-1], 0.1)
    assert table.sigma2 == 0.1
    assert not table.mu.any()
    # Poisson: mean and variance are both 1,000; standard errors 1.6 and 71 at 400 samples.
    assert abs(table.depth.mean() - 1000) < 4 * 1.6
    assert abs(table.depth.var() - 1000) < 4 * 71


def test_wide_design_has_the_stated_scales():
    table = draw(2000, 2000, 8, 5000)
    ladder = table.V.std(axis=0) / np.sqrt(4 / 8)
    np.testing.assert_allclose(ladder, np.linspace(1, 0.3, 8), rtol=4 / np.sqrt(2 * 2000))
    np.testing.assert_allclose(table.mu.std(), 2, rtol=4 / np.sqrt(2 * 2000))
    log_depth = np.log(table.depth)
    assert abs(log_depth.mean() - np.log(5000)) < 4 * 0.7 / np.sqrt(2000)
    np.testing.assert_allclose(log_depth.std(), 0.7, rtol=4 / np.sqrt(2 * 2000))


def test_wide_design_has_at_least_50_reads():
    assert draw(500, 10, 2, 60).depth.min() == 50


def test_sparse_loadings_are_the_stated_share():
    V = draw(2, 4000, 5, 100, nonzero_loadings=0.05).V
    background = np.median(V, axis=0)  # a centred zero
    share = (np.abs(V - background) > 1e-12).mean()
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / V.size)


def noise_of(table):
    """The ε behind kept proportions, known up to a constant for each sample."""
    log = np.log(table.proportions)
    noise = log - log.mean(axis=1, keepdims=True) - table.mu - table.z @ table.V.T
    return noise - noise.mean(axis=1, keepdims=True)


def test_noise_has_the_stated_variance():
    noise = noise_of(draw(300, 200, 2, 1000, sigma2=0.8, keep_proportions=True))
    np.testing.assert_allclose(noise.var() * 200 / 199, 0.8, rtol=4 * np.sqrt(2 / noise.size))


def test_heavy_noise_has_the_stated_variance_and_heavier_tails():
    noise = noise_of(draw(300, 200, 2, 1000, noise="heavy", keep_proportions=True))
    deviate = noise / np.sqrt(0.5)
    np.testing.assert_allclose((deviate**2).mean(), 1, atol=0.1)
    assert (np.abs(deviate) > 5).sum() > 20  # the normal law expects 0.03


def test_uneven_noise_follows_each_features_variance():
    table = draw(2000, 60, 2, 1000, noise="uneven", keep_proportions=True)
    np.testing.assert_allclose(table.feature_sigma2.mean(), table.sigma2)
    # Centring mixes in the other features: Var = s_j(1 - 2/d) + mean(s)/d
    s = table.feature_sigma2
    expected = s * (1 - 2 / 60) + s.mean() / 60
    np.testing.assert_allclose(noise_of(table).var(axis=0), expected, rtol=5 * np.sqrt(2 / 2000))


def test_depth_follows_the_first_factor_when_asked():
    table = draw(2000, 20, 2, 1e5, depth_correlation=0.8)
    r = np.corrcoef(np.log(table.depth), table.z[:, 0])[0, 1]
    assert abs(r - 0.8) < 4 * (1 - 0.8**2) / np.sqrt(2000)


def test_counts_are_multinomial_in_the_kept_proportions():
    table = draw(200, 40, 3, 1000, keep_proportions=True)
    expected = table.depth[:, None] * table.proportions
    residual = table.counts.toarray() - expected
    pearson = (residual**2 / expected).sum(axis=1)
    # E = d - 1 for each sample; its spread is taken from the table, as rare features widen it.
    assert abs(pearson.mean() - 39) < 4 * pearson.std() / np.sqrt(200)
    assert draw(2, 5, 1, 10).proportions is None


def test_table_drawn_in_blocks_is_whole(monkeypatch):
    monkeypatch.setattr(countvae.simulate, "BLOCK_ENTRIES", 70)
    table = draw(11, 20, 2, 100, keep_proportions=True)
    assert table.counts.shape == table.proportions.shape == (11, 20)
    np.testing.assert_array_equal(table.counts.sum(axis=1), table.depth)
    # Each row was drawn from its own factors: what its logits lack of them is noise of variance σ².
    assert noise_of(table).var() < 1.0


@pytest.mark.parametrize(
    ("size", "options", "sentence"),
    [
        ((5, 4, 4, 10), {}, "k: expected 1 <= k < 4"),
        ((5, 9, 2, 10), {"design": "flat", "nonzero_loadings": 0.1}, "'flat' takes neither"),
        ((5, 9, 2, 10), {"design": "flat", "depth_correlation": 0.1}, "'flat' takes neither"),
        ((5, 9, 2, 10), {"design": "flat", "sigma2": 0.2}, "needs sigma2 <= 0.11; got 0.2"),
    ],
)
def test_options_that_do_not_go_together_are_refused(size, options, sentence):
    with pytest.raises(InputError, match=sentence):
        draw(*size, **options)


def test_a_wider_centre_makes_a_sparser_table():
    tables = [
        simulate(100, 200, 3, 1000, centre_sd=sd, rng=np.random.default_rng(0))
        for sd in (0.5, 2, 4)
    ]
    filled = [table.counts.nnz for table in tables]
    assert filled == sorted(filled, reverse=True) and filled[0] > 2 * filled[2]
    assert tables[2].mu.std() == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("design", ["wide", "flat"])
def test_given_loadings_take_the_place_of_random_ones(design):
    V = np.random.default_rng(1).standard_normal((12, 2))
    table = simulate(9, 12, 2, 100, design=design, V=V, rng=np.random.default_rng(0))
    np.testing.assert_allclose(table.V, V - V.mean(axis=0))
    with pytest.raises(InputError, match=r"V: expected loadings of shape \(12, 3\); got \(12, 2\)"):
        simulate(9, 12, 3, 100, V=V, rng=np.random.default_rng(0))


def test_typical_reads_below_the_floor_of_the_wide_design_are_what_was_asked_for():
    table = simulate(400, 50, 2, 20, rng=np.random.default_rng(0))
    assert table.depth.min() == 20 and 20 <= np.median(table.depth) < 30
