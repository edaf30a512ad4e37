import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from skbio import DistanceMatrix, OrdinationResults
from skbio.metadata import SampleMetadata

from countvae import MultinomialVAE
from countvae.checks import check_ids
from countvae.errors import InputError
from countvae.ordination import (
    annotate,
    distances,
    feature_frame,
    files,
    ordination,
    sample_frame,
    write_ordination,
)
from countvae.table import CountTable
from countvae.tl import mvae

SAMPLES = np.array(["007", "2538.1001130", "1e5", *(f"s{i}" for i in range(21))], dtype=object)
FEATURES = np.array(["1.10", "NA", "True", "d", "e f", "g"], dtype=object)


@pytest.fixture(scope="module")
def table():
    counts = np.random.default_rng(0).poisson(5.0, size=(24, 6))
    return CountTable(csr_array(counts), SAMPLES, FEATURES)


@pytest.fixture(scope="module")
def model(table):
    return MultinomialVAE(2, max_epochs=2, encoder_width=4).fit(table)


@pytest.fixture(scope="module")
def posterior(model, table):
    return model.posterior(table)


def test_sample_frame_holds_mean_and_sd_by_id(posterior):
    mean, sd = posterior
    frame = sample_frame(SAMPLES, mean, sd)
    assert list(frame.columns) == ["F1", "F2", "F1_sd", "F2_sd"]
    assert np.array_equal(frame.loc["007"], [*mean[0], *sd[0]])


def test_loadings_times_their_transpose_are_the_factors_share_of_the_covariance(model):
    V = feature_frame(model)[["F1", "F2"]].to_numpy()
    d = len(V)
    noise = model.noise_variance_ * (np.eye(d) - 1 / d)
    np.testing.assert_allclose(V @ V.T + noise, model.get_covariance(), atol=1e-12)


def test_feature_metadata_join_by_id_and_never_replace_a_column(model):
    metadata = pd.DataFrame({"taxonomy": list("abcdef"), "F1": range(6)}, index=FEATURES[::-1])
    frame = feature_frame(model, metadata)
    assert frame.loc["1.10", "taxonomy"] == "f"
    assert frame["F1_given"].tolist() == [5, 4, 3, 2, 1, 0]
    assert np.array_equal(frame["F1"], feature_frame(model)["F1"])


def test_ordination_is_filled_up_to_three_axes_and_gives_the_clr_back(model, posterior):
    results = ordination(model, SAMPLES, posterior[0])
    assert results.samples.shape == (24, 3)
    assert not results.samples["F3"].any()
    clr = results.samples.to_numpy() @ results.features.to_numpy().T + model.mean_
    np.testing.assert_allclose(
        np.exp(clr) / np.exp(clr).sum(axis=1, keepdims=True),
        model.inverse_transform(posterior[0]),
        atol=1e-12,
    )


