"""The command ``countvae``: each command reads, calls one function, writes.

=========  =============================================================
exit code  meaning
=========  =============================================================
0          fine
1          an error of the program's own
2          usage: an unknown option, a missing argument
3          bad input, or an output that cannot be written
4          did not converge, or not finite
5          out of memory
6          another process of the fit ended
130        interrupted
=========  =============================================================

Nothing is written in any case but the first.
"""

import inspect
import io
import json
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, TextIO, get_args

import anndata
import click
import numpy as np
import pandas as pd
import torch

from countvae import demo as demonstration
from countvae import ordination, store
from countvae.basis import NAMED
from countvae.checks import CountvaeWarning, InputError, check_depth, check_shape, examples
from countvae.devices import DEVICES
from countvae.encoder import ACTIVATIONS
from countvae.estimator import MultinomialVAE
from countvae.files import check_writable, holds_only, new_file, new_folder, sha256
from countvae.processes import Processes, ProcessLost, launched
from countvae.simulate import Design, Simulation, simulate
from countvae.stream import CountFile
from countvae.table import CountTable, read, write, write_frame
from countvae.training import Diverged

Table = CountTable | CountFile

EXIT_CODES: dict[type[BaseException], int] = {
    InputError: 3,
    OSError: 3,
    Diverged: 4,
    MemoryError: 5,
    torch.OutOfMemoryError: 5,
    ProcessLost: 6,
    KeyboardInterrupt: 130,
}
INTERNAL_ERROR = 1
COMMANDS = "countvae.commands"
"""Entry points by which an installed package adds a command."""

OUT_OF_MEMORY = "can't allocate memory"
"""How torch's RuntimeError begins where the CPU has no more."""

DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(MultinomialVAE).parameters.items()
}
VERSIONS = ("countvae", "torch", "numpy", "scipy", "scikit-learn", "scikit-bio", "anndata")
SECONDS_BETWEEN_LINES = 5.0

WORTH_SAYING = 0.05
"""Share of a fit's time from which on waiting for the disk is reported."""
COORDINATES = (".tsv", ".h5ad", ".txt")
TRUTH = ("truth.json", "factors.tsv", "loadings.tsv", "proportions.npy")
"""What the folder of the truth behind a simulated table holds."""


