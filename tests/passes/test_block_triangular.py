"""What masked layers become, and that nothing but speed changes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from anytimeify.analysis.cost import cost, macs_by_node
from anytimeify.codegen.to_modules import to_modules
from anytimeify.contract.spec import verify
from anytimeify.ir import Program
from anytimeify.kernels import TriangularConv, TriangularLinear
from anytimeify.passes.rewrites import block_triangular
from anytimeify.passes.rewrites.project import project
from anytimeify.rules import rule_of
from tests.building import BATCH, Build, run

aten = torch.ops.aten
use_blocks = partial(block_triangular.use_blocks, smallest=1)
Levels = Sequence[Sequence[int]]
QUARTERS: Levels = ([0, 1], [2, 3], [4, 5], [6, 7])
SCATTERED: Levels = ([0, 4], [1, 5], [2, 6], [3, 7])


def mask_of(rows: Levels, columns: Levels, height: int, width: int) -> Tensor:
    mask = torch.zeros(height, width)
    for level, own in enumerate(rows):
        for column in [column for one in columns[: level + 1] for column in one]:
            mask[list(own), column] = 1
    return mask


def read_by(columns: Levels) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """The columns that each level reads: those of all levels up to it."""
    return [np.sort(np.concatenate([np.asarray(one) for one in columns[: level + 1]])) for level in range(len(columns))]


def masked(build: Build, weight: str, mask: str, rows: Levels, columns: Levels) -> fx.Node:
    """The weight as triangular connectivity writes it."""
    node = build(
        aten.mul.Tensor, build.read(weight), build.read(mask), name=f"{weight.replace('.', '_')}_masked_weight"
    )
    tensor = build.tensors[mask]
    shares = build.tensors[weight].numel() // tensor.numel()
    node.meta["mask_nonzeros"] = int(tensor.sum()) * shares
    node.meta["blocks"] = tuple(zip(map(np.asarray, rows), read_by(columns), strict=True))
    return node


def network(
    rows: Levels = QUARTERS, columns: Levels = QUARTERS, target: Any = aten.conv2d.default, **changes: Any
) -> Program:
    """A triangular convolution of 8 channels, the mean of its positions, and a triangular linear layer; the second
    output is made of the convolution alone."""
    width = sum(map(len, columns))
    height = sum(map(len, rows))
    mask = mask_of(rows, columns, height, width)
    tensors = {
        "conv.weight": torch.nn.Parameter(torch.randn(height, width, 3, 3)),
        "conv.bias": torch.nn.Parameter(torch.randn(height)),
        "fc.weight": torch.nn.Parameter(torch.randn(8, height)),
        "anytime.constants.mask_0": mask[..., None, None],
        "anytime.constants.mask_1": mask_of(QUARTERS, rows, 8, height),
    }
    build = Build(tensors, ("anytime.constants.mask_0", "anytime.constants.mask_1"), x=torch.randn(BATCH, width, 6, 6))
    weight = masked(build, "conv.weight", "anytime.constants.mask_0", rows, columns)
    weight.meta.update(changes)
    padding = "same" if target is aten.conv2d.padding else [1, 1]
    conv = build(target, build.x, weight, build.read("conv.bias"), [1, 1], padding, name="conv")
    relu = build(aten.relu.default, conv, name="relu")
    pool = build(aten.mean.dim, relu, [2, 3], name="pool")
    other = build(aten.sum.dim_IntList, relu, [1], name="other")
    fc = build(
        aten.linear.default, pool, masked(build, "fc.weight", "anytime.constants.mask_1", QUARTERS, rows), name="fc"
    )
    return build.done(fc, other)


BEFORE = """
conv_weight_masked_weight = mul.Tensor(conv_weight, anytime_constants_mask_0)  # [8, 8, 3, 3]
conv = conv2d(x, conv_weight_masked_weight, conv_bias, [1, 1], [1, 1])  # [s0, 8, 6, 6]
relu = relu(conv)  # [s0, 8, 6, 6]
pool = mean.dim(relu, [2, 3])  # [s0, 8]
other = sum.dim_IntList(relu, [1])  # [s0, 6, 6]
fc_weight_masked_weight = mul.Tensor(fc_weight, anytime_constants_mask_1)  # [8, 8]
fc = linear(pool, fc_weight_masked_weight)  # [s0, 8]
return fc, other
"""

FIRST = """
conv_weight_masked_weight = mul.Tensor(conv_weight, anytime_constants_mask_0)  # [8, 8, 3, 3]
conv = anytimeify.triangular_conv(x, conv_weight, conv_bias, [2, 4, 6, 8], [2, 4, 6, 8], 4, [1, 1], [1, 1], [1, 1])  # [s0, 8, 6, 6]
conv_masked = conv2d(x, conv_weight_masked_weight, conv_bias, [1, 1], [1, 1])  # [s0, 8, 6, 6]
relu = relu(conv)  # [s0, 8, 6, 6]
relu_masked = relu(conv_masked)  # [s0, 8, 6, 6]
pool = mean.dim(relu, [2, 3])  # [s0, 8]
other = sum.dim_IntList(relu_masked, [1])  # [s0, 6, 6]
fc = anytimeify.triangular_linear(pool, fc_weight, None, [2, 4, 6, 8], [2, 4, 6, 8], 4)  # [s0, 8]
return fc, other
"""  # noqa: E501  # as a program prints

BOTH = """
conv = anytimeify.triangular_conv(x, conv_weight, conv_bias, [2, 4, 6, 8], [2, 4, 6, 8], 4, [1, 1], [1, 1], [1, 1])  # [s0, 8, 6, 6]
relu = relu(conv)  # [s0, 8, 6, 6]
pool = mean.dim(relu, [2, 3])  # [s0, 8]
other = sum.dim_IntList(relu, [1])  # [s0, 6, 6]
fc = anytimeify.triangular_linear(pool, fc_weight, None, [2, 4, 6, 8], [2, 4, 6, 8], 4)  # [s0, 8]
return fc, other
"""  # noqa: E501  # as a program prints


def calls(program: Program) -> str:
    return "\n".join(line for line in str(program).splitlines() if " = " not in line or "(" in line)


def test_printed() -> None:
    program = network()
    assert calls(program) == BEFORE.strip()
    assert calls(use_blocks(program, [0])) == FIRST.strip()
    assert calls(use_blocks(program, [0, 1])) == calls(use_blocks(program, [0, -1])) == BOTH.strip()
    assert calls(program) == BEFORE.strip(), "the program itself is as it was"


@pytest.mark.parametrize("target", [aten.conv2d.default, aten.conv2d.padding])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (QUARTERS, QUARTERS),
        (QUARTERS, SCATTERED),
        (SCATTERED, QUARTERS),
        (([0, 1, 2], [], [3], [4, 5, 6, 7]), ([0], [1, 2], [], [3])),
    ],
)
def test_same_numbers_and_cost(rows: Levels, columns: Levels, target: Any) -> None:
    program = network(rows, columns, target)
    fast = use_blocks(program, [0])
    verify(fast)
    assert sum("triangular" in str(node.target) for node in fast.graph.nodes) == 2
    x = torch.randn(3, *[size.coefficient for size in program.placeholders[0].meta["type"].shape[1:]])
    torch.testing.assert_close(run(fast, x), run(program, x))
    for outputs in ([0], [1]):
        one, other = project(program, outputs), project(fast, outputs)
        assert cost(other, "s0") == cost(one, "s0")
        assert list(macs_by_node(other, "s0").values()) == list(macs_by_node(one, "s0").values())


def test_leftovers() -> None:
    program = network()
    assert use_blocks(program, [0]).tensors.keys() == program.tensors.keys() - {"anytime.constants.mask_1"}
    both = use_blocks(program, [0, 1])
    assert both.tensors.keys() == {"conv.weight", "conv.bias", "fc.weight"}
    assert not both.transient


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": ()},
        {"mask_nonzeros": 5},
        {"blocks": tuple(zip(map(np.asarray, QUARTERS[:3]), read_by(QUARTERS)[:3], strict=True))},
    ],
    ids=["no blocks", "another mask", "rows of no level"],
)
def test_stays_dense_where_blocks_are_not_all(changes: dict[str, Any]) -> None:
    fast = use_blocks(network(**changes), [0, 1])
    assert [str(node.target) for node in fast.graph.nodes if "triangular" in str(node.target)] == [
        "anytimeify.triangular_linear.default"
    ]


def test_small_layers_stay_dense() -> None:
    program = network()
    assert block_triangular.use_blocks(program, [0, 1]) is program
    assert "triangular_conv" in str(block_triangular.use_blocks(program, [0, 1], smallest=8))
    assert block_triangular.use_blocks(program, [0, 1], smallest=9) is program


def test_nothing_to_do() -> None:
    build = Build({"w": torch.randn(3, 5)}, x=torch.randn(BATCH, 5))
    program = build.done(build(aten.linear.default, build.x, build.read("w")))
    assert use_blocks(program, [0]) is program


def test_lifted() -> None:
    """Modules under the backbone's names, with its tensors."""
    program = use_blocks(network(), [0, 1])
    net = to_modules(program)
    assert isinstance(net.conv, TriangularConv)
    assert isinstance(net.fc, TriangularLinear)
    assert net.conv.weight is program.tensors["conv.weight"]
    assert net.state_dict().keys() == {"conv.weight", "conv.bias", "fc.weight"}
    x = torch.randn(3, 8, 6, 6)
    torch.testing.assert_close(net(x), run(program, x))
    apart = to_modules(use_blocks(network(), [0]))
    assert apart.state_dict().keys() == {"conv.weight", "conv.bias", "fc.weight"}
    apart.load_state_dict(net.state_dict())
    torch.testing.assert_close(apart(x), net(x))


def test_axes_of_the_operators_are_fixed() -> None:
    for name in ("triangular_conv", "triangular_linear"):
        assert rule_of(getattr(torch.ops.anytimeify, name).default) is not None
