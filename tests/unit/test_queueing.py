from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.queueing import (
    MOST_DISPATCHERS,
    OCCUPANCY_FACTOR,
    OVERRUN_FACTOR,
    dispatchers,
    occupancy,
    queue_wait,
    remaining,
    slowdown,
    stale_count,
    two_of,
    utilization,
)

quick = settings(deadline=None, max_examples=100)

counts = st.one_of(st.integers(0, 200).map(float), st.floats(0, 200))
slots = st.integers(1, 64)
seconds = st.floats(0.01, 1e4)


# --- waiting for a slot


@pytest.mark.parametrize(
    ("n", "slots", "expected"),
    [(0, 2, 0.0), (1, 2, 0.0), (2, 2, 4.0), (3, 2, 8.0), (5, 2, 16.0), (1, 1, 8.0), (100, None, 0.0)],
)
def test_a_request_waits_for_those_before_it(n: float, slots: int | None, expected: float) -> None:
    assert queue_wait(n, slots, 8.0) == expected


@quick
@given(n=counts, more=counts, slots=slots, service=seconds)
def test_a_wait_is_never_negative_and_never_shorter_for_more(
    n: float, more: float, slots: int, service: float
) -> None:
    assert 0 <= queue_wait(n, slots, service) <= queue_wait(n + more, slots, service)
    assert queue_wait(n + more, slots + 1, service) <= queue_wait(n + more, slots, service)


# --- how busy a pool is, and what that costs


@quick
@given(st.lists(st.tuples(counts, slots), max_size=6), st.randoms())
def test_utilization_is_a_share_and_the_order_of_the_servers_does_not_matter(
    loads: list[tuple[float, int]], chance: object
) -> None:
    share = utilization(loads)
    assert 0 <= share <= 1
    chance.shuffle(loads)  # type: ignore[attr-defined]
    assert utilization(loads) == share


def test_utilization_goes_by_slots_and_not_by_queues() -> None:
    assert utilization([]) == 0
    assert utilization([(0, 4), (2, 2)]) == 2 / 6
    assert utilization([(50, 2), (0, 6)]) == 2 / 8


@quick
@given(n=counts, slots=st.one_of(st.none(), slots), service=seconds, share=st.floats(0, 1))
def test_occupancy_is_never_negative_and_nothing_where_nobody_is(
    n: float, slots: int | None, service: float, share: float
) -> None:
    cost = occupancy(n, slots, service, share)
    assert cost >= 0
    if slots is None or not n or not share:
        assert cost == 0
    else:
        assert cost == pytest.approx(OCCUPANCY_FACTOR * share * service * n / slots)


# --- what is left of something


def test_what_is_overdue_is_expected_to_go_on_for_half_as_long_as_it_is_late() -> None:
    assert remaining(30, 0) == 30
    assert remaining(30, 20) == 10
    assert remaining(30, 29.9) == 3  # never about to end at every moment
    assert remaining(30, 50) == 10


@quick
@given(expected=seconds, elapsed=seconds)
def test_something_is_always_left(expected: float, elapsed: float) -> None:
    assert remaining(expected, elapsed) > 0


def test_a_little_late_is_not_slow() -> None:
    assert slowdown(0.0) == slowdown(OVERRUN_FACTOR) == 1.0
    assert slowdown(3.5) == 3.5


# --- counts that are old


def test_an_old_count_drains_at_the_pace_of_the_server() -> None:
    # Two slots, four seconds a request: one leaves every two seconds.
    assert stale_count(6, 4.0, 2, 4.0, own=0, dispatchers=1) == 4
    assert stale_count(6, 400.0, 2, 4.0, own=0, dispatchers=1) == 0
    assert stale_count(1, 2.0, 2, 4.0, own=0, dispatchers=1) == 0.5
    assert stale_count(6, 4.0, None, 4.0, own=0, dispatchers=1) == 0


def test_others_are_assumed_to_send_as_much_as_we_do() -> None:
    assert stale_count(0, 1.0, 2, 4.0, own=3, dispatchers=5) == 12
    assert stale_count(0, 1.0, 2, 4.0, own=3, dispatchers=1) == 0


@quick
@given(
    seen=counts,
    age=st.floats(0, 1e5),
    slots=st.one_of(st.none(), slots),
    service=st.floats(0, 1e4),
    own=counts,
    others=st.floats(0, 64),
)
def test_an_old_count_is_never_negative(
    seen: float, age: float, slots: int | None, service: float, own: float, others: float
) -> None:
    assert stale_count(seen, age, slots, service, own, others) >= 0


@quick
@given(busy=counts, own=counts)
def test_there_is_at_least_one_dispatcher_and_a_bound(busy: float, own: float) -> None:
    assert 1 <= dispatchers(busy, own) <= MOST_DISPATCHERS


# --- drawing two

weights = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=8)
draw = st.floats(0, 1, exclude_max=True)


@quick
@given(weights=weights, draws=st.tuples(draw, draw))
def test_two_are_drawn_and_never_the_same_twice(weights: list[float], draws: tuple[float, float]) -> None:
    first, second = two_of(weights, draws)
    assert {first, second} <= set(range(len(weights)))
    assert (first == second) == (len(weights) == 1)


def test_two_are_drawn_in_proportion() -> None:
    weights, steps = [1.0, 3.0, 4.0], 160
    grid = [(i + 0.5) / steps for i in range(steps)]
    drawn = Counter(two_of(weights, (a, b)) for a in grid for b in grid)
    total = steps * steps
    for first in range(3):
        share = sum(n for (one, _), n in drawn.items() if one == first) / total
        assert share == pytest.approx(weights[first] / 8, abs=0.01)
        for second in {0, 1, 2} - {first}:
            expected = weights[first] / 8 * weights[second] / (8 - weights[first])
            assert drawn[first, second] / total == pytest.approx(expected, abs=0.01)


def test_a_draw_at_the_very_end_finds_the_last() -> None:
    almost_one = math.nextafter(1.0, 0.0)
    assert two_of([0.1] * 10, (almost_one, almost_one)) == (9, 8)
    assert two_of([1.0, 2.0], (0.0, 0.0)) == (0, 1)
