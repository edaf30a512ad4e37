"""The encoders, q(z | x) = N( F_L(Psi' log(x + pseudocount) - mu), D )."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from countvae.layers import ACTIVATIONS, Grid, convolution, dense, zeros
from countvae.logs import Logs, centred_logs

LOG_D_RANGE = (-16.0, 2.0)


class Encoder(nn.Module):
    """F_L and D: a linear map plus a network whose last layer starts at zero: depth only adds.

    F_1 is linear. Both read the CLR of the pseudocounted counts less the centre: Psi and Psi'
    cancel. Covariates are read beside it, so that the factors need not follow them. What the
    network is, a subclass says: of `hidden` layers, and a `last` one.

    Parameters
    ----------
    A : (d, k)
        Linear map of the start.
    b, log_D : (k,)
        Its offset and the logarithm of the posterior variance.
    centre : (d,)
        The centre subtracted from the CLR of the input.
    depth : int
        L, at least 1.
    shared_D : bool
        One posterior variance for all samples, as in the paper, or one for each sample.
    covariates : int
        Columns of f; what the linear map makes of them is `A_f`, zero at the start.
    """

    centre: Tensor
    last: nn.Linear

    def __init__(
        self,
        A: Tensor,
        b: Tensor,
        log_D: Tensor,
        centre: Tensor,
        *,
        depth: int,
        pseudocount: float,
        shared_D: bool,
        covariates: int = 0,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.pseudocount = pseudocount
        self.shared_D = shared_D
        self.A = nn.Parameter(A.clone())
        self.A_f = nn.Parameter(A.new_zeros(covariates, A.shape[1]))
        self.b = nn.Parameter(b.clone())
        self.log_D = nn.Parameter(log_D.clone())
        self.register_buffer("centre", centre.clone())

    def _end(self, width: int) -> None:
        """Make the last layer of the network."""
        k = len(self.b)
        self.last = zeros(width, k if self.shared_D else 2 * k, self.A)

    def _seen(
        self, x: Float[Tensor, "b d"], inputs: Logs | Tensor, f: Float[Tensor, "b p"] | None
    ) -> Float[Tensor, "b width"]:
        """Return what the hidden layers make of counts, their centred logs and covariates."""
        raise NotImplementedError

    @property
    def wide(self) -> list[nn.Parameter]:
        """Parameters whose rows are features: a step of theirs moves sums over all of these."""
        return [self.A]

    def forward(
        self,
        x: Float[Tensor, "b d"],
        f: Float[Tensor, "b p"] | None = None,
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Posterior mean z_hat and variance D of each sample, given its covariates f."""
        learned = isinstance(self.pseudocount, Tensor)
        inputs = (centred_logs if learned else Logs)(x, self.pseudocount, self.centre)
        z = self.b + _read(inputs, f, self.A, self.A_f)
        log_D = self.log_D.expand_as(z)
        if self.depth > 1:
            deep = self.last(self._seen(x, inputs, f))
            z = z + deep[:, : z.shape[1]]
            if not self.shared_D:
                log_D = log_D + deep[:, z.shape[1] :]
        return z, log_D.clamp(*LOG_D_RANGE).exp()

    @torch.no_grad()
    def rescale(
        self,
        A: Float[Tensor, "k k"],
        shift: Float[Tensor, " k"],
        slope: Float[Tensor, "k p"] | None = None,
    ) -> None:
        """Encode into u where z = A u + shift + slope f.

        The mean exactly; log D to first order where A mixes factors, exactly where it does not.
        """
        inverse = torch.linalg.inv(A)
        self.A.copy_(self.A @ inverse.T)
        self.b.copy_(inverse @ (self.b - shift))
        if slope is not None:
            self.A_f.copy_((self.A_f - slope.T) @ inverse.T)
        parts = inverse.square() * self.log_D.exp()
        self.log_D.copy_(parts.sum(1).log())
        if self.depth > 1:
            k = len(self.b)
            shares = parts / parts.sum(1, keepdim=True)
            for of_last in (self.last.weight, self.last.bias):
                of_last[:k] = inverse @ of_last[:k]
                if not self.shared_D:
                    of_last[k:] = shares @ of_last[k:]

    @torch.no_grad()
    def recentre(self, centre: Float[Tensor, " d"]) -> None:
        """Subtract another centre from the input and encode the same."""
        self.b += (centre - self.centre) @ self.A
        self.centre.copy_(centre)


