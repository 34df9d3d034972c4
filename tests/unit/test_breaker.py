from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.breaker import (
    CLOSED,
    JITTER,
    LEAST_SHARE,
    LONGEST_OPEN,
    SHORTEST_OPEN,
    SLOW_START_SECONDS,
    WELL_SECONDS,
    WINDOW_SECONDS,
    Breaker,
    answered,
    came_back,
    failed,
    newer,
    phase,
    share,
    succeeded,
)

NOW = 1_000_000.0
MIDDLE = 0.5  # no jitter
MOST = LONGEST_OPEN * (1 + JITTER) + 1e-6  # for rounding


def opened(now: float = NOW, *, refused: bool = False) -> Breaker:
    return failed(CLOSED, now, at_once=True, refused=refused, draw=MIDDLE)


def open_seconds(b: Breaker, now: float) -> float:
    assert b.until is not None
    return b.until - now


# --- opening


def test_one_that_was_never_used_is_closed() -> None:
    assert phase(CLOSED, NOW) == "closed"
    assert share(CLOSED, NOW) == 1.0


def test_the_third_failure_in_a_row_opens() -> None:
    b = CLOSED
    for n, expected in enumerate(["closed", "closed", "open"]):
        b = failed(b, NOW + n, draw=MIDDLE)
        assert phase(b, NOW + n) == expected


def test_a_success_in_between_begins_the_count_anew() -> None:
    b = CLOSED
    for _ in range(2):
        for _ in range(2):
            b = failed(b, NOW, draw=MIDDLE)
        b = succeeded(b, NOW)
    assert phase(failed(b, NOW, draw=MIDDLE), NOW) == "closed"


def test_an_answer_is_a_sign_of_life_and_no_success() -> None:
    b = failed(failed(CLOSED, NOW, draw=MIDDLE), NOW, draw=MIDDLE)
    b = answered(b, NOW)
    assert phase(failed(b, NOW, draw=MIDDLE), NOW) == "closed"
    assert answered(opened(), NOW) == opened()
    assert answered(CLOSED, NOW) is CLOSED


@pytest.mark.parametrize("refused", [True, False])
def test_silence_and_refusal_open_at_once(refused: bool) -> None:
    b = failed(CLOSED, NOW, at_once=not refused, refused=refused, draw=MIDDLE)
    assert phase(b, NOW) == "open"
    assert b.refused is refused


@pytest.mark.parametrize("gap", [0.0, 1.0, 2.9])
def test_half_of_ten_results_within_the_window_open(gap: float) -> None:
    b, now = CLOSED, NOW
    for n in range(10):
        assert phase(b, now) == "closed", n
        now += gap
        b = succeeded(b, now) if n % 2 == 0 else failed(b, now, draw=MIDDLE)
    assert phase(b, now) == "open"


def test_less_than_half_do_not_open() -> None:
    b = CLOSED
    for n in range(300):
        b = failed(b, NOW + n / 10, draw=MIDDLE) if n % 5 < 2 else succeeded(b, NOW + n / 10)
    assert phase(b, NOW + 30) == "closed"


def test_results_that_left_the_window_do_not_count() -> None:
    b = CLOSED
    for n in range(9):
        b = succeeded(b, NOW) if n % 2 else failed(b, NOW, draw=MIDDLE)
    later = NOW + WINDOW_SECONDS
    b = failed(succeeded(b, later), later, draw=MIDDLE)
    assert phase(b, later) == "closed"


def test_many_earlier_successes_speak_for_it() -> None:
    b = CLOSED
    for _ in range(100):
        b = succeeded(b, NOW)
    for n in range(20):
        b = succeeded(b, NOW + 1) if n % 2 else failed(b, NOW + 1, draw=MIDDLE)
    assert phase(b, NOW + 1) == "closed"


# --- open, half-open, closed again


def test_it_opens_for_five_seconds_then_twice_as_long_each_time() -> None:
    b, now, spans = CLOSED, NOW, []
    for _ in range(8):
        b = failed(b, now, at_once=True, draw=MIDDLE)
        spans.append(open_seconds(b, now))
        assert phase(b, now) == "open"
        now += spans[-1]
        assert phase(b, now) == "half_open"
    assert spans == pytest.approx([5, 10, 20, 40, 80, 120, 120, 120])


@pytest.mark.parametrize(("draw", "seconds"), [(0.0, 4.0), (0.5, 5.0), (0.999_999, 6.0)])
def test_chance_moves_the_end_by_a_fifth(draw: float, seconds: float) -> None:
    assert open_seconds(failed(CLOSED, NOW, at_once=True, draw=draw), NOW) == pytest.approx(seconds, rel=1e-4)


def test_a_failure_of_any_kind_ends_a_trial() -> None:
    now = NOW + SHORTEST_OPEN
    b = failed(opened(), now, draw=MIDDLE)
    assert open_seconds(b, now) == pytest.approx(2 * SHORTEST_OPEN)


def test_failures_of_requests_from_before_count_once() -> None:
    b = opened()
    for n in range(50):
        b = failed(b, NOW + n / 50, at_once=True, draw=MIDDLE)
    assert b == opened()


@pytest.mark.parametrize("after", [0.0, SHORTEST_OPEN, 60.0])
def test_one_success_closes_it(after: float) -> None:
    b = succeeded(opened(), NOW + after)
    assert phase(b, NOW + after) == "closed"
    assert b.in_a_row == 0


def test_one_that_fails_again_soon_stays_open_longer() -> None:
    b = succeeded(opened(), NOW + 5)
    assert open_seconds(failed(b, NOW + 10, at_once=True, draw=MIDDLE), NOW + 10) == pytest.approx(10)


