"""Types of results inferred from the operations: as capture recorded them, and for inputs of other sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

import anytimeify.kernels.operators
import anytimeify.operators.derivatives
import anytimeify.operators.modes  # noqa: F401  # each registers operations that the cases call
from anytimeify.capture import capture
from anytimeify.contract.spec import verify
from anytimeify.ir import Captured, Origin, Program, Size, TensorType
from anytimeify.ir.infer_types import (
    UNKNOWN,
    TypeInferenceError,
    agree,
    fits,
    infer_type,
    inferred_type,
)
from anytimeify.ir.node_meta import type_of
from anytimeify.ir.recast import recast
from anytimeify.ir.size_expressions import expression_of, monomial

aten = torch.ops.aten
ours = torch.ops.anytimeify
BATCH = Size(1, ("s0",))


def kind(*sizes: int | str, dtype: torch.dtype = torch.float32) -> TensorType:
    return TensorType(tuple(Size.parse(str(size)) for size in sizes), dtype)


def node(meta: Any) -> fx.Node:
    made = fx.Graph().placeholder("x")
    made.meta = {"type": meta, "origin": Origin()}
    return made


X, IMAGE, MATRIX = kind("s0", 6), kind("s0", 6, 8, 8), kind(4, 6)
MASK, INDEX = kind("s0", 6, dtype=torch.bool), kind("2*s0", dtype=torch.int64)
CASES: list[tuple[Callable[..., Any], Sequence[Any], Any]] = [
    (aten.linear.default, (X, MATRIX), kind("s0", 4)),
    (aten.conv2d.default, (IMAGE, kind(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 1], 2), kind("s0", 4, 4, 4)),
    (aten.add.Tensor, (X, kind(6, dtype=torch.float64)), kind("s0", 6, dtype=torch.float64)),
    (aten.mul.Tensor, (INDEX, 0.5), kind("2*s0")),
    (aten.mul.Tensor, (INDEX, 1), INDEX),
    (aten.reshape.default, (IMAGE, [BATCH * Size(2), -1]), kind("2*s0", 192)),
    (aten.reshape.default, (IMAGE, [-1]), kind("384*s0")),
    (aten.unbind.int, (kind(2, "s0", 3),), (kind("s0", 3), kind("s0", 3))),
    (aten.split.Tensor, (kind("s0", 7), 3, 1), (kind("s0", 3), kind("s0", 3), kind("s0", 1))),
    (aten.max.dim, (X, 1), (kind("s0"), kind("s0", dtype=torch.int64))),
    (aten.matmul.default, (kind("s0", "s1", 5), kind("s0", 5, "s1")), kind("s0", "s1", "s1")),
    (aten.cat.default, ([X, kind("s0", 3)], 1), kind("s0", 9)),
    (aten.arange.default, (BATCH,), kind("s0", dtype=torch.int64)),
    (aten.zeros.default, ([BATCH, 4],), kind("s0", 4)),
    (aten.index_select.default, (X, 0, INDEX), kind("2*s0", 6)),
    (aten.sym_size.int, (kind("64*s0", 6), 0), Size.parse("64*s0")),
    (operator.mul, (BATCH, 3), Size.parse("3*s0")),
    (operator.floordiv, (Size.parse("6*s0"), 3), Size.parse("2*s0")),
    (operator.sub, (Size(6), 4), Size(2)),
    (operator.mod, (BATCH, 2), Size(1, ("(Mod(s0,2))",))),
    (operator.add, (BATCH, 1), Size(1, ("(s0+1)",))),
    (operator.sub, (Size(1, ("(s0+1)",)), 1), BATCH),
    (aten.max_pool2d.default, (kind("s0", 3, "s1", "s1"), [2, 2]), kind("s0", 3, "((s1//2))", "((s1//2))")),
    (torch.sym_float, (BATCH,), None),
    (ours.by_mode.default, (X, X), X),
    (ours.after.default, (X, [MATRIX]), X),
    (ours.update_buffer.default, (MATRIX, MATRIX), MATRIX),
    (ours.buffer_before.default, (MATRIX,), MATRIX),
    (ours.drop_path.default, (X, 0.9), X),
    (ours.prefix_norm.default, (X, [2, 6], None, None, 1e-5, True), X),
    (ours.prefix_group_norm.default, (IMAGE, [2, 6], None, None, 1e-5), IMAGE),
    (ours.prefix_standardise.default, (kind(1, 4, 6), [2, 4], [3, 6], None, None, 1e-5), kind(1, 4, 6)),
    (ours.triangular_linear.default, (X, MATRIX, None, [2, 4], [3, 6], 2), kind("s0", 4)),
    (
        ours.triangular_conv.default,
        (IMAGE, kind(4, 6, 3, 3), None, [2, 4], [3, 6], 2, [2, 2], [1, 1], [1, 1]),
        kind("s0", 4, 4, 4),
    ),
    (
        aten.lstm.input,
        (kind(5, "s0", 6), [kind(2, "s0", 4), kind(2, "s0", 4)], [], True, 1, 0.0, True, True, False),
        (kind(5, "s0", 8), kind(2, "s0", 4), kind(2, "s0", 4)),
    ),
    (aten.batch_norm.default, (kind(1, 6), None, None, None, None, True, 0.1, 1e-5, False), kind(1, 6)),
    (aten.embedding_bag.padding_idx, (MATRIX, INDEX, INDEX, False, 0, False, None, False, None), UNKNOWN),
    (aten.nonzero.default, (MASK,), UNKNOWN),
    (aten.index.Tensor, (X, [MASK]), UNKNOWN),
]


@pytest.mark.parametrize(("target", "args", "expected"), CASES, ids=[one[0].__name__ for one in CASES])
def test_results_have_the_types_of_the_operation(
    target: Callable[..., Any], args: Sequence[Any], expected: Any
) -> None:
    found = infer_type(target, [standing_for(one) for one in args], {})
    assert found == expected or (found is UNKNOWN and torch.__version__ < "2.13")


def standing_for(argument: Any) -> Any:
    """An argument with nodes in the place of types."""
    if isinstance(argument, list):
        return [standing_for(one) for one in argument]
    return node(argument) if isinstance(argument, TensorType | Size) else argument


def test_an_item_is_one_of_several() -> None:
    several = node((X, MATRIX))
    assert infer_type(operator.getitem, (several, 1), {}) == MATRIX
    with pytest.raises(TypeInferenceError, match="takes item 2"):
        infer_type(operator.getitem, (several, 2), {})


def test_an_autograd_function_has_the_types_of_what_was_traced_of_it() -> None:
    traced = [node(X), node(INDEX)]
    assert infer_type(ours.autograd_function.default, (traced, [node(MATRIX)], "any"), {}) == (X, INDEX)


def test_no_device_is_touched_and_no_number_drawn() -> None:
    before = torch.get_rng_state()
    drawn = infer_type(aten.rand.default, ([node(BATCH), 10**15],), {"device": torch.device("cpu")})
    assert drawn == kind("s0", 10**15)
    assert torch.equal(torch.get_rng_state(), before)


def test_operands_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeInferenceError, match=r"cannot be applied to \[s0, 6\], \[4, 5\]: "):
        infer_type(aten.linear.default, (node(X), node(kind(4, 5))), {})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("2*s0", "(s0+s0)", True), ("(4·(s1//4))", "s1", False), ("(s0+1)", "(1+s0)", True), ("(s0+1)", "(s0+2)", False)],
)
def test_sizes_agree_by_what_they_say(one: str, other: str, same: bool) -> None:
    assert agree(kind(one), kind(other)) is same


@pytest.mark.parametrize(
    "text", ["64*s0", "s0*s1", "(s0+1)", "3*((s0-1)//2)", "(s0^2+s1)", "(floor(s0/2)+1)", "(Max(1,s0))", "0"]
)
def test_expressions_are_written_and_read(text: str) -> None:
    size = Size.parse(text)
    assert agree(monomial(expression_of(size)), size)


@pytest.mark.parametrize("text", ["(9^9^9^9)", "(__import__('os'))", "(" * 200 + ")" * 200, "(s0.real)", "(s0^(9^9))"])
def test_a_text_that_is_no_expression_stands_for_itself(text: str) -> None:
    assert expression_of(Size(1, (text,))).is_Symbol


class Windows(nn.Module):
    """Sizes that are sums, products and quotients of dynamic ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = torch.cat([y, y[..., : y.shape[-1] // 2]], -1)
        tokens = y.flatten(2).transpose(1, 2)
        scores = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return (scores * torch.arange(tokens.shape[1])[:, None]).mean(1)


def resnet() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    result: nn.Module = models.resnet18(num_classes=5)
    return result


def calls(program: Program) -> list[fx.Node]:
    return [one for one in program.graph.nodes if one.op == "call_function"]


def dynamic() -> Captured:
    shapes = {"x": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}
    return capture(Windows(), torch.randn(3, 3, 17, 22), dynamic_shapes=shapes)


every_size = pytest.mark.skipif(torch.__version__ < "2.13", reason="puts numbers in the place of symbols")


@every_size
def test_every_type_that_capture_records_is_inferred() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(5, 7, num_layers=2, bidirectional=True, batch_first=True)
    programs = [
        capture(resnet(), torch.randn(2, 3, 64, 64)).program,
        capture(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(3, 5, 8)).program,
        capture(lstm, torch.randn(3, 4, 5), output=0).program,
        dynamic().program,
    ]
    for program in programs:
        for one in calls(program):
            assert fits(one), one.name
            assert agree(inferred_type(one), one.meta["type"]), one.name
    assert "//" in str(programs[-1])


@every_size
def test_a_wrong_type_is_noticed() -> None:
    """Of every call of a network with sizes that are no monomials."""
    program = dynamic().program
    for one in calls(program):
        right = one.meta["type"]
        wrong = Size(3) * right if isinstance(right, Size) else right.with_shape((*right.shape[:-1], Size(11)))
        one.meta["type"] = wrong
        assert not fits(one), one.name
        one.meta["type"] = right


@every_size
def test_sizes_that_are_no_monomials_are_written_as_capture_writes_them() -> None:
    program = dynamic().program
    conv = next(iter(program.graph.find_nodes(op="call_function", target=aten.conv2d.default)))
    assert inferred_type(conv) == conv.meta["type"]


def test_types_follow_the_precision_of_the_tensors() -> None:
    captured = capture(resnet(), torch.randn(2, 3, 64, 64))
    program = captured.program
    assert recast(program) is program
    double = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in program.tensors.items()
    }
    cast = recast(replace(program, tensors=double))
    verify(cast)
    assert type_of(cast.placeholders[0]).dtype is type_of(cast.outputs[0]).dtype is torch.float64
    assert type_of(program.outputs[0]).dtype is torch.float32
