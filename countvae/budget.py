"""What a fit takes in memory."""

from typing import NamedTuple

from countvae.rows import GROUP_ENTRIES
from countvae.start import MOST_SAMPLES

__all__ = ["Needs", "fit_needs"]

DENSE_BATCHES, DENSE_BATCHES_ON_DEVICE = 20, 36
"""Arrays of batch x features alive at once, at most: counts, logits, rates, before and after.

On an accelerator the solver has some of its own, which elsewhere are of blocks.
"""

HIDDEN_COPIES = 3
"""Arrays of batch x units of the layers over a grid: before, after the activation, a gradient."""

SKETCHES = 6
"""Arrays of features x (factors and ten) alive at once at the start."""

GROUP_BYTES = 24
"""Bytes a non-zero of a streamed group takes while it is read, sorted and shuffled."""

SAMPLE_BYTES = 32
"""Bytes a non-zero of the samples that the start looks at takes while they are read."""

SLACK = 1.4
"""Share by which memory that was given back lies about in pieces."""

ANSWERS = 4
"""Arrays of samples x factors alive at once, in double precision, when all samples are answered."""

REST = 350 * 2**20
"""Answers in blocks of 2^20 entries, the sample of the start, modules loaded late."""


class Needs(NamedTuple):
    """Bytes that a fit takes at its peak, above what the interpreter has after the import."""

    steps: int
    """Parameters, their gradients and batches: where the steps are taken."""
    rest: int
    """What is in the machine's own memory on whatever device the steps are taken."""


def fit_needs(
    n: int,
    d: int,
    k: int,
    *,
    covariates: int = 0,
    batch_size: int,
    nnz: int,
    streamed: bool,
    itemsize: int = 4,
    processes: int = 1,
    layers: int = 0,
    hidden: int = 0,
    on_device: bool = False,
    checkpoint: bool = False,
    cast: bool = False,
) -> Needs:
    """Estimate what a fit takes at its peak.

    Parameters
    ----------
    n, d, k : int
        Samples, features, factors.
    covariates : int
        Columns of the regression, each with an effect on every feature.
    batch_size : int
        Samples of a step.
    nnz : int
        Non-zeros of the table.
    streamed : bool
        Whether the table stays on disk; one in memory is not counted, being there already.
    itemsize : int
        Bytes of a number of the fit.
    processes : int
        Processes that share the fit; the estimate is of each.
    layers, hidden : int
        Parameters of the networks' layers over the features, and numbers that networks over a grid
        make of a sample.
    on_device : bool
        Whether the steps are taken on an accelerator.
    checkpoint : bool
        Whether states are left: one is held, and another made meanwhile.
    cast : bool
        Whether the counts are brought to double precision first.

    Returns
    -------
    Needs
        What was measured beside it is on the page "Performance" of the documentation.
    """
    loadings, encoder = d * (k + covariates), d * k + layers
    state = 3 * (loadings + encoder)  # of the last whole epoch
    parameters = 5 * (loadings + encoder) + 9 * loadings + state
    if processes > 1:
        parameters += 2 * (loadings + encoder)
    parameters = max(parameters, SKETCHES * d * (k + 10))  # before there are any
    own = -(-min(batch_size, n) // processes)
    dense = DENSE_BATCHES_ON_DEVICE if on_device else DENSE_BATCHES
    steps = parameters + own * (dense * d + HIDDEN_COPIES * hidden)
    rest = ANSWERS * 8 * n * k + REST + (8 + itemsize) * n * covariates
    of_sample = nnz * min(1, MOST_SAMPLES / n)
    if streamed:
        group = min(nnz, max(GROUP_ENTRIES, own * nnz // n))
        rest += max(2 * GROUP_BYTES * group, int(SAMPLE_BYTES * of_sample))
    else:
        rest += (8 * nnz if cast else 0) + int(SAMPLE_BYTES // 2 * of_sample)
    if checkpoint:
        rest += 2 * itemsize * state
    return Needs(int(SLACK * itemsize * steps), rest)
