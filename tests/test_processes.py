"""Several processes share one fit: the same answer, one writer, and a way on when one is killed."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from countvae import MultinomialVAE
from countvae.errors import InputError
from countvae.processes import ALONE, GOES_ON, Processes
from countvae.rows import Rows
from countvae.simulate import simulate
from countvae.table import CountTable, write

SETTINGS = ["-k", "3", "--seed", "1", "--min-feature-samples", "20"]
ALWAYS_KEEP = """
import countvae.checkpoint, countvae.cli
countvae.checkpoint.SECONDS_BETWEEN = 0.0
countvae.cli.main()
"""

AFTER_SEVEN = """
import os, signal, sys
import countvae.cli
from countvae.console import Progress
# a shell ignores interrupts for what it runs in the background, and children inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
call, then = Progress.__call__, sys.argv.pop()
def tell(self, row):
    call(self, row)
    if row["epoch"] == 7:
        if then == "tell":
            open("under way", "w").close()
        else:
            os.kill(os.getpid(), getattr(signal, then))
Progress.__call__ = tell
countvae.cli.main()
"""
"""After seven epochs it says that it is under way, or sends itself a signal."""


class Disk:
    """A table that is not in memory, of a row a run and all rows a group."""

    def __init__(self, counts):
        self.counts, self.shape = counts, counts.shape

    def __getitem__(self, rows):
        return self.counts[rows]

    def rows_of(self, entries):
        return 1 if entries == 1 << 16 else self.shape[0]


@given(
    n=st.integers(8, 60),
    count=st.integers(1, 5),
    batch_size=st.integers(8, 30),
    streamed=st.booleans(),
)
def test_the_processes_share_the_steps_of_an_epoch_without_gap_or_overlap(
    n, count, batch_size, streamed
):
    counts = csr_array(np.arange(n)[:, None] + np.ones((1, 2)))
    table = Disk(counts) if streamed else counts

    def steps(processes):
        rows = Rows(table, batch_size, processes=processes)
        return list(rows.shuffled(torch.Generator().manual_seed(7)))

    together = list(zip(*(steps(Processes(count, rank)) for rank in range(count)), strict=True))
    assert sorted(torch.cat([b.at for step in together for b in step]).tolist()) == list(range(n))
    for step in together:
        assert {batch.size for batch in step} == {sum(len(batch.at) for batch in step)}
    if not streamed or count in (1, 2, 4):
        for step, alone in zip(together, steps(ALONE), strict=True):
            assert sorted(torch.cat([b.at for b in step]).tolist()) == sorted(alone.at.tolist())
    whole = [
        x
        for rank in range(count)
        for x in Rows(table, 5, processes=Processes(count, rank)).in_order()
    ]
    np.testing.assert_array_equal(torch.cat(whole).numpy(), counts.toarray())


@pytest.fixture(name="folder", scope="module")
def folder_with_a_table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    truth = simulate(300, 40, 3, 1000, rng=np.random.default_rng(0))
    write(CountTable(truth.counts, truth.sample_ids, truth.feature_ids), folder / "table.h5ad")
    known = pd.DataFrame({"age": truth.z[:, 0] + np.arange(300) % 7}, index=truth.sample_ids)
    known.to_csv(folder / "known.tsv", sep="\t", index_label="sample-id")
    (folder / "program.py").write_text(ALWAYS_KEEP)
    (folder / "after_seven.py").write_text(AFTER_SEVEN)
    return folder


def launch(folder, *arguments, count, table="table.h5ad", program="program.py", stream=True):
    arguments = [*SETTINGS, *["--stream"] * stream, *arguments]
    program = [str(folder / program), "fit", str(folder / table), *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [sys.executable, *(launcher if count > 1 else []), *program],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    "stream, settings",
    [
        (True, []),
        (True, ["--metadata", "known.tsv", "--formula", "~ age", "--validation-fraction", "0.2"]),
        (False, ["--validation-fraction", "0.2", "--noise", "by-feature"]),
        (False, ["--batch-size", "299"]),  # of one sample, one process has none
    ],
    ids=["on disk", "on disk with covariates", "in memory", "a last step of one sample"],
)
def test_two_processes_find_what_one_finds_and_one_writes(folder, stream, settings):
    for count in (1, 2):
        arguments = ["-o", f"by{count}", "--max-epochs", "6", *settings, "--force"]
        process = launch(folder, *arguments, count=count, stream=stream)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert said.count("written") == 1
    one, two = (MultinomialVAE.load(folder / name) for name in ("by1", "by2"))
    np.testing.assert_allclose(one.history_["bound"], two.history_["bound"], rtol=1e-6)
    V, W = (m.components_.T * np.sqrt(m.explained_variance_) for m in (one, two))
    np.testing.assert_allclose(W @ W.T, V @ V.T, atol=1e-4 * np.abs(V @ V.T).max())
    if "--formula" in settings:
        effects = one.coefficients_, two.coefficients_
        np.testing.assert_allclose(*effects, atol=1e-4 * np.abs(effects[0]).max())
    tables = [pd.read_csv(folder / name / "samples.tsv", sep="\t") for name in ("by1", "by2")]
    assert list(tables[0]["sample-id"]) == list(tables[1]["sample-id"])
    assert not list(folder.glob("*.checkpoint"))


def test_bad_input_stops_all_by_one_sentence(folder):
    (folder / "taken").mkdir()
    (folder / "taken" / "notes.txt").write_text("mine")
    process = launch(folder, "-o", "taken", count=2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("Error: taken: ") == 2 and "--resume" not in said
    truth = simulate(300, 40, 3, 1000, rng=np.random.default_rng(0))
    counts = truth.counts.toarray().astype(float)
    counts[290, 7] = -1  # in the second process's share
    path = folder / "broken.h5ad"
    frames = (pd.DataFrame(index=list(ids)) for ids in (truth.sample_ids, truth.feature_ids))
    anndata.AnnData(csr_array(counts), *frames).write_h5ad(path)
    process = launch(folder, "-o", "none", count=2, table="broken.h5ad")
    said, _ = process.communicate(timeout=120)
    assert said.count("Error: ") >= 2 and "--resume" not in said
    assert said.count(str(truth.sample_ids[290])) == 2


def test_a_step_of_fewer_samples_than_processes_is_refused(monkeypatch):
    monkeypatch.setattr("countvae.estimator.joined", lambda: Processes(8, 0))
    X = np.random.default_rng(0).poisson(3.0, (30, 8))
    with pytest.raises(InputError, match="4 samples cannot be shared by 8 processes"):
        MultinomialVAE(2, batch_size=4).fit(X)


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_interrupted_fit_says_how_to_go_on_and_ends_with_the_same_bits(folder, how):
    arguments = ["fit", "table.h5ad", "-o", f"by {how}", "-k", "2", "--max-epochs", "12"]

    def run(*program):
        command = [sys.executable, *program]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)

    done = run("after_seven.py", *arguments, how)
    assert done.returncode == 130, done.stderr
    again = f"countvae fit table.h5ad -o 'by {how}' -k 2 --max-epochs 12 --resume"
    assert done.stderr.endswith(f"Error: interrupted; it goes on by: {again}\n")
    assert not (folder / f"by {how}").exists()
    done = run("-m", *shlex.split(again))
    assert done.returncode == 0, done.stderr
    arguments[3] = f"without {how}"
    assert run("-m", "countvae", *arguments).returncode == 0
    bits = [(folder / f"{name} {how}" / "model.safetensors") for name in ("by", "without")]
    assert bits[0].read_bytes() == bits[1].read_bytes()


def children(pid):
    out = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True)
    return [int(line) for line in out.stdout.split()]


def killed_under_way(folder, output, which):
    """Start a fit of two processes, kill one of them after some epochs, and hear the other."""
    (folder / "under way").unlink(missing_ok=True)
    arguments = ["-o", output, "--max-epochs", "80", "tell"]
    process = launch(folder, *arguments, count=2, program="after_seven.py")
    until = time.monotonic() + 120
    while not (folder / "under way").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(children(process.pid)[which], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    # the launcher ends the rest by SIGTERM, perhaps before they see that one is gone
    assert re.search(
        rf"Error: (another process of the fit has ended|interrupted).*; {GOES_ON}", said
    ), said
    assert not (folder / output).exists()


def test_when_the_first_is_killed_there_is_nothing_to_go_on_from_so_early(folder):
    killed_under_way(folder, "first", 0)
    done = launch(folder, "-o", "first", "--max-epochs", "6", "--resume", count=2)
    said, _ = done.communicate(timeout=300)
    assert done.returncode == 0, said
    assert "a state was left there" not in said


def test_when_another_is_killed_the_first_leaves_a_state_and_the_fit_goes_on_from_it(folder):
    checkpoint = folder / "broken.checkpoint"
    killed_under_way(folder, "broken", 1)
    again = launch(folder, "-o", "broken", "--max-epochs", "80", count=1)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 3
    assert "--resume goes on with it" in said
    done = launch(folder, "-o", "broken", "--max-epochs", "80", "--resume", count=2)
    said, _ = done.communicate(timeout=300)
    assert done.returncode == 0, said
    assert "a state was left there" in said
    model = MultinomialVAE.load(folder / "broken")
    assert len(model.history_) == 80
    assert list(model.history_["epoch"]) == list(range(1, 81))
    assert not checkpoint.exists()
    unbroken = launch(folder, "-o", "unbroken", "--max-epochs", "80", count=2)
    said, _ = unbroken.communicate(timeout=300)
    assert unbroken.returncode == 0, said
    bits = [(folder / name / "model.safetensors").read_bytes() for name in ("broken", "unbroken")]
    assert bits[0] == bits[1]
