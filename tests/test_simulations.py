"""The simulation suite: its measures know the truth, its runner loses nothing, it sees defects."""

import csv
import itertools
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import countvae_simulations
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from countvae_simulations import cell as cell_of
from countvae_simulations import measures, runner, tables
from countvae_simulations import page as page_of
from countvae_simulations.cell import Cell, run_cell
from countvae_simulations.exact import exact_posterior
from countvae_simulations.glossary import glossary
from countvae_simulations.methods import METHODS, base, ours, peer
from countvae_simulations.methods.base import Found
from countvae_simulations.page import Ran, page, section, write_results
from countvae_simulations.runner import read_store, run
from countvae_simulations.scenarios import SCENARIOS, depth
from countvae_simulations.scenarios import base as base_of_scenarios
from countvae_simulations.scenarios.base import named
from matplotlib.figure import Figure
from scipy.linalg import subspace_angles
from sklearn.linear_model import LinearRegression

import countvae
from countvae import training
from countvae.cli import main
from countvae.errors import InputError
from countvae.metrics import trusted_below

TABLE = {"n": 60, "d": 20, "k": 2, "reads": 300}
PEER_SCRIPTS = peer.SCRIPTS
QUICK = {"max_epochs": 3, "encoder_width": 8}


@pytest.fixture(scope="module")
def drawn():
    return tables.draw(TABLE, seed=1)


@pytest.fixture(scope="module")
def fitted(drawn):
    return base.timed(ours.fit, drawn[0], 2, 0)


def cells(n=4):
    return [Cell(TABLE, "log_ppca", 2, seed, {}, ("covariance", "loadings")) for seed in range(n)]


# ---- tables


def test_the_same_seed_draws_the_same_table_and_held_out_samples_share_its_truth():
    (a, b), (c, d) = tables.draw(TABLE, 3), tables.draw(TABLE, 3)
    assert (a.counts != c.counts).nnz == (b.counts != d.counts).nnz == 0
    assert a.counts.shape == (60, 20) and b.counts.shape == (12, 20)
    assert a.V is b.V and not set(a.sample_ids) & set(b.sample_ids)


def test_lost_counts_are_the_share_asked_for_and_no_sample_is_emptied():
    plain, lost = (tables.draw(TABLE | more, 0)[0].counts for more in ({}, {"zero_inflation": 0.3}))
    kept = lost.nnz / plain.nnz
    assert 0.6 < kept < 0.8
    assert lost.sum(axis=1).min() > 0


def test_outliers_are_as_many_as_asked_and_keep_their_depth():
    plain, mixed = (tables.draw(TABLE | more, 0)[0] for more in ({}, {"outliers": 0.1}))
    other = np.asarray((plain.counts != mixed.counts).sum(axis=1)).ravel() > 0
    assert other.sum() == 6
    np.testing.assert_array_equal(plain.counts.sum(axis=1), mixed.counts.sum(axis=1))
    np.testing.assert_array_equal(np.isnan(mixed.z).any(axis=1), other)


def test_proportions_of_outliers_are_those_that_their_counts_were_drawn_from():
    plain, mixed = (
        tables.draw({"n": 60, "d": 20, "k": 2, "reads": 1e6} | more, 0)[0]
        for more in ({}, {"outliers": 0.1})
    )
    counts = mixed.counts.toarray()
    seen = counts / counts.sum(axis=1, keepdims=True)
    assert np.abs(seen - mixed.proportions).max() < 0.01
    assert np.abs(seen - plain.proportions).max() > 0.1


@pytest.mark.parametrize("tree", ["caterpillar", "phylogeny"])
def test_factors_of_a_tree_move_a_few_of_its_balances(tree):
    table = {"n": 20, "d": 200, "k": 3, "reads": 100, "tree": tree}
    truth, _ = tables.draw(table, 0)
    W = tables.balances(tree, 200).adjoint(truth.V.T).T
    assert 0.15 < (np.abs(W) > 1e-9).any(axis=1).mean() < 0.4
    assert (truth.V**2).sum(axis=1).mean() == pytest.approx(2, rel=0.4)
    other = tables.balances({"caterpillar": "phylogeny"}.get(tree, "caterpillar"), 200)
    assert (np.abs(other.adjoint(truth.V.T)) > 1e-9).mean() > 0.5


# ---- measures


def test_the_truth_has_no_error(drawn):
    truth, held_out = drawn
    found = Found(truth.V, truth.mu, truth.sigma2)
    error = measures.covariance(truth, held_out, found)
    assert max(error.values()) < 1e-6
    said = measures.loadings(truth, held_out, found)
    assert said["subspace"] == pytest.approx(0, abs=1e-12) and said["axis"] == pytest.approx(1)
    assert measures.noise_and_centre(truth, held_out, found) == {"mu": 0.0, "sigma2_ratio": 1.0}
    rank = measures.log_ratio_variances(truth, held_out, found)["log_ratio_variances"]
    assert rank == pytest.approx(1)


def test_loadings_twice_as_long_have_a_covariance_error_of_three(drawn):
    truth, held_out = drawn
    assert measures.covariance(truth, held_out, Found(2 * truth.V))["VV"] == pytest.approx(3)


def test_a_wrong_estimate_is_seen_by_each_measure_of_the_decoder(drawn):
    truth, held_out = drawn
    rng = np.random.default_rng(5)
    k = truth.V.shape[1]
    common = measures.common_features(truth.counts)
    V = truth.V.copy()
    V[~common] += rng.standard_normal(((~common).sum(), k))
    error = measures.covariance(truth, held_out, Found(V, sigma2=truth.sigma2))
    assert error["VV"] > 0.2 and error["VV_common"] < 1e-6 and error["covariance_common"] < 1e-6
    noisier = measures.covariance(truth, held_out, Found(truth.V, sigma2=2 * truth.sigma2))
    assert noisier["VV"] < 1e-6 < 0.01 < noisier["covariance"]

    one = measures.loadings(truth, held_out, Found(truth.V[:, :1]))
    assert one["subspace"] == pytest.approx(0.5)
    U, s, _ = np.linalg.svd(truth.V, full_matrices=False)
    turned = Found(U[:, ::-1] * s)
    assert measures.loadings(truth, held_out, turned)["axis"] == pytest.approx(0, abs=1e-9)

    step = np.where(common, np.arange(len(common)) % 2, 0)
    said = measures.noise_and_centre(
        truth, held_out, Found(truth.V, truth.mu + step, truth.sigma2 * 3)
    )
    assert said == {"mu": pytest.approx(step[common].std()), "sigma2_ratio": pytest.approx(3)}
    shuffled = Found(rng.permutation(truth.V))
    rank = measures.log_ratio_variances(truth, held_out, shuffled)["log_ratio_variances"]
    assert abs(rank) < 0.6


def test_gaps_held_out_are_of_the_samples_held_out(drawn, fitted):
    truth, held_out = drawn
    here, there = (measures.gap(truth, other, fitted) for other in (truth, held_out))
    assert here["held_gap_0"] == here["gap_0"] == there["gap_0"] != there["held_gap_0"]


def test_counts_are_lost_from_samples_held_out_as_well():
    plain, lost = (tables.draw(TABLE | more, 0)[1].counts for more in ({}, {"zero_inflation": 0.3}))
    assert 0.55 < lost.nnz / plain.nnz < 0.85


def test_measures_of_a_posterior_are_silent_without_one(drawn):
    found = Found(drawn[0].V)
    for measure in (measures.gap, measures.factors, measures.coverage):
        assert measure(*drawn, found) == {}


def test_the_gap_closes_with_newton_steps_and_bounds_stay_below_the_oracle(drawn, fitted):
    gap = measures.gap(*drawn, fitted)
    for where in ("gap", "held_gap"):
        steps = [gap[f"{where}_{s}"] for s in measures.STEPS]
        assert (np.diff(steps) < 1e-8).all()  # the solver's tolerance
        assert steps[0] > 1e-3 > steps[-1] > -1e-8
    bound = measures.held_out_bound(*drawn, fitted)
    assert bound["bound_a_read"] < bound["oracle_a_read"]


def test_the_yardstick_is_our_own_bound_at_our_fit_and_lower_at_a_wrong_centre(drawn, fitted):
    truth, held_out = drawn
    bound = measures.held_out_bound(truth, held_out, fitted)
    assert bound["yardstick_a_read"] == pytest.approx(bound["bound_a_read"], abs=0.002)
    wrong = Found(fitted.V, fitted.mu[::-1].copy())
    there = measures.held_out_bound(truth, held_out, wrong)
    assert there["yardstick_a_read"] < bound["yardstick_a_read"] - 0.01
    assert "bound_a_read" not in there
    assert "yardstick_a_read" not in measures.held_out_bound(truth, held_out, Found(fitted.V))


def test_coverage_is_near_nominal_where_the_model_is_the_truth(monkeypatch):
    truth, held_out = tables.draw({"n": 5000, "d": 50, "k": 4, "reads": 2000}, 0)
    found = METHODS["truth_start"](truth, 4, 0)
    said = measures.coverage(truth, held_out, found)
    # 4,000 coordinates: a standard error of 0.8 and 0.5 points
    assert abs(said["coverage_50"] - 0.5) < 0.03 and abs(said["coverage_90"] - 0.9) < 0.03
    plain = measures._posterior

    def too_sure(found, counts, steps):
        mean, sd = plain(found, counts, steps)
        return mean, 0.85 * sd

    monkeypatch.setattr(measures, "_posterior", too_sure)
    assert measures.coverage(truth, held_out, found)["coverage_50"] < 0.47


