"""Which tensors an inference graph holds in place of what depends on tensors alone.

A weight of a narrow level is a part of a parameter: an extract holds the part. A table of relative positions is
gathered from a smaller one: an extract holds the small one and gathers, as the network itself does. The rule is that
nothing is evaluated beforehand which makes more of parameters than there was, and that no element is held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from anytimeify._torch import OpOverload
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, Size, TensorType, result_of
from anytimeify.ir.node_meta import is_masked, type_of
from anytimeify.ir.schema import bound, is_mutable
from anytimeify.rules import has_kind, traits
from anytimeify.rules.create import is_uninitialised

__all__ = ["Stored", "base", "deterministic", "elements", "fits", "identity", "needed", "stored"]


@dataclass(frozen=True)
class Stored:
    """`nodes`: those whose values are held, in graph order; sizes among them are numbers. `parameters`: those of them
    that are parameters, or made of some. `known`: all that are held or only needed to evaluate these. Whatever else
    depends on tensors alone is computed when the graph runs."""

    nodes: tuple[fx.Node, ...]
    parameters: frozenset[fx.Node]
    known: frozenset[fx.Node]


def stored(program: Program, *, computed: bool = False, outputs: Sequence[fx.Node] | None = None) -> Stored:
    """What an inference form of a program holds, or of what some of its outputs need.

    Of parameters these are the parts that are read, and masked weights as they are when masked: exactly what the same
    network built thin has. With `computed=True` every other result of parameters is held too (a standardised weight),
    if it has no more elements than the parameters that it is made of. Results of buffers are held if they have no more
    elements than these. Reshapes stay operations, so that tensors keep their names and shapes.
    """
    return _Planner(program, computed, program.outputs if outputs is None else outputs).run()


class _Planner:
    def __init__(self, program: Program, computed: bool, outputs: Sequence[fx.Node]) -> None:
        self.program, self.computed, self.outputs = program, computed, frozenset(outputs)
        self.needed = needed(program, outputs)
        self.constant: dict[fx.Node, None] = {}
        self.parameters: set[fx.Node] = set()  # what is made of parameters
        for node in self.needed:
            sources = node.all_input_nodes
            if node.op == "get_attr":
                self.constant[node] = None
                self.parameters |= {node} if program.is_parameter(str(node.target)) else set()
            elif deterministic(node) and all(source in self.constant for source in sources):
                self.constant[node] = None
                self.parameters |= set() if self.parameters.isdisjoint(sources) else {node}

    def run(self) -> Stored:
        smallest = self.smallest()
        read = [node for node in self.constant if self.is_read(node)]
        chosen = self.once(frozenset[fx.Node]().union(*(smallest[node] for node in read)))
        live: set[fx.Node] = set()
        held: set[fx.Node] = set()

        def read_by_graph(source: fx.Node) -> None:
            if source in chosen or source.op == "get_attr":
                held.add(source)
            elif source in self.constant:
                live.add(source)

        for node in self.outputs:
            read_by_graph(node)
        for node in reversed(self.needed):
            for source in () if node in self.constant and node not in live else node.all_input_nodes:
                read_by_graph(source)
        nodes = tuple(node for node in self.constant if node in held)
        return Stored(nodes, frozenset(self.parameters & held), frozenset(self.constant.keys() - live))

    def is_read(self, node: fx.Node) -> bool:
        """Whether anything that is no constant needs a node."""
        return node in self.outputs or any(user in self.needed and user not in self.constant for user in node.users)

    def smallest(self) -> dict[fx.Node, frozenset[fx.Node]]:
        """For everything constant, the nodes with the fewest elements that it can be computed from."""
        smallest: dict[fx.Node, frozenset[fx.Node]] = {}
        for node in self.constant:
            if node.op == "get_attr":
                smallest[node] = frozenset({node})
                continue
            below = frozenset[fx.Node]().union(*(smallest[source] for source in node.all_input_nodes))
            made_of = sum(elements(one) for one in below if (one in self.parameters) == (node in self.parameters))
            held = self.may_be_held(node) and elements(node) <= made_of
            smallest[node] = frozenset({node}) if held else below
        return smallest

    def may_be_held(self, node: fx.Node) -> bool:
        if not isinstance(type_of(node), TensorType):
            return not isinstance(type_of(node), tuple)
        if has_kind(node, "expansion") or _only_reshapes(node):  # what repeats elements costs nothing as it is
            return False
        part = has_kind(node, "selection") and base(node) is not None
        return self.computed or node not in self.parameters or part or is_masked(node)

    def once(self, chosen: Set[fx.Node]) -> Set[fx.Node]:
        """The same without what is a result of the others, and with whole parameters instead of more than these."""
        kept, buffers = set(chosen), self.constant.keys() - self.parameters
        parts: dict[fx.Node, list[fx.Node]] = {}
        for node in kept:
            roots = self.reached(node, buffers.__contains__)
            if node.op == "call_function" and elements(node) and len(roots) == 1:
                parts.setdefault(roots.pop(), []).append(node)
        for root, own in parts.items():
            distinct = {identity(self.program, node): elements(node) for node in own}
            if sum(distinct.values()) > elements(root):
                kept = (kept - set(own)) | {root}
        for node in reversed(self.constant):
            if node in kept and node in self.parameters and node.op == "call_function" and elements(node):
                others = kept - {node}
                if not self.reached(node, lambda one: one in others or one in buffers):  # noqa: B023  # called at once
                    kept = others
        return kept

    def reached(self, node: fx.Node, ends: Callable[[fx.Node], bool]) -> set[fx.Node]:
        """The parameters that a node is made of, as far as they are not only met beyond `ends`."""
        return {one for one in ancestors([node], stop=ends) if one.op == "get_attr"}


def needed(program: Program, outputs: Sequence[fx.Node] | None = None) -> dict[fx.Node, None]:
    """The nodes that the outputs depend on, or some of them, in graph order."""
    found = ancestors(program.outputs if outputs is None else outputs)
    return {node: None for node in program.graph.nodes if node in found}


def deterministic(node: fx.Node) -> bool:
    """Whether a call always gives the same result for the same arguments, in training and in evaluation."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):
        return result_of(node) is not None
    if node.target.namespace != "aten" or is_mutable(node.target) or is_uninitialised(node):
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags or has_kind(node, "dropout", "random"):
        return False
    # A norm with running statistics; without them it standardises weights and has one meaning only.
    return traits(node).training is None or bound(node).get("running_mean") is None


