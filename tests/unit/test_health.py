from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.breaker import CLOSED, LONGEST_OPEN, SHORTEST_OPEN, Breaker, Phase, phase
from maxwell.errors import Fault
from maxwell.health import FRESH_SECONDS, RATE_LIMIT_SECONDS, USABLE_SECONDS, Endpoint, Health, HealthBook
from maxwell.testing.clock import FakeClock
from maxwell.types import HealthState, ServedModel

BOX = Endpoint("http://box:8080", "llamacpp")
KEY = "sk-canary-4711"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "health"


@pytest.fixture
def book(directory: Path, clock: FakeClock) -> HealthBook:
    return make_book(directory, clock)


def make_book(directory: Path | None, clock: FakeClock) -> HealthBook:
    return HealthBook(directory, clock, random=lambda: 0.5)  # no jitter


def found(clock: FakeClock, state: HealthState = "up", **more: Any) -> Health:
    return Health(state=state, at=clock.time(), **more)


def state_of(book: HealthBook, clock: FakeClock, endpoint: Endpoint = BOX) -> HealthState | None:
    health = book.get(endpoint, clock.time())
    return None if health is None else health.state


# --- age


@pytest.mark.parametrize("shared", [True, False])
def test_a_state_is_fresh_then_usable_then_unknown(directory: Path, clock: FakeClock, shared: bool) -> None:
    book = HealthBook(directory if shared else None, clock)
    assert book.get(BOX, clock.time()) is None
    health = found(clock)
    book.put(BOX, health)
    for age, fresh, state in (
        (0, True, "up"),
        (FRESH_SECONDS, True, "up"),
        (FRESH_SECONDS + 0.01, False, "up"),
        (USABLE_SECONDS, False, "up"),
        (USABLE_SECONDS + 0.01, False, None),
    ):
        clock.now = health.at + age
        assert (book.is_fresh(health), state_of(book, clock)) == (fresh, state)


def test_the_limits_are_those_of_the_specification() -> None:
    assert (FRESH_SECONDS, USABLE_SECONDS) == (30.0, 90.0)


def test_everything_found_out_is_remembered(directory: Path, clock: FakeClock) -> None:
    health = found(
        clock,
        "asleep",
        detail="sleeping",
        models=(ServedModel("m", ("alias",), 4096, None, False),),
        family="llamacpp",
        slots=4,
        context=2048,
        vision=True,
        seconds=0.25,
        breaker=Breaker(times=2, closed_at=clock.time() - 60, at=clock.time() - 60),
        since=clock.time(),
        loaded_in=12.5,
        busy=3,
        own=1,
        busy_at=clock.time(),
        sleeps=True,
    )
    directory.mkdir()
    (directory / BOX.file_name).write_bytes(msgspec.json.encode(health))
    assert HealthBook(directory, clock).get(BOX, clock.time()) == health
    HealthBook(directory, clock).put(BOX, msgspec.structs.replace(health, breaker=CLOSED, loaded_in=None))
    assert HealthBook(directory, clock).get(BOX, clock.time()) == health


# --- shared between processes


def test_books_of_one_directory_share_states(directory: Path, clock: FakeClock) -> None:
    one, other = HealthBook(directory, clock), HealthBook(directory, clock)
    one.put(BOX, found(clock))
    assert state_of(other, clock) == "up"
    clock.advance(FRESH_SECONDS + 1)
    one.put(BOX, found(clock, "loading"))
    assert state_of(other, clock) == "loading"


def test_an_older_shared_state_does_not_replace_a_newer_one(directory: Path, clock: FakeClock) -> None:
    one, other = HealthBook(directory, clock), HealthBook(directory, clock)
    early = found(clock, "down")
    clock.advance(5)
    one.put(BOX, found(clock))
    other.put(BOX, early)
    clock.advance(FRESH_SECONDS + 1)
    assert state_of(one, clock) == "up"


def test_a_call_that_succeeds_is_told_to_other_processes(directory: Path, clock: FakeClock) -> None:
    one, other = HealthBook(directory, clock), HealthBook(directory, clock)
    one.put(BOX, found(clock, "down"))
    one.note_success(BOX)
    assert state_of(other, clock) == "up"


