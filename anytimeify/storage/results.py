"""The structures that levels return as plain data (what JSON can hold), and back.

Tuples, lists, dicts and ordered dicts come back as they were. Of other containers, such as a dataclass, a file holds
the names of their fields, and they come back as a named tuple: decoding imports nothing that a file names.
"""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from keyword import iskeyword
from typing import Any

from anytimeify._torch import flatten
from anytimeify.errors import ArtifactError
from anytimeify.ir import Constant, Results, Structure, children
from anytimeify.storage.graphs import decode_value, encode_value

__all__ = ["decode_results", "encode_results"]


def encode_results(results: Results) -> dict[str, Any]:
    """The structures of both modes. `ArtifactError` for constants that cannot be saved."""
    return {mode: _encode(getattr(results, mode)) for mode in ("evaluation", "training")}


def decode_results(data: Mapping[str, Any], outputs: int) -> Results:
    """The inverse of `encode_results`, for a program of so many outputs. `ArtifactError` where the data is damaged."""
    return Results(_decode(data["evaluation"], outputs), _decode(data["training"], outputs))


def _encode(structure: Structure) -> dict[str, Any]:
    return {"tree": _encode_tree(structure.tree), "prediction": structure.prediction}


def _decode(data: Mapping[str, Any], outputs: int) -> Structure:
    leaves, spec = flatten(_decode_tree(data["tree"]))
    found = Structure(spec, tuple(leaves), data["prediction"])
    _check(all(type(one) is int and 0 <= one < outputs for one in found.outputs), "an output that the graph has not")
    _check(found.prediction in found.outputs, "a prediction that is not among its leaves")
    return found


def _encode_tree(tree: Any) -> Any:
    if isinstance(tree, Constant):
        return {"constant": encode_value(tree.value)}
    if isinstance(tree, int):
        return tree
    parts = [[encode_value(key), _encode_tree(part)] for key, part in children(tree) or ()]
    for name, kind in (("tuple", tuple), ("list", list), ("dict", dict), ("ordered", OrderedDict)):
        if type(tree) is kind:
            return {name: parts}
    return {"fields": parts, "name": type(tree).__name__}


_KINDS: Mapping[str, Callable[[list[tuple[Any, Any]]], Any]] = {
    "tuple": lambda parts: tuple(part for _, part in parts),
    "list": lambda parts: [part for _, part in parts],
    "dict": dict,
    "ordered": OrderedDict,
}


def _decode_tree(data: Any) -> Any:
    if type(data) is int:
        return data
    _check(isinstance(data, dict) and len(data) in (1, 2), "a leaf of no known kind")
    if "constant" in data:
        return Constant(decode_value(data["constant"]))
    kind = next(iter(data))
    _check(kind in _KINDS or data.keys() == {"fields", "name"}, f"the container {kind!r}")
    parts = [(decode_value(key), _decode_tree(part)) for key, part in data[kind]]
    if kind in _KINDS:
        return _KINDS[kind](parts)
    names = [str(name) for name, _ in parts]
    _check(all(map(_is_field, [str(data["name"]), *names])) and len({*names}) == len(names), "a field of no name")
    return namedtuple(str(data["name"]), names)(*(part for _, part in parts))  # the fields are known now


def _is_field(name: str) -> bool:
    return name.isidentifier() and not iskeyword(name) and not name.startswith("_") and len(name) < 100


def _check(condition: object, what: str) -> None:
    if not condition:
        raise ArtifactError(f"the structure that levels return is damaged: {what}")
