"""Numbers that hold at the edges: finite, sensible, in single and in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from countvae import MultinomialVAE
from countvae.decoder import Decoder
from countvae.encoder import DenseEncoder
from countvae.errors import InputError
from countvae.evidence import factor_kl, noise_bound, solve_noise
from countvae.rows import Rows
from countvae.simulate import simulate
from countvae.start import residual_start

pytestmark = pytest.mark.filterwarnings("ignore::countvae.errors.CountvaeWarning")


def shares(n, d, rng):
    return rng.dirichlet(np.ones(d), n)


def drawn(n, d, reads):
    rng = np.random.default_rng(0)
    return np.array([rng.multinomial(reads, p) for p in shares(n, d, rng)])


def with_empty_features():
    X = drawn(20, 10, 200)
    X[:, [0, 4, 9]] = 0
    return X


def always_alone():
    """One feature has every read of half the samples, and none of the others'."""
    X = drawn(20, 6, 300)
    X[::2] = 0
    X[::2, 3] = 300
    X[1::2, 3] = 0
    return X


def with_a_wall_between_depths():
    X = drawn(20, 8, 1000)
    X[0] = 0
    X[0, 2] = 1
    X[1] *= 10**6
    return X


TABLES = {
    "one read a sample": lambda: drawn(30, 8, 1),
    "a million reads a sample": lambda: drawn(20, 8, 10**6),
    "10^9 counts": lambda: drawn(12, 5, 10**6) * 1000,
    "features without a read": with_empty_features,
    "a feature always alone": always_alone,
    "one feature has all reads": lambda: np.eye(6, dtype=int)[[2] * 12] * 50,
    "two features": lambda: drawn(20, 2, 100),
    "two samples": lambda: drawn(2, 10, 100),
    "fewer samples than factors": lambda: drawn(3, 10, 100),
    "the same sample again": lambda: np.tile(drawn(1, 7, 500), (10, 1)),
    "one read beside 10^9": with_a_wall_between_depths,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TABLES)
def test_every_answer_is_finite_and_sensible(name, dtype):
    X = TABLES[name]()
    model = MultinomialVAE(4, max_epochs=12, encoder_width=8, dtype=dtype, random_state=0).fit(X)
    mean, sd = model.posterior(X)
    proportions, clr, clr_sd = model.denoise(X)
    bound, evidence = model.score_samples(X), model.history_["bound"].to_numpy()
    for answer in (mean, sd, proportions, clr, clr_sd, bound, evidence, model.mean_):
        assert np.isfinite(answer).all()
    assert (sd > 0).all() and (clr_sd > 0).all() and model.noise_variance_ > 0
    np.testing.assert_allclose(proportions.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(clr.sum(axis=1), 0, atol=1e-4)
    assert (bound <= 1e-6).all()  # of a probability, with the coefficient of the multinomial
    counts, _ = model.sample(5, random_state=0)
    assert (counts.toarray() >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLES)
def test_gradients_are_finite(name, dtype):
    X = csr_array(TABLES[name]())
    X = X[X.sum(axis=1) > 0]
    rows, generator = Rows(X, X.shape[0], dtype), torch.Generator().manual_seed(0)
    start = residual_start(rows, min(X.shape) - 1, pseudocount=1.0, generator=generator)
    decoder = Decoder(start.V, start.mu, start.sigma2)
    encoder = DenseEncoder(
        *(start.A, start.b, start.log_D, decoder.mu.detach()),
        **{"depth": 3, "width": 8, "activation": "silu", "pseudocount": 1.0},
        **{"shared_D": False, "generator": generator},
    )
    x = rows[torch.arange(rows.n)]
    z, D = encoder(x)
    m0, Q = decoder(z, D)
    noise = solve_noise(m0.detach(), Q.detach(), x, decoder.sigma2)
    bound = noise_bound(m0, Q, noise) - factor_kl(z, D)
    assert bound.isfinite().all()
    bound.sum().backward()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("X", [np.ones((1, 1)), np.ones((5, 1)), np.ones((1, 5))])
def test_a_table_of_which_nothing_can_be_learned_is_refused(X):
    with pytest.raises((InputError, ValueError), match=r"expected at least|at least two|minimum"):
        MultinomialVAE(1).fit(X)


@pytest.fixture(scope="module")
def model():
    truth = simulate(80, 12, 2, 500, rng=np.random.default_rng(3))
    return MultinomialVAE(2, max_epochs=30, random_state=0).fit(truth.counts)


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 50), min_size=12, max_size=12).filter(any),
    times=st.integers(2, 10**6),
)
def test_more_reads_of_the_same_proportions_tell_more(model, counts, times):
    x = np.array([counts], dtype=float)
    _, few = model.set_params(refinement_steps=20).posterior(x)
    _, many = model.posterior(times * x)
    assert np.square(many).sum() <= np.square(few).sum() * (1 + 1e-6)


@settings(max_examples=30)
@given(st.integers(1, 2**53))
def test_a_count_of_any_size_is_taken_up_to_the_last_that_is_exact(model, count):
    x = np.zeros((1, 12))
    x[0, 5] = count
    mean, sd = model.posterior(x)
    assert np.isfinite(mean).all() and (sd > 0).all()
