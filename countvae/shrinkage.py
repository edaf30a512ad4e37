r"""The prior of the loadings, and how sure a fit is of them.

.. math:: V_{jc} \sim t_\nu(0, \tau_c^2), \qquad q(V_{jc}) = N(\hat V_{jc}, U_{jc})

A fit that goes on from another has the loadings of that one, V0, in place of the zero. A t
distribution is a normal one whose variance is random, so a loading has a prior variance of its
own: most are held near zero while a large one is left alone. The derivation is on the page "The
model" of the documentation.
"""

import torch
from jaxtyping import Float
from torch import Tensor

DEGREES_OF_FREEDOM = 3
"""nu, the smallest whole number at which a t distribution has a variance."""

SHARE_OF_CHANGE = 0.1
"""Mean square by which loadings are first expected to differ from those gone on from."""

EM_STEPS = 100
"""By which a prior is found from loadings that no longer change."""

TINY = 1e-8
"""Least square of a loading that a factor begins with: one that is all zeros has no scale."""


class Shrinkage:
    """An empirical-Bayes prior on the loadings, and their posterior variances.

    Parameters
    ----------
    V : (d, k)
        Loadings at the start; their mean squares are the first tau^2.
    around : (d, k), optional
        Loadings that the prior is centred at instead of zero; tau^2 begins as a share of the mean
        squares of V then.

    Attributes
    ----------
    tau2 : (k,)
        Scale of each factor.
    prior_var : (d, k)
        Prior variance of each loading: nu tau^2 + V^2 + U over nu + 1, by EM.
    U : (d, k)
        Posterior variance of each loading.
    """

    def __init__(self, V: Float[Tensor, "d k"], around: Float[Tensor, "d k"] | None = None) -> None:
        share = 1.0 if around is None else SHARE_OF_CHANGE
        self.tau2 = (share * V.square().mean(0)).clamp_min(TINY)
        self.prior_var = self.tau2.expand_as(V)
        self.U = torch.zeros_like(V)
        self.around = around

    def variance(self, information: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        """Posterior variance of each loading, given how much the samples say about it."""
        return 1 / (information + 1 / self.prior_var)

    def update(self, V: Float[Tensor, "d k"], information: Float[Tensor, "d k"]) -> None:
        """Take one step of EM, given how much the samples say about each loading."""
        self.U = self.variance(information)
        self.expect(self._away(V).square() + self.U)

    def expect(self, square: Float[Tensor, "d k"]) -> None:
        """Let the prior follow the mean squares of the loadings under their posterior."""
        nu = DEGREES_OF_FREEDOM
        self.prior_var = (nu * self.tau2 + square) / (nu + 1)
        self.tau2 = self.tau2 * (square / self.prior_var).mean(0)

    @torch.no_grad()
    def add_gradient(
        self,
        V: Float[Tensor, "d _"],
        gradient: Float[Tensor, "d _"],
        weight: float,
        columns: slice = slice(None),
    ) -> None:
        """Add that of the logarithm of the prior of some columns, -V / prior_var, so often."""
        gradient.addcdiv_(self._away(V, columns), self.prior_var[:, columns], value=-weight)

    def rescale(self, A: Float[Tensor, "k k"]) -> None:
        """Follow the first factors to others, z = A u."""
        if self.around is not None:
            k = len(A)
            self.around = torch.cat([self.around[:, :k] @ A, self.around[:, k:]], 1)

    def _away(self, V: Float[Tensor, "d _"], columns: slice = slice(None)) -> Float[Tensor, "d _"]:
        return V if self.around is None else V - self.around[:, columns]


def told(V: Float[Tensor, "d k"], U: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """Share of the prior variance of each loading that the samples have taken away, 0 to 1."""
    prior, square = Shrinkage(V), V.square() + U
    for _ in range(EM_STEPS):
        prior.expect(square)
    return (1 - U / prior.prior_var).clamp(TINY, 1)
