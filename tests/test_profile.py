"""The default profile of Hypothesis: a property that fails says so within seconds."""

from __future__ import annotations

import time

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import SHRINKING_SECONDS

pytestmark = pytest.mark.skipif(settings.get_current_profile_name() != "default", reason="others search at length")


def test_a_failing_property_is_shrunk_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that each run moves on by a second, so that it holds on every machine."""
    now, failed = 0.0, 0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    @given(st.lists(st.integers(), min_size=5))
    def all_are_small(values: list[int]) -> None:
        nonlocal now, failed
        now += 1
        failed += sum(map(abs, values)) > 1000
        assert sum(map(abs, values)) <= 1000

    with pytest.raises(AssertionError):
        all_are_small()
    assert 2 <= failed <= SHRINKING_SECONDS + 5  # with those that find it, try the limit and report it


def test_a_failing_property_is_not_explained() -> None:
    assert set(settings().phases) == set(Phase) - {Phase.explain}