def test_calls_that_succeed_renew_the_shared_state_now_and_then(directory: Path, clock: FakeClock) -> None:
    one = HealthBook(directory, clock)
    one.note_success(BOX)
    for _ in range(30):
        clock.advance(4)
        one.note_success(BOX)
    # A process that starts now finds a state that is fresh, although not of this second.
    newcomer = HealthBook(directory, clock)
    health = newcomer.get(BOX, clock.time())
    assert health is not None
    assert newcomer.is_fresh(health)


def test_endpoints_differ_by_key_and_backend(book: HealthBook, clock: FakeClock) -> None:
    for endpoint in (
        BOX,
        Endpoint(BOX.root, "vllm"),
        Endpoint(BOX.root),
        Endpoint(BOX.root, "llamacpp", KEY),
    ):
        assert state_of(book, clock, endpoint) is None
        book.put(endpoint, found(clock))


def test_neither_url_nor_key_can_be_read_from_the_files(directory: Path, clock: FakeClock) -> None:
    endpoint = Endpoint("http://secret-host.lan:8080", "openai", KEY)
    book = HealthBook(directory, clock)
    book.put(endpoint, found(clock))
    claim = book.claim(endpoint)
    assert claim is not None
    with claim:
        files = list(directory.iterdir())
        text = " ".join(f.name for f in files) + " ".join(f.read_text() for f in files)
    assert files
    for secret in ("secret-host", "lan", "8080", KEY, "canary"):
        assert secret not in text
    assert KEY not in repr(endpoint)


def test_the_files_are_for_their_owner_alone(book: HealthBook, directory: Path, clock: FakeClock) -> None:
    book.put(BOX, found(clock))
    assert directory.stat().st_mode & 0o077 == 0
    assert all(f.stat().st_mode & 0o077 == 0 for f in directory.iterdir())


# --- a clock that is set back


def test_a_clock_set_back_makes_everything_unknown(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock))
    clock.now -= 3600
    assert state_of(book, clock) is None
    book.put(BOX, found(clock, "loading"))
    assert state_of(book, clock) == "loading"


def test_after_a_clock_was_set_back_news_of_other_processes_count(directory: Path, clock: FakeClock) -> None:
    one, other = HealthBook(directory, clock), HealthBook(directory, clock)
    one.put(BOX, found(clock))
    clock.now -= 3600
    other.put(BOX, found(clock, "down"))
    assert state_of(one, clock) == "down"


def test_a_state_from_the_future_does_not_hide_a_usable_one(directory: Path, clock: FakeClock) -> None:
    one, other = HealthBook(directory, clock), HealthBook(directory, clock)
    one.put(BOX, found(clock))
    other.put(BOX, Health(state="down", at=clock.time() + 3600))
    clock.advance(FRESH_SECONDS + 1)
    assert state_of(one, clock) == "up"


def test_after_a_clock_was_set_back_successes_are_still_shared(directory: Path, clock: FakeClock) -> None:
    one = HealthBook(directory, clock)
    one.note_success(BOX)
    clock.now -= 3600
    one.note_success(BOX)
    assert state_of(HealthBook(directory, clock), clock) == "up"


# --- files that are no help


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"state":"up"}',
        b'{"state":"splendid","at":1}',
        b'{"state":"up","at":"now"}',
        b'{"state":"up","at":1,"detail":"\xff\xfe"}',
        b"\x00" * 64,
        b"\xff\xfe\x00",
    ],
    ids=range(11),
)
def test_a_corrupt_file_is_no_knowledge_and_is_replaced(
    directory: Path, clock: FakeClock, content: bytes
) -> None:
    directory.mkdir()
    (directory / BOX.file_name).write_bytes(content)
    book = HealthBook(directory, clock)
    assert book.get(BOX, clock.time()) is None
    book.put(BOX, found(clock))
    assert state_of(HealthBook(directory, clock), clock) == "up"


def test_a_file_of_a_newer_version_is_read(directory: Path, clock: FakeClock) -> None:
    directory.mkdir()
    (directory / BOX.file_name).write_bytes(
        msgspec.json.encode({"state": "up", "at": clock.time(), "moonphase": "full"})
    )
    assert state_of(HealthBook(directory, clock), clock) == "up"


def unusable(tmp_path: Path, kind: str) -> Path:
    """A path where no file can be written."""
    path = tmp_path / "unusable"
    if kind == "a file":
        path.write_text("in the way")
    elif kind == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root writes everywhere")
        path.mkdir(mode=0o500)
    else:
        path = Path("/dev/null/health")
    return path