def test_the_exact_posterior_is_that_of_quadrature():
    rng = np.random.default_rng(0)
    V, mu, sigma2 = np.array([[0.9], [-0.3], [-0.6]]), np.array([0.4, 0.0, -0.4]), 0.5
    x = np.array([[5, 0, 1], [0, 30, 9], [1, 0, 0]])
    basis = np.linalg.svd(np.ones((1, 3)))[2][1:].T
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    grid = np.stack(np.meshgrid(points, points, points, indexing="ij"), -1).reshape(-1, 3)
    prior = np.multiply.outer(np.multiply.outer(weights, weights), weights).ravel()
    logits = mu + grid[:, :1] * V[:, 0] + np.sqrt(sigma2) * grid[:, 1:] @ basis.T
    log_p = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    mass = prior[:, None] * np.exp(log_p @ x.T - (log_p @ x.T).max(axis=0))
    mass /= mass.sum(axis=0)
    mean = mass.T @ grid[:, 0]
    sd = np.sqrt(mass.T @ grid[:, 0] ** 2 - mean**2)
    near = mean[:, None] + 0.1 * rng.standard_normal((3, 1)), sd[:, None]
    found = exact_posterior(x, V, mu, sigma2, *near)
    error = 4 * sd / np.sqrt(1000)
    assert (np.abs(found.mean[:, 0] - mean) < error).all() and error.max() < 0.15
    np.testing.assert_allclose(found.sd[:, 0], sd, rtol=0.1)
    assert found.pareto_k.max() < trusted_below(1000)
    away = exact_posterior(x, V, mu, sigma2, near[0] + 4, near[1] / 9)
    assert away.pareto_k.max() > 0.7  # draws that miss the posterior are seen by their weights


def test_the_refined_answer_is_the_exact_posterior_mean_and_the_encoder_is_not():
    truth, held_out = tables.draw({"n": 200, "d": 40, "k": 2, "reads": 300, "design": "flat"}, 0)
    said = measures.exact(truth, held_out, METHODS["ours"](truth, 2, 0, max_epochs=20))
    assert said["exact_excess_0"] > 9 * said["exact_noise_square"]
    assert abs(said["exact_excess_2"]) < 0.06
    assert abs(said["exact_excess_2"]) < 0.25 * said["exact_excess_0"]
    assert said["pareto_k"] < trusted_below(1000) and 0.8 < said["sd_ratio"] < 1.1


def test_coverage_leaves_out_factors_of_which_the_data_tell_nothing(drawn):
    truth, held_out = drawn
    found = METHODS["ours"](truth, 12, 0, max_epochs=20)
    said = measures.coverage(truth, held_out, found)
    assert 1 <= said["told"] < 12
    assert said["coverage_90"] > said["coverage_all_90"]


def test_balances_that_factors_move_have_the_longer_rows():
    table = {"n": 150, "d": 40, "k": 2, "reads": 3000, "tree": "phylogeny"}
    truth, held_out = tables.draw(table, 0)
    fits = (
        METHODS["in_balances"](truth, 2, 0, tree=tree, max_epochs=20)
        for tree in ("phylogeny", "caterpillar")
    )
    right, wrong = fits
    np.testing.assert_allclose(right.V, wrong.V, rtol=1e-9, atol=1e-12)
    assert measures.balances(truth, held_out, right)["balances_auc"] > 0.8


def test_an_encoder_moved_by_five_standard_deviations_is_seen_as_that(drawn, fitted, monkeypatch):
    here = measures.factors(*drawn, fitted)
    plain = measures._posterior

    def moved(found, counts, steps):
        mean, sd = plain(found, counts, steps)
        return (mean, sd) if steps else (mean + 5 * sd, sd)

    monkeypatch.setattr(measures, "_posterior", moved)
    there = measures.factors(*drawn, fitted)
    for name in ("z_bias_square", "held_z_bias_square"):
        assert there[name] == pytest.approx(25, abs=5 + 10 * abs(here[name]))


def test_chance_is_taken_off_the_bias():
    rng = np.random.default_rng(0)
    best = rng.standard_normal((400, 50))
    off = [
        measures._bias("z", away, best)["z"] for away in 0.6 * rng.standard_normal((40, 400, 50))
    ]
    assert min(off) < 0 < max(off)
    # of 40 means over 50 squares of length 51 in 400, their chance taken off: variances 2 p s⁴/n²,
    # and 2 p² s⁴/(n² (n - p)) of the estimate of s²
    sd = 0.6**2 * np.sqrt(2 * 51 / 400**2 * (1 + 51 / 349) / 2000)
    assert abs(np.mean(off)) < 4 * sd


@pytest.mark.parametrize("constant, slope", [(0.2, 0.0), (0.0, 0.3), (0.2, 0.3)])
def test_a_shift_and_a_shrinkage_are_bias_and_the_rest_is_not(constant, slope):
    rng = np.random.default_rng(1)
    best = np.where(np.arange(50) < 40, rng.standard_normal((400, 50)), 0)  # ten collapsed factors
    away = constant - slope * best[:, ::-1] + 0.6 * rng.standard_normal((400, 50))
    bias = constant**2 + 0.8 * slope**2
    assert measures._bias("z", away, best)["z"] == pytest.approx(bias, rel=0.15)


def test_of_fitted_samples_the_bias_is_an_upper_limit():
    rng = np.random.default_rng(3)
    best = rng.standard_normal((400, 50))
    away = 0.6 * rng.standard_normal((400, 50))
    left = away - LinearRegression().fit(best, away).predict(best)
    for told, least, most in ((away, 0.03, 0.06), (left, -1e-9, 1e-9)):
        assert least < measures._bias("z", told, best, by_chance=False)["z"] < most


def test_too_few_samples_tell_no_bias():
    rng = np.random.default_rng(2)
    assert measures._bias("z", *rng.standard_normal((2, 9, 9))) == {}


def test_an_exact_answer_errs_from_the_truth_by_its_own_deviation_and_a_shrunken_one_by_more(
    monkeypatch,
):
    truth, held_out = tables.draw({"n": 2000, "d": 40, "k": 2, "reads": 1000}, 0)
    found = METHODS["truth_start"](truth, 2, 0)
    plain = measures._posterior
    monkeypatch.setattr(measures, "_posterior", lambda *a: plain(found, a[1], 20))
    exact = measures.factors(truth, held_out, found)
    assert exact["true_error_0"] == pytest.approx(1, abs=0.05)
    assert abs(exact["true_bias_square_0"]) < 0.02

    def shrunken(found_, counts, steps):
        mean, sd = plain(found, counts, 20)
        return (mean if steps else 0.8 * mean), sd

    monkeypatch.setattr(measures, "_posterior", shrunken)
    there = measures.factors(truth, held_out, found)
    mean, sd = plain(found, held_out.counts, 20)
    lost = ((0.2 * mean / sd) ** 2).mean()
    assert there["true_bias_square_0"] == pytest.approx(lost, rel=0.2)
    assert there["true_error_0"] ** 2 == pytest.approx(lost + exact["true_error_0"] ** 2, rel=0.1)
    assert there["true_error_2"] == exact["true_error_2"]


def test_seconds_and_memory_are_of_the_fit():
    def fit(truth, k, seed):
        block = np.ones(200 * 2**17)  # MB; so large that it cannot come from memory in use
        time.sleep(0.15)
        return Found(np.zeros((2, 1)) + block[0])

    found = base.timed(fit, None, 1, 0)
    assert found.seconds >= 0.15
    if Path("/proc/self/statm").exists():
        assert found.before_mb > 50 and 190 < found.peak_mb - found.before_mb < 260


# ---- methods


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"peer", "ablation"}))
def test_every_method_finds_loadings_that_are_centred(drawn, method):
    of_ours = ("ours", "truth_start", "learned_pseudocount", "in_balances")
    settings = QUICK if method in of_ours else {}
    if method == "in_balances":
        settings = settings | {"tree": "caterpillar"}
    found = METHODS[method](drawn[0], 2, 0, **settings)
    assert found.V.shape == (20, 2) and np.isfinite(found.V).all()
    np.testing.assert_allclose(found.V.sum(axis=0), 0, atol=1e-4)


def test_a_learned_pseudocount_moves_towards_a_better_one(drawn):
    given = {"encoder_depth": 1, "pseudocount": 0.01}
    fixed, learned = (
        METHODS[name](drawn[0], 2, 0, **given) for name in ("ours", "learned_pseudocount")
    )
    assert float(learned.model._encoder.pseudocount) > 0.015
    gap = [measures.gap(*drawn, found)["gap_0"] for found in (fixed, learned)]
    assert gap[1] < gap[0]


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """Stand in for the peers' environment: this interpreter and scripts written here."""
    monkeypatch.setenv("COUNTVAE_PEERS", sys.executable)
    monkeypatch.setattr(peer, "SCRIPTS", tmp_path)
    (tmp_path / "common.py").write_text((PEER_SCRIPTS / "common.py").read_text())

    def write(name, body):
        head = "import numpy as np\nfrom common import run\ndef fit(counts, rank, seed, **more):\n"
        (tmp_path / f"{name}.py").write_text(f"{head}    {body}\nrun(fit)\n")

    return write


