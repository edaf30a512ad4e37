"""Threads for the parts of an operation, instead of threads within each operation."""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["cut", "one_thread_an_operation", "share", "worth"]

WORTH_ENTRIES = 1 << 18
"""Entries of a batch from which its plain arithmetic is shared out among threads."""

_for_parts: ContextVar[int | None] = ContextVar("threads_for_parts", default=None)


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Give each operation one thread, and the threads it had to those that `share` their parts.

    Short operations split over threads wait at a barrier each. Where another process has a core,
    those waits cost a hundred times the arithmetic.
    """
    token = _for_parts.set(torch.get_num_threads())
    try:
        with _openmp().limit(limits=1):
            yield
    finally:
        _for_parts.reset(token)


def worth(entries: int, device: torch.device, least: int = WORTH_ENTRIES) -> int:
    """Threads that work on so many entries is worth sharing among; elsewhere than here, none."""
    if entries < least or device.type != "cpu":
        return 1
    return _for_parts.get() or torch.get_num_threads()


def cut(size: int, threads: int) -> list[slice]:
    """Cut a range into a slice for each thread; one of nothing into a slice of nothing."""
    step = max(1, -(-size // threads))
    return [slice(i, min(i + step, size)) for i in range(0, max(1, size), step)]


def share(work: Callable[[Any], Any], parts: list[Any], threads: int) -> list[Any]:
    """Do the parts of some work, on threads of their own where there are several."""
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]
    return list(_pool(threads).map(work, parts))


@functools.cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that do a part each, and record nothing for autograd.

    The libraries are looked up here, not in the threads.
    """
    openmp = _openmp()

    def work_alone() -> None:
        openmp.limit(limits=1)
        torch.set_grad_enabled(False)

    return ThreadPoolExecutor(threads, "countvae", work_alone)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
