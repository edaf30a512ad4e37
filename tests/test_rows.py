"""Minibatches: every row once, dense, with its own number."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from countvae.rows import Rows


def table(n, d=3):
    return np.random.default_rng(n).poisson(1.0, (n, d)) + np.arange(n)[:, None]


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40))
def test_rows_in_order_are_the_table_whatever_the_batch(n, batch_size):
    batches = list(Rows(csr_array(table(n)), batch_size).in_order())
    assert torch.equal(torch.cat(batches), torch.tensor(table(n)).float())
    assert max(map(len, batches)) <= batch_size


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_shuffled_rows_come_once_each_with_their_numbers(n, batch_size, seed):
    rows, seen = Rows(csr_array(table(n)), batch_size), []
    for index, x, _, size in rows.shuffled(torch.Generator().manual_seed(seed)):
        assert torch.equal(x, torch.tensor(table(n))[index].float())
        assert size == len(index)
        seen += index.tolist()
    assert sorted(seen) == list(range(n))


def test_the_order_comes_from_the_generator_and_moves_on_with_it():
    rows = Rows(csr_array(table(20)), 20)

    def order(generator):
        return next(rows.shuffled(generator))[0].tolist()

    one, same = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    first = order(one)
    assert first == order(same)
    assert first != order(one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_have_the_dtype_asked_for_and_leave_the_table_alone(dtype):
    counts = csr_array(table(4).astype(float))
    rows = Rows(counts, 2, dtype=dtype)
    for x in rows.in_order():
        assert x.dtype == dtype
        x += 1
    rows[torch.tensor([0])].add_(1)
    np.testing.assert_array_equal(counts.toarray(), table(4))
    assert (rows.n, rows.d) == (4, 3)


def test_chosen_rows_come_in_the_order_chosen():
    rows = Rows(csr_array(table(6)), 2)
    assert torch.equal(rows[torch.tensor([4, 0, 4])], torch.tensor(table(6)[[4, 0, 4]]).float())
