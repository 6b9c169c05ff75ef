"""One small model of every scheme, with a taxonomy, a consensus, or both."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify import (
    AnytimeModel,
    AuxiliaryBranches,
    Branch,
    Consensus,
    HierarchicalEnsemble,
    MutualDistillation,
    NestedChannels,
    NestedDepth,
    NestedResolution,
    Taxonomy,
    transform,
)
from tests.passes.branches import Dense, Padded, PreActivation, Projected

__all__ = ["EVERY", "LABELS", "TAXONOMY", "images", "net_of"]

TAXONOMY = Taxonomy.from_parents([0, 0, 1, 2, 2], [0, 0, 1])
LABELS = torch.tensor([0, 3, 4])


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def small(kind: type[Projected | Padded | PreActivation | Dense], *repeats: int) -> nn.Module:
    return kind(repeats or (1, 2, 1), (4, 6, 8))


EVERY: dict[str, tuple[Any, Callable[[], Any]]] = {
    "channels": (NestedChannels((0.5, 1.0)), lambda: small(Projected)),
    "shared channels": (NestedChannels((0.5, 1.0), norms="shared", heads="shared"), lambda: small(PreActivation)),
    "triangular": (NestedChannels((0.5, 1.0), connectivity="triangular"), lambda: small(Projected)),
    "depth": (NestedDepth(), lambda: small(Projected, 1, 3, 1)),
    "depth and width": ((NestedDepth(), NestedChannels((0.5, 1.0))), lambda: small(Projected, 1, 3, 1)),
    "resolution": (NestedResolution((0.5, 1.0)), lambda: small(Projected)),
    "resolution and width": ((NestedResolution((0.5, 1.0)), NestedChannels((0.5, 1.0))), lambda: small(PreActivation)),
    "weights": ("nested-weights{densities=0.3,1}", lambda: small(Padded)),
    "ensemble": (HierarchicalEnsemble(2), lambda: small(Projected)),
    "ensemble, not fused": (HierarchicalEnsemble(1, fuse=False), lambda: small(Dense)),
    "ensemble of any size": (HierarchicalEnsemble(splits=(("stage1", 3),), sizes="all"), lambda: small(Padded)),
    "branches": (AuxiliaryBranches(1), lambda: small(Projected, 1, 1, 2)),
    "pooled branches": (AuxiliaryBranches((Branch("stage1", head="pool"),)), lambda: small(Dense)),
    "two networks": (MutualDistillation(1), lambda: (small(Projected, 1, 1, 2), small(Padded, 1, 1, 2))),
}


@cache
def net_of(name: str, taxonomy: Taxonomy | None = TAXONOMY, consensus: Consensus | str | None = None) -> AnytimeModel:
    """The model, in eval mode. Tests that change it change a copy, and compare it with its extracts themselves."""
    torch.manual_seed(0)
    scheme, make = EVERY[name]
    return transform(make(), scheme, images(), taxonomy=taxonomy, consensus=consensus, verify=False).eval()
