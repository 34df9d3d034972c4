"""Who is let go, who is held back, who goes elsewhere: slots, waits, breakers, deadlines over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from calling import assert_idle, chats, entry, make_registry
from places import SOON, OwnClock, Worker, assert_landed, calls_to, is_held, occupied, until

from maxwell.clock import SystemClock
from maxwell.errors import AllAttemptsFailed, BackendError, CallTimeout, MaxwellError, StatusError
from maxwell.lm_pool import LLMPool
from maxwell.receipts import Receipt
from maxwell.receipts.book import ReceiptBook
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

NEVER = float("inf")
LATE = 1.5  # seconds that a call may end after its deadline on a busy machine
FAST, SLOW = "From the fast one.", "From the slow one."
CROWD = 400  # calls
PRICE = 0.005  # US dollars per 1000 tokens


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as made:
        yield made


def last_receipt(pool: LLMPool) -> Receipt:
    found = ReceiptBook(pool.ledger.database, SystemClock()).last()  # type: ignore[attr-defined]
    assert found is not None
    return found


# --- slots


@pytest.fixture
def fast(fake_server: FakeServers) -> FakeServer:
    """Two slots; a reply takes a moment."""
    return fake_server(slots=2, reply=[f"{FAST} "] * 6, tokens_per_sec=100)


@pytest.fixture
def slow(fake_server: FakeServers) -> FakeServer:
    """So many slots that one of them is always free."""
    return fake_server(slots=64, reply=[f"{SLOW} "] * 6, tokens_per_sec=100, context=8192)


@pytest.mark.parametrize("prompt", [None, "Hello"], ids=["by speed", "by score"])
def test_threads_never_send_a_third_request_to_two_slots(
    fast: FakeServer, slow: FakeServer, tmp_path: Path, threads: ThreadPoolExecutor, prompt: str | None
) -> None:
    calls = calls_to(tmp_path, entry(fast, "fast", 400), entry(slow, "slow", 90))
    calls.warm()
    with calls.pool() as pool:

        def ask(_: int) -> str:
            return pool.get_lm(prompt=prompt).generate("Hello")

        texts = list(threads.map(ask, range(24)))
        assert_landed(pool)
    assert fast.max_in_flight == 2
    assert all(text.startswith((FAST, SLOW)) for text in texts)
    assert chats(slow), "an idle one was never asked"


def test_handles_made_beforehand_share_the_slots_too(
    fast: FakeServer, slow: FakeServer, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    calls = calls_to(tmp_path, entry(fast, "fast", 400), entry(slow, "slow", 90))
    calls.warm()
    with calls.pool() as pool:
        lms = [pool.get_lm() for _ in range(16)]
        assert {lm.name for lm in lms} == {"fast"}
        list(threads.map(lambda lm: lm.generate("Hello"), lms))
        assert_landed(pool)
    assert fast.max_in_flight == 2


def test_tasks_never_send_a_third_request_to_two_slots(
    fast: FakeServer, slow: FakeServer, tmp_path: Path
) -> None:
    calls = calls_to(tmp_path, entry(fast, "fast", 400), entry(slow, "slow", 90))

    async def main() -> list[str]:
        async with calls.async_pool() as pool:

            async def ask() -> str:
                return await (await pool.get_lm(prompt="Hello")).generate("Hello")

            return await asyncio.gather(*(ask() for _ in range(24)))

    assert len(asyncio.run(main())) == 24
    assert fast.max_in_flight == 2
    assert chats(slow)


def test_two_entries_of_one_server_share_its_slots(
    fast: FakeServer, slow: FakeServer, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    entries = [entry(fast, "one", 400), entry(fast, "other", 390), entry(slow, "slow", 90)]
    calls = calls_to(tmp_path, *entries)
    calls.warm()
    with calls.pool() as pool:
        list(threads.map(lambda i: pool.get_lm().generate("Hello"), range(16)))
    assert fast.max_in_flight == 2


def test_alone_a_server_is_never_given_more_than_its_slots(
    fast: FakeServer, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    calls = calls_to(tmp_path, entry(fast, "fast", 400))
    calls.warm()
    with calls.pool() as pool:
        texts = list(threads.map(lambda i: pool.get_lm().generate("Hello"), range(12)))
        assert_landed(pool)
    assert len(texts) == 12
    assert fast.max_in_flight == 2


WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from maxwell.lm_pool import LLMPool
pool = LLMPool.from_registry()
pool.health()
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(4) as threads:
    said = [{"role": "user", "content": "Hello"}]
    names = list(threads.map(lambda i: pool.get_lm().chat(said).llm, range(4)))
pool.close()
print(" ".join(names))
"""


