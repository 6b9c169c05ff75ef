"""Schemes: what they are, how they are written as text, and how they are found.

A scheme is a frozen dataclass whose fields are its options. The file in `passes/schemes/` that defines it is all there
is to it: it is found by being there. A spec string names a scheme and its options, `nested-channels{widths=0.25,0.5,1
norms=shared}`; `str(scheme)` gives it back. Values are read as what the type of their field says, for a layer may be
called `1.10` or `true`. Several spec strings in a row are a sequence of schemes, which one of the `Composed` makes
together.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.errors import SchemeError, refusing
from anytimeify.ir import Captured, Program
from anytimeify.ir.rewritten import Rewritten
from anytimeify.ir.sizes import ProgramSize

__all__ = ["Composed", "Scheme", "compose", "parse_scheme", "schemes"]


class Scheme:
    """Base of all schemes; subclasses are frozen dataclasses.

    `prepare` may change values (a permutation by importance) and runs once, when a model is transformed; `apply`
    rewrites the graph and runs again whenever a saved model is loaded, so it must not depend on anything but the
    captured model and the fields.
    """

    name: ClassVar[str]
    nested: ClassVar[bool] = True  # a level reads no fewer parameters than the one before
    skips: ClassVar[bool] = False  # whether lower levels leave out blocks of the backbone
    backbones: ClassVar[int] = 1  # how many networks `transform` takes; two stand side by side in one captured model

    def check_alone(self) -> None:
        """Refuse what only a sequence of schemes may have (neighbouring levels that are equal in one of them)."""

    def measured(self, captured: Captured, axes: Axes) -> tuple[Scheme, str]:
        """The scheme with every field decided that was left to a measurement, and a note on what was measured."""
        return self, ""

    def prepare(self, captured: Captured, axes: Axes) -> Captured:
        """Change values before the rewrite, the function of the backbone staying the same."""
        return captured

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        """Rewrite the backbone's graph into one with a prediction per level. Raises `SchemeError` where that cannot
        be.
        """
        raise NotImplementedError

    @property
    def copies(self) -> int:
        """How many copies of a backbone the result holds, at most."""
        return 1

    @property
    def sample(self) -> tuple[Scheme, ProgramSize] | None:
        """A scheme that is quick to apply, and how many times the nodes and bytes that it adds to a backbone this one
        adds; None where nothing tells."""
        return None

    def estimated(self, captured: Captured, axes: Axes) -> ProgramSize | None:
        """How large the result will be; None where that is not known before. `captured` has tensors without data."""
        if self.sample is None:
            return None
        scheme, times = self.sample
        own, found = ProgramSize.of(captured.program), ProgramSize.of(scheme.apply(captured, axes).program)
        added = zip(own, found, times, strict=True)
        return ProgramSize(*(round(before + count * (after - before)) for before, after, count in added))

    def on_other_inputs(self, captured: Captured, axes: Axes) -> Iterator[tuple[str, Program, tuple[Tensor, ...]]]:
        """Programs that are the backbone on other inputs, each with its name: for the example inputs it gives, as its
        one output, what the backbone gives for the inputs beside it. Verification compares the two."""
        return iter(())

    def kept(self, axes: Axes) -> Sequence[Widths]:
        """How much of every axis each level keeps, cheapest first; nothing for schemes that narrow none."""
        return ()

    @property
    def reads_values(self) -> str:
        """What of it depends on the values of weights, in words; empty where shapes are enough."""
        return ""

    @property
    def shares_values(self) -> bool:
        """Whether channels have the same values at every level that has them."""
        return False

    @property
    def narrowed(self) -> str | tuple[str, ...]:
        """Which axes levels may differ in, as `Axes.chosen` takes it."""
        return "all"

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


class Composed(Scheme):
    """Base of what several schemes make together: frozen dataclasses whose fields are those schemes.

    Level k is what level k of every one of them is. Like a scheme it is found by being there.
    """

    def __str__(self) -> str:
        """The spec strings of the schemes, one after the other."""
        return " ".join(str(getattr(self, f.name)) for f in dataclasses.fields(self))  # type: ignore[arg-type]  # subclasses are dataclasses


def schemes() -> dict[str, type[Scheme]]:
    """Every scheme by name. A file in `passes/schemes/` that defines a subclass of `Scheme` is enough to be found; one
    that is defined elsewhere is found once its module is imported."""
    return {name: found for name, found in _found().items() if not issubclass(found, Composed)}


def _found() -> dict[str, type[Scheme]]:
    _import_own()
    found: dict[str, type[Scheme]] = {}
    waiting = list(Scheme.__subclasses__())
    while waiting:
        scheme = waiting.pop()
        waiting.extend(scheme.__subclasses__())
        # The newest of one name, for a cell of a notebook may run twice; and nobody takes the name of one of ours.
        if "name" in vars(scheme) and (scheme.name not in found or _is_own(scheme)):
            found[scheme.name] = scheme
    return dict(sorted(found.items()))


@cache
def _import_own() -> None:
    from anytimeify.passes import schemes as own

    for module in pkgutil.iter_modules(own.__path__):
        importlib.import_module(f"{own.__name__}.{module.name}")


def _is_own(scheme: type[Scheme]) -> bool:
    return scheme.__module__.startswith("anytimeify.passes.")


def compose(parts: Iterable[Scheme | str]) -> Scheme:
    """One scheme for a sequence of schemes and spec strings, whose order has no meaning.

    Raises `SchemeError` for schemes that are not made together, and says which are."""
    given = [scheme for part in parts for scheme in ([part] if isinstance(part, Scheme) else _parse(part))]
    if len(given) == 1:
        given[0].check_alone()
        return given[0]
    combined: list[str] = []
    for composed in _found().values():
        if issubclass(composed, Composed):
            kinds = get_type_hints(composed)
            fields = [kinds[f.name] for f in dataclasses.fields(composed)]  # type: ignore[arg-type]  # as above
            if {type(one) for one in given} == set(fields) and len(given) == len(fields):
                return composed(*sorted(given, key=lambda one: fields.index(type(one))))
            combined.append(" with ".join(kind.name for kind in fields))
    names = ", ".join(one.name for one in given)
    raise SchemeError(f"{names} cannot be combined; what can be: {', '.join(combined)}")


_PART = re.compile(r"[A-Za-z][\w-]*\s*(?:\{[^{}]*\})?")  # of a sequence
_SPEC = re.compile(r"(?P<name>[A-Za-z][\w-]*)\s*(?:\{(?P<body>.*)\})?", re.DOTALL)
_FIELD = re.compile(r"(?P<name>[A-Za-z_]\w*)\s*=\s*")


def parse_scheme(text: str) -> Scheme:
    """Read a spec string, or several in a row. Raises `SchemeError` that quotes what was typed and lists what there
    is."""
    with refusing(SchemeError, f"'{text}'"):
        return compose([text])


def _parse(text: str) -> list[Scheme]:
    parts = _PART.findall(text)
    whole = not _PART.sub("", text).strip(" \t\n,")
    return [_parse_one(part) for part in parts] if whole and parts else [_parse_one(text)]


def _parse_one(text: str) -> Scheme:
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise SchemeError(
            f"'{text}' is not a scheme; write NAME or NAME{{field=value ...}}, such as nested-channels{{widths=0.5,1}}"
        )
    known = schemes()
    if match["name"] not in known:
        raise SchemeError(f"'{match['name']}' is not a scheme; there are: {', '.join(known)}")
    scheme = known[match["name"]]
    written = _fields(match["body"] or "", text)
    names = [f.name for f in dataclasses.fields(scheme)]  # type: ignore[arg-type]
    for name in written:
        if name not in names:
            raise SchemeError(f"'{text}': {scheme.name} has no field '{name}'; it has: {', '.join(names)}")
    kinds = get_type_hints(scheme)
    return scheme(**{name: _read(value, kinds[name]) for name, value in written.items()})


def _fields(body: str, text: str) -> dict[str, str]:
    starts = list(_FIELD.finditer(body))
    if body.strip() and (not starts or body[: starts[0].start()].strip(" ,;")):
        raise SchemeError(f"'{text}': expected field=value inside the braces")
    ends = [*(match.start() for match in starts[1:]), len(body)][: len(starts)]
    values: dict[str, str] = {}
    for match, end in zip(starts, ends, strict=True):
        if match["name"] in values:
            raise SchemeError(f"'{text}': the field '{match['name']}' is given twice")
        values[match["name"]] = body[match.end() : end].strip().rstrip(",;").strip()
    return values


# Values: words, and tuples of them where there is a comma or a bracket.

_Nested: TypeAlias = "str | tuple[_Nested, ...]"


def _read(text: str, kind: Any) -> Any:
    """A value of a field of type `kind`. Outer brackets may be left out: `cuts=layer1`, `splits=layer1,4`."""
    nested = _nested(text)
    for _ in range(_depth_of(kind) - _depth(nested)):
        nested = (nested,)
    return _typed(nested, kind)


def _nested(text: str) -> _Nested:
    parts = _parts(text)
    if len(parts) == 1 and text.startswith("(") and text.endswith(")"):
        parts = _parts(text[1:-1])
    elif len(parts) == 1:
        return text
    return tuple(_nested(part) for part in parts if part)


def _depth(nested: _Nested) -> int:
    return 0 if isinstance(nested, str) else 1 + max(map(_depth, nested), default=0)


def _depth_of(kind: Any) -> int:
    """How many brackets a value of this type has at least."""
    if get_origin(kind) in (Union, UnionType):
        return min(map(_depth_of, get_args(kind)))
    if dataclasses.is_dataclass(kind):
        return 1
    return 1 + _depth_of(get_args(kind)[0]) if get_origin(kind) is tuple else 0


def _typed(nested: _Nested, kind: Any) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if isinstance(nested, tuple) and dataclasses.is_dataclass(kind):
        items = tuple(get_type_hints(kind).values())
        if len(nested) > len(items):
            raise SchemeError(f"({','.join(map(str, nested))}) has more parts than a {kind.__name__}")  # type: ignore[union-attr]  # a class
        return kind(*map(_typed, nested, items))  # type: ignore[operator]  # a class, not an instance
    if isinstance(nested, tuple):
        items = next((get_args(one) for one in kinds if get_origin(one) is tuple), ())
        if items[1:] == (...,):
            items = items[:1] * len(nested)
        return tuple(_typed(one, item) for one, item in itertools.zip_longest(nested, items[: len(nested)]))
    if nested == "none" and NoneType in kinds:
        return None
    choices = [choice for one in kinds if get_origin(one) is Literal for choice in get_args(one)]
    return nested if str in kinds or nested in choices else _word(nested)


def _word(text: str) -> Any:
    """A number or a truth value if it is one."""
    if text in ("true", "false"):
        return text == "true"
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


def _has_parts(value: Any) -> bool:
    return isinstance(value, tuple) or dataclasses.is_dataclass(value)


def _write(value: Any, *, inside: bool = False) -> str:
    if dataclasses.is_dataclass(value):  # its fields in order, those at the end that are at their defaults left out
        fields = dataclasses.fields(value)
        changed = [place for place, one in enumerate(fields) if getattr(value, one.name) != one.default]
        return _write(tuple(getattr(value, one.name) for one in fields[: max(changed) + 1]), inside=True)
    if isinstance(value, tuple):
        inner = ",".join(_write(item, inside=True) for item in value)
        bare = len(value) > 1 and not inside and not any(map(_has_parts, value))
        return inner if bare else f"({inner})"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
