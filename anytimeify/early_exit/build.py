"""From the joint graph of an anytime model to the graphs of a chain.

    h = f(x); low = a(h); full = b(h)       ->      stage 1: h = f(x); return h, a(h)
                                                    stage 2: return b(h)

Every stage owns its tensors and has the backbone's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import fx

from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.codegen.to_modules import to_modules
from anytimeify.contract.pass_manager import rewrite
from anytimeify.early_exit.cascade import Chain, Stage
from anytimeify.early_exit.network import Staged
from anytimeify.graph.traversal import descendants
from anytimeify.ir import Captured, Level, Program, Size, TensorType, names
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.rewritten import Rewritten
from anytimeify.passes.rewrites.fold import fold
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.rewrites.resume import Step, steps
from anytimeify.rules import has_kind

__all__ = ["build"]


def build(
    captured: Captured,
    rewritten: Rewritten,
    levels: Sequence[Level],
    *,
    merge_batch_norms: bool,
    granularity: int | None = None,
    scheme: str = "",
) -> Staged:
    """The given levels, in that order, as a staged network that owns its tensors. With a taxonomy each gives the
    granularity that it serves, or all of them one `granularity`.

    1. keep their outputs, where they are computed one from the other if there is such a form; 2. turn parameter views
    into small parameters, and merge batch norms, if asked; 3. cut into a chain, in which sizes and what depends on no
    input is computed where it is needed; 4. give private parameters of a level the backbone's names; 5. turn every
    step into modules in inference form. Running a stage needs torch and nothing else.
    """
    positions = [rewritten.position(level.index, granularity, role="step") for level in levels]
    program = fold(project(rewritten.program, positions))
    program = fold_batch_norms(program) if merge_batch_norms else program
    chain = _only_needed([_local_sizes(one) for one in steps(program.graph, program.outputs, _again(program))])
    batch_size, symbols = sizes(captured)
    stages, graphs = [], []
    for level, step in zip(levels, chain, strict=True):
        part = _with_backbone_names(_part(program, step), level.index)
        macs = sum(macs_by_node(part, captured.batch, batch_size, symbols).values())
        stages.append(Stage(level, step.reads, step.gives, macs))
        graphs.append(_lifted(part))
    values = {node.name: type_of(node) for node in program.graph.nodes}
    names = [*(node.name for node in program.placeholders), *(name for stage in stages for name in stage.gives)]
    described = Chain(
        tuple(node.name for node in program.placeholders),
        tuple(stages),
        {name: values[name] for name in names},
        captured.batch,
        captured.signature,
        captured.batch_range,
        scheme,
    )
    return Staged(described, graphs, example_inputs=captured.example_inputs)


def _again(program: Program) -> set[fx.Node]:
    """Sizes, and what is made of parameters alone: handing them on would tie a stage to the batch of the one before."""
    from_inputs = descendants(program.placeholders)
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return {node for node in calls if node not in from_inputs or isinstance(type_of(node), Size)}


def _local_sizes(step: Step) -> Step:
    """Sizes read off what the step reads anyway, where one has that size, so that no value is handed on for its size.

    Rewrites the step's own graph."""
    graph = step.graph
    placeholders = graph.find_nodes(op="placeholder")
    read = [node for node in placeholders if any(not has_kind(user, "size") for user in node.users)]
    for node in [node for node in graph.nodes if has_kind(node, "size")]:
        if node.all_input_nodes[0] in read:
            continue
        found = next(((one, dim) for one, dim in _dimensions(read) if type_of(one).shape[dim] == type_of(node)), None)
        if found is not None:
            node.args, node.kwargs = found, {}
    return replace(step, reads=_without_unread(graph))


def _dimensions(nodes: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, int]]:
    for node in nodes:
        if isinstance(type_of(node), TensorType):
            yield from ((node, dim) for dim in range(len(type_of(node).shape)))


def _only_needed(chain: Sequence[Step]) -> list[Step]:
    """Steps that give what later ones read, and their prediction."""
    result: list[Step] = []
    for step in reversed(chain):
        later = {name for following in result for name in following.reads}
        output = step.graph.output_node()
        nodes: tuple[fx.Node, ...] = output.args[0]  # type: ignore[assignment]  # canonical: a flat tuple
        kept = [place for place, name in enumerate(step.gives) if name in later or place == len(nodes) - 1]
        output.args = (tuple(nodes[place] for place in kept),)
        step.graph.eliminate_dead_code()
        reads = _without_unread(step.graph)
        result.insert(0, Step(step.graph, reads, tuple(step.gives[place] for place in kept)))
    return result


def _without_unread(graph: fx.Graph) -> tuple[str, ...]:
    """Erases placeholders that nothing reads; the names of the others."""
    for node in graph.find_nodes(op="placeholder"):
        if not node.users:
            graph.erase_node(node)
    return tuple(node.name for node in graph.find_nodes(op="placeholder"))


@rewrite("part of a stage")
def _part(program: Program, step: Step) -> Program:
    names = {str(node.target) for node in step.graph.find_nodes(op="get_attr")}
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in names}
    return Program(step.graph, tensors, program.transient & names)


def _with_backbone_names(program: Program, index: int) -> Program:
    """`anytime.<index>.layer1.weight` -> `layer1.weight`, where that name is free in this stage."""
    plain = names.backbone_names(program.tensors, index)
    for node in program.graph.find_nodes(op="get_attr"):
        node.target = plain[str(node.target)]
    tensors = {plain[name]: tensor for name, tensor in program.tensors.items()}
    return Program(program.graph, tensors, frozenset(plain[name] for name in program.transient))


def _lifted(program: Program) -> fx.GraphModule:
    module = to_modules(program, training=False)
    for node in module.graph.nodes:
        node.meta.clear()  # types of ours, which a copy or a pickle of the graph would drag along
    return module
