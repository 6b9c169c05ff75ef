"""`replicate`: the members of a tree of networks that share a trunk, and the tensors of each member.

    y = linear(relu(x), w)      ->      y0 = linear(relu(x), slice(w, 0, 0, 3))
                                        y1 = linear(relu(x), slice(w, 0, 3, 6))

A backbone is cut at some of its nodes. After every cut, each copy of the network before it goes on as several replicas
with parameters of their own. Their parameters are stacked: the tensor of the backbone's name grows along its first
dimension, member after member, and the first member's slice is the backbone's own. All members share the nodes before
the first cut, index tables and other constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from anytimeify.graph.traversal import descendants
from anytimeify.ir import Program, Reinitialised
from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.frozen import STATISTICS, frozen

__all__ = ["Tree", "depths", "stacked", "tensor_depths"]


@dataclass(frozen=True)
class Tree:
    """How many replicas every copy goes on as, split after split.

    Members of one depth are numbered so that those of one parent are neighbours: child `i` of member `m` is
    `m * fanout + i`. The first leaves of a tree are then a sub-tree."""

    fanouts: tuple[int, ...]

    @property
    def leaves(self) -> int:
        return math.prod(self.fanouts)

    def members(self, depth: int) -> int:
        """How many copies there are after `depth` splits."""
        return math.prod(self.fanouts[:depth])

    def active(self, depth: int, leaves: int) -> int:
        """How many of them the first `leaves` leaves need."""
        return -(-leaves * self.members(depth) // self.leaves)

    def parent(self, member: int, depth: int, above: int) -> int:
        """The member at depth `above` that a member at `depth` descends from."""
        return member // (self.members(depth) // self.members(above))

    def sub_trees(self) -> tuple[int, ...]:
        """Numbers of leaves of the sub-trees that begin with the first leaf: 1, 2, 4, ... for a binary tree."""
        counts = [self.leaves // self.members(depth) for depth in range(len(self.fanouts), -1, -1)]
        return tuple(dict.fromkeys(counts))


def depths(program: Program, cuts: Sequence[Sequence[fx.Node]]) -> dict[fx.Node, int]:
    """The number of cuts that lie before every node; nodes that carry no data belong where they are first read."""
    result: dict[fx.Node, int] = {}
    for depth, cut in enumerate(cuts, start=1):
        result.update(dict.fromkeys(descendants(user for node in cut for user in node.users), depth))
    behind_input = descendants(program.placeholders)
    for node in reversed(program.graph.nodes):
        if node not in behind_input and node.op != "output":
            result[node] = min((result[user] for user in node.users if user.op != "output"), default=0)
        else:
            result.setdefault(node, 0)
    return result


def tensor_depths(program: Program, places: Mapping[fx.Node, int]) -> dict[str, int]:
    """After how many splits the members have a tensor each; 0 for tensors that all of them share.

    Parameters and running statistics are replicated. A tensor that is read at several depths, under one name or as a
    tied one under several, belongs to the members of the least of them."""
    of_tensor: dict[int, int] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        tensor = program.tensors[str(node.target)]
        statistics = any(node in (bound(user).get(name) for name in STATISTICS) for user in node.users)
        depth = places[node] if isinstance(tensor, nn.Parameter) or statistics else 0
        of_tensor[id(tensor)] = min(of_tensor.get(id(tensor), depth), depth)
    return {name: of_tensor[id(tensor)] for name, tensor in program.tensors.items() if id(tensor) in of_tensor}


def stacked(
    program: Program, tree: Tree, places: Mapping[str, int], reinitialised: Reinitialised | None
) -> dict[str, Tensor]:
    """All tensors of a program, those of several members stacked.

    The first member has the backbone's values, the others those of a call of `reinitialised` each, or copies without
    it; of what is frozen all members have copies, and the stack is frozen."""
    still = frozen(program)
    counts = {name: tree.members(places.get(name, 0)) for name in program.tensors}
    stacks: dict[int, Tensor] = {}
    drawn: dict[str, Tensor] = {}  # the stacks whose members differ, by the name that they are drawn under
    for name, tensor in program.tensors.items():
        if counts[name] > 1 and id(tensor) not in stacks:
            stacks[id(tensor)] = torch.cat([tensor.detach().reshape(_stackable(tensor))] * counts[name])
            if reinitialised is not None and name not in still:
                drawn[name] = stacks[id(tensor)]
    for member in range(1, max((counts[name] for name in drawn), default=1)):
        values = reinitialised(drawn.keys()) if reinitialised is not None else {}  # of one member: a network each
        for name, stack in drawn.items():
            if member < counts[name] and name in values:
                stack.chunk(counts[name])[member].copy_(values[name].detach().reshape(_stackable(values[name])))
    for tensor in program.tensors.values():
        if id(tensor) in stacks and isinstance(tensor, nn.Parameter):
            stacks[id(tensor)] = nn.Parameter(stacks[id(tensor)], tensor.requires_grad)
    return {name: stacks[id(tensor)] if counts[name] > 1 else tensor for name, tensor in program.tensors.items()}


def _stackable(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape) or (1,)
