"""countvae without one of its parts: what that part is worth."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from countvae import training
from countvae.decoder import Decoder
from countvae.evidence import Noise, Sums
from countvae.ppca import clr_counts, ppca
from countvae.rows import Rows
from countvae.simulate import Simulation
from countvae.start import Start
from countvae_simulations.methods import ours
from countvae_simulations.methods.base import Found
from countvae_simulations.methods.truth_start import start_from

TINY = 1e-4


def without_sigma2() -> AbstractContextManager[object]:
    """Hold sigma2 at next to nothing: all noise is signal."""
    return patch("countvae.decoder.SIGMA2_RANGE", (TINY, TINY))


@contextmanager
def sampled_noise(shared: bool = False) -> Iterator[None]:
    """Draw the noise from its prior instead of solving it; sigma2 follows the same draws.

    As published: `shared` by all samples of a minibatch, or each sample its own.
    """
    generator = torch.Generator().manual_seed(0)
    slope = curve = torch.zeros(())

    def draw(
        m0: Tensor, Q: Tensor, x: Tensor, sigma2: Tensor, *warm_start: Any, sums: Sums
    ) -> Noise:
        nonlocal slope, curve
        del warm_start
        drawn = (1, m0.shape[1]) if shared else m0.shape
        own = (sigma2.sqrt() * torch.randn(drawn, generator=generator)).expand_as(m0)
        N, logits = x.sum(1), m0 + own
        rate = N[:, None] * (logits + Q / 2).softmax(1)
        log_total = (logits + Q / 2).logsumexp(1)
        log_scale = N.clamp_min(1e-6).log() - log_total
        none = torch.zeros_like(N)
        likelihood = (x * logits).sum(1) - N * log_total
        # of the bound with respect to log sigma
        slope, curve = slope + ((x - rate) * own).sum(), curve + (rate * own.square()).sum()
        noise = Noise(likelihood, none, none, x - rate, -0.5 * rate, rate, log_scale)
        sums.add(noise, Q)
        return noise

    def follow(self: Any, decoder: Decoder, shrunk: bool) -> None:
        nonlocal slope, curve
        del self, shrunk
        decoder.grow_sigma2((2 * slope / curve).exp())
        slope = curve = torch.zeros(())

    with (
        patch("countvae.training.solve_noise", draw),
        patch("countvae.moments.Moments.solve_sigma2", follow),
    ):
        yield


def shared_noise() -> AbstractContextManager[None]:
    """Draw the noise from its prior, the same for all samples of a minibatch."""
    return sampled_noise(shared=True)


def without_rescaling() -> AbstractContextManager[object]:
    """Leave scale and centre of the factors to the gradient."""
    return patch("countvae.moments.Moments.rescale", lambda *given, **more: None)


def pca_start() -> AbstractContextManager[object]:
    """Start where probabilistic PCA of the pseudocounted log-ratios ends."""

    def start(rows: Rows, k: int, *, pseudocount: float, generator: torch.Generator) -> Start:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        fit = ppca(clr_counts(rows.counts, pseudocount), k, rank=rows.d - 1, rng=rng)
        parts = (fit.loadings, fit.mean, fit.noise_variance)
        return start_from(parts, rows, pseudocount, generator)

    return patch("countvae.estimator.residual_start", start)


def random_start() -> AbstractContextManager[object]:
    """Start from small random loadings, pooled proportions and sigma2 = 1."""

    def start(rows: Rows, k: int, *, pseudocount: float, generator: torch.Generator) -> Start:
        V = 0.1 * torch.randn(rows.d, k, generator=generator)
        mu = np.log(np.asarray(rows.counts.sum(axis=0)) + 0.5)
        return start_from((V.numpy(), mu, 1.0), rows, pseudocount, generator)

    return patch("countvae.estimator.residual_start", start)


def frozen_encoder() -> AbstractContextManager[object]:
    """Leave the encoder where it started: only rescaling touches it."""
    build = training.optimizer_for

    def optimizer(*given: Any) -> torch.optim.Optimizer:
        built = build(*given)
        for group in built.param_groups[1:]:
            group["rate"] = 0.0
        return built

    return patch("countvae.training.optimizer_for", optimizer)


ABLATIONS = {
    ablation.__name__: ablation
    for ablation in (
        without_sigma2,
        sampled_noise,
        shared_noise,
        without_rescaling,
        frozen_encoder,
        pca_start,
        random_start,
    )
}


def fit(truth: Simulation, k: int, seed: int, *, part: str, **settings: object) -> Found:
    """Fit the estimator without a part."""
    with ABLATIONS[part]():
        return ours.fit(truth, k, seed, **settings)
