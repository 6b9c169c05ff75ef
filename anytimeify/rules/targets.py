"""Looking operations up by name, so that one row of a table covers all functional overloads of an operation."""

from __future__ import annotations

from typing import Any

import torch

from anytimeify._torch import schema
from anytimeify.schema import is_mutable

__all__ = ["aten"]

NOT_IN_EVERY_TORCH = frozenset[str]()  # names that an older or newer torch lacks


def aten(*names: str) -> list[Any]:
    """All functional overloads of ATen operations; `name.overload` picks one. Raises `ValueError` for names that torch
    does not have, but for those of which it is known that some versions lack them."""
    found: list[Any] = []
    for name in names:
        targets = _overloads(name)
        if not targets and name not in NOT_IN_EVERY_TORCH:
            raise ValueError(f"torch has no functional operation aten.{name}")
        found += [target for target in targets if target not in found]
    return found


def _overloads(name: str) -> list[Any]:
    packet_name, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, packet_name, None)
    if packet is None:
        return []
    named = [one for one in ([overload] if overload else packet.overloads()) if not _names_dimensions(one)]
    targets = [getattr(packet, one, None) for one in named]
    return [one for one in targets if one is not None and _gives_tensors(one) and not is_mutable(one)]


def _gives_tensors(target: Any) -> bool:
    return any("Tensor" in str(result.type) for result in schema(target).returns)


def _names_dimensions(overload: str) -> bool:
    """Overloads that take names of dimensions, which torch 2.11 still has; exported graphs never call them."""
    return "names" in overload or "dimname" in overload.lower()
