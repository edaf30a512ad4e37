"""``python -m countvae`` is the command ``countvae``."""

import os
import signal
from typing import Any, NoReturn

USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""What signals do that nobody has told otherwise."""


def main() -> None:
    """Run the command; its imports take seconds, in which it can be interrupted too."""
    ours = [number for number, usual in USUAL.items() if signal.getsignal(number) is usual]
    for number in ours:
        signal.signal(number, _end)
    from countvae.cli import main as command

    for number in ours:
        signal.signal(number, USUAL[number])
    command(prog_name="countvae")


def _end(number: int, frame: Any) -> NoReturn:
    os.write(2, b"Error: interrupted; nothing was written.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
