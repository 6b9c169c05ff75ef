"""What the canonical passes of capture work on: a graph on its way from `torch.export` to a `Program`.

Unlike the passes over programs, these edit the work graph that they are given; nobody else holds it. Its nodes still
carry what the exporter wrote into `meta` (`val`, `nn_module_stack`, `stack_trace`); `finish` turns that into the
metadata of a program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor, fx, nn

from anytimeify._torch import OpOverload
from anytimeify.contract.pass_manager import run_pass
from anytimeify.errors import Finding, UnsupportedOpError
from anytimeify.ir import names
from anytimeify.ir.node_meta import origin_of, value_of
from anytimeify.ir.schema import bound, rebind

__all__ = ["BufferMutation", "WorkGraph", "describe", "fake", "insert", "replace", "step", "update"]


P = ParamSpec("P")
R = TypeVar("R")


class BufferMutation(Finding):
    """The graph writes to a buffer or a parameter, which a functional program cannot say."""

    def __init__(self, tensor: str, node: fx.Node) -> None:
        super().__init__(f"'{tensor}' is written to by {describe(node)}")
        self.tensor = tensor


@dataclass
class WorkGraph:
    """A graph, the tensors that it reads, and what was noticed on the way."""

    graph: fx.Graph
    tensors: dict[str, Tensor]
    transient: set[str]
    constant_inputs: list[tuple[int, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passes: list[str] = field(default_factory=list)  # the steps that ran

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """A new transient buffer `anytime.constants.<name>` and the node that reads it."""
        name = f"{name}_" if hasattr(nn.Module, name) else name  # `to`, `type`: attributes of every module
        target = names.fresh(names.CONSTANTS + name, set(self.tensors))
        self.tensors[target] = value
        self.transient.add(target)
        first = next((node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr")), None)
        with self.graph.inserting_before(first):
            node = self.graph.get_attr(target)
        node.meta["val"] = value.to("meta")
        return node


def step(name: str) -> Callable[[Callable[Concatenate[WorkGraph, P], R]], Callable[Concatenate[WorkGraph, P], R]]:
    """Declares a step of capture, which edits the work graph that it is given first: `run_pass`, and a note in it."""

    def declared(function: Callable[Concatenate[WorkGraph, P], R]) -> Callable[Concatenate[WorkGraph, P], R]:
        @wraps(function)
        def called(work: WorkGraph, /, *args: P.args, **kwargs: P.kwargs) -> R:
            result = run_pass(name, function, work, *args, **kwargs)
            work.passes.append(name)
            return result

        return called

    return declared


def fake(node: fx.Node) -> Tensor | None:
    """The tensor without data that the exporter recorded for a node; None if its value is not one tensor."""
    value = value_of(node)
    return value if isinstance(value, Tensor) else None


def insert(node: fx.Node, target: Callable[..., Any], *args: Any, val: Any = None, **kwargs: Any) -> fx.Node:
    """A call in front of `node` that inherits its metadata."""
    graph = node.graph
    with graph.inserting_before(node):
        new = graph.call_function(target, args, kwargs)
    new.meta = dict(node.meta)
    if val is not None:
        new.meta["val"] = val
    return new


def replace(node: fx.Node, by: fx.Node) -> None:
    """Lets every user of `node` read `by`, and removes `node`."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def update(node: fx.Node, target: OpOverload | None = None, **values: Any) -> None:
    """Changes the operation or some arguments of a call, named as in the schema."""
    assert isinstance(node.target, OpOverload)
    new = target or node.target
    node.args, node.kwargs = rebind(new, {**bound(node), **values})
    node.target = new


def describe(node: fx.Node) -> str:
    """A node as an error message shows it."""
    return f"'{node.target}' (node '{node.name}' of {origin_of(node)})"


def unsupported(node: fx.Node, why: str, what_to_do: str) -> UnsupportedOpError:
    return UnsupportedOpError(f"{describe(node)} {why}. {what_to_do}")
