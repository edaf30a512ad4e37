"""What networks are made of: activations, layers, and the grid on which features may lie.

Layers take number format and device from a tensor they are to be `like`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Grid", "convolution", "dense", "transposed_convolution", "zeros"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}


class Grid(NamedTuple):
    r"""Positions along one or two axes, with as many features at each as there are channels.

    Feature number j is that of ``images.reshape(n, -1)`` for images of shape
    (n, \*shape, channels).
    """

    shape: tuple[int, ...]
    channels: int = 1

    @property
    def positions(self) -> int:
        """Positions in all."""
        return math.prod(self.shape)

    @property
    def d(self) -> int:
        """Features in all."""
        return self.positions * self.channels

    def images(self, flat: Float[Tensor, "b d"]) -> Float[Tensor, "b channels *shape"]:
        """Put rows of features on the grid, channels first."""
        return flat.reshape(len(flat), *self.shape, self.channels).movedim(-1, 1)

    def flat(self, images: Float[Tensor, "b channels *shape"]) -> Float[Tensor, "b d"]:
        """Undo `images`."""
        return images.movedim(1, -1).reshape(len(images), -1)

    def halved(self, times: int) -> "Grid":
        """Return the grid of every second position, so many times over."""
        shape = self.shape
        for _ in range(times):
            shape = tuple(-(-size // 2) for size in shape)
        return Grid(shape, self.channels)


def convolution(
    inputs: int,
    outputs: int,
    shape: Sequence[int],
    stride: int,
    generator: torch.Generator | None,
    like: Tensor,
) -> nn.Conv1d | nn.Conv2d:
    """Make a layer that looks at three positions along each axis of images of a `shape`."""
    kind = (nn.Conv1d, nn.Conv2d)[len(shape) - 1]
    layer = kind(inputs, outputs, 3, stride, 1, dtype=like.dtype, device="meta")
    return _drawn(layer, inputs * math.prod(min(3, size) for size in shape), generator, like)


def transposed_convolution(
    inputs: int, outputs: int, shape: Sequence[int], generator: torch.Generator | None, like: Tensor
) -> nn.ConvTranspose1d | nn.ConvTranspose2d:
    """Make a layer that doubles the positions along each axis, to at least `shape`."""
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[len(shape) - 1]
    layer = kind(inputs, outputs, 4, 2, 1, dtype=like.dtype, device="meta")
    # each output sees two positions along an axis, or the one there is
    seen = math.prod(min(2, -(-size // 2)) for size in shape)
    return _drawn(layer, inputs * seen, generator, like)


def dense(inputs: int, outputs: int, generator: torch.Generator | None, like: Tensor) -> nn.Linear:
    """Make a layer of all inputs."""
    return _drawn(
        nn.Linear(inputs, outputs, dtype=like.dtype, device="meta"), inputs, generator, like
    )


@torch.no_grad()
def zeros(inputs: int, outputs: int, like: Tensor) -> nn.Linear:
    """Make a layer of all inputs that gives zero."""
    layer = nn.Linear(inputs, outputs, dtype=like.dtype, device="meta")
    layer.to_empty(device=like.device)
    layer.weight.zero_()
    layer.bias.zero_()
    return layer


@torch.no_grad()
def _drawn(layer, seen: int, generator: torch.Generator | None, like: Tensor):
    """Draw weights that keep the size of what goes through, `seen` inputs an output.

    Layers are made on no device first: torch would draw them by its global generator.
    """
    layer.to_empty(device=like.device)
    layer.weight.normal_(0, (2 / seen) ** 0.5, generator=generator)
    layer.bias.zero_()
    return layer
