"""`anytimeify extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anytimeify.cli.models import load_model, write_level
from anytimeify.cli.options import OR_FORCE, Force, SavedModel
from anytimeify.cli.reading import budget_of, format_of
from anytimeify.cli.showing import show
from anytimeify.io.files import refuse_existing
from anytimeify.level_names import parse_level
from anytimeify.runtime.budget import Budget
from anytimeify.storage.compressed import save_compressed
from anytimeify.storage.export import require

__all__ = ["extract"]


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
    limits = budget_of(budget) if budget is not None else Budget(level=parse_level(level or ""))
    kind = format_of(out.suffix.removeprefix("."), "--out")
    if compressed and kind != "safetensors":
        raise typer.BadParameter("--compressed writes weights only: give a FILE.safetensors", param_hint="--out")
    if not force:
        refuse_existing(out, OR_FORCE)
    require(kind)
    net = load_model(folder)
    chosen = net.select(limits)
    if compressed:
        save_compressed(net.extract(chosen, fold=fold, granularity=granularity), out, replace=force)
    else:
        write_level(net, chosen.index, kind, out, fold=fold, granularity=granularity, force=force)
    show(f"level {chosen.index} ({chosen.name}) written to {out}")
