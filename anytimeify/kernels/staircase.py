"""Which elements of a triangular weight exist: rows of a level read the columns of that level and of those before it.

A `Staircase` is that shape as numbers. Rows and columns of a level need not lie together: after a concatenation every
part has rows of every level. `blocks` merges neighbouring levels, so that fewer and larger products do the work, with
`holes` where a merged block has elements that the weight has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from typing import TypeAlias

from anytimeify.errors import ArgumentValueError

__all__ = ["Block", "Interval", "Rectangle", "Staircase", "ends_of", "staircase"]

Interval: TypeAlias = tuple[int, int]
"""First index and the one after the last."""
Rectangle: TypeAlias = tuple[Interval, Interval]
"""Rows and columns."""


@dataclass(frozen=True)
class Block:
    """Some neighbouring levels as one product: `rows` from `columns`, or, seen from the columns, `later` from `new`."""

    rows: tuple[Interval, ...]  # of these levels
    columns: tuple[Interval, ...]  # of these levels and all before
    new: tuple[Interval, ...]  # columns of these levels
    later: tuple[Interval, ...]  # rows of these levels and all after
    holes: tuple[Rectangle, ...]  # of the matrix `rows` x `columns`, what the weight has not
    later_holes: tuple[Rectangle, ...]  # of the matrix `later` x `new`


@dataclass(frozen=True, eq=False)
class Staircase:
    """Levels from the first on, each with rows, and each but the first with columns of its own. `staircase` makes them,
    one for each shape: what is equal is the same, and what is computed of it is computed once.
    """

    height: int  # rows of the whole matrix
    width: int
    rows: tuple[tuple[Interval, ...], ...]  # by level
    columns: tuple[tuple[Interval, ...], ...]  # new ones, by level
    empty_rows: tuple[Interval, ...]  # that read nothing
    empty_columns: tuple[Interval, ...]  # that nothing reads

    @cached_property
    def levels(self) -> int:
        return len(self.rows)

    @cached_property
    def kept(self) -> int:
        """Entries of the matrix that exist."""
        widths = accumulate(map(size_of, self.columns))
        return sum(size_of(rows) * width for rows, width in zip(self.rows, widths, strict=True))

    @cached_property
    def simple(self) -> bool:
        """Whether no level is scattered, so that every block is a part of the matrix that a view can be."""
        return all(
            len(block.rows) == len(block.columns) == len(block.new) == len(block.later) == 1
            for block in self.blocks(self.levels)
        )

    @cached_property
    def holes(self) -> tuple[Rectangle, ...]:
        """What does not exist."""
        everything = ((0, self.width),)
        return (
            *_rectangles(self.empty_rows, everything),
            *_rectangles(((0, self.height),), self.empty_columns),
            *self._holes(range(self.levels), ((0, self.height),), everything),
        )

    def blocks(self, count: int) -> tuple[Block, ...]:
        """As `count` products (or one per level, where there are fewer), with as little waste as so many allow."""
        return _blocks(self, min(count, self.levels))

    def _holes(self, group: range, rows: tuple[Interval, ...], columns: tuple[Interval, ...]) -> tuple[Rectangle, ...]:
        """What the levels of `group` do not have of the matrix that holds these rows and columns and no others."""
        return tuple(
            rectangle
            for level in group
            for rectangle in _rectangles(
                _inside(self.rows[level], rows), _inside(joined(self.columns[level + 1 : group.stop]), columns)
            )
        )


@cache
def staircase(height: int, width: int, rows: tuple[int, ...], columns: tuple[int, ...], levels: int) -> Staircase:
    """From the ends of the rows and of the columns of every level, `levels` ends for each part of a concatenation.

    Raises `ValueError` where they are no ends of intervals from 0 on to `height`, and to `width` at most.
    """
    for name, ends, last in (("rows", rows, height), ("columns", columns, width)):
        if levels < 1 or not ends or len(ends) % levels or list(ends) != sorted(ends) or not 0 <= ends[0] <= ends[-1]:
            raise ArgumentValueError(f"{name}={list(ends)} are not the ends of {levels} levels")
        if ends[-1] > last or (name == "rows" and ends[-1] != last):
            raise ArgumentValueError(f"{name}={list(ends)} do not fit a weight of {height} x {width}")
    by_row, by_column = _by_level(rows, levels), _by_level(columns, levels)
    kept_rows: list[tuple[Interval, ...]] = []
    kept_columns: list[tuple[Interval, ...]] = []
    empty_rows: tuple[Interval, ...] = ()
    waiting: tuple[Interval, ...] = ()  # columns that no rows have met yet
    for level in range(levels):
        waiting = joined([waiting, by_column[level]])
        if not by_row[level]:
            continue
        if waiting:
            kept_rows.append(by_row[level])
            kept_columns.append(waiting)
            waiting = ()
        elif kept_rows:
            kept_rows[-1] = joined([kept_rows[-1], by_row[level]])
        else:
            empty_rows = joined([empty_rows, by_row[level]])
    unread = joined([waiting, ((columns[-1], width),)])
    return Staircase(height, width, tuple(kept_rows), tuple(kept_columns), empty_rows, unread)


def ends_of(levels: Sequence[Iterable[int]]) -> tuple[int, ...]:
    """The inverse: ends of the intervals, part by part, of the indices that every level has; they must be all from 0
    on, each in one level."""
    level_of = {int(index): level for level, indices in enumerate(levels) for index in indices}
    ends: list[int] = []
    part = 0  # levels of the present part whose end is known
    for index in range(len(level_of)):
        level = level_of[index]
        if level == part - 1:
            ends[-1] = index + 1
            continue
        if level < part - 1:
            ends += [index] * (len(levels) - part)
            part = 0
        ends += [*[index] * (level - part), index + 1]
        part = level + 1
    return (*ends, *[len(level_of)] * (len(levels) - part))


def size_of(intervals: Iterable[Interval]) -> int:
    return sum(end - start for start, end in intervals)


def joined(parts: Iterable[Iterable[Interval]]) -> tuple[Interval, ...]:
    """All the intervals in order, neighbours made one, empty ones left out."""
    result: list[Interval] = []
    for start, end in sorted(interval for part in parts for interval in part):
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], end)
        elif start < end:
            result.append((start, end))
    return tuple(result)


def _by_level(ends: tuple[int, ...], levels: int) -> list[tuple[Interval, ...]]:
    intervals = list(zip((0, *ends), ends, strict=False))
    return [joined([intervals[level::levels]]) for level in range(levels)]


def _inside(intervals: Iterable[Interval], place: Sequence[Interval]) -> tuple[Interval, ...]:
    """Intervals of a tensor as intervals of what is left of it when only `place` is taken."""
    starts = accumulate((end - start for start, end in place), initial=0)
    found = [
        (offset + max(start, first) - first, offset + min(end, last) - first)
        for (first, last), offset in zip(place, starts, strict=False)
        for start, end in intervals
        if max(start, first) < min(end, last)
    ]
    return joined([found])


def _rectangles(rows: Iterable[Interval], columns: Sequence[Interval]) -> list[Rectangle]:
    return [(row, column) for row in rows for column in columns]


@cache
def _blocks(shape: Staircase, count: int) -> tuple[Block, ...]:
    result = []
    for group in _groups(shape, count):
        rows, columns = joined(shape.rows[group.start : group.stop]), joined(shape.columns[: group.stop])
        new, later = joined(shape.columns[group.start : group.stop]), joined(shape.rows[group.start :])
        holes, later_holes = shape._holes(group, rows, columns), shape._holes(group, later, new)
        result.append(Block(rows, columns, new, later, holes, later_holes))
    return tuple(result)


def _groups(shape: Staircase, count: int) -> list[range]:
    """The levels in `count` runs whose products have the fewest elements: the best of every prefix, one run more at a
    time."""
    heights = list(accumulate(map(size_of, shape.rows), initial=0))
    widths = list(accumulate(map(size_of, shape.columns), initial=0))
    best: dict[int, tuple[int, list[range]]] = {0: (0, [])}
    for _ in range(count):
        best = {
            end: min(
                (
                    (entries + (heights[end] - heights[start]) * widths[end], [*runs, range(start, end)])
                    for start, (entries, runs) in best.items()
                    if start < end
                ),
                key=lambda item: item[0],
            )
            for end in range(1, shape.levels + 1)
            if any(start < end for start in best)
        }
    return best[shape.levels][1] if shape.levels else []