def test_a_peer_gets_counts_and_settings_and_gives_centred_loadings(drawn, peers):
    peers("sum", "return {'loadings': counts[:rank].T * float(more['draws']), 'sigma2': seed}")
    found = METHODS["peer"](drawn[0], 2, 7, name="sum", draws=3)
    expected = 3.0 * drawn[0].counts.toarray()[:2].T
    np.testing.assert_allclose(found.V, expected - expected.mean(axis=0))
    assert found.sigma2 == 7 and found.mu is None and 0 <= found.seconds < 5
    if Path("/proc/self/statm").exists():
        assert 0 < found.before_mb <= found.peak_mb


PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"


@pytest.mark.skipif(
    not PEERS_PYTHON.exists(), reason="no environment of the peers (make bench-peers)"
)
@pytest.mark.parametrize(
    "name, settings",
    [
        ("glm_pca", {}),
        ("glm_pca", {"family": "nb"}),
        ("plnpca", {}),
        ("rpca", {}),
        ("nuts", {"draws": 100}),
    ],
)
def test_a_peer_finds_the_leading_direction_in_the_right_units(monkeypatch, name, settings):
    """Loadings of other features point elsewhere, of another scale have other lengths.

    How near the truth peers come is theirs (`benchmarks/LOG.md` has it over seeds); LinearSCVI
    finds nothing on a table as small as this.
    """
    monkeypatch.setenv("COUNTVAE_PEERS", str(PEERS_PYTHON))
    easy = {"n": 100, "d": 20, "k": 2, "reads": 5000, "sigma2": 0.0, "centre_sd": 0.5}
    lengths, centres = [], []
    for seed in range(3):
        truth, _ = tables.draw(easy, seed)
        found = METHODS["peer"](truth, 2, seed, name=name, **settings)
        assert np.cos(subspace_angles(found.V, truth.V)).max() > 0.95
        lengths.append(np.square(found.V).sum() / np.square(truth.V).sum())
        if found.mu is not None:
            centres.append(np.corrcoef(found.mu, truth.mu)[0, 1])
    assert 0.4 < np.median(lengths) < 2
    assert np.median(centres or [1.0]) > 0.7


def test_what_a_peer_compiles_is_told_apart_from_its_seconds(drawn, peers):
    peers(
        "jit",
        "import time; time.sleep(0.2); "
        "return {'loadings': counts[:rank].T, 'compile_seconds': 0.15, 'r_hat': 1.5}",
    )
    found = METHODS["peer"](drawn[0], 2, 0, name="jit")
    assert found.seconds >= 0.05 - 1e-9 and found.more == {"compile_seconds": 0.15, "r_hat": 1.5}
    said = measures.effort(*drawn, found)
    assert said["compile_seconds"] == 0.15 and said["r_hat"] == 1.5


