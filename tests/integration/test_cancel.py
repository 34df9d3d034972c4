"""However a call is left, the server hears of it within a second and what was used is booked."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from calling import (
    AT_ONCE,
    BUDGET,
    Calls,
    assert_idle,
    assert_no_threads,
    chats,
    entry,
    wait_chats,
    wait_tokens,
)

from maxwell.calls.aiohttp_transport import AiohttpTransport
from maxwell.calls.effects import Limits
from maxwell.calls.urllib3_transport import Urllib3Transport
from maxwell.clock import SystemClock
from maxwell.handles import AsyncLLM
from maxwell.ledger.days import budget_day
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry
from maxwell.types import HTTPRequest

LONG = ["word "] * 2000
NEVER = faults.SlowFirstByte(math.inf)
PROMPT = "A prompt of some length, so that its tokens count. " * 4


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    """Generates for 40 s unless it is stopped."""
    return fake_server(reply=LONG, tokens_per_sec=50)


@pytest.fixture
def calls(server: FakeServer, tmp_path: Path) -> Calls:
    return Calls(tmp_path, entry(server, "one", timeout_seconds=60))


def assert_stopped_and_booked(calls: Calls, server: FakeServer, *, least: int = 0) -> None:
    """The server saw the client go; prompt and at least so many tokens were booked, nothing is held."""
    assert server.wait_aborted(AT_ONCE).path == "/v1/chat/completions"
    assert_idle(server)
    assert_no_threads()
    used = calls.used("one")
    assert used.held_tokens == 0
    assert used.tokens >= len(PROMPT) // 8 + least
    assert used.tokens < 1000  # what was seen, not the worst case


# --- sync


def test_closing_a_stream(calls: Calls, server: FakeServer) -> None:
    with calls.pool() as pool:
        stream = pool.get_lm().stream(PROMPT)
        assert [next(stream) for _ in range(3)] == ["word "] * 3
        stream.close()
        stream.close()
        assert list(stream) == []
        with pytest.raises(RuntimeError, match="has not ended"):
            _ = stream.completion
        assert_stopped_and_booked(calls, server, least=3)


def test_leaving_the_block_of_a_stream(calls: Calls, server: FakeServer) -> None:
    with calls.pool() as pool:
        with suppress(ZeroDivisionError), pool.get_lm().stream(PROMPT) as stream:
            for _ in stream:
                _ = 1 / 0
        assert_stopped_and_booked(calls, server, least=1)


def test_dropping_a_stream(calls: Calls, server: FakeServer) -> None:
    with calls.pool() as pool:
        stream = pool.get_lm().stream(PROMPT)
        assert next(stream) == "word "
        del stream
        gc.collect()
        assert_stopped_and_booked(calls, server, least=1)


def test_breaking_out_of_a_loop(calls: Calls, server: FakeServer) -> None:
    with calls.pool() as pool:
        for _ in pool.get_lm().stream(PROMPT):
            break
        gc.collect()
        assert_stopped_and_booked(calls, server, least=1)


def test_a_stream_never_begun_asks_and_books_nothing(calls: Calls, server: FakeServer) -> None:
    with calls.pool() as pool:
        stream = pool.get_lm().stream(PROMPT)
        stream.close()
        pool.get_lm().stream(PROMPT)
        gc.collect()
    assert chats(server) == []
    assert (calls.used("one").tokens, calls.used("one").held_tokens) == (0, 0)


def test_a_connection_is_used_again_after_a_cancelled_call(calls: Calls, server: FakeServer) -> None:
    with calls.pool() as pool:
        lm = pool.get_lm()
        for _ in range(3):
            stream = lm.stream(PROMPT)
            next(stream)
            stream.close()
        assert lm.generate(PROMPT, max_tokens=2) == "word word "
    assert_idle(server)


SCRIPT = """
import sys
from maxwell.lm_pool import get_lm

lm = get_lm()
if sys.argv[1] == "stream":
    for piece in lm.stream(sys.argv[2]):
        pass
elif sys.argv[1] == "async":
    import asyncio
    from maxwell.lm_pool import get_async_lm

    async def main():
        await (await get_async_lm()).generate(sys.argv[2])

    asyncio.run(main())
else:
    lm.generate(sys.argv[2])
