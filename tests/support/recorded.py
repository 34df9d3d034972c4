"""Plays recorded answers of real servers to whoever asks what they were asked: `tests/data/wire/*.json`.

Each file holds what one server answered, byte for byte where it does not say under `changed` what was done
to it: vectors and lists too long to keep were cut when they were recorded, and are completed. An exchange is

    of: what it was recorded as        asked: the request's body then, for people
    method, path, when: which requests it answers
    kind: what a refusal means, see `errors.Fault`
    status, headers, body: the answer; the file's own `headers` come with each
    end: "" = as HTTP has it, "cut" = the connection breaks off after the body, "close" = without an answer

and `when`, where it is there, demands of a request

    fields: body fields by their dotted path: a value, "*" = any, null = absent
    contains: text in the body         longer: a body of more bytes than this
    key: the API key, or "not ..." = any other than this one, or none

The exchanges of "errors" are of no one server and are not played, only read. The first exchange that matches
answers. A request that none matches is an error of the test.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

DATA = Path(__file__).resolve().parents[1] / "data" / "wire"
FAMILIES = tuple(sorted(path.stem for path in DATA.glob("*.json")))
CHUNK = 50  # bytes of a stream that are sent at once: no event comes whole


class Asked(NamedTuple):
    """A request that came."""

    method: str
    path: str
    key: str
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self.body)
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) else {}


@cache
def recordings(family: str) -> dict[str, Any]:
    """The file of one family."""
    found: dict[str, Any] = json.loads((DATA / f"{family}.json").read_text(encoding="utf-8"))
    return found


def matches(exchange: Mapping[str, Any], asked: Asked) -> bool:
    """Whether `exchange` answers `asked`."""
    when = exchange.get("when", {})
    given, fields = when.get("key"), asked.fields
    if (exchange["method"], exchange["path"]) != (asked.method, asked.path):
        return False
    if given is not None and (asked.key != given.removeprefix("not ")) != given.startswith("not "):
        return False
    if when.get("contains", "").encode() not in asked.body or len(asked.body) <= when.get("longer", -1):
        return False
    return all(_is(value, _at(fields, path)) for path, value in when.get("fields", {}).items())


def _is(wanted: Any, found: Any) -> bool:
    return found is not None if wanted == "*" else bool(found == wanted)


def _at(fields: Any, path: str) -> Any:
    for name in path.split("."):
        fields = fields.get(name) if isinstance(fields, dict) else None
    return fields


class Replay:
    """A server on loopback that plays one of a family's recorded servers; a context manager.

    Args:
        family: Which file.
        server: Which of its servers.
        crlf: End the lines of streams by CR LF, as some servers and proxies do.
    """

    def __init__(self, family: str, server: str, *, crlf: bool = False) -> None:
        self.asked: list[Asked] = []
        self.unmatched: list[Asked] = []
        self._name = f"{family}: {server}"
        recorded = recordings(family)
        self._headers: dict[str, str] = recorded["headers"]
        self._exchanges: Sequence[Mapping[str, Any]] = recorded["servers"][server]
        self._crlf = crlf
        self._server = _Server(("127.0.0.1", 0), self._answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,), name=self._name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if not self.unmatched:
            return
        told = "\n".join(f"  {one.method} {one.path} {one.body[:500]!r}" for one in self.unmatched)
        told = f"{self._name}: nothing is recorded that answers\n{told}"
        if error is None:
            raise AssertionError(told)
        error.add_note(told)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length", 0))
        key = handler.headers.get("authorization", "").removeprefix("Bearer ")
        asked = Asked(handler.command, handler.path, key, handler.rfile.read(length))
        self.asked.append(asked)
        found = next((one for one in self._exchanges if matches(one, asked)), None)
        if found is None:
            self.unmatched.append(asked)
            found = {"status": 400, "headers": {}, "body": "nothing is recorded that answers this"}
        if found.get("end") == "close":
            handler.close_connection = True
        else:
            self._send(handler, found)

    def _send(self, handler: BaseHTTPRequestHandler, found: Mapping[str, Any]) -> None:
        body = found["body"].encode()
        headers = self._headers | found["headers"]
        is_stream = "event-stream" in headers.get("content-type", "")
        is_cut = found.get("end") == "cut"
        headers.pop("transfer-encoding", None)
        headers |= {"transfer-encoding": "chunked"} if is_stream else {"content-length": str(len(body))}
        handler.send_response_only(found["status"])
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if not is_stream:
            handler.wfile.write(body)
            return
        if self._crlf:
            body = body.replace(b"\n", b"\r\n")
        for start in range(0, len(body), CHUNK):
            piece = body[start : start + CHUNK]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.close_connection = is_cut
        if not is_cut:
            handler.wfile.write(b"0\r\n\r\n")


class _Server(ThreadingHTTPServer):
    """Calls `answer` with the handler of each request, and drops all connections when it is closed."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], answer: Any) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                answer(self)

            do_POST = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            for connection in self._open:
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nobody's mistake; the test sees what else goes wrong."""