def script(name):
    """A peer's script as a module."""
    spec = spec_from_file_location(name, PEER_SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_loadings_of_robust_pca_have_the_length_that_makes_the_covariance(monkeypatch):
    """Of axes of unit length and singular values, as gemelli gives them."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, (40, 6))
    y = np.log(counts) - np.log(counts).mean(axis=1, keepdims=True)
    y -= y.mean(axis=0)

    def svd(table, n_components, **more):
        _, s, vt = np.linalg.svd(y)
        frame = pd.DataFrame(vt[:n_components].T, table.ids("observation"))
        return SimpleNamespace(features=frame, eigvals=pd.Series(s[:n_components])), None

    gemelli, its = ModuleType("gemelli"), ModuleType("gemelli.rpca")
    its.rpca = svd
    monkeypatch.setitem(sys.modules, "common", script("common"))
    monkeypatch.setitem(sys.modules, "gemelli", gemelli)
    monkeypatch.setitem(sys.modules, "gemelli.rpca", its)
    V = script("rpca").fit(counts, 5, 0)["loadings"]
    np.testing.assert_allclose(V @ V.T, y.T @ y / 40, atol=1e-10)


def test_the_oracle_is_nearer_the_truth_than_its_counts_allow():
    truth, held_out = tables.draw(TABLE | {"n": 400}, 0)
    errors = [
        measures.covariance(truth, held_out, METHODS[name](truth, 2, 0))["covariance"]
        for name in ("oracle", "log_ppca")
    ]
    assert errors[0] < errors[1] / 2


def test_answers_are_told_from_those_of_chains_in_the_chains_deviations(drawn, fitted, monkeypatch):
    """With chains that a stub makes: our own answers, moved by a known share of their deviation."""
    asked = {}

    def chains(name, k, seed, *, counts, draws, V, mu, sigma2):
        asked.update(name=name, V=V, n=len(counts))
        mean, sd = measures._posterior(fitted, drawn[1].counts[: len(counts)], 2)
        scale = measures._sd_of_factors(fitted.model)
        z_sd = sd / scale / 0.8
        z = mean / scale - 0.3 * z_sd
        asked.update(scale=scale, z=z, z_sd=z_sd)
        return {"z": z, "z_sd": z_sd, "z_mcse": 0.02 * z_sd, "r_hat": np.array(1.01)}

    monkeypatch.setattr(measures, "call", chains)
    said = measures.by_mcmc(*drawn, fitted)
    assert asked["name"] == "nuts" and asked["V"] is fitted.V
    assert asked["n"] == min(measures.EXACT_SAMPLES, drawn[1].counts.shape[0])
    assert said["mcmc_error_2"] == pytest.approx(0.3)
    of_encoder = measures._posterior(fitted, drawn[1].counts[: asked["n"]], 0)[0]
    assert said["mcmc_error_0"] == pytest.approx(
        np.sqrt(np.mean(np.square((of_encoder / asked["scale"] - asked["z"]) / asked["z_sd"])))
    )
    assert said["mcmc_noise"] == pytest.approx(0.02)
    assert said["mcmc_sd_ratio"] == pytest.approx(0.8)
    assert said["mcmc_r_hat"] == pytest.approx(1.01)
    assert 0.2 < said["mcmc_exact"] < 0.4 and said["mcmc_exact_noise"] < 0.1


def test_a_peer_that_fails_is_left_out_and_says_why(tmp_path, peers):
    peers("bad", "raise ValueError('no such thing')")
    with pytest.warns(UserWarning, match="bad: ValueError: no such thing"):
        assert run([Cell(TABLE, "peer", 2, 0, {"name": "bad"})], tmp_path / "s.csv").empty


def test_a_peer_that_is_killed_or_finds_nothing_finite_is_left_out(tmp_path, peers):
    peers("dead", "import os; os.kill(os.getpid(), 9)")
    peers("lost", "return {'loadings': counts[:rank].T * np.nan}")
    for name, said in (("dead", "dead: ended with status -9"), ("lost", "lost: its loadings are")):
        with pytest.warns(UserWarning, match=said):
            assert run([Cell(TABLE, "peer", 2, 0, {"name": name})], tmp_path / "s.csv").empty


def test_a_method_that_ends_in_nothing_finite_is_left_out_and_the_others_go_on(
    tmp_path, monkeypatch
):
    def lost(truth, k, seed):
        return Found(np.full((truth.V.shape[0], k), np.nan))

    monkeypatch.setitem(METHODS, "oracle", lost)
    measures_of_both = ("covariance", "loadings")
    grid = [Cell(TABLE, name, 2, 0, {}, measures_of_both) for name in ("oracle", "log_pca")]
    with pytest.warns(UserWarning, match="left out: oracle with seed 0: "):
        rows = run(grid, tmp_path / "s.csv")
    assert rows["method"].tolist() == ["log_pca"]


def test_loadings_of_correlated_factors_make_the_covariance_of_the_factors():
    common = script("common")
    rng = np.random.default_rng(0)
    z = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 3))
    W = rng.standard_normal((7, 3))
    V = common.with_covariance(W, z, np.array([0.1, 0.2, 0.3]))
    expected = W @ (np.cov(z.T) + np.diag([0.1, 0.2, 0.3])) @ W.T
    np.testing.assert_allclose(V @ V.T, expected, rtol=1e-10)


def test_a_peer_that_is_not_installed_is_left_out_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTVAE_PEERS", str(tmp_path / "nowhere"))
    cell = Cell(TABLE, "peer", 2, 0, {"name": "plnpca"})
    with pytest.warns(UserWarning, match="plnpca: no environment for the peers"):
        assert run([cell], tmp_path / "s.csv").empty


# ---- planted defects: the suite notices each


def measured(method, settings, *names):
    table = {"n": 200, "d": 30, "k": 2, "reads": 500, "design": "flat"}
    settings = {"max_epochs": 25, "encoder_width": 16} | settings
    return run_cell(Cell(table, method, 2, 0, settings, names), 1)


def test_ignoring_the_noise_is_seen_in_sigma2_and_in_coverage():
    names = ("noise_and_centre", "coverage")
    sound = measured("ours", {}, *names)
    broken = measured("ablation", {"part": "without_sigma2"}, *names)
    assert 0.7 < sound["sigma2_ratio"] < 1.3 and broken["sigma2_ratio"] < 0.01
    assert broken["coverage_90"] < sound["coverage_90"] - 0.05


@pytest.mark.parametrize("part", ["sampled_noise", "shared_noise"])
def test_noise_drawn_from_its_prior_is_seen_in_sigma2_and_in_coverage(part):
    """Each sample its own, or one for a minibatch as in the published code: alike in what is seen.

    That noise is shared is seen where it is drawn from a posterior, below.
    """
    names = ("noise_and_centre", "coverage")
    sound = measured("ours", {}, *names)
    broken = measured("ablation", {"part": part}, *names)
    assert 0.7 < sound["sigma2_ratio"] < 1.3
    assert broken["sigma2_ratio"] < 0.1
    assert broken["coverage_90"] < sound["coverage_90"] - 0.05


def test_a_frozen_encoder_is_seen_in_the_gap_and_in_z():
    names = ("gap", "factors")
    sound = measured("ours", {"max_epochs": 60}, *names)
    broken = measured("ablation", {"part": "frozen_encoder", "max_epochs": 60}, *names)
    assert broken["gap_0"] > 3 * sound["gap_0"]
    assert broken["z_error"] > 1.5 * sound["z_error"]


def test_noise_shared_by_a_minibatch_is_seen_in_sigma2_and_the_covariance(monkeypatch):
    """The posterior of the noise, that is: what is drawn from the prior has the same average."""
    names = ("noise_and_centre", "covariance")
    sound = measured("ours", {}, *names)
    solve = training.solve_noise

    def shared(m0, Q, x, sigma2, *more, sums):
        noise = solve(m0, Q, x, sigma2, *more)
        logits = m0 + (sigma2 * noise.r).mean(0)
        rate = x.sum(1, keepdim=True) * logits.softmax(1)
        noise = noise._replace(r=x - rate, of_Q=-0.5 * rate / (1 + sigma2 * rate))
        sums.add(noise, Q)
        return noise

    monkeypatch.setattr(training, "solve_noise", shared)
    broken = measured("ours", {}, *names)
    assert abs(np.log(broken["sigma2_ratio"])) > 5 * abs(np.log(sound["sigma2_ratio"]))
    assert broken["covariance"] > 1.5 * sound["covariance"]


# ---- the runner


def test_a_key_is_of_all_that_decides_the_result(monkeypatch):
    cell = cells(1)[0]
    before = cell.key
    others = [
        Cell(TABLE | {"reads": 301}, "log_ppca", 2, 0, {}, cell.measures),
        Cell(TABLE, "log_pca", 2, 0, {}, cell.measures),
        Cell(TABLE, "log_ppca", 3, 0, {}, cell.measures),
        Cell(TABLE, "log_ppca", 2, 1, {}, cell.measures),
        Cell(TABLE, "log_ppca", 2, 0, {"pseudocount": 2.0}, cell.measures),
        Cell(TABLE, "log_ppca", 2, 0, {}, ("covariance",)),
    ]
    assert len({c.key for c in [cell, *others]}) == 7
    assert Cell(dict(reversed(TABLE.items())), "log_ppca", 2, 0, {}, cell.measures).key == cell.key
    monkeypatch.setattr(cell_of, "versions", lambda: {"countvae": "next"})
    assert cell.key != before


def test_the_code_of_a_key_is_that_which_makes_results_and_no_other(tmp_path):
    left_out = cell_of.NOT_OF_RESULTS[countvae_simulations]
    folder = tmp_path / "suite"
    shutil.copytree(Path(countvae_simulations.__file__).parent, folder)

    def after_a_byte_in(name):
        file = folder / name
        content = file.read_bytes()
        file.write_bytes(content + b"#")
        found = cell_of.digest([(folder, left_out)])
        file.write_bytes(content)
        return found

    before = cell_of.digest([(folder, left_out)])
    made_by = (
        "measures.py",
        "cell.py",
        "tables.py",
        "methods/ours.py",
    )
    assert before not in [after_a_byte_in(name) for name in made_by]
    others = ("runner.py", "page.py", "scenarios/depth.py", "methods/peer_scripts/nuts.py")
    assert {after_a_byte_in(name) for name in others} == {before}


def test_what_is_not_of_the_code_of_a_key_no_cell_imports():
    names = [
        f"{package.__name__}.{name.removesuffix('.py')}"
        for package, left_out in cell_of.NOT_OF_RESULTS.items()
        for name in left_out
    ]
    program = f"import sys, countvae_simulations.cell; print(*set(sys.modules) & {{*{names!r}}})"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.returncode == 0 and not told.stdout.strip(), told.stdout + told.stderr


@pytest.mark.parametrize("before_and_after", ["b", "ab"])
def test_a_cell_whose_code_is_changed_under_the_run_is_left_out(
    tmp_path, monkeypatch, before_and_after
):
    same = {"a": cell_of.versions()["code"], "b": "another"}
    codes = map(same.get, "aa" + before_and_after + "aa")
    monkeypatch.setattr(runner, "code", lambda: next(codes))
    with pytest.warns(UserWarning, match="the code is not that with which the run began"):
        assert list(run(cells(2), tmp_path / "s.csv")["seed"]) == [0]
    assert list(run(cells(2), tmp_path / "s.csv")["seed"]) == [0, 1]


def test_finished_cells_are_not_redone_and_a_cut_one_is(tmp_path, monkeypatch):
    store = tmp_path / "store.csv"
    whole = run(cells(), store)
    assert list(whole["seed"]) == [0, 1, 2, 3]
    content = store.read_bytes()
    store.write_bytes(content[: content.rindex(b"end") - 9])  # within the last line but one
    redone = []
    monkeypatch.setattr(
        runner,
        "run_cell",
        lambda cell, threads: redone.append(cell.seed) or run_cell(cell, threads),
    )
    again = run(cells(), store)
    assert redone == [3]
    untimed = [column for column in whole if column not in runner.TIMINGS]
    pd.testing.assert_frame_equal(again[untimed], whole[untimed])
    assert len(read_store(store)) == 4


def test_a_store_cut_at_any_byte_goes_on_from_its_whole_cells(tmp_path, monkeypatch):
    store = tmp_path / "store.csv"
    grid = cells(2)
    run(grid, store)
    content, all_of_it = store.read_bytes(), read_store(store)
    monkeypatch.setattr(runner, "run_cell", lambda cell, threads: all_of_it[cell.key])
    last = content.index(b"end") + 6
    for length in range(last, len(content)):
        store.write_bytes(content[:length])
        run(grid, store)
        assert read_store(store) == all_of_it


def test_a_second_run_repeats_tables_and_figures_to_the_bit(tmp_path):
    scenario = SCENARIOS["depth"]
    grid = [
        Cell(
            TABLE | {"design": "flat", "reads": N},
            "ours",
            2,
            seed,
            {"encoder_depth": L, "pseudocount": 1.0, **QUICK},
            depth.MEASURES,
        )
        for N, L, seed in itertools.product((100, 1000), (1, depth.DEFAULT_DEPTH, 3), (0, 1))
    ]
    grid += [
        Cell(TABLE | {"design": "flat", "reads": N}, "log_ppca", 2, 0, {"pseudocount": 1.0})
        for N in (100, 1000)
    ]
    for name, fresh in (("a", False), ("b", True)):
        ran = Ran(run(grid, tmp_path / f"{name}.csv", fresh=fresh), False, len(grid))
        write_results(scenario, ran, tmp_path / name)
    for file in ("depth.csv", "depth.svg", "depth-all.svg", "depth.md", "depth.rows.csv.gz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_cell_that_cannot_be_fitted_is_left_out_and_the_others_go_on(tmp_path, monkeypatch):
    def diverge(truth, k, seed):
        if seed == 1:
            raise ArithmeticError("no end")
        return METHODS["log_ppca"](truth, k, seed)

    monkeypatch.setitem(METHODS, "log_pca", diverge)
    grid = [Cell(TABLE, "log_pca", 2, seed) for seed in range(3)]
    with pytest.warns(UserWarning, match="left out: log_pca with seed 1: no end"):
        assert list(run(grid, tmp_path / "s.csv")["seed"]) == [0, 2]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("no room")])
def test_a_cell_that_wants_too_much_memory_is_left_out(tmp_path, monkeypatch, error):
    def fail(truth, k, seed):
        raise error

    monkeypatch.setitem(METHODS, "log_pca", fail)
    with pytest.warns(UserWarning, match="log_pca with seed 0: (MemoryError|no room)"):
        assert run([Cell(TABLE, "log_pca", 2, 0)], tmp_path / "s.csv").empty


def test_a_timed_cell_whose_process_is_killed_is_left_out_and_the_others_go_on(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import os, sys, warnings\n"
        "from pathlib import Path\n"
        "from countvae_simulations.methods import METHODS\n"
        "from countvae_simulations.cell import Cell\nfrom countvae_simulations.runner import run\n"
        "def fit(truth, k, seed):\n"
        "    if seed == 0:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return METHODS['log_ppca'](truth, k, seed)\n"
        "METHODS['log_pca'] = fit\n"
        "if __name__ == '__main__':\n"
        f"    grid = [Cell({TABLE}, 'log_pca', 2, seed) for seed in range(2)]\n"
        f"    rows = run(grid, Path({str(tmp_path / 's.csv')!r}), fresh=True)\n"
        "    print(list(rows['seed']))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[1]", done.stderr
    assert "left out: log_pca with seed 0: its process was killed" in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_run_that_is_killed_takes_its_timed_cell_and_the_peer_with_it(tmp_path):
    alive, script = tmp_path / "alive", tmp_path / "main.py"
    os.mkfifo(alive)
    (tmp_path / "common.py").write_text((PEER_SCRIPTS / "common.py").read_text())
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "from common import run\n"
        "def fit(counts, rank, seed):\n"
        f"    held = open({str(alive)!r}, 'w')\n"
        "    print(os.getpid(), file=held, flush=True)\n"
        "    time.sleep(600)\n"
        "run(fit)\n"
    )
    script.write_text(
        "from pathlib import Path\n"
        "from countvae_simulations.methods import peer\n"
        "from countvae_simulations.cell import Cell\nfrom countvae_simulations.runner import run\n"
        f"peer.SCRIPTS = Path({str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n"
        f"    cell = Cell({TABLE}, 'peer', 2, 0, {{'name': 'slow'}})\n"
        f"    run([cell], Path({str(tmp_path / 's.csv')!r}), fresh=True)\n"
    )
    environment = os.environ | {"COUNTVAE_PEERS": sys.executable}
    main_process = subprocess.Popen([sys.executable, script], env=environment)
    with alive.open() as pipe:
        pid = int(pipe.readline())
        main_process.kill()
        main_process.wait()
        # it ends when the last process that holds it does
        ended, _, _ = select.select([pipe], [], [], 30)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        assert ended and pipe.read() == ""


def test_a_second_run_on_a_store_is_refused_in_a_sentence(tmp_path):
    store, refused = tmp_path / "s.csv", []

    def again(done, total):
        with pytest.raises(InputError, match="another run is writing to it"):
            run(cells(1), store)
        refused.append(done)

    run(cells(1), store, progress=again)
    assert refused == [1]
    assert len(run(cells(1), store)) == 1


def test_threads_of_one_process_take_turns(monkeypatch):
    inside = []

    def fit(truth, k, seed):
        inside.append(seed)
        time.sleep(0.05)
        assert inside.pop() == seed and not inside
        return METHODS["log_ppca"](truth, k, seed)

    monkeypatch.setitem(METHODS, "log_pca", fit)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: run_cell(Cell(TABLE, "log_pca", 2, seed), 1), range(3)))


def test_a_process_of_its_own_gives_the_same_row(tmp_path):
    grid = cells(1)
    here, apart = (run(grid, tmp_path / f"{fresh}.csv", fresh=fresh) for fresh in (False, True))
    untimed = [column for column in here if column not in runner.TIMINGS]
    pd.testing.assert_frame_equal(here[untimed], apart[untimed])


def test_jobs_side_by_side_give_the_same_rows(tmp_path):
    one, two = (run(cells(), tmp_path / f"{jobs}.csv", jobs=jobs) for jobs in (1, 2))
    untimed = [column for column in one if column not in runner.TIMINGS]
    pd.testing.assert_frame_equal(one[untimed], two[untimed])


def test_every_scenario_has_a_small_grid_within_its_large_one():
    for scenario in SCENARIOS.values():
        small, large = (scenario.cells(full) for full in (False, True))
        assert 0 < len(small) < len(large)
        assert {cell.key for cell in small} <= {cell.key for cell in large}
        assert len({cell.key for cell in large}) == len(large)


def made_up(scenario, full, better):
    """Rows of a scenario's grid with random measures; `better` is how much less our errors are."""
    rng = np.random.default_rng(0)
    grid = scenario.cells(full)
    names = [*scenario.measures, "seconds", "nonzero"]
    values = [dict(zip(names, rng.uniform(0.4, 0.6, len(names)), strict=True)) for _ in grid]
    for cell, row in zip(grid, values, strict=True):
        if cell.method == "ours":
            row.update({name: row[name] * better for name in row if "VV" in name})
    return runner.frame(zip(grid, values, strict=True))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_has_its_say_on_the_page(tmp_path, name, full):
    scenario = SCENARIOS[name]
    rows = made_up(scenario, full, 0.1)
    write_results(scenario, Ran(rows, full, len(rows) + 3), tmp_path / "results")
    text = page(tmp_path / "results", tmp_path)
    rows = Ran.read(tmp_path / "results" / f"{name}.rows.csv.gz").rows
    assert f"## {scenario.question}" in text and "nan" not in text
    answer = scenario.conclude(rows)[0]
    link = f"- [{scenario.question}](#{page_of.anchor(scenario.question)}) "
    said = text.split(link)[1].splitlines()[0]
    assert said.endswith(".") and answer.startswith(said) and f"\n\n{answer}\n\n" in text
    assert f"`countvae benchmark{' --full' if full else ''} --scenario {name}`; countvae" in text
    assert f"The {'whole' if full else 'small'} grid: {len(rows):,} of" in text
    assert "cells were run, 3 left out; " in text
    assert "all of the same code" in text and scenario.caption in text
    assert len(scenario.conclude(rows)) >= 2
    assert f"![{scenario.question}](results/{name}.svg)" in text
    assert (tmp_path / "results" / f"{name}.svg").stat().st_size > 10_000


def test_the_page_keeps_the_scenarios_that_were_run_before(tmp_path):
    for name in ("sizes", "width"):
        rows = made_up(SCENARIOS[name], False, 1.0)
        write_results(SCENARIOS[name], Ran(rows, False, len(rows)), tmp_path)
    text = page(tmp_path, tmp_path)
    assert "all of the same code" in text
    ran = Ran.read(tmp_path / "width.rows.csv.gz")
    write_results(SCENARIOS["width"], replace(ran, versions={"code": "older"}), tmp_path)
    assert "of 2 versions of the code: width of older; sizes of " in page(tmp_path, tmp_path)
    width, sizes = (text.index(f"## {SCENARIOS[name].question}") for name in ("width", "sizes"))
    assert 0 < width < sizes < text.index("## Glossary")


def test_the_published_page_is_what_the_published_results_say():
    root = Path(__file__).parents[1]
    published = root / "docs" / "benchmarks.md"
    results = root / "benchmarks" / "simulations" / "results"
    assert {file.stem for file in results.glob("*.md")} == set(SCENARIOS)
    assert published.read_text(encoding="utf-8") == page(results, published.parent)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_published_sentence_and_figure_follows_from_the_published_rows(name):
    results = Path(__file__).parents[1] / "benchmarks" / "simulations" / "results"
    ran = Ran.read(results / f"{name}.rows.csv.gz")
    published = (results / f"{name}.md").read_text(encoding="utf-8")
    assert section(SCENARIOS[name], ran) == published


def test_summaries_are_numbers_and_only_averages_of_squares_have_roots(tmp_path):
    scenario = SCENARIOS["depth"]
    rows = made_up(scenario, False, 1.0)
    rows["z_bias_square"] = np.where(rows["seed"] % 2, 0.04, -0.02)
    rows["held_z_bias_square"] = np.where(rows["seed"] % 2, 0.02, -0.04)
    write_results(scenario, Ran(rows, False, len(rows)), tmp_path)
    summary = pd.read_csv(tmp_path / "depth.csv")
    two = summary[summary["seeds"] == 2]
    assert {"gap_0_min", "gap_0_median", "gap_0_max"} <= set(summary.columns)
    assert all(summary[name].dtype == float for name in summary if name.startswith("gap_0"))
    assert (two["gap_0_min"] < two["gap_0_median"]).all()
    np.testing.assert_allclose(two["z_bias_square_mean"], 0.01)
    np.testing.assert_allclose(two["held_z_bias_square_min"], -0.04)
    shown = base_of_scenarios.shown(rows, scenario)
    shown = shown[shown["seeds"] == 2]
    assert set(shown["root of z_bias_square"]) == {"0.1"}
    assert set(shown["root of held_z_bias_square"]) == {"none beyond chance"}


def test_only_scenarios_that_are_timed_publish_seconds():
    for scenario in SCENARIOS.values():
        assert scenario.timed == ("seconds" in scenario.measures)


def test_the_glossary_defines_every_measure_and_method():
    defined = " ".join(measure.__doc__ for measure in measures.MEASURES.values())
    for scenario in SCENARIOS.values():
        for name in scenario.measures:
            spellings = {name, *(re.sub(r"\d+$", letter, name) for letter in "sp")}
            assert any(f"`{spelling}`" in defined for spelling in spellings), name
        grid = scenario.cells(True)
        text = glossary(grid)
        for cell in grid:
            own = cell.settings.get("name", cell.settings.get("part", cell.method))
            assert f"- `{own}`: " in text
            for name in cell.measures:
                assert " ".join(measures.MEASURES[name].__doc__.split()) in text


def test_where_a_peer_wins_it_is_said_first():
    scenario = SCENARIOS["peers"]
    rows = made_up(scenario, True, 0.1).query("`table.d` == 1000")
    lost = rows["table.reads"] == 10_000
    rows.loc[lost & (rows["method"] == "ours"), "VV_common"] = 5.0
    rows["converged"], rows["seconds"] = np.nan, 1.0
    rows.loc[named(rows) == "log_pca, pseudocount=0.1", "seconds"] = 0.25
    answer, _, _, lost_on, won_on, _ = scenario.conclude(rows)
    assert answer.startswith("Others with a lower error: ")
    assert "PlnPCA in common features" in answer
    assert "is missed (met on 0 of 2 tables). " in answer
    assert " Quicker: PCA on 2 of 2 tables (0.25 to 0.25 times our time, " in answer
    assert "10,000 reads" in lost_on and "a lower error than ours has" in lost_on
    assert " 1,000 reads" in won_on and "a lower error" not in won_on
    assert "lower error: none;" in scenario.conclude(made_up(scenario, True, 0.1))[0]


@pytest.mark.parametrize("missing", ["ours", "oracle"])
@pytest.mark.parametrize("name", ["peers", "sizes", "mcmc"])
def test_a_table_without_one_to_compare_with_is_passed_over(tmp_path, name, missing):
    scenario = SCENARIOS[name]
    rows = made_up(scenario, True, 0.1)
    first = [column for column in rows if column.startswith("table.")]
    of_first = (rows[first] == rows[first].iloc[0]).all(axis=1)
    for lacking in (of_first & (rows["method"] == missing), rows["method"] == missing):
        write_results(scenario, Ran(rows[~lacking], True, len(rows)), tmp_path)
        assert "nan" not in (tmp_path / f"{name}.md").read_text(encoding="utf-8")


def test_what_is_said_of_wrong_models_and_of_width_follows_the_numbers():
    wrong = SCENARIOS["wrong"]
    rows = made_up(wrong, False, 1.0)
    rows.loc[rows["method"] == "in_balances", "covariance"] += 3.0
    said = " ".join(wrong.conclude(rows))
    assert "the fit depends on the basis" in said and "does not depend" not in said
    width = SCENARIOS["width"]
    rows = made_up(width, False, 1.0)
    widest = rows["settings.encoder_width"] == 512
    rows[["covariance", "gap_0", "held_gap_0"]] = 1.0
    rows.loc[widest, "covariance"] = 0.9
    said = width.conclude(rows)[0]
    assert "are too few: with 512 its error changes by at most 10 %." in said
    rows.loc[widest, ["covariance", "held_gap_0"]] = 1.1, 0.5
    assert "are enough" in width.conclude(rows)[0]
    assert width.conclude(rows)[0].endswith("and 0.5 times held out.")
    assert "One fit" not in " ".join(width.conclude(rows))
    more = pd.concat([rows.assign(seed=seed) for seed in range(3)], ignore_index=True)
    lost = (more["seed"] == 2) & (more["settings.encoder_width"] == 512)
    lost &= more["settings.encoder_depth"] == 3
    more.loc[lost & (more["table.design"] == "wide"), "held_gap_0"] = 5.0
    (told,) = (s for s in width.conclude(more) if s.startswith("One fit"))
    assert "(seed 2, wide table, L = 3, 512 units) has a gap held out of 5 nats" in told


def test_from_how_many_samples_a_deeper_encoder_is_ahead_is_read_off_every_seed():
    scenario = SCENARIOS["samples"]
    rows = made_up(scenario, True, 1.0)
    rows["gap_0"], rows["held_gap_0"] = 0.5, 2.0
    n, L = rows["table.n"], rows["settings.encoder_depth"]
    flat, first = rows["table.design"] == "flat", rows["seed"] == 0
    rows.loc[(L == 2) & flat & ((n >= 3000) | (n == 300)), "held_gap_0"] = 1.0
    rows.loc[(L == 3) & flat & ~first, "held_gap_0"] = 1.6
    rows.loc[(L > 1) & ~flat, "held_gap_0"] = 0.5
    answer, of_flat, _ = scenario.conclude(rows)
    everywhere = "on wide tables at every number that was tried (4 to 4 times smaller with 10,000)"
    assert "L = 2 on flat tables from 3,000 samples on (2 to 2 times smaller with" in answer
    assert "L = 3 on flat tables at no number of samples that was tried (1 to 1.25" in answer
    assert "with 10,000, smaller in 4 of 5 seeds)" in answer
    assert answer.count(everywhere) == 2
    assert "with 300 samples 2, 1, 1.6 (0.5, 0.5, 0.5); with 1,000" in of_flat
    lacking = flat & (L == 3) & first & (n == 10_000)
    assert "in 4 of 4 seeds" not in scenario.conclude(rows[~lacking])[0]
    assert len(scenario.draw(rows[flat]).axes) == 1


def test_a_goal_that_is_met_is_said_to_be():
    scenario = SCENARIOS["peers"]
    rows = made_up(scenario, True, 0.1)
    rows["seconds"] = np.where(rows["method"] == "ours", 1.0, 4.0)
    rows.loc[rows["method"] == "oracle", "VV_common"] = np.where(np.arange(12) < 3, 0.01, 0.6)
    answer = scenario.conclude(rows)[0]
    assert "is met (met on 4 of 4 tables). " in answer
    assert " Quicker: none. " in answer
    assert "has less than half the error of the best other method on 1 of 4 tables. " in answer


def test_a_peer_that_had_not_converged_by_its_own_account_is_named():
    scenario = SCENARIOS["peers"]
    rows = made_up(scenario, True, 0.1)
    is_pln = rows["settings.name"] == "plnpca"
    rows["converged"] = np.where(is_pln, rows["table.reads"] == 1000, np.nan)
    said = scenario.conclude(rows)[2]
    assert said.startswith("PlnPCA had not converged, by its own account, in 6 of 12 fits")
    rows.loc[is_pln, "converged"] = 1.0
    assert "not converged" not in " ".join(scenario.conclude(rows))


def test_a_peer_that_wins_over_all_features_alone_is_a_peer_that_wins():
    scenario = SCENARIOS["peers"]
    rows = made_up(scenario, True, 0.1)
    rows.loc[rows["settings.name"] == "rpca", "VV"] = 1e-3
    rows["converged"] = np.nan
    answer, _, _, *tables_, _ = scenario.conclude(rows)
    assert "lower error: RPCA in all features (on 4 of 4 tables);" in answer
    assert all("a lower error than ours has RPCA in all features" in table for table in tables_)


def test_a_peer_that_was_not_run_is_named():
    scenario = SCENARIOS["peers"]
    rows = made_up(scenario, True, 0.1)
    assert "Not run" not in " ".join(scenario.conclude(rows))
    fewer = rows[rows["settings.name"] != "plnpca"]
    assert " Not run here: PlnPCA, PlnPCA, patient." in " ".join(scenario.conclude(fewer))


def test_a_gap_that_does_not_fall_is_not_said_to():
    scenario = SCENARIOS["depth"]
    rows = made_up(scenario, False, 1.0)
    rows["gap_0"] = rows["held_gap_0"] = rows["held_z_bias_square"] = 1.0
    rows["z_bias_square"] = np.where(rows["settings.encoder_depth"] == 1, 900.0, 1.0)
    said = " ".join(scenario.conclude(rows))
    assert "is to fall 10 times there, which is missed: held out it " in said
    assert ": met" not in said and said.count(": missed") == 4
    assert "met in sample at 0 of 2 pseudocounts, held out at 0 of 2 pseudocounts" in said
    assert "gains there" not in said
    at_one = "(where it is 1, from {0} ({0} to {0}) to 1 (1 to 1) standard deviations)"
    assert f"on flat tables in sample at 2 of 2 pseudocounts {at_one.format(30)}" in said
    assert f"on wide tables held out at 0 of 2 pseudocounts {at_one.format(1)}" in said
    same = "it does not fall, 1 (1 to 1) at L = 1 and 1 (1 to 1) at L = 3"
    assert f"on flat tables {same}; on wide tables {same}." in said
    assert "on flat tables 1 to 1 with 0.1, 1 to 1 with 1; on wide" in said
    deep = rows["settings.encoder_depth"] == 3
    rows.loc[deep, "gap_0"] /= 20
    rows.loc[deep & (rows["table.design"] == "flat"), "held_gap_0"] *= 1.5
    rows.loc[deep & (rows["table.design"] == "wide"), "held_gap_0"] /= 5
    answer, goals, *more = scenario.conclude(rows)
    assert (
        "met in part: held out it grows by 50 %, from 1 to 1.5 nats on flat tables and falls 5 "
        "times, from 1 to 0.2 nats on wide tables; in sample it falls 20 times, from 1 to 0.05 "
        "nats on flat tables and falls 20 times, from 1 to 0.05 nats on wide tables (what"
    ) in answer
    assert (
        "Held out, on flat tables 1, 1 and 1.5 nats (0.667 to 0.667 times): missed; on wide tables "
        "1, 1 and 0.2 nats (5 to 5 times): missed. In sample, on flat tables 1, 1 and 0.05 nats "
        "(20 to 20 times): met; on wide tables 1, 1 and 0.05 nats (20 to 20 times): met. "
    ) in goals
    not_at_all, less = (s for s in more if "gains there" in s or "fewer times than" in s)
    assert "flat tables of 1,000 reads" in not_at_all and "wide" not in not_at_all
    assert "wide tables of 1,000 reads 5 instead of 20" in less and "flat" not in less


def test_a_pseudocount_that_still_matters_is_said_where_it_does():
    scenario = SCENARIOS["depth"]
    rows = made_up(scenario, False, 1.0)
    c, deep = rows["settings.pseudocount"], rows["settings.encoder_depth"] >= 2
    rows["covariance"] = 0.5 + np.where(deep, 0.01, 0.1) * c
    rows.loc[rows["method"] == "log_ppca", "covariance"] = 0.5 + 0.2 * c
    more = "settings where that is more than 0.01"
    of_all = (
        f"less than a quarter of what it does for PPCA at 6 of the 6 {more} and of what it does at"
    )
    assert f"{of_all} L = 1 at 6 of the 6 {more}." in scenario.conclude(rows)[0]
    there = deep & (rows["table.design"] == "wide") & (rows["table.reads"] == 100)
    rows.loc[there, "covariance"] = 0.5 + 0.04 * c
    assert (
        f"{of_all} L = 1 at 5 of the 6 {more} (not wide tables of 100 reads)."
        in scenario.conclude(rows)[0]
    )
    rows.loc[~deep, "covariance"] = 0.5
    assert "at L = 1 at 0 of the 0" in scenario.conclude(rows)[0]


def test_an_error_that_chance_explains_is_not_given_a_size():
    scenario = SCENARIOS["depth"]
    rows = made_up(scenario, False, 1.0)
    rows["exact_excess_0"], rows["exact_excess_2"] = 0.04, -1e-4
    rows["exact_bias_square_0"], rows["exact_bias_square_2"] = 0.01, -1e-4
    rows["exact_noise_square"] = 0.01
    rows.loc[rows["table.reads"] == 100, "exact_excess_2"] = np.nan
    said = scenario.conclude(rows)
    (silent,) = (s for s in said if s.startswith("Importance weights"))
    assert "of the seeds of flat tables of 100 reads; wide tables of 100 reads: nothing" in silent
    told = next(s for s in said if s.startswith("Flat tables of 1,000 reads, against the exact"))
    assert "(told at every L on 4 of 4 tables and pseudocounts)" in told
    assert "By pseudocount the encoder's ẑ is at L = 1 and 3 0.2 and 0.2 with 0.1; 0.2 and" in told
    two_tenths, tenth, none = "0.2 (0.2 to 0.2)", "0.1 (0.1 to 0.1)", "none beyond chance (0 to 0)"
    assert f"is {', '.join(3 * [two_tenths])} away, its bias {', '.join(3 * [tenth])}; aft" in told
    assert f"steps it is {none} away, its bias {none} (Monte-Carlo error, taken" in told
    # a table that is not told at one depth is compared at none
    first = (rows["seed"] == 0) & (rows["settings.encoder_depth"] == 2)
    rows.loc[first & (rows["settings.pseudocount"] == 1.0), "exact_excess_2"] = np.nan
    told = next(s for s in scenario.conclude(rows) if "1,000 reads, against the exact" in s)
    assert "(told at every L on 3 of 4 tables and pseudocounts)" in told


def test_a_bias_in_sample_that_is_chance_alone_does_not_fall():
    """Noise that shrinks with depth gives a regression less and less, and no bias to fall."""
    scenario = SCENARIOS["depth"]
    rows = made_up(scenario, True, 1.0)
    noise = np.where(rows["settings.encoder_depth"] == 1, 0.3, 0.01)
    rows["z_error"] = noise
    rows["z_bias_square"] = noise**2 * 11 / 1000
    goals = scenario.conclude(rows)[1]
    assert "flat tables in sample at 0 of 4 pseudocounts (where it is 1, from none beyond" in goals


def test_answers_are_judged_against_the_true_factors():
    scenario = SCENARIOS["depth"]
    rows = made_up(scenario, False, 1.0)
    rows["true_error_0"] = 1 + 0.1 * rows["settings.encoder_depth"]
    rows["true_bias_square_0"] = 0.01 * rows["settings.encoder_depth"] ** 2
    rows["true_error_2"], rows["true_bias_square_2"] = 1.02, -1e-5
    told = [s for s in scenario.conclude(rows) if "against the true factors" in s]
    assert len(told) == 2
    for said in told:
        assert "goes from 1.1 to 1.3, its bias from 0.1 to 0.3; after two Newton steps" in said
        assert "the error is 1.02 and the bias none beyond chance" in said


def test_what_is_said_of_the_published_recipe_follows_the_numbers():
    scenario = SCENARIOS["parts"]
    rows = made_up(scenario, True, 1.0)
    rows["covariance"] = rows["sigma2_ratio"] = 1.0
    recipe = rows["method"] == "published"
    longer = recipe & (rows["settings.epochs"] > 1000)
    rows.loc[recipe, "covariance"] = 2.0
    flat = recipe & (rows["table.design"] == "flat")
    rows.loc[flat, "covariance"] += rows["settings.encoder_depth"]
    rows.loc[recipe, "sigma2_ratio"], rows.loc[longer, "sigma2_ratio"] = 0.02, 0.001
    rows.loc[rows["settings.part"] == "without_sigma2", "sigma2_ratio"] = 1e-4
    said = " ".join(scenario.conclude(rows))
    assert "at 0.02 by the published recipe, L = 1, after 300 epochs, 0.001 after 1,200, " in said
    assert "1 with noise drawn from its prior, 1 and shared by a minibatch, 0.0001 held at" in said
    assert "nearly one fit" not in said
    worse = "On the flat table the published recipe gets worse with depth: 3, 4, 5 times our"
    assert worse in said and "On the wide table the published recipe" not in said
    rows.loc[rows["settings.part"].isin(["sampled_noise", "shared_noise"]), "sigma2_ratio"] = 1e-4
    assert "nearly one fit" in " ".join(scenario.conclude(rows))


@pytest.mark.parametrize("name, method", [("peers", "published"), ("parts", "published")])
def test_others_are_compared_with_ours_on_the_same_tables(name, method):
    """A table whose errors are all ten times larger changes no ratio, whoever was not run on it."""
    scenario = SCENARIOS[name]
    rows = made_up(scenario, True, 1.0)
    errors = ["covariance", "VV", "VV_common", "held_gap_0", "seconds"]
    rows[errors] = 1.0
    rows.loc[rows["method"] == method, errors] = 2.0
    hard = rows["seed"] == 1
    rows.loc[hard, errors] *= 10
    rows = rows[~(hard & (rows["method"] == method))]
    said = " ".join(scenario.conclude(rows))
    told = "published, L = 1 2 (2)" if name == "peers" else "has 2 to 2 times our covariance error"
    assert told in said


def test_the_commit_is_of_the_code_and_of_no_repository_around_it(tmp_path, monkeypatch):
    folders = [Path(p.__file__).parent for p in (countvae, countvae_simulations)]
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    modules = [ModuleType(copy.name) for copy in copies]
    for module, copy in zip(modules, copies, strict=True):
        module.__file__ = str(copy / "__init__.py")
    monkeypatch.setattr(page_of, "NOT_OF_RESULTS", dict.fromkeys(modules, ()))
    monkeypatch.setattr(page_of, "__file__", str(copies[1] / "page.py"))
    assert page_of.checked_out() == ""
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "of another"], check=True)
    assert page_of.checked_out() == ""
    subprocess.run([*git, "add", "countvae", "countvae_simulations"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "of this"], check=True)
    clean = page_of.checked_out()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    with (copies[0] / "training.py").open("a") as file:
        file.write("# changed")
    assert page_of.checked_out() == f"{clean}-dirty"


