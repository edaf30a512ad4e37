"""Broken and hostile files, thousands of them: whatever is read, only our own error comes out.

    python -m benchmarks.reliability.hostile --tries 100000

Each case is a file of a corpus, altered at random by its number alone: bytes, numbers in text,
members of HDF5 and JSON, arrays of models and checkpoints whose hashes were made right again. Each
is read in a process that may take ten seconds and two gigabytes.
"""

import contextlib
import copy
import functools
import gzip
import hashlib
import json
import multiprocessing as mp
import os
import re
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import anndata
import h5py
import numpy as np
import pandas as pd
import safetensors.numpy
import scipy.sparse as sp

import countvae.checkpoint
from benchmarks.core.common import DATA, write
from benchmarks.reliability.scene import HERE, address_space, arguments, end, simulated
from countvae import MultinomialVAE, cli, report
from countvae.basis import make_basis
from countvae.errors import Diverged, InputError
from countvae.files import sha256
from countvae.ordination import axis_names
from countvae.store import _digest
from countvae.stream import CountFile
from countvae.table import CountTable, read, read_metadata, read_whole
from countvae.table import write as write_table

SECONDS, BYTES = 10, 2 * 2**30
"""What a case may take."""

WELL = ["read", "refused"]
OUTCOMES = [*WELL, "escaped", "crashed", "hung", "memory"]

Reader = Callable[[Path], object]
Row = tuple[int, str, str, str]
"""Of a case: its number, what was read, how that ended, what was said."""

IDS = [f"f{j}" for j in range(12)]


def _streamed(path: Path) -> None:
    with CountFile(path, allow_fractional=True, drop_empty=True) as table:
        for _ in table.blocks():
            pass


def _read(path: Path) -> None:
    read(path, allow_fractional=True, drop_empty=True)


def _report(path: Path) -> None:
    """Take all that a report takes of a model folder but the pictures."""
    model, run = MultinomialVAE.load(path), cli._run_of(path)
    axes = axis_names(model.n_components_)
    samples, _ = (cli._tsv(path / name, axes) for name in ("samples.tsv", "features.tsv"))
    report._facts(model, run), report._times(run)
    cli._table_again(model, run, samples, None, None)


def _state(path: Path) -> None:
    """Go on from it to the end of the fit."""
    _begun(path).fit(_small_table())


def _begun(path: Path, **settings: Any) -> MultinomialVAE:
    """Return the fit whose states are kept in the corpus."""
    return MultinomialVAE(2, max_epochs=4, checkpoint=path, random_state=0, **settings)


TABLE: tuple[Reader, ...] = (_read, _streamed)
READERS: dict[str, tuple[Reader, ...]] = {
    ".biom": TABLE,
    ".h5ad": (*TABLE, read_whole),
    ".json": (_read,),
    ".tsv": (_read,),
    ".csv": (_read,),
    ".gz": (_read,),
    ".metadata": (read_metadata,),
    ".nwk": (lambda path: make_basis(path, IDS),),
    ".model": (MultinomialVAE.load, _report, cli._about_model),
    ".checkpoint": (_state,),
}

NASTY_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, 10**12, 2**53 + 2)
NASTY_TEXT = (
    *("nan", "inf", "-1", "1e400", "1_0", "", "0x10", "9" * 40, "1.5", "-0", "1e-320"),
    *("\0", "\ufeff", "'", '"', "\t", "\n", "\r", ",", "#", "=1+1", "é", "💥", "../../x", " "),
)
NASTY_JSON: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1.5, 1e308, 10**30, "", "x", "../../../etc/passwd", [], {}, [[]]),
    *([0] * 7, {"id": 3}, "nan", -(10**12), 10**400),
)


