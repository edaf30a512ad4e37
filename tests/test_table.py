import errno
import gzip
import json
import os
import re
import signal
import warnings
from datetime import datetime

import anndata
import biom
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.sparse import csc_array, csc_matrix, csr_array, csr_matrix

from countvae.basis import make_basis
from countvae.errors import CannotRead, CountvaeWarning, InputError, TooLarge
from countvae.table import CountTable, Overlap, read, read_metadata, write, write_frame

X = np.array([[5, 0, 1, 0], [0, 2, 2, 0], [1, 0, 0, 9]])
SAMPLES = ["2538.1001130", "007", "s3"]
FEATURES = ["OTU_1", "1e5", "OTU 3", "NA"]
TAXONOMY = ["k__A; p__B", "k__A", "k__C; p__D", ""]
SITE = ["gut", "skin", "gut"]
AGE = [1.5, 2.0, 30.0]


def strings(ids):
    return np.array(ids, dtype=object)


def a_table(**changes):
    parts = {
        "counts": csr_array(X),
        "sample_ids": strings(SAMPLES),
        "feature_ids": strings(FEATURES),
        "sample_metadata": pd.DataFrame(
            {"age": AGE, "site": SITE}, index=pd.Index(SAMPLES, dtype=object)
        ),
        "feature_metadata": pd.DataFrame(
            {"taxonomy": TAXONOMY}, index=pd.Index(FEATURES, dtype=object)
        ),
        "source": "here",
    }
    return CountTable(**parts | changes)


def assert_same(table, counts=X, samples=SAMPLES, features=FEATURES):
    assert np.array_equal(table.counts.toarray(), counts)
    assert list(table.sample_ids) == list(samples)
    assert list(table.feature_ids) == list(features)
    assert all(type(i) is str for i in [*table.sample_ids, *table.feature_ids])
    assert table.counts.has_canonical_format and table.counts.data.all()


def tsv(path, rows, sep="\t"):
    path.write_text("".join(sep.join(map(str, row)) + "\n" for row in rows))
    return path


def samples_first(path, x=X, samples=SAMPLES, features=FEATURES, corner="sample_id"):
    rows = ([i, *row] for i, row in zip(samples, np.asarray(x, object), strict=True))
    return tsv(path, [[corner, *features], *rows])


def an_anndata(x=None, **layers):
    return anndata.AnnData(
        X=x,
        obs=pd.DataFrame({"site": SITE}, index=SAMPLES),
        var=pd.DataFrame(index=FEATURES),
        layers=layers,
    )


def refuses(sentence, *args, **kwargs):
    """Reading fails with one sentence that names the file."""
    with pytest.raises(InputError, match=sentence) as caught:
        read(*args, **kwargs)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


# ---- the table


def test_counts_are_made_canonical_and_the_argument_is_left_alone():
    messy = csr_array(
        (np.array([1, 0, 2, 3]), np.array([2, 1, 0, 0]), np.array([0, 2, 4])), shape=(2, 3)
    )
    table = CountTable(messy, strings(["s1", "s2"]), strings(["a", "b", "c"]))
    assert_same(table, [[0, 0, 1], [5, 0, 0]], ["s1", "s2"], ["a", "b", "c"])
    assert messy.nnz == 4
    assert (table.n, table.d) == (2, 3)
    assert np.array_equal(table.depth, [1, 5])


def test_ids_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="sample_ids: ids must be unique; got more than once 'a'"):
        a_table(sample_ids=strings(["a", "a", "b"]), sample_metadata=None)
    with pytest.raises(InputError, match="sample_metadata: expected a row for each sample"):
        a_table(sample_ids=strings(["a", "b", "c"]))


def test_selections_carry_names_and_metadata():
    table = a_table().select_samples(np.array([2, 0])).select_features(X[0] > 0)
    assert_same(table, [[1, 0], [5, 1]], ["s3", "2538.1001130"], ["OTU_1", "OTU 3"])
    assert list(table.sample_metadata["site"]) == ["gut", "gut"]
    assert list(table.feature_metadata["taxonomy"]) == ["k__A; p__B", "k__C; p__D"]


