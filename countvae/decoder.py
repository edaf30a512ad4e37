"""The decoders, p(eta | z), in centred-log-ratio space: a linear-Gaussian one, and a network.

The noise is isotropic, so the law of the counts does not depend on which orthonormal basis Psi is
chosen: with V = Psi W the logits are mu + V z + eps. Psi is applied at the edges only.
"""

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from countvae.layers import ACTIVATIONS, Grid, dense, transposed_convolution
from countvae.threads import cut, share, worth

SIGMA2_RANGE = (1e-4, 100.0)

DRAWS = 4096
"""Points of the prior through which the straight map is laid that a network is closest to."""

DRAWS_AT_ONCE = 128


def oriented(axes: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    """Give each column the sign at which its largest entry is positive; libraries give either."""
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -axes, axes)


class Decoder(nn.Module):
    """The linear one: V, mu and sigma2, with V and mu centred over the features.

    Parameters
    ----------
    V : (d, k)
        Loadings in CLR space, V = Psi W.
    mu : (d,)
        Centre in CLR space, Psi mu_ILR.
    sigma2 : scalar or (d,)
        Variance of the noise, shared by all features or by feature.
    Theta : (d, p), optional
        What covariates of the samples do to the logits; none by default.
    V_var, Theta_var : (d, k) and (d, p), optional
        Posterior variances of both, which a fit leaves; zeros until then. Each is that of a column
        alone, the factors known.
    """

    linear = True
    sigma2: Tensor
    V_var: Tensor
    Theta_var: Tensor

    def __init__(
        self,
        V: Tensor,
        mu: Tensor,
        sigma2: Tensor,
        Theta: Tensor | None = None,
        V_var: Tensor | None = None,
        Theta_var: Tensor | None = None,
    ) -> None:
        super().__init__()
        Theta = V.new_zeros(len(V), 0) if Theta is None else Theta
        self.V = nn.Parameter(V - V.mean(0))
        self.mu = nn.Parameter(mu - mu.mean())
        self.Theta = nn.Parameter(Theta - Theta.mean(0))
        self.register_buffer("sigma2", sigma2.clone())
        self.register_buffer("V_var", torch.zeros_like(V) if V_var is None else V_var.clone())
        self.register_buffer(
            "Theta_var", torch.zeros_like(Theta) if Theta_var is None else Theta_var.clone()
        )

    @property
    def loadings(self) -> Float[Tensor, "d _"]:
        """V and, beside it, Theta: a covariate is a factor that is known."""
        return torch.cat([self.V, self.Theta], 1) if self.Theta.shape[1] else self.V

    def of_features(self, at: Integer[np.ndarray, " m"]) -> "Decoder":
        """Return the law of the counts on some features, given how many fall on them."""
        parts = (self.V, self.mu, self.sigma2, self.Theta, self.V_var, self.Theta_var)
        chosen = (part.detach()[at] if part.ndim else part for part in parts)
        return Decoder(*chosen).requires_grad_(False)

    def given(
        self, f: Float[Tensor, "b p"], shared: Float[Tensor, "p p"] | None = None
    ) -> "Decoder | Given":
        """Return the law of samples with these covariates, n (F'F)^-1 of which were fitted."""
        return Given(self, f, shared) if self.Theta.shape[1] else self

    def logits(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Return the noiseless logits at some factors."""
        return torch.addmm(self.mu, z, self.V.T)

    def jacobian(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "*b d k"]:
        """Return the slopes of the logits in the factors: V, the same everywhere."""
        return self.V

    def straight(self) -> tuple[Float[Tensor, "d k"], Float[Tensor, " d"], float]:
        """V and mu of the straight map closest to the logits under N(0, I), and what it lacks.

        The last is the variance of the logits that is not the map's, summed over the features.
        """
        return self.V, self.mu, 0.0

    def forward(
        self,
        z: Float[Tensor, "b k"],
        D: Float[Tensor, "b k"],
        U: Float[Tensor, "d _"] | None = None,
        f: Float[Tensor, "b p"] | None = None,
        draws: Float[Tensor, "b k"] | None = None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Mean m0 = mu + V z + Theta f and variance Q_j = v_j' diag(D) v_j of the noiseless logits.

        With variances U of the loadings, Q_j has sum_c U_jc (z_c^2 + D_c) as well. A linear
        decoder needs no `draws`.
        """
        if f is not None and f.shape[1]:
            z, D = torch.cat([z, f], 1), torch.cat([D, torch.zeros_like(f)], 1)
            return _Logits.apply(z, D, self.loadings, self.mu, U)
        return _Logits.apply(z, D, self.V, self.mu, U)

    @torch.no_grad()
    def keep_variances(self, of_loadings: Float[Tensor, "d _"]) -> None:
        """Keep the posterior variances of V and, beside it, Theta."""
        k = self.V.shape[1]
        self.V_var.copy_(of_loadings[:, :k])
        self.Theta_var.copy_(of_loadings[:, k:])

    @torch.no_grad()
    def unsure(self, z: Float[Tensor, "b k"], D: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Variance of the logits that comes from that of the loadings."""
        return (z.square() + D) @ self.V_var.T

    @torch.no_grad()
    def rescale(
        self,
        A: Float[Tensor, "k k"],
        shift: Float[Tensor, " k"],
        slope: Float[Tensor, "k p"] | None = None,
    ) -> None:
        """Write the same law in factors u, where z = A u + shift + slope f."""
        self.mu += self.V @ shift
        if slope is not None:
            self.Theta += self.V @ slope
        self.V.copy_(self.V @ A)
        self.V_var.copy_(self.V_var @ A.square())
        self.centre()

    @torch.no_grad()
    def centre(self) -> None:
        """Remove what softmax ignores: the means of mu and of each column of V and Theta."""
        self.V -= self.V.mean(0)
        self.Theta -= self.Theta.mean(0)
        self.mu -= self.mu.mean()

    @torch.no_grad()
    def grow_sigma2(self, ratio: Tensor) -> None:
        """Multiply sigma2 by a ratio, by at most a factor of two."""
        self.sigma2.mul_(ratio.clamp(0.5, 2)).clamp_(*SIGMA2_RANGE)


class ConvDecoder(Decoder):
    """mu + V z plus a network of transposed convolutions, whose last layer starts at zero.

    A dense layer makes images of the factors, each further layer doubles these, and the mean over
    the features is taken out at the end. Its expectation under q is taken at a draw.

    Parameters
    ----------
    V, mu, sigma2
        As of a linear decoder.
    grid : Grid
        Where the features lie.
    depth : int
        Layers of the network, at least 2.
    width : int
        Channels of each.
    generator : torch.Generator, optional
        Draws the layers but the last.
    """

    linear = False

    def __init__(
        self,
        V: Tensor,
        mu: Tensor,
        sigma2: Tensor,
        *,
        grid: Grid,
        depth: int,
        width: int,
        activation: str,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(V, mu, sigma2)
        self.grid = grid
        self.shapes = [grid.halved(depth - 2 - i).shape for i in range(depth - 1)]
        self.small = grid.halved(depth - 1)._replace(channels=width)
        self.first = dense(V.shape[1], self.small.d, generator, V)
        layers: list[nn.Module] = [ACTIVATIONS[activation]()]
        for shape in self.shapes[:-1]:
            layers.append(transposed_convolution(width, width, shape, generator, V))
            layers.append(ACTIVATIONS[activation]())
        last = transposed_convolution(width, grid.channels, grid.shape, generator, V)
        nn.init.zeros_(last.weight)
        self.hidden = nn.Sequential(*layers, last)

    def bend(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Return what the network adds to the logits."""
        images = self.small.images(self.first(z))
        for i, layer in enumerate(self.hidden):
            images = self._doubled(i, images) if i % 2 else layer(images)
        return self._flat(images)

    def _doubled(self, i: int, images: Tensor) -> Tensor:
        """Apply a transposed convolution, every second layer, and cut to the grid of there."""
        images = self.hidden[i](images)
        for axis, size in enumerate(self.shapes[i // 2]):
            images = images.narrow(axis + 2, 0, size)
        return images

    def _flat(self, images: Tensor) -> Float[Tensor, "_ d"]:
        """Centre images over the features."""
        flat = self.grid.flat(images)
        return flat - flat.mean(1, keepdim=True)

    def logits(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Return the noiseless logits at some factors."""
        return super().logits(z) + self.bend(z)

    @torch.no_grad()
    def jacobian(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "*b d k"]:
        """Return the slopes of the logits in the factors, of each sample."""
        b, k = z.shape
        values = self.small.images(self.first(z))
        slopes = self.small.images(self.first.weight.T)[:, None].expand(-1, b, *values.shape[1:])
        slopes = slopes.flatten(0, 1)  # of each factor, one sample after the other
        for i, layer in enumerate(self.hidden):
            if i % 2:
                slopes = self._doubled(i, slopes) - self._doubled(i, torch.zeros_like(slopes[:1]))
                values = self._doubled(i, values)
            else:
                slopes = (slopes.unflatten(0, (k, b)) * _slope(layer, values)).flatten(0, 1)
                values = layer(values)
        added = self._flat(slopes).unflatten(0, (k, b)).permute(1, 2, 0)
        return self.V + added

    @torch.no_grad()
    def straight(self) -> tuple[Float[Tensor, "d k"], Float[Tensor, " d"], float]:
        """V and mu of the straight map closest to the logits under N(0, I), and what it lacks."""
        k, generator = self.V.shape[1], torch.Generator().manual_seed(0)
        draws = torch.randn(DRAWS, k, generator=generator, dtype=self.V.dtype).to(self.V.device)
        design = torch.cat([draws, torch.ones_like(draws[:, :1])], 1)
        by_logits, squares = design.new_zeros(k + 1, len(self.V)), 0.0
        for some in design.split(DRAWS_AT_ONCE):  # a network's layers are large
            logits = self.logits(some[:, :k])
            by_logits.addmm_(some.T, logits)
            squares += logits.square().sum().item()
        fitted = torch.linalg.solve(design.T @ design, by_logits)
        left = squares - (fitted * by_logits).sum().item()
        return fitted[:k].T.contiguous(), fitted[k], max(0.0, left / DRAWS)

    def forward(self, z, D, U=None, f=None, draws=None):
        """Logits at a draw from q, without variance; or as if the decoder were straight near z."""
        if draws is None:
            return self.logits(z), (self.jacobian(z).square() @ D[:, :, None])[:, :, 0]
        logits = self.logits(z + D.sqrt() * draws)
        return logits, torch.zeros_like(logits)

    @torch.no_grad()
    def rescale(self, A, shift, slope=None):
        """Write the same law in factors u, where z = A u + shift."""
        self.first.bias.add_(self.first.weight @ shift)
        self.first.weight.copy_(self.first.weight @ A)
        super().rescale(A, shift, slope)


def _slope(activation: nn.Module, at: Tensor) -> Tensor:
    """Return the derivative of an activation."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(activation(at).sum(), at)[0]


class Given:
    """The law of some samples with covariates: a linear decoder with a centre for each sample.

    Parameters
    ----------
    decoder : Decoder
        The law of all.
    f : (b, p)
        Covariates of these samples.
    shared : (p, p), optional
        n (F'F)^-1 of the samples fitted, the identity where covariates have nothing in common.
    """

    linear = True

    def __init__(
        self, decoder: Decoder, f: Float[Tensor, "b p"], shared: Float[Tensor, "p p"] | None = None
    ) -> None:
        self.sigma2 = decoder.sigma2
        self.decoder, self.f, self.shared = decoder, f, shared
        self.shift = f @ decoder.Theta.detach().T

    def logits(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Return the noiseless logits at some factors, as of a decoder."""
        return self.decoder.logits(z) + self.shift

    def jacobian(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "*b d k"]:
        """Return the slopes of the logits in the factors, as of a decoder."""
        return self.decoder.jacobian(z)

    def __call__(
        self, z: Float[Tensor, "b k"], D: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Mean and variance of the noiseless logits, as of a decoder."""
        m0, Q = self.decoder(z, D)
        return m0 + self.shift, Q

    def unsure(self, z: Float[Tensor, "b k"], D: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Variance of the logits that comes from that of the loadings, Theta's included.

        Theta_j has the covariance s_ja s_jb n (F'F)^-1_ab of its noise, s_j^2 being `Theta_var`.
        What it takes up of V as factors lean on covariates by chance, z gives back.
        """
        s = self.decoder.Theta_var.sqrt()
        root = torch.eye(s.shape[1]).to(s) if self.shared is None else _root(self.shared)
        variance = self.decoder.unsure(z, D)
        for column in root.T:
            variance += ((self.f * column) @ s.T).square()
        return variance


def _root(S: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Return R with R R' = S, which may have no inverse."""
    variances, axes = torch.linalg.eigh(S)
    return axes * variances.clamp_min(0).sqrt()


class _Logits(torch.autograd.Function):
    """m0 and Q, and their gradients, by slices of the samples or of the features."""

    @staticmethod
    def forward(ctx, z, D, V, mu, U):
        ctx.save_for_backward(z, V, U)
        (b, k), d = z.shape, len(V)
        threads = worth(b * d, z.device)
        parts = 1 if U is None else 2
        ctx.moments = D if U is None else torch.cat([D, z * z], 1)
        ctx.squares = V.new_empty(d, parts * k)
        m0, Q = z.new_empty(b, d), z.new_empty(b, d)

        def of_features(at: slice) -> None:
            torch.mul(V[at], V[at], out=ctx.squares[at, :k])
            if U is not None:
                ctx.squares[at, :k] += U[at]
                ctx.squares[at, k:] = U[at]

        def of_samples(at: slice) -> None:
            torch.addmm(mu, z[at], V.T, out=m0[at])
            torch.mm(ctx.moments[at], ctx.squares.T, out=Q[at])

        share(of_features, cut(d, threads), threads)
        share(of_samples, cut(b, threads), threads)
        return m0, Q

    @staticmethod
    def backward(ctx, of_m0, of_Q):  # pyright: ignore[reportIncompatibleMethodOverride]
        z, V, U = ctx.saved_tensors
        of_z, of_moments = torch.empty_like(z), torch.empty_like(ctx.moments)
        of_V, of_mu, k = torch.empty_like(V), V.new_empty(len(V)), V.shape[1]
        of_squares = torch.empty_like(ctx.squares)
        of_U = None if U is None else torch.empty_like(U)

        def of_samples(at: slice) -> None:
            torch.mm(of_m0[at], V, out=of_z[at])
            torch.mm(of_Q[at], ctx.squares, out=of_moments[at])

        def of_features(at: slice) -> None:
            torch.mm(of_Q[:, at].T, ctx.moments, out=of_squares[at])
            torch.mul(of_squares[at, :k], V[at], out=of_V[at])
            if of_U is not None:
                torch.add(of_squares[at, :k], of_squares[at, k:], out=of_U[at])
            torch.addmm(of_V[at], of_m0[:, at].T, z, beta=2, out=of_V[at])
            torch.sum(of_m0[:, at], 0, out=of_mu[at])

        threads = worth(of_m0.numel(), of_m0.device)
        tasks = [(of_samples, at) for at in cut(len(z), threads)]
        if ctx.needs_input_grad[2]:
            tasks += [(of_features, at) for at in cut(len(V), threads)]
        share(lambda task: task[0](task[1]), tasks, threads)
        of_D, of_squared_z = of_moments[:, :k], of_moments[:, k:]
        if U is not None:
            of_z.addcmul_(z, of_squared_z, value=2)
        return of_z, of_D, of_V, of_mu, of_U
