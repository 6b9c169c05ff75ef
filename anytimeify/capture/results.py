"""Everything that a backbone returns: which of a program's outputs, or which constant, every leaf of it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram

from anytimeify._torch import TreeSpec
from anytimeify.capture.canonical import results_of, user_outputs
from anytimeify.errors import CaptureError
from anytimeify.ir import Captured, Constant, Program, Results, Structure
from anytimeify.passes.rewrites.project import project

__all__ = ["agrees", "distinct", "structure_of", "tensor_places", "with_results"]


def tensor_places(exported: ExportedProgram) -> list[int]:
    """The flat results of an exported program that are tensors. `CaptureError` for those that are neither tensors nor
    constants."""
    found = []
    given = user_outputs(exported.graph.output_node(), exported)
    for place, (result, tensor) in enumerate(zip(given, results_of(exported), strict=True)):
        if tensor is not None:
            found.append(place)
        elif isinstance(result, fx.Node):
            raise CaptureError(
                f"output='all': result number {place} of the model is a number that depends on the size of its inputs, "
                "which no level could return. Return tensors and constants"
            )
    return found


def structure_of(exported: ExportedProgram, prediction: int) -> Structure:
    """What a program returns whose outputs are the tensors among the results, in their order; `prediction` is a place
    among the results."""
    places = {place: output for output, place in enumerate(tensor_places(exported))}
    given = user_outputs(exported.graph.output_node(), exported)
    leaves = tuple(places[place] if place in places else Constant(result) for place, result in enumerate(given))
    return Structure(exported.call_spec.out_spec, leaves, places[prediction])


def distinct(program: Program, results: Results) -> tuple[Program, Results]:
    """A program that returns every tensor once, those of eval mode first, however often the results hold it."""
    order = (*results.evaluation.outputs, *results.training.outputs)
    first: dict[fx.Node, int] = {}
    for output in order:
        first.setdefault(program.outputs[output], len(first))
    places = {output: first[program.outputs[output]] for output in order}
    keep = {place: output for output, place in reversed(places.items())}
    return (
        project(program, [keep[place] for place in range(len(first))], keep_tensors=True),
        Results(results.evaluation.renumbered(places), results.training.renumbered(places)),
    )


def with_results(captured: Captured, results: Results) -> Captured:
    """The capture of all results, each tensor once."""
    program, results = distinct(captured.program, results)
    return replace(captured, program=program, results=results)


def agrees(structure: Structure, spec: TreeSpec, leaves: Sequence[Any]) -> bool:
    """Whether a structure is that of a result, the tensors aside."""
    return structure.spec == spec and all(
        isinstance(found, Tensor) if isinstance(leaf, int) else not isinstance(found, Tensor) and leaf.value == found
        for leaf, found in zip(structure.leaves, leaves, strict=True)
    )
