"""Looking operations up by name, so that one row of a table covers all functional overloads of an operation."""

from __future__ import annotations

from typing import Any

import torch

from anytimeify._torch import schema
from anytimeify.schema import is_mutable


def aten(*names: str) -> list[Any]:
    """All functional overloads of ATen operations; `name.overload` picks one. Names that this torch lacks are
    skipped.
    """
    found: list[Any] = []
    for name in names:
        packet_name, _, overload = name.partition(".")
        packet = getattr(torch.ops.aten, packet_name, None)
        if packet is None:
            continue
        for one in [overload] if overload else packet.overloads():
            target = getattr(packet, one, None)
            if _names_dimensions(one):
                continue
            if target is not None and _gives_tensors(target) and not is_mutable(target) and target not in found:
                found.append(target)
    return found


def _gives_tensors(target: Any) -> bool:
    return any("Tensor" in str(result.type) for result in schema(target).returns)


def _names_dimensions(overload: str) -> bool:
    """Overloads that take names of dimensions, which torch 2.11 still has; exported graphs never call them."""
    return "names" in overload or "dimname" in overload.lower()
