"""Memory: what a fit is said to take, what there is, and a fit that must not take more."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

from countvae import MultinomialVAE, memory
from countvae.budget import fit_needs
from countvae.errors import InputError
from countvae.estimator import Samples
from countvae.memory import available_bytes
from countvae.table import CountTable, write

SIZE = {"batch_size": 128, "layers": 10**5, "nnz": 10**6, "streamed": True}
CAPPED = """
import resource, sys, warnings
import numpy as np, scipy.sparse as sp
import torch, torch._dynamo
from countvae import MultinomialVAE

torch.set_num_threads(1)
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
n, d, each = 700, 250_000, 400
columns = np.concatenate([rng.choice(d, each, replace=False) for _ in range(n)])
counts = sp.csr_array(
    (rng.poisson(3.0, n * each) + 1.0, columns, np.arange(n + 1) * each), shape=(n, d)
)
MultinomialVAE(1, max_epochs=1).fit(counts[:20, :500]).transform(counts[:2, :500])  # compiles
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]) * 2**20,) * 2)
model = MultinomialVAE(4, max_epochs=1, encoder_width=8, batch_size=8).fit(counts)
assert np.isfinite(model.transform(counts[:3])).all()
"""

MEASURED = """
import sys, warnings
from pathlib import Path
import numpy as np, pandas as pd, scipy.sparse as sp
import torch, torch._dynamo
from countvae import MultinomialVAE
from countvae.stream import CountFile
from countvae.table import CountTable, write

warnings.simplefilter("ignore")

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

kind, path = sys.argv[1:]
n, d, share = {
    "covariates": (300, 40_000, 0.01),
    "filtered": (4100, 10_000, 0.5), "streamed": (4100, 10_000, 0.5),
}[kind]
rng = np.random.default_rng(0)
columns = [np.flatnonzero(rng.random(d) < share * np.linspace(0.2, 1.8, d)) for _ in range(n)]
ends = np.cumsum([0, *map(len, columns)])
counts = sp.csr_array(
    (rng.poisson(3.0, ends[-1]) + 1, np.concatenate(columns).astype(np.int32), ends), shape=(n, d)
)
names = (np.array([f"{axis}{i}" for i in range(m)]) for axis, m in zip("sf", counts.shape))
samples, features = names
known = pd.DataFrame({"site": [f"level {i % 200}" for i in range(n)]}, index=samples)
table = CountTable(counts, samples, features, known)
MultinomialVAE(1, max_epochs=1).fit(counts[:20, :500]).transform(counts[:2, :500])  # compiles
if kind in ("filtered", "streamed"):
    write(table, path)
    del table, counts, columns
    table = CountFile(path)
if kind == "filtered":
    table = table.filter(min_feature_count=n * 2)
