"""What a fit takes in memory."""

from countvae.rows import GROUP_ENTRIES

__all__ = ["fit_bytes"]

DENSE_BATCHES = 20
"""Arrays of batch x features alive at once, at most: counts, logits, rates, before and after."""

HIDDEN_COPIES = 3
"""Arrays of batch x units of the layers over a grid: before, after the activation, a gradient."""

SKETCHES = 6
"""Arrays of features x (factors and ten) alive at once at the start."""

GROUP_BYTES = 24
"""Bytes a non-zero of a streamed group takes while it is read, sorted and shuffled."""

SLACK = 1.4
"""Share by which memory that was given back lies about in pieces."""

ANSWERS = 4
"""Arrays of samples x factors alive at once, in double precision, when all samples are answered."""

REST = 200 * 2**20
"""Answers in blocks of 2^20 entries, the sample of the start, modules loaded late."""


def fit_bytes(
    n: int,
    d: int,
    k: int,
    *,
    batch_size: int,
    width: int,
    nnz: int,
    streamed: bool,
    itemsize: int = 4,
    processes: int = 1,
    layers: int = 0,
    hidden: int = 0,
) -> int:
    """Estimate the peak of a fit above what the interpreter has after the import.

    Parameters
    ----------
    n, d, k : int
        Samples, features, factors.
    batch_size : int
        Samples of a step.
    width : int
        Units of the encoder's hidden layers; 0 where it is linear.
    nnz : int
        Non-zeros of the table.
    streamed : bool
        Whether the table stays on disk; one in memory is not counted, being there already.
    itemsize : int
        Bytes of a number of the fit.
    processes : int
        Processes that share the fit; the estimate is of each.
    layers, hidden : int
        Parameters of networks over a grid, and numbers that these make of a sample.

    Returns
    -------
    int
        Bytes. What was measured beside it is on the page "Performance" of the documentation.
    """
    loadings, encoder = d * k, d * (k + width) + layers
    parameters = 5 * (loadings + encoder) + 9 * loadings + SKETCHES * d * (k + 10)
    parameters += 3 * (loadings + encoder)  # the state of the last whole epoch
    if processes > 1:
        parameters += 2 * (loadings + encoder)
    own = -(-min(batch_size, n) // processes)
    steps = itemsize * (parameters + own * (DENSE_BATCHES * d + HIDDEN_COPIES * hidden))
    held = 2 * GROUP_BYTES * min(nnz, GROUP_ENTRIES) if streamed else 0
    return int(SLACK * steps) + held + ANSWERS * 8 * n * k + REST
