"""`Taxonomy`: classes of several granularities, and how they are read and written."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytimeify.errors import ArgumentError, ArgumentValueError, ArtifactError, SchemeError, refusing
from anytimeify.io.files import regular_file, replaced_file
from anytimeify.taxonomy.fields import (
    check_map,
    checked_classes,
    checked_heads,
    checked_names,
    checked_serve,
    indices,
    is_list,
    is_map,
    tuples,
)
from anytimeify.taxonomy.paths import maps_of_pairs, maps_of_rows, maps_of_tree

__all__ = ["Taxonomy", "coarser"]


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
        if isinstance(given, Mapping) or (is_list(given) and given and not any(map(is_map, given))):
            given = (given,)
        if not is_list(given) or not given:
            raise SchemeError(
                f"taxonomy: parents={given!r}: expected a map from fine classes to coarse ones, or several"
            )
        maps = tuple(indices(one) for one in given)
        names = checked_names(self.granularities, len(maps) + 1)
        for fine, (lower, name) in enumerate(zip(maps, names, strict=False)):
            check_map(lower, name, names[fine + 1], len(maps[fine + 1]) if fine + 1 < len(maps) else None)
        object.__setattr__(self, "parents", maps)
        object.__setattr__(self, "granularities", names)
        object.__setattr__(self, "classes", checked_classes(self.classes, names, self.sizes))
        object.__setattr__(self, "heads", checked_heads(self.heads, names))
        object.__setattr__(self, "serve", checked_serve(self.serve, names, self.heads))

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
        pairs = parents.items() if isinstance(parents, Mapping) else parents
        maps, names = maps_of_pairs(pairs, classes)
        return Taxonomy.from_parents(*maps, granularities=granularities, classes=names)

    @staticmethod
    def from_tree(
        tree: Mapping[str, Any], classes: Sequence[str] | None = None, *, granularities: Sequence[str] = ()
    ) -> Taxonomy:
        """From a nested dict, coarsest names outside, lists of class names inside: `{"animal": {"pet": ["cat"]}}`.

        Indices of classes follow the order in which the tree has them, or that of `classes`. Every class has to be as
        deep in the tree as the others.
        """
        maps, names = maps_of_tree(tree, classes)
        return Taxonomy.from_parents(*maps, granularities=granularities, classes=names)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Taxonomy:
        """From a file that `save` wrote, or from one of these: `.json` with a nested dict as `from_tree` takes it, or
        with a list, the class above every class; `.csv` with one row a class in the order of the indices, finest
        column first, under a line with the names of the granularities. Raises `ArtifactError` and `SchemeError`.
        """
        source = regular_file(path)
        if source.suffix not in (".json", ".csv"):
            raise ArtifactError(f"{source}: a taxonomy is read from .json or .csv")
        try:
            with refusing(ArtifactError, f"{source} is damaged: it"):
                text = source.read_text(encoding="utf-8")
                if source.suffix == ".json":
                    return Taxonomy.from_data(json.loads(text))
                titles, (maps, names) = maps_of_rows(csv.reader(StringIO(text, newline="")))
                return Taxonomy.from_parents(*maps, granularities=titles, classes=names)
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
        with replaced_file(target) as temporary:
            temporary.write_text(text, encoding="utf-8")

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
            return Taxonomy.from_parents(*(data if data and all(map(is_map, data)) else [data]))
        if not isinstance(data, Mapping):
            raise SchemeError("taxonomy: expected a nested dict of names, or a list of parents")
        if "parents" not in data or not is_list(data["parents"]):
            return Taxonomy.from_tree(data)
        unknown = sorted(set(data) - {"granularities", "parents", "classes", "heads", "serve"})
        if unknown:
            raise SchemeError(f"taxonomy: there is no field '{unknown[0]}'")
        return Taxonomy(**{name: tuples(value) for name, value in data.items()})

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
        """Labels of every granularity, finest first, from those of the finest: class indices of any shape, of which
        negative ones, which losses ignore, stay; or class probabilities, (N, C) or (N, C, H, W)."""
        tables = [torch.tensor(table, device=target.device) for table in self.ancestors[1:]]
        return (target, *(coarser(target, *one) for one in zip(tables, self.sizes[1:], strict=True)))

    def collapse(self, logits: Tensor, granularity: str | int = -1) -> Tensor:
        """Log-probabilities of a coarser granularity from predictions of the finest, (N, C) or (N, C, H, W): those of
        the classes below are added up."""
        place = self.index(granularity)
        table = torch.tensor(self.ancestors[place], device=logits.device)
        return coarser(logits.softmax(1), table, self.sizes[place]).log()


def coarser(target: Tensor, table: Tensor, classes: int) -> Tensor:
    """Labels of a coarser granularity of `classes` classes; `table`: the class above every one of the finest.

    Of class indices, the entries of the table; negative ones stay. Of probabilities, whose dimension 1 has the finest
    classes, the sums.
    """
    if not target.is_floating_point():
        return torch.where(target < 0, target, table[target.clamp(min=0).long()])
    if target.ndim < 2 or target.shape[1] != len(table):
        raise ArgumentValueError(
            f"a floating target of shape {tuple(target.shape)} holds no class probabilities: expected (N, {len(table)})"
            f" or (N, {len(table)}, H, W), an entry for each of the finest classes"
        )
    return target.new_zeros(target.shape[0], classes, *target.shape[2:]).index_add(1, table, target)
