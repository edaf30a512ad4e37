"""Whether convolutions along the tips of a tree pay: `python -m benchmarks.images.tree`.

Features stand in the order of the tips, and neighbours are relatives. On the infants' gut samples
(features of 20 samples and more), and on tables of the model whose loadings are a Brownian motion
along a tree, with 300 and 1,500 samples, the convolutional model is set beside the dense one and
beside itself with the tips shuffled. A quarter of the samples, of the infants where there are such,
is held out; figures are nats a read.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from skbio import TreeNode

from benchmarks.core.common import DATA, arguments, tell, write
from benchmarks.images.scene import DENSE, HERE, LINEAR, NETWORK, K
from countvae import ConvMultinomialVAE, MultinomialVAE
from countvae.simulate import simulate
from countvae.table import read

DRAWS = 100
LEVELS = 8


class Samples(NamedTuple):
    """Counts, and of whom each sample is."""

    counts: np.ndarray
    subject: np.ndarray


def gut() -> Samples:
    """The gut samples, features in the order of the tips."""
    of_study = DATA / "ecam"
    table = read(of_study / "table.biom", metadata=of_study / "metadata.tsv")
    table = table.filter(min_feature_samples=20)
    place = {name: i for i, name in enumerate(table.feature_ids)}
    tree = TreeNode.read(str(DATA / "ecam/tree.nwk"), format="newick", convert_underscores=False)
    order = [place[tip.name] for tip in tree.tips() if tip.name in place]
    assert len(order) == len(place)
    counts = table.counts[:, order].toarray()
    seen = counts.sum(1) > 0
    return Samples(counts[seen], table.sample_metadata["host_subject_id"].to_numpy()[seen])


def along_a_tree(n: int, seed: int) -> Samples:
    """Samples of the model, the loadings of relatives alike."""
    rng, d = np.random.default_rng(seed), 2**LEVELS
    V = np.zeros((d, K))
    for level in range(1, LEVELS + 1):
        V += np.repeat(rng.normal(size=(2**level, K)), d // 2**level, axis=0)
    V *= np.sqrt(4 / K / LEVELS)
    return Samples(simulate(n, d, K, 2000, V=V, rng=rng).counts.toarray(), np.arange(n))


def tables(seed: int) -> dict[str, Samples]:
    """Tables by name."""
    return {
        "ecam": gut(),
        "simulated, 300 samples": along_a_tree(400, seed),
        "simulated, 1,500 samples": along_a_tree(2000, seed),
    }


def models(d: int, seed: int) -> dict[str, MultinomialVAE]:
    """Make the models that are compared, unfitted."""
    of_line = {"grid": (d,), "random_state": seed}
    return {
        DENSE: MultinomialVAE(K, random_state=seed),
        LINEAR: ConvMultinomialVAE(K, decoder="linear", **of_line),
        NETWORK: ConvMultinomialVAE(K, **of_line),
    }


def measure(name: str, table: Samples, seed: int) -> list[dict[str, object]]:
    """Fit each model, and score what was held out."""
    rng, rows, (counts, subject) = np.random.default_rng(seed), [], table
    order, shuffled = rng.permutation(np.unique(subject)), rng.permutation(counts.shape[1])
    held = np.isin(subject, order[: len(order) // 4])
    for tips, X in (("of the tree", counts), ("shuffled", counts[:, shuffled])):
        for method, model in models(X.shape[1], seed).items():
            if method == DENSE and tips == "shuffled":
                continue
            model.fit(X[~held])
            evidence = model.evidence(X[held], DRAWS)[0].sum()
            amortised = model.set_params(refinement_steps=0).score_samples(X[held]).sum()
            reads = X[held].sum()
            about = {"table": name, "method": method, "tips": tips, "seed": seed}
            rows.append(about | {"amortised": amortised / reads, "evidence": evidence / reads})
            tell(rows[-1])
    return rows


if __name__ == "__main__":
    frame = pd.DataFrame(
        [
            row
            for seed in range(arguments(__doc__ or "", 5).seeds)
            for name, table in tables(seed).items()
            for row in measure(name, table, seed)
        ]
    )
    of_model = ["table", "method", "tips"]
    print(frame.drop(columns="seed").groupby(of_model, sort=False).mean().to_string())
    write("tree", frame, HERE)
