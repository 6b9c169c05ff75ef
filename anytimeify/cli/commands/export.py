"""`anytimeify export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anytimeify.cli.models import load_model
from anytimeify.cli.options import OR_FORCE, Force, SavedModel
from anytimeify.cli.showing import doing, show
from anytimeify.deploy.export import FORMATS as FILES
from anytimeify.deploy.export import STAGED
from anytimeify.io.files import refuse_existing
from anytimeify.level_names import parse_level
from anytimeify.storage.export import require

__all__ = ["export"]


CONTAINERS = (*FILES, STAGED)
_CALLED = {".onnx": "onnx", ".pt2": "pt2", ".pte": "executorch"}  # commands and runners go by the suffix


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
    called = _CALLED.get(out.suffix, format)
    if called != format:
        raise typer.BadParameter(f"'{out}' is the name of a file of --format {called}", param_hint="--out")
    if not force:
        refuse_existing(out, OR_FORCE)
    require("onnx" if format == STAGED else format)
    net = load_model(folder)
    named = "all" if chosen == "all" else [parse_level(one.strip()) for one in chosen.split(",")]
    with doing(f"writing {'all levels' if named == 'all' else f'levels {chosen}'} as {format}"):
        net.export(out, format, named, granularity=granularity, force=force)
    size = sum(file.stat().st_size for file in out.iterdir()) if out.is_dir() else out.stat().st_size
    show(f"written to {out}, {size:,} bytes")
