"""What an epoch adds up of the factors and of the noise, and what follows for the next."""

from collections.abc import Mapping

import torch
from torch import Tensor

from countvae.decoder import Decoder, oriented
from countvae.devices import factored, widest
from countvae.encoder import Encoder
from countvae.evidence import Sums
from countvae.inference import factor_precision
from countvae.rows import Rows
from countvae.shrinkage import Shrinkage

FEATURE_NOISE_SHRINKAGE = 50
"""Samples' worth of information by which a feature's own sigma2 is held to the common one."""

ALIKE = 1e-4
"""Share of the largest variance of covariates below which what is left of them counts as none."""


class Moments:
    """What an epoch adds up: moments of the factors and of the noise."""

    def __init__(self, decoder: Decoder, n: int) -> None:
        (d, k), p = decoder.V.shape, decoder.Theta.shape[1]
        zeros = decoder.V.new_zeros
        self.n, self.bound = n, zeros((), dtype=widest(decoder.V.device))
        self.z, self.zz = zeros(k), zeros(k, k)
        self.f, self.zf, self.ff = zeros(p), zeros(k, p), zeros(p, p)
        self.noise = Sums(zeros(d), zeros(d), zeros(d))
        self.of_loadings = zeros(d, k + p)
        self.left_out, self.looked = zeros(k, k), zeros(())
        self.gradient, self.gradient_mu = zeros(0), zeros(0)

    @torch.no_grad()
    def add(self, z: Tensor, D: Tensor, f: Tensor, bound: Tensor) -> None:
        """Add a batch's factors, covariates and bound; what is of the noise, the solver adds."""
        self.bound += bound.sum()
        self.z += z.sum(0)
        self.zz += z.T @ z + torch.diag(D.sum(0))
        if f.shape[1]:
            self.f += f.sum(0)
            self.zf += z.T @ f
            self.ff += f.T @ f

    @torch.no_grad()
    def add_correlations(
        self, J: Tensor, D: Tensor, w: Tensor, shrinkage: Shrinkage | None
    ) -> None:
        """Estimate from one batch what the diagonal D leaves out of the covariance of z.

        D gets the correlations of H^-1 and its ratios to 1 / diag(H), not H^-1 itself: what scales
        as D does leaves the rescaling a place to rest.
        """
        H = factor_precision(J, w)
        if shrinkage is not None:
            H += torch.diag_embed(w @ shrinkage.U[:, : D.shape[1]])
        sd = (D * H.diagonal(dim1=1, dim2=2)).sqrt()
        inverse, failed = torch.linalg.inv_ex(H)
        # which is found at the epoch's end, then by all processes
        inverse[failed != 0] = torch.nan
        S = sd[:, :, None] * inverse * sd[:, None, :]
        self.left_out += (S - torch.diag_embed(D)).sum(0)
        self.looked += len(w)

    def add_gradients(self, decoder: Decoder) -> None:
        """Add this batch's part of the gradients of the whole bound."""
        of_loadings = [part.grad for part in (decoder.V, decoder.Theta) if part.grad is not None]
        if not of_loadings or decoder.mu.grad is None:
            return
        if not len(self.gradient_mu):
            self.gradient = torch.zeros_like(self.of_loadings)
            self.gradient_mu = torch.zeros_like(decoder.mu)
        self.gradient += torch.cat(of_loadings, 1)
        self.gradient_mu += decoder.mu.grad

    @torch.no_grad()
    def settle(self, decoder: Decoder, shrinkage: Shrinkage | None) -> None:
        """Take one step of Newton's, a loading at a time, on the gradients of the whole table.

        It takes out what the noise of minibatches left, by at most one standard deviation.
        """
        of_loadings = self.free if shrinkage is None else shrinkage.variance(self.of_loadings)
        of_mu, k = 1 / (self.noise.information + 1), decoder.V.shape[1]
        for parameter, variance, gradient in (
            (decoder.V, of_loadings[:, :k], self.gradient[:, :k]),
            (decoder.Theta, of_loadings[:, k:], self.gradient[:, k:]),
            (decoder.mu, of_mu, self.gradient_mu),
        ):
            sd = variance.sqrt()
            parameter += (variance * gradient).clamp(-sd, sd)
        decoder.centre()

    @property
    def free(self) -> Tensor:
        """Posterior variances of loadings that no prior holds: as if that were N(0, 1)."""
        return 1 / (self.of_loadings + 1)

    def parts(self) -> dict[str, Tensor]:
        """Return all sums, by name."""
        own = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        return own | {f"noise.{name}": part for name, part in self.noise._asdict().items()}

    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """Go on from what `parts` gave.

        Raises
        ------
        ValueError
            If names or shapes are not those of these sums.
        """
        expected = self.parts()
        lazy = {"gradient": self.of_loadings.shape, "gradient_mu": self.noise.squares.shape}
        if parts.keys() != expected.keys() or any(
            part.shape not in (expected[name].shape, lazy.get(name)) for name, part in parts.items()
        ):
            raise ValueError("names or shapes differ")
        for name, part in parts.items():
            if name.startswith("noise."):
                expected[name].copy_(part)
            else:
                setattr(self, name, part.to(expected[name]))

    def total(self, rows: Rows, of_U: Tensor | None) -> None:
        """Take in the gradient in U, which is -sum(w (z^2 + D)) / 2, and add up all processes."""
        if of_U is not None:
            self.of_loadings = -2 * of_U
        rows.processes.total(*self.parts().values())

    def mean_bound(self, shrinkage: Shrinkage | None) -> float:
        """Mean bound at V itself: to first order in U, from below as the bound is convex in Q."""
        by_loadings = 0.0 if shrinkage is None else (shrinkage.U * self.of_loadings).sum().item()
        return (self.bound.item() + 0.5 * by_loadings) / self.n

    @property
    def finite(self) -> bool:
        """Whether all sums are."""
        noise = self.noise.squares.sum() + self.noise.information.sum()
        return bool(torch.isfinite(self.zz.sum() + self.left_out.sum() + noise))

    @torch.no_grad()
    def solve_sigma2(self, decoder: Decoder, shrunk: bool) -> None:
        """Take one step of Fisher scoring."""
        fitted = 1 if shrunk else 1 + decoder.V.shape[1] + decoder.Theta.shape[1]
        fitted = min(fitted, self.n / 2)  # with as many factors as samples no sigma2 would do
        squares, information, fisher = self.noise
        score = squares + information * (fitted / self.n - 1)
        own, common = decoder.sigma2, score.sum() / fisher.sum()
        if own.ndim:
            others = FEATURE_NOISE_SHRINKAGE / own.square()
            step = (score + others * (own.mean() + common - own)) / (fisher + others)
        else:
            step = common
        decoder.grow_sigma2(1 + step / own)

    @torch.no_grad()
    def rescale(self, encoder: Encoder, decoder: Decoder, rotate: bool) -> Tensor:
        """Give the factors mean 0 and covariance I; turn them to the axes of the information.

        What covariates tell of the factors goes to Theta. Returns A of z = A u.
        """
        mean, slope = self.z / self.n, None
        left_out = self.left_out / self.looked.clamp_min(1)
        covariance = self.zz / self.n + left_out - torch.outer(mean, mean)
        if self.ff.shape[0]:
            # of validation nothing is seen: there may be levels that no sample here has
            f = self.f / self.n
            with_f = self.zf / self.n - torch.outer(mean, f)
            of_f = self.ff / self.n - torch.outer(f, f)
            slope = with_f @ torch.linalg.pinv(of_f.cpu(), rtol=ALIKE, hermitian=True).to(of_f)
            covariance = covariance - slope @ with_f.T
            mean = mean - slope @ f
        variances, axes = factored(torch.linalg.eigh, covariance)
        root = (axes * variances.clamp_min(1e-6).sqrt()) @ axes.T
        if rotate:
            V = decoder.V @ root
            _, axes = factored(torch.linalg.eigh, V.T @ (self.noise.information[:, None] * V))
            root = root @ oriented(axes.flip(1))
        decoder.rescale(root, mean, slope)
        encoder.rescale(root, mean, slope)
        encoder.recentre(decoder.mu.detach())
        return root
