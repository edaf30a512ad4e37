"""Files and folders: written beside and renamed, nothing overwritten without `force`."""

import ctypes
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from countvae.errors import (
    ArgumentError,
    CannotWrite,
    InUse,
    NotReplaced,
    OutputExists,
    out_of_memory,
)

__all__ = [
    "BEGUN",
    "check_apart",
    "check_writable",
    "claimed",
    "holds_only",
    "is_empty_folder",
    "new_file",
    "new_folder",
    "sha256",
    "sync",
]

BEGUN = r"\.countvae-[0-9a-f]{8}-"
"""How names begin of what is not finished."""

ASIDE = ".before"
"""How names end of what is put aside while something takes its place."""


_held: set[Path] = set()
"""Places that this process has claimed."""


def check_writable(path: str | os.PathLike[str], force: bool) -> None:
    """Refuse a place where nothing could be written; to be asked before a long job.

    Parameters
    ----------
    path : path
        The file or folder to be written.
    force : bool
        Whether what is there may be replaced. An empty folder never stands in the way.

    Raises
    ------
    InputError
        If `path` exists and may not be replaced, or its folder is missing or not writable.
    """
    path = Path(path)
    if os.path.lexists(path) and not force and not is_empty_folder(path):
        raise OutputExists(f"{path}: is already there; it is replaced only with force.")
    _check_parent(path)


def check_apart(
    outputs: Sequence[str | os.PathLike[str]], inputs: Sequence[str | os.PathLike[str]]
) -> None:
    """Refuse outputs that are among the files read, under whatever name, or the same as another.

    Raises
    ------
    ArgumentError
    """
    for i, output in enumerate(outputs):
        for other in inputs:
            if _same(Path(output), Path(other)):
                raise ArgumentError(f"{output}: is {other}, which is read; name another output.")
        for other in outputs[:i]:
            if _same(Path(output), Path(other)):
                raise ArgumentError(f"{output}: is the other output too; name another.")


def _same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return _place(path) == _place(other)


def _place(path: Path) -> Path:
    """Where something is written: what a link points to, but for one that leads back to itself."""
    return Path(os.path.realpath(path))


