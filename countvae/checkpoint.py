"""A folder in which a fit leaves its state, for another process to go on from."""

import functools
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from countvae import store
from countvae.errors import (
    CannotRead,
    CheckpointOfAnother,
    CountvaeWarning,
    DamagedModel,
    InputError,
    NotAModel,
)
from countvae.files import BEGUN, is_empty_folder, sync
from countvae.signals import IGNORED, handled
from countvae.state import Kept, State

__all__ = ["Checkpoint"]

SECONDS_BETWEEN = 30.0

STATE = r"(\d)-(\d{6,})"
UNFINISHED = BEGUN + STATE

KEPT = 2
"""States that stay: should a disk have lost the last one, there is the one before."""


class Checkpoint:
    """The last states of a fit, each a folder of its own that is whole or not there.

    Parameters
    ----------
    folder : path
        Made when the first state is written, and removed by `forget`. What else lies in it stays.
    this_fit : callable
        Says what tells this fit from others, as plain JSON; asked once there is a state.
    """

    def __init__(
        self, folder: str | os.PathLike[str], this_fit: Callable[[], dict[str, Any]]
    ) -> None:
        self.folder = Path(folder)
        self.this_fit = functools.cache(this_fit)
        self._written = time.monotonic()
        self._latest: tuple[int, Kept] | None = None

    def found(self) -> tuple[Kept | None, int]:
        """Return the last whole state that is there, and how often the rate was lowered.

        Raises
        ------
        InputError
            If it is that of another fit, no checkpoint at all, or no state in it is whole.

        Warns
        -----
        CountvaeWarning
            If the last state is damaged, and the one before is taken.
        """
        states = self._states()
        for i, path in enumerate(states):
            try:
                kept, theirs, attempt = _read(path)
            except (DamagedModel, NotAModel, CannotRead) as error:
                if i + 1 == len(states):
                    raise
                warnings.warn(
                    f"{str(error).rstrip('.')}; going on from the state before.",
                    CountvaeWarning,
                    stacklevel=2,
                )
                continue
            ours = self.this_fit()
            if theirs != ours:
                names = sorted(name for name in ours if theirs.get(name) != ours[name])
                raise CheckpointOfAnother(
                    f"{self.folder}: is the checkpoint of another fit, with other"
                    f" {', '.join(names) or 'settings'}."
                )
            return kept, attempt
        return None, 0

    def holds_a_state(self) -> bool:
        """Whether there is a state, whole or damaged, and not only one that was begun."""
        return bool(self._states())

    def keep(self, attempt: int) -> Callable[[State], None]:
        """Return what holds a state, and writes it if the last was written long enough ago.

        Warns
        -----
        CountvaeWarning
            If it cannot be written; that is no reason for a fit to end.
        """

        def hold(state: State) -> None:
            self._latest = attempt, state.kept()
            if time.monotonic() - self._written >= SECONDS_BETWEEN:
                self.try_to_leave()

        return hold

    def try_to_leave(self) -> bool:
        """Write the state held last, or warn that it could not be; say whether it was."""
        try:
            return self.leave()
        except (InputError, OSError) as error:
            self._written = time.monotonic()
            warnings.warn(
                f"{str(error).rstrip('.')}; the fit goes on without this state.",
                CountvaeWarning,
                stacklevel=2,
            )
            return False

    def leave(self) -> bool:
        """Write the state held last, if it is not written yet; say whether one is there."""
        if self._latest is None:
            return self.holds_a_state()
        attempt, kept = self._latest
        epoch = len(kept.settings["history"])
        self.folder.mkdir(exist_ok=True)
        sync(self.folder.absolute().parent)
        settings = {"fit": self.this_fit(), "attempt": attempt, "state": kept.settings}
        place = self.folder / f"{attempt}-{epoch:06}"
        if not store.is_model(place):  # damaged: nothing to be replaced by what is whole
            shutil.rmtree(place, ignore_errors=True)
        store.save(place, kept.arrays, settings, force=True)
        last = self._states()[:KEPT]
        for path in self._ours():
            if path not in last:
                shutil.rmtree(path, ignore_errors=True)
        self._written, self._latest = time.monotonic(), None
        return True

    def leave_at_last(self) -> bool:
        """Write the state held last, if that is possible as the fit ends; say whether it was.

        No further interrupt breaks it off: of launchers one signal follows on another.
        """
        with suppress(InputError, OSError, MemoryError), handled(IGNORED):
            return self.leave()
        return False

    def finish(self) -> None:
        """Leave the last state, if states were left before: until the model is saved."""
        if self.folder.is_dir():
            self.try_to_leave()

    def forget(self) -> None:
        """Remove the states, and the folder if nothing else is in it.

        Raises
        ------
        NotAModel
            If there is something, and no state in it.
        """
        self._states()
        for path in self._ours():
            shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            self.folder.resolve().rmdir()
            self.folder.unlink(missing_ok=True)

    def _ours(self) -> list[Path]:
        """Return the folders of states, unfinished ones too."""
        if not self.folder.is_dir():
            return []
        names = os.listdir(self.folder)
        ours = (name for name in names if re.fullmatch(f"{STATE}|{UNFINISHED}", name))
        return [self.folder / name for name in ours]

    def _states(self) -> list[Path]:
        """Return the folders of states, the last first."""
        ours = self._ours()
        if os.path.lexists(self.folder) and not ours and not is_empty_folder(self.folder):
            raise NotAModel(f"{self.folder}: is no checkpoint of a fit.")
        numbered = [
            (int(found[1]), int(found[2]), path)
            for path in ours
            if (found := re.fullmatch(STATE, path.name))
        ]
        return [path for _, _, path in sorted(numbered, reverse=True)]


def _read(path: Path) -> tuple[Kept, dict[str, Any], int]:
    """Read a state, what tells its fit from others, and how often the rate was lowered.

    Raises
    ------
    InputError
        If the folder is none that `Checkpoint.leave` wrote.
    """
    arrays, settings = store.load(path)
    fit, state, attempt = (settings.get(name) for name in ("fit", "state", "attempt"))
    history = state.get("history") if isinstance(state, dict) else None
    if not (
        isinstance(fit, dict)
        and isinstance(state, dict)
        and isinstance(history, list)
        and type(attempt) is int
        and path.name == f"{attempt}-{len(history):06}"
    ):
        raise DamagedModel(f"{path}: is not the state of a fit, so it was altered.")
    return Kept(arrays, state, str(path)), fit, attempt
