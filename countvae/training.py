"""The one loop: minibatches, a step, rescaling, the noise, stopping, history."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from countvae.decoder import Decoder, oriented
from countvae.devices import widest
from countvae.encoder import Encoder
from countvae.errors import DamagedModel, Diverged, out_of_memory
from countvae.evidence import Sums, factor_kl, noise_bound, solve_noise
from countvae.inference import factor_precision, in_expectation, posterior_at, refine
from countvae.logs import centred_logs
from countvae.rows import Rows
from countvae.shrinkage import Shrinkage
from countvae.threads import cut, share, worth

FEATURE_NOISE_SHRINKAGE = 50
"""Samples' worth of information by which a feature's own sigma2 is held to the common one."""

FOR_CORRELATIONS = 48
"""Samples of an epoch, about, by which correlations of the factors are estimated."""

PRIOR_FROM = 0.17
"""Share of the epochs after which the loadings are shrunk: earlier, weak factors would die."""

ANNEAL_FROM = 0.3
"""Share of the epochs after which learning rates fall."""

REST_FROM = 0.8
"""Share of the epochs after which the decoder is at rest, but for one step of Newton's."""

FINISH_FROM = 0.86
"""Share of the epochs after which the encoder alone goes on, to the posterior of what was found."""

COLUMNS = ("epoch", "bound", "sigma2", "learning_rate")
"""Of the history, besides `validation_bound` where samples are held out."""

