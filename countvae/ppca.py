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
    if not 1 <= k < min(n, q):
        raise ArgumentError(f"k: expected 1 <= k < {min(n, q)} (of samples, dimensions); got {k}.")
    mean = Y.mean(axis=0)
    centred = Y - mean
    if rng is None:
        _, singular, Ut = svd(centred, full_matrices=False, check_finite=False)
        singular, Ut = singular[:k], Ut[:k]
    else:
        seed = int(rng.integers(2**32))
        _, singular, Ut = randomized_svd(centred, k, n_iter=7, random_state=seed)
    U = Ut.T * np.sign(Ut[np.arange(k), np.abs(Ut).argmax(axis=1)])
    top = singular**2 / n
    total = np.vdot(centred, centred) / n
    sigma2 = max(float(total - top.sum()), 0.0) / (q - k)
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
