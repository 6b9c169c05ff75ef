"""The norm of all levels at once: the norm of every level's channels, whatever runs or traces it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anytimeify.kernels import prefix_norm as kernel

ENDS = {"equal": [4, 8, 12, 16], "doubling": [2, 4, 8, 16], "odd": [3, 7, 16], "one": [16]}
every_shape = pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
every_kind = pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "RMS norm"])


def level_by_level(
    x: Tensor, ends: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> Tensor:
    found = []
    for start, end in pairwise((0, *ends)):
        part, scale, shift = x[..., :end], *(None if one is None else one[:end] for one in (weight, bias))
        whole = F.layer_norm(part, (end,), scale, shift, eps) if centred else F.rms_norm(part, (end,), scale, eps)
        found.append(whole[..., start:])
    return torch.cat(found, -1)


def tensors(centred: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Input, weight, and a bias where there is one."""
    x = 3 + torch.randn(2, 5, 16, dtype=dtype)
    return [one.requires_grad_() for one in (x, *torch.randn(1 + centred, 16, dtype=dtype))]


def called(function: Callable[..., Tensor], ends: Sequence[int], centred: bool) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return function(x, ends, weight, bias, 1e-5, centred)

    return call


def results(layer: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    y = layer(*given)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), given)]


@every_shape
@every_kind
def test_means_the_norm_of_every_level(ends: list[int], centred: bool) -> None:
    given = tensors(centred)
    expected = results(called(level_by_level, ends, centred), given)
    torch.testing.assert_close(results(called(kernel.PREFIX_NORM, ends, centred), given), expected)


@every_shape
@every_kind
def test_derivatives(ends: list[int], centred: bool) -> None:
    layer, given = called(kernel.PREFIX_NORM, ends, centred), tensors(centred)
    assert torch.autograd.gradcheck(layer, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, given, fast_mode=True)


@every_kind
def test_one_gradient_alone(centred: bool) -> None:
    given = tensors(centred)
    for wanted in given:
        alone = [one if one is wanted else one.detach() for one in given]
        (found,) = torch.autograd.grad(called(kernel.PREFIX_NORM, [4, 8, 16], centred)(*alone).square().sum(), wanted)
        (expected,) = torch.autograd.grad(called(level_by_level, [4, 8, 16], centred)(*alone).square().sum(), wanted)
        torch.testing.assert_close(found, expected)


def test_without_scale() -> None:
    x = torch.randn(3, 16)
    found = kernel.PREFIX_NORM(x, [4, 16], None, None, 1e-5, True)
    torch.testing.assert_close(found, level_by_level(x, [4, 16], None, None, 1e-5, True))


@every_shape
@every_kind
def test_compiled(ends: list[int], centred: bool) -> None:
    torch.compiler.reset()
    layer, given = called(kernel.PREFIX_NORM, ends, centred), tensors(centred)
    compiled: Any = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(compiled, given), results(layer, given))
    torch.compiler.reset()


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_large_means_cost_no_more_than_in_the_norm_of_a_level(offset: float) -> None:
    """A small spread around a large mean, and chunks that lie far from each other."""
    x = offset + torch.randn(64, 16) + 100 * torch.arange(4.0).repeat_interleave(4)
    exact = level_by_level(x.double(), [4, 8, 12, 16], None, None, 1e-5, True)
    far = (level_by_level(x, [4, 8, 12, 16], None, None, 1e-5, True) - exact).abs().max()
    found = kernel.PREFIX_NORM(x, [4, 8, 12, 16], None, None, 1e-5, True)
    assert (found - exact).abs().max() <= 2 * far + 1e-6


def test_autocast_and_short_types() -> None:
    x, weight, bias = tensors(True, torch.float32)
    short = x.detach().bfloat16()
    expected = kernel.PREFIX_NORM(short.float(), [4, 16], weight, bias, 1e-5, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = kernel.PREFIX_NORM(short, [4, 16], weight, bias, 1e-5, True)
        assert found.dtype is F.layer_norm(short, (16,), weight, bias).dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.05)
    alone = kernel.PREFIX_NORM(short, [4, 16], weight.bfloat16(), bias.bfloat16(), 1e-5, True)
    assert alone.dtype is torch.bfloat16


