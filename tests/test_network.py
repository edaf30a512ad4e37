"""The network: every measure has a dense twin, every spread a truth to cover."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr, softmax
from scipy.stats import false_discovery_control, norm

from countvae import MultinomialVAE, network
from countvae.errors import InputError
from countvae.network import (
    MEASURES,
    _drawn,
    _law,
    _most,
    _reference,
    _Score,
    edges,
    graph,
    modules,
)
from countvae.simulate import simulate

K = 3


@pytest.fixture(name="model", scope="module", params=["isotropic", "by_feature"])
def fitted(request):
    truth = simulate(120, 14, K, 400, rng=np.random.default_rng(0))
    return MultinomialVAE(K, noise=request.param, max_epochs=12).fit(truth.counts)


def all_pairs(model, **more):
    """Return the measures of all pairs, in the order of the upper triangle."""
    d = model.n_features_in_
    frame = edges(model, partners=d - 1, **more).astype({"feature_1": int, "feature_2": int})
    return frame.sort_values(["feature_1", "feature_2"]).reset_index(drop=True)


def test_measures_are_those_of_the_dense_covariance(model):
    C, frame = model.get_covariance(), all_pairs(model, draws=2)
    i, j = np.triu_indices(len(C), 1)
    assert frame["feature_1"].tolist() == i.tolist()
    assert frame["feature_2"].tolist() == j.tolist()
    own = np.diagonal(C)
    K = np.linalg.pinv(C)
    expected = {
        "covariance": C[i, j],
        "log_ratio_variance": own[i] + own[j] - 2 * C[i, j],
        "rho": 2 * C[i, j] / (own[i] + own[j]),
        "phi_s": (own[i] + own[j] - 2 * C[i, j]) / (own[i] + own[j] + 2 * C[i, j]),
        "correlation": C[i, j] / np.sqrt(own[i] * own[j]),
        "partial_correlation": -K[i, j] / np.sqrt(np.diagonal(K)[i] * np.diagonal(K)[j]),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(frame[name], values, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("by", MEASURES)
def test_partners_are_the_strongest_of_each_feature(model, by):
    everything, d = all_pairs(model, by=by, draws=2), model.n_features_in_
    weights = np.zeros((d, d))
    weights[everything["feature_1"], everything["feature_2"]] = everything["weight"].abs()
    weights += weights.T
    strongest = {(i, j) for i in range(d) for j in np.argsort(-weights[i])[:2]}
    expected = {(min(pair), max(pair)) for pair in strongest}
    some = edges(model, by=by, partners=2, draws=2).astype({"feature_1": int, "feature_2": int})
    assert set(zip(some["feature_1"], some["feature_2"], strict=True)) == expected
    assert (some["weight"].abs().diff().dropna() <= 0).all()
    pd.testing.assert_series_equal(some["weight"], some[by], check_names=False)


def test_blocks_of_rows_change_nothing(model, monkeypatch):
    whole = edges(model, partners=3, draws=5)
    monkeypatch.setattr("countvae.network.BLOCK_ENTRIES", 40)
    pd.testing.assert_frame_equal(edges(model, partners=3, draws=5), whole)


def test_standard_errors_are_those_of_the_draws(model):
    law, sd, n = _law(model), model.clr_loadings_sd_, 60
    rng, (i, j) = np.random.default_rng(1), np.triu_indices(len(law.noise), 1)
    drawn = np.array([_drawn(law, sd, n, rng).pairs(i, j) for _ in range(4000)])
    G = np.einsum("ec,ec->e", law.V[i], law.V[j])
    expected = np.abs(G) / _Score(law.V, sd**2, n).pairs(i, j)
    np.testing.assert_allclose(drawn.std(0), expected, rtol=0.12)


def test_q_values_are_those_of_benjamini_and_hochberg(model):
    frame = all_pairs(model, draws=2)
    expected = false_discovery_control(frame["p_value"])
    assert (frame["q_value"] >= expected * (1 - 1e-9)).all()
    np.testing.assert_allclose(frame["q_value"], expected, rtol=0.02)
    kept = edges(model, partners=model.n_features_in_ - 1, fdr=0.05, draws=2)
    assert 0 < len(kept) == (frame["q_value"] <= 0.05).sum() < len(frame)


def blocks_of_factors(seed, both_ways=True, centre_sd=None, n=300, d=48, k=4):
    """Return a table whose factors each move six features, and who shares a factor.

    Half of the features have no factor. Moved both ways, loadings sum to zero in each group, so
    that features of different groups have none of the covariance that closure brings.
    """
    rng = np.random.default_rng(seed)
    of = np.arange(d) % (2 * k)
    V = np.zeros((d, k))
    for c in range(k):
        size = rng.uniform(0.7, 1.2, (of == c).sum() // 2)
        V[of == c, c] = np.concatenate([size, -size if both_ways else size])
    tied = (of[:, None] == of) & (of < k)
    return simulate(n, d, k, 3000, V=V, centre_sd=centre_sd, rng=rng), tied


def fits_of_blocks(both_ways, centre_sd=None):
    tables = [blocks_of_factors(seed, both_ways, centre_sd) for seed in range(4)]
    return [(MultinomialVAE(4, max_epochs=30).fit(truth.counts), tied) for truth, tied in tables]


def false_and_found(fits):
    """Share of false edges at a rate of 10 %, and share of the true ones that are found."""
    false, found, possible = 0, 0, 0
    for model, tied in fits:
        kept = edges(model, partners=len(tied) - 1, fdr=0.1, draws=2)
        kept = kept.astype({"feature_1": int, "feature_2": int})
        right = tied[kept["feature_1"], kept["feature_2"]]
        false, found = false + (~right).sum(), found + right.sum()
        possible += (tied.sum() - np.diagonal(tied).sum()) // 2
    return false / (false + found), found / possible


def test_edges_are_found_and_few_of_them_are_false():
    false, found = false_and_found(fits_of_blocks(both_ways=True))
    assert false < 0.13 and found > 0.9


def to_the_mean_of_all(model):
    return np.zeros(model.clr_loadings_.shape[1])


def to_most_counted_alike(model):
    V = model.clr_loadings_
    return _most(V, np.ones(len(V)))


def to_most_by_precision(model):
    return _most(model.clr_loadings_, 1 / (model.clr_loadings_sd_**2).mean(1))


def false_by_another(fits, monkeypatch, reference):
    monkeypatch.setattr(network, "_reference", reference)
    return false_and_found(fits)[0]


def test_few_edges_are_false_where_factors_move_all_their_features_one_way(monkeypatch):
    """With them the mean of all moves."""
    fits = fits_of_blocks(both_ways=False)
    false, found = false_and_found(fits)
    assert false < 0.13 and found > 0.9
    assert false_by_another(fits, monkeypatch, to_the_mean_of_all) > 3 * false


def test_features_of_which_little_is_known_are_no_reference(monkeypatch):
    """Most features of a sparse table have loadings near zero, for their prior pulls them there."""
    fits = fits_of_blocks(both_ways=False, centre_sd=4.0)
    false, found = false_and_found(fits)
    assert false < 0.1 and found > 0.3
    assert false_by_another(fits, monkeypatch, to_most_counted_alike) > 3 * false


def test_features_with_many_reads_are_no_reference_where_a_factor_moves_them(monkeypatch):
    rng = np.random.default_rng(0)
    moved = np.arange(75) < 30
    V = np.where(moved, rng.uniform(0.9, 1, 75), 0)
    mu = np.where(moved, 0, -3.5) + rng.normal(0, 0.3, 75)
    logits = mu + np.outer(rng.normal(size=300), V) + rng.normal(0, 0.5, (300, 75))
    counts = np.array([rng.multinomial(3000, p) for p in softmax(logits, axis=1)])
    fits = [(MultinomialVAE(1, max_epochs=25).fit(counts), moved[:, None] & moved)]
    false, found = false_and_found(fits)
    assert false < 0.15 and found > 0.9
    assert false_by_another(fits, monkeypatch, to_most_by_precision) > 0.5


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside, total = 0, 0
    for seed in range(4):
        truth = simulate(200, 30, K, 2000, rng=np.random.default_rng(seed))
        model = MultinomialVAE(K, max_epochs=30, random_state=seed).fit(truth.counts)
        V, d = truth.V, 30
        C = V @ V.T + truth.sigma2 * (np.eye(d) - 1 / d)
        frame = all_pairs(model, draws=300)
        i, j = frame["feature_1"].to_numpy(), frame["feature_2"].to_numpy()
        rho = 2 * C[i, j] / (np.diagonal(C)[i] + np.diagonal(C)[j])
        inside += ((frame["low"] <= rho) & (rho <= frame["high"])).sum()
        total += len(frame)
    assert 0.8 < inside / total < 0.97


def test_p_values_are_two_sided_and_of_the_factors(model):
    frame, V, n = all_pairs(model, draws=2), _law(model).V, len(model.depth_)
    V = V - _reference(model)
    i, j = np.triu_indices(len(V), 1)
    score = _Score(V, model.clr_loadings_sd_**2, n)
    np.testing.assert_allclose(frame["p_value"], 2 * norm.sf(score.pairs(i, j)), rtol=1e-6)
    np.testing.assert_allclose(score.rows(slice(0, len(V)))[i, j], score.pairs(i, j))


def test_what_most_features_do_is_found_beside_far_ones_and_on_turned_axes():
    rng = np.random.default_rng(0)
    V = rng.normal(0, 0.01, (40, 3))
    V[:15] += [3, 1, 0]
    V -= V.mean(0)
    alike = np.ones(40)
    found = _most(V, alike)
    assert np.linalg.norm(found - V[15:].mean(0)) < 0.01
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    np.testing.assert_allclose(_most(V @ turn, alike), found @ turn, atol=1e-12)
    V[0] *= 1000
    np.testing.assert_allclose(_most(V, alike), found)


def test_what_most_features_do_is_read_off_those_that_are_known():
    V = np.concatenate([np.zeros(30), np.full(8, -1.0), np.full(4, 3.0)])[:, None]
    known = np.concatenate([np.full(30, 0.1), np.ones(12)])
    np.testing.assert_array_equal(_most(V, np.ones(42)), 0)
    np.testing.assert_allclose(_most(V, known), -1, atol=0.2)


def test_most_of_two_features_lie_in_their_middle():
    np.testing.assert_array_equal(_most(np.array([[1.0], [-1.0]]), np.ones(2)), 0)


def test_a_graph_keeps_names_weights_and_what_is_known_of_the_features(model, tmp_path):
    frame = edges(model, partners=2, draws=2)
    names = {str(i): f'g__A<b>&"{i}"' for i in range(model.n_features_in_)}
    frame = frame.replace({"feature_1": names, "feature_2": names})
    nodes = pd.DataFrame(
        {"taxonomy": ["k__B; p__<x>", None] * 7, "mean_clr": np.arange(14.0)}, index=names.values()
    )
    nx.write_graphml(graph(frame, nodes), tmp_path / "g.graphml")
    G = nx.read_graphml(tmp_path / "g.graphml")
    assert set(G) == set(names.values())
    assert G.nodes[names["0"]] == {"taxonomy": "k__B; p__<x>", "mean_clr": 0.0}
    assert G.nodes[names["1"]] == {"mean_clr": 1.0}
    row = frame.iloc[0]
    assert G[row["feature_1"]][row["feature_2"]]["weight"] == row["weight"]
    assert G.number_of_edges() == len(frame)


def test_a_whole_number_of_a_node_stays_one_where_others_have_none():
    frame = pd.DataFrame({"feature_1": ["a"], "feature_2": ["b"], "weight": [0.5]})
    module = pd.Series([1, None], ["a", "b"], dtype="Int64")
    G = graph(frame, pd.DataFrame({"module": module}))
    assert dict(G.nodes(data=True)) == {"a": {"module": 1}, "b": {}}
    assert isinstance(G.nodes["a"]["module"], int)


def test_standard_errors_are_of_the_samples_that_were_fitted():
    """Those held out to watch the fit by told its loadings nothing."""
    counts = simulate(120, 12, 2, 500, rng=np.random.default_rng(0)).counts
    model = MultinomialVAE(2, max_epochs=5, validation_fraction=0.5).fit(counts)
    assert len(model.depth_) == 60
    law, sd = _law(model), model.clr_loadings_sd_
    found = edges(model, partners=11)
    score = _Score(law.V - _reference(model), sd**2, 60).pairs(np.array([0]), np.array([1]))
    pair = found[["feature_1", "feature_2"]].astype(int).apply(set, axis=1) == {0, 1}
    assert found["p_value"][pair].item() == pytest.approx(2 * ndtr(-score[0]))


def test_edges_none_of_which_is_positive_make_no_module():
    frame = pd.DataFrame({"feature_1": ["a"], "feature_2": ["b"], "weight": [-0.5]})
    for some in (frame, frame[:0]):
        assert modules(some).isna().all()


def test_modules_are_the_blocks_that_were_planted():
    pytest.importorskip("igraph")
    ties = [(a, b) for block in ("abc", "defg") for a in block for b in block if a < b]
    frame = pd.DataFrame(ties, columns=["feature_1", "feature_2"]).assign(weight=0.9)
    frame.loc[len(frame)] = ["a", "d", -0.9]
    frame.loc[len(frame)] = ["a", "x", -0.9]
    found = modules(frame)
    assert found.dropna().to_dict() == {**dict.fromkeys("abc", 2), **dict.fromkeys("defg", 1)}
    assert list(found.index[found.isna()]) == ["x"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"by": "sparcc"}, "by: expected one of"),
        ({"partners": 0}, "partners: expected a whole number >= 1; got 0."),
        ({"draws": 1}, "draws: expected a whole number >= 2; got 1."),
        ({"min_weight": 2.0}, "min_weight: expected 0 to 1; got 2.0."),
        ({"fdr": 0.0}, "fdr: expected a share above 0"),
        ({"fdr": 0.1, "by": "partial_correlation"}, "says nothing of their partial correlation"),
    ],
)
def test_what_is_out_of_range_is_said(model, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        edges(model, **settings)


def test_graphml_can_be_read_whatever_is_known_of_the_features(tmp_path):
    ends = {"feature_1": ["a<b"], "feature_2": ["c"], "weight": [0.5]}
    nodes = pd.DataFrame({"taxonomy": ["k\x0b\x00", "]]>\t"]}, index=["a<b", "c"])
    nx.write_graphml(graph(pd.DataFrame(ends), nodes), tmp_path / "g.graphml")
    again = nx.read_graphml(tmp_path / "g.graphml")
    assert dict(again.nodes(data="taxonomy")) == {"a<b": "k  ", "c": "]]> "}
    with pytest.raises(InputError, match=r"feature ids: expected ids without .* got 'c.x0b'"):
        graph(pd.DataFrame(ends | {"feature_2": ["c\x0b"]}))
