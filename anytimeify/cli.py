"""The command line: `convert`, `inspect`, `extract`, `export`, `levels`, `bench`, `report`,
`train`, `compare`, `papers`.

Each command is a few calls of the library.

Results go to standard output, progress and errors to standard error. Exit status: 0 for success; 1 for an error, with
one message and no partly written files; 2 for wrong usage.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TextIO

import torch
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from anytimeify import progress, report
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture, resolve
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.sources.registry import kinds
from anytimeify.capture.sources.source import InputSizes
from anytimeify.compiler import transform
from anytimeify.deploy.export import FORMATS as FILES
from anytimeify.deploy.export import STAGED
from anytimeify.errors import AnytimeError, ArgumentValueError, ArtifactError, BudgetError, SchemeError, first_line
from anytimeify.io.files import new_folder, refuse_existing
from anytimeify.level_names import parse_level
from anytimeify.papers import entries, experiment, experiments
from anytimeify.passes.estimate import Limits
from anytimeify.passes.on_meta import refuse_reading_values
from anytimeify.passes.options import Options
from anytimeify.passes.scheme import parse_scheme
from anytimeify.report.costs import cost_rows, cost_table, plot_costs
from anytimeify.runtime.budget import Budget
from anytimeify.runtime.compiled import levels_of
from anytimeify.runtime.evaluation import read_scores
from anytimeify.runtime.load import load
from anytimeify.runtime.model import AnytimeModel
from anytimeify.serving.benchmark import bench as measured
from anytimeify.storage.compressed import save_compressed
from anytimeify.storage.export import FORMATS, quiet, require
from anytimeify.taxonomy import Taxonomy
from anytimeify.train import fit, open_data
from anytimeify.train.accelerator import accelerator_for
from anytimeify.train.comparing import SCHEMES
from anytimeify.train.comparing import compare as compared
from anytimeify.train.data import data_kinds
from anytimeify.train.folder import RunFolder
from anytimeify.train.start import Start, changed, read_training, run_folder, with_changes
from anytimeify.version import __version__

__all__ = ["app", "main"]

CONTAINERS = (*FILES, STAGED)
MODEL = "net.safetensors"  # the saved model in the folder that `convert` writes

app = typer.Typer(
    name="anytimeify",
    help="Compiles a PyTorch network into an anytime model: several networks in one, from cheap to full.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help=f"A model: {', '.join(kind.example for kind in kinds())}.",
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="SIZES",
        help="Shape of an example input, such as 2,3,224,224. Repeat it for each input.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SIZES",
        help="Shape of the example input of that name, such as x=2x3x224x224, or the value of an input without axes of "
        "an ONNX file, such as rate=16000. Repeatable.",
    ),
]
DynamicShapes = Annotated[
    str,
    typer.Option(
        metavar="batch|none",
        help="'batch' makes the batch size dynamic, 'none' fixes it to that of the example inputs.",
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Load a pickle, or a .pt2 with parts that can run code. Only for files that you trust.",
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Take the weights that timm or torchvision has for the name. Names alone give random weights.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="FILE", help="Load weights: FILE.safetensors, or a state dict that torch.save wrote."
    ),
]
SavedModel = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder written by `convert`, or a file written by net.save(path).")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
RuntimeOption = Annotated[
    Literal["torch", "onnxruntime"],
    typer.Option("--runtime", metavar="torch|onnxruntime", help="What runs the levels."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of one run; by default as the runtime likes.")]
AccuraciesOption = Annotated[
    Path | None,
    typer.Option(
        "--accuracies", metavar="FILE", help="JSON: accuracies from 0 to 1 by the names of levels, or of `accuracy`."
    ),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw accuracy against milliseconds, or milliseconds.")]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep measurements on the disk for later.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataOption = Annotated[
    str,
    typer.Option(
        "--data", metavar="SPEC", help=f"What to train on: {', '.join(kind.example for kind in data_kinds())}."
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="FILE", help="The recipe, as JSON, or config.json of a run. By default the paper's."
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", metavar="N", help="Epochs; milestones and the like keep their share.")
]
LearningRate = Annotated[float | None, typer.Option("--lr", metavar="RATE", help="The learning rate.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Any field of the recipe, such as optimiser.momentum=0.8. Repeatable."
    ),
]
LimitBatches = Annotated[
    int | None,
    typer.Option(
        "--limit-batches", metavar="N", min=1, help="At most so many batches in an epoch, and in an evaluation."
    ),
]


@app.command()
def convert(
    source: SourceArgument,
    scheme: Annotated[
        str, typer.Option(metavar="SPEC", help="The scheme, such as 'nested-channels{widths=0.25,0.5,1}'.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to create. It must not exist.")],
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMITS", help="Extract the best level within a budget, such as macs=5e8,params=2e6. Repeatable."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAMES",
            help=f"Also extract levels, as {','.join(FORMATS)}: all levels, or those that the budgets select.",
        ),
    ] = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Coarser classes, .json or .csv. Every level then predicts every granularity."
        ),
    ] = None,
    consensus: Annotated[
        str | None, typer.Option(metavar="average|learned", help="Add a level that combines all others.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE|all",
            help="Which result is the prediction, such as 0, logits or heads.0; all: levels return everything.",
        ),
    ] = None,
    constants: Annotated[
        Literal["keep", "scale"],
        typer.Option(metavar="keep|scale", help="Numbers made from channel counts: kept, or those of each width."),
    ] = "keep",
    limits: Annotated[
        str | None,
        typer.Option(metavar="LIMITS", help="How large the result may be, such as nodes=200000,memory_bytes=4e10."),
    ] = None,
    input_shape: InputShapes = None,
    named_inputs: Inputs = None,
    dynamic_shapes: DynamicShapes = "batch",
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    verify: Annotated[
        bool, typer.Option(help="Compare the result with the backbone, and levels with their extracts.")
    ] = True,
    trust_pickle: TrustPickle = False,
    force: Force = False,
) -> None:
    """Turn a model into an anytime model.

    Writes the model (net.safetensors), its report (report.json, report.md) and any extracted levels to DIR.
    """
    budgets = [_budget(text) for text in budget or ()]
    kinds = list(dict.fromkeys(_format(name, "--format") for name in formats.split(","))) if formats is not None else []
    if budgets and not kinds:
        kinds = ["pt2"]
    chosen = parse_scheme(scheme)
    allowed = _limits(limits)
    if consensus not in (None, "average", "learned"):
        raise typer.BadParameter(f"'{consensus}': expected average or learned", param_hint="--consensus")
    classes = Taxonomy.load(taxonomy) if taxonomy is not None else None
    inputs, named, dynamic = _inputs(input_shape), _named(named_inputs), _dynamic(dynamic_shapes)
    _refuse_other_folders(out, force)
    for kind in kinds:
        require(kind)

    with _doing(f"loading {source}"):
        found = resolve(source, trust_pickle=trust_pickle, inputs=named, pretrained=pretrained, checkpoint=checkpoint)
    with _progress(f"transforming {found.name} with {chosen}"):
        examples = found.example_inputs if inputs is None else inputs
        net = transform(
            found.model,
            chosen,
            examples,
            dynamic_shapes=dynamic,
            verify=verify,
            taxonomy=classes,
            consensus=consensus,
            output=int(output) if output is not None and output.lstrip("-").isdigit() else output,
            constants=constants,
            limits=allowed,
        )
    picked = [net.select(limits) for limits in budgets]
    levels = sorted({level.index for level in picked}) if picked else range(len(net.levels))
    summary: report.Report = net.report()
    with new_folder(out, replace=force) as folder:
        net.save(folder / MODEL)
        (folder / "report.json").write_text(summary.to_json() + "\n", encoding="utf-8")
        (folder / "report.md").write_text(summary.to_markdown(), encoding="utf-8")
        for index in levels:
            for kind in kinds:
                _write_level(net, index, kind, folder / f"level-{index}.{kind}")
    _print(summary)
    for text, level in zip(budget or (), picked, strict=True):
        _print(f"{text}: level {level.index} ({level.name})")
    _print(f"written to {out}")


@app.command()
def inspect(
    source: SourceArgument,
    as_json: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Print complete tables.")] = False,
    scheme: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Also show the levels that a scheme would make."),
    ] = None,
    input_shape: InputShapes = None,
    named_inputs: Inputs = None,
    dynamic_shapes: DynamicShapes = "batch",
    trust_pickle: TrustPickle = False,
) -> None:
    """Show how a model can be narrowed and cut: axis groups, pinned axes with reasons, cut points, blocks.

    Models of transformers (hf:PATH) are built from their configuration, without weights.
    """
    chosen = parse_scheme(scheme) if scheme is not None else None
    inputs, named, dynamic = _inputs(input_shape), _named(named_inputs), _dynamic(dynamic_shapes)
    with _doing(f"loading {source}"):
        found = resolve(source, trust_pickle=trust_pickle, inputs=named, values=False)
    if chosen is not None:
        refuse_reading_values(chosen, found.model)
    with _doing(f"capturing {found.name}"):
        examples = found.example_inputs if inputs is None else inputs
        captured = capture(found.model, examples, dynamic_shapes=dynamic)
        axes = analyse(captured.program)
        inspection = report.inspect(captured, axes, found.name)
    if chosen is not None:
        with _doing(f"applying {chosen}"):
            chosen, _ = chosen.measured(captured, axes)
            rewritten = Options().apply(chosen, chosen.prepare(captured, axes), axes)
            inspection = inspection.with_levels(levels_of(captured, rewritten), max(rewritten.backbones))
    if as_json:
        typer.echo(inspection.to_json())
    else:
        _print(inspection.shown(everything=everything))


@app.command()
def extract(
    folder: SavedModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="FILE.pt2, FILE.onnx, or FILE.safetensors (weights only).")],
    budget: Annotated[
        str | None, typer.Option(metavar="LIMITS", help="Select the best level within a budget, such as macs=5e8.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",  # typer 0.27 would take the metavar for it
            metavar="LEVEL",
            help="An index (0 is the cheapest, -1 the last), a name, or a number such as 0.25 for a width.",
        ),
    ] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Fold batch norms into the convolutions before them.")] = False,
    compressed: Annotated[
        bool,
        typer.Option("--compressed", help="Write FILE.safetensors without zeros; anytimeify.compressed reads it."),
    ] = False,
    granularity: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which prediction of the level, if the model has a taxonomy.")
    ] = None,
    force: Force = False,
) -> None:
    """Write one level to a file, as a standalone network."""
    if (budget is None) == (level is None):
        raise typer.BadParameter("give either --budget or --level")
    limits = _budget(budget) if budget is not None else Budget(level=parse_level(level or ""))
    kind = _format(out.suffix.removeprefix("."), "--out")
    if compressed and kind != "safetensors":
        raise typer.BadParameter("--compressed writes weights only: give a FILE.safetensors", param_hint="--out")
    if not force:
        refuse_existing(out)
    require(kind)
    net = _load(folder)
    chosen = net.select(limits)
    if compressed:
        save_compressed(net.extract(chosen, fold=fold, granularity=granularity), out, replace=force)
    else:
        _write_level(net, chosen.index, kind, out, fold=fold, granularity=granularity, force=force)
    _print(f"level {chosen.index} ({chosen.name}) written to {out}")


@app.command()
def export(
    folder: SavedModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file, or folder of stages, to write.")],
    format: Annotated[str, typer.Option(metavar="NAME", help=f"The container: {', '.join(CONTAINERS)}.")] = "onnx",
    chosen: Annotated[
        str, typer.Option("--levels", metavar="all|LEVELS", help="Which levels, such as 0,2; names and numbers too.")
    ] = "all",
    granularity: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which prediction of levels, if the model has a taxonomy.")
    ] = None,
    force: Force = False,
) -> None:
    """Write several levels to one file, over one set of weights."""
    if format not in CONTAINERS:
        raise typer.BadParameter(
            f"'{format}' is not a container; expected one of: {', '.join(CONTAINERS)}", param_hint="--format"
        )
    if not force:
        refuse_existing(out)
    require("onnx" if format == STAGED else format)
    net = _load(folder)
    named = "all" if chosen == "all" else [parse_level(one.strip()) for one in chosen.split(",")]
    with _doing(f"writing {'all levels' if named == 'all' else f'levels {chosen}'} as {format}"):
        net.export(out, format, named, granularity=granularity, force=force)
    size = sum(file.stat().st_size for file in out.iterdir()) if out.is_dir() else out.stat().st_size
    _print(f"written to {out}, {size:,} bytes")


@app.command()
def levels(
    folder: SavedModel,
    measure: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda", help="Measure the latency of every extracted level on this device."),
    ] = None,
    runtime: RuntimeOption = "torch",
    threads: Threads = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch in the measurement.")] = 1,
    accuracies: AccuraciesOption = None,
    plot: Plot = None,
    cache: Cache = True,
    as_json: AsJson = False,
) -> None:
    """List the levels of an anytime model and what each of them costs for one sample.

    Levels that cost more than another and give less are marked.
    """
    device = _device(measure) if measure is not None else None
    scores = read_scores(accuracies) if accuracies is not None else None
    net = _load(folder)
    latency: dict[int, float] = {}
    for level in net.levels:
        if device is not None:
            with _doing(f"measuring level {level.index} ({level.name})"):
                latency[level.index] = net.latency(
                    level, device=device, batch_size=batch_size, runtime=runtime, threads=threads, cached=cache
                )
    rows = cost_rows(net.levels, latency, scores)
    if plot is not None:
        plot_costs(plot, rows)
    if as_json:
        typer.echo(json.dumps({"scheme": str(net.scheme), "levels": [row.known() for row in rows]}, indent=2))
    else:
        _print(cost_table(rows).shown(len(rows)))


@app.command()
def bench(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|FILE", help="A saved model, or what `export` wrote: FILE.onnx, FILE.pt2, a folder of stages."
        ),
    ],
    runtime: Annotated[
        Literal["torch", "onnxruntime"] | None,
        typer.Option(metavar="torch|onnxruntime", help="By default onnxruntime for ONNX, torch for all else."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where it runs.")] = "cpu",
    threads: Threads = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Samples per batch. Repeatable.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A saved model, whose extracts an exported file is compared with."),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone/--no-alone", help="Compare levels with their extracts.")] = True,
    accuracies: AccuraciesOption = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long a level is measured.")] = 1.0,
    plot: Plot = None,
    cache: Cache = True,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
) -> None:
    """Measure every level where it will run: in one file that switches, beside the level alone.

    What levels take alone is kept for budgets and for `levels`.
    """
    scores = read_scores(accuracies) if accuracies is not None else None
    _device(device)
    with _doing(f"measuring {source}"):
        found = measured(
            source,
            runtime=runtime,
            device=device,
            threads=threads,
            batch_sizes=batch_size or (1,),
            against=against if alone else False,
            accuracies=scores,
            seconds=seconds,
            cached=cache,
            trust_pickle=trust_pickle,
        )
    if plot is not None:
        found.plot(plot)
    if as_json:
        typer.echo(found.to_json())
    else:
        _print(found.shown(everything=True))


@app.command("report")
def write_report(
    folder: SavedModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="FILE.html, FILE.json or FILE.md. It must not exist.")],
    measure: Annotated[
        str | None, typer.Option(metavar="cpu|cuda", help="Measure what the levels take on this device, for HTML.")
    ] = None,
    runtime: RuntimeOption = "torch",
    threads: Threads = None,
    accuracies: AccuraciesOption = None,
    model_explorer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write the graph and its numbers for Google's Model Explorer."),
    ] = None,
    force: Force = False,
) -> None:
    """Write the report of an anytime model: levels, the graph as blocks, widths, and what is pinned and why."""
    if out.suffix not in (".html", ".json", ".md"):
        raise typer.BadParameter(f"'{out}': expected FILE.html, FILE.json or FILE.md", param_hint="--out")
    if measure is not None:
        _device(measure)
    scores = read_scores(accuracies) if accuracies is not None else None
    if not force:
        for path in filter(None, (out, model_explorer)):
            refuse_existing(path)
    net = _load(folder)
    found = None
    if measure is not None:
        with _doing("measuring the levels"):
            found = measured(
                net.to(measure), runtime=runtime, device=measure, threads=threads, against=False, accuracies=scores
            )
    summary: report.Report = net.report()
    if out.suffix == ".html":
        summary.to_html(out, found)
    else:
        out.write_text(summary.to_json() + "\n" if out.suffix == ".json" else summary.to_markdown(), encoding="utf-8")
    if model_explorer is not None:
        summary.to_model_explorer(model_explorer, force=force)
    _print(f"written to {out}")


@app.command()
def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A saved model: a folder written by `convert` or `train`, or a file; paper:NAME; or, with --scheme, "
            f"any model: {', '.join(kind.example for kind in kinds())}.",
        ),
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the run.")],
    scheme: Annotated[
        str | None, typer.Option(metavar="SPEC", help="The scheme, such as 'nested-channels{widths=0.25,0.5,1}'.")
    ] = None,
    recipe: RecipeOption = None,
    epochs: Epochs = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Samples in a step.")] = None,
    learning_rate: LearningRate = None,
    warm_up: Annotated[
        float | None, typer.Option(metavar="EPOCHS", help="In which the learning rate rises at the start.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of weights and of all that is drawn.")] = None,
    settings: Settings = None,
    limit_batches: LimitBatches = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(metavar="FILE|data", help="Coarser classes: a file, .json or .csv, or those that the data have."),
    ] = None,
    consensus: Annotated[
        str | None, typer.Option(metavar="average|learned", help="Add a level that combines all others.")
    ] = None,
    input_shape: InputShapes = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Where to train. By default a GPU.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in DIR.")] = False,
    trust_pickle: TrustPickle = False,
    force: Annotated[bool, typer.Option("--force", help="Remove the run that is in DIR, and start anew.")] = False,
) -> None:
    """Train all levels of a model.

    Writes to DIR what is trained (config.json), a line an epoch (metrics.jsonl, TensorBoard), learning curves
    (curves.png), checkpoints, and the model (net.safetensors). Killed and resumed, a run gives the same weights.
    """
    if consensus not in (None, "average", "learned"):
        raise typer.BadParameter(f"'{consensus}': expected average or learned", param_hint="--consensus")
    if device not in (None, "cpu", "cuda"):
        raise typer.BadParameter(f"'{device}': expected cpu or cuda", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentValueError("torch sees no CUDA device to train on")
    folder = run_folder(out, resume, force) if os.environ.get("RANK", "0") == "0" else RunFolder(out)
    start = Start(source, scheme, _inputs(input_shape), None, consensus, trust_pickle)
    training = read_training(recipe) if recipe is not None else start.recipe()
    changes = {"batch": batch, "learning_rate": learning_rate, "warm_up": warm_up, "seed": seed}
    training = changed(with_changes(training, epochs=epochs, **changes), settings or ())
    samples = open_data(data)
    if taxonomy is not None:
        start = replace(start, taxonomy=samples.taxonomy if taxonomy == "data" else Taxonomy.load(taxonomy))
        if start.taxonomy is None:
            raise ArgumentValueError(f"'{data}' has no coarser classes: give a file, --taxonomy FILE")
    notes: list[str] = []
    with _doing(f"loading {source}"):
        begun = resume and folder.start.exists()
        net = load(folder.start) if begun else start.build(samples, training.seed, notes.append)
    for note in notes:
        _print(note, sys.stderr)
    if force and not resume and folder.exists:
        shutil.rmtree(out)
    with accelerator_for(training, device=device) as accelerator, _watching(f"training {source}"):
        run = fit(
            net,
            samples,
            training,
            out=out,
            resume=resume,
            accelerator=accelerator,
            limit_batches=limit_batches,
        )
    if accelerator.is_main_process:
        table = Table(box=None, pad_edge=False)
        for title in ("level", "accuracy"):
            table.add_column(title, justify="right" if title == "accuracy" else "left")
        for name, accuracy in run.accuracy.items():
            table.add_row(name, f"{accuracy:.4f}")
        _print(table)
        _print(f"written to {out}")


@app.command()
def compare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help=f"The backbone: paper:NAME, {', '.join(kind.example for kind in kinds())}."
        ),
    ],
    data: DataOption,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder for results, table and figure; what is there goes on.")
    ],
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme", metavar="SPEC", help=f"Repeatable. By default those that apply of {', '.join(SCHEMES)}."
        ),
    ] = None,
    alone: Annotated[
        str,
        typer.Option(metavar="first|none|SPEC", help="The scheme whose levels are also trained by themselves."),
    ] = "first",
    recipe: RecipeOption = None,
    epochs: Epochs = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="macs=N", help="Train each network for so many multiply-accumulates, not equal epochs."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many times every network is trained.")] = 3,
    learning_rate: LearningRate = None,
    settings: Settings = None,
    limit_batches: LimitBatches = None,
    input_shape: InputShapes = None,
    runtime: RuntimeOption = "torch",
    threads: Threads = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch when milliseconds are measured.")] = 1,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
) -> None:
    """Compare schemes on one backbone, trained alike, with networks that are trained by themselves.

    Writes to DIR a line for every network and seed (results.jsonl), a table (table.md) and the accuracy of all levels
    against multiply-accumulates and milliseconds (figure.png).
    """
    limit = _budget(budget) if budget is not None else None
    training = read_training(recipe) if recipe is not None else Start(source).recipe()
    training = changed(with_changes(training, epochs=epochs, learning_rate=learning_rate), settings or ())

    def say(line: str) -> None:
        _print(line, sys.stderr)

    made = compared(
        source,
        data,
        schemes,
        out=out,
        alone=alone,
        training=training,
        budget=limit,
        seeds=seeds,
        examples=_inputs(input_shape),
        runtime=runtime,
        threads=threads,
        batch_size=batch_size,
        limit_batches=limit_batches,
        trust_pickle=trust_pickle,
        said=say,
    )
    if as_json:
        findings = [{"what": str(one), "shows": one.shows} for one in made.findings]
        typer.echo(json.dumps({"finding": made.sentence, "levels": findings, "out": str(out)}))
        return
    _print(made.table)
    _print(made.sentence)
    _print(f"written to {out}")


@app.command()
def papers(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[EXPERIMENT]", help="What to run, such as hne/figure-5.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder for results, table and figure; a run there goes on.")
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="SPEC", help="What to train on, such as digits, mnist5k or cifar100:DIR.")
    ] = "mnist5k",
    seeds: Annotated[int, typer.Option(min=1, help="How many times every network is trained.")] = 5,
    scale: Annotated[
        str, typer.Option(metavar="paper|small|auto", help="Networks and trainings as printed, or small ones.")
    ] = "auto",
    epochs: Annotated[int | None, typer.Option(min=1, help="Of every training.", show_default=False)] = None,
    limit_batches: Annotated[
        int | None, typer.Option(min=1, help="At most so many in an epoch.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the networks and experiments of the papers, or run an experiment.

    To build a network, call anytimeify.papers.recipe(NAME).build()."""
    if name is None:
        _list_papers(as_json)
        return
    if scale not in ("auto", "paper", "small"):
        raise typer.BadParameter(f"'{scale}': expected auto, paper or small", param_hint="--scale")
    chosen = experiment(name, data, scale, epochs=epochs)  # type: ignore[arg-type]  # checked
    if out is None:
        raise typer.BadParameter("give a folder for what an experiment writes", param_hint="--out")

    def say(line: str) -> None:
        _print(line, sys.stderr)

    made = chosen.run(out, seeds, limit_batches=limit_batches, said=say)
    if as_json:
        typer.echo(json.dumps({"experiment": name, "shows": made.shows, "finding": made.sentence, "out": str(out)}))
        return
    _print(made.table)
    _print(made.sentence)
    _print(f"written to {out}")