def test_earlier_levels_keep_their_bits() -> None:
    x, weight, bias = tensors(True, torch.float32)
    changed = torch.cat([x[..., :8], torch.randn_like(x[..., 8:])], -1)
    before, after = (kernel.PREFIX_NORM(one, [4, 8, 16], weight, bias, 1e-5, True)[..., :8] for one in (x, changed))
    assert torch.equal(before, after)


# -- group norms, and weight standardisation ---------------------------------------------------------------------------


def groups_level_by_level(x: Tensor, ends: Sequence[int], weight: Tensor, bias: Tensor) -> Tensor:
    parts = [F.group_norm(x[:, :end], 1, weight[:end], bias[:end])[:, start:] for start, end in pairwise((0, *ends))]
    return torch.cat(parts, 1)


def standardised_level_by_level(x: Tensor, rows: Sequence[int], ends: Sequence[int], weight: Tensor) -> Tensor:
    """What a level adds are its rows, and its columns of the rows before."""
    result = x.new_zeros(x.shape)
    for row, end in reversed(list(zip(rows, ends, strict=True))):
        part = F.batch_norm(x[:, :row, :end], None, None, weight[:row], None, training=True)
        keep = torch.zeros_like(x)
        keep[:, :row, :end] = 1
        result = torch.where(keep == 1, F.pad(part, (0, x.shape[2] - end, 0, x.shape[1] - row)), result)
    return result


ROWS = {"equal": ([2, 4, 6, 8], [4, 8, 12, 16]), "odd": ([3, 7, 8], [3, 7, 16]), "no new": ([2, 2, 8], [4, 8, 8])}
every_layer = pytest.mark.parametrize(("rows", "ends"), ROWS.values(), ids=ROWS)


@every_shape
@pytest.mark.parametrize("size", [(), (3,), (3, 2)])
def test_group_norms_of_every_level(ends: list[int], size: tuple[int, ...]) -> None:
    given = [3 + torch.randn(2, 16, *size, dtype=torch.float64), *torch.randn(2, 16, dtype=torch.float64)]
    given = [one.requires_grad_() for one in given]

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = kernel.PREFIX_GROUP_NORM(x, ends, weight, bias, 1e-5)
        return result

    expected = results(lambda *tensors: groups_level_by_level(tensors[0], ends, *tensors[1:]), given)
    torch.testing.assert_close(results(layer, given), expected)
    assert torch.autograd.gradcheck(layer, given, fast_mode=True)
    torch.compiler.reset()
    compiled: Any = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(compiled, given), expected)


@every_layer
def test_standardised_weights_of_every_level(rows: list[int], ends: list[int]) -> None:
    given = [torch.randn(1, rows[-1], ends[-1], dtype=torch.float64), torch.randn(rows[-1], dtype=torch.float64)]
    given = [one.requires_grad_() for one in given]

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = kernel.PREFIX_STANDARDISE(x, rows, ends, weight, None, 1e-5)
        return result

    expected = results(lambda x, weight: standardised_level_by_level(x, rows, ends, weight), given)
    torch.testing.assert_close(results(layer, given), expected)
    assert torch.autograd.gradcheck(layer, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, given, fast_mode=True)
    torch.compiler.reset()
    compiled: Any = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(compiled, given), expected)


def test_operators_are_what_torch_expects_of_operators() -> None:
    x, weight, bias = (one.detach() for one in tensors(True, torch.float32))
    ours = torch.ops.anytimeify
    forward = (x, weight, bias, [4, 16], [1], 1e-5, True, False)
    y, means, variances = ours.prefix_norm_forward(*forward)
    backward = (y, x, weight, bias, means, variances, [4, 16], [1], True, [True, True, True], False)
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(ours.prefix_norm_forward.default, forward, test_utils=utilities)
    torch.library.opcheck(ours.prefix_norm_backward.default, backward, test_utils=utilities)
