"""All that an epoch leaves to the next, to go on from or to store."""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from countvae.decoder import Decoder
from countvae.encoder import Encoder
from countvae.errors import DamagedModel, Diverged, out_of_memory
from countvae.moments import Moments
from countvae.rows import Rows
from countvae.shrinkage import Shrinkage
from countvae.steps import OF_OPTIMIZER


@dataclass(frozen=True)
class Kept:
    """A state as arrays and plain JSON, and what sentences call it."""

    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    name: str = "kept"


class Within(NamedTuple):
    """An epoch as it is after some of its steps."""

    steps: int
    begun: Tensor
    """The generator as the epoch began."""
    moments: Moments
    of_U: Tensor | None
    log_scale: Tensor


def watched(row: Mapping[str, float | int]) -> float:
    """Return the bound by which an epoch is judged: that of what was held out, if it has one."""
    return row.get("validation_bound", row["bound"])


class State:
    """All that an epoch leaves to the next, besides what the settings say.

    Attributes
    ----------
    shrinkage : Shrinkage or None
        The prior on the loadings, while there is one.
    log_scale : (n,)
        The log-scale of each sample when it was last solved.
    history : list of dict
        A row for each epoch done.
    best_bound, best_epoch, best
        The best so far of what is watched, when that was, and, where samples are held out, encoder
        and decoder of then.
    stopped : bool
        Whether patience has run out.
    whole
        Encoder and decoder of the last epoch that was done.
    within : Within or None
        What was done of the next epoch, if that was begun and broken off.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        rows: Rows,
    ) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self.optimizer, self.generator = optimizer, generator
        self.shrinkage: Shrinkage | None = None
        self.log_scale = torch.zeros(rows.n, dtype=rows.dtype, device=rows.device)
        self.history: list[dict[str, float | int]] = []
        self.best_bound, self.best_epoch = -math.inf, 0
        self.best: dict[str, Tensor] | None = None
        self.stopped = False
        self.whole: dict[str, Tensor] | None = None
        self.within: Within | None = None
        self.n, self.steps = rows.n, math.ceil(rows.n / rows.batch_size)

    def add(self, row: dict[str, float | int], patience: int | None) -> None:
        """Take in an epoch that was done."""
        self.history.append(row)
        self.whole = {name: part.clone() for name, part in self.both.state_dict().items()}
        epoch, bound = len(self.history) - 1, watched(row)
        if bound > self.best_bound:
            self.best_bound, self.best_epoch = bound, epoch
            if "validation_bound" in row:
                self.best = self.whole
        elif patience is not None and epoch - self.best_epoch >= patience:
            self.stopped = True

    def return_to_best(self) -> None:
        """Give encoder and decoder the parts of the best epoch, where samples were held out."""
        if self.best is not None:
            self.both.load_state_dict(self.best)

    def diverged(self, sentence: str, samples: Sequence[int] = ()) -> Diverged:
        """Return to the best epoch there was, and make the error."""
        self.best = self.best or self.whole
        self.return_to_best()
        return Diverged(sentence, samples, self.history)

    @contextmanager
    def diverging(self) -> Iterator[None]:
        """Call it divergence that a matrix cannot be factored."""
        try:
            yield
        except torch.linalg.LinAlgError as error:  # pyright: ignore
            epoch = len(self.history) + 1
            raise self.diverged(f"the factors have no covariance in epoch {epoch}") from error

    def kept(self) -> Kept:
        """Return a copy as arrays and plain JSON."""
        tensors = {f"now.{name}": t for name, t in self.both.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in (self.best or {}).items()}
        tensors |= {"log_scale": self.log_scale, "generator": self.generator.get_state()}
        for i, of_one in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in of_one.items()}
        if self.shrinkage is not None:
            parts = vars(self.shrinkage).items()
            tensors |= {f"shrinkage.{name}": t for name, t in parts if t is not None}
        settings = {
            "history": list(self.history),
            "best_bound": None if self.best_bound == -math.inf else self.best_bound,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "rates": [group["rate"] for group in self.optimizer.param_groups],
        }
        if (within := self.within) is not None:
            tensors |= {f"within.moments.{name}": t for name, t in within.moments.parts().items()}
            tensors |= {f"whole.{name}": t for name, t in (self.whole or {}).items()}
            tensors |= {"within.log_scale": within.log_scale, "within.begun": within.begun}
            tensors |= {} if within.of_U is None else {"within.of_U": within.of_U}
            settings["steps"] = within.steps
        arrays = {name: t.detach().cpu().numpy().copy() for name, t in tensors.items()}
        return Kept(arrays, settings)

    def restore(self, kept: Kept, columns: Set[str]) -> None:
        """Become what was kept, whose history has these columns.

        Raises
        ------
        DamagedModel
            If it is not the state of such a fit; this one is then of no use.
        """
        try:
            self._restore(kept, columns)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise DamagedModel(
                f"{kept.name}: is not the state of such a fit, so it was altered."
            ) from error

    def _restore(self, kept: Kept, columns: Set[str]) -> None:
        tensors = {name: torch.from_numpy(array) for name, array in kept.arrays.items()}

        def room(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }

        now = room("now.")
        _check_alike(now, self.both.state_dict())
        self.both.load_state_dict(now)
        if best := room("best."):
            _check_alike(best, now)
            self.best = best
        _check_alike({"log_scale": tensors["log_scale"]}, {"log_scale": self.log_scale})
        self.log_scale = tensors["log_scale"].to(self.log_scale)
        self.generator.set_state(tensors["generator"])
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in room("optimizer.").items():
            i, _, part = name.partition(".")
            states.setdefault(int(i), {})[part] = tensor
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        kinds = OF_OPTIMIZER[type(self.optimizer).__name__]
        for i, of_one in states.items():
            one = torch.zeros(())
            _check_alike(of_one, {n: one if n == "step" else parameters[i] for n in kinds})
        groups = self.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, kept.settings["rates"], strict=True):
            group["rate"] = float(rate)
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        if parts := room("shrinkage."):
            loadings = self.decoder.loadings.detach()
            self.shrinkage = Shrinkage(loadings, None if self.shrinkage is None else loadings)
            _check_alike(parts, {n: t for n, t in vars(self.shrinkage).items() if t is not None})
            vars(self.shrinkage).update({n: t.to(self.decoder.V) for n, t in parts.items()})
        self.history = [dict(row) for row in kept.settings["history"]]
        for i, row in enumerate(self.history):
            numbers = all(isinstance(value, int | float) for value in row.values())
            if not numbers or row.keys() != columns or row["epoch"] != i + 1:
                raise ValueError(f"row {i} of the history is none")
        self.whole = now if self.history else None
        if steps := kept.settings.get("steps"):
            self._restore_within(int(steps), room("within."))
            if whole := room("whole."):
                _check_alike(whole, now)
                self.whole = whole
        best = kept.settings["best_bound"]
        self.best_bound = -math.inf if best is None else float(best)
        self.best_epoch = int(kept.settings["best_epoch"])
        self.stopped = bool(kept.settings["stopped"])

    def _restore_within(self, steps: int, parts: dict[str, Tensor]) -> None:
        """Become one whose next epoch was broken off."""
        if not 0 < steps <= self.steps:
            raise ValueError(f"an epoch has {self.steps} steps")
        moments, of_U = Moments(self.decoder, self.n), parts.get("of_U")
        moments.restore({n.removeprefix("moments."): t for n, t in parts.items() if "." in n})
        _check_alike({"log_scale": parts["log_scale"]}, {"log_scale": self.log_scale})
        if of_U is not None:
            _check_alike({"of_U": of_U}, {"of_U": self.decoder.loadings})
            of_U = of_U.to(self.decoder.V)
        torch.Generator().set_state(parts["begun"])  # which fails if it is none
        log_scale = parts["log_scale"].to(self.log_scale)
        self.within = Within(steps, parts["begun"], moments, of_U, log_scale)


def _check_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names or shapes.

    Raises
    ------
    ValueError
    """
    shapes = [{name: part.shape for name, part in parts.items()} for parts in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError("names or shapes differ")
