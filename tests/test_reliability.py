"""What is put in the way of it: small runs of `make reliability` and `make fuzz`."""

import contextlib
import gzip
import itertools
import multiprocessing as mp
import os
import shutil
import time
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.reliability import faults, hostile, kills, models, page, repeats, scene
from countvae.errors import DamagedFile, InputError
from countvae.store import SCHEMA_VERSION, load
from countvae.table import read

WAITS_FOR_MEMORY = np.lib.NumpyVersion(np.__version__) < "2.2.0"
"""Whether numpy's matrix products wait for ever for memory that is not given, as older ones do."""


def test_nothing_is_lost_however_often_a_fit_is_stopped():
    found = kills.measure(50)
    assert found["stopped"].sum() >= 50
    assert found["while_writing"].sum() > 0
    assert found["lost"].sum() == 0
    assert found["equal"].all()


def test_every_fault_ends_in_a_sentence_and_leaves_what_was_there():
    some = {
        name: faults.COMMANDS[name]
        for name in ("fitted", "coordinates.h5ad", "network", "both.tsv", "simulated.biom")
    }
    without = {"no_memory"} if WAITS_FOR_MEMORY else set()
    found = faults.measure(some, without)
    assert set(found["fault"]) == faults.FAULTS.keys() - without
    assert set(found["outcome"]) <= {"done", "refused"}, found.to_string()
    assert found["lost"].sum() == 0, found.to_string()
    for fault in ("full_disk", "vanished_input", "not_finite"):
        assert (found.loc[found["fault"] == fault, "outcome"] == "refused").all()


def test_of_broken_and_hostile_files_only_our_error_comes_out():
    found = hostile.fuzz(3000, seed=1, seconds=60)
    wrong = found[~found["outcome"].isin(["read", "refused"])]
    assert len(found) == 3000 and wrong.empty, wrong.to_string()
    assert (found["outcome"] == "read").sum() > 100
    assert (found["outcome"] == "refused").sum() > 1000
    assert (hostile.by_kind(found).query("kind != '?'")["sentences"] > 2).all()


def test_what_fuzzing_finds_ends_it_with_one(tmp_path, corpus, monkeypatch):
    def outcome(reader):
        monkeypatch.setitem(hostile.READERS, ".tsv", (reader,))
        return hostile.attempt(0, 0, [tsv], folder)[:2]

    folder = tmp_path / "cases"
    folder.mkdir()
    tsv = next(path for path in corpus if path.name == "a.tsv")
    assert outcome(lambda path: {}["x"]) == ("tsv", "escaped: KeyError: 'x'")
    assert outcome(lambda path: (tmp_path / "out").touch()) == ("tsv", "escaped: wrote ['out']")
    (tmp_path / "out").unlink()
    assert outcome(lambda path: (folder / "in").touch()) == ("tsv", "escaped: wrote ['in']")
    (folder / "in").unlink()
    assert outcome(lambda path: None) == ("tsv", "read")
    rows = pd.DataFrame({"case": [7, 8], "outcome": ["read", "escaped: KeyError"]})
    scene.end(rows[rows["outcome"] == "none"])
    with pytest.raises(SystemExit, match=r"1 findings:\n(.*\n)*.* 8 .*KeyError") as ended:
        scene.end(rows[~rows["outcome"].isin(hostile.WELL)])
    assert isinstance(ended.value.code, str), "exit code 1, by sys.exit"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be blocked")
def test_a_reader_that_is_blocked_is_ended_with_all_that_it_started(tmp_path, corpus, monkeypatch):
    ours, theirs = mp.Pipe()
    worker = mp.get_context("fork").Process(target=_blocked, args=(theirs,))
    worker.start()
    theirs.close()
    number, rows = hostile._watched(worker, ours, seconds=0.5)
    assert (number, rows) == (3, [(3, "?", "hung", "")])
    assert not worker.is_alive()


def _blocked(pipe):
    os.setpgid(0, 0)
    pipe.send(("begins", 3))
    if os.fork() == 0:
        time.sleep(100)
    os.wait()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return hostile.corpus(tmp_path_factory.mktemp("corpus"))


