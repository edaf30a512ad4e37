r"""How many factors a table carries: held-out evidence a read, for several k and encoder depths.

The samples are cut into folds, and each is scored by models that were fitted to the others. With
B the evidence of a held-out sample, by importance sampling of the factors, and N its reads,

.. math::

    e_m = \frac{\sum_i B_{im}}{\sum_i N_i}, \qquad
    \operatorname{se}(e_m - e_l) =
        \frac{\operatorname{sd}_i(B_{im} - B_{il} - (e_m - e_l) N_i)}{\sqrt{n}\,\bar N}.

Samples of one group, such as those of a subject, are held out together, and i is then a group: two
samples of one subject are alike, and a model that has seen one knows the other.

Models see the same samples, so differences are far surer than the evidence itself. The model m
chosen is the one of fewest factors, and of these of the shallowest encoder, whose e_m is within one
standard error of the difference to the largest.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from countvae.decoder import SIGMA2_RANGE, Decoder
from countvae.errors import ArgumentError
from countvae.estimator import MultinomialVAE
from countvae.inference import Posterior, importance_evidence, posterior_at, refine
from countvae.metrics import trusted_below
from countvae.ppca import ppca_of_counts
from countvae.rows import Rows
from countvae.start import without_factors
from countvae.table import CountTable

__all__ = [
    "Selection",
    "answers_under",
    "evidence_under",
    "law_without_factors",
    "principal_law",
    "select",
]

MANY_UNTRUSTED = 0.1
"""Share of samples of uneven weights from which the verdict says so."""

ENTRIES = 1 << 20
"""Of a batch of samples that are asked about under a law."""

NEWTON = 20
"""Steps from the origin to the posterior of a sample under a law without an encoder."""


@dataclass(frozen=True)
class Selection:
    """What was found.

    Attributes
    ----------
    table : DataFrame
        A row a model, fewest factors first: `k`, `encoder_depth`, `evidence_a_read` (nats, held
        out), its standard error `se`, `difference` to the best and its standard error
        `difference_se`, `pareto_k` (the median over samples), `untrusted`, the share of samples
        whose weights are too uneven for their evidence to be trusted, and whether it is the one
        `chosen`.
    gains : DataFrame
        A row a baseline, by name: `gain`, the nats a read by which the model chosen explains
        held-out samples better, and its standard error `se`. Put in the place of the model are
        principal components of log(x + 1), as many, and the common proportions with noise. Empty
        with covariates, which these do not know.
    """

    table: pd.DataFrame
    gains: pd.DataFrame

    @property
    def k(self) -> int:
        """The number of factors chosen."""
        return int(self._chosen["k"])

    @property
    def encoder_depth(self) -> int:
        """The depth of the encoder chosen."""
        return int(self._chosen["encoder_depth"])

    @property
    def _chosen(self) -> pd.Series:
        return self.table[self.table["chosen"]].iloc[0]

    @property
    def verdict(self) -> str:
        """What was found, in a sentence."""
        chosen, best = self._chosen, self.table.loc[self.table["difference"].idxmax()]
        if len(self.table) == 1:
            why = "nothing else was tried"
        elif chosen.name == best.name:
            why = "no other explains held-out samples as well"
        else:
            why = (
                f"the smallest within one standard error of the best, {self._called(best)} "
                f"({-chosen['difference']:.2g} nats a read below it, "
                f"± {chosen['difference_se']:.2g})"
            )
        most = self.table["k"].min() < best["k"] == self.table["k"].max()
        edge = "; more factors than were tried may do better" if most else ""
        closest_first = self.gains.sort_values("gain").itertuples()
        than = " and ".join(_than(str(name), *gain) for name, *gain in closest_first)
        against = f" Held-out samples are explained {than}." if than else ""
        return f"{self._called(chosen)}: {why}{edge}.{against}{self._caution}"

    @property
    def _caution(self) -> str:
        """Say whether many samples had weights that are not to be trusted."""
        share = self._chosen["untrusted"]
        if share < MANY_UNTRUSTED:
            return ""
        return (
            f" Of {share:.0%} of the samples the evidence is not to be trusted, for their weights"
            " are too uneven (Pareto k): see whether more draws say the same."
        )

    def _called(self, row: pd.Series) -> str:
        depths = self.table["encoder_depth"].nunique()
        return f"k = {row['k']}" + (f", depth {row['encoder_depth']}" if depths > 1 else "")


def select(
    X: Any,
    k: Sequence[int],
    encoder_depth: Sequence[int] = (2,),
    *,
    kind: type[MultinomialVAE] = MultinomialVAE,
    folds: int = 3,
    groups: Sequence[Any] | np.ndarray | pd.Series | None = None,
    draws: int = 64,
    random_state: int = 0,
    told: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> Selection:
    """Compare numbers of factors, and depths of the encoder, by held-out evidence.

    Parameters
    ----------
    X : array, sparse matrix or array, or CountTable, (n, d)
        Counts.
    k : sequence of int
        Numbers of factors to compare.
    encoder_depth : sequence of int
        Depths of the encoder to compare, with each k.
    kind : type
        The estimator: `MultinomialVAE`, or `ConvMultinomialVAE`.
    folds : int
        Parts of the samples, each of which is held out once.
    groups : (n,), optional
        What samples have in common, such as their subject: those alike are held out together.
    draws : int
        Of the factors of each held-out sample.
    random_state : int
        Of folds, fits and draws.
    told : callable, optional
        Called after each fit with `k`, `encoder_depth`, `fold` and `evidence_a_read`.
    **settings
        Of that estimator.

    Returns
    -------
    Selection

    Raises
    ------
    InputError
        If k or `encoder_depth` is empty or has a number below 1, k one above what the table
        carries, or there are fewer than two folds or samples, or groups, of one; if `groups` is
        not one label a sample.
    """
    numbers, depths = _checked("k", k), _checked("encoder_depth", encoder_depth)
    table = X if isinstance(X, CountTable) else csr_array(X)
    counts = table.counts if isinstance(table, CountTable) else table
    depth = np.asarray(counts.sum(axis=1), dtype=float)
    group = _groups(groups, len(depth))
    apart = group.max() + 1
    if not 2 <= folds <= apart // 2:
        raise ArgumentError(f"folds: expected 2 to {apart // 2}; got {folds!r}.")
    of = (np.random.default_rng(random_state).permutation(apart) % folds)[group]
    n, d = counts.shape
    if numbers[-1] > (most := min(n - np.bincount(of).max(), d - 1) - 1):
        raise ArgumentError(
            f"k: {n} samples of {d} features, in {folds} folds, carry at most {most} factors; got"
            f" {numbers[-1]}."
        )
    tried = list(itertools.product(numbers, depths))
    evidence = np.empty((len(tried), len(depth)))
    pareto = np.empty_like(evidence)
    for fold in range(folds):
        held = np.flatnonzero(of == fold)
        for row, (number, layers) in enumerate(tried):
            model = kind(number, encoder_depth=layers, random_state=random_state, **settings)
            model.fit(_samples(table, np.flatnonzero(of != fold)))
            evidence[row, held], pareto[row, held] = model.evidence(
                _samples(table, held), draws, random_state
            )
            if told is not None:
                here = evidence[row, held].sum() / depth[held].sum()
                model_tried = {"k": number, "encoder_depth": layers, "fold": fold + 1}
                told(model_tried | {"evidence_a_read": here})
    table = pd.DataFrame(tried, columns=["k", "encoder_depth"]).join(
        _compared(evidence, depth, group)
    )
    table["pareto_k"] = np.median(pareto, axis=1)
    table["untrusted"] = (pareto >= trusted_below(draws)).mean(1)
    near = table["difference"] >= -table["difference_se"]
    chosen = int(np.flatnonzero(near)[0])
    table["chosen"] = np.arange(len(tried)) == chosen
    baselines = {} if settings.get("formula") is not None else BASELINES
    gains = pd.DataFrame(columns=["gain", "se"], index=list(baselines), dtype=float)
    for name, law in baselines.items():
        plain = np.empty(len(depth))
        for fold in range(folds):
            held, fitted = np.flatnonzero(of == fold), counts[np.flatnonzero(of != fold)]
            of_fold = law(fitted, tried[chosen][0], random_state)
            plain[held], _ = evidence_under(of_fold, counts[held], draws, random_state)
        both = _compared(np.stack([plain, evidence[chosen]]), depth, group)
        gain = both["evidence_a_read"][1] - both["evidence_a_read"][0]
        gains.loc[name] = gain, both["difference_se"].max()
    return Selection(table, gains)


def _than(name: str, gain: float, se: float) -> str:
    word = "no better or worse" if abs(gain) <= 2 * se else "better" if gain > 0 else "worse"
    return f"{word} than by {name} ({gain:+.2g} nats a read, ± {se:.2g})"


def law_without_factors(counts: np.ndarray | csr_array, k: int, random_state: int) -> Decoder:
    """Return the law of a centre and noise alone, in the place of a decoder of k factors."""
    del random_state
    mu, sigma2 = without_factors(_in_batches(counts), SIGMA2_RANGE[0])
    return Decoder(mu.new_zeros(len(mu), k), mu, sigma2)


def principal_law(counts: np.ndarray | csr_array, k: int, random_state: int) -> Decoder:
    """Return the law that probabilistic PCA of log(x + 1) finds, in the place of a decoder."""
    law = ppca_of_counts(counts, k, rng=np.random.default_rng(random_state))
    sigma2 = torch.tensor(max(law.noise_variance, SIGMA2_RANGE[0]), dtype=torch.float64)
    return Decoder(torch.from_numpy(law.loadings), torch.from_numpy(law.mean), sigma2)


def answers_under(law: Decoder, counts: csr_array) -> Iterator[tuple[Tensor, Posterior]]:
    """Yield counts of samples, and their posterior under a law that has no encoder."""
    for x in _in_batches(counts).in_order():
        z = x.new_zeros(len(x), law.V.shape[1])
        yield x, refine(law, x, posterior_at(law, x, z, torch.ones_like(z)), NEWTON)


BASELINES = {
    "principal components of log(x + 1)": principal_law,
    "common proportions": law_without_factors,
}
"""What a model is to be ahead of, put in its place under the same multinomial."""


def evidence_under(
    law: Decoder, counts: csr_array, draws: int, random_state: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Log p(x) of samples under a law, in nats, by importance sampling, and Pareto k."""
    rng = np.random.RandomState(random_state)
    of_batches = (
        importance_evidence(law, *answer, draws, rng) for answer in answers_under(law, counts)
    )
    found, shapes = zip(*of_batches, strict=True)
    return np.concatenate(found), np.concatenate(shapes)


