"""How a chain of graphs is run: one after the other, over values that are handed on by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Link", "links", "run"]


@dataclass(frozen=True)
class Link:
    """What one graph of a chain reads and gives, by name, and which values nobody reads after it."""

    reads: tuple[str, ...]
    gives: tuple[str, ...]
    done: tuple[str, ...]


def links(inputs: Sequence[str], steps: Iterable[tuple[Sequence[str], Sequence[str]]]) -> tuple[Link, ...]:
    """Links of steps given as (reads, gives)."""
    chain = [(tuple(reads), tuple(gives)) for reads, gives in steps]
    result: list[Link] = []
    known = set(inputs)
    for index, (reads, gives) in enumerate(chain):
        known.update(gives)
        later = {name for following, _ in chain[index + 1 :] for name in following}
        result.append(Link(reads, gives, tuple(sorted(known - later))))
        known &= later
    return tuple(result)


def run(
    graphs: Iterable[Callable[..., Sequence[Any]]], chain: Sequence[Link], known: MutableMapping[str, Any]
) -> Iterator[Any]:
    """The last value that each graph gives. `known` holds the inputs, and in between exactly the values that later
    graphs read: whoever iterates may change them (leave out samples), or stop."""
    for graph, link in zip(graphs, chain, strict=True):
        results = graph(*[known[name] for name in link.reads])
        known.update(zip(link.gives, results, strict=True))
        for name in link.done:
            del known[name]
        yield results[-1]
