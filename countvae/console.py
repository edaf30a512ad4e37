"""The manners of the command line: exit codes, sentences for errors, progress, kinds of options.

=========  =============================================================
exit code  meaning
=========  =============================================================
0          fine
1          an error of the program's own
2          usage: an unknown option, a missing argument
3          bad input, or an output that cannot be written
4          did not converge, or not finite
5          out of memory
6          another process of the fit ended
130        interrupted
=========  =============================================================
"""

import io
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TextIO

import click
import torch

from countvae.errors import (
    CountvaeWarning,
    Diverged,
    InputError,
    ProcessLost,
    out_of_memory,
)
from countvae.signals import handled

__all__ = [
    "COUNT",
    "EXIT_CODES",
    "ONE_OR_MORE",
    "PATH",
    "POSITIVE",
    "SEED",
    "Numbers",
    "Program",
    "Progress",
    "Reads",
    "explain",
    "together",
]

EXIT_CODES: dict[type[BaseException], int] = {
    InputError: 3,
    OSError: 3,
    Diverged: 4,
    MemoryError: 5,
    torch.cuda.OutOfMemoryError: 5,
    ProcessLost: 6,
    KeyboardInterrupt: 130,
}
INTERNAL_ERROR = 1
COMMANDS = "countvae.commands"
"""Entry points by which an installed package adds a command."""

AS_CTRL_C = {signal.SIGTERM: signal.default_int_handler}
"""By SIGTERM clusters end a job."""

SECONDS_BETWEEN_LINES = 5.0

WORTH_SAYING = 0.05
"""Share of a fit's time from which on waiting for the disk is reported."""


class Exemplary(click.Command):
    """A command whose help begins with an example."""

    def __init__(self, *args: Any, example: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then what click writes."""
        formatter.write(f"Example: {self.example}\n\n")
        super().format_help(ctx, formatter)


class Program(Exemplary, click.Group):
    """A group of commands that ends in one sentence and one of the exit codes."""

    command_class = Exemplary

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the program's own commands, then those of installed packages."""
        return [*super().list_commands(ctx), *sorted(entry_points(group=COMMANDS).names)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command: the program's own, or else one of an installed package."""
        if own := super().get_command(ctx, cmd_name):
            return own
        return next((point.load() for point in entry_points(group=COMMANDS, name=cmd_name)), None)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; say what went wrong on stderr."""
        with _said_once(ctx), redirect_stderr(_Heedless(sys.stderr)):
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings(), handled(AS_CTRL_C):
                warnings.simplefilter("always", CountvaeWarning)
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            code, sentence = explain(error)
            if ctx.meta.get("debug"):
                traceback.print_exc()
            click.echo(f"Error: {sentence}", err=True)
            # what these hold is let go of now: a file that cannot be closed has its say here
            traceback.clear_frames(error.__traceback__)
            ctx.exit(code)


class _Heedless:
    """A stream that is written to whether or not anybody can still read it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _said_once(ctx: click.Context) -> Iterator[None]:
    """Keep h5py from printing what it finds as it lets go of a file on a full disk."""
    before = sys.unraisablehook, sys.excepthook

    def unsaid(which: int) -> Callable[..., None]:
        return lambda *what: before[which](*what) if ctx.meta.get("debug") else None

    sys.unraisablehook, sys.excepthook = unsaid(0), unsaid(1)
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = before


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and the sentence for it.

    Parameters
    ----------
    error : BaseException
        Whatever ended a command.

    Returns
    -------
    (int, str)

    Examples
    --------
    >>> explain(InputError("counts: expected values >= 0; got -1."))
    (3, 'counts: expected values >= 0; got -1.')
    >>> explain(MemoryError())
    (5, 'out of memory.')
    """
    code = next((c for kind, c in EXIT_CODES.items() if isinstance(error, kind)), INTERNAL_ERROR)
    if out_of_memory(error):
        code = EXIT_CODES[MemoryError]
    text, notes = " ".join(str(error).split()), getattr(error, "__notes__", [])
    if code == EXIT_CODES[MemoryError]:
        text = "out of memory."
    elif code == EXIT_CODES[KeyboardInterrupt]:
        text, notes = "interrupted", notes or ["nothing was written."]
    elif code == EXIT_CODES[Diverged]:
        text, notes = f"the fit did not converge: {text}", notes or ["nothing was written."]
    elif isinstance(error, OSError):
        text = f"{error.filename or 'stdout'}: {error.strerror or text}."
    elif code == INTERNAL_ERROR:
        return code, f"{type(error).__name__}: {text} (unexpected; --debug shows where)"
    return code, "; ".join([text.rstrip("."), *notes]) if notes else text


class Progress:
    """Epochs and the time left, on stderr: a bar on a terminal, else a line every few seconds.

    Parameters
    ----------
    stream : file
        Where to write; no colour and no escape codes are used.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self, stream: TextIO | io.TextIOBase, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream, self.clock = stream, clock
        self.bar = stream.isatty()
        self.first = self.last = clock()
        self.waited = self.waited_first = 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        """Report an epoch: a row of `history_`, `max_epochs` and `waited`."""
        now, epoch, total = self.clock(), row["epoch"], row["max_epochs"]
        if epoch == 1:
            self.first, self.waited_first = now, row["waited"]
        self.waited = row["waited"] - self.waited_first
        if not self.bar and now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        line = f"epoch {epoch}/{total}  bound {row['bound']:.2f}  sigma2 {row['sigma2']:.3g}"
        if epoch > 1:
            line += f"  {(now - self.first) / (epoch - 1) * (total - epoch):.0f} s left"
        if self.bar:
            done = round(16 * epoch / total)
            self.stream.write(f"\r[{'#' * done}{'.' * (16 - done)}] {line:<58}")
        else:
            self.stream.write(f"{line}\n")
        self.stream.flush()

    def __enter__(self) -> "Progress":
        """Begin; nothing is written before the first epoch."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar on a line of its own; say what waiting for the disk took of the time."""
        if self.bar:
            self.stream.write("\n")
        if self.waited > WORTH_SAYING * (self.clock() - self.first):
            self.stream.write(f"waiting for the disk took {self.waited:.1f} s of it\n")
        self.stream.flush()


PATH = click.Path(path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)
COUNT = click.IntRange(min=0)


class Reads(click.FloatRange):
    """A depth; NaN, which every range lets pass, is none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Refuse NaN after what the range refuses."""
        depth = super().convert(value, param, ctx)
        return self.fail(f"{value} is no number of reads.", param, ctx) if depth != depth else depth


class Numbers(click.ParamType):
    """Whole numbers of at least one, with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        """Split and convert."""
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            numbers = []
        if not numbers or min(numbers) < 1:
            self.fail(f"expected whole numbers >= 1 such as 2,4,8; got {value!r}.", param, ctx)
        return numbers


class Sizes(click.ParamType):
    """Positions along one axis, or two with an x between them."""

    name = "sizes"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        """Split and convert."""
        if isinstance(value, list):
            return value
        try:
            sizes = [int(part) for part in value.lower().split("x")]
        except ValueError:
            sizes = []
        if len(sizes) not in (1, 2) or min(sizes) < 1:
            self.fail(f"expected one or two whole numbers such as 8x8; got {value!r}.", param, ctx)
        return sizes


ONE_OR_MORE = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make one decorator of several options, shown in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _show_warning(message: Warning | str, *_: Any) -> None:
    click.echo(f"Warning: {message}", err=True)
