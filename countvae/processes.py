"""The processes that share a fit, and sums over all of them.

They are started by ``torchrun`` or by whatever else sets up ``torch.distributed``; alone, a sum
over all processes is the sum there is.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from countvae.checks import one_line
from countvae.errors import InputError, NoSuchDevice, ProcessLost

__all__ = ["ALONE", "Processes", "joined", "launched"]


GOES_ON = "the same command with --resume goes on from its checkpoint, if it left one"


@dataclass(frozen=True)
class Processes:
    """How many processes there are, and which is this one."""

    count: int = 1
    rank: int = 0

    def total(self, *parts: Tensor) -> None:
        """Replace each tensor by its sum over all processes."""
        self._each(dist.all_reduce, parts)

    def agree(self, *parts: Tensor) -> None:
        """Replace each tensor by that of the first process."""
        self._each(lambda part: dist.broadcast(part, 0), parts)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Let bad input that one process finds in this block stop all of them, by one sentence.

        For work that each does by itself: nobody may be left waiting for a sum inside it.
        """
        found = None
        try:
            yield
        except InputError as error:
            found = error
        errors = [found] * self.count
        self._each(lambda part: dist.all_gather_object(errors, part), (found,))
        for error in errors:
            if error is not None:
                raise error

    @contextmanager
    def first_holds(self, claim: AbstractContextManager[object]) -> Iterator[None]:
        """Let the first process enter `claim` while all are in this block, or none if it cannot."""
        with ExitStack() as held:
            with self.in_step():
                if self.rank == 0:
                    held.enter_context(claim)
            yield

    @property
    def here(self) -> int:
        """How many of them share the memory of this machine, at most."""
        return min(self.count, int(os.environ.get("LOCAL_WORLD_SIZE", self.count)))

    def share(self, n: int) -> tuple[int, int]:
        """First of n rows that is this process's, and the one after its last."""
        return n * self.rank // self.count, n * (self.rank + 1) // self.count

    def whole(self, own: Tensor, n: int) -> Tensor:
        """Put together the rows that all processes have a share of, (n, ...)."""
        rows = own.new_zeros(n, *own.shape[1:])
        low, high = self.share(n)
        rows[low:high] = own
        self.total(rows)
        return rows

    def _each(self, exchange: Callable[[Any], object], parts: tuple[Any, ...]) -> None:
        if self.count == 1:
            return
        try:
            for part in parts:
                exchange(part)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ProcessLost(
                "another process of the fit has ended, or is out of reach"
                f" ({one_line(str(error))[:200]}); {GOES_ON}."
            ) from error


ALONE = Processes()


def joined() -> Processes:
    """Return the processes of ``torch.distributed``, or this one alone."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_world_size(), dist.get_rank())
    return ALONE


@contextmanager
def launched(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, if it did, and part when all are done.

    Those of a fit on CUDA devices have one each.

    Raises
    ------
    InputError
        If there is no such device for each of those on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        yield joined()
        return
    if device.type == "cuda":
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise NoSuchDevice(
                f"device: process {own + 1} of this machine has no CUDA device of its own, as there"
                f" {'is' if there == 1 else 'are'} {there}; start no more than that, or use 'cpu'."
            )
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield joined()
        # a process that leaves while others are still busy can abort, or take them with it
        dist.barrier()
    finally:
        dist.destroy_process_group()
