"""A state (arrays and settings) to and from a folder; knows nothing of models.

The folder holds two files, others if asked, and no pickle. ``model.safetensors`` has every array;
an array of strings (ids) lies there as the UTF-8 bytes of its JSON list. ``config.json`` has the
schema version, the package versions, the settings, each array's dtype and shape, the SHA-256 of
every other file of the folder and, under ``sha256``, its own. `load` believes none of it before
it is checked.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from countvae.errors import (
    ArgumentError,
    CannotRead,
    DamagedModel,
    InputError,
    NewerModel,
    NotAModel,
    out_of_memory,
)
from countvae.files import new_folder, sha256
from countvae.memory import Room

__all__ = ["CONFIG", "MODEL", "SCHEMA_VERSION", "files_of", "is_model", "load", "save"]

SCHEMA_VERSION = 2
CONFIG = "config.json"
MODEL = "model.safetensors"

MAX_CONFIG_BYTES = 16 * 2**20
"""No configuration comes near this; a larger file is refused unread."""

DIGESTS_BYTES = 2**16
"""Left in it for digests of the files beside it."""

REPLACED = 5
"""A folder that was replaced while it was read is read again, so often at most."""

STORED_DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")
STRINGS = "str"
PACKAGES = ("countvae", "numpy", "safetensors", "torch")


def save(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    *,
    extra_files: Mapping[str, Callable[[Path], object]] | None = None,
    force: bool = False,
) -> None:
    """Write a state to a new folder, whole or not at all.

    Parameters
    ----------
    path
        The folder to make.
    arrays
        Name to array: bool, uint8, int32, int64, float32 or float64, all finite; or strings.
    settings
        Plain JSON: dicts with string keys, lists, strings, finite numbers, booleans, None.
    extra_files
        Name to a function that writes that file, given its path; they appear with the rest or
        not at all, and `load` refuses a folder in which one is missing or altered.
    force
        Replace a folder that is already there.

    Raises
    ------
    InputError
        If an array or a setting holds NaN or infinity, or the folder exists or cannot be written.
    TypeError
        If an array has another dtype, or a setting is not plain JSON.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "state"
    >>> save(folder, {"mu": np.arange(3.0), "ids": np.array(["a", "b", "c"])}, {"depth": 2})
    >>> arrays, settings = load(folder)
    >>> arrays["mu"], arrays["ids"], settings
    (array([0., 1., 2.]), array(['a', 'b', 'c'], dtype=object), {'depth': 2})
    """
    extra_files = extra_files or {}
    if taken := {CONFIG, MODEL} & extra_files.keys():
        raise ValueError(f"extra_files: {min(taken)!r} is a name of the store's own.")
    tensors = {name: _to_stored(name, array) for name, array in arrays.items()}
    content = safetensors.numpy.save(tensors)
    described: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "model": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "arrays": {
            name: {"dtype": _dtype_name(array), "shape": list(array.shape)}
            for name, array in sorted(arrays.items())
        },
        "settings": dict(settings),
    }
    try:
        text = json.dumps(described, indent=1, allow_nan=False)
    except ValueError as error:
        raise ArgumentError("settings: expected finite numbers; got NaN or infinity.") from error
    if len(text) > MAX_CONFIG_BYTES - DIGESTS_BYTES:
        raise ArgumentError("settings: more than 16 MiB of JSON, which `load` would not read.")
    if json.loads(text) != described:
        raise TypeError("settings: expected plain JSON (no tuples, keys that are strings).")

    with new_folder(path, force, replaceable=is_model) as folder:
        (folder / MODEL).write_bytes(content)
        for name, write in extra_files.items():
            write(folder / name)
        described["files"] = {name: sha256(folder / name) for name in sorted(extra_files)}
        config = described | {"sha256": _digest(described)}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a state back from its folder, everything checked before it is used.

    Parameters
    ----------
    path
        A folder that `save` wrote.

    Returns
    -------
    arrays, settings
        As they were given to `save`; strings come back in arrays of dtype object.

    Raises
    ------
    InputError
        If a file is missing, truncated, altered, foreign, or written by a newer version.
    """
    path = Path(path)
    for _ in range(REPLACED):
        before = _folder(path)
        try:
            return _load(path)
        except (DamagedModel, NotAModel):
            if _folder(path) == before:
                raise
    return _load(path)


