"""Closed-form probabilistic PCA against scikit-learn, the density, and the optimum itself."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from countvae.errors import InputError
from countvae.ppca import clr_counts, ppca, ppca_of_counts


@pytest.fixture(name="Y")
def noisy_table():
    rng = np.random.default_rng(0)
    return rng.standard_normal((60, 3)) @ rng.standard_normal((3, 8)) + (
        0.5 * rng.standard_normal((60, 8)) + rng.standard_normal(8)
    )


def covariance(fit):
    p = len(fit.loadings)
    return fit.loadings @ fit.loadings.T + fit.noise_variance * np.eye(p)


def test_fit_and_scores_equal_scikit_learns(Y):
    fit, pca = ppca(Y, 3), PCA(3, svd_solver="full").fit(Y)
    shrink = (len(Y) - 1) / len(Y)  # scikit-learn divides by n - 1
    np.testing.assert_allclose(fit.noise_variance, pca.noise_variance_ * shrink)
    np.testing.assert_allclose(covariance(fit), pca.get_covariance() * shrink)
    # The density itself: the same fit on a table whose n - 1 divisor gives the same covariance.
    scaled = fit.mean + (Y - fit.mean) * np.sqrt(shrink)
    theirs = PCA(3, svd_solver="full").fit(scaled)
    np.testing.assert_allclose(fit.log_likelihood(Y), theirs.score_samples(Y))


def test_log_likelihood_is_the_normal_density(Y):
    fit = ppca(Y, 2)
    density = multivariate_normal(fit.mean, covariance(fit))
    np.testing.assert_allclose(fit.log_likelihood(Y), density.logpdf(Y))


def test_log_likelihood_over_the_plane_of_log_ratios_is_the_density_in_a_basis_of_it(Y):
    Y = Y - Y.mean(axis=1, keepdims=True)
    Psi = np.linalg.svd(np.eye(8) - 1 / 8)[0][:, :7]
    inside, outside = ppca(Y, 3, rank=7), ppca(Y @ Psi, 3)
    np.testing.assert_allclose(inside.noise_variance, outside.noise_variance)
    np.testing.assert_allclose(inside.log_likelihood(Y), outside.log_likelihood(Y @ Psi))
    np.testing.assert_allclose(inside.loadings.sum(axis=0), 0, atol=1e-12)


def test_no_other_parameters_are_likelier(Y):
    Y = Y[:, :4]
    fit = ppca(Y, 1)
    S = np.cov(Y.T, bias=True)

    def negative(theta):
        C = np.outer(theta[:4], theta[:4]) + np.exp(theta[4]) * np.eye(4)
        return 0.5 * (np.linalg.slogdet(2 * np.pi * C)[1] + np.trace(np.linalg.solve(C, S)))

    rng = np.random.default_rng(1)
    best = min((minimize(negative, rng.standard_normal(5)) for _ in range(5)), key=lambda r: r.fun)
    np.testing.assert_allclose(fit.log_likelihood(Y).mean(), -best.fun, rtol=1e-7)
    np.testing.assert_allclose(fit.noise_variance, np.exp(best.x[4]), rtol=1e-3)


def test_encoder_is_the_regression_of_factors_on_data(Y):
    fit = ppca(Y, 3)
    expected = fit.loadings.T @ np.linalg.inv(covariance(fit))
    np.testing.assert_allclose(fit.encoder, expected, atol=1e-12)
    np.testing.assert_allclose(fit.encode(Y), (Y - fit.mean) @ expected.T, atol=1e-12)


@pytest.mark.parametrize("shape", [(200, 60), (60, 200)])
def test_randomized_fit_equals_the_exact_one(shape):
    rng = np.random.default_rng(2)
    Y = rng.standard_normal((shape[0], 4)) * [9, 7, 5, 3] @ rng.standard_normal((4, shape[1]))
    Y += rng.standard_normal(shape)
    exact, fast = ppca(Y, 4), ppca(Y, 4, rng=np.random.default_rng(0))
    np.testing.assert_allclose(fast.noise_variance, exact.noise_variance, rtol=1e-8)
    np.testing.assert_allclose(fast.loadings, exact.loadings, atol=1e-6)


def test_loadings_have_fixed_signs_and_order(Y):
    V = ppca(Y, 3).loadings
    np.testing.assert_allclose(ppca(-Y, 3).loadings, V, atol=1e-12)
    length = (V**2).sum(axis=0)
    assert (np.diff(length) < 0).all()
    assert (V[np.abs(V).argmax(axis=0), range(3)] > 0).all()


@pytest.mark.parametrize("k", [0, 8])
def test_impossible_number_of_factors_is_refused(Y, k):
    with pytest.raises(InputError, match=f"k: expected 1 <= k < 8 .* got {k}"):
        ppca(Y, k)


def test_clr_counts_is_the_centred_log_of_count_plus_pseudocount():
    x = np.array([[0, 3, 9], [1, 0, 0]])
    log = np.log(x + 0.5)
    expected = log - log.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(clr_counts(x, 0.5), expected)
    np.testing.assert_allclose(clr_counts(csr_array(x), 0.5), expected)


def test_of_sparse_counts_it_is_the_fit_to_their_centred_log_ratios():
    rng = np.random.default_rng(1)
    counts = rng.poisson(np.exp(rng.normal(0, 1, (60, 3)) @ rng.normal(0, 0.7, (3, 12))))
    expected = ppca(clr_counts(counts), 4, rank=11)
    found = ppca_of_counts(csr_array(counts), 4, rng=rng)
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found.loadings, expected.loadings, atol=1e-9)
    assert found.noise_variance == pytest.approx(expected.noise_variance)
    assert found.rank == 11
    for k in (0, 11):
        with pytest.raises(InputError, match=f"expected 1 <= k < 11 .*; got {k}"):
            ppca_of_counts(csr_array(counts), k, rng=rng)
