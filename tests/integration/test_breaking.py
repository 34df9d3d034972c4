"""Servers that fail are left alone, tried out by one call, and come back; a name means one server, always."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from calling import chats, entry
from places import SOON, Worker, assert_landed, calls_to, is_held, occupied, until

from maxwell.errors import BackendError, CallTimeout, StatusError
from maxwell.lm_pool import LLMPool
from maxwell.testing import FakeClock, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry
from maxwell.types import BackendName

NEVER = float("inf")
LATE = 1.5  # seconds that a call may end after its limit on a busy machine
FAST, SLOW = "From the fast one.", "From the slow one."


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as made:
        yield made


# --- breakers


def fail_open(pool: LLMPool, name: str) -> None:
    """Let the entry's breaker open: three failures in a row."""
    for _ in range(3):
        with pytest.raises(BackendError):
            pool.get_lm(name).generate("Hello", timeout=2.0)


@pytest.mark.parametrize("dialect", ["llamacpp", "openai"])
def test_one_call_tries_a_server_out_however_many_ask(
    fake_server: FakeServers,
    tmp_path: Path,
    threads: ThreadPoolExecutor,
    fake_clock: FakeClock,
    dialect: BackendName,
) -> None:
    sick, well = fake_server(dialect, reply=FAST), fake_server(slots=64, reply=SLOW, context=8192)
    calls = calls_to(tmp_path, entry(sick, "sick", 500), entry(well, "well"), clock=fake_clock)
    calls.warm()
    with calls.pool() as pool:
        sick.fail(faults.Status(408), times=3)
        fail_open(pool, "sick")
        assert pool.get_lm().name == "well"
        asked = len(chats(sick))
        fake_clock.advance(7)  # it was to be left alone for 4 to 6 s
        sick.fail(faults.SlowFirstByte(0.5), times=None)
        texts = list(threads.map(lambda i: pool.get_lm().generate("Hello"), range(16)))
        assert sorted(texts) == sorted([FAST] + [SLOW] * 15)
        assert len(chats(sick)) - asked == 1
        sick.heal()
        assert pool.get_lm().generate("Hello") == FAST  # one success closes it
        assert_landed(pool)


