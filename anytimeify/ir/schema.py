"""Arguments of a node by the names of its operation's schema, defaults filled in.

`aten.conv2d.default(x, w)` and `aten.conv2d.default(x, w, None, [2, 2])` then read alike, so a rule asks for
`bound(node)["groups"]` and never for a position. Schemas and nothing else: no tensor is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import fx

from anytimeify._torch import OpOverload, schema

__all__ = ["argument", "bound", "is_mutable", "may_be_none", "mutated_arguments", "parameters", "position", "rebind"]


@cache
def _parameters(target: OpOverload) -> tuple[tuple[str, bool, bool, Any], ...]:
    """(name, keyword only, has a default, default) of every argument."""
    return tuple(
        (argument.name, argument.kwarg_only, argument.has_default_value(), argument.default_value)
        for argument in schema(target).arguments
    )


def parameters(target: OpOverload) -> tuple[str, ...]:
    """The names of an operation's arguments."""
    return tuple(parameter[0] for parameter in _parameters(target))


def bound(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by name, with the schema's defaults. Targets without a schema give `0`, `1`, ... as names."""
    if not isinstance(node.target, OpOverload):
        return {**{str(index): value for index, value in enumerate(node.args)}, **node.kwargs}
    values: dict[str, Any] = {}
    for position, (name, keyword_only, has_default, default) in enumerate(_parameters(node.target)):
        if not keyword_only and position < len(node.args):
            values[name] = node.args[position]
        elif name in node.kwargs:
            values[name] = node.kwargs[name]
        elif has_default:
            values[name] = default
    return values


def may_be_none(target: OpOverload, name: str) -> bool:
    """Whether an argument is optional."""
    return any(one.name == name and isinstance(one.type, torch.OptionalType) for one in schema(target).arguments)


def argument(node: fx.Node, name: str) -> Any:
    """One argument of a call by name; `KeyError` when the operation has none of that name."""
    return bound(node)[name]


def position(target: OpOverload, name: str) -> int:
    """Where an argument stands in the schema."""
    return parameters(target).index(name)


def rebind(target: Callable[..., Any], values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inverse of `bound`: positional and keyword arguments, trailing defaults left out."""
    if not isinstance(target, OpOverload):
        positional = [values[key] for key in sorted((key for key in values if key.isdigit()), key=int)]
        return tuple(positional), {key: value for key, value in values.items() if not key.isdigit()}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    last = 0
    for name, keyword_only, has_default, default in _parameters(target):
        if name not in values:
            continue
        given = not (has_default and _same(values[name], default))
        if keyword_only:
            if given:
                kwargs[name] = values[name]
        else:
            args.append(values[name])
            last = len(args) if given else last
    return tuple(args[:last]), kwargs


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, fx.Node):
        return False
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return len(value) == len(default) and all(map(_same, value, default))
    return type(value) is type(default) and bool(value == default)


@cache
def mutated_arguments(target: OpOverload) -> tuple[str, ...]:
    """Names of the arguments that the operation writes to."""
    return tuple(
        argument.name
        for argument in schema(target).arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def is_mutable(target: object) -> bool:
    """Whether a target writes to one of its arguments (`add_`, `copy_`, any `out=` form)."""
    return isinstance(target, OpOverload) and bool(mutated_arguments(target))
