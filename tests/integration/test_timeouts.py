"""Limits are separate, and one deadline holds for a whole call."""

from __future__ import annotations

import asyncio
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from calling import MODES, SOON, Calls, assert_idle, chats, dead_entry, entry
from holes import black_hole

from maxwell.calls import async_driver, sync_driver
from maxwell.calls.aiohttp_transport import AiohttpTransport
from maxwell.calls.effects import Limits, TransportError
from maxwell.calls.probe import fetch
from maxwell.calls.urllib3_transport import Urllib3Transport
from maxwell.errors import AllAttemptsFailed, BackendError, CallTimeout, StreamBroken
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import HTTPRequest

NEVER = faults.SlowFirstByte(math.inf)


def exchange(kind: str, url: str, limits: Limits) -> bytes:
    """One whole exchange by a driver, with limits that no public option sets."""
    body = b'{"model":"tiny","stream":true,"messages":[{"role":"user","content":"Hello"}]}'
    request = HTTPRequest("POST", url + "/v1/chat/completions", {"content-type": "application/json"}, body)
    if kind == "sync":
        transport = Urllib3Transport()
        try:
            return sync_driver.run(fetch(request, limits), transport)[2]
        finally:
            transport.close()

    async def fetched() -> bytes:
        transport = AiohttpTransport()
        try:
            return (await async_driver.run(fetch(request, limits), transport))[2]
        finally:
            await transport.close()

    return asyncio.run(fetched())


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@KINDS
def test_the_connect_limit_is_its_own(kind: str) -> None:
    with black_hole() as url, pytest.raises(TransportError) as caught:
        exchange(kind, url, Limits(connect=0.2))
    assert caught.value.stage == "connect"


@KINDS
def test_the_first_byte_limit_is_its_own(kind: str, fake_server: FakeServers) -> None:
    server = fake_server()
    server.fail(NEVER)
    with pytest.raises(TransportError) as caught:
        exchange(kind, server.url, Limits(first_byte=0.2))
    assert caught.value.stage == "first_byte"
    assert_idle(server)


@KINDS
def test_the_idle_limit_is_its_own(kind: str, fake_server: FakeServers) -> None:
    server = fake_server()
    server.fail(faults.Silence(2))
    with pytest.raises(TransportError) as caught:
        exchange(kind, server.url, Limits(idle=0.2))
    assert caught.value.stage == "idle"
    assert_idle(server)


@KINDS
def test_the_total_limit_is_its_own(kind: str, fake_server: FakeServers) -> None:
    server = fake_server(reply=["x "] * 1000, tokens_per_sec=50)
    with pytest.raises(TransportError) as caught:
        exchange(kind, server.url, Limits(total=0.3))
    assert caught.value.stage == "total"
    assert_idle(server)


@KINDS
def test_a_slow_but_steady_stream_meets_no_limit_but_the_total(kind: str, fake_server: FakeServers) -> None:
    server = fake_server(reply=["x "] * 25, tokens_per_sec=50)  # half a second in all
    body = exchange(kind, server.url, Limits(connect=0.4, first_byte=0.4, idle=0.4))
    assert body.count(b'"x "') == 25


# --- through the public options


