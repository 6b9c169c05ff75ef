"""Labels of several granularities: which classes there are, finest first, and which coarser class each belongs to."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytimeify.errors import ArgumentError, ArtifactError, SchemeError

__all__ = ["Taxonomy"]

_NAMES = {1: ("fine",), 2: ("fine", "coarse"), 3: ("fine", "middle", "coarse")}


@dataclass(frozen=True)
class Taxonomy:
    """Classes of two granularities or more, finest first, each class with one class above it.

    Fields
        parents: for each granularity but the coarsest, the class of the next granularity above each of its classes:
            `parents[0][c]` is what class `c`, as the data has it, belongs to. A single map may stand without a tuple
            around it.
        granularities: their names, finest first; by default `fine`, `coarse` and the like.
        classes: the names of the classes of every granularity, or nothing.
        heads: which granularities each level predicts, by name, cheapest level first; all by default. The level that
            equals the backbone has to predict the finest.
        serve: the granularity that each level serves where one prediction is asked for (`net(x, level=k)`, `extract`,
            `stream`, `staged`): coarse for small budgets, say. By default the finest that the level has.

    Raises `SchemeError` for maps that are no taxonomy. Also made by `from_parents`, `from_names`, `from_tree`, `load`.
    """

    parents: tuple[tuple[int, ...], ...]
    granularities: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()
    heads: tuple[tuple[str, ...], ...] | None = None
    serve: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        given: Any = self.parents
        if isinstance(given, Mapping) or (_is_list(given) and given and not any(map(_is_map, given))):
            given = (given,)
        if not _is_list(given) or not given:
            raise SchemeError(f"taxonomy: parents={given!r}: expected a map from fine classes to coarse ones, or several")
        maps = tuple(_indices(one) for one in given)
        names = _checked_names(self.granularities, len(maps) + 1)
        for fine, (lower, name) in enumerate(zip(maps, names, strict=False)):
            _check_map(lower, name, names[fine + 1], len(maps[fine + 1]) if fine + 1 < len(maps) else None)
        object.__setattr__(self, "parents", maps)
        object.__setattr__(self, "granularities", names)
        object.__setattr__(self, "classes", _checked_classes(self.classes, names, self.sizes))
        object.__setattr__(self, "heads", _checked_heads(self.heads, names))
        object.__setattr__(self, "serve", _checked_serve(self.serve, names, self.heads))

    @staticmethod
    def from_parents(
        *maps: Mapping[int, int] | Sequence[int],
        granularities: Sequence[str] = (),
        classes: Sequence[Sequence[str]] = (),
    ) -> Taxonomy:
        """From one map or several, finest first: the class above every class, as a list or as a dict of indices."""
        return Taxonomy(maps, tuple(granularities), tuple(map(tuple, classes)))  # type: ignore[arg-type]  # checked

    @staticmethod
    def from_names(
        parents: Mapping[str, str] | Iterable[tuple[str, str]],
        classes: Sequence[str] | None = None,
        *,
        granularities: Sequence[str] = (),
    ) -> Taxonomy:
        """From pairs (class, class above it) by name, over all granularities, as WordNet has them.

        `classes` says which class has which index; by default classes that are above none, in the order in which they
        come. Classes need the same number of classes above them: one that stands higher up goes under its own name
        through the granularities between.
        """
        above: dict[str, str] = {}
        for child, parent in parents.items() if isinstance(parents, Mapping) else parents:
            if above.setdefault(child, parent) != parent:
                raise SchemeError(f"taxonomy: class '{child}' has two classes above it, '{above[child]}' and '{parent}'")
        tops = set(above.values())
        fine = list(classes) if classes is not None else [child for child in above if child not in tops]
        _check_unique(fine, "class")
        if not fine:
            raise SchemeError("taxonomy: no class is the finest: the classes lie above each other in a circle")
        return _from_paths([tuple(_path(name, above)) for name in fine], granularities)

    @staticmethod
    def from_tree(
        tree: Mapping[str, Any], classes: Sequence[str] | None = None, *, granularities: Sequence[str] = ()
    ) -> Taxonomy:
        """From a nested dict, coarsest names outside, lists of class names inside: `{"animal": {"pet": ["cat"]}}`.

        Indices of classes follow the order in which the tree has them, or that of `classes`. Every class has to be as
        deep in the tree as the others.
        """
        paths = list(_leaves(tree, ()))
        _check_unique([path[0] for path in paths], "class")
        if classes is not None:
            found = {path[0]: path for path in paths}
            _check_unique(classes, "class")
            for name in (*classes, *found):
                if name not in found or name not in classes:
                    raise SchemeError(
                        f"taxonomy: class '{name}' is {'not in the tree' if name in classes else 'missing in classes'}"
                    )
            paths = [found[name] for name in classes]
        return _from_paths(paths, granularities)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Taxonomy:
        """From a file that `save` wrote, or from one of these: `.json` with a nested dict as `from_tree` takes it, or
        with a list, the class above every class; `.csv` with one row a class in the order of the indices, finest
        column first, under a line with the names of the granularities. Raises `ArtifactError` and `SchemeError`.
        """
        source = Path(path)
        try:
            text = source.read_text(encoding="utf-8")
            if source.suffix == ".csv":
                rows = list(csv.reader(StringIO(text, newline="")))
            elif source.suffix == ".json":
                data = json.loads(text)
            else:
                raise ArtifactError(f"{source}: a taxonomy is read from .json or .csv")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{source} cannot be read: {error}") from error
        try:
            return _from_rows(rows) if source.suffix == ".csv" else Taxonomy.from_data(data)
        except SchemeError as error:
            raise SchemeError(f"{source}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything as `.json`; as `.csv` the classes, for which no heads may be chosen."""
        target = Path(path)
        if target.suffix == ".json":
            text = json.dumps(self.data(), indent=2) + "\n"
        elif target.suffix == ".csv" and self.heads is None and self.serve is None:
            names = self.classes or tuple(tuple(map(str, range(size))) for size in self.sizes)
            rows = zip(*([names[g][c] for c in column] for g, column in enumerate(self.ancestors)), strict=True)
            sheet = StringIO(newline="")
            csv.writer(sheet, lineterminator="\n").writerows([self.granularities, *rows])
            text = sheet.getvalue()
        else:
            hint = "; heads and serve need .json" if target.suffix == ".csv" else ""
            raise ArtifactError(f"{target}: a taxonomy is written as .json or .csv{hint}")
        try:
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"cannot save to {target}: {error}") from error

    def data(self) -> dict[str, Any]:
        """As plain data: what JSON can hold."""
        data: dict[str, Any] = {"granularities": list(self.granularities), "parents": [list(p) for p in self.parents]}
        if self.classes:
            data["classes"] = [list(names) for names in self.classes]
        if self.heads is not None:
            data["heads"] = [list(names) for names in self.heads]
        if self.serve is not None:
            data["serve"] = list(self.serve)
        return data

    @staticmethod
    def from_data(data: Any) -> Taxonomy:
        """The inverse of `data`; also of a nested dict or a list, as `load` reads them."""
        if isinstance(data, list):
            return Taxonomy.from_parents(*(data if data and all(map(_is_map, data)) else [data]))
        if not isinstance(data, Mapping):
            raise SchemeError("taxonomy: expected a nested dict of names, or a list of parents")
        if "parents" not in data or not _is_list(data["parents"]):
            return Taxonomy.from_tree(data)
        unknown = sorted(set(data) - {"granularities", "parents", "classes", "heads", "serve"})
        if unknown:
            raise SchemeError(f"taxonomy: there is no field '{unknown[0]}'")
        return Taxonomy(**{name: _tuples(value) for name, value in data.items()})

    def with_levels(
        self, *, heads: Sequence[Sequence[str]] | None = None, serve: Sequence[str] | None = None
    ) -> Taxonomy:
        """The same classes, with a choice of what each level predicts and serves."""
        return replace(
            self,
            heads=None if heads is None else tuple(map(tuple, heads)),
            serve=None if serve is None else tuple(serve),
        )

    # What there is to know.

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of classes of every granularity, finest first."""
        return (*map(len, self.parents), max(self.parents[-1]) + 1)

    @property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """For every granularity, the class that each of the finest classes belongs to."""
        chains = [tuple(range(len(self.parents[0])))]
        for above in self.parents:
            chains.append(tuple(above[c] for c in chains[-1]))
        return tuple(chains)

    def index(self, granularity: str | int) -> int:
        """The place of a granularity, given by name or place; `ArgumentError` where there is none."""
        if isinstance(granularity, str) and granularity in self.granularities:
            return self.granularities.index(granularity)
        if isinstance(granularity, int) and not isinstance(granularity, bool):
            count = len(self.granularities)
            if -count <= granularity < count:
                return granularity % count
        raise ArgumentError(
            f"there is no granularity {granularity!r}; there are: {', '.join(self.granularities)} (finest first)"
        )

    def targets(self, target: Tensor) -> tuple[Tensor, ...]:
        """Labels of every granularity, finest first, from those of the finest, of any shape. Negative ones, which
        losses ignore, stay."""
        return tuple(
            target if place == 0 else lookup(torch.tensor(table, device=target.device), target)
            for place, table in enumerate(self.ancestors)
        )

    def collapse(self, logits: Tensor, granularity: str | int = -1) -> Tensor:
        """Log-probabilities of a coarser granularity from predictions of the finest, (N, C) or (N, C, H, W): those of
        the classes below are added up."""
        place = self.index(granularity)
        table = torch.tensor(self.ancestors[place], device=logits.device)
        probabilities = logits.softmax(1)
        shape = (logits.shape[0], self.sizes[place], *logits.shape[2:])
        return probabilities.new_zeros(shape).index_add_(1, table, probabilities).log()


def lookup(table: Tensor, target: Tensor) -> Tensor:
    """The entries of a table; negative labels stay what they are."""
    return torch.where(target < 0, target, table[target.clamp(min=0)])


# Fields as they may be given.


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping) or _is_list(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _indices(given: Any) -> tuple[int, ...]:
    """A map from classes to classes as a tuple."""
    if isinstance(given, Tensor):
        given = given.tolist()
    if not _is_map(given):
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
        raise SchemeError(f"taxonomy: class {missing} has no class above it: every class of {len(known)} and more needs one")
    if min(known) < 0:
        raise SchemeError(f"taxonomy: {min(known)} is no index of a class")
    return tuple(known[c] for c in range(len(known)))


def _checked_names(given: Any, count: int) -> tuple[str, ...]:
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
    _check_unique(names, "granularity")
    return names


def _check_map(above: tuple[int, ...], name: str, coarser: str, count: int | None) -> None:
    """One map, whose classes above have to be `count`, where that is known."""
    if min(above) < 0:
        raise SchemeError(f"taxonomy: class {above.index(min(above))} of {name} belongs to {min(above)}, which is no index")
    top = max(above)
    if count is not None and top >= count:
        raise SchemeError(
            f"taxonomy: class {above.index(top)} of {name} belongs to class {top} of {coarser}, which has no class above "
            f"it: there are {count}"
        )
    size = count if count is not None else top + 1
    empty = sorted(set(range(size)) - set(above))
    if empty:
        raise SchemeError(f"taxonomy: no class of {name} belongs to class {empty[0]} of {coarser}")
    if size < 2:
        raise SchemeError(f"taxonomy: {coarser} has one class only, so there is nothing to predict; leave it out")


def _checked_classes(given: Any, granularities: tuple[str, ...], sizes: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    if not given:
        return ()
    classes = tuple(tuple(map(str, names)) for names in given)
    if len(classes) != len(sizes):
        raise SchemeError(f"taxonomy: classes has names for {len(classes)} granularities, and there are {len(sizes)}")
    for names, granularity, size in zip(classes, granularities, sizes, strict=True):
        if len(names) != size:
            raise SchemeError(f"taxonomy: classes names {len(names)} classes of {granularity}, and there are {size}")
        _check_unique(names, f"class of {granularity}")
    return classes


def _checked_heads(given: Any, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...] | None:
    if given is None:
        return None
    levels = tuple((level,) if isinstance(level, str) else tuple(level) for level in given)
    for index, level in enumerate(levels):
        if not level:
            raise SchemeError(f"taxonomy: heads: level {index} predicts nothing")
        for name in level:
            if name not in names:
                raise SchemeError(f"taxonomy: heads: {name!r} is no granularity; there are: {', '.join(names)}")
        _check_unique(level, "head")
    return tuple(tuple(name for name in names if name in level) for level in levels)


def _checked_serve(given: Any, names: tuple[str, ...], heads: Any) -> tuple[str, ...] | None:
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


def _check_unique(names: Sequence[Any], kind: str) -> None:
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise SchemeError(f"taxonomy: the {kind} '{name}' is there twice")
        seen.add(name)


# Names.


def _path(name: str, above: Mapping[str, str]) -> Iterator[str]:
    """A class and all above it."""
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


def _leaves(tree: Any, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The classes in a nested dict, each with what is above it, nearest first."""
    if isinstance(tree, Mapping) and tree:
        for name, below in tree.items():
            if below is None or (_is_map(below) and not below):
                yield (str(name), *above)
            else:
                yield from _leaves(below, (str(name), *above))
    elif _is_list(tree) and tree:
        for name in tree:
            if isinstance(name, Mapping | list | tuple):
                raise SchemeError(f"taxonomy: {name!r} inside a list: expected the name of a class")
            yield (str(name), *above)
    elif isinstance(tree, str):
        yield (tree, *above)
    else:
        raise SchemeError("taxonomy: there are no classes in it")


