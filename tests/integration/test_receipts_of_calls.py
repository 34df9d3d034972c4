"""Every call leaves a receipt: what was decided, who was asked, what became of it, and not a word of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path
from typing import Any

import pytest
from calling import make_registry

from maxwell.clock import SystemClock
from maxwell.errors import BudgetExceeded, MaxwellError, StreamBroken
from maxwell.ledger.memory import MemoryLedger
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.receipts import Receipt
from maxwell.receipts.book import ReceiptBook
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers

PROMPT = "Where does Wanda hide the marmalade?"
REPLY = "Behind the encyclopedia, as always."


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    return fake_server(reply=REPLY)


@pytest.fixture
def spare(fake_server: FakeServers) -> FakeServer:
    return fake_server(reply=REPLY)


class World:
    """Pools over two LLMs and an embedding, on disk; the first LLM is the faster one."""

    def __init__(self, home: Path, server: FakeServer, spare: FakeServer, **parts: Any) -> None:
        self.home = home
        fast = {"speed_tokens_per_sec": 200}
        self.registry = make_registry(
            server.llm_entry("first", capabilities=fast, cost_per_1k_tokens=0.001),
            spare.llm_entry("second"),
        )
        self.parts: dict[str, Any] = {"home": home, "environ": {}, **parts}

    def pool(self, **parts: Any) -> LLMPool:
        return LLMPool(self.registry, **{**self.parts, **parts})

    def async_pool(self) -> AsyncLLMPool:
        return AsyncLLMPool(self.registry, **self.parts)

    def last(self) -> Receipt:
        """The newest receipt, read as another program would."""
        with self.pool() as pool:
            database = pool.ledger.database  # type: ignore[attr-defined]
            found = ReceiptBook(database, SystemClock()).last()
        assert found is not None
        return found

    def written(self) -> bytes:
        """Everything that stands in files."""
        return b"".join(file.read_bytes() for file in self.home.rglob("*") if file.is_file())


@pytest.fixture
def world(tmp_path: Path, server: FakeServer, spare: FakeServer) -> World:
    return World(tmp_path / "home", server, spare)


def test_a_success(world: World) -> None:
    with world.pool() as pool:
        pool.health()
        done = pool.get_lm(prompt=PROMPT, min_speed=1).chat([{"role": "user", "content": PROMPT}])
    receipt = world.last()
    assert (receipt.id, receipt.kind, receipt.outcome, receipt.llm) == (done.receipt, "chat", "ok", "first")
    assert [ranked.name for ranked in receipt.choice.ranked] == ["first", "second"]
    assert receipt.choice.needs == {"min_speed": 1}
    assert receipt.usage == done.usage
    assert receipt.usd == pytest.approx(done.cost_usd)
    assert receipt.usd > 0
    assert receipt.finish_reason == "stop"
    assert receipt.characters == len(PROMPT)


def test_a_failover(world: World, server: FakeServer) -> None:
    server.fail(faults.Status(500))
    with world.pool() as pool:
        assert pool.get_lm().generate(PROMPT) == REPLY
    receipt = world.last()
    assert [(tried.name, tried.outcome) for tried in receipt.attempts] == [
        ("first", "server_error"),
        ("second", "ok"),
    ]
    assert receipt.llm == "second"
    assert "500" in receipt.attempts[0].message


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_stream_that_was_left(world: World, leave: str) -> None:
    with world.pool() as pool:
        stream = pool.get_lm().stream(PROMPT)
        next(stream)
        if leave == "close":
            stream.close()
        del stream
        gc.collect()
    receipt = world.last()
    assert (receipt.outcome, [tried.outcome for tried in receipt.attempts]) == ("cancelled", ["cancelled"])
    assert receipt.usage is not None
    assert receipt.usage.estimated


def test_a_coroutine_that_was_cancelled(world: World, server: FakeServer) -> None:
    server.fail(faults.Silence(2))

    async def main() -> None:
        async with world.async_pool() as pool:
            lm = await pool.get_lm()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lm.generate(PROMPT), 0.3)

    asyncio.run(main())
    assert world.last().outcome == "cancelled"


def test_a_reply_that_broke_off(world: World, server: FakeServer) -> None:
    server.fail(faults.Cut(3))
    with world.pool() as pool, pytest.raises(StreamBroken) as caught:
        list(pool.get_lm().stream(PROMPT))
    receipt = world.last()
    assert (receipt.id, receipt.outcome, receipt.llm) == (
        caught.value.partial.receipt,
        "broken_stream",
        "first",
    )
    assert receipt.usage == caught.value.partial.usage


def test_a_reply_that_broke_off_and_was_given_by_another(world: World, server: FakeServer) -> None:
    server.fail(faults.Cut(3))
    with world.pool() as pool:
        pool.health()
        done = pool.get_lm().chat([{"role": "user", "content": PROMPT}])
        used = pool.usage()
    receipt = world.last()
    assert [(tried.name, tried.outcome) for tried in receipt.attempts] == [
        ("first", "broken_stream"),
        ("second", "ok"),
    ]
    assert (receipt.id, receipt.outcome, receipt.llm) == (done.receipt, "ok", "second")
    lost, given = receipt.attempts
    assert lost.usage is not None  # what came to nothing was used all the same
    assert lost.usage.estimated
    assert lost.usage.completion_tokens >= 3
    assert lost.usage.prompt_tokens > 0
    assert lost.usage.total_tokens == used["first"].tokens
    assert lost.usd == pytest.approx(used["first"].usd)
    assert lost.usd > 0
    assert given.usage == done.usage
    assert receipt.usage is not None
    assert receipt.usage.total_tokens == lost.usage.total_tokens + done.usage.total_tokens


def test_a_reply_that_broke_off_again(world: World, server: FakeServer) -> None:
    server.fail(faults.Cut(3), times=None)
    with world.pool() as pool, pytest.raises(StreamBroken) as caught:
        pool.get_lm("first").generate(PROMPT)
    receipt = world.last()
    assert (receipt.id, receipt.outcome) == (caught.value.partial.receipt, "broken_stream")
    assert [(tried.name, tried.outcome) for tried in receipt.attempts] == [("first", "broken_stream")] * 2


def test_a_budget_that_refused(tmp_path: Path, server: FakeServer, spare: FakeServer) -> None:
    world = World(tmp_path / "home", server, spare)
    world.registry = make_registry(server.llm_entry("first", daily_budget_tokens=100))
    with world.pool() as pool, pytest.raises(BudgetExceeded):
        pool.get_lm("first").generate(PROMPT, max_tokens=2000)
    receipt = world.last()
    assert (receipt.outcome, receipt.usage) == ("budget", None)
    assert "100 tokens left" in receipt.attempts[0].message


def test_an_embedding(fake_server: FakeServers, tmp_path: Path) -> None:
    embedder = fake_server(embeddings=True)
    world = World(tmp_path / "home", embedder, embedder)
    world.registry = make_registry(embedder.embedding_entry("e", tags=["default"]))
    with world.pool() as pool:
        pool.get_embedding("default").embed_many([PROMPT, PROMPT])
    receipt = world.last()
    assert (receipt.kind, receipt.outcome, receipt.llm, receipt.messages) == ("embed", "ok", "e", 2)
    assert (receipt.choice.by, receipt.choice.asked) == ("tag", "default")
    assert receipt.usage is not None
    assert receipt.usage.total_tokens == embedder.usage.total_tokens


# --- not a word of it


def call_in_every_way(world: World, server: FakeServer) -> None:
    with world.pool() as pool:
        pool.get_lm(prompt=PROMPT).generate(PROMPT)
        server.fail(faults.Status(503, {"error": {"message": f"too busy for: {PROMPT}"}}))
        pool.get_lm("second").generate(PROMPT)
        with contextlib.suppress(MaxwellError):
            pool.get_lm("first").generate(PROMPT)


def test_nothing_that_was_said_is_written_anywhere(world: World, server: FakeServer) -> None:
    call_in_every_way(world, server)
    written = world.written()
    assert b"marmalade" not in written
    assert b"encyclopedia" not in written


def test_what_was_said_is_written_where_the_user_wants_it(
    tmp_path: Path, server: FakeServer, spare: FakeServer
) -> None:
    world = World(tmp_path / "home", server, spare, environ={"MAXWELL_LOG_CONTENT": "1"})
    with world.pool() as pool:
        pool.get_lm().generate(PROMPT)
    assert (world.last().prompt, world.last().reply) == (PROMPT, REPLY)
    with world.pool(log_content=False) as pool:
        pool.get_lm().generate(PROMPT)
    assert (world.last().prompt, world.last().reply) == (None, None)


def test_keys_are_struck_out_of_what_is_kept(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", reply="the key is sk-very-secret-4711", api_key="sk-very-secret-4711")
    world = World(
        tmp_path / "home", server, server, environ={"BOX_KEY": "sk-very-secret-4711"}, log_content=True
    )
    world.registry = make_registry(server.llm_entry("first", api_key_env="BOX_KEY"))
    with world.pool() as pool:
        pool.get_lm().generate("is it sk-very-secret-4711?")
    assert world.last().prompt == "is it [redacted]?"
    assert b"4711" not in world.written()


def test_a_pool_with_books_in_memory_keeps_no_receipts(world: World) -> None:
    with world.pool(ledger=MemoryLedger()) as pool:
        done = pool.get_lm().chat([{"role": "user", "content": PROMPT}])
    assert done.receipt == ""
    assert not (world.home / "ledger.db").exists()
