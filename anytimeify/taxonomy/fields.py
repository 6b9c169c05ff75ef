"""The fields of a taxonomy as they may be given, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from anytimeify.errors import SchemeError

__all__ = [
    "check_map",
    "check_unique",
    "checked_classes",
    "checked_heads",
    "checked_names",
    "checked_serve",
    "indices",
    "is_list",
    "is_map",
    "tuples",
]

_NAMES = {2: ("fine", "coarse"), 3: ("fine", "middle", "coarse")}


def is_list(value: Any) -> bool:
    """Whether a value is a sequence, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_map(value: Any) -> bool:
    """Whether a value may say what lies above each class."""
    return isinstance(value, Mapping) or is_list(value)


def tuples(value: Any) -> Any:
    """Lists as tuples, those inside too."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def indices(given: Any) -> tuple[int, ...]:
    """A map from classes to classes as a tuple."""
    if isinstance(given, Tensor):
        given = given.tolist()
    if not is_map(given):
        raise SchemeError(f"taxonomy: {given!r} is no map from classes to the classes above them")
    pairs = list(given.items() if isinstance(given, Mapping) else enumerate(given))
    for child, parent in pairs:
        for value in (child, parent):
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise SchemeError(
                    f"taxonomy: {child!r} -> {parent!r}: expected indices of classes; for names, from_names and "
                    "from_tree are there"
                )
    known = {int(child): int(parent) for child, parent in pairs}
    if not known:
        raise SchemeError("taxonomy: there are no classes in it")
    missing = next((c for c in range(max(max(known), 0) + 1) if c not in known), None)
    if missing is not None:
        raise SchemeError(f"taxonomy: class {missing} has no class above it")
    if min(known) < 0:
        raise SchemeError(f"taxonomy: {min(known)} is no index of a class")
    return tuple(known[c] for c in range(len(known)))


def checked_names(given: Any, count: int) -> tuple[str, ...]:
    """The names of granularities, by default the usual ones."""
    if isinstance(given, str):
        given = (given,)
    names = tuple(given) or _NAMES.get(count) or tuple(f"granularity{place}" for place in range(count))
    if len(names) != count:
        raise SchemeError(
            f"taxonomy: granularities has {len(names)} names, {', '.join(map(str, names))}, and there are {count}"
        )
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():  # they are parts of the names of tensors and nodes
            raise SchemeError(f"taxonomy: granularities: {name!r} is no name made of letters, digits and underscores")
    check_unique(names, "granularity")
    return names


def check_map(above: tuple[int, ...], name: str, coarser: str, count: int | None) -> None:
    """One map, whose classes above have to be `count`, where that is known."""
    if min(above) < 0:
        raise SchemeError(
            f"taxonomy: class {above.index(min(above))} of {name} belongs to {min(above)}, which is no index"
        )
    top = max(above)
    if count is not None and top >= count:
        raise SchemeError(
            f"taxonomy: class {above.index(top)} of {name} belongs to class {top} of {coarser}, which has no class "
            f"above it: there are {count}"
        )
    size = count if count is not None else top + 1
    known = set(above)
    empty = next((one for one in range(size) if one not in known), None)
    if empty is not None:
        raise SchemeError(f"taxonomy: no class of {name} belongs to class {empty} of {coarser}")
    if size < 2:
        raise SchemeError(f"taxonomy: {coarser} has one class only, so there is nothing to predict; leave it out")


def checked_classes(given: Any, granularities: tuple[str, ...], sizes: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """The names of classes, if there are any."""
    if not given:
        return ()
    classes = tuple(tuple(map(str, names)) for names in given)
    if len(classes) != len(sizes):
        raise SchemeError(f"taxonomy: classes has names for {len(classes)} granularities, and there are {len(sizes)}")
    for names, granularity, size in zip(classes, granularities, sizes, strict=True):
        if len(names) != size:
            raise SchemeError(f"taxonomy: classes names {len(names)} classes of {granularity}, and there are {size}")
        check_unique(names, f"class of {granularity}")
    return classes


def checked_heads(given: Any, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...] | None:
    """The granularities of every level, finest first."""
    if given is None:
        return None
    levels = tuple((level,) if isinstance(level, str) else tuple(level) for level in given)
    for index, level in enumerate(levels):
        if not level:
            raise SchemeError(f"taxonomy: heads: level {index} predicts nothing")
        for name in level:
            if name not in names:
                raise SchemeError(f"taxonomy: heads: {name!r} is no granularity; there are: {', '.join(names)}")
        check_unique(level, "head")
    return tuple(tuple(name for name in names if name in level) for level in levels)


def checked_serve(given: Any, names: tuple[str, ...], heads: Any) -> tuple[str, ...] | None:
    """The granularity that every level serves."""
    if given is None:
        return None
    served = (given,) if isinstance(given, str) else tuple(given)
    if heads is not None and len(served) != len(heads):
        raise SchemeError(f"taxonomy: serve is for {len(served)} levels, and heads for {len(heads)}")
    for index, name in enumerate(served):
        known = heads[index] if heads is not None else names
        if name not in known:
            raise SchemeError(
                f"taxonomy: serve: level {index} does not predict {name!r}; it predicts {', '.join(known)}"
            )
    return served


def check_unique(names: Sequence[Any], kind: str) -> None:
    """Refuses names that are there twice; `kind` says of what."""
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise SchemeError(f"taxonomy: the {kind} '{name}' is there twice")
        seen.add(name)
