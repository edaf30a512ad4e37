r"""Which samples a model does not explain, given how deep they are.

The evidence of a sample falls with its depth whatever the sample is, so it is compared with that
of samples that the model itself draws at that depth, and with the same covariates if it has any.
They are drawn at depths a factor of two apart; between two of them both the p-values and what is
expected are interpolated in the logarithm of the depth. With B the evidence of a sample, and m and
s the mean and spread of that of R samples drawn,

.. math::

    t = \frac{B - m}{s}, \qquad p = \frac{1 + \#\{r : t_r \le t\}}{1 + R}

Such a p-value is calibrated where the model is right. Where samples are at hand that are known to
be sound and were not fitted, t is ranked among theirs instead: that is calibrated whatever the
model, if they are exchangeable with the sound ones among those asked about (conformal p-values).
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.sparse import csr_array, issparse
from scipy.stats import false_discovery_control

from countvae.design import variables
from countvae.errors import ArgumentError
from countvae.estimator import MultinomialVAE
from countvae.stream import CountFile
from countvae.table import CountTable

__all__ = ["scores"]


def scores(
    model: MultinomialVAE,
    X: Any,
    *,
    clean: Any = None,
    reference: int = 1000,
    random_state: int = 0,
) -> pd.DataFrame:
    """Evidence of each sample, and how rarely the model's own samples have as little.

    Parameters
    ----------
    model : MultinomialVAE
        A fitted model.
    X : array, sparse matrix or array, DataFrame, CountTable, CountFile or path, (n, d)
        Counts, of whole numbers or not.
    clean : as X, optional
        Samples known to be sound, none of them fitted: p-values are then ranks of t among theirs,
        none below 1 / (1 + their number).
    reference : int
        R, the samples drawn from the model at each depth, and at each for samples that differ in
        their covariates; no p-value is below 1 / (1 + R).
    random_state : int
        Of these.

    Returns
    -------
    DataFrame
        A row a sample, in the order of X: `depth`; `evidence`, the bound on log p(x) in nats;
        `evidence_a_read`; `expected`, its mean at that depth under the model; `t`, how many
        standard deviations the evidence is above that; `p_value`, one-sided: near 1 where the
        evidence is too high; `q_value`, the share expected to be the model's own among samples
        at least as unusual (Benjamini and Hochberg).

    Raises
    ------
    InputError
        If `reference` is not a whole number of at least 100, the model is a plain autoencoder, or
        X is no table for it.

    Examples
    --------
    >>> import numpy as np
    >>> counts = np.random.default_rng(0).poisson(5.0, size=(60, 12))
    >>> model = MultinomialVAE(n_components=2, max_epochs=5).fit(counts)
    >>> scores(model, counts[:3], reference=200).columns[-3:].tolist()
    ['t', 'p_value', 'q_value']
    """
    if not isinstance(reference, int | np.integer) or reference < 100:
        raise ArgumentError(f"reference: expected a whole number >= 100; got {reference!r}.")
    if model.posterior_variance == "none":
        raise ArgumentError("score: a plain autoencoder has no evidence of a sample.")
    model, X = model.match(X)
    if clean is not None:
        model, clean = model.match(clean, argument="clean")
        model, X = model.match(X)  # both on the features that all have
    depth, evidence = _depth(X), model.score_samples(X)
    at_least_one = np.maximum(depth, 1)
    expected, t, p = np.empty((3, len(depth)))
    seeds = itertools.count(random_state)
    for at, known in _alike(model, X, len(depth)):
        drawn = _Drawn.at(model, known, at_least_one[at], int(reference), seeds)
        expected[at], t[at], p[at] = drawn.compare(evidence[at], np.log(at_least_one[at]))
    if clean is not None:
        of_clean = scores(model, clean, reference=reference, random_state=random_state)["t"]
        p = (1 + np.searchsorted(np.sort(of_clean), t, side="right")) / (1 + len(of_clean))
    return pd.DataFrame(
        {
            "depth": depth,
            "evidence": evidence,
            "evidence_a_read": evidence / at_least_one,
            "expected": expected,
            "t": t,
            "p_value": p,
            "q_value": false_discovery_control(p),
        }
    )


class _Drawn(NamedTuple):
    """Evidence of the model's own samples at some depths."""

    log_depth: Float[np.ndarray, " m"]
    evidence: Float[np.ndarray, "m R"]
    """Sorted."""

    @classmethod
    def at(
        cls,
        model: MultinomialVAE,
        known: pd.DataFrame | None,
        depth: np.ndarray,
        R: int,
        seeds: Iterator[int],
    ) -> "_Drawn":
        """Draw at depths a factor of two apart, or less, that enclose those given.

        With the covariates of a row of `known`, if the model has any.
        """
        low, high = np.floor(depth.min()), np.ceil(depth.max())
        depths = np.geomspace(low, high, 1 + int(np.ceil(np.log2(high / low))))
        depths = np.unique(np.rint(depths))
        known = None if known is None else known.iloc[[0] * R]
        evidence = []
        for N, seed in zip(depths, seeds, strict=False):
            if known is None:
                counts, _ = model.sample(R, int(N), random_state=seed)
            else:
                counts, _ = model.sample_design(known, int(N), random_state=seed)
            evidence.append(model.score_samples(_named(model, counts, known)))
        return cls(np.log(depths), np.sort(evidence, axis=1))

    def compare(self, evidence: np.ndarray, log_depth: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what is expected, t and p of samples, all interpolated in the depth."""
        m, R = self.evidence.shape
        above = np.clip(np.searchsorted(self.log_depth, log_depth), min(1, m - 1), m - 1)
        below = np.maximum(above - 1, 0)
        gap = np.where(above > below, self.log_depth[above] - self.log_depth[below], 1.0)
        share = np.clip((log_depth - self.log_depth[below]) / gap, 0, 1)

        def between(values: np.ndarray) -> np.ndarray:
            return (1 - share) * values[below] + share * values[above]

        mean, sd = self.evidence.mean(1), np.maximum(self.evidence.std(1), 1e-12)
        expected = between(mean)
        t = (evidence - expected) / np.exp(between(np.log(sd)))
        standard = (self.evidence - mean[:, None]) / sd[:, None]
        ranks = np.array([np.searchsorted(row, t, side="right") for row in standard])
        at = np.arange(len(t))
        # of equals exactly that: p is to be no more than 1
        rank = ranks[below, at] + share * (ranks[above, at] - ranks[below, at])
        return expected, t, (1 + rank) / (1 + R)


def _alike(
    model: MultinomialVAE, X: Any, n: int
) -> Iterator[tuple[np.ndarray, pd.DataFrame | None]]:
    """Yield the samples that the model expects the same of, and a row of what is known of them."""
    if model.formula is None:
        yield np.arange(n), None
        return
    known = X.sample_metadata[variables(model.formula)]
    group = known.groupby(list(known), sort=False, observed=True).ngroup().to_numpy()
    for of in range(group.max() + 1):
        at = np.flatnonzero(group == of)
        yield at, known.iloc[at[:1]]


def _named(
    model: MultinomialVAE, counts: csr_array, known: pd.DataFrame | None = None
) -> csr_array | CountTable:
    """Give drawn samples the features' names, if the model has any, and what is known of them."""
    if not hasattr(model, "feature_names_in_"):
        return counts
    ids = np.array([str(i) for i in range(counts.shape[0])], dtype=object)
    metadata = None if known is None else known.set_axis(ids)
    return CountTable(counts, ids, model.feature_names_in_, metadata)


def _depth(X: Any) -> Float[np.ndarray, " n"]:
    if isinstance(X, CountTable | CountFile):
        return X.depth
    sums = X.sum(axis=1) if issparse(X) else np.asarray(X).sum(axis=1)
    return np.asarray(sums, dtype=float).ravel()