def test_the_files_are_read_back_by_the_tools_they_are_for(tmp_path, model, posterior):
    mean, sd = posterior
    for name, write_file in files(model, SAMPLES, mean, sd).items():
        write_file(tmp_path / name)
    results = OrdinationResults.read(str(tmp_path / "ordination.txt"))
    assert list(results.samples.index) == list(SAMPLES)
    assert list(results.features.index) == list(FEATURES)
    np.testing.assert_allclose(results.samples.to_numpy()[:, :2], mean, rtol=1e-12)
    np.testing.assert_allclose(results.eigvals[:2], model.explained_variance_, rtol=1e-12)
    frame = SampleMetadata.load(str(tmp_path / "samples.tsv")).to_dataframe()
    assert list(frame.index) == list(SAMPLES)
    np.testing.assert_allclose(frame["F1_sd"], sd[:, 0], rtol=1e-12)
    lines = (tmp_path / "features.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["feature-id", *FEATURES]


@pytest.mark.parametrize("bad", ["", " a", "a\tb", "a\nb", "a\rb", "a\x0bb", "\ufffe", "a\x00"])
def test_an_id_that_the_ordination_file_would_mangle_is_refused(tmp_path, model, posterior, bad):
    with pytest.raises(InputError, match="expected ids without"):
        check_ids(["fine", bad], "sample ids")
    results = ordination(model, [bad, *SAMPLES[1:]], posterior[0])
    with pytest.raises(InputError, match="sample ids"):
        write_ordination(results, tmp_path / "o.txt")
    assert not list(tmp_path.iterdir())


def test_annotate_leaves_its_argument_and_survives_a_write_and_a_read(tmp_path, model, posterior):
    mean, sd = posterior
    var = pd.DataFrame(index=[*FEATURES[::-1], "unknown"])
    adata = anndata.AnnData(csr_array((24, 7), dtype=np.float32), pd.DataFrame(index=SAMPLES), var)
    annotated = annotate(adata, model, mean, sd)
    assert not (adata.obsm.keys() or adata.varm.keys() or adata.uns.keys())
    annotated.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert np.array_equal(read.obsm["X_mvae"], mean)
    assert np.array_equal(read.obsm["X_mvae_sd"], sd)
    V = feature_frame(model)[["F1", "F2"]].to_numpy()
    assert np.array_equal(read.varm["mvae_loadings"][:6], V[::-1])
    assert np.isnan(read.varm["mvae_loadings"][6]).all()
    assert read.uns["mvae"]["noise_variance"] == model.noise_variance_
    assert read.uns["mvae"]["parameters"]["pseudocount"] == 1.0


def test_key_added_is_used_as_it_stands(model, posterior):
    adata = anndata.AnnData(np.zeros((24, 6), np.float32), var=pd.DataFrame(index=FEATURES))
    annotated = annotate(adata, model, *posterior, key_added="foo")
    assert set(annotated.obsm) == {"foo", "foo_sd"}
    assert set(annotated.varm) == {"foo_loadings"}
    assert set(annotated.uns) == {"foo"}


def test_distances_are_those_between_fitted_compositions_and_read_back(tmp_path, model, posterior):
    mean, _ = posterior
    found = distances(SAMPLES, mean)
    clr = np.log(model.inverse_transform(mean))
    clr -= clr.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found["007", "s3"], np.linalg.norm(clr[0] - clr[6]), rtol=1e-10)
    found.write(str(tmp_path / "d.tsv"))
    again = DistanceMatrix.read(str(tmp_path / "d.tsv"))
    assert list(again.ids) == list(SAMPLES)
    np.testing.assert_allclose(again.data, found.data, rtol=1e-12)


@pytest.fixture(name="adata")
def counts_with_logs_in_x(table):
    frames = pd.DataFrame(index=list(SAMPLES)), pd.DataFrame(index=list(FEATURES))
    return anndata.AnnData(
        np.log1p(table.counts.toarray()), *frames, layers={"counts": table.counts}
    )


def test_a_tool_fits_the_counts_of_an_anndata_and_writes_its_keys(adata, model, posterior):
    assert mvae(adata, 2, max_epochs=2, encoder_width=4) is None
    np.testing.assert_array_equal(adata.obsm["X_mvae"], posterior[0])
    np.testing.assert_array_equal(adata.obsm["X_mvae_sd"], posterior[1])
    np.testing.assert_array_equal(adata.varm["mvae_loadings"], model.clr_loadings_)
    copied = mvae(adata, 2, max_epochs=2, encoder_width=4, key_added="again", copy=True)
    assert "again" in copied.obsm and "again" not in adata.obsm


def test_a_tool_says_which_layers_there_are(adata):
    with pytest.raises(InputError, match=r"^layer: adata has no layer 'raw'; its layers: 'counts'"):
        mvae(adata, 2, layer="raw")
    with pytest.raises(InputError, match="log-normalised"):
        mvae(adata, 2, layer="X")
    assert not adata.obsm
