"""MultinomialVAE: scikit-learn's manners, the identities of its attributes, and what it refuses."""

import errno
import itertools
import json
import pickle
import signal
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal, spearmanr
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import countvae.checkpoint
import countvae.estimator
import countvae.training
from countvae import ConvMultinomialVAE, MultinomialVAE, store
from countvae.basis import sequential
from countvae.errors import CountvaeWarning, DamagedModel, Diverged, InputError, ProcessLost
from countvae.evidence import log_coefficient, solve_noise
from countvae.metrics import subspace_error
from countvae.moments import Moments
from countvae.ppca import clr_counts
from countvae.processes import Processes
from countvae.signals import noted
from countvae.simulate import simulate
from countvae.table import CountTable

SMALL = {"n_components": 3, "max_epochs": 4, "encoder_width": 8}


@pytest.mark.filterwarnings("ignore::countvae.errors.CountvaeWarning")
@parametrize_with_checks([MultinomialVAE(n_components=2, max_epochs=3, encoder_width=8)])
def test_scikit_learn_finds_nothing_to_object_to(estimator, check):
    check(estimator)


@pytest.fixture(name="table", scope="module")
def wide_table():
    return simulate(90, 20, 3, 400, rng=np.random.default_rng(0))


@pytest.fixture(name="X", scope="module")
def wide_counts(table):
    return table.counts.toarray()


@pytest.fixture(name="model", scope="module")
def fitted_model(X):
    return MultinomialVAE(**SMALL).fit(X)


@pytest.fixture(name="named", scope="module")
def table_with_names(table):
    return CountTable(table.counts, table.sample_ids, table.feature_ids)


def loadings(model):
    return model.components_.T * np.sqrt(model.explained_variance_)


