"""The loop: it learns, keeps what is best, stops, and says when it cannot go on."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

import countvae.training
from countvae.decoder import Decoder
from countvae.encoder import DenseEncoder
from countvae.errors import Diverged
from countvae.evidence import noise_bound, solve_noise
from countvae.inference import factor_precision, posterior_at, refine
from countvae.metrics import subspace_error
from countvae.moments import Moments
from countvae.rows import Rows
from countvae.shrinkage import Shrinkage
from countvae.simulate import simulate
from countvae.start import residual_start
from countvae.steps import Schedule, step
from countvae.training import mean_bound, train


@pytest.fixture(name="table", scope="module")
def flat_table():
    return simulate(160, 30, 3, 500, design="flat", rng=np.random.default_rng(0))


def start_on(
    counts, k=3, *, dtype=torch.float32, batch_size=32, depth=2, by_feature=False, covariates=0
):
    """Return rows, encoder and decoder at the start of a fit."""
    rows = Rows(csr_array(counts), batch_size, dtype)
    generator = torch.Generator().manual_seed(0)
    start = residual_start(rows, k, pseudocount=1.0, generator=generator)
    sigma2 = start.sigma2.expand(rows.d) if by_feature else start.sigma2
    decoder = Decoder(start.V, start.mu, sigma2, start.V.new_zeros(rows.d, covariates))
    encoder = DenseEncoder(
        start.A,
        start.b,
        start.log_D,
        decoder.mu.detach(),
        depth=depth,
        width=16,
        activation="silu",
        pseudocount=1.0,
        shared_D=False,
        covariates=covariates,
        generator=generator,
    )
    return rows, encoder, decoder


def spoilt(counts, seed=0):
    """Return a start whose loadings are replaced by small noise, and whose encoder is by zeros."""
    rows, encoder, decoder = start_on(counts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        decoder.V.normal_(0, 0.1, generator=generator)
        decoder.centre()
        encoder.A.zero_()
    return rows, encoder, decoder


def run(rows, encoder, decoder, *, epochs=8, rate=0.02, optimizer="adam", patience=None, **more):
    more = {"shrink_loadings": False, "generator": torch.Generator().manual_seed(1)} | more
    return train(rows, encoder, decoder, Schedule(epochs, rate, optimizer, patience), **more)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_spoilt_start_is_learnt_away_by_either_optimiser(table, optimizer):
    rows, encoder, decoder = spoilt(table.counts)
    strong = table.V[:, :2]  # the third factor is a tenth of the noise
    before = mean_bound(encoder, decoder, rows)
    assert subspace_error(strong, decoder.V.detach().double().numpy()) > 0.5
    run(rows, encoder, decoder, epochs=40, optimizer=optimizer)
    assert mean_bound(encoder, decoder, rows) > before + 10
    assert subspace_error(strong, decoder.V.detach().double().numpy()) < 0.05


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("shrink_loadings", [False, True])
@pytest.mark.parametrize("by_feature", [False, True])
def test_training_from_the_residual_start_raises_the_bound(
    table, optimizer, shrink_loadings, by_feature
):
    rows, encoder, decoder = start_on(table.counts, by_feature=by_feature)
    before = mean_bound(encoder, decoder, rows)
    run(rows, encoder, decoder, optimizer=optimizer, shrink_loadings=shrink_loadings)
    assert mean_bound(encoder, decoder, rows) > before


def test_history_has_a_row_an_epoch_and_progress_sees_each(table):
    seen = []
    history = run(*start_on(table.counts), epochs=5, progress=seen.append)
    assert seen == history
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    for row in history:
        assert row.keys() == {"epoch", "bound", "sigma2", "learning_rate"}
        assert all(math.isfinite(value) for value in row.values())


def test_the_bound_of_the_history_is_the_mean_bound_of_its_epoch(table):
    rows, encoder, decoder = start_on(table.counts)
    still = mean_bound(encoder, decoder, rows)
    (row,) = run(rows, encoder, decoder, epochs=1, rate=1e-12)
    assert row["bound"] == pytest.approx(still, abs=0.05)


def test_the_bound_of_the_history_is_one_at_the_loadings_when_they_are_shrunk(table):
    parts = start_on(table.counts)
    # the prior's variances are felt from the third epoch on; the rate stays where it was put
    *_, row = run(*parts, epochs=4, rate=1e-12, shrink_loadings=True)
    rows, encoder, decoder = parts
    here = mean_bound(encoder, decoder, rows)
    assert here - 0.3 < row["bound"] < here + 0.05


def test_training_leaves_the_logits_centred(table):
    _, _, decoder = (parts := start_on(table.counts))
    run(*parts)
    torch.testing.assert_close(decoder.V.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(decoder.mu.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_factors_end_with_mean_zero_and_covariance_one(table):
    rows, encoder, _ = (parts := start_on(table.counts))
    run(*parts, epochs=15)
    with torch.no_grad():
        z, D = encoder(torch.cat(list(rows.in_order())))
    covariance = z.T @ z / len(z) + D.mean(0).diag()
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(covariance, torch.eye(3), atol=0.05, rtol=0)


def test_permuted_features_change_nothing_from_the_same_place(table):
    rows, encoder, decoder = start_on(table.counts, dtype=torch.float64)
    other_encoder, other_decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in (
            other_decoder.V,
            other_decoder.mu,
            other_encoder.A,
            other_encoder.G,
            other_encoder.centre,
        ):
            parameter.copy_(parameter[order])
    run(rows, encoder, decoder, epochs=4)
    permuted = Rows(csr_array(table.counts[:, order.numpy()]), 32, torch.float64)
    run(permuted, other_encoder, other_decoder, epochs=4)
    V, W = decoder.V[order], other_decoder.V
    torch.testing.assert_close(W @ W.T, V @ V.T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other_decoder.mu, decoder.mu[order], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other_decoder.sigma2, decoder.sigma2, rtol=1e-6, atol=1e-6)


def test_the_same_generator_gives_the_same_bits_and_another_seed_differs(table):
    states = []
    for seed in (1, 1, 2):
        parts = start_on(table.counts)
        run(*parts, epochs=3, generator=torch.Generator().manual_seed(seed))
        states.append(parts[2].V)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_the_best_epoch_on_the_validation_table_is_kept(table):
    rows, encoder, decoder = start_on(table.counts[:20], batch_size=16)
    validation = Rows(csr_array(table.counts[20:]), 16)
    history = run(rows, encoder, decoder, epochs=30, rate=0.1, validation=validation)
    bounds = [row["validation_bound"] for row in history]
    assert np.argmax(bounds) < len(bounds) - 1, "a rate this high must overfit, or nothing is shown"
    kept = mean_bound(encoder, decoder, validation)
    assert kept == pytest.approx(max(bounds), abs=1e-9)


def test_patience_stops_so_many_epochs_after_the_best(table):
    parts = start_on(table.counts[:60], batch_size=16)
    validation = Rows(csr_array(table.counts[60:]), 16)
    history = run(*parts, epochs=60, rate=0.2, validation=validation, patience=4)
    bounds = [row["validation_bound"] for row in history]
    assert len(history) < 60
    assert len(history) - 1 - np.argmax(bounds) == 4


def test_watching_a_validation_table_changes_no_step(table):
    watched, alone = start_on(table.counts[:60]), start_on(table.counts[:60])
    validation = Rows(csr_array(table.counts[60:]), 16)
    ours = run(*watched, epochs=4, validation=validation)
    for row, other in zip(ours, run(*alone, epochs=4), strict=True):
        assert row["bound"] == other["bound"]


@pytest.mark.parametrize("broken", ["V", "mu"])
def test_a_bound_that_is_not_finite_is_called_diverged(table, broken):
    rows, encoder, decoder = start_on(table.counts)
    with torch.no_grad():
        getattr(decoder, broken).fill_(math.nan)
    with pytest.raises(Diverged, match="not finite in epoch 1"):
        run(rows, encoder, decoder)


def test_a_fit_that_diverges_returns_to_the_epoch_before(table, monkeypatch):
    rows, encoder, decoder = start_on(table.counts)
    loadings = []

    def keep(state):
        loadings.append(decoder.V.detach().clone())

    def broken(*args):
        return noise_bound(*args) * (math.nan if len(loadings) == 3 else 1)

    monkeypatch.setattr(countvae.training, "noise_bound", broken)
    with pytest.raises(Diverged, match="not finite in epoch 4") as found:
        run(rows, encoder, decoder, keep=keep)
    assert len(found.value.history) == 3 and len(found.value.samples) == 32
    assert torch.equal(decoder.V, loadings[2]) and not torch.equal(decoder.V, loadings[1])


def test_a_learning_rate_beyond_reason_diverges_or_stays_finite(table):
    rows, encoder, decoder = start_on(table.counts)
    try:
        history = run(rows, encoder, decoder, rate=1e30)
    except Diverged:
        return
    assert all(math.isfinite(row["bound"]) for row in history)
    assert all(parameter.isfinite().all() for parameter in decoder.parameters())


def test_shrinkage_shrinks(table):
    norms = []
    for shrink in (False, True):
        _, _, decoder = (parts := start_on(table.counts, 6))
        run(*parts, epochs=15, shrink_loadings=shrink)
        norms.append(decoder.V.detach().norm().item())
    assert norms[1] < norms[0]


def test_mean_bound_does_not_depend_on_the_batches(table):
    rows, encoder, decoder = start_on(table.counts, dtype=torch.float64)
    other = Rows(rows.counts, 7, torch.float64)
    whole, batched = (mean_bound(encoder, decoder, r) for r in (rows, other))
    assert whole == pytest.approx(batched, abs=0.02)


def test_sigma2_takes_the_degrees_of_freedom_of_centre_and_loadings_into_account(table):
    _, _, decoder = start_on(table.counts)
    for shrunk, n, fitted in ((True, 100, 1), (False, 100, 4), (False, 4, 2)):
        moments = Moments(decoder, n)
        moments.noise.squares[:], moments.noise.information[:], moments.noise.fisher[:] = (
            0.9,
            1.0,
            20.0,
        )
        before = decoder.sigma2.item()
        moments.solve_sigma2(decoder, shrunk)
        step = (0.9 + fitted / n - 1) / 20
        assert decoder.sigma2.item() == pytest.approx(before + step, rel=1e-5)


def test_features_that_tell_nothing_take_the_common_noise_and_others_their_own(table):
    _, _, decoder = start_on(table.counts, by_feature=True)
    decoder.sigma2.fill_(0.5)
    moments = Moments(decoder, 10**9)
    moments.noise.squares[0], moments.noise.information[0], moments.noise.fisher[0] = 9e6, 8e6, 1e7
    moments.solve_sigma2(decoder, shrunk=True)
    torch.testing.assert_close(decoder.sigma2, torch.full_like(decoder.sigma2, 0.6))
    moments.noise.squares[0] = 7e6
    moments.noise.squares[1:], moments.noise.information[1:], moments.noise.fisher[1:] = (
        2e7,
        1e7,
        1e8,
    )
    moments.solve_sigma2(decoder, shrunk=True)
    assert decoder.sigma2[0].item() == pytest.approx(0.5, abs=1e-3)
    torch.testing.assert_close(decoder.sigma2[1:], torch.full_like(decoder.sigma2[1:], 0.7))


@pytest.mark.parametrize("reads", [100, 1000, 10_000])
def test_one_step_of_fisher_scoring_goes_most_of_the_way(reads):
    truth = simulate(400, 60, 3, reads, design="flat", rng=np.random.default_rng(0))
    x = torch.from_numpy(truth.counts.toarray()).double()
    V, mu = torch.from_numpy(truth.V), torch.from_numpy(truth.mu)
    found = []
    for start in (0.8 * truth.sigma2, 1.25 * truth.sigma2):
        decoder = Decoder(V, mu, torch.tensor(start))
        for _ in range(12):
            found.append(decoder.sigma2.item())
            z, D = torch.zeros(len(x), 3).double(), torch.ones(len(x), 3).double()
            z, D, noise = refine(decoder, x, posterior_at(decoder, x, z, D), 6)
            moments = Moments(decoder, len(x))
            Q = decoder(z, D)[1]
            moments.noise.add(noise, Q)
            moments.solve_sigma2(decoder, shrunk=True)
        end = decoder.sigma2.item()
        assert abs(math.log(found[-11] / end)) < 0.35 * abs(math.log(found[-12] / end))
    assert found[11] == pytest.approx(found[23], rel=1e-3)


def test_factors_are_scaled_by_their_whole_covariance(table):
    rows, encoder, decoder = start_on(table.counts, dtype=torch.float64)
    x = next(rows.in_order())
    moments = Moments(decoder, len(x))
    with torch.no_grad():
        z, D = encoder(x)
        noise = posterior_at(decoder, x, z, D).noise
        H = factor_precision(decoder.V, noise.w)
        D = 1 / H.diagonal(dim1=1, dim2=2)  # where D is what it should be, S is H^-1
        moments.add(z, D, x.new_zeros(len(x), 0), noise.bound)
        moments.add_correlations(decoder.V, D, noise.w, None)
        expected = (
            z.T @ z / len(z) + torch.linalg.inv(H).mean(0) - torch.outer(z.mean(0), z.mean(0))
        )
        V = decoder.V.clone()
        moments.rescale(encoder, decoder, rotate=False)
    torch.testing.assert_close(decoder.V @ decoder.V.T, V @ expected @ V.T)


def test_what_covariates_tell_of_the_factors_goes_to_their_effects_and_no_logit_moves(table):
    rows, encoder, decoder = start_on(table.counts, dtype=torch.float64, covariates=2)
    x = next(rows.in_order())
    f = torch.tensor(np.random.default_rng(0).normal(size=(len(x), 2)))
    f -= f.mean(0)
    with torch.no_grad():
        encoder.A_f.normal_(generator=torch.Generator().manual_seed(0))
        moments = Moments(decoder, len(x))
        z, D = encoder(x, f)
        moments.add(z, D, f, z.sum(1))
        before = decoder(z, D, None, f)[0].softmax(1)
        moments.rescale(encoder, decoder, rotate=True)
        z, D = encoder(x, f)
        assert (z.T @ f).abs().max() < 1e-9 * len(x)
        torch.testing.assert_close(decoder(z, D, None, f)[0].softmax(1), before)


def test_the_gradient_in_the_variances_of_loadings_is_what_these_depend_on(table):
    rows, encoder, decoder = start_on(table.counts, dtype=torch.float64)
    x = next(rows.in_order())
    z, D = (part.detach() for part in encoder(x))
    U = torch.full_like(decoder.V, 0.1).requires_grad_()
    m0, Q = decoder(z, D, U)
    noise = solve_noise(m0.detach(), Q.detach(), x, decoder.sigma2)
    noise_bound(m0, Q, noise).sum().backward()
    moments = Moments(decoder, len(x))
    moments.total(rows, U.grad)
    torch.testing.assert_close(moments.of_loadings, noise.w.T @ (z.square() + D))


def test_the_bound_at_the_loadings_is_the_averaged_one_and_what_their_variance_cost(table):
    _, _, decoder = start_on(table.counts)
    moments, shrinkage = Moments(decoder, 10), Shrinkage(decoder.V.detach())
    moments.bound = torch.tensor(-50.0)
    moments.of_loadings += 3.0
    shrinkage.U = torch.full_like(decoder.V, 0.2)
    assert moments.mean_bound(None) == -5.0
    assert moments.mean_bound(shrinkage) == pytest.approx(-5 + 0.5 * 0.6 * decoder.V.numel() / 10)


def test_an_epoch_is_the_same_in_any_number_of_threads(monkeypatch, table):
    fits = []
    for threads in (1, 2, 3):
        for room in ("steps", "decoder", "logs", "evidence"):
            monkeypatch.setattr(f"countvae.{room}.worth", lambda *given, t=threads: t)
        parts = start_on(table.counts, dtype=torch.float64)
        history = run(*parts, epochs=8, shrink_loadings=True)
        fits.append([history[-1]["bound"], parts[2].V.detach()])
    for bound, V in fits[1:]:
        assert bound == pytest.approx(fits[0][0], rel=1e-7)
        torch.testing.assert_close(V, fits[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_steps_shared_among_threads_are_those_of_one_to_the_bit(monkeypatch, kind):
    class Occupied(kind):
        def step(self, closure=None):
            assert self.param_groups  # with none, torch takes Adam for one that records a graph
            return super().step(closure)

    def moved(threads):
        monkeypatch.setattr("countvae.steps.worth", lambda *given: threads)
        generator = torch.Generator().manual_seed(0)
        parts = [
            torch.nn.Parameter(torch.randn(size, generator=generator)) for size in (50, 7, 90, 1)
        ]
        groups = [{"params": parts[:3], "lr": 0.1}, {"params": parts[3:], "lr": 0.01}]
        optimizer = Occupied(groups, maximize=True)
        for number in range(4):
            for part in parts:
                part.grad = torch.randn(part.shape, generator=generator)
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
            step(optimizer)
        return parts, optimizer.state_dict()["state"]

    alone, of_alone = moved(1)
    for threads in (2, 3, 9):
        shared, of_shared = moved(threads)
        for mine, theirs in zip(shared, alone, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        torch.testing.assert_close(of_shared, of_alone, rtol=0, atol=0)


def test_the_encoder_goes_on_alone_at_the_end(table):
    rows, encoder, decoder = start_on(table.counts)
    seen = []

    def look(row):
        parts = (decoder.V, decoder.sigma2, encoder.A)
        seen.append([part.detach().clone() for part in parts])

    run(rows, encoder, decoder, epochs=10, shrink_loadings=True, progress=look)
    (before, _, _), (V, sigma2, A), last = seen[-3:]
    assert not torch.equal(before, V)
    assert torch.equal(V, last[0]) and torch.equal(sigma2, last[1]) and not torch.equal(A, last[2])


def test_one_step_on_the_whole_table_takes_out_what_minibatches_left(monkeypatch, table):
    def far_from_rest() -> float:
        """Mean square of the gradient of all samples, in standard deviations of the loadings."""
        states = []
        rows, encoder, decoder = start_on(table.counts)
        run(rows, encoder, decoder, epochs=6, shrink_loadings=True, keep=states.append)
        shrinkage = states[-1].shrinkage
        x = rows[torch.arange(rows.n)]
        z, D = encoder(x)
        m0, Q = decoder(z, D, shrinkage.U)
        noise = solve_noise(m0.detach(), Q.detach(), x, decoder.sigma2)
        noise_bound(m0, Q, noise).sum().backward()
        shrinkage.add_gradient(decoder.V, decoder.V.grad, 1.0)
        return (shrinkage.U * decoder.V.grad.square()).mean().item()

    with_it = far_from_rest()
    monkeypatch.setattr(Moments, "settle", lambda *_: None)
    assert with_it < 0.5 * far_from_rest()
