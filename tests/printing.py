"""Programs as text, for tests that show a graph before and after a rewrite."""

from __future__ import annotations

from anytimeify.capture.work_graph import Draft
from anytimeify.ir import Program

__all__ = ["calls", "lines"]


def calls(given: Program | Draft) -> list[str]:
    """The calls of a program or a draft, and what it returns; inputs, tensors and types are left out."""
    printed = [line.partition("  #")[0] for line in str(Program(given.graph, given.tensors)).splitlines()]
    return [line for line in printed if "(" in line or line.startswith("return")]


def lines(text: str) -> list[str]:
    """A text written inside a test, line by line."""
    return [line.strip() for line in text.strip().splitlines()]
