"""The command line: `convert`, `inspect`, `extract`, `levels`. What each does is a few calls of the library.

Results go to standard output, progress and errors to standard error. Exit status: 0; 1 for a refusal, with one message
and nothing half-written; 2 for bad usage.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anytimeify.errors import AnytimeError, ArtifactError

# Everything that imports torch is imported by the command that needs it: --help and --version answer at once.
if TYPE_CHECKING:
    from anytimeify.budget import Budget
    from anytimeify.ir import Level
    from anytimeify.model import AnytimeModel

__all__ = ["app", "main"]

MODEL = "net.safetensors"  # the saved model in the folder that `convert` writes

app = typer.Typer(
    name="anytimeify",
    help="A compiler from any PyTorch network to an anytime model: one graph, nested levels, cheapest first.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="model.pt2, model.onnx, timm:NAME, torchvision:NAME, hf:PATH, package.module:factory, or a pickled model.pt.",
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape", metavar="SIZES", help="Shape of an example input, such as 2,3,224,224; once per input of the model."
    ),
]
DynamicShapes = Annotated[
    str, typer.Option("--dynamic-shapes", metavar="batch|none", help="'none' fixes the batch at that of the example inputs.")
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Load a pickled model, which runs the code in it. Only for files you trust.")
]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder that `anytimeify convert` wrote, or a file of net.save(path).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def convert(
    source: SourceArgument,
    scheme: Annotated[str, typer.Option(metavar="SPEC", help="Such as 'nested-channels{widths=0.25,0.5,1}'.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist.")],
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="LIMITS", help="Extract the best level within, such as macs=5e8,params=2e6; may be repeated."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Extract levels as pt2, onnx, safetensors: all levels, or those of the budgets."),
    ] = None,
    input_shape: InputShapes = None,
    dynamic_shapes: DynamicShapes = "batch",
    verify: Annotated[bool, typer.Option(help="Compare with the backbone, and levels with their extracts.")] = True,
    trust_pickle: TrustPickle = False,
) -> None:
    """Turn a model into an anytime model: DIR gets the net, its report, and the extracted levels that are asked for."""
    budgets = [_budget(text) for text in budget or ()]
    formats = _formats(format) if format is not None else ["pt2"] if budgets else []
    shapes, dynamic = _shapes(input_shape), _dynamic(dynamic_shapes)

    from anytimeify.capture import resolve
    from anytimeify.export import FORMATS, new_folder, require
    from anytimeify.rewriter import parse_scheme
    from anytimeify.transform import transform

    chosen = parse_scheme(scheme)
    for name in formats:
        require(name)
    with new_folder(out) as folder:
        with _doing(f"loading {source}"):
            found = resolve(source, trust_pickle=trust_pickle)
        with _doing(f"transforming {found.name} with {chosen}"):
            inputs = found.example_inputs if shapes is None else shapes
            net = transform(found.model, chosen, inputs, dynamic_shapes=dynamic, verify=verify)
        picked = [(limits, net.select(limits)) for limits in budgets]
        report = net.report()
        net.save(folder / MODEL)
        (folder / "report.json").write_text(report.to_json() + "\n")
        (folder / "report.md").write_text(report.to_markdown())
        wanted = {level.index: level for _, level in picked} if picked else {level.index: level for level in net.levels}
        for index, level in sorted(wanted.items()):
            for name in formats:
                with _doing(f"writing level {index} ({level.name}) as {name}"):
                    FORMATS[name](net.extract(level), _example(net), folder / f"level-{index}.{name}", dynamic is None)
    _print(report)
    for limits, level in picked:
        _print(f"{limits}: level {level.index} ({level.name})")
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
    shapes, dynamic = _shapes(input_shape), _dynamic(dynamic_shapes)

    from anytimeify import report
    from anytimeify.axes import analyse
    from anytimeify.capture import capture, resolve

    with _doing(f"loading {source}"):
        found = resolve(source, trust_pickle=trust_pickle)
    with _doing(f"capturing {found.name}"):
        inputs = found.example_inputs if shapes is None else shapes
        captured = capture(found.model, inputs, dynamic_shapes=dynamic)
    inspection = report.inspect(captured, analyse(captured.program), found.name)
    if as_json:
        typer.echo(inspection.to_json())
    else:
        _print(inspection.shown(everything=everything))


@app.command()
def extract(
    folder: Folder,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="FILE.pt2, FILE.onnx, or FILE.safetensors for the weights alone.")
    ],
    budget: Annotated[str | None, typer.Option(metavar="LIMITS", help="The best level within, such as macs=5e8.")] = None,
    level: Annotated[int | None, typer.Option(metavar="INDEX", help="0 is the cheapest level, -1 the full one.")] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Merge batch norms into the convolutions before them.")] = False,
    static_batch: Annotated[bool, typer.Option("--static-batch", help="Fix the batch at that of the example inputs.")] = False,
) -> None:
    """Write one level as a standalone network."""
    if (budget is None) == (level is None):
        raise typer.BadParameter("give one of --budget and --level")
    limits = _budget(budget if budget is not None else f"level={level}")
    kind = out.suffix.removeprefix(".")
    _formats(kind, "--out")

    from anytimeify.export import FORMATS, new_file, require

    require(kind)
    with new_file(out):
        pass  # refused here, before the work
    net = _load(folder)
    chosen = net.select(limits)
    with _doing(f"writing level {chosen.index} ({chosen.name}) as {kind}"):
        FORMATS[kind](net.extract(chosen, fold=fold), _example(net), out, not static_batch and net.captured.batch is not None)
    _print(f"level {chosen.index} ({chosen.name}) written to {out}")


@app.command()
def levels(
    folder: Folder,
    measure: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Measure the latency of every level there.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch when measuring.")] = 1,
    as_json: AsJson = False,
) -> None:
    """List the levels of an anytime model, with what each of them costs for one sample."""
    net = _load(folder)
    latencies = [_latency(net, level, measure, batch_size) for level in net.levels] if measure is not None else []
    rows = [{"index": level.index, "name": level.name, **level.cost._asdict()} for level in net.levels]
    for row, latency in zip(rows, latencies, strict=False):
        row["latency_ms"] = latency
    if as_json:
        typer.echo(json.dumps({"scheme": str(net.scheme), "levels": rows}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("level", "name", "MACs", "parameters", "activation bytes", *(["latency, ms"] if latencies else [])):
        table.add_column(title, justify="left" if title == "name" else "right")
    for row in rows:
        cells = [f"{value:.3f}" if isinstance(value, float) else f"{value:,}" for value in list(row.values())[2:]]
        table.add_row(str(row["index"]), escape(str(row["name"])), *cells)
    _print(table)


@app.callback()
def options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Nothing is done before a command but to answer --version."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command; `arguments` are those of the process unless given. Always raises `SystemExit`."""
