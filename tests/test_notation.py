"""docs/notation.md tells the truth: every name exists and every array has the shape given."""

import importlib
import inspect
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from countvae import evidence
from countvae.basis import balanced
from countvae.decoder import Decoder
from countvae.encoder import DenseEncoder
from countvae.estimator import MultinomialVAE
from countvae.inference import posterior_at
from countvae.ppca import clr_counts, ppca
from countvae.shrinkage import Shrinkage
from countvae.simulate import simulate
from countvae.table import CountTable

SIZES = {"n": 30, "b": 30, "d": 11, "(d−1)": 10, "k": 3, "h": 5, "p": 2}
PAGE = Path(__file__).parents[1] / "docs" / "notation.md"
ROW = re.compile(r"\| (?P<symbol>.*)\| (?P<shape>.*)\| `(?P<name>[^`]+)` \| (?P<meaning>.+) \|")
ROWS = [match for line in PAGE.read_text().splitlines() if (match := ROW.fullmatch(line))]


@pytest.fixture(scope="module")
def things():
    """Return one of each class named on the page, over 30 samples, 11 features and 3 factors."""
    n, d, k = SIZES["n"], SIZES["d"], SIZES["k"]
    truth = simulate(n, d, k, 200, rng=np.random.default_rng(0))
    x = torch.tensor(truth.counts.toarray(), dtype=torch.float64)
    V, mu = torch.tensor(truth.V), torch.tensor(truth.mu)
    sigma2 = torch.tensor(truth.sigma2, dtype=torch.float64)
    decoder = Decoder(V, mu, sigma2, V.new_zeros(d, SIZES["p"]))
    posterior = posterior_at(decoder, x, torch.tensor(truth.z), x.new_ones(n, k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MultinomialVAE(n_components=k, max_epochs=1, random_state=0).fit(truth.counts)
    return [
        truth,
        CountTable(truth.counts, truth.sample_ids, truth.feature_ids),
        balanced(truth.feature_ids),
        decoder,
        DenseEncoder(
            V,
            V.new_zeros(k),
            V.new_zeros(k),
            mu,
            depth=2,
            width=SIZES["h"],
            activation="silu",
            pseudocount=1.0,
            shared_D=True,
            generator=torch.Generator(),
        ),
        posterior,
        posterior.noise,
        evidence._rates(posterior.noise.r, posterior.noise.w, sigma2),
        ppca(clr_counts(truth.counts), k),
        model,
        Shrinkage(V),
    ]


def test_the_page_has_its_rows():
    assert len(ROWS) == sum("`" in line for line in PAGE.read_text().splitlines()) > 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_name_exists_and_has_the_shape_given(row, things):
    name, _, parameter = row["name"].rstrip(")").partition("(")
    module, first, *rest = name.split(".")
    found = getattr(importlib.import_module(f"countvae.{module}"), first)
    if parameter:
        assert parameter in inspect.signature(found).parameters
    if isinstance(found, type) and rest:
        (found,) = [thing for thing in things if type(thing) is found]
    for attribute in rest:
        found = getattr(found, attribute)
    if callable(found) or not row["shape"].strip():
        return
    allowed = [
        () if shape == "scalar" else tuple(SIZES[size] for size in shape.split(" × "))
        for shape in row["shape"].strip().split(" or ")
    ]
    assert tuple(getattr(found, "shape", ())) in allowed
