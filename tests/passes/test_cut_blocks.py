"""Layers with block-triangular weights, block by block: the graph, the tensors, and the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import NestedChannels, transform
from anytimeify.analysis.cost import cost
from anytimeify.ir import Program
from anytimeify.passes.rewrites.cut_blocks import cut_blocks
from anytimeify.testing.costs import assert_costs_are_found
from tests.building import BATCH, Build, run

aten = torch.ops.aten
Blocks = tuple[tuple[Any, Any], ...]
STAIRS: Blocks = (([0, 1], [0, 1, 2]), ([2, 3, 4, 5], [0, 1, 2, 3, 4, 5]))
THREE: Blocks = (([0, 1], [0, 1]), ([2, 3], [0, 1]), ([4, 5], [0, 1, 2, 3, 4, 5]))
SCATTERED: Blocks = (([0, 3], [0, 1, 4]), ([1, 2, 4, 5], [0, 1, 2, 3, 4, 5]))
UNREAD: Blocks = (([0, 1, 2, 3, 4, 5], [0, 1, 2]),)


def places(blocks: Blocks) -> Any:
    return tuple((np.asarray(rows), np.asarray(columns)) for rows, columns in blocks)


def masked(shape: tuple[int, ...], blocks: Blocks, rows: int, columns: int) -> Tensor:
    """A weight with nothing but blocks."""
    mask = torch.zeros(shape[rows], shape[columns])
    for own, read in blocks:
        mask[np.ix_(own, read)] = 1
    sizes = [shape[dim] if dim in (rows, columns) else 1 for dim in range(len(shape))]
    return torch.randn(shape) * (mask if rows < columns else mask.t()).reshape(sizes)


def layer(target: Any, weight: Tensor, x: Tensor, blocks: Blocks, *, left: bool = False, rest: Any = ()) -> Program:
    """One layer that reads a weight with blocks, and a bias among the `rest`."""
    bias = next((one for one in rest if isinstance(one, Tensor)), None)
    tensors = {"layer.weight": nn.Parameter(weight)} | ({} if bias is None else {"layer.bias": bias})
    build = Build(tensors, x=x)
    build.read("layer.weight").meta |= {"blocks": places(blocks), "mask_nonzeros": int(weight.count_nonzero())}
    operands: list[Any] = [build.read("layer.weight"), build.x] if left else [build.x, build.read("layer.weight")]
    others = [build.read("layer.bias") if isinstance(one, Tensor) else one for one in rest]
    if target is aten.addmm.default:
        operands, others = [*others, *operands], []
    return build.done(build(target, *operands, *others, name="layer"))


def flops(program: Program, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        run(program, x)
    return int(counter.get_total_flops())


CASES: dict[str, tuple[Any, tuple[int, ...], int, int, tuple[int, ...], dict[str, Any]]] = {
    # operation, shape of the weight, its dimension of rows and of columns, shape of one input, further arguments
    "linear": (aten.linear.default, (6, 6), 0, 1, (4, 6), {"rest": (torch.randn(6),)}),
    "convolution": (aten.conv2d.default, (6, 6, 3, 3), 0, 1, (6, 5, 5), {"rest": (torch.randn(6), [1, 1], [1, 1])}),
    "padded by name": (aten.conv1d.padding, (6, 6, 3), 0, 1, (6, 5), {"rest": (None, [1], "same")}),
    "without batch": (aten.conv1d.default, (6, 6, 1), 0, 1, (), {}),
    "transposed": (aten.conv_transpose2d.input, (6, 6, 2, 2), 1, 0, (6, 3, 3), {"rest": (torch.randn(6), [2, 2])}),
    "mm": (aten.mm.default, (6, 6), 1, 0, (6,), {}),
    "addmm": (aten.addmm.default, (6, 6), 1, 0, (6,), {"rest": (torch.randn(6),)}),
    "addmm, one bias": (aten.addmm.default, (6, 6), 1, 0, (6,), {"rest": (torch.randn(1),)}),
    "matmul": (aten.matmul.default, (6, 6), 1, 0, (4, 6), {}),
    "matmul from the left": (aten.matmul.default, (6, 6), 0, 1, (6, 4), {"left": True}),
    "bmm": (aten.bmm.default, (5, 6, 6), 2, 1, (4, 6), {}),
    "bmm from the left": (aten.bmm.default, (5, 6, 6), 1, 2, (6, 4), {"left": True}),
}


@pytest.mark.parametrize("blocks", [STAIRS, THREE, SCATTERED, UNREAD], ids=["stairs", "three", "scattered", "unread"])
@pytest.mark.parametrize("name", CASES)
def test_only_blocks_are_multiplied(name: str, blocks: Blocks) -> None:
    target, shape, rows, columns, size, options = CASES[name]
    weight, x = (
        masked(shape, blocks, rows, columns),
        torch.randn(*((6, 5) if name == "without batch" else (5 if "bmm" in name else BATCH, *size))),
    )
    program = layer(target, weight, x, blocks, **options)
    small = cut_blocks(program)
    torch.testing.assert_close(run(small, x), run(program, x))
    assert flops(small, x) * weight.numel() == flops(program, x) * int(weight.count_nonzero())
    held = [tensor for tensor in small.tensors.values() if isinstance(tensor, nn.Parameter)]
    assert sum(tensor.numel() for tensor in held) == int(weight.count_nonzero()) == cost(small, "s0").params
    assert small.graph.output_node().all_input_nodes[0].name == "layer"


def test_printed() -> None:
    x = torch.randn(BATCH, 6, 5, 5)
    program = layer(aten.conv2d.default, masked((6, 6, 1, 1), SCATTERED, 0, 1), x, SCATTERED, rest=(torch.randn(6),))
    assert str(cut_blocks(program)) == "\n".join(
        [
            "x = input  # [s0, 6, 5, 5]",
            "layer_0_weight = layer.0.weight  # [2, 3, 1, 1]",
            "layer_1_weight = layer.1.weight  # [4, 6, 1, 1]",
            "anytime_blocks_index_0 = anytime.blocks.index_0  # [3] int64",
            "layer_0_bias = layer.0.bias  # [2]",
            "layer_1_bias = layer.1.bias  # [4]",
            "anytime_blocks_index_1 = anytime.blocks.index_1  # [6] int64",
            "x_part = index_select(x, 1, anytime_blocks_index_0)  # [s0, 3, 5, 5]",
            "layer_block0 = conv2d(x_part, layer_0_weight, layer_0_bias)  # [s0, 2, 5, 5]",
            "layer_block1 = conv2d(x, layer_1_weight, layer_1_bias)  # [s0, 4, 5, 5]",
            "layer_blocks = cat([layer_block0, layer_block1], 1)  # [s0, 6, 5, 5]",
            "layer = index_select(layer_blocks, 1, anytime_blocks_index_1)  # [s0, 6, 5, 5]",
            "return layer",
        ]
    )


def test_groups_are_cut_alike() -> None:
    """Two groups, each of three rows that read three columns: the first row of each reads the first column."""
    blocks: Blocks = (([0, 3], [0]), ([1, 2, 4, 5], [0, 1, 2]))
    weight = torch.randn(6, 3, 3, 3)
    weight[[0, 3], 1:] = 0
    x = torch.randn(BATCH, 6, 5, 5)
    program = layer(aten.conv2d.default, weight, x, blocks, rest=(None, [1, 1], [1, 1], [1, 1], 2))
    small = cut_blocks(program)
    torch.testing.assert_close(run(small, x), run(program, x))
    assert flops(small, x) * weight.numel() == flops(program, x) * int(weight.count_nonzero())


@pytest.mark.parametrize(
    ("target", "groups", "blocks"),
    [
        (aten.conv2d.default, 2, (([0], [0]), ([1, 2, 3, 4, 5], [0, 1, 2]))),  # of the groups unequal parts
        (aten.conv2d.default, 1, (([0], []), ([1, 2, 3, 4, 5], [0, 1, 2]))),  # a row that reads nothing
        (aten.conv2d.default, 1, ()),
        (aten.mul.Tensor, 1, STAIRS),
    ],
    ids=["unequal groups", "empty rows", "no blocks", "no layer"],
)
def test_stays_whole(target: Any, groups: int, blocks: Blocks) -> None:
    layers = target is aten.conv2d.default
    x = torch.randn(BATCH, 3 * groups if layers else 6, 5, 5)
    rest = (None, [1, 1], [0, 0], [1, 1], groups) if layers else ()
    program = layer(target, torch.randn(6, 3, 1, 1) if layers else torch.randn(6, 5, 5), x, blocks, rest=rest)
    assert cut_blocks(program) is program


def test_a_weight_of_two_layers_is_cut_once_and_a_bias_that_others_read_stays() -> None:
    build = Build({"fc.weight": nn.Parameter(masked((6, 6), STAIRS, 0, 1)), "shift": nn.Parameter(torch.randn(6))},
                  x=torch.randn(BATCH, 6))  # fmt: skip
    build.read("fc.weight").meta["blocks"] = places(STAIRS)
    first = build(aten.linear.default, build.x, build.read("fc.weight"), build.read("shift"), name="first")
    second = build(aten.linear.default, first, build.read("fc.weight"), name="second")
    program = build.done(build(aten.mul.Tensor, second, build.read("shift"), name="scaled"))
    small, x = cut_blocks(program), torch.randn(3, 6)
    assert small.tensors.keys() == {"shift", "fc.0.weight", "fc.1.weight"}
    torch.testing.assert_close(run(small, x), run(program, x))


def test_a_mask_that_stays_in_the_graph_is_cut_too() -> None:
    """As where something else reads the parameter that is masked: its entries are not held twice."""
    weight = torch.randn(6, 6)
    mask = masked((6, 6), STAIRS, 0, 1).ne(0).float()
    build = Build({"weight": nn.Parameter(weight), "mask": mask}, x=torch.randn(BATCH, 6))
    product = build(aten.mul.Tensor, build.read("weight"), build.read("mask"), name="product")
    product.meta |= {"blocks": places(STAIRS), "mask_nonzeros": int(mask.sum())}
    first = build(aten.linear.default, build.x, product, name="first")
    program = build.done(build(aten.linear.default, first, build.read("weight"), name="second"))
    small, x = cut_blocks(program), torch.randn(3, 6)
    assert small.tensors.keys() == {"weight"}
    torch.testing.assert_close(run(small, x), run(program, x))
    assert flops(small, x) == 2 * 3 * (36 + int(mask.sum()))


class Plain(nn.Module):
    """Convolutions with norms, groups, a transposed one, a layer that is called twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.again = nn.Conv2d(16, 16, 1)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.after = nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.again(self.again(self.grouped(x).relu()).relu())
        x = self.after(self.up(x)).relu()
        head: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return head


@pytest.mark.parametrize("fold", [False, True])
def test_extracts_of_a_triangle(fold: bool) -> None:
    x = torch.randn(2, 3, 8, 8)
    net = transform(Plain(), NestedChannels((0.25, 0.5, 1.0), connectivity="triangular"), (x,)).eval()
    for norm in (net.get_submodule("norm"), net.get_submodule("after")):
        assert isinstance(norm, nn.BatchNorm2d)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            nn.init.uniform_(tensor, 0.5, 1.5)
    assert_costs_are_found(net)
    for level in net.levels:
        small = net.extract(level, fold=fold)
        torch.testing.assert_close(small(x), net(x, level=level))
        assert fold != any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
        assert isinstance(small, fx.GraphModule)
    whole = net.extract(-1, fold=fold, dense=True)
    torch.testing.assert_close(whole(x), net(x, level=-1))
    assert whole.get_parameter("again.weight").shape == (16, 16, 1, 1)
    assert {"again.0.weight", "again.1.weight", "again.2.weight"} <= dict(net.extract(-1).named_parameters()).keys()
