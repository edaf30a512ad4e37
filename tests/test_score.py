"""Scores: p-values are uniform under the model at any depth, and small for what is planted."""

import numpy as np
import pytest
from scipy.sparse import csr_array, vstack
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from countvae import MultinomialVAE
from countvae.errors import InputError
from countvae.score import _Drawn, scores
from countvae.simulate import simulate
from countvae.table import CountTable

K = 3


@pytest.fixture(name="truth", scope="module")
def simulated():
    return simulate(400, 40, K, 1000, rng=np.random.default_rng(0))


@pytest.fixture(name="model", scope="module")
def fitted(truth):
    return MultinomialVAE(K, max_epochs=25).fit(truth.counts)


def test_p_values_are_uniform_for_the_models_own_samples_of_any_depth(model):
    depth = np.random.default_rng(1).integers(50, 5000, 600)
    counts, _ = model.sample(600, depth, random_state=2)
    frame = scores(model, counts, random_state=3)
    assert kstest(frame["p_value"], "uniform").pvalue > 0.01
    shallow = depth < np.median(depth)
    assert kstest(frame["p_value"][shallow], "uniform").pvalue > 0.01
    assert kstest(frame["p_value"][~shallow], "uniform").pvalue > 0.01
    assert (frame["q_value"] < 0.05).sum() <= 6
    assert abs(frame["t"].mean()) < 0.15
    assert abs(frame["t"].std() - 1) < 0.15


def test_evidence_falls_with_depth_but_p_values_do_not(model):
    rng = np.random.default_rng(4)
    depth = rng.integers(50, 5000, 300)
    counts, _ = model.sample(300, depth, random_state=rng.integers(100))
    frame = scores(model, counts)
    assert np.corrcoef(frame["evidence"], depth)[0, 1] < -0.7
    assert abs(np.corrcoef(frame["p_value"], depth)[0, 1]) < 0.15


def test_contaminated_samples_are_found(model, truth):
    rng = np.random.default_rng(5)
    clean = truth.counts[:60]
    other = rng.permutation(40)  # a composition of the same features in other roles
    foreign = csr_array(truth.counts[60:120].toarray()[:, other])
    frame = scores(model, vstack([clean, clean + foreign], format="csr"))
    p = frame["p_value"].to_numpy()
    assert roc_auc_score(np.repeat([0, 1], 60), -p) > 0.95  # ties count half


def test_depth_is_that_of_the_table_whatever_kind_it_is(model, truth):
    dense = truth.counts[:5].toarray()
    expected = dense.sum(1).tolist()
    assert scores(model, dense, reference=100)["depth"].tolist() == expected
    assert scores(model, csr_array(dense), reference=100)["depth"].tolist() == expected


def test_one_depth_is_enough(model):
    counts, _ = model.sample(20, 500, random_state=0)
    frame = scores(model, counts, reference=100)
    assert frame["p_value"].between(1 / 101, 1).all()
    assert frame["expected"].nunique() == 1


def test_a_table_is_aligned_by_its_names(truth):
    names = np.array([f"f{j}" for j in range(40)], dtype=object)
    samples = np.array([f"s{i}" for i in range(400)], dtype=object)
    table = CountTable(truth.counts, samples, names)
    model = MultinomialVAE(K, max_epochs=3).fit(table)
    turned = table.select_features(np.arange(40)[::-1]).select_samples(np.arange(10))
    straight = scores(model, table.select_samples(np.arange(10)), reference=100)
    np.testing.assert_allclose(scores(model, turned, reference=100)["t"], straight["t"])


def test_a_sample_above_all_that_is_drawn_has_a_p_value_of_one_at_every_depth():
    drawn = _Drawn(np.log([100.0, 900.0]), np.sort(np.random.default_rng(0).random((2, 200)), 1))
    log_depth = np.log(np.linspace(100, 900, 5001))
    _, _, p = drawn.compare(np.full(len(log_depth), 50.0), log_depth)
    np.testing.assert_array_equal(p, 1.0)


def test_a_reference_that_is_too_small_is_refused(model, truth):
    with pytest.raises(InputError, match="reference: expected a whole number >= 100; got 5"):
        scores(model, truth.counts, reference=5)


def test_ranks_among_clean_samples_are_uniform_where_the_model_is_wrong(model):
    elsewhere = simulate(340, 40, K, 1000, rng=np.random.default_rng(7))
    clean, new = elsewhere.counts[:170], elsewhere.counts[170:]
    by_model = scores(model, new, reference=200)
    ranked = scores(model, new, clean=clean, reference=200)
    np.testing.assert_array_equal(ranked["t"], by_model["t"])

    def off(frame):
        """How far shares are from what they should be, in standard errors of two samples."""
        levels = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
        shares = np.array([(frame["p_value"] <= level).mean() for level in levels])
        return np.abs(shares - levels).max() / np.sqrt(0.25 * 2 / 170)

    assert off(ranked) < 3 < 5 < off(by_model)
    assert ranked["p_value"].min() >= 1 / 171
    assert ranked.sort_values("t")["p_value"].is_monotonic_increasing
