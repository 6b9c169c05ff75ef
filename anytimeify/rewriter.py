"""Schemes: what they are, how they are written as text, and how they are found.

A scheme is a frozen dataclass whose fields are its options. The file in `passes/` that defines it is all there is to
it: it is found by being there. A spec string names a scheme and its options, `nested-channels{widths=0.25,0.5,1
norms=shared}`; `str(scheme)` gives it back.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from functools import cache
from typing import Any, ClassVar

from torch import nn

from anytimeify.axes import Axes
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured, Rewritten

__all__ = ["Scheme", "parse_scheme", "schemes"]


class Scheme:
    """Base of all schemes; subclasses are frozen dataclasses.

    `prepare` may change values (a permutation by importance) and runs once, when a model is transformed; `apply`
    rewrites the graph and runs again whenever a saved model is loaded, so it must not depend on anything but the
    captured model and the fields.
    """

    name: ClassVar[str]

    def prepare(self, captured: Captured, axes: Axes) -> Captured:
        """Change values before the rewrite, the function of the backbone staying the same."""
        return captured

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        """Rewrite the backbone's graph into one with a prediction per level. Raises `SchemeError` where that cannot
        be.
        """
        raise NotImplementedError

    def default_loss(self) -> nn.Module:
        """The loss that belongs to the scheme."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The spec string; fields at their defaults are left out."""
        shown = [
            f"{f.name}={_write(getattr(self, f.name))}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}{{{' '.join(shown)}}}" if shown else self.name


@cache
def schemes() -> dict[str, type[Scheme]]:
    """Every scheme by name. A file in `passes/` that defines a subclass of `Scheme` is enough to be found."""
    import anytimeify.passes

    for module in pkgutil.iter_modules(anytimeify.passes.__path__):
        importlib.import_module(f"anytimeify.passes.{module.name}")
    found, waiting = {}, list(Scheme.__subclasses__())
    while waiting:
        scheme = waiting.pop()
        waiting.extend(scheme.__subclasses__())
        if "name" in vars(scheme):
            found[scheme.name] = scheme
    return dict(sorted(found.items()))


_SPEC = re.compile(r"(?P<name>[A-Za-z][\w-]*)\s*(?:\{(?P<body>.*)\})?", re.DOTALL)
_FIELD = re.compile(r"(?P<name>[A-Za-z_]\w*)\s*=\s*")


def parse_scheme(text: str) -> Scheme:
    """Read a spec string. Raises `SchemeError` that quotes what was typed and lists what there is."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise SchemeError(
            f"'{text}' is not a scheme; write NAME or NAME{{field=value ...}}, such as nested-channels{{widths=0.5,1}}"
        )
    known = schemes()
    if match["name"] not in known:
        raise SchemeError(f"'{match['name']}' is not a scheme; there are: {', '.join(known)}")
    scheme = known[match["name"]]
    values = _read_fields(match["body"] or "", text)
    names = [f.name for f in dataclasses.fields(scheme)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise SchemeError(f"'{text}': {scheme.name} has no field '{name}'; it has: {', '.join(names)}")
    return scheme(**values)


def _read_fields(body: str, text: str) -> dict[str, Any]:
    starts = list(_FIELD.finditer(body))
    if body.strip() and (not starts or body[: starts[0].start()].strip(" ,;")):
        raise SchemeError(f"'{text}': expected field=value inside the braces")
    ends = [*(match.start() for match in starts[1:]), len(body)][: len(starts)]
    values: dict[str, Any] = {}
    for match, end in zip(starts, ends, strict=True):
        if match["name"] in values:
            raise SchemeError(f"'{text}': the field '{match['name']}' is given twice")
        values[match["name"]] = _read(body[match.end() : end].strip().rstrip(",;").strip())
    return values


def _read(text: str) -> Any:
    """A number, a truth value, a word, or a tuple of them where there is a comma or a bracket."""
    parts = _parts(text)
    if len(parts) > 1:
        return tuple(_read(part) for part in parts if part)
    if text.startswith("(") and text.endswith(")"):
        return tuple(_read(part) for part in _parts(text[1:-1]) if part)
    if text in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text]
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _parts(text: str) -> list[str]:
    """Split at the commas that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _write(value: Any, *, inside: bool = False) -> str:
    if isinstance(value, tuple):
        inner = ",".join(_write(item, inside=True) for item in value)
        bare = len(value) > 1 and not inside and not any(isinstance(item, tuple) for item in value)
        return inner if bare else f"({inner})"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
