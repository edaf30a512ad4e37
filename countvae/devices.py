"""Where tensors live: on this machine's processor, or on an accelerator."""

from collections.abc import Callable

import torch
from torch import Tensor

from countvae.errors import NoSuchDevice

__all__ = ["DEVICES", "chosen", "factored", "free_bytes", "widest"]

DEVICES = ("auto", "cpu", "cuda", "mps")


def chosen(name: str) -> torch.device:
    """Return a device by its name; "auto" is a CUDA device where there is one, else the processor.

    Raises
    ------
    InputError
        If there is no such device here.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise NoSuchDevice(
            f"device: there is no {name!r} device that this torch can use; use 'cpu'."
        )
    return torch.device(name)


def widest(device: torch.device) -> torch.dtype:
    """Return the widest floating-point numbers of a device: Apple's have no double precision."""
    return torch.float32 if device.type == "mps" else torch.float64


def free_bytes(device: torch.device) -> int | None:
    """Free memory of an accelerator; None where it does not say, or has none of its own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def factored(how: Callable[[Tensor], tuple[Tensor, ...]], matrix: Tensor) -> tuple[Tensor, ...]:
    """Factor a matrix on the processor, as not every device can, and bring the factors back."""
    return tuple(factor.to(matrix.device) for factor in how(matrix.cpu()))
