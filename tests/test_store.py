import json
import re
import shutil
import threading

import numpy as np
import pytest
import safetensors.numpy

from countvae import store
from countvae.errors import InputError, TooLarge

RNG = np.random.default_rng(0)
ARRAYS = {
    "V": RNG.normal(size=(5, 2)),
    "weights": RNG.normal(size=(2, 3)).astype(np.float32),
    "parents": np.array([-1, 0, 0, 1], dtype=np.int64),
    "sigma2": np.array(0.1),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "swapped": np.arange(3, dtype=">i4"),
    "ids": np.array(["OTU_1", "2538.1001130", "naïve \u2028 id", "nul\0byte", ""], dtype=object),
}
SETTINGS = {
    "n_components": 2,
    "pseudocount": 0.1,
    "tiny": 2.5e-308,
    "note": "σ² \ud800",
    "history": [{"epoch": 0, "loss": -1.5}, {"epoch": 1, "loss": None}],
    "whiten": False,
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "a model"
    store.save(path, ARRAYS, SETTINGS)
    return path


def seal(folder, **changes):
    """Alter the configuration as someone would who also recomputes its hash."""
    config = json.loads((folder / store.CONFIG).read_text()) | changes
    config["sha256"] = store._digest(config)
    (folder / store.CONFIG).write_text(json.dumps(config))


def replace_tensors(folder, content):
    """Put other bytes in place of the arrays, with the hash to match."""
    (folder / store.MODEL).write_bytes(content)
    seal(folder, model={"bytes": len(content), "sha256": store.hashlib.sha256(content).hexdigest()})


def refuses(folder, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        store.load(folder)
    assert "\n" not in str(caught.value)


def test_a_state_comes_back_bit_for_bit(folder):
    arrays, settings = store.load(folder)
    assert settings == SETTINGS
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype.newbyteorder("=")
        assert arrays[name].flags.writeable
        np.testing.assert_array_equal(arrays[name], array, strict=name != "swapped")


def test_fixed_width_strings_come_back_as_objects(tmp_path):
    store.save(tmp_path / "m", {"ids": np.array(["a", "bcd"])}, {})
    (ids,) = store.load(tmp_path / "m")[0].values()
    assert ids.dtype == object
    assert ids.tolist() == ["a", "bcd"]


def test_the_same_state_is_the_same_bytes(folder, tmp_path):
    store.save(tmp_path / "again", *store.load(folder))
    for name in (store.MODEL, store.CONFIG):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_extra_files_stand_beside_the_state(tmp_path):
    store.save(tmp_path / "m", {}, {}, extra_files={"run.json": lambda file: file.write_text("{}")})
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == sorted(
        [store.CONFIG, store.MODEL, "run.json"]
    )


def test_an_extra_file_that_is_missing_or_altered_is_noticed(tmp_path):
    def write(file):
        file.write_text("a")

    store.save(tmp_path / "m", {}, {}, extra_files={"a.tsv": write, "b.tsv": write})
    store.load(tmp_path / "m")
    (tmp_path / "m" / "b.tsv").write_text("b")
    refuses(tmp_path / "m", "b.tsv: does not match .*altered")
    (tmp_path / "m" / "b.tsv").unlink()
    refuses(tmp_path / "m", "b.tsv: is missing")


def test_a_file_outside_the_folder_is_never_looked_at(tmp_path):
    store.save(tmp_path / "m", {}, {})
    seal(tmp_path / "m", files={"../outside": "0"})
    refuses(tmp_path / "m", "config.json: lacks a part")


def test_an_extra_file_that_fails_leaves_nothing(tmp_path):
    def fail(file):
        file.write_text("half")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        store.save(tmp_path / "m", {}, {}, extra_files={"run.json": fail})
    assert list(tmp_path.iterdir()) == []


def test_an_extra_file_cannot_take_the_place_of_the_state(tmp_path):
    with pytest.raises(ValueError, match=re.escape("config.json")):
        store.save(tmp_path / "m", {}, {}, extra_files={store.CONFIG: print})
    assert not (tmp_path / "m").exists()


def test_a_folder_is_replaced_only_by_force(folder):
    with pytest.raises(InputError):
        store.save(folder, {}, {})
    assert store.load(folder)[1] == SETTINGS
    store.save(folder, {}, {}, force=True)
    assert store.load(folder) == ({}, {})


@pytest.mark.parametrize(
    ("arrays", "settings", "error", "sentence"),
    [
        ({"W": np.array([1.0, np.nan])}, {}, InputError, "NaN or infinity in 'W'"),
        ({"W": np.array([np.inf], dtype=np.float32)}, {}, InputError, "NaN or infinity in 'W'"),
        ({}, {"loss": float("nan")}, InputError, "settings: expected finite"),
        ({}, {"shape": (1, 2)}, TypeError, "plain JSON"),
        ({}, {"depths": {1: 2}}, TypeError, "plain JSON"),
        ({}, {"k": np.int64(3)}, TypeError, "not JSON serializable"),
        ({"z": np.zeros(2, dtype=complex)}, {}, TypeError, "complex128"),
        ({"ids": np.array(["a", None], dtype=object)}, {}, TypeError, "'ids' must be strings"),
        ({"ids": np.array([["a"]])}, {}, TypeError, "'ids' must be strings"),
    ],
)
def test_what_could_not_be_read_back_is_never_written(tmp_path, arrays, settings, error, sentence):
    with pytest.raises(error, match=sentence):
        store.save(tmp_path / "m", arrays, settings)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    refuses(tmp_path / "nowhere", "nowhere: .*no such folder")


@pytest.mark.parametrize("name", [store.CONFIG, store.MODEL])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refuses(folder, f"{re.escape(name)}: is missing")


@pytest.mark.parametrize("name", [store.CONFIG, store.MODEL])
def test_a_folder_in_a_file_s_place_is_refused(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refuses(folder, f"{re.escape(name)}: is missing")


@pytest.mark.parametrize("name", [store.CONFIG, store.MODEL])
def test_truncation_is_noticed(folder, name):
    content = (folder / name).read_bytes()
    for size in (0, 7, len(content) // 2, len(content) - 2):
        (folder / name).write_bytes(content[:size])
        refuses(folder, re.escape(name))


@pytest.mark.parametrize("name", [store.CONFIG, store.MODEL])
def test_every_altered_byte_is_noticed(folder, name):
    content = (folder / name).read_bytes()
    for position in range(0, len(content), 7):
        altered = bytearray(content)
        altered[position] ^= 1
        (folder / name).write_bytes(altered)
        refuses(folder, re.escape(name))


def test_changed_settings_are_noticed(folder):
    text = (folder / store.CONFIG).read_text()
    (folder / store.CONFIG).write_text(text.replace('"n_components": 2', '"n_components": 3'))
    refuses(folder, "config.json: .*altered")


def test_a_newer_schema_asks_to_upgrade(folder):
    seal(folder, schema_version=store.SCHEMA_VERSION + 1)
    refuses(folder, "upgrade countvae")


@pytest.mark.parametrize("schema", [None, 0, True, "1", [1]])
def test_a_schema_that_never_was_is_foreign(folder, schema):
    seal(folder, schema_version=schema)
    refuses(folder, "no schema version")


@pytest.mark.parametrize(
    "text",
    ["", "not JSON", "[" * 100_000, "9" * 10_000, '{"schema_version": 1} trailing'],
    ids=["empty", "text", "deep", "long number", "trailing"],
)
def test_what_is_not_json_is_foreign(folder, text):
    (folder / store.CONFIG).write_text(text)
    refuses(folder, "config.json: is not JSON")


@pytest.mark.parametrize("text", ["[]", "{}", "null", '"schema_version"'])
def test_json_of_something_else_is_foreign(folder, text):
    (folder / store.CONFIG).write_text(text)
    refuses(folder, "not a model's")


def test_bytes_that_are_not_text_are_foreign(folder):
    (folder / store.CONFIG).write_bytes(b"\x80\x04\x95\xff")
    refuses(folder, "config.json: is not JSON")


def test_an_enormous_configuration_is_refused_unread(folder, monkeypatch):
    monkeypatch.setattr(store, "_read", lambda file: pytest.fail("was read"))
    monkeypatch.setattr(store, "MAX_CONFIG_BYTES", 100)
    refuses(folder, "too large")


def test_nan_in_the_configuration_is_refused(folder):
    text = (folder / store.CONFIG).read_text()
    (folder / store.CONFIG).write_text(text.replace('"pseudocount": 0.1', '"pseudocount": NaN'))
    refuses(folder, "config.json: .*altered")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": {}},
        {"model": {"bytes": 1}},
        {"arrays": []},
        {"arrays": {"V": None}},
        {"arrays": {"V": {"dtype": "float64"}}},
        {"settings": [1]},
    ],
)
def test_a_configuration_without_a_part_is_refused(folder, changes):
    seal(folder, **changes)
    refuses(folder, "config.json: lacks a part")


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_names_that_are_no_files_of_the_folder_are_refused(folder, name):
    seal(folder, files={name: "0" * 64})
    with pytest.raises(InputError):
        store.load(folder)
    assert not store.is_model(folder)


def test_a_name_that_no_disk_has_is_refused(folder):
    seal(folder, files={"a" * 5000: "0" * 64})
    refuses(folder, "cannot be read")


def test_a_state_that_memory_would_not_hold_is_not_read(folder, monkeypatch):
    monkeypatch.setattr("countvae.memory.available_bytes", lambda: 100)
    with pytest.raises(TooLarge, match="reading it takes"):
        store.load(folder)


def test_arrays_that_are_not_described_are_refused(folder):
    replace_tensors(folder, safetensors.numpy.save({"V": ARRAYS["V"]}))
    refuses(folder, "is not in both")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (np.zeros((2, 5)), r"expected 'V' to be float64 of shape \[5, 2\]; got float64 of shape"),
        (np.zeros((5, 2), dtype=np.float32), "expected 'V' to be float64"),
        (np.full((5, 2), np.inf), "expected finite values; got NaN or infinity in 'V'"),
    ],
    ids=["shape", "dtype", "infinite"],
)
def test_another_array_under_the_same_name_is_refused(tmp_path, changed, sentence):
    store.save(tmp_path / "m", {"V": ARRAYS["V"]}, {})
    replace_tensors(tmp_path / "m", safetensors.numpy.save({"V": changed}))
    refuses(tmp_path / "m", sentence)


