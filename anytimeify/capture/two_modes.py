"""Merges what a model computes in train mode and in eval mode into one program.

    train: y = relu(h)      ->      y = by_mode(relu(h), tanh(h))
    eval:  y = tanh(h)

Both programs read the same tensors under the same names, and mostly hold the same operations. Where they part, a
`by_mode` chooses between the two values; from there on operations are shared again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify._torch import OpOverload, copy_node
from anytimeify.capture.side_by_side import renamed, symbols_of
from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import CaptureError
from anytimeify.ir import Program
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.schema import bound
from anytimeify.operators.modes import AFTER, BY_MODE
from anytimeify.passes.rewrites.project import project
from anytimeify.rules.table import has_kind
from anytimeify.rules.training import is_random, told_by_mode

__all__ = ["merge"]


@rewrite("merge both modes")
def merge(training: Program, evaluation: Program, *, apart: bool = False) -> Program:
    """A program that computes `training` in train mode and `evaluation` in eval mode; both have the same inputs. The
    second has its norms in their evaluation form. Both have one output, and so has the result; or their outputs stand
    `apart` in it, those of the evaluation first.

    1. Operations of the evaluation, in its order, are paired with those of the same name that differ in flags of the
       mode and in operands only; where operands differ, a `by_mode` chooses.
    2. What has no counterpart is copied, and a `by_mode` behind it is what the shared operations read.

    `CaptureError` where the two give results of different types that do not stand apart."""
    return _Merger(training, evaluation, apart).run()


class _Merger:
    """`trained` and `evaluated` hold the node of the new graph that has the value of an old one, in its mode."""

    def __init__(self, training: Program, evaluation: Program, apart: bool) -> None:
        self.training, self.evaluation, self.apart = training, evaluation, apart
        self.graph = fx.Graph()
        self.names: set[str] = set()
        self.trained: dict[fx.Node, fx.Node] = {}
        self.evaluated: dict[fx.Node, fx.Node] = {}
        self.chosen: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        self.symbols = symbols_of(training, evaluation)
        self.tensors: dict[str, Tensor] = dict(training.tensors)
        self.transient = set(training.transient)

    def run(self) -> Program:
        self.place_inputs()
        waiting = [node for node in self.training.graph.nodes if node.op == "call_function"]
        order = {node.name: place for place, node in enumerate(waiting)}
        done = 0
        for node in self.evaluation.graph.nodes:
            if node.op != "call_function":
                continue
            place = order.get(node.name, -1)
            while done < place:
                self.take(waiting[done])
                done += 1
            if place == done and self.pair(waiting[done], node):
                done += 1
            else:
                self.evaluated[node] = self.found(node) or self.copy(node, self.evaluated, self.symbols)
        for node in waiting[done:]:
            self.take(node)
        output = self.graph.output(self.results())
        output.meta = dict(self.training.graph.output_node().meta)
        whole = Program(self.graph, self.tensors, frozenset(self.transient))
        return project(whole, range(len(whole.outputs)), keep_tensors=True)

    def results(self) -> tuple[fx.Node, ...]:
        if self.apart:
            evaluated = [self.evaluated[node] for node in self.evaluation.outputs]
            return (*evaluated, *(self.trained[node] for node in self.training.outputs))
        (one,), (other,) = self.training.outputs, self.evaluation.outputs
        return (self.choose(self.trained[one], self.evaluated[other]),)

    def place_inputs(self) -> None:
        for one, other in zip(self.training.placeholders, self.evaluation.placeholders, strict=True):
            self.trained[one] = self.evaluated[other] = copy_node(self.graph, one)
            self.names.add(one.name)
        readers: dict[str, fx.Node] = {}
        for node in self.training.graph.find_nodes(op="get_attr"):
            readers[str(node.target)] = self.trained[node] = self.copy(node, self.trained)
        for node in self.evaluation.graph.find_nodes(op="get_attr"):
            name = self.tensor(str(node.target))
            if name not in readers:
                readers[name] = self.copy(node, self.evaluated)
                readers[name].target = name
            self.evaluated[node] = readers[name]

    def tensor(self, name: str) -> str:
        """Where a tensor of the evaluation is found; constants that the exporter made may share a name by chance."""
        value, found = self.evaluation.tensors[name], self.tensors.get(name)
        while found is not None and not _same_tensor(found, value):
            name += "_"
            found = self.tensors.get(name)
        if found is None:
            self.tensors[name] = value
            self.transient |= {name} if name not in self.training.tensors else set()
        return name

    def take(self, node: fx.Node) -> None:
        self.trained[node] = self.copy(node, self.trained)

    def pair(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether both are one operation, which is then written once."""
        if one.target is not other.target or isinstance(type_of(one), tuple):
            return False
        if renamed(type_of(other), self.symbols) != type_of(one):
            return False
        pairs = _operands(one, other)
        if pairs is None:
            return False
        values = [(node, self.trained[node], self.evaluated[mate]) for node, mate in pairs.items()]
        if not all(_interchangeable(first, second) for _, first, second in values):
            return False
        operands = {node: self.choose(first, second) for node, first, second in values}
        self.trained[one] = self.evaluated[other] = self.copy(one, operands)
        return True

    def found(self, node: fx.Node) -> fx.Node | None:
        """What computes the same for train mode already, under another name."""
        if not isinstance(node.target, OpOverload) or is_random(node.target):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.evaluated.__getitem__)
        for user in (user for one in node.all_input_nodes for user in self.evaluated[one].users):
            if user.target is node.target and user.args == args and user.kwargs == kwargs:
                return user
        return None

    def choose(self, training: fx.Node, evaluation: fx.Node) -> fx.Node:
        if _idle(training) is evaluation:
            return training
        key = training, evaluation
        if key not in self.chosen:
            if type_of(training) != type_of(evaluation):
                raise CaptureError("train mode and eval mode compute tensors of different shapes")
            node = self.graph.create_node("call_function", BY_MODE, key, name=self.free(f"{training.name}_by_mode"))
            node.meta = dict(evaluation.meta)
            self.chosen[key] = node
        return self.chosen[key]

    def copy(
        self, node: fx.Node, values: Mapping[fx.Node, fx.Node], symbols: Mapping[str, str] | None = None
    ) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        new = self.graph.create_node(node.op, node.target, args, kwargs, self.free(node.name))
        new.meta = {**node.meta, "type": renamed(type_of(node), symbols or {})}
        return new

    def free(self, name: str) -> str:
        while name in self.names:
            name += "_evaluation"
        self.names.add(name)
        return name


