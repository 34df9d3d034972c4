"""Whole responses, the pieces of one that some faults leave, and the slots requests wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from maxwell.testing import faults
from maxwell.testing.dialects.base import Dialect, Reply
from maxwell.testing.state import Recorded, State


class Slots:
    """The requests a server works on at once; the others wait their turn, first come, first served."""

    def __init__(self, count: int | None) -> None:
        self._free = None if count is None else asyncio.Semaphore(count)
        self.busy = 0
        self.waiting = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a slot."""
        if self._free is not None:
            self.waiting += 1
            try:
                await self._free.acquire()
            finally:
                self.waiting -= 1
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            if self._free is not None:
                self._free.release()


class Responder:
    """Turns a dialect's replies into responses."""

    def __init__(self, dialect: Dialect, state: State) -> None:
        self._dialect = dialect
        self._state = state

    def respond(self, reply: Reply) -> web.Response:
        """The reply as it should be."""
        response = web.Response(status=reply.status, body=reply.body, headers=self._headers(reply))
        if reply.status >= 400 and self._dialect.closes_on_error:
            response.force_close()
        return response

    def _headers(self, reply: Reply) -> dict[str, str]:
        kind = {"Content-Type": reply.content_type} if reply.content_type else {}
        return self._dialect.headers | kind | reply.headers

    async def deliver(self, request: web.BaseRequest, recorded: Recorded, reply: Reply) -> web.StreamResponse:
        """The reply, or what a fault that acts on bodies leaves of it."""
        fault, half = recorded.fault, reply.body[: len(reply.body) // 2]
        if isinstance(fault, faults.BadChunk | faults.CloseEarly):
            reply = msgspec.structs.replace(reply, body=half)
        if not isinstance(fault, faults.Cut | faults.Silence):
            return self.respond(reply)
        # The head promises the whole body; half of it comes.
        response = web.StreamResponse(status=reply.status, headers=self._headers(reply))
        response.content_length = len(reply.body)
        await response.prepare(request)
        await response.write(half)
        if isinstance(fault, faults.Silence):
            await forever()
        self._state.finish(recorded)
        hang_up(request)
        return response


def hang_up(request: web.BaseRequest) -> None:
    """Close the request's connection once what was written is out."""
    # Not `abort`: a reset could overtake bytes that the client has yet to read.
    if request.transport is not None:
        request.transport.close()


async def forever() -> None:
    """Wait until the client goes away or the server stops."""
    await asyncio.get_running_loop().create_future()
