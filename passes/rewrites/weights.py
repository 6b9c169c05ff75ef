"""The weights of a program: what its layers multiply their inputs with.

Of a layer (`anytimeify.rules.layers`) the weight is

1. a parameter that reaches it as it is, or through views (a transposition, one of the parts of a packed projection);
2. or what is computed of parameters alone (a standardised or normalised weight): then the result is the weight, for a
   zero of the parameter would not be a zero of it.

Matrices and tensors of more dimensions, that is: biases, scales and norms are none. Neither are tensors that anything
but a layer reads too (an embedding that is tied to the head), or of which nothing is a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from anytimeify.analysis.stored_elements import deterministic
from anytimeify.graph.traversal import ancestors, descendants
from anytimeify.ir import Program, Size, TensorType, result_of
from anytimeify.ir.node_meta import type_of
from anytimeify.rules import Layers, traits
from anytimeify.rules.layers import may_be_weights

__all__ = ["Weight", "find_weights"]


@dataclass(frozen=True)
class Weight:
    """One weight: its `name` is that of the parameter, of which it may be a result.

    `nodes`: those that give it, several where the parameter has several names. `first`, `last`: whether no layer comes
    before all that read it, or after.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    first: bool
    last: bool

    @property
    def entries(self) -> int:
        kind: TensorType = type_of(self.nodes[0])
        return kind.size.coefficient

    def named(self, patterns: tuple[str, ...]) -> bool:
        """Whether a pattern names the parameter, the layer that has it, or a part of the network that holds it."""
        path = self.name.split(".")
        names = [".".join(path[:count]) for count in range(1, len(path) + 1)]
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def find_weights(program: Program) -> tuple[list[Weight], list[str]]:
    """The weights of a program in its order, and notes on parameters of layers that are none."""
    finder = _Finder(program)
    return finder.run(), finder.notes


class _Finder:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.notes: list[str] = []
        self.constant: set[fx.Node] = set()
        for node in program.graph.nodes:
            if node.op == "get_attr" or (deterministic(node) and self.constant.issuperset(node.all_input_nodes)):
                self.constant.add(node)
        self.layers = tuple(Layers(program).weights)
        self.after = descendants(user for layer in self.layers for user in layer.users)
        self.before = ancestors([source for layer in self.layers for source in layer.all_input_nodes])

    def run(self) -> list[Weight]:
        readers = self.readers()
        found: list[Weight] = []
        taken: set[str] = set()
        for nodes in self.tied(readers):
            name = self.name(nodes[0])
            if name is None:
                continue
            if not all(node in readers or not node.users for node in nodes) or not all(map(self.only_weighs, nodes)):
                self.notes.append(f"{name} is no weight of a layer alone: something else reads it too")
                continue
            while name in taken:  # two results of one parameter
                name += "_"
            taken.add(name)
            layers = [layer for node in nodes for layer in readers.get(node, ())]
            first, last = self.after.isdisjoint(layers), self.before.isdisjoint(layers)
            found.append(Weight(name, tuple(node for node in nodes if node in readers), first, last))
        return found

    def readers(self) -> dict[fx.Node, list[fx.Node]]:
        """The layers that read what may be a weight, by the node that gives it."""
        readers: dict[fx.Node, list[fx.Node]] = {}
        for layer in self.layers:
            for operand in may_be_weights(layer):
                if operand in self.constant and _is_matrix(operand):
                    readers.setdefault(self.root(operand), []).append(layer)
        return readers

    def tied(self, readers: Mapping[fx.Node, Sequence[fx.Node]]) -> Iterator[list[fx.Node]]:
        """The nodes that layers read, in graph order, each with the other nodes that read the same tensor."""
        groups: dict[int, list[fx.Node]] = {}
        for node in self.program.graph.nodes:
            if node.op == "get_attr" or node in readers:
                of = self.program.tensors[str(node.target)] if node.op == "get_attr" else node
                groups.setdefault(id(of), []).append(node)
        return (nodes for nodes in groups.values() if any(node in readers for node in nodes))

    def root(self, node: fx.Node) -> fx.Node:
        """What a chain of views starts from."""
        while node.op == "call_function" and _is_part(node):
            node = node.args[0]  # type: ignore[assignment]  # a view of a node
        return node

    def name(self, node: fx.Node) -> str | None:
        """The largest parameter that a node is made of; None where that is none with several dimensions."""
        read = [str(one.target) for one in ancestors([node]) if one.op == "get_attr"]
        parameters = [name for name in read if self.program.is_parameter(name) and self.program.tensors[name].ndim > 1]
        return min(parameters, key=lambda name: (-self.program.tensors[name].numel(), name), default=None)

    def only_weighs(self, node: fx.Node) -> bool:
        """Whether every way from a node leads to where a layer takes a weight."""
        for user in node.users:
            if isinstance(type_of(user), Size):
                continue
            if user in self.constant:
                if not (_is_part(user) and user.args[0] is node and self.only_weighs(user)):
                    return False
            elif (
                user.op != "call_function"
                or user not in self.layers
                or node in (set(user.all_input_nodes) - set(may_be_weights(user)))
            ):
                return False
        return True


def _is_part(node: fx.Node) -> bool:
    """Whether a node gives elements of its first operand, and nothing else."""
    rule = traits(node)
    if rule.view or rule.kind in ("selection", "split", "cast"):
        return True
    source = result_of(node)
    return source is not None and _is_part(source)


def _is_matrix(node: fx.Node) -> bool:
    kind = type_of(node)
    if not isinstance(kind, TensorType) or len(kind.shape) < 2 or not kind.size.static or kind.size.coefficient < 2:
        return False
    return bool(kind.dtype.is_floating_point or kind.dtype.is_complex)
