"""One level of a program as a standalone inference graph.

    low = linear(x, slice(w, 0, 0, 4))      ->      y = linear(x, w)        # w: its first 4 rows
    return low, full                                return y

The extract owns its tensors and has the backbone's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from anytimeify._torch import new_node
from anytimeify.codegen.call_signature import CallSignature
from anytimeify.codegen.to_modules import lifted
from anytimeify.contract.pass_manager import rewrite
from anytimeify.ir import Program, Structure, names
from anytimeify.passes.rewrites.cut_blocks import cut_blocks
from anytimeify.passes.rewrites.evaluate import evaluate
from anytimeify.passes.rewrites.fold import fold
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from anytimeify.passes.rewrites.project import project

__all__ = ["as_module", "extract", "small_program"]


def extract(
    program: Program,
    index: int,
    call_signature: CallSignature,
    *,
    positions: Sequence[int] | None = None,
    structure: Structure | None = None,
    merge_batch_norms: bool = False,
    dense: bool = False,
    copied: bool = True,
) -> fx.GraphModule:
    """Level `index`, the outputs at `positions`, as a plain `fx.GraphModule` in eval mode that owns its tensors. It
    returns the one output, or the outputs in a `structure`.

    1. keep those outputs alone, as eval mode computes them; 2. turn parameter views into small parameters; 3. give
    private parameters and nodes of the level the backbone's names; 4. if asked, merge batch norms, and evaluate what
    else depends on parameters; 5. unless `dense`, cut triangular layers into the blocks that they have; 6. turn into
    modules in inference form; 7. call it like the backbone. Running the result needs torch and nothing else.

    `copied=False`: its tensors are views of the program's, wherever they can be; whoever runs it does not write to it.
    """
    small = small_program(program, index, positions, computed=merge_batch_norms, copied=copied)
    small = fold_batch_norms(small) if merge_batch_norms else small
    return as_module(small if dense else cut_blocks(small), call_signature, structure)


@rewrite("extract")
def small_program(
    program: Program,
    index: int,
    positions: Sequence[int] | None = None,
    *,
    computed: bool = False,
    copied: bool = True,
) -> Program:
    """Steps 1 to 3. `computed` and `copied` as in `fold`."""
    alone = evaluate(project(program, [index] if positions is None else positions))
    small = fold(alone, computed=computed, copied=copied)
    return _with_backbone_names(_with_counters(small, program, copied=copied), index)


def as_module(program: Program, call_signature: CallSignature, structure: Structure | None = None) -> fx.GraphModule:
    """Steps 6 and 7."""
    module, graph = lifted(program, training=False)
    module.graph = call_signature.call_like_backbone(graph, structure)
    for node in module.graph.nodes:
        node.meta.clear()  # types of ours, which a copy or a pickle of the graph would drag along
    return module.eval()


def _with_counters(small: Program, program: Program, *, copied: bool) -> Program:
    """Batch norms count their batches in a buffer that no graph reads; state dicts hold it all the same."""
    counters = {}
    for name in small.tensors:
        counter = names.counter(name)
        if names.is_mean(name) and counter in program.tensors:
            counters[counter] = program.tensors[counter].clone() if copied else program.tensors[counter]
    return replace(small, tensors={**small.tensors, **counters})


def _with_backbone_names(program: Program, index: int) -> Program:
    """`anytime.<index>.layer1.weight` -> `layer1.weight`, `level<index>_add` -> `add`, where that name is free."""
    plain = names.backbone_names(program.tensors, index)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        target, name = node.target, names.backbone_node(node.name, index)
        if node.op == "get_attr":
            target = plain[str(node.target)]
            name = names.node_name(target)
        copies[node] = new_node(graph, node.op, target, args, kwargs, name=name)
        copies[node].meta.update(node.meta)
    tensors = {plain[name]: tensor for name, tensor in program.tensors.items()}
    return replace(
        program, graph=graph, tensors=tensors, transient=frozenset(map(plain.__getitem__, program.transient))
    )