@pytest.mark.parametrize("kind", ["a file", "read-only", "nowhere"])
def test_a_directory_that_cannot_be_written_keeps_states_in_memory(
    tmp_path: Path, clock: FakeClock, kind: str
) -> None:
    book = HealthBook(unusable(tmp_path, kind), clock)
    assert book.get(BOX, clock.time()) is None
    book.put(BOX, found(clock))
    book.note_success(BOX)
    book.note_fault(BOX, "refused", "connection refused")
    assert state_of(book, clock) == "down"
    claim = book.claim(BOX)
    assert claim is not None
    with claim:
        pass


def test_a_file_that_cannot_be_replaced_leaves_no_litter(
    book: HealthBook, directory: Path, clock: FakeClock
) -> None:
    (directory / BOX.file_name / "in-the-way").mkdir(parents=True)
    book.put(BOX, found(clock))
    assert state_of(book, clock) == "up"
    assert [f.name for f in directory.iterdir()] == [BOX.file_name]


# --- what calls tell


@pytest.mark.parametrize("old", ["down", "loading", "asleep", "misconfigured", "rate_limited"])
def test_a_call_that_succeeds_outranks_a_probe(book: HealthBook, clock: FakeClock, old: HealthState) -> None:
    models = (ServedModel("m"),)
    book.put(BOX, found(clock, old, detail="says the probe", models=models, slots=2))
    clock.advance(1)
    book.note_success(BOX)
    health = book.get(BOX, clock.time())
    assert health is not None
    assert (health.state, health.detail, health.source, health.at) == ("up", "", "call", clock.time())
    assert (health.models, health.slots) == (models, 2)  # what only a probe can tell stays


def test_a_call_that_succeeds_makes_an_unknown_endpoint_known(book: HealthBook, clock: FakeClock) -> None:
    book.note_success(BOX)
    assert state_of(book, clock) == "up"


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("refused", "down"),
        ("loading", "loading"),
        ("rate_limited", "rate_limited"),
        ("quota", "misconfigured"),
        ("auth", "misconfigured"),
    ],
)
def test_a_call_that_fails_outranks_a_probe(
    book: HealthBook, clock: FakeClock, kind: Fault, state: HealthState
) -> None:
    book.put(BOX, found(clock, slots=2))
    clock.advance(1)
    book.note_fault(BOX, kind, "the server says no")
    health = book.get(BOX, clock.time())
    assert health is not None
    assert (health.state, health.detail, health.source, health.at) == (
        state,
        "the server says no",
        "call",
        clock.time(),
    )
    assert health.slots == 2


@pytest.mark.parametrize("kind", ["bad_request", "content_policy", "context_overflow", "unsupported"])
def test_a_fault_of_the_request_says_nothing_about_the_server(
    book: HealthBook, clock: FakeClock, kind: Fault
) -> None:
    book.note_fault(BOX, kind, "no")
    assert state_of(book, clock) is None
    book.put(BOX, found(clock))
    book.note_fault(BOX, kind, "no")
    assert state_of(book, clock) == "up"


def test_a_probe_begun_before_a_call_failed_does_not_overrule_it(book: HealthBook, clock: FakeClock) -> None:
    # The probe asked, then the call was refused, then the probe's old answer came in.
    clock.advance(0.5)
    book.note_fault(BOX, "refused", "connection refused")
    clock.advance(0.5)
    book.put(BOX, found(clock, "up", seconds=1.0))
    assert state_of(book, clock) == "down"


def test_a_probe_begun_before_a_call_succeeded_does_not_overrule_it(
    book: HealthBook, clock: FakeClock
) -> None:
    clock.advance(0.5)
    book.note_success(BOX)
    clock.advance(1.4)
    book.put(BOX, found(clock, "down", detail="no answer within 1.9 s", seconds=1.9))
    assert state_of(book, clock) == "up"


def test_a_probe_begun_after_a_call_counts(book: HealthBook, clock: FakeClock) -> None:
    book.note_success(BOX)
    clock.advance(5)
    book.put(BOX, found(clock, "down", seconds=1.0))
    assert state_of(book, clock) == "down"


def test_a_failed_probe_does_not_end_calls_that_succeed(book: HealthBook, clock: FakeClock) -> None:
    # /health hangs while the server generates.
    book.put(BOX, found(clock, slots=2))
    for _ in range(5):
        book.note_success(BOX)
        clock.advance(2.5)
        book.put(BOX, found(clock, "down", detail="no answer within 1.9 s", seconds=1.9))
        health = known(book, clock)
        assert (health.state, health.slots) == ("up", 2)


