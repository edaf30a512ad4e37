"""Devices by name, tables on them, and fits on a GPU against the processor's."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from countvae import ConvMultinomialVAE, MultinomialVAE, devices, evidence
from countvae.errors import InputError
from countvae.estimator import Samples
from countvae.metrics import subspace_error
from countvae.rows import Rows, _OnDevice
from countvae.simulate import simulate
from countvae.table import CountTable

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def table(n=200, d=60, seed=0):
    return simulate(n, d, 3, 2000, rng=np.random.default_rng(seed)).counts


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_a_cuda_device_where_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert devices.chosen("auto").type == ("cuda" if there else "cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"device: there is no '{name}' device"):
        MultinomialVAE(2, device=name).fit("no such file")


def test_double_precision_is_refused_where_a_device_has_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(InputError, match="dtype: 'mps' devices have no double precision"):
        MultinomialVAE(2, device="mps", dtype="float64").fit(table())


@pytest.mark.parametrize("chosen", [[], [3], [7, 0, 7, 2], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]])
def test_rows_picked_on_a_device_are_those_of_the_table(chosen):
    dense = np.random.default_rng(0).poisson(0.5, (10, 7)).astype(float)
    dense[[2, 9]] = 0
    X = sp.csr_array(dense)
    there = _OnDevice.of(X, torch.float64, torch.device("cpu"))
    rows = np.array(chosen, dtype=np.int64)
    np.testing.assert_array_equal(there[rows].toarray().numpy(), X.toarray()[rows])


class NoDoubles(TorchDispatchMode):
    """Refuses every operation whose answer is in double precision, as Apple's devices do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else [out]:
            assert not (isinstance(part, torch.Tensor) and part.dtype == torch.float64), func
        return out


def test_a_fit_needs_no_doubles_where_there_are_none(monkeypatch):
    monkeypatch.setattr(evidence, "kernel", None)
    for room in ("evidence", "moments", "training"):
        monkeypatch.setattr(f"countvae.{room}.widest", lambda device: torch.float32)
    X = table()
    model = MultinomialVAE(3, max_epochs=3)
    model._check_settings()
    model.depth_, model.n_features_in_ = X.sum(axis=1), X.shape[1]
    parts = [
        Samples(some, np.empty((some.shape[0], 0)), np.arange(some.shape[0]))
        for some in (X, X[:40])
    ]
    with NoDoubles():
        _, decoder, history, _ = model._fit_from_start(*parts, 3, 0)
    monkeypatch.undo()
    _, usual, expected, _ = model._fit_from_start(*parts, 3, 0)
    assert history[-1]["bound"] == pytest.approx(expected[-1]["bound"], abs=0.1)
    assert subspace_error(usual.V.detach().numpy(), decoder.V.detach().numpy()) < 1e-4


@pytest.mark.parametrize("settings", [{}, {"noise": "by_feature"}])
def test_signs_that_a_library_gives_to_eigenvectors_change_nothing(monkeypatch, settings):
    X, eigh = table(), torch.linalg.eigh
    usual = MultinomialVAE(3, device="cpu", **settings).fit(X)

    def flipped(matrix):
        values, vectors = eigh(matrix)
        return values, vectors * torch.tensor([1.0, -1.0]).repeat(len(values))[: len(values)]

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    other = MultinomialVAE(3, device="cpu", **settings).fit(X)
    np.testing.assert_allclose(other.components_, usual.components_, atol=1e-6)


def test_a_fit_in_double_precision_finds_what_one_in_single_finds():
    X = table()
    single, double = (MultinomialVAE(3, dtype=dtype).fit(X) for dtype in ("float32", "float64"))
    assert single.score(X) == pytest.approx(double.score(X), abs=0.05)
    assert subspace_error(single.components_.T, double.components_.T) < 1e-3


@on_gpu
@pytest.mark.parametrize("settings", [{}, {"noise": "by_feature"}, {"dtype": "float64"}])
@pytest.mark.parametrize("d", [60, 3000])
def test_a_fit_on_a_gpu_is_that_of_the_processor(settings, d):
    X = table(400, d)
    there, here = (MultinomialVAE(3, device=name, **settings).fit(X) for name in ("cuda", "cpu"))
    assert there.score(X) == pytest.approx(here.score(X), abs=0.1)
    assert subspace_error(there.components_.T, here.components_.T) < 1e-3


@on_gpu
def test_effects_of_covariates_on_a_gpu_are_those_of_the_processor():
    X = table(400, 60)
    samples, features = (
        np.array([f"{axis}{i}" for i in range(m)]) for axis, m in (("s", 400), ("f", 60))
    )
    known = pd.DataFrame({"age": np.random.default_rng(1).normal(size=400)})
    given = CountTable(X, samples, features, known.set_index(samples))
    there, here = (
        MultinomialVAE(3, formula="~ age", device=name).fit(given) for name in ("cuda", "cpu")
    )
    assert there.score(given) == pytest.approx(here.score(given), abs=0.1)
    np.testing.assert_allclose(there.coefficients_, here.coefficients_, atol=0.02)


@on_gpu
@pytest.mark.parametrize("decoder", ["linear", "network"])
def test_a_convolutional_fit_on_a_gpu_is_that_of_the_processor(decoder):
    X, settings = table(400, 60), {"grid": (10, 6), "decoder": decoder, "encoder_width": 8}
    there, here = (
        ConvMultinomialVAE(3, device=name, **settings).fit(X) for name in ("cuda", "cpu")
    )
    assert there.score(X) == pytest.approx(here.score(X), abs=0.5)
    there.device = "cpu"
    answers = there.transform(X)
    np.testing.assert_allclose(there.set_params(device="cuda").transform(X), answers, atol=1e-4)


@on_gpu
def test_answers_on_a_gpu_are_those_of_the_processor(tmp_path):
    X = table()
    model = MultinomialVAE(3, device="cuda").fit(X)
    model.save(tmp_path / "model")
    there, here = (MultinomialVAE.load(tmp_path / "model") for _ in range(2))
    here.device = "cpu"
    np.testing.assert_allclose(there.posterior(X), here.posterior(X), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(there.score_samples(X), here.score_samples(X), rtol=1e-9)
    np.testing.assert_allclose(there.amortization_gap(X), here.amortization_gap(X), atol=1e-5)


@on_gpu
@pytest.mark.parametrize("fits", [True, False])
def test_a_table_goes_to_the_gpu_whole_or_by_batches(monkeypatch, fits):
    monkeypatch.setattr("countvae.rows.free_bytes", lambda device: 2**40 if fits else 1)
    X = table()
    rows = Rows(X, 32, device="cuda")
    assert (rows._there is not None) == fits
    for index, x, _, _ in rows.shuffled(torch.Generator().manual_seed(0)):
        assert x.device.type == "cuda"
        np.testing.assert_array_equal(x.cpu().numpy(), X[index.numpy()].toarray())


@on_gpu
def test_a_fit_on_a_gpu_that_was_broken_off_goes_on(tmp_path):
    X = table()
    broken = MultinomialVAE(3, device="cuda", checkpoint=tmp_path / "state")

    def stop(row):
        if row["epoch"] == 20:
            raise KeyboardInterrupt

    broken.progress = stop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("countvae.checkpoint.SECONDS_BETWEEN", 0.0)
        with pytest.raises(KeyboardInterrupt):
            broken.fit(X)
        broken.progress = None
        resumed = broken.fit(X)
    whole = MultinomialVAE(3, device="cuda").fit(X)
    assert resumed.score(X) == pytest.approx(whole.score(X), abs=0.05)