def test_filter_by_hand():
    assert_same(a_table().filter())
    assert_same(
        a_table().filter(min_feature_samples=2),
        [[5, 1], [0, 2], [1, 0]],
        features=["OTU_1", "OTU 3"],
    )
    # 's3' falls first, 'OTU_1' is then in one sample only, and so '2538.1001130' has one read
    with pytest.raises(InputError, match="nothing is left of 3 samples and 4 features"):
        a_table().filter(min_sample_count=3, min_feature_samples=2)


@settings(max_examples=50)
@given(
    arrays.arrays(np.int64, (5, 6), elements=st.integers(0, 3)),
    st.integers(0, 8),
    st.integers(0, 6),
    st.integers(0, 4),
)
def test_filter_leaves_what_qualifies_and_nothing_dropped_could_stay(x, sample, feature, within):
    table = CountTable(csr_array(x), strings(list("abcde")), strings(list("uvwxyz")))
    try:
        kept = table.filter(sample, feature, within)
    except InputError:
        return
    left = kept.counts.toarray()
    assert (left.sum(axis=1) >= sample).all()
    assert (left.sum(axis=0) >= feature).all()
    assert ((left > 0).sum(axis=0) >= within).all()
    rows, columns = (
        np.isin(table.sample_ids, kept.sample_ids),
        np.isin(table.feature_ids, kept.feature_ids),
    )
    assert (x[~rows][:, columns].sum(axis=1) < sample).all()
    dropped = x[rows][:, ~columns]
    assert ((dropped.sum(axis=0) < feature) | ((dropped > 0).sum(axis=0) < within)).all()


def test_aligning_reorders_by_id_and_reports_what_it_cost():
    wanted = strings(["new", "OTU 3", "OTU_1"])
    table, overlap = a_table().align_features(wanted)
    assert_same(table, [[0, 1, 5], [0, 2, 0], [0, 0, 1]], features=wanted)
    assert overlap == Overlap(shared=2, missing=1, extra=2, read_fraction=9 / 20)
    assert str(overlap).startswith("2 of 3 features are in the table, with 45.0 % of its reads")
    assert table.feature_metadata["taxonomy"].iloc[1] == "k__C; p__D"


def test_aligning_a_permuted_table_gives_the_table_back():
    order = np.array([2, 0, 3, 1])
    table, overlap = a_table().select_features(order).align_features(strings(FEATURES))
    assert_same(table)
    assert overlap == Overlap(shared=4, missing=0, extra=0, read_fraction=1.0)


def test_aligning_with_no_feature_shared_is_refused():
    with pytest.raises(InputError, match=r"none of its features .* is among the 2 expected"):
        a_table().align_features(strings(["x", "y"]))
    with pytest.raises(InputError, match="its samples are: the table looks transposed"):
        a_table().align_features(strings(SAMPLES))


# ---- round trips


@pytest.mark.parametrize("suffix", [".biom", ".h5ad", ".tsv"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    write(a_table(), path)
    table = read(path)
    assert_same(table)
    if suffix != ".tsv":
        assert list(table.sample_metadata["age"]) == AGE
        assert list(table.sample_metadata["site"]) == SITE
        assert list(table.feature_metadata["taxonomy"]) == TAXONOMY
    with pytest.raises(InputError, match="is already there"):
        write(a_table(), path)
    write(a_table(), path, force=True)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".biom", ".h5ad", ".tsv"])
def test_large_and_fractional_values_are_written_exactly(tmp_path, suffix):
    counts = csr_array([[2.0**40 + 1, 0.1], [0.0, 1 / 3]])
    table = CountTable(counts, strings(["s1", "s2"]), strings(["a", "b"]))
    write(table, tmp_path / f"t{suffix}")
    with pytest.warns(CountvaeWarning, match="2 of 3 values are fractional"):
        again = read(tmp_path / f"t{suffix}", allow_fractional=True)
    assert_same(again, counts.toarray(), ["s1", "s2"], ["a", "b"])


