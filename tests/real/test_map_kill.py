"""`pool.map` while its real llama.cpp servers are killed, one after another."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from calling import Calls, assert_no_threads, free_port

from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.local.server import LocalServer
from maxwell.maps import Mapped

pytestmark = pytest.mark.real

ITEMS = 500
TOKENS = 6
NAMES = ("ada", "bob", "cid")
# After so many results: who is killed, and who is started again. In the end one is left.
COURSE: dict[int, tuple[str, str]] = {
    40: ("ada", ""),
    120: ("bob", "ada"),
    200: ("cid", "bob"),
    280: ("ada", "cid"),
    360: ("bob", ""),
}


class Machines:
    """Three servers, each on a port of its own that it keeps over its deaths."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._ports = {name: free_port() for name in NAMES}
        self._servers: dict[str, LocalServer] = {}
        self.killed: list[str] = []
        for name in NAMES:
            self.start(name)
        for server in self._servers.values():
            server.wait_ready()

    def start(self, name: str) -> None:
        """Start it; it is ready some time later."""
        self._servers[name] = LocalServer(self._model, port=self._ports[name], context=2048, slots=2)

    def kill(self, name: str) -> None:
        server = self._servers.pop(name)
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        server.kill()  # closes its pipes
        self.killed.append(name)

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()

    def entry(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "api_base": f"http://127.0.0.1:{self._ports[name]}",
            "model": "tiny.gguf",
            "backend": "llamacpp",
            "capabilities": {"max_tokens": 512, "max_context": 1024, "speed_tokens_per_sec": 100.0},
            "default_temperature": 0.7,
        }


@pytest.fixture
def machines(tiny_models: dict[str, Path]) -> Iterator[Machines]:
    with ExitStack() as stack:
        made = Machines(tiny_models["fast"])
        stack.callback(made.stop)
        yield made


def proceed(machines: Machines, results: int) -> None:
    """What happens to the servers after so many results."""
    killed, started = COURSE.get(results, ("", ""))
    if started:
        machines.start(started)
    if killed:
        machines.kill(killed)


def assert_whole(seen: list[Mapped]) -> None:
    """A reply to every item, none twice, although servers died with some of them in hand."""
    assert Counter(result.index for result in seen) == Counter(range(ITEMS))
    assert {result.index: result.item for result in seen} == dict(enumerate(PROMPTS))
    assert [result.error for result in seen if result.completion is None] == []
    done = [result.completion for result in seen if result.completion is not None]
    assert {completion.llm for completion in done} == set(NAMES)
    assert any(len(completion.attempts) > 1 for completion in done)


def assert_landed(pool: LLMPool | AsyncLLMPool) -> None:
    """No reservation is left, and nobody is counted as under way."""
    tick, until = threading.Event(), time.monotonic() + 5.0
    while pool._state.flights.loads():
        assert time.monotonic() < until, pool._state.flights.loads()
        tick.wait(0.01)
    assert list(pool.ledger.holds()) == []


PROMPTS = [f"Word number {i}." for i in range(ITEMS)]


def test_kills_in_turn_lose_nothing(machines: Machines, tmp_path: Path) -> None:
    calls = Calls(tmp_path, *(machines.entry(name) for name in NAMES))
    calls.warm()
    seen: list[Mapped] = []
    with calls.pool() as pool:
        for result in pool.map(PROMPTS, ordered=False, max_tokens=TOKENS, temperature=0.0):
            seen.append(result)
            proceed(machines, len(seen))
        assert_landed(pool)
    assert_whole(seen)
    assert len(machines.killed) == len(COURSE)
    assert_no_threads()


def test_kills_in_turn_lose_nothing_async(machines: Machines, tmp_path: Path) -> None:
    calls = Calls(tmp_path, *(machines.entry(name) for name in NAMES))
    calls.warm()
    seen: list[Mapped] = []

    async def main() -> None:
        async with calls.async_pool() as pool:
            async for result in pool.map(PROMPTS, max_tokens=TOKENS, temperature=0.0):
                assert result.index == len(seen)  # in order
                seen.append(result)
                proceed(machines, len(seen))
            assert_landed(pool)

    asyncio.run(main())
    assert_whole(seen)
    assert len(machines.killed) == len(COURSE)