def _folder(path: Path) -> tuple[int, int]:
    """Return which folder is at a place, and since when."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_ino, found.st_ctime_ns


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    config = _read_config(path)
    for name, digest in config["files"].items():
        _check_file(path / name, digest)
    tensors = _read_tensors(path / MODEL, config["model"])
    described = config["arrays"]
    if tensors.keys() != described.keys():
        name = min(tensors.keys() ^ described.keys())
        raise DamagedModel(f"{path / MODEL}: array {name!r} is not in both {MODEL} and {CONFIG}.")
    arrays = {
        name: _from_stored(path / MODEL, name, tensor, described[name])
        for name, tensor in tensors.items()
    }
    return arrays, config["settings"]


def is_model(path: Path) -> bool:
    """Whether a folder is one that `save` wrote, and holds nothing else."""
    try:
        config = _read_config(path)
    except InputError:
        return False
    return {file.name for file in path.iterdir()} <= {CONFIG, MODEL, *config["files"]}


def files_of(path: Path) -> list[Path]:
    """Return the files of a folder that `save` wrote.

    Raises
    ------
    InputError
        If it is not one.
    """
    return [path / name for name in (CONFIG, MODEL, *_read_config(path)["files"])]


def _digest(config: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in config.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _dtype_name(array: np.ndarray) -> str:
    return STRINGS if array.dtype.kind in "OTU" else array.dtype.name


def _to_stored(name: str, array: np.ndarray) -> np.ndarray:
    if _dtype_name(array) == STRINGS:
        strings = array.tolist()
        if array.ndim != 1 or not all(isinstance(string, str) for string in strings):
            raise TypeError(f"arrays: {name!r} must be strings along one axis.")
        return np.frombuffer(json.dumps(strings).encode(), dtype=np.uint8)
    if array.dtype.name not in STORED_DTYPES:
        raise TypeError(f"arrays: {name!r} has dtype {array.dtype}, which is not stored.")
    if not np.isfinite(array).all():
        raise ArgumentError(f"arrays: expected finite values; got NaN or infinity in {name!r}.")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _from_stored(
    file: Path, name: str, tensor: np.ndarray, described: Mapping[str, Any]
) -> np.ndarray:
    array = _strings(file, name, tensor) if described["dtype"] == STRINGS else tensor.copy()
    found = {"dtype": _dtype_name(array), "shape": list(array.shape)}
    if found != described:
        raise DamagedModel(
            f"{file}: expected {name!r} to be {described['dtype']} of shape {described['shape']}; "
            f"got {found['dtype']} of shape {found['shape']}."
        )
    if found["dtype"] != STRINGS and not np.isfinite(array).all():
        raise DamagedModel(f"{file}: expected finite values; got NaN or infinity in {name!r}.")
    return array


def _strings(file: Path, name: str, tensor: np.ndarray) -> np.ndarray:
    try:
        strings = json.loads(tensor.tobytes())
    except (ValueError, RecursionError) as error:
        raise DamagedModel(f"{file}: {name!r} is not a list of strings.") from error
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise DamagedModel(f"{file}: {name!r} is not a list of strings.")
    return np.array(strings, dtype=object)


def _size(file: Path) -> int:
    try:
        size = file.stat().st_size if file.is_file() else None
    except OSError as error:
        raise _unreadable(file, error) from error
    if size is None:
        if file.name == CONFIG:
            raise NotAModel(f"{file}: is missing, and without it the folder is no model.")
        raise DamagedModel(f"{file}: is missing, though {CONFIG} speaks of it.")
    return size


def _read(file: Path) -> bytes:
    Room(f"{file}: reading it", "read it where there is more memory").check(2 * _size(file))
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> Exception:
    """Say what the system says; an error of memory stays what it is."""
    if out_of_memory(error):
        return error
    return CannotRead(f"{file}: cannot be read ({error.strerror}).")


def _check_file(file: Path, digest: str) -> None:
    _size(file)
    try:
        altered = sha256(file) != digest
    except OSError as error:
        raise _unreadable(file, error) from error
    if altered:
        raise DamagedModel(f"{file}: does not match the SHA-256 in {CONFIG}, so it was altered.")


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise NotAModel(f"{folder}: expected a model folder; there is no such folder.")
    file = folder / CONFIG
    if (size := _size(file)) > MAX_CONFIG_BYTES:
        raise DamagedModel(f"{file}: {size} bytes is too large for a model's configuration.")
    content = _read(file)
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedModel(f"{file}: is not JSON, so it is truncated or not a model's.") from error
    schema = config.get("schema_version") if isinstance(config, dict) else None
    if type(schema) is not int or schema < 1:
        raise NotAModel(f"{file}: carries no schema version, so it is not a model's.")
    if schema > SCHEMA_VERSION:
        raise NewerModel(
            f"{file}: has schema version {schema}, newer than the {SCHEMA_VERSION} "
            "this version reads; upgrade countvae."
        )
    try:
        intact = config.get("sha256") == _digest(config)
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise DamagedModel(f"{file}: does not match its own SHA-256, so it was altered.")
    if not _well_formed(config):
        raise NotAModel(f"{file}: lacks a part that every model's configuration has.")
    return config


def _well_formed(config: Mapping[str, Any]) -> bool:
    model, arrays, files = config.get("model"), config.get("arrays"), config.get("files")
    return (
        isinstance(model, dict)
        and {"bytes", "sha256"} <= model.keys()
        and isinstance(arrays, dict)
        and all(
            isinstance(described, dict) and {"dtype", "shape"} <= described.keys()
            for described in arrays.values()
        )
        and isinstance(files, dict)
        and all(name == Path(name).name and name not in ("", "..") for name in files)
        and isinstance(config.get("settings"), dict)
        and isinstance(config.get("versions"), dict)
    )


def _read_tensors(file: Path, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if (size := _size(file)) != expected["bytes"]:
        raise DamagedModel(
            f"{file}: expected {expected['bytes']} bytes; got {size}, so it is cut or altered."
        )
    content = _read(file)
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise DamagedModel(f"{file}: does not match the SHA-256 in {CONFIG}, so it was altered.")
    try:
        return safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise DamagedModel(f"{file}: is not a safetensors file.") from error