def test_metadata_with_gaps_can_be_written(tmp_path):
    frame = pd.DataFrame({"age": [1.0, np.nan, 2.0], "site": ["gut", None, np.nan]}, index=SAMPLES)
    for suffix in (".biom", ".h5ad"):
        write(a_table(sample_metadata=frame), tmp_path / f"t{suffix}")
        again = read(tmp_path / f"t{suffix}").sample_metadata
        assert np.array_equal(again["age"], frame["age"], equal_nan=True)
        assert list(again["site"]) == ["gut", "", ""]


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"expected a suffix among '\.biom', '\.h5ad', '\.tsv'"):
        write(a_table(), tmp_path / "t.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_a_frame_keeps_its_ids(tmp_path):
    path = tmp_path / "samples.tsv"
    frame = pd.DataFrame({"z": [0.1, 2.0]}, index=pd.Index(["007", "1.10"], name="sample_id"))
    write_frame(frame, path)
    assert path.read_text() == "sample_id\tz\n007\t0.1\n1.10\t2.0\n"
    write_frame(frame.rename_axis(None), path, force=True)
    assert path.read_text().startswith("id\tz\n")


# ---- BIOM


def a_biom():
    return biom.Table(
        csr_matrix(X.T),
        FEATURES,
        SAMPLES,
        [{"taxonomy": t.split("; "), "a/b": str(i)} for i, t in enumerate(TAXONOMY)],
        [{"site": s} for s in SITE],
    )


@pytest.mark.parametrize("zipped", [False, True])
def test_biom_1_as_biom_writes_it(tmp_path, zipped):
    path = tmp_path / "t.biom"
    text = a_biom().to_json("test", creation_date=datetime(2020, 1, 1)).encode()
    path.write_bytes(gzip.compress(text) if zipped else text)
    table = read(path)
    assert_same(table)
    assert table.source == "BIOM 1.0"
    assert list(table.feature_metadata["taxonomy"]) == TAXONOMY
    assert list(table.sample_metadata["site"]) == SITE


def test_biom_2_as_biom_writes_it(tmp_path):
    with h5py.File(tmp_path / "t.biom", "w") as file:
        a_biom().to_hdf5(file, "test")
    table = read(tmp_path / "t.biom")
    assert_same(table)
    assert table.source == "BIOM 2.1"
    assert list(table.feature_metadata["taxonomy"]) == TAXONOMY
    assert list(table.feature_metadata["a/b"]) == ["0", "1", "2", "3"]
    assert list(table.sample_metadata["site"]) == SITE


def test_biom_reads_what_is_written_here(tmp_path):
    write(a_table(), tmp_path / "t.biom")
    table = biom.load_table(str(tmp_path / "t.biom"))
    assert np.array_equal(table.matrix_data.toarray(), X.T)
    assert list(table.ids()) == SAMPLES and list(table.ids("observation")) == FEATURES
    assert table.metadata("OTU_1", "observation")["taxonomy"] == ["k__A", "p__B"]


def biom_1(path, data, matrix_type="sparse", **changes):
    content = {
        "rows": [{"id": i, "metadata": None} for i in FEATURES],
        "columns": [{"id": i, "metadata": None} for i in SAMPLES],
        "matrix_type": matrix_type,
        "shape": [4, 3],
        "data": data,
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_biom_1_dense(tmp_path):
    assert_same(read(biom_1(tmp_path / "t.biom", X.T.tolist(), "dense")))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([[0, 0, 1], [1, 2, "x"]], "got 'x' in sample 's3', feature '1e5'"),
        ([[0, 0, 1], [1, 2, None]], "got None in sample 's3', feature '1e5'"),
        ([[0, 0, 1], [1, 2, float("nan")]], "got nan in sample 's3', feature '1e5'"),
        ([[0, 0, 1], [1, 2, -3]], "got -3 in sample 's3', feature '1e5'"),
        ([[0, 0, 1], [9, 2, 1]], "cannot be read as BIOM 1.0"),
        ([[0, 0, 1], [1, 2]], "cannot be read as BIOM 1.0"),
        ([[0, 0, 1]], "2 of 3 have none: '007', 's3'"),
        ([], "3 of 3 have none"),
    ],
)
def test_bad_entries_of_biom_1(tmp_path, data, sentence):
    refuses(sentence, biom_1(tmp_path / "t.biom", data))


def test_duplicates_in_biom_are_named(tmp_path):
    twice = [{"id": i, "metadata": None} for i in ("a", "b", "a")]
    path = biom_1(tmp_path / "t.biom", X.T.tolist(), "dense", columns=twice)
    refuses("sample ids must be unique; got more than once 'a'", path)