def test_one_that_stayed_well_begins_anew() -> None:
    b, now = succeeded(opened(), NOW + 5), NOW + 5 + WELL_SECONDS
    assert open_seconds(failed(b, now, at_once=True, draw=MIDDLE), now) == pytest.approx(5)


def test_after_it_closed_its_share_grows_to_all() -> None:
    b = succeeded(opened(), NOW)
    shares = [share(b, NOW + SLOW_START_SECONDS * part) for part in (0, 0.25, 0.5, 0.75, 1, 2)]
    assert shares == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0, 1.0])
    assert share(opened(), NOW) == LEAST_SHARE


# --- a box that was started again


def test_one_that_refused_is_half_open_once_it_takes_connections() -> None:
    b = came_back(opened(refused=True), NOW + 1)
    assert phase(b, NOW + 1) == "half_open"
    b = failed(b, NOW + 1, refused=True, draw=MIDDLE)
    assert open_seconds(b, NOW + 1) == pytest.approx(2 * SHORTEST_OPEN)


def test_one_that_hung_takes_connections_all_the_while() -> None:
    assert came_back(opened(), NOW + 1) == opened()
    assert came_back(CLOSED, NOW) is CLOSED


def test_one_that_hung_and_then_refuses_comes_back_when_it_is_started() -> None:
    b = failed(opened(), NOW + 1, refused=True, draw=MIDDLE)
    assert b.until == opened().until
    assert phase(came_back(b, NOW + 2), NOW + 2) == "half_open"


# --- between processes


def test_what_happened_last_counts() -> None:
    early, late = opened(NOW), succeeded(opened(NOW), NOW + 1)
    assert newer(early, late, NOW + 2) is late
    assert newer(late, early, NOW + 2) is late
    assert newer(CLOSED, early, NOW) is early
    counted = succeeded(CLOSED, NOW)  # no news for anybody
    assert newer(counted, CLOSED, NOW) is counted


def test_what_was_written_before_the_clock_was_set_back_counts_less() -> None:
    future, present = opened(NOW + 3600), opened(NOW)
    assert newer(future, present, NOW + 1) is present
    assert newer(present, future, NOW + 1) is present


def test_a_clock_set_back_does_not_keep_it_open() -> None:
    assert phase(opened(NOW + 3600), NOW) == "half_open"
    assert share(succeeded(opened(NOW), NOW), NOW - 3600) == 1.0


def test_it_is_small_and_survives_a_file() -> None:
    for b in (CLOSED, opened(), succeeded(opened(), NOW), failed(CLOSED, NOW, draw=MIDDLE)):
        written = msgspec.json.encode(b)
        assert msgspec.json.decode(written, type=Breaker) == b
        assert len(written) < 150
    assert msgspec.json.encode(CLOSED) == b"{}"


# --- whatever happens

DRAWS = st.floats(0, 1, exclude_max=True)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["failed", "silent", "refused", "succeeded", "answered", "came back"]),
        st.floats(0, 200),
        DRAWS,
    ),
    max_size=40,
)


def step(b: Breaker, what: str, now: float, draw: float) -> Breaker:
    if what == "succeeded":
        return succeeded(b, now)
    if what == "answered":
        return answered(b, now)
    if what == "came back":
        return came_back(b, now)
    return failed(b, now, at_once=what == "silent", refused=what == "refused", draw=draw)


@settings(deadline=None, max_examples=200)
@given(STEPS)
def test_it_never_stays_open_for_longer_than_it_may(steps: list[tuple[str, float, float]]) -> None:
    b, now = CLOSED, NOW
    for what, seconds, draw in steps:
        now += seconds
        was = phase(b, now)
        b = step(b, what, now, draw)
        assert 0 < share(b, now) <= 1
        if b.until is not None:
            assert b.until <= now + MOST
            assert phase(b, now + MOST) == "half_open"
        if what == "succeeded":
            assert phase(b, now) == "closed"
        elif what in ("silent", "refused"):
            assert phase(b, now) == "open"
        elif was == "closed" and what != "failed":
            assert phase(b, now) == "closed"
        if was == "half_open" and what == "failed":
            assert phase(b, now) == "open"


@settings(deadline=None, max_examples=200)
@given(STEPS, DRAWS)
def test_only_time_a_success_or_a_restart_ends_the_open_phase(
    steps: list[tuple[str, float, float]], draw: float
) -> None:
    b = failed(CLOSED, NOW, at_once=True, draw=draw)
    until = b.until
    assert until is not None
    assert SHORTEST_OPEN * (1 - JITTER) <= until - NOW <= SHORTEST_OPEN * (1 + JITTER)
    now = NOW
    for what, seconds, chance in steps:
        now += seconds / 200
        if what in ("succeeded", "came back") or now >= until:
            continue
        b = step(b, what, now, chance)
        assert b.until == until
        assert phase(b, now) == "open"


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 100), st.integers(0, 100), DRAWS)
def test_the_more_often_it_opened_the_longer_it_stays_open(one: int, other: int, draw: float) -> None:
    few, many = sorted((one, other))
    spans = [
        open_seconds(failed(Breaker(until=NOW, times=n, at=NOW), NOW, draw=draw), NOW) for n in (few, many)
    ]
    assert spans[0] <= spans[1] <= MOST


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 20), st.floats(0, 20))
def test_the_share_grows_with_time(one: float, other: float) -> None:
    b = succeeded(opened(), NOW)
    early, late = sorted((one, other))
    assert share(b, NOW + early) <= share(b, NOW + late)