@pytest.mark.parametrize("mode", MODES)
def test_timeout_ends_a_call_that_does_not_begin(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    server = fake_server()
    server.fail(NEVER)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(CallTimeout, match=r"one: .*0\.\d+ s") as caught:
        calls.ask(mode, timeout=0.3)
    assert caught.value.kind == "timeout"
    assert calls.used("one").tokens > 0
    assert_idle(server)


@pytest.mark.parametrize("mode", MODES)
def test_timeout_ends_a_reply_that_takes_too_long(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    server = fake_server(reply=["x "] * 1000, tokens_per_sec=50)
    calls = Calls(tmp_path, entry(server, "one"))
    calls.warm()
    with pytest.raises(StreamBroken) as caught:
        calls.ask(mode, timeout=0.5)
    assert caught.value.partial.text.startswith("x x ")
    assert calls.used("one").tokens == caught.value.partial.usage.total_tokens
    assert_idle(server)


def test_timeout_seconds_of_an_entry_is_its_limit_and_another_may_take_over(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    slow, quick = fake_server(), fake_server(reply="Here.")
    slow.fail(NEVER)
    calls = Calls(tmp_path, entry(slow, "slow", 500, timeout_seconds=0.2), entry(quick, "quick"))
    calls.warm()
    assert calls.ask("generate").text == "Here."


@pytest.mark.parametrize("mode", MODES)
def test_the_deadline_is_shared_by_all_attempts(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    first, second, third = (fake_server() for _ in range(3))
    for server in (first, second, third):
        server.fail(NEVER)
    calls = Calls(
        tmp_path,
        entry(first, "first", 500, timeout_seconds=0.2),
        entry(second, "second", 400, timeout_seconds=60),
        entry(third, "third", 300, timeout_seconds=60),
    )
    calls.warm()
    began = time.monotonic()
    with pytest.raises(AllAttemptsFailed) as caught:
        calls.ask(mode, timeout=1.0)
    assert time.monotonic() - began < SOON
    assert [a.llm for a in caught.value.attempts] == ["first", "second", "third"]
    given = [re.search(r"within ([\d.]+) s", str(a)) for a in caught.value.attempts]
    first_had, second_had, third_had = [float(found[1]) for found in given if found is not None]
    assert first_had == 0.2
    assert second_had <= 0.4  # half of what the first had left over, because there is a third
    assert second_had - 0.1 < third_had <= 1.01 - first_had - second_had  # and all the rest
    assert [len(chats(server)) for server in (first, second, third)] == [1, 1, 1]
    assert_idle(first, second, third)


def test_the_shorter_of_both_limits_counts(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    server.fail(NEVER, times=None)
    calls = Calls(tmp_path, entry(server, "one", timeout_seconds=0.2))
    began = time.monotonic()
    with pytest.raises(CallTimeout):
        calls.ask("generate", timeout=60)
    assert time.monotonic() - began < SOON


def test_a_hanging_first_choice_leaves_time_for_the_next(fake_server: FakeServers, tmp_path: Path) -> None:
    # Its health check is fine and its chat hangs: the commonest way for a vLLM to be dead.
    hung, well = fake_server(), fake_server(reply="Here.")
    hung.fail(NEVER, times=None)
    calls = Calls(tmp_path, entry(hung, "hung", 500), entry(well, "well"))
    calls.warm()
    assert calls.ask("generate", timeout=1.5).text == "Here."


def test_a_host_that_swallows_connections_is_left_in_time(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(reply="Here.")
    with black_hole() as url:
        lost = entry(server, "lost", 500, api_base=url)
        calls = Calls(tmp_path, lost, entry(server, "well"))
        began = time.monotonic()
        assert calls.ask("generate").text == "Here."
        assert time.monotonic() - began < SOON


def test_looking_for_another_one_keeps_to_the_deadline(fake_server: FakeServers, tmp_path: Path) -> None:
    # The state of the second is not known yet when the first has failed, and asking takes up to 2 s.
    first, second = fake_server(), fake_server()
    second.fail(NEVER, times=None, path="/health")
    calls = Calls(tmp_path, entry(first, "first", 500), entry(second, "second"))
    with calls.pool() as pool:
        lm = pool.get_lm()
        first.fail(faults.ServerError())
        began = time.monotonic()
        with pytest.raises(BackendError, match="first: "):
            lm.generate("Hello", timeout=0.3)
        assert time.monotonic() - began < 1.9  # well before the 2 s that asking may take


def test_refused_attempts_take_no_time(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(reply="Here.")
    gone = fake_server()
    calls = Calls(tmp_path, entry(gone, "gone", 500), entry(server, "well"))
    calls.warm()
    gone.stop()
    got = calls.ask("chat", timeout=SOON)
    assert got.completion is not None
    assert got.completion.attempts == ["gone", "well"]


# --- embeddings


def embedding_calls(server: FakeServer, tmp_path: Path, **fields: Any) -> Calls:
    return Calls(tmp_path, server.embedding_entry("e", **fields))


def test_timeout_ends_an_embedding_call(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(embeddings=True)
    server.fail(NEVER, times=None)
    with embedding_calls(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        with pytest.raises(CallTimeout, match="e: "):
            embedding.embed("Hello", timeout=0.2)
    with embedding_calls(server, tmp_path, timeout_seconds=0.2).pool() as pool, pytest.raises(CallTimeout):
        pool.get_embedding("e").embed("Hello")
    assert_idle(server)


def test_timeout_covers_all_batches_of_an_embedding_call(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(embeddings=True)
    server.fail(faults.SlowFirstByte(0.3), times=None)
    with embedding_calls(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        began = time.monotonic()
        with pytest.raises(CallTimeout):
            embedding.embed_many(["text"] * 5000, timeout=0.7)  # 20 batches would take 6 s
        assert time.monotonic() - began < SOON


def test_timeout_covers_the_counting_of_tokens(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(embeddings=True, context=64)
    server.fail(NEVER, path="/tokenize")
    with embedding_calls(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        began = time.monotonic()
        with pytest.raises(CallTimeout):
            embedding.embed("word " * 200, truncate=True, timeout=0.3)
        assert time.monotonic() - began < SOON


# --- wrong values


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_is_a_number_of_seconds_above_0(
    fake_server: FakeServers, tmp_path: Path, timeout: float
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ValueError, match="timeout"):
        calls.ask("generate", timeout=timeout)
    assert chats(server) == []


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_an_embedding_timeout_is_a_number_of_seconds_above_0(
    fake_server: FakeServers, tmp_path: Path, timeout: float
) -> None:
    server = fake_server(embeddings=True)
    with embedding_calls(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        with pytest.raises(ValueError, match="timeout"):
            embedding.embed("Hello", timeout=timeout)


def test_a_dead_host_alone_is_told_as_such(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, dead_entry(server, "gone"))
    with pytest.raises(Exception, match=r"gone: cannot connect to http://127\.0\.0\.1:\d+"):
        calls.ask("generate", timeout=1)