def test_what_half_the_factors_cannot_have_is_said():
    scenario = SCENARIOS["wrong"]
    rows = made_up(scenario, False, 1.0)
    rows["VV_floor_common"] = np.where(rows["k"] == 8, 0.25, np.nan)
    (said,) = (s for s in scenario.conclude(rows) if "leading factors of the truth" in s)
    assert said.startswith("Half the factors") and said.endswith("looked for, have 0.25.")


@pytest.mark.parametrize("name", ["wrong", "depth"])
def test_coverage_that_is_off_where_the_model_is_right_is_said_first(name):
    scenario = SCENARIOS[name]
    rows = made_up(scenario, False, 1.0)
    rows["coverage_50"], rows["coverage_90"], rows["told"] = 0.52, 0.88, 10.0
    rows["coverage_all_50"], rows["coverage_all_90"] = 0.50, 0.84
    if name == "wrong":
        count, case = 4, "factors that move clades of a phylogeny"
        lost = rows["table.tree"] == "phylogeny"
    else:
        count, case = 6, "wide tables of 100 reads"
        lost = (rows["table.design"] == "wide") & (rows["table.reads"] == 100)

    def judged():
        answer, *more = scenario.conclude(rows)
        return answer, more

    answer, _ = judged()
    assert (
        f"the bar of ±3 points is met by intervals of 50 and 90 % at {count} of {count}" in answer
    )
    rows.loc[lost, "coverage_90"] = 0.86
    answer, more = judged()
    assert (
        f"at {count - 1} of {count} settings (missed most with {case}, by 4 points), for" in answer
    )
    assert f"for all factors at 0 of {count} (missed most with " in answer
    assert any("Over all factors" in s and f"{case} 50.0 and 84.0" in s for s in more)
    missed, met = (s for s in more if "The bar of ±3 points is" in s)
    assert "is missed" in missed and f"{case} 52.0" in missed and "and 86.0" in missed
    assert "is met" in met and case not in met


