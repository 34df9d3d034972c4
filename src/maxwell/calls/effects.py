"""The seam between what Maxwell decides and what touches the world.

A *flow* is a generator that yields effects and is sent their results. It holds every decision about a call
(failover, accounting, stream handling) and no I/O, so one body serves sync and async alike: `sync_driver`
and `async_driver` are the only places that execute effects.

An effect that fails raises its error inside the flow, at the `yield`. A flow that is closed or cancelled is
left by `GeneratorExit`; it may clean up, but not yield again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from maxwell.types import HTTPRequest

T = TypeVar("T")
Flow = Generator[Any, Any, T]


class Limits(Struct, frozen=True):
    """How long each stage of an exchange may take, in seconds. None = no limit.

    Attributes:
        connect: Until the connection stands, TLS included.
        first_byte: From the request sent to the response's head.
        idle: Between two pieces of the body.
        total: From the start to the end of the body.
    """

    connect: float | None = 5.0
    first_byte: float | None = 300.0
    idle: float | None = 60.0
    total: float | None = None


class Exchange(Protocol):
    """A response whose body is still arriving; the flow sees its head and hands it back to `Pull`/`Close`.

    Header names are lower case.
    """

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers, names in lower case."""


class Send(Struct, frozen=True):
    """Open an exchange. Result: `Exchange`. Raises `TransportError`."""

    request: HTTPRequest
    limits: Limits


class Pull(Struct, frozen=True):
    """Next bytes of the body. Result: `bytes`, empty at its clean end. Raises `TransportError`.

    `seconds` replaces the idle limit where this piece is worth a shorter wait.
    """

    exchange: Any
    seconds: float | None = None


class Close(Struct, frozen=True):
    """Done with the exchange: a fully read one goes back to the pool, any other is cut. Result: None."""

    exchange: Any


class Emit(Struct, frozen=True):
    """Hand a value to whoever iterates the flow. Result: None."""

    value: Any


class Sleep(Struct, frozen=True):
    """Wait. Result: None."""

    seconds: float


class Aside(Struct, frozen=True):
    """Run something that may block, off the event loop where there is one. Result: what it returns.

    It runs to its end even when the flow is left meanwhile.
    """

    work: Callable[[], Any]


class Perform(Struct, frozen=True):
    """Call the caller's own functions: side by side in coroutines, where plain ones get a thread each and
    coroutine functions are awaited; one after the other elsewhere, where coroutine functions are a TypeError.

    Result: a list of (what it returned, None) or (None, the `Exception` it raised), in order. What was begun
    on a thread runs to its end even when the flow is left meanwhile; what is awaited is cancelled then.
    """

    calls: Sequence[Callable[[], Any]]


class Gather(Struct, frozen=True):
    """Run flows side by side.

    Result: a list with each flow's result, None where it had not finished. Returns when all are done, when
    `seconds` ran out, or as soon as `enough()` is true after one finished; what still runs then goes on in
    the background. A flow's exception is its result.
    """

    flows: list[Flow[Any]]
    seconds: float
    enough: Callable[[], bool]


class Handle(Protocol):
    """A flow that was started, as `First` and `Stop` know it."""

    @property
    def done(self) -> bool:
        """Whether it has ended: with a result, with an error, or because it was stopped."""

    @property
    def result(self) -> Any:
        """What it returned; None while it runs, and where it did not return."""

    @property
    def error(self) -> BaseException | None:
        """What it ended with instead of a result."""


class Start(Struct, frozen=True):
    """Run a flow beside this one; what it emits is dropped. Result: its `Handle`.

    When this flow ends or is left, whatever it started is stopped.
    """

    flow: Flow[Any]


class First(Struct, frozen=True):
    """Wait until one of the started flows has ended. Result: the list of those that have.

    It is empty where there were none, or where `seconds` ran out; None = no limit.
    """

    handles: Sequence[Handle]
    seconds: float | None = None


class Stop(Struct, frozen=True):
    """End a started flow. Result: None.

    It is closed, so that it settles its accounts, and whatever it waits for is cut. Does nothing where it has
    ended.
    """

    handle: Handle


class TransportError(Exception):
    """The exchange failed below HTTP.

    Attributes:
        stage: "connect", "first_byte", "idle", "total" when that limit ran out; "refused" when no connection
            could be made; "closed" when the other side broke the exchange off.
        fresh: Whether not one byte of the response had been received.
    """

    def __init__(self, stage: str, message: str, *, fresh: bool = True) -> None:
        self.stage = stage
        self.fresh = fresh
        super().__init__(message)
