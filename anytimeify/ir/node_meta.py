"""What `node.meta` may hold: every key with its meaning, the type of its value, and the one function that reads it.

`anytimeify.contract.spec` refuses other keys, and values of other types, in canonical programs. Graphs on their way
from the exporter hold the exporter's keys besides, until `capture.finish` writes a program of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import fx

from anytimeify.ir import Origin, Size, TensorType

__all__ = [
    *("EXPORTED", "KEYS", "MODULE_KEYS", "Counted", "Key", "Type"),
    *(
        "annotations_of",
        "weight_blocks_of",
        "checkpoint_of",
        "counts_of",
        "granularities_of",
        "granularity_of",
        "is_masked",
        "is_through",
        "is_part",
    ),
    *("mask_nonzeros_of", "module_stack_of", "origin_of", "renamed_of", "stack_trace_of", "tensor_type"),
    "weight_nonzeros_of",
    *("packed_of", "type_of", "value_of"),
]

Type: TypeAlias = Any  # a TensorType, a Size, None for another number, or a tuple of these


class Counted(NamedTuple):
    """A number in a call that follows the widths: the argument, and the power of the size that it is.

    `places`: dimensions, each by the name of a node of the backbone, whose sizes multiply to that size."""

    argument: str
    power: float
    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Key:
    """A key of `node.meta`: what it means, and whether a value may stand under it."""

    meaning: str
    allows: Callable[[Any], bool]


def _is_type(value: Any) -> bool:
    return (
        all(map(_is_type, value)) if isinstance(value, tuple) else value is None or isinstance(value, TensorType | Size)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_blocks(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(block, tuple) and len(block) == 2 and all(isinstance(one, np.ndarray) for one in block)
        for block in value
    )


def _is_granularities(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and type(one[1]) is int for one in value
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) for one in value)


def _is_counted(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(one, Counted) and one.power in (1.0, -1.0, 0.5, -0.5) for one in value
    )


# Of the nodes of a program.
KEYS: Mapping[str, Key] = MappingProxyType(
    {
        "type": Key("the type of the result; of several results a tuple, of an integer its Size", _is_type),
        "origin": Key("the module and the line of the backbone that it came from", lambda v: isinstance(v, Origin)),
        "checkpoint": Key("the number of the recomputed part that it belongs to", lambda v: type(v) is int),
        "part": Key(
            "whether it takes a part of a parameter, and so belongs to no recomputed part", lambda v: v is True
        ),
        "mask_nonzeros": Key("of a masked weight: how many elements the mask keeps; costs count these", _is_count),
        "through": Key("of a masked weight: whether its gradient is that of the whole weight", lambda v: v is True),
        "weight_nonzeros": Key("of a layer that runs block by block: how many elements its weight has", _is_count),
        "blocks": Key(
            "of a block-triangular weight: the rows of every block and the columns that they read", _is_blocks
        ),
        "counts": Key("numbers among the arguments that are powers of sizes, and follow the widths", _is_counted),
        "granularity": Key("of a head: the name of the labels that it predicts", lambda v: isinstance(v, str)),
        "packed": Key("of a concatenation of all that a backbone returns: what its parts are called", _is_names),
        "granularities": Key("of a concatenated prediction: name and classes of each part", _is_granularities),
    }
)
# Of the exporter, in the graphs that the steps of capture work on: anything may stand there.
EXPORTED: Mapping[str, str] = MappingProxyType(
    {
        "val": "the result, without data, with symbols for dynamic sizes",
        "custom": "annotations that were made while the model was traced, by their names",
        "nn_module_stack": "path and class of every module around the call, outermost first",
        "stack_trace": "where in the source the call stands, as text",
    }
)
# Of graph modules: what `to_modules` writes.
MODULE_KEYS: Mapping[str, str] = MappingProxyType({
    "renamed": "attribute names that could not be the backbone's, with the backbone's names",
})  # fmt: skip


def type_of(node: fx.Node) -> Type:
    """`meta["type"]`: a `TensorType`, a `Size`, or a tuple of types; None of an output node."""
    return node.meta.get("type")


def tensor_type(node: fx.Node) -> TensorType:
    """`meta["type"]` of a node whose result is one tensor."""
    kind = node.meta["type"]
    assert isinstance(kind, TensorType), f"{node.name} is not one tensor"
    return kind


def origin_of(node: fx.Node) -> Origin:
    """`meta["origin"]`; before there is one, what the exporter says: innermost module, and innermost line of source
    outside torch."""
    found: Origin | None = node.meta.get("origin")
    return found if found is not None else _exported_origin(node)


def checkpoint_of(node: fx.Node) -> int | None:
    """`meta["checkpoint"]`; None outside of recomputed parts."""
    found: int | None = node.meta.get("checkpoint")
    return found


def is_part(node: fx.Node) -> bool:
    """`meta["part"]`."""
    return bool(node.meta.get("part"))


def is_masked(node: fx.Node) -> bool:
    """Whether there is a `meta["mask_nonzeros"]`."""
    return "mask_nonzeros" in node.meta


def is_through(node: fx.Node) -> bool:
    """`meta["through"]`."""
    return bool(node.meta.get("through"))


def mask_nonzeros_of(node: fx.Node) -> int:
    """`meta["mask_nonzeros"]`; all elements where nothing is masked."""
    return int(node.meta["mask_nonzeros"]) if "mask_nonzeros" in node.meta else tensor_type(node).size.coefficient


def weight_nonzeros_of(node: fx.Node) -> int | None:
    """`meta["weight_nonzeros"]`; None of other layers."""
    found: int | None = node.meta.get("weight_nonzeros")
    return found


def counts_of(node: fx.Node) -> tuple[Counted, ...]:
    """`meta["counts"]`; empty where numbers stay as they are."""
    found: tuple[Counted, ...] = node.meta.get("counts", ())
    return found


def weight_blocks_of(node: fx.Node) -> tuple[tuple[Any, Any], ...]:
    """`meta["blocks"]`; empty of other weights."""
    found: tuple[tuple[Any, Any], ...] = node.meta.get("blocks", ())
    return found


def granularity_of(node: fx.Node) -> str | None:
    """`meta["granularity"]`; None outside of heads for coarser labels."""
    found: str | None = node.meta.get("granularity")
    return found


def granularities_of(node: fx.Node) -> tuple[tuple[str, int], ...]:
    """`meta["granularities"]`; empty of a prediction of one granularity."""
    found: tuple[tuple[str, int], ...] = node.meta.get("granularities", ())
    return found


def packed_of(node: fx.Node) -> tuple[str, ...]:
    """`meta["packed"]`; empty of other nodes."""
    found: tuple[str, ...] = node.meta.get("packed", ())
    return found


# -- what the exporter wrote -------------------------------------------------------------------------------------------


def value_of(node: fx.Node) -> Any:
    """`meta["val"]`; None where the exporter recorded nothing."""
    return node.meta.get("val")


def annotations_of(node: fx.Node) -> Mapping[str, Any]:
    """`meta["custom"]`."""
    found: Mapping[str, Any] = node.meta.get("custom") or {}
    return found


def module_stack_of(node: fx.Node) -> Mapping[str, tuple[str, Any]]:
    """`meta["nn_module_stack"]`: path and class by the exporter's key."""
    found: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return found


