"""How long and how fast: the schedule of a fit, its optimiser, and one step of it."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from countvae.decoder import Decoder
from countvae.encoder import Encoder
from countvae.logs import centred_logs
from countvae.rows import Rows
from countvae.threads import share, worth

ANNEAL_FROM = 0.3
"""Share of the epochs after which learning rates fall."""

REST_FROM = 0.8
"""Share of the epochs after which the decoder is at rest, but for one step of Newton's."""

OF_OPTIMIZER = {"Adam": {"step", "exp_avg", "exp_avg_sq"}, "SGD": {"momentum_buffer"}}
"""What an optimiser keeps of each parameter."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    max_epochs: int
    learning_rate: float
    optimizer: str
    patience: int | None

    def rate(self, group: dict[str, Any], number: int, of_epoch: int) -> float:
        """Return the learning rate of some parameters in a step, given how many an epoch has."""
        done = number / (self.max_epochs * of_epoch)
        return group["rate"] * self.factor(done, number, group["end"])

    def factor(self, progress: float, step: int, end: float) -> float:
        """Warm up over ten steps, stay, and anneal to zero at `end` along a cosine."""
        anneal = min(1.0, max(0.0, (progress - ANNEAL_FROM) / (end - ANNEAL_FROM)))
        return min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * anneal))


def optimizer_for(
    rows: Rows, encoder: Encoder, decoder: Decoder, schedule: Schedule
) -> torch.optim.Optimizer:
    """Learning rates in units of what a step does to the logits, whatever d is."""
    rate = schedule.learning_rate
    x = rows[torch.arange(min(rows.n, rows.batch_size))]
    inputs = centred_logs(x, encoder.pseudocount, encoder.centre)
    reach = inputs.abs().sum(1).mean().item()
    wide = encoder.wide
    narrow = [p for p in encoder.parameters() if all(p is not q for q in wide)]
    straight = [decoder.V, decoder.mu, decoder.Theta]
    bent = [p for p in decoder.parameters() if all(p is not q for q in straight)]
    groups = [
        {"params": straight, "rate": rate, "end": REST_FROM},
        {"params": wide, "rate": rate * min(1.0, 30 / max(reach, 1e-6)), "end": 1.0},
        {"params": narrow, "rate": rate / 3, "end": 1.0},
    ]
    if bent:
        groups.append({"params": bent, "rate": rate / 5, "end": REST_FROM})
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, dampening=0.9, maximize=True)
    eps = 1e-8 * rows.batch_size
    return torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.98), eps=eps, fused=True, maximize=True)


def step(optimizer: torch.optim.Optimizer) -> None:
    """Take a step, large parameters on threads of their own: each entry moves by itself."""
    parts = [(group, part) for group in optimizer.param_groups for part in group["params"]]
    threads = worth(sum(part.numel() for _, part in parts), parts[0][1].device)
    if threads == 1:
        optimizer.step()
        return
    shares: list[list[dict[str, Any]]] = [[] for _ in range(min(threads, len(parts)))]
    loads = [0] * len(shares)
    for group, part in sorted(parts, key=lambda of: -of[1].numel()):
        least = loads.index(min(loads))
        shares[least].append(group | {"params": [part]})
        loads[least] += part.numel()

    def move(groups: list[dict[str, Any]]) -> None:
        one = copy.copy(optimizer)
        one.param_groups = groups
        one.step()

    share(move, shares, threads)


def clip(optimizer: torch.optim.Optimizer, size: int) -> None:
    """Clip each mean gradient to unit root mean square: a rate then means the same everywhere."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad /= size
                nn.utils.clip_grad_norm_(parameter, parameter.numel() ** 0.5)
