"""MultinomialVAE: the only translator between the mathematics and scikit-learn."""

import copy
import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from countvae import store
from countvae.basis import make_basis, restore
from countvae.budget import Needs, fit_needs
from countvae.checkpoint import Checkpoint
from countvae.checks import MAX_COUNT, check_counts, check_unique, examples
from countvae.decoder import Decoder
from countvae.design import Design, variables
from countvae.devices import DEVICES, chosen, free_bytes
from countvae.encoder import DenseEncoder, Encoder
from countvae.errors import (
    ArgumentError,
    CheckpointOfAnother,
    CountvaeWarning,
    Diverged,
    EmptySamples,
    FeaturesDiffer,
    MetadataError,
    NotAModel,
    OlderModel,
    ProcessLost,
    TooLarge,
    TooSmall,
    out_of_memory,
)
from countvae.evidence import log_coefficient
from countvae.files import claimed
from countvae.inference import (
    WEIGHED,
    Law,
    Posterior,
    drawn_factors,
    drawn_logits,
    factor_covariance,
    factors_by_weight,
    importance_evidence,
    in_expectation,
    log_ratios,
    log_ratios_by_weight,
    logits_given,
    posterior_at,
    proportion_interval,
    refine,
)
from countvae.layers import ACTIVATIONS
from countvae.memory import Room
from countvae.processes import joined
from countvae.rows import Rows, bytes_on_device
from countvae.signals import noted
from countvae.start import Start, residual_start
from countvae.state import Kept, watched
from countvae.steps import Schedule
from countvae.stream import CountFile, open_counts
from countvae.table import ENTRY_BYTES, CountTable, check_overlap, place_features
from countvae.threads import one_thread_an_operation
from countvae.training import COLUMNS, train

MAX_COVARIANCE_BYTES = 2**31
EXACT = 1e-8
"""Tolerance of the solver in nats where an answer is reported, not trained on."""

JACOBIAN_ENTRIES = 2**24
"""Numbers that the slopes of a network's layers may take for the samples answered at once."""

INTERVAL_ENTRIES = 2**22
"""Drawn proportions that are in memory at once."""

SAMPLED_ENTRIES = 2**20
"""Logits of new samples that are in memory at once."""

OPTIMAL_STEPS = 30
"""Newton steps that stand for the optimum of a sample's posterior."""

RETRIES = 1
SMALLER = 10
"""A fit that diverged is tried again with a learning rate so many times smaller."""

DEPTH = "depth"
"""Column of a design that has the reads of each sample."""

PSEUDOCOUNTS = (1e-9, 1e9)

WITHOUT_ENCODER = 20
"""Newton steps at least where an answer begins at the prior."""

OF_ANSWERS = ("refinement_steps", "whiten", "min_overlap")
"""Settings that may change after a fit."""

OF_THIS_RUN = ("basis", "progress", "checkpoint", "device", "init", "freeze")
"""Arguments that are no settings of a model; the basis is kept by itself."""

WIDEST_BATCH = 2**23
"""Entries of a batch by default, at most."""


class Samples(NamedTuple):
    """Samples with what is known of them."""

    counts: Any
    covariates: np.ndarray
    names: np.ndarray


class MultinomialVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Multinomial variational autoencoder with a linear-Gaussian decoder.

    .. math::

        z \sim N(0, I), \quad \eta \mid z \sim N(W z + \mu, \sigma^2 I), \quad
        x \mid \eta \sim \mathrm{Mult}(\mathrm{softmax}(\Psi \eta)), \quad
        q(z \mid x) = N(F_L(\Psi^\top \log(x + c) - \mu), D)

    Parameters
    ----------
    n_components : int
        k, the number of factors; lowered with a warning where the table cannot carry it.
    encoder_depth : int
        L, the dense layers of the encoder; 1 is linear.
    encoder_width : int
        Units of a hidden layer.
    activation : {"silu", "gelu", "softplus", "relu", "tanh"}
        Of the hidden layers.
    pseudocount : float
        c > 0. It enters the encoder only, never the likelihood.
    basis : {"balanced", "sequential"}, tree, path or matrix
        The ILR basis in which `loadings_` are given: a scikit-bio ``TreeNode``, a Newick file, a
        (d, d-1) orthonormal matrix, or a name.
    formula : str, optional
        Covariates, such as ``"~ age + delivery"``: columns of the metadata of a `CountTable` or
        `CountFile`, which every table given to the model then needs. The centre becomes a
        regression on them, and factors are what they leave.
    noise : {"isotropic", "by_feature"}
        One noise variance, as in the paper, or one a feature, shrunk to the common one.
    posterior_variance : {"per_sample", "shared", "none"}
        Whether the encoder's D depends on the sample; "shared" is the paper's. "none" fits a
        plain autoencoder: factors are points, nothing draws them to their prior, and loadings are
        not shrunk. It answers with its encoder's codes, without Newton steps and variance.
    shrink_loadings : bool
        Put an empirical-Bayes t prior on the loadings after a sixth of the epochs.
    refinement_steps : int
        Newton steps after the encoder in every answer; 0 is the purely amortised answer.
    whiten : bool
        Return factors z of unit prior variance instead of coordinates y.
    min_overlap : float
        Share of the model's features that a new table must have, and of the table's reads that
        must be in them, for it to be answered.
    optimizer : {"adam", "sgd"}
        Of the parameters that have no equation of their own.
    learning_rate : float
        Of the loadings; the encoder's follow from it.
    max_epochs : int, optional
        By default about 700 steps in all, at least 9 and at most 70 epochs.
    batch_size : int, optional
        By default an eighth of the samples, at least 16 and at most 128; fewer of a table so
        wide that they would be more than 2^23 entries.
    validation_fraction : float
        Share of the samples held out of the fit to watch it; the best epoch is then kept.
    patience : int, optional
        Stop after so many epochs without a better (validation) bound. An early stop leaves out
        the last part of the schedule, in which rates fall and the encoder goes on alone.
    random_state : int, RandomState or None
        The same integer gives the same bits on one machine.
    progress : callable, optional
        Called after each epoch with that row of `history_`, `max_epochs` and `waited`, the seconds
        until then in which a table on disk had yet to be read.
    device : {"auto", "cpu", "cuda", "mps"}
        Where fits and answers are computed; "auto" is a CUDA device where there is one. Answers
        are in double precision, which Apple's devices ("mps") leave to the processor.
    dtype : {"float32", "float64"}
        Precision of a fit.
    init : MultinomialVAE or path, optional
        A fitted model, or its folder, to go on from: of the same features, factors and settings of
        model and encoder. The prior of the loadings is then centred at those of that model.
    freeze : {"decoder", "encoder"}, optional
        Which half of `init` stays as it is.
    checkpoint : path, optional
        Folder in which a fit leaves its state, at most twice a minute and when it is interrupted,
        and from which the same fit of the same table goes on if it is there. It is removed when
        the model is saved, or by `forget`.

    Attributes
    ----------
    components_ : (k, d)
        Orthonormal axes in CLR space, by falling variance; the largest entry of each is positive.
    explained_variance_ : (k,)
        Variance along each axis: ``components_.T * sqrt(explained_variance_)`` is V = Psi W.
    explained_variance_ratio_ : (k,)
        Its share in the total CLR variance of the model, noise included.
    mean_ : (d,)
        Centre in CLR space, Psi mu; with covariates, at their means.
    coefficients_, coefficients_sd_ : (p, d)
        What one unit of each covariate adds to the centred log-ratios, and its posterior standard
        deviation.
    coefficients_chance_ : (p,)
        Variance with which a factor leans on each covariate by chance. The effects on features i
        and j have it times v_i'v_j in common, so that those on all features err together.
    coefficient_names_ : (p,)
        Columns that the formula made.
    noise_variance_ : float
        sigma^2; the mean over features where ``noise="by_feature"``.
    feature_noise_variance_ : (d,)
        The noise variance of each feature.
    loadings_ : (d-1, k)
        W in the basis.
    clr_loadings_, clr_loadings_sd_ : (d, k)
        V = Psi W, ``components_.T * sqrt(explained_variance_)``, and the posterior standard
        deviations of its entries, NaN where the decoder is a network.
    basis_operator_ : Balances or MatrixBasis
        Psi as an operator, with the names of the balances.
    history_ : DataFrame
        One row an epoch: bound in nats a sample (coefficient left out), sigma2, learning rate.
    n_components_, n_iter_, n_features_in_ : int
        Factors and epochs used, features seen.
    feature_names_in_ : (d,)
        Feature ids, where the table had any.
    depth_ : (n,)
        Reads of each sample fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from countvae import MultinomialVAE
    >>> counts = np.random.default_rng(0).poisson(5.0, size=(60, 12))
    >>> model = MultinomialVAE(n_components=2, max_epochs=5).fit(counts)
    >>> model.transform(counts).shape
    (60, 2)
    """

    of_model = (
        *("n_components", "encoder_depth", "encoder_width", "activation", "pseudocount"),
        *("formula", "noise", "posterior_variance"),
    )
    """Settings that a fit shares with the one it goes on from."""

    kinds: ClassVar[dict[str, type["MultinomialVAE"]]] = {}
    """Estimators by the name under which their models are kept."""

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: D105
        super().__init_subclass__(**options)
        cls.kinds[cls.__name__] = cls

    def __init__(
        self,
        n_components=10,
        *,
        encoder_depth=2,
        encoder_width=128,
        activation="silu",
        pseudocount=1.0,
        basis: Any = "balanced",
        formula=None,
        noise="isotropic",
        posterior_variance="per_sample",
        shrink_loadings=True,
        refinement_steps=2,
        whiten=False,
        min_overlap=0.5,
        optimizer="adam",
        learning_rate=0.02,
        max_epochs=None,
        batch_size=None,
        validation_fraction=0.0,
        patience=None,
        random_state=0,
        progress=None,
        device="auto",
        dtype="float32",
        init=None,
        freeze=None,
        checkpoint=None,
    ) -> None:
        self.n_components = n_components
        self.encoder_depth = encoder_depth
        self.encoder_width = encoder_width
        self.activation = activation
        self.pseudocount = pseudocount
        self.basis = basis
        self.formula = formula
        self.noise = noise
        self.posterior_variance = posterior_variance
        self.shrink_loadings = shrink_loadings
        self.refinement_steps = refinement_steps
        self.whiten = whiten
        self.min_overlap = min_overlap
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state
        self.progress = progress
        self.device = device
        self.dtype = dtype
        self.init = init
        self.freeze = freeze
        self.checkpoint = checkpoint

    def __sklearn_tags__(self):  # noqa: D105
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        return tags

    def fit(self, X: Any, y: Any = None) -> "MultinomialVAE":
        """Fit the model to a table of counts, samples by features.

        Parameters
        ----------
        X : array, sparse matrix or array, DataFrame, CountTable, CountFile or path, (n, d)
            Counts. Fractional ones and samples without reads are taken with a warning. A path, or
            a list of paths, is opened as a `CountFile`, which stays on disk.
        y
            Ignored.

        Returns
        -------
        MultinomialVAE
            The estimator itself.

        Raises
        ------
        InputError
            For anything that is not a table of counts, and for settings out of range.
        Diverged
            If the bound stopped being finite, and again at a smaller learning rate. The estimator
            is then that of the best epoch before, if there was one; else, and after any other
            error, it is what it was.
        """
        with self._all_or_nothing():
            self._check_settings()
            table = open_counts(X, joined()) or X
            counts = self._counts(table, reset=True)
            self.basis_operator_ = make_basis(self.basis, self.feature_ids_)
            begun = self._begun()
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            self._design = self._design_for(table, begun)
            fitted, held_out = self._split(
                counts, self._covariates(table), _names(table, counts), seed
            )
            self.depth_ = _depth(fitted.counts)
            n, d = fitted.counts.shape
            k = self._feasible_components(n, d) if begun is None else begun.n_components_
            with torch.inference_mode(False), torch.enable_grad(), one_thread_an_operation():
                encoder, decoder, history, diverged = self._fit_from_start(
                    fitted, held_out, k, seed, begun
                )
            self.history_ = pd.DataFrame(history)
            self.n_iter_ = len(history)
            self._fitted_settings = self._settings()
            encoder, decoder = encoder.double(), decoder.double()
            decoder.centre()
            if self._design is not None and self.freeze != "decoder":
                self._design = self._design.seen(fitted.covariates)
            self._identify(encoder, decoder)
        if diverged is not None:
            raise diverged
        return self

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Stay what it was before this block if that does not get to its end."""
        before = dict(vars(self))
        try:
            yield
        except BaseException as error:
            self.__dict__.clear()
            self.__dict__.update(before)
            if isinstance(error, np.linalg.LinAlgError | torch.linalg.LinAlgError):  # pyright: ignore
                reason = " ".join(str(error).split()).rstrip(".")
                raise Diverged(f"a matrix cannot be factored: {reason}.") from error
            raise

    def transform(self, X: Any) -> np.ndarray:
        """Posterior mean coordinates y of each sample, (n, k).

        Distances between rows are Aitchison distances between the fitted compositions. Samples
        do not influence each other. With `whiten`, factors z of unit prior variance instead. A
        `CountTable` or `CountFile` may lack features: see `match`.
        """
        posteriors = self._posteriors(X, self._steps)
        means = [posterior.z.cpu().numpy() @ self._rotation for _, _, posterior in posteriors]
        return np.concatenate(means) * self._scale

    def posterior(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and standard deviation of the coordinates, (n, k) each.

        After Newton steps the deviations are those of the whole covariance of the factors at the
        answer; with ``refinement_steps=0`` those of the encoder's diagonal D; of a plain
        autoencoder zero. Behind a network they are those of the normal law at the maximum, which is
        too narrow where counts are few.
        """
        means, sds = [], []
        for decoder, _, posterior in self._posteriors(X, self._steps):
            means.append(posterior.z.cpu().numpy() @ self._rotation)
            S = self._covariance(decoder, posterior).cpu().numpy()
            sds.append(np.sqrt(np.einsum("ac,bae,ec->bc", self._rotation, S, self._rotation)))
        return np.concatenate(means) * self._scale, np.concatenate(sds) * self._scale

    @property
    def _steps(self) -> int:
        """Newton steps of an answer; none of a plain autoencoder, whose codes have no prior."""
        return 0 if self.posterior_variance == "none" else int(self.refinement_steps)

    def _covariance(self, decoder: Law, posterior: Posterior) -> torch.Tensor:
        """Of the factors, (b, k, k): the whole one at an answer of Newton's, or the encoder's D."""
        if self._steps:
            return factor_covariance(decoder.jacobian(posterior.z), posterior.noise.w)
        return torch.diag_embed(posterior.D)

    @property
    def _by_weight(self) -> bool:
        """Whether the factors of an answer are not normal: those of Newton's behind a network."""
        return self._steps > 0 and not self._decoder.linear

    def _drawn_factors(
        self,
        decoder: Law,
        x: torch.Tensor,
        posterior: Posterior,
        draws: int,
        rng: np.random.RandomState,
    ) -> torch.Tensor:
        """Draw the factors of each sample, (draws, b, k)."""
        if self._by_weight:
            return factors_by_weight(decoder, x, posterior, draws, rng)
        return drawn_factors(posterior, self._covariance(decoder, posterior), draws, rng)

    @property
    def _scale(self) -> np.ndarray:
        """What turns whitened factors into what is returned, (k,)."""
        return np.ones(self.n_components_) if self.whiten else np.sqrt(self.explained_variance_)

    def score_samples(self, X: Any) -> np.ndarray:
        """Bound on log p(x) of each sample in nats, multinomial coefficient included, (n,).

        Behind a network an average over 64 draws of the factors. Of a plain autoencoder it is a
        bound on log p(x | z) at its code, which may lie above log p(x) or below.
        """
        bounds = []
        for decoder, x, posterior in self._posteriors(X, self._steps):
            answer = in_expectation(decoder, x, posterior)
            bound = answer.bound + answer.noise.overcount + log_coefficient(x)
            bounds.append(bound.cpu().numpy())
        return np.concatenate(bounds)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`, in nats a sample."""
        return float(self.score_samples(X).mean())

    def evidence(
        self, X: Any, draws: int = 64, random_state: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Log p(x) of each sample in nats, by importance sampling of the factors.

        .. math:: \log \frac1S \sum_s \frac{B(x \mid z_s) N(z_s; 0, I)}{q(z_s \mid x)}

        with the noise at its fixed point for each draw, so that this still is a bound, between
        that of `score_samples` and log p(x).

        Parameters
        ----------
        X : as in `fit`, (n, d)
            Counts.
        draws : int
            S, at least 16.
        random_state : int, RandomState or None
            By default the estimator's own.

        Returns
        -------
        evidence : (n,)
            In nats, multinomial coefficient included.
        pareto_k : (n,)
            Shape of the tail of the weights; the estimate is not to be trusted from
            ``metrics.trusted_below(draws)`` on, 0.7 for many draws and less for few.
        """
        if not isinstance(draws, int | np.integer) or draws < 16:
            raise ArgumentError(f"draws: expected a whole number >= 16; got {draws!r}.")
        rng = check_random_state(self.random_state if random_state is None else random_state)
        found, shapes = zip(
            *(
                importance_evidence(*of_batch, int(draws), rng)
                for of_batch in self._posteriors(X, max(1, self.refinement_steps))
            ),
            strict=True,
        )
        return np.concatenate(found), np.concatenate(shapes)

    def match(
        self, X: Any, *, whole: bool = False, argument: str = "X"
    ) -> tuple["MultinomialVAE", Any]:
        """Bring a table and the model to the features that both have, in the order of the model.

        Features of the table that the model does not know are left out: what falls on the others
        is multinomial still. If the table lacks some of the model's, the model becomes that of a
        `subcomposition`; nothing is taken as zero. Either is said by a warning.

        Parameters
        ----------
        X : as in `fit`
            A table; one without feature ids is returned as it is.
        whole : bool
            Refuse a table that lacks features.
        argument : str
            What to call the table in sentences.

        Returns
        -------
        (MultinomialVAE, table)
            Itself, or the model of a subcomposition, and the table.

        Raises
        ------
        InputError
            If less than `min_overlap` of the features or of the reads is shared.
        """
        check_is_fitted(self)
        table = open_counts(X) or X
        known = getattr(self, "feature_names_in_", None)
        if not isinstance(table, CountTable | CountFile) or known is None:
            return self, table
        if np.array_equal(table.feature_ids, known):
            return self, table
        place = place_features(table.feature_ids, known, table.sample_ids)
        shared = np.unique(place[place >= 0])
        if whole and len(shared) < len(known):
            missing = np.setdiff1d(np.arange(len(known)), shared)
            raise FeaturesDiffer(
                f"{argument}: the table lacks {len(missing)} features that the model was fitted"
                f" with: {examples(list(known[missing]))}; `match` gives a model of the rest."
            )
        matched, overlap = table.align_features(known[shared])
        if len(shared) == len(known) == table.d:
            return self, matched
        overlap = replace(overlap, missing=len(known) - len(shared))
        check_overlap(overlap, self.min_overlap, argument)
        warnings.warn(f"{argument}: {overlap}", CountvaeWarning, stacklevel=2)
        return (self if len(shared) == len(known) else self.subcomposition(shared)), matched

    def subcomposition(self, features: Any) -> "MultinomialVAE":
        """Return the model of the counts on some features, given how many fall on these.

        Its coordinates are those of this model, so its `components_` are rows of this model's,
        centred, and not orthonormal. It has no encoder: answers are the optimum that Newton's
        steps find from the prior on. Loadings are given in the balanced basis.

        Parameters
        ----------
        features : (m,)
            Feature ids, or positions; at least two.

        Returns
        -------
        MultinomialVAE
            Fitted, and not to be saved.

        Raises
        ------
        InputError
            If a feature is not the model's, or named twice.
        """
        check_is_fitted(self)
        self.check_linear("subcomposition")
        at = np.asarray(features)
        if at.dtype.kind not in "iu":
            at = pd.Index(np.asarray(self.feature_ids_, dtype=object)).get_indexer(at)
        if at.ndim != 1 or len(at) < 2 or len(set(at.tolist())) < len(at):
            raise ArgumentError("features: expected at least two features, each once.")
        if (at < 0).any() or (at >= self.n_features_in_).any():
            wrong = np.asarray(features)[(at < 0) | (at >= self.n_features_in_)]
            raise FeaturesDiffer(f"features: not among the model's: {examples(list(wrong))}.")
        part = copy.copy(self)
        part._encoder, part._decoder = None, self._decoder.of_features(at)
        part.n_features_in_ = len(at)
        if hasattr(self, "feature_names_in_"):
            part.feature_names_in_ = self.feature_names_in_[at]
        part.basis_operator_ = make_basis("balanced", part.feature_ids_)
        rows = self.components_[:, at]
        part.components_ = rows - rows.mean(1, keepdims=True)
        part._describe(part._decoder.mu)
        return part

    def amortization_gap(self, X: Any) -> np.ndarray:
        """Nats that each sample loses to the encoder, (n,).

        The bound with z and D optimised for that sample, less the bound at the encoder's own
        answer, before any refinement.

        Raises
        ------
        InputError
            Of a plain autoencoder, whose encoder has no posterior to fall short of.
        """
        check_is_fitted(self)
        if self.posterior_variance == "none":
            raise ArgumentError("amortization_gap: a plain autoencoder has no posterior variance.")
        gaps = []
        for decoder, x, posterior in self._posteriors(X, 0, whole=True):
            best = refine(decoder, x, posterior, OPTIMAL_STEPS, tolerance=EXACT)
            best, own = (in_expectation(decoder, x, answer).bound for answer in (best, posterior))
            # through a network Newton's steps are judged by a bound that is not this one
            gaps.append((torch.maximum(best, own) - own).cpu().numpy())
        return np.concatenate(gaps)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Proportions at coordinates y (or z, with `whiten`), without noise, (n, d)."""
        check_is_fitted(self)
        y = np.asarray(X, dtype=float)
        if y.ndim != 2 or y.shape[1] != self.n_components_:
            raise ArgumentError(
                f"X: expected coordinates of shape (n, {self.n_components_}); got {y.shape}."
            )
        return softmax(self._clr_at(y), axis=1)

    def _clr_at(self, y: np.ndarray) -> np.ndarray:
        """Centred log-ratios at coordinates y (or z, with `whiten`), without noise."""
        if not self._decoder.linear:
            with one_thread_an_operation():
                z = torch.from_numpy(y / self._scale @ self._rotation.T)
                return self._decoder.logits(z).numpy()
        if self.whiten:
            y = y * np.sqrt(self.explained_variance_)
        return self.mean_ + y @ self.components_

    def sample(
        self, n_samples: int = 1, depth: Any = None, random_state: Any = None
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Draw counts from the fitted model, noise included.

        Of a model with a formula, samples whose covariates are at the means of the fit; see
        `sample_design` for others.

        Parameters
        ----------
        n_samples : int
            Samples to draw.
        depth : int or (n_samples,), optional
            Reads of each sample; by default drawn from those of the fit.
        random_state : int, RandomState or None
            By default the estimator's own.

        Returns
        -------
        counts : csr_array, (n_samples, d)
        coordinates : (n_samples, k)
            The latent factors that made them, as `transform` gives them.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, int | np.integer) or n_samples < 1:
            raise ArgumentError(f"n_samples: expected a whole number >= 1; got {n_samples!r}.")
        rng = check_random_state(self.random_state if random_state is None else random_state)
        return self._sample(np.full((n_samples, self.n_components_), np.nan), 0.0, depth, rng)

    def sample_design(
        self, design: pd.DataFrame, depth: Any = None, random_state: Any = None
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Draw counts of samples of which something is given, noise included.

        Parameters
        ----------
        design : DataFrame
            A row a sample. Columns F1, F2, ... are coordinates, as `transform` gives them; those
            left out, and empty cells, are drawn from the prior. Of a model with a formula, its
            covariates are needed too. Other columns change nothing, which a warning says.
        depth : int or (n_samples,), optional
            Reads of each sample; by default those in the column "depth" of the design, or drawn
            from those of the fit.
        random_state : int, RandomState or None
            By default the estimator's own.

        Returns
        -------
        counts : csr_array, (n_samples, d)
        coordinates : (n_samples, k)

        Raises
        ------
        InputError
            If no column is a factor or covariate, one is a factor that the model lacks, or one
            does not hold what it should; if depths are given twice.
        """
        check_is_fitted(self)
        rng = check_random_state(self.random_state if random_state is None else random_state)
        axes = axis_names(self.n_components_)
        covariates = [] if self._design is None else variables(self._design.formula)
        columns = [str(name) for name in design.columns]
        others = [name for name in columns if name not in (*axes, *covariates)]
        if beyond := [name for name in others if re.fullmatch(r"F\d+", name)]:
            raise ArgumentError(
                f"design: has a column {beyond[0]!r}; the model's factors are {examples(axes)}."
            )
        if not covariates and not set(axes) & set(columns):
            raise ArgumentError(
                f"design: expected columns among {examples(axes)}; got {examples(columns)}."
            )
        if DEPTH in others:
            if depth is not None:
                raise ArgumentError(
                    f"depth: is given twice, as {depth!r} and in a column of the design."
                )
            others.remove(DEPTH)
            depth = _numbers(design, [DEPTH])[DEPTH]
            if (wrong := ~(depth >= 0) | (depth % 1 != 0)).any():
                row = wrong.index[wrong][0]
                raise ArgumentError(
                    f"design: expected a whole number of reads; got {depth[row]!r} in sample"
                    f" {str(row)!r}, column {DEPTH!r}."
                )
        if others:
            warnings.warn(
                f"design: its columns {examples(others)} are neither factors nor covariates of the"
                " model, and change nothing.",
                CountvaeWarning,
                stacklevel=2,
            )
        y = _numbers(design, [name for name in axes if name in columns]).reindex(columns=axes)
        shift: Any = 0.0
        if self._design is not None:
            shift = self._design.matrix(design) @ self._decoder.Theta.numpy().T
        return self._sample(y.to_numpy(dtype=float), shift, depth, rng)

    def _sample(
        self, y: np.ndarray, shift: Any, depth: Any, rng: np.random.RandomState
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Draw samples whose coordinates are given, or not (NaN), and whose logits are shifted."""
        n, d = len(y), self.n_features_in_
        depths = self._depths(n, depth, rng)
        prior = rng.standard_normal(y.shape) * self._scale
        y = np.where(np.isnan(y), prior, y)
        shifts = np.broadcast_to(shift, (n, d))
        noise_sd = np.sqrt(self.feature_noise_variance_)
        at_once = max(1, SAMPLED_ENTRIES // d)

        def rows() -> Iterator[Counted]:
            for first in range(0, n, at_once):
                at = slice(first, first + at_once)
                for logits, N in zip(self._clr_at(y[at]) + shifts[at], depths[at], strict=True):
                    yield _multinomial(N, logits + noise_sd * rng.standard_normal(d), rng)

        return _stacked(rows(), d), y

    def denoise(self, X: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""What the proportions behind the counts are believed to be.

        Parameters
        ----------
        X : as in `fit`, (n, d)
            Counts.

        Returns
        -------
        proportions : (n, d)
            E exp(eta) under q, closed: rows sum to one, and none is zero.
        clr, clr_sd : (n, d)
            Posterior means and standard deviations of the centred log-ratios, the noise included:
            that of a difference of two is at most their sum. Of a plain autoencoder, whose codes
            have no variance, they are those of the noise alone.
        """
        check_is_fitted(self)
        if self._by_weight:
            entries = INTERVAL_ENTRIES // WEIGHED
            posteriors = self._posteriors(X, self._steps, whole=True, entries=entries)
            found = [log_ratios_by_weight(*of_batch) for of_batch in posteriors]
        else:
            found = [
                log_ratios(decoder, x, posterior, self._covariance(decoder, posterior))
                for decoder, x, posterior in self._posteriors(X, self._steps, whole=True)
            ]
        proportions, clr, clr_sd = (
            torch.cat(part).cpu().numpy() for part in zip(*found, strict=True)
        )
        return proportions, clr, clr_sd

    def interval(
        self, X: Any, level: float = 0.9, draws: int = 200, random_state: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Intervals of the proportions behind the counts, beside the means that `denoise` gives.

        Parameters
        ----------
        X : as in `fit`, (n, d)
            Counts.
        level : float
            Probability with which a proportion lies in its interval, if the model is right.
        draws : int
            Of the proportions of each sample, whose quantiles these are; at least 20.
        random_state : int, RandomState or None
            By default the estimator's own.

        Returns
        -------
        lower, upper : (n, d)
        """
        if not (isinstance(level, int | float | np.number) and 0 < level < 1):
            raise ArgumentError(f"level: expected a probability above 0, below 1; got {level!r}.")
        if not isinstance(draws, int | np.integer) or draws < 20:
            raise ArgumentError(f"draws: expected a whole number >= 20; got {draws!r}.")
        rng = check_random_state(self.random_state if random_state is None else random_state)
        posteriors = self._posteriors(X, self._steps, whole=True, entries=INTERVAL_ENTRIES // draws)
        found = [
            proportion_interval(*of_batch, self._drawn_factors(*of_batch, draws, rng), level, rng)
            for of_batch in posteriors
        ]
        lower, upper = torch.cat(found, 1).cpu().numpy()
        return lower, upper

    def of_covariates(self, X: Any) -> np.ndarray:
        """What the covariates of each sample add to its centred log-ratios, (n, d).

        Zeros without a formula. Centred log-ratios less this are adjusted: those of samples whose
        covariates are at the means of the fit.

        Parameters
        ----------
        X : as in `fit`, (n, d)
            A table.
        """
        model, table = self.match(X, whole=True)
        covariates = self._covariates(table)
        if covariates is None:
            return np.zeros(model._counts(table, reset=False).shape)
        added = covariates @ self._decoder.Theta.numpy().T
        return added - added.mean(1, keepdims=True)

    def sample_like(
        self, X: Any, depth: Any = None, random_state: Any = None
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Draw counts from what is believed of each sample of a table: its posterior predictive.

        Parameters
        ----------
        X : as in `fit`, (n, d)
            Counts.
        depth : int or (n,), optional
            Reads of each sample drawn; by default those of X.
        random_state : int, RandomState or None
            By default the estimator's own.

        Returns
        -------
        counts : csr_array, (n, d)
        coordinates : (n, k)
            The latent factors that made them, as `transform` gives them.
        """
        check_is_fitted(self)
        rng = check_random_state(self.random_state if random_state is None else random_state)
        _, table = self.match(X, whole=True)
        own = _depth(self._counts(table, reset=False))
        depths = iter(self._depths(len(own), np.rint(own) if depth is None else depth, rng))
        factors = []

        def rows() -> Iterator[Counted]:
            for decoder, x, posterior in self._posteriors(table, self._steps):
                z = self._drawn_factors(decoder, x, posterior, 1, rng)[0]
                law = logits_given(decoder, x, posterior)
                logits = drawn_logits(decoder, posterior, law, z, rng)
                factors.append(z.cpu().numpy() @ self._rotation)
                yield from (_multinomial(next(depths), row, rng) for row in logits.cpu().numpy())

        counts = _stacked(rows(), self.n_features_in_)
        return counts, np.concatenate(factors) * self._scale

    def _depths(self, n_samples: int, depth: Any, rng: np.random.RandomState) -> np.ndarray:
        typical = np.rint(rng.choice(self.depth_, n_samples))
        given = typical if depth is None else np.asarray(depth)
        if (
            given.shape not in ((), (1,), (n_samples,))
            or given.dtype.kind not in "iuf"
            or not np.all((given >= 0) & (given <= MAX_COUNT) & (given == np.floor(given)))
        ):
            raise ArgumentError(
                f"depth: expected a whole number >= 0, or one for each of {n_samples} samples; "
                f"got {depth!r}."
            )
        return np.broadcast_to(given.astype(np.int64), (n_samples,))

    def get_covariance(self) -> np.ndarray:
        """Covariance of the log-ratios in CLR space, V V' + sigma^2 (I - 11'/d), (d, d).

        Raises
        ------
        InputError
            If it would not fit in memory.
        """
        check_is_fitted(self)
        self.check_linear("get_covariance")
        d = self.n_features_in_
        if 8 * d * d > MAX_COVARIANCE_BYTES:
            raise TooLarge(
                f"get_covariance: a dense {d} x {d} matrix takes {8 * d * d / 2**30:.1f} GiB; "
                "use components_, explained_variance_ and noise_variance_, which define it."
            )
        noise = self.feature_noise_variance_
        covariance = (self.components_.T * self.explained_variance_) @ self.components_
        covariance.flat[:: d + 1] += noise
        covariance -= (noise - noise.mean()) / d
        covariance -= noise[:, None] / d
        return covariance

    def check_linear(self, what: str) -> None:
        """Refuse what takes loadings to be all that there is, if the decoder is a network."""
        if not self._decoder.linear:
            raise ArgumentError(f"{what}: needs a linear decoder; this model's is a network.")

    @property
    def basis_(self) -> sp.csc_array:
        """Psi, (d, d-1), sparse."""
        check_is_fitted(self)
        return self.basis_operator_.to_sparse()

    def save(
        self,
        path: str | Path,
        *,
        force: bool = False,
        extra_files: Mapping[str, Callable[[Path], object]] | None = None,
    ) -> None:
        """Write the model to a new folder of safetensors and JSON, whole or not at all."""
        check_is_fitted(self)
        if self._encoder is None:
            raise ArgumentError("path: the model of a subcomposition is not saved; save the whole.")
        settings = self._fitted_settings | {name: self._settings()[name] for name in OF_ANSWERS}
        arrays = {f"basis.{name}": value for name, value in self.basis_operator_.state().items()}
        for room, module in (("encoder", self._encoder), ("decoder", self._decoder)):
            for name, value in module.state_dict().items():
                arrays[f"{room}.{name}"] = value.numpy()
        arrays["depth"] = self.depth_
        if hasattr(self, "feature_names_in_"):
            arrays["feature_names"] = self.feature_names_in_
        settings = {"parameters": settings, "history": self.history_.to_dict("list")}
        if type(self) is not MultinomialVAE:
            settings["kind"] = type(self).__name__
        if self._design is not None:
            settings["design"] = self._design.settings()
            if self._design.chance:
                arrays["design.chance"] = np.array(self._design.chance)
        store.save(path, arrays, settings, extra_files=extra_files, force=force)
        if self.checkpoint is not None:
            self.forget(self.checkpoint)

    @classmethod
    def load(cls, path: str | Path) -> "MultinomialVAE":
        """Read a model folder written by `save`; it is checked before anything is used."""
        arrays, settings = store.load(path)
        try:
            if (kind := settings.get("kind")) is not None:
                cls = MultinomialVAE.kinds[kind]
            if unknown := settings["parameters"].keys() & set(OF_THIS_RUN):
                raise ValueError(f"{min(unknown)} is no setting of a model")
            _check_state(arrays, settings["parameters"])
            state = {
                room: {
                    name.removeprefix(room + "."): value
                    for name, value in arrays.items()
                    if name.startswith(room + ".")
                }
                for room in ("basis", "encoder", "decoder")
            }
            basis = restore(state["basis"])
            one = np.linspace(-1, 1, basis.d - 1)
            if not np.allclose(basis.adjoint(basis.apply(one)), one):
                raise ValueError("the basis is not orthonormal")
            model = cls(**settings["parameters"], basis=basis)
            model._check_settings()
            model.basis_operator_ = basis
            model.depth_ = arrays["depth"]
            model.history_ = pd.DataFrame(settings["history"])
            if not all(map(pd.api.types.is_numeric_dtype, map(model.history_.get, COLUMNS))):
                raise ValueError("the history lacks a column of numbers")
            model.n_iter_ = len(model.history_)
            model._fitted_settings = model._settings()
            model.n_features_in_ = basis.d
            if "feature_names" in arrays:
                model.feature_names_in_ = arrays["feature_names"]
            V, mu, sigma2, Theta = (
                torch.empty(arrays[f"decoder.{name}"].shape, dtype=torch.float64, device="meta")
                for name in ("V", "mu", "sigma2", "Theta")
            )
            decoder = model._new_decoder(V, mu, sigma2, Theta, generator=None)
            encoder = model._new_encoder(
                *(V, V[0], V[0], mu), covariates=Theta.shape[1], generator=None
            )
            if "A_f" not in state["encoder"]:
                state["encoder"] |= _of_schema_1(path, state["encoder"], arrays["decoder.Theta"])
            for room, module in (("encoder", encoder), ("decoder", decoder)):
                tensors = {name: torch.from_numpy(value) for name, value in state[room].items()}
                module.load_state_dict(tensors, assign=True)
            design = settings.get("design")
            model._design = (
                None if design is None else Design.restore(design, arrays.get("design.chance"))
            )
            model._identify(encoder, decoder)
        except Exception as error:
            if out_of_memory(error) or isinstance(error, OlderModel):
                raise
            raise NotAModel(f"{path}: not a MultinomialVAE that this version reads.") from error
        return model

    @staticmethod
    def forget(checkpoint: str | Path) -> None:
        """Remove the checkpoint of a fit that will not be gone on with.

        Raises
        ------
        InputError
            If the folder is no checkpoint.
        """
        Checkpoint(checkpoint, dict).forget()

    @property
    def clr_loadings_(self) -> np.ndarray:
        """Loadings in CLR space, V = Psi W, (d, k)."""
        check_is_fitted(self)
        return self.components_.T * np.sqrt(self.explained_variance_)

    @property
    def feature_ids_(self) -> list[str]:
        """Names of the features as text; their numbers, where the table had none."""
        names = getattr(self, "feature_names_in_", range(self.n_features_in_))
        return [str(name) for name in names]

    @property
    def best_epoch_(self) -> int:
        """The epoch whose model this is: the best on held-out samples, or the last."""
        check_is_fitted(self)
        if "validation_bound" not in self.history_:
            return self.n_iter_
        return int(self.history_["validation_bound"].argmax()) + 1

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def _settings(self) -> dict[str, Any]:
        """Return the parameters as JSON has them, but for what is no setting of a model."""
        settings = {
            name: _plain(value)
            for name, value in self.get_params(deep=False).items()
            if name not in OF_THIS_RUN
        }
        if not isinstance(settings["random_state"], int):
            settings["random_state"] = None
        return settings

    def _check_settings(self) -> None:
        for name, low in (
            ("n_components", 1),
            ("encoder_depth", 1),
            ("encoder_width", 1),
            ("refinement_steps", 0),
            ("max_epochs", 1),
            ("batch_size", 1),
            ("patience", 1),
        ):
            value = getattr(self, name)
            optional = name in ("max_epochs", "batch_size", "patience")
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
                raise ArgumentError(f"{name}: expected a whole number >= {low}; got {value!r}.")
        for name, choices in (
            ("activation", tuple(ACTIVATIONS)),
            ("noise", ("isotropic", "by_feature")),
            ("posterior_variance", ("per_sample", "shared", "none")),
            ("optimizer", ("adam", "sgd")),
            ("device", DEVICES),
            ("freeze", (None, "decoder", "encoder")),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in choices:
                raise ArgumentError(
                    f"{name}: expected one of {choices}; got {getattr(self, name)!r}."
                )
        if chosen(self.device).type == "mps" and self.dtype == "float64":
            raise ArgumentError("dtype: 'mps' devices have no double precision; use device='cpu'.")
        for name in ("shrink_loadings", "whiten"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ArgumentError(f"{name}: expected True or False; got {getattr(self, name)!r}.")
        if self.progress is not None and not callable(self.progress):
            raise ArgumentError(f"progress: expected a function; got {self.progress!r}.")
        for name in ("pseudocount", "learning_rate"):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not (number and 0 < value < np.inf):
                raise ArgumentError(f"{name}: expected a positive number; got {value!r}.")
        low, high = PSEUDOCOUNTS
        if not low <= self.pseudocount <= high:
            raise ArgumentError(
                f"pseudocount: expected {low:g} to {high:g}; got {self.pseudocount!r}."
            )
        if not (
            isinstance(self.min_overlap, int | float | np.number) and 0 <= self.min_overlap <= 1
        ):
            raise ArgumentError(f"min_overlap: expected 0 <= share <= 1; got {self.min_overlap!r}.")
        share = self.validation_fraction
        if not (isinstance(share, int | float | np.number) and 0 <= share < 1):
            raise ArgumentError(
                f"validation_fraction: expected 0 <= share < 1; got {self.validation_fraction!r}."
            )

    def _counts(self, X: Any, *, reset: bool) -> sp.csr_array | CountFile:
        """Check a table, which `match` has brought to the model; return its counts."""
        table = open_counts(X) or X
        if isinstance(table, CountTable | CountFile):
            if reset:
                self.n_features_in_, self.feature_names_in_ = table.d, table.feature_ids
            if table.d != self.n_features_in_:
                raise FeaturesDiffer(
                    f"X: the table has {table.d} features; the model was fitted with "
                    f"{self.n_features_in_}, which have no ids."
                )
            ids = table.sample_ids, table.feature_ids
            counts = table if isinstance(table, CountFile) else table.counts
        else:
            ids = None, None
            if (axes := getattr(X, "ndim", 2)) > 2:
                raise ArgumentError(
                    f"X: expected a row a sample; got {axes} axes. X.reshape(len(X), -1) lays"
                    " the features of each sample in a row."
                )
            if isinstance(X, pd.DataFrame):
                ids = X.index.to_numpy(), X.columns.to_numpy()
                check_unique(ids[1], "X: feature ids")
            counts = validate_data(
                self,
                X,
                reset=reset,
                accept_sparse="csr",
                dtype=[np.float64, np.float32],
                ensure_all_finite=False,
                ensure_min_samples=2 if reset else 1,
                ensure_min_features=2 if reset else 1,
            )
        if not isinstance(counts, CountFile):
            counts = sp.csr_array(counts, dtype=np.float64)
            check_counts(counts, *ids, fractional="warn", empty_samples="warn", argument="X")
        if reset and counts.shape[0] < 2:
            raise TooSmall("X: a fit needs at least two samples; got 1.")
        if reset and _depth(counts).sum() == 0:
            raise EmptySamples("X: expected counts; every sample is empty.")
        return counts

    def _feasible_components(self, n: int, d: int) -> int:
        most = most_components(n, d)
        if self.n_components > most:
            warnings.warn(
                f"n_components: {n} samples of {d} features carry at most {most} factors, not "
                f"{self.n_components}; using {most}.",
                CountvaeWarning,
                stacklevel=3,
            )
        return min(int(self.n_components), most)

    def _design_for(self, table: Any, begun: "MultinomialVAE | None") -> Design | None:
        """Learn the design of a table, unless a fit to go on from has one."""
        if self.formula is None:
            return None
        return Design.of(self.formula, _metadata(table)) if begun is None else begun._design

    def _covariates(self, table: Any) -> np.ndarray | None:
        """Return the covariates of each sample of a table, (n, p)."""
        if self._design is None:
            return None
        return self._design.matrix(_metadata(table))

    def _split(
        self, counts: Any, covariates: np.ndarray | None, names: np.ndarray, seed: int
    ) -> tuple[Samples, Samples | None]:
        """Part samples into those to fit and those to watch it by."""
        covariates = np.empty((counts.shape[0], 0)) if covariates is None else covariates
        held = round(self.validation_fraction * counts.shape[0])
        if held == 0:
            return Samples(counts, covariates, names), None
        if counts.shape[0] - held < 2:
            raise TooSmall(
                f"validation_fraction: {self.validation_fraction!r} of {counts.shape[0]} samples "
                "leaves fewer than two to fit."
            )
        order = np.random.default_rng(seed).permutation(counts.shape[0])
        chosen = counts.select_samples if isinstance(counts, CountFile) else counts.__getitem__
        fitted, watched = (
            Samples(chosen(at), covariates[at], names[at])
            for at in (np.sort(order[held:]), np.sort(order[:held]))
        )
        return fitted, watched

    def _fit_from_start(
        self,
        fitted: Samples,
        held_out: Samples | None,
        k: int,
        seed: int,
        begun: "MultinomialVAE | None" = None,
    ) -> tuple[Encoder, Decoder, Sequence[dict[str, Any]], Diverged | None]:
        counts = fitted.counts
        n, d = counts.shape
        size = self._batch_size(n, d)
        dtype, device, processes = getattr(torch, self.dtype), chosen(self.device), joined()
        if size < processes.count:
            raise ArgumentError(
                f"batch_size: a step of {size} samples cannot be shared by {processes.count}"
                " processes; take larger steps, or fewer processes."
            )
        with processes.in_step():
            self._check_memory(fitted, k, held_out)
        where = size, dtype, device, processes
        rows = Rows(counts, *where, fitted.covariates)
        validation = (
            None if held_out is None else Rows(held_out.counts, *where, held_out.covariates)
        )
        max_epochs = int(self.max_epochs or np.clip(np.ceil(700 * rows.batch_size / n), 9, 70))

        def this_fit() -> dict[str, Any]:
            """What tells this fit from others: work that only a state that is there is worth."""
            parts = () if begun is None else begun._decoder.state_dict().values()
            return self._settings() | {
                "schema": store.SCHEMA_VERSION,
                "seed": seed,
                "shape": [n, d],
                "counts": _digest(self.depth_, *_content(counts)),
                "samples": _digest(fitted.names.astype(str), fitted.covariates),
                "features": _digest(np.array(self.feature_ids_)),
                "init": begun and _digest(*(part.numpy() for part in parts)),
                "freeze": self.freeze,
            }

        claim = nullcontext() if self.checkpoint is None else claimed(self.checkpoint)
        checkpoint = None if self.checkpoint is None else Checkpoint(self.checkpoint, this_fit)
        with processes.first_holds(claim):
            writer = checkpoint if processes.rank == 0 else None
            points = self.posterior_variance == "none"
            kept, attempt = (None, 0) if checkpoint is None else checkpoint.found()
            if kept is not None and kept.settings.get("steps") and processes.count > 1:
                raise CheckpointOfAnother(
                    f"{kept.name}: one process left it within an epoch; go on by one."
                )
            if writer is not None and isinstance(counts, CountFile):
                counts.digests()  # now: a state that is left in haste must not wait for them
            history: Sequence[dict[str, Any]] = []
            best: tuple[Encoder, Decoder, Sequence[dict[str, Any]]] | None = None
            while True:
                generator = torch.Generator().manual_seed(seed)
                rate = float(self.learning_rate) / SMALLER**attempt
                encoder, decoder = self._begin(rows, k, generator, begun, kept)
                shrink = self.shrink_loadings and decoder.linear and not points
                with noted() if processes.count == 1 else nullcontext(lambda: False) as stop:
                    try:
                        diverged = None
                        history = train(
                            rows,
                            encoder.to(device),
                            decoder.to(device),
                            Schedule(max_epochs, rate, self.optimizer, self.patience),
                            shrink_loadings=shrink,
                            generator=generator,
                            points=points,
                            going_on=begun is not None,
                            frozen=self.freeze,
                            validation=validation,
                            refinement_steps=int(self.refinement_steps),
                            progress=self._report(max_epochs, rows, validation),
                            keep=writer and writer.keep(attempt),
                            kept=kept,
                            stop=stop,
                        )
                        break
                    except Diverged as error:
                        diverged, kept = _naming(error, fitted.names), None
                        reached = encoder, decoder, diverged.history
                        if best is None or _bound_of(reached[2]) > _bound_of(best[2]):
                            best = reached
                        if attempt >= RETRIES or stop():
                            break
                        attempt += 1
                        warnings.warn(
                            f"{str(diverged).rstrip('.')}; trying again with a learning rate of"
                            f" {rate / SMALLER:g}.",
                            CountvaeWarning,
                            stacklevel=3,
                        )
                    except BaseException as error:
                        left = writer and _is_no_fault(error) and writer.leave_at_last()
                        if left and checkpoint and isinstance(error, KeyboardInterrupt):
                            raise KeyboardInterrupt(
                                f"interrupted; {checkpoint.folder} has what was done."
                            ) from None
                        raise
            if writer:
                (writer.finish if diverged is None else writer.forget)()
        if diverged is not None and best is not None:
            encoder, decoder, history = best
            diverged.history = history
            if not history:
                raise diverged
        return encoder.cpu(), decoder.cpu(), history, diverged

    def _begin(
        self,
        rows: Rows,
        k: int,
        generator: torch.Generator,
        begun: "MultinomialVAE | None",
        kept: Kept | None,
    ) -> tuple[Encoder, Decoder]:
        """Make encoder and decoder: of the table, of the fit to go on from, or to be restored."""
        if kept is not None:
            start = Start.zeros(rows.d, k, rows.dtype)
        elif begun is not None:
            start = begun._as_start(rows.dtype)
        else:
            found = residual_start(
                rows, k, pseudocount=float(self.pseudocount), generator=generator
            )
            start = Start(*(part.cpu() for part in found))
        sigma2 = start.sigma2.expand(rows.d) if self.noise == "by_feature" else start.sigma2
        Theta = start.V.new_zeros(rows.d, rows.covariates.shape[1])
        decoder = self._new_decoder(start.V, start.mu, sigma2, Theta, generator=generator)
        parts = start.A, start.b, start.log_D, decoder.mu.detach()
        encoder = self._new_encoder(*parts, covariates=Theta.shape[1], generator=generator)
        if begun is not None and begun._encoder is not None:
            encoder.load_state_dict(begun._encoder.state_dict())
            decoder.load_state_dict(begun._decoder.state_dict())
        return encoder, decoder

    def _begun(self) -> "MultinomialVAE | None":
        """Return the fit to go on from, if there is one, having checked that it can be."""
        begun = self._loaded_start()
        if begun is None:
            if self.freeze is not None:
                raise ArgumentError("freeze: there is nothing to keep without init.")
            return None
        check_is_fitted(begun)
        if type(begun) is not type(self):
            raise ArgumentError(f"init: a {type(begun).__name__}, not a {type(self).__name__}.")
        if begun._encoder is None:
            raise ArgumentError("init: the model of a subcomposition has no encoder to go on from.")
        theirs = begun._fitted_settings | {"n_components": begun.n_components_}
        ours = self._settings()
        for name in self.of_model:
            if theirs[name] != ours[name]:
                raise ArgumentError(f"init: its {name} is {theirs[name]!r}, not {ours[name]!r}.")
        if begun.feature_ids_ != self.feature_ids_:
            raise FeaturesDiffer(
                f"init: has {begun.n_features_in_} features, and they are not the table's"
                f" {self.n_features_in_} in their order; `align_features` brings a table to them."
            )
        return begun

    def _loaded_start(self) -> "MultinomialVAE | None":
        """Return the fit to go on from, unchecked."""
        if self.init is None or isinstance(self.init, MultinomialVAE):
            return self.init
        return MultinomialVAE.load(self.init)

    def _as_start(self, dtype: torch.dtype) -> Start:
        """Return a start of the shapes of this fit."""
        encoder, decoder = self._encoder, self._decoder
        assert encoder is not None
        parts = decoder.V, decoder.mu, decoder.sigma2, encoder.A, encoder.b, encoder.log_D
        return Start(*(part.detach().to(dtype) for part in parts))

    def estimate_memory(self, X: Any) -> int:
        """Bytes that `fit` takes at its peak besides the table, estimated; see `budget.fit_needs`.

        Parameters
        ----------
        X : CountTable, CountFile, path or anything with a shape
            The table.

        Returns
        -------
        int
            Of an accelerator's memory and this machine's together, where there are both.
        """
        self._check_settings()
        table = open_counts(X, joined()) or X
        counts = table.counts if isinstance(table, CountTable) else table
        if not hasattr(counts, "shape"):
            raise ArgumentError(f"X: expected a table; got {type(X).__name__}.")
        begun = None if self.formula is None else self._loaded_start()
        design = self._design_for(table, begun)
        return sum(self._needs(counts, 0 if design is None else len(design.names)))

    def _needs(self, counts: Any, covariates: int) -> Needs:
        n, d = counts.shape
        return fit_needs(
            n,
            d,
            min(int(self.n_components), most_components(n, d)),
            covariates=covariates,
            batch_size=self._batch_size(n, d),
            **self._size_of_networks(d),
            nnz=int(getattr(counts, "nnz", n * d)),
            streamed=isinstance(counts, CountFile),
            itemsize=getattr(torch, self.dtype).itemsize,
            processes=joined().count,
            on_device=chosen(self.device).type != "cpu",
            checkpoint=self.checkpoint is not None,
            cast=getattr(counts, "dtype", np.float64) != np.float64,
        )

    def _size_of_networks(self, d: int) -> dict[str, int]:
        """What they add to a fit's memory, as `fit_needs` takes it."""
        return {"layers": d * int(self.encoder_width) if self.encoder_depth > 1 else 0}

    def _check_memory(self, fitted: Samples, k: int, held_out: Samples | None = None) -> None:
        """Refuse a fit that there is no room for, on its device or beside it."""
        (n, d), device = fitted.counts.shape, chosen(self.device)
        needs = self._needs(fitted.counts, fitted.covariates.shape[1])
        what = f"a fit of {n} samples × {d} features with {k} factors"
        less = "fewer factors, a smaller batch_size and a smaller encoder_width take less"
        beside = f"X: besides the table, {what}"
        here, free = Room(beside, less, shared_by=joined().here), free_bytes(device)
        if free is None:
            here.check(sum(needs))
            return
        here.check(needs.rest)
        dtype, there = getattr(torch, self.dtype), needs.steps
        for part in filter(None, (fitted, held_out)):
            there += bytes_on_device(part.counts, dtype, free)
        Room(f"X: {what} on {device.type!r}", less, free=free).check(there)

    def _batch_size(self, n: int, d: int) -> int:
        return int(self.batch_size or default_batch_size(n, d))

    def _report(
        self, max_epochs: int, rows: Rows, validation: Rows | None
    ) -> Callable[[dict[str, float | int]], None] | None:
        progress = self.progress
        if progress is None:
            return None
        read = [rows] if validation is None else [rows, validation]

        def tell(row: dict[str, float | int]) -> None:
            progress({**row, "max_epochs": max_epochs, "waited": sum(some.waited for some in read)})

        return tell

    def _new_encoder(self, *start: torch.Tensor, **given: Any) -> Encoder:
        return DenseEncoder(*start, **self._of_encoder, **given)

    @property
    def _of_encoder(self) -> dict[str, Any]:
        """Settings of an encoder, of any kind."""
        return {
            "depth": int(self.encoder_depth),
            "width": int(self.encoder_width),
            "activation": self.activation,
            "pseudocount": float(self.pseudocount),
            "shared_D": self.posterior_variance != "per_sample",
        }

    def _new_decoder(self, V, mu, sigma2, Theta, generator: torch.Generator | None) -> Decoder:
        return Decoder(V, mu, sigma2, Theta)

    def _identify(self, encoder: Encoder, decoder: Decoder) -> None:
        """Read centre, axes, variances and signs off a trained decoder."""
        self._encoder: Encoder | None = encoder.requires_grad_(False)
        self._decoder = decoder.requires_grad_(False)
        V, mu, beyond = self._decoder.straight()
        U, s, Rt = np.linalg.svd(V.numpy(), full_matrices=False)
        signs = np.sign(U[np.abs(U).argmax(0), np.arange(len(s))])
        signs[signs == 0] = 1
        self._rotation = Rt.T * signs
        self.components_ = (U * signs).T
        self.explained_variance_ = s**2
        self.n_components_ = len(s)
        self._describe(mu, beyond)

    @property
    def _by_chance(self) -> tuple[int, np.ndarray]:
        """How many samples gave the effects, and their (F'F)^-1.

        If that was not kept, it is that of covariates which share nothing.
        """
        assert self._design is not None
        if self._design.chance:
            return self._design.samples, np.array(self._design.chance)
        n = len(self.depth_)
        return n, np.eye(len(self._design.names)) / n

    def _describe(self, mu: torch.Tensor, beyond: float = 0.0) -> None:
        """Read the rest off the decoder, given centre and axes, and the variance beyond them."""
        self.mean_ = mu.numpy().copy()
        d = len(self.mean_)
        self.feature_noise_variance_ = np.broadcast_to(self._decoder.sigma2.numpy(), (d,)).copy()
        self.noise_variance_ = float(self.feature_noise_variance_.mean())
        along = self.explained_variance_ * np.square(self.components_).sum(1)
        total = along.sum() + beyond + self.noise_variance_ * (d - 1)
        self.explained_variance_ratio_ = along / total
        self.loadings_ = self.basis_operator_.adjoint(self.clr_loadings_.T).T
        if self._design is not None:
            scale = np.array(self._design.scale)
            self.coefficient_names_ = np.array(self._design.names, dtype=object)
            self.coefficients_ = (self._decoder.Theta.numpy() / scale).T
            n, chance = self._by_chance
            chance = chance.diagonal()
            # beside other covariates the noise counts n (F'F)^-1_aa times; and what factors lean
            # on a covariate by chance, Theta takes up of V
            variances = n * chance * self._decoder.Theta_var.numpy()
            variances += chance * self._decoder.V.square().sum(1, keepdim=True).numpy()
            self.coefficients_sd_ = (np.sqrt(variances) / scale).T
            self.coefficients_chance_ = chance / scale**2
        self.clr_loadings_sd_ = np.sqrt(self._decoder.V_var.numpy() @ self._rotation**2)
        if not self._decoder.linear:
            self.clr_loadings_sd_[:] = np.nan

    def _posteriors(
        self, X: Any, steps: int, *, whole: bool = False, entries: int = 2**20
    ) -> Iterator[tuple[Law, torch.Tensor, Posterior]]:
        """Answer for the samples of a table, some at a time, where the answers are computed."""
        check_is_fitted(self)
        self._check_settings()
        model, table = self.match(X, whole=whole)
        covariates = self._covariates(table)
        counts = model._counts(table, reset=False)
        device = chosen(self.device)
        encoder, decoder = model._encoder, model._decoder
        if device.type == "cuda":
            encoder, decoder = copy.deepcopy(encoder), copy.deepcopy(decoder).to(device)
            encoder = encoder and encoder.to(device)
        else:
            device = torch.device("cpu")
        if not model._decoder.linear:  # slopes of each sample, of all channels
            entries = min(entries, JACOBIAN_ENTRIES // (self.n_components_ * self.encoder_width))
        shared = None
        if model._design is not None:
            n, chance = model._by_chance
            shared = torch.from_numpy(n * chance).to(device)
        batch_size = max(1, entries // counts.shape[1])
        rows = Rows(counts, batch_size, torch.float64, device, covariates=covariates)
        for x, f in zip(rows.in_order(), rows.covariates_in_order(), strict=True):
            law = decoder.given(f, shared)
            with one_thread_an_operation():
                if encoder is None:
                    z = x.new_zeros(len(x), self.n_components_)
                    begin, further = (z, torch.ones_like(z)), max(steps, WITHOUT_ENCODER)
                else:
                    begin, further = encoder(x, f), steps
                    if self.posterior_variance == "none":
                        # codes have no variance, and the encoder learned none
                        begin = begin[0], torch.full_like(begin[1], float(steps > 0))
                        further = max(steps, WITHOUT_ENCODER) if steps else 0
                posterior = posterior_at(law, x, *begin, tolerance=EXACT)
                posterior = refine(law, x, posterior, further, tolerance=EXACT)
            yield law, x, posterior


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it."""
    if isinstance(value, tuple | list | np.ndarray):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _numbers(design: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return columns of a design as numbers, missing where a cell is empty."""
    given = design[names]
    found = given.apply(pd.to_numeric, errors="coerce")
    wrong = found.isna() & given.notna() | np.isinf(found)
    for name in names:
        if wrong[name].any():
            row = wrong.index[wrong[name]][0]
            raise ArgumentError(
                f"design: expected numbers; got {given[name][row]!r} in sample {str(row)!r},"
                f" column {name!r}."
            )
    return found


Counted = tuple[np.ndarray, np.ndarray]
"""Where a sample has counts, and which."""


def _multinomial(N: int | np.integer, logits: np.ndarray, rng: np.random.RandomState) -> Counted:
    """Draw the counts of a sample."""
    counts = rng.multinomial(N, softmax(logits))
    at = np.flatnonzero(counts)
    return at, counts[at]


def _stacked(rows: Iterable[Counted], d: int) -> sp.csr_array:
    """Put samples into a table as they are drawn, as long as the memory holds it."""
    room = Room("the table that is drawn", "draw fewer samples at once")
    where, counts, entries = [], [], 0
    for at, of_sample in rows:
        where.append(at)
        counts.append(of_sample)
        entries += len(at)
        room.check(ENTRY_BYTES * entries)
    ends = np.cumsum([0, *map(len, where)])
    index = np.int32 if max(ends[-1], d) <= np.iinfo(np.int32).max else np.int64
    at = np.concatenate(where).astype(index), ends.astype(index)
    return sp.csr_array((np.concatenate(counts), *at), (len(where), d))


def axis_names(k: int) -> list[str]:
    """Names of the axes, in order.

    Examples
    --------
    >>> axis_names(3)
    ['F1', 'F2', 'F3']
    """
    return [f"F{c + 1}" for c in range(k)]


def most_components(n: int, d: int) -> int:
    """Factors that a table can carry."""
    return max(1, min(n, d) - 1)


def default_batch_size(n: int, d: int) -> int:
    """Samples of a step: an eighth of them, within bounds, and no more than memory is good for."""
    return min(128, max(16, n // 8), max(16, WIDEST_BATCH // d))


def _check_state(arrays: Mapping[str, np.ndarray], parameters: Mapping[str, Any]) -> None:
    """Refuse the state of a model that cannot be one, before any part is made.

    Raises
    ------
    KeyError, ValueError, TypeError
    """
    d, _ = arrays["decoder.V"].shape
    sigma2, reads = arrays["decoder.sigma2"], arrays["depth"]
    names = arrays.get("feature_names", np.arange(d))
    if (
        parameters["encoder_depth"] > len(arrays)
        or sigma2.shape not in ((), (d,))
        or not (sigma2 > 0).all()
        or any(a.dtype != float for n, a in arrays.items() if n.startswith(("enc", "dec")))
        or reads.ndim != 1
        or not (reads >= 0).all()
        or names.shape != (d,)
        or len(set(names.tolist())) != d
        or len(arrays["basis.names"]) != d - 1
    ):
        raise ValueError("the arrays do not fit together")


def _of_schema_1(
    path: str | Path, encoder: Mapping[str, np.ndarray], Theta: np.ndarray
) -> dict[str, np.ndarray]:
    """Weights of covariates of a dense encoder that subtracted Theta f from its input.

    Raises
    ------
    OlderModel
        If it convolved that input, which no weights of covariates make up for.
    """
    if Theta.shape[1] and "seen_from" in encoder:
        raise OlderModel(
            f"{path}: is of an older version, whose convolutions read what covariates leave."
        )
    return {f"{layer}_f": -Theta.T @ encoder[layer] for layer in ("A", "G") if layer in encoder}


def _digest(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of what arrays hold."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _content(counts: sp.csr_array | CountFile) -> tuple[np.ndarray, ...]:
    """Return what tells a table from others: its counts, or the files that it is read from."""
    if isinstance(counts, CountFile):
        return (np.array(counts.digests()),)
    return counts.indptr, counts.indices, counts.data


def _names(table: Any, counts: Any) -> np.ndarray:
    """Names of the samples; their numbers, where they have none."""
    if isinstance(table, CountTable | CountFile):
        return table.sample_ids
    return table.index.to_numpy() if isinstance(table, pd.DataFrame) else np.arange(counts.shape[0])


def _is_no_fault(error: BaseException) -> bool:
    """Whether a fit that this ended could go on another time."""
    return isinstance(error, KeyboardInterrupt | ProcessLost) or out_of_memory(error)


def _bound_of(history: Sequence[dict[str, Any]]) -> float:
    """Return the best bound that was reached."""
    return max(map(watched, history), default=-np.inf)


def _naming(error: Diverged, names: np.ndarray) -> Diverged:
    """Say in which samples a fit diverged."""
    at = list(error.samples)
    where = f", in samples {examples(list(names[at]))}" if at else ""
    return Diverged(f"{str(error).rstrip('.')}{where}.", at, error.history)


def _metadata(table: Any) -> pd.DataFrame | None:
    """Return what a table says of its samples."""
    if not isinstance(table, CountTable | CountFile):
        raise MetadataError(
            "formula: needs a CountTable or CountFile with metadata of the samples."
        )
    return table.sample_metadata


def _depth(counts: sp.csr_array | CountFile) -> np.ndarray:
    """Reads of each sample."""
    return counts.depth if isinstance(counts, CountFile) else counts.sum(axis=1)
