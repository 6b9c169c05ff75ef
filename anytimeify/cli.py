"""The command line: `convert`, `inspect`, `extract`, `levels`, `papers`. Each is a few calls of the library.

Results go to standard output, progress and errors to standard error. Exit status: 0; 1 for a refusal, with one message
and nothing half-written; 2 for bad usage.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import torch
import typer
from rich.console import Console, RenderableType
from rich.table import Table

from anytimeify import report
from anytimeify.artifact import load
from anytimeify.axes import analyse
from anytimeify.budget import Budget
from anytimeify.capture import capture, resolve
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.sources import kinds
from anytimeify.compressed import save_compressed
from anytimeify.errors import AnytimeError, BudgetError
from anytimeify.export import FORMATS, quiet, require
from anytimeify.files import new_folder, refuse_existing
from anytimeify.level_names import parse_level
from anytimeify.model import AnytimeModel
from anytimeify.papers import entries
from anytimeify.rewriter import parse_scheme
from anytimeify.taxonomy import Taxonomy
from anytimeify.transform import transform

__all__ = ["app", "main"]

MODEL = "net.safetensors"  # the saved model in the folder that `convert` writes

app = typer.Typer(
    name="anytimeify",
    help="A compiler from any PyTorch network to an anytime model: one graph, nested levels, cheapest first.",
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
        "--input-shape", metavar="SIZES", help="Shape of an example input, such as 2,3,224,224; once per input."
    ),
]
DynamicShapes = Annotated[
    str,
    typer.Option(metavar="batch|none", help="'none' fixes the batch at that of the example inputs."),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Load a pickle, or all that a .pt2 holds, which runs code in it. Only for files you trust.",
    ),
]
SavedModel = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder that `convert` wrote, or a file that net.save(path) wrote.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def convert(
    source: SourceArgument,
    scheme: Annotated[str, typer.Option(metavar="SPEC", help="Such as 'nested-channels{widths=0.25,0.5,1}'.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist.")],
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="LIMITS", help="Extract the best level within, such as macs=5e8,params=2e6; repeatable."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAMES",
            help=f"Extract levels as {','.join(FORMATS)}: every level, or those of the budgets.",
        ),
    ] = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Coarser classes, .json or .csv: every level predicts every granularity."),
    ] = None,
    consensus: Annotated[
        str | None, typer.Option(metavar="average|learned", help="One more level, over all levels.")
    ] = None,
    input_shape: InputShapes = None,
    dynamic_shapes: DynamicShapes = "batch",
    verify: Annotated[bool, typer.Option(help="Compare with the backbone, and levels with their extracts.")] = True,
    trust_pickle: TrustPickle = False,
) -> None:
    """Turn a model into an anytime model.

    DIR gets the model (net.safetensors), its report (report.json, report.md), and the extracted levels asked for.
    """
    budgets = [_budget(text) for text in budget or ()]
    kinds = list(dict.fromkeys(_format(name, "--format") for name in formats.split(","))) if formats is not None else []
    if budgets and not kinds:
        kinds = ["pt2"]
    chosen = parse_scheme(scheme)
    if consensus not in (None, "average", "learned"):
        raise typer.BadParameter(f"'{consensus}': write average or learned", param_hint="--consensus")
    classes = Taxonomy.load(taxonomy) if taxonomy is not None else None
    inputs, dynamic = _inputs(input_shape), _dynamic(dynamic_shapes)
    refuse_existing(out)
    for kind in kinds:
        require(kind)

    with _doing(f"loading {source}"):
        found = resolve(source, trust_pickle=trust_pickle)
    with _doing(f"transforming {found.name} with {chosen}"):
        examples = found.example_inputs if inputs is None else inputs
        net = transform(
            found.model,
            chosen,
            examples,
            dynamic_shapes=dynamic,
            verify=verify,
            taxonomy=classes,
            consensus=consensus,
        )
    picked = [net.select(limits) for limits in budgets]
    levels = sorted({level.index for level in picked}) if picked else range(len(net.levels))
    summary: report.Report = net.report()
    with new_folder(out) as folder:
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
    everything: Annotated[bool, typer.Option("--all", help="Print whole tables.")] = False,
    input_shape: InputShapes = None,
    dynamic_shapes: DynamicShapes = "batch",
    trust_pickle: TrustPickle = False,
) -> None:
    """Show what a model offers: axis groups, pins and why, cut points, blocks."""
    inputs, dynamic = _inputs(input_shape), _dynamic(dynamic_shapes)
    with _doing(f"loading {source}"):
        found = resolve(source, trust_pickle=trust_pickle)
    with _doing(f"capturing {found.name}"):
        examples = found.example_inputs if inputs is None else inputs
        captured = capture(found.model, examples, dynamic_shapes=dynamic)
        inspection = report.inspect(captured, analyse(captured.program), found.name)
    if as_json:
        typer.echo(inspection.to_json())
    else:
        _print(inspection.shown(everything=everything))


@app.command()
def extract(
    folder: SavedModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="FILE.pt2, FILE.onnx, or FILE.safetensors: weights alone.")],
    budget: Annotated[
        str | None, typer.Option(metavar="LIMITS", help="The best level within, such as macs=5e8.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",  # typer 0.27 would take the metavar for it
            metavar="LEVEL",
            help="Its index, 0 the cheapest and -1 the last; its name; or its number, such as 0.25 for a width.",
        ),
    ] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Merge batch norms into the convolutions before them.")] = False,
    compressed: Annotated[
        bool,
        typer.Option("--compressed", help="FILE.safetensors without zeros; anytimeify.compressed reads it."),
    ] = False,
    granularity: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the level's predictions, of a model with a taxonomy.")
    ] = None,
) -> None:
    """Write one level as a standalone network."""
    if (budget is None) == (level is None):
        raise typer.BadParameter("give one of --budget and --level")
    limits = _budget(budget) if budget is not None else Budget(level=parse_level(level or ""))
    kind = _format(out.suffix.removeprefix("."), "--out")
    if compressed and kind != "safetensors":
        raise typer.BadParameter("only weights alone are compressed: give a FILE.safetensors", param_hint="--out")
    refuse_existing(out)
    require(kind)
    net = _load(folder)
    chosen = net.select(limits)
    if compressed:
        save_compressed(net.extract(chosen, fold=fold, granularity=granularity), out)
    else:
        _write_level(net, chosen.index, kind, out, fold=fold, granularity=granularity)
    _print(f"level {chosen.index} ({chosen.name}) written to {out}")


@app.command()
def levels(
    folder: SavedModel,
    measure: Annotated[
        str | None, typer.Option(metavar="cpu|cuda", help="Measure there the latency of every level, extracted.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch when measuring.")] = 1,
    as_json: AsJson = False,
) -> None:
    """List the levels of an anytime model, with what each of them costs for one sample."""
    device = _device(measure) if measure is not None else None
    net = _load(folder)
    rows: list[dict[str, Any]] = []
    for level in net.levels:
        rows.append({"index": level.index, "name": level.name, **level.cost._asdict()})
        if device is not None:
            with _doing(f"measuring level {level.index} ({level.name})"):
                rows[-1]["latency_ms"] = net.latency(level, device=device, batch_size=batch_size)
    if as_json:
        given = [{**row, "training_only": level.training_only} for row, level in zip(rows, net.levels, strict=True)]
        typer.echo(json.dumps({"scheme": str(net.scheme), "levels": given}, indent=2))
        return
    for row, level in zip(rows, net.levels, strict=True):
        row["name"] += ", for training only" if level.training_only else ""
    table = Table(box=None, pad_edge=False)
    for title in ("level", "name", "MACs", "parameters", "activation bytes", *(["latency, ms"] if device else [])):
        table.add_column(title, justify="left" if title == "name" else "right")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else _cell(cell) for cell in row.values()))
    _print(table)


@app.command()
def papers(as_json: AsJson = False) -> None:
    """List the networks of the papers; anytimeify.papers.recipe(NAME).build() makes one. Nothing is built here."""
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
        typer.echo(json.dumps({"networks": rows}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)  # to be copied
    for title in ("backbone", "parameters", "scheme", "from"):
        table.add_column(title, justify="right" if title == "parameters" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in ("name", "backbone", "params", "scheme", "source")))
    _print(table)


def _print_version(value: bool) -> None:
    if not value:
        return
    try:
        number = version("anytimeify")
    except PackageNotFoundError:
        number = "(run from its sources, not installed)"
    typer.echo(f"anytimeify {number}")
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
    """The console command, with the arguments of the process unless others are given. Always raises `SystemExit`."""
    if arguments is None:  # the process is ours: ended from outside, it cleans up what it was writing
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # of torch and the model's own code, about what nobody here can change
            app(arguments)
    except AnytimeError as error:
        _fail(str(error))
    except Exception as error:  # nobody thought of it; where it happened is of use to who mends it
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        first = (str(error).strip().splitlines() or [""])[0]
        _fail(f"a fault in anytimeify, {type(error).__name__} in {place}: {first}")


def _fail(message: str) -> NoReturn:
    """Ends with status 1 and a message, of which a terminal shows what it can."""
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(f"error: {message}\n".encode(encoding, "backslashreplace").decode(encoding))
    sys.exit(1)


# Reading what was typed. What cannot be read is bad usage.


def _budget(text: str) -> Budget:
    try:
        return Budget.parse(text)
    except BudgetError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error


def _format(name: str, option: str) -> str:
    if name.strip() not in FORMATS:
        raise typer.BadParameter(f"'{name}' is no format; there are: {', '.join(FORMATS)}", param_hint=option)
    return name.strip()


def _inputs(shapes: list[str] | None) -> CallInputs | None:
    """Example inputs of the shapes that were typed: the same numbers each time."""
    if not shapes:
        return None
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for text in shapes:
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text.replace(" ", "")):
            raise typer.BadParameter(f"'{text}' is no shape; write 2,3,224,224", param_hint="--input-shape")
        try:
            tensors.append(torch.randn([int(size) for size in text.split(",")], generator=generator))
        except RuntimeError as error:
            raise typer.BadParameter(f"'{text}' is more than fits into memory", param_hint="--input-shape") from error
    return CallInputs(tuple(tensors), {})


def _dynamic(text: str) -> dict[str, Any] | None:
    """`dynamic_shapes` of `transform`: None makes the batch dynamic, an empty table nothing."""
    if text not in ("batch", "none"):
        raise typer.BadParameter(f"'{text}': write batch or none", param_hint="--dynamic-shapes")
    return {} if text == "none" else None


def _device(text: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise typer.BadParameter(f"'{text}': write cpu or cuda", param_hint="--measure")
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BudgetError(f"latency cannot be measured on {text}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


# Steps that commands share.


def _load(path: Path) -> AnytimeModel:
    with _doing(f"loading {path}"):
        return load(path / MODEL if path.is_dir() else path)


def _write_level(
    net: AnytimeModel, index: int, kind: str, path: Path, *, fold: bool = False, granularity: str | None = None
) -> None:
    with _doing(f"writing level {index} ({net.levels[index].name}) as {kind}"):
        captured = net.captured
        args, kwargs = net.calling.arguments(captured.example_inputs, captured.signature)
        small = net.extract(index, fold=fold, granularity=granularity)
        FORMATS[kind](small, CallInputs(args, kwargs), path, captured.batch is not None)


@contextmanager
def _doing(what: str) -> Iterator[None]:
    """Says what is done: a spinner on a terminal, a line elsewhere. What torch and the model print is left out."""
    console = _console(sys.stderr)
    if console.is_terminal:
        with console.status(f"{what} ..."), quiet():
            yield
    else:
        _print(f"{what} ...", sys.stderr)
        with quiet():
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
    """Tables are as wide as the terminal, and 120 columns elsewhere. What is typed is never taken for markup."""
    return Console(file=file, markup=False, highlight=False, emoji=False, width=None if file.isatty() else 120)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
