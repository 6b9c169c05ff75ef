"""Tensors as parts of others: what is found is the tensor, bit for bit, and what is a part is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytimeify.deploy.shared_tensors import Array, Masked, Part, Pool


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def found(whole: Array, tensor: Array, name: str = "conv.weight") -> Part | Masked:
    pool = Pool()
    pool.add("conv.weight", whole)
    part = pool.find(name, tensor)
    assert part is not None
    assert part.source == "conv.weight"
    result = part.of(whole)
    assert result.dtype == tensor.dtype
    assert result.tobytes() == np.ascontiguousarray(tensor).tobytes()
    return part


def test_a_prefix_is_ranges() -> None:
    whole = random(16, 8, 3)
    assert found(whole, whole[:12, :6]) == Part("conv.weight", (slice(0, 12), slice(0, 6), slice(0, 3)))


def test_the_whole_is_found_under_any_name() -> None:
    whole = random(16, 8)
    assert found(whole, whole.copy(), "something.else") == Part("conv.weight", (slice(0, 16), slice(0, 8)))


@given(st.data())
def test_rows_and_columns_anywhere(data: st.DataObject) -> None:
    whole = random(24, 16)
    rows = data.draw(st.lists(st.integers(0, 23), min_size=8, max_size=24, unique=True))
    columns = data.draw(st.lists(st.integers(0, 15), min_size=8, max_size=16, unique=True))
    found(whole, whole[rows][:, columns])


def test_neighbours_are_a_range() -> None:
    whole = random(24, 16)
    part = found(whole, whole[4:12])
    assert isinstance(part, Part)
    assert part.places == (slice(4, 12), slice(0, 16))


def test_a_block_is_looked_for_in_its_layer() -> None:
    whole = random(16, 16)
    found(whole, whole[8:, 4:], "conv.1.weight")


def test_values_that_stand_several_times() -> None:
    whole = random(24, 16)
    whole[:, 3] = whole[5, :] = 0  # a dead channel, and one that nobody reads
    found(whole, whole[[0, 4, 5, 20, 21, 22]][:, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]])


def test_a_threshold_masks() -> None:
    whole = random(16, 16)
    part = found(whole, np.where(np.abs(whole) > 0.5, whole, 0).astype(np.float32))
    assert isinstance(part, Masked)
    assert isinstance(part.kept, float)


def test_a_mask_that_no_threshold_says() -> None:
    whole = random(16, 16)
    part = found(whole, np.where(whole > 0.5, whole, 0).astype(np.float32))
    assert isinstance(part, Masked)
    assert isinstance(part.kept, np.ndarray)


@pytest.mark.parametrize(
    "tensor",
    [
        random(16, 8) + 1,  # other values
        random(16, 8).astype(np.float64),
        random(16, 8)[:2, :2],  # not worth it
        -np.zeros((16, 8), np.float32),  # a negative zero is not zero
        random(16, 8, 1),
        np.concatenate([random(16, 8), random(16, 8)]),  # larger
    ],
)
def test_other_tensors_are_no_parts(tensor: Array) -> None:
    pool = Pool()
    pool.add("conv.weight", random(16, 8))
    pool.add("zeros.weight", np.zeros((16, 8), np.float32))
    assert pool.find("conv.weight", tensor) is None


def test_nothing_of_another_layer() -> None:
    pool = Pool()
    pool.add("conv.weight", random(16, 8))
    assert pool.find("fc.weight", random(16, 8)[:12]) is None