def test_without_further_successes_the_next_failed_probe_counts(book: HealthBook, clock: FakeClock) -> None:
    book.note_success(BOX)
    for _ in range(2):
        clock.advance(2)
        book.put(BOX, found(clock, "down", seconds=0.1))
    assert state_of(book, clock) == "down"


# --- the breaker

FAILURES: list[Fault] = ["timeout", "server_error", "overloaded", "bad_reply", "broken_stream"]
OF_REQUEST: list[Fault] = [
    "bad_request",
    "content_policy",
    "context_overflow",
    "unsupported",
    "model_missing",
]


def known(book: HealthBook, clock: FakeClock, endpoint: Endpoint = BOX) -> Health:
    health = book.get(endpoint, clock.time())
    assert health is not None
    return health


def phase_of(book: HealthBook, clock: FakeClock) -> Phase:
    return phase(known(book, clock).breaker, clock.time())


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_of_the_server_leave_its_state_and_open_its_breaker(
    book: HealthBook, clock: FakeClock, kind: Fault
) -> None:
    book.put(BOX, found(clock, slots=2))
    for expected in ("closed", "closed", "open"):
        clock.advance(0.1)
        assert phase_of(book, clock) == "closed"
        book.note_fault(BOX, kind, "what went wrong")
        assert phase_of(book, clock) == expected
    health = known(book, clock)
    assert (health.state, health.slots, health.detail) == ("up", 2, "what went wrong")
    clock.advance(SHORTEST_OPEN)
    assert phase_of(book, clock) == "half_open"
    book.note_success(BOX)
    assert (phase_of(book, clock), known(book, clock).detail) == ("closed", "")


def test_silence_opens_the_breaker_at_once(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock))
    book.note_fault(BOX, "timeout", "silent for 60 s", at_once=True)
    assert (state_of(book, clock), phase_of(book, clock)) == ("up", "open")


def test_a_refused_connection_opens_the_breaker_at_once(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock))
    book.note_fault(BOX, "refused", "connection refused")
    assert (state_of(book, clock), phase_of(book, clock)) == ("down", "open")


@pytest.mark.parametrize("kind", OF_REQUEST)
def test_a_fault_of_the_request_is_a_sign_of_life(book: HealthBook, clock: FakeClock, kind: Fault) -> None:
    book.put(BOX, found(clock))
    for _ in range(4):
        book.note_fault(BOX, "server_error", "500")
        book.note_fault(BOX, "server_error", "500")
        book.note_fault(BOX, kind, "no")
    assert phase_of(book, clock) == "closed"


@pytest.mark.parametrize("kind", ["loading", "rate_limited", "quota", "auth"])
def test_what_a_state_tells_opens_no_breaker(book: HealthBook, clock: FakeClock, kind: Fault) -> None:
    book.put(BOX, found(clock))
    for _ in range(10):
        book.note_fault(BOX, kind, "no")
    assert phase_of(book, clock) == "closed"


def test_an_overloaded_server_that_says_when_is_rate_limited(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock))
    for _ in range(10):
        book.note_fault(BOX, "overloaded", "503", 7.0)
    assert (state_of(book, clock), phase_of(book, clock)) == ("rate_limited", "closed")
    clock.advance(7)
    assert state_of(book, clock) == "up"


@pytest.mark.parametrize("kind", ["timeout", "server_error"])
def test_a_good_probe_says_nothing_of_a_server_that_hangs(
    book: HealthBook, clock: FakeClock, kind: Fault
) -> None:
    book.put(BOX, found(clock))
    for _ in range(3):
        book.note_fault(BOX, kind, "500")
    for _ in range(4):
        clock.advance(1)
        book.put(BOX, found(clock))
        assert (phase_of(book, clock), known(book, clock).detail) == ("open", "500")
    clock.advance(1)
    assert phase_of(book, clock) == "half_open"
    book.put(BOX, found(clock))
    assert phase_of(book, clock) == "half_open"  # only a call can close it


