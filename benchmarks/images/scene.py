"""The pictures, and the models compared on them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_digits

from countvae import ConvMultinomialVAE, MultinomialVAE
from countvae.decoder import Decoder
from countvae.evidence import log_coefficient
from countvae.inference import factor_covariance, log_ratios
from countvae.select import NEWTON, answers_under, evidence_under, principal_law

HERE = Path(__file__).parent
K = 8
TUNED_ON = 300
"""Fitted pictures by which what has to be chosen for other methods is chosen."""

SHARES = np.geomspace(1, 0.001, 13)
"""Of the variance of the logarithms that may be noise besides that of counting."""

PSEUDOCOUNTS = (0.01, 0.03, 0.1, 0.3, 1, 3)
"""That other methods may choose from."""

SIDE = 32
DENSE_WIDTH = 128
"""Units of a dense layer, as `MultinomialVAE` has by default."""

SETS = ("digits", "spots")
"""scikit-learn's digits, and simulated photons."""


class Pictures(NamedTuple):
    """Counts of pictures, flattened."""

    fitted: np.ndarray
    held: np.ndarray
    held_light: np.ndarray | None
    """True proportions of what was held out, where they are known."""
    shape: tuple[int, int]


def digits(seed: int) -> Pictures:
    """Split the 1,797 pictures of 8 x 8 intensities, a quarter of them held out."""
    counts = load_digits().data
    order = np.random.default_rng(seed).permutation(len(counts))
    held, fitted = order[: len(order) // 4], order[len(order) // 4 :]
    return Pictures(counts[fitted], counts[held], None, (8, 8))


def light(n: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Proportions of two or three round spots of light on a floor."""
    rows, columns = np.indices((side, side)) / side
    shares = np.empty((n, side * side))
    for i, number in enumerate(rng.integers(2, 4, n)):
        picture = np.full((side, side), 0.02)
        for _ in range(number):
            row, column = rng.uniform(0.15, 0.85, 2)
            width, brightness = rng.uniform(0.05, 0.12), rng.uniform(0.5, 1.5)
            away = (rows - row) ** 2 + (columns - column) ** 2
            picture += brightness * np.exp(-away / (2 * width**2))
        shares[i] = picture.ravel() / picture.sum()
    return shares


def photons(seed: int, n: int = 2000, held: int = 500) -> Pictures:
    """Simulate pictures of 32 x 32 pixels with 200 to 5,000 photons."""
    rng = np.random.default_rng(seed)
    shares = light(n + held, SIDE, rng)
    reads = np.exp(rng.uniform(np.log(200), np.log(5000), n + held)).astype(int)
    counts = rng.multinomial(reads, shares).astype(float)
    return Pictures(counts[:n], counts[n:], shares[n:], (SIDE, SIDE))


def pictures(name: str, seed: int) -> Pictures:
    """Return a set of pictures by its name."""
    return digits(seed) if name == "digits" else photons(seed)


class PCA:
    """Probabilistic PCA of log(x + c), its law put in the place of ours; answers as ours gives.

    The noise variance of the logarithms has that of counting in it, which the law adds again: when
    `tuned` it and c are those under which some pictures have the largest bound that the components
    were not taken of, until these are taken of all. Otherwise c is 1.
    """

    formula, posterior_variance = None, "per_sample"

    def __init__(self, k: int, random_state: int, tuned: bool = False) -> None:
        self.k, self.random_state, self.tuned = k, random_state, tuned

    def fit(self, X: np.ndarray) -> "PCA":
        """Take principal components."""
        pseudocount, share = self._chosen(X) if self.tuned else (1.0, 1.0)
        self.law = self._law(X, pseudocount)
        self.law.sigma2.mul_(share)
        return self

    def _chosen(self, X: np.ndarray) -> tuple[float, float]:
        watched, rest = np.split(X, [min(TUNED_ON, len(X) // 2)])
        bounds = {}
        for pseudocount in PSEUDOCOUNTS:
            self.law = self._law(rest, pseudocount)
            of_logs = self.law.sigma2.clone()
            for share in SHARES:
                self.law.sigma2.copy_(of_logs * share)
                bounds[pseudocount, share] = float(self.score_samples(watched).sum())
        return max(bounds, key=lambda setting: bounds[setting])

    def _law(self, X: np.ndarray, pseudocount: float) -> Decoder:
        # the log-ratios of x / c + 1 are those of x + c
        return principal_law(X / pseudocount, self.k, self.random_state).requires_grad_(False)

    def match(self, X: np.ndarray) -> tuple["PCA", np.ndarray]:
        """Return itself, and the pictures."""
        return self, X

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Bound on log p(x)."""
        bounds = [
            q.bound + q.noise.overcount + log_coefficient(x)
            for x, q in answers_under(self.law, csr_array(X))
        ]
        return torch.cat(bounds).numpy()

    def evidence(self, X: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Log p(x) by importance sampling, and Pareto k."""
        return evidence_under(self.law, csr_array(X), draws, self.random_state)

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Posterior means of the factors."""
        return torch.cat([q.z for _, q in answers_under(self.law, csr_array(X))]).numpy()

    def inverse_transform(self, z: np.ndarray) -> np.ndarray:
        """Proportions at factors."""
        return self.law.logits(torch.from_numpy(z)).softmax(1).numpy()

    def sample(self, n_samples: int, depth: int, random_state: int) -> tuple[csr_array, np.ndarray]:
        """Draw pictures of a depth from the law."""
        rng = np.random.default_rng(random_state)
        z = rng.normal(size=(n_samples, self.k))
        logits = self.law.logits(torch.from_numpy(z)).numpy()
        logits += np.sqrt(float(self.law.sigma2)) * rng.normal(size=logits.shape)
        return csr_array(rng.multinomial(depth, softmax(logits, axis=1))), z

    def denoise(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Believed proportions and log-ratios."""
        found = [
            log_ratios(self.law, x, q, factor_covariance(self.law.V, q.noise.w))
            for x, q in answers_under(self.law, csr_array(X))
        ]
        proportions, clr, sd = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        return proportions, clr, sd


class Shuffled:
    """A model of pictures whose pixels lie in an order without meaning, the same for all."""

    def __init__(self, model: MultinomialVAE, d: int) -> None:
        self.model, self.order = model, np.random.default_rng(0).permutation(d)

    def fit(self, X: np.ndarray) -> "Shuffled":
        """Fit to shuffled pictures."""
        self.model.fit(X[:, self.order])
        return self

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Bound on log p(x)."""
        return self.model.score_samples(X[:, self.order])

    def evidence(self, X: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Log p(x) by importance sampling, and Pareto k."""
        return self.model.evidence(X[:, self.order], draws)

    def denoise(self, X: np.ndarray) -> tuple[np.ndarray, ...]:
        """Believed proportions and log-ratios, pixels put back."""
        back = np.argsort(self.order)
        return tuple(part[:, back] for part in self.model.denoise(X[:, self.order]))


def on_all(measure: Callable[[str, int], list[dict[str, object]]], seeds: int) -> pd.DataFrame:
    """Rows of a measurement on every set of pictures, seed by seed."""
    return pd.DataFrame(
        [row for name in SETS for seed in range(seeds) for row in measure(name, seed)]
    )


def distance(found: np.ndarray, true: np.ndarray) -> float:
    """Half the absolute difference of proportions, a mean over pictures."""
    return float(np.abs(found - true).sum(1).mean() / 2)


Model = MultinomialVAE | PCA | Shuffled
NETWORK, LINEAR, DENSE = "convolutional, network", "convolutional, linear", "dense"
TUNED = "PCA, tuned"
SHUFFLED, DENSE_NETWORK = "network, pixels shuffled", "network of dense layers"
PLAIN = "convolutional, plain autoencoder"


class DenseNetwork(ConvMultinomialVAE):
    """The encoder of the dense model, and a decoder of dense layers.

    One position with a channel a pixel makes each transposed convolution a dense layer.
    """

    _new_encoder = MultinomialVAE._new_encoder


def models(shape: tuple[int, int], seed: int, k: int = K) -> dict[str, MultinomialVAE | PCA]:
    """Make the models that are compared, unfitted."""
    return {
        NETWORK: ConvMultinomialVAE(k, grid=shape, random_state=seed),
        LINEAR: ConvMultinomialVAE(k, grid=shape, decoder="linear", random_state=seed),
        DENSE: MultinomialVAE(k, random_state=seed),
        "PCA": PCA(k, seed),
        TUNED: PCA(k, seed, tuned=True),
    }


def answering_alike(model: Model) -> Model:
    """Let a fitted model take as many Newton steps as PCA does from the prior."""
    if isinstance(model, Shuffled):
        answering_alike(model.model)
    elif isinstance(model, MultinomialVAE):
        model.set_params(refinement_steps=NEWTON)
    return model


def with_control(shape: tuple[int, int], seed: int) -> dict[str, Model]:
    """Make those models, and beside them networks that know no neighbours, and no posterior."""
    d, network = math.prod(shape), ConvMultinomialVAE(K, grid=shape, random_state=seed)
    no_grid = {"grid": 1, "channels": d, "encoder_width": DENSE_WIDTH}
    return {
        **models(shape, seed),
        SHUFFLED: Shuffled(network, d),
        DENSE_NETWORK: DenseNetwork(K, random_state=seed, **no_grid),
        PLAIN: clone(network).set_params(posterior_variance="none"),
    }