def _list_papers(as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "backbone": entry.about,
            "params": entry.params(),
            "scheme": str(entry.scheme),
            "source": entry.source,
            "num_classes": entry.num_classes,
            "training": asdict(entry.training),
        }
        for entry in entries()
    ]
    if as_json:
        studies = [{"name": one.name, "about": one.about, "source": one.source} for one in experiments()]
        typer.echo(json.dumps({"networks": rows, "experiments": studies}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)  # so that it can be copied
    for title in ("backbone", "parameters", "scheme", "from"):
        table.add_column(title, justify="right" if title == "parameters" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in ("name", "backbone", "params", "scheme", "source")))
    _print(table)
    typer.echo()
    table = Table(box=None, pad_edge=False)
    table.add_column("experiment", no_wrap=True)
    for title in ("about", "from"):
        table.add_column(title, overflow="fold")
    for study in experiments():
        table.add_row(study.name, study.about, study.source)
    _print(table)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"anytimeify {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command, by default with the arguments of the process. Always raises `SystemExit`."""
    if arguments is None:  # we own the process: when terminated, it removes unfinished files
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter(
                    "ignore"
                )  # from torch and the model's code, which the user of a command cannot change
            app(arguments)
    except AnytimeError as error:
        _fail(str(error))
    except Exception as error:  # a bug: say where it happened, for whoever fixes it
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        _fail(f"internal error in anytimeify, {type(error).__name__} in {place}: {first_line(error)}")


