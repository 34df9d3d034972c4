"""The fake server as a whole: slots, aborts, meters, records, its life."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import re
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from fake_http import (
    CHAT,
    DIALECTS,
    HELLO,
    REPLY,
    STREAM,
    WAIT,
    Answer,
    broken,
    call,
    connected,
    events,
    opened,
    send,
    text,
)

from maxwell.registry.specs import EmbeddingSpec, LLMSpec
from maxwell.testing import FakeServer, Recorded, faults
from maxwell.types import BackendName

# Slots, aborts, meters


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(true: Callable[[], bool]) -> None:
    """Poll what the server tells only when asked, e.g. /metrics; the test fails when it stays untrue."""
    pause = threading.Event()
    for _ in range(500):
        if true():
            return
        pause.wait(0.01)
    pytest.fail("did not come true within 5 s")


def test_requests_beyond_the_slots_wait_without_a_byte() -> None:
    with FakeServer("llamacpp", slots=2) as server:
        server.fail(faults.Silence(after=1), times=2)
        with opened(server, CHAT, STREAM) as one, opened(server, CHAT, STREAM) as two:
            one.read1()
            two.read1()
            assert [s["is_processing"] for s in call(server, "/slots").json] == [True, True]
            assert call(server, "/slots?fail_on_no_slot=1").status == 503
            assert call(server, "/health").status == 200
            answers: list[Answer] = []
            third = in_thread(lambda: answers.append(call(server, CHAT, STREAM)))
            until(lambda: b"requests_deferred 1\n" in call(server, "/metrics").raw)
            assert (server.in_flight, server.max_in_flight, answers) == (3, 3, [])
            assert server.usage.prompt_tokens == 2 * 14
        third.join(WAIT)
        assert text(events(answers[0].raw)) == REPLY
        assert all(r.finished.wait(WAIT) for r in server.requests_to(CHAT))
        assert server.in_flight == 0


def test_vllm_sends_a_streams_head_before_its_turn() -> None:
    with FakeServer("vllm", slots=1) as server:
        server.fail(faults.Silence(after=1))
        with opened(server, CHAT, STREAM) as one:
            one.read1()
            with opened(server, CHAT, STREAM, timeout=0.3) as two:
                assert two.status == 200
                with pytest.raises(TimeoutError):
                    two.read1()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_client_that_goes_away_is_noticed_within_a_second(dialect: BackendName, stream: bool) -> None:
    with FakeServer(dialect, reply=["tok "] * 1000, tokens_per_sec=50) as server:
        with connected(server) as connection:
            send(connection, CHAT, STREAM if stream else HELLO)
            server.wait_requests(1)
            if stream:
                response = connection.getresponse()
                assert b"tok " in response.read1() + response.read1()
                response.close()
        aborted = server.wait_aborted(1.0)
        assert aborted.aborted
        assert aborted.finished.is_set()
        assert server.in_flight == 0
        assert server.usage.completion_tokens < 1000
        if stream:
            assert server.usage.completion_tokens >= 1
            assert server.usage.prompt_tokens > 0


def test_client_that_leaves_the_queue_costs_nothing() -> None:
    with FakeServer("llamacpp", slots=1) as server:
        server.fail(faults.Silence(after=1))
        with opened(server, CHAT, STREAM) as first:
            first.read1()
            spent = server.usage
            with connected(server) as second:
                send(second, CHAT, STREAM)
                server.wait_requests(2)
            assert server.wait_aborted(1.0) is server.requests[1]
            assert server.usage == spent


def test_meter_agrees_with_what_is_reported_and_with_what_is_not() -> None:
    with FakeServer("llamacpp") as server:
        usage = call(server, CHAT, HELLO).json["usage"]
        server.fail(faults.NoUsage())
        call(server, CHAT, STREAM)
        server.fail(faults.Cut(after=2))
        broken(server, STREAM)
        assert server.usage.prompt_tokens == 3 * usage["prompt_tokens"]
        assert server.usage.completion_tokens == 2 * usage["completion_tokens"] + 2


def test_books_are_closed_when_done_arrives() -> None:
    with FakeServer("llamacpp") as server:
        for _ in range(100):
            with opened(server, CHAT, STREAM) as response:
                while b"[DONE]" not in response.read1():
                    pass
                assert server.in_flight == 0
                assert server.requests[-1].finished.is_set()
        assert not any(r.aborted for r in server.requests)


def test_refused_requests_are_not_metered() -> None:
    with FakeServer("llamacpp", context=16, embeddings=False) as server:
        call(server, CHAT, HELLO | {"messages": [{"role": "user", "content": "x" * 500}]})
        server.fail(faults.RateLimited())
        call(server, CHAT, HELLO)
        assert server.usage.total_tokens == 0


def test_pace_is_kept() -> None:
    with FakeServer("llamacpp", reply=["tok "] * 10, tokens_per_sec=100) as server:
        for body in (HELLO, STREAM):
            raw = call(server, CHAT, body).raw
            found = re.search(rb'"predicted_per_second":([0-9.]+)', raw)
            assert found is not None
            assert 10 < float(found[1]) <= 115


# Records and life


def test_requests_are_recorded_as_they_came() -> None:
    with FakeServer("llamacpp") as server:
        call(server, "/slots?fail_on_no_slot=1", X_Trace="abc")
        call(server, CHAT, HELLO)
        slots, chat = server.requests
        assert isinstance(chat, Recorded)
        assert (slots.method, slots.path, slots.query, slots.body) == (
            "GET",
            "/slots",
            "fail_on_no_slot=1",
            None,
        )
        assert slots.headers["x-trace"] == "abc"
        assert (chat.method, chat.body, chat.aborted) == ("POST", HELLO, False)
        assert chat.finished.is_set()
        assert server.requests_to(CHAT) == [chat]


def test_large_bodies_are_taken() -> None:
    with FakeServer("llamacpp", context=10_000_000) as server:
        body = HELLO | {"messages": [{"role": "user", "content": "x" * 8_000_000}]}
        assert call(server, CHAT, body).json["usage"]["prompt_tokens"] > 2_000_000


def test_kept_connections_are_counted_once() -> None:
    with FakeServer("llamacpp") as server:
        with connected(server) as connection:
            for _ in range(3):
                send(connection, CHAT, STREAM)
                connection.getresponse().read()
        assert server.connections == 1
        call(server, "/health")
        assert server.connections == 2


def test_stopped_server_refuses_and_comes_back_on_the_same_port() -> None:
    server = FakeServer("llamacpp")
    url = server.url
    with pytest.raises(ConnectionRefusedError):
        call(server, "/health")
    with server:
        assert server.url == url
        assert call(server, "/health").status == 200
        server.stop()
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                call(server, "/health")
        server.start()
        assert call(server, "/health").status == 200
        assert server.url == url
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 1.0).close()


def test_stopping_breaks_a_running_stream() -> None:
    with FakeServer("llamacpp", reply=["tok "] * 1000, tokens_per_sec=100) as server:
        with opened(server, CHAT, STREAM) as response:
            response.read1()
            server.stop()
            with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                response.read()
        assert not server.requests[0].aborted


def _stop_before_a_client_reads() -> None:
    """Leave bytes behind that can never be sent."""
    server = FakeServer("llamacpp", context=100_000, reply=["x" * 1000] * 20_000)
    with connected(server) as deaf, server:
        send(deaf, CHAT, STREAM)
        until(lambda: server.usage.completion_tokens > 64)


def test_server_leaves_no_thread_and_no_open_file() -> None:
    before = threading.active_count()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with FakeServer("llamacpp") as server, connected(server) as idle:
            send(idle, "/health")
            idle.getresponse().read()
        stopped = FakeServer("vllm").start()
        stopped.stop()
        _stop_before_a_client_reads()
        del server, stopped
        gc.collect()
    assert [w for w in caught if issubclass(w.category, ResourceWarning)] == []
    assert threading.active_count() == before


async def _speak() -> bytes:
    async with FakeServer("llamacpp") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


def test_server_works_as_async_context_manager() -> None:
    assert asyncio.run(_speak()).endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("dialect", DIALECTS)
def test_entries_are_complete_and_may_be_overridden(dialect: BackendName) -> None:
    with FakeServer(dialect, context=2048, dimension=8, reasoning="hm") as server:
        entry = server.llm_entry("box", tags=["fast"], capabilities={"tools": True, "max_tokens": 7})
        spec = msgspec.convert(entry, LLMSpec)
        assert (spec.name, spec.api_base, spec.model, spec.backend) == ("box", server.url, "tiny", dialect)
        assert spec.tags == ("fast",)
        caps = spec.capabilities
        assert (caps.max_context, caps.max_tokens, caps.tools, caps.reasoning) == (2048, 7, True, True)
        embedding = msgspec.convert(server.embedding_entry("emb", max_context=99), EmbeddingSpec)
        assert (embedding.dimension, embedding.max_context, embedding.backend) == (8, 99, dialect)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown dialect 'ollama'; choose one of llamacpp, vllm, openai"):
        FakeServer("ollama")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token_bytes must be at least 1"):
        FakeServer("llamacpp", token_bytes=0)
    server = FakeServer("llamacpp")
    with pytest.raises(ValueError, match="unknown state 'down'"):
        server.set_state("down")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="times must be at least 1"):
        server.fail(faults.Cut(), times=0)
    with pytest.raises(TimeoutError, match="no request was aborted"):
        server.wait_aborted(0.01)


def test_connections_at_the_last_moment_are_not_left_open() -> None:
    """A socket that nobody closes is told by a warning, and warnings are errors here."""
    for _ in range(40):
        server = FakeServer().start()
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        opened: list[socket.socket] = []

        def connect(address: tuple[str, int] = address, opened: list[socket.socket] = opened) -> None:
            with contextlib.suppress(OSError):
                opened.extend(socket.create_connection(address, timeout=5) for _ in range(6))

        client = threading.Thread(target=connect)
        client.start()
        server.close()
        client.join()
        for one in opened:
            one.close()
    gc.collect()