def _from_paths(paths: Sequence[tuple[str, ...]], granularities: Sequence[str]) -> Taxonomy:
    """From classes in the order of their indices, each with all above it, nearest first."""
    for (one, *rest), (other, *others) in pairwise(paths):
        if len(rest) != len(others):
            raise SchemeError(
                f"taxonomy: '{one}' has {len(rest)} classes above it and '{other}' has {len(others)}; a class that "
                "stands higher up goes under its own name through the granularities between"
            )
    if len(paths[0]) < 2:
        raise SchemeError("taxonomy: no class has a class above it")
    columns = list(zip(*paths, strict=True))
    classes = [tuple(dict.fromkeys(column)) for column in columns]
    numbers = [{name: place for place, name in enumerate(names)} for names in classes]
    maps: list[dict[int, int]] = []
    for place, (column, above) in enumerate(pairwise(columns)):
        known: dict[int, int] = {}
        for name, parent in zip(column, above, strict=True):
            first = known.setdefault(numbers[place][name], numbers[place + 1][parent])
            if first != numbers[place + 1][parent]:
                raise SchemeError(
                    f"taxonomy: class '{name}' has two classes above it, '{classes[place + 1][first]}' and '{parent}'"
                )
        maps.append(known)
    return Taxonomy(tuple(maps), tuple(granularities), tuple(classes))  # type: ignore[arg-type]  # dicts are read too


def _from_rows(rows: Sequence[Sequence[str]]) -> Taxonomy:
    """From a table: names of granularities, then a row for every class."""
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise SchemeError("taxonomy: there are no classes in it")
    titles, *lines = rows
    for number, line in enumerate(lines, start=2):
        if len(line) != len(titles) or not all(line):
            raise SchemeError(f"taxonomy: line {number} has not one entry for each of {', '.join(titles)}")
    if len(titles) > 1 and all(cell.isdigit() for line in lines for cell in line):
        numbers = [list(map(int, line)) for line in lines]
        maps: list[dict[int, int]] = []
        for place in range(len(titles) - 1):
            known: dict[int, int] = {}
            for line in numbers:
                if known.setdefault(line[place], line[place + 1]) != line[place + 1]:
                    raise SchemeError(f"taxonomy: class {line[place]} has two classes above it")
            maps.append(known)
        return Taxonomy.from_parents(*maps, granularities=titles)
    _check_unique([line[0] for line in lines], "class")
    return _from_paths([tuple(line) for line in lines], titles)