def _interchangeable(one: fx.Node, other: fx.Node) -> bool:
    """Whether a `by_mode` can choose between two values, which have to be single tensors."""
    return one is other or (type_of(one) == type_of(other) and not isinstance(type_of(one), tuple))


def _idle(node: fx.Node) -> fx.Node:
    """What a node is in eval mode."""
    while node.target is AFTER or has_kind(node, "dropout", "stochastic depth"):
        node = node.args[0]  # type: ignore[assignment]  # by their schemas
    return node


def _operands(one: fx.Node, other: fx.Node) -> dict[fx.Node, fx.Node] | None:
    """The operands of two calls that stand in the same places; None where the calls differ in more than these."""
    found: dict[fx.Node, fx.Node] = {}
    mine, yours = bound(one), bound(other)
    for name, value in mine.items():
        if told_by_mode(name):
            continue
        places: tuple[list[fx.Node], list[fx.Node]] = ([], [])
        forms = [_form(each, place) for each, place in zip((value, yours[name]), places, strict=True)]
        if forms[0] != forms[1]:
            return None
        for node, mate in zip(*places, strict=True):
            if found.setdefault(node, mate) is not mate:
                return None
    return found


def _form(value: Any, nodes: list[fx.Node]) -> Any:
    """A value without its nodes, which are collected."""

    def collect(node: fx.Node) -> str:
        nodes.append(node)
        return "node"

    return fx.map_arg(value, collect)


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_meta or other.is_meta:  # of one name, in two captures of one module
        return one.is_meta and other.is_meta
    return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)
