"""The sync transport, on urllib3's connections.

urllib3 brings TLS, proxy tunnels and the sending of requests. Its pools and its response class are passed
over: they hide whether a connection was used before, which limit ran out and the socket that a cut has to
reach, and they cost two fifths of an exchange.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from http import client
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection, ProxyConfig
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from maxwell.calls.effects import Limits, TransportError
from maxwell.calls.network import (
    KEEPALIVE_SECONDS,
    PIECE,
    Network,
    Server,
    bracketed,
    check,
    failure,
    lower_names,
)
from maxwell.calls.running import let_cut
from maxwell.types import HTTPRequest

# Every way in which an exchange fails; ValueError for a name too long to be looked up.
FAILURES = (OSError, client.HTTPException, HTTPError, ValueError)


class Urllib3Transport:
    """Sends requests from any thread, over connections kept for reuse in this process only.

    Sending the request counts towards the first-byte limit. Looking up a name cannot be interrupted, so it
    may outlast the connect limit.

    Attributes:
        environ: Where proxies and certificates are named; None = the process's environment. Read once.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._idle: dict[Server, deque[_Connection]] = {}
        self._process = os.getpid()
        self._network = Network(os.environ if environ is None else environ)

    def send(self, request: HTTPRequest, limits: Limits) -> Urllib3Exchange:
        """Send and wait for the response's head. Raises `TransportError`."""
        clock = _Clock(limits)
        server, target = self._network.route(request.url)
        check(request.headers)
        used = self._take(server)
        if used is not None:
            try:
                return self._ask(used, request, target, clock)
            except TransportError as error:
                if error.stage != "closed" or not error.fresh:
                    raise
        # None idle, or the server had dropped it while it lay idle: on a new connection, once.
        return self._ask(self._connect(server, clock), request, target, clock)

    def close(self) -> None:
        """Drop pooled connections. The transport can be used again."""
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def __del__(self) -> None:
        self.close()

    def keep(self, connection: _Connection) -> None:
        """Take back a connection that is ready for another request."""
        if connection.process != self._process:
            connection.close()
            return
        connection.idle_since = now = time.monotonic()
        idle = self._idle.setdefault(connection.server, deque())
        idle.append(connection)
        with contextlib.suppress(IndexError):  # other threads take from it, too
            while now - idle[0].idle_since > KEEPALIVE_SECONDS:
                idle.popleft().close()

    def _take(self, server: Server) -> _Connection | None:
        """The most recently used idle connection that still stands."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.close()  # a forked child closes its copies; the parent's connections stay up
        idle = self._idle.get(server)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if time.monotonic() - connection.idle_since < KEEPALIVE_SECONDS and connection.is_connected:
                return connection
            connection.close()
        return None

    def _connect(self, server: Server, clock: _Clock) -> _Connection:
        connection = _connection(server, self._network)
        connection.clock = clock
        clock.start("connect", clock.limits.connect)
        try:
            connection.timeout = clock.left()
            connection.connect()
        except FAILURES as error:
            connection.close()
            raise clock.failure(error, server, "refused") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _ask(
        self, connection: _Connection, request: HTTPRequest, target: str, clock: _Clock
    ) -> Urllib3Exchange:
        connection.clock = clock
        source = connection.sock
        clock.start("first_byte", clock.limits.first_byte)
        let_cut(partial(_shut_down, connection, source))  # by another thread, which must not close it
        try:
            connection.timeout = clock.left()
            response = connection.ask(request, target)
        except FAILURES as error:
            _cut(connection, source)
            raise clock.failure(error, connection.server, "closed") from None
        except BaseException:
            _cut(connection, source)
            raise
        return Urllib3Exchange(self, connection, source, response)


class Urllib3Exchange:
    """A response being read."""

    __slots__ = ("_connection", "_cut", "_response", "_source", "_transport", "headers", "status")

    def __init__(
        self,
        transport: Urllib3Transport,
        connection: _Connection,
        source: socket.socket,
        response: client.HTTPResponse,
    ) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection
        self._source = source
        self._response = response
        self._cut = False
        self.status = response.status
        self.headers: Mapping[str, str] = lower_names(response.headers.items())

    def read(self, seconds: float | None = None) -> bytes:
        """Next bytes as they arrive, at most 64 KiB; b"" at the clean end.

        `seconds` replaces the idle limit for this piece. Raises `TransportError`.
        """
        connection, response = self._connection, self._response
        if connection is None:
            if self._cut:
                raise TransportError("closed", "the exchange was closed before its end", fresh=False)
            return b""
        clock = connection.clock
        clock.start("idle", clock.limits.idle if seconds is None else seconds)
        try:
            data = response.read1(PIECE)
            if not data and response.length:
                raise client.IncompleteRead(data)
        except FAILURES as error:
            self.close()
            raise clock.failure(error, connection.server, "closed") from None
        except BaseException:
            self.close()
            raise
        if not data or response.length == 0:
            self._finish(connection)
        return data

    def close(self) -> None:
        """Cut the exchange unless it was read to its end. Idempotent, never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._cut = True
            _cut(connection, self._source)
            with contextlib.suppress(OSError):
                self._response.close()

    def __del__(self) -> None:
        self.close()

    def _finish(self, connection: _Connection) -> None:
        self._connection = None
        self._response.close()
        if connection.sock is not None:  # None: the server wants it closed, and it is
            self._transport.keep(connection)


