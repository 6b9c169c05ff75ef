"""Trees of members, which nodes and tensors lie behind how many cuts, and the stacks that hold the members' tensors."""

from __future__ import annotations

from collections.abc import Container

import pytest
import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import analyse
from anytimeify.analysis.blocks import find_blocks
from anytimeify.capture import capture
from anytimeify.ir import Program
from anytimeify.passes.rewrites.replicate import Tree, depths, stacked, tensor_depths


class Net(nn.Module):
    """A table of indices, a norm with statistics, a scalar, and a layer that shares its weight with another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.third.weight = self.second.weight
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.order = nn.Buffer(torch.tensor([2, 0, 3, 1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))[:, self.order] * self.scale
        result: Tensor = self.third(self.norm(x))
        return result


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Net(), torch.randn(3, 4)).program


def cuts_of(program: Program, *paths: str) -> list[tuple[fx.Node, ...]]:
    points = find_blocks(program, analyse(program)).cut_points
    return [tuple(node for node in points if node.meta["origin"].module_path == path)[-1:] for path in paths]


# The tree.


@pytest.mark.parametrize("fanouts", [(2,), (5,), (2, 2, 2), (3, 1, 2)])
def test_members_that_some_leaves_need_are_their_ancestors(fanouts: tuple[int, ...]) -> None:
    tree = Tree(fanouts)
    for depth in range(len(fanouts) + 1):
        for leaves in range(1, tree.leaves + 1):
            ancestors = {tree.parent(leaf, len(fanouts), depth) for leaf in range(leaves)}
            assert ancestors == set(range(tree.active(depth, leaves)))


def test_ancestors_of_ancestors_are_ancestors() -> None:
    tree = Tree((2, 3, 4))
    for leaf in range(tree.leaves):
        assert tree.parent(tree.parent(leaf, 3, 2), 2, 1) == tree.parent(leaf, 3, 1)


def test_sub_trees() -> None:
    assert Tree((2, 2)).sub_trees() == (1, 2, 4)
    assert Tree((3, 5)).sub_trees() == (1, 5, 15)
    assert Tree((7,)).sub_trees() == (1, 7)


# Where nodes and tensors belong.


def test_nodes_lie_behind_the_cuts_before_them(program: Program) -> None:
    places = depths(program, cuts_of(program, "first", "norm"))
    calls = {node.name: places[node] for node in program.graph.nodes if node.op == "call_function"}
    assert (calls["first"], calls["second"], calls["norm"], calls["third"]) == (0, 1, 1, 2)


def test_behind_the_input_lies_everything(program: Program) -> None:
    places = depths(program, [program.placeholders])
    assert all(places[node] == 1 for node in program.graph.nodes if node.op == "call_function")
    assert all(places[node] == 0 for node in program.placeholders)


def test_parameters_and_statistics_have_members_and_tables_do_not(program: Program) -> None:
    places = tensor_depths(program, depths(program, cuts_of(program, "first", "norm")))
    assert places == {
        **dict.fromkeys(("first.weight", "first.bias", "order"), 0),
        **dict.fromkeys(("second.weight", "second.bias", "scale", "third.weight"), 1),
        **dict.fromkeys(("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"), 1),
        "third.bias": 2,
    }


# Stacks.


def test_the_first_member_is_the_backbones_and_the_others_are_drawn(program: Program) -> None:
    drawn = iter((1.0, 2.0, 3.0))

    def reinitialised(_: Container[str] | None) -> dict[str, Tensor]:
        value = next(drawn)
        return {name: torch.full_like(tensor, value) for name, tensor in program.tensors.items()}

    tree = Tree((2, 2))
    places = tensor_depths(program, depths(program, cuts_of(program, "first", "norm")))
    stacks = stacked(program, tree, places, reinitialised)
    assert torch.equal(stacks["second.weight"][:4], program.tensors["second.weight"])
    assert (stacks["second.weight"][4:] == 1).all()
    assert stacks["second.weight"] is stacks["third.weight"]
    assert stacks["third.bias"][4:].tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert stacks["scale"].tolist() == [0.5, 1.0]
    assert isinstance(stacks["scale"], nn.Parameter)
    assert stacks["first.weight"] is program.tensors["first.weight"]
    assert stacks["order"] is program.tensors["order"]


def test_copies_without_initialisers(program: Program) -> None:
    places = tensor_depths(program, depths(program, cuts_of(program, "first")))
    stack = stacked(program, Tree((3,)), places, None)["second.weight"]
    assert all(torch.equal(part, program.tensors["second.weight"]) for part in stack.chunk(3))
    assert stack.requires_grad