"""


@pytest.mark.parametrize("stage", ["before the head", "between tokens"])
@pytest.mark.parametrize("how", ["generate", "stream", "async"])
def test_ctrl_c(
    server: FakeServer, write_registry: WriteRegistry, maxwell_home: Path, how: str, stage: str
) -> None:
    if stage == "before the head":
        server.fail(NEVER)
    write_registry(server.llm_entry("one", daily_budget_tokens=BUDGET))
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how, PROMPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with script:
        wait_chats(server)
        if stage == "between tokens":
            wait_tokens(server, 5)
        script.send_signal(signal.SIGINT)
        _, said = script.communicate(timeout=30)
    assert script.returncode in (-signal.SIGINT, 130), said
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert server.wait_aborted(AT_ONCE)
    clock = SystemClock()
    ledger = SQLiteLedger(maxwell_home / ".maxwell", clock)
    used = ledger.usage(budget_day(clock.time(), None))["one"]
    ledger.close()
    assert used.held_tokens == 0
    assert len(PROMPT) // 8 <= used.tokens < 1000
    written = json.loads((maxwell_home / ".maxwell" / "llm_usage.json").read_text())
    assert sum(written["one"].values()) == used.tokens


# --- async


def leave(
    calls: Calls,
    do: Callable[[AsyncLLM], Coroutine[Any, Any, Any]],
    ready: Callable[[], object],
    *servers: FakeServer,
) -> None:
    """Begin `do` in a task, and cancel that once `ready` has returned."""

    async def main() -> None:
        async with calls.async_pool() as pool:
            task = asyncio.create_task(do(await pool.get_lm()))
            await asyncio.to_thread(ready)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The pool lives on, so nothing but the cancelled call can have ended the request.
            await asyncio.to_thread(assert_idle, *servers)

    asyncio.run(main())


async def generate(lm: AsyncLLM) -> str:
    return await lm.generate(PROMPT)


async def iterate(lm: AsyncLLM) -> None:
    async for _ in lm.stream(PROMPT):
        pass


@pytest.mark.parametrize("do", [generate, iterate])
def test_cancelling_a_task_before_the_head(
    calls: Calls, server: FakeServer, do: Callable[[AsyncLLM], Coroutine[Any, Any, Any]]
) -> None:
    server.fail(NEVER)
    leave(calls, do, lambda: wait_chats(server), server)
    assert_stopped_and_booked(calls, server)


@pytest.mark.parametrize("do", [generate, iterate])
def test_cancelling_a_task_between_tokens(
    calls: Calls, server: FakeServer, do: Callable[[AsyncLLM], Coroutine[Any, Any, Any]]
) -> None:
    leave(calls, do, lambda: wait_tokens(server, 5), server)
    assert_stopped_and_booked(calls, server, least=1)


def test_cancelling_a_task_in_the_silence_after_a_failover(fake_server: FakeServers, tmp_path: Path) -> None:
    first, second = fake_server(), fake_server()
    first.fail(faults.Cut())
    second.fail(NEVER)
    calls = Calls(tmp_path, entry(first, "one", 500), entry(second, "two"))
    calls.warm()
    leave(calls, generate, lambda: wait_chats(second), first, second)
    assert second.wait_aborted(AT_ONCE)
    for name in ("one", "two"):
        assert calls.used(name).tokens > 0
        assert calls.used(name).held_tokens == 0


def in_loop(calls: Calls, do: Callable[[AsyncLLM], Awaitable[object]]) -> None:
    async def main() -> None:
        async with calls.async_pool() as pool:
            await do(await pool.get_lm())

    asyncio.run(main())


def test_asyncio_timeout(calls: Calls, server: FakeServer) -> None:
    async def do(lm: AsyncLLM) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.4):
                await lm.generate(PROMPT)
        await asyncio.to_thread(server.wait_aborted, AT_ONCE)

    in_loop(calls, do)
    assert_stopped_and_booked(calls, server, least=1)


def test_a_task_group_that_fails(calls: Calls, server: FakeServer) -> None:
    async def do(lm: AsyncLLM) -> None:
        async def fail() -> None:
            await asyncio.to_thread(wait_tokens, server, 3)
            raise ZeroDivisionError

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(lm.generate(PROMPT))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup) as caught:
            await both()
        assert caught.group_contains(ZeroDivisionError)
        await asyncio.to_thread(server.wait_aborted, AT_ONCE)

    in_loop(calls, do)
    assert_stopped_and_booked(calls, server, least=1)


def test_closing_an_async_stream(calls: Calls, server: FakeServer) -> None:
    async def do(lm: AsyncLLM) -> None:
        stream = lm.stream(PROMPT)
        assert [await anext(stream) for _ in range(3)] == ["word "] * 3
        await stream.aclose()
        await stream.aclose()
        assert [piece async for piece in stream] == []
        await asyncio.to_thread(server.wait_aborted, AT_ONCE)

    in_loop(calls, do)
    assert_stopped_and_booked(calls, server, least=3)


def test_leaving_the_block_of_an_async_stream(calls: Calls, server: FakeServer) -> None:
    async def do(lm: AsyncLLM) -> None:
        with suppress(ZeroDivisionError):
            async with lm.stream(PROMPT) as stream:
                async for _ in stream:
                    _ = 1 / 0
        await asyncio.to_thread(server.wait_aborted, AT_ONCE)

    in_loop(calls, do)
    assert_stopped_and_booked(calls, server, least=1)


def test_dropping_an_async_stream(calls: Calls, server: FakeServer) -> None:
    async def do(lm: AsyncLLM) -> None:
        stream = lm.stream(PROMPT)
        assert await anext(stream) == "word "
        del stream
        gc.collect()
        await asyncio.to_thread(server.wait_aborted, AT_ONCE)

    in_loop(calls, do)
    assert_stopped_and_booked(calls, server, least=1)


def test_the_end_of_the_loop_ends_its_streams(calls: Calls, server: FakeServer) -> None:
    async def do(lm: AsyncLLM) -> None:
        kept.append(lm.stream(PROMPT))
        await anext(kept[0])

    kept: list[Any] = []
    in_loop(calls, do)
    assert_stopped_and_booked(calls, server, least=1)


def test_cancelling_one_of_many_leaves_the_others(calls: Calls, server: FakeServer) -> None:
    async def do(lm: AsyncLLM) -> None:
        short = [asyncio.create_task(lm.generate(PROMPT, max_tokens=20)) for _ in range(3)]
        long = asyncio.create_task(lm.generate(PROMPT))
        await asyncio.to_thread(wait_chats, server, 4)
        long.cancel()
        assert await asyncio.gather(*short) == ["word " * 20] * 3
        assert long.cancelled()

    in_loop(calls, do)
    assert [r.aborted for r in chats(server)].count(True) == 1
    assert_idle(server)
    assert calls.used("one").held_tokens == 0


def test_cancelling_while_choosing(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    server.fail(NEVER, path="/health")
    calls = Calls(tmp_path, entry(server, "one"))

    async def main() -> None:
        async with calls.async_pool() as pool:
            task = asyncio.create_task(pool.get_lm())
            await asyncio.to_thread(server.wait_requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert_idle(server)
    assert calls.used("one").held_tokens == 0


# --- without the garbage collector's help


class Hoarder:
    """A transport whose exchanges somebody holds on to, as a debugger or a traceback may."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.kept: list[Any] = []

    def send(self, request: HTTPRequest, limits: Limits) -> Any:
        sent = self.transport.send(request, limits)
        if not asyncio.iscoroutine(sent):
            self.kept.append(sent)
            return sent

        async def awaited() -> Any:
            self.kept.append(await sent)
            return self.kept[-1]

        return awaited()

    def close(self) -> Any:
        return self.transport.close()


