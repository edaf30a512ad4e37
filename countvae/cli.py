"""The command ``countvae``: each command reads, calls one function, writes.

Exit codes are those of `console`; no output is written in any case but the first, save what a fit
that was broken off or diverged leaves beside it.
"""

import inspect
import json
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import anndata
import click
import networkx as nx
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from scipy.sparse import csr_array, vstack
from scipy.stats import binomtest

from countvae import demo as demonstration
from countvae import network, ordination, plots, report, score, select, store
from countvae.basis import NAMED
from countvae.checkpoint import Checkpoint
from countvae.checks import check_depth, check_ids, check_shape, examples
from countvae.console import (
    COUNT,
    ONE_OR_MORE,
    PATH,
    POSITIVE,
    SEED,
    Numbers,
    Program,
    Progress,
    Reads,
    Sizes,
    together,
)
from countvae.convolutional import DECODERS, ConvMultinomialVAE
from countvae.design import columns, variables
from countvae.devices import DEVICES, chosen
from countvae.errors import (
    CannotWrite,
    CountvaeWarning,
    Diverged,
    FeaturesDiffer,
    InputError,
    MetadataError,
    Misfit,
    NoSuchFile,
    NotAModel,
    Unfinished,
    out_of_memory,
)
from countvae.estimator import MultinomialVAE
from countvae.files import (
    check_apart,
    check_writable,
    claimed,
    holds_only,
    new_file,
    new_folder,
    sha256,
)
from countvae.layers import ACTIVATIONS
from countvae.memory import Room
from countvae.processes import ALONE, GOES_ON, Processes, launched
from countvae.signals import IGNORED, handled
from countvae.simulate import Design, Simulation, simulate
from countvae.stream import CountFile
from countvae.table import (
    CountTable,
    as_anndata,
    check_overlap,
    check_suffix,
    read,
    read_metadata,
    read_whole,
    write,
    write_frame,
)

Table = CountTable | CountFile

