"""Covariates: from a formula and what is known of the samples to the columns of a regression.

A formula names columns of the metadata, with ``+``, ``:``, ``*`` and ``-`` between them; nothing
in it is ever evaluated, so one that comes from a file can do no harm. A categorical column, which
is one of text, or of numbers inside ``C()``, becomes an indicator for each level but the first.
Columns of new samples are made as those of the fit.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from countvae.checks import examples
from countvae.errors import FormulaError, MetadataError, MissingPackage

__all__ = ["Design", "variables"]

AS_GROUPS = re.compile(r"`[^`]*`|\bC\(\s*(`[^`]+`|[^\W\d][\w.]*)\s*\)")
"""C(name), and names in backticks, in which there is none."""


@dataclass(frozen=True)
class Design:
    """A formula, and what it takes to apply it to other samples.

    Parameters
    ----------
    formula : str
        Such as ``~ age + delivery``.
    levels : mapping of str to list of str
        The levels of each categorical column, the first of which is the reference.
    names : tuple of str
        Columns of the regression, (p,).
    centre, scale : tuple of float
        Mean and standard deviation of each over the samples fitted: `matrix` has them standard.
    chance : tuple of tuple of float
        (F'F)^-1 over the samples fitted, (p, p): with what covariance a factor leans on the columns
        by chance. Empty until they were `seen`.
    samples : int
        How many these were.
    """

    formula: str
    levels: Mapping[str, list[str]]
    names: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    chance: tuple[tuple[float, ...], ...] = ()
    samples: int = 0

    @classmethod
    def of(cls, formula: Any, metadata: pd.DataFrame | None) -> "Design":
        """Learn levels, means and scales from the samples of a fit.

        Parameters
        ----------
        formula : str
            Such as ``~ age + delivery``.
        metadata : DataFrame
            A row a sample.

        Returns
        -------
        Design

        Raises
        ------
        InputError
            If the formula cannot be read, names a column that is not there, or one with missing
            values; if the columns that it makes are constant or follow from each other.

        Examples
        --------
        >>> metadata = pd.DataFrame({"age": [1.0, 2.0, 6.0], "site": ["a", "b", "a"]})
        >>> Design.of("~ age + site", metadata).names
        ('age', 'site[T.b]')
        """
        known = columns(variables(formula), metadata)
        as_groups = _as_groups(formula)
        levels = {
            name: _levels(column)
            for name, column in known.items()
            if name in as_groups or not _is_number(column)
        }
        raw = _matrix(formula, known, levels)
        X, names = raw.to_numpy(dtype=float), tuple(map(str, raw.columns))
        centre, scale = X.mean(0), X.std(0)
        constant = scale <= 1e-12 * np.maximum(1, np.abs(centre))
        if constant.any():
            raise FormulaError(
                f"formula: {examples(np.array(names)[constant])} is the same in every sample."
            )
        if np.linalg.matrix_rank((X - centre) / scale) < len(names):
            raise FormulaError(
                f"formula: the columns {', '.join(names)} follow from one another; leave one out."
            )
        return cls(formula, levels, names, tuple(centre.tolist()), tuple(scale.tolist()))

    def matrix(self, metadata: pd.DataFrame | None) -> Float[np.ndarray, "n p"]:
        """Return the columns for some samples, less the means and in units of the scales.

        Raises
        ------
        InputError
            If a column is missing or has missing values, or a level that the fit did not have.
        """
        known = columns(variables(self.formula), metadata)
        for name, levels in self.levels.items():
            new = ~_groups(known[name]).isin(levels)
            if new.any():
                sample = known.index[new][0]
                raise MetadataError(
                    f"metadata: column {name!r} has {str(known.loc[sample, name])!r} in sample"
                    f" {str(sample)!r}, which the model was not fitted with; it knows"
                    f" {examples(levels)}."
                )
        for name in known.columns.difference(list(self.levels)):
            numbers = pd.to_numeric(known[name].astype(object), errors="coerce").astype(float)
            wrong = ~np.isfinite(numbers)
            if wrong.any():
                sample = known.index[wrong][0]
                raise MetadataError(
                    f"metadata: column {name!r} has {str(known.loc[sample, name])!r} in sample"
                    f" {str(sample)!r}; the model was fitted with numbers there."
                )
            known = known.assign(**{name: numbers})
        raw = _matrix(self.formula, known, self.levels).to_numpy(dtype=float)
        return (raw - np.array(self.centre)) / np.array(self.scale)

    def seen(self, F: Float[np.ndarray, "n p"]) -> "Design":
        """Return this design with what chance does among the samples that were fitted."""
        chance = np.linalg.pinv(F.T @ F)
        return replace(self, chance=tuple(map(tuple, chance.tolist())), samples=len(F))

    def settings(self) -> dict[str, Any]:
        """Return plain JSON, from which and `chance` `restore` makes the same."""
        return {
            "formula": self.formula,
            "levels": {name: list(levels) for name, levels in self.levels.items()},
            "names": list(self.names),
            "centre": list(self.centre),
            "scale": list(self.scale),
            "samples": self.samples,
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any], chance: np.ndarray | None = None) -> "Design":
        """Make a design of what `settings` gave, in schema 1 with `chance`, and in 2 beside it."""
        variables(settings["formula"])
        names, centre, scale = (tuple(settings[name]) for name in ("names", "centre", "scale"))
        if chance is not None and chance.shape != (len(names), len(names)):
            raise ValueError("chance: expected a row and a column for each name")
        rows = settings.get("chance", ()) if chance is None else chance.tolist()
        known = cls(settings["formula"], dict(settings["levels"]), names, centre, scale)
        return replace(
            known, chance=tuple(map(tuple, rows)), samples=int(settings.get("samples", 0))
        )


def variables(formula: Any) -> list[str]:
    """Names of the columns in a formula, which has nothing else in it.

    Examples
    --------
    >>> variables("~ age * site + C(batch)")
    ['age', 'site', 'batch']
    """
    if not isinstance(formula, str):
        raise FormulaError(f"formula: expected text such as '~ age + site'; got {formula!r}.")
    formulaic = _formulaic()
    try:
        terms = list(formulaic.Formula(_plain(formula)))
    except (formulaic.errors.FormulaicError, SyntaxError, ValueError, TypeError) as error:
        raise FormulaError(f"formula: {formula!r} cannot be read.") from error
    factors = [factor for term in terms for factor in getattr(term, "factors", [None])]
    if not terms or any(factor is None for factor in factors):
        raise FormulaError(f"formula: expected one side, such as '~ age + site'; got {formula!r}.")
    constant = [f for f in factors if f.eval_method.value == "literal"]
    names = [f for f in factors if f.eval_method.value == "lookup"]
    if len(constant) + len(names) < len(factors):
        wrong = next(f for f in factors if f.eval_method.value == "python")
        raise FormulaError(
            f"formula: expected names of columns; got {wrong.expr!r}. Make such a column first;"
            " C(name) takes numbers as groups."
        )
    if not constant:
        raise FormulaError(
            f"formula: keep the constant, which is the model's centre; got {formula!r}."
        )
    found = list(dict.fromkeys(f.expr for f in names))
    if not found:
        raise FormulaError(f"formula: names no column; got {formula!r}.")
    return found


def _plain(formula: str) -> str:
    """Return a formula with the name alone in place of C(name)."""
    return AS_GROUPS.sub(lambda found: found[1] or found[0], formula)


def _as_groups(formula: str) -> set[str]:
    return {found[1].strip("`") for found in AS_GROUPS.finditer(formula) if found[1]}


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _groups(column: pd.Series) -> pd.Series:
    """Return the groups of a column as text: whole numbers without a point, however read."""
    if not _is_number(column):
        return column.astype(str)
    return column.map(lambda v: f"{v:.0f}" if v == np.floor(v) else repr(float(v)))


def _levels(column: pd.Series) -> list[str]:
    ordered = column if _is_number(column) else _groups(column)
    return _groups(ordered.sort_values()).unique().tolist()


def columns(
    names: list[str], metadata: pd.DataFrame | None, who: str = "the formula"
) -> pd.DataFrame:
    """Take some columns, which `who` needs; none with a missing value."""
    if metadata is None:
        raise MetadataError(f"metadata: {who} needs {examples(names)}, and there is no metadata.")
    missing = [name for name in names if name not in metadata.columns]
    if missing:
        raise MetadataError(
            f"metadata: there is no column {missing[0]!r}; there are"
            f" {examples([str(name) for name in metadata.columns])}."
        )
    known = metadata[names]
    for name, column in known.items():
        if column.isna().any():
            sample = known.index[column.isna()][0]
            raise MetadataError(
                f"metadata: column {name!r} has no value in sample {str(sample)!r}; leave out such"
                " samples or the column."
            )
    return known


def _matrix(formula: str, known: pd.DataFrame, levels: Mapping[str, list[str]]) -> pd.DataFrame:
    typed = known.assign(
        **{name: pd.Categorical(_groups(known[name]), levels[name]) for name in levels}
    )
    matrix = pd.DataFrame(_formulaic().model_matrix(_plain(formula), typed))
    return matrix.drop(columns="Intercept")


def _formulaic() -> Any:
    try:
        import formulaic
        import formulaic.errors
    except ImportError as error:
        raise MissingPackage(
            "formula: needs formulaic; pip install 'countvae[formula]'."
        ) from error
    return formulaic
