"""Multinomial variational autoencoder: principal components of count tables."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("countvae")