def test_biom_2_that_contradicts_itself_is_refused(tmp_path):
    for part, values in (("indices", [0, 2, 1, 2, 0, 99]), ("indptr", [0, 2, 4]), ("data", [1.0])):
        path = tmp_path / f"{part}.biom"
        write(a_table(), path)
        with h5py.File(path, "r+") as file:
            del file[f"sample/matrix/{part}"]
            file[f"sample/matrix/{part}"] = values
        refuses("cannot be read as BIOM 2.1", path)


# ---- h5ad


@pytest.mark.parametrize("kind", [csr_matrix, csr_array, csc_matrix, csc_array, np.asarray])
@pytest.mark.parametrize("place", ["X", "counts", "raw_counts"])
def test_h5ad_counts_wherever_and_however_they_lie(tmp_path, kind, place, monkeypatch):
    monkeypatch.setattr("countvae.table._BLOCK", 4)  # a row at a time
    path = tmp_path / "t.h5ad"
    logs = np.log1p(X)
    adata = an_anndata(kind(X)) if place == "X" else an_anndata(logs, **{place: kind(X)})
    adata.write_h5ad(path)
    table = read(path, layer="raw_counts" if place == "raw_counts" else None)
    assert_same(table)
    assert table.source == ("X" if place == "X" else f"layers['{place}']")
    assert list(table.sample_metadata["site"]) == SITE
    assert table.feature_metadata is None


def test_h5ad_x_can_be_asked_for(tmp_path):
    an_anndata(csr_matrix(X * 2), counts=csr_matrix(X)).write_h5ad(tmp_path / "t.h5ad")
    assert_same(read(tmp_path / "t.h5ad", layer="X"), X * 2)


def test_log_normalised_x_is_refused_and_the_layers_named(tmp_path):
    path = tmp_path / "t.h5ad"
    logs = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4)
    an_anndata(csr_matrix(logs), raw_counts=csr_matrix(X)).write_h5ad(path)
    refuses("looks log-normalised; pass raw counts .*other layers here: 'raw_counts'", path)
    refuses("looks log-normalised", path, allow_fractional=True)
    assert_same(read(path, layer="raw_counts"))


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "t.h5ad"
    an_anndata(None, spliced=csr_matrix(X)).write_h5ad(path)
    refuses("has no layer 'raw'; its layers: 'spliced'", path, layer="raw")
    refuses("has no X; its layers: 'spliced'", path)
    refuses(
        r"layer='raw' can be had of an .h5ad file only",
        samples_first(tmp_path / "t.tsv"),
        layer="raw",
    )


def test_other_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["weights"] = X
    refuses("is HDF5, but neither a BIOM nor an .h5ad file", tmp_path / "t.h5")
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"], file["obs"], file["var"] = X, [1, 2, 3], [1, 2, 3, 4]
    refuses("not in the format of anndata 0.7 or later", tmp_path / "old.h5ad")


# ---- text


@pytest.mark.parametrize("corner", ["sample_id", "", "#SampleID", "0"])
def test_text_with_samples_in_rows(tmp_path, corner):
    table = read(samples_first(tmp_path / "t.tsv", corner=corner))
    assert_same(table)
    assert table.source == "text, rows are samples"


@pytest.mark.parametrize("corner", ["#OTU ID", "OTU ID", "feature-id", "Feature ID"])
def test_text_with_features_in_rows_is_turned_by_its_header(tmp_path, corner):
    rows = [[f, *X[:, j], t] for j, (f, t) in enumerate(zip(FEATURES, TAXONOMY, strict=True))]
    path = tsv(
        tmp_path / "t.txt",
        [["# Constructed from biom file"], [corner, *SAMPLES, "taxonomy"], *rows],
    )
    for transpose in (False, True):
        table = read(path, transpose=transpose)
        assert_same(table)
        assert table.source == "text, rows are features"
        assert list(table.feature_metadata["taxonomy"]) == TAXONOMY


def test_text_with_features_in_rows_is_turned_when_asked(tmp_path):
    path = samples_first(tmp_path / "t.tsv", X.T, FEATURES, SAMPLES, corner="")
    assert_same(read(path, transpose=True))


