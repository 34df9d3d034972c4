"""The async transport, on aiohttp.

The limits are kept here, because aiohttp's own cannot all be told apart. It is leant on in three places that
the contract suite watches: `BaseConnector._get` chooses an idle connection, `connect` returns before the
request is sent, and a stream's `set_exception` wakes its reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import socket
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

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
from maxwell.types import HTTPRequest

# Every way in which an exchange fails; ValueError for a name too long to be looked up, RuntimeError for a
# connection that was closed under its reader.
FAILURES = (aiohttp.ClientError, OSError, ValueError, RuntimeError)
LARGEST_WHOLE_BODY = 2**20  # a larger one is handed to aiohttp in pieces, lest it hold up the loop


class AiohttpTransport:
    """Sends requests from any event loop; each loop has its own connections, which close when it shuts down.

    Sending the request counts towards the first-byte limit.

    Attributes:
        environ: Where proxies and certificates are named; None = the process's environment. Read once.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._network = Network(os.environ if environ is None else environ)
        self._process = os.getpid()
        self._homes: dict[asyncio.AbstractEventLoop, _Home] = {}
        self._inherited: list[Any] = []

    async def send(self, request: HTTPRequest, limits: Limits) -> AiohttpExchange:
        """Send and wait for the response's head. Raises `TransportError`."""
        loop = asyncio.get_running_loop()
        home = self._homes.get(loop)
        if home is None or self._process != os.getpid():
            home = await self._settle(loop)
        server, target = self._network.route(request.url)
        check(request.headers)
        flight = _Flight(loop, server, limits)
        try:
            return await self._ask(home, request, target, flight)
        except TransportError as error:
            if not flight.reused or error.stage != "closed" or not error.fresh:
                raise
        # The server had dropped the connection while it lay idle: on a new one, once.
        flight.reuse, flight.wire = False, None
        return await self._ask(home, request, target, flight)

    async def close(self) -> None:
        """Drop the running loop's connections; open exchanges are cut. It can be used again."""
        home = self._homes.get(asyncio.get_running_loop())
        if home is not None and self._process == os.getpid():
            await home.keeper.aclose()

    async def _settle(self, loop: asyncio.AbstractEventLoop) -> _Home:
        """Open a session that ends with the loop."""
        if self._process != os.getpid():
            # Kept, because the child must not close them: see _Connector.
            for home in self._homes.values():
                self._inherited.append((home, home.session.connector))
                home.session.detach()
            self._process, self._homes = os.getpid(), {}
        session = aiohttp.ClientSession(
            connector=_Connector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            read_bufsize=PIECE,
            auto_decompress=False,
        )
        home = self._homes[loop] = _Home(session)
        home.keeper = _until_shutdown(loop, home, self._homes)
        await anext(home.keeper)
        for known, other in list(self._homes.items()):
            if known.is_closed():  # without shutting down: nothing ended its session
                self._homes.pop(known, None)
                await other.end()
        return home

    async def _ask(self, home: _Home, request: HTTPRequest, target: str, flight: _Flight) -> AiohttpExchange:
        server = flight.server
        options = self._options(server, request)
        token = _current.set(flight)
        try:
            async with asyncio.timeout_at(flight.start("connect", flight.limits.connect)) as flight.timer:
                response = await home.session.request(
                    request.method,
                    URL(f"{server.scheme}://{bracketed(server.host)}:{server.port}{target}", encoded=True),
                    allow_redirects=False,
                    **options,
                )
        except FAILURES as error:
            flight.cut()
            raise flight.failure(error) from None
        except BaseException:
            flight.cut()
            raise
        finally:
            _current.reset(token)
            flight.timer = None  # it knows the task, whose result may be the exchange, which knows the flight
        exchange = AiohttpExchange(response, flight)
        home.exchanges.add(exchange)
        return exchange

    def _options(self, server: Server, request: HTTPRequest) -> dict[str, Any]:
        body: Any = request.body or None
        options: dict[str, Any] = {
            "headers": request.headers,
            "data": io.BytesIO(body) if len(request.body) > LARGEST_WHOLE_BODY else body,
        }
        proxy = server.proxy
        if proxy is not None:
            options["proxy"] = URL(proxy.url)
            if proxy.authorization is not None:
                login = {"Proxy-Authorization": proxy.authorization}
                if server.scheme == "https":
                    options["proxy_headers"] = login
                else:
                    options["headers"] = {**request.headers, **login}
        if "https" in (server.scheme, (proxy or server).scheme):
            options["ssl"] = self._network.tls()
        return options


