"""The shared real tables, where they lie, and what their labels are good for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mean_absolute_error
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from benchmarks.core.common import DATA
from countvae.table import CountTable, read

NEIGHBOURS = FOLDS = 5
FILES = {
    "oaks": ("table.biom", "metadata.tsv"),
    "ecam": ("table.biom", "metadata.tsv"),
    "globalpatterns": ("table.biom", "metadata.tsv"),
    "ifnb_pbmc": ("counts.h5ad", None),
}


def whole(name: str) -> CountTable:
    """Read a shared table with its metadata."""
    counts, metadata = FILES[name]
    folder = DATA / name
    return read(folder / counts, metadata=None if metadata is None else folder / metadata)


@dataclass(frozen=True)
class Check:
    """A label check: the measures, and how to get them from coordinates of all samples."""

    measures: tuple[str, ...]
    of: Callable[[CountTable, np.ndarray], tuple[float, ...]]


def month_of_life(table: CountTable, coordinates: np.ndarray) -> tuple[float, ...]:
    """Spearman's correlation and mean absolute error in months; children only, by infant."""
    labels = table.sample_metadata
    child = (labels["mom_child"] == "C").to_numpy()
    months = labels["month_of_life"].to_numpy(dtype=float)[child]
    found = cross_val_predict(
        KNeighborsRegressor(NEIGHBOURS),
        coordinates[child],
        months,
        groups=labels["host_subject_id"].to_numpy()[child],
        cv=GroupKFold(FOLDS),
    )
    return float(spearmanr(found, months).statistic), mean_absolute_error(months, found)


def cell_type(table: CountTable, coordinates: np.ndarray) -> tuple[float, ...]:
    """Balanced accuracy and accuracy of the type of a cell."""
    return _classified(coordinates, table.sample_metadata["cell_type"].astype(str).to_numpy())


def orientation(table: CountTable, coordinates: np.ndarray) -> tuple[float, ...]:
    """Balanced accuracy and accuracy of the side of the tree that a leaf grew on."""
    return _classified(coordinates, table.sample_metadata["orientation"].to_numpy())


def _classified(coordinates: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    found = cross_val_predict(KNeighborsClassifier(NEIGHBOURS), coordinates, labels, cv=folds)
    return balanced_accuracy_score(labels, found), accuracy_score(labels, found)


CHECKS = {
    "ecam": Check(("Spearman", "MAE in months"), month_of_life),
    "ifnb_pbmc": Check(("balanced accuracy", "accuracy"), cell_type),
    "oaks": Check(("balanced accuracy", "accuracy"), orientation),
}
