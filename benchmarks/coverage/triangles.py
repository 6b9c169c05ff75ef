"""What the benchmark looks at in a triangular network besides what holds for every scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import AnytimeModel, NestedChannels
from anytimeify.cost import macs_by_node, sizes
from anytimeify.passes.project import project
from anytimeify.testing import assert_prefixes_nest
from anytimeify.verification import TOLERANCE, difference

__all__ = ["assert_one_pass_is_many", "triangle"]

Say = Callable[[Mapping[str, Any]], None]
SMALL = {"params": 30e6, "macs": 15e9}  # of backbones whose gradients are compared too, in double precision


def triangle(net: AnytimeModel) -> dict[str, Any]:
    """What one pass for all levels costs, as a share of the backbone's MACs, and what the full level does."""
    captured, rewritten = net.captured, net.rewritten
    arguments = (captured.batch, *sizes(captured))
    whole = sum(macs_by_node(captured.program, *arguments).values())
    once = sum(macs_by_node(project(rewritten.program, range(len(net.levels))), *arguments).values())
    return {"once": once / whole, "masked": net.levels[-1].cost.macs / whole}


def assert_one_pass_is_many(say: Say, net: AnytimeModel, params: int) -> None:
    """One pass against a pass per level and against the stream, gradients too where the network is small; lower levels
    against changes of what they do not read; and the operations of a stream against those of the full level.

    Says the differences in `one_pass`, and the stream's operations in `stream`, by torch's counter.
    """
    small = params < SMALL["params"] and net.levels[net.full].cost.macs < SMALL["macs"]
    net.zero_grad(set_to_none=True)
    _stir(net)
    found: dict[str, Any] = {}
    for dtype in (torch.float64, torch.float32) if small else (torch.float32, torch.float64):
        try:
            found = _differences(net.eval().to(dtype), dtype, gradients=small)
        except RuntimeError as error:
            if found or dtype is torch.float32:
                raise
            say({"not_in_double": " ".join(str(error).split())[:200]})
            continue
        worst = max(value for name, value in found.items() if name != "precision")
        if worst <= TOLERANCE:
            break
    say({"one_pass": found})
    if not worst <= TOLERANCE:
        raise AssertionError(f"one pass and a pass per level differ: {found}")
    assert_prefixes_nest(net)
    ratio = _streamed(net)
    say({"stream": ratio})
    if ratio > 1.05:
        raise AssertionError(f"streaming all levels costs {ratio:.3f} of the full level")


def _stir(net: AnytimeModel) -> None:
    """Gives parameters that are all the same at the start values that tell channels apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.is_floating_point() and parameter.numel() and parameter.min() == parameter.max():
                parameter.add_(torch.rand(parameter.shape, generator=generator).sub_(0.5).mul_(0.5).to(parameter))


def _arguments(net: AnytimeModel) -> tuple[Any, Any]:
    dtype = next(parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())
    given = (x.to(dtype) if x.is_floating_point() else x.clone() for x in net.captured.example_inputs)
    return net.calling.arguments(tuple(given), net.captured.signature)


def _differences(net: AnytimeModel, dtype: torch.dtype, *, gradients: bool) -> dict[str, Any]:
    args, kwargs = _arguments(net)
    with torch.no_grad():
        together = net(*args, **kwargs).levels
        apart = [net(*args, level=level, **kwargs) for level in net.levels]
        stream = [prediction for _, prediction in net.stream(*args, **kwargs)]
    found: dict[str, Any] = {
        "precision": str(dtype).removeprefix("torch."),
        "outputs": _worst(together, apart),
        "stream": _worst(together, stream),
    }
    if gradients:
        weights = [torch.randn_like(one) for one in together]
        one_pass = _gradients(net, _combined(net(*args, **kwargs).levels, weights))
        passes = _gradients(net, _combined([net(*args, level=level, **kwargs) for level in net.levels], weights))
        found["gradients"] = difference(passes, one_pass)
    return found


def _combined(levels: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one * weight).sum() for one, weight in zip(levels, weights, strict=True)]).sum()


def _gradients(net: AnytimeModel, loss: Tensor) -> Tensor:
    """Of all parameters as one vector, so that differences are relative to the largest gradient of the network."""
    parameters = [one for one in net.parameters() if one.requires_grad]
    found = cast("Sequence[Tensor | None]", torch.autograd.grad(loss, parameters, allow_unused=True))
    pairs = zip(parameters, found, strict=True)
    return torch.cat([(torch.zeros_like(one) if grad is None else grad).flatten() for one, grad in pairs])


def _worst(expected: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    if not all(bool(one.isfinite().all()) for one in expected):
        return float("inf")
    return max(difference(one, other) for one, other in zip(expected, given, strict=True))


def _streamed(net: AnytimeModel) -> float:
    assert isinstance(net.scheme, NestedChannels)
    net.requires_grad_(False)
    args, kwargs = _arguments(net)
    counts = []
    full = net.extract(len(net.levels) - 1)
    for run in (lambda: list(net.stream(*args, **kwargs)), lambda: full(*args, **kwargs)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        counts.append(counter.get_total_flops())
    streamed, whole = counts
    return float(streamed / max(1, whole))