class AiohttpExchange:
    """A response being read."""

    def __init__(self, response: aiohttp.ClientResponse, flight: _Flight) -> None:
        self._response = response
        self._flight = flight
        self._content = response.content
        self._watch = _Watch(response.content, flight)
        self._over = self._cut = False
        self.status = response.status
        self.headers: Mapping[str, str] = lower_names(response.headers.items())

    async def read(self, seconds: float | None = None) -> bytes:
        """Next bytes as they arrive, at most 64 KiB; b"" at the clean end.

        `seconds` replaces the idle limit for this piece. Raises `TransportError`.
        """
        if self._over:
            if self._cut:
                raise TransportError("closed", "the exchange was closed before its end", fresh=False)
            return b""
        watch = self._watch
        try:
            if not self._content.is_eof():
                watch.start(self._flight.limits.idle if seconds is None else seconds)
            data = await self._content.read(PIECE)
            if not data:
                self._finish()
        except TransportError:
            self.close()
            raise
        except FAILURES as error:
            self.close()
            raise failure("closed", self._flight.server, None, fresh=False, error=error) from None
        except BaseException:
            self.close()
            raise
        watch.rest()
        return data

    def close(self) -> None:
        """Cut the exchange unless it was read to its end. Idempotent, never raises, needs no await."""
        if self._over:
            return
        self._over = self._cut = True
        flight, response = self._flight, self._response
        if flight.process != os.getpid():
            return  # a forked child's copy; the exchange is the parent's
        connection = response.connection
        if connection is not None:  # None: all of it had arrived, and the connection serves others by now
            flight.shut_down()
        try:
            here = asyncio.get_running_loop() is flight.loop
        except RuntimeError:
            here = False
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile, and its connections with it
            if here or flight.loop.is_closed():
                _end(self._watch, response, connection)
            else:
                flight.loop.call_soon_threadsafe(_end, self._watch, response, connection)

    def __del__(self) -> None:
        self.close()

    def _finish(self) -> None:
        protocol = self._flight.protocol
        error = None if protocol is None else protocol.exception()
        # aiohttp takes a reset for the end of a body whose end only the closing of the connection marks.
        if isinstance(error, aiohttp.ClientOSError) and not _has_length(self.headers):
            raise error
        self._over = True
        self._watch.stop()


class _Home:
    """What one event loop has: a session, its living exchanges, the generator that ends them all."""

    keeper: AsyncGenerator[None, None]

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.process = os.getpid()
        self.exchanges: weakref.WeakSet[AiohttpExchange] = weakref.WeakSet()

    async def end(self) -> None:
        """Cut what is open, or its readers would wait for ever, and close every connection."""
        for exchange in list(self.exchanges):
            exchange.close()
        await self.session.close()


async def _until_shutdown(
    loop: asyncio.AbstractEventLoop, home: _Home, homes: dict[asyncio.AbstractEventLoop, _Home]
) -> AsyncGenerator[None, None]:
    # A loop that shuts down closes the asynchronous generators begun in it: the one hook it offers.
    try:
        yield
    finally:
        if home.process == os.getpid():  # else it is the parent's
            homes.pop(loop, None)
            await home.end()


