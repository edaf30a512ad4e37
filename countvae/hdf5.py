"""HDF5 files that are not believed: opened for reading only once they have been looked over.

The library trusts what a file says of itself. A broken or hostile one can make it crash, or go
round in circles for ever; so what is not large is read by a process of its own first.
"""

import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from countvae.errors import DamagedFile
from countvae.memory import Room, limit_growth

__all__ = ["check_unchanged", "checked", "claimed_bytes", "state_of", "unchanged"]

NO_CLAIM = 2**26
"""Bytes that any file may claim to hold, all members together, beyond what its own can give."""

EXPANSION = 2**11
"""Bytes that come from one of a file at most; deflate ends at 1032."""

SECONDS = 4
"""Of a processor's time: the library takes far less for all that is tried of a file."""

SECONDS_BLOCKED = 120
"""By the clock, which a slow disk may need: of a process that waits for what never comes."""

TRIED = 2**25
"""Bytes of a member that is tried, at most, and of all members together as they are stored."""

INFLATING = 2**4
"""Bytes made of packed ones that take as long as to read one."""

GROWTH = 2**31
"""Bytes by which the process that tries a file out may grow."""

ALLOCATION = "memory allocation failed"
"""What the library says where it gets no memory; the system's own refusal has a number instead."""

WELL, GREEDY = b"!", b"m"
"""How the process that tries a file out ended, but for one that crashed or hung."""


@contextmanager
def checked(path: Path) -> Iterator[h5py.File]:
    """Open a file on which the library does not fail, that claims nothing it cannot hold.

    Parameters
    ----------
    path : path
        An HDF5 file.

    Yields
    ------
    h5py.File

    Raises
    ------
    DamagedFile
        If the library crashes, hangs or asks for all memory on it, a member lies in another file,
        or one claims more values than the bytes of the file can give.
    """
    _try_out(path)
    with h5py.File(path) as file:
        _check_claims(file, path)
        yield file


def _try_out(path: Path) -> None:
    """Read the file in a process that may crash or hang; what else is wrong is met later."""
    if not hasattr(os, "fork"):
        return
    with warnings.catch_warnings():
        # of threads: the child uses h5py alone, which takes its lock along
        warnings.simplefilter("ignore", DeprecationWarning)
        came_through, says = os.pipe()
    child = os.fork()
    if child == 0:
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(SECONDS_BLOCKED)
        sys.unraisablehook = lambda unraisable: None
        end = WELL
        try:
            limit_growth(GROWTH)
            with h5py.File(path) as file:
                _check_claims(file, path)
                _read_small(file)
        except BaseException as error:
            end = GREEDY if _greedy(error) else WELL
        os.write(says, end)
        os._exit(0)
    os.close(says)
    with open(came_through, "rb") as pipe:
        end, status = pipe.read(1), 0
    # whoever ignores SIGCHLD is not told how a process ended
    with suppress(ChildProcessError):
        _, status = os.waitpid(child, 0)
    if end != WELL:
        hangs = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
        what = "hangs on it" if hangs else "crashes on it"
        if end == GREEDY:
            what = "asks for more memory than there is, for a small part of it"
        raise DamagedFile(f"{path}: cannot be read as HDF5: the library {what}.")


def _read_small(file: h5py.File) -> None:
    """Read one member after another, the smallest first, as long as they are small."""
    members = _members(file)
    for member in members:
        for key in member.attrs:
            with _unless_greedy():
                member.attrs[key]
    left, datasets = TRIED, [member for member in members if isinstance(member, h5py.Dataset)]
    for dataset in sorted(datasets, key=_bytes):
        stored = dataset.id.get_storage_size()
        left -= max(stored, _bytes(dataset) // INFLATING if stored else 0)
        if _bytes(dataset) > TRIED or left < 0:
            return
        with _unless_greedy():
            dataset[()]


def _members(file: h5py.File) -> list[h5py.Group | h5py.Dataset]:
    members: list[h5py.Group | h5py.Dataset] = [file["/"]]
    file.visititems(lambda name, member: members.append(member))
    return members


def _bytes(dataset: h5py.Dataset) -> int:
    return (dataset.size or 0) * dataset.dtype.itemsize


def claimed_bytes(file: h5py.File) -> int:
    """Add up what the members of a file say they hold."""
    return sum(_bytes(member) for member in _members(file) if isinstance(member, h5py.Dataset))


def _greedy(error: BaseException) -> bool:
    """Whether it is of memory; what the library says of it has no other mark."""
    return isinstance(error, MemoryError) or ALLOCATION in str(error)


@contextmanager
def _unless_greedy() -> Iterator[None]:
    """Pass over what goes wrong, but for memory that the library does not get."""
    try:
        yield
    except Exception as error:
        if _greedy(error):
            raise


def _check_claims(file: h5py.File, path: Path) -> None:
    """Refuse links out of a file, and sizes that its bytes cannot hold, before anything is read."""
    root, beyond = file["/"], 0
    seen, groups = {h5py.h5o.get_info(root.id).addr}, [root]
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise DamagedFile(f"{path}: {where!r} is a link, which is not followed.")
            member = group[name]
            key = h5py.h5o.get_info(member.id).addr
            if key in seen:
                raise DamagedFile(f"{path}: {where!r} has another name too; it is not read.")
            seen.add(key)
            if isinstance(member, h5py.Group):
                groups.append(member)
            elif isinstance(member, h5py.Dataset):
                if member.external or member.is_virtual:
                    raise DamagedFile(f"{path}: {where!r} lies in another file; it is not read.")
                if member.chunks is not None:
                    # the library reads whole chunks, however little of one is asked for
                    room = Room(
                        f"{path}: reading a chunk of {where!r}", "write it in smaller chunks"
                    )
                    room.check(math.prod(member.chunks) * member.dtype.itemsize)
                stored = member.id.get_storage_size()
                beyond += max(0, _bytes(member) - EXPANSION * stored)
                if beyond > NO_CLAIM:
                    raise DamagedFile(
                        f"{path}: {where!r} claims {member.size:,} values, and {stored:,} bytes of"
                        " the file are theirs."
                    )


@contextmanager
def unchanged(file: h5py.File, path: Path) -> Iterator[None]:
    """Refuse what was read in this block if the file was changed meanwhile.

    HDF5 would not notice: what is cut off a file, it reads as zeros.
    """
    before = state_of(file)
    yield
    check_unchanged(file, path, before)


def state_of(file: h5py.File) -> tuple[int, int]:
    """Size of an open file, and when it was last changed."""
    now = os.fstat(file.id.get_vfd_handle())
    return now.st_size, now.st_mtime_ns


def check_unchanged(file: h5py.File, path: Path, before: tuple[int, int]) -> None:
    """Refuse a file that is not in the state that it was in.

    Raises
    ------
    DamagedFile
    """
    if state_of(file) != before:
        raise DamagedFile(f"{path}: was changed while it was read.")
