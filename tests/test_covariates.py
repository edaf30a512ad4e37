"""Covariates: planted effects come back, a planted batch goes, and the signal stays."""

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from scipy.sparse import csr_array
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kstest
from skbio import DistanceMatrix

from countvae import MultinomialVAE
from countvae.cli import main
from countvae.errors import CountvaeWarning, InputError
from countvae.metrics import subspace_error
from countvae.ordination import coefficient_frame
from countvae.score import scores
from countvae.simulate import simulate
from countvae.table import CountTable, read, write

K, D, N = 2, 30, 300


@pytest.fixture(name="drawn", scope="module")
def table_with_effects():
    """A table in which age and batch move the log-ratios, beside two factors of its own."""
    rng = np.random.default_rng(0)
    age, batch = rng.uniform(0, 10, N), rng.integers(0, 2, N)
    of_age, of_batch = rng.normal(0, 0.15, D), rng.normal(0, 1, D)
    B = np.stack([of_age - of_age.mean(), of_batch - of_batch.mean()])
    plain = simulate(N, D, K, 2000, keep_proportions=True, rng=rng)
    logits = np.log(plain.proportions) + np.outer(age, B[0]) + np.outer(batch, B[1])
    p = np.exp(logits - logits.max(1, keepdims=True))
    counts = np.array([rng.multinomial(2000, row / row.sum()) for row in p])
    samples = np.array([f"s{i}" for i in range(N)], dtype=object)
    metadata = pd.DataFrame({"age": age, "batch": np.array(["one", "two"])[batch]}, index=samples)
    features = np.array([f"f{j}" for j in range(D)], dtype=object)
    table = CountTable(csr_array(counts.astype(float)), samples, features, metadata)
    return table, B, plain


@pytest.fixture(name="adjusted", scope="module")
def fitted_with_covariates(drawn):
    return MultinomialVAE(K, formula="~ age + batch", max_epochs=30).fit(drawn[0])


def test_planted_effects_come_back_within_their_errors(drawn, adjusted):
    _, B, _ = drawn
    assert adjusted.coefficient_names_.tolist() == ["age", "batch[T.two]"]
    for found, sd, truth in zip(adjusted.coefficients_, adjusted.coefficients_sd_, B, strict=True):
        assert np.corrcoef(found, truth)[0, 1] > 0.95
        assert (np.abs(found - truth) < 1.645 * sd).mean() > 0.75


def test_effects_of_nothing_are_within_their_errors_alone_and_beside_one_alike(drawn):
    """Of 90 % intervals one in ten excludes no effect; a copy of age must not look sure."""
    table, B, _ = drawn
    rng = np.random.default_rng(1)
    metadata = table.sample_metadata.assign(
        nothing=rng.normal(size=N), coin=rng.integers(0, 2, N).astype(float)
    )
    metadata["alike"] = metadata["age"] + rng.normal(0, 0.5, N)
    known = CountTable(table.counts, table.sample_ids, table.feature_ids, metadata)
    model = MultinomialVAE(K, formula="~ age + batch + nothing + coin + alike", max_epochs=30)
    model.fit(known)
    truth = np.vstack([B, np.zeros((3, D))])
    off = np.abs(model.coefficients_ - truth) > 1.645 * model.coefficients_sd_
    assert off[2:].mean() < 0.25
    assert off[[0, 4]].mean() < 0.25
    effects = coefficient_frame(model, balances=True).set_index("covariate")
    of_nothing = effects.loc[["nothing", "coin"]]
    assert ((of_nothing["low"] > 0) | (of_nothing["high"] < 0)).mean() < 0.25
    alone = MultinomialVAE(K, formula="~ age", max_epochs=30).fit(known)
    apart = np.median(model.coefficients_sd_[0] / alone.coefficients_sd_[0])
    # age is known but for what the other has of it: 10 / sqrt(12) against about 0.5
    assert 3 < apart < 12


def test_a_planted_batch_is_removed_from_new_samples_and_the_factors_stay(drawn):
    table, _, plain = drawn
    some = np.arange(N) < 200
    fitted, new = (table.select_samples(which) for which in (some, ~some))
    batch = new.sample_metadata["batch"].eq("two").to_numpy().astype(float)

    def explained(y):
        y = y - y.mean(0)
        of = batch - batch.mean()
        return np.square(of @ y).sum() / (of @ of) / np.square(y).sum()

    adjusted, without = (
        MultinomialVAE(K, formula=formula, max_epochs=30).fit(fitted)
        for formula in ("~ age + batch", None)
    )
    assert explained(without.transform(new)) > 0.1
    assert explained(adjusted.transform(new)) < 0.04  # by chance 0.01
    V = adjusted.components_.T
    assert subspace_error(plain.V, V) < 0.5 * subspace_error(plain.V, without.components_.T)


