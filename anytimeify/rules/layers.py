"""What a layer is.

A layer multiplies its input with weights, and adds up: by its rule some dimension of an operand that is computed from
parameters alone (through views, normalisations, products) is contracted with one of an operand that is not. A recurrent
layer says which of its arguments hold weights. Attention has none: what it multiplies depends on the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from anytimeify.graph.traversal import ancestors, reachable
from anytimeify.ir import Program, Size
from anytimeify.ir.node_meta import packed_of, type_of
from anytimeify.ir.schema import bound
from anytimeify.rules.op import flat_nodes
from anytimeify.rules.table import contractions, has_kind, tensor_operands, traits

__all__ = ["Layers", "may_be_weights"]


def may_be_weights(node: fx.Node) -> list[fx.Node]:
    """The operands of a call that would be its weights if they were computed from parameters alone."""
    rule = traits(node)
    if rule.kind == "attention":
        return []
    if rule.weights:
        given = bound(node)
        return list(flat_nodes([given[name] for name in rule.weights]))
    found = [one.weight for one in contractions(node)]
    if not found and rule.kind == "layer":  # of which no notation says more
        found = [one for one in tensor_operands(node) if len(type_of(one).shape) > 1]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Layers:
    """The layers of a program."""

    program: Program

    @cached_property
    def constant(self) -> Mapping[fx.Node, bool]:
        """What depends on tensors of the program alone, and whether on a parameter among them."""
        found: dict[fx.Node, bool] = {}
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                found[node] = self.program.is_parameter(str(node.target))
            elif node.op == "call_function" and all(source in found for source in node.all_input_nodes):
                found[node] = any(found[source] for source in node.all_input_nodes)
        return found

    @cached_property
    def weights(self) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
        """The layers in graph order, each with its weights."""
        found = {}
        for node in self.program.graph.nodes:
            if node in self.constant or not any(map(self.constant.get, node.all_input_nodes)):
                continue
            if node.op == "call_function":
                own = tuple(one for one in may_be_weights(node) if self.constant.get(one, False))
                if own:
                    found[node] = own
        return found

    @cached_property
    def last(self) -> tuple[fx.Node, ...]:
        """The heads: the last layers on every way to an output, after norms, scaling, softmax and whatever else."""
        return tuple(node for node in self._from_last_layers if node in self.weights)

    @cached_property
    def _from_last_layers(self) -> Mapping[fx.Node, None]:
        """The last layers, and all between them and the outputs."""
        return reachable(
            self.program.outputs,
            lambda node: () if node in self.weights else node.all_input_nodes,
            stop=lambda node: node.op != "call_function" or node in self.constant or node in self._inside,
        )

    @cached_property
    def _inside(self) -> Set[fx.Node]:
        """What layers that train read, where all that a network returns stands side by side: a hidden state is no
        prediction, though it is returned."""
        if not any(map(packed_of, self.program.outputs)):
            return set()
        trained = [node for node, own in self.weights.items() if any(map(self._trains, own))]
        read = [source for node in trained for source in node.all_input_nodes if source not in self.constant]
        return ancestors(read)

    def _trains(self, weight: fx.Node) -> bool:
        if weight.op == "get_attr":
            return bool(self.program.tensors[str(weight.target)].requires_grad)
        return any(map(self._trains, weight.all_input_nodes))

    @cached_property
    def _only_returned(self) -> Set[fx.Node]:
        """Tables that a network returns and reads nowhere, repeated for every sample, where all that it returns stands
        side by side."""
        found = {node for node in self.program.outputs if packed_of(node)}
        tables: set[fx.Node] = set()
        for node in self.program.graph.nodes if found else ():
            operands = [one for one in node.all_input_nodes if not isinstance(type_of(one), Size)]
            repeated = node.op == "call_function" and bool(operands) and tables.issuperset(operands)
            if repeated or self.constant.get(node) is False:
                tables.add(node)
        for node in reversed(self.program.graph.nodes):
            if node in tables and node.users and found.issuperset(node.users):
                found.add(node)
        return found

    @cached_property
    def head_operands(self) -> Set[fx.Node]:
        """What is computed from tensors alone, and read by heads and what follows them but norms, and by nothing else:
        the tensors of the heads, and calls on the way to them."""
        readers = {node for node in self._from_last_layers if not has_kind(node, "norm")}
        found: set[fx.Node] = set()
        only_returned = self._only_returned
        for node in reversed(self.program.graph.nodes):
            if node in only_returned:
                continue
            own = node in self.constant and not isinstance(node.meta.get("type"), Size)
            if own and node.users and all(user in readers or user in found for user in node.users):
                found.add(node)
        return found
