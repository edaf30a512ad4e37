"""Files and folders: written beside and renamed, nothing overwritten without `force`."""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from countvae.checks import InputError

__all__ = ["check_writable", "holds_only", "new_file", "new_folder", "sha256"]


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
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{path}: the folder {str(parent)!r} does not exist.")
    if os.path.lexists(path) and not force and not _is_empty_folder(path):
        raise InputError(f"{path}: is already there; it is replaced only with force.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error


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
        raise InputError(f"{path}: is a folder; expected a file.")
    beside = _beside(path)
    try:
        beside.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error
    try:
        yield beside
        _sync(beside)
        check_writable(path, force)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _sync(path.absolute().parent)


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
    place = path.resolve()
    beside, old = _beside(place), _beside(place)
    try:
        beside.mkdir()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error
    try:
        yield beside
        for file in beside.rglob("*"):
            _sync(file)
        _sync(beside)
        check_writable(path, force)
        _check_replaceable(path, replaceable)
        if place.exists():
            os.rename(place, old)
        try:
            os.rename(beside, place)
        except OSError:
            if old.exists():
                os.rename(old, place)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


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


def _check_replaceable(path: Path, replaceable: Callable[[Path], bool]) -> None:
    if os.path.lexists(path) and not _is_empty_folder(path) and not replaceable(path):
        raise InputError(
            f"{path}: is not replaced, since it, or something in it, was not written here."
        )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _beside(path: Path) -> Path:
    return path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")


def _sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