def test_evidence_is_better_with_what_is_known(drawn, adjusted):
    table, _, _ = drawn
    assert adjusted.score(table) > MultinomialVAE(K, max_epochs=30).fit(table).score(table) + 3


def test_a_model_with_covariates_is_saved_and_answers_the_same(drawn, adjusted, tmp_path):
    table, _, _ = drawn
    adjusted.save(tmp_path / "m")
    again = MultinomialVAE.load(tmp_path / "m")
    np.testing.assert_array_equal(again.transform(table), adjusted.transform(table))
    np.testing.assert_array_equal(again.coefficients_, adjusted.coefficients_)
    np.testing.assert_array_equal(again.coefficients_chance_, adjusted.coefficients_chance_)


def test_what_chance_does_is_that_of_the_samples_fitted(drawn, adjusted):
    metadata = drawn[0].sample_metadata
    F = np.stack([metadata["age"], metadata["batch"] == "two"], 1)
    F = F - F.mean(0)
    expected = np.linalg.inv(F.T @ F).diagonal()
    np.testing.assert_allclose(adjusted.coefficients_chance_, expected)


def test_a_copy_of_a_covariate_makes_no_sample_less_sure(drawn):
    """Of two that are nearly one the sum is known as well as the one, though neither is."""
    table, _, _ = drawn
    age = table.sample_metadata["age"]
    alike = age + np.random.default_rng(0).normal(0, 0.3, N)
    twice = CountTable(
        *(table.counts, table.sample_ids, table.feature_ids), age.to_frame().assign(alike=alike)
    )
    unsure, sd = {}, {}
    for formula in ("~ age", "~ age + alike"):
        model = MultinomialVAE(K, max_epochs=10, formula=formula).fit(twice)
        law, _, posterior = next(model._posteriors(twice, 2))
        zero = torch.zeros_like(posterior.z)
        unsure[formula] = law.unsure(zero, zero)  # what comes from the effects alone
        sd[formula] = np.median(model.coefficients_sd_[0])
        F = model._covariates(twice)
        s = model._decoder.Theta_var.sqrt().numpy()
        for j in (0, D - 1):
            covariance = N * np.linalg.inv(F.T @ F) * np.outer(s[j], s[j])
            expected = np.einsum("ia,ab,ib->i", F, covariance, F)
            np.testing.assert_allclose(unsure[formula][:, j], expected, rtol=1e-6)
    assert 0.7 < (unsure["~ age + alike"] / unsure["~ age"]).median() < 2.5
    assert sd["~ age + alike"] > 5 * sd["~ age"]


def test_distances_between_all_log_ratios_are_adjusted_ones(drawn, adjusted, tmp_path):
    table, _, _ = drawn
    some = table.select_samples(np.arange(40))
    apart, of_all = adjusted.of_covariates(some), table.sample_metadata
    F = np.stack([of_all["age"], of_all["batch"] == "two"], 1).astype(float)
    F = (F - F.mean(0))[:40]
    np.testing.assert_allclose(apart, F @ adjusted.coefficients_, atol=1e-9)
    adjusted.save(tmp_path / "m")
    write(some, tmp_path / "t.h5ad")
    arguments = ["transform", tmp_path / "t.h5ad", "--model", tmp_path / "m"]
    arguments += ["-o", tmp_path / "y.tsv", "--distances", tmp_path / "d.tsv"]
    arguments += ["--distance", "aitchison"]
    assert CliRunner().invoke(main, list(map(str, arguments))).exit_code == 0
    found = DistanceMatrix.read(str(tmp_path / "d.tsv")).data
    clr = adjusted.denoise(some)[1]
    np.testing.assert_allclose(found, squareform(pdist(clr - apart)), rtol=1e-6)
    batch = F[:, 1] > 0
    within = found[batch][:, batch].sum() / (batch.sum() * (batch.sum() - 1))
    assert found[batch][:, ~batch].mean() < 1.1 * within
    assert squareform(pdist(clr))[batch][:, ~batch].mean() > 1.1 * within


def test_samples_do_not_influence_each_other(drawn, adjusted):
    table, _, _ = drawn
    some = table.select_samples(np.arange(5))
    np.testing.assert_allclose(adjusted.transform(some), adjusted.transform(table)[:5], rtol=1e-8)


