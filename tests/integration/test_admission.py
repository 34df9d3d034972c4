"""Who is let go, who is held back, who goes elsewhere: slots, waits, breakers, deadlines over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from calling import Calls, assert_idle, chats, entry, make_registry

from maxwell.clock import Clock, SystemClock
from maxwell.errors import AllAttemptsFailed, BackendError, CallTimeout, MaxwellError, StatusError
from maxwell.lm_pool import LLMPool
from maxwell.receipts import Receipt
from maxwell.receipts.book import ReceiptBook
from maxwell.testing import FakeClock, FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry
from maxwell.types import BackendName

NEVER = float("inf")
SOON = 10.0  # seconds; how long something that must happen may take before a test gives up
LATE = 1.5  # seconds that a call may end after its deadline on a busy machine
FAST, SLOW = "From the fast one.", "From the slow one."
CROWD = 400  # calls
PRICE = 0.005  # US dollars per 1000 tokens


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as made:
        yield made


class OwnClock:
    """The machine's time; a pool with a clock of its own has a retry budget of its own, too."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def calls_to(home: Path, *entries: dict[str, Any], clock: Clock | None = None) -> Calls:
    return Calls(home, *entries, clock=clock or OwnClock())


@contextlib.contextmanager
def occupied(pool: LLMPool, name: str, server: FakeServer, times: int = 1) -> Iterator[None]:
    """Streams that hold so many slots of `name` until the block is left. The server must be slow."""
    with contextlib.ExitStack() as streams:
        before = server.in_flight
        for _ in range(times):
            next(streams.enter_context(pool.get_lm(name).stream("Tell me a long story.")))
        assert server.in_flight == before + times
        yield


def until(true: Callable[[], bool], what: str, seconds: float = SOON) -> None:
    """Wait until it becomes true."""
    tick, end = threading.Event(), time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        tick.wait(0.005)


def is_held(pool: LLMPool) -> bool:
    """Whether a call of this user is held back."""
    return any(load.waiting for load in pool._state.flights.loads().values())


def assert_landed(pool: LLMPool) -> None:
    """Nothing is under way, and nothing reserved."""
    until(lambda: not pool._state.flights.loads(), "a call is still counted as under way")
    assert list(pool.ledger.holds()) == []


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


class Worker:
    """A process that runs a script: it says "ready", and goes on when told to."""

    def __init__(self, script: str = WORKER) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._told = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def ready(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", (line, self._process.stderr and self._process.stderr.read())

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self._told = True

    def result(self) -> str:
        out, err = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, err
        return out.strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def test_processes_never_send_a_third_request_to_two_slots(
    fast: FakeServer, slow: FakeServer, write_registry: WriteRegistry
) -> None:
    write_registry(fast.llm_entry("fast", capabilities={"speed_tokens_per_sec": 400}), slow.llm_entry("slow"))
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker()) for _ in range(4)]
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