def corpus(folder: Path) -> list[Path]:
    """Write the files that are altered, from a real table where there is one, and a model."""
    table = _small_table()
    write_table(table, folder / "a.biom")
    write_table(table, folder / "a.h5ad")
    write_table(table, folder / "a.tsv")
    names = [list(table.sample_ids), list(table.feature_ids)]
    obs, var = (pd.DataFrame(index=ids) for ids in names)
    counts = table.counts
    obs["site"] = pd.Categorical(["gut", "skin"] * (table.n // 2) + ["gut"] * (table.n % 2))
    for name, X in (
        ("csc", sp.csc_array(counts)),
        ("dense", counts.toarray()),
        ("packed", counts),
    ):
        compression = {"compression": "gzip"} if name == "packed" else {}
        made = anndata.AnnData(X, obs, var, layers={"counts": counts})
        made.write_h5ad(folder / f"{name}.h5ad", **compression)
    (folder / "sparse.json").write_text(json.dumps(_biom_1(table, dense=False)))
    (folder / "dense.json").write_text(json.dumps(_biom_1(table, dense=True)))
    text = (folder / "a.tsv").read_text()
    (folder / "a.csv").write_text(text.replace("\t", ","))
    with gzip.open(folder / "a.tsv.gz", "wt") as file:
        file.write(text)
    rows = [line.split("\t") for line in text.splitlines()]
    turned = ["\t".join([*column, "k__A; p__B"]) for column in zip(*rows, strict=True)]
    turned[0] = turned[0].replace("sample_id", "#OTU ID").replace("k__A; p__B", "taxonomy")
    (folder / "features.tsv").write_text("\n".join(turned) + "\n")
    about = [f"{name}\t{i}\tgut\n" for i, name in enumerate(table.sample_ids)]
    (folder / "about.metadata").write_text(
        "#SampleID\tage\tsite\n#q2:types\tnumeric\tcategorical\n" + "".join(about)
    )
    left, right = ("(" + ",".join(f"{i}:0.{j}" for j, i in enumerate(half)) + ")" for half in
                   (IDS[:6], IDS[6:]))  # fmt: skip
    (folder / "tree.nwk").write_text(f"({left}n1:1,{right}n2:2)root;")
    fit = ("fit", folder / "a.h5ad", "-o", folder / "a.model", "-k", 2, "--max-epochs", 2)
    fit += ("--encoder-width", 4, "--encoder-depth", 3, "--quiet")
    with contextlib.redirect_stdout(None):
        cli.main.main([*map(str, fit)], standalone_mode=False)
    _leave_states(folder / "a.checkpoint")
    return sorted(folder.iterdir())


def _leave_states(path: Path) -> None:
    """Leave the last states of a fit that was broken off."""

    class BrokenOff(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 4:
            raise BrokenOff

    with (
        contextlib.suppress(BrokenOff),
        mock.patch.object(countvae.checkpoint, "SECONDS_BETWEEN", 0.0),
    ):
        _begun(path, progress=stop).fit(_small_table())


@functools.cache
def _small_table() -> CountTable:
    path = DATA / "ecam" / "table.biom"
    if path.exists():
        real = read(path)
        order = np.argsort(-np.asarray(real.counts.sum(axis=0)).ravel())[:12]
        return real.select_features(np.sort(order)).select_samples(np.arange(14)).without_empty()
    return simulated(14, 12, 2, 300)


def _biom_1(table: CountTable, dense: bool) -> dict[str, Any]:
    turned = table.counts.T.tocoo()
    sparse = [
        [int(i), int(j), float(v)]
        for i, j, v in zip(turned.row, turned.col, turned.data, strict=True)
    ]
    return {
        "format": "Biological Observation Matrix 1.0.0",
        "type": "OTU table",
        "matrix_type": "dense" if dense else "sparse",
        "matrix_element_type": "int",
        "shape": [table.d, table.n],
        "rows": [{"id": str(i), "metadata": {"taxonomy": ["k__A"]}} for i in table.feature_ids],
        "columns": [{"id": str(i), "metadata": None} for i in table.sample_ids],
        "data": turned.toarray().tolist() if dense else sparse,
    }


# ---- alterations


def altered(given: Path, folder: Path, others: list[Path], rng: np.random.Generator) -> Path:
    """Write an altered copy of a file or a model folder; return its place."""
    path = folder / f"case{given.suffix}"
    if path.is_dir():
        shutil.rmtree(path)
    if given.is_dir():
        shutil.copytree(given, path)
        # of states the last is gone on from, and the one before should that be damaged
        for model in [path, *sorted(path.glob("[0-9]*"))]:
            if (model / "config.json").exists():
                _alter_model(model, others, rng)
        return path
    shutil.copy(given, path)
    if h5py.is_hdf5(path) and rng.random() < 0.6:
        for _ in range(rng.integers(1, 4)):
            _alter_hdf5(path, rng)
    elif given.suffix == ".json" and rng.random() < 0.7:
        content = json.loads(path.read_text())
        for _ in range(rng.integers(1, 3)):
            content = _alter_json(content, rng)
        path.write_text(json.dumps(content))
    elif given.suffix in (".tsv", ".csv", ".metadata", ".nwk") and rng.random() < 0.7:
        path.write_bytes(_alter_text(path.read_bytes(), rng))
    elif given.suffix == ".gz" and rng.random() < 0.7:
        # packed bytes that are altered are found out by their checksum, before they are text
        content, alter = gzip.decompress(path.read_bytes()), rng.random() < 0.7
        how = _alter_text(content, rng) if alter else _alter_bytes(content, others, rng)
        path.write_bytes(gzip.compress(how))
    else:
        path.write_bytes(_alter_bytes(path.read_bytes(), others, rng))
    return path


def _alter_bytes(content: bytes, others: list[Path], rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 5)):
        data = bytearray(content)
        n = max(1, len(data))
        i, j = sorted(int(at) for at in rng.integers(0, n + 1, 2))
        short = slice(i, min(j, i + 64))
        how = rng.integers(8)
        if how == 0:
            for at in rng.integers(0, n, rng.integers(1, 9)):
                data[at : at + 1] = bytes([int(rng.integers(256))])
        elif how == 1:
            data[short] = bytes([int(rng.choice([0, 255]))]) * len(data[short])
        elif how == 2:
            del data[i:]
        elif how == 3:
            del data[short]
        elif how == 4:
            data[i:i] = rng.bytes(int(rng.integers(1, 64)))
        elif how == 5:
            data[i:i] = data[short]
        elif how == 6:
            other = others[rng.integers(len(others))]
            data[i:] = other.read_bytes()[i:] if other.is_file() else b""
        else:
            at, size = i - i % 8, int(rng.choice([2, 4, 8]))
            number = int(rng.choice(NASTY_NUMBERS)) % 2 ** (8 * size)
            data[at : at + size] = number.to_bytes(size, "little")
        content = bytes(data)
    return content


def _alter_text(content: bytes, rng: np.random.Generator) -> bytes:
    lines = content.decode().split("\n")
    for _ in range(rng.integers(1, 5)):
        i = rng.integers(len(lines))
        if rng.random() < 0.2:
            lines[i : i + 1] = [lines[i]] * int(rng.integers(0, 3))
            lines = lines or [""]
            continue
        cut = "," if "," in lines[i] else "\t"
        cells = lines[i].split(cut)
        cells[rng.integers(len(cells))] = NASTY_TEXT[rng.integers(len(NASTY_TEXT))]
        lines[i] = cut.join(cells)
    return "\n".join(lines).encode()


def _alter_json(content: Any, rng: np.random.Generator) -> Any:
    """Replace, remove or repeat something somewhere."""
    if isinstance(content, dict | list) and len(content) and rng.random() < 0.85:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = keys[rng.integers(len(keys))]
        how = rng.random()
        if how < 0.1:
            del content[key]
        elif how < 0.2 and isinstance(content, list):
            content.append(content[key])
        else:
            content[key] = _alter_json(content[key], rng)
        return content
    return copy.deepcopy(NASTY_JSON[rng.integers(len(NASTY_JSON))])


def _alter_hdf5(path: Path, rng: np.random.Generator) -> None:
    """Remove, replace or lie about a member."""
    lie = None
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        if not names:
            return
        name = names[rng.integers(len(names))]
        member = file[name]
        how = rng.integers(10)
        if how == 0 and len(member.attrs):
            key = list(member.attrs)[rng.integers(len(member.attrs))]
            del member.attrs[key]
        elif how == 1:
            key = [*member.attrs, "shape", "encoding-type"][rng.integers(len(member.attrs) + 2)]
            lies = (*NASTY_NUMBERS, "csr_matrix", "csc_matrix", "array", "dict", [10**12, 3], b"x")
            member.attrs[key] = lies[rng.integers(len(lies))]
        elif how == 2:
            del file[name]
        elif how == 3:
            del file[name]
            file[name] = h5py.SoftLink("/")
        elif how == 4:
            del file[name]
            file.create_group(name)
        elif how == 5:
            lie = name, int(rng.choice([10**6, 10**9, 10**12]))
        elif isinstance(member, h5py.Dataset) and member.shape and member.size < 10**5:
            changed, own = _alter_values(member[()], rng), member.dtype
            del file[name]
            kind = own if getattr(changed, "dtype", None) is np.dtype(object) else None
            file.create_dataset(name, data=changed, dtype=kind)
    if lie is not None:
        claim(path, *lie)


def claim(path: Path, name: str, size: int) -> None:
    """Let a member of an HDF5 file claim so many values, and hold none."""
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, (size,), chunks=(1024,), dtype="f8", compression="gzip")


def link_out(path: Path, name: str, other: Path) -> None:
    """Let a member of an HDF5 file be one of another file."""
    with h5py.File(path, "r+") as file, h5py.File(other, "w") as elsewhere:
        elsewhere["secret"] = [1.0]
        del file[name]
        file[name] = h5py.ExternalLink(other, "secret")


def _alter_values(values: np.ndarray, rng: np.random.Generator) -> Any:
    """Return values of another shape, kind or size."""
    how = rng.integers(6)
    if how == 0:
        return values[: rng.integers(len(values) + 1)]
    if how == 1:
        return np.concatenate([values, values])
    if how == 2 and len(values):
        return values[0]
    if how == 3:
        return np.zeros(rng.integers(0, 4, rng.integers(1, 4)))
    if values.dtype.kind in "iuf" and values.size:
        changed = values.astype("f8" if how == 4 else "i8")
        nasty = [np.nan, np.inf, -1.0, 1e300, 0.5] if how == 4 else list(NASTY_NUMBERS)
        changed.flat[rng.integers(changed.size)] = nasty[rng.integers(len(nasty))]
        return changed
    return [NASTY_TEXT[rng.integers(len(NASTY_TEXT) - 14)]] * max(1, len(values))


def _alter_model(path: Path, others: list[Path], rng: np.random.Generator) -> None:
    """Alter a model or a state; more often than not make its hashes right again, as its author."""
    config, arrays = path / "config.json", path / "model.safetensors"
    changed = [config, config, arrays, *sorted(path.glob("*.json")), *sorted(path.glob("*.tsv"))]
    file = changed[rng.integers(len(changed))]
    right_again = rng.random() < 0.7
    if file.suffix == ".json" and rng.random() < 0.8:
        content = json.loads(file.read_text())
        # most of a configuration describes arrays: settings have a chance of their own
        room = content["settings"] if file == config and rng.random() < 0.7 else content
        for _ in range(rng.integers(1, 3)):
            changed_room = _alter_json(room, rng)
            if room is content:
                content = room = changed_room
        file.write_text(json.dumps(content))
    elif file == arrays and rng.random() < 0.8:
        _alter_arrays(config, arrays, rng)
    else:
        file.write_bytes(_alter_bytes(file.read_bytes(), others, rng))
    if right_again:
        seal(path)


def seal(path: Path) -> None:
    """Make the hashes of a model right again, if it can still be told what they are of."""
    config, arrays = path / "config.json", path / "model.safetensors"
    try:
        content = json.loads(config.read_text())
        found = arrays.read_bytes()
        content["model"] |= {"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()}
        for name in content["files"]:
            content["files"][name] = sha256(path / name)
        content["sha256"] = _digest(content)
        config.write_text(json.dumps(content))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return


def _alter_arrays(config: Path, arrays: Path, rng: np.random.Generator) -> None:
    """Replace, remove or rename an array, and describe it as it is then."""
    found = safetensors.numpy.load_file(arrays)
    described = json.loads(config.read_text())
    name = sorted(found)[rng.integers(len(found))]
    values, how = found.pop(name), rng.integers(8)
    if how == 0:
        found[f"{name}x"] = values
    elif how > 1:
        changed = np.ascontiguousarray(_alter_values(np.atleast_1d(values), rng))
        fits = how > 4 and changed.shape == values.shape and changed.dtype.kind in "iuf"
        found[name] = changed.astype(values.dtype) if fits else changed
    found = {key: np.asarray(a) for key, a in found.items() if np.asarray(a).dtype.kind in "biuf"}
    arrays.write_bytes(safetensors.numpy.save(found))
    old = described["arrays"]
    described["arrays"] = {
        key: old[key]
        if key in old and old[key]["dtype"] == "str"
        else {"dtype": a.dtype.name, "shape": list(a.shape)}
        for key, a in found.items()
    }
    config.write_text(json.dumps(described))


# ---- cases


def attempt(number: int, seed: int, files: list[Path], folder: Path) -> tuple[str, str, str]:
    """Alter and read; return what was read, how that ended, and what was said, names left out."""
    rng = np.random.default_rng([seed, number])
    given = files[rng.integers(len(files))]
    path = altered(given, folder, files, rng)
    readers = READERS[path.suffix]
    reader = readers[rng.integers(len(readers))]
    kind = given.suffix.lstrip(".") + (", streamed" if reader is _streamed else "")
    ended, said = "read", ""
    try:
        reader(path)
    except (InputError, Diverged) as error:
        ended, said = "refused", re.sub(r"'[^']*'|\S*/\S*|[\d.,]+", "…", str(error))
    except MemoryError:
        ended = "memory"
    except Exception as error:
        ended = f"escaped: {type(error).__name__}: {error}"[:200]
    written = [name for name in os.listdir(folder) if not name.startswith("case.")]
    written += [name for name in os.listdir(folder.parent) if name != folder.name]
    return kind, f"escaped: wrote {written}" if written else ended, said


def _worker(pipe: Any, numbers: range, seed: int, corpus_folder: str) -> None:
    warnings.simplefilter("ignore")
    os.setpgid(0, 0)  # with all that it starts it can be ended at once
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # HDF5 prints its stack of errors
    files = sorted(Path(corpus_folder).iterdir())
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + BYTES,) * 2)
    with tempfile.TemporaryDirectory() as outside:
        folder = Path(outside, "cases")
        folder.mkdir()
        _small_table()
        _begun(folder / "compiles").fit(_small_table())
        for number in numbers:
            pipe.send(("begins", number))
            pipe.send((number, *attempt(number, seed, files, folder)))
    pipe.send(("ends", -1))


