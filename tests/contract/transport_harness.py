"""What the transport contract is checked with: an obedient server, and one way to call every transport.

The server knows just enough HTTP to read a request; what it answers is up to the test. The callers make a
sync and an async transport look alike, so that each test is written once. A further transport takes part by
an entry in `KINDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from maxwell.calls.aiohttp_transport import AiohttpTransport
from maxwell.calls.effects import Limits, TransportError
from maxwell.calls.transport import AsyncExchange, AsyncTransport, SyncTransport
from maxwell.calls.urllib3_transport import Urllib3Transport
from maxwell.types import HTTPRequest

EVENT = b'data: {"choices": []}\n\n'
AT_ONCE = 1.0  # seconds; the contract says 0.2, but a busy machine may take its time to notice
SOON = 10.0  # seconds; how long something that must happen may take before the test gives up
CANARY = "canary-4f1d"  # stands for a key; must never be seen in an error


class Heard(NamedTuple):
    """A request as it came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Peer:
    """The server's end of one connection."""

    def __init__(self, source: socket.socket, number: int, gone: queue.Queue[float]) -> None:
        self.source = source
        self.number = number
        self._gone = gone
        self._read = b""

    def send(self, data: bytes) -> None:
        self.source.sendall(data)

    def hear(self) -> Heard | None:
        """The next request; None when the other side is gone."""
        while b"\r\n\r\n" not in self._read:
            if not self._receive():
                return None
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._read) < length:
            if not self._receive():
                return None
        body, self._read = self._read[:length], self._read[length:]
        method, target, _ = first.split(" ")
        return Heard(method, target, headers, body, self.number)

    def until_gone(self) -> None:
        """Wait until the other side closes, and note when."""
        while self._receive():
            self._read = b""

    def reset(self) -> None:
        """Break the connection off the hard way."""
        self.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.source.close()

    def _receive(self) -> bool:
        try:
            data = self.source.recv(1 << 20)
        except OSError:
            data = b""
        self._read += data
        if not data:
            self._gone.put(time.monotonic())
        return bool(data)


Handler = Callable[[Peer, Heard], object]


class Server:
    """Answers each request by calling `handler(peer, heard)` in the connection's own thread.

    A handler that returns False ends the connection.

    Attributes:
        heard: Every request, in order of arrival.
        gone: A time for each connection that the other side closed.
        accepted: How many connections were made.
    """

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self.tls = tls
        self.heard: list[Heard] = []
        self.gone: queue.Queue[float] = queue.Queue()
        self.accepted = 0
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]
        self._spawn(self._accept)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.source.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SOON)
            assert not thread.is_alive()
        self._listening.close()

    def _spawn(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                source, _ = self._listening.accept()
            except OSError:
                return
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            self._spawn(self._serve, source, self.accepted)

    def _serve(self, source: socket.socket, number: int) -> None:
        try:
            if self.tls is not None:
                source = self.tls.wrap_socket(source, server_side=True)
            peer = Peer(source, number, self.gone)
            self._peers.append(peer)
            while (heard := peer.hear()) is not None:
                self.heard.append(heard)
                if self.handler(peer, heard) is False:
                    break
        except OSError:
            pass  # the other side left while it was written to
        finally:
            source.close()


@contextlib.contextmanager
def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server for the time of a `with` block."""
    server = Server(handler, tls)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


CHUNKED = head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def answer_ok(peer: Peer, heard: Heard) -> None:
    peer.send(whole(b"ok"))


def in_chunks(peer: Peer, heard: Heard) -> None:
    peer.send(CHUNKED + chunk(b"o") + chunk(b"k") + LAST_CHUNK)


class Certificate(NamedTuple):
    """A throwaway certificate for 127.0.0.1 that vouches for itself."""

    file: Path
    server: ssl.SSLContext


def make_certificate(folder: Path) -> Certificate:
    key, file = folder / "key.pem", folder / "certificate.pem"
    names = ["subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"]
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=throwaway"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-keyout", str(key), "-out", str(file)]
    for name in names:
        command += ["-addext", name]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file, key)
    return Certificate(file, server)


class Call(Protocol):
    """An exchange, sync or async."""

    status: int
    headers: Mapping[str, str]

    def read(self, seconds: float | None = None) -> bytes: ...
    def close(self) -> None: ...


class Caller(Protocol):
    """A transport, sync or async."""

    def send(self, request: HTTPRequest, limits: Limits = ...) -> Call: ...

    def idle(self, seconds: float) -> None:
        """Let time pass, and whatever the transport does meanwhile."""

    def close(self) -> None:
        """Drop pooled connections."""

    def leave(self) -> None:
        """End what the transport lives in."""


class SyncCaller:
    def __init__(self, transport: SyncTransport) -> None:
        self.transport = transport

    def send(self, request: HTTPRequest, limits: Limits = Limits()) -> Call:  # noqa: B008 - frozen
        return self.transport.send(request, limits)

    def idle(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        self.transport.close()

    def leave(self) -> None:
        self.transport.close()


class AsyncCaller:
    """One event loop, which runs only while something is asked of it."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport
        self.runner = asyncio.Runner()

    def send(self, request: HTTPRequest, limits: Limits = Limits()) -> Call:  # noqa: B008 - frozen
        return AsyncCall(self.runner, self.runner.run(self.transport.send(request, limits)))

    def idle(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    def close(self) -> None:
        self.runner.run(self.transport.close())

    def leave(self) -> None:
        self.runner.close()


class AsyncCall:
    def __init__(self, runner: asyncio.Runner, exchange: AsyncExchange) -> None:
        self._runner = runner
        self._exchange = exchange
        self.status = exchange.status
        self.headers = exchange.headers

    def read(self, seconds: float | None = None) -> bytes:
        return self._runner.run(self._exchange.read(seconds))

    def close(self) -> None:
        async def cut() -> None:
            self._exchange.close()

        self._runner.run(cut())


def interrupt(work: Callable[[], object], when: threading.Event) -> None:
    """Do `work`, and press Ctrl-C shortly after `when`; to an event loop that is a cancelled task."""
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        assert when.wait(SOON)
        time.sleep(0.05)  # there is no event for "has begun to wait"
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        work()
    except KeyboardInterrupt:
        return
    finally:
        thread.join()
    raise AssertionError("the work ended before it could be interrupted")


KINDS: dict[str, Callable[[Mapping[str, str]], Caller]] = {
    "urllib3": lambda environ: SyncCaller(Urllib3Transport(environ)),
    "aiohttp": lambda environ: AsyncCaller(AiohttpTransport(environ)),
}


def post(url: str, body: bytes = b"{}") -> HTTPRequest:
    return HTTPRequest(
        "POST", url, {"Authorization": f"Bearer {CANARY}", "Content-Type": "application/json"}, body
    )


def read_all(call: Call) -> bytes:
    return b"".join(iter(call.read, b""))


def ask(caller: Caller, url: str) -> bytes:
    return read_all(caller.send(post(url)))


def failure(work: Callable[[], object]) -> TransportError:
    """The error that `work` fails with, after a look at every way to print it for the key."""
    with pytest.raises(TransportError) as caught:
        work()
    error = caught.value
    shown = "".join([repr(error), str(error), *traceback.format_exception(error)])
    assert CANARY not in shown
    return error


def begin(peer: Peer, heard: Heard) -> None:
    """One event, then silence until the other side goes."""
    peer.send(CHUNKED + chunk(EVENT))
    peer.until_gone()


def say_nothing(peer: Peer, heard: Heard) -> None:
    peer.until_gone()