@pytest.mark.parametrize("suffix", [".biom", ".h5ad"])
def test_other_formats_are_turned_when_asked(tmp_path, suffix):
    turned = CountTable(csr_array(X.T), strings(FEATURES), strings(SAMPLES))
    write(turned, tmp_path / f"t{suffix}")
    assert_same(read(tmp_path / f"t{suffix}", transpose=True))


def test_text_separated_by_commas_quoted_and_zipped(tmp_path):
    rows = [["", *FEATURES], *([i, *row] for i, row in zip(SAMPLES, X, strict=True))]
    text = "\r\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert_same(read(path))


def test_a_csv_separated_by_tabs_is_read_as_what_it_is(tmp_path):
    samples_first(tmp_path / "t.csv", features=["a", "b,c", "d", "e"][: len(FEATURES)])
    assert read(tmp_path / "t.csv").feature_ids[1] == "b,c"


def test_text_as_r_writes_it_has_no_corner(tmp_path):
    assert_same(
        read(
            tsv(tmp_path / "t.tsv", [FEATURES, *([i, *r] for i, r in zip(SAMPLES, X, strict=True))])
        )
    )


def test_zeros_may_be_written_in_any_way_and_ids_may_be_zero(tmp_path):
    x = [["0.00", "1", "0"], ["2.0", "0e0", " 3 "]]
    path = samples_first(tmp_path / "t.tsv", x, ["0", "1"], ["0", "0.0", "00"])
    assert_same(read(path), [[0, 1, 0], [2, 0, 3]], ["0", "1"], ["0", "0.0", "00"])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("many", "expected numbers; got 'many'"),
        ("", "expected numbers; got ''"),
        ("1_0", "expected numbers; got '1_0'"),
        ("NA", "expected numbers; got 'NA'"),
        ("nan", "expected finite values, not NaN or inf; got nan"),
        ("inf", "expected finite values, not NaN or inf; got inf"),
        ("-2", "expected values >= 0; got -2"),
        ("1.5", "expected whole numbers; got 1.5"),
    ],
)
def test_a_bad_cell_is_named_with_file_sample_and_feature(tmp_path, cell, sentence, turned):
    path = tmp_path / "t.tsv"
    x = X.astype(object)
    x[1, 2] = cell
    if turned:
        samples_first(path, x.T, FEATURES, SAMPLES, corner="#OTU ID")
    else:
        samples_first(path, x)
    refuses(f"{re.escape(str(path))}.*{sentence} in sample '007', feature 'OTU 3'", path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("\n\n", "expected cells separated by tabs or commas"),
        ("a b c\n1 2 3\n", "expected cells separated by tabs or commas"),
        ("id\ta\tb\n", "expected at least one sample"),
        ("id\ta\ns1\t1\n", "expected at least two features; got n_features = 1"),
        ("id\ta\tb\ns1\t1\t2\ns2\t3\n", "expected 3 cells in row 's2'; got 2"),
        ("id\ta\tb\ns1\t1\t2\n\t3\t4\n", "a row has no name"),
        ("id\ta\t\ns1\t1\t2\n", "a column has no name"),
        ("id\ta\ta\ns1\t1\t2\n", "feature ids must be unique; got more than once 'a'"),
        ("id\ta\tb\ns1\t1\t2\ns1\t1\t2\n", "sample ids must be unique; got more than once 's1'"),
        ('id\ta\tb\n"s1\t1\t2\n', "cannot be read as text"),
        ('{"rows": [', "cannot be read as BIOM 1.0"),
        ('{"cells": []}', "is JSON, but not a BIOM 1.0 table"),
    ],
)
def test_bad_text_is_refused_in_a_sentence(tmp_path, text, sentence):
    (tmp_path / "t.tsv").write_text(text)
    refuses(f"t.tsv.*{sentence}", tmp_path / "t.tsv")


