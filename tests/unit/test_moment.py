from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from maxwell.breaker import CLOSED, SLOW_START_SECONDS, Breaker, failed, succeeded
from maxwell.calls.moment import (
    LEAST_OVERRUN,
    LOADS_LONGER,
    LONGEST_LOAD,
    NO_OTHERS,
    NOBODY,
    Others,
    at_this_moment,
    ready_in,
)
from maxwell.decision import Candidate, Request
from maxwell.flights import Load
from maxwell.health import Health
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.scheduler import MOST_RATE_LIMIT, decide
from maxwell.speed import LIKELY_LOAD, LIKELY_WAKE, Learned, Speeds, speeds_of
from maxwell.types import HealthState, Requirements

quick = settings(deadline=None, max_examples=60)

NOW = 1_800_000_000.0
SPEC = LLMSpec(
    name="box",
    api_base="http://box",
    model="m",
    backend="llamacpp",
    capabilities=Capabilities(max_tokens=1024, max_context=8192, speed_tokens_per_sec=50.0),
    default_temperature=0.5,
)
UP = Health(state="up", at=NOW)
ANY = Request(needs=Requirements())
STATES: tuple[HealthState, ...] = (
    "up",
    "asleep",
    "loading",
    "rate_limited",
    "misconfigured",
    "down",
    "unknown",
)


def candidate(slots: int | None = 4, **fields: Any) -> Candidate:
    return Candidate(spec=SPEC, slots=slots, **fields)


def seen(
    health: Health = UP,
    load: Load = NOBODY,
    others: Others = NO_OTHERS,
    *,
    of: Candidate | None = None,
    now: float = NOW,
) -> Candidate:
    return at_this_moment(of or candidate(), health, load, others, None, now)


def learned(**rates: float) -> Speeds:
    return replace(speeds_of(Learned(), SPEC), **rates)


def opened(now: float = NOW, *, refused: bool = False) -> Breaker:
    return failed(CLOSED, now, at_once=True, refused=refused, draw=0.5)


# --- nothing special


def test_where_nothing_is_special_the_value_is_the_same() -> None:
    plain = candidate()
    assert seen(of=plain) is plain
    old = Health(state="up", at=NOW, breaker=Breaker(closed_at=NOW - 2 * SLOW_START_SECONDS, times=1))
    assert seen(old, of=plain) is plain
    assert seen(replace(UP, breaker=failed(CLOSED, NOW, draw=0.5)), of=plain) is plain


@pytest.mark.parametrize(
    "moment",
    [
        {"load": Load(running=1)},
        {"load": Load(waiting=1)},
        {"others": Others(1.0, 3.0)},
        {"others": Others(0.0, 3.0)},
        {"health": replace(UP, state="asleep")},
        {"health": replace(UP, breaker=opened())},
    ],
    ids=["running", "waiting", "others", "others perhaps", "asleep", "failing"],
)
def test_the_value_that_is_passed_in_is_never_changed(moment: dict[str, Any]) -> None:
    plain = candidate()
    before = replace(plain)
    found = seen(**moment, of=plain)
    assert found is not plain
    assert found != plain
    assert plain == before


# --- when it is ready


@pytest.mark.parametrize("state", ["up", "misconfigured", "down", "unknown"])
def test_only_what_passes_has_to_be_waited_for(state: HealthState) -> None:
    assert ready_in(replace(UP, state=state, until=NOW + 9, since=NOW - 3), None, NOW) == 0.0


def test_a_sleeping_server_takes_as_long_to_wake_as_it_usually_does() -> None:
    asleep = replace(UP, state="asleep")
    assert ready_in(asleep, None, NOW) == LIKELY_WAKE
    assert ready_in(asleep, learned(wake=1.5), NOW) == 1.5


@pytest.mark.parametrize(
    ("left", "is_waited_for"),
    [(0.0, True), (5.0, True), (MOST_RATE_LIMIT, True), (MOST_RATE_LIMIT + 1, False), (9e9, False)],
)
def test_a_rate_limit_is_waited_for_unless_it_is_long(left: float, is_waited_for: bool) -> None:
    found = seen(replace(UP, state="rate_limited", until=NOW + left), of=candidate(state="rate_limited"))
    assert found.ready_in == max(left, 0.001)
    assert bool(decide([found], ANY).ranked) == is_waited_for


def test_a_rate_limit_without_an_end_is_nobodys_guess() -> None:
    # A health check was answered 429. Waiting for the next one, or none, would go on for as long as that.
    limited = replace(UP, state="rate_limited")
    assert ready_in(limited, None, NOW) == math.inf
    decision = decide([seen(limited, of=candidate(state="rate_limited"))], ANY)
    assert [no.reason for no in decision.rejected] == ["rate_limited"]


def test_a_loading_server_is_expected_when_it_usually_is_ready() -> None:
    loading = replace(UP, state="loading", since=NOW - 10)
    assert ready_in(loading, None, NOW) == LIKELY_LOAD - 10
    assert ready_in(loading, learned(load=40.0), NOW) == 30.0
    assert ready_in(loading, learned(load=8.0), NOW) == 1.0  # late by 2 s: 1 s more


def test_a_loading_that_nobody_saw_begin_began_when_it_was_seen() -> None:
    assert ready_in(replace(UP, state="loading", at=NOW - 4), None, NOW) == LIKELY_LOAD - 4


