"""Write docs/reliability.md from the tables of results, and print what it says first."""
# ruff: noqa: E501

import pandas as pd

from benchmarks.core.common import ROOT, markdown, origin_of
from benchmarks.reliability.faults import FAULTS
from benchmarks.reliability.models import RELATIVE
from benchmarks.reliability.repeats import (
    BATCH,
    CHANGES,
    COVARIANCE,
    NATS,
    THREADS_COVARIANCE,
    WIDE,
)
from benchmarks.reliability.scene import HERE
from benchmarks.reliability.warm import SYNC_SECONDS

PAGE = ROOT / "docs" / "reliability.md"
NAMES = ("faults", "kills", "hostile", "bits", "tolerances", "models")


def results() -> dict[str, pd.DataFrame]:
    """Read the tables."""
    return {
        name: pd.read_csv(HERE / "results" / f"{name}.csv", comment="#", keep_default_na=False)
        for name in NAMES
    }


def summary(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the table: what was tried, how often it went as it should, and what was lost."""
    faults, kills, hostile = found["faults"], found["kills"], found["hostile"]
    bits, models = found["bits"], found["models"]
    well = faults["outcome"].isin(["refused", "done"])
    refused_or_read = hostile["refused"] + hostile["read"]
    rows = [
        ("faults injected: ended in a sentence, or were got through", len(faults), well.sum()),
        (
            "faults injected: what was there before is untouched",
            len(faults),
            (faults["lost"] == 0).sum(),
        ),
        (
            "fits stopped at a random moment: nothing lost",
            kills["stopped"].sum(),
            kills["stopped"].sum() - kills["lost"].sum(),
        ),
        ("fits resumed: result equal to the bit", len(kills), kills["equal"].sum()),
        (
            "bad files: read, or refused by a sentence of ours",
            hostile["tried"].sum(),
            refused_or_read.sum(),
        ),
        (
            "bad files: not crashed",
            hostile["tried"].sum(),
            hostile["tried"].sum() - hostile["crashed"].sum(),
        ),
        (
            "bad files: not hung, no memory exhausted",
            hostile["tried"].sum(),
            hostile["tried"].sum() - hostile["hung"].sum() - hostile["memory"].sum(),
        ),
        (
            "the same fit again, in a process of its own: identical bits",
            bits["repeats"].sum(),
            bits["identical"].sum(),
        ),
        (
            "by another number of threads: within the stated tolerance",
            (others := bits["threads"] > 1).sum(),
            (bits[others]["from_one_thread"] <= THREADS_COVARIANCE).sum(),
        ),
        (
            "kept models: load, and give their numbers",
            len(models),
            (models["apart"] <= RELATIVE).sum(),
        ),
    ]
    return pd.DataFrame(rows, columns=["", "tried", "held"]).assign(
        failed=lambda table: table["tried"] - table["held"]
    )


def faults(rows: pd.DataFrame) -> str:
    """Count, for each fault, how runs ended."""
    parts = []
    for fault, some in rows.groupby("fault", sort=False):
        parts.append(
            {
                "fault": FAULTS[str(fault)],
                "injected": len(some),
                "ended in a sentence": (some["outcome"] == "refused").sum(),
                "got through": (some["outcome"] == "done").sum(),
                "otherwise": (~some["outcome"].isin(["refused", "done"])).sum(),
                "lost": some["lost"].sum(),
            }
        )
    return markdown(pd.DataFrame(parts))


def kills(rows: pd.DataFrame) -> str:
    """Count, for each signal, stops and fits."""
    grouped = rows.groupby("how", sort=False)
    table = grouped.agg(
        stops=("stopped", "sum"),
        while_writing=("while_writing", "sum"),
        lost=("lost", "sum"),
        fits=("equal", "size"),
        equal=("equal", "sum"),
    ).reset_index()
    return markdown(
        table.rename(
            columns={
                "how": "signal",
                "while_writing": "of which in the middle of a write",
                "fits": "fits resumed to their end",
                "equal": "equal to the bit",
            }
        )
    )


def bits(rows: pd.DataFrame) -> str:
    """Count identical fits, and say how far threads change them."""
    grouped = rows.groupby("from", sort=False)
    table = grouped.agg(
        seeds=("seed", "nunique"), fits=("repeats", "sum"), identical=("identical", "sum")
    ).reset_index()
    others = rows[rows["threads"] > 1].groupby("from", sort=False)["from_one_thread"].max()
    table[
        f"covariance by 2 or 3 threads, from that by one, at most ({THREADS_COVARIANCE:g} are allowed)"
    ] = [f"{others[name]:.1g}" for name in table["from"]]
    return markdown(table)


def tolerances(rows: pd.DataFrame) -> str:
    """Return how far fits are apart that should be the same."""
    parts = []
    for change in CHANGES:
        some = rows[rows["change"] == change]
        parts.append(
            {
                "changed": change,
                "covariance of log-ratios, relative": _spread(some["covariance"]),
                "mean bound, nats a sample": _spread(some["bound"]),
            }
        )
    return markdown(pd.DataFrame(parts))


def _spread(values: pd.Series) -> str:
    return f"{values.median():.2g} (at most {values.max():.2g})"


def page() -> str:
    """Return the page."""
    found = results()
    origins = "\n".join(
        f"- {name}: {'; '.join(origin_of(HERE / 'results' / f'{name}.csv'))}" for name in NAMES
    )
    return f"""<!-- Written by `make reliability`: do not edit. -->

# Reliability: what was put in its way

{markdown(summary(found))}

`make reliability` does all of this again, in three quarters of an hour (with 100,000 bad files), and `make fuzz` the bad files alone; small
versions are among the tests. What each error means and what cures it is in [](errors.md).

## Faults in real runs

Commands run as processes of their own while a fault is injected, each to replace an earlier result. A full
disk is a limit on the size of files, at five shares of what the command writes; too little memory is a limit
on the address space, 1 to 64 MiB above what the imports take.

{faults(found["faults"])}

Matrix products of numpy before 2.2 may wait for ever for memory that they are not given; with those versions a
command that runs out of it may have to be stopped.

## Stopped and resumed

A fit that leaves its state after every epoch, on a disk that takes {SYNC_SECONDS * 1000:.0f} ms longer a file so that stops meet it
writing, is stopped at a random moment, half of the SIGKILLs aimed at the middle of a write, and gone on with by `--resume`, stopped again, and so on to its end. It replaces an earlier model,
which must be there, whole, until the new one is. The result is compared with that of a fit left alone.
A state is written beside and renamed, the last two are kept, and one that the disk has damaged is passed over
for the one before.

{kills(found["kills"])}

## Broken and hostile files

Tables in every format, metadata, trees and models, from a real table, altered at random by the case's number:
bytes flipped, cut, doubled, spliced; members of HDF5 removed, replaced, linked or inflated; values of JSON and
cells of text replaced by nasty ones; hashes of models made right again, as their author could. Each is read in a
process that may take ten seconds and 2 GB. "read" are those that still hold a table, or a model; "sentences" counts
the different ones by which a kind was refused, names and numbers left out.

{markdown(found["hostile"])}

## The same answer

The same command with the same seed, in new processes, 9 epochs of {2 * BATCH} samples × {WIDE:,} features in
batches of {BATCH}, which are worth sharing among threads:

{bits(found["bits"])}

Fits to their end, of 120 samples × 60 features, of what is the same table but for something that should not matter, by how much they differ
(tests hold the two orders to {COVARIANCE:.0%} and {NATS} nats). Another order makes other minibatches; another
seed, for comparison, makes other ones too:

{tolerances(found["tolerances"])}

## Models that were kept

Model folders of every schema version are in `tests/data/models` with what they said when they were written;
they must still say so, to {RELATIVE:g} of the largest number. Of schema 1 convolutions with covariates are refused, in a sentence.

{markdown(found["models"])}

## Where the figures come from

{origins}
"""


if __name__ == "__main__":
    with pd.option_context("display.width", 200, "display.max_colwidth", 80):
        print(summary(results()).to_string(index=False))
    PAGE.write_text(page(), encoding="utf-8")