def test_factors_of_which_the_data_tell_nothing_are_not_judged():
    scenario = SCENARIOS["depth"]
    rows = made_up(scenario, False, 1.0)
    silent = (rows["table.design"] == "flat") & (rows["table.reads"] == 100)
    rows.loc[silent, ["coverage_50", "coverage_90"]] = np.nan
    said = scenario.conclude(rows)
    assert "at 0 of 5 settings" in " ".join(said)
    assert any("the data tell of no factor: flat tables of 100 reads." in s for s in said)


def test_nuts_that_never_reaches_our_error_is_said_not_to():
    scenario = SCENARIOS["mcmc"]
    rows = made_up(scenario, False, 1.0)
    rows.loc[rows["method"] == "peer", "covariance"] = 5.0
    said = scenario.conclude(rows)
    assert said[0].startswith("With its largest budget NUTS has the lower error on 0 of 2 tables. ")
    assert "At 2 of 2 sizes it had not reached our covariance error in " in said[0]
    assert "it takes" not in said[0]
    alone = rows[rows["method"] == "ours"].drop(columns="settings.draws")
    assert scenario.conclude(alone) == ["NUTS was not run."]


def test_compilation_is_left_out_of_the_time_of_nuts_and_told_in_brackets():
    scenario = SCENARIOS["mcmc"]
    rows = made_up(scenario, False, 1.0)
    by_nuts = rows["method"] == "peer"
    rows["covariance"] = np.where(by_nuts & (rows["settings.draws"] < 50), 0.6, 0.5)
    rows.loc[by_nuts & (rows["settings.draws"] == 200), "covariance"] = 0.4
    rows["seconds"] = np.where(by_nuts, 3.0, 2.0)
    rows["compile_seconds"] = np.where(by_nuts, 7.0, np.nan)
    rows["r_hat"] = np.where(by_nuts, 1.25, np.nan)
    answer, priors, *more = scenario.conclude(rows)
    assert "priors that a fit by maximum likelihood has not" in priors
    assert answer.startswith("With its largest budget NUTS has the lower error on 1 of 2 tables, ")
    assert "(0.4 against 0.5, R-hat 1.25, in 1.5 times our time)" in answer
    assert "1.5 to 1.5 times our time without compilation (5 to 5 times with it)" in answer
    assert "not what we see at these sizes." in answer
    largest = by_nuts & (rows["table.d"] == rows["table.d"].max())
    grown = scenario.conclude(rows.assign(seconds=rows["seconds"].where(~largest, 8.0)))[0]
    assert "but the ratio grows with the table (1.5, 4), and of larger ones" in grown
    few = "(10 were too few)"
    assert f"with 50 draws a chain {few}: error 0.5, R-hat 1.25, in 3 s (10 s with" in more[0]


