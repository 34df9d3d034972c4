"""Calls that end in unusual ways give their places back: cancelled, killed, dropped, files in the way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from calling import Calls, assert_idle, assert_no_threads, chats, entry, free_port, make_registry
from places import LONG, SOON, assert_landed, count, until
from processes import can_fork, ended, fork

from maxwell.errors import BackendError, CallTimeout, StatusError
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.testing import FakeClock, FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

NEVER = float("inf")
TEXT = "Hello there, friend."


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as made:
        yield made


@pytest.fixture
def busy(fake_server: FakeServers) -> FakeServer:
    """One slot; a long story takes 50 s, anything else a moment."""

    def reply(body: dict[str, Any]) -> list[str]:
        return ["word "] * (1000 if "long" in body["messages"][-1]["content"] else 2)

    return fake_server(slots=1, reply=reply, tokens_per_sec=20)


# --- ends


def test_a_stream_that_is_dropped_gives_its_place_back(busy: FakeServer, tmp_path: Path) -> None:
    with Calls(tmp_path, entry(busy, "one")).pool() as pool:
        stream = pool.get_lm().stream(LONG)
        next(stream)
        assert count(pool) == (1, 0)
        del stream
        gc.collect()
        assert_landed(pool)
        assert pool.get_lm().generate("Hello", timeout=SOON) == "word word "


def test_a_stream_that_is_never_begun_takes_no_place(busy: FakeServer, tmp_path: Path) -> None:
    with Calls(tmp_path, entry(busy, "one")).pool() as pool:
        stream = pool.get_lm().stream(LONG)
        assert count(pool) == (0, 0)
        stream.close()
        assert pool.get_lm().generate("Hello", timeout=SOON) == "word word "


def test_a_loop_that_ends_early_gives_all_places_back(busy: FakeServer, tmp_path: Path) -> None:
    calls = Calls(tmp_path, entry(busy, "one"))
    pools: list[AsyncLLMPool] = []

    async def main() -> None:
        pool = calls.async_pool()
        pools.append(pool)
        lm = await pool.get_lm()
        running = lm.stream(LONG)
        await anext(running)
        held = [asyncio.create_task(lm.generate("Hello")) for _ in range(3)]
        while count(pool) != (1, 3):
            await asyncio.sleep(0.005)
        del held

    asyncio.run(main())
    gc.collect()
    assert_landed(pools[0])
    assert_idle(busy)


def test_cancelling_at_any_moment_leaves_nothing(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=2, reply=["word "] * 4, tokens_per_sec=200)
    other = fake_server(slots=1, reply=["word "] * 4, tokens_per_sec=200)
    calls = Calls(tmp_path, entry(server, "one"), entry(other, "two"))
    draw = random.Random(7)

    async def one(pool: AsyncLLMPool) -> None:
        lm = await pool.get_lm(prompt="Hello")
        await lm.generate("Hello")

    async def main() -> None:
        async with calls.async_pool() as pool:
            await pool.health()
            tasks = [asyncio.create_task(one(pool)) for _ in range(60)]
            while any(not task.done() for task in tasks):
                await asyncio.sleep(draw.random() * 0.01)
                draw.choice(tasks).cancel()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(e) for e in errors} <= {type(None), asyncio.CancelledError}
            assert_landed(pool)

    asyncio.run(main())
    assert_idle(server, other)
    assert server.max_in_flight <= 2 + 60  # a server hears of a cut a moment later


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_a_map_left_early_leaves_nothing(fake_server: FakeServers, tmp_path: Path, taken: int) -> None:
    servers = [fake_server(slots=2, reply=["word "] * 20, tokens_per_sec=100) for _ in range(2)]
    calls = Calls(tmp_path, *(entry(server, f"llm-{i}") for i, server in enumerate(servers)))
    with calls.pool() as pool:
        with pool.map([f"Hello {i}" for i in range(40)], ordered=False) as results:
            for _ in range(taken):
                assert next(results).error is None
        assert_landed(pool)
    assert_idle(*servers)
    assert_no_threads()
    assert sum(len(chats(server)) for server in servers) < 40


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.35])
def test_a_cancelled_map_leaves_nothing(fake_server: FakeServers, tmp_path: Path, seconds: float) -> None:
    servers = [fake_server(slots=2, reply=["word "] * 20, tokens_per_sec=100) for _ in range(2)]
    calls = Calls(tmp_path, *(entry(server, f"llm-{i}") for i, server in enumerate(servers)))

    async def main() -> None:
        async with calls.async_pool() as pool:

            async def work() -> None:
                async for result in pool.map([f"Hello {i}" for i in range(40)]):
                    assert result.error is None

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work(), seconds)
            assert_landed(pool)

    asyncio.run(main())
    assert_idle(*servers)


@contextlib.contextmanager
def locked(home: Path, hold: float = 0.02, free: float = 0.01) -> Iterator[None]:
    """The file of what is under way is written to by somebody else again and again."""
    over = threading.Event()

    def lock() -> None:
        with contextlib.closing(sqlite3.connect(home / "live.db", timeout=5.0)) as other:
            while not over.wait(free):
                other.execute("BEGIN IMMEDIATE")
                over.wait(hold)
                other.rollback()

    thread = threading.Thread(target=lock)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_cancelling_while_others_write_leaves_nothing(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=4, reply=["word "] * 2, tokens_per_sec=200)
    calls = Calls(tmp_path, entry(server, "one"))
    draw = random.Random(11)

    async def main() -> None:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()
            await lm.generate("Hello")
            with locked(tmp_path):
                tasks = [asyncio.create_task(lm.generate("Hello")) for _ in range(80)]
                while any(not task.done() for task in tasks):
                    await asyncio.sleep(draw.random() * 0.01)
                    draw.choice(tasks).cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert_landed(pool)

    asyncio.run(main())


# --- deaths

WAITER = """
import sys
from maxwell.lm_pool import LLMPool
print("ready", flush=True)
LLMPool.from_registry().get_lm("one").generate("Hello")
"""


def test_a_process_killed_while_it_waits_keeps_nobody_waiting(
    busy: FakeServer, write_registry: WriteRegistry
) -> None:
    path = write_registry(busy.llm_entry("one"))
    with LLMPool.from_registry(path) as pool:
        lm = pool.get_lm("one")
        with lm.stream(LONG) as stream:
            next(stream)
            waiter = subprocess.Popen([sys.executable, "-c", WAITER], stdout=subprocess.PIPE)
            with waiter:
                assert waiter.stdout is not None
                assert waiter.stdout.readline() == b"ready\n"
                until(lambda: count(pool) == (1, 1), "the other process's call is not seen")
                waiter.kill()
        assert lm.generate("Hello", timeout=SOON) == "word word "
        assert_landed(pool)


def test_a_trial_that_is_cancelled_is_not_the_last(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    sick, well = fake_server(reply="From the sick one."), fake_server()
    calls = Calls(tmp_path, entry(sick, "sick", 500), entry(well, "well"), clock=fake_clock)
    calls.warm()
    sick.fail(faults.ServerError(), times=None)

    async def main() -> None:
        async with calls.async_pool() as pool:
            for _ in range(3):
                with contextlib.suppress(BackendError):
                    await (await pool.get_lm("sick")).generate("Hello", timeout=0.3)
            assert (await pool.get_lm()).name == "well"
            sick.heal()
            fake_clock.advance(7)
            sick.fail(faults.SlowFirstByte(NEVER), times=1)
            asked = len(chats(sick))
            trial = asyncio.create_task((await pool.get_lm()).generate("Hello"))
            while len(chats(sick)) == asked:
                await asyncio.sleep(0.005)
            assert await (await pool.get_lm()).generate("Hello") == TEXT  # one at a time
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)
            assert await (await pool.get_lm()).generate("Hello") == "From the sick one."
            assert_landed(pool)

    asyncio.run(main())


@can_fork
def test_a_forked_child_has_places_of_its_own(busy: FakeServer, tmp_path: Path) -> None:
    with Calls(tmp_path, entry(busy, "one")).pool() as pool:
        with pool.get_lm().stream(LONG) as stream:
            next(stream)

            def child() -> None:
                assert count(pool) == (1, 0)  # the parent's, as any other process's
                with pytest.raises(CallTimeout):
                    pool.get_lm("one").generate("Hello", timeout=0.4)

            assert ended(fork(child)) == 0
            until(lambda: count(pool) == (1, 0), "the child's call is still counted")
            next(stream)
        assert_landed(pool)
    assert busy.max_in_flight == 1


# --- files in the way


def test_a_damaged_file_stops_nobody(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    (tmp_path / "live.db").write_bytes(b"this is no database" * 500)
    assert calls.ask("generate").text == TEXT
    with calls.pool() as pool:
        assert_landed(pool)


def test_a_file_that_vanishes_stops_nobody(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        lm = pool.get_lm()
        assert lm.generate("Hello") == TEXT
        for file in tmp_path.glob("live.db*"):
            file.unlink()
        assert [lm.generate("Hello") for _ in range(3)] == [TEXT] * 3
        assert_landed(pool)


def test_a_file_that_is_locked_for_long_delays_a_call_no_longer_than_that(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server()
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        lm = pool.get_lm()
        lm.generate("Hello")
        with contextlib.closing(sqlite3.connect(tmp_path / "live.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            assert lm.generate("Hello", timeout=SOON) == TEXT
            assert time.monotonic() - began < SOON
            other.rollback()
        assert_landed(pool)


def test_a_deadline_holds_while_the_file_is_locked(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        lm = pool.get_lm()
        lm.generate("Hello")
        with contextlib.closing(sqlite3.connect(tmp_path / "live.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            with contextlib.suppress(BackendError):  # it may well answer: this file is only evidence
                lm.generate("Hello", timeout=0.5)
            assert time.monotonic() - began < 0.5 + 1.5
            other.rollback()
        assert_landed(pool)


def test_a_clock_set_back_stops_nobody(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server, other = fake_server(), fake_server(reply="From the other.")
    calls = Calls(tmp_path, entry(server, "one", 500), entry(other, "other"), clock=fake_clock)
    with calls.pool() as pool:
        assert pool.get_lm().generate("Hello") == TEXT
        server.fail(faults.RateLimited(retry_after=30))
        assert pool.get_lm().generate("Hello") == "From the other."
        fake_clock.now -= 7200
        assert pool.get_lm().generate("Hello") == TEXT
        fake_clock.now += 7200
        assert pool.get_lm().generate("Hello") in (TEXT, "From the other.")
        assert_landed(pool)


# --- what servers say of themselves


def test_the_fewer_slots_count_declared_or_told(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    few, many = (fake_server(slots=n, reply=["word "] * 6, tokens_per_sec=100) for n in (2, 8))
    calls = Calls(
        tmp_path,
        entry(few, "few", capabilities={"slots": 8}),
        entry(many, "many", capabilities={"slots": 3}),
    )
    with calls.pool() as pool:
        for name in ("few", "many"):
            lm = pool.get_lm(name)
            list(threads.map(lambda i, lm=lm: lm.generate("Hello"), range(10)))
    assert (few.max_in_flight, many.max_in_flight) == (2, 3)


def test_a_crowd_that_waits_for_a_loading_server_does_not_trample_it(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    server = fake_server(slots=2, reply=["word "] * 3, tokens_per_sec=100)
    server.set_state("loading")
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        answers = [threads.submit(lambda: pool.get_lm().generate("Hello")) for _ in range(8)]
        until(lambda: count(pool) == (0, 8), "they are not all held")
        server.set_state("up")
        assert [answer.result(SOON) for answer in answers] == ["word word word "] * 8
        assert_landed(pool)
    assert server.max_in_flight == 2
    assert len(chats(server)) == 8


def test_a_server_that_never_gets_ready_is_given_up_one_day(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor, fake_clock: FakeClock
) -> None:
    server = fake_server()
    server.set_state("loading")
    with (
        Calls(tmp_path, entry(server, "one"), clock=fake_clock).pool() as pool,
        contextlib.ExitStack() as end,
    ):
        # Or a call that is held for ever would hold up the tests.
        end.callback(fake_clock.advance, 10)
        end.callback(server.set_state, "up")
        held = threads.submit(lambda: pool.get_lm().generate("Hello"))
        until(lambda: count(pool) == (0, 1), "it is not held")
        state = pool._state
        for _ in range(12):  # it is asked again and again, and says the same
            fake_clock.advance(80)
            until(
                lambda: held.done() or getattr(state.known(state.llms[0]), "at", 0.0) >= fake_clock.time(),
                "it was not asked again",
            )
        with pytest.raises(StatusError) as caught:
            held.result(SOON)
        assert caught.value.kind == "loading"
        assert_landed(pool)


def test_a_sleeping_server_is_woken_by_the_call(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    server.set_state("asleep")
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        assert pool.get_lm(prompt="Hello").generate("Hello", timeout=5.0) == TEXT
    assert server.state == "up"


def test_strangers_at_a_server_are_seen(fake_server: FakeServers, busy: FakeServer, tmp_path: Path) -> None:
    # Another user's program has the only slot; /slots says so.
    import urllib3

    other = fake_server(reply="From the other.", slots=4)
    http = urllib3.PoolManager(retries=False)
    body = {"messages": [{"role": "user", "content": LONG}], "stream": True}
    stranger = http.request("POST", f"{busy.url}/v1/chat/completions", json=body, preload_content=False)
    try:
        stranger.read1()
        with Calls(tmp_path, entry(busy, "busy", 110), entry(other, "other", 100)).pool() as pool:
            pool.health()
            assert pool.get_lm(prompt="Hello", time_cost_weight=1.0).generate("Hello") == "From the other."
    finally:
        stranger.close()
        http.clear()
    assert busy.max_in_flight == 1


def test_embeddings_keep_to_the_slots_too(
    fake_server: FakeServers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    server = fake_server(embeddings=True, slots=2)
    server.fail(faults.SlowFirstByte(0.03), times=None, path="/v1/embeddings")
    registry = make_registry(server.embedding_entry("e"))
    with LLMPool(registry, home=tmp_path, environ={}) as pool:
        embedding = pool.get_embedding("e")
        vectors = list(threads.map(lambda i: embedding.embed(f"text {i}", timeout=SOON), range(12)))
        assert len(vectors) == 12
        assert_landed(pool)
    assert server.max_in_flight == 2


def test_a_port_where_nobody_listens_takes_no_place(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    dead = entry(server, "dead", 900, api_base=f"http://127.0.0.1:{free_port()}")
    with Calls(tmp_path, dead, entry(server, "one")).pool() as pool:
        assert [pool.get_lm().generate("Hello") for _ in range(3)] == [TEXT] * 3
        assert_landed(pool)