def elements(node: fx.Node) -> int:
    """Entries of a node's value, or of all its values."""
    kind = type_of(node)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return sum(one.size.coefficient for one in kinds if isinstance(one, TensorType))


def base(node: fx.Node) -> fx.Node | None:
    """The `get_attr` node that a chain of selections, reshapes and masks starts from."""
    while node.op == "call_function":
        masked = has_kind(node, "pointwise") and is_masked(node)
        if not masked and not has_kind(node, "selection", "reshape"):
            return None
        node = node.all_input_nodes[0]
    return node


def fits(shape: Sequence[Size], whole: Sequence[Size]) -> bool:
    """Whether a tensor of one shape can be a part of a tensor of another."""
    pairs = zip(shape, whole, strict=False)
    return len(shape) == len(whole) and all(size.coefficient <= limit.coefficient for size, limit in pairs)


def identity(program: Program, node: fx.Node) -> Any:
    """What is equal for nodes that hold one value: the same operations on the same tensors, under whatever names."""
    if node.op == "get_attr":
        return id(program.tensors[str(node.target)])
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _Named(repr(identity(program, source))))
    return str(node.target), repr(args), repr(kwargs)


class _Named(str):
    def __repr__(self) -> str:
        return str(self)


def _only_reshapes(node: fx.Node) -> bool:
    """Whether a node gives a parameter, or a part of one, another shape: without it the parameter keeps its name."""
    if has_kind(node, "permutation"):
        return base(node.all_input_nodes[0]) is not None
    whole = base(node) if has_kind(node, "reshape") else None
    return whole is not None and not fits(type_of(node).shape, type_of(whole).shape)
