from __future__ import annotations

import threading
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.calls.retries import (
    A_CALL,
    A_SECOND,
    BACKOFF,
    MOST_ASKED,
    MOST_BACKOFF,
    MOST_SAVED,
    RetryBudget,
    backoff,
    may_ask_again,
    shared_budget,
)
from maxwell.clock import SystemClock
from maxwell.errors import Fault
from maxwell.testing import FakeClock

# Another try at the same server cannot help: the request, the key or the registry is wrong, or the time it
# took was already too long.
HOPELESS: tuple[Fault, ...] = (
    "bad_request",
    "content_policy",
    "context_overflow",
    "unsupported",
    "auth",
    "quota",
    "model_missing",
    "timeout",
    "bad_reply",
    "constraint_broken",
)


def drained(clock: FakeClock) -> RetryBudget:
    budget = RetryBudget(clock)
    while budget.take():
        pass
    return budget


# --- whether


def test_every_kind_of_failure_is_judged() -> None:
    assert set(HOPELESS) | set(MOST_ASKED) == set(get_args(Fault))
    assert not set(HOPELESS) & set(MOST_ASKED)


@pytest.mark.parametrize("kind", HOPELESS)
def test_what_cannot_succeed_is_not_asked_again(kind: Fault) -> None:
    assert not may_ask_again(kind, 1)


@pytest.mark.parametrize("kind", MOST_ASKED)
def test_what_may_pass_is_asked_again_but_not_for_ever(kind: Fault) -> None:
    assert may_ask_again(kind, 1)
    assert not may_ask_again(kind, 3)


@pytest.mark.parametrize("kind", ["refused", "overloaded", "rate_limited", "loading"])
def test_a_refusal_that_cost_nothing_is_worth_a_third_try(kind: Fault) -> None:
    assert may_ask_again(kind, 2)


@pytest.mark.parametrize("kind", ["server_error", "broken_stream"])
def test_work_that_was_begun_is_not_paid_for_three_times(kind: Fault) -> None:
    assert not may_ask_again(kind, 2)


# --- how soon


@given(st.integers(1, 1000), st.floats(0.0, 1.0, exclude_max=True))
def test_a_pause_is_a_part_of_a_span_that_doubles(asked: int, draw: float) -> None:
    span = min(BACKOFF * 2 ** min(asked - 1, 60), MOST_BACKOFF)
    assert backoff(asked, draw) == pytest.approx(draw * span)
    assert 0.0 <= backoff(asked, draw) <= MOST_BACKOFF


def test_pauses_are_spread_over_the_whole_span() -> None:
    assert backoff(1, 0.0) == 0.0
    assert backoff(1, 0.999) == pytest.approx(0.5, abs=0.001)
    assert backoff(3, 0.999) == pytest.approx(2.0, abs=0.01)


# --- how often in all


def test_a_new_process_has_some_to_spend(fake_clock: FakeClock) -> None:
    budget = RetryBudget(fake_clock)
    assert budget.left == MOST_SAVED
    assert [budget.take() for _ in range(12)] == [True] * 10 + [False] * 2


def test_ten_calls_earn_one(fake_clock: FakeClock) -> None:
    budget = drained(fake_clock)
    for _ in range(9):
        budget.earn()
    assert not budget.take()
    for _ in range(2):  # one more than ten, since tenths do not quite add up to one
        budget.earn()
    assert budget.take()
    assert not budget.take()


def test_ten_seconds_earn_one(fake_clock: FakeClock) -> None:
    budget = drained(fake_clock)
    fake_clock.advance(9.9)
    assert not budget.take()
    fake_clock.advance(0.2)
    assert budget.take()
    assert not budget.take()


def test_a_refused_take_costs_nothing(fake_clock: FakeClock) -> None:
    budget = drained(fake_clock)
    fake_clock.advance(5)
    for _ in range(100):
        assert not budget.take()
    fake_clock.advance(5.1)
    assert budget.take()


def test_what_is_saved_has_an_end(fake_clock: FakeClock) -> None:
    budget = RetryBudget(fake_clock)
    fake_clock.advance(1e6)
    for _ in range(1000):
        budget.earn()
    assert budget.left == MOST_SAVED


def test_looking_at_it_changes_nothing(fake_clock: FakeClock) -> None:
    budget = drained(fake_clock)
    for _ in range(99):
        fake_clock.advance(0.1)
        assert budget.left < 1.0
    fake_clock.advance(0.2)
    assert budget.left == pytest.approx(1.01)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(st.sampled_from(["earn", "take"]), st.floats(0.0, 60.0)), max_size=80))
def test_no_more_is_spent_than_there_was(steps: list[str | float]) -> None:
    clock = FakeClock()
    budget = RetryBudget(clock)
    calls = taken = 0
    seconds = 0.0
    for step in steps:
        if isinstance(step, float):
            clock.advance(step)
            seconds += step
        elif step == "earn":
            budget.earn()
            calls += 1
        else:
            taken += budget.take()
        assert taken <= MOST_SAVED + A_CALL * calls + A_SECOND * seconds + 1e-6
        assert -1e-9 <= budget.left <= MOST_SAVED


def test_a_wall_clock_that_is_set_back_takes_nothing_away(fake_clock: FakeClock) -> None:
    budget = RetryBudget(fake_clock)
    fake_clock.now -= 3600
    assert budget.left == MOST_SAVED


def test_threads_share_what_there_is(fake_clock: FakeClock) -> None:
    budget = RetryBudget(fake_clock)
    taken: list[bool] = []
    go = threading.Barrier(8)

    def spend() -> None:
        go.wait()
        taken.extend(budget.take() for _ in range(50))

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == MOST_SAVED


def test_all_pools_of_a_home_spend_from_one(tmp_path: Path, fake_clock: FakeClock) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert shared_budget(one, SystemClock()) is shared_budget(one, SystemClock())
    assert shared_budget(one, SystemClock()) is not shared_budget(other, SystemClock())
    assert shared_budget(one, fake_clock) is not shared_budget(one, fake_clock)