def test_a_failed_probe_does_not_keep_a_server_that_hangs_from_its_trial(
    book: HealthBook, clock: FakeClock
) -> None:
    book.put(BOX, found(clock))
    book.note_fault(BOX, "timeout", "silent", at_once=True)
    clock.advance(SHORTEST_OPEN)
    book.put(BOX, found(clock, "down"))
    assert phase_of(book, clock) == "half_open"


@pytest.mark.parametrize("state", ["up", "loading", "asleep"])
def test_a_box_that_was_started_again_is_tried_at_once(
    book: HealthBook, clock: FakeClock, state: HealthState
) -> None:
    book.put(BOX, found(clock))
    book.note_fault(BOX, "refused", "connection refused")
    clock.advance(1)
    book.put(BOX, found(clock, state, seconds=0.1))
    assert (state_of(book, clock), phase_of(book, clock)) == (state, "half_open")
    book.note_success(BOX)
    assert (state_of(book, clock), phase_of(book, clock)) == ("up", "closed")


def test_a_probe_begun_before_a_refusal_is_no_sign_of_a_restart(book: HealthBook, clock: FakeClock) -> None:
    book.note_fault(BOX, "refused", "connection refused")
    clock.advance(0.5)
    book.put(BOX, found(clock, "up", seconds=1.0))
    assert (state_of(book, clock), phase_of(book, clock)) == ("down", "open")


def test_a_box_that_is_gone_is_asked_again_after_5_10_20_seconds(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock))
    book.note_fault(BOX, "refused", "connection refused")
    for seconds in (5, 10, 20):
        clock.advance(seconds - 0.01)
        assert book.is_fresh(known(book, clock))
        assert phase_of(book, clock) == "open"
        clock.advance(0.01)
        assert not book.is_fresh(known(book, clock))
        assert phase_of(book, clock) == "half_open"
        book.put(BOX, found(clock, "down", detail="connection refused"))
    clock.advance(FRESH_SECONDS + 0.01)
    assert phase_of(book, clock) == "open"
    assert not book.is_fresh(known(book, clock))  # a probe is cheap


def test_a_breaker_is_not_forgotten_while_it_is_open(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock))
    for _ in range(6):
        book.note_fault(BOX, "timeout", "silent", at_once=True)
        until = known(book, clock).breaker.until
        assert until is not None
        clock.now = until
    book.note_fault(BOX, "timeout", "silent", at_once=True)
    clock.advance(LONGEST_OPEN - 0.01)
    assert phase_of(book, clock) == "open"
    assert not book.is_fresh(known(book, clock))
    clock.advance(1)
    assert state_of(book, clock) is None
    book.put(BOX, found(clock))
    assert phase_of(book, clock) == "half_open"


def test_a_failure_of_one_never_probed_is_remembered_and_it_stays_unknown(
    book: HealthBook, clock: FakeClock
) -> None:
    book.note_fault(BOX, "server_error", "500")
    assert state_of(book, clock) is None
    book.note_fault(BOX, "timeout", "silent", at_once=True)
    assert (state_of(book, clock), phase_of(book, clock)) == ("unknown", "open")
    assert not book.is_fresh(known(book, clock))
    book.put(BOX, found(clock))
    assert (state_of(book, clock), phase_of(book, clock)) == ("up", "open")


# --- since when, and how long loading takes


def test_since_when_a_state_holds(book: HealthBook, clock: FakeClock) -> None:
    began = clock.time()
    book.put(BOX, found(clock, "loading"))
    for _ in range(3):
        clock.advance(4)
        book.note_fault(BOX, "loading", "503")
        book.put(BOX, found(clock, "loading"))
        assert known(book, clock).since == began
    clock.advance(1)
    book.note_success(BOX)
    clock.advance(5)
    book.note_success(BOX)
    assert known(book, clock).since == clock.time() - 5
    clock.advance(USABLE_SECONDS + 1)  # nobody watched
    book.put(BOX, found(clock))
    assert known(book, clock).since == clock.time()


@pytest.mark.parametrize("by_call", [True, False])
def test_how_long_loading_took_is_told_once_and_remembered(
    directory: Path, clock: FakeClock, by_call: bool
) -> None:
    book = make_book(directory, clock)
    for _ in range(6):
        assert book.put(BOX, found(clock, "loading")) is None
        clock.advance(2)
    took = book.note_success(BOX) if by_call else book.put(BOX, found(clock))
    assert took == pytest.approx(12)
    assert (book.note_success(BOX), book.put(BOX, found(clock))) == (None, None)
    clock.advance(3600)
    book.put(BOX, found(clock, "loading"))
    assert known(make_book(directory, clock), clock).loaded_in == pytest.approx(12)


