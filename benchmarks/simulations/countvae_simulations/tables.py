"""Tables with a known truth: the designs of `countvae.simulate`, and ways to break them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from skbio import TreeNode

from countvae.basis import Balances, from_tree, sequential
from countvae.simulate import Simulation, simulate

HELD_OUT = 0.2
"""Samples drawn besides those of the fit, as a share of them."""


def draw(table: Mapping[str, Any], seed: int) -> tuple[Simulation, Simulation]:
    """Draw the samples to fit and some to hold out, from one truth.

    Parameters
    ----------
    table : mapping
        Arguments of `countvae.simulate.simulate`, and optionally

        - ``zero_inflation``: share of the counts that are lost, whatever their size;
        - ``outliers``: share of the fitted samples that come from elsewhere, with logits
          N(0, 3^2) and nothing else;
        - ``tree``: "caterpillar" or "phylogeny"; a factor then moves a few balances of that tree
          and nothing else, V = Psi W with W of few entries.
    seed : int
    """
    table = dict(table)
    if tree := table.pop("tree", None):
        table["V"] = clade_loadings(balances(tree, table["d"]), table["k"], seed)
    lost, strange = table.pop("zero_inflation", 0.0), table.pop("outliers", 0.0)
    n = table.pop("n")
    rng = np.random.default_rng(seed)
    drawn = simulate(n + round(HELD_OUT * n), keep_proportions=True, rng=rng, **table)
    fitted, held_out = rows(drawn, slice(None, n)), rows(drawn, slice(n, None))
    if strange:
        fitted = with_outliers(fitted, strange, rng)
    if lost:
        fitted, held_out = (
            with_lost_counts(fitted, lost, rng),
            with_lost_counts(held_out, lost, rng),
        )
    return fitted, held_out


def balances(tree: str, d: int) -> Balances:
    """Build the basis of a tree over d features: a caterpillar, or a random phylogeny (Yule)."""
    names = [f"f{j}" for j in range(d)]
    if tree == "caterpillar":
        return sequential(names)
    rng = np.random.default_rng(d)
    clades = [TreeNode(name) for name in names]
    while len(clades) > 1:
        pair = [clades.pop(rng.integers(len(clades))) for _ in range(2)]
        clades.append(TreeNode(children=pair))
    return from_tree(clades[0], names)


def clade_loadings(basis: Balances, k: int, seed: int, share: float = 0.1) -> np.ndarray:
    """Loadings of total variance 4 a feature that move a share of the balances each."""
    rng = np.random.default_rng([seed, 1])  # not the numbers that the samples are drawn from
    d = basis.d
    W = rng.standard_normal((d - 1, k)) * (rng.random((d - 1, k)) < share)
    W *= np.linspace(1.0, 0.3, k) * np.sqrt(4.0 / k / share)
    return basis.apply(W.T).T


def rows(drawn: Simulation, which: slice) -> Simulation:
    """Some of the samples, with their part of the truth."""
    assert drawn.proportions is not None
    return replace(
        drawn,
        counts=drawn.counts[which],
        sample_ids=drawn.sample_ids[which],
        z=drawn.z[which],
        depth=drawn.depth[which],
        proportions=drawn.proportions[which],
    )


def with_outliers(drawn: Simulation, share: float, rng: np.random.Generator) -> Simulation:
    """Replace a share of the samples by ones that have nothing to do with the others.

    Their proportions are those that they are drawn from; factors they have none.
    """
    assert drawn.proportions is not None
    counts, proportions, z = drawn.counts.toarray(), drawn.proportions.copy(), drawn.z.copy()
    for i in rng.choice(len(counts), round(share * len(counts)), replace=False):
        p = np.exp(3.0 * rng.standard_normal(counts.shape[1]))
        proportions[i], z[i] = p / p.sum(), np.nan
        counts[i] = rng.multinomial(drawn.depth[i], proportions[i])
    return replace(drawn, counts=csr_array(counts), proportions=proportions, z=z)


def with_lost_counts(drawn: Simulation, share: float, rng: np.random.Generator) -> Simulation:
    """Set a share of the entries to zero; a sample always keeps its largest count."""
    counts = drawn.counts.toarray()
    lost = rng.random(counts.shape) < share
    lost[np.arange(len(counts)), counts.argmax(axis=1)] = False
    counts[lost] = 0
    return replace(drawn, counts=csr_array(counts), depth=counts.sum(axis=1))
