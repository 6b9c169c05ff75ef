"""How inputs and outputs are nested: `[1, {"type": "builtins.tuple", "context": "null", "children_spec": [...]}]`.

torch imports a module for the default of a `defaultdict` and for an enumeration, whichever module the text names; here
those are refused, but for defaults of a few built-in types. Other types are looked up among those that were registered
in this process, never imported.
"""

from __future__ import annotations

import json
from typing import Any

from anytimeify.capture.pt2.checks import RefusedError, dotted, name, number, quoteless, shown

__all__ = ["input_tree", "tree"]

_DEFAULTS = ("bool", "dict", "float", "int", "list", "set", "str", "tuple")
_FACTORY = ("default_factory_module", "default_factory_name", "dict_context")


def tree(value: Any, where: str) -> None:
    """A nesting whose types are names and whose contexts are plain data."""
    _node(_root(value, where), where)


def input_tree(value: Any, where: str) -> None:
    """The same; the names of keyword arguments become names in code."""
    tree(value, where)
    children = _root(value, where)["children_spec"]
    if len(children) == 2 and children[1]["type"] == "builtins.dict":
        keys = _context(children[1]["context"], where)
        for key in keys if isinstance(keys, list) else ():
            name(key, f"a keyword argument in {where}")


def _root(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        raise RefusedError(where, f"expected how values are nested, got {shown(value)}")
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise RefusedError(where, f"says in no JSON how values are nested: {shown(value)}") from error
    if not isinstance(parsed, list) or len(parsed) != 2 or parsed[0] != 1:
        raise RefusedError(where, f"expected [1, nesting], got {shown(value)}")
    return parsed[1]


def _node(node: Any, where: str) -> None:
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        raise RefusedError(where, f"expected a nesting with type, context and children_spec, got {shown(node)}")
    if not isinstance(node["children_spec"], list):
        raise RefusedError(where, f"expected a list of nestings, got {shown(node['children_spec'])}")
    kind, context = node["type"], _context(node["context"], where)
    if kind is not None:
        dotted(kind, where)
    if kind == "collections.defaultdict":
        _factory(context, where)
    _plain(context, where)
    for child in node["children_spec"]:
        _node(child, where)


def _context(context: Any, where: str) -> Any:
    """Most types keep their context as JSON in the JSON, some as it is."""
    if not isinstance(context, str) or not context:
        return context
    try:
        return json.loads(context)
    except ValueError:
        return context


def _factory(context: Any, where: str) -> None:
    if not isinstance(context, dict) or set(context) != set(_FACTORY):
        raise RefusedError(where, f"expected the context of a defaultdict, got {shown(context)}")
    made = (context["default_factory_module"], context["default_factory_name"])
    if made[0] != "builtins" or made[1] not in _DEFAULTS:
        raise RefusedError(where, f"a defaultdict of {'.'.join(map(str, made))[:60]!r} imports a module")


def _plain(value: Any, where: str) -> None:
    if isinstance(value, list):
        for one in value:
            _plain(one, where)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key == "__enum__":
                raise RefusedError(where, "an enumeration imports a module")
            quoteless(key, where)
            _plain(one, where)
    elif isinstance(value, str):
        quoteless(value, where)
    elif value is not None and not isinstance(value, bool):
        number(value, where)
