"""A key reaches its own host and nothing else: no message, no log, no file, no other server."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from calling import MODES, Calls, chats, count, entry, free_port

from maxwell.calls.aiohttp_transport import AiohttpTransport
from maxwell.calls.urllib3_transport import Urllib3Transport
from maxwell.errors import MaxwellError, NoEligibleLM
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.load import load
from maxwell.registry.locate import find
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

CANARY = "sk-canary-7f3a9c51e2d84b06"
BEARER = f"Bearer {CANARY}"
ECHO = {"error": {"message": f"you sent Authorization: {BEARER}", "type": "x", "code": "invalid_api_key"}}

# Ways in which a server, or what stands before it, sends back what it was sent.
ECHOES: dict[str, faults.Fault] = {
    "401": faults.Status(401, ECHO),
    "403 text": faults.Status(403, f"denied: {BEARER}"),
    "400": faults.Status(400, ECHO),
    "404": faults.Status(404, {"error": {"message": f"no model for {CANARY}"}}),
    "429": faults.Status(429, ECHO, retry_after=0.05),
    "500 page": faults.Status(500, f"<html><title>{BEARER}</title>authorization: {BEARER}</html>"),
    "502 headers": faults.Status(502, f"authorization: {BEARER}\r\naccept: */*"),
    "503 escaped": faults.Status(503, json.dumps({"detail": BEARER.replace("-", "\\u002d")}).encode()),
    "200 text": faults.Status(200, BEARER),
    "200 page": faults.Status(200, f"<html>{BEARER}</html>"),
    "200 JSON": faults.Status(200, {"headers": {"authorization": BEARER}}),
    "200 error": faults.Status(200, ECHO),
    "200 odd choices": faults.Status(200, {"choices": BEARER}),
    "302": faults.Status(302, f"see {BEARER}", headers={"Location": f"http://127.0.0.1:1/?key={CANARY}"}),
    "odd status": faults.Status(499, BEARER),
    "frame first": faults.ErrorFrame(message=f"you sent {BEARER}"),
    "frame later": faults.ErrorFrame(3, message=f"you sent {BEARER}"),
    "raw frame": faults.ErrorFrame(3, error={"detail": BEARER, "code": BEARER, "type": BEARER}),
    "cut": faults.Cut(3),
    "reset": faults.Reset(),
}


@pytest.fixture
def logs() -> Iterator[Callable[[], str]]:
    """Everything that anybody logs, at every level."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield said.getvalue
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def all_of(error: BaseException) -> str:
    """All that could be shown of an error: its words, its attributes, its causes, its traceback."""
    shown = [*traceback.format_exception(error)]
    chain = [error]
    for seen in chain:
        shown += [str(seen), repr(seen), repr(seen.args), repr(vars(seen))]
        chain += [e for e in (seen.__cause__, seen.__context__) if e is not None and e not in chain]
    return "\n".join(shown)


def files(home: Path) -> bytes:
    """All that was written down."""
    return b"\n".join(p.read_bytes() + str(p).encode() for p in home.rglob("*") if p.is_file())


def keyed(server: FakeServer, name: str = "one", **fields: Any) -> dict[str, Any]:
    return entry(server, name, 500, api_key_env="CANARY_KEY", **fields)