@contextmanager
def claimed(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let nobody else claim a place meanwhile; remove what a killed run left unfinished there.

    The claim ends with the process, however that ends. It binds only those who claim, as all do
    who write here, unless the place, or a folder that it is in, is claimed by them already.

    Parameters
    ----------
    path : path
        The file or folder to be written.

    Raises
    ------
    InUse
        If another process has claimed it.
    CannotWrite
        If there is no folder that it could be in.
    """
    path = Path(path)
    _check_parent(path)
    place = _place(path)
    lock = FileLock(place.with_name(f".{place.name}.lock"), timeout=0)
    with _writing(path):
        try:
            lock.acquire()
        except Timeout as error:
            raise InUse(f"{path}: another run is writing to it.") from error
    try:
        _held.add(place)
        _tidy(place)
        yield
    finally:
        _held.remove(place)
        # while it is held: a process that waits for this file sees that it is gone
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _claimed_once(path: Path) -> AbstractContextManager[None]:
    place = _place(path)
    held = any(above in _held for above in (place, *place.parents))
    return nullcontext() if held else claimed(path)


@contextmanager
def new_file(path: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """Write a file whole or not at all.

    Parameters
    ----------
    path : path
        Where the file shall be.
    force : bool
        Whether to replace a file that is there.

    Yields
    ------
    Path
        An empty file beside `path`, of the same suffix, to be written; it becomes `path` when
        the block ends, and is gone if the block fails.

    Raises
    ------
    InputError
        If `path` cannot be written, or is there already and `force` is not given.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with new_file(pathlib.Path(folder, "a.txt")) as path:
    ...         _ = path.write_text("whole")
    ...     pathlib.Path(folder, "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    check_writable(path, force)
    if path.is_dir():
        raise NotReplaced(f"{path}: is a folder; expected a file.")
    place = _place(path)
    beside = _beside(place)
    with _claimed_once(path):
        try:
            with _writing(path, beside):
                beside.touch(exist_ok=False)
                yield beside
                sync(beside)
                check_writable(path, force)
                os.replace(beside, place)
        finally:
            with suppress(OSError):
                beside.unlink()
        sync(place.parent)


@contextmanager
def new_folder(
    path: str | os.PathLike[str],
    force: bool = False,
    *,
    replaceable: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[Path]:
    """Write a folder whole or not at all: a reader never sees half of it.

    Parameters
    ----------
    path : path
        Where the folder shall be. An empty folder may be there already.
    force : bool
        Whether to replace a folder that is there, once the new one is complete.
    replaceable : callable
        Tells whether a folder is of this kind and holds nothing else. One that is not is somebody's
        own, and is not removed even with `force`.

    Yields
    ------
    Path
        An empty folder beside `path`, to be filled; it becomes `path` when the block ends, and
        is gone if the block fails.

    Raises
    ------
    InputError
        If `path` cannot be written, is there already and `force` is not given, or is not
        `replaceable`.
    """
    path = Path(path)
    check_writable(path, force)
    _check_replaceable(path, replaceable)
    place = _place(path)
    beside = _beside(place)
    with _claimed_once(path):
        try:
            with _writing(path, beside):
                beside.mkdir()
                yield beside
                for file in beside.rglob("*"):
                    sync(file)
                sync(beside)
                check_writable(path, force)
                _check_replaceable(path, replaceable)
                if place.exists():
                    _exchange(beside, place)
                else:
                    os.rename(beside, place)
            sync(place.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds_only(*names: str) -> Callable[[Path], bool]:
    """Make a test for folders that hold these names, every one and no other."""
    return lambda folder: folder.is_dir() and {f.name for f in folder.iterdir()} == set(names)


def _check_parent(path: Path) -> None:
    place = _place(path)
    if not place.name:
        raise CannotWrite(f"{path}: expected a file or folder in another; this is the outermost.")
    if not place.parent.is_dir():
        raise CannotWrite(f"{path}: the folder {str(place.parent)!r} does not exist.")
    beside = _beside(place)
    with _writing(path, beside):
        beside.touch(exist_ok=False)
        beside.unlink()


def _check_replaceable(path: Path, replaceable: Callable[[Path], bool]) -> None:
    if os.path.lexists(path) and not is_empty_folder(path) and not replaceable(path):
        raise NotReplaced(
            f"{path}: is not replaced, since it, or something in it, was not written here."
        )


def is_empty_folder(path: Path) -> bool:
    """Whether there is a folder, and nothing in it."""
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def _writing(path: Path, beside: Path | None = None) -> Iterator[None]:
    """Make one sentence of what the system, or HDF5, says of a place in which something is written.

    What is begun `beside` it is called by its own name.
    """
    try:
        yield
    except CannotWrite as error:
        raise CannotWrite(str(error).replace(str(beside or path), str(path))) from error
    except (OSError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        number = getattr(error, "errno", None) or _errno(str(error))
        if number is None and not isinstance(error, OSError):
            raise
        reason = os.strerror(number) if number else " ".join(str(error).split())
        raise CannotWrite(f"{path}: cannot be written ({reason}).") from error


def _errno(said: str) -> int | None:
    """Find the number of the system's error in what HDF5 says."""
    found = re.search(r"errno = (\d+)", said)
    return int(found[1]) if found else None


def _exchange(new: Path, old: Path) -> None:
    """Let two folders change places: at once where Linux can, so that nobody finds neither."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if swap is None or swap(here, os.fsencode(new), here, os.fsencode(old), exchange) != 0:
        aside = _beside(old.with_name(old.name + ASIDE))
        os.rename(old, aside)
        try:
            os.rename(new, old)
        except OSError:
            os.rename(aside, old)
            raise
        os.rename(aside, new)


def _tidy(place: Path) -> None:
    """Remove what killed runs left beside a place; bring back what they had put aside."""
    for left in place.parent.glob(f".*-{glob.escape(place.name)}*"):
        found = re.fullmatch(BEGUN + re.escape(place.name) + f"({re.escape(ASIDE)})?", left.name)
        if found and found[1] and not place.exists():
            os.rename(left, place)
        elif found:
            _remove(left)


def _remove(path: Path) -> None:
    """Remove a file or a folder as far as it goes."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".countvae-{uuid.uuid4().hex[:8]}-{path.name}")


def sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