class Exemplary(click.Command):
    """A command whose help begins with an example."""

    def __init__(self, *args: Any, example: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then what click writes."""
        formatter.write(f"Example: {self.example}\n\n")
        super().format_help(ctx, formatter)


class Program(Exemplary, click.Group):
    """A group of commands that ends in one sentence and one of the exit codes."""

    command_class = Exemplary

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the program's own commands, then those of installed packages."""
        return [*super().list_commands(ctx), *sorted(entry_points(group=COMMANDS).names)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command: the program's own, or else one of an installed package."""
        if own := super().get_command(ctx, cmd_name):
            return own
        return next((point.load() for point in entry_points(group=COMMANDS, name=cmd_name)), None)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; say what went wrong on stderr."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", CountvaeWarning)
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            code, sentence = explain(error)
            if ctx.meta.get("debug"):
                traceback.print_exc()
            click.echo(f"Error: {sentence}", err=True)
            ctx.exit(code)


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and the sentence for it.

    Parameters
    ----------
    error : BaseException
        Whatever ended a command.

    Returns
    -------
    (int, str)

    Examples
    --------
    >>> explain(InputError("counts: expected values >= 0; got -1."))
    (3, 'counts: expected values >= 0; got -1.')
    >>> explain(MemoryError())
    (5, 'out of memory.')
    """
    code = next((c for kind, c in EXIT_CODES.items() if isinstance(error, kind)), INTERNAL_ERROR)
    if isinstance(error, RuntimeError) and OUT_OF_MEMORY in str(error):
        code = EXIT_CODES[MemoryError]
    text = " ".join(str(error).split())
    if code == EXIT_CODES[MemoryError]:
        text = "out of memory."
    elif code == EXIT_CODES[KeyboardInterrupt]:
        text = text or "interrupted; nothing was written."
    elif code == EXIT_CODES[Diverged]:
        text = f"the fit did not converge: {text}; nothing was written."
    elif isinstance(error, OSError):
        text = f"{error.filename or 'output'}: {error.strerror or text}."
    elif code == INTERNAL_ERROR:
        text = f"{type(error).__name__}: {text} (unexpected; --debug shows where)"
    return code, text


class Progress:
    """Epochs and the time left, on stderr: a bar on a terminal, else a line every few seconds.

    Parameters
    ----------
    stream : file
        Where to write; no colour and no escape codes are used.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self, stream: TextIO | io.TextIOBase, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream, self.clock = stream, clock
        self.bar = stream.isatty()
        self.first = self.last = clock()
        self.waited = self.waited_first = 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        """Report an epoch: a row of `history_`, `max_epochs` and `waited`."""
        now, epoch, total = self.clock(), row["epoch"], row["max_epochs"]
        if epoch == 1:
            self.first, self.waited_first = now, row["waited"]
        self.waited = row["waited"] - self.waited_first
        if not self.bar and now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        line = f"epoch {epoch}/{total}  bound {row['bound']:.2f}  sigma2 {row['sigma2']:.3g}"
        if epoch > 1:
            line += f"  {(now - self.first) / (epoch - 1) * (total - epoch):.0f} s left"
        if self.bar:
            done = round(16 * epoch / total)
            self.stream.write(f"\r[{'#' * done}{'.' * (16 - done)}] {line:<58}")
        else:
            self.stream.write(f"{line}\n")
        self.stream.flush()

    def __enter__(self) -> "Progress":
        """Begin; nothing is written before the first epoch."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar on a line of its own; say what waiting for the disk took of the time."""
        if self.bar:
            self.stream.write("\n")
        if self.waited > WORTH_SAYING * (self.clock() - self.first):
            self.stream.write(f"waiting for the disk took {self.waited:.1f} s of it\n")
        self.stream.flush()


# ---- options that commands share

PATH = click.Path(path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)
COUNT = click.IntRange(min=0)


class Reads(click.FloatRange):
    """A depth; NaN, which every range lets pass, is none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Refuse NaN after what the range refuses."""
        depth = super().convert(value, param, ctx)
        return self.fail(f"{value} is no number of reads.", param, ctx) if depth != depth else depth


ONE_OR_MORE = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)


def setting(name: str, *flags: str, help: str, **attributes: Any) -> Callable[[Any], Any]:
    """Make an option of an argument of `MultinomialVAE`, with its default."""
    default = DEFAULTS[name]
    if isinstance(attributes.get("type"), click.Choice):
        default = default.replace("_", "-")
    shown = "follows from the data" if default is None else True
    flags = flags or (f"--{name.replace('_', '-')}",)
    return click.option(name, *flags, default=default, show_default=shown, help=help, **attributes)


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make one decorator of several options, shown in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


reading = together(
    click.option("--layer", help="Layer of an .h5ad file; X is one.  [default: counts, else X]"),
    click.option("--metadata", type=PATH, help="TSV whose first column holds sample ids."),
    click.option("--transpose", is_flag=True, help="The file's axes are the other way round."),
    click.option("--drop-empty", is_flag=True, help="Leave out samples without reads."),
    click.option("--allow-fractional", is_flag=True, help="Take values that are not whole."),
    click.option("--stream", is_flag=True, help="Leave the table on disk, and read it as needed."),
)
device_option = setting("device", type=click.Choice(DEVICES), help="Where to compute.")
force_option = click.option("--force", is_flag=True, help="Replace an output that is there.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress and no notes.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda ctx, _, value: ctx.meta.update(debug=value),
    help="Show where an error came from.",
)


@click.group(
    cls=Program,
    context_settings={"max_content_width": 100},
    example="countvae fit table.biom -o fitted -k 10 --seed 1",
)
@click.version_option(version("countvae"), prog_name="countvae")
def main() -> None:
    """Principal components of count tables.

    Exit codes: 0 fine, 2 usage, 3 bad input, 4 did not converge, 5 out of memory, 6 another process
    of the fit ended, 130 interrupted.
    """


# ---- commands


