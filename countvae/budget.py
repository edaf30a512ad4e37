"""What a fit takes in memory, and what there is."""

import resource
from pathlib import Path

from countvae.rows import GROUP_ENTRIES

__all__ = ["available_bytes", "fit_bytes"]

FLOAT = 4
DENSE_BATCHES = 20
"""Arrays of batch x features alive at once, at most: counts, logits, rates, before and after."""

GROUP_BYTES = 24
"""Bytes a non-zero of a streamed group takes while it is read, sorted and shuffled."""

SLACK = 1.15
"""Share by which memory that was given back lies about in pieces."""

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

    Returns
    -------
    int
        Bytes. Peaks of four fits, of 2,000 x 1,000 to 300 x 250,000, were 0.4 to 0.92 times that,
        the lower the smaller the table.
    """
    loadings, encoder = d * k, d * (k + width)
    parameters = 5 * (loadings + encoder) + 9 * loadings
    steps = FLOAT * (parameters + DENSE_BATCHES * min(batch_size, n) * d)
    held = 2 * GROUP_BYTES * min(nnz, GROUP_ENTRIES) if streamed else 0
    return int(SLACK * steps) + held + REST


def available_bytes() -> int | None:
    """Memory that this process may still take, as far as the system says; None where it does not.

    The least of what is free, what the control group leaves and what the address space may grow by.
    """
    found = [_free(), _left_by_control_group(), _left_by_limit()]
    known = [number for number in found if number is not None]
    return min(known) if known else None


def _free() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _left_by_control_group() -> int | None:
    most, used = (
        next(iter(_lines(f"/sys/fs/cgroup/memory.{name}")), "") for name in ("max", "current")
    )
    return int(most) - int(used) if most.isdigit() and used.isdigit() else None


def _left_by_limit() -> int | None:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    size = next(iter(_lines("/proc/self/statm")), "")
    if most == resource.RLIM_INFINITY or not size:
        return None
    return most - int(size.split()[0]) * resource.getpagesize()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
