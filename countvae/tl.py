"""Fit a model to an AnnData and leave the answers in its keys, as scanpy's tools do."""

from typing import Any

import anndata
import numpy as np
from scipy.sparse import csr_array

from countvae.checks import examples
from countvae.errors import NoSuchLayer
from countvae.estimator import MultinomialVAE
from countvae.ordination import annotate
from countvae.table import CountTable

__all__ = ["mvae"]


def mvae(
    adata: anndata.AnnData,
    n_components: int = 10,
    *,
    layer: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
    **settings: Any,
) -> anndata.AnnData | None:
    """Fit `MultinomialVAE` to the counts of an AnnData, and write its keys.

    Parameters
    ----------
    adata : AnnData, (n, d)
        Counts in ``layers["counts"]`` or X.
    n_components : int
        k, the number of factors.
    layer : str, optional
        Where the counts are, if not there; "X" is one.
    key_added : str, optional
        Used as it stands in place of "X_mvae" and "mvae".
    copy : bool
        Return a changed copy and leave `adata`; by default `adata` is changed.
    **settings
        More arguments of `MultinomialVAE`.

    Returns
    -------
    AnnData or None
        With ``obsm["X_mvae"]`` and ``obsm["X_mvae_sd"]`` (n, k), coordinates and their posterior
        standard deviations, ``varm["mvae_loadings"]`` (d, k) and ``uns["mvae"]``.

    Raises
    ------
    InputError
        If there is no such layer, or it does not hold counts.

    Examples
    --------
    >>> import anndata
    >>> import numpy as np
    >>> from countvae.tl import mvae
    >>> counts = np.random.default_rng(0).poisson(5.0, size=(60, 12)).astype(np.float32)
    >>> adata = anndata.AnnData(counts)
    >>> mvae(adata, 2, max_epochs=5)
    >>> adata.obsm["X_mvae"].shape
    (60, 2)
    """
    table = CountTable(
        _counts(adata, layer),
        adata.obs_names.to_numpy(dtype=object),
        adata.var_names.to_numpy(dtype=object),
        adata.obs,
        adata.var,
    )
    model = MultinomialVAE(n_components, **settings).fit(table)
    changed = adata.copy() if copy else adata
    annotate(changed, model, *model.posterior(table), key_added=key_added, copy=False)
    return changed if copy else None


def _counts(adata: anndata.AnnData, layer: str | None) -> csr_array:
    layers = list(adata.layers)
    if layer in layers or (layer is None and "counts" in layers):
        matrix = adata.layers[layer or "counts"]
    elif layer in (None, "X") and adata.X is not None:
        matrix = adata.X
    else:
        raise NoSuchLayer(
            f"layer: adata has no {'X' if layer in (None, 'X') else f'layer {layer!r}'}; its"
            f" layers: {examples(layers, 10) if layers else 'none'}."
        )
    return csr_array(matrix, dtype=np.float64)