of_kind = {"formula": "~ site", "encoder_depth": 1} if kind == "covariates" else {}
model = MultinomialVAE(2, max_epochs=1, **of_kind)
estimate = model.estimate_memory(table)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = resident("VmRSS")
model.fit(table)
print(estimate, resident("VmHWM") - before)
"""


def test_the_estimate_grows_with_every_size():
    def total(*size, **settings):
        return sum(fit_needs(*size, **SIZE | settings))

    least = total(1000, 1000, 10)
    for more in ((1000, 2000, 10), (1000, 1000, 20)):
        assert total(*more) > least
    for name, value in (("batch_size", 256), ("layers", 10**6), ("nnz", 10**7), ("itemsize", 8)):
        assert total(1000, 1000, 10, **{name: value}) > least
    assert total(1000, 1000, 10, streamed=False) < least
    assert total(1000, 1000, 10, checkpoint=True) > least
    assert total(10**6, 1000, 10) >= least + 4 * 8 * 10 * (10**6 - 1000)
    cast, held = (total(1000, 1000, 10, streamed=False, cast=cast) for cast in (True, False))
    assert cast == held + 8 * 10**6
    assert total(1000, 1000, 10, covariates=5) > least
    many = {"nnz": 10**9, "batch_size": 10**4}
    assert total(10**5, 1000, 10, **many) > total(10**5, 1000, 10, **many | {"nnz": 5 * 10**8})


def test_the_estimate_takes_what_a_fit_takes(tmp_path):
    counts = csr_array(np.random.default_rng(0).poisson(2.0, (30, 12)).astype(float))
    samples, features = (
        np.array([f"{axis}{i}" for i in range(m)]) for axis, m in (("s", 30), ("f", 12))
    )
    known = pd.DataFrame({"site": ["a", "b", "c"] * 10}, index=samples)
    table = CountTable(counts, samples, features, known)
    write(table, tmp_path / "t.h5ad")
    plain = MultinomialVAE(2)
    assert plain.estimate_memory(table) == plain.estimate_memory(counts)
    assert plain.estimate_memory(tmp_path / "t.h5ad") > 0
    assert MultinomialVAE(2, formula="~ site").estimate_memory(table) > plain.estimate_memory(table)
    with pytest.raises(InputError, match="X: expected a table; got dict"):
        plain.estimate_memory({})


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs a process's peak")
@pytest.mark.parametrize("kind", ["covariates", "filtered", "streamed"])
def test_a_fit_takes_no_more_than_estimated(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, kind, str(tmp_path / "t.h5ad")],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    estimate, peak = map(int, done.stdout.split()[-2:])
    assert peak <= estimate, f"{peak >> 20} MiB, {estimate >> 20} expected"


def test_each_of_several_processes_has_its_share_of_the_batch_and_all_of_the_gradients():
    wide, narrow = SIZE | {"batch_size": 4096}, SIZE | {"batch_size": 1}
    size = (10**4, 1000, 10)
    assert fit_needs(*size, **wide, processes=4).steps < fit_needs(*size, **wide).steps
    assert fit_needs(*size, **narrow, processes=4).steps > fit_needs(*size, **narrow).steps


def test_what_goes_to_an_accelerator_is_checked_against_its_memory(monkeypatch):
    """Steps and, unless it stays here, the table; the rest against the memory of this machine."""
    X = csr_array(np.random.default_rng(0).poisson(3.0, (300, 8)).astype(float))
    table = X.nnz * (4 + 8)
    model = MultinomialVAE(2)
    monkeypatch.setattr("countvae.estimator.chosen", lambda name: torch.device("cuda"))
    needs = model._needs(X, covariates=0)
    assert needs.steps > fit_needs(300, 8, 2, **SIZE | {"batch_size": 1, "layers": 1024}).steps

    def check(there, here=2**40):
        monkeypatch.setattr("countvae.estimator.free_bytes", lambda device: there)
        monkeypatch.setattr(memory, "available_bytes", lambda: here)
        model._check_memory(Samples(X, np.empty((300, 0)), np.arange(300)), 2)

    check(needs.steps + table)
    with pytest.raises(InputError, match="on 'cuda' takes"):
        check(needs.steps + table - 1)
    check(2**40, needs.rest)
    with pytest.raises(InputError, match="2 factors takes"):
        check(2**40, needs.rest - 1)


def test_a_fit_that_would_not_fit_is_refused_before_it_starts(monkeypatch):
    X = np.random.default_rng(0).poisson(3.0, (30, 8))
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**20)
    with pytest.raises(InputError, match=r"30 samples × 8 .* takes 0\.\d GiB .* 0\.0 are free"):
        MultinomialVAE(2).fit(X)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    MultinomialVAE(2, max_epochs=1).fit(X)


def test_the_least_of_what_is_free_counts(monkeypatch):
    for name, value in (("_free", 5), ("_left_by_control_groups", None), ("_left_by_limit", 3)):
        monkeypatch.setattr(memory, name, lambda value=value: value)
    assert available_bytes() == 3
    monkeypatch.undo()
    monkeypatch.setattr(memory, "_lines", lambda path: [])
    assert available_bytes() is None


@pytest.mark.parametrize(
    ("group", "root", "names"),
    [
        ("0::/a/b", "/sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/a/b",
            "/sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_every_level_of_control_groups_counts_and_cached_files_do_not(
    monkeypatch, group, root, names
):
    most, used, cached = names
    files = {
        "/proc/self/cgroup": [group, "9:cpuset:/elsewhere"],
        f"{root}/a/b/{most}": ["1000"],
        f"{root}/a/b/{used}": ["300"],
        f"{root}/a/{most}": ["800"],
        f"{root}/a/{used}": ["700"],
        f"{root}/a/memory.stat": ["anon 400", f"{cached} 250", "active_file 50"],
        f"{root}/./{most}": ["max"],
        f"{root}/./{used}": ["900"],
    }
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(path, []))
    assert memory._left_by_control_groups() == 800 - 700 + 250
    del files[f"{root}/a/{most}"]
    assert memory._left_by_control_groups() == 700
    assert available_bytes() == 700


def _fit_under(megabytes):
    return subprocess.run(
        [sys.executable, "-c", CAPPED, str(megabytes)],
        capture_output=True,
        text=True,
        timeout=600,
        # Large blocks go back when freed: how scattered the heap is differs from run to run.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "4000000"},
    )


def test_a_table_of_a_quarter_million_features_is_fitted_under_a_hard_cap_of_memory():
    """Dense it would take 700 MB more in single precision, and 250 GB as a covariance."""
    done = _fit_under(900)
    assert done.returncode == 0, done.stderr[-2000:]
    short = _fit_under(500)
    assert "of which 0." in short.stderr and "are free" in short.stderr, short.stderr[-2000:]