def assert_same_bits(one, other):
    for name in ("components_", "explained_variance_", "mean_", "feature_noise_variance_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# --- what the attributes are ---------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["isotropic", "by_feature"])
def test_components_are_orthonormal_centred_ordered_and_signed(X, noise):
    model = MultinomialVAE(**SMALL, noise=noise).fit(X)
    np.testing.assert_allclose(model.components_ @ model.components_.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(model.components_.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(model.mean_.sum(), 0, atol=1e-10)
    assert (np.diff(model.explained_variance_) <= 0).all()
    assert (model.explained_variance_ > 0).all()
    at = np.abs(model.components_).argmax(1)
    assert (model.components_[np.arange(3), at] > 0).all()
    total = np.trace(model.get_covariance())
    np.testing.assert_allclose(model.explained_variance_ratio_, model.explained_variance_ / total)


@pytest.mark.parametrize("noise", ["isotropic", "by_feature"])
def test_covariance_equals_its_definition(X, noise):
    model = MultinomialVAE(**SMALL, noise=noise).fit(X)
    V, P = loadings(model), np.eye(20) - 1 / 20
    expected = V @ V.T + P @ np.diag(model.feature_noise_variance_) @ P
    np.testing.assert_allclose(model.get_covariance(), expected, atol=1e-12)
    if noise == "isotropic":
        np.testing.assert_allclose(model.feature_noise_variance_, model.noise_variance_)
        np.testing.assert_allclose(expected, V @ V.T + model.noise_variance_ * P, atol=1e-12)
    np.testing.assert_allclose(model.feature_noise_variance_.mean(), model.noise_variance_)


def test_features_of_a_frame_must_have_names_of_their_own(X):
    frame = pd.DataFrame(X, columns=["a", "a", *map(str, range(18))])
    with pytest.raises(InputError, match="X: feature ids must be unique; got more than once 'a'"):
        MultinomialVAE(**SMALL).fit(frame)


def test_covariance_that_would_not_fit_in_memory_is_refused_in_a_sentence(X):
    model = MultinomialVAE(**SMALL).fit(X)
    model.n_features_in_ = 20_000
    with pytest.raises(InputError, match=r"20000 x 20000 .* takes 3\.0 GiB"):
        model.get_covariance()


def test_rotating_basis_loadings_and_centre_together_changes_nothing(X):
    Psi, _ = np.linalg.qr(np.c_[np.ones(20), np.random.default_rng(1).normal(size=(20, 19))])
    models = [
        MultinomialVAE(**SMALL, basis=basis).fit(X)
        for basis in ("balanced", "sequential", Psi[:, 1:])
    ]
    for model in models:
        assert_same_bits(model, models[0])
        assert model.loadings_.shape == (19, 3)
        Psi = model.basis_.toarray()
        np.testing.assert_allclose(Psi.T @ Psi, np.eye(19), atol=1e-6)
        np.testing.assert_allclose(Psi @ model.loadings_, loadings(model), atol=1e-6)
        np.testing.assert_array_equal(model.transform(X), models[0].transform(X))
    assert not np.allclose(models[0].loadings_, models[1].loadings_)


def test_distances_are_aitchison_distances_between_the_fitted_compositions(model, X):
    y = model.transform(X)
    composition = np.log(model.inverse_transform(y))
    composition -= composition.mean(1, keepdims=True)
    between = composition[:, None] - composition
    np.testing.assert_allclose(
        np.linalg.norm(y[:, None] - y, axis=2), np.linalg.norm(between, axis=2), atol=1e-10
    )


def test_inverse_transform_gives_proportions(model, X):
    p = model.inverse_transform(model.transform(X))
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(model.inverse_transform(np.zeros((1, 3)))[0], softmax(model.mean_))
    with pytest.raises(InputError, match=r"expected coordinates of shape \(n, 3\)"):
        model.inverse_transform(np.zeros((4, 2)))


def test_whitened_factors_are_coordinates_over_their_prior_sd(model, X):
    white = MultinomialVAE(**SMALL, whiten=True).fit(X)
    assert_same_bits(white, model)
    scale = np.sqrt(model.explained_variance_)
    for mine, theirs in zip(white.posterior(X), model.posterior(X), strict=True):
        np.testing.assert_allclose(mine * scale, theirs, rtol=1e-12)
    y = model.transform(X)
    np.testing.assert_allclose(
        white.inverse_transform(white.transform(X)), model.inverse_transform(y), rtol=1e-9
    )
    for mine, theirs in zip(white.sample(5, 100), model.sample(5, 100), strict=True):
        if not sp.issparse(mine):
            np.testing.assert_allclose(mine * scale, theirs, rtol=1e-12)
        else:
            np.testing.assert_array_equal(mine.toarray(), theirs.toarray())


def test_posterior_sd_lies_between_zero_and_the_priors(model, X):
    mean, sd = model.posterior(X)
    assert mean.shape == sd.shape == (90, 3)
    np.testing.assert_array_equal(mean, model.transform(X))
    assert (sd > 0).all() and (sd <= np.sqrt(model.explained_variance_) * 1.001).all()


def test_posterior_sds_are_those_of_the_whole_covariance_once_refined(model, X):
    V = model.components_.T * np.sqrt(model.explained_variance_)
    sds = {}
    for steps in (0, 2):
        sds[steps] = model.set_params(refinement_steps=steps).posterior(X)[1]
    z, sigma2 = model.transform(X) / np.sqrt(model.explained_variance_), model.noise_variance_
    D = (sds[2] / np.sqrt(model.explained_variance_)) ** 2
    given = (torch.tensor(part) for part in (model.mean_ + z @ V.T, D @ (V * V).T, X))
    noise = solve_noise(*(part.double() for part in given), torch.tensor(sigma2).double())
    for w, sd in zip(noise.w.numpy(), sds[2], strict=True):
        H = np.eye(3) + V.T @ (np.diag(w) - np.outer(w, w) / w.sum()) @ V
        ours = sd / np.sqrt(model.explained_variance_)
        np.testing.assert_allclose(ours, np.sqrt(np.diag(np.linalg.inv(H))), rtol=0.05)
    assert not np.allclose(sds[2], sds[0], rtol=0.1)


# --- what the answers are ------------------------------------------------------------------------


def log_evidence_by_grid(x, V, mu, sigma2):
    """log p(x) for three features: the trapezoid rule over the two log-ratios."""
    Psi = sequential(["a", "b", "c"]).to_sparse().toarray()
    prior = multivariate_normal(mu @ Psi, Psi.T @ (V @ V.T + np.diag(sigma2)) @ Psi)
    axes = [
        m + np.linspace(-9, 9, 301) * s
        for m, s in zip(prior.mean, np.sqrt(np.diag(prior.cov)), strict=True)
    ]
    eta = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    logits = eta @ Psi.T
    log_p = logits - logsumexp(logits, axis=-1, keepdims=True)
    cell = sum(np.log(axis[1] - axis[0]) for axis in axes)
    coefficient = log_coefficient(torch.tensor(x)[None]).item()
    return coefficient + logsumexp(log_p @ x + prior.logpdf(eta)) + cell


@pytest.mark.parametrize("noise", ["isotropic", "by_feature"])
def test_scores_lie_a_little_below_log_evidence_by_quadrature(noise):
    table = simulate(60, 3, 1, 60, sigma2=0.2, rng=np.random.default_rng(4))
    model = MultinomialVAE(1, max_epochs=10, noise=noise).fit(table.counts)
    x = table.counts.toarray()[:8].astype(float)
    truth = [
        log_evidence_by_grid(row, loadings(model), model.mean_, model.feature_noise_variance_)
        for row in x
    ]
    distance = truth - model.score_samples(x)
    assert (distance > -1e-6).all()
    assert distance.max() < 0.5
    amortised = model.set_params(refinement_steps=0).score_samples(x)
    assert (truth - amortised > -1e-6).all()


def test_scores_of_all_samples_of_one_depth_sum_to_a_little_less_than_one():
    table = simulate(60, 3, 1, 60, sigma2=0.2, rng=np.random.default_rng(4))
    model = MultinomialVAE(1, max_epochs=5).fit(table.counts)
    x = np.array([(a, b, 5 - a - b) for a in range(6) for b in range(6 - a)])
    assert 0.7 < np.exp(model.score_samples(x)).sum() < 1


def test_score_is_the_mean_of_the_samples(model, X):
    assert model.score(X) == pytest.approx(model.score_samples(X).mean(), abs=1e-12)


def test_more_refinement_never_scores_lower_and_the_gap_is_what_it_can_gain(X):
    model = MultinomialVAE(**SMALL, refinement_steps=0).fit(X)
    gap, amortised = model.amortization_gap(X), model.score_samples(X)
    assert gap.shape == (90,)
    assert (gap >= 0).all() and gap.max() > 1e-3
    last = amortised
    for steps in (1, 2, 5):
        score = model.set_params(refinement_steps=steps).score_samples(X)
        # the overcount of the noise is reported too, and is not climbed
        assert (score > last - 0.05).all() and score.mean() > last.mean()
        last = score
    np.testing.assert_allclose(model.amortization_gap(X), gap, atol=1e-9)


def test_rows_do_not_influence_each_other(model, X):
    for method in (model.transform, model.score_samples, model.amortization_gap):
        together = method(X)
        alone = np.concatenate([method(X[i : i + 1]) for i in range(12)])
        np.testing.assert_allclose(alone, together[:12], atol=1e-9, rtol=1e-9)
        np.testing.assert_allclose(method(X[::-1])[::-1], together, atol=1e-9, rtol=1e-9)


def test_a_batch_boundary_changes_nothing(X):
    """Two rows more than a batch takes, of a table wide enough to make a batch short."""
    wide = np.random.default_rng(0).poisson(0.3, (60, 40_000)).astype(float)
    model = MultinomialVAE(1, max_epochs=1, encoder_depth=1, batch_size=16).fit(wide[:16])
    together = model.transform(wide)
    np.testing.assert_allclose(model.transform(wide[20:]), together[20:], atol=1e-9)


def test_moments_of_deep_samples_are_the_covariance_and_mean():
    table = simulate(80, 6, 2, 500, rng=np.random.default_rng(1))
    model = MultinomialVAE(2, max_epochs=3, noise="by_feature").fit(table.counts)
    n = 3000
    counts, y = model.sample(n, 10**12, random_state=0)
    assert (counts.sum(axis=1) == 10**12).all()
    clr, covariance = clr_counts(counts, 1e-9), model.get_covariance()
    variance = np.diag(covariance)
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)  # of a normal's moments
    assert (np.abs(np.cov(clr.T) - covariance) < 5 * error).all()
    assert (np.abs(clr.mean(0) - model.mean_) < 5 * np.sqrt(variance / n)).all()
    np.testing.assert_allclose(y.var(0), model.explained_variance_, rtol=5 * np.sqrt(2 / n))
    beta = np.linalg.lstsq(y, clr - clr.mean(0))[0]
    np.testing.assert_allclose(beta, model.components_, atol=5 * error.max())


def test_samples_have_the_depths_asked_for_or_those_of_the_fit(model, X):
    counts, y = model.sample(4, [1, 10, 100, 0], random_state=1)
    assert isinstance(counts, sp.csr_array) and y.shape == (4, 3)
    assert counts.sum(axis=1).tolist() == [1, 10, 100, 0]
    assert set(model.sample(20)[0].sum(axis=1)) <= set(X.sum(1))
    for first, again in zip(model.sample(3, 50), model.sample(3, 50), strict=True):
        assert (abs(first - again)).sum() == 0
    other = model.sample(3, 50, random_state=9)[1]
    assert not np.array_equal(model.sample(3, 50)[1], other)


def test_coordinates_of_deep_samples_are_those_that_made_them():
    table = simulate(150, 40, 2, 3000, sigma2=0.05, rng=np.random.default_rng(2))
    model = MultinomialVAE(2).fit(table.counts)
    counts, y = model.sample(60, 20_000, random_state=0)
    mean, sd = model.posterior(counts)
    assert 0.8 < ((mean - y) / sd).std() < 1.25
    for theirs, mine in zip(y.T, mean.T, strict=True):
        assert np.corrcoef(theirs, mine)[0, 1] > 0.95


# --- what a fit finds ----------------------------------------------------------------------------


def test_noise_variance_is_recovered_within_15_percent_on_a_small_flat_table():
    table = simulate(300, 40, 3, 1000, design="flat", rng=np.random.default_rng(0))
    model = MultinomialVAE(3, max_epochs=20).fit(table.counts)
    assert model.noise_variance_ == pytest.approx(0.1, rel=0.15)
    assert subspace_error(table.V[:, :2], loadings(model)) < 0.05


def test_noise_by_feature_recovers_the_order_of_uneven_noise():
    table = simulate(300, 30, 2, 5000, noise="uneven", rng=np.random.default_rng(1))
    model = MultinomialVAE(2, noise="by_feature", max_epochs=30).fit(table.counts)
    common = np.asarray(table.counts.sum(axis=0)) > 5 * 300
    order = spearmanr(model.feature_noise_variance_[common], table.feature_sigma2[common])
    assert common.sum() > 15 and order.statistic > 0.8


def test_noise_by_feature_scores_uneven_noise_higher():
    table = simulate(300, 30, 2, 5000, noise="uneven", rng=np.random.default_rng(1))
    train, test = table.counts[:200], table.counts[200:]
    by_feature, isotropic = (
        MultinomialVAE(2, noise=noise, max_epochs=20).fit(train).score(test)
        for noise in ("by_feature", "isotropic")
    )
    assert by_feature > isotropic + 1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_fit_raises_the_bound_and_scores_above_its_own_start(X, optimizer):
    settings = {"n_components": 3, "optimizer": optimizer, "encoder_width": 16}
    short = MultinomialVAE(**settings, max_epochs=1, learning_rate=1e-9).fit(X)
    long = MultinomialVAE(**settings, max_epochs=30).fit(X)
    assert long.score(X) > short.score(X) + 0.05
    assert long.history_["bound"].iloc[-1] > long.history_["bound"].iloc[0] + 0.3


def test_permuted_features_permute_the_answer():
    """With one layer, and few enough features that the start is exact, nothing is random in d."""
    table = simulate(80, 12, 2, 400, rng=np.random.default_rng(3))
    order = np.random.default_rng(4).permutation(12)
    settings = {"encoder_depth": 1, "posterior_variance": "shared", "max_epochs": 5}
    one = MultinomialVAE(2, **settings).fit(table.counts)
    other = MultinomialVAE(2, **settings).fit(table.counts[:, order])
    np.testing.assert_allclose(other.mean_, one.mean_[order], atol=2e-3)
    np.testing.assert_allclose(other.components_, one.components_[:, order], atol=2e-3)
    np.testing.assert_allclose(other.explained_variance_, one.explained_variance_, rtol=2e-3)
    assert other.noise_variance_ == pytest.approx(one.noise_variance_, rel=2e-3)


@pytest.mark.parametrize("posterior_variance", ["per_sample", "shared"])
@pytest.mark.parametrize("encoder_depth", [1, 2, 4])
@pytest.mark.parametrize("activation", ["silu", "relu", "softplus"])
def test_every_encoder_fits(X, encoder_depth, posterior_variance, activation):
    model = MultinomialVAE(
        **SMALL,
        encoder_depth=encoder_depth,
        posterior_variance=posterior_variance,
        activation=activation,
        pseudocount=0.5,
    ).fit(X)
    assert np.isfinite(model.transform(X)).all() and np.isfinite(model.score_samples(X)).all()


# --- the same bits -------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_seed_differs(X, model):
    assert_same_bits(MultinomialVAE(**SMALL).fit(X), model)
    other = MultinomialVAE(**SMALL, random_state=1).fit(X)
    assert not np.array_equal(other.components_, model.components_)


def test_fitting_touches_no_global_state(X):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    MultinomialVAE(**SMALL).fit(X)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def test_fit_transform_equals_fit_and_transform_exactly(X, model):
    np.testing.assert_array_equal(MultinomialVAE(**SMALL).fit_transform(X), model.transform(X))


def test_all_kinds_of_table_give_the_same_bits(X, model, named):
    kinds = [
        X.astype(float),
        X.astype(np.int32),
        X.tolist(),
        sp.csr_array(X),
        sp.csc_array(X),
        sp.csr_matrix(X),
        sp.coo_array(X),
        pd.DataFrame(X, columns=named.feature_ids, index=named.sample_ids),
        named,
    ]
    y, scores = model.transform(X), model.score_samples(X)
    for kind in kinds:
        other = MultinomialVAE(**SMALL).fit(kind)
        assert_same_bits(other, model)
        np.testing.assert_array_equal(other.transform(kind), y)
        np.testing.assert_array_equal(other.score_samples(kind), scores)


def test_the_caller_s_table_is_not_changed(X):
    for table in (X.astype(float), sp.csr_array(X.astype(float))):
        before = table.copy()
        model = MultinomialVAE(**SMALL).fit(table)
        model.transform(table)
        assert abs(before - table).sum() == 0


# --- names ---------------------------------------------------------------------------------------


def test_names_of_features_are_kept_and_reordered_ones_are_aligned(named):
    model = MultinomialVAE(**SMALL).fit(named)
    np.testing.assert_array_equal(model.feature_names_in_, named.feature_ids)
    assert "f0" in model.basis_operator_.names[0]
    order = np.random.default_rng(0).permutation(20)
    shuffled = named.select_features(order)
    assert shuffled.feature_ids.tolist() != named.feature_ids.tolist()
    np.testing.assert_array_equal(model.transform(shuffled), model.transform(named))
    np.testing.assert_array_equal(model.score_samples(shuffled), model.score_samples(named))


def test_features_that_are_missing_or_unknown_are_told_by_number_and_reads(named):
    model = MultinomialVAE(**SMALL).fit(named.select_features(np.delete(np.arange(20), 5)))
    lacking = named.select_features(np.delete(np.arange(20), [3, 7]))
    with pytest.warns(CountvaeWarning, match=r"^X: 17 of 19 .*; 2 are not, and 1 others are left"):
        y = model.transform(lacking)
    part = model.subcomposition([j for j in range(19) if j not in (3, 6)])
    known = lacking.select_features(np.delete(np.arange(18), 4))
    np.testing.assert_allclose(part.transform(known), y, atol=1e-12)
    for answer in (model.denoise, model.amortization_gap, model.sample_like):
        with pytest.raises(
            InputError, match=r"^X: the table lacks 2 features .* 'f3', 'f7'; `match`"
        ):
            answer(lacking)


def test_too_small_an_overlap_is_refused_unless_told(named):
    model = MultinomialVAE(**SMALL).fit(named)
    few = named.select_features(np.arange(6))
    with pytest.raises(InputError, match=r"^X: 6 of 20 .* Less than min_overlap=0.5 is shared"):
        model.transform(few)
    with pytest.warns(CountvaeWarning, match="6 of 20"):
        assert model.set_params(min_overlap=0.3).transform(few).shape == (few.n, 3)
    with pytest.raises(InputError, match="none of its features"):
        renamed = CountTable(few.counts, few.sample_ids, np.array(list("uvwxyz"), dtype=object))
        model.transform(renamed)


@pytest.mark.parametrize("noise", ["isotropic", "by_feature"])
def test_a_subcomposition_is_the_law_of_the_counts_given_how_many_fall_on_it(named, noise):
    model = MultinomialVAE(**SMALL, noise=noise).fit(named)
    at = np.array([4, 0, 11, 17, 9, 2])
    part = model.subcomposition(named.feature_ids[at])
    assert part.feature_ids_ == [f"f{j}" for j in at]
    y = model.transform(named)[:7]
    whole = model.inverse_transform(y)[:, at]
    closed = whole / whole.sum(1, keepdims=True)
    np.testing.assert_allclose(part.inverse_transform(y), closed, rtol=1e-10)
    np.testing.assert_array_equal(part.feature_noise_variance_, model.feature_noise_variance_[at])
    # log-ratios among these features vary as they do in the whole
    for law, features in ((part, np.arange(6)), (model, at)):
        C = law.get_covariance()[np.ix_(features, features)]
        ratios = np.diag(C)[:, None] + np.diag(C) - 2 * C
        if law is part:
            expected = ratios
    np.testing.assert_allclose(ratios, expected, rtol=1e-9, atol=1e-9)
    counts, drawn = part.sample(5, 200, random_state=0)
    assert counts.shape == (5, 6) and drawn.shape == (5, 3)
    with pytest.raises(InputError, match="is not saved"):
        part.save("nowhere")


def test_without_an_encoder_answers_are_the_optimum(named):
    model = MultinomialVAE(**SMALL, refinement_steps=30).fit(named)
    part = model.subcomposition(np.arange(20))
    np.testing.assert_allclose(part.transform(named), model.transform(named), atol=1e-5)
    np.testing.assert_allclose(part.score_samples(named), model.score_samples(named), atol=1e-6)
    np.testing.assert_allclose(part.loadings_, model.loadings_, atol=1e-10)


def test_features_that_were_not_measured_mislead_less_when_left_out_than_as_zeros():
    truth = simulate(400, 60, 3, 2000, design="flat", rng=np.random.default_rng(2))
    ids = (
        np.array([f"{x}{i}" for i in range(n)], dtype=object) for x, n in (("s", 400), ("f", 60))
    )
    table = CountTable(truth.counts, *ids)
    model = MultinomialVAE(3, max_epochs=20).fit(table)
    whole = model.transform(table)
    half = table.select_features(np.arange(0, 60, 2))
    with pytest.warns(CountvaeWarning, match="30 of 60"):
        left_out = model.set_params(min_overlap=0.3).transform(half)
    zeros = model.transform(half.align_features(table.feature_ids)[0])
    error = [np.square(y - whole).mean() for y in (left_out, zeros)]
    assert error[0] < 0.25 * error[1]
    assert error[0] < 0.1 * np.square(whole).mean()


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        ([1], "at least two features, each once"),
        ([1, 1], "at least two features, each once"),
        (["f1", "x"], "not among the model's: 'x'"),
        ([1, 20], "not among the model's: 20"),
    ],
)
def test_features_of_a_subcomposition_are_the_models(named, features, sentence):
    with pytest.raises(InputError, match=f"^features: .*{sentence}"):
        MultinomialVAE(**SMALL).fit(named).subcomposition(features)


