"""From rows to what is published: summaries, figures and the page `docs/benchmarks.md`.

The rows of a scenario are published too, and all else is made from these: who has them can check
every sentence.
"""

import gzip
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib
import pandas as pd

from countvae_simulations.cell import NOT_OF_RESULTS, versions
from countvae_simulations.glossary import glossary
from countvae_simulations.runner import TIMINGS
from countvae_simulations.scenarios import SCENARIOS
from countvae_simulations.scenarios.base import STATISTICS, Scenario, groups, shown, summary

INTRODUCTION = """# Simulations

What a pseudocount costs, what depth buys back, and how the peers do, from tables with a known
truth. Generated: each section says by which command and versions{code}. The glossary at the end
defines each measure, and files beside the figures have them all. What does not hold is said.

{answers}
"""

BLANK = "\n\n"
FIRST_SENTENCE = re.compile(r".*?\.(?= [A-Z]|$)")
FEW_SEEDS = 3


def checked_out() -> str:
    """Return the commit that this code is checked out from, marked where it differs.

    Empty where there is none, or where a repository is around code that is not its own.
    """
    folders = [str(Path(str(package.__file__)).parent) for package in NOT_OF_RESULTS]

    def told(*command: str) -> str:
        git = ["git", "-C", folders[1], *command]
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()

    try:
        if not told("ls-files", "--", __file__):
            return ""
        changed = "-dirty" * bool(told("status", "--porcelain", "--", *folders))
        return told("rev-parse", "--short", "HEAD") + changed
    except OSError:
        return ""


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
    commit : str
        The code that was checked out, where that is known.
    """

    rows: pd.DataFrame
    full: bool
    asked: int
    versions: Mapping[str, str] = field(default_factory=versions)
    commit: str = field(default_factory=checked_out)

    @classmethod
    def read(cls, file: Path) -> "Ran":
        """Read what `write` has written."""
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            about = json.loads(lines.readline().removeprefix("#"))
            rows = pd.read_csv(lines)
        return cls(rows, about["full"], about["asked"], about["versions"], about.get("commit", ""))

    def write(self, file: Path) -> None:
        """Write a line about the run, then a row a cell; the same bytes each time."""
        about = {
            "full": self.full,
            "asked": self.asked,
            "versions": dict(self.versions),
            "commit": self.commit,
        }
        with gzip.GzipFile(file, "wb", mtime=0) as packed:
            rows = self.rows.to_csv(index=False, lineterminator="\n", float_format="%.6g")
            packed.write(f"# {json.dumps(about)}\n{rows}".encode())

    def command(self, name: str) -> str:
        """What a user types for this grid."""
        return f"countvae benchmark{' --full' if self.full else ''} --scenario {name}"


def write_results(scenario: Scenario, ran: Ran, folder: Path) -> Ran:
    """Write the rows of a scenario and what is made of them; return the rows as written.

    Of cells that ran side by side time and memory say nothing, and are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not scenario.timed:
        ran = replace(ran, rows=ran.rows.drop(columns=[*TIMINGS], errors="ignore"))
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
    figures = {scenario.name: scenario.draw, f"{scenario.name}-all": scenario.draw_more}
    for name, draw in figures.items():
        if draw is not None:
            with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
                draw(ran.rows).savefig(folder / f"{name}.svg", metadata={"Date": None})
    (folder / f"{scenario.name}.md").write_text(section(scenario, ran), encoding="utf-8")
    return ran


def section(scenario: Scenario, ran: Ran) -> str:
    """Question, answer and figure of a scenario; then, folded, its grid, findings and table."""
    table = shown(scenario.on_page(ran.rows), scenario, scenario.page_measures)
    table = table.dropna(axis=1, how="all")
    lines = ["| " + " | ".join(_short(column) for column in table) + " |"]
    lines.append("|" + "---|" * table.shape[1])
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.to_numpy()]
    answer, *findings = scenario.conclude(ran.rows)
    more = [f"![{scenario.question} All settings.]({scenario.name}-all.svg)", ""]
    return "\n".join(
        [
            f"## {scenario.question}",
            "",
            answer,
            "",
            f"![{scenario.question}]({scenario.name}.svg)",
            "",
            f"{scenario.caption} {_grid(scenario, ran)} `{ran.command(scenario.name)}`; "
            f"{_versions(ran)}.",
            "",
            *_folded("What holds, what does not, by how much", [f"- {said}" for said in findings]),
            *_folded("Figure of all settings", more if scenario.draw_more else []),
            *_folded(
                "Table: minimum / median / maximum over seeds or, for squares less what chance "
                "gives them, the root of their average",
                lines,
            ),
        ]
    )


def _folded(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>", ""]


def page(folder: Path, page_folder: Path) -> str:
    """All sections of a results folder, in the order of the scenarios, whenever each was run."""
    where = Path(os.path.relpath(folder, page_folder)).as_posix()
    sections, answers, cells, made_by = [], [], [], {}
    for name, scenario in SCENARIOS.items():
        file = folder / f"{name}.md"
        if file.exists():
            text = file.read_text(encoding="utf-8")
            answer = FIRST_SENTENCE.findall(text.split(BLANK, 2)[1])[0]
            answers.append(f"- [{scenario.question}](#{anchor(scenario.question)}) {answer}")
            sections.append(text.replace(f"]({name}", f"]({where}/{name}"))
            cells += scenario.cells(True)
            code = Ran.read(folder / f"{name}.rows.csv.gz").versions.get("code", "")
            made_by.setdefault(code, []).append(name)
    introduction = INTRODUCTION.format(answers="\n".join(answers), code=_codes(made_by))
    return "\n".join([introduction, *sections, glossary(cells)])


def anchor(heading: str) -> str:
    """Where a heading is linked to, by GitHub and by MyST."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _codes(made_by: Mapping[str, Sequence[str]]) -> str:
    """Say whether sections are of one code: what is not, is not to be compared."""
    if len(made_by) < 2:
        return ", all of the same code"
    return f". They are of {len(made_by)} versions of the code: " + "; ".join(
        f"{', '.join(names)} of {code}" for code, names in made_by.items()
    )


def _versions(ran: Ran) -> str:
    commit = {"commit": ran.commit} if ran.commit else {}
    return ", ".join(f"{name} {number}" for name, number in {**ran.versions, **commit}.items())


def _grid(scenario: Scenario, ran: Ran) -> str:
    seeds = groups(ran.rows, scenario)["seed"].nunique()
    few, many = seeds.min(), seeds.max()
    left_out, now = ran.asked - len(ran.rows), len(scenario.cells(ran.full))
    grown = f" The grid has {now:,} cells now." if now != ran.asked else ""
    said = (
        f"{'The whole' if ran.full else 'The small'} grid: {len(ran.rows):,} of {ran.asked:,} "
        f"cells were run" + (f", {left_out:,} left out" if left_out else "") + f"; {few}"
        f"{f' to {many}' if many > few else ''} seed{'s' if many > 1 else ''} a setting.{grown}"
    )
    if many == 1:
        return said
    if many < FEW_SEEDS:
        return f"{said} Ranges and intervals over so few seeds say little."
    sure = 100 * (1 - 2.0 ** (1 - many))
    return (
        f"{said} The range over {many} seeds{', where there are as many,' * bool(few < many)} is a "
        f"{sure:.3g} % interval for the median over tables."
    )


def _short(column: str) -> str:
    return column.removeprefix("table.").removeprefix("settings.")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:g}"
    return str(value)
