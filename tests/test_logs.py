"""Products with the encoder's input, sparse and dense, in parts and whole."""

import numpy as np
import pytest
import torch

from countvae import logs
from countvae.logs import Logs, centred_logs


def batch(b=9, d=40, nonzero=0.1, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.random((b, d)) < nonzero) * rng.integers(1, 1000, (b, d))
    x[0] = 0
    centre = torch.from_numpy(rng.normal(size=d)).float()
    return torch.from_numpy(x).float(), centre, torch.from_numpy(rng.normal(size=(d, 5))).float()


@pytest.mark.parametrize("pseudocount", [1e-9, 0.5, 1.0, 1e9])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("nonzero", [0.1, 0.9])
def test_products_and_gradients_are_those_of_plain_arithmetic(
    monkeypatch, pseudocount, threads, nonzero
):
    monkeypatch.setattr(logs, "worth", lambda *given: threads)
    x, centre, W = batch(nonzero=nonzero)
    inputs = Logs(x, pseudocount, centre)
    assert isinstance(inputs.parts, logs._Sparse if nonzero < 0.15 else logs._Dense)
    plain = centred_logs(x.double(), pseudocount, centre.double())
    upstream = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    mine, theirs = W.clone().requires_grad_(), W.double().requires_grad_()
    out, expected = inputs @ mine, plain @ theirs
    out.backward(upstream)
    expected.backward(upstream.double())
    scale = plain.abs().max().item()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5 * scale)


def is_sparse(x, centre):
    return isinstance(Logs(x, 1.0, centre).parts, logs._Sparse)


def test_a_table_without_zeros_or_in_double_is_left_to_dense_arithmetic(monkeypatch):
    x, centre, _ = batch()
    assert is_sparse(x, centre)
    assert not is_sparse(x + 1, centre)
    assert not is_sparse(x.double(), centre.double())
    monkeypatch.setattr(logs, "kernel", None)
    assert not is_sparse(x, centre)


@pytest.mark.parametrize("last", [False, True])
def test_the_share_of_non_zeros_in_the_whole_batch_decides(monkeypatch, last):
    monkeypatch.setattr(logs, "worth", lambda *given: 2)
    _, centre, _ = batch(10, 40)
    for nonzeros, sparse in ((59, True), (61, False)):
        column_by_column = torch.zeros(400)
        column_by_column[:nonzeros] = 3.0
        if last:
            column_by_column = column_by_column.flip(0)
        x = column_by_column.reshape(40, 10).T
        assert is_sparse(x, centre) == sparse