def test_a_table_of_another_width_is_refused_when_the_model_knows_no_names(model, named):
    with pytest.raises(ValueError, match="20 features"):
        model.transform(named.counts[:, :7])
    with pytest.raises(ValueError, match="features"):
        model.transform(named.select_features(np.arange(7)))


def test_names_are_forgotten_when_fitted_again_without(named, X):
    model = MultinomialVAE(**SMALL).fit(named)
    model.fit(X)
    assert not hasattr(model, "feature_names_in_")


def test_a_frame_comes_out_where_a_frame_is_asked_for(named, X):
    frame = pd.DataFrame(X, columns=named.feature_ids, index=named.sample_ids)
    y = MultinomialVAE(**SMALL).set_output(transform="pandas").fit_transform(frame)
    assert y.columns.tolist() == [f"multinomialvae{i}" for i in range(3)]
    assert y.index.tolist() == named.sample_ids.tolist()


def test_names_are_matched_in_a_few_passes_over_them_whatever_their_number(named):
    model = MultinomialVAE(**SMALL).fit(named)
    passes = []

    class Watched(np.ndarray):
        def __iter__(self):
            passes.append(len(self))
            return super().__iter__()

    again = CountTable(named.counts, named.sample_ids, named.feature_ids.view(Watched))
    passes.clear()
    model.transform(again)
    assert len(passes) < named.d / 2


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoder_depth": 1, "posterior_variance": "shared", "whiten": True},
        {"encoder_depth": 3, "noise": "by_feature", "activation": "gelu"},
        {"basis": "sequential", "refinement_steps": 0, "pseudocount": 0.5},
        {"validation_fraction": 0.2, "patience": 2, "random_state": None},
    ],
)
def test_a_loaded_model_answers_with_identical_bits(settings, named, tmp_path):
    model = MultinomialVAE(**SMALL | settings).fit(named)
    model.save(tmp_path / "model")
    loaded = MultinomialVAE.load(tmp_path / "model")
    assert_same_bits(loaded, model)
    for name in ("loadings_", "explained_variance_ratio_", "depth_", "feature_names_in_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
    for name in ("n_components_", "n_iter_", "n_features_in_", "noise_variance_"):
        assert getattr(loaded, name) == getattr(model, name)
    pd.testing.assert_frame_equal(loaded.history_, model.history_)
    assert (loaded.basis_ != model.basis_).nnz == 0
    assert loaded.basis_operator_.names.tolist() == model.basis_operator_.names.tolist()
    for method in ("transform", "score_samples", "amortization_gap"):
        np.testing.assert_array_equal(getattr(loaded, method)(named), getattr(model, method)(named))
    parameters = loaded.get_params()
    for name, value in model.get_params().items():
        if name not in ("basis", "progress"):
            assert parameters[name] == value, name


def test_a_loaded_model_can_be_fitted_and_saved_again(model, X, tmp_path):
    model.save(tmp_path / "model")
    loaded = MultinomialVAE.load(tmp_path / "model")
    assert_same_bits(clone(loaded).fit(X), model)
    loaded.save(tmp_path / "again")
    assert_same_bits(MultinomialVAE.load(tmp_path / "again"), model)


def test_numpy_s_numbers_are_settings_like_any(X, tmp_path):
    model = MultinomialVAE(
        np.int64(2),
        max_epochs=np.int64(2),
        pseudocount=np.float64(1),
        learning_rate=np.float32(0.02),
        random_state=np.int64(3),
    ).fit(X)
    model.save(tmp_path / "model")
    assert_same_bits(MultinomialVAE.load(tmp_path / "model"), model)


def test_the_folder_holds_safetensors_and_json_and_no_pickle(model, tmp_path):
    model.save(tmp_path / "model", extra_files={"note.txt": lambda path: path.write_text("hi")})
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert files.keys() == {"model.safetensors", "config.json", "note.txt"}
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(Exception):  # noqa: B017 - whatever pickle makes of it, it is not one
            pickle.loads(files[name])
    assert json.loads(files["config.json"])["settings"]["parameters"]["n_components"] == 3


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_an_altered_truncated_or_missing_file_is_refused(model, tmp_path, file):
    folder = tmp_path / "model"
    model.save(folder)
    content = (folder / file).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for spoilt in (flipped, content[:middle], b""):
        (folder / file).write_bytes(spoilt)
        with pytest.raises(InputError, match=file):
            MultinomialVAE.load(folder)
    (folder / file).unlink()
    with pytest.raises(InputError, match=file):
        MultinomialVAE.load(folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    countvae.store.save(tmp_path / "other", {"a": np.zeros(3)}, {"b": 1})
    with pytest.raises(InputError, match="not a MultinomialVAE"):
        MultinomialVAE.load(tmp_path / "other")


@pytest.mark.parametrize("name", ["checkpoint", "init", "basis"])
def test_a_model_s_settings_name_no_places(model, tmp_path, name):
    arrays, settings = store.load(_saved(model, tmp_path / "model"))
    settings["parameters"][name] = str(tmp_path / "victim")
    store.save(tmp_path / "model", arrays, settings, force=True)
    with pytest.raises(InputError, match="not a MultinomialVAE"):
        MultinomialVAE.load(tmp_path / "model")


def test_sizes_in_a_model_s_settings_are_not_trusted(model, tmp_path):
    arrays, settings = store.load(_saved(model, tmp_path / "model"))
    for name, value in (("encoder_depth", 10**9), ("encoder_depth", 3), ("encoder_width", 10**9)):
        changed = settings | {"parameters": settings["parameters"] | {name: value}}
        store.save(tmp_path / "model", arrays, changed, force=True)
        with pytest.raises(InputError, match="not a MultinomialVAE"):
            MultinomialVAE.load(tmp_path / "model")


def _saved(model, path):
    model.save(path)
    return path


def test_nothing_is_overwritten_without_force(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(InputError):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", force=True)


# --- what is refused, and what is taken with a warning -------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("n_components", 0),
        ("n_components", 2.5),
        ("n_components", "three"),
        ("n_components", True),
        ("encoder_depth", 0),
        ("encoder_width", 0),
        ("activation", "sigmoid"),
        ("pseudocount", 0),
        ("pseudocount", -1.0),
        ("pseudocount", float("nan")),
        ("pseudocount", "one"),
        ("basis", "phylogeny.nwk"),
        ("basis", np.eye(20)),
        ("noise", "none"),
        ("posterior_variance", "full"),
        ("refinement_steps", -1),
        ("optimizer", "lbfgs"),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("max_epochs", 0),
        ("batch_size", 0),
        ("validation_fraction", 1.0),
        ("validation_fraction", -0.1),
        ("validation_fraction", float("nan")),
        ("validation_fraction", "half"),
        ("patience", 0),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence_that_names_it(X, setting, value):
    with pytest.raises(InputError, match=setting) as refused:
        MultinomialVAE(**SMALL | {setting: value}).fit(X)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (-1, "-1 in sample 1, feature 2"),
        (np.nan, "nan in sample 1, feature 2"),
        (np.inf, "inf in sample 1, feature 2"),
    ],
)
def test_a_value_that_is_no_count_is_refused(X, value, sentence):
    spoilt = X.astype(float)
    spoilt[1, 2] = value
    for table in (spoilt, sp.csr_array(spoilt)):
        with pytest.raises(ValueError, match=sentence):
            MultinomialVAE(**SMALL).fit(table)


def test_a_wrong_count_in_a_table_with_names_is_called_by_them(named):
    counts = named.counts.astype(float).tolil()
    counts[1, 2] = -1
    spoilt = CountTable(sp.csr_array(counts), named.sample_ids, named.feature_ids)
    with pytest.raises(InputError, match="-1 in sample 's1', feature 'f2'"):
        MultinomialVAE(**SMALL).fit(spoilt)


def test_fractional_counts_and_empty_samples_are_taken_with_a_warning(X):
    fractional = X + np.where(np.random.default_rng(0).random(X.shape) < 0.3, 0.37, 0.0)
    with pytest.warns(CountvaeWarning, match="whole numbers"):
        model = MultinomialVAE(**SMALL).fit(fractional)
    assert np.isfinite(model.components_).all()
    empty = X.copy()
    empty[[4, 9]] = 0
    with pytest.warns(CountvaeWarning, match="2 of 90 have none: 4, 9"):
        model = MultinomialVAE(**SMALL).fit(empty)
    with pytest.warns(CountvaeWarning, match="none"):
        y = model.transform(empty[4:5])
    assert np.abs(y).max() < np.abs(model.transform(X)).max()


def test_a_table_without_a_read_is_refused():
    with (
        pytest.warns(CountvaeWarning),
        pytest.raises(InputError, match="every sample is empty"),
    ):
        MultinomialVAE(**SMALL).fit(np.zeros((10, 5)))


def test_too_many_components_are_lowered_with_a_warning(X):
    with pytest.warns(CountvaeWarning, match="n_components: .* not 50; using 19"):
        model = MultinomialVAE(50, max_epochs=2).fit(X)
    assert model.n_components_ == 19 and model.n_components == 50
    with pytest.warns(CountvaeWarning, match="using 9"):
        assert MultinomialVAE(50, max_epochs=2).fit(X[:10]).n_components_ == 9


def test_components_are_lowered_to_what_the_rows_left_for_training_carry(X):
    with pytest.warns(CountvaeWarning, match="n_components"):
        model = MultinomialVAE(9, max_epochs=2, validation_fraction=0.5).fit(X[:12])
    assert model.n_components_ <= 5
    assert np.isfinite(model.transform(X)).all()


@pytest.mark.parametrize(("n", "share"), [(3, 0.9), (2, 0.5)])
def test_a_validation_share_that_leaves_too_little_to_train_on_is_refused(X, n, share):
    with warnings.catch_warnings(), pytest.raises(InputError, match="validation_fraction"):
        warnings.simplefilter("ignore", CountvaeWarning)
        MultinomialVAE(2, max_epochs=2, validation_fraction=share).fit(X[:n])


@pytest.mark.parametrize("depth", [[1, 2], -5, np.nan, 2.7])
def test_a_bad_depth_to_draw_at_is_refused_in_a_sentence(model, depth):
    with pytest.raises(InputError, match="depth"):
        model.sample(3, depth)


FEW = np.random.default_rng(0).poisson(4, (20, 6))
HARDLY_TABLES = {
    "two samples of two features": np.array([[3, 1], [0, 9]]),
    "two samples": np.random.default_rng(0).poisson(2, (2, 30)),
    "two features": np.random.default_rng(0).poisson(9, (30, 2)),
    "a sample of one feature": np.r_[FEW, 500 * np.eye(6)[:1]],
    "samples of one feature each": 1000 * np.eye(6)[np.arange(24) % 6],
    "identical samples": np.tile([5, 3, 2, 1], (12, 1)),
    "features never seen": np.c_[FEW, np.zeros((20, 4))],
    "a billion reads an entry": np.random.default_rng(0).poisson(10**9, (20, 6)),
    "one read a sample": np.eye(8)[np.random.default_rng(0).integers(0, 8, 40)],
    "depths from 1 to a billion": np.random.default_rng(0).poisson(
        10.0 ** np.linspace(0, 9, 20)[:, None] * np.ones(5)
    )
    + np.eye(20, 5, dtype=int),
}


@pytest.mark.filterwarnings("ignore::countvae.errors.CountvaeWarning")
@pytest.mark.parametrize("noise", ["isotropic", "by_feature"])
@pytest.mark.parametrize("name", HARDLY_TABLES)
def test_results_are_finite_on(name, noise, tmp_path):
    X = HARDLY_TABLES[name]
    model = MultinomialVAE(2, max_epochs=4, encoder_width=8, noise=noise).fit(X)
    assert np.isfinite(model.get_covariance()).all() and model.noise_variance_ > 0
    assert np.isfinite(model.loadings_).all() and np.isfinite(model.history_).all(axis=None)
    for answer in (*model.posterior(X), model.score_samples(X), model.amortization_gap(X)):
        assert np.isfinite(answer).all()
    assert (model.score_samples(X) < 1e-6).all()
    assert (model.amortization_gap(X) >= 0).all()
    model.save(tmp_path / "model")


# --- the course of a fit -------------------------------------------------------------------------


def test_progress_is_told_each_row_of_the_history_and_how_long_it_may_take(X):
    told = []
    model = MultinomialVAE(**SMALL, progress=told.append).fit(X)
    assert [row.pop("max_epochs") for row in told] == [4] * 4
    assert [row.pop("waited") for row in told] == [0.0] * 4
    pd.testing.assert_frame_equal(pd.DataFrame(told), model.history_)
    assert model.n_iter_ == 4


def test_validation_rows_are_disjoint_from_those_trained_on(X, monkeypatch):
    seen = {}

    def spy(rows, *args, validation, **kwargs):
        seen["rows"], seen["validation"] = rows.counts.toarray(), validation.counts.toarray()
        return train(rows, *args, validation=validation, **kwargs)

    train = countvae.estimator.train
    monkeypatch.setattr(countvae.estimator, "train", spy)
    marked = X.copy()
    marked[:, 0] = 1000 + np.arange(90)
    model = MultinomialVAE(**SMALL, validation_fraction=0.3).fit(marked)
    trained, held = set(seen["rows"][:, 0]), set(seen["validation"][:, 0])
    assert len(held) == 27 and trained | held == set(marked[:, 0]) and not trained & held
    # training saw the held-out rows through nothing but the epoch it kept
    assert model.history_["validation_bound"].notna().all()
    np.testing.assert_array_equal(model.depth_, seen["rows"].sum(1))


def test_patience_stops_a_fit(X):
    model = MultinomialVAE(
        3, max_epochs=60, learning_rate=0.3, validation_fraction=0.3, patience=3, encoder_width=8
    ).fit(X)
    bounds = model.history_["validation_bound"]
    assert model.n_iter_ == len(bounds) < 60
    assert len(bounds) - 1 - bounds.argmax() == 3


def test_a_fit_that_diverged_is_tried_again_with_a_smaller_rate_and_a_warning(X, monkeypatch):
    train, rates = countvae.estimator.train, []

    def diverges_once(rows, encoder, decoder, schedule, **kwargs):
        rates.append(schedule.learning_rate)
        if len(rates) == 1:
            raise Diverged("the bound is not finite in epoch 1")
        return train(rows, encoder, decoder, schedule, **kwargs)

    monkeypatch.setattr(countvae.estimator, "train", diverges_once)
    with pytest.warns(CountvaeWarning, match="trying again with a learning rate of 0.008"):
        model = MultinomialVAE(**SMALL, learning_rate=0.08).fit(X)
    assert rates[0] == 0.08 and rates[1] < 0.08 and len(rates) == 2
    monkeypatch.undo()
    assert_same_bits(model, MultinomialVAE(**SMALL, learning_rate=rates[1]).fit(X))


def test_a_fit_that_always_diverges_says_so(X, monkeypatch):
    def diverges(*args, **kwargs):
        raise Diverged("the bound is not finite in epoch 1")

    monkeypatch.setattr(countvae.estimator, "train", diverges)
    with pytest.warns(CountvaeWarning), pytest.raises(Diverged, match="not finite"):
        MultinomialVAE(**SMALL).fit(X)


def test_a_fit_that_diverges_names_the_samples_and_leaves_the_best_epoch(X, monkeypatch):
    rows = pd.DataFrame(X, index=[f"infant {i}" for i in range(len(X))])
    bound_of, broken = countvae.training.noise_bound, []

    def not_finite_once_broken(m0, Q, noise):
        bound = bound_of(m0, Q, noise)
        return bound.index_fill(0, torch.arange(2), torch.nan) if broken and broken.pop() else bound

    def break_after_three(row):
        broken.extend([True] * (row["epoch"] == 3))

    monkeypatch.setattr(countvae.training, "noise_bound", not_finite_once_broken)
    model = MultinomialVAE(**SMALL | {"max_epochs": 8}, progress=break_after_three)
    said = r"not finite in epoch 4, in samples 'infant \d+', 'infant \d+'"
    with pytest.warns(CountvaeWarning, match=said + "; trying again with a learning rate of"):
        with pytest.raises(Diverged, match=said):
            model.fit(rows)
    assert model.n_iter_ == 3 and np.isfinite(model.transform(rows)).all()


def test_of_two_attempts_that_diverge_the_better_one_is_kept(X, monkeypatch):
    take, attempts = countvae.training._epoch, []

    def diverges(number, phase, state, *rest):
        attempts.extend([state] * (number == 0))
        if number == (5 if len(attempts) == 1 else 0):
            raise state.diverged("the bound is not finite")
        return take(number, phase, state, *rest)

    monkeypatch.setattr(countvae.training, "_epoch", diverges)
    model = MultinomialVAE(**SMALL | {"max_epochs": 8})
    with pytest.warns(CountvaeWarning, match="trying again"), pytest.raises(Diverged) as found:
        model.fit(X)
    assert len(attempts) == 2
    assert model.n_iter_ == len(found.value.history) == 5
    assert np.isfinite(model.transform(X)).all()


def test_epochs_by_default_follow_from_the_samples(X):
    settings = {"n_components": 1, "encoder_depth": 1}
    assert MultinomialVAE(**settings).fit(X[:20]).n_iter_ == 70
    assert 9 <= MultinomialVAE(**settings).fit(np.tile(X, (24, 1))).n_iter_ < 70


def test_a_model_is_saved_as_it_was_fitted_whatever_was_set_since(X, tmp_path):
    model = MultinomialVAE(**SMALL).fit(X)
    y = model.transform(X)
    model.set_params(encoder_depth=4, pseudocount=5.0, activation="relu", n_components=7)
    model.set_params(whiten=True).save(tmp_path / "m")
    loaded = MultinomialVAE.load(tmp_path / "m")
    assert loaded.whiten and loaded.encoder_depth == MultinomialVAE(**SMALL).encoder_depth
    np.testing.assert_array_equal(loaded.set_params(whiten=False).transform(X), y)


def test_settings_of_answers_are_checked_when_they_are_used(X):
    model = MultinomialVAE(**SMALL).fit(X)
    with pytest.raises(InputError, match="refinement_steps"):
        model.set_params(refinement_steps=-1).transform(X)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", True), ("whiten", "yes"), ("shrink_loadings", "no"), ("progress", 3)],
)
def test_a_setting_of_the_wrong_kind_is_named(X, name, value):
    with pytest.raises(InputError, match=f"{name}: expected"):
        MultinomialVAE(**SMALL | {name: value}).fit(X)