def _fail(message: str) -> NoReturn:
    """Exits with status 1 and a message; characters that the terminal cannot show are escaped."""
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(f"error: {message}\n".encode(encoding, "backslashreplace").decode(encoding))
    sys.exit(1)


# Parsing arguments. What cannot be parsed is wrong usage.


def _budget(text: str) -> Budget:
    try:
        return Budget.parse(text)
    except BudgetError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error


def _limits(text: str | None) -> Limits | None:
    try:
        return Limits.parse(text) if text is not None else None
    except SchemeError as error:
        raise typer.BadParameter(str(error), param_hint="--limits") from error


def _format(name: str, option: str) -> str:
    if name.strip() not in FORMATS:
        raise typer.BadParameter(f"'{name}' is not a format; expected one of: {', '.join(FORMATS)}", param_hint=option)
    return name.strip()


def _inputs(shapes: list[str] | None) -> CallInputs | None:
    """Random example inputs of the given shapes, the same in every run."""
    if not shapes:
        return None
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for text in shapes:
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text.replace(" ", "")):
            raise typer.BadParameter(
                f"'{text}' is not a shape; expected sizes such as 2,3,224,224", param_hint="--input-shape"
            )
        try:
            tensors.append(torch.randn([int(size) for size in text.split(",")], generator=generator))
        except RuntimeError as error:
            raise typer.BadParameter(f"'{text}' does not fit into memory", param_hint="--input-shape") from error
    return CallInputs(tuple(tensors), {})


