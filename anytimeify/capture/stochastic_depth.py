"""Recognises stochastic depth and writes it as `anytimeify::drop_path`.

    y = mul(x, div(bernoulli(empty, 0.8), 0.8))     ->      y = drop_path(x, 0.8, True, "row")

1. timm, torchvision: `x * (empty(b, 1, ...).bernoulli_(keep) [/ keep])`.
2. transformers: `(x / keep) * floor(keep + rand(b, 1, ...))`.

The random factor is one number a sample (`mode="row"`) or one in all (`mode="batch"`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

import anytimeify.operators.modules  # noqa: F401  # registers the operation
from anytimeify.capture.simplify import eliminate_dead_code
from anytimeify.capture.work_graph import WorkGraph, fake, insert, replace, step
from anytimeify.ir.node_meta import value_of
from anytimeify.ir.schema import bound

__all__ = ["recognise_stochastic_depth"]

aten = torch.ops.aten


class _Noise(NamedTuple):
    keep: float
    scaled: bool


@step("recognise stochastic depth")
def recognise_stochastic_depth(work: WorkGraph) -> None:
    """Rewrites both patterns; what only looks similar stays random arithmetic."""
    for node in list(work.graph.nodes):
        if node.target is not aten.mul.Tensor or not all(isinstance(argument, fx.Node) for argument in node.args[:2]):
            continue
        for x, noise in (node.args[:2], node.args[1::-1]):
            mode = _mode(x, noise)
            found = _bernoulli(noise) or _floor(noise)
            if mode is None or found is None:
                continue
            if noise.target is aten.floor.default:  # the scaling stands on the other side
                if x.target is not aten.div.Tensor or x.args[1] != found.keep:
                    continue
                x, found = x.args[0], found._replace(scaled=True)
            val = value_of(node)
            new = insert(node, torch.ops.anytimeify.drop_path.default, x, found.keep, found.scaled, mode, val=val)
            replace(node, new)
            break
    eliminate_dead_code(work)


def _bernoulli(noise: fx.Node) -> _Noise | None:
    scaled = noise.target is aten.div.Tensor and isinstance(noise.args[0], fx.Node)
    source: Any = noise.args[0] if scaled else noise
    if source.target is not aten.bernoulli.p or len(source.users) != 1 or len(noise.users) != 1:
        return None
    keep = bound(source)["p"]
    if scaled and noise.args[1] != keep:
        return None
    return _Noise(keep, scaled)


def _floor(noise: fx.Node) -> _Noise | None:
    if noise.target is not aten.floor.default or len(noise.users) != 1:
        return None
    total = noise.args[0]
    if not isinstance(total, fx.Node) or total.target is not aten.add.Tensor:
        return None
    random, keep = total.args[:2]
    if not isinstance(random, fx.Node) or random.target is not aten.rand.default or not isinstance(keep, float):
        return None
    return _Noise(keep, False)


def _mode(x: fx.Node, noise: fx.Node) -> str | None:
    whole, factor = fake(x), fake(noise)
    if whole is None or factor is None or whole.dim() != factor.dim() or whole.dim() == 0:
        return None
    if any(str(size) != "1" for size in factor.shape[1:]):
        return None
    if str(factor.shape[0]) == "1":
        return "batch"
    return "row" if str(factor.shape[0]) == str(whole.shape[0]) else None