def stack_trace_of(node: fx.Node) -> str:
    """`meta["stack_trace"]`."""
    return node.meta.get("stack_trace") or ""


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n?\s*([^\n]*)')
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_CAPTURE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "capture") + os.sep
_GENERATED = "<eval_with_key>"  # code of graph modules: lines of any length that nobody wrote
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # what the exporter writes for sizes it asks for itself
_REPEATED_CALL = re.compile(r"@\d+(?=\.|$)")  # the second call of a module reads `layer1.relu@1`


def _exported_origin(node: fx.Node) -> Origin:
    """Innermost module and innermost source line outside torch, and outside what runs a file's operations."""
    path, module_class = "", ""
    stack = module_stack_of(node)
    if stack:
        path, kind = list(stack.values())[-1]
        module_class = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        path = "" if path == _NO_MODULE else _REPEATED_CALL.sub("", path)
    return Origin(path, module_class, _source(stack_trace_of(node)))


def _source(trace: str) -> str:
    for file, line, code in reversed(_FRAME.findall(trace)):
        if not file.startswith((_TORCH, _CAPTURE, _GENERATED)) and f"{os.sep}torch{os.sep}nn{os.sep}" not in file:
            return f"{os.path.basename(file)}:{line}: {code.strip()}".rstrip(": ")
    return ""


def renamed_of(module: fx.GraphModule) -> Mapping[str, str]:
    """`meta["renamed"]` of a graph module: the backbone's names by the attribute names."""
    found: Mapping[str, str] = module.meta.get("renamed", {})
    return found
