"""Multinomial variational autoencoder: principal components of count tables."""

from importlib.metadata import version

from countvae.convolutional import ConvMultinomialVAE
from countvae.estimator import MultinomialVAE

__all__ = ["ConvMultinomialVAE", "MultinomialVAE", "__version__"]

__version__ = version("countvae")
