"""Where nodes come from, and the metadata of nodes that are written for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

__all__ = ["Origin", "meta_of"]


@dataclass(frozen=True)
class Origin:
    """Where a node came from: `node.meta["origin"]`. Empty strings where unknown."""

    module_path: str = ""  # "layer1.0.conv1"
    module_class: str = ""  # "torch.nn.modules.conv.Conv2d"
    source: str = ""  # "resnet.py:154: out = self.conv1(x)"

    def __str__(self) -> str:
        return ", ".join(part for part in (self.module_path or "the model itself", self.source) if part)


def meta_of(like: fx.Node, *, part: bool = False) -> dict[str, Any]:
    """The metadata, but for the type, of a node that a pass writes for another one: of a value, or of a `part` of a
    parameter, which belongs to no recomputed part."""
    meta: dict[str, Any] = {"origin": like.meta["origin"]}
    if part:
        return {**meta, "part": True}
    return {**meta, "checkpoint": like.meta["checkpoint"]} if "checkpoint" in like.meta else meta
