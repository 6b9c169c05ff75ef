"""A scheme as plain data (what JSON can hold), and back, also one that is defined outside this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from anytimeify.errors import SchemeError
from anytimeify.passes.scheme import Composed, Scheme, parse_scheme, schemes

__all__ = ["decode_scheme", "encode_scheme"]


_OWN = "anytimeify.passes."


def encode_scheme(scheme: Scheme) -> dict[str, Any]:
    """A scheme as plain data: its spec string, and the modules that define what it names.

    `SchemeError` where `decode_scheme` would not give it back, here or once these modules are imported."""
    text = str(scheme)
    names = [f.name for f in dataclasses.fields(scheme)]  # type: ignore[arg-type]  # subclasses are dataclasses
    parts = [getattr(scheme, name) for name in names] if isinstance(scheme, Composed) else [scheme]
    try:
        same = parse_scheme(text) == scheme
    except Exception as error:
        raise SchemeError(f"'{text}' cannot be saved, for it cannot be read back: {error}") from error
    if not same:
        raise SchemeError(
            f"'{text}' cannot be saved: it is read back as something else. A scheme needs a `name` that no other has, "
            "and fields that a spec string can hold: numbers, words, and tuples of them"
        )
    return {"spec": text, "modules": {type(part).name: type(part).__module__ for part in parts}}


def decode_scheme(data: Mapping[str, Any]) -> Scheme:
    """The inverse. `SchemeError` where a scheme is not there, with the module to import, or is that of another."""
    known = schemes()
    for name, module in data["modules"].items():
        if name not in known:
            raise SchemeError(f"the scheme '{name}' is not known: import {module}, which defines it, before loading")
        found = known[name].__module__
        own = found.startswith(_OWN) and module.startswith(_OWN)  # wherever in the package it is or was
        if found != module and not own and "__main__" not in (found, module):  # a script, or the same imported
            raise SchemeError(f"it was saved with the scheme '{name}' of {module}; here that is one of {found}")
    return parse_scheme(data["spec"])
