"""Programs, and how they are printed.

A `Program` is a canonical `torch.fx` graph in functional form plus the tensors it reads:

* `placeholder` nodes are the model's tensor inputs, in call order;
* `get_attr` nodes read parameters and buffers, under the backbone's own names;
* `call_function` nodes call ATen operators, `operator.getitem`, or integer arithmetic on sizes;
* the one `output` node returns a flat tuple of nodes.

Nodes carry a type, an origin and, where the backbone runs them under `torch.utils.checkpoint`, the number of that part
of the network: `meta["type"]`, `meta["origin"]`, `meta["checkpoint"]`.

Operations that behave differently in training and evaluation (batch norm, dropout, stochastic depth) are written in
their training form; `anytimeify.codegen.to_modules` turns them into modules, as the last step before a graph is run
or shown. `anytimeify.contract.spec` holds the table of what is canonical and the function that verifies it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify.ir.types import type_text

__all__ = ["Program", "result_of"]


@dataclass(frozen=True)
class Program:
    """A canonical graph and the tensors it reads. Passes take one and give a new one, tensors shared by reference."""

    graph: fx.Graph
    tensors: Mapping[str, Tensor]  # parameters and buffers by name; may hold some that the graph does not read
    transient: frozenset[str] = frozenset()  # names of buffers that are not part of a state dict
    passes: tuple[str, ...] = ()  # the passes that made it, in order: see `anytimeify.contract.pass_manager`

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        result = self.graph.output_node().args[0]
        assert isinstance(result, tuple)
        return result  # type: ignore[return-value]  # canonical: a flat tuple of nodes

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        return tuple(self.graph.find_nodes(op="placeholder"))

    def is_parameter(self, name: str) -> bool:
        return isinstance(self.tensors[name], torch.nn.Parameter)

    def __str__(self) -> str:
        """One line per node: its name, its operation, its operands and its type."""
        return "\n".join(_line(node) for node in self.graph.nodes)


def result_of(node: fx.Node) -> fx.Node | None:
    """The call that gives several results, of which a node is one; None where it is not one of several."""
    source = node.args[0] if node.target is operator.getitem else None
    return source if isinstance(source, fx.Node) and isinstance(source.meta["type"], tuple) else None


def _line(node: fx.Node) -> str:
    if node.op == "output":
        return f"return {', '.join(map(_text, node.args[0]))}"  # type: ignore[arg-type]  # canonical: a flat tuple
    kind = f"  # {type_text(node.meta.get('type'))}"
    if node.op == "placeholder":
        return f"{node.name} = input{kind}"
    if node.op == "get_attr":
        return f"{node.name} = {node.target}{kind}"
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    name = getattr(node.target, "__name__", name) if not hasattr(node.target, "_schema") else name
    arguments = [*map(_text, node.args), *(f"{key}={_text(value)}" for key, value in node.kwargs.items())]
    return f"{node.name} = {name}({', '.join(arguments)}){kind}"


def _text(value: Any) -> str:
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list | tuple) else str(value)