def fuzz(tries: int, seed: int = 0, jobs: int = 1, seconds: float = SECONDS) -> pd.DataFrame:
    """Read so many altered files, in so many processes at once, each file for so long at most.

    Returns
    -------
    DataFrame
        A row a case: its number, what was read, how that ended ("read", "refused", "escaped",
        "memory", "crashed" or "hung"), and what was said.
    """
    shares = [range(tries * i // jobs, tries * (i + 1) // jobs) for i in range(jobs)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as threads:
        corpus(Path(folder))
        found = threads.map(lambda numbers: _all_of(numbers, seed, folder, seconds), shares)
        rows = [row for some in found for row in some]
    return pd.DataFrame(rows, columns=["case", "kind", "outcome", "said"])


def _all_of(numbers: range, seed: int, folder: str, seconds: float) -> list[Row]:
    """Read these cases, in a new process after each that did not survive one."""
    found, number = [], numbers.start
    while 0 <= number < numbers.stop:
        ours, theirs = mp.Pipe()
        arguments = (theirs, range(number, numbers.stop), seed, folder)
        worker = mp.get_context("spawn").Process(target=_worker, args=arguments, daemon=True)
        worker.start()
        theirs.close()
        last, rows = _watched(worker, ours, seconds)
        found += rows
        number = last + 1 if last >= 0 else -1
    return found


def by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """Count how the cases of each kind ended."""
    ended = rows["outcome"].str.partition(":")[0]
    table = pd.crosstab(rows["kind"], ended).reindex(columns=OUTCOMES, fill_value=0)
    table.insert(0, "tried", table.sum(axis=1))
    refused = rows[rows["outcome"] == "refused"]
    table["sentences"] = refused.groupby("kind")["said"].nunique().reindex(table.index).fillna(0)
    table["sentences"] = table["sentences"].astype(int)
    return table.reset_index()


def _watched(worker: Any, pipe: Any, seconds: float) -> tuple[int, list[Row]]:
    """Collect what a worker says until it ends, or has to be ended; return its last case."""
    rows, at, first = [], -1, True
    while True:
        # a process that only begins has imports to do, and a kernel to compile
        if not pipe.poll(120 if first else seconds):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.join()
            return at, [*rows, (at, "?", "hung", "")]
        try:
            message = pipe.recv()
        except EOFError:
            worker.join()
            return at, [*rows, (at, "?", f"crashed: {worker.exitcode}", "")]
        first = False
        if message[0] == "ends":
            worker.join()
            return -1, rows
        if message[0] == "begins":
            at = message[1]
        else:
            rows.append(message)


if __name__ == "__main__":
    tries = arguments(__doc__ or "", 100_000)
    rows = fuzz(tries, jobs=os.cpu_count() or 1)
    table = by_kind(rows)
    print(table.to_string())
    write("hostile", table, HERE)
    end(rows[~rows["outcome"].isin(WELL)])