ON_GRID, DENSE = (
    {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    for kind in (ConvMultinomialVAE, MultinomialVAE)
)
DEFAULTS = ON_GRID | DENSE
OF_KIND = [name for name in DENSE if name in ON_GRID and ON_GRID[name] != DENSE[name]]
"""Settings whose defaults on a grid are others."""

OF_GRID = [name for name in ON_GRID if name not in DENSE]
VERSIONS = ("countvae", "torch", "numpy", "scipy", "scikit-learn", "scikit-bio", "anndata")
COORDINATES = (".tsv", ".h5ad", ".txt")
SMALL_P, CHANCE = 0.05, 1e-4
"""When scores say that a model does not describe a table: so many of them are small by chance."""

DENOISED = 6
"""Arrays of samples x features that are in memory while denoised ones are written."""

ENDS = ("lower", "upper")
SELECTION = ("selection.tsv", "selection.png")
TRIED = "k = {k}, encoder depth {encoder_depth}, fold {fold}: {evidence_a_read:.5g}"
NETWORK = ("edges.tsv", "nodes.tsv", "network.graphml")
TAXONOMY = "taxonomy"
LARGEST = 2**63
"""What numbers of a run come nowhere near."""

OF_TABLE = dict.fromkeys(("samples", "features", "reads"), int | float)
OF_RUN = {
    "arguments": {
        "tables": [str],
        **dict.fromkeys(("layer", "metadata", "tree", "init", "formula"), str | None),
        **dict.fromkeys(("stream", "transpose", "drop_empty", "allow_fractional"), bool),
        **dict.fromkeys(("min_sample_count", "min_feature_count", "min_feature_samples"), int),
        "output": str,
    },
    "started": str,
    "input": {"sha256": [str], "source": str},
    "before_filters": OF_TABLE,
    "after_filters": OF_TABLE,
    "result": {"bound": int | float},
    "seconds": {"fit": int | float, ...: int | float},
    "versions": {...: str},
}
"""What of run.json a report needs, by type; of a list or an ellipsis, that of each value."""

TRUTH = ("truth.json", "factors.tsv", "loadings.tsv", "proportions.npy")
"""What the folder of the truth behind a simulated table holds."""


# ---- options that commands share


def setting(name: str, *flags: str, help: str, **attributes: Any) -> Callable[[Any], Any]:
    """Make an option of an argument of `MultinomialVAE`, with its default."""
    default = DEFAULTS[name]
    if isinstance(attributes.get("type"), click.Choice):
        default = default.replace("_", "-")
    shown = "follows from the data" if default is None else True
    if name in OF_KIND:
        shown = f"{default}, and {ON_GRID[name]} with --grid"
    flags = flags or (f"--{name.replace('_', '-')}",)
    return click.option(name, *flags, default=default, show_default=shown, help=help, **attributes)


reading = together(
    click.option("--layer", help="Layer of an .h5ad file; X is one.  [default: counts, else X]"),
    click.option("--metadata", type=PATH, help="TSV whose first column holds sample ids."),
    click.option("--transpose", is_flag=True, help="The file's axes are the other way round."),
    click.option("--drop-empty", is_flag=True, help="Leave out samples without reads."),
    click.option("--allow-fractional", is_flag=True, help="Take values that are not whole."),
    click.option("--stream", is_flag=True, help="Leave the table on disk, and read it as needed."),
)
gridding = together(
    click.option(
        "--grid", type=Sizes(), help="Features lie on a grid, 8x8 or 100: the encoder convolves."
    ),
    setting("channels", type=ONE_OR_MORE, help="Features at each position of the grid."),
    setting(
        "decoder",
        type=click.Choice(list(DECODERS)),
        help="Of a grid: a network of transposed convolutions, or linear.",
    ),
)
noise_option = setting(
    "noise",
    type=click.Choice(["isotropic", "by-feature"]),
    callback=lambda ctx, _, value: value.replace("-", "_"),
    help="One noise variance, or one a feature.",
)
formula_option = click.option(
    "--formula", help="Covariates, such as '~ age + C(run)', in the metadata."
)
drop_missing_option = click.option(
    "--drop-missing", is_flag=True, help="Leave out samples without a value of a covariate."
)
matching = together(
    drop_missing_option,
    setting(
        "min_overlap",
        type=click.FloatRange(0, 1),
        help="Share of features, and of reads, that table and model must have in common.",
    ),
    click.option("--zero-fill", is_flag=True, help="Features not in the table were not seen."),
)
filtering = together(
    click.option(
        "--min-sample-count",
        type=COUNT,
        default=0,
        show_default=True,
        help="Reads a sample must have.",
    ),
    click.option(
        "--min-feature-count",
        type=COUNT,
        default=0,
        show_default=True,
        help="Reads a feature must have.",
    ),
    click.option(
        "--min-feature-samples",
        type=COUNT,
        default=0,
        show_default=True,
        help="Samples a feature must occur in.",
    ),
)
model_option = click.option(
    "--model", "folder", type=PATH, required=True, help="Folder that fit made."
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
@setting(
    "encoder_depth",
    type=ONE_OR_MORE,
    help="Layers of the encoder (on a grid convolutions before the last); 1 is linear.",
)
@setting("encoder_width", type=ONE_OR_MORE, help="Units of its hidden layers.")
@setting("activation", type=click.Choice(list(ACTIVATIONS)), help="Of its hidden layers.")
@gridding
@setting("pseudocount", type=POSITIVE, help="In the encoder only, never in the likelihood.")
@noise_option
@click.option("--tree", type=PATH, help="Newick file; loadings are then given in its balances.")
@setting("basis", type=click.Choice(list(NAMED)), help="Log-ratios of the loadings.")
@formula_option
@drop_missing_option
@reading
@filtering
@setting(
    "posterior_variance",
    type=click.Choice(["per-sample", "shared", "none"]),
    callback=lambda ctx, _, value: value.replace("-", "_"),
    help="Variances of the factors: by sample, the same for all, or a plain autoencoder.",
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
@click.option("--init", "init", type=PATH, help="Folder of a model to go on from.")
@setting(
    "min_overlap",
    type=click.FloatRange(0, 1),
    help="Share of features, and of reads, that table and --init must have in common.",
)
@click.option(
    "--zero-fill", is_flag=True, help="Features of --init that are not in the table were not seen."
)
@click.option(
    "--freeze",
    type=click.Choice(["decoder", "encoder"]),
    help="Which half of that model stays as it is.",
)
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

    With --grid features lie on a grid, in the order of the file: row by row, and at each position
    one after the other where there are several. No filter may leave features out.

    With --init a fit goes on from another: the table is brought to the features of that model,
    whose settings hold, and loadings are expected near its own. A table that shares less than
    --min-overlap with it is refused, and one without some of its features too, unless --zero-fill
    says that they were looked for and not seen.

    A fit of more than half a minute leaves its state in OUTPUT_DIR.checkpoint until it ends; of one
    that diverges the model of its best epoch is kept, in OUTPUT_DIR.diverged. Under torchrun all
    processes share one fit, and the first of them writes.
    """
    tree = options["tree"]
    if tree and _given(ctx, "basis"):
        raise click.UsageError("--tree and --basis exclude each other.")
    if tree and not tree.is_file():
        raise NoSuchFile(f"{tree}: there is no such file.")
    if not options["init"]:
        _check_grid(ctx)
        if options["zero_fill"]:
            raise click.UsageError("--zero-fill goes with --init.")
    with launched(chosen(options["device"])) as processes, processes.first_holds(claimed(output)):
        options["quiet"] |= processes.rank > 0
        if processes.rank > 0:
            warnings.simplefilter("ignore", CountvaeWarning)
        with _saying_how_to_go_on(ctx, _beside(output, "checkpoint").absolute(), processes):
            model, kept, run = _fitted(ctx, tables, output, options, processes)
            mean, sd = _encoded(model, kept, processes, run["seconds"])
            if processes.rank == 0:
                beside = ordination.files(model, kept.sample_ids, mean, sd, kept.feature_metadata)
                beside["run.json"] = lambda path: _write_json(run, path)
                with handled(IGNORED):  # a signal must not come between a model and what is said
                    model.save(output, force=options["force"], extra_files=beside)
    if processes.rank > 0:
        return
    if options["as_json"]:
        _print_json(run)
    else:
        click.echo(_fit_summary(run, output))


@main.command(example="countvae transform new.biom --model fitted -o coordinates.tsv")
@click.argument("table", type=PATH)
@model_option
@click.option("-o", "--output", type=PATH, required=True, help="A .tsv, .h5ad or .txt file.")
@click.option("--distances", type=PATH, help="Write the samples' distances too, as a .tsv file.")
@click.option(
    "--distance",
    "kind",
    type=click.Choice(["latent", "aitchison"]),
    default="latent",
    show_default=True,
    help="By the factors alone, or by all log-ratios.",
)
@reading
@matching
@device_option
@force_option
@quiet_option
@debug_option
def transform(
    table: Path, folder: Path, output: Path, distances: Path | None, kind: str, **options: Any
) -> None:
    """Give the coordinates of samples under a fitted model.

    .tsv has coordinates and their standard deviations, .h5ad the whole table with obsm["X_mvae"],
    obsm["X_mvae_sd"], varm["mvae_loadings"] and uns["mvae"], .txt scikit-bio's ordination.
    Features are matched by id. Those that only the model has say nothing unless --zero-fill makes
    them zeros; those that only the table has are left out. Coordinates and distances are of what
    covariates leave, if the model has any.
    """
    check_suffix(output, COORDINATES)
    if distances is not None:
        check_suffix(distances, [".tsv"])
    if options["stream"] and output.suffix == ".h5ad":
        raise click.UsageError(
            "--stream: an .h5ad file would have the whole table; name a .tsv or .txt file."
        )
    outputs = [output] if distances is None else [output, distances]
    _check_outputs(outputs, options["force"], folder, table, options["metadata"])
    model = _loaded(folder, options["device"])
    answering, counts, aligned = _table_for(model, table, options)
    with renamed({"X:": f"{table}:"}):
        mean, sd = answering.posterior(aligned)
        if distances is None:
            _write_coordinates(output, options["force"], model, table, counts, mean, sd)
            _tell_written(options["quiet"], output)
            return
        points = mean
        if kind == "aitchison":
            _check_dense(aligned, table)
            points = answering.denoise(aligned)[1] - answering.of_covariates(aligned)
    check_ids(aligned.sample_ids, f"{table}: sample ids")
    # both are whole on the disk before either takes its place
    with new_file(distances, options["force"]) as one, new_file(output, options["force"]) as other:
        with new_file(one, force=True) as beside:
            ordination.distances(aligned.sample_ids, points).write(str(beside))
        _write_coordinates(other, True, model, table, counts, mean, sd)
    _tell_written(options["quiet"], output, distances)


@main.command(example="countvae info fitted")
@click.argument("path", type=PATH, metavar="DIR_OR_TABLE")
@click.option("--layer", help="Layer of an .h5ad file; X is one.  [default: counts, else X]")
@json_option
@debug_option
def info(path: Path, layer: str | None, as_json: bool) -> None:
    """Say what a model folder or a table holds."""
    _tell(_about_model(path) if path.is_dir() else _about_table(path, layer), as_json)


@main.command(name="select", example="countvae select table.biom -k 2,4,8 -o selection")
@click.argument("table", type=PATH)
@click.option("-k", "tried", type=Numbers(), required=True, help="Numbers of factors: 2,4,8.")
@click.option("-o", "--output-dir", "output", type=PATH, required=True, help="Folder to make.")
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    default=3,
    show_default=True,
    help="Parts of the samples, each held out once.",
)
@click.option(
    "--groups",
    metavar="COLUMN",
    help="Of the metadata, such as a subject: samples alike in it are held out together.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=16),
    default=64,
    show_default=True,
    help="Of the factors of each held-out sample.",
)
@setting("encoder_depth", type=Numbers(), help="Layers of the encoder to compare: 1,2,3.")
@gridding
@setting("max_epochs", type=ONE_OR_MORE, help="Passes over the table.")
@noise_option
@formula_option
@drop_missing_option
@reading
@filtering
@device_option
@click.option("--seed", type=SEED, default=0, show_default=True)
@force_option
@quiet_option
@json_option
@debug_option
@click.pass_context
def select_command(
    ctx: click.Context,
    table: Path,
    tried: list[int],
    output: Path,
    as_json: bool,
    force: bool,
    **options: Any,
) -> None:
    """Say how many factors a table carries, by held-out evidence.

    OUTPUT_DIR holds selection.tsv (a row a model) and selection.png; the verdict is printed.
    """
    say = _say(options["quiet"])
    _check_grid(ctx)
    settings = {name: options[name] for name in ("max_epochs", "device", "noise", "formula")}
    if options["grid"]:
        settings |= {"kind": ConvMultinomialVAE} | {name: options[name] for name in OF_GRID}
        if not _given(ctx, "encoder_depth"):
            options["encoder_depth"] = [ON_GRID["encoder_depth"]]
    if options["stream"]:
        raise click.UsageError("--stream: folds are taken from a table in memory.")
    with new_folder(output, force, replaceable=holds_only(*SELECTION)) as made:
        counts = _read((table,), options)
        say(f"{table} ({counts.source}): {size(counts)}")
        kept = _without_missing(counts, str(table), options["formula"], options, say)
        kept = _filtered(kept, str(table), options, say)
        groups = None
        if by := options["groups"]:
            groups = columns([by], kept.sample_metadata, "--groups")[by]
        with renamed({"X:": f"{table}:", "groups:": "--groups:"}):
            found = select.select(
                kept,
                tried,
                options["encoder_depth"],
                folds=options["folds"],
                groups=groups,
                draws=options["draws"],
                random_state=options["seed"],
                told=lambda row: say(TRIED.format(**row)),
                **settings,
            )
        write_frame(found.table.set_index("k"), made / "selection.tsv")
        plots.selection(found.table)
        plt.savefig(made / "selection.png", dpi=200)
        plt.close()
    if as_json:
        rows = found.table.to_dict("records")
        gains = found.gains.to_dict("index")
        chosen = {"k": found.k, "encoder_depth": found.encoder_depth}
        found = {**chosen, "verdict": found.verdict, "gains": gains, "table": rows}
        _print_json({**found, "written": str(output)})
    else:
        click.echo(found.verdict)
        _tell_written(False, output)


@main.command(name="score", example="countvae score new.biom --model fitted -o scores.tsv")
@click.argument("table", type=PATH)
@model_option
@click.option("-o", "--output", type=PATH, required=True, help="A .tsv file.")
@click.option(
    "--reference",
    type=click.IntRange(min=100),
    default=1000,
    show_default=True,
    help="Samples drawn from the model at each depth; the least p-value is one over that.",
)
@click.option(
    "--clean",
    type=PATH,
    help="Samples known to be sound, not fitted, in a table read as TABLE is: p-values are ranks"
    " among these.",
)
@reading
@matching
@device_option
@click.option("--seed", type=SEED, default=0, show_default=True)
@force_option
@quiet_option
@json_option
@debug_option
def score_command(
    table: Path, folder: Path, output: Path, as_json: bool, force: bool, **options: Any
) -> None:
    """Say how well a model explains samples, and which are unlike all that it knows.

    The file has the evidence of each sample in nats, what the model's own samples of that depth
    have, and a one-sided p-value: the share of these with no more evidence. A shallow sample is not
    unusual for being shallow; one with more evidence than usual has a p-value near 1.

    Where the model does not describe samples well, p-values promise too much; among --clean samples
    they do not.
    """
    clean = options["clean"]
    _check_outputs([output], force, folder, table, options["metadata"], clean)
    check_suffix(output, [".tsv"])
    model = _loaded(folder, options["device"])
    model, _, aligned = _table_for(model, table, options)
    sound = None if clean is None else _table_for(model, clean, options)[2]
    given = {"reference": options["reference"], "random_state": options["seed"]}
    with renamed({"X:": f"{table}:", "clean:": f"{clean}:"}):
        frame = score.scores(model, aligned, clean=sound, **given)
    frame.index = pd.Index(aligned.sample_ids, name="sample-id", dtype=object)
    write_frame(frame, output, force)
    unusual = int((frame["p_value"] <= SMALL_P).sum())
    if clean is None and binomtest(unusual, len(frame), SMALL_P, "greater").pvalue < CHANCE:
        warnings.warn(
            f"{table}: {unusual / len(frame):.0%} of the samples have p <= {SMALL_P}, where the"
            f" model expects {SMALL_P:.0%}: either many are unlike those that it was fitted to, or"
            " it does not describe such samples well. p-values then rank samples, and q-values"
            " promise too much.",
            CountvaeWarning,
            stacklevel=2,
        )
    beside = options["reference"] if sound is None else sound.n
    most_unusual = frame["p_value"].min() <= 1.001 / (beside + 1)
    least, at_fdr = len(frame) / (beside + 1), int((frame["q_value"] <= SMALL_P).sum())
    if most_unusual and not at_fdr:
        name = "--reference" if clean is None else "--clean"
        warnings.warn(
            f"{name}: beside {beside} samples the q-value of one unusual sample among {len(frame)}"
            f" is at least {min(least, 1):.2g}; {round(len(frame) / SMALL_P):,} would do.",
            CountvaeWarning,
            stacklevel=2,
        )
    found = {
        "samples": len(frame),
        "evidence_a_read": float(frame["evidence"].sum() / frame["depth"].sum()),
        "p_at_most_5_percent": unusual,
        "unusual_at_5_percent_fdr": at_fdr,
        "written": str(output),
    }
    _tell(found, as_json)


@main.command(example="countvae denoise table.biom --model fitted -o denoised.h5ad")
@click.argument("table", type=PATH)
@model_option
@click.option("-o", "--output", type=PATH, required=True, help="A .biom, .h5ad or .tsv file.")
@click.option(
    "--interval",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Give the proportions' intervals of this probability too, such as 0.9.",
)
@reading
@matching
@device_option
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the intervals.")
@force_option
@quiet_option
@debug_option
def denoise(
    table: Path,
    folder: Path,
    output: Path,
    interval: float | None,
    seed: int,
    force: bool,
    **options: Any,
) -> None:
    """Give the proportions behind the counts, as far as the model and the counts tell.

    Proportions that the model believes in: no zeros, rows sum to one. An .h5ad file has those in X
    and the centred log-ratios with their standard deviations in layers["clr"] and layers["clr_sd"].

    The ends of the intervals are in layers["lower"] and layers["upper"], or, of a .biom or .tsv
    file, in two files beside it: OUTPUT.lower.biom and OUTPUT.upper.biom, without its own suffix.
    """
    outputs = [output]
    if interval is not None and output.suffix != ".h5ad":
        outputs += [output.with_suffix(f".{end}{output.suffix}") for end in ENDS]
    _check_outputs(outputs, force, folder, table, options["metadata"])
    check_suffix(output)
    model = _loaded(folder, options["device"])
    model, _, aligned = _table_for(model, table, options)
    _check_dense(aligned, table, DENOISED + (2 * len(ENDS) if interval else 0))
    layers: dict[str, np.ndarray] = {}
    with renamed({"X:": f"{table}:"}):
        proportions, layers["clr"], layers["clr_sd"] = model.denoise(aligned)
        if interval is not None:
            layers |= zip(ENDS, model.interval(aligned, interval, random_state=seed), strict=True)

    def known(values: np.ndarray) -> CountTable:
        of_samples, of_features = aligned.sample_metadata, aligned.feature_metadata
        ids = aligned.sample_ids, aligned.feature_ids
        return CountTable(csr_array(values), *ids, of_samples, of_features)

    with ExitStack() as whole:
        for path, end in zip(outputs, (None, *ENDS), strict=False):
            beside = whole.enter_context(new_file(path, force))
            values = proportions if end is None else layers[end]
            _write_table(known(values), beside, force=True, layers=layers)
    _tell_written(options["quiet"], *outputs)


@main.command(example="countvae generate --model fitted --n-samples 50 -o generated.biom")
@model_option
@click.option("-o", "--output", type=PATH, required=True, help="A .biom, .h5ad or .tsv file.")
@click.option("--n-samples", type=ONE_OR_MORE, help="How many.  [default: as many as fitted]")
@click.option("--like", type=PATH, help="Table whose samples are drawn anew, in turn.")
@click.option("--design", type=PATH, help="TSV of samples to draw: F1, F2, ..., covariates, depth.")
@click.option("--depth", type=ONE_OR_MORE, help="Reads.  [default: those fitted, or of the table]")
@reading
@matching
@device_option
@click.option("--seed", type=SEED, default=0, show_default=True)
@force_option
@quiet_option
@debug_option
@click.pass_context
def generate(
    ctx: click.Context,
    folder: Path,
    output: Path,
    n_samples: int | None,
    like: Path | None,
    design: Path | None,
    depth: int | None,
    force: bool,
    seed: int,
    **options: Any,
) -> None:
    """Draw a table from a fitted model.

    Samples are the model's own; or, with --like, drawn from what is believed of the proportions of
    each sample of a table; or, with --design, of the coordinates and covariates given, and any
    where a cell is empty. An .h5ad file has their coordinates in obsm["X_mvae"].

    The own samples of a model with covariates have these at their means: to draw samples like
    those of a study, give its metadata as the --design.
    """
    if like is None:
        for name in ("layer", "metadata", "transpose", "zero_fill", "min_overlap", "drop_missing"):
            if _given(ctx, name):
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --like.")
    if design is not None and (like is not None or n_samples is not None):
        raise click.UsageError("--design says what to draw: leave out --like and --n-samples.")
    _check_outputs([output], force, folder, like, design, options["metadata"])
    check_suffix(output)
    known: pd.DataFrame | None = None if design is None else read_metadata(design)
    if known is not None:
        model = MultinomialVAE.load(folder)
        with renamed({"design:": f"{design}:", "metadata:": f"{design}:"}):
            counts, y = model.sample_design(known, depth, seed)
    elif like is None:
        model = MultinomialVAE.load(folder)
        if model.formula is not None:
            warnings.warn(
                f"{folder}: samples are drawn at the means of the covariates"
                f" {examples(variables(model.formula))}; --design gives others.",
                CountvaeWarning,
                stacklevel=2,
            )
        counts, y = model.sample(n_samples or len(model.depth_), depth, seed)
    else:
        model = _loaded(folder, options["device"])
        model, _, aligned = _table_for(model, like, options)
        n = n_samples or aligned.n
        rounds = [np.arange(min(aligned.n, n - i)) for i in range(0, n, aligned.n)]
        with renamed({"X:": f"{like}:"}):
            drawn = [
                model.sample_like(aligned.select_samples(some), depth, seed + i)
                for i, some in enumerate(rounds)
            ]
        counts = csr_array(vstack([part for part, _ in drawn], format="csr"))
        y = np.concatenate([part for _, part in drawn])
        known = pd.DataFrame({"like": aligned.sample_ids[np.concatenate(rounds)]})
    ids = np.array([f"generated-{i + 1}" for i in range(counts.shape[0])], dtype=object)
    if known is not None and design is None:
        known = known.set_axis(ids, axis="index")
    elif known is not None:
        ids = known.index.to_numpy(dtype=object)
    features = np.array(model.feature_ids_, dtype=object)
    _write_table(CountTable(counts, ids, features, known), output, force, obsm={"X_mvae": y})
    _tell_written(options["quiet"], output)


@main.command(name="network", example="countvae network --model fitted -o network --fdr 0.05")
@model_option
@click.option("-o", "--output-dir", "output", type=PATH, required=True, help="Folder to make.")
@click.option(
    "--by",
    type=click.Choice([name.replace("_", "-") for name in network.MEASURES]),
    default="rho",
    show_default=True,
    callback=lambda ctx, _, value: value.replace("-", "_"),
    help="Weight of an edge.",
)
@click.option(
    "--partners",
    type=ONE_OR_MORE,
    default=10,
    show_default=True,
    help="The strongest of each feature, so many.",
)
@click.option(
    "--min-weight",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Least absolute weight of an edge.",
)
@click.option(
    "--fdr",
    type=click.FloatRange(0, 1, min_open=True),
    help="Keep edges until this share of all pairs with such p-values is expected to be false.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    help="Draws of the covariance that the spread of a weight is of.",
)
@click.option("--modules", is_flag=True, help="Find modules; needs igraph.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@force_option
@json_option
@debug_option
def network_command(folder: Path, output: Path, as_json: bool, force: bool, **options: Any) -> None:
    """Say which features rise and fall together.

    OUTPUT_DIR holds edges.tsv (a row a pair, with the spread of its weight, and the taxonomy of
    both where the table had it), nodes.tsv (a row a feature) and network.graphml, both with the
    features' names and what else features.tsv says. Modules have two features or more.

    Weights are of log-ratios to the mean of all features: what moves most of them moves that mean.
    --fdr asks whether both features of a pair move otherwise than most do; where reads are many,
    nearly all pairs pass, and --min-weight says which are worth having.
    """
    with new_folder(output, force, replaceable=holds_only(*NETWORK)) as made:
        model = MultinomialVAE.load(folder)
        edges = network.edges(
            model,
            by=options["by"],
            partners=options["partners"],
            min_weight=options["min_weight"],
            fdr=options["fdr"],
            draws=options["draws"],
            random_state=options["seed"],
        )
        nodes = _nodes(model, folder, edges)
        if options["modules"]:
            nodes["module"] = network.modules(edges, options["seed"]).reindex(nodes.index)
        known = edges
        if TAXONOMY in nodes:
            of_ends = {f"{TAXONOMY}_{end}": edges[f"feature_{end}"] for end in (1, 2)}
            known = edges.assign(**{name: of.map(nodes[TAXONOMY]) for name, of in of_ends.items()})
        write_frame(known.set_index("feature_1"), made / "edges.tsv")
        write_frame(nodes, made / "nodes.tsv")
        nx.write_graphml(network.graph(edges, nodes), made / "network.graphml")
    found = {
        "features": len(nodes),
        "with_edges": int((nodes["degree"] > 0).sum()),
        "edges": len(edges),
        "positive": int((edges["weight"] > 0).sum()),
    }
    if options["modules"]:
        found["modules"] = int(nodes["module"].nunique())
        found["in_no_module"] = int((nodes["module"].isna() & (nodes["degree"] > 0)).sum())
    _tell({**found, "written": str(output)}, as_json)


@main.command(name="report", example="countvae report fitted -o report.html")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("-o", "--output", type=PATH, required=True, help="An .html file.")
@click.option("--table", type=PATH, help="The table fitted, if it is not where it was.")
@click.option("--metadata", type=PATH, help="TSV to colour samples by, if not that of the fit.")
@device_option
@force_option
@debug_option
def report_command(
    folder: Path,
    output: Path,
    table: Path | None,
    metadata: Path | None,
    device: str,
    force: bool,
) -> None:
    """Put what a fit found on one page that opens in any browser and fetches nothing.

    The page has what went in and what was dropped, the bound by epoch, samples coloured by their
    metadata, the features of each factor, a network, and the table beside one that the model draws.
    """
    _check_outputs([output], force, folder, table, metadata)
    check_suffix(output, [".html", ".htm"])
    model = MultinomialVAE.load(folder).set_params(device=device)
    run = _run_of(folder)
    of_fit = run["arguments"]
    check_apart([output], [*of_fit["tables"], *filter(None, [of_fit["metadata"]])])
    axes = ordination.axis_names(model.n_components_)
    samples, features = (_tsv(folder / name, axes) for name in ("samples.tsv", "features.tsv"))
    found, why_none = _table_again(model, run, samples, table, metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CountvaeWarning)  # said when it was fitted
        text = report.page(
            model, samples, run, features, found, title=folder.name, no_table=why_none
        )
    with new_file(output, force) as beside:
        beside.write_text(text, encoding="utf-8")
    _tell_written(False, output)


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
@quiet_option
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
    quiet: bool,
) -> None:
    """Draw a table from the model, and write the truth beside it.

    The truth is a folder: factors.tsv (z of each sample), loadings.tsv (V, mean CLR and noise
    variance of each feature), proportions.npy (what the counts were drawn from), truth.json.
    """
    truth = truth or output.with_name(f"{output.stem}-truth")
    if truth.absolute() == output.absolute():
        raise click.UsageError("--truth and --output name the same place.")
    check_writable(output, force)
    check_suffix(output)
    drawn = simulate(
        samples,
        features,
        n_components,
        reads,
        design=design,
        keep_proportions=True,
        rng=np.random.default_rng(seed),
    )
    sizes = {"n": samples, "d": features, "k": n_components, "reads": reads}
    settings = sizes | {"design": design, "seed": seed, "sigma2": drawn.sigma2}
    made = new_folder(truth, force, replaceable=holds_only(*TRUTH))
    with new_file(output, force) as beside, made as folder:
        _write_truth(drawn, folder, settings)
        write(CountTable(drawn.counts, drawn.sample_ids, drawn.feature_ids), beside, force=True)
    if not quiet:
        click.echo(f"written   {output}, the truth in {truth}")


@main.command(name="demo", example="countvae demo -o demo")
@click.option("-o", "--output-dir", "output", type=PATH, required=True, help="Folder to make.")
@force_option
@quiet_option
@json_option
@debug_option
def demo_command(output: Path, force: bool, quiet: bool, as_json: bool) -> None:
    """Fit a real table and a simulated one, and draw both."""
    with new_folder(output, force, replaceable=holds_only(*demonstration.WRITTEN)) as folder:
        with nullcontext() if quiet else Progress(sys.stderr) as progress:
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
    first, checkpoint = processes.rank == 0, _beside(output, "checkpoint").absolute()
    diverged = _beside(output, "diverged")
    with processes.in_step():
        if first:
            rehearse(output, options["force"])
            check_writable(diverged, options["force"])
            _settle(checkpoint, options, say)
    begun = _going_on(ctx, options) if options["init"] else None
    with timed(seconds, "read"):
        counts = _read(tables, options, processes)
        digests = None
        if first:
            streamed = isinstance(counts, CountFile)
            digests = counts.digests() if streamed else [sha256(path) for path in tables]
        of_metadata = sha256(options["metadata"]) if first and options["metadata"] else None
        say(f"{table} ({counts.source}): {size(counts)}")
        kept = _without_missing(counts, table, options["formula"], options, say)
        kept = _filtered(kept, table, options, say)
        check_ids(kept.sample_ids, f"{table}: sample ids")
        check_ids(kept.feature_ids, f"{table}: feature ids")
        if begun is not None:
            kept = _brought(kept, begun, table, options)
    on_grid = options["grid"] or isinstance(begun, ConvMultinomialVAE)
    kind = ConvMultinomialVAE if on_grid else MultinomialVAE
    settings = {
        name: options[name]
        for name in options.keys() & inspect.signature(kind).parameters.keys() - {"basis"}
        if options["init"] or _given(ctx, name)
    }
    basis = options["tree"] or options["basis"]
    model = kind(**settings, basis=basis, checkpoint=checkpoint)
    say(f"memory: about {model.estimate_memory(kept) / 2**20:.0f} MiB besides the table")
    with processes.in_step():
        if first and options["force"] and not options["resume"]:
            # only now: a mistake in what is read must not cost what was left to go on with
            MultinomialVAE.forget(checkpoint)
    ctx.meta["begun"] = True
    with (
        renamed({"X:": f"{table}:", "basis:": f"{basis}:"}),
        timed(seconds, "fit"),
        _keeping_the_best(model, diverged, first, options["force"]),
    ):
        waited = _with_progress(options["quiet"], model, kept)
    if isinstance(kept, CountFile):
        seconds["waiting for the disk"] = round(waited, 3)
    arguments = ctx.params | {name: getattr(model, name) for name in OF_KIND}
    run = {
        "command": "fit",
        "arguments": {name: _plain(value) for name, value in sorted(arguments.items())},
        "versions": _versions(),
        "processes": processes.count,
        "seed": options["random_state"],
        "started": started.isoformat(timespec="seconds"),
        "input": {
            "sha256": digests,
            "metadata_sha256": of_metadata,
            "source": counts.source,
        },
        "before_filters": _shape(counts),
        "after_filters": _shape(kept),
        "result": _result(model),
        "seconds": seconds,
    }
    return model, kept, run


def _given(ctx: click.Context, name: str) -> bool:
    """Whether an option was on the command line."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _check_grid(ctx: click.Context) -> None:
    """Refuse options of a grid where there is none."""
    of_grid = [name for name in OF_GRID if _given(ctx, name)]
    if of_grid and "grid" not in of_grid:
        raise click.UsageError(f"--{of_grid[0]} goes with --grid.")


def _going_on(ctx: click.Context, options: dict[str, Any]) -> MultinomialVAE:
    """Load the model to go on from, and take its settings."""
    begun = _loaded(options["init"], options["device"])
    for name in begun.of_model:
        if not _given(ctx, name):
            options[name] = getattr(begun, name)
    if not _given(ctx, "n_components"):
        options["n_components"] = begun.n_components_
    return begun


def _brought(table: Table, begun: MultinomialVAE, path: str, options: dict[str, Any]) -> Table:
    """Bring a table to the features of the model to go on from."""
    with renamed({"table:": f"{path}:"}):
        aligned, overlap = table.align_features(begun.feature_names_in_)
        check_overlap(overlap, options["min_overlap"], "table")
    if overlap.missing and not options["zero_fill"]:
        raise FeaturesDiffer(
            f"{path}: {overlap} A fit cannot go on without the others, and zeros would teach it"
            " that they are not there; --zero-fill says that they were looked for and not seen."
        )
    if overlap.missing or overlap.extra:
        of_missing = " Those that are not are zero." if overlap.missing else ""
        warnings.warn(f"{path}: {overlap}{of_missing}", CountvaeWarning, stacklevel=2)
    _check_kept(aligned, f"{path}, in the features of the model")
    return aligned


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


def _beside(output: Path, kind: str) -> Path:
    """Where a fit leaves what is not its output, which may be the folder one is in."""
    return (output if output.name else output.absolute()).with_name(f"{output.name}.{kind}")


def _settle(checkpoint: Path, options: dict[str, Any], say: Callable[[str], None]) -> None:
    """Refuse or announce the state that a fit has left."""
    there = Checkpoint(checkpoint, dict).holds_a_state()
    if options["resume"]:
        said = "a state was left there" if there else "no state was left there; beginning anew"
        say(f"{checkpoint}: {said}")
    elif checkpoint.exists() and not options["force"]:
        goes_on = "--resume goes on with it, --force" if there else "it left no state; --force"
        raise Unfinished(f"{checkpoint}: a fit was broken off here; {goes_on} begins anew.")


@contextmanager
def _saying_how_to_go_on(
    ctx: click.Context, checkpoint: Path, processes: Processes
) -> Iterator[None]:
    """Add to an error the command that goes on, if this fit has left a state to go on from."""
    try:
        yield
    except BaseException as error:
        interrupted, begun = isinstance(error, KeyboardInterrupt), "begun" in ctx.meta
        if not (interrupted or isinstance(error, CannotWrite) or out_of_memory(error)):
            raise
        if processes.count > 1 and (interrupted or begun):
            error.add_note(GOES_ON)
        elif begun and Checkpoint(checkpoint, dict).holds_a_state():
            again = sys.argv[1:] + ["--resume"] * ("--resume" not in sys.argv)
            error.add_note(f"it goes on by: {shlex.join(['countvae', *again])}")
        raise


@contextmanager
def _keeping_the_best(
    model: MultinomialVAE, place: Path, first: bool, force: bool
) -> Iterator[None]:
    """Save what a fit that diverged had come to, and say where."""
    try:
        yield
    except Diverged as error:
        if error.history and first:
            try:
                model.save(place, force=force)
                error.add_note(f"the model of its best epoch is in {place}")
            except (InputError, OSError) as why:
                error.add_note(f"its best epoch could not be kept: {why}")
        raise


def _check_outputs(
    outputs: Sequence[Path], force: bool, folder: Path, *inputs: Path | None
) -> None:
    """Refuse outputs that could not be written, or would take the place of what is read."""
    check_apart(outputs, [*filter(None, inputs), *store.files_of(folder)])
    for output in outputs:
        check_writable(output, force)


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
        raise type(error)(sentence) from error


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


def _tell_written(quiet: bool, *outputs: Path) -> None:
    if not quiet:
        click.echo(f"written   {', '.join(map(str, outputs))}")


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1))


def _tell(about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(about)
        return
    for name, value in about.items():
        click.echo(f"{name.replace('_', ' '):<26}{_words(value)}")


def _nodes(model: MultinomialVAE, folder: Path, edges: pd.DataFrame) -> pd.DataFrame:
    """Return what is known of each feature of a model folder, and how many edges it has."""
    nodes = ordination.feature_frame(model)
    if (folder / "features.tsv").is_file():
        known = _tsv(folder / "features.tsv", (), dtype=str, na_values=[])
        nodes = nodes.join(
            known[known.columns.difference(nodes.columns, sort=False)].replace("", None)
        )
    degree = pd.concat([edges["feature_1"], edges["feature_2"]]).value_counts()
    return nodes.assign(degree=degree.reindex(nodes.index, fill_value=0))


def _run_of(folder: Path) -> dict[str, Any]:
    """Read what a fit said of itself."""
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NotAModel(f"{path}: cannot be read; countvae fit writes it.") from error
    if not _has(run, OF_RUN):
        raise NotAModel(f"{path}: is not what countvae fit writes.")
    return run


def _has(found: Any, expected: Any) -> bool:
    """Whether JSON is of a type, a list of one, or has the keys of a dict of types."""
    if isinstance(expected, list):
        return isinstance(found, list) and all(_has(value, expected[0]) for value in found)
    if not isinstance(expected, dict):
        number = isinstance(found, int | float)
        return isinstance(found, expected) and (not number or abs(found) < LARGEST)
    return isinstance(found, dict) and all(
        all(_has(value, of) for value in found.values())
        if name is ...
        else name in found and _has(found[name], of)
        for name, of in expected.items()
    )


def _tsv(path: Path, axes: Sequence[str], **kinds: Any) -> pd.DataFrame:
    """Read a table of coordinates or loadings that a fit wrote, by id; axes are numbers."""
    kinds = {"dtype": {0: str}, "na_values": [""]} | kinds
    try:
        frame = pd.read_csv(path, sep="\t", keep_default_na=False, **kinds)
        frame = frame.set_index(frame.columns[0]).astype(dict.fromkeys(axes, float))
        if not frame.index.is_unique:
            raise ValueError("an id is repeated")
        return frame
    except (OSError, ValueError, KeyError) as error:
        raise NotAModel(f"{path}: cannot be read; countvae fit writes it.") from error


def _table_again(
    model: MultinomialVAE,
    run: dict[str, Any],
    samples: pd.DataFrame,
    table: Path | None,
    metadata: Path | None,
) -> tuple[Table | None, str]:
    """Read the table of a fit once more, as it was read then; or say why that cannot be done."""
    arguments, given = dict(run["arguments"]), run["input"]
    paths = [Path(path) for path in arguments["tables"]] if table is None else [table]
    name = ", ".join(map(str, paths))
    if table is None:
        if not all(path.is_file() for path in paths):
            return None, f"The table, {name}, is not there any more; --table names it."
        if [sha256(path) for path in paths] != given["sha256"]:
            return None, f"The table, {name}, is not what it was when it was fitted."
    if metadata is None and arguments["metadata"]:
        known = Path(arguments["metadata"])
        # only what was fitted is shown: a model from elsewhere may name any file
        if known.is_file() and sha256(known) == given.get("metadata_sha256"):
            metadata = known
        elif model.formula is not None:
            return None, f"The metadata, {known}, are not what was fitted; --metadata names them."
    options = arguments | {"metadata": metadata}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CountvaeWarning)  # said when it was fitted
        kept = _without_missing(_read(paths, options), name, model.formula, options, str)
        kept = _filtered(kept, name, options, str)
        if arguments.get("init"):
            kept, _ = kept.align_features(model.feature_names_in_)
    if list(map(str, kept.sample_ids)) != list(map(str, samples.index)):
        raise Misfit(f"{name}: its samples are not those that were fitted.")
    return kept, ""


def _read(paths: Sequence[Path], options: dict[str, Any], processes: Processes = ALONE) -> Table:
    """Read a table, or open one that stays on disk."""
    if options["stream"] or len(paths) > 1:
        if options["transpose"]:
            raise click.UsageError("--transpose: a table that stays on disk is read by its rows.")
        names = ("layer", "drop_empty", "allow_fractional")
        given = {name: options[name] for name in names}
        table = CountFile(*paths, **given, processes=processes)
        if options["metadata"]:
            table = table.with_metadata(options["metadata"])
    else:
        names = ("layer", "metadata", "transpose", "drop_empty", "allow_fractional")
        table = read(paths[0], **{name: options[name] for name in names})
    # said by now, with the file's name
    warnings.filterwarnings("ignore", "X: expected whole numbers", CountvaeWarning)
    return table


def _without_missing(
    table: Table,
    path: str,
    formula: str | None,
    options: dict[str, Any],
    say: Callable[[str], object],
) -> Table:
    """Leave out samples without a value of a covariate, where that is asked for."""
    if formula is None or not options.get("drop_missing"):
        return table
    metadata, needed = table.sample_metadata, variables(formula)
    if metadata is None or not set(needed) <= set(metadata.columns):
        return table  # which the design refuses, by a sentence of its own
    known = metadata[needed].notna()
    there = known.all(axis=1).to_numpy()
    if there.all():
        return table
    without = ", ".join(f"{name!r} {n}" for name, n in (~known).sum().items() if n)
    say(f"drop-missing: {(~there).sum()} of {table.n} samples left out; without {without}")
    if not there.any():
        raise MetadataError(f"{path}: no sample has a value of every covariate.")
    return table.select_samples(there)


def _filtered(
    table: Table, path: str, options: dict[str, Any], say: Callable[[str], object]
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


def _with_progress(quiet: bool, model: MultinomialVAE, table: Table) -> float:
    """Fit, and return the seconds in which a table on disk had yet to be read."""
    waited = 0.0
    with nullcontext() if quiet else Progress(sys.stderr) as progress:

        def tell(row: dict[str, Any]) -> None:
            nonlocal waited
            waited = row["waited"]
            if progress is not None:
                progress(row)

        model.set_params(progress=tell).fit(table)
    return waited


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
    return str(value.absolute()) if isinstance(value, Path) else value


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


def _loaded(folder: Path, device: str) -> MultinomialVAE:
    """Load a model that knows its features' names."""
    model = MultinomialVAE.load(folder)
    if not hasattr(model, "feature_names_in_"):
        raise FeaturesDiffer(
            f"{folder}: was fitted without feature ids, so no file can be matched."
        )
    return model.set_params(device=device)


def _table_for(
    model: MultinomialVAE, path: Path, options: dict[str, Any]
) -> tuple[MultinomialVAE, Table, Table]:
    """Read a table; return a model of the features that both have, the table, and it in these."""
    say = _say(options["quiet"])
    counts = _read((path,), options)
    say(f"{path} ({counts.source}): {size(counts)}")
    counts = _without_missing(counts, str(path), model.formula, options, say)
    names, own = model.feature_names_in_, counts.feature_ids
    with renamed({"table:": f"{path}:"}):
        if options["zero_fill"]:
            aligned, overlap = counts.align_features(names)
            if overlap.missing or overlap.extra:
                warnings.warn(f"{path}: {overlap}", CountvaeWarning, stacklevel=2)
        else:
            model.set_params(min_overlap=options["min_overlap"])
            model, aligned = model.match(counts, argument=str(path))
    if len(own) == len(names) == aligned.d and not np.array_equal(own, names):
        warnings.warn(
            f"{path}: its features are in another order than the model's; aligned by id.",
            CountvaeWarning,
            stacklevel=2,
        )
    argument = f"{path}, in the features of the model"
    if options["drop_empty"]:
        aligned = aligned.without_empty(argument)
    _check_kept(aligned, argument)
    if aligned.n < counts.n:
        counts = counts.select_samples(np.isin(counts.sample_ids, aligned.sample_ids))
    return model, counts, aligned


def _check_dense(table: Table, path: Path, arrays: int = DENOISED) -> None:
    """Refuse a table whose proportions, log-ratios and deviations do not fit into memory."""
    what = f"{path}: a table of {table.n} samples × {table.d} features, none of them zero,"
    Room(what, "denoise fewer samples at a time").check(arrays * 8 * table.n * table.d)


def _write_table(table: CountTable, output: Path, force: bool, **more: Any) -> None:
    """Write a table; layers and obsm go into an .h5ad file only."""
    if output.suffix != ".h5ad":
        write(table, output, force)
        return
    with new_file(output, force) as beside:
        adata = as_anndata(table)
        for name, parts in more.items():
            getattr(adata, name).update(parts)
        adata.write_h5ad(beside)


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
            adata = _whole_input(table, path)
            ordination.annotate(adata, model, mean, sd).write_h5ad(beside)


def _whole_input(table: CountTable, path: Path) -> anndata.AnnData:
    """Return all that the input holds, of the samples that were kept."""
    if not table.source.startswith(("X", "layers[")):
        return as_anndata(table)
    adata = read_whole(path)
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