def test_as_many_factors_as_samples_do_not_drive_the_noise_away():
    truth = simulate(12, 60, 3, 1000, rng=np.random.default_rng(1))
    model = MultinomialVAE(11, shrink_loadings=False, encoder_width=8).fit(truth.counts)
    assert model.noise_variance_ < 20 * truth.sigma2


def test_the_fall_of_the_bound_when_the_prior_begins_is_no_reason_to_stop():
    truth = simulate(400, 80, 4, 1000, rng=np.random.default_rng(1))
    model = MultinomialVAE(4, patience=3, encoder_width=16).fit(truth.counts)
    assert model.n_iter_ > 30


# ---- checkpoints


class BrokenOff(Exception):
    pass


def broken_off_after(epoch):
    def progress(row):
        if row["epoch"] == epoch + 1:
            raise BrokenOff

    return progress


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"validation_fraction": 0.2}])
@pytest.mark.parametrize("epoch", [1, 3, 9])
def test_a_fit_that_was_broken_off_ends_as_if_it_had_not_been(
    X, tmp_path, monkeypatch, settings, epoch
):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    settings = {"n_components": 2, "max_epochs": 11, "noise": "by_feature"} | settings
    whole = MultinomialVAE(**settings).fit(X)
    resumed = MultinomialVAE(**settings, checkpoint=tmp_path / "state")
    with pytest.raises(BrokenOff):
        resumed.set_params(progress=broken_off_after(epoch)).fit(X)
    assert (tmp_path / "state").is_dir()
    resumed.set_params(progress=None).fit(X)
    assert (tmp_path / "state").is_dir(), "gone before the model was saved"
    np.testing.assert_array_equal(clone(resumed).fit(X).transform(X), whole.transform(X))
    resumed.save(tmp_path / "model")
    assert not (tmp_path / "state").exists()
    pd.testing.assert_frame_equal(resumed.history_, whole.history_)
    np.testing.assert_array_equal(resumed.components_, whole.components_)
    np.testing.assert_array_equal(resumed.transform(X), whole.transform(X))


