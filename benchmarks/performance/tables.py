"""Tables of any size in files, drawn a block of rows at a time."""

from collections.abc import Iterator
from pathlib import Path

import anndata.io
import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csr_array

ROWS = 500


def blocks(n: int, d: int, k: int, nonzero: float, rng: np.random.Generator) -> Iterator[csr_array]:
    """Draw rows of a table of which about a share is not zero.

    How often a feature is counted follows k factors, a centre of great range and noise, as in the
    model; which features occur in a sample does not, so that drawing is O(nnz).
    """
    centre = rng.normal(0, 2, d)
    V = rng.normal(0, 1, (d, k)) / k**0.5
    each = max(1, round(nonzero * d))
    for first in range(0, n, ROWS):
        rows = min(ROWS, n - first)
        z = rng.standard_normal((rows, k))
        indptr = np.arange(rows + 1) * each
        indices = np.concatenate([np.sort(rng.choice(d, each, replace=False)) for _ in range(rows)])
        of_row = np.repeat(np.arange(rows), each)
        logits = centre[indices] + np.einsum("ek,ek->e", V[indices], z[of_row])
        data = 1 + rng.poisson(
            np.exp(np.clip(logits + 0.7 * rng.standard_normal(len(indices)), -8, 6))
        )
        yield csr_array(
            (data.astype(np.float32), indices.astype(np.int32), indptr), shape=(rows, d)
        )


def write(
    path: Path, n: int, d: int, k: int, nonzero: float, seed: int, compression: str | None = None
) -> None:
    """Write such a table as .h5ad, its rows in blocks."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        anndata.io.write_elem(file, "obs", pd.DataFrame(index=[f"s{i}" for i in range(n)]))
        anndata.io.write_elem(file, "var", pd.DataFrame(index=[f"f{j}" for j in range(d)]))
        X = file.create_group("X")
        X.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n, d]}
        )
        growing = {"maxshape": (None,), "chunks": (1 << 16,), "compression": compression}
        data = X.create_dataset("data", (0,), "f4", **growing)
        indices = X.create_dataset("indices", (0,), "i4", **growing)
        ends = [0]
        for block in blocks(n, d, k, nonzero, rng):
            start, end = ends[-1], ends[-1] + block.nnz
            for dataset, values in ((data, block.data), (indices, block.indices)):
                dataset.resize((end,))
                dataset[start:end] = values
            ends += (start + block.indptr[1:]).tolist()
        X["indptr"] = np.array(ends, np.int64)