def test_processes_never_send_a_third_request_to_two_slots(
    fast: FakeServer, slow: FakeServer, write_registry: WriteRegistry
) -> None:
    write_registry(fast.llm_entry("fast", capabilities={"speed_tokens_per_sec": 400}), slow.llm_entry("slow"))
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(WORKER)) for _ in range(4)]
        for worker in workers:
            worker.ready()
        for worker in workers:
            worker.go()
        names = " ".join(worker.result() for worker in workers).split()
    assert len(names) == 16
    assert set(names) == {"fast", "slow"}
    assert fast.max_in_flight == 2


HOLDER = """
import sys
from maxwell.lm_pool import LLMPool
stream = LLMPool.from_registry().get_lm("one").stream("Hello")
next(stream)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_killed_process_gives_its_slot_back(
    fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server(slots=1, reply=["word "] * 1000, tokens_per_sec=20)
    path = write_registry(server.llm_entry("one"))
    with LLMPool.from_registry(path) as pool, Worker(HOLDER) as holder:
        holder.ready()
        with pytest.raises(CallTimeout):
            pool.get_lm("one").generate("Hello", timeout=0.5)
        assert server.max_in_flight == 1, "the other process's call was not seen"
        holder.kill()
        next(pool.get_lm("one").stream("Hello", timeout=SOON))


def test_those_who_wait_are_served_in_the_order_they_came(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    server = fake_server(slots=1, reply=["word "] * 200, tokens_per_sec=100)
    calls = calls_to(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        lm = pool.get_lm("one")
        waiting: list[Future[str]] = []
        with occupied(pool, "one", server):
            for i in range(6):
                waiting.append(threads.submit(lm.generate, f"number {i}", max_tokens=2))
                until(
                    lambda n=i + 1: sum(x.waiting for x in pool._state.flights.loads().values()) == n,  # type: ignore[misc]
                    "it is not held",
                )
            assert server.max_in_flight == 1
        for one in waiting:
            one.result(SOON)
        assert_landed(pool)
    said = [request.body["messages"][-1]["content"] for request in chats(server)]
    assert said[1:] == [f"number {i}" for i in range(6)]
    assert server.max_in_flight == 1


def test_a_held_call_goes_where_a_slot_becomes_free(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    # Whatever it was waiting for: what is held here can be moved, what waits in a server cannot.
    first = fake_server(slots=1, reply=["first "] * 500, tokens_per_sec=20)
    second = fake_server(slots=1, reply=["second "] * 500, tokens_per_sec=20)
    calls = calls_to(tmp_path, entry(first, "first", 100), entry(second, "second", 90))
    calls.warm()
    with calls.pool() as pool, occupied(pool, "first", first):
        with occupied(pool, "second", second):
            held = threads.submit(pool.get_lm().generate, "Hello", max_tokens=1)
            until(lambda: is_held(pool), "it is not held")
        assert held.result(SOON) == "second "


def test_a_cancelled_wait_leaves_nothing(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=1, reply=["word "] * 1000, tokens_per_sec=20)
    calls = calls_to(tmp_path, entry(server, "one"))

    async def main() -> None:
        with calls.pool() as pool, occupied(pool, "one", server):
            async with calls.async_pool() as other:
                lm = await other.get_lm("one")
                held = [asyncio.create_task(lm.generate("Hello")) for _ in range(3)]
                while sum(load.waiting for load in other._state.flights.loads().values()) < 3:
                    await asyncio.sleep(0.005)
                for task in held:
                    task.cancel()
                assert all(isinstance(e, asyncio.CancelledError) for e in await gathered(held))
                loads = other._state.flights.loads()
                assert [(load.running, load.waiting) for load in loads.values()] == [(1, 0)]
                assert len(list(other.ledger.holds())) == 1  # the one that runs
        assert_landed(pool)

    asyncio.run(main())
    assert server.max_in_flight == 1


async def gathered(tasks: list[asyncio.Task[str]]) -> list[Any]:
    return list(await asyncio.gather(*tasks, return_exceptions=True))


# --- wait or spend


@pytest.fixture
def free(fake_server: FakeServers) -> FakeServer:
    """One slot, occupied for long by a long story."""

    def reply(body: dict[str, Any]) -> list[str]:
        return ["free "] * (1000 if "long" in body["messages"][-1]["content"] else 4)

    return fake_server(slots=1, reply=reply, tokens_per_sec=20)


@pytest.fixture
def paid(fake_server: FakeServers) -> FakeServer:
    return fake_server("vllm", reply=["paid "] * 4)


def wait_or_spend_pool(free: FakeServer, paid: FakeServer, home: Path) -> LLMPool:
    # A busy slot is expected to be free again in 5 s; the paid one costs 2.6 mills for 512 tokens.
    registry = make_registry(
        free.llm_entry("free", capabilities={"speed_tokens_per_sec": 100}),
        paid.llm_entry("paid", capabilities={"speed_tokens_per_sec": 100}, cost_per_1k_tokens=PRICE),
    )
    return LLMPool(registry, home=home, environ={}, clock=OwnClock())


def test_a_high_weight_spends(free: FakeServer, paid: FakeServer, tmp_path: Path) -> None:
    with wait_or_spend_pool(free, paid, tmp_path) as pool:
        pool.health()
        lm = pool.get_lm(prompt="Hello", time_cost_weight=10.0)
        assert lm.name == "free"  # while it is idle
        with occupied(pool, "free", free):
            assert lm.generate("Hello") == "paid " * 4
            receipt = last_receipt(pool)
            assert pool.get_lm(prompt="Hello", time_cost_weight=10.0).name == "paid"
    terms = {ranked.name: ranked for ranked in receipt.choice.ranked}
    assert (receipt.llm, receipt.chosen_before) == ("paid", "free")
    assert terms["free"].queue_wait > 1
    assert terms["free"].mills == 0
    assert terms["paid"].queue_wait == 0
    assert terms["paid"].mills > 0
    assert receipt.choice.wait_or_spend


def test_a_low_weight_waits(
    free: FakeServer, paid: FakeServer, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    with wait_or_spend_pool(free, paid, tmp_path) as pool:
        pool.health()
        lm = pool.get_lm(prompt="Hello", time_cost_weight=0.1)
        with occupied(pool, "free", free):
            held = threads.submit(lm.generate, "Hello")
            until(lambda: is_held(pool), "it is not held")
        assert held.result(SOON) == "free " * 4
        receipt = last_receipt(pool)
    assert chats(paid) == []
    assert free.max_in_flight == 1
    assert receipt.llm == "free"
    assert receipt.attempts[0].held_seconds > 0


def test_the_comparison_is_kept_where_it_was_to_wait(
    free: FakeServer, paid: FakeServer, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    with wait_or_spend_pool(free, paid, tmp_path) as pool:
        pool.health()
        lm = pool.get_lm(prompt="Hello", time_cost_weight=0.1)
        with occupied(pool, "free", free):
            held = threads.submit(lm.generate, "Hello")
            until(lambda: is_held(pool), "it is not held")
        held.result(SOON)
        receipt = last_receipt(pool)
    terms = {ranked.name: ranked for ranked in receipt.choice.ranked}
    assert terms["paid"].mills > 0
    assert terms["free"].queue_wait > 0, "the wait that was weighed against the price cannot be seen"
    assert receipt.choice.wait_or_spend


# --- loading


def test_a_loading_server_is_waited_for(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    server = fake_server(reply=FAST)
    server.set_state("loading")
    with calls_to(tmp_path, entry(server, "one")).pool() as pool:
        held = threads.submit(lambda: pool.get_lm().generate("Hello"))
        until(lambda: is_held(pool), "it is not held")
        server.set_state("up")
        assert held.result(SOON) == FAST
        assert_landed(pool)
    assert len(chats(server)) == 1  # nothing was sent that it had to refuse


@pytest.mark.parametrize(("weight", "name"), [(0.01, "free"), (10.0, "paid")])
def test_a_loading_server_is_weighed_against_the_price_of_another(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor, weight: float, name: str
) -> None:
    free, paid = fake_server(reply="free"), fake_server(reply="paid")
    free.set_state("loading")
    with wait_or_spend_pool(free, paid, tmp_path) as pool:
        pool.health()
        answer = threads.submit(
            lambda: pool.get_lm(prompt="Hello", time_cost_weight=weight).generate("Hello")
        )
        if name == "free":
            until(lambda: is_held(pool), "it is not held")
            free.set_state("up")
        assert answer.result(SOON) == name
        receipt = last_receipt(pool)
    terms = {ranked.name: ranked for ranked in receipt.choice.ranked}
    assert terms["paid"].mills > 0
    if name == "paid":
        assert terms["free"].ready_in > 0


def test_a_server_that_loads_after_it_was_chosen_is_waited_for(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    server = fake_server(reply=FAST)
    calls = calls_to(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        lm = pool.get_lm("one")
        server.set_state("loading")
        held = threads.submit(lm.generate, "Hello")
        until(lambda: is_held(pool), "it is not held")
        server.set_state("up")
        assert held.result(SOON) == FAST


# --- rate limits


def in_seconds(seconds: float) -> str:
    """An HTTP date, which knows whole seconds only."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_short_rate_limit_is_waited_for(fake_server: FakeServers, tmp_path: Path, form: str) -> None:
    server = fake_server("openai", reply=FAST)
    calls = calls_to(tmp_path, entry(server, "one"))
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        began = time.monotonic()
        server.fail(faults.RateLimited(retry_after=1 if form == "seconds" else in_seconds(2)))
        assert lm.generate("Hello") == FAST
        assert time.monotonic() - began >= 0.95
        assert_landed(pool)
    assert len(chats(server)) == 2


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_long_rate_limit_is_an_error_at_once(fake_server: FakeServers, tmp_path: Path, form: str) -> None:
    server = fake_server("openai")
    calls = calls_to(tmp_path, entry(server, "one"))
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        server.fail(faults.RateLimited(3600 if form == "seconds" else in_seconds(3600)), times=None)
        began = time.monotonic()
        with pytest.raises(StatusError) as caught:
            lm.generate("Hello")
        assert time.monotonic() - began < LATE
        assert caught.value.kind == "rate_limited"
        assert caught.value.retry_after == pytest.approx(3600, abs=5)
        assert len(chats(server)) == 1
        with pytest.raises(MaxwellError, match=r"rate|Rate"):
            pool.get_lm()
        assert_landed(pool)


