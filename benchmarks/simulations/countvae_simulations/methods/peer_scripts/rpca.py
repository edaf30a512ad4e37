"""Robust Aitchison PCA (gemelli) of the counts of an npz; runs in the peers' environment.

python rpca.py COUNTS.npz FOUND.npz --rank K --seed S
"""

import argparse
import resource
import time
import warnings

import biom
import numpy as np

warnings.filterwarnings("ignore")
from gemelli.rpca import rpca  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="RPCA of a table of counts")
    parser.add_argument("counts")
    parser.add_argument("found")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    np.random.seed(given.seed)
    counts = np.load(given.counts)["counts"]
    n, d = counts.shape
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    begun = time.perf_counter()
    features, samples = [f"f{j}" for j in range(d)], [f"s{i}" for i in range(n)]
    table = biom.Table(counts.T, features, samples)
    ordination, _ = rpca(table, n_components=given.rank, min_feature_count=0, min_sample_count=0)
    seconds = time.perf_counter() - begun

    # rclr = (samples)(singular values)(features)', so a loading is a feature's times s / sqrt(n)
    kept = ordination.features.reindex(features).fillna(0.0).to_numpy()
    scores = ordination.samples.to_numpy()
    loadings = kept * scores.std(axis=0)
    np.savez(
        given.found,
        loadings=loadings - loadings.mean(axis=0),
        seconds=seconds,
        peak_mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        converged=True,
    )


if __name__ == "__main__":
    main()
