"""`generalise`: one graph for every batch, from two that were exported for a fixed one.

What does not let its batch be dynamic (a size that is made a number in Python, a table lookup by it) can often be
exported for a batch of 2 and for one of 3. Where both graphs have the same operations, a number that differs between
them is a function of the batch, and becomes one:

    reshape(x, [2, 8, 36])  |  reshape(x, [3, 8, 36])   ->   n = sym_size(x, 0);  reshape(x, [n, 8, 36])
    reshape(x, [8, 64])     |  reshape(x, [12, 64])     ->   reshape(x, [4 * n, 64])

Numbers of the form `c * n^k` and `c * n + d` are read. Refuses graphs of other operations, and constants or numbers
with a fraction that differ: those know the batch in a way that no size says.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from anytimeify._torch import SymbolicSizes
from anytimeify.capture.work_graph import WorkGraph, describe, step
from anytimeify.errors import Finding
from anytimeify.ir import names
from anytimeify.ir.node_meta import value_of

__all__ = ["Differs", "generalise"]

aten = torch.ops.aten
_BATCH = sympy.Symbol("batch", integer=True, positive=True)


class Differs(Finding):
    """Two graphs of one network, exported for batches of different sizes, differ by more than sizes."""


@step("generalise")
def generalise(work: WorkGraph, other: WorkGraph, batch: int, other_batch: int) -> None:
    """Makes the batch of a work graph, exported for `batch` samples, dynamic; `other` was exported for
    `other_batch`."""
    sizes = _Sizes(work, batch, other_batch)
    counterparts = dict(_aligned(work, other))
    _check_tensors(work, other)
    for node, counterpart in counterparts.items():
        if node.op == "placeholder":
            sizes.read_from(node, counterpart)
    for node, counterpart in list(counterparts.items()):
        if node.op in ("call_function", "output"):
            one, two = (node.args, node.kwargs), (counterpart.args, counterpart.kwargs)
            args, kwargs = sizes.argument(one, two, counterparts, node)
            node.args, node.kwargs = args, kwargs
    for node, counterpart in counterparts.items():
        if node.op != "output":
            node.meta["val"] = sizes.value(value_of(node), value_of(counterpart), node)


def _aligned(work: WorkGraph, other: WorkGraph) -> Iterator[tuple[fx.Node, fx.Node]]:
    for one, two in zip_longest(work.graph.nodes, other.graph.nodes):
        if one is None or two is None or one.op != two.op or _called(one) != _called(two):
            raise Differs(f"the batch decides which operations run: {describe(one if one is not None else two)}")
        yield one, two


def _called(node: fx.Node) -> Any:
    return node.name if node.op == "placeholder" else node.target


def _check_tensors(work: WorkGraph, other: WorkGraph) -> None:
    if work.constant_inputs != other.constant_inputs:
        raise Differs("an input that is no tensor depends on the batch")
    for name, tensor in work.tensors.items():
        if not name.startswith(names.CONSTANTS):
            continue
        theirs = other.tensors.get(name)
        if theirs is None or theirs.shape != tensor.shape or not torch.equal(tensor, theirs):
            raise Differs(f"the constant '{name}' depends on the batch")


@dataclass
class _Sizes:
    """Numbers as functions of the batch, and the nodes that compute them."""

    work: WorkGraph
    one: int
    two: int
    nodes: dict[sympy.Expr, fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.symbolic = SymbolicSizes({_BATCH: self.one})

    def read_from(self, placeholder: fx.Node, counterpart: fx.Node) -> None:
        """The batch is read from the first input whose first dimension is the batch."""
        leading = [list(getattr(value_of(node), "shape", ()))[:1] for node in (placeholder, counterpart)]
        if _BATCH in self.nodes or leading != [[self.one], [self.two]]:
            return
        first = next(node for node in self.work.graph.nodes if node.op not in ("placeholder", "get_attr"))
        with self.work.graph.inserting_before(first):
            self._add(_BATCH, aten.sym_size.int, (placeholder, 0))

    def argument(self, one: Any, two: Any, counterparts: dict[fx.Node, fx.Node], at: fx.Node) -> Any:
        """An argument in which numbers that differ are computed from the batch."""
        if isinstance(one, fx.Node):
            if counterparts.get(one) is not two:
                raise Differs(f"the batch decides what is read by {describe(at)}")
            return one
        if type(one) is not type(two):
            raise Differs(f"the batch decides how {describe(at)} is called: {one!r} and {two!r}")
        if isinstance(one, list | tuple):
            if len(one) != len(two):
                raise Differs(f"the batch decides how many things {describe(at)} is given")
            return type(one)(self.argument(*pair, counterparts, at) for pair in zip(one, two, strict=True))
        if isinstance(one, dict):
            return {key: self.argument(one[key], two.get(key), counterparts, at) for key in one}
        if one == two or (one != one and two != two):
            return one
        if type(one) is not int:
            raise Differs(f"{describe(at)} is given {one!r} or {two!r}, by the batch")
        return self._node(self._expression(one, two, at))

    def value(self, one: Any, two: Any, at: fx.Node) -> Any:
        """What a node gives, in sizes that are functions of the batch."""
        if isinstance(one, Tensor):
            shape, strides = (
                [self._expression(a, b, at) for a, b in zip(mine, theirs, strict=True)]
                for mine, theirs in ((one.shape, two.shape), (one.stride(), two.stride()))
            )
            return self.symbolic.empty(shape, one.dtype, one.device, strides)
        if isinstance(one, list | tuple):
            return type(one)(self.value(a, b, at) for a, b in zip(one, two, strict=True))
        return one

    def _expression(self, one: int, two: int, at: fx.Node) -> sympy.Expr:
        if one == two:
            return sympy.Integer(one)
        for power in (1, 2, 3, 4):
            factor, remainder = divmod(one, self.one**power)
            if not remainder and two == factor * self.two**power:
                return factor * _BATCH**power
        factor, remainder = divmod(two - one, self.two - self.one)
        if remainder:
            raise Differs(f"{describe(at)} has a size of {one} or {two}, by the batch")
        return factor * _BATCH + (one - factor * self.one)

    def _node(self, expression: sympy.Expr) -> fx.Node:
        if _BATCH not in self.nodes:
            raise Differs("no input has the batch as its first dimension")
        if expression not in self.nodes:
            constant, rest = expression.as_coeff_Add()
            factor, power = rest.as_coeff_Mul()
            target: Any
            args: tuple[Any, ...]
            if constant:
                target, args = operator.add, (self._node(rest), int(constant))
            elif factor != 1:
                target, args = operator.mul, (self._node(power), int(factor))
            else:
                target, args = operator.mul, (self._node(power / _BATCH), self.nodes[_BATCH])
            with self.work.graph.inserting_after(list(self.nodes.values())[-1]):
                self._add(expression, target, args)
        return self.nodes[expression]

    def _add(self, expression: sympy.Expr, target: Any, args: tuple[Any, ...]) -> None:
        node = self.work.graph.call_function(target, args)
        node.meta["val"] = self.symbolic.size(expression)
        self.nodes[expression] = node
