"""Every error has a cause, a cure, a place on the page, and a provocation here."""

import ast
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

from countvae import ConvMultinomialVAE, MultinomialVAE, errors
from countvae.basis import make_basis, sequential
from countvae.checks import check_ids
from countvae.cli import main
from countvae.design import Design
from countvae.devices import chosen
from countvae.files import check_writable, claimed, new_file
from countvae.processes import Processes
from countvae.store import load, save
from countvae.stream import CountFile
from countvae.table import CountTable, read, write

ROOT = Path(__file__).parents[1]
KINDS = [kind for kind in vars(errors).values() if hasattr(kind, "cure")]
X = np.random.default_rng(0).poisson(20, (12, 5))


def named(counts):
    ids = [np.array([f"{axis}{i}" for i in range(size)], object)
           for axis, size in zip("sf", counts.shape, strict=True)]  # fmt: skip
    return CountTable(csr_array(counts), *ids)


def left_by_a_fit(folder):
    """Leave the state of a fit that was broken off."""

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MultinomialVAE(2, max_epochs=2, checkpoint=folder, progress=stop).fit(X)


def newer(folder):
    save(folder / "m", {}, {})
    config = folder / "m" / "config.json"
    config.write_text(re.sub(r'"schema_version": \d+', '"schema_version": 99', config.read_text()))
    load(folder / "m")


def older(folder):
    samples, features = (np.array([f"{a}{i}" for i in range(6)], dtype=object) for a in "sf")
    counts = csr_array(np.random.default_rng(0).poisson(5.0, (6, 6)).astype(float))
    table = CountTable(counts, samples, features, pd.DataFrame({"age": range(6)}, samples))
    ConvMultinomialVAE(
        1, grid=(3, 2), decoder="linear", formula="~ age", max_epochs=1, encoder_width=2
    ).fit(table).save(folder / "m")
    arrays, settings = load(folder / "m")
    del arrays["encoder.A_f"]
    save(folder / "older", arrays, settings)
    MultinomialVAE.load(folder / "older")


def altered(folder):
    save(folder / "m", {"a": np.arange(3.0)}, {})
    with (folder / "m" / "model.safetensors").open("r+b") as file:
        file.truncate(10)
    load(folder / "m")


def not_streamable(folder):
    write(named(X), folder / "t.tsv")
    CountFile(folder / "t.tsv")


def cut(folder):
    write(named(X), folder / "t.h5ad")
    with (folder / "t.h5ad").open("r+b") as file:
        file.truncate(3000)
    read(folder / "t.h5ad")


def layer(folder):
    write(named(X), folder / "t.h5ad")
    read(folder / "t.h5ad", layer="spliced")


def foreign(folder):
    (folder / "t.biom").write_bytes(b"PK\x03\x04 an archive")
    read(folder / "t.biom")


def exists(folder):
    (folder / "t").write_text("mine")
    check_writable(folder / "t", force=False)


def unfinished(folder):
    write(named(X), folder / "t.h5ad")
    left_by_a_fit(folder / "m.checkpoint")
    main.commands["fit"].main(
        [str(folder / "t.h5ad"), "-o", str(folder / "m")], standalone_mode=False
    )


def checkpoint_of_another(folder):
    left_by_a_fit(folder / "c")
    MultinomialVAE(3, max_epochs=2, checkpoint=folder / "c").fit(X)


def in_use(folder):
    with claimed(folder / "m"), claimed(folder / "m"):
        pass


def not_replaced(folder):
    (folder / "d").mkdir()
    with new_file(folder / "d", force=True):
        pass


def diverged(folder):
    with pytest.warns(errors.CountvaeWarning, match="trying again"):
        MultinomialVAE(2, max_epochs=3, optimizer="sgd", learning_rate=1e30).fit(X)


def process_lost(folder):
    def unreachable(part):
        raise RuntimeError("connection closed by peer")

    Processes(2)._each(unreachable, (torch.zeros(1),))


def missing_package(folder, patch):
    patch.setitem(__import__("sys").modules, "formulaic", None)
    Design.of("~ site", pd.DataFrame({"site": ["a", "b"]}))


def no_permission(folder, patch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (folder / "t.tsv").write_text("id\ta\n")
    patch.setattr("builtins.open", refuse)
    read(folder / "t.tsv")


PROVOCATIONS = {
    errors.NotCounts: lambda folder: MultinomialVAE(2).fit(-X),
    errors.EmptySamples: lambda folder: named(0 * X).without_empty(),
    errors.TooSmall: lambda folder: named(X).filter(min_sample_count=10**6),
    errors.TooLarge: lambda folder: sequential([*"abcd"]).to_sparse(max_bytes=10),
    errors.RepeatedIds: lambda folder: make_basis("balanced", ["a", "a", "b"]),
    errors.UnsafeIds: lambda folder: check_ids(np.array(["a\tb"]), "sample ids"),
    errors.Misfit: lambda folder: replace(named(X), sample_metadata=pd.DataFrame(index=[*"ab"])),
    errors.FeaturesDiffer: lambda folder: named(X).align_features(np.array(["x", "y"])),
    errors.NoSuchFile: lambda folder: read(folder / "none.biom"),
    errors.CannotRead: no_permission,
    errors.ForeignFile: foreign,
    errors.DamagedFile: cut,
    errors.NoSuchLayer: layer,
    errors.NotStreamable: not_streamable,
    errors.MetadataError: lambda folder: MultinomialVAE(2, formula="~ age").fit(named(X)),
    errors.FormulaError: lambda folder: Design.of("~ (", None),
    errors.BasisError: lambda folder: make_basis("no-such-tree.nwk", ["a", "b"]),
    errors.ArgumentError: lambda folder: MultinomialVAE(0).fit(X),
    errors.MissingPackage: missing_package,
    errors.NoSuchDevice: lambda folder: chosen("mps"),
    errors.OutputExists: exists,
    errors.CannotWrite: lambda folder: check_writable(folder / "none" / "t", force=False),
    errors.NotReplaced: not_replaced,
    errors.InUse: in_use,
    errors.NotAModel: lambda folder: MultinomialVAE.load(folder),
    errors.DamagedModel: altered,
    errors.NewerModel: newer,
    errors.OlderModel: older,
    errors.Unfinished: unfinished,
    errors.CheckpointOfAnother: checkpoint_of_another,
    errors.Diverged: diverged,
    errors.ProcessLost: process_lost,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_error_can_be_provoked_and_says_one_sentence(kind, tmp_path, monkeypatch):
    provoke = PROVOCATIONS[kind]
    more = (monkeypatch,) if provoke in (missing_package, no_permission) else ()
    with pytest.raises(kind) as found:
        provoke(tmp_path, *more)
    assert type(found.value) is kind
    sentence = str(found.value)
    assert sentence.endswith(".") and "\n" not in sentence


def test_each_error_has_a_cause_and_a_cure():
    assert set(KINDS) == set(PROVOCATIONS)
    for kind in KINDS:
        assert kind.__doc__.endswith(".") and kind.cure.endswith(".")
        assert kind.__name__ in errors.__all__


def test_no_error_is_raised_that_has_no_entry():
    for file in (ROOT / "countvae").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                assert call.func.id not in {"InputError", "Exception", "RuntimeError"}, file.name


def test_the_page_of_errors_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("make_errors", ROOT / "docs" / "make_errors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == module.page()
