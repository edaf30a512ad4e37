"""The local solver: its bound against a solution many passes further, on every sample.

At the encoder's answer of a fitted model and at V = 0 with all variance in the noise, in the single
precision of a fit at the default tolerance; `exact` is the double precision in which answers are
reported. The reference starts where the solver stopped and goes on in double precision to 1e-10.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from benchmarks.core.common import arguments, show, tell, verdict, write
from benchmarks.core.tables import FILES, whole
from countvae import MultinomialVAE, evidence
from countvae.errors import CountvaeWarning
from countvae.estimator import EXACT
from countvae.evidence import TOLERANCE, solve_noise
from countvae.rows import Rows
from countvae.simulate import simulate

MORE_PASSES = 50
BAR = 0.01
DESIGNS = {
    "flat, 100 reads": {"reads": 100, "design": "flat"},
    "flat, 1,000 reads": {"reads": 1_000, "design": "flat"},
    "flat, 100,000 reads": {"reads": 100_000, "design": "flat"},
    "wide, 500 reads": {"reads": 500},
    "wide, 5,000 reads": {"reads": 5_000},
    "wide, 1,000,000 reads": {"reads": 1_000_000},
    "wide, 5 % non-zero": {"reads": 5_000, "nonzero_loadings": 0.05},
    "wide, heavy noise": {"reads": 5_000, "noise": "heavy"},
    "wide, uneven noise": {"reads": 5_000, "noise": "uneven"},
    "wide, depth confounded": {"reads": 5_000, "depth_correlation": 0.8},
    "wide, sigma2 = 10": {"reads": 5_000, "sigma2": 10.0},
}
N, D, K = 500, 400, 10
EPOCHS = {"globalpatterns": 10, "ifnb_pbmc": 4, "ecam": 8}


def main() -> None:
    seeds = arguments(__doc__, seeds=3).seeds
    torch.set_num_threads(1)  # or blocks side by side would count each other's passes
    results = []
    for seed in range(seeds):
        for name, settings in DESIGNS.items():
            counts = simulate(N, D, K, rng=np.random.default_rng(seed), **settings).counts
            results += examine(name, counts, seed, None)
        for name in FILES:
            results += examine(name, whole(name).counts, seed, EPOCHS.get(name))
    results = pd.DataFrame(results)
    columns = ["worst", "within", "passes", "bracketed"]
    show(results, ["at", "precision", "table"], columns)
    print()
    for precision, rows in results.groupby("precision"):
        verdict(f"{precision}: nats from the reference, worst sample", rows.worst, BAR)
        print(f"{precision}: {rows.samples.sum()} samples, {rows.bracketed.sum()} bracketed")
    write("solver", results)


def examine(name: str, counts: sp.csr_array, seed: int, epochs: int | None) -> list[dict]:
    """Solve every sample of a table in each setting and say how far it is from the reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CountvaeWarning)
        model = MultinomialVAE(K, max_epochs=epochs, random_state=seed).fit(counts)
    encoder, decoder = model._encoder, model._decoder
    marginal = decoder.sigma2 + decoder.V.square().sum() / len(decoder.mu)

    def at_the_encoder(x):
        return (*decoder(*encoder(x)), decoder.sigma2)

    def at_zero(x):
        return decoder.mu.expand_as(x), torch.zeros_like(x), marginal

    rows = []
    for at, place in (("fit", at_the_encoder), ("V = 0", at_zero)):
        for precision, dtype, tolerance in (
            ("single", torch.float32, TOLERANCE),
            ("exact", torch.float64, EXACT),
        ):
            found = distances(counts, place, dtype, tolerance)
            row = {"table": name, "seed": seed, "at": at, "precision": precision, **found}
            rows.append(row)
            tell(row)
    return rows


@torch.no_grad()
def distances(counts: sp.csr_array, place, dtype: torch.dtype, tolerance: float) -> dict:
    """Distance of each sample's bound from the reference, and what it took to get there."""
    off, passes, bracketed = [], 0, 0
    for x in Rows(counts, max(1, 2**20 // counts.shape[1]), dtype=torch.float64).in_order():
        given = [part.to(dtype) for part in (*place(x)[:2], x, place(x)[2])]
        with counted() as count:
            found = solve_noise(*given, tolerance=tolerance)
        passes, bracketed = max(passes, count["passes"]), bracketed + count["bracketed"]
        given = [part.double() for part in given]
        with patch.object(evidence, "NEWTON_PASSES", MORE_PASSES):
            best = solve_noise(*given, log_scale=found.log_scale.double(), tolerance=1e-10)
        off.append((found.bound - best.bound).abs().numpy())
    off = np.concatenate(off)
    compiled = evidence.kernel is not None and dtype == torch.float32
    return {
        "samples": len(off),
        "worst": float(off.max()),
        "within": float((off <= BAR).mean()),
        "passes": np.nan if compiled else passes,
        "bracketed": bracketed,
    }


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the Newton passes of the slowest block, and the rows that had to be bracketed."""
    count = {"passes": 0, "bracketed": 0}
    solve_block, rates, bracket = evidence._solve_block, evidence._rates, evidence._bracket
    calls = 0
    inside = False

    def counted_block(*given):
        nonlocal calls
        calls = 0
        solved = solve_block(*given)
        # the first call is of the start, the last evaluates the bound
        count["passes"] = max(count["passes"], calls - 2)
        return solved

    def counted_rates(*given):
        nonlocal calls
        calls += not inside
        return rates(*given)

    def counted_bracket(m0, *given):
        nonlocal inside
        count["bracketed"] += len(m0)
        inside = True
        try:
            return bracket(m0, *given)
        finally:
            inside = False

    with (
        patch.object(evidence, "_solve_block", counted_block),
        patch.object(evidence, "_rates", counted_rates),
        patch.object(evidence, "_bracket", counted_bracket),
    ):
        yield count


if __name__ == "__main__":
    main()
