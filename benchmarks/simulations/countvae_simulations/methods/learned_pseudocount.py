"""countvae with a pseudocount that the encoder learns along with its weights."""

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from countvae.encoder import DenseEncoder
from countvae.simulate import Simulation
from countvae_simulations.methods import ours
from countvae_simulations.methods.base import Found


class Learning(DenseEncoder):
    """An encoder whose log pseudocount is a parameter."""

    log_pseudocount: nn.Parameter

    @property
    def pseudocount(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What is added to the counts before the logarithm."""
        return self.log_pseudocount.exp()

    @pseudocount.setter
    def pseudocount(self, start: float) -> None:
        self.log_pseudocount = nn.Parameter(torch.tensor(float(start)).log())


def fit(truth: Simulation, k: int, seed: int, **settings: Any) -> Found:
    """Fit the estimator; the pseudocount of the settings is where it starts."""
    with patch("countvae.estimator.DenseEncoder", Learning):
        return ours.fit(truth, k, seed, **settings)