@pytest.fixture
def interruptible():
    """Shells ignore interrupts for what they run in the background, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "sgd", "noise": "by_feature"},
        {"validation_fraction": 0.2},
        {"grid": (3, 3)},
        {"posterior_variance": "none"},
        {"formula": "~ age"},
    ],
)
@pytest.mark.parametrize("after", [1, 5, 17, 29, 30, 32])
def test_a_fit_that_is_told_to_stop_ends_its_step_and_goes_on_with_the_next(
    X, tmp_path, monkeypatch, settings, after
):
    """At any place: the first epoch, with the prior, as the decoder settles, and after that."""
    kind = ConvMultinomialVAE if "grid" in settings else MultinomialVAE
    more = {"decoder": "network"} if "grid" in settings else {}
    X, n = X[:, :9], round(len(X) * (1 - settings.get("validation_fraction", 0)))
    if "formula" in settings:
        samples, features = (np.array([f"{i}" for i in range(size)], object) for size in X.shape)
        age = pd.DataFrame({"age": np.linspace(0, 1, n) ** 2}, samples)
        X = CountTable(sp.csr_array(X), samples, features, age)
    settings = {"n_components": 2, "max_epochs": 11, "batch_size": -(-n // 3)} | settings | more
    whole = kind(**settings).fit(X)
    taken, take = [], countvae.training.step

    def counted(optimizer):
        take(optimizer)
        taken.append(1)
        if len(taken) == after:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(countvae.training, "step", counted)
    model = kind(**settings, checkpoint=tmp_path / "state")
    with pytest.raises(KeyboardInterrupt, match="has what was done"):
        model.fit(X)
    assert len(taken) == after
    model.fit(X)
    assert len(taken) == 33
    pd.testing.assert_frame_equal(model.history_, whole.history_)
    np.testing.assert_array_equal(model.transform(X), whole.transform(X))


@pytest.mark.usefixtures("interruptible")
def test_a_state_within_an_epoch_is_for_one_process(X, tmp_path, monkeypatch):
    def stop(optimizer):
        signal.raise_signal(signal.SIGINT)

    model = MultinomialVAE(2, max_epochs=3, checkpoint=tmp_path / "state")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(countvae.training, "step", stop)
        model.fit(X)
    monkeypatch.setattr(Processes, "_each", lambda self, exchange, parts: None)
    monkeypatch.setattr(countvae.estimator, "joined", lambda: Processes(2, 0))
    with pytest.raises(InputError, match="one process left it within an epoch; go on by one"):
        model.fit(X)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_does_not_wait():
    with noted() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_checkpoint_of_another_fit_or_of_none_is_refused_and_kept(X, tmp_path, monkeypatch):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    state = tmp_path / "state"
    model = MultinomialVAE(2, max_epochs=4, checkpoint=state, progress=broken_off_after(2))
    with pytest.raises(BrokenOff):
        model.fit(X)
    other = MultinomialVAE(3, max_epochs=4, checkpoint=state)
    with pytest.raises(InputError, match="of another fit, with other n_components"):
        other.fit(X)
    with pytest.raises(InputError, match="of another fit, with other counts, samples, shape"):
        MultinomialVAE(2, max_epochs=4, checkpoint=state).fit(X[:-1])
    assert state.is_dir()
    MultinomialVAE.forget(state)
    assert not state.exists()
    MultinomialVAE(2, max_epochs=2).fit(X).save(tmp_path / "model")
    with pytest.raises(InputError, match="is no checkpoint"):
        MultinomialVAE(2, max_epochs=4, checkpoint=tmp_path / "model").fit(X)
    with pytest.raises(InputError, match="is no checkpoint"):
        MultinomialVAE.forget(tmp_path / "model")
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize("damage", ["cut", "gone", "altered", "empty", "unreadable"])
def test_of_a_damaged_state_the_one_before_is_taken(X, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    settings = {"n_components": 2, "max_epochs": 7}
    whole = MultinomialVAE(**settings).fit(X)
    resumed = MultinomialVAE(**settings, checkpoint=tmp_path / "state")
    with pytest.raises(BrokenOff):
        resumed.set_params(progress=broken_off_after(4)).fit(X)
    states = sorted((tmp_path / "state").iterdir())
    assert [state.name for state in states] == ["0-000003", "0-000004"]
    file = states[1] / "model.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "empty":  # as a loss of power may leave it
        (states[1] / "config.json").write_bytes(b"")
    elif damage == "unreadable":
        read = Path.read_bytes

        def fails(path):
            if path == file:
                raise OSError(errno.EIO, "Input/output error")
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", fails)
    else:
        content = file.read_bytes()
        file.write_bytes(content[:99] if damage == "cut" else content[:-1] + b"?")
    resumed.set_params(progress=None)
    with pytest.warns(CountvaeWarning, match="going on from the state before"):
        resumed.fit(X)
    np.testing.assert_array_equal(resumed.transform(X), whole.transform(X))
    assert store.is_model(sorted((tmp_path / "state").iterdir())[-1])


def test_a_resumed_fit_that_diverges_at_once_ends_at_the_state_it_went_on_from(
    X, tmp_path, monkeypatch
):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(countvae.estimator, "RETRIES", 0)
    model = MultinomialVAE(2, max_epochs=6, checkpoint=tmp_path / "state")
    with pytest.raises(BrokenOff):
        model.set_params(progress=broken_off_after(4)).fit(X)

    def fail(*_, **__):
        raise torch.linalg.LinAlgError("eigh: did not converge")

    monkeypatch.setattr(Moments, "rescale", fail)
    with pytest.raises(Diverged, match="no covariance in epoch 5"):
        model.set_params(progress=None).fit(X)
    assert model.n_iter_ == 4
    assert np.isfinite(model.transform(X)).all()


def changed(state, change):
    """Change arrays and settings of a state, and seal it as its author could."""
    arrays, settings = store.load(state)
    change(arrays, settings)
    store.save(state, arrays, settings, force=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, settings: settings.pop("fit"),
        lambda arrays, settings: settings.update(attempt=1),
        lambda arrays, settings: settings.update(state=[]),
        lambda arrays, settings: settings["state"].pop("rates"),
        lambda arrays, settings: settings["state"].update(rates=[0.1]),
        lambda arrays, settings: settings["state"]["history"].pop(),
        lambda arrays, settings: settings["state"]["history"][0].pop("bound"),
        lambda arrays, settings: settings["state"]["history"][0].update(sigma2="1"),
        lambda arrays, settings: arrays.pop("now.decoder.V"),
        lambda arrays, settings: arrays.update({"now.decoder.V": arrays["now.decoder.V"][:, :1]}),
        lambda arrays, settings: arrays.update({"best.decoder.V": arrays["now.decoder.V"]}),
        lambda arrays, settings: arrays.update(log_scale=arrays["log_scale"][1:]),
        lambda arrays, settings: arrays.update(generator=arrays["generator"][:9]),
        lambda arrays, settings: arrays.pop("optimizer.0.exp_avg"),
        lambda arrays, settings: arrays.update({"optimizer.0.exp_avg": np.zeros((1, 2))}),
        lambda arrays, settings: arrays.update({"optimizer.99.step": np.zeros(())}),
        lambda arrays, settings: arrays.update({"shrinkage.tau2": np.ones(3)}),
        lambda arrays, settings: settings["state"].update(steps=1),
    ],
)
def test_a_state_that_was_altered_and_sealed_again_is_refused(X, tmp_path, monkeypatch, change):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(countvae.checkpoint, "KEPT", 1)
    model = MultinomialVAE(2, max_epochs=6, checkpoint=tmp_path / "state")
    with pytest.raises(BrokenOff):
        clone(model).set_params(progress=broken_off_after(4)).fit(X)
    changed(tmp_path / "state" / "0-000004", change)
    with pytest.raises(DamagedModel, match=r"0-000004: is not the state of .* fit, so it was"):
        model.fit(X)


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt, MemoryError, ProcessLost, RuntimeError("std::bad_alloc")]
)
def test_a_fit_that_ends_without_fault_leaves_its_last_epoch(X, tmp_path, end):
    whole = MultinomialVAE(2, max_epochs=5).fit(X)

    def stop(row):
        if row["epoch"] == 4:
            raise end

    model = MultinomialVAE(2, max_epochs=5, checkpoint=tmp_path / "state")
    with pytest.raises(end if isinstance(end, type) else RuntimeError):
        clone(model).set_params(progress=stop).fit(X)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["0-000003"]
    np.testing.assert_array_equal(model.fit(X).transform(X), whole.transform(X))


def test_a_fit_that_fails_leaves_the_estimator_as_it_was(X, monkeypatch):
    new, old = MultinomialVAE(2, max_epochs=3), MultinomialVAE(2, max_epochs=3).fit(X)
    before = dict(vars(old))

    def fail(*_, **__):
        raise torch.linalg.LinAlgError("svd: did not converge")

    for place in ("_begin", "_identify"):
        with monkeypatch.context() as patch:
            patch.setattr(MultinomialVAE, place, fail)
            for model in (new, old):
                with pytest.raises(Diverged, match="a matrix cannot be factored: svd: did not"):
                    model.fit(X[:-1, :-1])
    assert not [name for name in vars(new) if name.endswith("_")]
    assert vars(old) == before


def test_a_covariance_that_cannot_be_factored_is_divergence_at_the_best_epoch(X, monkeypatch):
    rescale, done = Moments.rescale, []

    def fail_later(self, *given, **named):
        done.append(1)
        if len(done) % 3 == 0:
            raise torch.linalg.LinAlgError("eigh: did not converge")
        return rescale(self, *given, **named)

    monkeypatch.setattr(Moments, "rescale", fail_later)
    model = MultinomialVAE(2, max_epochs=9)
    with pytest.warns(CountvaeWarning, match="no covariance in epoch 3; trying again"):
        with pytest.raises(Diverged, match="no covariance in epoch 3"):
            model.fit(X)
    assert model.n_iter_ == 2
    assert np.isfinite(model.transform(X)).all()


def test_a_checkpoint_knows_a_table_of_the_same_depths_and_names_from_its_own(
    X, tmp_path, monkeypatch
):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    frame = pd.DataFrame(X, columns=[f"f{j}" for j in range(X.shape[1])])
    model = MultinomialVAE(2, max_epochs=4, checkpoint=tmp_path / "state")
    with pytest.raises(BrokenOff):
        clone(model).set_params(progress=broken_off_after(2)).fit(frame)
    swapped = frame.copy()
    swapped.iloc[:, [0, 1]] = frame.iloc[:, [1, 0]].to_numpy()
    for other, what in ((swapped, "counts"), (frame.rename(columns={"f0": "g"}), "features")):
        with pytest.raises(InputError, match=f"of another fit, with other {what}"):
            clone(model).fit(other)
    clone(model).fit(frame)


def test_a_checkpoint_that_cannot_be_written_does_not_end_a_fit(X, tmp_path, monkeypatch):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    whole = MultinomialVAE(2, max_epochs=4).fit(X)
    (tmp_path / "state").touch()
    with pytest.raises(InputError, match="is no checkpoint"):
        MultinomialVAE(2, max_epochs=4, checkpoint=tmp_path / "state").fit(X)
    (tmp_path / "state").unlink()

    def stand_in_the_way(row):
        if row["epoch"] == 1:
            (tmp_path / "state").touch()

    model = MultinomialVAE(2, max_epochs=4, checkpoint=tmp_path / "state")
    with pytest.warns(CountvaeWarning, match="the fit goes on without this state"):
        model.set_params(progress=stand_in_the_way).fit(X)
    np.testing.assert_array_equal(model.transform(X), whole.transform(X))


def test_what_else_lies_in_a_checkpoint_stays(X, tmp_path, monkeypatch):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    model = MultinomialVAE(2, max_epochs=5, checkpoint=tmp_path / "state")
    with pytest.raises(BrokenOff):
        clone(model).set_params(progress=broken_off_after(2)).fit(X)
    (tmp_path / "state" / ".DS_Store").touch()
    (tmp_path / "state" / ".countvae-01234567-0-000003").mkdir()
    clone(model).fit(X).set_params(checkpoint=tmp_path / "state").save(tmp_path / "model")
    assert [path.name for path in (tmp_path / "state").iterdir()] == [".DS_Store"]


def test_states_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("0-999999", "0-1000000", "1-000001", "0-000002"):
        (tmp_path / name).mkdir()
    found = countvae.checkpoint.Checkpoint(tmp_path, dict)._states()
    assert [path.name for path in found] == ["1-000001", "0-1000000", "0-999999", "0-000002"]


def test_two_fits_do_not_share_a_checkpoint(X, tmp_path):
    model = MultinomialVAE(2, max_epochs=2, checkpoint=tmp_path / "state")

    def second(row):
        with pytest.raises(InputError, match="state: another run is writing to it"):
            MultinomialVAE(2, max_epochs=2, checkpoint=tmp_path / "state").fit(X)

    model.set_params(progress=second).fit(X)


def test_a_quick_fit_writes_no_checkpoint(X, tmp_path):
    seen = []

    def look(row):
        seen.append((tmp_path / "state").exists())

    MultinomialVAE(2, max_epochs=3, checkpoint=tmp_path / "state", progress=look).fit(X)
    assert seen == [False] * 3


# ---- what is believed of the proportions


@pytest.fixture(name="deep_table", scope="module")
def table_with_proportions():
    rng = np.random.default_rng(3)
    return simulate(300, 25, 3, 300, keep_proportions=True, rng=rng)


@pytest.fixture(name="deep_model", scope="module")
def model_of_it(deep_table):
    return MultinomialVAE(3, max_epochs=25).fit(deep_table.counts)


def test_denoised_proportions_are_closed_and_nearer_the_truth_than_the_counts(
    deep_table, deep_model
):
    proportions, clr, clr_sd = deep_model.denoise(deep_table.counts)
    np.testing.assert_allclose(proportions.sum(1), 1, rtol=1e-12)
    assert (proportions > 0).all()
    np.testing.assert_allclose(clr.sum(1), 0, atol=1e-10)
    truth = clr_counts(deep_table.proportions, 0.0)
    plain = clr_counts(deep_table.counts, 1.0)
    assert np.square(clr - truth).mean() < 0.5 * np.square(plain - truth).mean()
    shares = deep_table.counts.toarray() / deep_table.counts.sum(axis=1)[:, None]
    assert (
        np.abs(proportions - deep_table.proportions).sum()
        < np.abs(shares - deep_table.proportions).sum()
    )
    inside = np.abs(clr - truth) < 1.645 * clr_sd
    assert inside.mean() == pytest.approx(0.9, abs=0.06)


def test_samples_are_denoised_each_by_itself(deep_table, deep_model, monkeypatch):
    whole = deep_model.denoise(deep_table.counts[:7])
    alone = deep_model.denoise(deep_table.counts[3:4])
    for together, one in zip(whole, alone, strict=True):
        np.testing.assert_allclose(together[3:4], one, rtol=1e-9, atol=1e-12)


def test_tables_drawn_like_others_have_their_depth_and_their_proportions(deep_table, deep_model):
    some = deep_table.counts[:4]
    proportions, _, _ = deep_model.denoise(some)
    drawn = [deep_model.sample_like(some, depth=5000, random_state=i) for i in range(400)]
    mean = np.mean([counts.toarray() for counts, _ in drawn], axis=0) / 5000
    np.testing.assert_allclose(mean, proportions, atol=0.02)
    y = np.mean([coordinates for _, coordinates in drawn], axis=0)
    centre, sd = deep_model.posterior(some)
    assert (np.abs(y - centre) < 5 * sd / 20).all()
    counts, _ = deep_model.sample_like(some, random_state=0)
    assert counts.sum(axis=1).tolist() == some.sum(axis=1).tolist()
    depths = [10, 0, 7, 3]
    assert deep_model.sample_like(some, depths)[0].sum(axis=1).tolist() == depths


def test_evidence_lies_between_the_bound_and_log_p():
    truth = simulate(80, 4, 1, 12, rng=np.random.default_rng(5))
    model = MultinomialVAE(1, max_epochs=10).fit(truth.counts)
    x = truth.counts[:6].toarray()
    evidence, pareto_k = model.evidence(x, draws=2000, random_state=0)
    rng, draws = np.random.default_rng(1), 400_000
    V = loadings(model)
    eta = model.mean_ + rng.standard_normal((draws, 1)) @ V.T
    eta += np.sqrt(model.noise_variance_) * rng.standard_normal((draws, 4))
    log_p = eta - logsumexp(eta, axis=1, keepdims=True)
    exact = logsumexp(x @ log_p.T, axis=1) - np.log(draws)
    exact += log_coefficient(torch.from_numpy(x).double()).numpy()
    assert (evidence < exact + 0.01).all()
    assert (evidence > model.score_samples(x) - 0.01).all()
    assert (exact - evidence).mean() < 0.8 * (exact - model.score_samples(x)).mean()
    assert (pareto_k < 0.7).all()
    with pytest.raises(InputError, match="draws: expected a whole number >= 16; got 3"):
        model.evidence(x, draws=3)


def test_loadings_have_standard_deviations_that_cover_the_truth():
    truth = simulate(400, 40, 2, 3000, rng=np.random.default_rng(0))
    model = MultinomialVAE(2, max_epochs=30).fit(truth.counts)
    V, sd = loadings(model), model.clr_loadings_sd_
    turn, _, _, _ = np.linalg.lstsq(V, truth.V, rcond=None)
    left = V @ turn - truth.V
    expected = np.sqrt(sd**2 @ turn**2)
    assert (np.abs(left) < 1.645 * expected).mean() == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("early", [{"validation_fraction": 0.2}, {"patience": 1}])
def test_loadings_of_any_epoch_that_is_kept_have_standard_deviations(monkeypatch, shrink, early):
    """Of a fit that ends before its decoder settles, or whose best epoch came before that."""
    truth = simulate(150, 12, 2, 1000, rng=np.random.default_rng(0))
    falling = itertools.count(-1.0, -1.0)  # the first epoch is the best
    for where in (countvae.training, Moments):
        monkeypatch.setattr(where, "mean_bound", lambda *_, **__: next(falling))
    model = MultinomialVAE(2, max_epochs=20, shrink_loadings=shrink, **early).fit(truth.counts)
    assert model.best_epoch_ < 3
    information = 0.0
    for _, _, posterior in model._posteriors(truth.counts, 0):
        square = (posterior.z.square() + posterior.D).numpy()
        information = information + posterior.noise.w.numpy().T @ square
    kept = model._decoder.V_var.numpy()
    ratio = kept * (1 + information)
    assert np.median(ratio) == pytest.approx(1, abs=0.35)
    assert ratio.min() > 0.4 and ratio.max() < 2.5


def test_intervals_of_proportions_hold_the_true_ones_as_often_as_they_say():
    truth = simulate(150, 25, 2, 400, keep_proportions=True, rng=np.random.default_rng(1))
    model = MultinomialVAE(2, max_epochs=25).fit(truth.counts)
    for level in (0.5, 0.9):
        lower, upper = model.interval(truth.counts, level, random_state=0)
        within = (lower <= truth.proportions) & (truth.proportions <= upper)
        assert within.mean() == pytest.approx(level, abs=0.06)
        assert (lower > 0).all() and (lower < upper).all() and (upper < 1).all()
    np.testing.assert_array_equal(lower, model.interval(truth.counts, 0.9, random_state=0)[0])
    few = model.interval(truth.counts[:4], 0.9, draws=2000)
    means = model.denoise(truth.counts[:4])[0]
    assert ((few[0] < means) & (means < few[1])).mean() > 0.95
    for wrong in ({"level": 1.0}, {"level": 0.0}, {"draws": 5}):
        with pytest.raises(InputError, match=f"^{min(wrong)}: expected"):
            model.interval(truth.counts, **wrong)


# --- going on from another fit -------------------------------------------------------------------


@pytest.fixture(name="cohorts", scope="module")
def a_large_cohort_and_a_small_one():
    truth = simulate(640, 40, 3, 1000, rng=np.random.default_rng(4))
    return truth.counts[:400], truth.counts[400:440], truth.counts[440:]


@pytest.fixture(name="begun", scope="module")
def fit_of_the_large_cohort(cohorts):
    return MultinomialVAE(3, max_epochs=20).fit(cohorts[0])


def test_a_fit_that_goes_on_beats_one_from_scratch_on_a_small_cohort(cohorts, begun, tmp_path):
    _, few, new = cohorts
    begun.save(tmp_path / "m")
    further = MultinomialVAE(3, init=tmp_path / "m").fit(few)
    assert further.score(new) > MultinomialVAE(3).fit(few).score(new) + 0.5
    assert not np.array_equal(further.clr_loadings_, begun.clr_loadings_)
    again = MultinomialVAE(3, init=begun).fit(few)
    np.testing.assert_array_equal(again.components_, further.components_)


def test_what_is_frozen_stays(cohorts, begun):
    _, few, _ = cohorts
    kept = MultinomialVAE(3, init=begun, freeze="decoder", max_epochs=6).fit(few)
    for name in ("components_", "mean_", "noise_variance_", "explained_variance_"):
        np.testing.assert_allclose(getattr(kept, name), getattr(begun, name), rtol=1e-5, atol=1e-6)
    assert kept.amortization_gap(few).mean() < begun.amortization_gap(few).mean()
    kept = MultinomialVAE(3, init=begun, freeze="encoder", max_epochs=6).fit(few)
    assert not np.allclose(kept.components_, begun.components_, atol=1e-4)
    # the directions that the encoder reads are the same, whatever the units of the factors
    A, B = (np.linalg.qr(m._encoder.A.numpy())[0] for m in (kept, begun))
    np.testing.assert_allclose(A @ A.T, B @ B.T, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_components": 2}, "init: its n_components is 3, not 2"),
        ({"encoder_width": 9}, "init: its encoder_width is 128, not 9"),
        ({"init": None, "freeze": "decoder"}, "freeze: there is nothing to keep without init"),
        ({"freeze": "both"}, "freeze: expected one of"),
    ],
)
def test_a_fit_goes_on_only_from_one_of_its_kind(cohorts, begun, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        MultinomialVAE(**{"n_components": 3, "init": begun} | settings).fit(cohorts[1])


def test_a_fit_goes_on_only_with_the_same_features(cohorts, begun):
    with pytest.raises(InputError, match="init: has 40 features, and they are not the table's 39"):
        MultinomialVAE(3, init=begun).fit(cohorts[1][:, :39])
    with pytest.raises(InputError, match="no encoder to go on from"):
        MultinomialVAE(3, init=begun.subcomposition(np.arange(30))).fit(cohorts[1][:, :30])