def test_a_loading_that_nobody_watched_tells_nothing(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock, "loading"))
    clock.advance(60)
    assert book.put(BOX, found(clock)) is None
    assert known(book, clock).loaded_in is None


def test_a_loading_server_is_asked_again_after_two_seconds(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock, "loading"))
    clock.advance(2)
    assert book.is_fresh(known(book, clock))
    clock.advance(0.01)
    assert not book.is_fresh(known(book, clock))


# --- load and sleep


def test_how_busy_it_said_it_is_stays_until_it_says_so_again(book: HealthBook, clock: FakeClock) -> None:
    book.put(BOX, found(clock, busy=3, own=1, busy_at=clock.time()))
    told = clock.time()
    clock.advance(1)
    book.note_success(BOX)
    book.note_fault(BOX, "loading", "503")
    book.put(BOX, found(clock))
    health = known(book, clock)
    assert (health.busy, health.own, health.busy_at) == (3, 1, told)
    book.put(BOX, found(clock, busy=0, busy_at=clock.time()))
    assert (known(book, clock).busy, known(book, clock).own) == (0, 0)


def test_one_found_asleep_is_known_as_one_that_sleeps(directory: Path, clock: FakeClock) -> None:
    book = make_book(directory, clock)
    assert not book.sleeps(BOX)
    book.put(BOX, found(clock, "asleep"))
    book.note_success(BOX)
    clock.advance(3600)
    book.put(BOX, found(clock))
    assert book.sleeps(BOX)
    assert make_book(directory, clock).sleeps(BOX)


# --- what other processes find out

SOON = 0.25


def test_a_breaker_that_another_process_opened_is_seen_soon(directory: Path, clock: FakeClock) -> None:
    one, other = make_book(directory, clock), make_book(directory, clock)
    one.put(BOX, found(clock))
    assert (phase_of(one, clock), phase_of(other, clock)) == ("closed", "closed")
    clock.advance(1)
    one.note_fault(BOX, "timeout", "silent", at_once=True)
    clock.advance(SOON)
    assert phase_of(other, clock) == "open"


def test_a_box_that_came_back_for_another_process_is_seen_soon(directory: Path, clock: FakeClock) -> None:
    one, other = make_book(directory, clock), make_book(directory, clock)
    one.note_fault(BOX, "refused", "connection refused")
    assert state_of(other, clock) == "down"
    clock.advance(1)
    one.note_success(BOX)
    clock.advance(SOON)
    assert (state_of(other, clock), phase_of(other, clock)) == ("up", "closed")


def test_many_changes_in_quick_succession_are_all_seen(directory: Path, clock: FakeClock) -> None:
    one, other = make_book(directory, clock), make_book(directory, clock)
    assert state_of(other, clock) is None
    for n in range(200):
        state: HealthState = "loading" if n % 2 else "up"
        one.put(BOX, found(clock, state))
        clock.advance(SOON)
        assert state_of(other, clock) == state
    boxes = [Endpoint(f"http://box-{n}") for n in range(20)]
    for box in boxes:
        other.get(box, clock.time())
        one.put(box, found(clock))
    clock.advance(SOON)
    assert {state_of(other, clock, box) for box in boxes} == {"up"}


def test_a_change_that_has_the_time_of_the_one_before_is_seen(directory: Path, clock: FakeClock) -> None:
    one, other = make_book(directory, clock), make_book(directory, clock)
    one.put(BOX, found(clock))
    assert state_of(other, clock) == "up"
    time = directory.stat().st_mtime_ns
    clock.advance(0.01)
    one.put(BOX, found(clock, "loading"))
    os.utime(directory, ns=(time, time))  # as where time is told in steps
    clock.advance(SOON)
    assert state_of(other, clock) == "loading"


def test_an_older_success_does_not_close_what_another_process_opened(
    directory: Path, clock: FakeClock
) -> None:
    one, other = make_book(directory, clock), make_book(directory, clock)
    one.put(BOX, found(clock))
    other.note_success(BOX)
    clock.advance(0.1)
    one.note_fault(BOX, "timeout", "silent", at_once=True)
    clock.advance(0.05)
    other.put(BOX, found(clock))  # before it looked
    assert phase_of(make_book(directory, clock), clock) == "open"  # although the first may be gone by now
    clock.advance(SOON)
    assert (phase_of(one, clock), phase_of(other, clock)) == ("open", "open")


