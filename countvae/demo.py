"""The main job on a real table and on one whose truth is known, with figures and pictures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import skbio
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.linalg import orthogonal_procrustes
from scipy.sparse import csr_array
from scipy.special import gammaln, log_softmax
from sklearn.datasets import load_digits

from countvae import ordination, plots
from countvae.estimator import MultinomialVAE
from countvae.metrics import common_features, covariance_error, subspace_error
from countvae.ppca import PPCA, clr_counts, ppca
from countvae.simulate import Simulation, simulate
from countvae.table import CountTable, read

__all__ = ["demo", "describe"]

HELD_OUT = 0.2
FOUND = "demo.json"
WRITTEN = (FOUND, "real.png", "simulated.png", "real", "simulated")


def demo(
    folder: Path, *, seed: int = 0, progress: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, dict[str, float | int | str]]:
    """Fit a real table and a simulated one, and write models, pictures and figures to a folder.

    Parameters
    ----------
    folder : Path
        An empty folder; it will hold ``real.png``, ``simulated.png``, a model folder for each
        table and ``demo.json``.
    seed : int
        Of the fits, the simulation and the choice of samples that are held out.
    progress : callable, optional
        As in `MultinomialVAE`.

    Returns
    -------
    dict
        What was found on either table, as in ``demo.json``; `describe` puts it into words.
    """
    found = {
        "real": _real(folder, seed, progress),
        "simulated": _simulated(folder, seed, progress),
    }
    (folder / FOUND).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def describe(found: dict[str, dict[str, float | int | str]]) -> str:
    """Put what `demo` returns into a few lines."""
    lines = []
    for name, f in found.items():
        lines += [
            f"{name}: {f['table']}, {f['samples']} samples × {f['features']} features;"
            f" k = {f['n_components']}, {f['epochs']} epochs, {f['seconds']:.1f} s",
            "  nats a read, samples held out (higher is better)",
            f"    countvae, a lower bound   {f['bound']:.4f}",
            f"    PCA of log(x+1), plug-in  {f['pca_plug_in']:.4f}",
            f"    pooled proportions        {f['pooled']:.4f}",
        ]
        if "sigma2_true" in f:
            lines += [
                "  error against the truth (lower is better)    countvae    PCA of log(x+1)",
                *(
                    f"    {what:<41}{f[key]:>10.3f}{f[key + '_pca']:>19.3f}"
                    for what, key in (
                        ("loadings: share of their space missed", "subspace_error"),
                        ("the same, features above median abundance", "subspace_error_common"),
                        ("covariance, relative", "covariance_error"),
                        ("the same, features above median abundance", "covariance_error_common"),
                    )
                ),
                f"    noise variance (truth {f['sigma2_true']:g})"
                f"{'':<19}{f['sigma2']:>9.3f}{f['sigma2_pca']:>19.3f}",
            ]
    return "\n".join(lines)


def _real(
    folder: Path, seed: int, progress: Callable[[dict[str, Any]], None] | None
) -> dict[str, float | int | str]:
    table, name, label = _real_table()
    model, _, found = _fit(table, 5, seed, progress)
    mean, sd = model.posterior(table)
    model.save(folder / "real", extra_files=ordination.files(model, table.sample_ids, mean, sd))
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    assert table.sample_metadata is not None
    ratio = model.explained_variance_ratio_
    plots.ordination(mean, table.sample_metadata[label], ratio=ratio, ax=left)
    left.set_title(f"{name}: {table.n} samples × {table.d} features")
    plots.loadings(ordination.feature_frame(model), ax=right)
    right.set_title("What the first axis is made of")
    figure.savefig(folder / "real.png", dpi=150)
    return {"table": name, **found}


def _simulated(
    folder: Path, seed: int, progress: Callable[[dict[str, Any]], None] | None
) -> dict[str, float | int | str]:
    truth = simulate(1000, 300, 6, 2000, rng=np.random.default_rng(seed))
    table = CountTable(truth.counts, truth.sample_ids, truth.feature_ids)
    model, pca, found = _fit(table, truth.V.shape[1], seed, progress)
    mean, sd = model.posterior(table)
    model.save(
        folder / "simulated", extra_files=ordination.files(model, table.sample_ids, mean, sd)
    )
    V = model.clr_loadings_
    found |= {"sigma2_true": truth.sigma2}
    for suffix, V_est, sigma2 in (
        ("", V, model.noise_variance_),
        ("_pca", pca.loadings, pca.noise_variance),
    ):
        found[f"sigma2{suffix}"] = sigma2
        variances = {"sigma2_true": truth.sigma2, "sigma2_est": sigma2}
        for part, features in (("", None), ("_common", common_features(truth.counts))):
            found[f"subspace_error{part}{suffix}"] = subspace_error(
                truth.V, V_est, features=features
            )
            found[f"covariance_error{part}{suffix}"] = covariance_error(
                truth.V, V_est, features=features, **variances
            )
    figure = Figure(figsize=(12, 4), layout="constrained")
    scores, covariance, right = figure.subplots(1, 3)
    _, y_pca = _pca_scores(pca, clr_counts(truth.counts))
    for label, y, V_est, sigma2, colour in (
        ("PCA of log(x+1)", y_pca, pca.loadings, pca.noise_variance, plots.GREY),
        ("countvae", mean, V, model.noise_variance_, plots.COLOURS[0]),
    ):
        plots.agreement(*_superposed(truth, y), label=label, colour=colour, ax=scores)
        plots.agreement(
            _upper(truth.V, truth.sigma2),
            _upper(V_est, sigma2),
            label=label,
            colour=colour,
            ax=covariance,
        )
    scores.set_title("Factors, after a rotation (Aitchison units)")
    covariance.set_title("Covariances of log-ratios")
    plots.history(model.history_, ax=right)
    right.set_title("The fit")
    figure.savefig(folder / "simulated.png", dpi=150)
    return {"table": 'drawn from the model, design "wide"', **found}


def _real_table() -> tuple[CountTable, str, str]:
    """scikit-bio's gut table if it came with its tests, else scikit-learn's digits."""
    data = Path(skbio.__path__[0]) / "stats" / "composition" / "tests" / "data"
    if (data / "atlas_feature_table.csv").exists() and (data / "atlas_meta_data.csv").exists():
        table = read(data / "atlas_feature_table.csv")
        metadata = pd.read_csv(data / "atlas_meta_data.csv", dtype={0: str})
        metadata = metadata.set_index(metadata.columns[0]).reindex(table.sample_ids)
        return replace(table, sample_metadata=metadata), "Human gut atlas (scikit-bio)", "region"
    digits = load_digits()
    samples = np.array([f"digit_{i}" for i in range(len(digits.data))], dtype=object)
    features = np.array(digits.feature_names, dtype=object)
    metadata = pd.DataFrame({"digit": digits.target.astype(str)}, index=samples)
    table = CountTable(csr_array(digits.data), samples, features, metadata, source="digits")
    return table, "Handwritten digits (scikit-learn)", "digit"


def _fit(
    table: CountTable, k: int, seed: int, progress: Callable[[dict[str, Any]], None] | None
) -> tuple[MultinomialVAE, PPCA, dict[str, float | int | str]]:
    """Fit all samples but a fifth, and judge on those, in nats a read, coefficient left out."""
    order = np.random.default_rng(seed).permutation(table.n)
    held_out = table.select_samples(np.sort(order[: round(HELD_OUT * table.n)]))
    fitted = table.select_samples(np.sort(order[round(HELD_OUT * table.n) :]))
    begun = perf_counter()
    model = MultinomialVAE(k, random_state=seed, progress=progress).fit(fitted)
    seconds = perf_counter() - begun
    pca = ppca(clr_counts(fitted.counts), k, rank=table.d - 1)

    x, reads = held_out.counts.toarray(), held_out.depth.sum()
    coefficient = gammaln(x.sum(axis=1) + 1).sum() - gammaln(x + 1).sum()
    pooled = np.log(np.asarray(fitted.counts.sum(axis=0)) + 1.0)
    reconstructed, _ = _pca_scores(pca, clr_counts(held_out.counts))
    return (
        model,
        pca,
        {
            "samples": table.n,
            "features": table.d,
            "held_out": held_out.n,
            "n_components": model.n_components_,
            "epochs": model.n_iter_,
            "seconds": seconds,
            "bound": float((model.score_samples(held_out).sum() - coefficient) / reads),
            "pca_plug_in": float((x * log_softmax(reconstructed, axis=1)).sum() / reads),
            "pooled": float((x @ log_softmax(pooled)).sum() / reads),
        },
    )


def _pca_scores(
    pca: PPCA, Y: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n k"]]:
    """What PCA keeps of each row, in full and as scores."""
    U = pca.loadings / np.linalg.norm(pca.loadings, axis=0)
    scores = (Y - pca.mean) @ U
    return pca.mean + scores @ U.T, scores


def _superposed(
    truth: Simulation, y: Float[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """True coordinates in the axes of VVᵀ, and the estimate turned (no more) onto them."""
    _, s, Rt = np.linalg.svd(truth.V, full_matrices=False)
    target = truth.z @ Rt.T * s
    target = target - target.mean(axis=0)
    y = y - y.mean(axis=0)
    rotation, _ = orthogonal_procrustes(y, target)
    return target, y @ rotation


def _upper(V: Float[np.ndarray, "d k"], sigma2: int | float) -> Float[np.ndarray, " pairs"]:
    """Covariances of log-ratios, VVᵀ + σ²(I − 11ᵀ/d), of each pair of features."""
    return (V @ V.T)[np.triu_indices(len(V), 1)] - sigma2 / len(V)
