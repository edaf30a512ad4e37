"""The factored errors against dense twins."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.sparse import csr_array
from scipy.stats import genpareto

from countvae.metrics import common_features, covariance_error, subspace_error, tail_shape


def centred(V):
    return V - V.mean(axis=0)


def dense_covariance(V, sigma2, keep):
    """C of the whole composition, then of the kept features by the centring matrix."""
    d = len(V)
    C = V @ V.T + sigma2 * (np.eye(d) - 1 / d)
    m = np.arange(d)[keep].size
    H = np.eye(m) - 1 / m
    return H @ C[keep][:, keep] @ H


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return centred(rng.standard_normal((15, 3))), centred(rng.standard_normal((15, 4)))


keeps = [slice(None), np.arange(15) % 3 > 0, np.array([0, 2, 3, 4, 7, 11])]


@pytest.mark.parametrize("keep", keeps)
@pytest.mark.parametrize("sigma2", [(0.0, 0.0), (0.5, 0.5), (0.5, 0.8), (1.0, 0.0)])
def test_covariance_error_equals_its_dense_twin(pair, keep, sigma2):
    V, W = pair
    C, D = dense_covariance(V, sigma2[0], keep), dense_covariance(W, sigma2[1], keep)
    features = None if isinstance(keep, slice) else keep
    error = covariance_error(V, W, sigma2_true=sigma2[0], sigma2_est=sigma2[1], features=features)
    np.testing.assert_allclose(error, np.linalg.norm(D - C) / np.linalg.norm(C))


@pytest.mark.parametrize("keep", keeps)
def test_subspace_error_equals_the_mean_squared_sine_of_the_principal_angles(pair, keep):
    V, W = pair[0], pair[1][:, :3]
    sine = np.sin(subspace_angles(centred(V[keep]), centred(W[keep])))
    features = None if isinstance(keep, slice) else keep
    np.testing.assert_allclose(subspace_error(V, W, features=features), (sine**2).mean())


def test_errors_ignore_a_rotation_of_the_factors(pair):
    V = pair[0]
    Q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    assert covariance_error(V, V @ Q) < 1e-14
    assert abs(subspace_error(V, V @ Q)) < 1e-14


def test_subspace_error_counts_lost_directions_even_where_columns_vanish(pair):
    V = pair[0]
    Q, _ = np.linalg.qr(V)
    lost = Q * np.array([1.0, 1.0, 0.0])
    np.testing.assert_allclose(subspace_error(V, lost), 1 / 3)


def test_small_covariance_errors_keep_their_digits(pair):
    V = pair[0]
    np.testing.assert_allclose(covariance_error(V, V * np.sqrt(1 + 1e-10)), 1e-10, rtol=1e-4)


def test_common_features_are_those_above_the_median_total():
    counts = np.array([[0, 4, 1, 9, 2], [0, 4, 1, 9, 2]])
    assert common_features(counts).tolist() == [False, True, False, True, False]
    assert common_features(csr_array(counts)).tolist() == common_features(counts).tolist()


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9, 1.5])
def test_the_tail_of_weights_has_the_shape_they_were_drawn_with(shape):
    weights = genpareto.rvs(shape, size=(4000, 60), random_state=0)
    found = tail_shape(np.log(weights))
    tail = np.sort(weights, axis=0)[-190:]
    likeliest = [genpareto.fit((x - x[0])[1:], floc=0)[0] for x in tail.T[:10]]
    assert found.mean() == pytest.approx(shape, abs=0.12)
    np.testing.assert_allclose(found[:10], likeliest, atol=0.12)


def test_each_column_of_weights_has_a_shape_of_its_own():
    log_weights = np.random.default_rng(0).standard_normal((64, 5)) * [0.1, 1, 3, 10, 1000]
    alone = [tail_shape(column[:, None])[0] for column in log_weights.T]
    np.testing.assert_allclose(tail_shape(log_weights), alone, rtol=1e-12)
    np.testing.assert_allclose(tail_shape(log_weights + 5000), alone, rtol=1e-9)
    assert np.isfinite(alone).all() and (np.diff(alone) > 0).all()


def test_even_weights_have_no_tail_and_a_single_one_has_the_heaviest():
    one = np.full(100, -np.inf)
    one[3] = 0
    even, single = tail_shape(np.stack([np.zeros(100), one], axis=1))
    assert even == -np.inf
    assert single > 10