def test_new_samples_need_the_same_metadata(drawn, adjusted):
    table, _, _ = drawn
    bare = CountTable(table.counts, table.sample_ids, table.feature_ids)
    with pytest.raises(InputError, match="there is no metadata"):
        adjusted.transform(bare)
    with pytest.raises(InputError, match="needs a CountTable"):
        adjusted.transform(table.counts)
    new = table.sample_metadata.assign(batch="three")
    unseen = CountTable(table.counts, table.sample_ids, table.feature_ids, new)
    with pytest.raises(InputError, match="'batch' has 'three' in sample 's0'"):
        adjusted.transform(unseen)


def test_a_table_on_disk_brings_its_metadata(drawn, adjusted, tmp_path):
    table, _, _ = drawn
    write(table, tmp_path / "t.h5ad")
    np.testing.assert_allclose(
        adjusted.transform(tmp_path / "t.h5ad"), adjusted.transform(table), rtol=1e-8
    )


def test_held_out_samples_have_their_covariates(drawn):
    table, _, _ = drawn
    settings = {"validation_fraction": 0.2, "max_epochs": 8}
    with_it = MultinomialVAE(K, formula="~ age + batch", **settings).fit(table)
    without = MultinomialVAE(K, **settings).fit(table)
    last = [model.history_["validation_bound"].iloc[-1] for model in (with_it, without)]
    assert last[0] > last[1]


def test_effects_on_balances_are_those_of_the_basis(adjusted):
    frame = coefficient_frame(adjusted)
    assert frame.index[:2].tolist() == ["f0", "f1"]
    assert frame["covariate"].tolist() == ["age"] * D + ["batch[T.two]"] * D
    np.testing.assert_allclose(frame["effect"], adjusted.coefficients_.ravel())
    np.testing.assert_allclose(frame["high"] - frame["low"], 2 * 1.6449 * frame["sd"])
    balances = coefficient_frame(adjusted, balances=True)
    Psi = adjusted.basis_operator_.to_sparse().toarray()
    np.testing.assert_allclose(
        balances["effect"], (adjusted.coefficients_ @ Psi).ravel(), atol=1e-10
    )
    together = [chance * adjusted.clr_loadings_ @ adjusted.clr_loadings_.T
                for chance in adjusted.coefficients_chance_]  # fmt: skip
    apart = [np.diag(sd**2 - C.diagonal())
             for sd, C in zip(adjusted.coefficients_sd_, together, strict=True)]  # fmt: skip
    assert min(C.diagonal().min() for C in apart) > 0
    whole = np.array(together) + np.array(apart)
    expected = np.sqrt((Psi.T @ whole @ Psi).diagonal(axis1=1, axis2=2)).ravel()
    np.testing.assert_allclose(balances["sd"], expected)
    independent = np.sqrt(adjusted.coefficients_sd_**2 @ Psi**2).ravel()
    assert np.max(balances["sd"] / independent) > 1.3
    assert balances.index[0] == adjusted.basis_operator_.names[0]


def test_the_command_line_takes_a_formula_and_writes_effects(drawn, tmp_path):
    table, _, _ = drawn
    write(CountTable(table.counts, table.sample_ids, table.feature_ids), tmp_path / "t.biom")
    table.sample_metadata.rename_axis("sample-id").to_csv(tmp_path / "m.tsv", sep="\t")
    where = [str(tmp_path / "t.biom"), "--metadata", str(tmp_path / "m.tsv")]

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return result

    fit = ["fit", *where, "-k", 2, "--max-epochs", 3, "--quiet"]
    run(*fit, "--formula", "~ age + batch", "-o", tmp_path / "m")
    effects = pd.read_csv(tmp_path / "m/coefficients.tsv", sep="\t")
    assert effects.columns.tolist() == ["feature-id", "covariate", "effect", "sd", "low", "high"]
    assert len(pd.read_csv(tmp_path / "m/balances.tsv", sep="\t")) == 2 * (D - 1)
    run("transform", *where, "--model", tmp_path / "m", "-o", tmp_path / "y.tsv", "--quiet")
    found = pd.read_csv(tmp_path / "y.tsv", sep="\t", index_col=0)
    given = pd.read_csv(tmp_path / "m/samples.tsv", sep="\t", index_col=0)
    np.testing.assert_allclose(found, given, atol=1e-6)
    refused = run(
        "transform", where[0], "--model", tmp_path / "m", "-o", tmp_path / "z.tsv", code=3
    )
    assert "there is no metadata" in refused.stderr
    refused = run(*fit, "--formula", "~ weight", "-o", tmp_path / "n", code=3)
    assert "there is no column 'weight'" in refused.stderr
    assert not (tmp_path / "n").exists()


