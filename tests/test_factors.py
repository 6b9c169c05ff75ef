"""The algebra of dimensions: what unifies, what refines, what is pinned."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytimeify.analysis.axes import arrangement
from anytimeify.ir import Size
from anytimeify.rules.factors import (
    ONE,
    Expr,
    Factor,
    Pin,
    Product,
    Sum,
    Where,
    cut,
    first_pin,
    is_pinned,
    leaves,
    pin,
    resolve,
    size_of,
    split,
    unify,
)

HERE = Where("node", "op")


def free(size: int) -> Factor:
    return Factor(Size(size), free=True)


def fixed(size: int) -> Factor:
    return Factor(Size(size), Pin("a reason"))


def sizes(*values: int) -> list[Size]:
    return [Size(value) for value in values]


def test_equal_factors_become_one() -> None:
    a, b = free(8), free(8)
    unify(a, b, HERE)
    assert resolve(a) is resolve(b)
    assert not is_pinned(a)


def test_a_pin_reaches_what_is_unified() -> None:
    a, b, c = free(8), free(8), free(8)
    unify(a, b, HERE)
    unify(b, fixed(8), HERE)
    unify(c, a, HERE)
    assert first_pin(c) == Pin("a reason")


def test_different_sizes_are_pinned_with_the_node() -> None:
    a, b = free(8), free(12)
    unify(a, b, HERE)
    reason = first_pin(a)
    assert reason is not None
    assert reason.where == HERE
    assert "8" in reason.reason
    assert "12" in reason.reason
    assert is_pinned(b)


def test_split_refines_everywhere() -> None:
    qkv, same = free(96), free(96)
    unify(qkv, same, HERE)
    pieces = split(qkv, sizes(3, 8, 4), HERE)
    assert pieces is not None
    assert resolve(same) == Product(tuple(resolve(piece) for piece in pieces))


def test_split_inside_a_product_and_back() -> None:
    flat = Product((free(16), fixed(7), fixed(7)))
    pieces = split(flat, sizes(16, 49), HERE)
    assert pieces is not None
    assert resolve(pieces[0]) == flat.parts[0]
    assert is_pinned(pieces[1])


def test_pinned_dimensions_never_fail() -> None:
    a, b = Product((fixed(2), fixed(7))), Product((fixed(7), fixed(2)))
    unify(a, b, HERE)
    assert split(a, sizes(7, 2), HERE) is not None
    assert cut(a, sizes(3, 11), HERE) is not None


def test_free_factors_that_do_not_divide_fail() -> None:
    assert split(Product((free(6), free(4))), sizes(8, 3), HERE) is None


def test_products_line_up_by_refining() -> None:
    a, b = Product((free(4), free(16))), Product((free(8), free(8)))
    unify(a, b, HERE)
    assert resolve(a) == resolve(b)
    assert [leaf.size for leaf in leaves(resolve(a))] == sizes(4, 2, 8)


def test_sums_line_up_by_cutting() -> None:
    a, b = Sum((free(3), free(5))), Sum((free(4), free(4)))
    unify(a, b, HERE)
    assert resolve(a) == resolve(b)
    assert [leaf.size for leaf in leaves(resolve(a))] == sizes(3, 1, 4) or size_of(resolve(a)) == Size(8)


def test_equal_parts_meet_a_factor() -> None:
    q, k, v = free(32), free(32), free(32)
    pieces = split(Sum((q, k, v)), sizes(3, 8, 4), HERE)
    assert pieces is not None
    assert resolve(q) == resolve(k) == resolve(v)
    assert is_pinned(pieces[0])
    assert not is_pinned(pieces[1])


def test_a_shuffle_gives_halves_of_the_same_size_and_fixes_the_order() -> None:
    channels = free(29)
    halves = cut(Product((channels, fixed(2))), sizes(29, 29), HERE)
    assert halves == [channels, channels]
    assert channels.ordered is not None
    assert channels.pin is None


def test_heads_are_cut_between_parts() -> None:
    heads, width = free(6), free(16)
    halves = cut(Product((heads, width)), sizes(32, 64), HERE)
    assert halves is not None
    assert [size_of(half) for half in halves] == sizes(32, 64)
    assert isinstance(resolve(heads), Sum)


def test_size_one_vanishes() -> None:
    assert resolve(Product((Factor(Size(1)), Factor(Size(1))))) == ONE


@st.composite
def expressions(draw: st.DrawFn, depth: int = 2) -> Expr:
    kind = draw(st.sampled_from(["factor", "product", "sum"] if depth else ["factor"]))
    if kind == "factor":
        return free(draw(st.integers(1, 6))) if draw(st.booleans()) else fixed(draw(st.integers(1, 6)))
    parts = tuple(draw(st.lists(expressions(depth - 1), min_size=1, max_size=3)))
    return Product(parts) if kind == "product" else Sum(parts)


@given(expressions())
def test_resolving_keeps_the_size_and_is_idempotent(expr: Expr) -> None:
    resolved = resolve(expr)
    assert size_of(resolved) == size_of(expr)
    assert resolve(resolved) == resolved
    assert len(arrangement(expr, {})) == size_of(expr).coefficient


@given(expressions(), st.data())
def test_refinements_keep_the_size(expr: Expr, data: st.DataObject) -> None:
    total = size_of(expr).coefficient
    outer = data.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
    pieces = split(expr, sizes(outer, total // outer), HERE)
    if pieces is not None:
        assert [size_of(piece).coefficient for piece in pieces] == [outer, total // outer]
    if total > 1:
        at = data.draw(st.integers(1, total - 1))
        parts = cut(expr, sizes(at, total - at), HERE)
        if parts is not None:
            assert [size_of(part).coefficient for part in parts] == [at, total - at]
    assert size_of(resolve(expr)).coefficient == total


@given(expressions(), expressions())
def test_unifying_is_symmetric_in_what_it_pins(one: Expr, other: Expr) -> None:
    before = size_of(one), size_of(other)
    unify(one, other, HERE)
    assert (size_of(resolve(one)), size_of(resolve(other))) == before
    if before[0] != before[1]:
        assert is_pinned(one)
        assert is_pinned(other)


@given(expressions(), st.randoms())
def test_kept_entries_are_nested(expr: Expr, random: object) -> None:
    factors = list(dict.fromkeys(leaves(resolve(expr))))
    small = {f: np.arange(max(1, f.size.coefficient // 2)) for f in factors}
    large = {f: np.arange(max(1, math.ceil(f.size.coefficient * 3 / 4))) for f in factors}
    kept = [set(arrangement(expr, chosen).tolist()) for chosen in (small, large, {})]
    assert kept[0] <= kept[1] <= kept[2]


@pytest.mark.parametrize("reason", ["first", "second"])
def test_the_first_reason_stays(reason: str) -> None:
    factor = free(4)
    pin(factor, Pin(reason))
    pin(factor, Pin("later"))
    assert first_pin(factor) == Pin(reason)