def test_cells_that_need_the_peers_are_left_out_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTVAE_PEERS", str(tmp_path / "nowhere"))
    cells = [
        Cell(TABLE, "log_ppca", 2, 0),
        *(Cell(TABLE, "peer", 2, i, {"name": "rpca"}) for i in range(2)),
    ]
    scenario = replace(
        SCENARIOS["peers"],
        cells=lambda full: cells,
        conclude=lambda rows: [f"{len(rows)} cells."],
        draw=lambda rows: Figure(),
        timed=False,
    )
    monkeypatch.setitem(SCENARIOS, "peers", scenario)
    command = ["benchmark", "--scenario", "peers", "-o", str(tmp_path / "out"), "--quiet"]
    result = CliRunner().invoke(main, [*command, "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("peers: 2 of 3 cells are left out, for there is no environment") == 1
    assert "  1 cells." in result.stdout


def test_a_page_of_no_results_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTVAE_PEERS", str(tmp_path / "nowhere"))
    cells = [Cell(TABLE, "peer", 2, 0, {"name": "rpca"})]
    monkeypatch.setitem(
        SCENARIOS, "peers", replace(SCENARIOS["peers"], cells=lambda full: cells, timed=False)
    )
    page_file = tmp_path / "page.md"
    command = ["benchmark", "--scenario", "peers", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--jobs", "1", "--page", str(page_file)])
    assert result.exit_code == 3 and "has no results to write of" in result.stderr
    assert not page_file.exists()


def test_a_cluster_that_does_not_answer_is_refused_whatever_is_asked(tmp_path, monkeypatch):
    def silent(address):
        raise OSError(address)

    monkeypatch.setattr("distributed.Client", lambda address, **more: silent(address))
    command = ["benchmark", "--scenario", "mcmc", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--cluster", "tcp://127.0.0.1:1"])
    assert result.exit_code == 3 and "no Dask scheduler answers at" in result.stderr


def test_a_worker_with_other_packages_is_not_given_cells(tmp_path, monkeypatch):
    theirs = cell_of.versions() | {"torch": "1.0"}
    monkeypatch.setattr(runner, "versions", iter([cell_of.versions(), theirs]).__next__)
    with pytest.warns(UserWarning, match="a worker has torch 1.0, and the run began with 2"):
        assert run(cells(1), tmp_path / "s.csv").empty


def test_a_page_that_is_a_folder_is_refused_before_anything_is_run(tmp_path):
    command = ["benchmark", "-o", str(tmp_path / "out"), "--page", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code != 0 and not (tmp_path / "out").exists()


def test_the_command_runs_a_scenario_and_says_what_it_shows(tmp_path, monkeypatch):
    scenario = SCENARIOS["wrong"]
    small = [c for c in scenario.cells(False) if c.seed == 0 and c.method != "oracle"]
    tiny = [
        Cell(
            dict(c.table) | {"n": 40, "d": 40, "k": 4, "reads": 300},
            c.method,
            c.k // 4,
            0,
            QUICK if c.method == "ours" else {},
            c.measures,
        )
        for c in small[:6]
    ]
    monkeypatch.setattr(
        "countvae_simulations.scenarios.wrong.FACTORS",
        {"half the factors": 2, "twice the factors": 8},
    )
    monkeypatch.setitem(
        SCENARIOS,
        "wrong",
        replace(
            scenario,
            cells=lambda full: tiny if full else tiny[:2],
            conclude=lambda rows: [f"{len(rows)} cells."],
        ),
    )
    command = ["benchmark", "--scenario", "wrong", "-o", str(tmp_path), "--jobs", "1"]
    few = CliRunner().invoke(main, command)
    assert few.exit_code == 0 and "\n  2 cells." in few.stdout, few.output
    result = CliRunner().invoke(main, [*command, "--full"])
    assert result.exit_code == 0, result.output
    again = CliRunner().invoke(main, command)
    assert "6 cells." in again.stdout  # the whole grid is there: it is shown
    assert f"{scenario.question}\n  6 cells." in result.stdout
    assert "wrong: 6 of 6 cells" in result.stderr
    written = {"wrong.csv", "wrong.svg", "wrong.md", "wrong.rows.csv.gz", "cells"}
    assert written == {f.name for f in tmp_path.iterdir()}


# ---- a cluster

HELD = """
import os
import time
from pathlib import Path

from countvae_simulations.methods import METHODS

FOLDER = Path({folder!r})


def fit(truth, k, seed):
    (FOLDER / f"{{seed}} begun by {{os.getpid()}}").touch()
    while (FOLDER / f"hold {{os.getpid()}}").exists():
        time.sleep(0.02)
    return METHODS["log_ppca"](truth, k, seed)


METHODS["held"] = fit
"""
"""A method for workers: one that is told to hold never ends a fit."""


@pytest.fixture
def cluster(tmp_path):
    """A real Dask scheduler and two workers, each a process; its address and the workers."""
    held = tmp_path / "held.py"
    held.write_text(HELD.format(folder=str(tmp_path)))
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler = subprocess.Popen(
        [*dask, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        stderr=subprocess.PIPE,
        text=True,
    )
    address = None
    assert scheduler.stderr is not None
    for line in scheduler.stderr:
        if "tcp://127.0.0.1" in line:
            address = line[line.index("tcp://") :].split()[0].strip("'\"")
            break
    assert address is not None
    dask = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "2"]
    workers = [
        subprocess.Popen(
            [*dask, "--no-nanny", "--no-dashboard", "--preload", str(held)],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    yield address, workers
    for process in [*workers, scheduler]:
        process.kill()
        process.wait()
    scheduler.stderr.close()


def test_a_worker_killed_half_way_loses_nothing_and_doubles_nothing(tmp_path, cluster, monkeypatch):
    address, workers = cluster
    monkeypatch.setitem(METHODS, "held", METHODS["log_ppca"])
    grid = [Cell(TABLE, "held", 2, seed, {}, ("covariance",)) for seed in range(12)]
    killed, other = (worker.pid for worker in workers)
    (tmp_path / f"hold {killed}").touch()
    lost = set()

    def begun_by(pid):
        return {int(file.name.split()[0]) for file in tmp_path.glob(f"* begun by {pid}")}

    def kill_one(done, total):
        if done == 3:
            deadline = time.monotonic() + 60
            while not begun_by(killed):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            workers[0].kill()
            workers[0].wait()
            lost.update(begun_by(killed))

    store = tmp_path / "store.csv"
    rows = run(grid, store, cluster=address, progress=kill_one)
    assert workers[0].wait(10) == -signal.SIGKILL
    assert lost and lost <= begun_by(other) == set(range(12))
    assert list(rows["seed"]) == list(range(12))
    with store.open(newline="") as file:
        ended = [row[0] for row in csv.reader(file) if row[1] == "end"]
    assert sorted(ended) == sorted(cell.key for cell in grid)
    alone = run(grid, tmp_path / "alone.csv")
    np.testing.assert_allclose(rows["covariance"], alone["covariance"], rtol=1e-6)
