"""What must hold of any backbone that is turned into a net, and thin twins made by prefix."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, AnytimeWarning, NestedChannels, transform
from anytimeify.capture.inputs import call_inputs

SCHEME = NestedChannels((0.5, 1.0))


def check(
    model: nn.Module,
    inputs: Any,
    *,
    prediction: Callable[[Any], Tensor] = lambda result: result,
    lost: bool = False,
    rtol: float = 1e-5,
    **options: Any,
) -> AnytimeModel:
    """Transforms, and compares with the backbone in eval mode by numbers of our own; then one step of training.

    `prediction` finds the prediction in what the backbone returns; `lost` says whether some behaviour of training is.
    """
    call = call_inputs(inputs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    with pytest.warns(AnytimeWarning, match="trains differently") if lost else nullcontext():
        net = transform(model, SCHEME, inputs, **options)
    assert [module.training for module in model.modules()] == training
    assert net.training == model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert torch.equal(net.state_dict()[name], tensor), name
    assert bool(net.captured.lost) == lost, net.captured.notes

    model.eval()
    net.eval()
    with torch.no_grad():
        want = prediction(model(*call.args, **call.kwargs))
        close(net(*call.args, level=-1, **call.kwargs), want, rtol)
        for level in net.levels:
            close(net.extract(level)(*call.args, **call.kwargs), net(*call.args, level=level, **call.kwargs), rtol)
    assert net.levels[0].cost.macs < net.levels[-1].cost.macs
    step(copy.deepcopy(net), call.args, call.kwargs)
    return net


def step(net: AnytimeModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """One backward of all levels reaches every parameter that asks for a gradient."""
    net.train()
    outputs = net(*args, **kwargs)
    losses = [torch.view_as_real(level) if level.is_complex() else level for level in outputs.levels]
    if not any(loss.requires_grad for loss in losses):
        return
    torch.stack([loss.float().square().mean() for loss in losses]).sum().backward()
    for name, parameter in net.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all()), name


def close(result: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=0.0, atol=rtol * max(1.0, float(expected.detach().abs().max())))


def with_prefix(thin: nn.Module, full: nn.Module) -> nn.Module:
    """The thin model with the leading entries of every parameter and buffer of the full one."""
    source = {**dict(full.named_parameters()), **dict(full.named_buffers())}
    with torch.no_grad():
        for name, target in [*thin.named_parameters(), *thin.named_buffers()]:
            target.copy_(source[name][tuple(map(slice, target.shape))])
    return thin.eval()


def quietly(make: Callable[[], nn.Module]) -> nn.Module:
    """What the zoos say of themselves is not our concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()
