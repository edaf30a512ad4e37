"""The one loop: minibatches, a step, rescaling, the noise, stopping, history."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from countvae.decoder import Decoder
from countvae.devices import widest
from countvae.encoder import Encoder
from countvae.evidence import factor_kl, noise_bound, solve_noise
from countvae.inference import in_expectation, posterior_at, refine
from countvae.moments import Moments
from countvae.rows import Rows
from countvae.shrinkage import Shrinkage
from countvae.state import Kept, State, Within
from countvae.steps import Schedule, clip, optimizer_for, step

FOR_CORRELATIONS = 48
"""Samples of an epoch, about, by which correlations of the factors are estimated."""

PRIOR_FROM = 0.17
"""Share of the epochs after which the loadings are shrunk: earlier, weak factors would die."""

FINISH_FROM = 0.86
"""Share of the epochs after which the encoder alone goes on, to the posterior of what was found."""

COLUMNS = ("epoch", "bound", "sigma2", "learning_rate")
"""Of the history, besides `validation_bound` where samples are held out."""


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
    keep: Callable[[State], None] | None = None,
    kept: Kept | None = None,
    stop: Callable[[], bool] = lambda: False,
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
        Called with the state that an epoch leaves to the next, or with that within an epoch before
        the fit is stopped there; `State.kept` is a copy to store.
    kept : Kept, optional
        A state to go on from; encoder and decoder then only have to be of the same shape.
    stop : callable, optional
        Asked after each step whether to stop there.

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
    KeyboardInterrupt
        If it was told to stop.
    """
    optimizer = optimizer_for(rows, encoder, decoder, schedule)
    state = State(encoder, decoder, optimizer, generator, rows)
    if going_on and shrink_loadings:
        loadings = decoder.loadings.detach().clone()
        state.shrinkage = Shrinkage(loadings, around=loadings)
    encoder.requires_grad_(frozen != "encoder")
    if kept is not None:
        columns = {*COLUMNS} if validation is None else {*COLUMNS, "validation_bound"}
        state.restore(kept, columns)
    with state.diverging():
        for epoch in range(len(state.history), schedule.max_epochs):
            if state.stopped:
                break
            phase = _phase(epoch, schedule.max_epochs, frozen)
            begins = phase.prior_begins and shrink_loadings and not going_on
            if phase.decoder_rests:
                state.shrinkage = None
                decoder.requires_grad_(False)
            moments = _epoch(epoch, phase, state, rows, schedule, points, stop)
            if moments is None:
                if keep is not None:
                    keep(state)
                raise KeyboardInterrupt
            reached = moments.mean_bound(state.shrinkage)
            if not phase.decoder_rests:
                _update(phase, state, moments, rotate=phase.early and not going_on)
                if begins:
                    state.shrinkage = Shrinkage(decoder.loadings.detach())
            parts = *encoder.state_dict().values(), *decoder.state_dict().values()
            rows.processes.agree(*parts)
            if not all(part.isfinite().all() for part in parts):
                raise state.diverged(f"the factors are not finite after epoch {epoch + 1}")
            row = {
                "epoch": epoch + 1,
                "bound": reached,
                "sigma2": decoder.sigma2.mean().item(),
                "learning_rate": schedule.rate(
                    optimizer.param_groups[0], (epoch + 1) * state.steps - 1, state.steps
                ),
            }
            if validation is not None:
                row["validation_bound"] = mean_bound(
                    encoder, decoder, validation, refinement_steps, points=points
                )
            state.add(row, schedule.patience)
            if validation is None and begins:
                # the prior lowers the bound of the fitted samples: that is no reason to stop
                state.best_bound = -math.inf
            if progress is not None:
                progress(row)
            if keep is not None:
                keep(state)
            if stop():
                raise KeyboardInterrupt
    state.return_to_best()
    return state.history


class _Phase(NamedTuple):
    """What an epoch is for."""

    early: bool
    """Loadings have no prior yet, and factors are turned to the axes of the information."""
    prior_begins: bool
    """The prior begins after this epoch."""
    decoder_settles: bool
    """It is the decoder's last: a step of Newton's takes out what the noise of batches left."""
    decoder_rests: bool
    """The encoder goes on alone."""


