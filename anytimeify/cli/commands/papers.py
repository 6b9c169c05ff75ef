"""`anytimeify papers`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from anytimeify.cli.options import AsJson
from anytimeify.cli.showing import cell, say, show
from anytimeify.papers import entries, experiment, experiments

__all__ = ["papers"]


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
    if out is None:
        raise typer.BadParameter("give a folder for what an experiment writes", param_hint="--out")
    chosen = experiment(name, data, scale, epochs=epochs)  # type: ignore[arg-type]  # checked
    made = chosen.run(out, seeds, limit_batches=limit_batches, said=say)
    if as_json:
        typer.echo(json.dumps({"experiment": name, "shows": made.shows, "finding": made.sentence, "out": str(out)}))
        return
    show(made.table)
    show(made.sentence)
    show(f"written to {out}")


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
        table.add_row(*(cell(row[key]) for key in ("name", "backbone", "params", "scheme", "source")))
    show(table)
    typer.echo()
    table = Table(box=None, pad_edge=False)
    table.add_column("experiment", no_wrap=True)
    for title in ("about", "from"):
        table.add_column(title, overflow="fold")
    for study in experiments():
        table.add_row(study.name, study.about, study.source)
    show(table)
