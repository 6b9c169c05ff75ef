"""What the benchmark looks at in a triangular network besides what holds for every scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import AnytimeModel, NestedChannels
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.passes.rewrites.project import project
from anytimeify.testing import assert_prefixes_nest
from anytimeify.verification import TOLERANCE
from benchmarks.coverage import comparing

__all__ = ["assert_one_pass_is_many", "triangle"]

Say = Callable[[Mapping[str, Any]], None]


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
    small = params < comparing.SMALL["params"] and net.levels[net.full].cost.macs < comparing.SMALL["macs"]
    net.zero_grad(set_to_none=True)
    comparing.stir(net)
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


def _arguments(net: AnytimeModel) -> tuple[Any, Any]:
    dtype = next(parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())
    given = (x.to(dtype) if x.is_floating_point() else x.clone() for x in net.captured.example_inputs)
    return net.call_signature.arguments(tuple(given), net.captured.signature)


def _differences(net: AnytimeModel, dtype: torch.dtype, *, gradients: bool) -> dict[str, Any]:
    args, kwargs = _arguments(net)
    with torch.no_grad():
        together = net(*args, **kwargs).levels
        apart = [net(*args, level=level, **kwargs) for level in net.levels]
        stream = [prediction for _, prediction in net.stream(*args, **kwargs)]
    found: dict[str, Any] = {
        "precision": str(dtype).removeprefix("torch."),
        "outputs": comparing.worst(together, apart),
        "stream": comparing.worst(together, stream),
    }
    if gradients:
        weights = [torch.randn_like(one) for one in together]
        one_pass = comparing.gradients(net, net(*args, **kwargs).levels, weights)
        passes = comparing.gradients(net, [net(*args, level=level, **kwargs) for level in net.levels], weights)
        found["gradients"] = comparing.worst([passes], [one_pass])
    return found


def _streamed(net: AnytimeModel) -> float:
    assert isinstance(net.scheme, NestedChannels)
    net.requires_grad_(False)
    args, kwargs = _arguments(net)
    counts = []
    full = net.extract(len(net.levels) - 1, dense=True)
    for run in (lambda: list(net.stream(*args, **kwargs)), lambda: full(*args, **kwargs)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        counts.append(counter.get_total_flops())
    streamed, whole = counts
    return float(streamed / max(1, whole))