def test_a_loading_that_begins_in_the_future_begins_now() -> None:
    assert ready_in(replace(UP, state="loading", since=NOW + 999), None, NOW) == LIKELY_LOAD


@pytest.mark.parametrize(
    ("usual", "longest"), [(None, LONGEST_LOAD), (10.0, LONGEST_LOAD), (900.0, 900.0 * LOADS_LONGER)]
)
def test_a_loading_that_never_ends_is_believed_no_longer(usual: float | None, longest: float) -> None:
    speeds = None if usual is None else learned(load=usual)
    loading = replace(UP, state="loading", since=NOW - longest)
    assert 0 < ready_in(loading, speeds, NOW) < math.inf
    assert ready_in(loading, speeds, NOW + 1) == math.inf


@quick
@given(
    state=st.sampled_from(STATES),
    since=st.one_of(st.none(), st.floats(-1e4, 1e3)),
    until=st.one_of(st.none(), st.floats(0.0, 1e4)),
)
def test_nothing_is_ready_before_now(state: HealthState, since: float | None, until: float | None) -> None:
    health = Health(
        state=state,
        at=NOW - 1,
        since=None if since is None else NOW + since,
        until=None if until is None else NOW + until,
    )
    wait = ready_in(health, None, NOW)
    assert wait >= 0.0
    assert (wait > 0.0) == (state in ("asleep", "loading", "rate_limited"))
    assert seen(health).ready_in == wait


# --- who is there


def test_all_that_are_at_the_server_are_counted_and_only_ours_can_be_held() -> None:
    found = seen(load=Load(running=2, waiting=3), others=Others(1.5, 4.0))
    assert (found.in_flight, found.ahead, found.counted) == (6.5, 5, 4.0)
    assert found.queue_wait == pytest.approx((6.5 - 4 + 1) * found.service / 4)
    assert not found.starts_at_once


def test_any_number_begins_at_once_where_slots_do_not_count() -> None:
    found = seen(load=Load(running=50), of=candidate(None))
    assert (found.in_flight, found.queue_wait, found.slots) == (50.0, 0.0, None)


@pytest.mark.parametrize("running", [0, 1, LEAST_OVERRUN - 1, LEAST_OVERRUN, 9])
def test_a_few_late_ones_say_nothing_of_the_server(running: int) -> None:
    found = seen(load=Load(running=running, waiting=5, overrun=4.0))
    assert found.slowdown == (4.0 if running >= LEAST_OVERRUN else 1.0)


def test_what_takes_a_little_longer_is_not_slow() -> None:
    assert seen(load=Load(running=9, overrun=1.9)).slowdown == 1.0


# --- failing


def test_a_server_that_failed_is_left_alone_and_says_until_when() -> None:
    health = replace(UP, breaker=opened(), detail="the server fell silent")
    found = seen(health, of=candidate(detail="the server fell silent"))
    assert found.failing
    assert found.detail == "the server fell silent; it is tried again in 5 s"
    assert seen(health).detail == "it failed again and again; it is tried again in 5 s"
    decision = decide([found, seen(of=candidate(endpoint="http://other"))], ANY)
    assert [(no.reason, no.detail) for no in decision.rejected] == [("failing", found.detail)]


def test_one_trial_at_a_time_finds_out_whether_it_is_well_again() -> None:
    health = replace(UP, breaker=opened())
    later = NOW + 60
    nobody = seen(health, now=later)
    assert (nobody.failing, nobody.detail, nobody.slots) == (False, "", 1)
    beside = seen(health, Load(running=1), now=later)  # one from before the outage: no trial
    assert not beside.failing
    tried = seen(health, Load(running=1, trials=1), now=later)
    assert tried.failing
    assert tried.detail == "it failed again and again; one call is trying it out"


def test_the_state_is_not_the_breakers_business() -> None:
    down = replace(UP, state="down", breaker=opened(refused=True))
    assert seen(down, of=candidate(state="down")).state == "down"


# --- coming back


def test_a_server_that_is_well_again_gets_its_slots_back_little_by_little() -> None:
    health = replace(UP, breaker=succeeded(opened(NOW - 60), NOW))
    slots = [seen(health, now=NOW + s, of=candidate(8)).slots for s in (0.0, 1.0, 5.0, 9.5, 10.0)]
    assert slots == [1, 2, 5, 8, 8]
    plain = candidate(8)
    assert seen(health, now=NOW + SLOW_START_SECONDS, of=plain) is plain


def test_where_slots_do_not_count_there_is_nothing_to_give_back() -> None:
    health = replace(UP, breaker=succeeded(opened(NOW - 60), NOW))
    assert seen(health, of=candidate(None)).slots is None


@quick
@given(slots=st.integers(1, 64), age=st.floats(-5, 30), load=st.integers(0, 80))
def test_a_server_always_has_a_slot_and_never_more_than_its_own(slots: int, age: float, load: int) -> None:
    health = replace(UP, breaker=succeeded(opened(NOW - 60), NOW))
    found = seen(health, Load(running=load), now=NOW + age, of=candidate(slots))
    assert found.slots is not None
    assert 1 <= found.slots <= slots
    assert (found.queue_wait > 0) == (load >= found.slots)