def test_a_later_success_closes_it_for_all(directory: Path, clock: FakeClock) -> None:
    one, other = make_book(directory, clock), make_book(directory, clock)
    one.put(BOX, found(clock))
    other.note_success(BOX)
    clock.advance(1)
    one.note_fault(BOX, "timeout", "silent", at_once=True)
    clock.advance(1)
    other.note_success(BOX)
    clock.advance(SOON)
    assert (phase_of(one, clock), phase_of(other, clock)) == ("closed", "closed")


def test_an_event_lost_when_two_wrote_at_once_is_told_again(directory: Path, clock: FakeClock) -> None:
    one, other = make_book(directory, clock), make_book(directory, clock)
    one.put(BOX, found(clock))
    before = (directory / BOX.file_name).read_bytes()
    clock.advance(1)
    one.note_fault(BOX, "timeout", "silent", at_once=True)
    (directory / BOX.file_name).unlink()
    (directory / BOX.file_name).write_bytes(before)  # by one that had read before, and wrote after
    clock.advance(SOON)
    assert phase_of(one, clock) == "open"
    clock.advance(SOON)
    assert phase_of(other, clock) == "open"


def test_how_busy_a_server_is_spreads_although_calls_succeed(directory: Path, clock: FakeClock) -> None:
    one, other = make_book(directory, clock), make_book(directory, clock)
    one.put(BOX, found(clock))
    other.note_success(BOX)
    clock.advance(0.05)
    one.put(BOX, found(clock, busy=4, busy_at=clock.time()))
    clock.advance(0.05)
    other.note_success(BOX)  # newer than the probe, and before it looked
    clock.advance(SOON)
    assert known(other, clock).busy == 4


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["success", "timeout", "silence", "refused", "bad_request", "probe", "dead probe"]),
        st.floats(0.001, 12.0),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(EVENTS)
def test_all_processes_come_to_know_the_same(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, str, float]]
) -> None:
    clock, directory = FakeClock(), tmp_path_factory.mktemp("health")
    books = [make_book(directory, clock) for _ in range(3)]
    for who, what, seconds in events:
        clock.advance(seconds)
        tell(books[who], what, clock)
    for _ in range(4):
        clock.advance(SOON)
        seen = [book.get(BOX, clock.time()) for book in books]
    assert len({None if h is None else phase(h.breaker, clock.time()) for h in seen}) == 1
    assert len({None if h is None else h.state for h in seen}) == 1


def tell(book: HealthBook, what: str, clock: FakeClock) -> None:
    if what == "success":
        book.note_success(BOX)
    elif what.endswith("probe"):
        book.put(BOX, found(clock, "up" if what == "probe" else "down", seconds=0.01))
    elif what == "silence":
        book.note_fault(BOX, "timeout", "silent", at_once=True)
    else:
        book.note_fault(BOX, what, "no")  # type: ignore[arg-type]


# --- rate limits


@pytest.mark.parametrize(("retry_after", "seconds"), [(20.0, 20.0), (0.0, 0.0), (None, RATE_LIMIT_SECONDS)])
def test_a_rate_limit_ends_by_itself(
    book: HealthBook, clock: FakeClock, retry_after: float | None, seconds: float
) -> None:
    book.note_fault(BOX, "rate_limited", "429", retry_after)
    if seconds:
        clock.advance(seconds - 0.01)
        assert state_of(book, clock) == "rate_limited"
        clock.advance(0.02)
    health = book.get(BOX, clock.time())
    assert health is not None
    assert (health.state, health.detail, health.until) == ("up", "", None)


def test_a_rate_limit_is_shared_and_ends_for_all(directory: Path, clock: FakeClock) -> None:
    HealthBook(directory, clock).note_fault(BOX, "rate_limited", "429", 10.0)
    other = HealthBook(directory, clock)
    assert state_of(other, clock) == "rate_limited"
    clock.advance(10.5)
    assert state_of(other, clock) == "up"


@pytest.mark.parametrize("after", [60, 120, 599])
def test_a_rate_limit_lasts_as_long_as_the_server_asked(
    book: HealthBook, clock: FakeClock, after: float
) -> None:
    book.note_fault(BOX, "rate_limited", "429", 600.0)
    clock.advance(after)
    assert state_of(book, clock) == "rate_limited"


