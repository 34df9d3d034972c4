"""One way to call a pool in every manner there is, and what must hold after each call."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maxwell.clock import Clock
from maxwell.ledger import Used
from maxwell.ledger.memory import MemoryLedger
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.load import decode
from maxwell.registry.specs import Registry
from maxwell.testing import FakeServer, Recorded
from maxwell.types import Completion

CHAT = "/v1/chat/completions"
MODES = ("generate", "chat", "stream", "async generate", "async stream")
BUDGET = 1_000_000  # so large that it never binds, but every call has to reserve
SOON = 5.0  # seconds; how long something that must happen may take before a test gives up
AT_ONCE = 1.0  # seconds; how soon a server must see that its client has gone


class Got(NamedTuple):
    """What a call gave. `completion` is None where the call returns text alone."""

    text: str
    completion: Completion | None


class Calls:
    """Pools, sync and async, over one registry, that share books and health.

    Args:
        home: Directory of the shared health states.
        entries: The registry's entries; those with a `dimension` are embeddings.
        clock: Tells the time; default the machine's.
        environ: Where keys are found; default nothing.
    """

    def __init__(
        self,
        home: Path,
        *entries: Mapping[str, Any],
        clock: Clock | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.registry = make_registry(*entries)
        self.ledger = MemoryLedger()
        self.pieces: list[str] = []
        self._parts: dict[str, Any] = {
            "home": home,
            "clock": clock,
            "environ": environ or {},
            "ledger": self.ledger,
        }

    def pool(self) -> LLMPool:
        return LLMPool(self.registry, **self._parts)

    def async_pool(self) -> AsyncLLMPool:
        return AsyncLLMPool(self.registry, **self._parts)

    def warm(self) -> None:
        """Let the state of every server be known."""
        with self.pool() as pool:
            assert all(status.state == "up" for status in pool.health())

    def used(self, name: str) -> Used:
        with self.pool() as pool:
            return pool.usage()[name]

    def ask(self, mode: str, prompt: str = "Hello", *, name: str | None = None, **options: Any) -> Got:
        """Choose and call in one of `MODES`. What a stream gave is in `pieces`, however it ended."""
        self.pieces = []
        if mode.startswith("async"):
            return asyncio.run(self._ask_async(mode, prompt, name, options))
        with self.pool() as pool:
            lm = pool.get_lm(name)
            if mode == "generate":
                return Got(lm.generate(prompt, **options), None)
            if mode == "chat":
                done = lm.chat([{"role": "user", "content": prompt}], **options)
                return Got(done.text, done)
            with lm.stream(prompt, **options) as stream:
                for piece in stream:
                    self.pieces.append(piece)  # one by one: what came before a failure is kept
                return Got("".join(self.pieces), stream.completion)

    async def _ask_async(self, mode: str, prompt: str, name: str | None, options: Any) -> Got:
        async with self.async_pool() as pool:
            lm = await pool.get_lm(name)
            if mode == "async generate":
                return Got(await lm.generate(prompt, **options), None)
            async with lm.stream(prompt, **options) as stream:
                async for piece in stream:
                    self.pieces.append(piece)
                return Got("".join(self.pieces), stream.completion)


def make_registry(*entries: Mapping[str, Any], **top_level: Any) -> Registry:
    """A registry of these entries, without a file."""
    document = {
        "llms": [e for e in entries if "dimension" not in e],
        "embeddings": [e for e in entries if "dimension" in e],
    }
    made = decode(json.dumps(document | top_level).encode(), "test")
    return Registry(llms=made.llms, embeddings=made.embeddings, budget_timezone=made.budget_timezone)


def entry(server: FakeServer, name: str, speed: float = 100.0, **fields: Any) -> dict[str, Any]:
    """An entry with a budget, so that every call of it reserves."""
    fields.setdefault("daily_budget_tokens", BUDGET)
    capabilities = {"speed_tokens_per_sec": speed, **fields.pop("capabilities", {})}
    return server.llm_entry(name, capabilities=capabilities, **fields)


def dead_entry(server: FakeServer, name: str, speed: float = 100.0, **fields: Any) -> dict[str, Any]:
    """The same, where nothing listens."""
    return entry(server, name, speed, api_base=f"http://127.0.0.1:{free_port()}", **fields)


def chats(server: FakeServer) -> list[Recorded]:
    """The chat requests that arrived."""
    return server.requests_to(CHAT)


def count(server: FakeServer, path: str) -> int:
    """How many requests to `path` arrived."""
    return len(server.requests_to(path))


def wait_tokens(server: FakeServer, number: int) -> None:
    """Wait until the server has sent so many tokens."""
    tick, waited = threading.Event(), 0.0
    while server.usage.completion_tokens < number:
        tick.wait(0.01)
        waited += 0.01
        assert waited < SOON


def wait_chats(server: FakeServer, number: int = 1) -> list[Recorded]:
    """Wait until so many chat requests have arrived."""
    while True:
        seen = len(server.requests)
        found = chats(server)
        if len(found) >= number:
            return found
        server.wait_requests(seen + 1, SOON)


def wait_held(pool: LLMPool, number: int = 1) -> None:
    """Wait until the pool holds so many calls back."""
    tick, deadline = threading.Event(), time.monotonic() + SOON
    while sum(load.waiting for load in pool._state.flights.loads().values()) < number:
        assert time.monotonic() < deadline
        tick.wait(0.01)


def assert_idle(*servers: FakeServer) -> None:
    """Every request at these servers is over, or is about to be: nobody was left behind with one."""
    for server in servers:
        for request in server.requests:
            assert request.finished.wait(AT_ONCE), f"{request} is still being answered"
        assert server.in_flight == 0


def assert_no_threads() -> None:
    """No thread of a driver outlives its work."""
    for thread in threading.enumerate():
        if thread.name == "maxwell-gather":
            thread.join(SOON)
            assert not thread.is_alive(), thread


def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
