"""Between flows and simulated servers: exchanges that arrive piece by piece on virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from maxwell.calls.effects import Limits, TransportError
from maxwell.types import HTTPRequest
from scheduling.world import Timer, World

REFUSAL_SECONDS = 0.001


class Host(Protocol):
    """A simulated server."""

    def refuses(self) -> bool:
        """Whether no connection can be made now."""

    def answer(self, request: HTTPRequest, exchange: Exchange) -> None:
        """Take a request and fill the exchange, now or later."""

    def abandoned(self, exchange: Exchange) -> None:
        """The client has cut the exchange."""


class Exchange:
    """One request and its response.

    Attributes:
        status: HTTP status, once `begin` was called.
        headers: Response headers.
    """

    def __init__(self, world: World, host: Host, limits: Limits) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._world = world
        self._host = host
        self._limits = limits
        self._began = world.now
        self._pieces: deque[bytes] = deque()
        self._ended = False  # all pieces were handed over
        self._closed = False
        self._late: TransportError | None = None
        self._timer: Timer | None = None
        self._head: Callable[[Exchange], None] | None = None
        self._broken: Callable[[Exception], None] | None = None
        self._news: Callable[[Callable[[], bytes]], None] | None = None

    # --- the server's side

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the response's head."""
        if self._closed:
            return
        self.status, self.headers = status, headers
        self._unwait()
        head, self._head = self._head, None
        if head is not None:
            head(self)

    def deliver(self, piece: bytes) -> None:
        """Send bytes of the body; none end it."""
        if self._closed:
            return
        self._pieces.append(piece)
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            self._unwait()
            news(self.take)

    # --- the client's side

    def open(
        self, head: Callable[[Exchange], None], broken: Callable[[Exception], None]
    ) -> Callable[[], None]:
        """Wait for the head; returns how to give up."""
        self._head, self._broken = head, broken
        self._wait(self._limits.first_byte, "first_byte", self._no_head)
        return self.close

    def _no_head(self, error: TransportError) -> None:
        broken, self._head = self._broken, None
        self.close()
        assert broken is not None
        broken(error)

    @property
    def has_news(self) -> bool:
        """Whether `take` has something to give at once."""
        return bool(self._pieces) or self._ended or self._late is not None

    def take(self) -> bytes:
        """The next bytes; b"" at the end. Raises `TransportError`."""
        if self._late is not None:
            raise self._late
        if self._ended:
            return b""
        piece = self._pieces.popleft()
        self._ended = not piece
        return piece

    def when_news(
        self, seconds: float | None, told: Callable[[Callable[[], bytes]], None]
    ) -> Callable[[], None]:
        """Have `told` called with `take` when there is something; returns how to give up."""
        self._news = told
        self._wait(self._limits.idle if seconds is None else seconds, "idle", self._no_news)
        return self.close

    def _no_news(self, error: TransportError) -> None:
        self._late = error
        self._tell()

    def _wait(self, seconds: float | None, stage: str, late: Callable[[TransportError], None]) -> None:
        """Call `late` when that limit, or the total one, runs out first."""
        total = self._limits.total
        if total is not None:
            left = self._began + total - self._world.now
            if seconds is None or left < seconds:
                seconds, stage = left, "total"
        if seconds is not None:
            error = TransportError(stage, f"nothing came within the {stage} limit", fresh=not self.status)
            self._timer = self._world.after(seconds, lambda: late(error))

    def _unwait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Cut it unless it was read to its end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._unwait()
        self._news = self._head = None
        if not self._ended:
            self._host.abandoned(self)


class Network:
    """All simulated servers by their network location. A request arrives at once."""

    def __init__(self, world: World) -> None:
        self.hosts: dict[str, Host] = {}
        self._world = world

    def send(
        self,
        request: HTTPRequest,
        limits: Limits,
        head: Callable[[Any], None],
        broken: Callable[[Exception], None],
    ) -> Callable[[], None]:
        """Send; one of the two is told later. Returns how to give up."""
        host = self.hosts.get(urlsplit(request.url).netloc)
        if host is None or host.refuses():
            error = TransportError("refused", "connection refused")
            return self._world.after(REFUSAL_SECONDS, lambda: broken(error)).cancel
        exchange = Exchange(self._world, host, limits)
        stop = exchange.open(head, broken)
        host.answer(request, exchange)
        return stop