def read_by_all_readers(path):
    """Read a file, or see it refused by a sentence."""
    for reader in hostile.READERS[path.suffix]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                reader(path)
            except InputError as error:
                assert "\n" not in str(error)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_of_bytes_that_hypothesis_changes_only_our_error_comes_out(corpus, tmp_path, data):
    given_file = data.draw(st.sampled_from([path for path in corpus if path.is_file()]))
    content = bytearray(given_file.read_bytes())
    edits = st.tuples(st.integers(0, len(content) - 1), st.binary(max_size=8))
    for at, new in data.draw(st.lists(edits, min_size=1, max_size=6)):
        content[at : at + len(new)] = new
    path = tmp_path / given_file.name
    path.write_bytes(content)
    read_by_all_readers(path)


def test_a_file_for_which_the_library_asks_for_all_memory_is_damaged(corpus, tmp_path):
    given_file = next(path for path in corpus if path.suffix == ".biom")
    content = bytearray(given_file.read_bytes())
    content[129:133] = b"\x00\x00\x00\x06"
    path = tmp_path / given_file.name
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="asks for more memory than there is"):
        hostile.READERS[path.suffix][0](path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_of_models_that_hypothesis_changes_only_our_error_comes_out(corpus, tmp_path, data):
    given_model = next(path for path in corpus if path.suffix == ".model")
    path = tmp_path / "any.model"
    shutil.copytree(given_model, path, dirs_exist_ok=True)
    file = path / data.draw(st.sampled_from(["config.json", "model.safetensors", "run.json"]))
    content = bytearray(file.read_bytes())
    edits = st.tuples(st.integers(0, len(content) - 1), st.binary(max_size=8))
    for at, new in data.draw(st.lists(edits, max_size=6)):
        content[at : at + len(new)] = new
    any_bytes = st.binary(max_size=300) | st.text(max_size=300).map(str.encode)
    file.write_bytes(data.draw(st.just(bytes(content)) | any_bytes))
    if data.draw(st.booleans()):
        hostile.seal(path)
    with contextlib.suppress(InputError):
        load(path)
    read_by_all_readers(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@pytest.mark.parametrize("suffix", [".biom", ".tsv", ".metadata", ".nwk"])
def test_of_any_bytes_only_our_error_comes_out(tmp_path, content, suffix):
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    read_by_all_readers(path)


def test_a_small_file_that_claims_to_be_huge_is_refused_at_once(corpus, tmp_path):
    path = tmp_path / "claims.h5ad"
    shutil.copy(next(p for p in corpus if p.name == "a.h5ad"), path)
    hostile.claim(path, "X/data", 10**12)
    for reader in hostile.READERS[".h5ad"]:
        with pytest.raises(InputError, match="claims 1,000,000,000,000 values"):
            reader(path)


def test_a_link_out_of_a_file_is_not_followed(corpus, tmp_path):
    path = tmp_path / "link.biom"
    shutil.copy(next(p for p in corpus if p.name == "a.biom"), path)
    hostile.link_out(path, "sample/ids", tmp_path / "other.h5")
    for reader in hostile.READERS[".biom"]:
        with pytest.raises(InputError, match="'/sample/ids' is a link, which is not followed"):
            reader(path)


def copied(corpus, tmp_path, name):
    path = tmp_path / f"altered {name}"
    shutil.copy(next(p for p in corpus if p.name == name), path)
    return path


def refused_by_all(path, sentence, readers=None):
    for reader in readers or hostile.READERS[path.suffix]:
        with pytest.raises(InputError, match=sentence):
            reader(path)


def test_a_member_of_two_names_is_not_read_twice(corpus, tmp_path):
    """Ten thousand names of one column would be ten thousand columns."""
    path = copied(corpus, tmp_path, "a.biom")
    with h5py.File(path, "r+") as file:
        file["sample/metadata/same"] = file["sample/ids"]
    refused_by_all(path, "has another name too")
    path = copied(corpus, tmp_path, "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["uns/round"] = file["/"]
    refused_by_all(path, "'/uns/round' has another name too")


def test_many_members_may_claim_no_more_than_one(corpus, tmp_path):
    path = copied(corpus, tmp_path, "a.biom")
    with h5py.File(path, "r+") as file:
        for i in range(3):
            file.create_dataset(f"sample/metadata/{i}", (2**25 // 8,), "f8")
    refused_by_all(path, "'/sample/metadata/2' claims 4,194,304 values, and 0 bytes")


def test_what_is_no_group_of_layers_has_none(corpus, tmp_path):
    path = copied(corpus, tmp_path, "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["X"]
    hostile.claim(path, "layers", 10**6)
    refused_by_all(path, "has no X; its layers: none", (read, hostile._streamed))


def test_a_column_lies_in_its_own_frame(corpus, tmp_path):
    path = copied(corpus, tmp_path, "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["column-order"] = np.array(["/X/data"], dtype=object)
    refused_by_all(path, "a column of '/obs' is outside of it, '/X/data'")
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["column-order"] = np.array([b"/X/data"])
    refused_by_all(path, "a column of '/obs' is outside of it, '/X/data'")


@pytest.mark.parametrize("name", ["a.h5ad", "a.biom"])
def test_pointers_to_rows_are_as_many_as_these_before_they_are_read(corpus, tmp_path, name):
    path = copied(corpus, tmp_path, name)
    with h5py.File(path, "r+") as file:
        matrix = file["X" if name == "a.h5ad" else "sample/matrix"]
        del matrix["indptr"]
        matrix.create_dataset("indptr", (10**6,), "i8", chunks=True, compression="gzip")[:] = 0
    refused_by_all(path, "the matrix does not fit the ids", hostile.TABLE)


def test_names_that_share_their_bytes_are_tried_where_memory_is_limited(corpus, tmp_path):
    """A hundred thousand names of a megabyte each, in a file of a few."""
    path = copied(corpus, tmp_path, "a.biom")
    long, count = "a" * 2**20, 100_000
    with h5py.File(path, "r+") as file:
        text = h5py.string_dtype()
        names = file.create_dataset("sample/metadata/x", (count,), text)
        names[:] = ["a"] * count
        names[0] = long
        file.flush()
        start = names.id.get_offset()
    with path.open("r+b") as file:
        file.seek(start)
        first = file.read(16)
        file.seek(start)
        file.write(first * count)
    with h5py.File(path) as file:
        assert len(file["sample/metadata/x"][count - 1]) == 2**20
    refused_by_all(path, "the library (asks for more memory than there is|hangs)")


def test_a_text_that_goes_on_without_cells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("countvae.table._MOST_IDLE", 1000)
    path = tmp_path / "t.tsv.gz"
    head, body = "id\ta\tb\n", "s\t1\t2\nt\t3\t4\n"
    for before, between in (("# nothing\n", ""), ("", "\n")):
        for times in (999, 1001):
            with gzip.open(path, "wt") as file:
                file.write(before * times + head + between * times + body)
            if times < 1000:
                assert read(path).n == 2
                continue
            with pytest.raises(InputError, match="more than 1,000 lines are empty or comments"):
                read(path)


def test_models_that_were_kept_give_the_numbers_that_they_gave():
    found = models.measure()
    schemas = map(str, range(1, SCHEMA_VERSION + 1))
    kept = set(zip(found["schema"], found["model"], strict=True))
    refused = {("1", "grid-covariates")}  # as `OlderModel`: see test_errors
    assert kept == set(itertools.product(schemas, models.KINDS)) - refused
    assert (found["apart"] <= models.RELATIVE).all(), found.to_string()


def test_what_should_not_matter_does_not():
    found = repeats.summary(list(repeats.tolerances(1)))
    assert found.loc["nothing", "covariance"] == found.loc["nothing", "bound"] == 0
    assert found.loc["features renamed", "covariance"] == 0
    for change in ("samples in another order", "features in another order"):
        assert found.loc[change, "covariance"] < repeats.COVARIANCE
        assert found.loc[change, "bound"] < repeats.NATS


def test_the_page_is_that_of_the_results():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()
