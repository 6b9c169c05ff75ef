"""`anytimeify levels`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from anytimeify.cli.models import load_model
from anytimeify.cli.options import AccuraciesOption, AsJson, Cache, Plot, RuntimeOption, SavedModel, Threads
from anytimeify.cli.reading import device_of, refuse_unmeasured
from anytimeify.cli.showing import doing, show
from anytimeify.report.costs import cost_rows, cost_table, plot_costs
from anytimeify.report.figures import check_picture
from anytimeify.report.pareto import check_scores
from anytimeify.runtime.evaluation import read_scores

__all__ = ["levels"]


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
    device = device_of(measure) if measure is not None else None
    if device is None:
        refuse_unmeasured(runtime=runtime != "torch", threads=threads, batch_size=batch_size > 1)
    if plot is not None:
        check_picture(plot)
    scores = read_scores(accuracies) if accuracies is not None else None
    net = load_model(folder)
    check_scores(scores, [level.name for level in net.levels])
    latency: dict[int, float] = {}
    for level in net.levels:
        if device is not None:
            with doing(f"measuring level {level.index} ({level.name})"):
                latency[level.index] = net.latency(
                    level, device=device, batch_size=batch_size, runtime=runtime, threads=threads, cached=cache
                )
    rows = cost_rows(net.levels, latency, scores)
    if plot is not None:
        plot_costs(plot, rows)
    if as_json:
        typer.echo(json.dumps({"scheme": str(net.scheme), "levels": [row.known() for row in rows]}, indent=2))
    else:
        show(cost_table(rows).shown(len(rows)))