def test_a_failed_trial_opens_it_again(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    sick, well = fake_server(), fake_server(reply=SLOW)
    calls = calls_to(tmp_path, entry(sick, "sick", 500), entry(well, "well"), clock=fake_clock)
    calls.warm()
    sick.fail(faults.ServerError(), times=None)
    with calls.pool() as pool:
        fail_open(pool, "sick")
        fake_clock.advance(7)
        before = len(chats(sick))
        assert [pool.get_lm().generate("Hello") for _ in range(4)] == [SLOW] * 4
        assert len(chats(sick)) == before + 1
        fake_clock.advance(7)  # now it is twice as long
        assert pool.get_lm().generate("Hello") == SLOW
        assert len(chats(sick)) == before + 1


def test_the_last_candidate_is_never_ejected(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(reply=FAST)
    calls = calls_to(tmp_path, entry(server, "one"))
    calls.warm()
    server.fail(faults.ServerError(), times=None)
    with calls.pool() as pool:
        for _ in range(8):
            with pytest.raises(StatusError):
                pool.get_lm().generate("Hello", timeout=2.0)
        server.heal()
        assert pool.get_lm().generate("Hello") == FAST
        assert_landed(pool)


def test_a_single_failure_ejects_nobody(fake_server: FakeServers, tmp_path: Path) -> None:
    shaky, well = fake_server(reply=FAST), fake_server(reply=SLOW)
    calls = calls_to(tmp_path, entry(shaky, "shaky", 500), entry(well, "well"))
    calls.warm()
    for _ in range(3):
        shaky.fail(faults.ServerError())
        assert calls.ask("generate").text == SLOW
        assert calls.ask("generate").text == FAST


ANSWERED = """
from maxwell.lm_pool import LLMPool
with LLMPool.from_registry() as pool:
    print(pool.get_lm().chat([{"role": "user", "content": "Hello"}]).llm)
"""


def test_a_server_that_hangs_is_out_for_all_processes_and_comes_back_by_itself(
    fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    hanging, well = fake_server(), fake_server()
    hanging.fail(faults.SlowFirstByte(NEVER), times=None)  # and goes on answering /health
    first = hanging.llm_entry("hanging", capabilities={"speed_tokens_per_sec": 500}, timeout_seconds=0.4)
    path = write_registry(first, well.llm_entry("well"))
    with LLMPool.from_registry(path) as pool:
        began = time.monotonic()
        assert who(pool) == "well"
        assert time.monotonic() - began < 0.4 + LATE
        with Worker(ANSWERED) as other:
            assert other.result() == "well"
        assert who(pool) == "well"
        assert len(chats(hanging)) == 1, "it was asked again although it hangs"
        hanging.heal()
        until(lambda: who(pool) == "hanging", "it never came back", 12.0)
        assert who(pool) == "hanging"


def who(pool: LLMPool) -> str:
    return pool.get_lm().chat([{"role": "user", "content": "Hello"}]).llm


def test_a_server_that_falls_silent_amid_a_reply_is_out_too(fake_server: FakeServers, tmp_path: Path) -> None:
    hanging, well = fake_server(), fake_server(reply=SLOW)
    hanging.fail(faults.Silence(2), times=None)
    calls = calls_to(tmp_path, entry(hanging, "hanging", 500, timeout_seconds=0.3), entry(well, "well"))
    calls.warm()
    assert [calls.ask("generate").text for _ in range(3)] == [SLOW] * 3
    assert len(chats(hanging)) == 1


def test_a_dead_host_is_out_at_once_and_comes_back_when_it_listens_again(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    mortal, well = fake_server(reply=FAST), fake_server(reply=SLOW)
    calls = calls_to(tmp_path, entry(mortal, "mortal", 500), entry(well, "well"), clock=fake_clock)
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        mortal.stop()
        assert lm.generate("Hello") == SLOW
        assert pool.get_lm().name == "well"
        mortal.start()
        fake_clock.advance(40)

        def is_back() -> bool:
            return pool.get_lm().generate("Hello") == FAST

        until(is_back, "it never came back")
        assert lm.generate("Hello") == FAST


# --- named handles


def test_a_name_means_that_one_however_it_fares(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    named = fake_server(slots=1, reply=["named "] * 200, tokens_per_sec=50)
    other = fake_server(reply=SLOW)
    calls = calls_to(tmp_path, entry(named, "named"), entry(other, "other", 500))
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm("named")
        with occupied(pool, "named", named):  # busy
            with pytest.raises(CallTimeout):
                lm.generate("Hello", timeout=0.3)
            held = threads.submit(lm.generate, "Hello", max_tokens=1)
            until(lambda: is_held(pool), "it is not held")
        assert held.result(SOON) == "named "
        named.fail(faults.ServerError(), times=None)  # failing, until its breaker is open
        for _ in range(4):
            with pytest.raises(StatusError):
                lm.generate("Hello", timeout=2.0)
        named.heal()
        assert lm.generate("Hello", max_tokens=1) == "named "
        named.fail(faults.RateLimited(retry_after=0.3))
        assert lm.generate("Hello", max_tokens=1) == "named "
        named.set_state("loading")
        with pytest.raises(BackendError):
            lm.generate("Hello", timeout=0.3)
        named.set_state("up")
        assert_landed(pool)
    assert chats(other) == []


def test_a_named_dead_host_is_its_own_error(fake_server: FakeServers, tmp_path: Path) -> None:
    named, other = fake_server(), fake_server()
    calls = calls_to(tmp_path, entry(named, "named"), entry(other, "other", 500))
    with calls.pool() as pool:
        lm = pool.get_lm("named")
        named.stop()
        for _ in range(3):
            with pytest.raises(BackendError) as caught:
                lm.generate("Hello", timeout=3.0)
            assert (caught.value.llm, caught.value.kind) == ("named", "refused")
        named.start()
        assert lm.generate("Hello") == "Hello there, friend."
    assert chats(other) == []
