r"""Count tables whose truth is known; numpy only, so that agreement with the decoder is evidence.

.. math:: x \sim \mathrm{Mult}(N, \mathrm{softmax}(\mu + V z + \varepsilon)),
    \quad z \sim N(0, I), \quad \varepsilon \sim N(0, \sigma^2 I)
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Integer, Shaped
from scipy.sparse import csr_array, vstack

from countvae.errors import ArgumentError

Design = Literal["wide", "flat"]
Noise = Literal["normal", "heavy", "uneven"]

BLOCK_ENTRIES = 2**22  # entries of the table drawn together
LEAST_READS = 50  # of a sample of the "wide" design, unless fewer are typical
HEAVY_DF = 4  # degrees of freedom of the heavy-tailed noise


@dataclass(frozen=True, eq=False)
class Simulation:
    """A drawn table and the truth behind it.

    Attributes
    ----------
    counts : csr_array of int64, shape (n, d)
    sample_ids, feature_ids : ndarray of str, shapes (n,), (d,)
    mu : ndarray, shape (d,)
        Centre of the logits, summing to zero.
    V : ndarray, shape (d, k)
        Loadings; columns sum to zero.
    sigma2 : float
        Noise variance (its mean over features where the noise is uneven).
    feature_sigma2 : ndarray, shape (d,)
        Noise variance of each feature.
    z : ndarray, shape (n, k)
        Factors.
    depth : ndarray of int, shape (n,)
        Reads of each sample.
    proportions : ndarray, shape (n, d), or None
        What the counts were drawn from, if kept.
    """

    counts: csr_array
    sample_ids: Shaped[np.ndarray, " n"]
    feature_ids: Shaped[np.ndarray, " d"]
    mu: Float[np.ndarray, " d"]
    V: Float[np.ndarray, "d k"]
    sigma2: float
    feature_sigma2: Float[np.ndarray, " d"]
    z: Float[np.ndarray, "n k"]
    depth: Integer[np.ndarray, " n"]
    proportions: Float[np.ndarray, "n d"] | None


def simulate(
    n: int,
    d: int,
    k: int,
    reads: int | float,
    *,
    design: Design = "wide",
    sigma2: int | float | None = None,
    centre_sd: int | float | None = None,
    V: Float[np.ndarray, "d k"] | None = None,
    nonzero_loadings: int | float | None = None,
    noise: Noise = "normal",
    depth_correlation: int | float = 0.0,
    keep_proportions: bool = False,
    rng: np.random.Generator,
) -> Simulation:
    r"""Draw a count table with a known truth.

    ``design="wide"`` has abundances over many orders of magnitude: :math:`\mu_j \sim N(0, 2^2)`,
    :math:`V_{jc} \sim N(0, 4/k)` times an even ladder from 1 to 0.3 over c, columns centred,
    σ² = 0.5, :math:`\log` depth :math:`\sim N(\log` reads :math:`, 0.7^2)`, at least 50, or
    ``reads`` if that is less.

    ``design="flat"`` has μ = 0 and random orthonormal directions orthogonal to 1, the eigenvalues
    of VVᵀ + σ² going from 5 to 0.11 in equal steps; σ² = 0.1; depth is Poisson around ``reads``.

    Parameters
    ----------
    n, d, k : int
        Samples, features, factors.
    reads : float
        Typical depth.
    design : {"wide", "flat"}
    sigma2 : float, optional
        Noise variance, in place of the design's own.
    centre_sd : float, optional
        Standard deviation of μ, in place of the design's own 2 or 0: the larger, the sparser.
    V : (d, k), optional
        Loadings, in place of random ones; columns are centred.
    nonzero_loadings : float, optional
        Multiply V by a random mask with this share of ones and by 3.5, then centre ("wide" only).
    noise : {"normal", "heavy", "uneven"}
        Normal; Student's t with 4 degrees of freedom, scaled to variance σ²; or normal with a
        variance for each feature, σ² times a lognormal factor of mean 1.
    depth_correlation : float
        Correlation of log depth with the first factor ("wide" only).
    keep_proportions : bool
        Keep the n × d proportions as well.
    rng : numpy.random.Generator

    Returns
    -------
    Simulation

    Raises
    ------
    InputError
        If an option does not go with the design, V has another shape, or k is not below d.

    Examples
    --------
    >>> table = simulate(5, 20, 2, 100, rng=np.random.default_rng(0))
    >>> table.counts.shape, bool((table.counts.sum(axis=1) == table.depth).all())
    ((5, 20), True)
    """
    if not 1 <= k < d:
        raise ArgumentError(f"k: expected 1 <= k < {d}, the number of features; got {k}.")
    if design not in get_args(Design):
        raise ArgumentError(f"design: expected one of {get_args(Design)}; got '{design}'.")
    if noise not in get_args(Noise):
        raise ArgumentError(f"noise: expected one of {get_args(Noise)}; got '{noise}'.")
    if design == "flat" and (nonzero_loadings is not None or depth_correlation):
        raise ArgumentError(
            "design: 'flat' takes neither nonzero_loadings nor depth_correlation; use 'wide'."
        )
    if V is not None and V.shape != (d, k):
        raise ArgumentError(f"V: expected loadings of shape ({d}, {k}); got {V.shape}.")
    z = rng.standard_normal((n, k))
    centre_sd = (2.0 if design == "wide" else 0.0) if centre_sd is None else centre_sd
    mu = centre_sd * rng.standard_normal(d) if centre_sd else np.zeros(d)
    mu -= mu.mean()
    if V is not None:
        V = V - V.mean(axis=0)
    if design == "wide":
        sigma2 = 0.5 if sigma2 is None else sigma2
        V = _wide_loadings(d, k, nonzero_loadings, rng) if V is None else V
        depth = _lognormal_depth(reads, depth_correlation, z[:, 0], rng)
    else:
        sigma2 = 0.1 if sigma2 is None else sigma2
        V = _flat_loadings(d, k, sigma2, rng) if V is None else V
        depth = np.maximum(rng.poisson(reads, n), 1)

    feature_sigma2 = np.full(d, float(sigma2))
    if noise == "uneven":
        factor = rng.lognormal(size=d)
        feature_sigma2 *= factor / factor.mean()

    blocks, kept = [], []
    step = max(1, BLOCK_ENTRIES // d)
    for first in range(0, n, step):
        rows = slice(first, first + step)
        logits = mu + z[rows] @ V.T
        logits += np.sqrt(feature_sigma2) * _unit_noise(noise, logits.shape, rng)
        proportions = _softmax(logits)
        blocks.append(csr_array(rng.multinomial(depth[rows], proportions)))
        if keep_proportions:
            kept.append(proportions)
    return Simulation(
        counts=csr_array(vstack(blocks, format="csr")),
        sample_ids=np.array([f"s{i}" for i in range(n)]),
        feature_ids=np.array([f"f{j}" for j in range(d)]),
        mu=mu,
        V=V,
        sigma2=float(sigma2),
        feature_sigma2=feature_sigma2,
        z=z,
        depth=depth,
        proportions=np.concatenate(kept) if keep_proportions else None,
    )


def _wide_loadings(
    d: int, k: int, nonzero: int | float | None, rng: np.random.Generator
) -> Float[np.ndarray, "d k"]:
    V = rng.standard_normal((d, k)) * np.sqrt(4.0 / k) * np.linspace(1.0, 0.3, k)
    if nonzero is not None:
        V *= 3.5 * (rng.random((d, k)) < nonzero)
    return V - V.mean(axis=0)


def _flat_loadings(
    d: int, k: int, sigma2: int | float, rng: np.random.Generator
) -> Float[np.ndarray, "d k"]:
    eigenvalues = np.linspace(5.0, 0.11, k)
    if sigma2 > eigenvalues[-1]:
        raise ArgumentError(f"sigma2: the 'flat' design needs sigma2 <= 0.11; got {sigma2}.")
    directions = rng.standard_normal((d, k))
    Q, _ = np.linalg.qr(directions - directions.mean(axis=0))
    return Q * np.sqrt(eigenvalues - sigma2)


def _lognormal_depth(
    reads: int | float,
    correlation: float,
    factor: Float[np.ndarray, " n"],
    rng: np.random.Generator,
) -> Integer[np.ndarray, " n"]:
    own = rng.standard_normal(len(factor))
    deviate = correlation * factor + np.sqrt(1.0 - correlation**2) * own
    lowest = min(LEAST_READS, reads)
    return np.maximum(np.exp(np.log(reads) + 0.7 * deviate), lowest).astype(np.int64)


def _unit_noise(
    noise: Noise, shape: tuple[int, ...], rng: np.random.Generator
) -> Float[np.ndarray, "b d"]:
    if noise == "heavy":
        return rng.standard_t(HEAVY_DF, shape) * np.sqrt((HEAVY_DF - 2) / HEAVY_DF)
    return rng.standard_normal(shape)


def _softmax(logits: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