def test_a_design_moves_what_is_drawn_as_the_effects_say(adjusted):
    design = pd.DataFrame({"age": [2.0, 8.0], "batch": ["one", "one"], "F1": [0.0, 0.0]})
    design = pd.concat([design] * 150, ignore_index=True)
    with pytest.warns(CountvaeWarning, match="columns 'weight' are neither factors nor covariates"):
        adjusted.sample_design(design[:2].assign(weight=1.0))
    counts, y = adjusted.sample_design(design, depth=10**6, random_state=0)
    assert not y[:, 0].any() and y[:, 1].std() > 0
    logs = np.log(counts.toarray() + 0.5)
    clr = logs - logs.mean(1, keepdims=True)
    moved = clr[1::2].mean(0) - clr[::2].mean(0)
    assert np.corrcoef(moved, 6 * adjusted.coefficients_[0])[0, 1] > 0.95
    with pytest.raises(InputError, match=r"'three' in sample '0', which the model was not fitted"):
        adjusted.sample_design(design.assign(batch="three"))
    with pytest.raises(InputError, match=r"has a column 'F3'; the model's factors are 'F1', 'F2'"):
        adjusted.sample_design(design.assign(F3=0.0))


def test_a_design_may_give_the_depths(adjusted):
    design = pd.DataFrame({"age": [2.0, 8.0], "batch": "one", "depth": [50.0, 7000.0]})
    counts, _ = adjusted.sample_design(design, random_state=0)
    assert counts.sum(axis=1).tolist() == [50, 7000]
    with pytest.raises(InputError, match="depth: is given twice, as 10 and in a column"):
        adjusted.sample_design(design, depth=10)
    for wrong in (1.5, -2.0, np.nan):
        with pytest.raises(InputError, match=r"whole number of reads; got .* in sample '1', col"):
            adjusted.sample_design(design.assign(depth=[50.0, wrong]))


def test_samples_without_a_value_are_dropped_if_asked_for_and_counted(drawn, tmp_path):
    table, _, _ = drawn
    write(CountTable(table.counts, table.sample_ids, table.feature_ids), tmp_path / "t.biom")
    metadata = table.sample_metadata.assign(unused=np.arange(N), run=np.arange(N) % 3)
    metadata.loc[["s3", "s4"], "age"] = np.nan
    metadata.loc[["s4", "s7"], "batch"] = None
    metadata.rename_axis("sample-id").to_csv(tmp_path / "m.tsv", sep="\t")
    where = [str(tmp_path / "t.biom"), "--metadata", str(tmp_path / "m.tsv")]

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return result.stderr

    fit = ["fit", *where, "-k", 2, "--max-epochs", 2, "--formula", "~ age + batch + C(run)"]
    said = run(*fit, "-o", tmp_path / "m", code=3)
    assert "column 'age' has no value in sample 's3'" in said
    said = run(*fit, "-o", tmp_path / "m", "--drop-missing")
    assert "drop-missing: 3 of 300 samples left out; without 'age' 2, 'batch' 2" in said
    kept = pd.read_csv(tmp_path / "m/samples.tsv", sep="\t", index_col=0).index
    assert list(kept) == [s for s in table.sample_ids if s not in ("s3", "s4", "s7")]
    names = pd.read_csv(tmp_path / "m/coefficients.tsv", sep="\t")["covariate"].unique()
    assert names.tolist() == ["age", "batch[T.two]", "run[T.1]", "run[T.2]"]
    answer = ["transform", *where, "--model", tmp_path / "m", "-o", tmp_path / "y.tsv"]
    assert "has no value" in run(*answer, code=3)
    run(*answer, "--drop-missing")
    assert len(pd.read_csv(tmp_path / "y.tsv", sep="\t")) == N - 3
    run("report", tmp_path / "m", "-o", tmp_path / "r.html")
    assert "There are no metadata" not in (tmp_path / "r.html").read_text()
    further = ["fit", *where, "--init", tmp_path / "m", "--max-epochs", 2, "--drop-missing"]
    assert "3 of 300 samples left out" in run(*further, "-o", tmp_path / "n")
    said = run("generate", "--model", tmp_path / "m", "-o", tmp_path / "g.tsv", "--n-samples", 3)
    assert "at the means of the covariates 'age', 'batch', 'run'; --design gives others" in said
    metadata.drop(["s3", "s4", "s7"]).rename_axis("id").to_csv(tmp_path / "d.tsv", sep="\t")
    like = ["generate", "--model", tmp_path / "m", "--design", tmp_path / "d.tsv"]
    said = run(*like, "-o", tmp_path / "h.h5ad")
    assert "columns 'unused' are neither factors nor covariates" in said
    metadata.loc[metadata.index[:200], "age"] = np.nan
    metadata.loc[metadata.index[150:], "batch"] = None
    metadata.rename_axis("sample-id").to_csv(tmp_path / "m.tsv", sep="\t")
    said = run(*fit, "-o", tmp_path / "o", "--drop-missing", code=3)
    assert "no sample has a value of every covariate" in said


