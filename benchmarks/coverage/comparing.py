"""How two computations of the same network are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from anytimeify import AnytimeModel
from anytimeify.verification import difference

__all__ = ["SMALL", "gradients", "stir", "worst"]

SMALL = {"params": 30e6, "macs": 15e9}  # of backbones whose gradients are compared too, in double precision


def stir(net: AnytimeModel) -> None:
    """Gives parameters that are all the same at the start values that tell members and channels apart. Where a last
    norm or a layer scale starts with zeros, a wrong result before it would not be seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.is_floating_point() and parameter.numel() and parameter.min() == parameter.max():
                parameter.add_(torch.rand(parameter.shape, generator=generator).sub_(0.5).mul_(0.5).to(parameter))


def worst(expected: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    """Infinite also where there is nothing to compare: beyond the range of the precision."""
    if not all(bool(one.isfinite().all()) for one in expected):
        return float("inf")
    return max(difference(one, other) for one, other in zip(expected, given, strict=True))


def gradients(net: AnytimeModel, predictions: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Of all parameters as one vector, so that differences are relative to the largest gradient of the network: many
    are nearly nothing at the start. The loss is a random combination of predictions, other for each."""
    parameters = [one for _, one in sorted(net.named_parameters()) if one.requires_grad]
    loss = torch.stack([(one * weight).sum() for one, weight in zip(predictions, weights, strict=True)]).sum()
    found = cast("Sequence[Tensor | None]", torch.autograd.grad(loss, parameters, allow_unused=True))
    pairs = zip(parameters, found, strict=True)
    return torch.cat([(torch.zeros_like(one) if grad is None else grad).flatten() for one, grad in pairs])
