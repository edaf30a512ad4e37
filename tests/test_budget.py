"""Memory: what a fit is said to take, what there is, and a fit that must not take more."""

import subprocess
import sys

import numpy as np
import pytest

import countvae.estimator
from countvae import MultinomialVAE, budget
from countvae.budget import available_bytes, fit_bytes
from countvae.checks import InputError

SIZE = {"batch_size": 128, "width": 128, "nnz": 10**6, "streamed": True}
CAPPED = """
import resource, sys
import numpy as np, scipy.sparse as sp
import torch, torch._dynamo
from countvae import MultinomialVAE

torch.set_num_threads(1)
rng = np.random.default_rng(0)
n, d, each = 300, 250_000, 400
columns = np.concatenate([rng.choice(d, each, replace=False) for _ in range(n)])
counts = sp.csr_array(
    (rng.poisson(3.0, n * each) + 1.0, columns, np.arange(n + 1) * each), shape=(n, d)
)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]) * 2**20,) * 2)
model = MultinomialVAE(4, max_epochs=2, encoder_width=16).fit(counts)
assert np.isfinite(model.transform(counts[:3])).all()
"""


def test_the_estimate_grows_with_every_size():
    least = fit_bytes(1000, 1000, 10, **SIZE)
    for more in ((1000, 2000, 10), (1000, 1000, 20)):
        assert fit_bytes(*more, **SIZE) > least
    for name, value in (("batch_size", 256), ("width", 256), ("nnz", 10**7)):
        assert fit_bytes(1000, 1000, 10, **SIZE | {name: value}) > least
    assert fit_bytes(1000, 1000, 10, **SIZE | {"streamed": False}) < least


def test_a_fit_that_would_not_fit_is_refused_before_it_starts(monkeypatch):
    X = np.random.default_rng(0).poisson(3.0, (30, 8))
    monkeypatch.setattr(countvae.estimator, "available_bytes", lambda: 2**20)
    with pytest.raises(InputError, match=r"takes about 0\.\d GiB of memory .* 0\.0 are free"):
        MultinomialVAE(2).fit(X)
    monkeypatch.setattr(countvae.estimator, "available_bytes", lambda: None)
    MultinomialVAE(2, max_epochs=1).fit(X)


def test_the_least_of_what_is_free_counts(monkeypatch):
    for name, value in (("_free", 5), ("_left_by_control_group", None), ("_left_by_limit", 3)):
        monkeypatch.setattr(budget, name, lambda value=value: value)
    assert available_bytes() == 3
    monkeypatch.setattr(budget, "_lines", lambda path: [])
    monkeypatch.undo()
    assert available_bytes() is None or available_bytes() > 2**20


def test_a_table_of_a_quarter_million_features_is_fitted_under_a_hard_cap_of_memory():
    """Dense it would take 600 MB as counts, and 500 GB as a covariance."""
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, "1500"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    short = subprocess.run(
        [sys.executable, "-c", CAPPED, "500"], capture_output=True, text=True, timeout=300
    )
    assert "of which 0." in short.stderr and "are free" in short.stderr, short.stderr[-2000:]
