"""What holds of every kind of model: dense, on a grid, with a network behind it, without variance.

The flattened images are those of small blobs of light, photon by photon.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import multinomial
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import countvae.checkpoint
from countvae import ConvMultinomialVAE, MultinomialVAE
from countvae.errors import ArgumentError, CountvaeWarning, FeaturesDiffer, InputError
from countvae.table import CountTable

SHAPE = (6, 5)
QUICK = {"n_components": 2, "max_epochs": 6, "encoder_width": 8}
KINDS = {
    "dense": MultinomialVAE(**QUICK),
    "autoencoder": MultinomialVAE(posterior_variance="none", **QUICK),
    "convolutional": ConvMultinomialVAE(grid=SHAPE, **QUICK),
    "network": ConvMultinomialVAE(grid=SHAPE, decoder="network", **QUICK),
    "line": ConvMultinomialVAE(grid=None, encoder_depth=4, decoder="network", **QUICK),
    "channels": ConvMultinomialVAE(grid=(3, 5), channels=2, decoder="network", **QUICK),
}


def spots(n, shape=SHAPE, photons=200, seed=0):
    """Draw images (n, *shape) of a spot that moves about, on a floor."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    at = rng.uniform(0.2, 0.8, (n, 2)) * (np.array(shape) - 1)
    distance = (rows - at[:, :1, None]) ** 2 + (columns - at[:, 1:, None]) ** 2
    light = np.exp(-distance / 3) + 0.02
    shares = (light / light.sum((1, 2), keepdims=True)).reshape(n, -1)
    return rng.multinomial(photons, shares).astype(float)


@pytest.fixture(name="X", scope="module")
def images():
    return spots(80)


@pytest.fixture(name="model", scope="module", params=KINDS)
def fitted(request, X):
    return clone(KINDS[request.param]).fit(X)


@pytest.mark.filterwarnings("ignore::countvae.errors.CountvaeWarning")
@parametrize_with_checks(
    [
        ConvMultinomialVAE(2, grid=None, max_epochs=2, encoder_depth=2, encoder_width=4),
        ConvMultinomialVAE(
            2, grid=None, decoder="network", max_epochs=2, encoder_depth=2, encoder_width=4
        ),
    ]
)
def test_scikit_learn_finds_nothing_to_object_to(estimator, check):
    check(estimator)


def test_rows_do_not_influence_each_other(model, X):
    for method in (model.transform, model.score_samples, model.amortization_gap):
        together = method(X)
        alone = np.concatenate([method(X[i : i + 1]) for i in range(4)])
        np.testing.assert_allclose(alone, together[:4], atol=1e-7, rtol=1e-7)
        np.testing.assert_allclose(method(X[::-1])[::-1], together, atol=1e-7, rtol=1e-7)


def test_the_bound_lies_below_the_evidence_by_importance_sampling(model, X):
    bound = model.score_samples(X)
    evidence, pareto_k = model.evidence(X, draws=400)
    trusted = pareto_k < 0.7
    assert trusted.mean() > 0.9
    assert (bound[trusted] <= evidence[trusted] + 0.2).all()
    assert (evidence - bound)[trusted].mean() < 3


def test_more_refinement_never_scores_lower(model, X):
    again = clone(model).fit(X)
    means = [again.set_params(refinement_steps=steps).score(X) for steps in (0, 1, 3)]
    assert means[0] <= means[1] + 0.05
    assert means[1] <= means[2] + 0.05


def test_images_not_fitted_score_above_the_common_proportions(model, X):
    common = X[:40].sum(0) + 0.5
    shares = np.tile(common / common.sum(), (40, 1))
    plain = multinomial.logpmf(X[40:].astype(int), X[40:].sum(1).astype(int), shares)
    ours = clone(model).set_params(max_epochs=40).fit(X[:40]).score_samples(X[40:])
    assert (ours - plain).mean() > 20


def test_a_loaded_model_answers_with_identical_bits(model, X, tmp_path):
    model.save(tmp_path / "model")
    loaded = MultinomialVAE.load(tmp_path / "model")
    assert type(loaded) is type(model)
    for name, value in model.get_params().items():
        if name not in ("basis", "grid"):
            assert getattr(loaded, name) == value, name
    for method in ("transform", "score_samples", "amortization_gap"):
        np.testing.assert_array_equal(getattr(loaded, method)(X), getattr(model, method)(X))
    np.testing.assert_array_equal(loaded.components_, model.components_)
    again = clone(loaded).fit(X)
    np.testing.assert_array_equal(again.transform(X), model.transform(X))


def test_the_same_seed_gives_the_same_bits_and_another_seed_differs(model, X):
    again = clone(model).fit(X)
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    other = clone(model).set_params(random_state=1).fit(X)
    assert not np.array_equal(other.transform(X), model.transform(X))


class BrokenOff(Exception):
    pass


def test_a_fit_that_was_broken_off_ends_as_if_it_had_not_been(model, X, tmp_path, monkeypatch):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)

    def break_off(row):
        if row["epoch"] == 4:
            raise BrokenOff

    resumed = clone(model).set_params(checkpoint=tmp_path / "state", progress=break_off)
    with pytest.raises(BrokenOff):
        resumed.fit(X)
    resumed.set_params(progress=None).fit(X)
    pd.testing.assert_frame_equal(resumed.history_, model.history_)
    np.testing.assert_array_equal(resumed.transform(X), model.transform(X))


