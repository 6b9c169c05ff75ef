"""What the canonical passes of capture work on: a graph on its way from `torch.export` to a `Program`.

Unlike the passes over programs, these edit the draft that they are given; nobody else holds it. Its nodes still carry
what the exporter wrote into `meta` (`val`, `nn_module_stack`, `stack_trace`); `finish` turns that into the metadata of
a program.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify import names
from anytimeify._torch import OpOverload
from anytimeify.errors import UnsupportedOpError
from anytimeify.ir import Origin
from anytimeify.schema import bound, rebind

__all__ = ["BufferMutation", "Draft", "describe", "fake", "insert", "origin_of", "replace", "update"]


class BufferMutation(Exception):  # noqa: N818  # a finding that capture acts on, not yet an error
    """The graph writes to a buffer or a parameter, which a functional program cannot say."""

    def __init__(self, tensor: str, node: fx.Node) -> None:
        super().__init__(f"'{tensor}' is written to by {describe(node)}")
        self.tensor = tensor


@dataclass
class Draft:
    """A graph, the tensors that it reads, and what was noticed on the way."""

    graph: fx.Graph
    tensors: dict[str, Tensor]
    transient: set[str]
    constant_inputs: list[tuple[int, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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


def fake(node: fx.Node) -> Tensor | None:
    """The tensor without data that the exporter recorded for a node; None if its value is not one tensor."""
    value = node.meta.get("val")
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


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n?\s*([^\n]*)')
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_GENERATED = "<eval_with_key>"  # code of graph modules: lines of any length that nobody wrote
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # what the exporter writes for sizes it asks for itself
_REPEATED_CALL = re.compile(r"@\d+(?=\.|$)")  # the second call of a module reads `layer1.relu@1`


def origin_of(node: fx.Node) -> Origin:
    """Innermost module and innermost source line outside torch."""
    path, module_class = "", ""
    stack = node.meta.get("nn_module_stack")
    if stack:
        path, kind = list(stack.values())[-1]
        module_class = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        path = "" if path == _NO_MODULE else _REPEATED_CALL.sub("", path)
    return Origin(path, module_class, _source(node.meta.get("stack_trace") or ""))


def _source(trace: str) -> str:
    for file, line, code in reversed(_FRAME.findall(trace)):
        if not file.startswith((_TORCH, _GENERATED)) and f"{os.sep}torch{os.sep}nn{os.sep}" not in file:
            return f"{os.path.basename(file)}:{line}: {code.strip()}".rstrip(": ")
    return ""


def describe(node: fx.Node) -> str:
    """A node as an error message shows it."""
    return f"'{node.target}' (node '{node.name}' of {origin_of(node)})"


def unsupported(node: fx.Node, why: str, what_to_do: str) -> UnsupportedOpError:
    return UnsupportedOpError(f"{describe(node)} {why}. {what_to_do}")
