"""What memory there is, and a sentence where that is too little."""

from pathlib import Path, PurePosixPath

from countvae.errors import TooLarge

try:
    import resource
except ImportError:  # as on Windows
    resource = None

__all__ = ["Room", "available_bytes", "limit_growth"]

GROUPS = "/sys/fs/cgroup"


class Room:
    """The memory that there was when something began.

    Parameters
    ----------
    what : str
        What takes memory, the subject of the sentence.
    instead : str
        What to do instead, its end.
    shared_by : int
        Processes of this machine that take as much each.
    free : int, optional
        Bytes, of another memory than this machine's own.
    """

    def __init__(
        self, what: str, instead: str, *, shared_by: int = 1, free: int | None = None
    ) -> None:
        self.what, self.instead = what, instead
        self.free = available_bytes() if free is None else free
        if self.free is not None:
            self.free //= shared_by

    def check(self, needed: int) -> None:
        """Refuse what takes more bytes than there were.

        Raises
        ------
        TooLarge
        """
        if self.free is not None and needed > self.free:
            raise TooLarge(
                f"{self.what} takes {needed / 2**30:.1f} GiB of memory or more, of which"
                f" {self.free / 2**30:.1f} are free; {self.instead}."
            )


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
    size = _size()
    if resource is None or size is None:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if most == resource.RLIM_INFINITY else most - size


def limit_growth(most: int) -> None:
    """Let this process grow by so many bytes, where the system can see to it."""
    size = _size()
    if resource is None or size is None:
        return
    now, hard = resource.getrlimit(resource.RLIMIT_AS)
    if now == resource.RLIM_INFINITY or now > size + most:
        resource.setrlimit(resource.RLIMIT_AS, (size + most, hard))


def _size() -> int | None:
    """Return the size of this process's address space."""
    size = next(iter(_lines("/proc/self/statm")), "")
    return int(size.split()[0]) * resource.getpagesize() if size and resource else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
