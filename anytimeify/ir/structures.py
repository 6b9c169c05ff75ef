"""What a backbone returns besides its prediction: structures of tensors and constants, one for each mode.

A program returns a flat tuple. A `Structure` says where its outputs stand in what the backbone returns; `Results` are
the structures of both modes, over the outputs of one program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

from anytimeify._torch import TreeSpec, unflatten

__all__ = ["Constant", "Results", "Structure", "children"]


@dataclass(frozen=True)
class Constant:
    """A leaf that is no tensor: None, a number, a text."""

    value: Any


@dataclass(frozen=True)
class Structure:
    """What a backbone returns in one mode, as a pytree.

    Fields
        spec: the tree without its leaves.
        leaves: for each of them the program's output that it is, or a constant. One output may be at several places.
        prediction: the output that is the prediction.
    """

    spec: TreeSpec
    leaves: tuple[int | Constant, ...]
    prediction: int

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """The outputs that it holds, each once, in the order of the leaves."""
        return tuple(dict.fromkeys(leaf for leaf in self.leaves if isinstance(leaf, int)))

    def filled(self, values: Sequence[Any]) -> Any:
        """The structure with these values of `outputs`, which stand in the same order."""
        at = dict(zip(self.outputs, values, strict=True))
        return unflatten([leaf.value if isinstance(leaf, Constant) else at[leaf] for leaf in self.leaves], self.spec)

    @cached_property
    def names(self) -> Mapping[int, str]:
        """What the outputs are called, by their path: `logits`, `hidden_states_0`, `output_1` of a tuple."""
        paths: dict[int, str] = {}
        for path, leaf in _paths(self.tree, ()):
            if isinstance(leaf, int):
                paths.setdefault(leaf, _name(path))
        return dict(zip(self.outputs, _distinct(paths[output] for output in self.outputs), strict=True))

    @property
    def tree(self) -> Any:
        """The structure with `leaves` in their places."""
        return unflatten(self.leaves, self.spec)

    def renumbered(self, places: Mapping[int, int]) -> Structure:
        """The same over the outputs of another program."""
        leaves = tuple(leaf if isinstance(leaf, Constant) else places[leaf] for leaf in self.leaves)
        return Structure(self.spec, leaves, places[self.prediction])


@dataclass(frozen=True)
class Results:
    """What a backbone returns in eval mode and in train mode."""

    evaluation: Structure
    training: Structure

    def of(self, *, training: bool) -> Structure:
        return self.training if training else self.evaluation

    @property
    def alike(self) -> bool:
        """Whether both modes return the same."""
        return self.evaluation == self.training

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What all outputs of the program are called; those of eval mode first, the others as `train_...`."""
        found = dict(self.evaluation.names)
        for output, name in self.training.names.items():
            found.setdefault(output, f"train_{name}")
        return tuple(found[output] for output in sorted(found))


def _name(path: tuple[Any, ...]) -> str:
    """`hidden_states_0` of `("hidden_states", 0)`; what does not begin like a name is an `output`."""
    name = "_".join(re.sub(r"\W+", "_", str(step)) for step in path)
    return name if name and not name[0].isdigit() else f"output_{name}".removesuffix("_")


def _distinct(wanted: Iterable[str]) -> Iterator[str]:
    taken: set[str] = set()
    for name in wanted:
        while name in taken:
            name += "_"
        taken.add(name)
        yield name


def children(tree: Any) -> list[tuple[Any, Any]] | None:
    """The parts of a node of a tree, with their keys, fields or positions; None of a leaf."""
    if isinstance(tree, Constant):
        return None
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    return None


def _paths(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    parts = children(tree)
    if parts is None:
        yield path, tree
    for key, part in parts or ():
        yield from _paths(part, (*path, key))