class _Clock:
    """The limits of one exchange: what is being waited for, until when, and which bytes came."""

    __slots__ = ("_ends", "_until", "ended", "limits", "received", "seconds", "stage")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.stage = "total"
        self.seconds = limits.total
        self.received = False
        self.ended = False
        self._ends = None if limits.total is None else time.monotonic() + limits.total
        self._until = self._ends

    def start(self, stage: str, seconds: float | None) -> None:
        """Begin a stage that may take so many seconds."""
        until = None if seconds is None else time.monotonic() + seconds
        if self._ends is not None and (until is None or self._ends < until):
            stage, seconds, until = "total", self.limits.total, self._ends
        self.stage, self.seconds, self._until = stage, seconds, until

    def left(self) -> float | None:
        """Seconds left, None for no limit. Raises `TimeoutError` if there are none."""
        if self._until is None:
            return None
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def failure(self, error: BaseException, server: Server, otherwise: str) -> TransportError:
        """The error to raise; one that is not a limit running out belongs to the stage `otherwise`."""
        stage = self.stage if isinstance(error, TimeoutError) else otherwise
        return failure(stage, server, self.seconds, fresh=not self.received, error=error)


class _Timed(io.RawIOBase):
    """A socket's bytes; each wait for them keeps to the exchange's clock."""

    def __init__(self, source: socket.socket, clock: _Clock) -> None:
        self._source = source
        self._raw = source.makefile("rb", buffering=0)
        self._clock = clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._source.settimeout(self._clock.left())
        count = self._raw.readinto(buffer)
        if count:
            self._clock.received = True
        else:
            self._clock.ended = True
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedSource:
    """Stands in for a socket where http.client wants to read a response from it."""

    def __init__(self, source: socket.socket, clock: _Clock) -> None:
        self._source = source
        self._clock = clock

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Timed(self._source, self._clock))


class _Connection(HTTPConnection):
    """A connection that keeps to the clock of the exchange it serves, and knows whose it is."""

    clock: _Clock
    server: Server
    process: int
    idle_since: float

    def ask(self, request: HTTPRequest, target: str) -> client.HTTPResponse:
        """Send a request and wait for the response's head."""
        headers = request.headers
        proxy = self.server.proxy
        if proxy is not None and self.server.scheme == "http":
            target = f"http://{bracketed(self.server.host)}:{self.server.port}{target}"
            if proxy.authorization is not None:
                headers = {**headers, "Proxy-Authorization": proxy.authorization}
        self.clock.ended = False
        # A server may answer before it has read everything and close: then the answer is what counts.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.request(request.method, target, request.body or None, headers)
        response = client.HTTPConnection.getresponse(self)
        if self.clock.ended:  # http.client takes a head that breaks off for a complete one
            response.close()
            raise client.IncompleteRead(b"")
        return response

    def response_class(self, source: socket.socket, **options: Any) -> client.HTTPResponse:  # type: ignore[override]
        return client.HTTPResponse(_TimedSource(source, self.clock), **options)  # type: ignore[arg-type]

    def _new_conn(self) -> socket.socket:
        # In place of urllib3's: that one gives each address of a host the whole limit, and TLS once more.
        places = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        failed: OSError = OSError(f"{self.host} has no address")
        for tried, (family, kind, protocol, _, address) in enumerate(places):
            source = socket.socket(family, kind, protocol)
            try:
                left = self.clock.left()
                source.settimeout(None if left is None else left / (len(places) - tried))
                source.connect(address)
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                source.settimeout(self.clock.left())
            except OSError as error:
                source.close()
                failed = error
            except BaseException:
                source.close()
                raise
            else:
                return source
        raise failed


class _TLSConnection(_Connection, HTTPSConnection):
    """The same over TLS, to the server or to its proxy."""


def _connection(server: Server, network: Network) -> _Connection:
    """A connection that is yet to be made."""
    proxy = server.proxy
    near = proxy or server
    options: dict[str, Any] = {}
    if proxy is not None:
        context = network.tls() if proxy.scheme == "https" else None
        options["proxy"] = parse_url(proxy.url)
        options["proxy_config"] = ProxyConfig(context, False, None, None)
    if "https" in (server.scheme, near.scheme):
        connection: _Connection = _TLSConnection(near.host, near.port, ssl_context=network.tls(), **options)
    else:
        connection = _Connection(near.host, near.port, **options)
    if proxy is not None and server.scheme == "https":
        login = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
        connection.set_tunnel(server.host, server.port, headers=login, scheme=proxy.scheme)
    connection.server = server
    connection.process = os.getpid()
    return connection


def _shut_down(connection: _Connection, source: socket.socket) -> None:
    """Let the server, and whoever waits for it here, notice at once that it is over."""
    with contextlib.suppress(OSError, AttributeError):  # TLS within TLS cannot be shut down, only closed
        # Closing alone says nothing while a forked child has a copy; and a child must not cut its parent.
        if connection.process == os.getpid():
            source.shutdown(socket.SHUT_RDWR)


def _cut(connection: _Connection, source: socket.socket) -> None:
    """Close the connection so that the server notices at once."""
    _shut_down(connection, source)
    with contextlib.suppress(OSError):
        connection.close()
