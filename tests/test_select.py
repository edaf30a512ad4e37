"""Choosing k: the truth is found, differences are paired, and the verdict says what was found."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

from countvae import MultinomialVAE
from countvae.decoder import Decoder
from countvae.errors import InputError
from countvae.ppca import clr_counts, ppca
from countvae.select import (
    Selection,
    _compared,
    evidence_under,
    law_without_factors,
    principal_law,
    select,
)
from countvae.simulate import simulate


@pytest.fixture(name="truth", scope="module")
def simulated():
    return simulate(240, 40, 3, 2000, design="flat", rng=np.random.default_rng(0))


def test_the_true_number_of_factors_is_found(truth):
    told = []
    found = select(truth.counts, [1, 3, 6], folds=2, max_epochs=25, told=told.append)
    assert (found.k, found.encoder_depth) == (3, 2)
    assert found.table["k"].tolist() == [1, 3, 6]
    assert [(row["k"], row["fold"]) for row in told] == [
        (k, fold) for fold in (1, 2) for k in (1, 3, 6)
    ]
    rows = found.table.set_index("k")
    assert rows["difference"].max() == 0
    assert rows["difference"][1] < -5 * rows["difference_se"][1]
    assert rows["untrusted"].between(0, 0.2).all()
    assert (found.gains["gain"] > 2 * found.gains["se"]).all()
    assert found.verdict.startswith("k = 3: ")
    closest, other = found.gains["gain"].sort_values().index
    assert f" are explained better than by {closest} (" in found.verdict
    assert f" and better than by {other} (" in found.verdict


def test_a_table_without_factors_is_explained_no_better_by_some():
    plain = simulate(240, 40, 2, 2000, V=np.zeros((40, 2)), rng=np.random.default_rng(0))
    found = select(plain.counts, [1], folds=2, max_epochs=25)
    assert found.verdict.startswith("k = 1: nothing else was tried. ")
    gain, se = found.gains.loc["common proportions"]
    assert gain < max(2 * se, 1e-3) and abs(gain) < 0.01


def test_the_law_without_factors_is_that_which_the_table_was_drawn_from():
    plain = simulate(400, 40, 2, 5000, V=np.zeros((40, 2)), rng=np.random.default_rng(0))
    law = law_without_factors(plain.counts, 2, 0)
    assert law.sigma2.item() == pytest.approx(plain.sigma2, rel=0.2)
    off = law.mu.detach().numpy() - plain.mu
    common = np.asarray(plain.counts.mean(axis=0)) > 20
    assert common.sum() > 10
    assert np.abs(off - off[common].mean())[common].max() < 5 * np.sqrt(plain.sigma2 / 400)
    evidence, _ = evidence_under(law, plain.counts[:50], 64, 0)
    true = Decoder(law.V.detach(), torch.from_numpy(plain.mu), torch.tensor(plain.sigma2).double())
    at_truth, _ = evidence_under(true, plain.counts[:50], 64, 0)
    np.testing.assert_allclose(evidence.mean(), at_truth.mean(), atol=2.0)


def test_the_evidence_is_of_models_that_never_saw_the_samples(truth):
    found = select(truth.counts, [2], folds=2, max_epochs=3)
    of = np.random.default_rng(0).permutation(240) % 2
    total, shapes = 0.0, []
    for fold in (0, 1):
        model = MultinomialVAE(2, max_epochs=3).fit(truth.counts[np.flatnonzero(of != fold)])
        evidence, shape = model.evidence(truth.counts[np.flatnonzero(of == fold)], 64, 0)
        total += evidence.sum()
        shapes.extend(shape)
    expected = total / truth.counts.sum()
    assert found.table["evidence_a_read"][0] == pytest.approx(expected, rel=1e-12)
    assert found.table["pareto_k"][0] == np.median(shapes)
    assert found.table["untrusted"][0] == np.mean(np.array(shapes) >= 1 - 1 / np.log10(64))


def test_the_table_stays_sparse_to_the_end(truth, monkeypatch):
    """Rows are made dense by batches, never all of them."""
    made = []
    of_batch = csr_array.toarray

    def toarray(self, *more, **settings):
        made.append(self.shape[0])
        return of_batch(self, *more, **settings)

    monkeypatch.setattr(csr_array, "toarray", toarray)
    law = principal_law(truth.counts, 3, 0)
    assert not made
    dense = ppca(clr_counts(truth.counts[:].todense()), 3, rank=39)
    np.testing.assert_allclose(law.V.detach().numpy(), dense.loadings, atol=1e-8)


def test_standard_errors_are_those_of_a_ratio():
    rng = np.random.default_rng(1)
    depth = rng.integers(100, 1000, 5000).astype(float)
    difference = 0.1 * depth + rng.normal(0, 30, 5000)
    evidence = np.stack([-3 * depth, -3 * depth + difference])
    table = _compared(evidence, depth, np.arange(5000))
    assert table["difference"].tolist() == pytest.approx([-0.1, 0], abs=0.005)
    expected = 30 / np.sqrt(5000) / depth.mean()
    assert table["difference_se"][0] == pytest.approx(expected, rel=0.05)
    copies = _compared(np.repeat(evidence, 3, 1), depth.repeat(3), np.arange(5000).repeat(3))
    pd.testing.assert_frame_equal(copies, table)


def test_samples_of_one_group_are_held_out_together(truth):
    groups = np.array([f"subject {i // 4}" for i in range(240)])
    found = select(truth.counts, [2], folds=2, max_epochs=3, groups=groups)
    of = (np.random.default_rng(0).permutation(60) % 2).repeat(4)
    total = 0.0
    for fold in (0, 1):
        model = MultinomialVAE(2, max_epochs=3).fit(truth.counts[np.flatnonzero(of != fold)])
        total += model.evidence(truth.counts[np.flatnonzero(of == fold)], 64, 0)[0].sum()
    expected = total / truth.counts.sum()
    assert found.table["evidence_a_read"][0] == pytest.approx(expected, rel=1e-12)


def test_the_verdict_says_why_and_whether_more_may_do_better():
    table = pd.DataFrame({"k": [2, 4], "encoder_depth": 2, "difference": [-0.01, 0.0]})
    table = table.assign(difference_se=[0.02, 0.0], chosen=[True, False], untrusted=[0.05, 0.4])
    gains = pd.DataFrame({"gain": [0.001], "se": [0.01]}, ["principal components of log(x + 1)"])
    said = Selection(table, gains).verdict
    assert said.startswith("k = 2: the smallest within one standard error of the best, k = 4")
    assert "more factors than were tried may do better" in said
    assert said.endswith("than by principal components of log(x + 1) (+0.001 nats a read, ± 0.01).")
    assert "no better or worse than by principal components" in said
    uneven = Selection(table.assign(untrusted=[0.33, 0.4]), gains).verdict
    assert "Of 33% of the samples the evidence is not to be trusted" in uneven
    assert "explained" not in Selection(table, gains[:0]).verdict


def test_a_deeper_encoder_must_be_worth_it(truth):
    """The weights of importance sampling take out what an encoder is short of: depth ties."""
    told = []
    settings = {"folds": 2, "max_epochs": 10, "told": told.append}
    found = select(truth.counts, [3, 1], [2, 1], **settings)
    tried = [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert list(zip(found.table["k"], found.table["encoder_depth"], strict=True)) == tried
    assert [(row["k"], row["encoder_depth"]) for row in told] == tried * 2
    near = found.table["difference"] >= -found.table["difference_se"]
    assert found.table["chosen"].tolist() == (near & (near.cumsum() == 1)).tolist()
    assert found.k == 3
    assert found.verdict.startswith(f"k = 3, depth {found.encoder_depth}: ")
    alone = select(truth.counts, [3], folds=2, max_epochs=10)
    both = found.table.set_index(["k", "encoder_depth"])["evidence_a_read"]
    assert both[3, 2] == alone.table["evidence_a_read"][0]


@pytest.mark.parametrize(
    ("k", "more", "sentence"),
    [
        ([], {}, "k: expected whole numbers >= 1"),
        ([0, 2], {}, "k: expected whole numbers >= 1"),
        ([2], {"encoder_depth": [0]}, "encoder_depth: expected whole numbers >= 1"),
        ([2], {"folds": 1}, "folds: expected 2 to 120; got 1."),
        ([2], {"groups": np.arange(240) // 50}, "folds: expected 2 to 2; got 3."),
        ([2], {"groups": ["a"] * 239}, "groups: expected one label for each of 240 samples"),
        ([2], {"groups": ["a", None] * 120}, "groups: the sample at position 1 has none"),
        ([2, 500], {}, "in 3 folds, carry at most .* factors; got 500"),
    ],
)
def test_what_is_out_of_range_is_said(truth, k, more, sentence):
    with pytest.raises(InputError, match=sentence):
        select(truth.counts, k, **more)
