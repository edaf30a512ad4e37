r"""Co-occurrence: which features rise and fall together, read off the fitted log-ratio covariance.

With loadings V and noise variances s the centred log-ratios have the covariance

.. math:: C = V V^\top + H \operatorname{diag}(s) H, \qquad H = I - 11^\top/d,

of which only some rows are ever formed. The measures of a pair (i, j) are

=====================  =========================================================================
covariance             :math:`C_{ij}`
log_ratio_variance     :math:`\operatorname{var}\log(p_i/p_j) = C_{ii} + C_{jj} - 2 C_{ij}`
rho                    proportionality, :math:`2 C_{ij} / (C_{ii} + C_{jj})`
phi_s                  :math:`\operatorname{var}\log(p_i/p_j) / \operatorname{var}\log(p_i p_j)`
                       :math:`= (1 - \rho) / (1 + \rho)`
correlation            of the centred log-ratios, :math:`C_{ij} / \sqrt{C_{ii} C_{jj}}`
partial_correlation    :math:`-K_{ij} / \sqrt{K_{ii} K_{jj}}` with K the inverse of C among
                       centred vectors
=====================  =========================================================================

What is not known of them comes from two sides: the loadings, whose posterior variances the fit
leaves, and the factors, of which there were only n samples, taken to be independent. What else may
be wrong is in no interval: the noise variance, the number of factors, and that the prior of the
loadings pulls weights of features with few reads towards zero.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import networkx as nx
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer
from scipy.special import ndtr

from countvae.checks import check_ids, one_line
from countvae.errors import ArgumentError, MissingPackage
from countvae.estimator import MultinomialVAE
from countvae.shrinkage import told

__all__ = ["MEASURES", "edges", "graph", "modules"]

MEASURES = ("rho", "correlation", "partial_correlation")
"""By which edges can be chosen; the other columns are functions of these."""

BLOCK_ENTRIES = 1 << 22
"""Entries of the rows of C that are in memory at once."""

SCORE_BINS = np.concatenate([np.arange(0, 40, 0.001), [np.inf]])
"""Of |covariance| in standard errors, by which all pairs are counted."""

INTERVAL = (0.05, 0.95)
CONCENTRATION_STEPS = 100


class _Law(NamedTuple):
    """The covariance of the centred log-ratios: C = VV' + H diag(noise) H."""

    V: Float[np.ndarray, "d k"]
    noise: Float[np.ndarray, " d"]

    @property
    def diagonal(self) -> Float[np.ndarray, " d"]:
        s, d = self.noise, len(self.noise)
        return (self.V**2).sum(1) + s - 2 * s / d + s.mean() / d

    def rows(self, at: slice) -> Float[np.ndarray, "b d"]:
        """Rows of C, but for what the noise adds to the diagonal."""
        s, d = self.noise, len(self.noise)
        return self.V[at] @ self.V.T - (s[at, None] + s) / d + s.mean() / d

    def pairs(self, i: np.ndarray, j: np.ndarray) -> Float[np.ndarray, " pairs"]:
        """Entries of C off the diagonal."""
        s, d = self.noise, len(self.noise)
        return np.einsum("ec,ec->e", self.V[i], self.V[j]) - (s[i] + s[j]) / d + s.mean() / d

    def precision(self) -> "_Precision":
        """Invert among centred vectors: (HAH)^+ = A^-1 - A^-1 11' A^-1 / 1'A^-1 1."""
        U = self.V / self.noise[:, None]
        B = np.linalg.inv(np.eye(self.V.shape[1]) + self.V.T @ U)
        ones = 1 / self.noise - U @ (B @ U.sum(0))
        return _Precision(U, B, ones / np.sqrt(ones.sum()), 1 / self.noise)


class _Precision(NamedTuple):
    """K = diag(own) - U B U' - border border'."""

    U: Float[np.ndarray, "d k"]
    B: Float[np.ndarray, "k k"]
    border: Float[np.ndarray, " d"]
    own: Float[np.ndarray, " d"]

    @property
    def diagonal(self) -> Float[np.ndarray, " d"]:
        return self.own - np.einsum("dc,dc->d", self.U @ self.B, self.U) - self.border**2

    def rows(self, at: slice) -> Float[np.ndarray, "b d"]:
        return -(self.U[at] @ self.B) @ self.U.T - self.border[at, None] * self.border

    def pairs(self, i: np.ndarray, j: np.ndarray) -> Float[np.ndarray, " pairs"]:
        product = np.einsum("ec,ec->e", self.U[i] @ self.B, self.U[j])
        return -product - self.border[i] * self.border[j]