class _Flight:
    """One request under way: its limits, the connection it got, and whether that had been used before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Server, limits: Limits) -> None:
        self.loop = loop
        self.server = server
        self.limits = limits
        self.ends = math.inf if limits.total is None else loop.time() + limits.total
        self.process = os.getpid()
        self.reuse = True
        self.reused = False
        self.stage = "connect"
        self.seconds: float | None = limits.connect
        self.timer: asyncio.Timeout | None = None
        self.protocol: Any = None
        self.wire: asyncio.Transport | None = None

    def start(self, stage: str, seconds: float | None) -> float | None:
        """Begin a stage that may take so many seconds, and say when they are over."""
        due = math.inf if seconds is None else self.loop.time() + seconds
        if self.ends < due:
            stage, seconds, due = "total", self.limits.total, self.ends
        self.stage, self.seconds = stage, seconds
        return None if due == math.inf else due

    def connected(self, connection: Connection) -> None:
        """From here on it is the server that is waited for."""
        self.protocol, self.wire = connection.protocol, connection.transport
        assert self.timer is not None
        self.timer.reschedule(self.start("first_byte", self.limits.first_byte))

    def ran_out(self, *, fresh: bool) -> TransportError:
        """The error to raise when the limit of the present stage is over."""
        return failure(self.stage, self.server, self.seconds, fresh=fresh)

    def failure(self, error: BaseException) -> TransportError:
        """The error to raise for a request that got no response."""
        if self.timer is not None and self.timer.expired():
            return self.ran_out(fresh=True)
        stage = "refused" if self.wire is None else "closed"
        # What came of a head that broke off stands in place of the message.
        silent = isinstance(error, aiohttp.ServerDisconnectedError) and isinstance(error.message, str)
        fresh = stage == "refused" or silent or isinstance(error, aiohttp.ClientOSError)
        return failure(stage, self.server, None, fresh=fresh, error=error)

    def cut(self) -> None:
        """Close the connection at once, unsent bytes or not."""
        if self.wire is not None:
            self.shut_down()
            self.wire.abort()

    def shut_down(self) -> None:
        """Tell the server that it is over, even if the loop does not run or a forked child holds a copy."""
        assert self.wire is not None
        # By way of a copy: not every kind of loop lets its own socket be shut down.
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self.wire.get_extra_info("socket").fileno())) as copy,
        ):
            copy.shutdown(socket.SHUT_RDWR)


_current: ContextVar[_Flight] = ContextVar("_current")


class _Connector(aiohttp.TCPConnector):
    """Tells the request under way which connection it got.

    In a forked child it does nothing: the child shares its parent's selector, and to close anything there
    would deafen the parent.
    """

    def __init__(self, **options: Any) -> None:
        self._process = os.getpid()
        super().__init__(**options)

    def __del__(self, *_: Any) -> None:
        if self._process == os.getpid():
            super().__del__()

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        if self._process == os.getpid():
            super()._release(key, protocol, should_close=should_close)

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Connection:
        connection = await super().connect(req, traces, timeout)
        _current.get().connected(connection)
        return connection

    async def _get(self, key: Any, traces: Any) -> Connection | None:
        flight = _current.get()
        found = await super()._get(key, traces) if flight.reuse else None
        flight.reused = found is not None
        return found


class _Watch:
    """Ends the wait for a body's next piece when a limit runs out.

    One timer an exchange, looked at when it is due, instead of one a piece: pieces are many, silence is rare.
    """

    __slots__ = ("_content", "_due", "_flight", "_handle", "_looks_at")

    def __init__(self, content: aiohttp.StreamReader, flight: _Flight) -> None:
        self._content = content
        self._flight = flight
        self._due = math.inf  # when the wait has to be over; inf = nobody waits, or for ever
        self._looks_at = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float | None) -> None:
        """A reader begins to wait, for so many seconds at most."""
        due = self._flight.start("idle", seconds)
        self._due = math.inf if due is None else due
        if self._due < self._looks_at:
            self._arm()

    def rest(self) -> None:
        """The reader has what it waited for."""
        self._due = math.inf

    def stop(self) -> None:
        """Nobody will read again."""
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self) -> None:
        self.stop()
        self._looks_at = self._due
        self._handle = self._flight.loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._handle, self._looks_at = None, math.inf
        if self._due <= self._flight.loop.time():
            self._content.set_exception(self._flight.ran_out(fresh=False))
        elif self._due < math.inf:
            self._arm()


def _end(watch: _Watch, response: aiohttp.ClientResponse, connection: Connection | None) -> None:
    """The part of a cut that belongs to the loop's thread."""
    watch.stop()
    if connection is not None and connection.transport is not None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            connection.transport.abort()
    response.close()
    if connection is not None:
        connection.close()


def _has_length(headers: Mapping[str, str]) -> bool:
    return "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower()
