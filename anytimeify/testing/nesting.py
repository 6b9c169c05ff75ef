"""What must hold where levels nest in one pass: nothing that a level adds is seen by the levels below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anytimeify.ir import names
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.runtime.model import AnytimeModel
from anytimeify.testing.checks import evaluating, given_inputs

__all__ = ["assert_prefixes_nest"]


def assert_prefixes_nest(net: AnytimeModel, inputs: Sequence[Any] | None = None) -> None:
    """Levels of a triangular network do not change by one bit when whatever later levels add is changed: channels of
    shared parameters and statistics beyond the level's width, and tensors that other levels have for themselves."""
    assert isinstance(net.scheme, NestedChannels), "only nested channels are triangular"
    dtype = next((one.dtype for one in net.parameters() if one.is_floating_point()), torch.get_default_dtype())
    given = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in given_inputs(net, inputs)]
    kept = net.scheme.kept(net.axes)
    readers = {str(node.target): node for node in net.captured.program.graph.find_nodes(op="get_attr")}
    tensors = net.tensors()
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with evaluating(net), torch.no_grad():
        expected = [one.clone() for one in net(*given).levels]
        for level in range(len(net.levels) - 1):
            for name, tensor in tensors.items():
                if not tensor.is_floating_point() or name.startswith(names.CONSTANTS):
                    continue
                if name in readers:
                    tensor.copy_(_changed(before[name], net.axes.dims[readers[name]], net, kept[level]))
                elif (own := names.level_of(name)) is not None and own > level:
                    tensor.copy_(_other(before[name]))
            found = [one.clone() for one in net(*given).levels]
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
            for lower in range(level + 1):
                assert torch.equal(expected[lower], found[lower]), (
                    f"level {lower} ({net.levels[lower].name}) changes with what only levels above {level} read"
                )


def _changed(tensor: Tensor, dims: Any, net: AnytimeModel, widths: Any) -> Tensor:
    """Other values outside what a width keeps, of the same sign and size: what overflows would be no number, and zero
    times that is none either."""
    keep = torch.ones((), dtype=torch.bool, device=tensor.device)
    for dim, expr in enumerate(dims):
        inside = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
        if net.axes.narrowed(expr, widths):
            inside.zero_()
            inside[torch.from_numpy(net.axes.indices(expr, widths)).to(tensor.device)] = True
        keep = keep.unsqueeze(-1) & inside
    return torch.where(keep, tensor, _other(tensor))


def _other(tensor: Tensor) -> Tensor:
    factors, offsets = torch.rand((2, *tensor.shape), generator=torch.Generator().manual_seed(0)).to(tensor)
    result: Tensor = tensor * (0.5 + factors) + 1e-3 * offsets
    return result
