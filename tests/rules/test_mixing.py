"""What a rule calls unmixed really is: no later channel reaches an earlier one there, checked by gradients.

Triangular connectivity stands on this. A node's results, at the entries that a width keeps, must have no gradient by
the operand entries that the width drops, unless the rule says that the operation mixes along that axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes, AxisGroup, Widths, analyse
from anytimeify.capture import capture
from anytimeify.ir import Program, TensorType
from anytimeify.rules import axis_rule
from anytimeify.rules.factors import flat
from anytimeify.rules.table import unregister
from anytimeify.testing import Backbone, backbones
from anytimeify.testing.backbone import randomise
from tests.rules.test_every_rule import TARGETS, calls_of, f, one_call

aten = torch.ops.aten


def leaks(node: fx.Node, axes: Axes, operands: dict[fx.Node, Any], widths: Widths) -> bool:
    """Whether what the widths keep of a node's results changes with what they drop of its operands."""
    torch.manual_seed(0)
    variables = {
        source: value.detach().clone().requires_grad_()
        for source, value in operands.items()
        if isinstance(value, nn.Parameter) or (source.op != "get_attr" and value.is_floating_point())
    }
    values = {**operands, **variables}

    def call() -> list[Tensor]:
        torch.manual_seed(0)
        args, kwargs = fx.map_arg(
            (node.args, dict(node.kwargs)),
            lambda source: value.clone() if isinstance(value := values[source], Tensor) else value,
        )
        assert callable(node.target)
        result = node.target(*args, **kwargs)
        several = isinstance(node.meta["type"], tuple)
        results = zip(result, axes.dims[node], strict=True) if several else [(result, axes.dims[node])]
        return [kept(tensor, dims, axes, widths) for tensor, dims in results]

    for source, gradient in gradients(call, variables):
        if dropped(gradient, axes.dims[source], axes, widths).nan_to_num().any():
            return True
    values.update(operands)
    with torch.no_grad():
        results = call()
    for source, value in operands.items():  # what has no gradient: other values there give the same results
        if isinstance(value, Tensor) and not value.is_complex():
            values[source] = changed(value, axes.dims[source], axes, widths)
    with torch.no_grad():
        others = call()
    return not all(
        torch.allclose(one, other, rtol=1e-5, atol=1e-7, equal_nan=True)
        for one, other in zip(results, others, strict=True)
    )


def gradients(call: Callable[[], list[Tensor]], variables: dict[fx.Node, Tensor]) -> list[tuple[fx.Node, Tensor]]:
    """Of a random combination of the results; none where the operation has no derivative."""
    try:
        terms = [(one.abs().square() * torch.rand(one.shape)).sum() for one in call() if one.grad_fn is not None]
        if not terms:
            return []
        total, asked = torch.stack(terms).sum(), list(variables.values())
        found: list[Tensor | None] = [*torch.autograd.grad(total, asked, allow_unused=True)]
    except RuntimeError as error:
        if "derivative" not in str(error):
            raise
        return []
    return [(source, one) for source, one in zip(variables, found, strict=True) if one is not None]


def kept(tensor: Tensor, dims: Any, axes: Axes, widths: Widths) -> Tensor:
    for dim, expr in enumerate(dims):
        if axes.narrowed(expr, widths):
            tensor = tensor.index_select(dim, torch.from_numpy(axes.indices(expr, widths)))
    return tensor


def mask(tensor: Tensor, dims: Any, axes: Axes, widths: Widths) -> Tensor:
    """True at the entries that are dropped."""
    result = torch.zeros(tensor.shape, dtype=torch.bool)
    for dim, expr in enumerate(dims):
        if axes.narrowed(expr, widths):
            gone = np.setdiff1d(np.arange(tensor.shape[dim]), axes.indices(expr, widths))
            result.index_fill_(dim, torch.from_numpy(gone), True)
    return result


def dropped(tensor: Tensor, dims: Any, axes: Axes, widths: Widths) -> Tensor:
    return torch.where(mask(tensor, dims, axes, widths), tensor, torch.zeros_like(tensor))


def changed(tensor: Tensor, dims: Any, axes: Axes, widths: Widths) -> Tensor:
    """Other values at the entries that are dropped, out of those that the tensor has, so that indices stay indices."""
    places = mask(tensor, dims, axes, widths)
    others = tensor.detach().flatten()[torch.randperm(tensor.numel())].reshape(tensor.shape)
    return torch.where(places, others, tensor.detach())


