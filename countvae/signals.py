"""What a signal does for a while."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["IGNORED", "handled", "noted"]

IGNORED = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}
"""What ends a program by Ctrl-C or a cluster's order does nothing for a while."""


@contextmanager
def handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Let signals do what is given here; only the main thread can, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Let a signal that would interrupt this block be noted, and interrupt it the second time.

    Yields
    ------
    callable
        Says whether there was one.
    """
    seen = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    interrupting = [n for n in IGNORED if signal.getsignal(n) is signal.default_int_handler]
    with handled(dict.fromkeys(interrupting, note)):
        yield lambda: bool(seen)
