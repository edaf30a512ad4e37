r"""How far an estimate is from the truth, when the truth is known.

V is d × k with columns summing to zero, and C = VVᵀ + σ²(I − 11ᵀ/d) the covariance of the centred
log-ratios. Nothing d × d is formed. With ``features`` (an index or a mask) the comparison is made
in the composition of those features alone, so columns are centred again over them.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from scipy.linalg import orth
from scipy.sparse import csr_array
from scipy.special import softmax

Features = Bool[np.ndarray, " d"] | Integer[np.ndarray, " m"] | None


def subspace_error(
    V_true: Float[np.ndarray, "d k"],
    V_est: Float[np.ndarray, "d j"],
    *,
    features: Features = None,
) -> float:
    r"""Share of the true factor space that the estimate misses, from 0 (none) to 1 (all).

    .. math:: 1 - \operatorname{tr}(Q Q^\top U U^\top)/k

    Q and U are orthonormal bases of the columns of V_true and V_est.

    Examples
    --------
    >>> V = np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -2.0]])
    >>> round(subspace_error(V, V @ np.array([[2.0, 1.0], [0.0, 3.0]])), 12)
    0.0
    >>> round(subspace_error(V, V[:, :1]), 12)
    0.5
    """
    Q = orth(_centred(V_true, features))
    U = orth(_centred(V_est, features))
    return 1.0 - float(((Q.T @ U) ** 2).sum()) / Q.shape[1]


def covariance_error(
    V_true: Float[np.ndarray, "d k"],
    V_est: Float[np.ndarray, "d j"],
    *,
    sigma2_true: int | float = 0.0,
    sigma2_est: int | float = 0.0,
    features: Features = None,
) -> float:
    r"""Relative error of the covariance of the centred log-ratios.

    .. math:: \lVert \hat C - C \rVert_F / \lVert C \rVert_F

    Without noise variances this compares VVᵀ alone.

    Examples
    --------
    >>> V = np.array([[1.0], [-1.0]])
    >>> round(covariance_error(V, 2 * V), 12)
    3.0
    """
    V, W = _centred(V_true, features), _centred(V_est, features)
    # ŴŴᵀ − VVᵀ = Q (R S Rᵀ) Qᵀ with [V̂ V] = QR: the difference is formed before it is squared.
    R = np.linalg.qr(np.hstack([W, V])).R
    sign = np.repeat([1.0, -1.0], [W.shape[1], V.shape[1]])
    difference = _frobenius(R * sign @ R.T, sigma2_est - sigma2_true, len(V))
    return difference / _frobenius(V.T @ V, sigma2_true, len(V))


def common_features(counts: Shaped[np.ndarray, "n d"] | csr_array) -> Bool[np.ndarray, " d"]:
    """Mask of the features whose total count is above the median total.

    Examples
    --------
    >>> common_features(np.array([[5, 0, 2, 9], [1, 1, 0, 9]])).tolist()
    [True, False, False, True]
    """
    total = np.asarray(counts.sum(axis=0)).ravel()
    return total > np.median(total)


def trusted_below(draws: int) -> float:
    """Shape of the tail of so many weights from which on their mean is not to be trusted.

    min(1 - 1/log10(draws), 0.7), of Vehtari et al. (Pareto smoothed importance sampling, JMLR
    2024): the tail of few weights tells less.

    Examples
    --------
    >>> [round(trusted_below(draws), 2) for draws in (64, 1000, 10_000)]
    [0.45, 0.67, 0.7]
    """
    return min(1 - 1 / math.log10(draws), 0.7)


def tail_shape(log_weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " n"]:
    """Shape of the generalised Pareto tail of importance weights, of each column.

    From `trusted_below` on their mean cannot be estimated from as many as there are. The tail is
    the largest fifth, or three times the root of their number if that is less. The fit is the
    posterior mean of Zhang and Stephens (Technometrics 2009), drawn towards 1/2 with the weight of
    ten draws (Vehtari et al.).

    Examples
    --------
    >>> normal = np.random.default_rng(0).standard_normal((4000, 1))
    >>> tail_shape(normal * [0.1, 1, 3]).round(1).tolist()
    [-0.2, 0.1, 0.8]
    """
    weights = np.sort(np.exp(log_weights - log_weights.max(axis=0)), axis=0)
    tail = max(5, min(len(weights) // 5, int(3 * np.sqrt(len(weights)))))
    over = weights[-tail:] - weights[-tail - 1]
    shape = np.full(over.shape[1], -np.inf)
    uneven = over[-1] > 0
    x = over[:, uneven] / over[-1, uneven]
    quartile = np.maximum(x[int(tail / 4 + 0.5) - 1], np.finfo(float).tiny)
    grid = 30 + int(np.sqrt(tail))
    theta = 1 - (np.sqrt(grid / (np.arange(grid)[:, None] + 0.5)) - 1) / (3 * quartile)
    k = np.array([-np.log1p(-x * of_all).mean(axis=0) for of_all in theta])
    fit = softmax(tail * (np.log(theta / k) + k - 1), axis=0)
    found = np.log1p(-x * (fit * theta).sum(axis=0)).mean(axis=0)
    shape[uneven] = (tail * found + 10 * 0.5) / (tail + 10)
    return shape


def _centred(V: Float[np.ndarray, "d k"], features: Features) -> Float[np.ndarray, "m k"]:
    V = V if features is None else V[features]
    return V - V.mean(axis=0)


def _frobenius(M: Float[np.ndarray, "r r"], sigma2: int | float, d: int) -> float:
    """‖A + σ²(I − 11ᵀ/d)‖_F for A = QMQᵀ whose columns sum to zero."""
    square = (M**2).sum() + 2 * sigma2 * np.trace(M) + sigma2**2 * (d - 1)
    return float(np.sqrt(max(square, 0.0)))
