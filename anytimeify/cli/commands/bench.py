"""`anytimeify bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anytimeify.cli.options import AccuraciesOption, AsJson, Cache, Plot, Threads, TrustPickle
from anytimeify.cli.reading import device_of
from anytimeify.cli.showing import doing, show
from anytimeify.report.figures import check_picture
from anytimeify.runtime.evaluation import read_scores
from anytimeify.serving.benchmark import bench as measured

__all__ = ["bench"]


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
    device_of(device, "--device")
    if against is not None and not alone:
        raise typer.BadParameter(
            "nothing is compared with --no-alone: leave out one of the two", param_hint="--against"
        )
    if plot is not None:
        check_picture(plot)
    scores = read_scores(accuracies) if accuracies is not None else None
    with doing(f"measuring {source}"):
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
        show(found.shown(everything=True))
