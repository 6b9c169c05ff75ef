"""`fold` and `fold_batch_norms`: by printed graph, by name, and by numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from anytimeify.ir import Program
from anytimeify.passes.rewrites.fold import fold
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from tests.building import BATCH, Build, run
from tests.rounding import close

aten = torch.ops.aten


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def narrowed() -> Program:
    """A linear layer at half width, as a scheme writes it: weights read through views."""
    b = Build(
        {"fc.weight": parameter(8, 6), "fc.bias": parameter(8), "index": torch.tensor([0, 1, 4, 5])},
        transient=["index"],
        x=torch.randn(BATCH, 3),
    )
    rows = b(aten.index_select.default, b.read("fc.weight"), 0, b.read("index"), name="level0_rows")
    weight = b(aten.slice.Tensor, rows, 1, 0, 3, name="level0_weight")
    bias = b(aten.index_select.default, b.read("fc.bias"), 0, b.read("index"), name="level0_bias")
    return b.done(b(aten.linear.default, b.x, weight, bias, name="level0_fc"))


def same(program: Program, folded: Program, *inputs: Tensor) -> None:
    for expected, result in zip(run(program, *inputs), run(folded, *inputs), strict=True):
        assert close(result, expected)


def test_views_of_one_parameter_become_a_small_parameter_of_that_name() -> None:
    program = narrowed()
    before = str(program.graph)
    small = fold(program)
    assert str(small.graph).splitlines() == [
        "graph():",
        "    %x : [num_users=1] = placeholder[target=x]",
        "    %fc_weight : [num_users=1] = get_attr[target=fc.weight]",
        "    %fc_bias : [num_users=1] = get_attr[target=fc.bias]",
        "    %level0_fc : [num_users=1] = call_function[target=torch.ops.aten.linear.default]"
        "(args = (%x, %fc_weight, %fc_bias), kwargs = {})",
        "    return (level0_fc,)",
    ]
    assert str(program.graph) == before
    same(program, small, torch.randn(BATCH, 3))
    assert small.tensors["fc.weight"].shape == (4, 3)
    assert all(isinstance(tensor, nn.Parameter) for tensor in small.tensors.values())


def test_nothing_holds_on_to_the_big_storage() -> None:
    program = narrowed()
    storages = {tensor.untyped_storage().data_ptr() for tensor in program.tensors.values()}
    for tensor in fold(program).tensors.values():
        assert tensor.untyped_storage().data_ptr() not in storages
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_tensors_that_are_read_as_they_are_get_copied_and_ties_stay() -> None:
    weight = parameter(5, 5)
    b = Build({"a.weight": weight, "b.weight": weight, "scale": torch.randn(5)}, x=torch.randn(BATCH, 5))
    hidden = b(aten.linear.default, b.x, b.read("a.weight"))
    scaled = b(aten.mul.Tensor, b(aten.linear.default, hidden, b.read("b.weight")), b.read("scale"))
    small = fold(program := b.done(scaled))
    assert small.tensors["a.weight"] is small.tensors["b.weight"]
    assert small.tensors["a.weight"] is not weight
    assert not isinstance(small.tensors["scale"], nn.Parameter)
    same(program, small, torch.randn(BATCH, 5))


def test_two_selections_of_one_parameter_and_computed_weights_get_names_of_their_own() -> None:
    b = Build({"qkv.weight": parameter(6, 4), "gain": parameter(4)}, x=torch.randn(BATCH, 4))
    parts = [b(aten.slice.Tensor, b.read("qkv.weight"), 0, 3 * i, 3 * i + 3, name=f"level2_part{i}") for i in (0, 1)]
    gained = b(aten.mul.Tensor, b.x, b(aten.sigmoid.default, b.read("gain"), name="gate"), name="gained")
    results = [b(aten.linear.default, gained, part) for part in parts]
    small = fold(program := b.done(b(aten.add.Tensor, *results)))
    assert small.tensors.keys() == {"folded.part0", "folded.part1", "folded.gate"}
    assert all(isinstance(tensor, nn.Parameter) for tensor in small.tensors.values())
    same(program, small, torch.randn(BATCH, 4))


def test_reshapes_of_a_parameter_stay_so_that_it_keeps_its_name_and_shape() -> None:
    b = Build({"gamma": parameter(6), "proj": parameter(4, 6)}, x=torch.randn(BATCH, 3, 2))
    gamma = b(aten.slice.Tensor, b.read("gamma"), 0, 0, 3)
    scaled = b(aten.mul.Tensor, b.x, b(aten.reshape.default, gamma, [1, 3, 1], name="gamma_as_image"))
    half = b(aten.slice.Tensor, b.read("proj"), 1, 0, 3)
    across = b(aten.transpose.int, half, 0, 1, name="across")
    small = fold(program := b.done(b(aten.matmul.default, b(aten.transpose.int, scaled, 1, 2), across)))
    assert {name: tuple(tensor.shape) for name, tensor in small.tensors.items()} == {"gamma": (3,), "proj": (4, 3)}
    assert {"gamma_as_image", "across"} <= {node.name for node in small.graph.nodes}
    same(program, small, torch.randn(BATCH, 3, 2))


def test_a_selection_that_outgrows_its_parameter_stays_live() -> None:
    b = Build({"table": parameter(4, 3), "index": torch.tensor([0, 1, 2, 3, 3, 3])}, x=torch.randn(6, 3))
    wide = b(aten.index_select.default, b.read("table"), 0, b.read("index"), name="wide")
    small = fold(program := b.done(b(aten.add.Tensor, b.x, wide)))
    assert small.tensors.keys() == {"table", "index"}
    same(program, small, torch.randn(6, 3))


def test_parts_of_what_outgrows_its_parameter_stay_live() -> None:
    b = Build({"row": parameter(1, 4)}, x=torch.randn(3, 4))
    halves = b(aten.split.Tensor, b(aten.mul.Tensor, b(aten.expand.default, b.read("row"), [6, 4]), 2.0), 3)
    small = fold(program := b.done(b(aten.add.Tensor, b.x, b(operator.getitem, halves, 1, name="second"))))
    assert small.tensors.keys() == {"row"}
    same(program, small, torch.randn(3, 4))


def test_tables_of_indices_do_not_count_when_a_parameter_is_gathered_from() -> None:
    """A narrowed table of relative positions: larger than the part that it is made of, smaller than the whole."""
    tensors = {"table": parameter(5, 8), "index": torch.arange(9) % 5}
    b = Build(tensors, x=torch.randn(BATCH, 9, 2))
    half = b(aten.slice.Tensor, b.read("table"), 1, 0, 2)
    biases = b(aten.index.Tensor, half, [b.read("index")], name="biases")
    for computed in (True, False):
        small = fold(program := b.done(b(aten.add.Tensor, b.x, biases)), computed=computed)
        assert {name: tuple(tensor.shape) for name, tensor in small.tensors.items()} == {"table": (5, 2), "index": (9,)}
        same(program, small, torch.randn(3, 9, 2))
        b.graph.erase_node(b.graph.output_node())


def test_a_part_of_what_is_read_as_a_whole_is_not_held_twice() -> None:
    b = Build({"weight": parameter(4, 4)}, x=torch.randn(BATCH, 4))
    whole = b(aten.linear.default, b.x, b.read("weight"))
    part = b(aten.slice.Tensor, b(aten.slice.Tensor, b.read("weight"), 0, 0, 2), 1, 0, 2, name="part")
    half = b(aten.linear.default, b(aten.slice.Tensor, b.x, 1, 0, 2), part)
    small = fold(program := b.done(b(aten.cat.default, [whole, half], 1)))
    assert small.tensors.keys() == {"weight"}
    same(program, small, torch.randn(3, 4))


def test_parts_that_overlap_are_held_as_what_they_are_parts_of() -> None:
    b = Build({"row": parameter(4)}, x=torch.randn(BATCH, 3))
    parts = [b(aten.slice.Tensor, b.read("row"), 0, start, start + 3) for start in (0, 1)]
    small = fold(program := b.done(b(aten.mul.Tensor, b(aten.mul.Tensor, b.x, parts[0]), parts[1])))
    assert small.tensors.keys() == {"row"}
    same(program, small, torch.randn(5, 3))


def test_equal_parts_of_tied_tensors_stay_tied() -> None:
    weight = parameter(4, 4)
    b = Build({"a.weight": weight, "b.weight": weight}, x=torch.randn(BATCH, 2))
    halves = [
        b(aten.slice.Tensor, b(aten.slice.Tensor, b.read(name), 0, 0, 2), 1, 0, 2) for name in ("a.weight", "b.weight")
    ]
    small = fold(program := b.done(b(aten.linear.default, b(aten.linear.default, b.x, halves[0]), halves[1])))
    assert small.tensors["a.weight"] is small.tensors["b.weight"]
    same(program, small, torch.randn(5, 2))


def test_computed_weights_stay_computed_if_asked() -> None:
    b = Build({"weight": parameter(4, 6)}, x=torch.randn(BATCH, 6))
    half = b(aten.slice.Tensor, b.read("weight"), 0, 0, 2)
    softmax = b(aten.softmax.int, half, 1, name="shares")
    program = b.done(b(aten.linear.default, b.x, softmax))
    assert fold(program).tensors.keys() == {"folded.shares"}
    small = fold(program, computed=False)
    assert {name: tuple(tensor.shape) for name, tensor in small.tensors.items()} == {"weight": (2, 6)}
    same(program, small, torch.randn(5, 6))


def test_parts_of_complex_parameters_are_parameters() -> None:
    b = Build({"modes": nn.Parameter(torch.randn(4, dtype=torch.complex64))}, x=torch.randn(BATCH, 2))
    part = b(aten.slice.Tensor, b.read("modes"), 0, 0, 2)
    small = fold(program := b.done(b(aten.mul.Tensor, b.x, part)))
    assert isinstance(small.tensors["modes"], nn.Parameter)
    same(program, small, torch.randn(5, 2))


def test_multiple_results_and_sizes_of_parameters_are_folded() -> None:
    b = Build({"pair": parameter(6, 4)}, x=torch.randn(BATCH, 4))
    halves = b(aten.split.Tensor, b.read("pair"), 3)
    first = b(operator.getitem, halves, 0, name="first")
    size = b(aten.sym_size.int, first, 0, name="size")
    out = b(aten.linear.default, b.x, first)
    small = fold(program := b.done(b(aten.mul.Tensor, out, size, name="scaled")))
    assert small.tensors.keys() == {"folded.first"}
    (scaled,) = (node for node in small.graph.nodes if node.name == "scaled")
    assert scaled.args[1] == 3
    same(program, small, torch.randn(BATCH, 4))


def test_random_operations_are_never_folded() -> None:
    b = Build({"gain": parameter(4)}, x=torch.randn(BATCH, 4))
    dropped = b(aten.dropout.default, b.read("gain"), 0.5, True, name="dropped")
    noisy = b(aten.bernoulli.default, b(aten.sigmoid.default, dropped), name="noisy")
    small = fold(b.done(b(aten.mul.Tensor, b.x, noisy)))
    assert [node.name for node in small.graph.nodes] == ["x", "gain", "dropped", "sigmoid", "noisy", "mul", "output"]


def test_batch_norm_of_a_constant_is_folded_only_without_running_statistics() -> None:
    def program(*statistics: str) -> Program:
        tensors = {"weight": parameter(1, 4, 9), **{name: torch.ones(4) for name in statistics}}
        b = Build(tensors, x=torch.randn(BATCH, 4, 9))
        reads: list[fx.Node | None] = [b.read(name) for name in statistics] or [None, None]
        norm = b(aten.batch_norm.default, b.read("weight"), None, None, *reads, True, 0.1, 1e-5, False, name="norm")
        return b.done(b(aten.mul.Tensor, b.x, norm))

    assert fold(program()).tensors.keys() == {"folded.norm"}
    assert fold(program("mean", "var")).tensors.keys() == {"weight", "mean", "var"}


def test_views_that_repeat_elements_stay_views() -> None:
    b = Build({"token": parameter(1, 1, 4)}, x=torch.randn(3, 2, 4))
    half = b(aten.slice.Tensor, b.read("token"), 2, 0, 2)
    wide = b(aten.expand.default, half, [3, 2, 2], name="wide")
    zeros = b(aten.zeros.default, [3, 2, 2], name="zeros")
    small = fold(program := b.done(b(aten.cat.default, [b.x, wide, zeros], 2)))
    assert small.tensors["token"].shape == (1, 1, 2)
    assert {"wide", "zeros"} <= {node.name for node in small.graph.nodes}
    same(program, small, torch.randn(3, 2, 4))


def test_unread_tensors_are_dropped_and_transient_ones_remembered() -> None:
    b = Build({"table": torch.randn(4), "unread": parameter(4)}, transient=["table"], x=torch.randn(BATCH, 4))
    small = fold(b.done(b(aten.add.Tensor, b.x, b.read("table"))))
    assert small.tensors.keys() == {"table"}
    assert small.transient == {"table"}


# operation, shape of the weight, shape of one input, arguments after the bias
Case = tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], tuple[Any, ...]]
CONVOLUTIONS: list[Case] = [
    (aten.conv1d.default, (6, 4, 3), (4, 10), ()),
    (aten.conv2d.default, (6, 4, 3, 3), (4, 9, 9), ([2, 2], [1, 1])),
    (aten.conv2d.default, (6, 2, 3, 3), (4, 9, 9), ([1, 1], [1, 1], [1, 1], 2)),
    (aten.conv2d.default, (4, 1, 3, 3), (4, 9, 9), ([1, 1], [1, 1], [1, 1], 4)),
    (aten.conv2d.padding, (6, 4, 3, 3), (4, 9, 9), ([1, 1], "same")),
    (aten.conv3d.default, (6, 4, 2, 2, 2), (4, 5, 5, 5), ()),
    (aten.conv_transpose1d.default, (4, 6, 3), (4, 9), ()),
    (aten.conv_transpose2d.input, (4, 6, 3, 3), (4, 9, 9), ([2, 2],)),
    (aten.conv_transpose2d.input, (4, 3, 3, 3), (4, 9, 9), ([2, 2], [0, 0], [0, 0], 2)),
    (aten.conv_transpose3d.input, (4, 6, 2, 2, 2), (4, 5, 5, 5), ()),
    (aten.linear.default, (6, 4), (4,), ()),
]


def normed(case: Case, bias: bool, affine: bool) -> tuple[Program, Tensor]:
    operation, shape, size, rest = case
    x = torch.randn(BATCH, *size)
    weight = parameter(*shape)
    outputs = operation(x, weight, None, *rest).shape[1]
    tensors: dict[str, Tensor] = {"stem.conv.weight": weight}
    if bias:
        tensors["stem.conv.bias"] = parameter(outputs)
    if affine:
        tensors |= {"stem.bn.weight": parameter(outputs), "stem.bn.bias": parameter(outputs)}
    tensors |= {"stem.bn.running_mean": torch.randn(outputs), "stem.bn.running_var": torch.rand(outputs) + 0.1}
    b = Build(tensors, x=x)
    read: Callable[[str], fx.Node | None] = b.reads.get
    conv = b(operation, b.x, read("stem.conv.weight"), read("stem.conv.bias"), *rest, name="stem_conv")
    norm = [read(f"stem.bn.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
    bn = b(aten.batch_norm.default, conv, *norm, True, 0.1, 1e-3, False, name="stem_bn")
    return b.done(b(aten.relu.default, bn)), x


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case[0]}{case[1]}")
def test_a_batch_norm_becomes_part_of_the_convolution_before_it(case: Case, bias: bool, affine: bool) -> None:
    program, x = normed(case, bias, affine)
    before = str(program.graph)
    folded = fold_batch_norms(program)
    assert [node.name for node in folded.graph.nodes if node.op == "call_function"] == ["stem_conv", "relu"]
    assert folded.tensors.keys() == {"stem.conv.weight", "stem.conv.bias"}
    assert all(isinstance(tensor, nn.Parameter) for tensor in folded.tensors.values())
    (expected,), (result,) = run(program, x), run(folded, x)
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert str(program.graph) == before


def test_batch_norms_that_cannot_be_merged_stay() -> None:
    shape = {"weight": parameter(4, 4), "mean": torch.randn(4), "var": torch.rand(4)}
    x = torch.randn(BATCH, 4)

    def norm(b: Build, value: fx.Node, name: str) -> fx.Node:
        return b(
            aten.batch_norm.default, value, None, None, b.read("mean"), b.read("var"), True, 0.1, 1e-5, False, name=name
        )

    b = Build(shape, x=x)
    hidden = b(aten.linear.default, b.x, b.read("weight"))
    read_twice = b.done(b(aten.add.Tensor, hidden, norm(b, hidden, "norm")))
    b = Build(shape, x=x)
    hidden = b(aten.linear.default, b.x, b.read("weight"))
    again = b(aten.linear.default, norm(b, hidden, "norm"), b.read("weight"))
    shared_weight = b.done(again)
    b = Build(shape, x=torch.randn(BATCH, 4, 4))
    positions = b.done(norm(b, b(aten.linear.default, b.x, b.read("weight")), "norm"))
    b = Build({"mean": shape["mean"], "var": shape["var"]}, x=x)
    no_convolution = b.done(norm(b, b(aten.relu.default, b.x), "norm"))
    for program in (read_twice, shared_weight, positions, no_convolution):
        folded = fold_batch_norms(program)
        assert [node.name for node in folded.graph.nodes] == [node.name for node in program.graph.nodes]
        assert folded.tensors == dict(program.tensors)