def test_a_driver_cuts_what_others_hold_on_to(server: FakeServer, calls: Calls) -> None:
    hoarder = Hoarder(Urllib3Transport())
    with LLMPool(calls.registry, transport=hoarder, home=calls.home, ledger=calls.ledger) as pool:
        stream = pool.get_lm().stream(PROMPT)
        assert next(stream) == "word "
        stream.close()
        assert_stopped_and_booked(calls, server, least=1)


def test_an_async_driver_cuts_what_others_hold_on_to(server: FakeServer, calls: Calls) -> None:
    hoarder = Hoarder(AiohttpTransport())

    async def main() -> None:
        pool = AsyncLLMPool(calls.registry, transport=hoarder, home=calls.home, ledger=calls.ledger)
        async with pool:
            stream = (await pool.get_lm()).stream(PROMPT)
            assert await anext(stream) == "word "
            await stream.aclose()
            await asyncio.to_thread(server.wait_aborted, AT_ONCE)

    asyncio.run(main())
    assert_stopped_and_booked(calls, server, least=1)


# --- embeddings


def test_cancelling_an_embedding_call_books_it(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(embeddings=True)
    server.fail(NEVER)
    calls = Calls(tmp_path, server.embedding_entry("e", daily_budget_tokens=BUDGET))

    async def main() -> None:
        async with calls.async_pool() as pool:
            embedding = await pool.get_embedding("e")
            task = asyncio.create_task(embedding.embed("Some text to embed"))
            while not server.requests_to("/v1/embeddings"):
                await asyncio.to_thread(server.wait_requests, len(server.requests) + 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.wait_aborted, AT_ONCE)

    asyncio.run(main())
    used = calls.used("e")
    assert (used.tokens > 0, used.held_tokens) == (True, 0)
