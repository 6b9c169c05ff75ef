"""Classes by name: from pairs, nested dicts and tables to the maps between granularities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from anytimeify.errors import SchemeError
from anytimeify.taxonomy.fields import check_unique, is_list, is_map

__all__ = ["Maps", "maps_of_pairs", "maps_of_rows", "maps_of_tree"]

Path: TypeAlias = tuple[str, ...]
"""A class and all above it, nearest first."""
Maps: TypeAlias = tuple[tuple[dict[int, int], ...], tuple[tuple[str, ...], ...]]
"""The class above every class, granularity by granularity, and the names of all classes, or none."""


def maps_of_pairs(pairs: Iterable[tuple[str, str]], classes: Sequence[str] | None) -> Maps:
    """From (class, class above it)."""
    above: dict[str, str] = {}
    for child, parent in pairs:
        if above.setdefault(child, parent) != parent:
            raise SchemeError(f"taxonomy: class '{child}' has two classes above it, '{above[child]}' and '{parent}'")
    tops = {parent for child, parent in above.items() if child != parent}
    fine = list(classes) if classes is not None else [child for child in above if child not in tops]
    check_unique(fine, "class")
    if not fine:
        empty = "there are no classes in it" if not above else "the classes lie above each other in a circle"
        raise SchemeError(f"taxonomy: {empty}")
    return _maps([tuple(_path(name, above)) for name in fine])


def _path(name: str, above: Mapping[str, str]) -> Iterator[str]:
    if name not in above:
        raise SchemeError(f"taxonomy: class '{name}' has no class above it")
    seen = [name]
    yield name
    while name in above and above[name] != name:  # a root may be its own parent
        name = above[name]
        if name in seen:
            circle = " -> ".join([*seen[seen.index(name) :], name])
            raise SchemeError(f"taxonomy: classes lie above each other in a circle: {circle}")
        seen.append(name)
        yield name


def maps_of_tree(tree: Any, classes: Sequence[str] | None) -> Maps:
    """From a nested dict."""
    paths = list(_leaves(tree, ()))
    check_unique([path[0] for path in paths], "class")
    if classes is not None:
        found = {path[0]: path for path in paths}
        check_unique(classes, "class")
        for name in (*classes, *found):
            if name not in found or name not in classes:
                problem = "not in the tree" if name in classes else "missing in classes"
                raise SchemeError(f"taxonomy: class '{name}' is {problem}")
        paths = [found[name] for name in classes]
    return _maps(paths)


def _leaves(tree: Any, above: Path) -> Iterator[Path]:
    if isinstance(tree, Mapping) and tree:
        for name, below in tree.items():
            if below is None or (is_map(below) and not below):
                yield (str(name), *above)
            else:
                yield from _leaves(below, (str(name), *above))
    elif is_list(tree) and tree:
        for name in tree:
            if is_map(name):
                raise SchemeError(f"taxonomy: {name!r} inside a list: expected the name of a class")
            yield (str(name), *above)
    elif isinstance(tree, str):
        yield (tree, *above)
    else:
        raise SchemeError("taxonomy: there are no classes in it")


def maps_of_rows(rows: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], Maps]:
    """From a table: names of granularities, and the maps of a row for every class, of names or of indices."""
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    filled = [row for row in cells if any(row)]
    if len(filled) < 2:
        raise SchemeError("taxonomy: there are no classes in it")
    titles, *lines = filled
    for number, line in enumerate(lines, start=2):
        if len(line) != len(titles) or not all(line):
            raise SchemeError(f"taxonomy: line {number} has not one entry for each of {', '.join(titles)}")
    check_unique([line[0] for line in lines], "class")
    if all(cell.isdecimal() for line in lines for cell in line):
        return titles, (_indexed(lines), ())
    return titles, _maps(lines)


def _indexed(lines: Sequence[Path]) -> tuple[dict[int, int], ...]:
    columns = [list(map(int, column)) for column in zip(*lines, strict=True)]
    maps: list[dict[int, int]] = []
    for column, above in pairwise(columns):
        known: dict[int, int] = {}
        for child, parent in zip(column, above, strict=True):
            if known.setdefault(child, parent) != parent:
                raise SchemeError(f"taxonomy: class {child} has two classes above it, {known[child]} and {parent}")
        maps.append(known)
    return tuple(maps)


def _maps(paths: Sequence[Path]) -> Maps:
    """From classes in the order of their indices."""
    for (one, *rest), (other, *others) in pairwise(paths):
        if len(rest) != len(others):
            raise SchemeError(
                f"taxonomy: '{one}' has {len(rest)} classes above it and '{other}' has {len(others)}; a class that "
                "stands higher up goes under its own name through the granularities between"
            )
    if len(paths[0]) < 2:
        raise SchemeError("taxonomy: no class has a class above it")
    columns = list(zip(*paths, strict=True))
    classes = tuple(tuple(dict.fromkeys(column)) for column in columns)
    maps: list[dict[int, int]] = []
    for (column, names), (above, parents) in pairwise(zip(columns, classes, strict=True)):
        known: dict[int, int] = {}
        for name, parent in zip(column, above, strict=True):
            found = known.setdefault(names.index(name), parents.index(parent))
            if found != parents.index(parent):
                raise SchemeError(
                    f"taxonomy: class '{name}' has two classes above it, '{parents[found]}' and '{parent}'"
                )
        maps.append(known)
    return tuple(maps), classes
