"""What a fit takes in memory, and what there is."""

from pathlib import Path, PurePosixPath

from countvae.rows import GROUP_ENTRIES

try:
    import resource
except ImportError:  # as on Windows
    resource = None

__all__ = ["available_bytes", "fit_bytes"]

GROUPS = "/sys/fs/cgroup"

DENSE_BATCHES = 20
"""Arrays of batch x features alive at once, at most: counts, logits, rates, before and after."""

HIDDEN_COPIES = 6
"""Arrays of batch x units of the layers over a grid: before and after the activation, gradients."""

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


def available_bytes() -> int | None:
    """Memory that this process may still take, as far as the system says; None where it does not.

    The least of what is free, what the control group leaves and what the address space may grow by.
    """
    found = [_free(), _left_by_control_groups(), _left_by_limit()]
    known = [number for number in found if number is not None]
    return min(known) if known else None


def _free() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _left_by_control_groups() -> int | None:
    """Return what the groups of this process, of either version, leave it: the least of all."""
    left = []
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, *names = GROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = f"{GROUPS}/memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        left += [_left_by_group(f"{root}/{folder}", *names) for folder in (group, *group.parents)]
    known = [number for number in left if number is not None]
    return min(known) if known else None


def _left_by_group(folder: str, most: str, used: str, cached: str) -> int | None:
    """Limit less what is used; pages of files that may be dropped at any time do not count."""
    limit, usage = (next(iter(_lines(f"{folder}/{name}")), "") for name in (most, used))
    if not (limit.isdigit() and usage.isdigit()):
        return None
    of_files = [line.split() for line in _lines(f"{folder}/memory.stat")]
    return int(limit) - int(usage) + sum(int(size) for name, size in of_files if name == cached)


def _left_by_limit() -> int | None:
    if resource is None:
        return None
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
