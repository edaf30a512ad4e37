r"""Probabilistic PCA in closed form: the start, the baseline, and an oracle for tests.

.. math:: p(y) = N(\bar y, \; V V^\top + \sigma^2 I)

With λ₁ ≥ λ₂ ≥ … the eigenvalues of the sample covariance (divisor n) and U its eigenvectors, the
likelihood is greatest at V = U_k (Λ_k − σ² I)^½ and σ² = mean of the eigenvalues left over.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy.linalg import svd
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, svds
from skbio.stats.composition import clr
from sklearn.utils.extmath import randomized_svd

from countvae.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class PPCA:
    """A fitted probabilistic PCA.

    Attributes
    ----------
    mean : ndarray, shape (p,)
    loadings : ndarray, shape (p, k)
        V: orthogonal columns, by falling length; each column's largest entry is positive.
    noise_variance : float
        σ².
    rank : int
        Dimension of the space the data live in: p, or p−1 for centred log-ratios.
    """

    mean: Float[np.ndarray, " p"]
    loadings: Float[np.ndarray, "p k"]
    noise_variance: float
    rank: int

    @property
    def encoder(self) -> Float[np.ndarray, "k p"]:
        """The linear map (VᵀV + σ²I)⁻¹Vᵀ from a centred row to the posterior mean of z."""
        V = self.loadings
        return np.linalg.solve(V.T @ V + self.noise_variance * np.eye(V.shape[1]), V.T)

    def encode(self, Y: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n k"]:
        """Posterior mean of z for each row."""
        return (Y - self.mean) @ self.encoder.T

    def log_likelihood(self, Y: Float[np.ndarray, "n p"]) -> Float[np.ndarray, " n"]:
        """Log density of each row, in nats, over the `rank` dimensions the data live in."""
        Y = Y - self.mean
        V, sigma2 = self.loadings, self.noise_variance
        k = V.shape[1]
        logdet = np.linalg.slogdet(V.T @ V + sigma2 * np.eye(k)).logabsdet
        logdet += (self.rank - k) * np.log(sigma2)
        # Woodbury: yᵀ(VVᵀ + σ²I)⁻¹y = (yᵀy − yᵀV ẑ)/σ²
        quadratic = ((Y**2).sum(axis=1) - ((Y @ V) * (Y @ self.encoder.T)).sum(axis=1)) / sigma2
        return -0.5 * (self.rank * np.log(2 * np.pi) + logdet + quadratic)


def ppca(
    Y: Float[np.ndarray, "n p"],
    k: int,
    *,
    rank: int | None = None,
    rng: np.random.Generator | None = None,
) -> PPCA:
    """Fit probabilistic PCA by maximum likelihood; nothing p × p is formed.

    Parameters
    ----------
    Y : ndarray, shape (n, p)
    k : int
        Number of factors.
    rank : int, optional
        Dimension of the space the rows live in, p if not given; p−1 for centred log-ratios.
    rng : numpy.random.Generator, optional
        With one, the singular vectors come from a randomized SVD; without, from an exact one.

    Returns
    -------
    PPCA

    Raises
    ------
    InputError
        Unless 1 <= k < min(n, rank).

    References
    ----------
    Tipping & Bishop (1999), *Probabilistic principal component analysis*.

    Examples
    --------
    >>> Y = np.array([[2.0, 1.0], [-2.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    >>> fit = ppca(Y, 1)
    >>> round(fit.noise_variance, 3), fit.loadings.round(3).tolist()
    (0.5, [[1.225], [0.0]])
    """
    n, p = Y.shape
    q = p if rank is None else rank
    _check_factors(k, n, q)
    mean = Y.mean(axis=0)
    centred = Y - mean
    if rng is None:
        _, singular, Ut = svd(centred, full_matrices=False, check_finite=False)
        singular, Ut = singular[:k], Ut[:k]
    else:
        seed = int(rng.integers(2**32))
        _, singular, Ut = randomized_svd(centred, k, n_iter=7, random_state=seed)
    return _closed_form(mean, singular, Ut, float(np.vdot(centred, centred)), n, q)


def ppca_of_counts(
    counts: Shaped[np.ndarray, "n d"] | csr_array, k: int, *, rng: np.random.Generator
) -> PPCA:
    """Fit it to the centred log-ratios of counts + 1, which are never made dense.

    They are log(counts + 1), as sparse as the counts, less the means of rows and of columns.

    Parameters
    ----------
    counts : ndarray or csr_array, shape (n, d)
    k : int
        Number of factors.
    rng : numpy.random.Generator
        Begins the search for the singular vectors.

    Returns
    -------
    PPCA

    Raises
    ------
    InputError
        Unless 1 <= k < min(n, d - 1).

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(3.0, (20, 5))
    >>> sparse = ppca_of_counts(csr_array(counts), 2, rng=np.random.default_rng(0))
    >>> np.allclose(sparse.noise_variance, ppca(clr_counts(counts), 2, rank=4).noise_variance)
    True
    """
    logs = csr_array(counts, dtype=float).log1p()
    n, d = logs.shape
    _check_factors(k, n, d - 1)
    row = np.asarray(logs.mean(axis=1))
    mean = np.asarray(logs.mean(axis=0)) - row.mean()

    def of_features(v: np.ndarray) -> np.ndarray:
        v = v.ravel()
        return logs @ v - row * v.sum() - mean @ v

    def of_samples(u: np.ndarray) -> np.ndarray:
        u = u.ravel()
        return logs.T @ u - row @ u - mean * u.sum()

    centred = LinearOperator((n, d), of_features, of_samples, dtype=float)
    _, singular, Ut = svds(centred, k, v0=rng.standard_normal(min(n, d)))
    total = float(np.vdot(logs.data, logs.data) - d * (row @ row) - n * (mean @ mean))
    return _closed_form(mean, singular[::-1], Ut[::-1], total, n, d - 1)


def _check_factors(k: int, n: int, q: int) -> None:
    """Refuse more factors than n samples of q dimensions have beside their noise."""
    if not 1 <= k < min(n, q):
        raise ArgumentError(f"k: expected 1 <= k < {min(n, q)} (of samples, dimensions); got {k}.")


def _closed_form(
    mean: Float[np.ndarray, " p"],
    singular: Float[np.ndarray, " k"],
    Ut: Float[np.ndarray, "k p"],
    squares: float,
    n: int,
    q: int,
) -> PPCA:
    """Return the fit to n centred rows of these singular values and this sum of squares."""
    k = len(singular)
    U = Ut.T * np.sign(Ut[np.arange(k), np.abs(Ut).argmax(axis=1)])
    top = singular**2 / n
    sigma2 = max(squares / n - float(top.sum()), 0.0) / (q - k)
    return PPCA(mean, U * np.sqrt(np.maximum(top - sigma2, 0.0)), sigma2, q)


def clr_counts(
    counts: Shaped[np.ndarray, "n d"] | csr_array, pseudocount: int | float = 1.0
) -> Float[np.ndarray, "n d"]:
    """Centred log-ratios of counts + pseudocount; dense.

    Examples
    --------
    >>> clr_counts(np.array([[0, 0, 3]])).round(3)
    array([[-0.462, -0.462,  0.924]])
    """
    dense = counts if isinstance(counts, np.ndarray) else counts.toarray()
    return clr(dense + pseudocount)
