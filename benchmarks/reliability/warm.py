"""Real `countvae` processes at a tenth of a second each: forked from one that has imported it."""

import contextlib
import fcntl
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SENTENCE = "Error: "
CODES = {2, 3, 4, 5, 6, 130}
"""Exit codes of a process that says what was wrong."""

SYNC_SECONDS = 0.003
"""More that it takes to put a file on the disk, where states are left often."""


@dataclass
class Done:
    """How a process ended.

    Attributes
    ----------
    code : int or None
        Its exit code, minus the signal that ended it, or None of one that was stopped as it hung.
    """

    code: int | None
    out: str
    said: str
    seconds: float

    @property
    def outcome(self) -> str:
        """One of "done", "refused", "traceback", "crashed", "hung"."""
        if self.code is None:
            return "hung"
        if self.code < 0:
            return "crashed"
        if "Traceback" in self.said or self.code not in CODES | {0}:
            return "traceback"
        if self.code == 0:
            return "done"
        one = sum(line.startswith(SENTENCE) for line in self.said.splitlines()) == 1
        return "refused" if one or self.code == 2 else "traceback"


@dataclass
class Warm:
    """A process that has imported countvae, and forks one that runs a command when asked.

    Parameters
    ----------
    folder : Path
        Where commands run.
    """

    folder: Path
    _server: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Start it."""
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.reliability.warm", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "Warm":
        """Give it; it ends with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    @property
    def pid(self) -> int:
        """The number of the process that is forked from."""
        return self._server.pid

    def start(
        self, *arguments: str, limits: dict[str, int] | None = None, often: bool = False
    ) -> int:
        """Start a command; return the number of its process.

        Parameters
        ----------
        *arguments : str
            What follows ``countvae``.
        limits : dict
            Of the system, by name: ``{"RLIMIT_FSIZE": 4096}``.
        often : bool
            Whether a fit leaves its state after every epoch, not twice a minute, and on a disk that
            takes its time, so that stops meet it writing.
        """
        return self._ask({"start": arguments, "limits": limits or {}, "often": often})

    def wait(self, pid: int, timeout: float = 120) -> Done:
        """Wait for it to end, or stop it when the time is over."""
        begun, hung = time.monotonic(), False
        while (ended := self._ask({"ended": pid})) is None:
            if time.monotonic() - begun > timeout and not hung:
                hung = True
                os.killpg(pid, signal.SIGKILL)  # and what it waits for
            time.sleep(0.005)
        status, out, said = ended
        code = None if hung else os.waitstatus_to_exitcode(status)
        return Done(code, out, said, time.monotonic() - begun)

    def run(self, *arguments: str, timeout: float = 120, **how: Any) -> Done:
        """Start a command and wait for it."""
        return self.wait(self.start(*arguments, **how), timeout)

    def _ask(self, what: dict[str, Any]) -> Any:
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def serve(folder: str) -> None:
    """Answer the questions that come in, a line each."""
    import countvae.cli
    import countvae.demo
    import countvae.report  # noqa: F401

    os.chdir(folder)
    pipes = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "ended" in asked:
            pid, status = os.waitpid(asked["ended"], os.WNOHANG)
            said = [_all_of(pipe) for pipe in pipes.pop(pid)] if pid else []
            print(json.dumps([status, *said] if pid else None), flush=True)
            continue
        (out, to_out), (said, to_said) = _pipe(), _pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(to_out, 1)
            os.dup2(to_said, 2)
            _be(asked["start"], asked["limits"], asked["often"])
        os.close(to_out)
        os.close(to_said)
        pipes[pid] = out, said
        print(json.dumps(pid), flush=True)


def _pipe() -> tuple[int, int]:
    """Return the ends of a pipe that holds all that a command says: limits of files spare it."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 2**20)
    return ends


def _all_of(pipe: int) -> str:
    with os.fdopen(pipe, "rb") as file:
        return file.read().decode(errors="replace")


def _slowly(sync: Callable[[int], None], file: int) -> None:
    time.sleep(SYNC_SECONDS)
    sync(file)


def _be(arguments: Sequence[str], limits: dict[str, int], often: bool) -> None:
    """Become the command, and never return."""
    import countvae.checkpoint
    import countvae.cli

    code = 1
    try:
        os.setpgid(0, 0)
        os.close(0)
        sys.argv = ["countvae", *arguments]
        if often:
            countvae.checkpoint.SECONDS_BETWEEN = 0.0
            os.fsync = functools.partial(_slowly, os.fsync)
        for name, most in limits.items():
            resource.setrlimit(getattr(resource, name), (most, most))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        countvae.cli.main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