def test_foreign_files_are_refused_in_a_sentence(tmp_path):
    for content, sentence in (
        (b"\x89PNG\r\n\x1a\n rest", "is neither BIOM nor .h5ad nor text"),
        (b"PK\x03\x04 rest of it", "is a zip archive"),
        (b"id\ta\tb\ns\x001\t1\t2\n", "is neither BIOM nor .h5ad nor text"),
    ):
        (tmp_path / "t.biom").write_bytes(content)
        refuses(sentence, tmp_path / "t.biom")
    refuses("there is no such file", tmp_path / "nothing.biom")
    refuses("is not a file", tmp_path)


def test_cut_short_every_format_is_refused_in_a_sentence(tmp_path):
    for suffix in (".biom", ".h5ad", ".json", ".tsv.gz", ".tsv"):
        path = tmp_path / f"t{suffix}"
        if suffix in (".biom", ".h5ad"):
            write(a_table(), path)
        elif suffix == ".json":
            path.write_text(a_biom().to_json("test", creation_date=datetime(2020, 1, 1)))
        else:
            text = samples_first(tmp_path / "whole.tsv").read_bytes()
            path.write_bytes(gzip.compress(text) if suffix == ".tsv.gz" else text)
        whole = path.read_bytes()
        for part in (0.1, 0.5, 0.8, 0.95):
            path.write_bytes(whole[: int(part * len(whole))])
            refuses(f"t{suffix}", path)


# ---- empty samples and metadata


def test_empty_samples_are_left_out_when_asked(tmp_path):
    path = samples_first(tmp_path / "t.tsv", [[5, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 9]])
    refuses("1 of 3 has none: '007'", path)
    with pytest.warns(CountvaeWarning, match="left out 1 of 3 samples, without a read: '007'"):
        table = read(path, drop_empty=True)
    assert_same(table, [[5, 0, 1, 0], [1, 0, 0, 9]], ["2538.1001130", "s3"])
    samples_first(path, np.zeros((3, 4), int))
    refuses("at least one sample with reads", path, drop_empty=True)


@pytest.mark.parametrize("header", ["#SampleID", "sample_id", "sample-id", "barcode", ""])
def test_metadata_are_aligned_by_id(tmp_path, header):
    path = samples_first(tmp_path / "t.tsv")
    metadata = tsv(
        tmp_path / "m.tsv",
        [
            [header, "age", "plot"],
            ["#q2:types", "numeric", "categorical"],
            ["s3", 30, 1],
            ["extra", "", 2],
            ["007", 2, 3],
            ["2538.1001130", 1.5, 4],
        ],
    )
    with warnings.catch_warnings(action="error"):
        table = read(path, metadata=metadata)
    assert_same(table)
    assert list(table.sample_metadata.index) == SAMPLES
    assert list(table.sample_metadata["age"]) == AGE
    assert list(table.sample_metadata["plot"]) == ["4", "3", "1"]


def test_metadata_join_those_in_the_table_and_win(tmp_path):
    write(a_table(), tmp_path / "t.biom")
    metadata = tsv(tmp_path / "m.tsv", [["id", "site"], *([i, "sea"] for i in SAMPLES)])
    frame = read(tmp_path / "t.biom", metadata=metadata).sample_metadata
    assert list(frame["site"]) == ["sea"] * 3
    assert list(frame["age"]) == AGE


def test_samples_without_metadata_stay_and_are_named(tmp_path):
    path = samples_first(tmp_path / "t.tsv")
    metadata = tsv(tmp_path / "m.tsv", [["id", "age"], ["s3", 30], ["007", 2]])
    with pytest.warns(CountvaeWarning, match=r"has 2 of the 3 samples of .*, not '2538.1001130'"):
        table = read(path, metadata=metadata)
    assert np.array_equal(table.sample_metadata["age"], [np.nan, 2, 30], equal_nan=True)


def test_metadata_of_other_samples_or_of_features_are_refused(tmp_path):
    path = samples_first(tmp_path / "t.tsv")
    other = tsv(tmp_path / "m.tsv", [["id", "age"], ["x", 30], ["y", 2]])
    refuses(r"none of its 2 ids \('x', 'y'\) is a sample of .*\.$", path, metadata=other)
    turned = tsv(tmp_path / "m.tsv", [["id", "age"], ["OTU_1", 30], ["1e5", 2]])
    refuses("2 are features: the table looks transposed", path, metadata=turned)