def test_a_rate_limit_that_outlasts_the_deadline_is_an_error_at_once(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server("openai")
    calls = calls_to(tmp_path, entry(server, "one"))
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        server.fail(faults.RateLimited(retry_after=20), times=None)
        began = time.monotonic()
        with pytest.raises(StatusError) as caught:
            lm.generate("Hello", timeout=5.0)
        assert time.monotonic() - began < 3.0, "it waited for what it could not have"
        assert (caught.value.kind, caught.value.retry_after) == ("rate_limited", 20)


def test_another_one_is_not_kept_waiting_by_a_rate_limit(fake_server: FakeServers, tmp_path: Path) -> None:
    limited, well = fake_server("openai"), fake_server(reply=SLOW)
    limited.fail(faults.RateLimited(retry_after=30), times=None)
    calls = calls_to(tmp_path, entry(limited, "limited", 500), entry(well, "well"))
    calls.warm()
    began = time.monotonic()
    assert [calls.ask("generate").text for _ in range(3)] == [SLOW] * 3
    assert time.monotonic() - began < SOON
    assert len(chats(limited)) == 1


# --- deadlines


def assert_timed_out(call: Callable[[], object], seconds: float) -> BackendError:
    """It ends within its deadline, a moment more on a busy machine, and says that the time ran out."""
    began = time.monotonic()
    with pytest.raises(BackendError) as caught:
        call()
    took = time.monotonic() - began
    assert took < seconds + LATE, f"{took:.1f} s"
    return caught.value


def test_a_deadline_bounds_the_wait_for_a_slot(free: FakeServer, tmp_path: Path) -> None:
    calls = calls_to(tmp_path, entry(free, "one"))
    with calls.pool() as pool:
        with occupied(pool, "one", free):
            error = assert_timed_out(lambda: pool.get_lm("one").generate("Hello", timeout=0.4), 0.4)
            assert (type(error), error.kind, error.llm) == (CallTimeout, "timeout", "one")
            assert free.max_in_flight == 1
        assert_landed(pool)


def test_a_deadline_bounds_the_wait_for_a_loading_server(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    server.set_state("loading")
    with calls_to(tmp_path, entry(server, "one")).pool() as pool:
        error = assert_timed_out(lambda: pool.get_lm().generate("Hello", timeout=0.4), 0.4)
        assert (type(error), error.kind) == (CallTimeout, "timeout")
        assert_landed(pool)


def test_a_deadline_bounds_the_wait_between_attempts(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    server.fail(faults.ServerError(503), times=None)
    with calls_to(tmp_path, entry(server, "one")).pool() as pool:
        lm = pool.get_lm()
        for _ in range(3):
            assert_timed_out(lambda: lm.generate("Hello", timeout=0.1), 0.1)
        assert_landed(pool)


def test_a_deadline_bounds_a_server_that_hangs_and_leaves_time_for_another(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    hanging, well = fake_server(), fake_server(reply=SLOW)
    hanging.fail(faults.SlowFirstByte(NEVER), times=None)
    calls = calls_to(tmp_path, entry(hanging, "hanging", 500), entry(well, "well"))
    calls.warm()
    began = time.monotonic()
    assert calls.ask("generate", timeout=4.0).text == SLOW
    assert time.monotonic() - began < 4.0
    assert_idle(hanging, well)


def test_a_wait_that_ends_in_vain_tells_what_failed_before(
    fake_server: FakeServers, free: FakeServer, tmp_path: Path
) -> None:
    sick = fake_server()
    sick.fail(faults.ServerError(), times=None)
    calls = calls_to(tmp_path, entry(sick, "sick", 500), entry(free, "busy"))
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        with occupied(pool, "busy", free):
            began = time.monotonic()
            with pytest.raises(AllAttemptsFailed) as caught:
                lm.generate("Hello", timeout=0.6)
            assert time.monotonic() - began < 0.6 + LATE
        assert_landed(pool)
    assert [(a.llm, a.kind) for a in caught.value.attempts] == [("sick", "server_error"), ("busy", "timeout")]


# --- crowds


def test_a_crowd_at_a_cold_pool_is_served(fake_server: FakeServers, tmp_path: Path) -> None:
    servers = [fake_server(slots=8) for _ in range(4)]
    calls = calls_to(tmp_path, *(entry(s, f"llm-{i}", 100 + i) for i, s in enumerate(servers)))

    async def main() -> None:
        async with calls.async_pool() as pool:

            async def ask() -> str:
                return await (await pool.get_lm(prompt="Hello")).generate("Hello", max_tokens=2)

            assert await asyncio.gather(*(ask() for _ in range(CROWD))) == ["Hello th"] * CROWD
            assert dict(pool._state.flights.loads()) == {}

    asyncio.run(main())
    assert [server.max_in_flight <= 8 for server in servers] == [True] * 4
