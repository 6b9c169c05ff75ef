"""How large the result of a scheme will be, before it is made, and the limits that it has to stay within.

Most schemes add about the same for each of their levels: one of them is made, over tensors without data, and the others
are counted like it. A tree of networks is counted part by part (`anytimeify.passes.rewrites.tree_size`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

from anytimeify.analysis.axes import Axes
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured
from anytimeify.ir.sizes import ProgramSize, without_data
from anytimeify.passes.scheme import Scheme

__all__ = ["Limits", "estimate"]

_NODES = 100_000
_OF_A_COPY = 8  # nodes of a result for every node of the backbone and every copy of it, at most


def _memory() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class Limits:
    """What the result of a transform may be at most. A scheme that would make more is refused before it begins.

    Fields
        nodes: of the graph that holds all levels. A hundred thousand take minutes.
        memory_bytes: of parameters and buffers; by default as much as the machine has. Tensors on the meta device take
            none.
    """

    nodes: int = _NODES
    memory_bytes: int = field(default_factory=_memory)

    def __post_init__(self) -> None:
        for name in ("nodes", "memory_bytes"):
            given: Any = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                raise SchemeError(f"limits: {name}={given!r}: expected a whole number, 1 or more")

    @staticmethod
    def parse(text: str) -> Limits:
        """Reads `"nodes=200000,memory_bytes=4e10"`; names as in the fields."""
        values: dict[str, int] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            try:
                values[name] = int(float(value))
            except (ValueError, OverflowError):
                raise SchemeError(f"limits: '{part}': expected nodes=NUMBER or memory_bytes=NUMBER") from None
        if not values.keys() <= {"nodes", "memory_bytes"}:
            raise SchemeError(f"limits: '{text}': expected nodes=NUMBER or memory_bytes=NUMBER")
        return Limits(**values)

    def check(self, scheme: Scheme, captured: Captured, axes: Axes) -> None:
        """Raises `SchemeError` for a scheme whose result would be larger. What is far from it is not looked at."""
        own = ProgramSize.of(captured.program)
        copies = scheme.copies
        empty = any(tensor.is_meta for tensor in captured.program.tensors.values())
        memory = 0 if empty else own.memory_bytes
        if own.nodes * copies * _OF_A_COPY <= self.nodes and memory * copies <= self.memory_bytes:
            return
        found = estimate(scheme, captured, axes)
        if found is None:
            return
        if found.nodes > self.nodes:
            self._refuse(scheme, f"{found.nodes:,.0f} nodes", f"nodes={self.nodes:,}", f"nodes={_above(found.nodes)}")
        if not empty and found.memory_bytes > self.memory_bytes:
            larger = f"memory_bytes={_above(found.memory_bytes)}"
            self._refuse(scheme, f"{found.memory_bytes:,.0f} bytes", f"memory_bytes={self.memory_bytes:,}", larger)

    def _refuse(self, scheme: Scheme, found: str, limit: str, larger: str) -> None:
        raise SchemeError(
            f"{scheme} would make a network of about {found}, and the limit is {limit}. Choose fewer levels or leaves, "
            f"or allow it: transform(..., limits=Limits({larger})), on the command line --limits {larger}"
        )


def _above(number: float) -> int:
    """A round number, a fifth larger or so."""
    unit: int = 10 ** max(0, len(str(int(number))) - 2)
    return math.ceil(1.2 * number / unit) * unit


def estimate(scheme: Scheme, captured: Captured, axes: Axes) -> ProgramSize | None:
    """The nodes and bytes that a scheme makes of a backbone, within some percent; None where nothing but applying it
    tells. Raises `SchemeError` where the scheme cannot be applied."""
    shapes = replace(captured, program=without_data(captured.program), reinitialised=None)
    return scheme.estimated(shapes, axes)
