"""The policy alone: on tables of measured latencies, with random arrivals and recorded bursts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytimeify.serving.policy import Plan, Table, admits, arrival_rate, plan
from tests.serving.simulation import poisson, simulate

# A ResNet-50 of four widths on two cores, and one on a device where a batch costs little more than a sample.
PROCESSOR = Table.of(
    [
        {1: 6.0, 2: 11.0, 4: 21.0, 8: 41.0},
        {1: 14.0, 2: 27.0, 4: 53.0, 8: 105.0},
        {1: 26.0, 2: 51.0, 4: 101.0, 8: 200.0},
        {1: 42.0, 2: 83.0, 4: 165.0, 8: 328.0},
    ]
)
DEVICE = Table.of(
    [
        {1: 2.0, 2: 2.1, 4: 2.3, 8: 2.9},
        {1: 3.0, 2: 3.3, 4: 4.0, 8: 5.6},
        {1: 4.0, 2: 4.8, 4: 6.5, 8: 10.0},
    ]
)
BURST = [0, 1, 1, 2, 3, 3, 4, 90, 91, 91, 92, 93, 200, 420, 421, 421, 421, 422, 423, 424, 425, 426, 900]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    sizes = draw(st.sampled_from([(1,), (1, 2), (1, 2, 4), (1, 3, 8)]))
    times = st.floats(0.1, 100.0)
    return Table.of([{size: draw(times) for size in sizes} for _ in range(draw(st.integers(1, 4)))])


AGES = st.lists(st.floats(0.0, 300.0), min_size=1, max_size=20).map(lambda ages: sorted(ages, reverse=True))
LIMITS = st.floats(1.0, 500.0)


@given(tables(), AGES, st.floats(0.0, 1.0), LIMITS, st.floats(0.0, 300.0))
def test_the_level_falls_as_more_wait_for_longer_and_come_faster(
    table: Table, ages: list[float], rate: float, slo: float, more: float
) -> None:
    level = plan(ages, rate, table, slo).level
    newest = min(more, ages[-1])
    assert plan([*ages, newest], rate, table, slo).level <= level
    assert plan([age + more for age in ages], rate, table, slo).level <= level
    assert plan(ages, rate + more, table, slo).level <= level
    assert plan(ages, rate, table, slo + more).level >= level


@given(tables(), AGES, st.floats(0.0, 1.0), LIMITS)
def test_a_plan_is_one_that_can_be_carried_out(table: Table, ages: list[float], rate: float, slo: float) -> None:
    level, batch = plan(ages, rate, table, slo)
    assert 0 <= level < len(table.ms)
    assert 1 <= batch <= min(len(ages), table.sizes[-1])


@given(tables(), st.floats(1.0, 500.0))
def test_without_load_the_best_level_that_fits_answers(table: Table, slo: float) -> None:
    fitting = [level for level in range(len(table.ms)) if table.of_batch(level, 1) <= 0.8 * slo]
    assert plan([0.0], 0.0, table, slo) == Plan(max(fitting, default=0), 1)


@given(tables(), st.lists(st.floats(0.0, 500.0), max_size=60).map(sorted), LIMITS)
def test_whoever_is_admitted_is_answered_in_time(table: Table, arrivals: list[float], slo: float) -> None:
    outcome = simulate(arrivals, table, slo)
    assert len(outcome.ages) + outcome.rejected == len(arrivals)
    assert max(outcome.ages, default=0.0) <= slo * (1 + 1e-9)


@given(tables(), AGES, st.floats(0.0, 100.0), LIMITS)
def test_whoever_the_cheapest_level_can_answer_alone_is_admitted(
    table: Table, ages: list[float], busy: float, slo: float
) -> None:
    """One at a time, the oldest first: there is a plan, so nobody is sent away."""
    alone = table.of_batch(0, 1)
    everyone = [*ages, 0.0]
    if all(busy + alone * (place + 1) + age <= slo for place, age in enumerate(everyone)):
        assert admits(ages, busy, table, slo)
    if busy + alone > slo:
        assert not admits(ages, busy, table, slo)


@pytest.mark.parametrize("table", [PROCESSOR, DEVICE])
def test_little_load_is_served_by_the_full_level(table: Table) -> None:
    full = len(table.ms) - 1
    outcome = simulate(poisson(0.05 / table.of_batch(full, 1), 60_000), table, 8 * table.of_batch(full, 1))
    assert outcome.rejected == 0
    assert outcome.mean_level > full - 0.02


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("table", [PROCESSOR, DEVICE])
def test_a_surge_is_answered_in_time_and_nothing_is_dropped(table: Table, seed: int) -> None:
    """Three times what the full level can serve; between the levels that fall behind and the cheapest."""
    full = len(table.ms) - 1
    per_ms = 3 * max(size / ms for size, ms in zip(table.sizes, table.ms[full], strict=True))
    slo = 5 * table.of_batch(full, 1)
    noise = random.Random(seed)
    arrivals = poisson(min(per_ms, 0.8 / table.of_batch(0, 1) * 8), 20_000, seed)
    outcome = simulate(arrivals, table, slo, lambda level, batch: table.of_batch(level, batch) * noise.uniform(0.9, 1))
    assert outcome.p99 <= slo
    if per_ms < 0.8 * max(size / ms for size, ms in zip(table.sizes, table.ms[0], strict=True)):
        assert outcome.rejected == 0
        assert 0 < outcome.mean_level < full


def test_recorded_bursts_keep_the_limit() -> None:
    outcome = simulate(BURST, PROCESSOR, 120.0)
    assert outcome.rejected == 0
    assert max(outcome.ages) <= 120.0
    assert outcome.levels[0] == 3  # nobody else was there
    assert outcome.levels[-1] == 3  # nor at the end
    assert 0 in outcome.levels


def test_more_than_the_cheapest_level_can_serve_is_sent_away() -> None:
    outcome = simulate(poisson(1.0, 5_000), PROCESSOR, 100.0)
    served = len(outcome.ages) / 5_000
    assert 0.9 * 8 / 41 < served < 1.1 / 5
    assert max(outcome.ages) <= 100.0
    assert outcome.mean_level < 0.2


def test_batches_are_as_large_as_pays() -> None:
    assert plan([0.0] * 8, 0.0, DEVICE, 100.0) == Plan(2, 4)  # four after 6.5 ms, four after 13: or all after 10
    assert plan([0.0] * 8, 0.0, PROCESSOR, 1000.0) == Plan(3, 1)  # a batch of eight would be there after 328 ms


def test_tables_grow_with_levels_and_batches() -> None:
    table = Table.of([{1: 2.0, 4: 1.0}, {1: 1.0, 4: 3.0}])
    assert table == Table((1, 4), ((2.0, 2.0), (2.0, 3.0)))
    assert [table.of_batch(1, samples) for samples in (1, 2, 3, 4)] == [2.0, 3.0, 3.0, 3.0]


def test_arrivals_count_for_a_while() -> None:
    assert arrival_rate([], 5.0, 10.0) == arrival_rate([5.0], 5.0, 10.0) == 0.0
    assert arrival_rate([5.0] * 21, 5.0, 10.0) == 2.0
    assert arrival_rate([0.0, 1.0, 99.0, 100.0, 101.0], 101.0, 10.0) == 0.2
