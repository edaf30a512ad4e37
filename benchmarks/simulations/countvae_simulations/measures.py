"""Every measure, defined in one place.

A function takes the truth of the fitted samples, that of the held-out ones, and what a method
found; it returns named numbers, or nothing where the method does not say what it would need.
"""

from collections.abc import Callable
from zlib import crc32

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.stats import norm, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from countvae.decoder import Decoder
from countvae.estimator import OPTIMAL_STEPS, MultinomialVAE
from countvae.evidence import Sums, log_coefficient
from countvae.inference import posterior_at, refine
from countvae.metrics import common_features, covariance_error, subspace_error, trusted_below
from countvae.rows import Rows
from countvae.simulate import Simulation
from countvae_simulations.exact import DRAWS, exact_posterior
from countvae_simulations.methods.base import Found
from countvae_simulations.methods.peer import call

STEPS = (0, 1, 2, 3)
PAIRS = 2000
SAMPLES = 100
"""Samples, the first of those fitted and of those held out, whose posteriors are looked at."""

EXACT_SAMPLES, CHAIN_SAMPLES = 32, 16
"""Of those held out, compared with importance sampling and with long chains."""

TOLD = 0.5
"""A factor of which the data tell leaves less than this share of its prior variance, on average."""

FITTED, HELD_OUT, SWEEPS, STEPS_A_SWEEP = 200, 200, 10, 2
"""Samples of the yardstick, and how its sigma2 is found."""

SQUARES = (
    "exact_excess_0",
    "exact_excess_2",
    "exact_bias_square_0",
    "exact_bias_square_2",
    "exact_noise_square",
    "z_bias_square",
    "held_z_bias_square",
    "true_bias_square_0",
    "true_bias_square_2",
)
"""Squares less what chance gives them, so that some are negative: roots are for averages only."""


