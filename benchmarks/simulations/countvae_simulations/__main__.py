"""`python -m countvae_simulations` is `countvae benchmark`."""

from countvae_simulations.cli import benchmark

benchmark()
