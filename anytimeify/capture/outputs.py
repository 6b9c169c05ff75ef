"""Which of a backbone's results is its prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anytimeify._torch import flatten
from anytimeify.errors import CaptureError

__all__ = ["choose"]


def choose(tree: Any, tensors: Sequence[bool], output: int | str | None) -> int:
    """`tree`: the result's structure with flat positions as leaves; `tensors` tells which of them are tensors.

    Without `output`: the field `logits`, or else the first tensor. `output` is a position, a field or key, or a path
    of them with dots (`"heads.0"`); where it leads to a structure, the first tensor of that is taken.
    """
    found = tree
    if output is None:
        found = _field(tree, "logits")
        found = tree if found is None else found
    else:
        for step in str(output).split("."):
            found = _field(found, step)
            if found is None:
                raise CaptureError(f"output={output!r}: the model returns {_describe(tree)}, which has no '{step}'.")
    leaves = [leaf for leaf in flatten(found)[0] if isinstance(leaf, int) and tensors[leaf]]
    if not leaves:
        place = "" if output is None else f" at output={output!r}"
        raise CaptureError(f"The model returns {_describe(tree)}, with no tensor{place}. Let it return its prediction.")
    return leaves[0]


def _field(tree: Any, name: str) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(name)
    if name.lstrip("-").isdigit():
        parts = tree if isinstance(tree, (tuple, list)) else flatten(tree)[0]
        return parts[int(name)] if -len(parts) <= int(name) < len(parts) else None
    found = getattr(tree, name, None)
    return None if callable(found) else found


def _describe(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return f"a {type(tree).__name__} with {', '.join(map(repr, tree))}"
    if isinstance(tree, (tuple, list)):
        return f"a {type(tree).__name__} of {len(tree)}"
    return "one value" if isinstance(tree, int) else f"a {type(tree).__name__}"
