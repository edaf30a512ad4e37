"""ConvMultinomialVAE: the same estimator for counts whose features lie on a grid."""

from typing import Any

import numpy as np
import torch

from countvae.decoder import ConvDecoder, Decoder
from countvae.encoder import ConvEncoder, Encoder
from countvae.errors import ArgumentError, FeaturesDiffer
from countvae.estimator import MultinomialVAE
from countvae.layers import Grid

DECODERS = ("network", "linear")


class ConvMultinomialVAE(MultinomialVAE):
    r"""Multinomial variational autoencoder of images, spectra and whatever else is binned.

    A sample is an image of whole-number intensities, or counts along a line, flattened; its total
    is its depth. The encoder's network convolves the pseudocounted logs on their grid, and the
    decoder is the linear-Gaussian one of `MultinomialVAE` or a network of transposed convolutions,
    which bends it:

    .. math::

        z \sim N(0, I), \quad \eta \mid z \sim N(V z + g(z) + \mu, \sigma^2 I), \quad
        x \mid \eta \sim \mathrm{Mult}(\mathrm{softmax}(\eta))

    Parameters
    ----------
    n_components : int
        k, the number of factors.
    grid : int or sequence of one or two int, optional
        Positions along each axis. Features are those of ``images.reshape(n, -1)``. With None they
        are a line.
    channels : int
        Features at each position; the last axis of images that have more than one.
    decoder : {"network", "linear"}
        Whether logits are bent by a network g of `encoder_depth` layers, at least two, as wide as
        the encoder's, or straight in the factors, with all that can be said of such a model.
    encoder_depth : int
        L: L - 1 convolutions, of which all but the first halve the grid, and a dense layer.
    encoder_width : int
        Channels of each convolution.
    activation, pseudocount, basis, formula, noise, posterior_variance, shrink_loadings
        As of `MultinomialVAE`. A network takes no formula and shrinks no loadings.
    refinement_steps, whiten, min_overlap, optimizer, learning_rate, max_epochs, batch_size
        As of `MultinomialVAE`.
    validation_fraction, patience, random_state, progress, device, dtype, init, freeze, checkpoint
        As of `MultinomialVAE`.

    Attributes
    ----------
    components_, explained_variance_, mean_, loadings_, clr_loadings_
        Of a network: those of the straight map that is closest to it under the prior.

    Notes
    -----
    Other attributes and methods are those of `MultinomialVAE`. With a network the bound of
    `score_samples` is averaged over draws of the factors, `subcomposition`, `get_covariance` and
    networks of features are not to be had, and Newton's steps take slopes at each sample.
    Distances between rows of `transform` are then Aitchison distances along the straight map only,
    and `explained_variance_ratio_` is that map's share of the variance of all logits.

    Examples
    --------
    >>> import numpy as np
    >>> from countvae import ConvMultinomialVAE
    >>> images = np.random.default_rng(0).poisson(5.0, size=(60, 6, 4))
    >>> model = ConvMultinomialVAE(2, grid=(6, 4), max_epochs=2).fit(images.reshape(60, -1))
    >>> model.inverse_transform(model.transform(images.reshape(60, -1))).shape
    (60, 24)
    """

    of_model = (*MultinomialVAE.of_model, "grid", "channels", "decoder")

    def __init__(
        self,
        n_components=8,
        *,
        grid: Any = (8, 8),
        channels=1,
        decoder="network",
        encoder_depth=3,
        encoder_width=32,
        activation="silu",
        pseudocount=1.0,
        basis: Any = "balanced",
        formula=None,
        noise="isotropic",
        posterior_variance="per_sample",
        shrink_loadings=True,
        refinement_steps=2,
        whiten=False,
        min_overlap=0.5,
        optimizer="adam",
        learning_rate=0.02,
        max_epochs=None,
        batch_size=None,
        validation_fraction=0.0,
        patience=None,
        random_state=0,
        progress=None,
        device="auto",
        dtype="float32",
        init=None,
        freeze=None,
        checkpoint=None,
    ) -> None:
        super().__init__(
            n_components,
            encoder_depth=encoder_depth,
            encoder_width=encoder_width,
            activation=activation,
            pseudocount=pseudocount,
            basis=basis,
            formula=formula,
            noise=noise,
            posterior_variance=posterior_variance,
            shrink_loadings=shrink_loadings,
            refinement_steps=refinement_steps,
            whiten=whiten,
            min_overlap=min_overlap,
            optimizer=optimizer,
            learning_rate=learning_rate,
            max_epochs=max_epochs,
            batch_size=batch_size,
            validation_fraction=validation_fraction,
            patience=patience,
            random_state=random_state,
            progress=progress,
            device=device,
            dtype=dtype,
            init=init,
            freeze=freeze,
            checkpoint=checkpoint,
        )
        self.grid = grid
        self.channels = channels
        self.decoder = decoder

    def _check_settings(self) -> None:
        super()._check_settings()
        given = 1 if self.grid is None else self.grid
        shape = given if isinstance(given, list | tuple | np.ndarray) else (given,)
        sizes = [*shape, self.channels]
        whole = all(
            isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 1
            for size in sizes
        )
        if not (whole and len(shape) in (1, 2)):
            raise ArgumentError(
                "grid, channels: expected one or two whole numbers of positions, and one of"
                f" channels; got {self.grid!r} and {self.channels!r}."
            )
        if self.decoder not in DECODERS:
            raise ArgumentError(f"decoder: expected one of {DECODERS}; got {self.decoder!r}.")
        if self.decoder == "network" and self.formula is not None:
            raise ArgumentError("formula: needs decoder='linear'.")

    def _on(self, d: int) -> Grid:
        """Return the grid of d features."""
        shape = np.atleast_1d(d // self.channels if self.grid is None else self.grid)
        return Grid(tuple(int(size) for size in shape), int(self.channels))

    def _counts(self, X: Any, *, reset: bool) -> Any:
        counts = super()._counts(X, reset=reset)
        d, grid = counts.shape[1], self._on(counts.shape[1])
        if reset and d != grid.d:
            shape = " × ".join(map(str, grid.shape))
            raise FeaturesDiffer(
                f"grid: {shape} positions of {grid.channels} channels are {grid.d} features; the"
                f" table has {d}."
            )
        return counts

    def _size_of_networks(self, d: int) -> dict[str, int]:
        width, k, grid = int(self.encoder_width), int(self.n_components), self._on(d)
        axes, depth = len(grid.shape), int(self.encoder_depth)
        units = [width * grid.halved(i).positions for i in range(depth - 1)]
        layers, hidden = 0, sum(units)
        if units:
            convolved = width * (self.channels + width * (depth - 2))
            layers = 3**axes * convolved + 2 * k * units[-1]
        if self.decoder == "network":
            depth = self._decoder_depth
            small = width * grid.halved(depth - 1).positions
            doubled = [2**axes * grid.halved(i).positions for i in range(1, depth)]
            layers += 4**axes * width * (self.channels + width * (depth - 2)) + k * small
            hidden += small + self.channels * doubled[0] + width * sum(doubled[1:])
        return {"layers": layers, "hidden": hidden}

    @property
    def _decoder_depth(self) -> int:
        return max(2, int(self.encoder_depth))

    def _new_encoder(self, *start: torch.Tensor, **given: Any) -> Encoder:
        return ConvEncoder(*start, grid=self._on(len(start[0])), **self._of_encoder, **given)

    def _new_decoder(self, V, mu, sigma2, Theta, generator: torch.Generator | None) -> Decoder:
        if self.decoder == "linear":
            return super()._new_decoder(V, mu, sigma2, Theta, generator)
        return ConvDecoder(
            V,
            mu,
            sigma2,
            grid=self._on(len(V)),
            depth=self._decoder_depth,
            width=int(self.encoder_width),
            activation=self.activation,
            generator=generator,
        )
