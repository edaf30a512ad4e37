"""The names on the page, each with its definition from where it is defined."""

import ast
import sys
from collections.abc import Iterable, Iterator

from countvae_simulations.cell import Cell
from countvae_simulations.measures import MEASURES
from countvae_simulations.methods import METHODS
from countvae_simulations.methods.ablations import ABLATIONS
from countvae_simulations.methods.peer import SCRIPTS

OTHERS = (
    "Designs: a `flat` table has equal abundances and factors of no order; a `wide` one abundances "
    "over many orders of magnitude, stronger and weaker factors, and depths that differ. Other "
    "columns are arguments of `countvae.simulate.simulate` and of the suite's `tables.draw`, "
    "or settings of `MultinomialVAE`; `draws` are those that a chain keeps, after as many to warm "
    "up. `seeds` counts the tables of a line."
)


def glossary(cells: Iterable[Cell]) -> str:
    """Say what was measured in these cells, and by which methods."""
    cells = list(cells)
    asked = {"effort"}.union(*(cell.measures for cell in cells))
    measures = (
        f"- {name.replace('_', ' ').capitalize()}: {_prose(measure.__doc__)}"
        for name, measure in MEASURES.items()
        if name in asked
    )
    methods = (f"- `{name}`: {said}" for name, said in sorted(set(_methods(cells))))
    of_measures, of_methods = "\n".join(measures), "\n".join(methods)
    return f"## Glossary\n\nMeasures.\n\n{of_measures}\n\nMethods.\n\n{of_methods}\n\n{OTHERS}\n"


def _methods(cells: Iterable[Cell]) -> Iterator[tuple[str, str]]:
    for cell in cells:
        yield cell.method, _first(sys.modules[METHODS[cell.method].__module__].__doc__)
        if cell.method == "peer":
            name = cell.settings["name"]
            script = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
            yield name, _first(ast.get_docstring(ast.parse(script)))
        elif cell.method == "ablation":
            part = cell.settings["part"]
            yield part, _first(ABLATIONS[part].__doc__)


def _prose(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def _first(docstring: str | None) -> str:
    """Its first paragraph."""
    return _prose((docstring or "").split("\n\n")[0])
