"""Sparse products with the encoder's input against dense ones."""

import numpy as np
import pytest
import torch

from countvae import sparse_logs
from countvae.encoder import centred_logs
from countvae.sparse_logs import SparseLogs


def batch(b=9, d=40, nonzero=0.1, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.random((b, d)) < nonzero) * rng.integers(1, 1000, (b, d))
    x[0] = 0
    centre = torch.from_numpy(rng.normal(size=d)).float()
    return torch.from_numpy(x).float(), centre, torch.from_numpy(rng.normal(size=(d, 5))).float()


@pytest.mark.parametrize("pseudocount", [1e-9, 0.5, 1.0, 1e9])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_products_and_gradients_are_those_of_the_dense_logs(monkeypatch, pseudocount, threads):
    monkeypatch.setattr(sparse_logs, "WORTH_THREADS", 1)
    monkeypatch.setattr(sparse_logs, "available", lambda: threads)
    x, centre, W = batch()
    sparse = SparseLogs.of(x, pseudocount, centre)
    assert sparse is not None
    dense = centred_logs(x.double(), pseudocount, centre.double())
    upstream = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    mine, theirs = W.clone().requires_grad_(), W.double().requires_grad_()
    out, expected = sparse @ mine, dense @ theirs
    out.backward(upstream)
    expected.backward(upstream.double())
    scale = dense.abs().max().item()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5 * scale)


def test_a_table_without_zeros_or_in_double_is_left_to_dense_arithmetic(monkeypatch):
    x, centre, _ = batch()
    assert SparseLogs.of(x, 1.0, centre) is not None
    assert SparseLogs.of(x + 1, 1.0, centre) is None
    assert SparseLogs.of(x.double(), 1.0, centre.double()) is None
    monkeypatch.setattr(sparse_logs, "kernel", None)
    assert SparseLogs.of(x, 1.0, centre) is None


def test_the_share_of_non_zeros_decides():
    x, centre, _ = batch(10, 40)
    for nonzeros, sparse in ((59, True), (61, False)):
        x[:] = 0
        x.view(-1)[:nonzeros] = 3.0
        assert (SparseLogs.of(x, 1.0, centre) is not None) == sparse
