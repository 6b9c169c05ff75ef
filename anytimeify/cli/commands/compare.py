"""`anytimeify compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from anytimeify.capture.sources.registry import kinds
from anytimeify.cli.options import (
    AsJson,
    DataOption,
    Epochs,
    InputShapes,
    LearningRate,
    LimitBatches,
    RecipeOption,
    RuntimeOption,
    Settings,
    Threads,
    TrustPickle,
)
from anytimeify.cli.reading import budget_of, inputs_of
from anytimeify.cli.showing import say, show
from anytimeify.train.comparing import SCHEMES
from anytimeify.train.comparing import compare as compared
from anytimeify.train.start import Start, changed, read_training, with_changes

__all__ = ["compare"]


def compare(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help=f"The backbone: {', '.join(kind.example for kind in kinds())}."),
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
    limit = budget_of(budget) if budget is not None else None
    training = read_training(recipe) if recipe is not None else Start(source).recipe()
    training = changed(with_changes(training, epochs=epochs, learning_rate=learning_rate), settings or ())

    made = compared(
        source,
        data,
        schemes,
        out=out,
        alone=alone,
        training=training,
        budget=limit,
        seeds=seeds,
        examples=inputs_of(input_shape),
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
    show(made.table)
    show(made.sentence)
    show(f"written to {out}")