def test_samples_are_scored_given_their_covariates(drawn, adjusted):
    table, _, _ = drawn
    found = scores(adjusted, table, reference=200)
    assert 0.35 < found["p_value"].mean() < 0.65
    moved = table.sample_metadata.assign(batch=table.sample_metadata["batch"].to_numpy()[::-1])
    wrong = CountTable(table.counts, table.sample_ids, table.feature_ids, moved)
    changed = (moved["batch"] != table.sample_metadata["batch"]).to_numpy()
    without = scores(adjusted, wrong, reference=200)
    assert (without["t"] < found["t"])[changed].mean() > 0.85


def test_the_models_own_samples_have_uniform_p_values_in_every_group():
    """Where a bloom in one group alone makes its evidence another than that of the other."""
    rng = np.random.default_rng(0)
    plain = simulate(N, D, K, 1000, keep_proportions=True, rng=rng)
    group = np.arange(N) % 2
    logits = np.log(plain.proportions)
    logits[:, 0] += 9 * group
    p = np.exp(logits - logits.max(1, keepdims=True))
    counts = np.array([rng.multinomial(1000, row / row.sum()) for row in p], dtype=float)
    samples = np.array([f"s{i}" for i in range(N)], dtype=object)
    known = pd.DataFrame({"group": np.array(["a", "b"])[group]}, index=samples)
    features = np.array([f"f{j}" for j in range(D)], dtype=object)
    table = CountTable(csr_array(counts), samples, features, known)
    model = MultinomialVAE(K, formula="~ group", max_epochs=30).fit(table)
    drawn, _ = model.sample_design(known, 1000, random_state=5)
    own = CountTable(drawn, samples, features, known)
    found = scores(model, own)
    for of in (0, 1):
        assert kstest(found["p_value"][group == of], "uniform").pvalue > 0.01
    alone = scores(model, own.select_samples(np.flatnonzero(group == 1)))
    np.testing.assert_allclose(alone["p_value"], found["p_value"][group == 1], atol=0.08)


def test_text_among_the_numbers_of_new_samples_is_refused_by_name(drawn, adjusted):
    table, _, _ = drawn
    metadata = table.sample_metadata.astype({"age": object})
    metadata.loc["s3", "age"] = "unknown"
    new = CountTable(table.counts, table.sample_ids, table.feature_ids, metadata)
    with pytest.raises(InputError, match="column 'age' has 'unknown' in sample 's3'"):
        adjusted.transform(new)


def test_a_fit_to_sparse_counts_does_not_run_away_from_what_covariates_tell(shared_table):
    """Pseudocounted logs move less than log-ratios, so an encoder that reads them amplifies.

    One that read log-ratios less the effects of covariates amplified these as well: each epoch
    overshot what the one before had overshot.
    """
    file = shared_table("ecam")
    known = read(file, metadata=file.with_name("metadata.tsv")).filter(min_feature_samples=20)
    months = known.sample_metadata["month"].notna().to_numpy()
    order = np.random.default_rng(3).permutation(np.flatnonzero(months))
    table = known.select_samples(order[200:])
    given, plain = (
        MultinomialVAE(10, formula=formula, random_state=3).fit(table)
        for formula in ("~ month", None)
    )
    assert given.noise_variance_ < plain.noise_variance_
    assert given.history_["bound"].iloc[-1] > plain.history_["bound"].iloc[-1]


def test_levels_that_only_validation_has_move_nothing():
    """Their columns are constant among the samples fitted, and of these alike."""
    rng = np.random.default_rng(0)
    truth = simulate(60, 12, 2, 500, rng=rng)
    samples = np.array([f"s{i}" for i in range(60)], dtype=object)
    features = np.array([f"f{j}" for j in range(12)], dtype=object)
    for seed in range(4):
        site = np.array(["a", "b"] * 30, dtype=object)
        held = np.random.default_rng(seed).permutation(60)[:5]
        site[held] = [f"only{i}" for i in range(5)]
        metadata = pd.DataFrame({"site": site}, index=samples)
        table = CountTable(truth.counts, samples, features, metadata)
        model = MultinomialVAE(
            2, formula="~ site", validation_fraction=0.3, max_epochs=20, random_state=seed
        ).fit(table)
        assert model.history_["bound"].iloc[-1] > model.history_["bound"].iloc[0]
        assert model.noise_variance_ < 5
