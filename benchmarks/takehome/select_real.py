"""How many factors real tables carry: `python -m benchmarks.takehome.select_real`.

The samples of ecam are of 42 infants: once as if each were of its own, once infants held out.
"""

from pathlib import Path

import pandas as pd

from benchmarks.core.common import DATA, arguments, tell, write
from benchmarks.takehome.select import about
from countvae.select import select
from countvae.table import read

TABLES = (
    ("ecam", "ecam/table.biom", 20, None),
    ("ecam", "ecam/table.biom", 20, "host_subject_id"),
    ("ifnb_pbmc", "ifnb_pbmc/counts.h5ad", 50, None),
)
"""Name, file, samples that a feature must occur in, and what groups the samples."""

TRIED = (5, 10, 20, 40)


def selected(name: str, file: str, samples: int, by: str | None, seed: int) -> pd.DataFrame:
    """Select on a table: a row a number of factors."""
    metadata = DATA / name / "metadata.tsv" if by else None
    table = read(DATA / file, metadata=metadata).filter(min_feature_samples=samples)
    groups = table.sample_metadata[by] if table.sample_metadata is not None and by else None
    found = select(table, TRIED, groups=groups, random_state=seed, max_epochs=30)
    print(f"{name}: {found.verdict}")
    columns = ["k", "evidence_a_read", "difference", "difference_se", "untrusted", "chosen"]
    of_table = {"table": name, "groups": by or "none", "seed": seed}
    gains = {name: value for name, value in about(found).items() if ", " in name}
    return found.table[columns].assign(**of_table, **gains)


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 1).seeds
    parts = []
    for seed in range(seeds):
        for of_table in TABLES:
            parts.append(selected(*of_table, seed))
            for row in parts[-1].to_dict("records"):
                tell(row)
    rows = pd.concat(parts, ignore_index=True)
    first = ["table", "groups", "seed"]
    write("select_real", rows[[*first, *rows.columns.drop(first)]], Path(__file__).parent)
