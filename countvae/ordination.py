"""Samples and features of a fitted model, in the files and objects that other programs read."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Shaped
from scipy.spatial.distance import pdist, squareform
from skbio import DistanceMatrix, OrdinationResults

from countvae.checks import check_ids
from countvae.estimator import MultinomialVAE, axis_names
from countvae.files import new_file
from countvae.table import write_frame

__all__ = [
    "annotate",
    "axis_names",
    "coefficient_frame",
    "distances",
    "feature_frame",
    "files",
    "ordination",
    "sample_frame",
    "write_ordination",
]

NINETY = 1.6449
"""Standard deviations on either side of the mean that hold 90 % of a normal distribution."""

MIN_AXES = 3
"""Emperor draws in space, so an ordination is filled up with axes of zeros."""

Ids = Sequence[str] | Shaped[np.ndarray, " ids"]


def sample_frame(
    sample_ids: Ids, mean: Float[np.ndarray, "n k"], sd: Float[np.ndarray, "n k"]
) -> pd.DataFrame:
    """Coordinates of samples and their standard deviations: F1, ..., Fk, F1_sd, ..., Fk_sd.

    Parameters
    ----------
    sample_ids : sequence of str
        Names of the rows.
    mean, sd : ndarray, shape (n, k)
        What `MultinomialVAE.posterior` returns.

    Returns
    -------
    DataFrame
        Indexed by "sample-id", which QIIME 2 and scikit-bio know as a column of ids.
    """
    axes = axis_names(mean.shape[1])
    return pd.DataFrame(
        np.hstack([mean, sd]),
        index=pd.Index(sample_ids, name="sample-id", dtype=object),
        columns=[*axes, *(f"{axis}_sd" for axis in axes)],
    )


def feature_frame(model: MultinomialVAE, metadata: pd.DataFrame | None = None) -> pd.DataFrame:
    """Loadings V with their standard deviations, mean CLR and noise variance of each feature.

    Parameters
    ----------
    model : MultinomialVAE
        A fitted model.
    metadata : DataFrame, optional
        More columns, such as the taxonomy, by feature id.

    Returns
    -------
    DataFrame
        Columns F1, ..., Fk, F1_sd, ..., Fk_sd (not of a network), mean_clr and noise_variance,
        then those of `metadata`; indexed by "feature-id".
    """
    axes = axis_names(model.n_components_)
    frame = pd.DataFrame(
        np.hstack([model.clr_loadings_, model.clr_loadings_sd_]),
        index=pd.Index(model.feature_ids_, name="feature-id", dtype=object),
        columns=[*axes, *(f"{axis}_sd" for axis in axes)],
    ).dropna(axis="columns")
    frame = frame.assign(mean_clr=model.mean_, noise_variance=model.feature_noise_variance_)
    return frame if metadata is None else frame.join(metadata, rsuffix="_given")


def ordination(
    model: MultinomialVAE, sample_ids: Ids, mean: Float[np.ndarray, "n k"]
) -> OrdinationResults:
    """Return scikit-bio's view of a model: samples are coordinates, features are unit axes.

    Parameters
    ----------
    model : MultinomialVAE
        A fitted model; its `explained_variance_` are the eigenvalues.
    sample_ids : sequence of str
        Names of the samples.
    mean : ndarray, shape (n, k)
        Their coordinates, as `transform` returns them.

    Returns
    -------
    OrdinationResults
        With three axes or more: those beyond k are zero.
    """
    k = model.n_components_
    names = axis_names(max(k, MIN_AXES))
    more = len(names) - k

    def frame(values: np.ndarray, ids: Ids) -> pd.DataFrame:
        padded = np.pad(values, ((0, 0), (0, more)))
        return pd.DataFrame(padded, index=pd.Index(ids, dtype=object), columns=names)

    return OrdinationResults(
        short_method_name="mvae",
        long_method_name="Multinomial variational autoencoder",
        eigvals=pd.Series(np.pad(model.explained_variance_, (0, more)), names),
        proportion_explained=pd.Series(np.pad(model.explained_variance_ratio_, (0, more)), names),
        samples=frame(mean, sample_ids),
        features=frame(model.components_.T, model.feature_ids_),
    )


def distances(sample_ids: Ids, points: Float[np.ndarray, "n p"]) -> DistanceMatrix:
    """Return scikit-bio's matrix of the distances between samples.

    Parameters
    ----------
    sample_ids : sequence of str
        Names of the samples.
    points : ndarray, shape (n, p)
        Coordinates from `MultinomialVAE.transform`, whose distances are Aitchison distances
        between what the factors say of the samples; or the centred log-ratios of
        `MultinomialVAE.denoise`, whose distances have the noise of single features as well. Less
        `MultinomialVAE.of_covariates`, these are adjusted too, as coordinates always are.

    Returns
    -------
    DistanceMatrix
    """
    return DistanceMatrix(squareform(pdist(points)), [str(name) for name in sample_ids])


def write_ordination(results: OrdinationResults, path: str | Path, force: bool = False) -> None:
    """Write scikit-bio's ordination file, whole or not at all.

    Parameters
    ----------
    results : OrdinationResults
        What `ordination` returns.
    path : path
        The file to write.
    force : bool
        Whether to replace a file that is there.

    Raises
    ------
    InputError
        If the file cannot be written, or would not give an id back as it is.
    """
    check_ids(results.sample_ids, "sample ids")
    check_ids(results.feature_ids, "feature ids")
    with new_file(path, force) as beside:
        results.write(str(beside))


def coefficient_frame(model: MultinomialVAE, *, balances: bool = False) -> pd.DataFrame:
    """What a unit of each covariate adds to the centred log-ratios, or to the balances.

    Parameters
    ----------
    model : MultinomialVAE
        A model fitted with a formula.
    balances : bool
        Give the effects on the log-ratios of the model's basis instead of those of the features.

    Returns
    -------
    DataFrame
        A row for each feature (or balance) and covariate, indexed by "feature-id" (or
        "balance-id"): `covariate`, `effect`, `sd`, and the interval `low` to `high` that holds it
        with 90 %. Errors of the effects on features are independent but for what the factors lean
        on the covariates by chance, which moves all of them; those on balances count both.
    """
    effects, variances = model.coefficients_, model.coefficients_sd_**2
    names, label = model.feature_ids_, "feature-id"
    if balances:
        basis = model.basis_operator_
        effects = np.asarray(basis.adjoint(effects))
        # all effects err together by V times what factors lean on the covariates by chance
        together = np.outer(model.coefficients_chance_, np.square(model.clr_loadings_).sum(1))
        apart = np.maximum(variances - together, 0) @ basis.to_sparse().power(2)
        W = model.loadings_
        variances = apart + np.outer(model.coefficients_chance_, np.square(W).sum(1))
        names, label = [str(name) for name in basis.names], "balance-id"
    sd = np.sqrt(variances)
    p = len(effects)
    return pd.DataFrame(
        {
            "covariate": np.repeat(model.coefficient_names_, len(names)),
            "effect": effects.ravel(),
            "sd": sd.ravel(),
            "low": (effects - NINETY * sd).ravel(),
            "high": (effects + NINETY * sd).ravel(),
        },
        index=pd.Index(names * p, name=label, dtype=object),
    )


def files(
    model: MultinomialVAE,
    sample_ids: Ids,
    mean: Float[np.ndarray, "n k"],
    sd: Float[np.ndarray, "n k"],
    feature_metadata: pd.DataFrame | None = None,
) -> dict[str, Callable[[Path], None]]:
    """What lies beside a saved model: samples.tsv, features.tsv, ordination.txt.

    With covariates also coefficients.tsv and balances.tsv, their effects on both.

    Parameters
    ----------
    model : MultinomialVAE
        A fitted model.
    sample_ids : sequence of str
        The samples it was fitted to.
    mean, sd : ndarray, shape (n, k)
        Their coordinates, from `MultinomialVAE.posterior`.
    feature_metadata : DataFrame, optional
        More columns of features.tsv.

    Returns
    -------
    dict
        Name of each file to the function that writes it, as `MultinomialVAE.save` takes them.
    """
    of_covariates: dict[str, Callable[[Path], None]] = {}
    if hasattr(model, "coefficients_"):
        of_covariates = {
            "coefficients.tsv": lambda path: write_frame(coefficient_frame(model), path),
            "balances.tsv": lambda path: write_frame(coefficient_frame(model, balances=True), path),
        }
    return of_covariates | {
        "samples.tsv": lambda path: write_frame(sample_frame(sample_ids, mean, sd), path),
        "features.tsv": lambda path: write_frame(feature_frame(model, feature_metadata), path),
        "ordination.txt": lambda path: write_ordination(ordination(model, sample_ids, mean), path),
    }


def annotate(
    adata: AnnData,
    model: MultinomialVAE,
    mean: Float[np.ndarray, "n k"],
    sd: Float[np.ndarray, "n k"],
    *,
    key_added: str | None = None,
    copy: bool = True,
) -> AnnData:
    """Return `adata` with coordinates, their uncertainty and the loadings.

    Parameters
    ----------
    adata : AnnData
        n samples.
    model : MultinomialVAE
        A fitted model. Features of `adata` that it does not know have missing loadings.
    mean, sd : ndarray, shape (n, k)
        From `MultinomialVAE.posterior`, in the order of `adata`.
    key_added : str, optional
        Used as it stands in place of "X_mvae" and "mvae".
    copy : bool
        Whether to leave `adata` itself as it is.

    Returns
    -------
    AnnData
        With ``obsm["X_mvae"]``, ``obsm["X_mvae_sd"]``, ``varm["mvae_loadings"]`` and
        ``uns["mvae"]``, a dict of plain values.
    """
    coordinates, rest = ("X_mvae", "mvae") if key_added is None else (key_added, key_added)
    loadings = pd.DataFrame(model.clr_loadings_, index=pd.Index(model.feature_ids_, dtype=object))
    settings = {k: v for k, v in model.get_params().items() if isinstance(v, int | float | str)}
    annotated = adata.copy() if copy else adata
    annotated.obsm[coordinates] = mean
    annotated.obsm[f"{coordinates}_sd"] = sd
    annotated.varm[f"{rest}_loadings"] = loadings.reindex(adata.var_names.astype(object)).to_numpy()
    annotated.uns[rest] = {
        "explained_variance": model.explained_variance_,
        "explained_variance_ratio": model.explained_variance_ratio_,
        "noise_variance": model.noise_variance_,
        "parameters": settings,
        "version": version("countvae"),
    }
    return annotated
