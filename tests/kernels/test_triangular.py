"""The operators: that every form means the masked dense layer, and that torch knows what it wants to know."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import kernels
from anytimeify.kernels import choice, run
from tests.kernels.cases import FORMS, Case, cases

CONV = Case((2, 5, 6, 9), (3, 4, 7, 8), 4, 8, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1))
STRIDED = Case((2, 4, 8), (1, 2, 6), 3, 6, (7, 6), (3, 2), (2, 1), (1, 0), (2, 1), bias=False)
POINTWISE = Case((2, 4, 8), (2, 4, 6), 3, 6, (4, 4), (1, 1), (2, 2), (0, 0), (1, 1))
SCATTERED = Case((1, 2, 3, 4, 6, 7), (2, 3, 4, 5, 6, 7), 3, 7, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1))
GAPS = Case((2, 2, 4, 6), (0, 3, 3, 4), 4, 6, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1))
ONE = Case((5,), (4,), 1, 4, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1))
ALONG = Case((2, 4), (2, 4), 2, 4, (9,), (3,), (1,), (1,), (1,))
SOLID = Case((2, 4), (2, 4), 2, 4, (3, 4, 3), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))
LINEAR = Case((2, 5, 6, 9), (3, 4, 7, 8), 4, 8)
SCATTERED_LINEAR = Case((1, 2, 3, 4, 6, 7), (2, 3, 4, 5, 6, 7), 3, 7, bias=False)
NAMED = {
    "conv": CONV, "strided": STRIDED, "pointwise": POINTWISE, "scattered": SCATTERED, "gaps": GAPS, "one": ONE,
    "along": ALONG, "solid": SOLID, "linear": LINEAR, "scattered linear": SCATTERED_LINEAR,
}  # fmt: skip
every_case = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED)


@pytest.fixture(autouse=True)
def _everything_is_worth_measuring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(choice, "WORTH", 0)
    monkeypatch.setattr(run, "WORTH", 0)
    kernels.forget()
    yield
    kernels.forget()


def results(case: Case, layer: Any, tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    """The result and all gradients."""
    given_tensors = [None if one is None else one.detach().requires_grad_() for one in tensors]
    y = layer(*given_tensors)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [one for one in given_tensors if one is not None])]


def assert_means_dense(case: Case, *, channels_last: bool = False) -> None:
    x, weight, bias = case.tensors()
    if channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last)
    expected = results(case, case.dense, (x, weight, bias))
    for kind in FORMS:
        with kernels.form(kind):  # type: ignore[arg-type]  # the names of all forms
            torch.testing.assert_close(results(case, case.fast, (x, weight, bias)), expected)
    for count in (1, 2, 3):
        with kernels.form("blocks", count):
            found = results(case, case.fast, (x, weight, bias))
            torch.testing.assert_close(found, expected)
            assert (found[2].masked_select(~case.mask().expand_as(weight)) == 0).all()


@every_case
def test_every_form_means_the_masked_layer(case: Case) -> None:
    assert_means_dense(case)


@pytest.mark.parametrize("name", ["conv", "strided", "pointwise", "scattered", "gaps"])
def test_channels_last(name: str) -> None:
    assert_means_dense(NAMED[name], channels_last=True)


@given(cases())
def test_any_geometry(case: Case) -> None:
    assert_means_dense(case)


@pytest.mark.parametrize("case", [CONV, STRIDED, POINTWISE, LINEAR], ids=["conv", "strided", "pointwise", "linear"])
@pytest.mark.parametrize("kind", ["masked", "prefixes"])
def test_derivatives(case: Case, kind: Any) -> None:
    tensors = [one for one in case.tensors() if one is not None]

    def layer(*tensors: Tensor) -> Tensor:
        return case.fast(tensors[0], tensors[1], tensors[2] if case.bias else None)

    with kernels.form(kind):
        assert torch.autograd.gradcheck(layer, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(layer, tensors, fast_mode=True)


def test_one_gradient_alone() -> None:
    for case in (CONV, POINTWISE, LINEAR):
        x, weight, bias = case.tensors()
        for wanted in (x, weight, bias):
            assert wanted is not None
            (found,) = torch.autograd.grad(case.fast(x, weight, bias).square().sum(), wanted)
            (expected,) = torch.autograd.grad(case.dense(x, weight, bias).square().sum(), wanted)
            torch.testing.assert_close(found, expected)


# What later levels hold never reaches earlier ones.


@pytest.mark.parametrize("name", ["conv", "pointwise", "linear", "scattered"])
@pytest.mark.parametrize("kind", ["prefixes", "blocks"])
def test_masked_entries_are_never_read(name: str, kind: Any) -> None:
    case = NAMED[name]
    x, weight, bias = case.tensors(torch.float32)
    expected = results(case, case.dense, (x, weight, bias))
    poisoned = torch.where(case.mask(), weight, torch.nan)
    with kernels.form(kind):
        torch.testing.assert_close(results(case, case.fast, (x, poisoned, bias)), expected)


@pytest.mark.parametrize("name", ["conv", "pointwise", "linear"])
def test_levels_do_not_reach_where_they_are_not_read(name: str) -> None:
    """Not even as infinities: a later column no earlier row, and an earlier row's gradient no later column's."""
    case = NAMED[name]
    x, weight, bias = case.tensors(torch.float32)
    channels = 1 if case.size else 2
    with kernels.form("prefixes"):
        y = case.fast(x, weight, bias)
        grad = torch.randn_like(y)
        (dx,) = torch.autograd.grad(y, x, grad)
        for end_row, end_column in zip(case.rows[:-1], case.columns[:-1], strict=True):
            later = (channels, end_column, case.width - end_column)
            spoilt, spoilt_grad = x.detach().clone(), grad.clone()
            spoilt.narrow(*later).fill_(torch.inf)
            spoilt_grad.narrow(channels, 0, end_row).fill_(torch.inf)
            early = case.fast(spoilt, weight, bias).narrow(channels, 0, end_row)
            assert torch.equal(early, y.narrow(channels, 0, end_row))
            (late,) = torch.autograd.grad(case.fast(x, weight, bias), x, spoilt_grad)
            assert torch.equal(late.narrow(*later), dx.narrow(*later))


@pytest.mark.parametrize("kind", ["masked", "prefixes", "blocks"])
def test_earlier_rows_keep_their_bits(kind: Any) -> None:
    case = CONV
    x, weight, bias = case.tensors(torch.float32)
    changed = torch.where(torch.arange(9).view(-1, 1, 1, 1) < case.rows[1], weight, torch.randn_like(weight))
    with kernels.form(kind):
        assert torch.equal(case.fast(x, weight, bias)[:, :5], case.fast(x, changed, bias)[:, :5])


# What torch wants to know.


@pytest.mark.parametrize("case", [CONV, POINTWISE, LINEAR], ids=["conv", "pointwise", "linear"])
def test_operators_are_well_registered(case: Case) -> None:
    x, weight, bias = case.tensors()
    rest = (*case.ends, *case.window) if case.size else case.ends
    name = "triangular_conv" if case.size else "triangular_linear"
    operator, backward = (getattr(torch.ops.anytimeify, f"{name}_in_blocks{one}").default for one in ("", "_backward"))
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        opcheck(operator, (x, weight, bias, *rest))
        for wanted in ([True, True], [False, True]):
            opcheck(backward, (case.fast(x, weight, bias).detach(), x, weight, *rest, wanted))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_that_of_the_dense_layer(layout: torch.memory_format) -> None:
    for case in (CONV, POINTWISE, STRIDED):
        x, weight, bias = case.tensors(torch.float32)
        given_x = x.detach().contiguous(memory_format=layout).requires_grad_()
        for kind in FORMS:
            with kernels.form(kind):  # type: ignore[arg-type]  # the names of all forms
                y = case.fast(given_x, weight, bias)
                (dx,) = torch.autograd.grad(y.sum(), given_x)
            assert y.stride() == case.dense(given_x, weight, bias).stride()
            assert dx.stride() == given_x.stride()


class Net(nn.Module):
    """Layers of both kinds, of four levels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = kernels.TriangularConv(4, 8, (3, 3), [2, 4, 6, 8], [1, 2, 3, 4], 4, padding=(1, 1))
        self.fc = kernels.TriangularLinear(8, 4, [1, 2, 3, 4], [2, 4, 6, 8], 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return result


@contextmanager
def compiler_state() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_compiled() -> None:
    net, x = Net(), torch.randn(2, 4, 5, 5)
    with compiler_state():
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
        for batch in (2, 3):
            x = torch.randn(batch, 4, 5, 5)
            torch.testing.assert_close(compiled(x), net(x))
            grads = [torch.autograd.grad(one(x).square().sum(), list(net.parameters())) for one in (compiled, net)]
            torch.testing.assert_close(*grads)


def test_exported() -> None:
    net, x = Net().eval(), torch.randn(2, 4, 5, 5)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=False)
    assert not kernels.choices(), "nothing is measured while a graph is traced"
    targets = {str(node.target) for node in exported.graph.nodes}
    assert {"aten.conv2d.default", "aten.linear.default"} <= targets
    assert not any(target.startswith("anytimeify") for target in targets)
    x = torch.randn(5, 4, 5, 5)
    torch.testing.assert_close(exported.module()(x), net(x))


