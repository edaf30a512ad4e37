"""`countvae benchmark`: run a scenario, say what it shows, keep its tables and figure."""

import os
import time
from pathlib import Path

import click

from countvae.cli import debug_option
from countvae.console import Exemplary
from countvae.errors import CannotWrite
from countvae_simulations.methods import peer
from countvae_simulations.page import Ran, page, write_results
from countvae_simulations.runner import connected, read_store, run
from countvae_simulations.scenarios import SCENARIOS
from countvae_simulations.scenarios.base import Scenario

STORES = "cells"


@click.command(cls=Exemplary, example="countvae benchmark --scenario depth -o benchmark")
@click.option(
    "--scenario",
    "names",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="Scenario to run; may be repeated.  [default: all]",
)
@click.option("--full", is_flag=True, help="The whole grid: hours rather than minutes.")
@click.option(
    "-o",
    "--output-dir",
    "output",
    type=click.Path(path_type=Path),
    default=Path("benchmark"),
    show_default=True,
    help="Folder for cells, summaries and figures; a run that was broken off goes on.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="cores",
    help="Processes; scenarios that are timed run one at a time.",
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Dask scheduler whose workers run the cells, but for those that are timed.",
)
@click.option(
    "--page",
    "page_file",
    type=click.Path(path_type=Path),
    help="Write a page of all that the folder has.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
@debug_option
def benchmark(
    names: tuple[str, ...],
    full: bool,
    output: Path,
    jobs: int,
    cluster: str | None,
    page_file: Path | None,
    quiet: bool,
) -> None:
    """Run simulations whose truth is known, and say what they show."""
    if page_file is not None and not page_file.parent.is_dir():
        if output.resolve() != page_file.parent.resolve():
            raise CannotWrite(f"--page: there is no folder '{page_file.parent}'.")
    if page_file is not None and page_file.is_dir():
        raise CannotWrite(f"--page: '{page_file}' is a folder.")
    if cluster is not None:
        with connected(cluster):
            pass
    output.mkdir(parents=True, exist_ok=True)
    for name in names or SCENARIOS:
        scenario = SCENARIOS[name]
        begun = time.monotonic()

        def say(done: int, total: int, name: str = name, begun: float = begun) -> None:
            if not quiet:
                minutes = (time.monotonic() - begun) / 60
                click.echo(f"{name}: {done} of {total} cells, {minutes:.1f} min", err=True)

        store = output / STORES / f"{name}.csv"
        whole = full or _whole(scenario, store)
        grid = scenario.cells(whole)
        peers = peer.python().exists()
        able = [cell for cell in grid if peers or not cell.needs_peers]
        if len(able) < len(grid):
            click.echo(
                f"{name}: {len(grid) - len(able)} of {len(grid)} cells are left out, for there is "
                "no environment for the peers (`make bench-peers`, or COUNTVAE_PEERS).",
                err=True,
            )
        try:
            rows = run(
                able,
                store,
                jobs=1 if scenario.timed else jobs,
                threads=(os.cpu_count() or 1) if scenario.timed else 1,
                fresh=scenario.timed,
                cluster=None if scenario.timed else cluster,
                progress=say,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; the same command goes on from what '{store}' has."
            ) from None
        if rows.empty:
            click.echo(f"{scenario.question}\n  No cell could be run.")
            continue
        depends_on = {name: number for cell in grid for name, number in cell.versions.items()}
        written = write_results(scenario, Ran(rows, whole, len(grid), depends_on), output)
        click.echo(scenario.question)
        for sentence in scenario.conclude(written.rows):
            click.echo(f"  {sentence}")
    if page_file is not None:
        if not any((output / f"{name}.md").exists() for name in SCENARIOS):
            raise CannotWrite(f"--page: '{output}' has no results to write of.")
        page_file.write_text(page(output, page_file.parent), encoding="utf-8")


def _whole(scenario: Scenario, store: Path) -> bool:
    """Whether a store has the whole grid already: then it is shown."""
    done = read_store(store)
    return all(cell.key in done for cell in scenario.cells(True))
