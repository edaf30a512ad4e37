"""From rows to what is published: summaries, figures and the page `docs/benchmarks.md`.

The rows of a scenario are published too, and all else is made from these: who has them can check
every sentence.
"""

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import pandas as pd

from countvae_simulations.cell import versions
from countvae_simulations.glossary import glossary
from countvae_simulations.runner import TIMINGS
from countvae_simulations.scenarios import SCENARIOS
from countvae_simulations.scenarios.base import STATISTICS, Scenario, groups, shown, summary

INTRODUCTION = """# Simulations

What a pseudocount costs, what depth buys back, and how the peers do, from tables with a known
truth. Generated: each section says by which command and versions. Cells are minimum / median /
maximum over seeds or, for squares less what chance gives them, the root of their average. The
glossary at the end defines each measure, and files beside the figures have them all. What does not
hold is said.

{answers}
"""

BLANK = "\n\n"


@dataclass(frozen=True)
class Ran:
    """Rows of a scenario, and the grid that they are of.

    Attributes
    ----------
    rows : DataFrame
    full : bool
        Whether the grid was the whole one.
    asked : int
        Its cells; those that have no row were left out.
    versions : mapping
        What the results depend on.
    """

    rows: pd.DataFrame
    full: bool
    asked: int
    versions: Mapping[str, str] = field(default_factory=versions)

    @classmethod
    def read(cls, file: Path) -> "Ran":
        """Read what `write` has written."""
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            about = json.loads(lines.readline().removeprefix("#"))
            rows = pd.read_csv(lines)
        return cls(rows, about["full"], about["asked"], about["versions"])

    def write(self, file: Path) -> None:
        """Write a line about the run, then a row a cell; the same bytes each time."""
        about = {"full": self.full, "asked": self.asked, "versions": dict(self.versions)}
        with gzip.GzipFile(file, "wb", mtime=0) as packed:
            rows = self.rows.to_csv(index=False, lineterminator="\n", float_format="%.6g")
            packed.write(f"# {json.dumps(about)}\n{rows}".encode())

    def command(self, name: str) -> str:
        """What a user types for this grid."""
        return f"countvae benchmark{' --full' if self.full else ''} --scenario {name}"


def write_results(scenario: Scenario, ran: Ran, folder: Path) -> Ran:
    """Write the rows of a scenario and what is made of them; return the rows as written."""
    folder.mkdir(parents=True, exist_ok=True)
    ran.write(folder / f"{scenario.name}.rows.csv.gz")
    return publish(scenario, folder)


def publish(scenario: Scenario, folder: Path) -> Ran:
    """Write summary, timings, figure and section of a scenario from its rows, and return these."""
    ran = Ran.read(folder / f"{scenario.name}.rows.csv.gz")
    table = summary(ran.rows, scenario)
    timings = [f"{name}_{statistic}" for name in TIMINGS for statistic in STATISTICS]
    timings = [column for column in timings if column in table]
    repeatable = table.drop(columns=timings)
    repeatable.to_csv(
        folder / f"{scenario.name}.csv", index=False, lineterminator="\n", float_format="%.6g"
    )
    if timings:
        timed = table[[c for c in scenario.by if c in table] + timings]
        timed.to_csv(
            folder / f"{scenario.name}-timings.csv",
            index=False,
            lineterminator="\n",
            float_format="%.6g",
        )
    with matplotlib.rc_context({"svg.hashsalt": scenario.name, "svg.fonttype": "none"}):
        scenario.draw(ran.rows).savefig(folder / f"{scenario.name}.svg", metadata={"Date": None})
    (folder / f"{scenario.name}.md").write_text(section(scenario, ran), encoding="utf-8")
    return ran


def section(scenario: Scenario, ran: Ran) -> str:
    """Question, answer, grid, figure and table of a scenario."""
    table = shown(scenario.on_page(ran.rows), scenario, scenario.page_measures)
    table = table.dropna(axis=1, how="all")
    lines = ["| " + " | ".join(_short(column) for column in table) + " |"]
    lines.append("|" + "---|" * table.shape[1])
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.to_numpy()]
    return "\n".join(
        [
            f"## {scenario.question}",
            "",
            *_answer_first(scenario.conclude(ran.rows)),
            "",
            f"{_grid(scenario, ran)} `{ran.command(scenario.name)}`; {_versions(ran)}.",
            "",
            f"![{scenario.question}]({scenario.name}.svg)",
            "",
            *lines,
            "",
        ]
    )


def page(folder: Path, page_folder: Path) -> str:
    """All sections of a results folder, in the order of the scenarios, whenever each was run."""
    where = Path(os.path.relpath(folder, page_folder)).as_posix()
    sections, answers, cells = [], [], []
    for name, scenario in SCENARIOS.items():
        file = folder / f"{name}.md"
        if file.exists():
            text = file.read_text(encoding="utf-8")
            answers.append(f"- *{scenario.question}* {text.split(BLANK, 2)[1]}")
            sections.append(text.replace(f"]({name}.svg)", f"]({where}/{name}.svg)"))
            cells += scenario.cells(True)
    introduction = INTRODUCTION.format(answers="\n".join(answers))
    return "\n".join([introduction, *sections, glossary(cells)])


def _versions(ran: Ran) -> str:
    return ", ".join(f"{name} {number}" for name, number in ran.versions.items())


def _grid(scenario: Scenario, ran: Ran) -> str:
    seeds = groups(ran.rows, scenario)["seed"].nunique()
    few, many = seeds.min(), seeds.max()
    left_out = ran.asked - len(ran.rows)
    said = (
        f"{'The whole' if ran.full else 'The small'} grid: {len(ran.rows):,} of {ran.asked:,} "
        f"cells were run" + (f", {left_out:,} left out" if left_out else "") + f"; {few}"
        f"{f' to {many}' if many > few else ''} seed{'s' if many > 1 else ''} a setting."
    )
    if many == 1:
        return said
    sure = 100 * (1 - 2.0 ** (1 - many))
    return (
        f"{said} The range over {many} seeds is a {sure:.3g} % interval for the median over tables."
    )


def _answer_first(sentences: list[str]) -> list[str]:
    first, *rest = sentences
    return [first, "", *(f"- {sentence}" for sentence in rest)]


def _short(column: str) -> str:
    return column.removeprefix("table.").removeprefix("settings.")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:g}"
    return str(value)