@main.command(example="countvae fit table.biom -o fitted -k 10 --seed 1")
@click.argument("tables", type=PATH, nargs=-1, required=True, metavar="TABLE...")
@click.option("-o", "--output-dir", "output", type=PATH, required=True, help="Folder to make.")
@setting("n_components", "-k", "--n-components", type=ONE_OR_MORE, help="Factors.")
@setting("encoder_depth", type=ONE_OR_MORE, help="Dense layers of the encoder; 1 is linear.")
@setting("encoder_width", type=ONE_OR_MORE, help="Units of its hidden layers.")
@setting("activation", type=click.Choice(list(ACTIVATIONS)), help="Of its hidden layers.")
@setting("pseudocount", type=POSITIVE, help="In the encoder only, never in the likelihood.")
@setting(
    "noise",
    type=click.Choice(["isotropic", "by-feature"]),
    callback=lambda ctx, _, value: value.replace("-", "_"),
    help="One noise variance, or one a feature.",
)
@click.option("--tree", type=PATH, help="Newick file; loadings are then given in its balances.")
@setting("basis", type=click.Choice(list(NAMED)), help="Log-ratios of the loadings.")
@reading
@click.option(
    "--min-sample-count", type=COUNT, default=0, show_default=True, help="Reads a sample must have."
)
@click.option(
    "--min-feature-count",
    type=COUNT,
    default=0,
    show_default=True,
    help="Reads a feature must have.",
)
@click.option(
    "--min-feature-samples",
    type=COUNT,
    default=0,
    show_default=True,
    help="Samples a feature must occur in.",
)
@setting(
    "posterior_variance",
    type=click.Choice(["per-sample", "shared"]),
    callback=lambda ctx, _, value: value.replace("-", "_"),
    help="Variances of the factors: by sample, or the same for all.",
)
@setting("refinement_steps", type=COUNT, help="Newton steps after the encoder; 0 leaves it alone.")
@setting(
    "shrink_loadings",
    "--shrink-loadings/--no-shrink-loadings",
    help="A prior on the loadings, or none.",
)
@setting("optimizer", type=click.Choice(["adam", "sgd"]), help="Of loadings and encoder.")
@setting("batch_size", type=ONE_OR_MORE, help="Samples a step.")
@setting("max_epochs", type=ONE_OR_MORE, help="Passes over the table.")
@setting("learning_rate", type=POSITIVE, help="Of the loadings; the encoder's follows.")
@setting(
    "validation_fraction",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the samples held out to watch the fit.",
)
@click.option("--patience", type=ONE_OR_MORE, help="Stop after so many epochs without gain.")
@device_option
@setting("dtype", type=click.Choice(["float32", "float64"]), help="Precision of the fit.")
@setting("random_state", "--seed", type=SEED, help="The same seed gives the same bits again.")
@click.option("--resume", is_flag=True, help="Go on with a fit that was broken off.")
@force_option
@quiet_option
@json_option
@debug_option
@click.pass_context
def fit(ctx: click.Context, tables: tuple[Path, ...], output: Path, **options: Any) -> None:
    """Fit a model to a table of counts.

    TABLE is BIOM, .h5ad, TSV or CSV; several are one table whose samples follow one another, and
    stay on disk as with --stream, which is for BIOM 2.1 and .h5ad. The folder holds the model
    (model.safetensors, config.json), samples.tsv, features.tsv, ordination.txt and run.json.

    A fit of more than half a minute leaves its state in OUTPUT_DIR.checkpoint until it ends. Under
    torchrun all processes share one fit, and the first of them writes.
    """
    tree = options["tree"]
    if tree and ctx.get_parameter_source("basis") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--tree and --basis exclude each other.")
    if tree and not tree.is_file():
        raise InputError(f"{tree}: there is no such file.")
    with launched() as processes:
        options["quiet"] |= processes.rank > 0
        if processes.rank == 0:
            rehearse(output, options["force"])
        else:
            warnings.simplefilter("ignore", CountvaeWarning)
        model, kept, run = _fitted(ctx, tables, output, options, processes)
        mean, sd = _encoded(model, kept, processes, run["seconds"])
        if processes.rank == 0:
            beside = ordination.files(model, kept.sample_ids, mean, sd, kept.feature_metadata)
            beside["run.json"] = lambda path: _write_json(run, path)
            model.save(output, force=options["force"], extra_files=beside)
    if processes.rank > 0:
        return
    if options["as_json"]:
        _print_json(run)
    else:
        click.echo(_fit_summary(run, output))