def effort(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """What the fit took and how it ended, by its own account.

    `seconds`, without the `compile_seconds` where a method says what compiling took; resident
    memory of the process before the fit (`before_mb`, with imports and data) and the largest
    during it (`peak_mb`); whether it stopped by itself rather than at its limit (`converged`, 0 or
    1, or a share of the seeds); for MCMC the largest R-hat over features of the variance of their
    log-ratio (`r_hat`).
    """
    del truth, held_out
    said = {"seconds": found.seconds, "before_mb": found.before_mb, "peak_mb": found.peak_mb}
    if found.converged is not None:
        said["converged"] = float(found.converged)
    return said | dict(found.more)


def table(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """Share of the entries that are not zero (`nonzero`)."""
    del held_out, found
    return {"nonzero": truth.counts.nnz / np.prod(truth.counts.shape)}


def covariance(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """‖Ĉ − C‖_F / ‖C‖_F of the CLR covariance, with noise (`covariance`) and of VVᵀ alone (`VV`).

    `covariance_common` and `VV_common` are the same over features above median abundance. With
    noise only where a method has a noise variance. `VV_floor_common` is the `VV_common` of as many
    factors as were looked for, where the truth has more: its own leading ones, which no fit sees.
    """
    del held_out
    common = common_features(truth.counts)
    errors = {
        "VV": covariance_error(truth.V, found.V),
        "VV_common": covariance_error(truth.V, found.V, features=common),
    }
    if (k := found.V.shape[1]) < truth.V.shape[1]:
        U, s, _ = np.linalg.svd(truth.V, full_matrices=False)
        leading = U[:, :k] * s[:k]
        errors["VV_floor_common"] = covariance_error(truth.V, leading, features=common)
    if found.sigma2 is not None:
        noise = {"sigma2_true": truth.sigma2, "sigma2_est": found.sigma2}
        errors["covariance"] = covariance_error(truth.V, found.V, **noise)
        errors["covariance_common"] = covariance_error(truth.V, found.V, features=common, **noise)
    return errors


def loadings(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """Share of the true factor space that is missed (`subspace`), and mean |cosine| of its axes.

    `subspace_common` is the same over features above median abundance. `axis` pairs the axes of
    VVᵀ and of its estimate by rank, weighing each by its variance.
    """
    del held_out
    U, s, _ = np.linalg.svd(truth.V, full_matrices=False)
    E = np.linalg.svd(found.V, full_matrices=False)[0]
    k = min(U.shape[1], E.shape[1])
    cosines = np.abs((U[:, :k] * E[:, :k]).sum(axis=0))
    return {
        "subspace": subspace_error(truth.V, found.V),
        "subspace_common": subspace_error(truth.V, found.V, features=common_features(truth.counts)),
        "axis": float(np.average(cosines, weights=s[:k] ** 2)),
    }


def noise_and_centre(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """σ̂²/σ² (`sigma2_ratio`), and standard deviation of μ̂ − μ over common features (`mu`)."""
    del held_out
    errors = {}
    if found.mu is not None:
        difference = (found.mu - truth.mu)[common_features(truth.counts)]
        errors["mu"] = float(difference.std())
    if found.sigma2 is not None:
        errors["sigma2_ratio"] = found.sigma2 / truth.sigma2
    return errors


def log_ratio_variances(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """Spearman correlation of Var log(p_i/p_j), true and estimated (`log_ratio_variances`).

    Over pairs of features, noise left out.
    """
    del held_out
    rng = np.random.default_rng(0)
    i, j = rng.integers(len(truth.V), size=(2, PAIRS))
    i, j = i[i != j], j[i != j]

    def variances(V: np.ndarray) -> np.ndarray:
        return ((V[i] - V[j]) ** 2).sum(axis=1)

    rank = spearmanr(variances(truth.V), variances(found.V)).statistic
    return {"log_ratio_variances": float(rank)}


def balances(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """Where a fit has a tree's basis: how well it tells the balances that factors move.

    `balances_auc` is the probability that a balance with true loadings has a longer row of W than
    one without.
    """
    del held_out
    if found.model is None:
        return {}
    true = found.model.basis_operator_.adjoint(truth.V.T)
    moved = (true**2).sum(axis=0) > 1e-12 * (true**2).sum()
    if moved.all():
        return {}
    length = np.linalg.norm(found.model.loadings_, axis=1)
    return {"balances_auc": float(roc_auc_score(moved, length))}


def gap(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """Nats a sample that the answer is short of the optimised bound: the amortisation gap.

    A mean over the first hundred samples. `gap_0` is the encoder's own, `gap_s` that after s Newton
    steps, in sample; `held_gap_s` that of samples held out.
    """
    if found.model is None:
        return {}
    gaps = {}
    for name, drawn in (("gap", truth), ("held_gap", held_out)):
        counts = drawn.counts[:SAMPLES]
        best = _scores(found, counts, OPTIMAL_STEPS)
        for steps in STEPS:
            short = best - _scores(found, counts, steps)
            gaps[f"{name}_{steps}"] = float(short.mean())
    return gaps


def factors(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """The encoder's ẑ against the optimum ẑ* of the bound, and both against the true factors.

    In posterior standard deviations. Root mean square of ẑ − ẑ* over samples and factors
    (`z_error`), and the mean square of the part of ẑ − ẑ* that is linear in ẑ*, constant included
    (`z_bias_square`): a shift, a shrinkage and a rotation are biases, what differs from sample to
    sample with the same factors is not. `held_z_error` and `held_z_bias_square` are those of
    samples held out, the square less what chance gives it, so of either sign; of the fitted samples
    nothing is taken off, for the encoder was fitted to them: an upper limit.

    The true z of a sample held out is its true CLR without noise in the fitted axes. Over the
    factors of which the data tell (`coverage`), root mean square of ẑ − z, of the encoder's own
    answer and after two Newton steps (`true_error_0`, `true_error_2`; 1 for exact posterior means),
    and the mean square of the part of z − ẑ that is linear in ẑ, less what chance gives it
    (`true_bias_square_0`, `true_bias_square_2`; 0 for exact posterior means, whose error none of
    their linear functions foretells). `z_explained` is the share of the variance of the true
    factors held out that ẑ* explains, by the linear map that does best on the fitted samples.
    """
    if found.model is None:
        return {}
    said, answers = {}, {}
    for name, drawn in (("z", truth), ("held_z", held_out)):
        here, _ = _posterior(found, drawn.counts, 0)
        best, sd = _posterior(found, drawn.counts, OPTIMAL_STEPS)
        away = (here - best) / sd
        said |= {f"{name}_error": _rms(away)}
        said |= _bias(f"{name}_bias_square", away, best, by_chance=drawn is held_out)
        answers[name] = best
    told, true = _told(found.model, sd), _true_factors(held_out, found.model)
    refined, _ = _posterior(found, held_out.counts, 2)
    for steps, answer in ((0, here), (2, refined)) if told.any() else ():
        away = ((true - answer) / sd)[:, told]
        said |= {f"true_error_{steps}": _rms(away)}
        said |= _bias(f"true_bias_square_{steps}", away, answer[:, told])
    explained = LinearRegression().fit(answers["z"], truth.z).predict(answers["held_z"])
    left = ((held_out.z - explained) ** 2).mean() / held_out.z.var(axis=0).mean()
    return said | {"z_explained": float(1 - left)}


def exact(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """Held-out answers against the exact posterior mean at the fitted decoder, by importance.

    Of the first 32 samples, by two runs of 1,000 draws. Mean square over samples and factors, in
    exact posterior variances, of the error of the encoder's ẑ (`exact_excess_0`) and of that after
    two Newton steps (`exact_excess_2`), less that of the exact means by Monte Carlo
    (`exact_noise_square`), so of either sign; `exact_bias_square_0` and `exact_bias_square_2` those
    of the part of the error that is linear in the exact mean, constant included, less what chance
    gives it; `sd_ratio` the mean of the reported over the exact standard deviation; `pareto_k` the
    largest shape of the tail of a sample's weights. Where that is not below
    `countvae.metrics.trusted_below` the weights are too uneven for the others, which are left out.
    """
    del truth
    if found.model is None:
        return {}
    counts, model = held_out.counts[:EXACT_SAMPLES], found.model
    scale = _sd_of_factors(model)
    best, sd = (part / scale for part in _posterior(found, counts, OPTIMAL_STEPS))
    given = (counts.toarray(), found.V, model.mean_, model.noise_variance_, best, sd)
    first, second = (exact_posterior(*given, seed=seed) for seed in _seeds(counts, found.V))
    middle = (first.mean + second.mean) / 2
    pareto_k = float(max(first.pareto_k.max(), second.pareto_k.max()))
    if pareto_k >= trusted_below(DRAWS):
        return {"pareto_k": pareto_k}
    noise = _rms((first.mean - second.mean) / 2 / first.sd) ** 2
    said = {"pareto_k": pareto_k, "exact_noise_square": noise}
    said["sd_ratio"] = float((sd / first.sd).mean())
    for steps in (0, 2):
        here = _posterior(found, counts, steps)[0] / scale
        said[f"exact_excess_{steps}"] = _rms((here - middle) / first.sd) ** 2 - noise
        # by one run against the other, for an error is linear in itself
        away = (here - second.mean) / first.sd
        said |= _bias(f"exact_bias_square_{steps}", away, first.mean)
    return said


def by_mcmc(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """The same against long chains of NUTS at the fitted decoder, in their standard deviations.

    Of the first 16 samples held out. Root mean square of the difference: `mcmc_error_0` of the
    encoder's answer, `mcmc_error_2` of that after two Newton steps, `mcmc_exact` of the
    importance-sampled mean, `mcmc_exact_noise` the Monte-Carlo error of that mean; `mcmc_noise` is
    that of the chains' own means, which is within both. `mcmc_sd_ratio` is the reported over the
    chains' standard deviation, `mcmc_r_hat` the worst R-hat of a factor.
    """
    del truth
    if found.model is None:
        return {}
    counts, model = held_out.counts[:CHAIN_SAMPLES], found.model
    scale = _sd_of_factors(model)
    V, mu, sigma2 = found.V, model.mean_, model.noise_variance_
    decoder = {"V": V, "mu": mu, "sigma2": np.array(sigma2)}
    chain = call("nuts", V.shape[1], 0, counts=counts.toarray(), draws=4000, **decoder)
    of_encoder = _posterior(found, counts, 0)[0] / scale
    mean, sd = (part / scale for part in _posterior(found, counts, 2))
    given = (counts.toarray(), V, mu, sigma2, mean, sd)
    first, second = (exact_posterior(*given, seed=seed).mean for seed in _seeds(counts, V))
    return {
        "mcmc_error_0": _rms((of_encoder - chain["z"]) / chain["z_sd"]),
        "mcmc_error_2": _rms((mean - chain["z"]) / chain["z_sd"]),
        "mcmc_exact": _rms(((first + second) / 2 - chain["z"]) / chain["z_sd"]),
        "mcmc_exact_noise": _rms((first - second) / 2 / chain["z_sd"]),
        "mcmc_noise": _rms(chain["z_mcse"] / chain["z_sd"]),
        "mcmc_sd_ratio": float((sd / chain["z_sd"]).mean()),
        "mcmc_r_hat": float(chain["r_hat"]),
    }


def coverage(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """Share of the true coordinates within central intervals of 50 and 90 %, held out.

    The truth of a sample in the fitted axes is the projection of its true CLR without noise.
    `coverage_p` is over the factors of which the data tell, those that leave less than half of a
    factor's prior variance, `told` in number; `coverage_all_p` is over all: an axis that the data
    say nothing of points anywhere.
    """
    del truth
    if found.model is None:
        return {}
    mean, sd = _posterior(found, held_out.counts, 2)
    away = np.abs(_true_factors(held_out, found.model) - mean) / np.maximum(sd, 1e-12)
    told = _told(found.model, sd)
    said = {"told": float(told.sum())}
    for p in (50, 90):
        within = away < norm.ppf(0.5 + p / 200)
        said[f"coverage_all_{p}"] = float(within.mean())
        if told.any():
            said[f"coverage_{p}"] = float(within[:, told].mean())
    return said


def held_out_bound(truth: Simulation, held_out: Simulation, found: Found) -> dict[str, float]:
    """Nats a read of the first 200 held-out samples, multinomial coefficient left out.

    `bound_a_read` is our fit's own bound after two Newton steps. `yardstick_a_read` asks the same
    of any method with loadings and a centre: the bound of our model at these, with the factors of
    every sample at their optimum and σ² at its own fixed point on 200 fitted samples, so that none
    is favoured for its encoder or its noise variance. `oracle_a_read` is the log-likelihood at the
    proportions that a sample was drawn from, which a prediction is not told: it lies above what any
    can reach on average.
    """
    assert held_out.proportions is not None
    x = held_out.counts[:HELD_OUT]
    reads, true = x.sum(), np.log(np.maximum(held_out.proportions[:HELD_OUT], 1e-300))
    found_here = {"oracle_a_read": float(x.multiply(true).sum() / reads)}
    if found.model is not None:
        nats = _scores(found, x, 2).sum() - coefficients(x).sum()
        found_here["bound_a_read"] = float(nats / reads)
    if found.mu is not None:
        found_here["yardstick_a_read"] = held_out_nats_a_read(found, truth, held_out)
    return found_here


@torch.no_grad()
def held_out_nats_a_read(found: Found, truth: Simulation, held_out: Simulation) -> float:
    """Bound of our model at the loadings and centre of any method: see `held_out_bound`."""
    if found.mu is None or np.isnan(found.V).any():
        return float("nan")
    V, mu = torch.from_numpy(found.V).double(), torch.from_numpy(found.mu).double()
    decoder = Decoder(V, mu, torch.tensor(0.5, dtype=torch.float64))
    x = torch.from_numpy(truth.counts[:FITTED].toarray()).double()
    new = torch.from_numpy(held_out.counts[:HELD_OUT].toarray()).double()
    z = torch.zeros(len(x), V.shape[1], dtype=V.dtype)
    D = torch.ones_like(z)
    for _ in range(SWEEPS):
        z, D, noise = refine(decoder, x, posterior_at(decoder, x, z, D), STEPS_A_SWEEP)
        A, C, F = sums = Sums(*(torch.zeros_like(mu) for _ in range(3)))
        sums.add(noise, decoder(z, D)[1])
        decoder.grow_sigma2(1 + (A - C).sum() / F.sum() / decoder.sigma2)
    z = torch.zeros(len(new), V.shape[1], dtype=V.dtype)
    start = posterior_at(decoder, new, z, torch.ones_like(z))
    best = refine(decoder, new, start, OPTIMAL_STEPS)
    return float(best.bound.sum() / new.sum())


Measure = Callable[[Simulation, Simulation, Found], dict[str, float]]
MEASURES: dict[str, Measure] = {
    measure.__name__: measure
    for measure in (
        effort,
        table,
        covariance,
        loadings,
        noise_and_centre,
        log_ratio_variances,
        balances,
        gap,
        factors,
        exact,
        by_mcmc,
        coverage,
        held_out_bound,
    )
}


def _scores(found: Found, counts: csr_array, steps: int) -> np.ndarray:
    assert found.model is not None
    return found.model.set_params(refinement_steps=steps).score_samples(counts)


def _posterior(found: Found, counts: csr_array, steps: int) -> tuple[np.ndarray, np.ndarray]:
    assert found.model is not None
    return found.model.set_params(refinement_steps=steps).posterior(counts)


def _sd_of_factors(model: MultinomialVAE) -> np.ndarray:
    """Coordinates over these are factors of unit prior variance, also where an axis has none."""
    return np.sqrt(np.maximum(model.explained_variance_, 1e-12))


def _seeds(counts: csr_array, V: np.ndarray) -> list[int]:
    """Two seeds of this table and fit, so that no two fits share their draws."""
    digest = crc32(np.ascontiguousarray(V), crc32(counts.toarray()))
    return [int(seed) for seed in np.random.SeedSequence(digest).generate_state(2)]


def _rms(deviation: np.ndarray) -> float:
    return float(np.sqrt((deviation**2).mean()))


def _true_factors(drawn: Simulation, model: MultinomialVAE) -> np.ndarray:
    """True CLR without noise, in the axes of a fit."""
    clr = drawn.mu + drawn.z @ drawn.V.T
    return (clr - model.mean_) @ model.components_.T


def _told(model: MultinomialVAE, sd: np.ndarray) -> np.ndarray:
    """Which factors the data tell of, (k,)."""
    left = (sd**2).mean(axis=0) / np.maximum(model.explained_variance_, 1e-12)
    return left < TOLD


def _bias(
    name: str, deviation: np.ndarray, at: np.ndarray, *, by_chance: bool = True
) -> dict[str, float]:
    """Mean square of what is linear in `at`, less what chance gives it; of enough samples."""
    line = LinearRegression().fit(at, deviation)
    told = line.predict(at)
    square = (told**2).mean(axis=0)
    if by_chance:
        free = len(at) - line.rank_ - 1
        if free <= 0:
            return {}
        noise = ((deviation - told) ** 2).sum(axis=0) / free
        square -= noise * (line.rank_ + 1) / len(at)
    return {name: float(square.mean())}


def coefficients(counts: csr_array) -> np.ndarray:
    """Multinomial coefficient of each sample, in nats."""
    batches = Rows(counts, 64, dtype=torch.float64).in_order()
    return np.concatenate([log_coefficient(x).numpy() for x in batches])
