"""`anytimeify inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from anytimeify import report
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture, resolve
from anytimeify.cli.options import AsJson, DynamicShapes, Inputs, InputShapes, SourceArgument, TrustPickle
from anytimeify.cli.reading import dynamic_shapes_of, inputs_of, named_inputs_of
from anytimeify.cli.showing import doing, show
from anytimeify.passes.on_meta import refuse_reading_values
from anytimeify.passes.options import Options
from anytimeify.passes.scheme import parse_scheme
from anytimeify.runtime.compiled import levels_of

__all__ = ["inspect"]


def inspect(
    source: SourceArgument,
    as_json: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Print complete tables.")] = False,
    scheme: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Also show the levels that a scheme would make."),
    ] = None,
    input_shape: InputShapes = None,
    named_inputs: Inputs = None,
    dynamic_shapes: DynamicShapes = "batch",
    trust_pickle: TrustPickle = False,
) -> None:
    """Show how a model can be narrowed and cut: axis groups, pinned axes with reasons, cut points, blocks.

    Models of transformers (hf:PATH) are built from their configuration, without weights.
    """
    chosen = parse_scheme(scheme) if scheme is not None else None
    inputs, named = inputs_of(input_shape), named_inputs_of(named_inputs, input_shape)
    dynamic = dynamic_shapes_of(dynamic_shapes)
    with doing(f"loading {source}"):
        found = resolve(source, trust_pickle=trust_pickle, inputs=named, values=False)
    if chosen is not None:
        refuse_reading_values(chosen, found.model)
    with doing(f"capturing {found.name}"):
        examples = found.example_inputs if inputs is None else inputs
        captured = capture(found.model, examples, dynamic_shapes=dynamic)
        axes = analyse(captured.program)
        inspection = report.inspect(captured, axes, found.name)
    if chosen is not None:
        with doing(f"applying {chosen}"):
            chosen, _ = chosen.measured(captured, axes)
            rewritten = Options().apply(chosen, chosen.prepare(captured, axes), axes)
            inspection = inspection.with_levels(levels_of(captured, rewritten), max(rewritten.backbones))
    if as_json:
        typer.echo(inspection.to_json())
    else:
        show(inspection.shown(everything=everything))
