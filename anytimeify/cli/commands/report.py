"""`anytimeify report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anytimeify.cli.models import load_model
from anytimeify.cli.options import OR_FORCE, AccuraciesOption, Force, RuntimeOption, SavedModel, Threads
from anytimeify.cli.reading import device_of, refuse_unmeasured
from anytimeify.cli.showing import doing, show
from anytimeify.io.files import refuse_existing, replaced_file
from anytimeify.report import Report
from anytimeify.report.model_explorer import refuse_other_folder
from anytimeify.report.page import require_page
from anytimeify.report.pareto import check_scores
from anytimeify.runtime.evaluation import read_scores
from anytimeify.serving.benchmark import bench as measured

__all__ = ["report"]


def report(
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
    if out.suffix != ".html" and (measure is not None or accuracies is not None):
        raise typer.BadParameter(f"'{out}': what is measured, and accuracies, go into FILE.html", param_hint="--out")
    if out == model_explorer:
        raise typer.BadParameter("give another name than that of --out", param_hint="--model-explorer")
    if measure is not None:
        device_of(measure)
    else:
        refuse_unmeasured(runtime=runtime != "torch", threads=threads)
    scores = read_scores(accuracies) if accuracies is not None else None
    if not force:
        for path in filter(None, (out, model_explorer)):
            refuse_existing(path, OR_FORCE)
    if out.suffix == ".html":
        require_page()
    if model_explorer is not None:
        refuse_other_folder(model_explorer)
    net = load_model(folder)
    check_scores(scores, [level.name for level in net.levels])
    found = None
    if measure is not None:
        with doing("measuring the levels"):
            found = measured(
                net.to(measure), runtime=runtime, device=measure, threads=threads, against=False, accuracies=scores
            )
    summary: Report = net.report()
    if out.suffix == ".html":
        summary.to_html(out, found, scores)
    else:
        text = summary.to_json() + "\n" if out.suffix == ".json" else summary.to_markdown()
        with replaced_file(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if model_explorer is not None:
        summary.to_model_explorer(model_explorer, force=force)
    show(f"written to {out}")