def test_bad_metadata_are_refused_in_a_sentence(tmp_path):
    path = samples_first(tmp_path / "t.tsv")
    bad = tsv(tmp_path / "m.tsv", [["id", "age"], ["s3", 30], ["s3", 2]])
    refuses("m.tsv: cannot be read as metadata.*duplicated: 's3'", path, metadata=bad)
    refuses("nothing.tsv: there is no such file", path, metadata=tmp_path / "nothing.tsv")


# ---- the real ones


@pytest.mark.parametrize(
    ("name", "shape", "nnz", "shallowest", "deepest"),
    [
        ("ecam", (741, 3347), 47297, 2085, 68174),
        ("ifnb_pbmc", (2800, 14053), 1971641, 783, 11789),
        ("oaks", (116, 114), 8670, 1398, 12438),
        ("globalpatterns", (26, 18988), 104578, 58688, 2357181),
    ],
)
def test_real_tables(shared_table, name, shape, nnz, shallowest, deepest):
    path = shared_table(name)
    metadata = path.with_name("metadata.tsv")
    table = read(path, metadata=metadata if metadata.exists() else None)
    assert (table.n, table.d) == table.counts.shape == shape
    assert table.counts.nnz == nnz
    assert (table.depth.min(), table.depth.max()) == (shallowest, deepest)
    assert table.sample_metadata.notna().any(axis=None)


@pytest.mark.parametrize("name", ["ecam", "oaks", "globalpatterns"])
def test_real_tables_are_read_as_biom_reads_them(shared_table, name):
    table, other = read(shared_table(name)), biom.load_table(str(shared_table(name)))
    assert (csr_array(other.matrix_data.T) != table.counts).nnz == 0
    assert list(table.sample_ids) == list(other.ids())
    assert list(table.feature_ids) == list(other.ids("observation"))


@pytest.mark.parametrize("suffix", [".biom", ".h5ad", ".tsv"])
def test_a_real_table_survives_every_format(shared_table, tmp_path, suffix):
    table = read(shared_table("ecam"))
    write(table, tmp_path / f"t{suffix}")
    again = read(tmp_path / f"t{suffix}")
    assert (again.counts != table.counts).nnz == 0
    assert np.array_equal(again.sample_ids, table.sample_ids)
    assert np.array_equal(again.feature_ids, table.feature_ids)


def test_filtering_a_real_table_does_what_a_dense_one_would(shared_table):
    table = read(shared_table("oaks")).filter(min_feature_samples=60)
    x = read(shared_table("oaks")).counts.toarray()
    assert np.array_equal(table.counts.toarray(), x[:, (x > 0).sum(axis=0) >= 60])


@pytest.mark.parametrize("bad", ["", " s", "a\tb", "a\nb", "a\rb", "a\x0bb"])
def test_text_refuses_ids_that_it_would_not_give_back_and_other_formats_take_them(tmp_path, bad):
    for axis in ("sample", "feature"):
        table = CountTable(
            csr_array(X),
            strings([bad, *SAMPLES[1:]] if axis == "sample" else SAMPLES),
            strings([bad, *FEATURES[1:]] if axis == "feature" else FEATURES),
        )
        with pytest.raises(InputError, match=f"{axis} ids: expected ids without tabs"):
            write(table, tmp_path / "t.tsv")
    with pytest.raises(InputError, match="sample-id: expected ids without tabs"):
        write_frame(pd.DataFrame({"x": [1.0]}, pd.Index([bad], name="sample-id")), tmp_path / "f")
    assert not list(tmp_path.iterdir())
    write(table, tmp_path / "t.h5ad")
    assert read(tmp_path / "t.h5ad").feature_ids[0] == bad


def test_ids_and_text_are_read_back_from_a_frame_whatever_they_hold(tmp_path):
    ids = ["=1+1", "+a", "-b", "@c", "#d", '"e', "f,g", "h'"]
    texts = ["=1+1", "a\tb", "a\r\nb", "a\x00", '"', "", "é", "x"]
    frame = pd.DataFrame({"taxonomy": texts, 3: range(8)}, pd.Index(ids, name="feature-id"))
    write_frame(frame, tmp_path / "f.tsv")
    again = pd.read_csv(tmp_path / "f.tsv", sep="\t", dtype={0: str}, keep_default_na=False)
    assert list(again["feature-id"]) == ids
    assert list(again["taxonomy"]) == ["=1+1", "a b", "a  b", "a ", '"', "", "é", "x"]
    assert frame["taxonomy"].iloc[1] == "a\tb", "the frame given was changed"
    table = CountTable(csr_array(np.eye(8)), strings(ids), strings(ids[::-1]))
    write(table, tmp_path / "t.tsv")
    assert list(read(tmp_path / "t.tsv").sample_ids) == ids


