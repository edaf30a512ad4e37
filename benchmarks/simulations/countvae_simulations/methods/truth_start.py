"""countvae started at the true V, mu and sigma2: what the best of starts would give."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch

from countvae.decoder import Decoder
from countvae.rows import Rows
from countvae.simulate import Simulation
from countvae.start import SUBSAMPLE, Start, start_at
from countvae_simulations.methods import ours
from countvae_simulations.methods.base import Found


def started_at(truth: Simulation) -> AbstractContextManager[object]:
    """Start every fit within at the truth; its k must be that of the truth."""

    def start(rows: Rows, k: int, *, pseudocount: float, generator: torch.Generator) -> Start:
        return start_from((truth.V, truth.mu, truth.sigma2), rows, pseudocount, generator)

    return patch("countvae.estimator.residual_start", start)


def start_from(
    parts: Sequence[Any], rows: Rows, pseudocount: float, generator: torch.Generator
) -> Start:
    """Begin with given V, mu and sigma2, and the linear encoder to them."""
    decoder = Decoder(*(torch.as_tensor(part, dtype=rows.dtype) for part in parts))
    return start_at(rows.sample(SUBSAMPLE, generator), decoder, pseudocount)


def fit(truth: Simulation, k: int, seed: int, **settings: object) -> Found:
    """Fit the estimator with another start."""
    with started_at(truth):
        return ours.fit(truth, k, seed, **settings)
