"""The server's side of the wire: takes requests from aiohttp, answers them as the dialect and the faults say.

Everything here runs on the server's own event loop. A client that goes away cancels its handler, so every
wait ends at once; so does stopping the server, which drops all connections.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from maxwell.testing import faults
from maxwell.testing.chats import Chats, Speed
from maxwell.testing.dialects.base import Ask, Dialect, Live
from maxwell.testing.responding import Responder, Slots, hang_up
from maxwell.testing.script import Script
from maxwell.testing.state import Recorded, State
from maxwell.testing.tokens import relevance

_log = logging.getLogger("maxwell.testing")
_log.addHandler(logging.NullHandler())


class Serving:
    """Answers requests until its connections are dropped. Create it on the loop that runs it."""

    def __init__(self, dialect: Dialect, script: Script, state: State, speed: Speed) -> None:
        self._dialect = dialect
        self._state = state
        self._slots = Slots(dialect.facts.slots)
        self._responder = Responder(dialect, state)
        self._chats = Chats(dialect, script, state, speed, self._slots, self._responder)
        self._numbers = itertools.count(1)
        self._http = web.Server(self._handle, handler_cancellation=True, access_log=None, logger=_log)

    def protocol(self) -> asyncio.Protocol:
        """A protocol for one accepted connection."""
        self._state.connections += 1
        return self._http()

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return len(self._http.connections)

    def drop_connections(self) -> None:
        """Close every connection at once."""
        for connection in self._http.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.content.read()
        parsed = _parse(raw)
        headers = {name.lower(): value for name, value in request.headers.items()}
        recorded = Recorded(request.method, request.path, request.query_string, headers, parsed)
        body = parsed if isinstance(parsed, dict) else None
        self._state.begin(recorded)
        try:
            return await self._serve(
                request, Ask(request.method, request.path, request.query, headers, raw, body), recorded
            )
        except (asyncio.CancelledError, ConnectionError):
            self._state.finish(recorded, aborted=True)
            raise
        finally:
            self._state.finish(recorded)

    async def _serve(self, request: web.BaseRequest, ask: Ask, recorded: Recorded) -> web.StreamResponse:
        dialect, respond = self._dialect, self._responder.respond
        if self._state.condition == "loading":
            return respond(dialect.loading())
        fault = recorded.fault = self._state.take_fault(ask.path)
        if isinstance(fault, faults.Reset):
            self._state.finish(recorded)
            hang_up(request)
            return web.Response()
        if isinstance(fault, faults.Answer):
            return respond(fault.reply(dialect))
        reply = dialect.refuse(ask) or dialect.answer(ask, self._live())
        if reply is None:
            self._state.condition = "up"
            serve = {"chat": self._chats.serve, "embeddings": self._embed, "rerank": self._rerank}
            return await serve[dialect.routes[ask.path]](request, ask, recorded)
        if isinstance(fault, faults.SlowFirstByte):
            await asyncio.sleep(fault.seconds)
        return await self._responder.deliver(request, recorded, reply)

    def _live(self) -> Live:
        usage, asleep = self._state.usage(), self._state.condition == "asleep"
        return Live(
            self._slots.busy, self._slots.waiting, asleep, usage.prompt_tokens, usage.completion_tokens
        )

    async def _embed(self, request: web.BaseRequest, ask: Ask, recorded: Recorded) -> web.StreamResponse:
        dialect, fault, respond = self._dialect, recorded.fault, self._responder.respond
        wrong = dialect.check_embeddings(ask)
        if wrong is not None:
            return respond(wrong)
        body = ask.body or {}
        items = dialect.items(body["input"])
        cut = dialect.truncation(body)
        if cut is not None:
            items = [dialect.cut(item, cut) for item in items]
        limit = 0 if isinstance(fault, faults.ContextOverflow) else dialect.facts.context
        long = next((item for item in items if item.tokens > limit), None)
        if long is not None:
            return respond(dialect.embedding_overflow(long))

        def make(tokens: int, number: int) -> Any:
            return dialect.embeddings(body, dialect.vectors(body, items), tokens, number)

        return await self._read(request, recorded, sum(item.tokens for item in items), make)

    async def _rerank(self, request: web.BaseRequest, ask: Ask, recorded: Recorded) -> web.StreamResponse:
        dialect, fault, respond = self._dialect, recorded.fault, self._responder.respond
        wrong = dialect.check_rerank(ask)
        if wrong is not None:
            return respond(wrong)
        body = ask.body or {}
        query, documents = str(body["query"]), dialect.documents(body)
        wrong = dialect.too_many(len(documents))
        if wrong is not None:
            return respond(wrong)
        pairs = dialect.items([f"{query}{document}" for document in documents])
        limit = 0 if isinstance(fault, faults.ContextOverflow) else dialect.facts.context
        long = next((pair for pair in pairs if pair.tokens > limit), None)
        if long is not None:
            return respond(dialect.embedding_overflow(long))

        def make(tokens: int, number: int) -> Any:
            scores = [relevance(query, document) for document in documents]
            return dialect.reranking(body, scores, tokens, number)

        return await self._read(request, recorded, sum(pair.tokens for pair in pairs), make)

    async def _read(
        self, request: web.BaseRequest, recorded: Recorded, tokens: int, make: Callable[[int, int], Any]
    ) -> web.StreamResponse:
        """Hold a slot for what is only read, book it and deliver what `make` gives for tokens and number."""
        fault = recorded.fault
        async with self._slots.one():
            if isinstance(fault, faults.SlowFirstByte):
                await asyncio.sleep(fault.seconds)
            self._state.book(tokens, 0)
            made = make(tokens, next(self._numbers))
            if isinstance(fault, faults.NoUsage):
                made.pop("usage")
            return await self._responder.deliver(request, recorded, self._dialect.json(made))


def _parse(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