@main.command(example="countvae transform new.biom --model fitted -o coordinates.tsv")
@click.argument("table", type=PATH)
@click.option("--model", "folder", type=PATH, required=True, help="Folder that fit made.")
@click.option("-o", "--output", type=PATH, required=True, help="A .tsv, .h5ad or .txt file.")
@reading
@device_option
@force_option
@quiet_option
@debug_option
def transform(table: Path, folder: Path, output: Path, **options: Any) -> None:
    """Give the coordinates of samples under a fitted model.

    .tsv has coordinates and their standard deviations, .h5ad the whole table with obsm["X_mvae"],
    obsm["X_mvae_sd"], varm["mvae_loadings"] and uns["mvae"], .txt scikit-bio's ordination.
    Features are matched by id.
    """
    if output.resolve() == table.resolve():
        raise InputError(f"{output}: is the table itself; name another output.")
    if output.suffix not in COORDINATES:
        raise InputError(f"{output}: expected a suffix among {examples(COORDINATES)}.")
    if options["stream"] and output.suffix == ".h5ad":
        raise click.UsageError(
            "--stream: an .h5ad file would have the whole table; name a .tsv or .txt file."
        )
    check_writable(output, options["force"])
    model = MultinomialVAE.load(folder)
    if not hasattr(model, "feature_names_in_"):
        raise InputError(f"{folder}: was fitted without feature ids, so no file can be matched.")
    model.set_params(device=options["device"])
    counts = _read((table,), options)
    _say(options["quiet"])(f"{table} ({counts.source}): {size(counts)}")
    aligned = _aligned(counts, str(table), model, options["drop_empty"])
    if aligned.n < counts.n:
        counts = counts.select_samples(np.isin(counts.sample_ids, aligned.sample_ids))
    with renamed({"X:": f"{table}:"}):
        mean, sd = model.posterior(aligned)
    _write_coordinates(output, options["force"], model, table, counts, mean, sd)


@main.command(example="countvae info fitted")
@click.argument("path", type=PATH, metavar="DIR_OR_TABLE")
@click.option("--layer", help="Layer of an .h5ad file; X is one.  [default: counts, else X]")
@json_option
@debug_option
def info(path: Path, layer: str | None, as_json: bool) -> None:
    """Say what a model folder or a table holds."""
    about = _about_model(path) if path.is_dir() else _about_table(path, layer)
    if as_json:
        _print_json(about)
    else:
        for name, value in about.items():
            click.echo(f"{name.replace('_', ' '):<26}{_words(value)}")