@pytest.mark.parametrize("content", [b"[1]", b'"ab"', b"{}", b"\xff", b"[" * 100_000])
def test_strings_that_are_not_a_list_of_strings_are_refused(tmp_path, content):
    store.save(tmp_path / "m", {"ids": np.array(["a"])}, {})
    stored = {"ids": np.frombuffer(content, dtype=np.uint8)}
    replace_tensors(tmp_path / "m", safetensors.numpy.save(stored))
    refuses(tmp_path / "m", "'ids' is not a list of strings")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95 a pickle",
        (2**62).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"{not json}",
        safetensors.numpy.save({"V": ARRAYS["V"]})[:-8],
    ],
    ids=["empty", "pickle", "header of 4 EiB", "header not JSON", "data cut"],
)
def test_a_foreign_file_with_the_right_hash_is_refused(folder, content):
    replace_tensors(folder, content)
    refuses(folder, "is not a safetensors file")


def test_a_model_folder_holds_no_pickle(folder):
    assert {file.name for file in folder.iterdir()} == {store.CONFIG, store.MODEL}
    json.loads((folder / store.CONFIG).read_text())
    safetensors.numpy.load_file(folder / store.MODEL)


def test_a_moved_folder_is_still_the_model(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert store.load(tmp_path / "elsewhere")[1] == SETTINGS


def test_a_reader_finds_the_old_state_or_the_new_one_whole(tmp_path):
    place, stop, seen = tmp_path / "state", threading.Event(), set()

    def replace_again_and_again():
        for i in range(1, 150):
            store.save(place, {"a": np.full(50, float(i))}, {"i": i}, force=True)
        stop.set()

    store.save(place, {"a": np.zeros(50)}, {"i": 0})
    writer = threading.Thread(target=replace_again_and_again)
    writer.start()
    while not stop.is_set():
        arrays, settings = store.load(place)
        assert set(arrays["a"]) == {settings["i"]}
        seen.add(settings["i"])
    writer.join()
    assert len(seen) > 1
