"""`interpret`: what a program computes in eval mode, operation by operation: without modules, without code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify.ir import Program
from anytimeify.ir.schema import bound, rebind
from anytimeify.passes.rewrites.evaluate import evaluate
from anytimeify.rules import traits

__all__ = ["interpret"]


def interpret(
    program: Program,
    inputs: Sequence[Tensor],
    *,
    tensors: Mapping[str, Tensor] | None = None,
    seen: Callable[[fx.Node, Any], None] | None = None,
) -> tuple[Tensor, ...]:
    """The outputs in eval mode, without gradients unless `tensors` are given to compute with in place of the program's.
    `seen` is told the value of every call. Values are let go of after their last use."""
    evaluated = evaluate(program)
    graph = evaluated.graph
    given = iter(inputs)
    values: dict[fx.Node, Any] = {}
    last = _last_uses(graph)
    with torch.set_grad_enabled(tensors is not None):
        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                name = str(node.target)
                values[node] = program.tensors[name].detach() if tensors is None else tensors[name]
            elif node.op == "call_function":
                values[node] = _evaluated(node, values)
                if seen is not None:
                    seen(node, values[node])
            for done in last.get(node, ()):
                del values[done]
    return tuple(values[node] for node in evaluated.outputs)


def _evaluated(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    rule: Any = traits(node)
    args, kwargs = node.args, node.kwargs
    if rule.evaluation is not None or rule.training is not None:
        named = bound(node)
        if rule.evaluation is not None:
            return values[named[rule.evaluation]]
        if named.get("running_mean", True) is not None:  # without, a norm has one meaning only
            never = type(named[rule.training])()  # False, or a probability of 0
            args, kwargs = rebind(node.target, {**named, rule.training: never})  # type: ignore[arg-type]  # an overload
    args, kwargs = fx.map_arg((args, kwargs), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]  # a call


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The calls and inputs whose values nothing reads any more, by the node after which that is so."""
    seen = {graph.output_node()}
    seen.update(graph.output_node().all_input_nodes)
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        done = [one for one in (node, *node.all_input_nodes) if one not in seen]
        seen.update(done)
        if node.op != "output":
            last[node] = list(dict.fromkeys(done))
    return last
