"""The simulation suite: its measures know the truth, its runner loses nothing, it sees defects."""

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from countvae_simulations import measures, runner, tables
from countvae_simulations.exact import exact_posterior
from countvae_simulations.methods import METHODS, base, ours, peer
from countvae_simulations.methods.base import Found
from countvae_simulations.page import page, write_results
from countvae_simulations.runner import Cell, read_store, run, run_cell
from countvae_simulations.scenarios import SCENARIOS

from countvae import training
from countvae.cli import main

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


def test_coverage_is_near_nominal_where_the_model_is_the_truth():
    table = {"n": 500, "d": 50, "k": 2, "reads": 2000}
    truth, held_out = tables.draw(table, 0)
    found = METHODS["truth_start"](truth, 2, 0)
    said = measures.coverage(truth, held_out, found)
    # 200 coordinates: a standard error of 3.5 and 2.1 points
    assert abs(said["coverage_50"] - 0.5) < 0.12 and abs(said["coverage_90"] - 0.9) < 0.07


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
    error = 4 * sd / np.sqrt(1000 * found.effective)
    assert (np.abs(found.mean[:, 0] - mean) < error).all() and error.max() < 0.15
    np.testing.assert_allclose(found.sd[:, 0], sd, rtol=0.1)
    assert found.effective.min() > 0.8


def test_the_refined_answer_is_the_exact_posterior_mean_and_the_encoder_is_not():
    truth, held_out = tables.draw({"n": 200, "d": 40, "k": 2, "reads": 300, "design": "flat"}, 0)
    said = measures.exact(truth, held_out, METHODS["ours"](truth, 2, 0, max_epochs=20))
    assert said["exact_error_0"] > 3 * said["exact_noise"]
    assert said["exact_error_2"] < 0.25 and said["exact_error_2"] < 0.5 * said["exact_error_0"]
    assert said["effective"] > 0.2 and 0.8 < said["sd_ratio"] < 1.1


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


def test_an_encoder_moved_by_a_standard_deviation_is_seen_as_that(drawn, fitted, monkeypatch):
    here = measures.factors(*drawn, fitted)
    plain = measures._posterior

    def moved(found, counts, steps):
        mean, sd = plain(found, counts, steps)
        return (mean, sd) if steps else (mean + 5 * sd, sd)

    monkeypatch.setattr(measures, "_posterior", moved)
    there = measures.factors(*drawn, fitted)
    for name in ("z_bias", "held_z_bias"):
        assert there[name] == pytest.approx(5, abs=here[name] + 0.5)


def test_chance_is_taken_off_the_bias_and_shrinkage_is_its_own_number():
    rng = np.random.default_rng(0)
    best, sd = rng.standard_normal((400, 50)), np.full((400, 50), 0.5)
    best -= best.mean(axis=0)
    noise = 0.3 * rng.standard_normal((400, 50))
    said = measures._deviations("z", noise - 0.2 * best, best, sd)
    assert said["z_error"] == pytest.approx(np.hypot(0.3, 0.2) / 0.5, rel=0.03)
    assert said["z_bias"] < 0.018  # chance alone gives 0.036
    assert said["z_slope"] == pytest.approx(0.2, abs=0.02)


def test_seconds_and_memory_are_of_the_fit():
    def fit(truth, k, seed):
        block = np.ones(200 * 2**17)  # MB; so large that it cannot come from memory in use
        time.sleep(0.15)
        return Found(np.zeros((2, 1)) + block[0])

    found = base.timed(fit, None, 1, 0)
    assert found.seconds >= 0.15
    if Path("/proc/self/statm").exists():
        assert 190 < found.peak_mb < 260


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


def test_loadings_of_correlated_factors_make_the_covariance_of_the_factors():
    spec = spec_from_file_location("common", PEER_SCRIPTS / "common.py")
    assert spec is not None and spec.loader is not None
    common = module_from_spec(spec)
    spec.loader.exec_module(common)
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


def test_noise_drawn_from_its_prior_is_seen_in_sigma2():
    broken = measured("ablation", {"part": "sampled_noise"}, "noise_and_centre")
    assert broken["sigma2_ratio"] < 0.1


def test_a_frozen_encoder_is_seen_in_the_gap_and_in_z():
    names = ("gap", "factors")
    sound = measured("ours", {"max_epochs": 60}, *names)
    broken = measured("ablation", {"part": "frozen_encoder", "max_epochs": 60}, *names)
    assert broken["gap_0"] > 3 * sound["gap_0"]
    assert broken["z_error"] > sound["z_error"]


def test_noise_shared_by_a_minibatch_is_seen_in_sigma2_and_the_covariance(monkeypatch):
    names = ("noise_and_centre", "covariance")
    sound = measured("ours", {}, *names)
    solve = training.solve_noise

    def shared(m0, Q, x, sigma2, *more):
        noise = solve(m0, Q, x, sigma2, *more)
        logits = m0 + (sigma2 * noise.r).mean(0)
        rate = x.sum(1, keepdim=True) * logits.softmax(1)
        return noise._replace(r=x - rate, w=rate / (1 + sigma2 * rate))

    monkeypatch.setattr(training, "solve_noise", shared)
    broken = measured("ours", {}, *names)
    assert abs(np.log(broken["sigma2_ratio"])) > 5 * abs(np.log(sound["sigma2_ratio"]))
    assert broken["covariance"] > 1.5 * sound["covariance"]


# ---- the runner


