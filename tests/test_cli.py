import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import click
import h5py
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from scipy.sparse import csr_array
from skbio import DistanceMatrix, OrdinationResults

import countvae.checkpoint
import countvae.training
from countvae import MultinomialVAE, cli, demo, select, store
from countvae.cli import main
from countvae.console import EXIT_CODES, Progress, explain
from countvae.errors import CannotWrite, Diverged, InputError
from countvae.files import sha256
from countvae.table import CountTable, read, write

QUICK = ["-k", "2", "--max-epochs", "2", "--quiet"]
MODEL_FILES = {
    "config.json",
    "features.tsv",
    "model.safetensors",
    "ordination.txt",
    "run.json",
    "samples.tsv",
}
SAMPLES = np.array(["007", "2538.1001130", "1e5", *(f"s{i}" for i in range(17))], dtype=object)
FEATURES = np.array(["1.10", "NA", "c", "d", "e", "f"], dtype=object)


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).poisson(5.0, size=(20, 6))


@pytest.fixture(scope="module")
def shared(tmp_path_factory, counts):
    """A table in a file and a model fitted to it, both only to be read."""
    folder = tmp_path_factory.mktemp("shared")
    taxonomy = pd.DataFrame({"taxonomy": list("uvwxyz")}, index=FEATURES)
    table = CountTable(csr_array(counts), SAMPLES, FEATURES, feature_metadata=taxonomy)
    write(table, folder / "table.biom")
    result = CliRunner().invoke(
        main, ["fit", str(folder / "table.biom"), "-o", str(folder / "model"), *QUICK]
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Call the program in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return result

    return call


def write_tsv(path, counts, samples=SAMPLES, features=FEATURES):
    lines = ["\t".join(["sample_id", *features])]
    lines += ["\t".join([s, *map(str, row)]) for s, row in zip(samples, counts, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(result, *named):
    """One sentence on stderr that names what is wrong."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", ")."))
    for name in named:
        assert name in lines[0]
    assert result.stdout == ""


# ---- fit


def test_the_folder_that_fit_makes_is_a_model_with_all_its_files(shared, counts):
    assert {file.name for file in (shared / "model").iterdir()} == MODEL_FILES
    model = MultinomialVAE.load(shared / "model")
    table = read(shared / "table.biom")
    mean, sd = model.posterior(table)
    frame = pd.read_csv(shared / "model" / "samples.tsv", sep="\t", dtype={0: str}).set_index(
        "sample-id"
    )
    assert list(frame.index) == list(SAMPLES)
    np.testing.assert_allclose(frame.to_numpy(), np.hstack([mean, sd]), rtol=1e-12)
    features = pd.read_csv(
        shared / "model" / "features.tsv", sep="\t", dtype={0: str}, keep_default_na=False
    ).set_index("feature-id")
    assert list(features.index) == list(FEATURES)
    assert "".join(features["taxonomy"]) == "uvwxyz"
    np.testing.assert_allclose(features["mean_clr"], model.mean_, rtol=1e-12)
    results = OrdinationResults.read(str(shared / "model" / "ordination.txt"))
    assert list(results.samples.index) == list(SAMPLES)
    assert list(results.features.index) == list(FEATURES)


def test_fit_gives_what_the_estimator_gives_with_the_same_settings(shared):
    model = MultinomialVAE.load(shared / "model")
    same = MultinomialVAE(2, max_epochs=2).fit(read(shared / "table.biom"))
    np.testing.assert_array_equal(model.components_, same.components_)


def test_run_json_says_what_was_run_on_what(shared):
    about = json.loads((shared / "model" / "run.json").read_text())
    assert about["arguments"]["max_epochs"] == 2
    assert about["arguments"]["tables"] == [str(shared / "table.biom")]
    assert about["seed"] == 0
    assert about["input"]["sha256"] == [sha256(shared / "table.biom")]
    assert about["versions"]["torch"] == torch.__version__
    assert about["before_filters"]["samples"] == about["after_filters"]["samples"] == 20
    assert set(about["seconds"]) == {"read", "fit", "encode"}
    model = MultinomialVAE.load(shared / "model")
    assert about["result"]["bound"] == model.history_["bound"].iloc[-1]
    assert about["result"]["validation_bound"] is None


def test_the_same_seed_twice_gives_the_same_bits_and_another_does_not(run, shared, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run("fit", shared / "table.biom", "-o", name, *QUICK, "--seed", seed)
    hashes = {name: sha256(tmp_path / name / "model.safetensors") for name in "abc"}
    assert hashes["a"] == hashes["b"] != hashes["c"]


def test_every_default_of_fit_is_the_estimators_own():
    options = {p.name: p for p in main.commands["fit"].params}
    shared_names = options.keys() & MultinomialVAE().get_params().keys()
    assert {"n_components", "learning_rate", "random_state", "basis"} <= shared_names
    for name in shared_names - {"patience", "formula", "init", "freeze"}:
        default = MultinomialVAE().get_params()[name]
        spelt = default.replace("_", "-") if isinstance(default, str) else default
        assert options[name].default == spelt, name


def test_fit_prints_a_summary_or_json_to_stdout_alone(run, shared):
    result = run("fit", shared / "table.biom", "-o", "m", *QUICK)
    assert "20 samples × 6 features" in result.stdout
    assert result.stderr == ""
    result = run("fit", shared / "table.biom", "-o", "j", *QUICK, "--json")
    assert json.loads(result.stdout)["result"]["epochs"] == 2


def test_filters_print_before_and_after(run, tmp_path, counts):
    rare = counts.copy()
    rare[1:, 2] = 0
    write_tsv(tmp_path / "t.tsv", rare)
    arguments = [*QUICK[:-1], "--min-feature-samples", "2"]
    result = run("fit", "t.tsv", "-o", "m", *arguments)
    assert "before 20 samples × 6 features" in result.stderr
    assert "after 20 samples × 5 features" in result.stderr
    about = json.loads((tmp_path / "m" / "run.json").read_text())
    assert (about["before_filters"]["features"], about["after_filters"]["features"]) == (6, 5)


def test_settings_reach_the_estimator(run, shared, tmp_path):
    (tmp_path / "tree.nwk").write_text("((1.10,NA)x,(c,(d,(e,f))));")
    more = ["--tree", "tree.nwk", "--noise", "by-feature", "--validation-fraction", "0.25"]
    more += ["--patience", "5", "--encoder-depth", "1", "--batch-size", "7", "--pseudocount", "0.5"]
    run("fit", shared / "table.biom", "-o", "m", *QUICK, *more)
    model = MultinomialVAE.load(tmp_path / "m")
    assert (model.noise, model.patience, model.encoder_depth) == ("by_feature", 5, 1)
    assert (model.batch_size, model.pseudocount) == (7, 0.5)
    assert "x" in model.basis_operator_.names.tolist()
    result = json.loads((tmp_path / "m" / "run.json").read_text())["result"]
    assert result["validation_bound"] == model.history_["validation_bound"].max()


def test_too_many_components_are_lowered_with_a_warning(run, shared):
    result = run("fit", shared / "table.biom", "-o", "m", *QUICK, "-k", "10")
    assert "at most 5 factors, not 10; using 5" in result.stderr
    assert "k = 5" in result.stdout


def test_empty_samples_are_left_out_on_request_and_named(run, tmp_path, counts):
    empty = counts.copy()
    empty[2] = 0
    write_tsv(tmp_path / "t.tsv", empty)
    result = run("fit", "t.tsv", "-o", "m", *QUICK, "--drop-empty")
    assert "'1e5'" in result.stderr
    assert len((tmp_path / "m" / "samples.tsv").read_text().splitlines()) == 20


def test_nothing_is_replaced_without_force(run, shared, tmp_path):
    arguments = ["fit", shared / "table.biom", "-o", "m", *QUICK]
    run(*arguments)
    before = sha256(tmp_path / "m" / "run.json")
    refused(run(*arguments, code=3), "m: is already there")
    assert sha256(tmp_path / "m" / "run.json") == before
    run(*arguments, "--force", "--seed", "5")
    assert json.loads((tmp_path / "m" / "run.json").read_text())["seed"] == 5


def test_an_output_that_cannot_be_written_is_found_before_the_fit(
    run, shared, tmp_path, monkeypatch
):
    monkeypatch.setattr(MultinomialVAE, "fit", lambda *_: pytest.fail("was fitted"))
    refused(run("fit", shared / "table.biom", "-o", "no/m", *QUICK, code=3), "no")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").touch()
    arguments = ["fit", shared / "table.biom", "-o", "own", *QUICK, "--force"]
    refused(run(*arguments, code=3), "own: is not replaced")
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["thesis.txt"]


# ---- tables that stay on disk


def test_a_streamed_fit_is_that_of_the_estimator_on_the_path(shared, run, tmp_path):
    run("fit", shared / "table.biom", "-o", "m", "--stream", *QUICK)
    same = MultinomialVAE(2, max_epochs=2).fit(shared / "table.biom")
    np.testing.assert_array_equal(MultinomialVAE.load(tmp_path / "m").components_, same.components_)
    run("transform", shared / "table.biom", "--model", "m", "-o", "on.tsv", "--stream", "--quiet")
    run("transform", shared / "table.biom", "--model", "m", "-o", "off.tsv", "--quiet")
    assert (tmp_path / "on.tsv").read_text() == (tmp_path / "off.tsv").read_text()


def test_several_files_are_one_table(shared, run, tmp_path):
    table = read(shared / "table.biom")
    write(table.select_samples(np.arange(8)), tmp_path / "a.h5ad")
    write(table.select_samples(np.arange(8, 20)), tmp_path / "b.biom")
    run("fit", "a.h5ad", "b.biom", "-o", "both", *QUICK, "--min-feature-samples", "1")
    run("fit", shared / "table.biom", "-o", "one", "--stream", *QUICK)
    assert (tmp_path / "both/samples.tsv").read_text() == (tmp_path / "one/samples.tsv").read_text()
    about = json.loads((tmp_path / "both" / "run.json").read_text())
    assert about["input"]["sha256"] == [sha256(tmp_path / name) for name in ("a.h5ad", "b.biom")]


def test_what_cannot_be_streamed_is_refused(shared, run, counts, tmp_path):
    write_tsv(tmp_path / "t.tsv", counts)
    refused(run("fit", "t.tsv", "-o", "m", "--stream", code=3), "t.tsv", "read from disk")
    run("fit", shared / "table.biom", "-o", "m", "--stream", "--transpose", code=2)
    model = ("--model", shared / "model")
    run("transform", shared / "table.biom", *model, "-o", "t.h5ad", "--stream", code=2)
    assert not (tmp_path / "m").exists() and not (tmp_path / "t.h5ad").exists()


# ---- bad input: exit code 3, one sentence, nothing written


def _cell(i, j, value):
    def change(path, counts):
        cells = counts.astype(object)
        cells[i, j] = value
        write_tsv(path, cells)

    return change


def _empty_sample(path, counts):
    counts[2] = 0
    write_tsv(path, counts)


BAD_TABLES = {
    "negative": (_cell(1, 2, -1), "2538.1001130", "'c'"),
    "NaN": (_cell(1, 2, "nan"), "2538.1001130", "'c'"),
    "infinite": (_cell(1, 2, "inf"), "2538.1001130", "'c'"),
    "text": (_cell(1, 2, "many"), "2538.1001130", "'c'", "many"),
    "fractional": (_cell(1, 2, 2.25), "2538.1001130", "'c'", "2.25"),
    "logs": (lambda path, counts: write_tsv(path, np.log1p(counts)), "log-normalised"),
    "sample twice": (
        lambda path, counts: write_tsv(path, counts, ["007", *SAMPLES[:-1]]),
        "sample ids",
        "'007'",
    ),
    "feature twice": (
        lambda path, counts: write_tsv(path, counts, features=["NA", *FEATURES[:-1]]),
        "feature ids",
        "'NA'",
    ),
    "empty sample": (_empty_sample, "'1e5'"),
    "one feature": (
        lambda path, counts: write_tsv(path, counts[:, :1] + 1, features=["a"]),
        "n_features = 1",
    ),
    "no feature": (lambda path, counts: path.write_text("sample_id\ns1\n"), "t.tsv"),
    "no file": (lambda path, counts: None, "t.tsv", "no such file"),
    "foreign": (lambda path, counts: path.write_bytes(b"\x00\x01\x02" * 99), "t.tsv"),
    "pickle": (lambda path, counts: path.write_bytes(b"\x80\x04\x95\x00"), "t.tsv"),
    "leading blank": (
        lambda path, counts: write_tsv(path, counts, [" a", *SAMPLES[1:]]),
        "sample ids",
        "' a'",
    ),
}


@pytest.mark.parametrize("bad", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_tables_are_refused(run, tmp_path, counts, bad):
    make, *named = bad
    make(tmp_path / "t.tsv", counts.copy())
    before = sorted(tmp_path.iterdir())
    refused(run("fit", "t.tsv", "-o", "m", *QUICK, code=3), *named)
    assert sorted(tmp_path.iterdir()) == before


def test_a_truncated_file_is_refused(run, shared, tmp_path):
    content = (shared / "table.biom").read_bytes()
    (tmp_path / "t.biom").write_bytes(content[: len(content) // 2])
    refused(run("fit", "t.biom", "-o", "m", *QUICK, code=3), "t.biom")
    assert [file.name for file in tmp_path.iterdir()] == ["t.biom"]


def test_a_transposed_table_is_noticed_by_its_metadata(run, shared, tmp_path):
    (tmp_path / "m.tsv").write_text("id\tx\n" + "".join(f"{f}\t1\n" for f in FEATURES))
    arguments = ["fit", shared / "table.biom", "-o", "m", *QUICK, "--metadata", "m.tsv"]
    refused(run(*arguments, code=3), "transposed")
    run(*arguments, "--transpose")
    assert MultinomialVAE.load(tmp_path / "m").n_features_in_ == 20


def test_a_tree_without_the_features_is_refused(run, shared, tmp_path):
    arguments = ["fit", shared / "table.biom", "-o", "m", *QUICK, "--tree", "tree.nwk"]
    refused(run(*arguments, code=3), "tree.nwk")
    (tmp_path / "tree.nwk").write_text("((a,b),(c,d));")
    refused(run(*arguments, code=3), "1.10")
    assert [file.name for file in tmp_path.iterdir()] == ["tree.nwk"]


def test_a_filter_that_would_leave_nothing_is_refused(run, shared, tmp_path):
    arguments = ["fit", shared / "table.biom", "-o", "m", *QUICK, "--min-sample-count", "10000"]
    refused(run(*arguments, code=3), "min_sample_count=10000")
    assert not list(tmp_path.iterdir())


def test_a_sample_emptied_by_a_filter_is_refused_or_dropped(run, tmp_path, counts):
    only = counts.copy()
    only[:, 0] = 0
    only[3] = 0
    only[3, 0] = 7
    write_tsv(tmp_path / "t.tsv", only)
    arguments = ["fit", "t.tsv", "-o", "m", *QUICK, "--min-feature-samples", "2"]
    refused(run(*arguments, code=3), "t.tsv", "'s0'")
    run(*arguments, "--drop-empty")
    assert MultinomialVAE.load(tmp_path / "m").depth_.size == 19


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_model_folder_with_a_missing_or_altered_file_is_refused(run, shared, tmp_path, file):
    arguments = ["transform", shared / "table.biom", "--model", "m", "-o", "t.tsv", "--quiet"]
    run("fit", shared / "table.biom", "-o", "m", *QUICK)
    content = bytearray((tmp_path / "m" / file).read_bytes())
    content[-20] ^= 1
    (tmp_path / "m" / file).write_bytes(content)
    refused(run(*arguments, code=3), file)
    (tmp_path / "m" / file).unlink()
    refused(run(*arguments, code=3), file)
    assert not (tmp_path / "t.tsv").exists()


# ---- transform


def test_transform_gives_the_coordinates_of_the_fit_in_three_formats(run, shared, tmp_path):
    model = MultinomialVAE.load(shared / "model")
    mean, sd = model.posterior(read(shared / "table.biom"))
    arguments = ["transform", shared / "table.biom", "--model", shared / "model", "--quiet", "-o"]
    for name in ("t.tsv", "t.txt", "t.h5ad"):
        assert run(*arguments, name).output == ""
    assert (tmp_path / "t.tsv").read_bytes() == (shared / "model" / "samples.tsv").read_bytes()
    assert (tmp_path / "t.txt").read_bytes() == (shared / "model" / "ordination.txt").read_bytes()
    adata = anndata.read_h5ad(tmp_path / "t.h5ad")
    assert list(adata.obs_names) == list(SAMPLES)
    assert list(adata.var_names) == list(FEATURES)
    assert np.array_equal(adata.X.toarray(), read(shared / "table.biom").counts.toarray())
    assert np.array_equal(adata.obsm["X_mvae"], mean)
    assert np.array_equal(adata.obsm["X_mvae_sd"], sd)
    assert adata.varm["mvae_loadings"].shape == (6, 2)
    assert adata.uns["mvae"]["parameters"]["max_epochs"] == 2


def test_transform_keeps_all_of_an_h5ad_and_the_samples_with_reads(run, shared, tmp_path, counts):
    empty = counts.copy()
    empty[0] = 0
    adata = anndata.AnnData(
        np.log1p(empty).astype(np.float32),
        obs=pd.DataFrame({"kind": list("ab" * 10)}, index=SAMPLES),
        var=pd.DataFrame(index=FEATURES),
        layers={"counts": csr_array(empty)},
    )
    adata.write_h5ad(tmp_path / "in.h5ad")
    arguments = ["transform", "in.h5ad", "--model", shared / "model", "-o", "out.h5ad", "--quiet"]
    result = run(*arguments, "--drop-empty")
    assert "'007'" in result.stderr
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(out.obs_names) == list(SAMPLES[1:])
    assert "".join(out.obs["kind"]) == "ba" * 9 + "b"
    np.testing.assert_array_equal(out.X, adata.X[1:])
    assert out.obsm["X_mvae"].shape == (19, 2)


def test_transform_turns_an_h5ad_whose_axes_are_the_other_way_round(run, shared, tmp_path, counts):
    adata = anndata.AnnData(
        counts.T.astype(np.float32), pd.DataFrame(index=FEATURES), pd.DataFrame(index=SAMPLES)
    )
    adata.write_h5ad(tmp_path / "in.h5ad")
    arguments = ["transform", "in.h5ad", "--model", shared / "model", "-o", "out.h5ad", "--quiet"]
    refused(run(*arguments, code=3), "in.h5ad", "transposed")
    run(*arguments, "--transpose")
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(out.obs_names) == list(SAMPLES)
    assert out.obsm["X_mvae"].shape == (20, 2)


def test_features_are_matched_by_id_and_what_does_not_match_is_reported(
    run, shared, tmp_path, counts
):
    write_tsv(tmp_path / "turned.tsv", counts[:, ::-1], features=FEATURES[::-1])
    arguments = ["--model", shared / "model", "--quiet", "-o"]
    turned = run("transform", "turned.tsv", *arguments, "turned.out.tsv").stderr
    assert "its features are in another order than the model's; aligned by id" in turned
    turned = (tmp_path / "turned.out.tsv").read_bytes()
    assert turned == (shared / "model" / "samples.tsv").read_bytes()
    write_tsv(tmp_path / "other.tsv", counts, features=[*FEATURES[:-1], "new"])
    result = run("transform", "other.tsv", *arguments, "other.out.tsv")
    assert "5 of 6 features are in the table" in result.stderr
    assert "1 are not, and 1 others are left out" in result.stderr
    assert len((tmp_path / "other.out.tsv").read_text().splitlines()) == 21
    run("transform", "other.tsv", *arguments, "filled.tsv", "--zero-fill")
    model = cli.MultinomialVAE.load(shared / "model")
    zeros = np.c_[counts[:, :-1], np.zeros(20, int)]
    filled = pd.read_csv(tmp_path / "filled.tsv", sep="\t").iloc[:, 1:3]
    expected = model.transform(CountTable(csr_array(zeros), SAMPLES, FEATURES))
    np.testing.assert_allclose(filled, expected, atol=1e-12)
    left_out = pd.read_csv(tmp_path / "other.out.tsv", sep="\t").iloc[:, 1:3]
    known = CountTable(csr_array(counts[:, :-1]), SAMPLES, FEATURES[:-1])
    expected = model.subcomposition(FEATURES[:-1]).transform(known)
    np.testing.assert_allclose(left_out, expected, atol=1e-12)
    refusal = run("transform", "other.tsv", *arguments, "o.tsv", "--min-overlap", 0.9, code=3)
    assert "Less than min_overlap=0.9 is shared" in refusal.stderr
    run("denoise", "other.tsv", *arguments, "denoised.tsv")
    assert (tmp_path / "denoised.tsv").read_text().splitlines()[0].split("\t")[1:] == list(
        FEATURES[:-1]
    )
    run("score", "other.tsv", *arguments, "scores.tsv", "--reference", 100)
    assert np.isfinite(pd.read_csv(tmp_path / "scores.tsv", sep="\t")["t"]).all()


@pytest.mark.parametrize("kind", ["latent", "aitchison"])
def test_distances_are_written_for_scikit_bio(run, shared, tmp_path, kind):
    table = shared / "table.biom"
    run("transform", table, "--model", shared / "model", "-o", "y.tsv", "--quiet",
        "--distances", "d.tsv", "--distance", kind)  # fmt: skip
    found = DistanceMatrix.read(str(tmp_path / "d.tsv"))
    assert list(found.ids) == list(SAMPLES)
    model, counts = cli.MultinomialVAE.load(shared / "model"), read(table)
    points = model.transform(counts) if kind == "latent" else model.denoise(counts)[1]
    assert found["007", "s5"] == pytest.approx(np.linalg.norm(points[0] - points[8]))


def test_a_table_without_one_of_the_models_features_is_refused(run, shared, tmp_path, counts):
    write_tsv(tmp_path / "t.tsv", counts, features=list("uvwxyz"))
    arguments = ["transform", "t.tsv", "--model", shared / "model", "--quiet", "-o", "o.tsv"]
    refused(run(*arguments, code=3), "t.tsv", "'u'", "'1.10'")
    assert not (tmp_path / "o.tsv").exists()


def test_transform_refuses_an_unknown_suffix_and_a_model_without_ids(run, shared, counts):
    arguments = ["transform", shared / "table.biom", "--quiet", "--model"]
    refused(run(*arguments, shared / "model", "-o", "t.xlsx", code=3), "t.xlsx", ".h5ad")
    MultinomialVAE(2, max_epochs=1).fit(counts).save("nameless")
    refused(run(*arguments, "nameless", "-o", "t.tsv", code=3), "nameless", "without feature ids")


def test_transform_replaces_a_file_only_by_force(run, shared, tmp_path):
    (tmp_path / "t.tsv").write_text("mine")
    arguments = ["transform", shared / "table.biom", "--model", shared / "model", "-o", "t.tsv"]
    refused(run(*arguments, "--quiet", code=3), "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "mine"
    run(*arguments, "--force")
    assert (tmp_path / "t.tsv").read_text().startswith("sample-id\t")


# ---- info, simulate, demo


def test_info_tells_of_a_model(run, shared):
    about = json.loads(run("info", shared / "model", "--json").stdout)
    assert (about["n_components"], about["features"], about["samples_fitted"]) == (2, 6, 20)
    assert about["epochs"] == 2
    assert about["basis"].startswith("5 log-ratios: '1.10|d'")
    assert "n components              2" in run("info", shared / "model").stdout


def test_info_tells_of_a_table_and_of_what_is_odd_about_it(run, tmp_path, counts):
    odd = counts.astype(float)
    odd[2], odd[:, 1], odd[0, 0] = 0, 0, 2.25
    write_tsv(tmp_path / "t.tsv", odd)
    about = json.loads(run("info", "t.tsv", "--json").stdout)
    assert (about["samples_with_reads"], about["features"]) == (19, 6)
    assert about["features_without_reads"] == 1
    assert about["nonzeros"] == np.count_nonzero(odd)
    assert about["reads"] == odd.sum()
    assert about["source"] == "text, rows are samples"
    fractional, empty = about["notes"]
    assert "2.25 in sample '007', feature '1.10'" in fractional
    assert "'1e5'" in empty
    assert run("info", "t.tsv").stderr == ""


def test_commands_say_what_they_have_written_unless_quiet(run, shared):
    on_table = ["--model", shared / "model", shared / "table.biom"]
    for arguments, written in (
        (["transform", *on_table, "-o", "y.tsv"], "y.tsv"),
        (["transform", *on_table, "-o", "z.tsv", "--distances", "d.tsv"], "z.tsv, d.tsv"),
        (
            ["denoise", *on_table, "-o", "p.tsv", "--interval", "0.9"],
            "p.tsv, p.lower.tsv, p.upper.tsv",
        ),
        (["generate", "--model", shared / "model", "-o", "g.tsv"], "g.tsv"),
    ):
        assert run(*arguments).stdout == f"written   {written}\n"
        assert all(Path(name).is_file() for name in written.split(", "))
        assert run(*arguments, "--force", "--quiet").stdout == ""


@pytest.mark.parametrize("suffix", ["biom", "h5ad", "tsv"])
def test_simulate_writes_counts_and_the_truth_that_made_them(run, tmp_path, suffix):
    size = ["--samples", "9", "--features", "7", "-k", "2", "--seed", "1"]
    said = run("simulate", "-o", f"x.{suffix}", *size).stdout
    assert said == f"written   x.{suffix}, the truth in x-truth\n"
    table = read(tmp_path / f"x.{suffix}")
    factors = pd.read_csv(tmp_path / "x-truth" / "factors.tsv", sep="\t", index_col=0)
    loadings = pd.read_csv(tmp_path / "x-truth" / "loadings.tsv", sep="\t", index_col=0)
    proportions = np.load(tmp_path / "x-truth" / "proportions.npy", allow_pickle=False)
    assert (table.n, table.d) == proportions.shape == (9, 7)
    assert list(factors.index) == list(table.sample_ids)
    assert np.array_equal(factors["depth"], table.depth)
    logits = factors[["z1", "z2"]].to_numpy() @ loadings[["V1", "V2"]].to_numpy().T
    noise = np.log(proportions) - logits - loadings["mean_clr"].to_numpy()
    noise -= noise.mean(axis=1, keepdims=True)
    assert np.mean(noise**2) == pytest.approx(0.5, rel=0.6)
    about = json.loads((tmp_path / "x-truth" / "truth.json").read_text())
    assert (about["seed"], about["design"], about["sigma2"]) == (1, "wide", 0.5)
    assert (about["n"], about["d"], about["k"], about["reads"]) == (9, 7, 2, 1000)
    assert run("simulate", "-o", f"y.{suffix}", *size, "--quiet").stdout == ""


def test_simulate_is_all_or_nothing(run, tmp_path):
    refused(run("simulate", "-o", "x.xlsx", code=3), "Error: x.xlsx: expected a suffix among")
    refused(run("simulate", "-o", "x.tsv", "--features", "4", "-k", "4", code=3), "k")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    refused(run("simulate", "-o", "x.tsv", "--truth", "there", code=3), "there")
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_demo_draws_both_tables_and_beats_the_baselines(run, tmp_path):
    result = run("demo", "-o", "d", "--quiet", "--json")
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "d" / "demo.json").read_text())
    for table in found.values():
        assert table["bound"] > table["pca_plug_in"] > table["pooled"]
    simulated = found["simulated"]
    assert simulated["covariance_error"] < 0.3 < simulated["covariance_error_pca"]
    assert simulated["subspace_error"] < 0.1 < simulated["subspace_error_pca"]
    for name in ("real", "simulated"):
        assert (tmp_path / "d" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        MultinomialVAE.load(tmp_path / "d" / name)
    refused(run("demo", "-o", "d", "--quiet", code=3), "d: is already there")
    assert "countvae, a lower bound" in demo.describe(found)


def test_without_the_atlas_the_demo_takes_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.skbio, "__path__", [str(tmp_path)])
    table, _, label = demo._real_table()
    assert (table.n, table.d) == (1797, 64)
    assert table.sample_metadata[label].nunique() == 10


# ---- exit codes, help, progress


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("counts: wrong."), 3, "counts: wrong."),
        (OSError(28, "No space left on device", "m"), 3, "m: No space left on device."),
        (Diverged("not finite in epoch 3"), 4, "did not converge"),
        (MemoryError(), 5, "out of memory"),
        (torch.OutOfMemoryError("CUDA"), 5, "out of memory"),
        (torch.cuda.OutOfMemoryError("CUDA"), 5, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 5, "out of memory"),
        (RuntimeError("std::bad_alloc"), 5, "out of memory"),
        (OSError(12, "Cannot allocate memory"), 5, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_error_has_its_exit_code_one_sentence_and_leaves_nothing(
    run, shared, tmp_path, monkeypatch, error, code, said
):
    def fail(*_):
        raise error

    monkeypatch.setattr(MultinomialVAE, "fit", fail)
    arguments = ["fit", shared / "table.biom", "-o", "m", *QUICK]
    result = run(*arguments, code=code)
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
    assert "Traceback" in run(*arguments, "--debug", code=code).stderr
    assert explain(error)[0] == code


@pytest.mark.parametrize("epoch", [0, 3])
def test_of_a_fit_that_diverges_the_best_epoch_is_kept_beside_it(
    run, shared, tmp_path, monkeypatch, epoch
):
    take = countvae.training._epoch

    def diverges(number, phase, state, *rest):
        if number == epoch:
            raise state.diverged("the bound is not finite")
        return take(number, phase, state, *rest)

    monkeypatch.setattr(countvae.training, "_epoch", diverges)
    arguments = ["fit", shared / "table.biom", "-o", "m", *QUICK, "--max-epochs", "8"]
    said = run(*arguments, code=4).stderr.splitlines()[-1]
    assert said.startswith("Error: the fit did not converge: the bound is not finite; ")
    if epoch == 0:
        assert said.endswith("; nothing was written.")
        assert not list(tmp_path.iterdir())
    else:
        assert said.endswith("; the model of its best epoch is in m.diverged")
        assert {path.name for path in tmp_path.iterdir()} == {"m.diverged"}
        assert MultinomialVAE.load("m.diverged").n_iter_ == 3
        refused(run(*arguments, code=3), "m.diverged: is already there")
        assert "best epoch is in m.diverged" in run(*arguments, "--force", code=4).stderr


def test_memory_that_ends_within_a_fit_is_told_with_how_to_go_on(
    run, shared, tmp_path, monkeypatch
):
    def used_up(self, row):
        if row["epoch"] == 2:
            raise MemoryError

    monkeypatch.setattr("countvae.console.Progress.__call__", used_up)
    monkeypatch.setattr(sys, "argv", ["countvae", "fit", "t.biom", "-o", "m"])
    said = run("fit", shared / "table.biom", "-o", "m", *QUICK[:-1], code=5).stderr
    how = "it goes on by: countvae fit t.biom -o m --resume"
    assert said.endswith(f"Error: out of memory; {how}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"m.checkpoint"}


def test_torch_says_what_is_taken_for_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48, dtype=torch.uint8)
    assert explain(caught.value)[0] == 5


def test_every_exit_code_but_two_is_an_errors(run):
    assert set(EXIT_CODES.values()) == {3, 4, 5, 6, 130}
    run("--version")
    run("fit", code=2)
    run("fit", "t.tsv", "-o", "m", "--no-such-option", code=2)
    run("fit", "t.tsv", "-o", "m", "-k", "0", code=2)
    run("fit", "t.tsv", "-o", "m", "--tree", "t", "--basis", "sequential", code=2)


@pytest.mark.parametrize("name", [None, *main.commands])
def test_help_begins_with_an_example_whose_options_exist(run, name):
    command = main if name is None else main.commands[name]
    example = run(*([name] if name else []), "--help").stdout.splitlines()[0]
    assert example == f"Example: {command.example}"
    words = command.example.split()[1:]
    with click.Context(main) as parent:
        main.commands[words[0]].make_context(words[0], words[1:], parent=parent)


BEGINNING = """
import os, signal, sys
import countvae.__main__
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "countvae.cli":
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
sys.meta_path.insert(0, Finder())
countvae.__main__.main()
"""
"""Sends itself a signal as it imports what takes long."""


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_interrupt_while_the_program_begins_is_a_sentence_too(how):
    command = [sys.executable, "-c", BEGINNING, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Error: interrupted; nothing was written.\n"


INTERRUPTED = """
import os, signal, sys, time
from countvae import MultinomialVAE, cli
# A shell ignores interrupts for what it runs in the background, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
def fit(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
MultinomialVAE.fit = fit
cli.main(prog_name="countvae")
"""


def test_the_module_is_the_same_program_with_the_same_exit_codes(shared, tmp_path, counts):
    bad = write_tsv(tmp_path / "t.tsv", -counts)
    begun = {
        code: subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for code, arguments in {
            0: ["-m", "countvae", "fit", shared / "table.biom", "-o", "m m", *QUICK],
            2: ["-m", "countvae", "fit"],
            3: ["-m", "countvae", "fit", bad, "-o", "n", *QUICK],
            130: ["-c", INTERRUPTED, "fit", shared / "table.biom", "-o", "i", *QUICK],
        }.items()
    }
    said = {code: process.communicate() for code, process in begun.items()}
    assert [process.returncode for process in begun.values()] == list(begun), said
    assert said[0][1] == ""
    assert said[2][1].startswith("Usage: countvae fit")
    assert said[3][1].startswith(f"Error: {bad}")
    assert said[130][1] == "Error: interrupted; nothing was written.\n"
    assert {file.name for file in tmp_path.iterdir()} == {"m m", "t.tsv"}
    assert {file.name for file in (tmp_path / "m m").iterdir()} == MODEL_FILES


class Terminal(io.StringIO):
    def isatty(self):
        return True


def epoch_of(epoch, total, waited=0.0):
    return {"epoch": epoch, "max_epochs": total, "bound": -1.0, "sigma2": 0.5, "waited": waited}


def test_progress_is_a_line_every_few_seconds_with_the_time_left():
    stream, seconds = io.StringIO(), iter([0.0, 3.0, 4.0, 7.0, 9.0, 9.0])
    with Progress(stream, lambda: next(seconds)) as progress:
        for epoch in (1, 2, 3, 4):
            progress(epoch_of(epoch, 10))
    assert stream.getvalue() == "epoch 3/10  bound -1.00  sigma2 0.5  14 s left\n"


def test_progress_is_a_bar_on_a_terminal_without_escape_codes():
    stream, seconds = Terminal(), iter([0.0, 1.0, 2.0, 2.0])
    with Progress(stream, lambda: next(seconds)) as progress:
        for epoch in (1, 2):
            progress(epoch_of(epoch, 2))
    first, last = stream.getvalue().removeprefix("\r").split("\r")
    assert first.startswith("[########........] epoch 1/2")
    assert last.startswith("[################] epoch 2/2")
    assert last.endswith("\n")
    assert "\x1b" not in stream.getvalue()
    assert len(first) < 80


def test_progress_ends_with_what_waiting_for_the_disk_took():
    stream, seconds = io.StringIO(), iter([0.0, 3.0, 4.0, 5.0, 6.0])
    with Progress(stream, lambda: next(seconds)) as progress:
        for epoch in (1, 2, 3):
            progress(epoch_of(epoch, 3, waited=0.75 * epoch))
    assert stream.getvalue().endswith("waiting for the disk took 1.5 s of it\n")


def test_a_real_table_goes_in_and_comes_out(run, shared_table, tmp_path):
    oaks = shared_table("oaks")
    run("fit", oaks, "-o", "m", "-k", "3", "--max-epochs", "3", "--quiet", "--metadata",
        oaks.with_name("metadata.tsv"))  # fmt: skip
    run("transform", oaks, "--model", "m", "-o", "t.h5ad", "--quiet")
    with h5py.File(tmp_path / "t.h5ad") as file:
        assert file["obsm/X_mvae"].shape == (116, 3)
    assert cli.MultinomialVAE.load(tmp_path / "m").n_features_in_ == 114


def test_transform_drops_samples_whose_reads_are_all_in_features_the_model_lacks(
    run, shared, counts
):
    more = np.c_[counts, np.ones(20, int)]
    more[3, :6] = 0
    write_tsv(Path("new.tsv"), more, features=[*FEATURES, "new"])
    arguments = ("transform", "new.tsv", "--model", shared / "model", "-o", "y.tsv", "--quiet")
    refusal = run(*arguments, code=3).stderr
    assert "in the features of the model: expected at least one read" in refusal
    assert "1 of 20 has none: 's0'" in refusal
    result = run(*arguments, "--drop-empty")
    assert "left out 1 of 20 samples, without a read: 's0'" in result.stderr
    written = pd.read_csv("y.tsv", sep="\t", dtype={0: str}).iloc[:, 0]
    assert list(written) == [s for s in SAMPLES if s != "s0"]


def test_fractional_counts_are_warned_of_once(run, counts):
    write_tsv(Path("t.tsv"), counts + 0.25)
    result = run("fit", "t.tsv", "-o", "m", *QUICK, "--allow-fractional")
    assert result.stderr.count("whole numbers") == 1


def test_info_reads_the_layer_asked_for(run, counts):
    adata = anndata.AnnData(counts.astype(np.float32), layers={"spliced": 2.0 * counts})
    adata.write_h5ad("t.h5ad")
    about = json.loads(run("info", "t.h5ad", "--layer", "spliced", "--json").stdout)
    assert about["reads"] == 2 * counts.sum()


def test_settings_of_the_encoder_reach_the_model(run, shared):
    run(
        *("fit", shared / "table.biom", "-o", "m", *QUICK, "--optimizer", "sgd"),
        *("--activation", "tanh", "--encoder-width", 7, "--posterior-variance", "shared"),
        *("--refinement-steps", 0),
    )
    found = MultinomialVAE.load("m").get_params()
    expected = {"optimizer": "sgd", "activation": "tanh", "encoder_width": 7}
    expected |= {"posterior_variance": "shared", "refinement_steps": 0}
    assert found.items() >= expected.items()


def test_a_folder_with_somebodys_own_files_is_not_replaced_even_with_force(run, shared, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text('{"a": 1}')
    table = mine / "table.biom"
    table.write_bytes((shared / "table.biom").read_bytes())
    refused(run("fit", table, "-o", mine, *QUICK, "--force", code=3), "mine", "not written here")
    run("fit", table, "-o", "m", *QUICK)
    (tmp_path / "m" / "notes.txt").touch()
    refused(run("fit", table, "-o", "m", *QUICK, "--force", code=3), "m:", "not written here")
    (tmp_path / "m" / "notes.txt").unlink()
    run("fit", table, "-o", "m", *QUICK, "--force")


def test_a_table_is_not_replaced_by_its_own_coordinates(run, shared, counts):
    write_tsv(Path("t.tsv"), counts)
    before = Path("t.tsv").read_bytes()
    arguments = ("transform", "t.tsv", "--model", shared / "model", "-o", "t.tsv", "--force")
    refused(run(*arguments, code=3), "t.tsv: is t.tsv, which is read; name another output.")
    assert Path("t.tsv").read_bytes() == before


@pytest.mark.parametrize("command", ["transform", "denoise", "score", "generate", "report"])
def test_what_is_read_is_never_overwritten(run, shared, tmp_path, command):
    shutil.copy(shared / "table.biom", "t.biom")
    shutil.copytree(shared / "model", "m")
    (tmp_path / "about.tsv").write_text("id\tage\n007\t1\n")
    (tmp_path / "link.tsv").symlink_to("about.tsv")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = {
        "report": ("m", "--table", "t.biom"),
        "generate": ("--model", "m", "--like", "t.biom"),
    }.get(command, ("t.biom", "--model", "m"))
    for output in ("./t.biom", "link.tsv", "about.tsv", "m/samples.tsv", "m/config.json"):
        options = ("--metadata", "about.tsv", "--force", "-o", output)
        name = "which is read; name another output."
        result = run(command, *given, *options, code=3)
        assert name in result.stderr or (command == "transform" and "suffix" in result.stderr)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "command, outputs",
    [
        ("score", ["-o", "s.xlsx"]),
        ("report", ["-o", "r.pdf"]),
        ("transform", ["-o", "y.csv"]),
        ("transform", ["-o", "y.tsv", "--distances", "d.csv"]),
    ],
)
def test_a_suffix_that_says_something_else_is_refused(run, shared, tmp_path, command, outputs):
    given = ["table.biom", "--model"] if command != "report" else []
    given = [shared / name if "." in name else name for name in given]
    said = run(command, *given, shared / "model", *outputs, code=3)
    refused(said, outputs[-1], "expected a suffix among")
    assert not list(tmp_path.iterdir())


def test_two_outputs_appear_together_or_neither(run, shared, tmp_path, monkeypatch):
    given = ("transform", shared / "table.biom", "--model", shared / "model", "--quiet")
    refused(run(*given, "-o", "y.tsv", "--distances", "y.tsv", code=3), "the other output too")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_frame", full)
        refused(run(*given, "-o", "y.tsv", "--distances", "d.tsv", code=3), "No space left")
    with monkeypatch.context() as patch:
        patch.setattr(DistanceMatrix, "write", full)
        refused(run(*given, "-o", "y.tsv", "--distances", "d.tsv", code=3), "d.tsv: cannot be")
    assert not list(tmp_path.iterdir())
    run(*given, "-o", "y.tsv", "--distances", "d.tsv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.tsv", "y.tsv"]


def test_simulate_refuses_odd_options_and_writes_nothing(run, tmp_path):
    run("simulate", "-o", "t.tsv", "--truth", "t.tsv", code=2)
    run("simulate", "-o", "t.tsv", "--reads", "nan", code=2)
    run("simulate", "-o", "t.tsv", "--reads", "1e30", code=2)
    assert list(tmp_path.iterdir()) == []


def test_sentences_of_a_fit_are_about_the_files(run, counts):
    write_tsv(Path("one.tsv"), counts[:1], samples=SAMPLES[:1])
    refused(run("fit", "one.tsv", "-o", "m", *QUICK, code=3), "one.tsv: a fit needs")
    write_tsv(Path("t.tsv"), counts)
    Path("t.nwk").write_text("((x:1,y:1):1,z:1);")
    arguments = ("fit", "t.tsv", "-o", "m", *QUICK, "--tree")
    refused(run(*arguments, "t.nwk", code=3), "t.nwk:", "'1.10'")
    refused(run(*arguments, "no.nwk", code=3), "no.nwk: there is no such file")


def test_the_best_epoch_of_the_run_is_the_one_kept(run, shared):
    arguments = ("fit", shared / "table.biom", "-o", "m", "-k", 2, "--max-epochs", 12, "--quiet")
    run(*arguments, "--validation-fraction", 0.3)
    model = MultinomialVAE.load("m")
    kept = model.history_.iloc[model.best_epoch_ - 1]
    assert kept["sigma2"] == pytest.approx(model.noise_variance_)
    assert json.loads(Path("m/run.json").read_text())["result"]["best_epoch"] == model.best_epoch_


# ---- network


def test_network_writes_edges_nodes_and_a_graph_with_the_features_names(shared, run, tmp_path):
    told = run("network", "--model", shared / "model", "-o", "net", "--partners", 2, "--json")
    edges = pd.read_csv(
        tmp_path / "net/edges.tsv",
        sep="\t",
        dtype={0: str, 1: str},
        na_values=[],
        keep_default_na=False,
    )
    assert set(edges["feature_1"]) | set(edges["feature_2"]) == set(FEATURES)
    assert edges["low"].lt(edges["high"]).all()
    nodes = pd.read_csv(tmp_path / "net/nodes.tsv", sep="\t", dtype={0: str}, keep_default_na=False)
    assert list(nodes["feature-id"]) == list(FEATURES)
    assert "".join(nodes["taxonomy"]) == "uvwxyz"
    taxonomy = dict(zip(FEATURES, "uvwxyz", strict=True))
    for end in ("1", "2"):
        assert edges[f"taxonomy_{end}"].tolist() == [taxonomy[f] for f in edges[f"feature_{end}"]]
    assert nodes["degree"].sum() == 2 * len(edges)
    G = nx.read_graphml(tmp_path / "net/network.graphml")
    assert set(G) == set(FEATURES)
    assert G.nodes["NA"]["taxonomy"] == "v"
    first = edges.iloc[0]
    assert G[first["feature_1"]][first["feature_2"]]["weight"] == pytest.approx(first["weight"])
    assert json.loads(told.stdout) == {
        "features": 6,
        "with_edges": 6,
        "edges": len(edges),
        "positive": int((edges["weight"] > 0).sum()),
        "written": "net",
    }


def test_more_draws_change_the_spread_of_an_edge_and_nothing_else(shared, run, tmp_path):
    for draws in (20, 40):
        run("network", "--model", shared / "model", "-o", f"of-{draws}", "--draws", draws)
    few, more = (pd.read_csv(tmp_path / f"of-{n}/edges.tsv", sep="\t") for n in (20, 40))
    spread = ["sd", "low", "high"]
    pd.testing.assert_frame_equal(few.drop(columns=spread), more.drop(columns=spread))
    assert (few["sd"] != more["sd"]).all()


def test_modules_are_nodes_attributes(shared, run, tmp_path):
    pytest.importorskip("igraph")
    told = run("network", "--model", shared / "model", "-o", "net", "--modules")
    nodes = pd.read_csv(tmp_path / "net/nodes.tsv", sep="\t", keep_default_na=False, na_values=[""])
    nodes = nodes.set_index("feature-id")
    assert nodes["module"].min() == 1
    G = nx.read_graphml(tmp_path / "net/network.graphml")
    of_nodes = {node: known["module"] for node, known in G.nodes(data=True) if "module" in known}
    assert of_nodes == nodes["module"].dropna().to_dict()
    assert nodes["module"].value_counts().min() >= 2
    assert f"in no module              {nodes['module'].isna().sum()}" in told.stdout


def test_a_network_is_not_overwritten_and_needs_a_model(shared, run, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/mine.txt").write_text("x")
    refused(run("network", "--model", shared / "model", "-o", "net", code=3), "net")
    refused(run("network", "--model", "nothing", "-o", "new", code=3), "nothing")
    assert not (tmp_path / "new").exists()


# ---- select, score, denoise, generate


def test_select_writes_a_table_and_a_picture_and_prints_the_verdict(shared, run, tmp_path):
    arguments = ["select", shared / "table.biom", "-k", "1,2", "-o", "s", "--folds", 2]
    refused(
        run(*arguments, "--groups", "who", "--quiet", code=3),
        "--groups needs 'who', and there is no metadata",
    )
    known = pd.DataFrame({"who": np.arange(len(SAMPLES)) // 2}, index=SAMPLES)
    known.rename_axis("id").to_csv("known.tsv", sep="\t")
    by = [*arguments[:-3], "grouped", *arguments[-2:], "--metadata", "known.tsv"]
    run(*by, "--groups", "who", "--quiet")
    refused(
        run(*by, "--force", "--groups", "which", "--quiet", code=3),
        "there is no column 'which'; there are 'who'",
    )
    told = run(*arguments, "--max-epochs", 2, "--quiet")
    assert told.stdout.startswith("k = ")
    table = pd.read_csv(tmp_path / "s/selection.tsv", sep="\t")
    assert table["k"].tolist() == [1, 2]
    assert table["encoder_depth"].tolist() == [2, 2]
    assert (tmp_path / "s/selection.png").read_bytes().startswith(b"\x89PNG")
    again = run(*arguments, "--max-epochs", 2, "--quiet", "--force", "--json")
    found = json.loads(again.stdout)
    assert told.stdout == f"{found['verdict']}\nwritten   s\n" and found["written"] == "s"
    assert [row["k"] for row in found["table"]] == [1, 2]
    assert found["encoder_depth"] == 2
    more = "--noise", "by-feature", "--draws", 16, "--metadata", "known.tsv", "--formula", "~ who"
    adjusted = run(*arguments, "--max-epochs", 2, *more, "--force", "--json", "--quiet")
    found = json.loads(adjusted.stdout)
    assert "principal components" not in found["verdict"] and found["gains"] == {}
    run(*arguments, "--max-epochs", 1, "--encoder-depth", "1,2", "--force")
    table = pd.read_csv(tmp_path / "s/selection.tsv", sep="\t")
    assert table["encoder_depth"].tolist() == [1, 2, 1, 2]
    assert table["chosen"].sum() == 1


@pytest.mark.parametrize("numbers", ["", "0", "2,x", "1.5"])
def test_numbers_of_factors_are_whole(shared, run, numbers):
    result = run("select", shared / "table.biom", "-k", numbers, "-o", "s", code=2)
    assert "expected whole numbers >= 1 such as 2,4,8" in result.stderr


def test_score_writes_a_row_a_sample(shared, run, tmp_path):
    given = shared / "table.biom", "--model", shared / "model"
    told = run("score", *given, "-o", "s.tsv", "--reference", 100, "--json", "--quiet")
    frame = pd.read_csv(tmp_path / "s.tsv", sep="\t", dtype={0: str}).set_index("sample-id")
    assert list(frame.index) == list(SAMPLES)
    assert frame["p_value"].between(0, 1).all()
    model = MultinomialVAE.load(shared / "model")
    np.testing.assert_allclose(frame["evidence"], model.score_samples(read(given[0])), rtol=1e-9)
    assert json.loads(told.stdout)["samples"] == 20
    refused(run("score", *given, "-o", "s.tsv", "--quiet", code=3), "s.tsv", "force")


def test_scores_are_ranked_among_samples_that_are_sound(shared, run, tmp_path):
    given = shared / "table.biom", "--model", shared / "model", "--reference", 100, "--quiet"
    run("score", *given, "-o", "s.tsv")
    run("score", *given, "-o", "ranks.tsv", "--clean", given[0])
    frame, ranks = (pd.read_csv(tmp_path / f"{name}.tsv", sep="\t") for name in ("s", "ranks"))
    # as many have no more evidence as the rank of a sample says, itself among them
    np.testing.assert_allclose(ranks["p_value"], (1 + frame["t"].rank(method="max")) / 21)
    gone = run("score", *given, "-o", "x.tsv", "--clean", "no.biom", code=3)
    refused(gone, "no.biom: there is no such file")


def test_a_sample_below_all_is_said_to_be_where_no_q_value_tells(shared, run):
    table = read(shared / "table.biom")
    counts = table.counts.toarray()
    counts[0] = 0
    counts[0, counts.sum(0).argmin()] = 5000
    write(replace(table, counts=csr_array(counts)), "one.biom")
    given = "one.biom", "--model", shared / "model", "--reference"
    said = run("score", *given, 100, "-o", "few.tsv").stderr
    assert "--reference: beside 100 samples the q-value of one unusual sample among 20" in said
    assert "is at least 0.2; 400 would do." in said
    assert "unusual sample" not in run("score", *given, 400, "-o", "enough.tsv").stderr


def test_a_table_that_the_model_does_not_describe_is_called_that(shared, run, counts):
    given = "--model", shared / "model", "--reference", 100
    assert "model expects" not in run("score", shared / "table.biom", *given, "-o", "s.tsv").stderr
    write_tsv(Path("other.tsv"), 10**5 * np.eye(6, dtype=int)[np.arange(len(counts)) % 6] + 1)
    said = run("score", "other.tsv", *given, "-o", "o.tsv").stderr
    assert "of the samples have p <= 0.05, where the model expects 5%" in said


@pytest.mark.filterwarnings("ignore:.*expected whole numbers")
@pytest.mark.parametrize("suffix", [".biom", ".h5ad", ".tsv"])
def test_denoised_proportions_go_into_any_kind_of_file(shared, run, tmp_path, suffix):
    given = shared / "table.biom", "--model", shared / "model"
    run("denoise", *given, "-o", f"d{suffix}", "--quiet")
    model, table = MultinomialVAE.load(shared / "model"), read(shared / "table.biom")
    proportions, clr, clr_sd = model.denoise(table)
    found = read(
        tmp_path / f"d{suffix}", allow_fractional=True, layer="X" if suffix == ".h5ad" else None
    )
    assert list(found.sample_ids) == list(SAMPLES)
    assert list(found.feature_ids) == list(FEATURES)
    np.testing.assert_allclose(found.counts.toarray(), proportions, rtol=1e-6)
    if suffix == ".h5ad":
        adata = anndata.read_h5ad(tmp_path / "d.h5ad")
        np.testing.assert_allclose(adata.layers["clr"], clr, rtol=1e-6)
        np.testing.assert_allclose(adata.layers["clr_sd"], clr_sd, rtol=1e-6)
        assert "".join(adata.var["taxonomy"]) == "uvwxyz"


@pytest.mark.filterwarnings("ignore:.*expected whole numbers")
@pytest.mark.parametrize("suffix", [".biom", ".h5ad", ".tsv"])
def test_intervals_of_proportions_lie_beside_them(shared, run, tmp_path, suffix):
    given = shared / "table.biom", "--model", shared / "model", "--interval", 0.8, "--seed", 3
    run("denoise", *given, "-o", f"d{suffix}", "--quiet")
    model, table = MultinomialVAE.load(shared / "model"), read(shared / "table.biom")
    expected = model.interval(table, 0.8, random_state=3)
    for end, values in zip(("lower", "upper"), expected, strict=True):
        path, layer = (f"d{suffix}", end) if suffix == ".h5ad" else (f"d.{end}{suffix}", None)
        found = read(tmp_path / path, allow_fractional=True, layer=layer)
        assert list(found.sample_ids) == list(SAMPLES)
        np.testing.assert_allclose(found.counts.toarray(), values, rtol=1e-6)
    if suffix != ".h5ad":
        (tmp_path / f"d{suffix}").unlink()
        refused(run("denoise", *given, "-o", f"d{suffix}", code=3), f"d.lower{suffix}", "force")
        assert not (tmp_path / f"d{suffix}").exists()


def test_generate_draws_a_table_of_its_own_or_like_another(shared, run, tmp_path):
    model = "--model", shared / "model"
    run("generate", *model, "--n-samples", 7, "--depth", 50, "-o", "g.biom", "--quiet")
    table = read(tmp_path / "g.biom")
    assert table.depth.tolist() == [50] * 7
    assert list(table.feature_ids) == list(FEATURES)
    assert table.sample_ids[0] == "generated-1"
    like = "--like", shared / "table.biom"
    run("generate", *model, *like, "--n-samples", 23, "-o", "l.h5ad", "--quiet")
    adata = anndata.read_h5ad(tmp_path / "l.h5ad")
    assert adata.obs["like"].tolist() == [*SAMPLES, *SAMPLES[:3]]
    assert adata.obsm["X_mvae"].shape == (23, 2)
    given = read(shared / "table.biom").depth
    assert np.asarray(adata.X.sum(1)).ravel().tolist() == [*given, *given[:3]]
    assert (adata.X[0] != adata.X[20]).nnz > 0
    run("generate", *model, "-o", "same.biom", "--seed", 4, "--quiet")
    run("generate", *model, "-o", "again.biom", "--seed", 4, "--quiet")
    same, again = read(tmp_path / "same.biom"), read(tmp_path / "again.biom")
    assert same.n == 20
    assert (same.counts != again.counts).nnz == 0


def test_what_would_not_fit_into_memory_is_not_denoised(shared, run, monkeypatch):
    monkeypatch.setattr(cli, "DENOISED", 10**12)
    given = shared / "table.biom", "--model", shared / "model"
    result = run("denoise", *given, "-o", "d.biom", "--quiet", code=3)
    refused(result, "table.biom", "denoise fewer samples")


@pytest.mark.parametrize(
    "option", [("--metadata", "m.tsv"), ("--layer", "X"), ("--zero-fill",), ("--transpose",)]
)
def test_what_is_said_of_a_table_that_is_not_there_is_refused(shared, run, option):
    result = run("generate", "--model", shared / "model", "-o", "g.biom", *option, code=2)
    assert f"{option[0]} goes with --like" in result.stderr


def test_generate_draws_what_a_design_asks_for(shared, run, tmp_path):
    model = cli.MultinomialVAE.load(shared / "model")
    Path("design.tsv").write_text("id\tF1\tsite\nlow\t-1.5\ta\nhigh\t1.5\tb\nfree\t\tb\n")
    arguments = (
        "generate",
        "--model",
        shared / "model",
        "--design",
        "design.tsv",
        "--depth",
        10**6,
    )
    said = run(*arguments, "-o", "d.h5ad", "--quiet").stderr
    assert "its columns 'site' are neither factors nor covariates of the model" in said
    drawn = anndata.read_h5ad("d.h5ad")
    assert list(drawn.obs_names) == ["low", "high", "free"]
    assert list(drawn.obs["site"]) == ["a", "b", "b"]
    np.testing.assert_allclose(drawn.obsm["X_mvae"][:2, 0], [-1.5, 1.5])
    assert drawn.obsm["X_mvae"][2, 0] not in (0, -1.5, 1.5)
    again = model.transform(read("d.h5ad"))
    assert (again[:2, 0] * [-1, 1] > 0).all()
    Path("design.tsv").write_text("id\tF1\nlow\tmuch\n")
    said = run(*arguments, "-o", "e.h5ad", "--quiet", code=3).stderr
    assert "design.tsv: expected numbers; got 'much' in sample 'low', column 'F1'" in said
    Path("design.tsv").write_text("id\tf1\nlow\t1\n")
    assert "expected columns among 'F1'" in run(*arguments, "-o", "e.h5ad", code=3).stderr
    run(*arguments, "-o", "e.h5ad", "--n-samples", 3, code=2)
    assert not Path("e.h5ad").exists()


def test_a_fit_goes_on_from_a_model_by_its_settings_and_features(shared, run, tmp_path, counts):
    write_tsv(
        tmp_path / "small.tsv", counts[:12, ::-1], features=FEATURES[::-1], samples=SAMPLES[:12]
    )
    said = run("fit", "small.tsv", "-o", "further", "--init", shared / "model", "--quiet").stdout
    assert "further" in said
    begun, further = (cli.MultinomialVAE.load(p) for p in (shared / "model", "further"))
    assert further.feature_ids_ == begun.feature_ids_
    assert further.encoder_width == begun.encoder_width
    assert not np.array_equal(further.components_, begun.components_)
    write_tsv(tmp_path / "less.tsv", counts[:, :5], features=FEATURES[:5])
    less = ["fit", "less.tsv", "--init", shared / "model", "-o"]
    said = run(*less, "o", "--quiet", code=3)
    refused(said, "5 of 6 features are in the table", "cannot go on without")
    result = run(*less, "kept", "--zero-fill", "--freeze", "decoder")
    assert "5 of 6 features are in the table" in result.stderr
    assert "Those that are not are zero" in result.stderr
    kept = cli.MultinomialVAE.load("kept")
    np.testing.assert_allclose(kept.components_, begun.components_, atol=1e-6)
    refusal = run(*less, "o", "--zero-fill", "--encoder-width", 9, code=3)
    assert "init: its encoder_width is" in refusal.stderr
    assert "init: its n_components is" in run(*less, "o", "--zero-fill", "-k", 5, code=3).stderr
    assert "goes with --init" in run("fit", "less.tsv", "-o", "o", "--zero-fill", code=2).stderr


def test_a_fit_goes_on_only_with_a_table_that_shares_enough(shared, run, tmp_path, counts):
    others = [*FEATURES[:2], "x1", "x2", "x3", "x4"]
    write_tsv(tmp_path / "other.tsv", counts + 1, features=others)
    fit = ["fit", "other.tsv", "--init", shared / "model", "--quiet", "-o"]
    said = run(*fit, "o", code=3)
    refused(said, "other.tsv: 2 of 6 features are in the table", "Less than min_overlap=0.5")
    assert not (tmp_path / "o").exists()
    write_tsv(tmp_path / "foreign.tsv", np.c_[counts + 1, np.full(len(counts), 10**4)],
              features=[*FEATURES, "x"])  # fmt: skip
    foreign = ["fit", "foreign.tsv", *fit[2:]]
    refused(run(*foreign, "o", code=3), "foreign.tsv: 6 of 6 features", "min_overlap=0.5")
    assert "2 of 6" in run(*fit, "told", "--min-overlap", 0, "--zero-fill").stderr
    assert cli.MultinomialVAE.load("told").min_overlap == 0


def test_a_table_on_a_grid_is_fitted_by_the_convolutional_model(run, tmp_path, counts):
    names = np.array([f"p{j}" for j in range(6)], dtype=object)
    write_tsv(tmp_path / "images.tsv", counts, features=names)
    run("fit", "images.tsv", "-o", "m", "--grid", "3x2", *QUICK)
    model = cli.MultinomialVAE.load("m")
    assert type(model) is cli.ConvMultinomialVAE
    assert list(model.grid) == [3, 2]
    assert model.decoder == "network"
    assert model.encoder_width == cli.ConvMultinomialVAE().encoder_width
    run("transform", "images.tsv", "--model", "m", "-o", "y.tsv", "--quiet")
    found = pd.read_csv("y.tsv", sep="\t", index_col=0)
    np.testing.assert_allclose(found.to_numpy()[:, :2], model.transform(read("images.tsv")))
    run("fit", "images.tsv", "-o", "further", "--init", "m", *QUICK[2:])
    assert list(cli.MultinomialVAE.load("further").grid) == [3, 2]
    refusal = run("network", "--model", "m", "-o", "net", code=3)
    assert "needs a linear decoder" in refusal.stderr
    run("report", "m", "-o", "report.html")
    page = Path("report.html").read_text()
    assert "decoder is itself a network" in page
    assert "is what the network bends, and noise of single features" in page
    assert "along the network's straight map only" in page
    for command in ("score", "denoise"):
        run(command, "images.tsv", "--model", "m", "-o", f"{command}d.tsv", "--quiet")
    run("generate", "--model", "m", "--n-samples", 3, "-o", "drawn.biom", "--quiet")
    assert not [name for name in pd.read_csv("m/features.tsv", sep="\t") if name.endswith("_sd")]
    said = json.loads(Path("m/run.json").read_text())["arguments"]
    assert (said["encoder_depth"], said["encoder_width"]) == (3, 32)


def test_a_plain_autoencoder_is_reported(run, tmp_path, counts):
    write_tsv(tmp_path / "table.tsv", counts)
    run("fit", "table.tsv", "-o", "m", "--posterior-variance", "none", *QUICK)
    run("report", "m", "--table", "table.tsv", "-o", "report.html")
    assert "A plain autoencoder has no posterior" in Path("report.html").read_text()


def test_select_compares_models_of_a_grid(run, tmp_path, counts):
    write_tsv(tmp_path / "images.tsv", counts)
    arguments = ["select", "images.tsv", "-k", "1,2", "-o", "s", "--folds", 2, "--max-epochs", 3]
    run(*arguments, "--decoder", "network", code=2)
    run(*arguments, "--grid", "3x2", "--quiet")
    table = pd.read_csv("s/selection.tsv", sep="\t")
    assert (table["encoder_depth"] == 3).all()
    settings = {"grid": (3, 2), "max_epochs": 3}
    expected = select.select(
        read("images.tsv"), [1, 2], [3], kind=cli.ConvMultinomialVAE, folds=2, **settings
    )
    np.testing.assert_allclose(table["evidence_a_read"], expected.table["evidence_a_read"])


def test_a_model_of_a_line_goes_on(run, tmp_path, counts):
    write_tsv(tmp_path / "line.tsv", counts)
    cli.ConvMultinomialVAE(2, grid=None, max_epochs=2).fit(read("line.tsv")).save("m")
    run("fit", "line.tsv", "-o", "further", "--init", "m", *QUICK[2:])
    assert cli.MultinomialVAE.load("further").grid is None


def test_a_grid_that_does_not_fit_is_refused(run, tmp_path, counts):
    write_tsv(tmp_path / "images.tsv", counts)
    said = run("fit", "images.tsv", "-o", "m", "--grid", "4x2", *QUICK, code=3).stderr
    assert "4 × 2 positions of 1 channels are 8 features; the table has 6" in said
    for options in (("--grid", "4x"), ("--grid", "2x2x2"), ("--grid", "0x2"), ("--channels", 2)):
        run("fit", "images.tsv", "-o", "m", *options, *QUICK, code=2)
    assert not Path("m").exists()


def test_a_fit_that_could_not_be_saved_is_not_lost(shared, run, monkeypatch):
    monkeypatch.setattr(countvae.checkpoint, "SECONDS_BETWEEN", 0.0)
    arguments = ("fit", shared / "table.biom", "-o", "m", *QUICK)

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", _full_at("m", store.save))
        patch.setattr(sys, "argv", ["countvae", "fit", "t.biom", "-o", "m"])
        said = run(*arguments, code=3).stderr
    how = "it goes on by: countvae fit t.biom -o m --resume"
    assert said == f"Error: m: cannot be written (No space left on device); {how}\n"
    assert Path("m.checkpoint").is_dir()
    assert "--resume goes on with it" in run(*arguments, code=3).stderr
    run(*arguments, "--resume")
    assert not Path("m.checkpoint").exists()
    found, expected = (cli.MultinomialVAE.load(path) for path in ("m", shared / "model"))
    np.testing.assert_array_equal(found.components_, expected.components_)


def _full_at(place, save):
    def full_there(path, *given, **named):
        if str(path) == place:
            raise CannotWrite(f"{path}: cannot be written (No space left on device).")
        save(path, *given, **named)

    return full_there


def test_a_fit_may_take_the_place_of_the_folder_that_one_is_in(shared, run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run("fit", shared / "table.biom", "-o", ".", *QUICK)
    assert {path.name for path in tmp_path.iterdir()} == {"here"}
    assert MultinomialVAE.load(tmp_path / "here").n_iter_ == 2


def test_a_state_that_was_only_begun_is_none_to_go_on_from(shared, run):
    arguments = ("fit", shared / "table.biom", "-o", "m", *QUICK[:-1])
    Path("m.checkpoint/.countvae-01234567-0-000001").mkdir(parents=True)
    assert "it left no state; --force begins anew" in run(*arguments, code=3).stderr
    assert "no state was left there; beginning anew" in run(*arguments, "--resume").stderr
    assert Path("m").is_dir() and not Path("m.checkpoint").exists()


def test_a_table_that_goes_while_it_is_fitted_is_not_missed(shared, run, monkeypatch):
    shutil.copy(shared / "table.biom", "gone.biom")
    fitted = cli.MultinomialVAE.fit

    def fit_without(self, table):
        Path("gone.biom").unlink()
        return fitted(self, table)

    monkeypatch.setattr(cli.MultinomialVAE, "fit", fit_without)
    run("fit", "gone.biom", "-o", "m", *QUICK)
    about = json.loads(Path("m/run.json").read_text())
    assert about["input"]["sha256"] == [sha256(shared / "table.biom")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_nobody_need_read_what_a_fit_says(shared, tmp_path):
    command = [sys.executable, "-m", "countvae", "fit", shared / "table.biom", "-o", tmp_path / "m"]
    with open("/dev/full", "w") as nobody:
        done = subprocess.run([*command, *QUICK[:-1]], stderr=nobody, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert (tmp_path / "m").is_dir()


def test_a_report_reads_no_metadata_but_those_that_were_fitted(run, tmp_path, counts):
    write_tsv(tmp_path / "t.tsv", counts)
    lines = ["id\tgroup", *(f"{name}\t{'ab'[i % 2]}" for i, name in enumerate(SAMPLES))]
    Path("known.tsv").write_text("\n".join(lines) + "\n")
    run("fit", "t.tsv", "-o", "m", "--metadata", "known.tsv", *QUICK)
    run("report", "m", "-o", "before.html")
    assert "group" in Path("before.html").read_text()
    Path("known.tsv").write_text("\n".join(lines).replace("group", "secret") + "\n")
    run("report", "m", "-o", "after.html")
    page = Path("after.html").read_text()
    assert "secret" not in page
    assert str(tmp_path) not in page
