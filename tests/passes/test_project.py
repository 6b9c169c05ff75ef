"""`project` keeps what the chosen outputs need and nothing else, and leaves its input alone."""

from __future__ import annotations

import pytest
import torch

from anytimeify.errors import PassError
from anytimeify.ir import Program
from anytimeify.passes.rewrites.project import project
from tests.building import BATCH, Build, run
from tests.rounding import close

aten = torch.ops.aten


def two_heads() -> Program:
    tensors = {name: torch.randn(3, 3) for name in ("trunk.weight", "low.weight", "high.weight")}
    tensors["offset"] = torch.randn(3)
    b = Build(tensors, transient=["offset"], x=torch.randn(BATCH, 3), mask=torch.randn(BATCH, 3))
    trunk = b(aten.linear.default, b.x, b.read("trunk.weight"), b.read("offset"), name="trunk")
    low = b(aten.linear.default, trunk, b.read("low.weight"), name="low")
    masked = b(aten.mul.Tensor, trunk, b.inputs["mask"], name="masked")
    high = b(aten.linear.default, masked, b.read("high.weight"), name="high")
    return b.done(low, high)


def test_the_first_output_needs_neither_the_mask_nor_the_high_head() -> None:
    program = two_heads()
    before = str(program.graph)
    low = project(program, [0])
    assert str(low.graph).splitlines() == [
        "graph():",
        "    %x : [num_users=1] = placeholder[target=x]",
        "    %mask : [num_users=0] = placeholder[target=mask]",
        "    %trunk_weight : [num_users=1] = get_attr[target=trunk.weight]",
        "    %low_weight : [num_users=1] = get_attr[target=low.weight]",
        "    %offset : [num_users=1] = get_attr[target=offset]",
        "    %trunk : [num_users=1] = call_function[target=torch.ops.aten.linear.default]"
        "(args = (%x, %trunk_weight, %offset), kwargs = {})",
        "    %low : [num_users=1] = call_function[target=torch.ops.aten.linear.default]"
        "(args = (%trunk, %low_weight), kwargs = {})",
        "    return (low,)",
    ]
    assert str(program.graph) == before
    assert low.tensors.keys() == {"trunk.weight", "low.weight", "offset"}
    assert low.transient == {"offset"}


@pytest.mark.parametrize("keep", [[0], [1], [-1], [1, 0], [0, 0], [0, 1]])
def test_the_kept_outputs_are_the_same(keep: list[int]) -> None:
    program = two_heads()
    x, mask = torch.randn(BATCH, 3), torch.randn(BATCH, 3)
    outputs = run(program, x, mask)
    for position, result in zip(keep, run(project(program, keep), x, mask), strict=True):
        assert close(result, outputs[position])


def test_tensors_are_shared_by_reference_and_meta_is_not() -> None:
    program = two_heads()
    low = project(program, [0])
    assert all(low.tensors[name] is program.tensors[name] for name in low.tensors)
    old, new = ({node.name: node for node in p.graph.nodes} for p in (program, low))
    assert new["trunk"].meta == old["trunk"].meta
    assert new["trunk"].meta is not old["trunk"].meta


def test_tensors_can_be_kept_whole() -> None:
    program = two_heads()
    assert project(program, [0], keep_tensors=True).tensors == program.tensors


def test_an_unknown_position_is_refused() -> None:
    with pytest.raises(PassError, match="IndexError"):
        project(two_heads(), [2])