def test_a_key_is_of_all_that_decides_the_result(monkeypatch):
    cell = cells(1)[0]
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
    monkeypatch.setattr(runner, "versions", lambda: {"countvae": "next"})
    assert cells(1)[0].key not in {c.key for c in others}


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
            cell_measures,
        )
        for N, L, seed in itertools.product((100, 1000), (1, 3), (0, 1))
        for cell_measures in [("covariance", "gap")]
    ]
    grid += [
        Cell(TABLE | {"design": "flat", "reads": N}, "log_ppca", 2, 0, {"pseudocount": 1.0})
        for N in (100, 1000)
    ]
    for name in ("a", "b"):
        write_results(scenario, run(grid, tmp_path / f"{name}.csv"), tmp_path / name)
    for file in ("depth.csv", "depth.svg"):
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
    write_results(scenario, rows, tmp_path)
    text = page({name: rows}, "results", "countvae benchmark")
    assert f"## {scenario.question}" in text and "nan" not in text
    assert len(scenario.conclude(rows)) >= 2
    assert f"![{scenario.question}](results/{name}.svg)" in text
    assert (tmp_path / f"{name}.svg").stat().st_size > 10_000


def test_where_a_peer_wins_it_is_said_first():
    scenario = SCENARIOS["peers"]
    rows = made_up(scenario, False, 0.1)
    lost = rows["table.reads"] == 10_000
    rows.loc[lost & (rows["method"] == "ours"), "VV_common"] = 5.0
    answer, lost_on, *_, won_on = scenario.conclude(rows)
    assert answer.startswith("On 1 of 2 tables another has a lower error.")
    assert "10,000 reads" in lost_on and "has the lower error" in lost_on
    assert " 1,000 reads" in won_on and "has the lower error" not in won_on
    assert "another" not in scenario.conclude(made_up(scenario, False, 0.1))[0]


def test_a_peer_that_wins_over_all_features_alone_is_a_peer_that_wins():
    scenario = SCENARIOS["peers"]
    rows = made_up(scenario, False, 0.1)
    rows.loc[rows["settings.name"] == "rpca", "VV"] = 1e-3
    answer, *tables_ = scenario.conclude(rows)
    assert answer.startswith("On 2 of 2 tables another has a lower error.")
    assert all("RPCA in all features has the lower error" in table for table in tables_)


def test_a_peer_that_was_not_run_is_named():
    scenario = SCENARIOS["peers"]
    rows = made_up(scenario, False, 0.1)
    assert "Not run" not in scenario.conclude(rows)[0]
    fewer = rows[rows["settings.name"] != "plnpca"]
    assert scenario.conclude(fewer)[0].endswith("Not run here: PlnPCA.")


def test_a_gap_that_does_not_fall_is_not_said_to():
    scenario = SCENARIOS["depth"]
    rows = made_up(scenario, False, 1.0)
    assert "fitted to, no:" in scenario.conclude(rows)[0]
    assert "The bar of 10 times is met by 0 of 3 pseudocounts." in " ".join(scenario.conclude(rows))
    rows.loc[rows["settings.encoder_depth"] == 3, "gap_0"] /= 20
    assert "fitted to, yes:" in scenario.conclude(rows)[0]


def test_coverage_that_is_off_is_said_to_be():
    scenario = SCENARIOS["wrong"]
    rows = made_up(scenario, False, 1.0)
    rows["coverage_50"], rows["coverage_90"] = 0.52, 0.88
    assert "the bar of 3 points is met" in scenario.conclude(rows)[1]
    rows["coverage_90"] = 0.86
    assert "the bar of 3 points is not met" in scenario.conclude(rows)[1]


def test_nuts_that_never_reaches_our_error_is_said_not_to():
    scenario = SCENARIOS["mcmc"]
    rows = made_up(scenario, False, 1.0)
    rows.loc[rows["method"] == "peer", "covariance"] = 5.0
    said = scenario.conclude(rows)
    assert "on 2 of 2 tables it had not reached it" in said[0]
    alone = rows[rows["method"] == "ours"].drop(columns="settings.draws")
    assert scenario.conclude(alone) == ["NUTS was not run."]


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
    assert "What happens where the model is wrong?\n  6 cells." in result.stdout
    assert "wrong: 6 of 6 cells" in result.stderr
    assert {"wrong.csv", "wrong.svg", "cells"} == {f.name for f in tmp_path.iterdir()}


# ---- a cluster


@pytest.fixture
def cluster():
    """A real Dask scheduler and two workers, each a process; its address and the workers."""
    scheduler = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
        ],
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
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "distributed.cli.dask_worker",
                address,
                "--nthreads",
                "2",
                "--no-nanny",
                "--no-dashboard",
            ],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    yield address, workers
    for process in [*workers, scheduler]:
        process.kill()
        process.wait()
    scheduler.stderr.close()


def test_a_worker_killed_half_way_loses_nothing_and_doubles_nothing(tmp_path, cluster):
    address, workers = cluster
    grid = [Cell(TABLE, "ours", 2, seed, QUICK, ("covariance",)) for seed in range(12)]

    def kill_one(done, total):
        if done == 3:
            os.kill(workers[0].pid, signal.SIGKILL)

    store = tmp_path / "store.csv"
    rows = run(grid, store, cluster=address, progress=kill_one)
    assert workers[0].wait(10) == -signal.SIGKILL
    assert list(rows["seed"]) == list(range(12))
    with store.open(newline="") as file:
        ended = [row[0] for row in csv.reader(file) if row[1] == "end"]
    assert sorted(ended) == sorted(cell.key for cell in grid)
    alone = run(grid, tmp_path / "alone.csv")
    # to rounding, which fits of a few epochs magnify: workers have other threads
    np.testing.assert_allclose(rows["covariance"], alone["covariance"], rtol=2e-3)