def half(group: AxisGroup) -> Widths:
    units = group.size // group.quantum
    return {group.factor: max(1, units // 2)} if units > 1 else {}


def checked(node: fx.Node, axes: Axes, operands: dict[fx.Node, Any]) -> Iterator[tuple[bool, bool]]:
    """For every axis group that a node touches: whether its rule says that it mixes there, and whether it leaks."""
    for group in axes.narrowable:
        exprs = [expr for source in operands for expr in flat(axes.dims[source])]
        if any(axes.narrowed(expr, {group.factor: 1}) for expr in exprs) and (widths := half(group)):
            yield axes.mixes(node, group), leaks(node, axes, operands, widths)


def check_rule(target: Any, arguments: tuple[Any, ...]) -> list[tuple[bool, bool]]:
    program, node = one_call(target, arguments)
    operands = {source: program.tensors[str(source.target)] for source in node.all_input_nodes}
    return list(checked(node, analyse(program), operands))


RANDOM = ("empty", "new_empty", "empty_like")  # uninitialised memory differs from call to call


@pytest.mark.parametrize("target", [target for target in TARGETS if calls_of(target)], ids=str)
def test_what_a_rule_calls_unmixed_does_not_leak(target: Any) -> None:
    if str(target).split(".")[1] in RANDOM:
        pytest.skip("gives uninitialised memory")
    if target is torch.ops.anytimeify.autograd_function.default:
        pytest.skip("computes what it traced, which says of itself what it mixes")
    for arguments in calls_of(target):
        for says_mixed, leaking in check_rule(target, arguments):
            assert says_mixed or not leaking


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (aten.linear.default, (f(2, 5, 8), f(12, 8), f(12))),
        (aten.conv2d.default, (f(2, 8, 6, 6), f(12, 8, 3, 3))),
        (aten.layer_norm.default, (f(2, 5, 8), [8], f(8), f(8))),
        (aten.group_norm.default, (f(2, 8, 6, 6), 1, f(8), f(8))),
        (aten.mean.dim, (f(2, 8, 5), [1])),
        (aten.matmul.default, (f(4, 8), f(8, 6))),
        (aten._weight_norm.default, (f(8, 4, 3), f(8, 1, 1), 0)),
    ],
    ids=lambda value: str(value) if callable(value) else "",
)
def test_mixing_is_said_where_it_happens(target: Any, arguments: tuple[Any, ...]) -> None:
    found = check_rule(target, arguments)
    assert (True, True) in found  # mixed along one axis
    assert all(says_mixed == leaking for says_mixed, leaking in found)  # and said of no other


def test_the_check_finds_rules_that_hide_mixing() -> None:
    target = aten.linalg_matmul.default
    axis_rule(target, "n c, c d -> n c")  # what it makes of c depends on all of c
    try:
        program, node = one_call(target, (f(4, 8), f(8, 8)))
        operands = {source: program.tensors[str(source.target)] for source in node.all_input_nodes}
        assert (False, True) in list(checked(node, analyse(program), operands))
    finally:
        unregister(target)


@pytest.mark.slow
@given(backbone=backbones())
@settings(max_examples=15, deadline=None)
def test_no_node_of_a_backbone_leaks(backbone: Backbone) -> None:
    """The same of every node of whole networks, where axes are products and sums: shuffles, concatenations, heads."""
    program, axes, values = run_nodes(backbone)
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["type"], TensorType):
            operands = {source: values[source] for source in node.all_input_nodes}
            if node.target in SKIPPED or any(not isinstance(value, Tensor) for value in operands.values()):
                continue
            for says_mixed, leaking in checked(node, axes, operands):
                assert says_mixed or not leaking, f"{node.format_node()} leaks"


SKIPPED = {aten.dropout.default}


def run_nodes(backbone: Backbone) -> tuple[Program, Axes, dict[fx.Node, Any]]:
    captured = capture(randomise(backbone.build()), backbone.example_inputs())
    program = captured.program
    values: dict[fx.Node, Any] = {}
    inputs = iter(captured.example_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "get_attr":
            values[node] = program.tensors[str(node.target)]
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: values[source])
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    return program, analyse(program), values
