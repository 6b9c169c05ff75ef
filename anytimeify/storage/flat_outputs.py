"""The results of an exported program as a file without structures holds them: tensors with names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument

from anytimeify._torch import flatten
from anytimeify.ir import Constant, Structure

__all__ = ["flat_outputs", "tensors_of"]


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of a structure, in their places."""
    return [leaf for leaf in flatten(result)[0] if isinstance(leaf, Tensor)]


def flat_outputs(program: ExportedProgram) -> list[str] | None:
    """Makes a program return a flat tuple of all tensors that it returned, without the constants, and gives their
    names, by their paths: `logits`, `hidden_states_0`. None, and nothing changes, where it returns a single tensor.

    A tensor that stands at several places, and an input, is returned as a copy: files have one name for each."""
    spec = program.call_spec.out_spec
    node = program.graph.output_node()
    pairs = list(zip(node.args[0], program.graph_signature.output_specs, strict=True))
    given = [result for result, kind in pairs if kind.kind is OutputKind.USER_OUTPUT]
    if spec == flatten(0)[1]:
        return None
    leaves = tuple(place if isinstance(result, fx.Node) else Constant(result) for place, result in enumerate(given))
    called = Structure(spec, leaves, 0).names
    kept: list[tuple[fx.Node, OutputSpec]] = []
    seen = set(program.graph.find_nodes(op="placeholder"))
    for result, kind in pairs:
        if not isinstance(result, fx.Node):
            continue
        own = _copied(program.graph, result) if result in seen else result
        seen.add(own)
        kept.append((own, OutputSpec(kind.kind, TensorArgument(own.name), kind.target)))
    node.args = (tuple(own for own, _ in kept),)
    program.graph_signature.output_specs[:] = [kind for _, kind in kept]
    program.module_call_graph[0].signature.out_spec = flatten(tuple(range(len(called))))[1]
    program.graph_module.recompile()
    inputs = {str(one.target) for one in program.graph.find_nodes(op="placeholder")}
    return [_free(called[place], inputs) for place in sorted(called)]


def _copied(graph: fx.Graph, result: fx.Node) -> fx.Node:
    with graph.inserting_before(graph.output_node()):
        copy = graph.call_function(torch.ops.aten.clone.default, (result,))
    copy.meta = dict(result.meta)
    return copy


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