OF_OPTIMIZER = {"Adam": {"step", "exp_avg", "exp_avg_sq"}, "SGD": {"momentum_buffer"}}
"""What an optimiser keeps of each parameter."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    max_epochs: int
    learning_rate: float
    optimizer: str
    patience: int | None

    def factor(self, progress: float, step: int, end: float) -> float:
        """Warm up over ten steps, stay, and anneal to zero at `end` along a cosine."""
        anneal = min(1.0, max(0.0, (progress - ANNEAL_FROM) / (end - ANNEAL_FROM)))
        return min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * anneal))


def train(
    rows: Rows,
    encoder: Encoder,
    decoder: Decoder,
    schedule: Schedule,
    *,
    shrink_loadings: bool,
    generator: torch.Generator,
    points: bool = False,
    going_on: bool = False,
    frozen: str | None = None,
    validation: Rows | None = None,
    refinement_steps: int = 0,
    progress: Callable[[dict[str, float | int]], None] | None = None,
    keep: Callable[["State"], None] | None = None,
    kept: "Kept | None" = None,
) -> list[dict[str, float | int]]:
    """Maximise the mean bound over the rows; encoder and decoder are changed in place.

    Parameters
    ----------
    rows, validation : Rows
        Tables to fit and, optionally, to watch; with a validation table the best epoch is kept.
    encoder, decoder
        q(z | x) and p(eta | z) at their start.
    schedule : Schedule
        Epochs, learning rate, optimiser and patience.
    shrink_loadings : bool
        Put an empirical-Bayes prior on the loadings, and a variance on each: see `Shrinkage`.
    generator : torch.Generator
        Shuffles the rows, and draws factors for a decoder that is a network.
    points : bool
        Fit a plain autoencoder: factors are points, without variance and divergence.
    going_on : bool
        Whether encoder and decoder are those of another fit: the prior is then centred at their
        loadings, from the first epoch on.
    frozen : {"encoder", "decoder"}, optional
        Which of the two stays as it is, an encoder but for following the factors to unit variance.
    refinement_steps : int
        Newton steps after the encoder in the validation bound.
    progress : callable, optional
        Called with the row of the history after each epoch.
    keep : callable, optional
        Called with the state that an epoch leaves to the next; `State.kept` is a copy to store.
    kept : Kept, optional
        A state to go on from; encoder and decoder then only have to be of the same shape.

    Returns
    -------
    list of dict
        One row an epoch: `epoch`, `bound` (nats a sample, coefficient left out), `sigma2`,
        `learning_rate` and, with a validation table, `validation_bound`.

    Raises
    ------
    Diverged
        If the bound is not finite; encoder and decoder are then those of the best epoch, and the
        error has its history, and the rows at fault.
    DamagedModel
        If the state to go on from is not one of such a fit.
    """
    optimizer = _optimizer(rows, encoder, decoder, schedule)
    steps_an_epoch = math.ceil(rows.n / rows.batch_size)
    state = State(encoder, decoder, optimizer, generator, rows)
    if going_on and shrink_loadings:
        loadings = decoder.loadings.detach().clone()
        state.shrinkage = Shrinkage(loadings, around=loadings)
    encoder.requires_grad_(frozen != "encoder")
    of_decoder = schedule.max_epochs * (1 if frozen == "encoder" else FINISH_FROM)
    if kept is not None:
        columns = {*COLUMNS} if validation is None else {*COLUMNS, "validation_bound"}
        state.restore(kept, columns)
    with state.diverging():
        for epoch in range(len(state.history), schedule.max_epochs):
            if state.stopped:
                break
            finishing = frozen == "decoder" or epoch >= of_decoder
            settling = decoder.linear and not finishing and epoch + 1 >= of_decoder
            if finishing:
                state.shrinkage = None
                decoder.requires_grad_(False)
            shrinkage = state.shrinkage
            moments = _Moments(decoder, rows.n)
            log_scale = torch.zeros_like(state.log_scale)
            draws = None
            if not decoder.linear:
                draws = torch.randn(rows.n, decoder.V.shape[1], generator=generator).to(decoder.V)
            for i, (index, x, f, size) in enumerate(rows.shuffled(generator)):
                number = epoch * steps_an_epoch + i
                done = number / (schedule.max_epochs * steps_an_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * schedule.factor(done, number, group["end"])
                z, D = encoder(x, f, decoder.Theta.detach())
                if points:
                    D = torch.zeros_like(D)
                U = None if shrinkage is None else shrinkage.U
                m0, Q = decoder(z, D, U, f, None if draws is None else draws[index])
                warm = state.log_scale[index] if epoch else None
                noise = solve_noise(
                    m0.detach(), Q.detach(), x, decoder.sigma2, warm, sums=moments.noise
                )
                bound = noise_bound(m0, Q, noise)
                if not points:
                    bound = bound - factor_kl(z, D)
                total = bound.sum()
                total.backward()
                if shrinkage is not None:
                    # these samples' share of the prior, which all samples have once
                    _add_prior(shrinkage, decoder, len(x) / rows.n)
                if settling:
                    moments.add_gradients(decoder)
                _total_gradients(total, encoder, decoder, rows)
                if not torch.isfinite(total):
                    at_fault = index[~bound.isfinite().cpu()].tolist()
                    raise state.diverged(f"the bound is not finite in epoch {epoch + 1}", at_fault)
                moments.add(z, D, f, noise, bound, decoder.linear and not finishing)
                if i == 0 and not finishing:
                    # chosen by their numbers: the same ones however many processes share the step
                    chosen = index % max(1, size // FOR_CORRELATIONS) == 0
                    slopes = decoder.jacobian(z[chosen].detach())
                    moments.add_correlations(slopes, D[chosen], noise.w[chosen], shrinkage)
                if schedule.optimizer == "sgd":
                    _clip(optimizer, size)
                _step(optimizer)
                optimizer.zero_grad()
                log_scale[index] = noise.log_scale
                if not finishing:
                    decoder.centre()
            moments.total(rows)
            rows.processes.total(log_scale)
            if not moments.finite:
                raise state.diverged(f"the factors are not finite after epoch {epoch + 1}")
            reached = moments.mean_bound(shrinkage)
            early = epoch < PRIOR_FROM * schedule.max_epochs
            begins = epoch + 1 >= PRIOR_FROM * schedule.max_epochs
            begins = begins and early and shrink_loadings and not going_on
            if not finishing:
                if settling:
                    moments.settle(decoder, shrinkage)
                if shrinkage is not None:
                    shrinkage.update(decoder.loadings.detach(), moments.of_loadings)
                if decoder.linear:
                    # in every epoch, as any may be the one that is kept
                    decoder.keep_variances(moments.free if shrinkage is None else shrinkage.U)
                moments.solve_sigma2(decoder, shrunk=shrinkage is not None)
                root = moments.rescale(encoder, decoder, rotate=early and not going_on)
                if shrinkage is not None:
                    shrinkage.rescale(root)
                if begins:
                    state.shrinkage = Shrinkage(decoder.loadings.detach())
            state.log_scale = log_scale
            parts = *encoder.state_dict().values(), *decoder.state_dict().values()
            rows.processes.agree(*parts)
            if not all(part.isfinite().all() for part in parts):
                raise state.diverged(f"the factors are not finite after epoch {epoch + 1}")
            row = {
                "epoch": epoch + 1,
                "bound": reached,
                "sigma2": decoder.sigma2.mean().item(),
                "learning_rate": optimizer.param_groups[0]["lr"],
            }
            watched = row["bound"]
            if validation is not None:
                watched = row["validation_bound"] = mean_bound(
                    encoder, decoder, validation, refinement_steps, points=points
                )
                if watched > state.best_bound:
                    state.best = _parts(encoder, decoder)
            state.history.append(row)
            state.whole = _parts(encoder, decoder)
            if watched > state.best_bound:
                state.best_bound, state.best_epoch = watched, epoch
            elif schedule.patience is not None and epoch - state.best_epoch >= schedule.patience:
                state.stopped = True
            if validation is None and begins:
                # the prior lowers the bound of the fitted samples: that is no reason to stop
                state.best_bound = -math.inf
            if progress is not None:
                progress(row)
            if keep is not None:
                keep(state)
    if state.best is not None:
        _put(state.best, encoder, decoder)
    return state.history


@dataclass(frozen=True)
class Kept:
    """A state as arrays and plain JSON, and what sentences call it."""

    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    name: str = "kept"


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
        The best so far of what is watched, when that was, and encoder and decoder of then.
    stopped : bool
        Whether patience has run out.
    whole
        Encoder and decoder of the last epoch that was done.
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
        self.optimizer, self.generator = optimizer, generator
        self.shrinkage: Shrinkage | None = None
        self.log_scale = torch.zeros(rows.n, dtype=rows.dtype, device=rows.device)
        self.history: list[dict[str, float | int]] = []
        self.best_bound, self.best_epoch = -math.inf, 0
        self.best: dict[str, Tensor] | None = None
        self.stopped = False
        self.whole: dict[str, Tensor] | None = None

    def diverged(self, sentence: str, samples: Sequence[int] = ()) -> Diverged:
        """Return to the best epoch there was, and make the error."""
        if (best := self.best or self.whole) is not None:
            _put(best, self.encoder, self.decoder)
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
        tensors = {f"now.{name}": t for name, t in _parts(self.encoder, self.decoder).items()}
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

        now = _parts(self.encoder, self.decoder)
        _check_alike(room("now."), now)
        _put(room("now."), self.encoder, self.decoder)
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
        best = kept.settings["best_bound"]
        self.best_bound = -math.inf if best is None else float(best)
        self.best_epoch = int(kept.settings["best_epoch"])
        self.stopped = bool(kept.settings["stopped"])


@torch.no_grad()
def mean_bound(
    encoder: Encoder,
    decoder: Decoder,
    rows: Rows,
    refinement_steps: int = 0,
    *,
    points: bool = False,
) -> float:
    """Mean bound at the encoder's answer, refined or not, in nats, coefficient left out.

    Of factors that are `points`, on log p(x | z) at the encoder's own.
    """
    total = torch.zeros((), dtype=widest(rows.device), device=rows.device)
    for x, f in zip(rows.in_order(), rows.covariates_in_order(), strict=True):
        law = decoder.given(f)
        z, D = encoder(x, f, decoder.Theta.detach())
        answer = posterior_at(law, x, z, torch.zeros_like(D) if points else D)
        if not points:
            answer = in_expectation(law, x, refine(law, x, answer, refinement_steps))
        total += answer.bound.sum()
    rows.processes.total(total)
    return total.item() / rows.n


def _add_prior(shrinkage: Shrinkage, decoder: Decoder, weight: float) -> None:
    k = decoder.V.shape[1]
    for part, columns in ((decoder.V, slice(0, k)), (decoder.Theta, slice(k, None))):
        if part.grad is not None:
            shrinkage.add_gradient(part, part.grad, weight, columns)


def _total_gradients(total: Tensor, encoder: Encoder, decoder: Decoder, rows: Rows) -> None:
    """Add up bound and gradients of all processes."""
    if rows.processes.count == 1:
        return
    parameters = [*encoder.parameters(), *decoder.parameters()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    rows.processes.total(total.detach(), flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class _Moments:
    """What an epoch adds up: moments of the factors and of the noise."""

    def __init__(self, decoder: Decoder, n: int) -> None:
        (d, k), p = decoder.V.shape, decoder.Theta.shape[1]
        zeros = decoder.V.new_zeros
        self.n, self.bound = n, zeros((), dtype=widest(decoder.V.device))
        self.z, self.zz = zeros(k), zeros(k, k)
        self.zf, self.ff = zeros(k, p), zeros(p, p)
        self.noise = Sums(zeros(d), zeros(d), zeros(d))
        self.of_loadings = zeros(d, k + p)
        self.left_out, self.looked = zeros(k, k), zeros(())
        self.gradient, self.gradient_mu = zeros(0), zeros(0)

    @torch.no_grad()
    def add(self, z, D, f, noise, bound, of_loadings: bool) -> None:
        self.bound += bound.sum()
        self.z += z.sum(0)
        self.zz += z.T @ z + torch.diag(D.sum(0))
        if f.shape[1]:
            self.zf += z.T @ f
            self.ff += f.T @ f
        if of_loadings:
            square = torch.cat([z.square() + D, f.square()], 1)
            threads = worth(noise.r.numel(), square.device)

            def of_features(at: slice) -> None:
                self.of_loadings[at].addmm_(noise.of_Q[:, at].T, square, alpha=-2)

            share(of_features, cut(len(self.of_loadings), threads), threads)

    @torch.no_grad()
    def add_correlations(self, J, D, w, shrinkage) -> None:
        """Estimate from one batch what the diagonal D leaves out of the covariance of z.

        D gets the correlations of H^-1 and its ratios to 1 / diag(H), not H^-1 itself: what scales
        as D does leaves the rescaling a place to rest.
        """
        H = factor_precision(J, w)
        if shrinkage is not None:
            H += torch.diag_embed(w @ shrinkage.U[:, : D.shape[1]])
        sd = (D * H.diagonal(dim1=1, dim2=2)).sqrt()
        S = sd[:, :, None] * torch.linalg.inv(H) * sd[:, None, :]
        self.left_out += (S - torch.diag_embed(D)).sum(0)
        self.looked += len(w)

    def add_gradients(self, decoder: Decoder) -> None:
        """Add this batch's part of the gradients of the whole bound."""
        of_loadings = [part.grad for part in (decoder.V, decoder.Theta) if part.grad is not None]
        if not of_loadings or decoder.mu.grad is None:
            return
        if not len(self.gradient_mu):
            self.gradient = torch.zeros_like(self.of_loadings)
            self.gradient_mu = torch.zeros_like(decoder.mu)
        self.gradient += torch.cat(of_loadings, 1)
        self.gradient_mu += decoder.mu.grad

    @torch.no_grad()
    def settle(self, decoder: Decoder, shrinkage: Shrinkage | None) -> None:
        """Take one step of Newton's, a loading at a time, on the gradients of the whole table.

        It takes out what the noise of minibatches left, by at most one standard deviation.
        """
        of_loadings = self.free if shrinkage is None else shrinkage.variance(self.of_loadings)
        of_mu, k = 1 / (self.noise.information + 1), decoder.V.shape[1]
        for parameter, variance, gradient in (
            (decoder.V, of_loadings[:, :k], self.gradient[:, :k]),
            (decoder.Theta, of_loadings[:, k:], self.gradient[:, k:]),
            (decoder.mu, of_mu, self.gradient_mu),
        ):
            sd = variance.sqrt()
            parameter += (variance * gradient).clamp(-sd, sd)
        decoder.centre()

    @property
    def free(self) -> Tensor:
        """Posterior variances of loadings that no prior holds: as if that were N(0, 1)."""
        return 1 / (self.of_loadings + 1)

    def total(self, rows: Rows) -> None:
        """Add up over all processes."""
        own = (part for part in vars(self).values() if isinstance(part, Tensor))
        rows.processes.total(*own, *self.noise)

    def mean_bound(self, shrinkage: Shrinkage | None) -> float:
        """Mean bound at V itself: to first order in U, from below as the bound is convex in Q."""
        by_loadings = 0.0 if shrinkage is None else (shrinkage.U * self.of_loadings).sum().item()
        return (self.bound.item() + 0.5 * by_loadings) / self.n

    @property
    def finite(self) -> bool:
        sums = self.zz.sum() + self.noise.squares.sum() + self.noise.information.sum()
        return bool(torch.isfinite(sums))

    @torch.no_grad()
    def solve_sigma2(self, decoder: Decoder, shrunk: bool) -> None:
        """Take one step of Fisher scoring."""
        fitted = 1 if shrunk else 1 + decoder.V.shape[1] + decoder.Theta.shape[1]
        fitted = min(fitted, self.n / 2)  # with as many factors as samples no sigma2 would do
        squares, information, fisher = self.noise
        score = squares + information * (fitted / self.n - 1)
        own, common = decoder.sigma2, score.sum() / fisher.sum()
        if own.ndim:
            others = FEATURE_NOISE_SHRINKAGE / own.square()
            step = (score + others * (own.mean() + common - own)) / (fisher + others)
        else:
            step = common
        decoder.grow_sigma2(1 + step / own)

    @torch.no_grad()
    def rescale(self, encoder: Encoder, decoder: Decoder, rotate: bool) -> Tensor:
        """Give the factors mean 0 and covariance I; turn them to the axes of the information.

        What covariates tell of the factors goes to Theta. Returns A of z = A u.
        """
        mean, slope = self.z / self.n, None
        left_out = self.left_out / self.looked.clamp_min(1)
        covariance = self.zz / self.n + left_out - torch.outer(mean, mean)
        if self.ff.shape[0]:
            slope = torch.linalg.solve(self.ff, self.zf.T).T
            covariance = covariance - slope @ self.zf.T / self.n
        variances, axes = torch.linalg.eigh(covariance)
        root = (axes * variances.clamp_min(1e-6).sqrt()) @ axes.T
        if rotate:
            V = decoder.V @ root
            _, axes = torch.linalg.eigh(V.T @ (self.noise.information[:, None] * V))
            root = root @ oriented(axes.flip(1))
        decoder.rescale(root, mean, slope)
        encoder.rescale(root, mean)
        encoder.recentre(decoder.mu.detach())
        return root


def _optimizer(
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


def _step(optimizer: torch.optim.Optimizer) -> None:
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


def _clip(optimizer: torch.optim.Optimizer, size: int) -> None:
    """Clip each mean gradient to unit root mean square: a rate then means the same everywhere."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad /= size
                nn.utils.clip_grad_norm_(parameter, parameter.numel() ** 0.5)


def _parts(encoder: Encoder, decoder: Decoder) -> dict[str, Tensor]:
    """Copy the parameters and buffers of both."""
    return {
        f"{room}.{name}": value.clone()
        for room, module in (("encoder", encoder), ("decoder", decoder))
        for name, value in module.state_dict().items()
    }


def _check_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names or shapes.

    Raises
    ------
    ValueError
    """
    shapes = [{name: part.shape for name, part in parts.items()} for parts in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError("names or shapes differ")


def _put(parts: Mapping[str, Tensor], encoder: Encoder, decoder: Decoder) -> None:
    """Give both what `_parts` copied."""
    for room, module in (("encoder.", encoder), ("decoder.", decoder)):
        module.load_state_dict(
            {n.removeprefix(room): value for n, value in parts.items() if n.startswith(room)}
        )
