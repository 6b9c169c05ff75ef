"""`part_heads`: separates the predictions of a model with a taxonomy, after its scheme.

    y = cat([fine, coarse], 1)      ->      return fine, coarse
    return y

A scheme sees one prediction, in which the classes of all granularities are concatenated
(`anytimeify.passes.rewrites.taxonomy`), and it is taken apart by `anytimeify.passes.rewrites.parts`. Tensors of
granularities that no level predicts are left out, and heads are named after the level that has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx

from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, names
from anytimeify.ir.rewritten import Output, Rewritten
from anytimeify.passes.rewrites.classes import CLASSES
from anytimeify.passes.rewrites.parts import Parts
from anytimeify.taxonomy import Taxonomy

__all__ = ["part_heads"]


@rewrite("part heads")
def part_heads(rewritten: Rewritten, taxonomy: Taxonomy, backbone: Program) -> Rewritten:
    """The predictions of every granularity as separate outputs, without those that a level does not have."""
    program = rewritten.program
    builder = Builder.copying(program)
    parts = Parts(builder, taxonomy.granularities, taxonomy.sizes)
    chosen = _chosen(rewritten, taxonomy)

    def part(output: Output, granularity: int) -> tuple[Output, fx.Node]:
        whole = builder.shared[rewritten.outputs[output]]
        return replace(output, granularity=granularity), parts.of(whole, CLASSES, granularity)

    outputs = dict(part(output, own[0]) for output, own in chosen.items())
    outputs.update(part(output, granularity) for output, own in chosen.items() for granularity in own[1:])
    result, called = builder.build_named(outputs, program.graph.output_node())
    levels = tuple(
        replace(level, served=_served(taxonomy, index, chosen)) for index, level in enumerate(rewritten.levels)
    )
    parted = replace(
        rewritten,
        program=_without_unread(result, program, backbone),
        names=called,
        levels=levels,
        stacked_parameters=frozenset(name for name in rewritten.stacked_parameters if name in backbone.tensors),
    )
    return replace(parted, program=_with_names(parted))


def _chosen(rewritten: Rewritten, taxonomy: Taxonomy) -> dict[Output, list[int]]:
    """The granularities of every output, finest first."""
    levels = len(rewritten.levels)
    everything = list(range(len(taxonomy.sizes)))
    if taxonomy.heads is not None and len(taxonomy.heads) != levels:
        raise SchemeError(f"taxonomy: heads is for {len(taxonomy.heads)} levels, and the model has {levels}")
    if taxonomy.serve is not None and len(taxonomy.serve) != levels:
        raise SchemeError(f"taxonomy: serve is for {len(taxonomy.serve)} levels, and the model has {levels}")
    own = [
        everything if taxonomy.heads is None else [taxonomy.index(name) for name in taxonomy.heads[level]]
        for level in range(levels)
    ]
    for level in rewritten.backbones:
        if own[level][0] != 0:
            raise SchemeError(
                f"taxonomy: heads: level {level} ({rewritten.levels[level].name}) equals the backbone, which predicts "
                f"{taxonomy.granularities[0]}"
            )
    any_level = [place for place in everything if any(place in one for one in own)]
    return {output: any_level if output.role == "member" else own[output.index] for output in rewritten.names}


def _served(taxonomy: Taxonomy, level: int, chosen: Mapping[Output, Sequence[int]]) -> int:
    return chosen[Output("level", level)][0] if taxonomy.serve is None else taxonomy.index(taxonomy.serve[level])


def _without_unread(program: Program, before: Program, backbone: Program) -> Program:
    """Without the tensors of heads that no level has, unless the backbone has them."""
    read, was_read = ({str(node.target) for node in one.graph.find_nodes(op="get_attr")} for one in (program, before))
    unread = was_read - read - backbone.tensors.keys()
    tensors = {name: tensor for name, tensor in program.tensors.items() if name not in unread}
    return replace(program, tensors=tensors, transient=program.transient - unread)


def _with_names(rewritten: Rewritten) -> Program:
    """Tensors of heads under `anytime.<level>.taxonomy` if one level alone has them, else under `anytime.taxonomy`.

    The graph is our own: its names are changed in place."""
    program = rewritten.program
    readers: dict[str, set[int]] = {}
    for output, prediction in rewritten.outputs.items():
        for node in ancestors([prediction]) if output.role == "level" else ():
            if node.op == "get_attr":
                readers.setdefault(str(node.target), set()).add(output.index)
    settled = {name: names.settled(name, readers.get(name, ())) for name in program.tensors}
    for node in program.graph.find_nodes(op="get_attr"):
        node.target = settled[str(node.target)]
    return replace(program, tensors={settled[name]: tensor for name, tensor in program.tensors.items()})