@main.command(
    name="simulate",
    example="countvae simulate -o simulated.biom --samples 200 --features 100 -k 5",
)
@click.option("-o", "--output", type=PATH, required=True, help="A .biom, .h5ad or .tsv file.")
@click.option("--samples", type=ONE_OR_MORE, default=200, show_default=True)
@click.option("--features", type=click.IntRange(min=2), default=100, show_default=True)
@click.option("-k", "--n-components", type=ONE_OR_MORE, default=5, show_default=True)
@click.option(
    "--reads",
    type=Reads(1, 1e12),
    default=1000.0,
    show_default=True,
    help="Typical depth.",
)
@click.option("--design", type=click.Choice(get_args(Design)), default="wide", show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--truth", type=PATH, help="Folder for the truth.  [default: OUTPUT-truth]")
@force_option
@debug_option
def simulate_command(
    output: Path,
    samples: int,
    features: int,
    n_components: int,
    reads: float,
    design: Design,
    seed: int,
    truth: Path | None,
    force: bool,
) -> None:
    """Draw a table from the model, and write the truth beside it.

    The truth is a folder: factors.tsv (z of each sample), loadings.tsv (V, mean CLR and noise
    variance of each feature), proportions.npy (what the counts were drawn from), truth.json.
    """
    truth = truth or output.with_name(f"{output.stem}-truth")
    if truth.absolute() == output.absolute():
        raise click.UsageError("--truth and --output name the same place.")
    check_writable(output, force)
    drawn = simulate(
        samples,
        features,
        n_components,
        reads,
        design=design,
        keep_proportions=True,
        rng=np.random.default_rng(seed),
    )
    settings = {"reads": reads, "design": design, "seed": seed, "sigma2": drawn.sigma2}
    with new_folder(truth, force, replaceable=holds_only(*TRUTH)) as folder:
        _write_truth(drawn, folder, settings)
        write(CountTable(drawn.counts, drawn.sample_ids, drawn.feature_ids), output, force)


@main.command(name="demo", example="countvae demo -o demo")
@click.option("-o", "--output-dir", "output", type=PATH, required=True, help="Folder to make.")
@force_option
@quiet_option
@json_option
@debug_option
def demo_command(output: Path, force: bool, quiet: bool, as_json: bool) -> None:
    """Fit a real table and a simulated one, and draw both."""
    with new_folder(output, force, replaceable=holds_only(*demonstration.WRITTEN)) as folder:
        if quiet:
            found = demonstration.demo(folder)
        else:
            with Progress(sys.stderr) as progress:
                found = demonstration.demo(folder, progress=progress)
    if as_json:
        _print_json(found)
    else:
        click.echo(demonstration.describe(found))
        click.echo(f"pictures: {output / 'real.png'}, {output / 'simulated.png'}")


# ---- what the commands do besides


def _fitted(
    ctx: click.Context,
    tables: tuple[Path, ...],
    output: Path,
    options: dict[str, Any],
    processes: Processes,
) -> tuple[MultinomialVAE, Table, dict[str, Any]]:
    """Read, filter and fit; return the model, the table it was fitted to, and what happened."""
    say = _say(options["quiet"])
    started, seconds, table = datetime.now(UTC), {}, ", ".join(map(str, tables))
    with timed(seconds, "read"):
        counts = _read(tables, options)
        say(f"{table} ({counts.source}): {size(counts)}")
        kept = _filtered(counts, table, options, say)
        ordination.check_ids(kept.sample_ids, f"{table}: sample ids")
        ordination.check_ids(kept.feature_ids, f"{table}: feature ids")
    settings = {name: options[name] for name in options.keys() & DEFAULTS.keys() - {"basis"}}
    basis = options["tree"] or options["basis"]
    checkpoint = _checkpoint(output, options, say) if processes.rank == 0 else _beside(output)
    processes.wait()  # for the first to settle what is there
    model = MultinomialVAE(**settings, basis=basis, checkpoint=checkpoint)
    say(f"memory: about {model.estimate_memory(kept) / 2**20:.0f} MiB besides the table")
    with renamed({"X:": f"{table}:", "basis:": f"{basis}:"}), timed(seconds, "fit"):
        _with_progress(options["quiet"], model, kept)
    run = {
        "command": "fit",
        "arguments": {name: _plain(value) for name, value in sorted(ctx.params.items())},
        "versions": _versions(),
        "processes": processes.count,
        "seed": options["random_state"],
        "started": started.isoformat(timespec="seconds"),
        "input": {"sha256": [sha256(path) for path in tables], "source": counts.source},
        "before_filters": _shape(counts),
        "after_filters": _shape(kept),
        "result": _result(model),
        "seconds": seconds,
    }
    return model, kept, run


def _encoded(
    model: MultinomialVAE, table: Table, processes: Processes, seconds: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Encode this process's share of the samples, and put all shares together."""
    with timed(seconds, "encode"):
        own = table.select_samples(np.arange(*processes.share(table.n)))
        mean, sd = (
            processes.whole(torch.from_numpy(part), table.n).numpy()
            for part in model.posterior(own)
        )
    return mean, sd


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.checkpoint")


def _checkpoint(output: Path, options: dict[str, Any], say: Callable[[str], None]) -> Path:
    """Return where the fit leaves its state, having settled what is there."""
    folder = _beside(output)
    if folder.exists() and not options["resume"]:
        if not options["force"]:
            raise InputError(
                f"{folder}: a fit was broken off here; --resume goes on with it, --force begins"
                " anew."
            )
        MultinomialVAE.forget(folder)
    elif options["resume"]:
        say(f"{folder}: {'going on from there' if folder.exists() else 'none; beginning anew'}")
    return folder


class _Dropped(Exception):
    """A folder was begun only to see that it could be."""


def rehearse(folder: Path, force: bool) -> None:
    """Refuse a folder that could not be made, before the work: begin one, and drop it."""
    with suppress(_Dropped), new_folder(folder, force, replaceable=store.is_model):
        raise _Dropped


@contextmanager
def renamed(subjects: dict[str, str]) -> Iterator[None]:
    """Let sentences about an argument be about the file that it came from."""
    try:
        yield
    except InputError as error:
        sentence = str(error)
        for argument, file in subjects.items():
            if sentence.startswith(argument):
                sentence = file + sentence.removeprefix(argument)
        raise InputError(sentence) from error


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a block took."""
    begun = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begun, 3)


def size(table: Table) -> str:
    """Say how large a table is."""
    return f"{table.n} samples × {table.d} features, {table.depth.sum():.0f} reads"


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda text: None) if quiet else (lambda text: click.echo(text, err=True))


def _show_warning(message: Warning | str, *_: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1))


def _read(paths: Sequence[Path], options: dict[str, Any]) -> Table:
    """Read a table, or open one that stays on disk."""
    if options["stream"] or len(paths) > 1:
        if options["transpose"]:
            raise click.UsageError("--transpose: a table that stays on disk is read by its rows.")
        names = ("layer", "drop_empty", "allow_fractional")
        table = CountFile(*paths, **{name: options[name] for name in names})
        if options["metadata"]:
            table = table.with_metadata(options["metadata"])
    else:
        names = ("layer", "metadata", "transpose", "drop_empty", "allow_fractional")
        table = read(paths[0], **{name: options[name] for name in names})
    # said by now, with the file's name
    warnings.filterwarnings("ignore", "X: expected whole numbers", CountvaeWarning)
    return table


def _filtered(
    table: Table, path: str, options: dict[str, Any], say: Callable[[str], None]
) -> Table:
    names = ("min_sample_count", "min_feature_count", "min_feature_samples")
    least = {name: options[name] for name in names}
    if not any(least.values()):
        return table
    if options["drop_empty"]:
        least["min_sample_count"] = max(1, least["min_sample_count"])
    kept = table.filter(**least)
    say(f"filters: before {size(table)}; after {size(kept)}")
    _check_kept(kept, f"{path}, filtered")
    return kept


def _check_kept(table: Table, argument: str) -> None:
    """Refuse what filters or alignment have left of a table, if a fit could not take it."""
    check_shape((table.n, table.d), argument)
    check_depth(table.depth, table.sample_ids, "error", argument)


def _with_progress(quiet: bool, model: MultinomialVAE, table: Table) -> None:
    if quiet:
        model.fit(table)
        return
    with Progress(sys.stderr) as progress:
        model.set_params(progress=progress).fit(table)


def _shape(table: Table) -> dict[str, int | float]:
    return {"samples": table.n, "features": table.d, "reads": float(table.depth.sum())}


def _result(model: MultinomialVAE) -> dict[str, Any]:
    held_out = "validation_bound" in model.history_
    row = model.history_.iloc[model.best_epoch_ - 1]
    return {
        "n_components": model.n_components_,
        "epochs": model.n_iter_,
        "best_epoch": model.best_epoch_,
        "bound": float(row["bound"]),
        "validation_bound": float(row["validation_bound"]) if held_out else None,
        "noise_variance": model.noise_variance_,
        "explained_variance_ratio": model.explained_variance_ratio_.tolist(),
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS} | {"python": platform.python_version()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _percentages(ratios: list[float]) -> str:
    return " ".join(f"{100 * ratio:.1f}" for ratio in ratios)


def _fit_summary(run: dict[str, Any], output: Path) -> str:
    table, result = run["after_filters"], run["result"]
    held_out = result["validation_bound"]
    more = "" if held_out is None else f"; held out {held_out:.2f}"
    return "\n".join(
        [
            f"table     {table['samples']} samples × {table['features']} features",
            f"model     k = {result['n_components']}, {result['epochs']} epochs,"
            f" {run['seconds']['fit']:.1f} s",
            f"bound     {result['bound']:.2f} nats a sample, coefficient left out{more}",
            f"factors   {_percentages(result['explained_variance_ratio'])} % of the variance",
            f"noise     variance {result['noise_variance']:.4g}",
            f"written   {output}",
        ]
    )


def _aligned(table: Table, path: str, model: MultinomialVAE, drop_empty: bool) -> Table:
    try:
        aligned, overlap = table.align_features(model.feature_names_in_)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if overlap.missing or overlap.extra:
        warnings.warn(f"{path}: {overlap}", CountvaeWarning, stacklevel=2)
    elif list(table.feature_ids) != list(model.feature_names_in_):
        warnings.warn(
            f"{path}: its features are in another order than the model's; aligned by id.",
            CountvaeWarning,
            stacklevel=2,
        )
    argument = f"{path}, in the features of the model"
    if drop_empty:
        aligned = aligned.without_empty(argument)
    _check_kept(aligned, argument)
    return aligned


def _write_coordinates(
    output: Path,
    force: bool,
    model: MultinomialVAE,
    path: Path,
    table: Table,
    mean: np.ndarray,
    sd: np.ndarray,
) -> None:
    ids = table.sample_ids
    if output.suffix == ".tsv":
        write_frame(ordination.sample_frame(ids, mean, sd), output, force)
    elif output.suffix == ".txt":
        ordination.write_ordination(ordination.ordination(model, ids, mean), output, force)
    else:
        assert isinstance(table, CountTable)
        with new_file(output, force) as beside:
            adata = _as_anndata(table, path, beside)
            ordination.annotate(adata, model, mean, sd).write_h5ad(beside)


def _as_anndata(table: CountTable, path: Path, scratch: Path) -> anndata.AnnData:
    """Return all that the input holds, of the samples that were kept."""
    if not table.source.startswith(("X", "layers[")):
        write(table, scratch, force=True)
        return anndata.read_h5ad(scratch)
    adata = anndata.read_h5ad(path)
    if table.source.endswith("transposed"):
        adata = adata.T
    return adata[np.isin(adata.obs_names.to_numpy(str), table.sample_ids.astype(str))]


def _about_model(folder: Path) -> dict[str, Any]:
    model = MultinomialVAE.load(folder)
    names = model.basis_operator_.names
    return {
        "n_components": model.n_components_,
        "features": model.n_features_in_,
        "samples_fitted": len(model.depth_),
        "noise_variance": model.noise_variance_,
        "explained_variance_ratio": model.explained_variance_ratio_.tolist(),
        "epochs": model.n_iter_,
        "basis": f"{len(names)} log-ratios: {examples(names.tolist())}",
        "settings": {
            name: value
            for name, value in model.get_params().items()
            if name not in ("basis", "progress")
        },
        "versions": json.loads((folder / store.CONFIG).read_text(encoding="utf-8"))["versions"],
    }


def _about_table(path: Path, layer: str | None) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always", CountvaeWarning)
        table = read(path, layer=layer, drop_empty=True, allow_fractional=True)
    depth = table.depth
    return {
        "source": table.source,
        "samples_with_reads": table.n,
        "features": table.d,
        "features_without_reads": int((np.asarray(table.counts.sum(axis=0)) == 0).sum()),
        "nonzeros": table.counts.nnz,
        "nonzero_fraction": table.counts.nnz / (table.n * table.d),
        "reads": float(depth.sum()),
        "depth_min_median_max": [float(depth.min()), float(np.median(depth)), float(depth.max())],
        "sample_metadata": _columns(table.sample_metadata),
        "feature_metadata": _columns(table.feature_metadata),
        "notes": [str(warning.message) for warning in noted],
    }


def _columns(frame: pd.DataFrame | None) -> list[str]:
    return [] if frame is None else [str(name) for name in frame.columns]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_words(v)}" for name, v in value.items())
    if isinstance(value, list):
        return "; ".join(map(_words, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write_truth(drawn: Simulation, folder: Path, settings: dict[str, Any]) -> None:
    k = drawn.V.shape[1]
    samples = pd.Index(drawn.sample_ids, name="sample-id")
    features = pd.Index(drawn.feature_ids, name="feature-id")
    factors = pd.DataFrame(drawn.z, samples, [f"z{c + 1}" for c in range(k)])
    loadings = pd.DataFrame(drawn.V, features, [f"V{c + 1}" for c in range(k)])
    write_frame(factors.assign(depth=drawn.depth), folder / "factors.tsv")
    write_frame(
        loadings.assign(mean_clr=drawn.mu, noise_variance=drawn.feature_sigma2),
        folder / "loadings.tsv",
    )
    assert drawn.proportions is not None
    np.save(folder / "proportions.npy", drawn.proportions, allow_pickle=False)
    _write_json(settings, folder / TRUTH[0])