def _rho(entry: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    return 2 * entry / (own + other)


def _correlation(entry: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    return entry / np.sqrt(own * other)


def _partial(entry: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    return -_correlation(entry, own, other)


class _Measure(NamedTuple):
    """A function of an entry and two diagonal entries of a matrix that follows from the law."""

    matrix: Callable[[_Law], _Law | _Precision]
    of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

    def pairs(self, law: _Law, i: np.ndarray, j: np.ndarray) -> Float[np.ndarray, " pairs"]:
        """Measure some pairs."""
        matrix = self.matrix(law)
        diagonal = matrix.diagonal
        return self.of(matrix.pairs(i, j), diagonal[i], diagonal[j])

    def rows(self, law: _Law, at: list[slice]) -> Iterator[Float[np.ndarray, "b d"]]:
        """Measure some features with all others, some at a time."""
        matrix = self.matrix(law)
        diagonal = matrix.diagonal
        for some in at:
            yield self.of(matrix.rows(some), diagonal[some, None], diagonal)


_MEASURE = {
    "rho": _Measure(lambda law: law, _rho),
    "correlation": _Measure(lambda law: law, _correlation),
    "partial_correlation": _Measure(_Law.precision, _partial),
}


def edges(
    model: MultinomialVAE,
    *,
    by: str = "rho",
    partners: int = 10,
    min_weight: float = 0.0,
    fdr: float | None = None,
    draws: int = 200,
    random_state: int = 0,
) -> pd.DataFrame:
    r"""Pairs of features that are strongest tied, with how sure each tie is.

    Parameters
    ----------
    model : MultinomialVAE
        A fitted model.
    by : {"rho", "correlation", "partial_correlation"}
        The measure by which partners are chosen, which is the weight of an edge.
    partners : int
        Of each feature the partners of the largest absolute weight; a pair is kept if either of
        the two chose the other.
    min_weight : float
        Least absolute weight of an edge.
    fdr : float, optional
        Keep edges whose `q_value` is at most this.
    draws : int
        Draws of the covariance by which the spread of a weight is found.
    random_state : int
        Of the draws.

    Returns
    -------
    DataFrame
        A row a pair, largest absolute weight first: `feature_1`, `feature_2`, `weight`, its
        standard deviation `sd` and the interval `low` to `high`, of 90 %, which lies as far beyond
        the weight as draws fall short of it; the measures of the module's table; `p_value`,
        two-sided, of no covariance by the factors, by :math:`v_i^\top v_j` over its standard error,
        v less the mean of the half of the loadings that lies closest together, each counting by the
        share of its prior variance that the samples took away: log-ratios not to the mean of all
        features, as those of the measures, but to what most features do, which is to stay where
        they are if factors leave more than half of what is known alone, and else is arbitrary;
        `q_value`, the share of false edges expected among all pairs with a p-value as small
        (Benjamini and Hochberg), if there are factors enough and samples are independent.
        Intervals of pairs that share a factor are too narrow where reads are few.

    Raises
    ------
    InputError
        If an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> counts = np.random.default_rng(0).poisson([[40, 5, 9], [4, 50, 9]], (30, 2, 3))
    >>> model = MultinomialVAE(1, max_epochs=5).fit(counts.reshape(60, 3))
    >>> found = edges(model, partners=1)
    >>> found.columns[:5].tolist()
    ['feature_1', 'feature_2', 'weight', 'sd', 'low']
    """
    _check(by, partners, min_weight, fdr, draws)
    law, sd = _law(model), model.clr_loadings_sd_
    n, d = len(model.depth_), len(law.noise)
    blocks = _blocks(d)
    i, j = _partners(_MEASURE[by].rows(law, blocks), blocks, min(partners, d - 1))
    weight = _MEASURE[by].pairs(law, i, j)
    keep = np.abs(weight) >= min_weight
    i, j, weight = i[keep], j[keep], weight[keep]
    of_pairs = _Score(law.V - _reference(model), sd**2, n)
    score = of_pairs.pairs(i, j)
    q = _q_values(score, of_pairs.counted(blocks), d)
    if fdr is not None:
        keep = q <= fdr
        i, j, weight, score, q = i[keep], j[keep], weight[keep], score[keep], q[keep]
    rng = np.random.default_rng(random_state)
    drawn = np.array([_MEASURE[by].pairs(_drawn(law, sd, n, rng), i, j) for _ in range(draws)])
    drawn = drawn.reshape(draws, len(i))
    # draws lie nearer to zero than the fit that they are of, as that does than the truth
    high, low = (2 * weight - np.quantile(drawn, INTERVAL, axis=0)).clip(-1, 1)
    rho = _MEASURE["rho"].pairs(law, i, j)
    diagonal, covariance = law.diagonal, law.pairs(i, j)
    names = np.array(model.feature_ids_, dtype=object)
    frame = pd.DataFrame(
        {
            "feature_1": names[i],
            "feature_2": names[j],
            "weight": weight,
            "sd": drawn.std(axis=0),
            "low": low,
            "high": high,
            "covariance": covariance,
            "log_ratio_variance": diagonal[i] + diagonal[j] - 2 * covariance,
            "rho": rho,
            "phi_s": np.divide(1 - rho, 1 + rho, out=np.full_like(rho, np.inf), where=rho > -1),
            "correlation": _MEASURE["correlation"].pairs(law, i, j),
            "partial_correlation": _MEASURE["partial_correlation"].pairs(law, i, j),
            "p_value": 2 * ndtr(-score),
            "q_value": q,
        }
    )
    order = np.argsort(-np.abs(weight), kind="stable")
    return frame.iloc[order].reset_index(drop=True)


def graph(edges: pd.DataFrame, nodes: pd.DataFrame | None = None) -> nx.Graph:
    """Return the edges as a graph whose nodes are the features' names.

    Parameters
    ----------
    edges : DataFrame
        From `edges`.
    nodes : DataFrame, optional
        What is known of the features, by id: attributes of the nodes, missing values left out.
        All its features are nodes, with or without an edge.

    Returns
    -------
    networkx.Graph
        Every column of `edges` is an attribute of an edge.

    Raises
    ------
    UnsafeIds
        If GraphML could not hold a name; in attributes control characters become blanks.
    """
    G = nx.Graph()
    if nodes is not None:
        for name, row in nodes.astype(object).iterrows():
            known = {one_line(str(key)): _plain(v) for key, v in row.dropna().items()}
            G.add_node(str(name), **known)
    for row in edges.to_dict("records"):
        a, b = row.pop("feature_1"), row.pop("feature_2")
        G.add_edge(a, b, **{str(key): _plain(value) for key, value in row.items()})
    check_ids(map(str, G), "feature ids")
    return G


def modules(edges: pd.DataFrame, random_state: int = 0) -> pd.Series:
    """Find modules among edges of positive weight by Leiden's algorithm.

    Parameters
    ----------
    edges : DataFrame
        From `edges`.
    random_state : int
        Of the algorithm.

    Returns
    -------
    Series
        The module of each feature that has an edge, 1 the largest, by feature; missing for one
        that is in no module with another.

    Raises
    ------
    InputError
        If igraph is not installed.
    """
    try:
        import igraph
    except ImportError as error:
        raise MissingPackage("modules: need igraph; pip install 'countvae[network]'.") from error
    positive = edges[edges["weight"] > 0]
    names = pd.unique(edges[["feature_1", "feature_2"]].to_numpy().ravel())
    if positive.empty:
        return pd.Series(pd.NA, pd.Index(names, dtype=object), "Int64", "module")
    at = {name: i for i, name in enumerate(names)}
    G = igraph.Graph(
        len(names),
        [(at[a], at[b]) for a, b in zip(positive["feature_1"], positive["feature_2"], strict=True)],
    )
    igraph.set_random_number_generator(random.Random(random_state))
    found = G.community_leiden("modularity", weights=positive["weight"].tolist(), n_iterations=-1)
    sizes = pd.Series(found.membership).value_counts(sort=True)
    rank = {module: i + 1 for i, module in enumerate(sizes.index[sizes > 1])}
    of_each = [rank.get(module) for module in found.membership]
    return pd.Series(of_each, pd.Index(names, dtype=object), "Int64", "module")


def _check(by: str, partners: int, min_weight: float, fdr: float | None, draws: int) -> None:
    if by not in MEASURES:
        raise ArgumentError(f"by: expected one of {MEASURES}; got {by!r}.")
    for name, value, low in (("partners", partners, 1), ("draws", draws, 2)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ArgumentError(f"{name}: expected a whole number >= {low}; got {value!r}.")
    if not 0 <= min_weight <= 1:
        raise ArgumentError(f"min_weight: expected 0 to 1; got {min_weight!r}.")
    if fdr is not None and not 0 < fdr <= 1:
        raise ArgumentError(f"fdr: expected a share above 0, at most 1; got {fdr!r}.")
    if fdr is not None and by == "partial_correlation":
        raise ArgumentError(
            "fdr: tests whether two features share a factor, which says nothing of their partial"
            " correlation."
        )


def _law(model: MultinomialVAE) -> _Law:
    model.check_linear("network")
    return _Law(model.clr_loadings_, model.feature_noise_variance_)


def _drawn(law: _Law, sd: np.ndarray, n: int, rng: np.random.Generator) -> _Law:
    """Draw the law: loadings by their posterior, and the covariance of n samples' factors."""
    V = law.V + sd * rng.standard_normal(law.V.shape)
    k = V.shape[1]
    # Bartlett: this triangle times its transpose is Wishart with n degrees of freedom
    T = np.tril(rng.standard_normal((k, k)), -1)
    T[np.diag_indices(k)] = np.sqrt(rng.chisquare(np.maximum(n - np.arange(k), 1)))
    V = V @ (T / np.sqrt(n))
    return _Law(V - V.mean(0), law.noise)


def _most(V: Float[np.ndarray, "d k"], weight: Float[np.ndarray, " d"]) -> Float[np.ndarray, " k"]:
    """Mean of the loadings that lie closest together and have half of the weight.

    Weighted least trimmed squares, by concentration steps (Rousseeuw and Van Driessen, 1999) from
    the medians of the axes; what these find may be a local optimum, another with other axes.
    """
    middle = np.median(V, axis=0)
    for _ in range(CONCENTRATION_STEPS):
        order = np.argsort(((V - middle) ** 2).sum(1), kind="stable")
        reached = np.cumsum(weight[order])
        nearest = np.sort(order[: np.searchsorted(reached, reached[-1] / 2, side="right") + 1])
        before, middle = middle, np.average(V[nearest], axis=0, weights=weight[nearest])
        if np.array_equal(middle, before):
            break
    return middle


def _reference(model: MultinomialVAE) -> Float[np.ndarray, " k"]:
    """Loadings of what most features do, each counting by the share of its own that is known.

    Loadings of features with few reads are pulled towards the mean of all: counted alike they could
    be the half that lies closest together. By their precision a few of many reads would be.
    """
    V, U = (torch.from_numpy(a) for a in (model.clr_loadings_, model.clr_loadings_sd_**2))
    return _most(model.clr_loadings_, told(V, U).mean(1).numpy())


class _Score:
    """|G_ij| over its standard error, G = VV': of n samples of the factors, and of the loadings.

    The square of the error is (G_ij^2 + G_ii G_jj) / n + v_i' U_j v_i + v_j' U_i v_j + tr(U_i U_j).
    """

    def __init__(self, V: np.ndarray, U: np.ndarray, n: int) -> None:
        self.V, self.U, self.squares, self.n = V, U, V**2, n
        self.own = self.squares.sum(1)

    def rows(self, at: slice) -> Float[np.ndarray, "b d"]:
        V, U, squares = self.V, self.U, self.squares
        G = V[at] @ V.T
        of_loadings = squares[at] @ U.T + U[at] @ (squares + U).T
        return self._of(G, self.own[at, None] * self.own, of_loadings)

    def pairs(self, i: np.ndarray, j: np.ndarray) -> Float[np.ndarray, " pairs"]:
        V, U, squares = self.V, self.U, self.squares
        G = np.einsum("ec,ec->e", V[i], V[j])
        of_loadings = (squares[i] * U[j] + U[i] * (squares[j] + U[j])).sum(1)
        return self._of(G, self.own[i] * self.own[j], of_loadings)

    def _of(self, G: np.ndarray, own: np.ndarray, of_loadings: np.ndarray) -> np.ndarray:
        return np.abs(G) / np.sqrt((G**2 + own) / self.n + of_loadings)

    def counted(self, blocks: list[slice]) -> Integer[np.ndarray, " bins"]:
        """Count all pairs by their score."""
        counted = np.zeros(len(SCORE_BINS) - 1, dtype=np.int64)
        for at in blocks:
            later = np.arange(len(self.V)) > np.arange(at.start, at.stop)[:, None]
            counted += np.histogram(self.rows(at)[later], SCORE_BINS)[0]
        return counted


def _blocks(d: int) -> list[slice]:
    rows = max(1, BLOCK_ENTRIES // d)
    return [slice(i, min(d, i + rows)) for i in range(0, d, rows)]


def _partners(
    measured: Iterator[np.ndarray], blocks: list[slice], partners: int
) -> tuple[Integer[np.ndarray, " pairs"], Integer[np.ndarray, " pairs"]]:
    """Pairs i < j of which either is among the other's strongest partners."""
    found = []
    for at, weights in zip(blocks, measured, strict=True):
        strength = np.abs(weights)
        rows = np.arange(at.start, at.stop)
        strength[rows - at.start, rows] = -1
        chosen = np.argpartition(-strength, partners - 1, axis=1)[:, :partners]
        found.append(np.stack([np.repeat(rows, partners), chosen.ravel()], 1))
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _q_values(score: np.ndarray, counted: np.ndarray, d: int) -> Float[np.ndarray, " pairs"]:
    """Benjamini and Hochberg over all pairs; within a bin as at its lower end."""
    at_least = counted[::-1].cumsum()[::-1]
    p = 2 * ndtr(-SCORE_BINS[:-1])
    q = p * (d * (d - 1) / 2) / np.maximum(at_least, 1)
    q = np.minimum(np.minimum.accumulate(q), 1)
    return q[np.searchsorted(SCORE_BINS, score, side="right") - 1]


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else one_line(value)