def test_a_probe_does_not_end_a_rate_limit(book: HealthBook, clock: FakeClock) -> None:
    # /health answers 200 while completions are refused.
    book.note_fault(BOX, "rate_limited", "429", 600.0)
    clock.advance(40)
    book.put(BOX, found(clock, "up", seconds=0.1))
    assert state_of(book, clock) == "rate_limited"
    clock.advance(570)
    assert state_of(book, clock) in ("up", None)


def test_during_a_rate_limit_the_server_is_not_asked_again_and_again(
    book: HealthBook, clock: FakeClock
) -> None:
    book.note_fault(BOX, "rate_limited", "429", 600.0)
    clock.advance(FRESH_SECONDS + 10)
    book.put(BOX, found(clock, "up", seconds=0.1))
    health = book.get(BOX, clock.time())
    assert health is not None
    assert book.is_fresh(health)


def test_a_server_found_down_during_a_rate_limit_is_not_up_when_it_ends(
    book: HealthBook, clock: FakeClock
) -> None:
    book.note_fault(BOX, "rate_limited", "429", 50.0)
    clock.advance(40)
    book.put(BOX, found(clock, "down", detail="connection refused", seconds=0.1))
    clock.advance(11)
    assert state_of(book, clock) == "down"


def test_other_faults_carry_no_end(book: HealthBook, clock: FakeClock) -> None:
    book.note_fault(BOX, "loading", "503", 600.0)
    health = book.get(BOX, clock.time())
    assert health is not None
    assert health.until is None


# --- one probe at a time


@pytest.mark.parametrize("shared", [True, False])
def test_an_endpoint_is_claimed_once(directory: Path, clock: FakeClock, shared: bool) -> None:
    book = HealthBook(directory if shared else None, clock)
    claim = book.claim(BOX)
    assert claim is not None
    with claim:
        assert book.claim(BOX) is None
        assert book.claim(Endpoint("http://other")) is not None
    again = book.claim(BOX)
    assert again is not None
    with again:
        pass


def test_a_claim_is_given_back_when_its_probe_fails(book: HealthBook) -> None:
    claim = book.claim(BOX)
    assert claim is not None
    with pytest.raises(RuntimeError), claim:
        raise RuntimeError
    assert book.claim(BOX) is not None


def test_books_of_one_directory_share_claims(directory: Path, clock: FakeClock) -> None:
    claim = HealthBook(directory, clock).claim(BOX)
    assert claim is not None
    with claim:
        assert HealthBook(directory, clock).claim(BOX) is None


@pytest.mark.parametrize("shared", [True, False])
def test_of_many_threads_one_gets_the_claim(directory: Path, clock: FakeClock, shared: bool) -> None:
    book = HealthBook(directory if shared else None, clock)
    together = threading.Barrier(8, timeout=20)
    claims: list[AbstractContextManager[object]] = []

    def try_it() -> None:
        together.wait()
        claim = book.claim(BOX)
        if claim is not None:
            claims.append(claim)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(try_it) for _ in range(8)]:
            done.result()
    with ExitStack() as held:
        for claim in claims:
            held.enter_context(claim)
    assert len(claims) == 1


CLAIMER = """
import sys
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.health import Endpoint, HealthBook

book = HealthBook(Path(sys.argv[1]), SystemClock())
claim = book.claim(Endpoint("http://box:8080", "llamacpp"))
print("refused" if claim is None else "claimed", flush=True)
sys.stdin.read()
"""


def claimer(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIMER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_claim_excludes_other_processes(book: HealthBook, directory: Path) -> None:
    claim = book.claim(BOX)
    assert claim is not None
    with claim, claimer(directory) as other:
        assert said(other) == "refused"


def test_a_killed_holder_gives_its_claim_back(book: HealthBook, directory: Path) -> None:
    with claimer(directory) as other:
        assert said(other) == "claimed"
        assert book.claim(BOX) is None
        other.kill()
        other.wait()
        claim = book.claim(BOX)
        assert claim is not None
        with claim:
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_not_bound_by_claims_of_its_parents_threads(clock: FakeClock) -> None:
    # The thread that would give it back does not exist in the child.
    book = HealthBook(None, clock)
    claim = book.claim(BOX)
    assert claim is not None
    with claim:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if book.claim(BOX) is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
