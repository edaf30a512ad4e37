"""Tables that stay on disk: the same rows, the same checks and the same fits as in memory."""

import os

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array

from countvae import MultinomialVAE, rows
from countvae.errors import CountvaeWarning, InputError
from countvae.metrics import subspace_error
from countvae.rows import Rows
from countvae.simulate import simulate
from countvae.stream import CountFile
from countvae.table import CountTable, read, write


def drawn(n=60, d=20, seed=0):
    rng = np.random.default_rng(seed)
    counts = csr_array(rng.poisson(0.6, (n, d)) + np.eye(n, d, dtype=int))
    return CountTable(
        counts,
        np.array([f"s{i}" for i in range(n)], dtype=object),
        np.array([f"f{j}" for j in range(d)], dtype=object),
        pd.DataFrame({"site": ["a", "b"] * (n // 2)}, index=[f"s{i}" for i in range(n)]),
    )


@pytest.fixture(name="table", scope="module")
def table_in_memory():
    return drawn()


@pytest.fixture(name="files", scope="module")
def files_of_every_kind_that_has_rows(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for suffix in (".biom", ".h5ad"):
        write(table, folder / f"table{suffix}")
    frames = {
        "obs": pd.DataFrame(index=list(table.sample_ids)),
        "var": pd.DataFrame(index=list(table.feature_ids)),
    }
    counts = table.counts.toarray()
    anndata.AnnData(X=counts, **frames).write_h5ad(folder / "dense.h5ad")
    layered = anndata.AnnData(X=np.log1p(counts), layers={"counts": table.counts}, **frames)
    layered.write_h5ad(folder / "layer.h5ad", compression="gzip")
    return {path.name: path for path in folder.iterdir()}


KINDS = ("table.biom", "table.h5ad", "dense.h5ad", "layer.h5ad")


@pytest.mark.parametrize("kind", KINDS)
def test_any_rows_are_those_of_the_table_in_the_order_asked_for(table, files, kind):
    with CountFile(files[kind]) as streamed:
        assert streamed.shape == (table.n, table.d)
        np.testing.assert_array_equal(streamed.depth, table.depth)
        assert list(streamed.sample_ids) == list(table.sample_ids)
        for rows in (
            slice(0, 60),
            slice(7, 9),
            np.array([5, 59, 0, 6, 7, 5]),
            np.array([], int),
            np.array([0, 0, 2]),
        ):
            np.testing.assert_array_equal(streamed[rows].toarray(), table.counts[rows].toarray())


@pytest.mark.parametrize(("gap", "at_once"), [(0, 1 << 20), (40, 1 << 20), (40, 90)])
def test_rows_that_lie_apart_are_read_alone_and_near_ones_together(
    table, files, monkeypatch, gap, at_once
):
    monkeypatch.setattr("countvae.stream.GAP_ENTRIES", gap)
    monkeypatch.setattr("countvae.stream.AT_ONCE", at_once)
    at = np.array([0, 1, 3, 4, 9, 11, 17])
    for path in files.values():
        stored = CountFile(path)
        np.testing.assert_array_equal(stored[at].toarray(), table.counts[at].toarray())
        pieces = [piece.tolist() for piece in stored._parts[0].runs(at)]
        assert [row for piece in pieces for row in piece] == at.tolist()
        if gap == 0:
            assert pieces == [[0, 1], [3, 4], [9], [11], [17]]
        elif at_once == 1 << 20:
            assert pieces[0][:4] == [0, 1, 3, 4] and len(pieces) < 4
        else:
            assert len(pieces) > 2


def test_blocks_are_the_whole_table_in_order(table, files):
    with CountFile(files["table.biom"]) as streamed:
        blocks = dict(streamed.blocks(entries=100))
    assert len(blocks) > 3
    for first, block in blocks.items():
        np.testing.assert_array_equal(
            block.toarray(), table.counts[first : first + block.shape[0]].toarray()
        )


@pytest.mark.parametrize("least", [{}, {"min_feature_samples": 30}, {"min_sample_count": 14}])
def test_filters_keep_what_they_keep_in_memory(table, files, least):
    expected = table.filter(**least)
    with CountFile(files["table.h5ad"]) as streamed:
        kept = streamed.filter(**least)
        assert list(kept.feature_ids) == list(expected.feature_ids)
        assert list(kept.sample_ids) == list(expected.sample_ids)
        np.testing.assert_array_equal(kept.depth, expected.depth)
        np.testing.assert_array_equal(kept[:].toarray(), expected.counts.toarray())
        assert list(kept.sample_metadata["site"]) == list(expected.sample_metadata["site"])


def test_selections_of_selections_and_alignment_agree_with_memory(table, files):
    wanted = np.array(["f3", "new", "f1", "f19", "f7"], dtype=object)
    chosen = np.array([9, 3, 50])
    with CountFile(files["table.biom"]) as streamed:
        filtered = streamed.filter(min_feature_samples=27)
        aligned, overlap = filtered.select_samples(chosen).align_features(wanted)
        theirs, expected = (
            table.filter(min_feature_samples=27).select_samples(chosen).align_features(wanted)
        )
        assert overlap == expected
        np.testing.assert_array_equal(aligned[:].toarray(), theirs.counts.toarray())
        np.testing.assert_array_equal(aligned.depth, theirs.depth)


def test_files_of_one_table_follow_one_another_with_features_matched_by_id(table, tmp_path):
    order = np.random.default_rng(0).permutation(table.d)
    write(table.select_samples(np.arange(25)), tmp_path / "one.h5ad")
    write(table.select_samples(np.arange(25, 60)).select_features(order), tmp_path / "two.biom")
    with CountFile(tmp_path / "one.h5ad", tmp_path / "two.biom") as both:
        np.testing.assert_array_equal(both[:].toarray(), table.counts.toarray())
        np.testing.assert_array_equal(both[20:30].toarray(), table.counts[20:30].toarray())
        assert list(both.sample_ids) == list(table.sample_ids)
        assert list(both.sample_metadata["site"]) == list(table.sample_metadata["site"])


def test_files_of_different_features_or_the_same_samples_are_refused(table, tmp_path):
    write(table, tmp_path / "whole.h5ad")
    write(table.select_features(np.arange(19)), tmp_path / "less.h5ad")
    with pytest.raises(InputError, match=r"less\.h5ad: its features are not those .* 'f19'"):
        CountFile(tmp_path / "whole.h5ad", tmp_path / "less.h5ad")
    with pytest.raises(InputError, match="sample ids must be unique"):
        CountFile(tmp_path / "whole.h5ad", tmp_path / "whole.h5ad")


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file["X"])


def negate(X):
    X["data"][70] = -1


def spoil_indptr(X):
    X["indptr"][3] = 0


def spoil_column(X):
    X["indices"][5] = 999


def make_fractional(X):
    values = X["data"][()].astype(float)
    values[70] = 2.5
    del X["data"]
    X["data"] = values


def test_what_is_no_count_is_found_on_opening(table, tmp_path):
    path = tmp_path / "table.h5ad"
    for change, sentence in (
        (negate, r"expected values >= 0; got -1 in sample 's\d+', feature 'f\d+'"),
        (spoil_indptr, "the matrix does not fit the ids"),
        (spoil_column, "cannot be read as a count table"),
        (make_fractional, r"expected whole numbers; got 2.5 in sample 's\d+'"),
    ):
        write(table, path, force=True)
        edit(path, change)
        with pytest.raises(InputError, match=sentence):
            CountFile(path)
    with pytest.warns(CountvaeWarning, match="whole numbers"):
        CountFile(path, allow_fractional=True)


def test_a_defect_is_named_by_the_sample_it_is_in_whatever_the_block(table, tmp_path, monkeypatch):
    path = tmp_path / "table.h5ad"
    write(table, path)
    edit(path, negate)
    at = int(np.searchsorted(table.counts.indptr, 70, side="right")) - 1
    monkeypatch.setattr("countvae.stream.PASS_ENTRIES", 20)
    with pytest.raises(InputError, match=f"sample 's{at}'"):
        CountFile(path)


def test_empty_samples_are_refused_or_left_out_by_name(table, tmp_path):
    counts = table.counts.toarray()
    counts[[4, 9]] = 0
    write(CountTable(csr_array(counts), table.sample_ids, table.feature_ids), tmp_path / "t.biom")
    with pytest.raises(InputError, match="2 of 60 have none: 's4', 's9'"):
        CountFile(tmp_path / "t.biom")
    with pytest.warns(CountvaeWarning, match="left out 2 of 60"):
        kept = CountFile(tmp_path / "t.biom", drop_empty=True)
    assert kept.n == 58
    model = MultinomialVAE(2, max_epochs=2)
    with pytest.warns(CountvaeWarning, match="2 of 60 have none: 's4', 's9'"):
        model.fit(tmp_path / "t.biom")
    with pytest.warns(CountvaeWarning, match="2 of 60 have none: 's4', 's9'"):
        assert len(model.transform(tmp_path / "t.biom")) == 60
    np.testing.assert_array_equal(kept[3:5].toarray(), counts[[3, 5]])


def test_files_whose_counts_lie_in_different_places_are_refused_unless_told(table, tmp_path):
    halves = table.select_samples(np.arange(30)), table.select_samples(np.arange(30, 60))
    for name, half, where in zip("ab", halves, ("layer", "X"), strict=True):
        names = (pd.DataFrame(index=list(ids)) for ids in (half.sample_ids, half.feature_ids))
        layers = {"counts": half.counts} if where == "layer" else {}
        anndata.AnnData(half.counts, *names, layers=layers).write_h5ad(tmp_path / f"{name}.h5ad")
    paths = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    with pytest.raises(InputError, match=r"b\.h5ad: its counts would be X, those of .*a\.h5ad lay"):
        CountFile(*paths)
    with CountFile(*paths, layer="X") as both:
        np.testing.assert_array_equal(both[:].toarray(), table.counts.toarray())


def test_a_table_of_many_files_is_called_by_the_first_of_them(table, tmp_path):
    for i in range(5):
        write(table.select_samples(np.array([2 * i, 2 * i + 1])), tmp_path / f"{i}.biom")
    with CountFile(*(tmp_path / f"{i}.biom" for i in range(5))) as many:
        assert many.name.endswith("2.biom and 2 more")


def test_a_closed_file_is_called_that(table, tmp_path):
    write(table, tmp_path / "t.biom")
    with CountFile(tmp_path / "t.biom") as closed:
        pass
    with pytest.raises(InputError, match=r"t\.biom: was closed; open it again"):
        closed[:3]


def test_files_without_rows_are_refused_with_advice(table, tmp_path):
    write(table, tmp_path / "table.tsv")
    anndata.AnnData(X=csc_array(table.counts)).write_h5ad(tmp_path / "columns.h5ad")
    with pytest.raises(InputError, match=r"is text, .* write it as \.h5ad or BIOM 2\.1 first"):
        CountFile(tmp_path / "table.tsv")
    with pytest.raises(InputError, match="X is stored as csc_matrix"):
        CountFile(tmp_path / "columns.h5ad")
    with pytest.raises(InputError, match="there is no such file"):
        MultinomialVAE().fit(str(tmp_path / "none.h5ad"))


class Disk:
    """A table that counts what is read of it."""

    def __init__(self, counts, rows_a_run=3, rows_a_group=16):
        self.counts, self.shape = counts, counts.shape
        self.sizes, self.read = {1 << 16: rows_a_run, 1 << 22: rows_a_group}, []

    def __getitem__(self, rows):
        self.read.append(np.arange(self.shape[0])[rows])
        return self.counts[rows]

    def rows_of(self, entries):
        return self.sizes[entries]


@given(
    n=st.integers(1, 90),
    batch_size=st.integers(1, 40),
    run=st.integers(1, 20),
    group=st.integers(1, 60),
    seed=st.integers(0, 10**6),
)
def test_a_streamed_epoch_has_every_row_once_in_batches_of_one_size(
    n, batch_size, run, group, seed
):
    counts = csr_array(np.arange(n)[:, None] + np.ones((1, 3)))
    disk = Disk(counts, run, group)
    batches = list(Rows(disk, batch_size).shuffled(torch.Generator().manual_seed(seed)))
    seen = np.concatenate([batch.at for batch in batches])
    assert sorted(seen) == list(range(n))
    for index, x, _, size in batches:
        assert size == len(index) == len(x)
        np.testing.assert_array_equal(x[:, 0], index + 1)
    assert len(batches) == -(-n // batch_size)
    assert np.concatenate(disk.read).size == n, "no row is read twice"
    sizes = [batch.size for batch in batches]
    assert max(sizes) - min(sizes) <= 8


def test_a_table_sorted_by_kind_is_mixed_in_every_batch():
    """What a stream reads is consecutive; what a batch holds must not be."""
    n = 4000
    kind = np.repeat(np.arange(4), n // 4)
    rows = Rows(Disk(csr_array(kind[:, None] + np.ones((1, 2))), 50, 1000), 100)
    for index, _, _, _ in rows.shuffled(torch.Generator().manual_seed(0)):
        assert np.bincount(kind[index], minlength=4).min() >= 20
    one_lane = torch.arange(n).split(100)
    assert max(np.bincount(kind[i], minlength=4).min() for i in one_lane) == 0


def test_streamed_and_whole_fits_of_a_sorted_table_find_the_same(tmp_path, monkeypatch):
    """Were rows not mixed as they are read, the fit would be another one."""
    monkeypatch.setattr(rows, "GROUP_ENTRIES", 1 << 12)
    monkeypatch.setattr(rows, "RUN_ENTRIES", 1 << 9)
    truth = simulate(1200, 60, 3, 1000, rng=np.random.default_rng(1))
    order = np.argsort(truth.z[:, 0])
    table = CountTable(truth.counts[order], truth.sample_ids, truth.feature_ids)
    write(table, tmp_path / "table.h5ad")
    settings = {"n_components": 3, "max_epochs": 25}
    whole = MultinomialVAE(**settings).fit(table)
    disk = MultinomialVAE(**settings).fit(tmp_path / "table.h5ad")
    again = MultinomialVAE(**settings).fit(str(tmp_path / "table.h5ad"))
    np.testing.assert_array_equal(disk.components_, again.components_)

    def apart(model):
        of_loadings = subspace_error(whole.components_.T, model.components_.T)
        return abs(model.score(table) - whole.score(table)), of_loadings

    nats, of_loadings = apart(disk)
    assert nats < 0.02
    assert of_loadings < 2e-4
    V, W = (m.components_.T * np.sqrt(m.explained_variance_) for m in (whole, disk))
    assert np.linalg.norm(V @ V.T - W @ W.T) < 0.05 * np.linalg.norm(V @ V.T)
    np.testing.assert_array_equal(disk.transform(table), disk.transform(tmp_path / "table.h5ad"))
    np.testing.assert_array_equal(
        disk.score_samples(table), disk.score_samples(read(tmp_path / "table.h5ad"))
    )
    np.testing.assert_array_equal(disk.depth_, table.depth)

    def as_in_the_file(self, generator):
        return [[step] for step in torch.arange(self.n).split(self.batch_size)]

    monkeypatch.setattr(Rows, "_steps", as_in_the_file)
    nats, of_loadings = apart(MultinomialVAE(**settings).fit(table))
    assert nats > 0.3
    assert of_loadings > 5e-3


def test_validation_samples_stream_too(table, files):
    model = MultinomialVAE(2, max_epochs=4, validation_fraction=0.2).fit(str(files["table.h5ad"]))
    assert model.history_["validation_bound"].notna().all()


def test_the_features_of_a_file_are_matched_by_id(table, files, tmp_path):
    model = MultinomialVAE(2, max_epochs=4).fit(table)
    order = np.random.default_rng(1).permutation(table.d)
    write(table.select_features(order), tmp_path / "turned.biom")
    np.testing.assert_array_equal(model.transform(tmp_path / "turned.biom"), model.transform(table))


def test_waiting_for_the_disk_is_told_beside_the_rest_and_is_none_in_memory(files, table):
    def waited(X):
        rows = []
        MultinomialVAE(2, max_epochs=2, progress=rows.append).fit(X)
        return [row["waited"] for row in rows]

    first, last = waited(files["table.h5ad"])
    assert 0 < first < last
    assert waited(table) == [0, 0]


@pytest.mark.parametrize("change", ["cut", "written to"])
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, change):
    truth = simulate(50, 20, 2, 300, rng=np.random.default_rng(0))
    path = tmp_path / "t.h5ad"
    write(CountTable(truth.counts, truth.sample_ids, truth.feature_ids), path)
    with CountFile(path) as table:
        before = table[:10].toarray()
        np.testing.assert_array_equal(table[:10].toarray(), before)
        with path.open("r+b") as file:
            if change == "cut":
                file.truncate(path.stat().st_size // 2)
            else:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")
        with pytest.raises(InputError, match=r"was changed while it was read|cannot be read"):
            table[:10]