def _phase(epoch: int, max_epochs: int, frozen: str | None) -> _Phase:
    early, later = (number < PRIOR_FROM * max_epochs for number in (epoch, epoch + 1))
    of_decoder = max_epochs * (1 if frozen == "encoder" else FINISH_FROM)
    rests = frozen == "decoder" or epoch >= of_decoder
    settles = not rests and epoch + 1 >= of_decoder
    return _Phase(early, early and not later, settles, rests)


def _epoch(
    epoch: int,
    phase: _Phase,
    state: State,
    rows: Rows,
    schedule: Schedule,
    points: bool,
    stop: Callable[[], bool],
) -> Moments | None:
    """Take a step for each batch; return what the batches add up to, None if stopped within.

    Raises
    ------
    Diverged
    """
    encoder, decoder, optimizer = state.encoder, state.decoder, state.optimizer
    shrinkage, U, draws = state.shrinkage, None, None
    first, begun, moments, of_U, log_scale = state.within or Within(
        0,
        state.generator.get_state(),
        Moments(decoder, rows.n),
        None,
        torch.zeros_like(state.log_scale),
    )
    state.within = None
    state.generator.set_state(begun)
    if not decoder.linear:
        k = decoder.V.shape[1]
        draws = torch.randn(rows.n, k, generator=state.generator).to(decoder.V)
    elif not phase.decoder_rests:
        variances = torch.zeros_like(decoder.loadings) if shrinkage is None else shrinkage.U
        U = variances.detach().requires_grad_()
        U.grad = of_U
    for i, (index, x, f, size) in enumerate(rows.shuffled(state.generator, first), first):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(group, epoch * state.steps + i, state.steps)
        z, D = encoder(x, f)
        if points:
            D = torch.zeros_like(D)
        m0, Q = decoder(z, D, U, f, None if draws is None else draws[index])
        warm = state.log_scale[index] if epoch else None
        noise = solve_noise(m0.detach(), Q.detach(), x, decoder.sigma2, warm, sums=moments.noise)
        bound = noise_bound(m0, Q, noise)
        if not points:
            bound = bound - factor_kl(z, D)
        total = bound.sum()
        total.backward()
        if shrinkage is not None:
            # these samples' share of the prior, which all samples have once
            _add_prior(shrinkage, decoder, len(x) / rows.n)
        if phase.decoder_settles and decoder.linear:
            moments.add_gradients(decoder)
        _total_gradients(total, encoder, decoder, rows)
        if not torch.isfinite(total):
            at_fault = index[~bound.isfinite().cpu()].tolist()
            raise state.diverged(f"the bound is not finite in epoch {epoch + 1}", at_fault)
        moments.add(z, D, f, bound)
        if i == 0 and not phase.decoder_rests:
            # chosen by their numbers: the same ones however many processes share the step
            chosen = index % max(1, size // FOR_CORRELATIONS) == 0
            slopes = decoder.jacobian(z[chosen].detach())
            moments.add_correlations(slopes, D[chosen], noise.w[chosen], shrinkage)
        if schedule.optimizer == "sgd":
            clip(optimizer, size)
        step(optimizer)
        optimizer.zero_grad()
        log_scale[index] = noise.log_scale
        if not phase.decoder_rests:
            decoder.centre()
        if stop():
            of_U = None if U is None else U.grad
            state.within = Within(i + 1, begun, moments, of_U, log_scale)
            return None
    moments.total(rows, None if U is None else U.grad)
    rows.processes.total(log_scale)
    state.log_scale = log_scale
    if not moments.finite:
        raise state.diverged(f"the factors are not finite after epoch {epoch + 1}")
    return moments


def _update(phase: _Phase, state: State, moments: Moments, rotate: bool) -> None:
    """Do with the sums of an epoch what no gradient does: variances, sigma2, scale and axes."""
    decoder, shrinkage = state.decoder, state.shrinkage
    if phase.decoder_settles and decoder.linear:
        moments.settle(decoder, shrinkage)
    if shrinkage is not None:
        shrinkage.update(decoder.loadings.detach(), moments.of_loadings)
    if decoder.linear:
        # in every epoch, as any may be the one that is kept
        decoder.keep_variances(moments.free if shrinkage is None else shrinkage.U)
    moments.solve_sigma2(decoder, shrunk=shrinkage is not None)
    root = moments.rescale(state.encoder, decoder, rotate=rotate)
    if shrinkage is not None:
        shrinkage.rescale(root)


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
        z, D = encoder(x, f)
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