# ---- what the system does not allow, and what would fill the memory


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    pipe, path = tmp_path / "pipe", tmp_path / "t.tsv"
    os.mkfifo(pipe)
    path.write_text("id\ta\tb\ns1\t1\t2\n")
    refuses("pipe: is not a file; write a pipe's content to one first", pipe)
    refuses("pipe: is not a file; write a pipe's content to one first", path, metadata=pipe)
    with pytest.raises(InputError, match="nor a readable Newick file"):
        make_basis(pipe, ["a", "b"])


@pytest.mark.parametrize("suffix", [".h5ad", ".tsv", ".biom"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_the_system_refuses_is_not_called_damaged(tmp_path, monkeypatch, suffix, number):
    path = tmp_path / f"t{suffix}"
    write(a_table(), path)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open" if suffix == ".tsv" else "h5py.File", refuse)
    with pytest.raises(CannotRead, match=re.escape(f"cannot be read ({os.strerror(number)}).")):
        read(path)
    number = errno.ENOMEM
    with pytest.raises(OSError, match="Cannot allocate memory"):
        read(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals of children")
def test_tables_are_read_whoever_ignores_the_end_of_children(tmp_path):
    write(a_table(), tmp_path / "t.h5ad")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert read(tmp_path / "t.h5ad").n == a_table().n
    finally:
        signal.signal(signal.SIGCHLD, before)


def bomb(path, form):
    """Write a table or metadata that take far more memory than disk; return what reads them."""
    if form == "chunk":
        write(a_table(), path.with_suffix(".h5ad"))
        with h5py.File(path.with_suffix(".h5ad"), "r+") as file:
            file.create_dataset("uns/x", (1,), "f8", chunks=(2**21,), maxshape=(None,))
        return lambda: read(path.with_suffix(".h5ad"))
    if form in ("X", "dense", "obs"):
        n = 2**17 if form == "obs" else 2**9
        X = np.ones((n, 2)) if form == "obs" else np.ones((n, 2**9))
        X = X if form == "dense" else csr_array(X)
        obs = pd.DataFrame(index=[f"s{i}" for i in range(n)])
        made = anndata.AnnData(X, obs)
        made.write_h5ad(path.with_suffix(".h5ad"), compression="gzip")
        return lambda: read(path.with_suffix(".h5ad"))
    with gzip.open(path, "wt", 1) as file:
        if form == "text":
            file.write("id\ta\tb\n")
            file.writelines(f"s{i}\t1\t1\n" for i in range(2**17))
        elif form == "line":
            file.write("id" + "\tabcd" * 2**18 + "\n")
        elif form == "json":
            file.write('{"rows": [' + "[]," * 2**18 + "0]}")
        else:
            file.write("id\ta\n" + "s1\t" + "x" * 2**20)
    return (lambda: read_metadata(path)) if form == "metadata" else (lambda: read(path))


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ("text", "reading its table takes"),
        ("line", "reading its table takes"),
        ("json", "reading BIOM 1.0 takes"),
        ("metadata", "reading its text takes"),
        ("chunk", "reading a chunk of '/uns/x' takes"),
        ("X", "reading its table takes"),
        ("dense", "reading its table takes"),
        ("obs", "reading its names and metadata takes"),
    ],
)
def test_what_would_fill_the_memory_is_refused_before_it_does(
    tmp_path, monkeypatch, form, sentence
):
    attempt = bomb(tmp_path / "bomb.gz", form)
    monkeypatch.setattr("countvae.memory.available_bytes", lambda: 6 * 2**20)
    with pytest.raises(TooLarge, match=rf"{sentence} 0.\d GiB of memory or more, of which 0.0 are"):
        attempt()
