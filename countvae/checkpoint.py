"""A folder in which a fit leaves its state, for another process to go on from."""

import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from countvae import store
from countvae.errors import (
    CheckpointOfAnother,
    CountvaeWarning,
    DamagedModel,
    NotAModel,
)
from countvae.training import Kept, State

__all__ = ["Checkpoint"]

SECONDS_BETWEEN = 30.0

KEPT = 2
"""States that stay: should a disk have lost the last one, there is the one before."""


class Checkpoint:
    """The last states of a fit, each a folder of its own that is whole or not there.

    Parameters
    ----------
    folder : path
        Made when the first state is written, and removed by `forget`.
    this_fit : dict
        What tells this fit from others, as plain JSON.
    """

    def __init__(self, folder: str | os.PathLike[str], this_fit: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.this_fit = this_fit
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
                arrays, settings = store.load(path)
            except (DamagedModel, NotAModel) as error:
                if i + 1 == len(states):
                    raise
                warnings.warn(
                    f"{str(error).rstrip('.')}; going on from the state before.",
                    CountvaeWarning,
                    stacklevel=2,
                )
                continue
            fit = settings["fit"]
            if fit != self.this_fit:
                names = sorted(n for n in self.this_fit if fit.get(n) != self.this_fit[n])
                raise CheckpointOfAnother(
                    f"{self.folder}: is the checkpoint of another fit, with other"
                    f" {', '.join(names)}."
                )
            return Kept(arrays, settings["state"]), settings["attempt"]
        return None, 0

    def keep(self, attempt: int) -> Callable[[State], None]:
        """Return what holds a state, and writes it if the last was written long enough ago."""

        def hold(state: State) -> None:
            self._latest = attempt, state.kept()
            if time.monotonic() - self._written >= SECONDS_BETWEEN:
                self.leave()

        return hold

    def leave(self) -> bool:
        """Write the state held last, and say whether there was one."""
        if self._latest is None:
            return False
        attempt, kept = self._latest
        epoch = len(kept.settings["history"])
        self.folder.mkdir(exist_ok=True)
        settings = {"fit": self.this_fit, "attempt": attempt, "state": kept.settings}
        store.save(self.folder / f"{attempt}-{epoch:06}", kept.arrays, settings, force=True)
        last = self._states()[:KEPT]
        for path in self.folder.iterdir():
            if path not in last:
                shutil.rmtree(path)
        self._written = time.monotonic()
        return True

    def forget(self) -> None:
        """Remove the folder.

        Raises
        ------
        NotAModel
            If it holds anything but states.
        """
        self._states()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _states(self) -> list[Path]:
        """Return the folders of states, the last first."""
        if not os.path.lexists(self.folder):
            return []
        names = os.listdir(self.folder) if self.folder.is_dir() else [""]
        if not all(re.fullmatch(r"(\.[0-9a-f]{8}-)?\d-\d{6,}", name) for name in names):
            raise NotAModel(f"{self.folder}: is no checkpoint of a fit.")
        whole = sorted((name for name in names if not name.startswith(".")), reverse=True)
        return [self.folder / name for name in whole]