def _named(texts: list[str] | None) -> InputSizes | None:
    """Sizes or the value of each named input."""
    found: dict[str, Any] = {}
    for text in texts or ():
        name, _, sizes = text.rpartition("=")
        number = re.fullmatch(r"-?\d+(\.\d+)?", sizes)
        if not name or not (number or re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", sizes)):
            raise typer.BadParameter(
                f"'{text}' is no input; expected a name and sizes such as x=2x3x224x224", param_hint="--input"
            )
        if name in found:
            raise typer.BadParameter(f"'{name}' is given twice", param_hint="--input")
        if number:
            found[name] = float(sizes) if "." in sizes else int(sizes)
        else:
            found[name] = tuple(int(size) for size in sizes.split("x"))
    return found or None


def _dynamic(text: str) -> dict[str, Any] | None:
    """`dynamic_shapes` for `transform`: None makes the batch dynamic, an empty dict makes nothing dynamic."""
    if text not in ("batch", "none"):
        raise typer.BadParameter(f"'{text}': expected batch or none", param_hint="--dynamic-shapes")
    return {} if text == "none" else None


def _device(text: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise typer.BadParameter(f"'{text}': expected cpu or cuda", param_hint="--measure")
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BudgetError(f"latency cannot be measured on {text}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


# Steps shared by several commands.


def _refuse_other_folders(path: Path, force: bool) -> None:
    """`--force` removes what `convert` wrote, and no other folder."""
    if not force or not path.is_dir():
        refuse_existing(path)
    elif any(path.iterdir()) and not (path / MODEL).is_file():
        raise ArtifactError(
            f"'{path}' holds no {MODEL}: --force replaces only what `convert` wrote. Remove it yourself."
        )


def _load(path: Path) -> AnytimeModel:
    with _doing(f"loading {path}"):
        return load(path / MODEL if path.is_dir() else path)


def _write_level(
    net: AnytimeModel,
    index: int,
    kind: str,
    path: Path,
    *,
    fold: bool = False,
    granularity: str | None = None,
    force: bool = False,
) -> None:
    with _doing(f"writing level {index} ({net.levels[index].name}) as {kind}"):
        captured = net.captured
        args, kwargs = net.call_signature.arguments(captured.example_inputs, captured.signature)
        small = net.extract(index, fold=fold, granularity=granularity)
        FORMATS[kind](small, CallInputs(args, kwargs), path, captured.batch is not None, replace=force)


@contextmanager
def _doing(what: str) -> Iterator[None]:
    """Shows progress: a spinner on a terminal, a line elsewhere. Hides what torch and the model print."""
    console = _console(sys.stderr)
    if console.is_terminal:
        with console.status(f"{what} ..."), quiet():
            yield
    else:
        _print(f"{what} ...", sys.stderr)
        with quiet():
            yield


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Shows which step work is at and how long it will take, on a terminal; a line elsewhere."""
    console = _console(sys.stderr)
    if not console.is_terminal:
        with _doing(what):
            yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown, quiet():
        task = shown.add_task(what, total=1.0)

        def show(name: str, share: float) -> None:
            shown.update(task, description=f"{what}: {name}", completed=share)

        with progress.shown_by(show):
            yield


@contextmanager
def _watching(what: str) -> Iterator[None]:
    """Shows how far a training is: a bar on a terminal; elsewhere a line an epoch, or every half minute."""
    console = _console(sys.stderr)
    if console.is_terminal:
        columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=console, transient=True) as shown:
            task = shown.add_task(what, total=1.0)

            def show(name: str, share: float) -> None:
                shown.update(task, description=name, completed=share)

            with progress.shown_by(show):
                yield
        return
    _print(f"{what} ...", sys.stderr)
    last = time.monotonic()

    def say(name: str, share: float) -> None:
        nonlocal last
        if "accuracy" in name or time.monotonic() - last > 30:
            last = time.monotonic()
            _print(f"{share:4.0%} {name}", sys.stderr)

    with progress.shown_by(say):
        yield


def _print(what: RenderableType, file: TextIO | None = None) -> None:
    console = _console(file or sys.stdout)
    if console.is_terminal or isinstance(what, str):
        console.print(what, soft_wrap=isinstance(what, str))
        return
    with console.capture() as capture:
        console.print(what)
    typer.echo("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()), file=file)


def _console(file: TextIO) -> Console:
    """Tables are as wide as the terminal, or 120 columns elsewhere. User input is never interpreted as markup."""
    return Console(file=file, markup=False, highlight=False, emoji=False, width=None if file.isatty() else 120)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
