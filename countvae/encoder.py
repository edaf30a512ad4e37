"""The encoder, q(z | x) = N( F_L(Psi' log(x + pseudocount) - mu), D )."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from countvae.logs import Logs, centred_logs

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}

LOG_D_RANGE = (-16.0, 2.0)


class Encoder(nn.Module):
    """F_L and D: a linear map plus a deep network that starts at zero, so depth only adds.

    F_1 is linear. F_L with L > 1 adds a network of L dense layers, the last of which starts at
    zero. Both read the CLR of the pseudocounted counts less the centre: Psi and Psi' cancel.

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
    width : int
        Units of each hidden layer.
    shared_D : bool
        One posterior variance for all samples, as in the paper, or one for each sample.
    generator : torch.Generator
        Draws the hidden layers.
    """

    centre: Tensor

    def __init__(
        self,
        A: Tensor,
        b: Tensor,
        log_D: Tensor,
        centre: Tensor,
        *,
        depth: int,
        width: int,
        activation: str,
        pseudocount: float,
        shared_D: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        k = A.shape[1]
        self.pseudocount = pseudocount
        self.shared_D = shared_D
        self.A = nn.Parameter(A.clone())
        self.b = nn.Parameter(b.clone())
        self.log_D = nn.Parameter(log_D.clone())
        self.register_buffer("centre", centre.clone())
        self.G = None
        if depth > 1:
            mix = torch.randn(k, width, generator=generator, dtype=A.dtype) / k**0.5
            self.G = nn.Parameter(A @ mix)
            self.G_bias = nn.Parameter(torch.randn(width, generator=generator, dtype=A.dtype) / 2)
            layers: list[nn.Module] = [ACTIVATIONS[activation]()]
            for _ in range(depth - 2):
                layers += [
                    _dense(width, width, generator, A.dtype),
                    ACTIVATIONS[activation](),
                ]
            self.hidden = nn.Sequential(*layers)
            outputs = k if shared_D else 2 * k
            self.last = _unset(width, outputs, A.dtype)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(
        self,
        x: Float[Tensor, "b d"],
        f: Float[Tensor, "b p"] | None = None,
        Theta: Float[Tensor, "d p"] | None = None,
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Posterior mean z_hat and variance D of each sample.

        With covariates f the input is what they leave of it, less Theta f.
        """
        learned = isinstance(self.pseudocount, Tensor)
        inputs = (centred_logs if learned else Logs)(x, self.pseudocount, self.centre)

        def read(W: Float[Tensor, "d h"]) -> Float[Tensor, "b h"]:
            if f is None or Theta is None or f.shape[1] == 0:
                return inputs @ W
            return inputs @ W - f @ (Theta.T @ W)

        z = self.b + read(self.A)
        log_D = self.log_D.expand_as(z)
        if self.G is not None:
            deep = self.last(self.hidden(self.G_bias + read(self.G)))
            z = z + deep[:, : z.shape[1]]
            if not self.shared_D:
                log_D = log_D + deep[:, z.shape[1] :]
        return z, log_D.clamp(*LOG_D_RANGE).exp()

    @torch.no_grad()
    def rescale(self, A: Float[Tensor, "k k"], shift: Float[Tensor, " k"]) -> None:
        """Encode into u where z = A u + shift.

        The mean exactly; log D to first order where A mixes factors, exactly where it does not.
        """
        inverse = torch.linalg.inv(A)
        self.A.copy_(self.A @ inverse.T)
        self.b.copy_(inverse @ (self.b - shift))
        parts = inverse.square() * self.log_D.exp()
        self.log_D.copy_(parts.sum(1).log())
        if self.G is not None:
            k = len(self.b)
            shares = parts / parts.sum(1, keepdim=True)
            for of_last in (self.last.weight, self.last.bias):
                of_last[:k] = inverse @ of_last[:k]
                if not self.shared_D:
                    of_last[k:] = shares @ of_last[k:]

    @torch.no_grad()
    def recentre(self, centre: Float[Tensor, " d"]) -> None:
        """Subtract another centre from the input and encode the same."""
        shift = centre - self.centre
        self.b += shift @ self.A
        if self.G is not None:
            self.G_bias += shift @ self.G
        self.centre.copy_(centre)


def _dense(inputs: int, outputs: int, generator: torch.Generator, dtype: torch.dtype) -> nn.Linear:
    layer = _unset(inputs, outputs, dtype)
    with torch.no_grad():
        layer.weight.normal_(0, (2 / inputs) ** 0.5, generator=generator)
        layer.bias.zero_()
    return layer


def _unset(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    """Make a layer without drawing from torch's global generator."""
    return nn.Linear(inputs, outputs, dtype=dtype, device="meta").to_empty(device="cpu")