def test_autocast() -> None:
    for case in (CONV, LINEAR):
        x, weight, bias = case.tensors(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = case.fast(x, weight, bias)
            expected = case.dense(x, weight, bias)
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
        y.float().sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        assert x.grad.dtype is weight.grad.dtype is torch.float32


def test_flops_are_those_of_what_exists() -> None:
    for case in (CONV, STRIDED, POINTWISE, SOLID, LINEAR):
        x, weight, bias = case.tensors(torch.float32)
        counts = []
        for layer in (case.fast, case.dense):
            with kernels.form("prefixes"), FlopCounterMode(display=False) as counter:
                layer(x, weight, bias).sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] * case.mask().numel() == counts[1] * int(case.mask().sum())


def test_modules_print_what_they_are() -> None:
    assert str(Net()).splitlines()[1:3] == [
        "  (conv): TriangularConv(4, 8, kernel_size=(3, 3), levels=4, kept=0.62, padding=(1, 1))",
        "  (fc): TriangularLinear(8, 4, levels=4, kept=0.62, bias=False)",
    ]


def test_refuses_levels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"rows=\[1, 2\] do not fit a weight of 3 x 4"):
        kernels.triangular_linear(torch.randn(2, 4), torch.randn(3, 4), None, [1, 2], [2, 4], 2)
