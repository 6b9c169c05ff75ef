"""Cut points against their definition, and blocks and stages of networks whose structure is known."""

from __future__ import annotations

import time
from itertools import pairwise

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from anytimeify.analysis.axes import analyse
from anytimeify.analysis.blocks import Blocks, find_blocks
from anytimeify.capture import capture
from anytimeify.ir import Captured


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, drop: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return (self.drop(self.norm(self.conv(x))) + self.shortcut(x)).relu()  # type: ignore[no-any-return]


class Convolutional(nn.Sequential):
    """Three equal blocks, whose dropout differs, at 8 x 8, two at 4 x 4, then a head."""

    def __init__(self) -> None:
        units = [Unit(4, 4), Unit(4, 4, drop=0.1), Unit(4, 4, drop=0.2), Unit(4, 6, 2), Unit(6, 6)]
        super().__init__(nn.Conv2d(3, 4, 3, 1, 1), *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mix, self.up, self.down = nn.Linear(6, 6), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head((self.one(x) + self.other(y)).relu())  # type: ignore[no-any-return]


class SizesAreNoData(nn.Module):
    """The batch size is read from the input and used at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).reshape(x.shape[0], -1))  # type: ignore[no-any-return]


def blocks_of(model: nn.Module, *inputs: Tensor) -> tuple[Captured, Blocks]:
    captured = capture(model, inputs)
    return captured, find_blocks(captured.program, analyse(captured.program))


IMAGE = torch.randn(2, 3, 8, 8)
CASES: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "convolutional": (Convolutional(), (IMAGE,)),
    "transformer": (
        nn.Sequential(nn.Linear(5, 8), Layer(), Layer(), Layer(), nn.LayerNorm(8)),
        (torch.randn(2, 6, 5),),
    ),
    "two inputs": (TwoInputs(), (torch.randn(2, 4), torch.randn(2, 3))),
    "sizes": (SizesAreNoData(), (torch.randn(2, 3, 6, 6),)),
    "one layer": (nn.Linear(3, 2), (torch.randn(2, 3),)),
}


@pytest.mark.parametrize("case", CASES)
def test_cut_points_separate_the_inputs_from_the_output(case: str) -> None:
    """The definition, node by node: the output is out of reach without a cut point, and in reach without others."""
    model, inputs = CASES[case]
    captured, blocks = blocks_of(model, *inputs)
    program = captured.program
    (result,) = program.outputs
    graph = nx.DiGraph()
    graph.add_edges_from(("inputs", node) for node in program.placeholders)
    for node in program.graph.nodes:
        if "shape" in dir(node.meta.get("type")):
            graph.add_edges_from((source, node) for source in node.all_input_nodes)
    for node in nx.ancestors(graph, result) | {result}:
        if node == "inputs" or not nx.has_path(graph, "inputs", node):
            continue
        without = graph.copy()
        without.remove_node(node)
        separates = node is result or not nx.has_path(without, "inputs", result)
        assert separates == (node in blocks.cut_points), node


@pytest.mark.parametrize("case", CASES)
def test_segments_partition_the_data_between_neighbouring_cut_points(case: str) -> None:
    model, inputs = CASES[case]
    _, blocks = blocks_of(model, *inputs)
    assert [segment.end for segment in blocks.segments][-1] is blocks.cut_points[-1]
    assert all(one.end is other.start for one, other in pairwise(blocks.segments))
    nodes = [node for segment in blocks.segments for node in segment.nodes]
    assert len(nodes) == len(set(nodes))
    assert [segment for block in blocks.blocks for segment in block.segments] == list(blocks.segments)
    assert all(segment.nodes[-1] is segment.end for segment in blocks.segments)


def shown(blocks: Blocks) -> list[tuple[int, list[int]]]:
    return [(stage.positions, [block.kind for block in stage.blocks]) for stage in blocks.stages]


def test_residual_blocks_repeat_and_resolution_starts_a_stage() -> None:
    _, blocks = blocks_of(*CASES["convolutional"][:1], IMAGE)
    assert shown(blocks) == [(64, [0, 1, 1, 1]), (16, [2, 3]), (1, [4])]
    ends = [block.end.name for block in blocks.blocks]
    assert all("relu" in name for name in ends[1:6]), ends
    assert [block.branching for block in blocks.blocks] == [False, True, True, True, True, True, False]


def test_attention_and_mlp_that_repeat_together_are_one_block() -> None:
    _, blocks = blocks_of(CASES["transformer"][0], *CASES["transformer"][1])
    assert shown(blocks) == [(6, [0, 1, 1, 1, 2])]
    assert [len(block.segments) for block in blocks.blocks] == [1, 2, 2, 2, 1]


def test_several_inputs_meet_before_the_first_cut_point() -> None:
    _, blocks = blocks_of(CASES["two inputs"][0], *CASES["two inputs"][1])
    assert blocks.segments[0].start is None
    assert blocks.segments[0].branching


def test_reading_a_size_is_no_way_around() -> None:
    _, blocks = blocks_of(CASES["sizes"][0], *CASES["sizes"][1])
    assert [node.name for node in blocks.cut_points] == ["x", "body", "reshape", "head"]
    assert not any(segment.branching for segment in blocks.segments)


def test_other_parameter_shapes_are_other_blocks() -> None:
    _, blocks = blocks_of(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(2, 4)
    )
    assert [block.kind for block in blocks.blocks] == [0, 0, 1]


def test_time_grows_linearly() -> None:
    model = nn.Sequential(*(Unit(4, 4) for _ in range(60)))
    captured = capture(model, IMAGE.repeat(1, 2, 1, 1)[:, :4], check=False)
    axes = analyse(captured.program)
    start = time.process_time()
    blocks = find_blocks(captured.program, axes)
    assert time.process_time() - start < 5  # 0.05 s; quadratic algorithms take minutes
    assert len(blocks.blocks) == 60
