"""Multinomial variational autoencoder: principal components of count tables."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from countvae.convolutional import ConvMultinomialVAE
    from countvae.estimator import MultinomialVAE

__all__ = ["ConvMultinomialVAE", "MultinomialVAE", "__version__"]

__version__ = version("countvae")

FROM = {"ConvMultinomialVAE": "countvae.convolutional", "MultinomialVAE": "countvae.estimator"}
"""Where estimators are, which bring torch along: it is imported with the first of them."""


def __getattr__(name: str) -> Any:
    if name not in FROM:
        raise AttributeError(f"module 'countvae' has no attribute {name!r}")
    return getattr(import_module(FROM[name]), name)
