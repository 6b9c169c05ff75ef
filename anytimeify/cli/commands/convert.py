"""`anytimeify convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anytimeify import report
from anytimeify.capture import resolve
from anytimeify.cli.models import MODEL, write_level
from anytimeify.cli.options import (
    OR_FORCE,
    Checkpoint,
    DynamicShapes,
    Force,
    Inputs,
    InputShapes,
    Pretrained,
    SourceArgument,
    TrustPickle,
)
from anytimeify.cli.reading import budget_of, dynamic_shapes_of, format_of, inputs_of, limits_of, named_inputs_of
from anytimeify.cli.showing import doing, progressing, show
from anytimeify.compiler import transform
from anytimeify.errors import ArtifactError
from anytimeify.io.files import new_folder, refuse_existing
from anytimeify.passes.scheme import parse_scheme
from anytimeify.storage.export import FORMATS, require
from anytimeify.taxonomy import Taxonomy

__all__ = ["convert"]


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
    budgets = [budget_of(text) for text in budget or ()]
    kinds = (
        list(dict.fromkeys(format_of(name, "--format") for name in formats.split(","))) if formats is not None else []
    )
    if budgets and not kinds:
        kinds = ["pt2"]
    chosen = parse_scheme(scheme)
    allowed = limits_of(limits)
    if consensus not in (None, "average", "learned"):
        raise typer.BadParameter(f"'{consensus}': expected average or learned", param_hint="--consensus")
    classes = Taxonomy.load(taxonomy) if taxonomy is not None else None
    inputs, named = inputs_of(input_shape), named_inputs_of(named_inputs, input_shape)
    dynamic = dynamic_shapes_of(dynamic_shapes)
    _refuse_other_folders(out, force)
    for kind in kinds:
        require(kind)

    with doing(f"loading {source}"):
        found = resolve(source, trust_pickle=trust_pickle, inputs=named, pretrained=pretrained, checkpoint=checkpoint)
    with progressing(f"transforming {found.name} with {chosen}"):
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
                write_level(net, index, kind, folder / f"level-{index}.{kind}")
    show(summary)
    for text, level in zip(budget or (), picked, strict=True):
        show(f"{text}: level {level.index} ({level.name})")
    show(f"written to {out}")


def _refuse_other_folders(path: Path, force: bool) -> None:
    """`--force` removes what `convert` wrote, and no other folder."""
    if not force or not path.exists():
        refuse_existing(path, OR_FORCE)
    elif not path.is_dir():
        raise ArtifactError(f"'{path}' is a file: --force replaces only what `convert` wrote. Remove it yourself.")
    elif any(path.iterdir()) and not (path / MODEL).is_file():
        raise ArtifactError(
            f"'{path}' holds no {MODEL}: --force replaces only what `convert` wrote. Remove it yourself."
        )
