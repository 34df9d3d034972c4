"""The transport seam: what Maxwell asks of an HTTP library, in a sync and an async form.

`tests/contract/test_transport.py` is the contract in executable form; a library may stand behind this seam
when it passes all of it:

- separate connect / first-byte / idle / total limits, each reported as its own `TransportError.stage`;
- closing or abandoning an exchange, or cancelling a task that waits for it, closes the upstream connection
  within 0.2 s;
- a thread that waits for a response's head is woken by what it told `running.let_cut`;
- connections are pooled, TCP_NODELAY is set, redirects are not followed, proxies and CA files come from the
  environment;
- it works after `fork`, from many threads, and in one `asyncio.run` after another;
- a body that ends early is an error, never a clean end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from maxwell.calls.effects import Limits
from maxwell.types import HTTPRequest


class SyncExchange(Protocol):
    """A response being read."""

    status: int
    headers: Mapping[str, str]

    def read(self, seconds: float | None = None) -> bytes:
        """Next bytes as they arrive; b"" at the clean end, after which the connection is back in the pool.

        `seconds` replaces the idle limit for this piece. Raises `TransportError`.
        """

    def close(self) -> None:
        """Cut the exchange unless it was read to its end. Idempotent, never raises."""


class AsyncExchange(Protocol):
    """A response being read."""

    status: int
    headers: Mapping[str, str]

    async def read(self, seconds: float | None = None) -> bytes:
        """Next bytes as they arrive; b"" at the clean end, after which the connection is back in the pool.

        `seconds` replaces the idle limit for this piece. Raises `TransportError`.
        """

    def close(self) -> None:
        """Cut the exchange unless it was read to its end. Idempotent, never raises, needs no await."""


class SyncTransport(Protocol):
    """Sends requests for one process, from any thread."""

    def send(self, request: HTTPRequest, limits: Limits) -> SyncExchange:
        """Send and wait for the response's head. Raises `TransportError`."""

    def close(self) -> None:
        """Drop pooled connections. The transport can be used again."""


class AsyncTransport(Protocol):
    """Sends requests for one process, from any event loop."""

    async def send(self, request: HTTPRequest, limits: Limits) -> AsyncExchange:
        """Send and wait for the response's head. Raises `TransportError`."""

    async def close(self) -> None:
        """Drop pooled connections of the running loop. The transport can be used again."""
