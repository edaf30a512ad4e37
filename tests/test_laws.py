"""What holds of every kind of model: dense, on a grid, with a network behind it, without variance.

The flattened images are those of small blobs of light, photon by photon.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import multinomial
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

import countvae.checkpoint
from countvae import ConvMultinomialVAE, MultinomialVAE
from countvae.errors import ArgumentError, CountvaeWarning, FeaturesDiffer, InputError
from countvae.evidence import log_coefficient
from countvae.metrics import trusted_below
from countvae.rows import Rows
from countvae.score import scores
from countvae.table import CountTable, write
from countvae.training import mean_bound

SHAPE = (6, 5)
QUICK = {"n_components": 2, "max_epochs": 6, "encoder_width": 8}
KINDS = {
    "dense": MultinomialVAE(**QUICK),
    "autoencoder": MultinomialVAE(posterior_variance="none", **QUICK),
    "convolutional": ConvMultinomialVAE(grid=SHAPE, decoder="linear", **QUICK),
    "network": ConvMultinomialVAE(grid=SHAPE, **QUICK),
    "convolutional autoencoder": ConvMultinomialVAE(grid=SHAPE, posterior_variance="none", **QUICK),
    "line": ConvMultinomialVAE(grid=None, encoder_depth=4, **QUICK),
    "channels": ConvMultinomialVAE(grid=(3, 5), channels=2, **QUICK),
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


def gap_of(model):
    """Return the method, of models that have posteriors to fall short of."""
    return [model.amortization_gap] if model.posterior_variance != "none" else []


@pytest.mark.filterwarnings("ignore::countvae.errors.CountvaeWarning")
@parametrize_with_checks(
    [
        ConvMultinomialVAE(
            2, grid=None, decoder=decoder, max_epochs=2, encoder_depth=2, encoder_width=4
        )
        for decoder in ("linear", "network")
    ]
)
def test_scikit_learn_finds_nothing_to_object_to(estimator, check):
    check(estimator)


def test_rows_do_not_influence_each_other(model, X):
    def denoised(some):
        return np.concatenate(model.denoise(some), axis=1)

    for method in (model.transform, model.score_samples, denoised, *gap_of(model)):
        together = method(X)
        alone = np.concatenate([method(X[i : i + 1]) for i in range(4)])
        np.testing.assert_allclose(alone, together[:4], atol=1e-7, rtol=1e-7)
        np.testing.assert_allclose(method(X[::-1])[::-1], together, atol=1e-7, rtol=1e-7)


def test_the_bound_lies_below_the_evidence_by_importance_sampling(model, X):
    bound = model.score_samples(X)
    evidence, pareto_k = model.evidence(X, draws=400)
    trusted = pareto_k < trusted_below(400)
    if model.posterior_variance == "none":  # a bound on log p(x | z), of which p(x) is a mean
        assert (bound > evidence).mean() > 0.9
        more, of_more = model.evidence(X, draws=4000, random_state=1)
        both = trusted & (of_more < trusted_below(4000))
        assert both.mean() > 0.6
        assert np.abs(more - evidence)[both].mean() < 0.2
        return
    assert trusted.mean() > 0.9
    assert (bound[trusted] <= evidence[trusted] + 0.2).all()
    assert 0 < (evidence - bound)[trusted].mean() < 3


@pytest.mark.parametrize(
    "method", ["transform", "score_samples", "denoise", "interval", "sample_like"]
)
def test_a_model_that_was_not_fitted_says_so(method, X):
    with pytest.raises(NotFittedError):
        getattr(MultinomialVAE(), method)(X)


def test_more_refinement_never_scores_lower(model, X):
    again = clone(model).fit(X)
    means = [again.set_params(refinement_steps=steps).score(X) for steps in (0, 1, 3)]
    if model.posterior_variance == "none":
        assert means[0] == means[1] == means[2]
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
    pairs = zip(gap_of(loaded), gap_of(model), strict=True)
    for theirs, ours in [
        (loaded.transform, model.transform),
        (loaded.score_samples, model.score_samples),
        *pairs,
    ]:
        np.testing.assert_array_equal(theirs(X), ours(X))
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
    still = {"freeze": "decoder", "max_epochs": 1, "learning_rate": 1e-9, "refinement_steps": 0}
    same = clone(model).set_params(init=model, **still).fit(X)
    steps = model.refinement_steps
    np.testing.assert_allclose(
        same.transform(X), model.set_params(refinement_steps=0).transform(X), atol=1e-3
    )
    model.set_params(refinement_steps=steps)
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
        ({"grid": 30.0}, "grid, channels: expected one or two whole numbers"),
        ({"grid": (6, 0)}, "grid, channels: expected one or two whole numbers"),
        ({"channels": 0}, "grid, channels: expected"),
        ({"decoder": "deep"}, "decoder: expected one of"),
        ({"decoder": "network", "formula": "~ age"}, "formula: needs decoder='linear'"),
    ],
)
def test_a_bad_grid_is_refused_in_a_sentence(X, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        ConvMultinomialVAE(**{"grid": SHAPE, "max_epochs": 1} | settings).fit(X)


def test_a_line_of_positions_is_given_by_their_number(X):
    line, number = (ConvMultinomialVAE(2, grid=grid, max_epochs=1).fit(X) for grid in ((30,), 30))
    np.testing.assert_array_equal(line.components_, number.components_)


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
        MultinomialVAE(4, posterior_variance=kind, max_epochs=40).fit(X)
        for kind in ("none", "per_sample")
    )
    logs = [np.log(m.inverse_transform(m.transform(X))) for m in (plain, drawn)]
    assert (X * logs[0]).sum() > (X * logs[1]).sum()
    codes, sd = plain.posterior(X)
    assert not sd.any()
    np.testing.assert_array_equal(codes, plain.transform(X))
    assert plain.sample_like(X[:3])[0].shape == (3, 30)
    assert np.isfinite(plain.interval(X[:3], draws=20)).all()
    free = clone(plain).set_params(shrink_loadings=False).fit(X)
    np.testing.assert_array_equal(free.transform(X), codes)
    with pytest.raises(ArgumentError, match="a plain autoencoder has no posterior variance"):
        plain.amortization_gap(X)
    with pytest.raises(ArgumentError, match="a plain autoencoder has no evidence"):
        scores(plain, X)


def test_a_plain_autoencoder_is_watched_by_what_it_maximises(X):
    watched = MultinomialVAE(
        4, posterior_variance="none", validation_fraction=0.3, max_epochs=20, random_state=0
    ).fit(X)
    # no divergence: held out and fitted are alike, and neither is a bound on log p(x)
    last = watched.history_.iloc[-1]
    assert last["validation_bound"] == pytest.approx(last["bound"], rel=0.05)
    assert watched.score(X) > watched.evidence(X)[0].mean()


def test_the_bound_that_a_network_is_watched_by_is_that_of_its_score(X):
    model = clone(KINDS["network"]).set_params(max_epochs=10).fit(X)
    rows = Rows(sp.csr_array(X), 16, torch.float64)
    watched = mean_bound(model._encoder, model._decoder, rows, model.refinement_steps)
    scored = model.score(X) - log_coefficient(torch.from_numpy(X)).mean().item()
    assert scored - 1 < watched < scored  # but for the noise that softmax ignores


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


@pytest.mark.parametrize("decoder", ["linear", "network"])
@pytest.mark.parametrize(
    "settings",
    [
        {"noise": "by_feature"},
        {"dtype": "float64"},
        {"encoder_depth": 1},
        {"validation_fraction": 0.2, "patience": 3},
        {"pseudocount": 0.5, "activation": "relu", "optimizer": "sgd"},
        {"posterior_variance": "shared", "shrink_loadings": False},
        {"grid": np.array([1, 30])},
    ],
    ids=str,
)
def test_settings_of_the_dense_model_are_those_of_one_on_a_grid(X, tmp_path, decoder, settings):
    given = {"grid": SHAPE, "decoder": decoder, **QUICK, "max_epochs": 12} | settings
    model = ConvMultinomialVAE(**given).fit(X)
    plain = clone(model).set_params(max_epochs=1).fit(X)
    assert model.score(X) > plain.score(X)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(
        MultinomialVAE.load(tmp_path / "model").score_samples(X), model.score_samples(X)
    )


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_of_a_network_stays_where_it_is_frozen(X, half):
    begun = clone(KINDS["network"]).fit(X)
    before = begun.inverse_transform(begun.transform(X))
    further = clone(begun).set_params(init=begun, freeze=half).fit(X[::-1])
    z = np.random.default_rng(0).normal(size=(9, 2))
    laws = [m.set_params(whiten=True).inverse_transform(z) for m in (begun, further)]
    assert np.allclose(*laws) == (half == "decoder")
    hidden = [
        {n: part for n, part in m._encoder.state_dict().items() if n.startswith("hidden")}
        for m in (begun, further)
    ]
    assert hidden[0] and hidden[0].keys() == hidden[1].keys()
    same = [torch.equal(part, hidden[1][name]) for name, part in hidden[0].items()]
    assert all(same) if half == "encoder" else not any(same)
    begun.set_params(whiten=False)
    np.testing.assert_array_equal(begun.inverse_transform(begun.transform(X)), before)


@pytest.mark.parametrize("kind", ["convolutional", "network"])
def test_a_table_on_disk_is_fitted_as_one_in_memory(X, tmp_path, kind):
    names, samples = (np.array([f"{a}{i}" for i in range(n)], dtype=object)
                      for a, n in (("p", 30), ("s", 80)))  # fmt: skip
    table = CountTable(sp.csr_array(X), samples, names)
    write(table, tmp_path / "images.h5ad")
    model = clone(KINDS[kind]).set_params(max_epochs=12)
    here, there = clone(model).fit(table), clone(model).fit(tmp_path / "images.h5ad")
    assert there.score(table) == pytest.approx(here.score(table), abs=1)
    np.testing.assert_array_equal(there.transform(tmp_path / "images.h5ad"), there.transform(table))


def test_covariates_move_the_images_of_a_linear_decoder():
    brightness = np.repeat([0.0, 1.0], 60)
    X = spots(120)
    X[60:, :5] += np.random.default_rng(1).poisson(20, (60, 5))
    names, samples = (np.array([f"{a}{i}" for i in range(n)], dtype=object)
                      for a, n in (("p", 30), ("s", 120)))  # fmt: skip
    metadata = pd.DataFrame({"lamp": brightness}, index=samples)
    table = CountTable(sp.csr_array(X), samples, names, sample_metadata=metadata)
    model = clone(KINDS["convolutional"]).set_params(formula="~ lamp", max_epochs=30).fit(table)
    effect = model.coefficients_[0]
    assert effect[:5].min() > effect[5:].max()
