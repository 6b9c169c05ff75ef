"""Which entries a triangular weight has, and how they are covered by products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytimeify.kernels.staircase import Interval, Rectangle, ends_of, staircase

Mask = npt.NDArray[np.bool_]


@st.composite
def levels_of_indices(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """The level of every row and of every column."""
    levels = draw(st.integers(1, 5))
    one = st.integers(0, levels - 1)
    return draw(st.lists(one, min_size=1, max_size=12)), draw(st.lists(one, max_size=12)), levels


def by_level(levels_of: list[int], levels: int) -> list[list[int]]:
    return [[index for index, level in enumerate(levels_of) if level == one] for one in range(levels)]


def indices(intervals: tuple[Interval, ...]) -> list[int]:
    return [index for start, end in intervals for index in range(start, end)]


def without(mask: Mask, holes: tuple[Rectangle, ...]) -> Mask:
    for (top, bottom), (start, end) in holes:
        mask[top:bottom, start:end] = False
    return mask


@given(levels_of_indices())
def test_blocks_are_the_mask(case: tuple[list[int], list[int], int]) -> None:
    rows, columns, levels = case
    mask = np.asarray(columns)[None] <= np.asarray(rows)[:, None]
    ends = (ends_of(by_level(rows, levels)), ends_of(by_level(columns, levels)))
    shape = staircase(len(rows), len(columns), *ends, levels)
    assert shape.kept == mask.sum()
    assert np.array_equal(without(np.ones_like(mask), shape.holes), mask)
    for count in range(1, levels + 2):
        by_rows, by_columns = np.zeros_like(mask), np.zeros_like(mask)
        for block in shape.blocks(count):
            for found, tall, wide, holes in (
                (by_rows, block.rows, block.columns, block.holes),
                (by_columns, block.later, block.new, block.later_holes),
            ):
                place = np.ix_(indices(tall), indices(wide))
                assert not found[place].any()
                found[place] = without(np.ones((len(indices(tall)), len(indices(wide))), dtype=bool), holes)
        assert np.array_equal(by_rows, mask)
        assert np.array_equal(by_columns, mask)


def test_scattered_levels() -> None:
    """Two parts of a concatenation, each with rows of every level."""
    parts = [[0, 1, 6], [2, 3, 7], [4, 5, 8]]
    assert ends_of(parts) == (2, 4, 6, 7, 8, 9)
    shape = staircase(9, 9, ends_of(parts), ends_of(parts), 3)
    assert shape.blocks(3)[1].rows == ((2, 4), (7, 8))
    assert shape.blocks(3)[1].columns == ((0, 4), (6, 8))
    assert shape.blocks(3)[1].later == ((2, 6), (7, 9))


def test_merged_levels_waste_little() -> None:
    ends = tuple(range(1, 9))
    shape = staircase(8, 8, ends, ends, 8)
    assert [block.rows for block in shape.blocks(2)] == [((0, 4),), ((4, 8),)]
    assert shape.blocks(2)[0].holes == (((0, 1), (1, 4)), ((1, 2), (2, 4)), ((2, 3), (3, 4)))
    assert len(shape.blocks(8)) == len(shape.blocks(100)) == 8
    assert not any(block.holes for block in shape.blocks(8))


def test_levels_without_rows_or_columns() -> None:
    shape = staircase(6, 6, (2, 2, 4, 6), (0, 3, 3, 4), 4)
    assert (shape.empty_rows, shape.empty_columns) == (((0, 2),), ((4, 6),))
    assert (shape.rows, shape.columns) == ((((2, 4),), ((4, 6),)), (((0, 3),), ((3, 4),)))
    assert shape.kept == 2 * 3 + 2 * 4
    assert staircase(4, 4, (4,), (0,), 1).kept == 0


@pytest.mark.parametrize(
    ("rows", "columns", "levels", "message"),
    [
        ((2, 4), (2, 4), 3, "are not the ends of 3 levels"),
        ((4, 2), (2, 4), 2, "are not the ends of 2 levels"),
        ((), (2, 4), 2, "are not the ends of 2 levels"),
        ((2, 4), (2, 4), 0, "are not the ends of 0 levels"),
        ((2, 3), (2, 4), 2, "do not fit a weight of 4 x 4"),
        ((2, 4), (2, 5), 2, "do not fit a weight of 4 x 4"),
        ((-2, 4), (2, 4), 2, "are not the ends"),
    ],
)
def test_refuses_what_is_no_shape(rows: tuple[int, ...], columns: tuple[int, ...], levels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        staircase(4, 4, rows, columns, levels)
