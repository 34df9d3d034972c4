"""Raw HTTP to a fake server, for the tests of `maxwell.testing`."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from maxwell.testing import FakeServer
from maxwell.types import BackendName

DIALECTS: tuple[BackendName, ...] = ("llamacpp", "vllm", "openai")
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
REPLY = "Hello there, friend."
WAIT = 5.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@contextmanager
def connected(server: FakeServer, timeout: float = WAIT) -> Iterator[http.client.HTTPConnection]:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=timeout)
    with closing(connection):
        yield connection


def send(connection: http.client.HTTPConnection, path: str, body: Any = None, **headers: str) -> None:
    """Send a request: GET without a body, POST with one (bytes as they are, anything else as JSON)."""
    payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request("GET" if body is None else "POST", path, payload, given)


@contextmanager
def opened(
    server: FakeServer, path: str, body: Any = None, timeout: float = WAIT, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    with connected(server, timeout) as connection:
        send(connection, path, body, **headers)
        with closing(connection.getresponse()) as response:
            yield response


def call(server: FakeServer, path: str, body: Any = None, **more: Any) -> Answer:
    with opened(server, path, body, **more) as response:
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())


def broken(server: FakeServer, body: dict[str, Any]) -> bytes:
    """What arrives of a chat response that breaks off; the test fails when it does not."""
    with opened(server, CHAT, body) as response:
        try:
            response.read()
        except http.client.IncompleteRead as error:
            return bytes(error.partial)
    raise AssertionError("the response came to a clean end")


def events(raw: bytes) -> list[Any]:
    """The stream's data fields, parsed; "[DONE]" stays a string."""
    lines = [line.removeprefix(b"data: ") for line in raw.splitlines() if line.startswith(b"data: ")]
    return ["[DONE]" if line == b"[DONE]" else json.loads(line) for line in lines]


def text(chunks: list[Any]) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if isinstance(c, dict) and c.get("choices")]
    return "".join(d.get("content") or "" for d in deltas)


def finishes(chunks: list[Any]) -> list[str]:
    choices = [c["choices"][0] for c in chunks if isinstance(c, dict) and c.get("choices")]
    return [c["finish_reason"] for c in choices if c["finish_reason"] is not None]


def shape(value: Any) -> Any:
    """A body without its values: what must be the same as in a recording, key order included."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if is_number else type(value).__name__
