"""Every rule of the table of what is canonical, broken once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from anytimeify.contract.spec import SpecError, verify
from anytimeify.ir import Origin, Program, Size, TensorType

aten = torch.ops.aten
WEIGHT = nn.Parameter(torch.ones(3, 4))


class Parts:
    """A canonical program in pieces, for a test to break one of them."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.x = self.typed(self.graph.placeholder("x"), 2, 4)
        self.weight = self.typed(self.graph.get_attr("weight"), 3, 4)
        self.call = self.typed(self.graph.call_function(aten.linear.default, (self.x, self.weight)), 2, 3)
        self.size = self.typed(self.graph.call_function(operator.mul, (2, 3)))
        self.size.meta["type"] = Size(6)
        self.output = self.graph.output((self.call,))
        self.tensors: dict[str, torch.Tensor] = {"weight": WEIGHT}
        self.transient: frozenset[str] = frozenset()

    @staticmethod
    def typed(node: fx.Node, *shape: int) -> fx.Node:
        node.meta.update(
            type=TensorType(tuple(map(Size, shape)), torch.float32), origin=Origin("head", source="net.py:3: y = f(x)")
        )
        return node

    @property
    def program(self) -> Program:
        return Program(self.graph, self.tensors, self.transient)


def test_canonical() -> None:
    verify(Parts().program)


def second_reader(parts: Parts) -> None:
    with parts.graph.inserting_after(parts.weight):
        parts.typed(parts.graph.get_attr("weight"), 3, 4)


def late_input(parts: Parts) -> None:
    with parts.graph.inserting_after(parts.call):
        parts.typed(parts.graph.placeholder("y"), 1)


def call_module(parts: Parts) -> None:
    with parts.graph.inserting_after(parts.call):
        parts.graph.call_module("relu", (parts.call,))


def other_graph(parts: Parts) -> None:
    parts.call.args = (Parts().x, parts.weight)


def use_before(parts: Parts) -> None:
    parts.call.prepend(parts.size)
    parts.size.args = (parts.call, 3)


BREAKS: list[tuple[Callable[[Parts], Any], str]] = [
    (lambda parts: setattr(parts.call, "target", aten.add_.Tensor), "works in place"),
    (lambda parts: setattr(parts.call, "target", aten.view.default), "bookkeeping"),
    (lambda parts: setattr(parts.call, "target", torch.nn.functional.linear), "neither an ATen overload"),
    (lambda parts: parts.call.meta.pop("type"), "has no meta\\['type'\\]"),
    (lambda parts: parts.call.meta.pop("origin"), "has no meta\\['origin'\\]"),
    (lambda parts: parts.x.meta.update(type=Size(2)), "not typed as one tensor"),
    (lambda parts: parts.typed(parts.weight, 4, 3), r"says it is \(4, 3\).*the tensor is \(3, 4\)"),
    (lambda parts: parts.tensors.clear(), "does not have"),
    (lambda parts: setattr(parts, "transient", frozenset({"lost"})), "'lost' belongs to no tensor"),
    (lambda parts: setattr(parts.output, "args", (parts.call,)), "flat tuple"),
    (lambda parts: setattr(parts.output, "args", ((),)), "flat tuple"),
    (second_reader, "read by 2 get_attr nodes"),
    (late_input, "not in the order"),
    (call_module, "no canonical kind of node"),
    (other_graph, "a node of another graph"),
    (use_before, "before it is computed"),
]


@pytest.mark.parametrize(("break_", "message"), BREAKS, ids=[message for _, message in BREAKS])
def test_every_rule(break_: Callable[[Parts], Any], message: str) -> None:
    parts = Parts()
    break_(parts)
    with pytest.raises(SpecError, match=message) as error:
        verify(parts.program, after="narrow")
    assert str(error.value).startswith("after narrow: ")
