"""Packages that import what they pass on when it is first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    `places` says where the names that it passes on are defined: `"anytimeify.module"`, or `"anytimeify.module:name"`
    where the name is another one there. Modules of the package are found too."""

    def get(name: str) -> Any:
        if name in places:
            module, _, other = places[name].partition(":")
            value = getattr(import_module(module), other or name)
            setattr(sys.modules[package], name, value)
            return value
        inside = f"{package}.{name}"
        if name.startswith("_") or find_spec(inside) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(inside)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names