@pytest.fixture
def keys(maxwell_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", CANARY)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


# --- what is shown and written


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("echo", ECHOES)
def test_a_server_that_echoes_the_key(
    fake_server: FakeServers, tmp_path: Path, logs: Callable[[], str], mode: str, echo: str
) -> None:
    server = fake_server("openai", api_key=CANARY)
    calls = Calls(tmp_path, keyed(server), environ={"CANARY_KEY": CANARY})
    calls.warm()
    server.fail(ECHOES[echo], times=None)
    with pytest.raises(MaxwellError) as caught:
        calls.ask(mode)
    assert chats(server)[-1].headers["authorization"] == BEARER  # the test would show it, were it shown
    with calls.pool() as pool, contextlib.suppress(NoEligibleLM):
        pool.get_lm()
    with calls.pool() as pool:
        shown = all_of(caught.value) + logs() + repr(pool.health())
    assert CANARY not in shown
    assert CANARY.encode() not in files(tmp_path)


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
@pytest.mark.parametrize("echo", ["401", "403 text", "500 page", "200 text", "200 JSON", "302", "reset"])
def test_a_health_check_that_echoes_the_key(
    fake_server: FakeServers, tmp_path: Path, logs: Callable[[], str], path: str, echo: str
) -> None:
    server = fake_server("openai")
    server.fail(ECHOES[echo], times=None, path=path)
    calls = Calls(tmp_path, keyed(server), environ={"CANARY_KEY": CANARY})
    shown = ""
    with calls.pool() as pool:
        try:
            pool.get_lm()
        except NoEligibleLM as error:
            shown = all_of(error)
        shown += repr(pool.health()) + str(pool.explain()) + logs()
    assert CANARY not in shown
    assert CANARY.encode() not in files(tmp_path)


@pytest.mark.parametrize("echo", ["401", "500 page", "200 text", "200 JSON", "200 error", "302", "cut"])
def test_an_embedding_server_that_echoes_the_key(
    fake_server: FakeServers, tmp_path: Path, logs: Callable[[], str], echo: str
) -> None:
    server = fake_server("openai", api_key=CANARY)
    calls = Calls(
        tmp_path, server.embedding_entry("e", api_key_env="CANARY_KEY"), environ={"CANARY_KEY": CANARY}
    )
    with calls.pool() as pool:
        embedding = pool.get_embedding("e")
        server.fail(ECHOES[echo], times=None)
        with pytest.raises(MaxwellError) as caught:
            embedding.embed("Hello")
        shown = all_of(caught.value) + repr(embedding) + repr(pool.health()) + logs()
    assert CANARY not in shown
    assert CANARY.encode() not in files(tmp_path)


def test_nothing_that_a_user_holds_shows_the_key(
    keys: None,
    fake_server: FakeServers,
    write_registry: WriteRegistry,
    maxwell_home: Path,
    logs: Callable[[], str],
) -> None:
    server = fake_server("openai", api_key=CANARY)
    write_registry(keyed(server), server.embedding_entry("e", api_key_env="CANARY_KEY"))
    with LLMPool.from_registry() as pool:
        lm, embedding = pool.get_lm(), pool.get_embedding("e")
        done = lm.chat([{"role": "user", "content": "Hello"}])
        stream = lm.stream("Hello")
        next(stream)
        embedding.embed("Hello")
        held = (pool, lm, lm.decision, lm.spec, done, stream, embedding, pool.usage(), pool.registry)
        shown = repr((held, pool.health(), vars(lm), vars(pool), vars(embedding), pool._state.llms))
        stream.close()
    assert CANARY not in shown
    assert CANARY not in logs()
    assert CANARY.encode() not in files(maxwell_home)


def test_a_key_that_cannot_be_sent_is_not_shown(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    broken = CANARY + "\n" + CANARY
    calls = Calls(tmp_path, keyed(server), environ={"CANARY_KEY": broken})
    with calls.pool() as pool, pytest.raises(MaxwellError, match=r"one: .*CANARY_KEY") as caught:
        pool.get_lm("one").generate("Hello")
    assert CANARY not in all_of(caught.value)
    assert not any(CANARY in str(r.headers) for r in server.requests)


def test_a_key_in_the_address_is_refused_or_hidden(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    url = server.url.replace("://", f"://user:{CANARY}@")
    shown = ""
    try:
        with Calls(tmp_path, entry(server, "one", api_base=url)).pool() as pool:
            server.stop()
            pool.get_lm()
    except MaxwellError as error:
        shown = all_of(error)
    assert shown
    assert CANARY not in shown
    assert CANARY.encode() not in files(tmp_path)


# --- where it is sent


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_key_goes_to_its_own_host_only(
    keys: None, fake_server: FakeServers, write_registry: WriteRegistry, kind: str
) -> None:
    own, other, third = fake_server("openai", api_key=CANARY), fake_server(reply="Here."), fake_server("vllm")
    write_registry(keyed(own), entry(other, "other", 100), entry(third, "third", 50))
    registry = load(find())
    with LLMPool(registry) as pool:
        pool.health()
        lm = pool.get_lm()
        assert lm.name == "one"
        own.fail(faults.ServerError(), times=None)
        if kind == "async":

            async def main() -> str:
                async with AsyncLLMPool(registry) as twin:
                    return await (await twin.get_lm()).generate("Hello")

            assert asyncio.run(main()) == "Here."
        else:
            assert lm.generate("Hello") == "Here."
    assert chats(own)[0].headers["authorization"] == BEARER
    for server in (other, third):
        assert server.requests
        assert not any("authorization" in r.headers for r in server.requests)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("mode", ["chat", "async generate"])
def test_redirects_are_not_followed(fake_server: FakeServers, tmp_path: Path, mode: str, status: int) -> None:
    own, elsewhere = fake_server("openai", api_key=CANARY), fake_server()
    calls = Calls(tmp_path, keyed(own), environ={"CANARY_KEY": CANARY})
    calls.warm()
    own.fail(faults.Status(status, headers={"Location": elsewhere.url + "/v1/chat/completions"}))
    with pytest.raises(MaxwellError, match=r"one: .*redirects to"):
        calls.ask(mode)
    assert elsewhere.requests == []


def test_redirected_health_checks_are_not_followed(fake_server: FakeServers, tmp_path: Path) -> None:
    own, elsewhere = fake_server(), fake_server()
    own.fail(faults.Status(307, headers={"Location": elsewhere.url + "/health"}), times=None, path="*")
    calls = Calls(tmp_path, keyed(own), environ={"CANARY_KEY": CANARY})
    with calls.pool() as pool:
        assert pool.health()[0].state != "up"
    assert elsewhere.requests == []


class Ear:
    """A proxy that writes down what it hears and takes nobody anywhere."""

    def __init__(self) -> None:
        self.heard = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                source, _ = self._listening.accept()
            except OSError:
                return
            with source:
                self.heard += source.recv(65536)
                source.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()


@pytest.fixture
def ear() -> Iterator[Ear]:
    made = Ear()
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "api_base",
    [
        "http://api.openai.com",
        "http://api.openai.com.evil.example",
        "https://api.openai.com.evil.example",
        "https://api.openai.com",
        "http://127.0.0.1:PORT/api.openai.com",
        "http://localhost:PORT",
    ],
)
def test_the_openai_key_is_never_said_aloud(
    keys: None, ear: Ear, fake_server: FakeServers, write_registry: WriteRegistry, kind: str, api_base: str
) -> None:
    # To api.openai.com itself it goes within TLS, of which a proxy hears nothing.
    server = fake_server("openai", model="gpt-4o")
    api_base = api_base.replace("PORT", ear.url.rsplit(":", 1)[1])
    write_registry(server.llm_entry("cloud", api_base=api_base))
    proxies = {"http_proxy": ear.url, "https_proxy": ear.url}
    if kind == "sync":
        with LLMPool(load(find()), transport=Urllib3Transport(proxies)) as pool:
            assert pool.health()[0].state in ("down", "misconfigured")
    else:

        async def main() -> None:
            async with AsyncLLMPool(load(find()), transport=AiohttpTransport(proxies)) as pool:
                assert (await pool.health())[0].state in ("down", "misconfigured")

        asyncio.run(main())
    assert b" HTTP/1." in ear.heard
    assert CANARY.encode() not in ear.heard
    assert b"uthorization" not in ear.heard


def test_a_project_registry_may_not_send_keys_before_it_is_trusted(
    keys: None, fake_server: FakeServers, maxwell_home: Path
) -> None:
    server = fake_server("openai")
    project = Path.cwd() / ".maxwell"
    project.mkdir()
    (project / "lm_registry.json").write_text(json.dumps({"llms": [keyed(server)]}))
    with LLMPool.from_registry() as pool, pytest.raises(NoEligibleLM, match=r"one: .*maxwell trust"):
        pool.get_lm()
    assert count(server, "/v1/chat/completions") == 0
    assert not any("authorization" in r.headers for r in server.requests)


def test_a_dead_host_is_told_without_the_key(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    dead = keyed(server, api_base=f"http://127.0.0.1:{free_port()}")
    with (
        Calls(tmp_path, dead, environ={"CANARY_KEY": CANARY}).pool() as pool,
        pytest.raises(NoEligibleLM) as caught,
    ):
        pool.get_lm()
    assert CANARY not in all_of(caught.value)