def test_a_fit_goes_on_from_one_of_its_kind(model, X):
    further = clone(model).set_params(init=model, max_epochs=2).fit(X)
    assert further.score(X) > model.score(X) - 5
    stranger = KINDS["network" if type(model) is MultinomialVAE else "dense"]
    with pytest.raises(ArgumentError, match=r"init: a .*MultinomialVAE, not a"):
        clone(stranger).set_params(init=model).fit(X)


def test_sparse_dense_and_named_tables_give_the_same_bits(model, X):
    names = np.array([f"p{j}" for j in range(30)], dtype=object)
    table = CountTable(sp.csr_array(X), np.array([str(i) for i in range(80)], dtype=object), names)
    for other in (sp.csr_matrix(X), pd.DataFrame(X, columns=names), table):
        found = clone(model).fit(other).transform(other)
        np.testing.assert_array_equal(found, model.transform(X))


def test_proportions_denoised_and_drawn_are_compositions(model, X):
    proportions, clr, sd = model.denoise(X[:5])
    np.testing.assert_allclose(proportions.sum(1), 1)
    assert (proportions > 0).all()
    assert (sd > 0).all()
    np.testing.assert_allclose(clr.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(model.inverse_transform(model.transform(X[:5])).sum(1), 1)
    counts, factors = model.sample(7, 50)
    assert counts.sum(1).tolist() == [50] * 7
    assert factors.shape == (7, 2)
    like, _ = model.sample_like(X[:5])
    np.testing.assert_array_equal(like.sum(1), X[:5].sum(1))


def test_factors_have_about_unit_variance_under_the_posterior(model, X):
    whitened = clone(model).set_params(whiten=True, max_epochs=30).fit(X)
    mean, sd = whitened.posterior(X)
    np.testing.assert_allclose((mean**2 + sd**2).mean(0), 1, atol=0.35)


def test_an_empty_and_a_single_photon_image_are_answered(model, X):
    few = np.zeros((2, 30))
    few[1, 7] = 1
    with pytest.warns(CountvaeWarning, match="has none"):
        answered = model.transform(few)
    assert np.isfinite(answered).all()


def test_a_table_of_another_width_is_refused(model, X):
    with pytest.raises(ValueError, match="features"):
        model.transform(X[:, :12])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"grid": (4, 4)}, "4 × 4 positions of 1 channels are 16 features; the table has 30"),
        ({"grid": (6, 5, 1)}, "grid, channels: expected one or two whole numbers"),
        ({"grid": 30}, "grid, channels: expected one or two whole numbers"),
        ({"grid": (6, 0)}, "grid, channels: expected one or two whole numbers"),
        ({"channels": 0}, "grid, channels: expected"),
        ({"decoder": "deep"}, "decoder: expected one of"),
        ({"decoder": "network", "formula": "~ age"}, "formula: needs decoder='linear'"),
    ],
)
def test_a_bad_grid_is_refused_in_a_sentence(X, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        ConvMultinomialVAE(**{"grid": SHAPE, "max_epochs": 1} | settings).fit(X)


@pytest.mark.parametrize("name", ["get_covariance", "subcomposition"])
def test_what_needs_straight_loadings_is_refused_of_a_network(X, name):
    model = clone(KINDS["network"]).set_params(max_epochs=1).fit(X)
    arguments = ([0, 1],) if name == "subcomposition" else ()
    with pytest.raises(ArgumentError, match=f"{name}: needs a linear decoder"):
        getattr(model, name)(*arguments)


def test_features_in_another_order_are_put_back_on_the_grid(X):
    names = np.array([f"p{j}" for j in range(30)], dtype=object)
    samples = np.array([str(i) for i in range(80)], dtype=object)
    straight = CountTable(sp.csr_array(X), samples, names)
    model = clone(KINDS["network"]).fit(straight)
    order = np.random.default_rng(0).permutation(30)
    shuffled = CountTable(sp.csr_array(X[:, order]), samples, names[order])
    np.testing.assert_array_equal(model.transform(shuffled), model.transform(straight))


def test_the_plain_autoencoder_keeps_no_variance_and_no_divergence(X):
    """Its codes say more of the counts it was fitted to than those drawn to a prior."""
    plain, drawn = (
        MultinomialVAE(4, posterior_variance=kind, refinement_steps=0, max_epochs=40).fit(X)
        for kind in ("none", "per_sample")
    )
    logs = [np.log(m.inverse_transform(m.transform(X))) for m in (plain, drawn)]
    assert (X * logs[0]).sum() > (X * logs[1]).sum()


def test_overlapping_features_make_a_subcomposition_of_a_linear_decoder(X):
    names = np.array([f"p{j}" for j in range(30)], dtype=object)
    samples = np.array([str(i) for i in range(80)], dtype=object)
    whole = CountTable(sp.csr_array(X), samples, names)
    part = CountTable(sp.csr_array(X[:, 3:]), samples, names[3:])
    straight = clone(KINDS["convolutional"]).fit(whole)
    with pytest.warns(CountvaeWarning):
        assert straight.transform(part).shape == (80, 2)
    bent = clone(KINDS["network"]).fit(whole)
    with pytest.raises((ArgumentError, FeaturesDiffer)), pytest.warns(CountvaeWarning):
        bent.transform(part)
