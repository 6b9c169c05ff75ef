"""Programs as text, for tests that show a graph before and after a rewrite."""

from __future__ import annotations

from torch import fx

from anytimeify import Scheme
from anytimeify.analysis.axes import analyse
from anytimeify.capture.work_graph import WorkGraph
from anytimeify.ir import Captured, Program
from anytimeify.ir.rewritten import Rewritten

__all__ = ["applied", "calls", "lines"]


def calls(given: Program | WorkGraph | fx.GraphModule) -> list[str]:
    """The calls of a graph, and what it returns, as programs print them; inputs, tensors and types are left out."""
    printed = [line.partition("  #")[0] for line in str(Program(given.graph, {})).splitlines()]
    return [line for line in printed if "(" in line or line.startswith("return")]


def lines(text: str) -> list[str]:
    """A text written inside a test, line by line."""
    return [line.strip() for line in text.strip().splitlines()]


def applied(scheme: Scheme, captured: Captured) -> Rewritten:
    """What a scheme makes of a network."""
    return scheme.apply(captured, analyse(captured.program))