def _read(
    inputs: Logs | Tensor,
    f: Float[Tensor, "b p"] | None,
    W: Float[Tensor, "d h"],
    W_f: Float[Tensor, "p h"],
) -> Float[Tensor, "b h"]:
    """Take inputs and covariates through a layer that has weights for both."""
    return inputs @ W if f is None or f.shape[1] == 0 else inputs @ W + f @ W_f


class DenseEncoder(Encoder):
    """F_L with L > 1 adds a network of L dense layers.

    Parameters
    ----------
    start, depth, settings
        As of `Encoder`.
    width : int
        Units of each hidden layer.
    generator : torch.Generator, optional
        Draws the hidden layers.
    """

    def __init__(
        self,
        *start: Tensor,
        depth: int,
        width: int,
        activation: str,
        generator: torch.Generator | None,
        **settings: Any,
    ) -> None:
        super().__init__(*start, depth=depth, **settings)
        if depth > 1:
            A, k, p = start[0], len(self.b), len(self.A_f)
            like = {"generator": generator, "dtype": A.dtype, "device": A.device}
            self.G = nn.Parameter(A @ (torch.randn(k, width, **like) / k**0.5))
            self.G_f = nn.Parameter(A.new_zeros(p, width))
            self.G_bias = nn.Parameter(torch.randn(width, **like) / 2)
            layers: list[nn.Module] = [ACTIVATIONS[activation]()]
            for _ in range(depth - 2):
                layers += [dense(width, width, generator, A), ACTIVATIONS[activation]()]
            self.hidden = nn.Sequential(*layers)
            self._end(width)

    def _seen(self, x, inputs, f):
        return self.hidden(self.G_bias + _read(inputs, f, self.G, self.G_f))

    @property
    def wide(self) -> list[nn.Parameter]:
        """The linear map and the first layer."""
        return [self.A, self.G] if self.depth > 1 else [self.A]

    @torch.no_grad()
    def recentre(self, centre: Float[Tensor, " d"]) -> None:
        """Subtract another centre from the input and encode the same."""
        if self.depth > 1:
            self.G_bias += (centre - self.centre) @ self.G
        super().recentre(centre)


class ConvEncoder(Encoder):
    """F_L with L > 1 adds L - 1 convolutions of the logs on their grid, and a dense layer.

    Every convolution but the first halves the grid.

    Parameters
    ----------
    start, depth, settings
        As of `Encoder`.
    grid : Grid
        Where the features lie.
    width : int
        Channels of each convolution.
    generator : torch.Generator, optional
        Draws the convolutions.
    """

    seen_from: Tensor

    def __init__(
        self,
        *start: Tensor,
        grid: Grid,
        depth: int,
        width: int,
        activation: str,
        generator: torch.Generator | None,
        **settings: Any,
    ) -> None:
        super().__init__(*start, depth=depth, **settings)
        self.grid = grid
        if depth > 1:
            A = start[0]
            # not `centre`, which moves: no convolution could follow it
            self.register_buffer("seen_from", self.centre.clone())
            layers: list[nn.Module] = []
            for i in range(depth - 1):
                inputs, stride = (width, 2) if i else (grid.channels, 1)
                shape = grid.halved(max(0, i - 1)).shape
                layers += [
                    convolution(inputs, width, shape, stride, generator, A),
                    ACTIVATIONS[activation](),
                ]
            self.hidden = nn.Sequential(*layers)
            self._end(width * grid.halved(depth - 2).positions)

    def _seen(self, x, inputs, f):
        logs = centred_logs(x, self.pseudocount, self.seen_from)
        return self.hidden(self.grid.images(logs)).flatten(1)