def _in_batches(counts: np.ndarray | csr_array) -> Rows:
    return Rows(csr_array(counts), max(1, ENTRIES // counts.shape[1]), torch.float64)


def _samples(table: CountTable | csr_array, at: np.ndarray) -> CountTable | csr_array:
    return table.select_samples(at) if isinstance(table, CountTable) else table[at]


def _groups(groups: Any, n: int) -> np.ndarray:
    """Number the groups of the samples; by default each is one of its own."""
    if groups is None:
        return np.arange(n)
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ArgumentError(f"groups: expected one label for each of {n} samples.")
    group, _ = pd.factorize(labels)
    if (group < 0).any():
        at = int(np.flatnonzero(group < 0)[0])
        raise ArgumentError(f"groups: the sample at position {at} has none.")
    return group


def _checked(name: str, given: Sequence[int]) -> list[int]:
    tried = sorted(set(given))
    if not tried or any(
        isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1
        for number in tried
    ):
        raise ArgumentError(f"{name}: expected whole numbers >= 1; got {list(given)!r}.")
    return [int(number) for number in tried]


def _compared(
    evidence: Float[np.ndarray, "m n"], depth: Float[np.ndarray, " n"], group: np.ndarray
) -> pd.DataFrame:
    """Evidence a read of each model, and differences to the best, with standard errors."""
    groups = group.max() + 1
    a_read = evidence.sum(1) / depth.sum()
    best = int(a_read.argmax())

    def error(of_samples: np.ndarray, mean: np.ndarray) -> np.ndarray:
        left = of_samples - mean[:, None] * depth
        of_groups = np.array([np.bincount(group, row, groups) for row in left])
        return of_groups.std(1, ddof=1) * np.sqrt(groups) / depth.sum()

    difference = a_read - a_read[best]
    return pd.DataFrame(
        {
            "evidence_a_read": a_read,
            "se": error(evidence, a_read),
            "difference": difference,
            "difference_se": error(evidence - evidence[best], difference),
        }
    )
