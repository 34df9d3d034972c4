"""What a health check asks, and what it must not ask."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from calling import CHAT, SOON, count, entry

from maxwell.calls.probe import ask_all, probe
from maxwell.calls.sync_driver import run
from maxwell.calls.urllib3_transport import Urllib3Transport
from maxwell.health import Endpoint, Health, HealthBook
from maxwell.testing import FakeClock, FakeServer, faults
from maxwell.testing.fixtures import FakeServers

NEVER = faults.SlowFirstByte(math.inf)


@pytest.fixture
def transport() -> Iterator[Urllib3Transport]:
    with closing(Urllib3Transport({})) as made:
        yield made


@pytest.fixture
def book(tmp_path: Path, fake_clock: FakeClock) -> HealthBook:
    return HealthBook(tmp_path / "health", fake_clock)


def endpoint_of(server: FakeServer) -> Endpoint:
    return Endpoint(server.url, entry(server, "one")["backend"])


def asked(book: HealthBook, clock: FakeClock, server: FakeServer, transport: Urllib3Transport) -> Health:
    """Ask the server anew; what is known then."""
    clock.advance(1)
    run(probe(endpoint_of(server), book, clock, clock.time()), transport)
    health = book.get(endpoint_of(server), clock.time())
    assert health is not None
    return health


def occupy(server: FakeServer, number: int, held: ExitStack) -> None:
    """Requests at the server that do not end."""
    for _ in range(number):
        server.fail(NEVER)
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
        held.callback(connection.close)
        body = {"model": entry(server, "one")["model"], "messages": [{"role": "user", "content": "Hello"}]}
        connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})


@pytest.mark.parametrize(("dialect", "busy"), [("llamacpp", 2), ("vllm", 3)])
def test_how_busy_a_server_is(
    fake_server: FakeServers,
    book: HealthBook,
    fake_clock: FakeClock,
    transport: Urllib3Transport,
    dialect: str,
    busy: int,
) -> None:
    # llama.cpp does not tell of those that wait for a slot.
    server = fake_server(dialect, slots=2)  # type: ignore[arg-type]
    book.own = {server.url: 1}.__getitem__
    idle = asked(book, fake_clock, server, transport)
    assert (idle.state, idle.busy, idle.own, idle.busy_at) == ("up", 0, 1, fake_clock.time())
    with ExitStack() as held:
        occupy(server, 3, held)
        deadline = time.monotonic() + SOON
        while (found := asked(book, fake_clock, server, transport)).busy != busy:
            assert time.monotonic() < deadline, found
        assert (found.state, found.own, found.busy_at) == ("up", 1, fake_clock.time())


def test_a_cloud_is_not_asked_how_busy_it_is(
    fake_server: FakeServers, book: HealthBook, fake_clock: FakeClock, transport: Urllib3Transport
) -> None:
    server = fake_server("openai")
    assert asked(book, fake_clock, server, transport).busy is None
    assert {r.path for r in server.requests} <= {"/health", "/v1/models"}


def test_a_sleeping_server_is_not_woken(
    fake_server: FakeServers, book: HealthBook, fake_clock: FakeClock, transport: Urllib3Transport
) -> None:
    server = fake_server()
    server.set_state("asleep")
    assert asked(book, fake_clock, server, transport).state == "asleep"
    assert count(server, "/slots") == 0


def test_a_server_that_sleeps_when_idle_is_not_kept_awake(
    fake_server: FakeServers, book: HealthBook, fake_clock: FakeClock, transport: Urllib3Transport
) -> None:
    # To list its slots begins its idle time anew.
    server = fake_server()
    server.set_state("asleep")
    asked(book, fake_clock, server, transport)
    server.set_state("up")
    fake_clock.advance(3600)
    assert asked(book, fake_clock, server, transport).state == "up"
    assert count(server, "/slots") == 0


@pytest.mark.parametrize(
    "fault",
    [faults.Status(501), faults.Status(404), faults.Status(500), faults.Garbage(), faults.Reset(), NEVER],
)
@pytest.mark.parametrize(("dialect", "path"), [("llamacpp", "/slots"), ("vllm", "/metrics")])
def test_one_that_does_not_tell_how_busy_it_is_is_up(
    fake_server: FakeServers,
    book: HealthBook,
    fake_clock: FakeClock,
    transport: Urllib3Transport,
    dialect: str,
    path: str,
    fault: faults.Fault,
) -> None:
    server = fake_server(dialect)  # type: ignore[arg-type]
    server.fail(fault, times=None, path=path)
    health = asked(book, fake_clock, server, transport)
    assert (health.state, health.busy, health.detail) == ("up", None, "")
    assert count(server, path) >= 1  # a connection that was used before may be tried twice


def test_a_server_without_properties_is_not_asked_for_its_slots(
    fake_server: FakeServers, book: HealthBook, fake_clock: FakeClock, transport: Urllib3Transport
) -> None:
    # It may be asleep, for all that is known.
    server = fake_server()
    server.fail(faults.Status(404), times=None, path="/props")
    assert asked(book, fake_clock, server, transport).state == "up"
    assert count(server, "/slots") == 0


def test_a_loading_server_is_asked_again_after_two_seconds(
    fake_server: FakeServers, book: HealthBook, fake_clock: FakeClock, transport: Urllib3Transport
) -> None:
    server = fake_server()
    server.set_state("loading")
    endpoint = endpoint_of(server)

    def state() -> str:
        run(ask_all([endpoint], book, fake_clock), transport)
        health = book.get(endpoint, fake_clock.time())
        assert health is not None
        return health.state

    assert state() == "loading"
    server.set_state("up")
    fake_clock.advance(1.9)
    assert state() == "loading"
    fake_clock.advance(0.2)
    assert state() == "up"
    asked_so_far = len(server.requests)
    fake_clock.advance(20)
    assert state() == "up"
    assert len(server.requests) == asked_so_far


def test_a_box_that_was_started_again_is_found_when_its_breaker_allows(
    fake_server: FakeServers, book: HealthBook, fake_clock: FakeClock, transport: Urllib3Transport
) -> None:
    server = fake_server()
    endpoint = endpoint_of(server)
    book.note_fault(endpoint, "refused", "connection refused")
    run(ask_all([endpoint], book, fake_clock), transport)
    assert server.requests == []
    fake_clock.advance(6)  # 5 s and a fifth at most
    run(ask_all([endpoint], book, fake_clock), transport)
    health = book.get(endpoint, fake_clock.time())
    assert health is not None
    assert health.state == "up"
