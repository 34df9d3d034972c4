"""Chat requests: checked, given a slot, answered whole or token by token."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from msgspec import Struct

from maxwell.testing import faults
from maxwell.testing.dialects.base import Ask, Chat, Dialect, Kind, Outcome, Token, encode
from maxwell.testing.faults import Fault
from maxwell.testing.responding import Responder, Slots, forever, hang_up
from maxwell.testing.script import Script
from maxwell.testing.state import Recorded, State
from maxwell.testing.tokens import prompt_tokens, render

_DONE = b"data: [DONE]\n\n"
_BAD = b'data: {"choices":[{"index":0,"del\n\n'
_COMMENT = b": keep-alive\n\n"
# Events handed over at once when nothing paces them; small, so that a client that leaves is noticed early.
_BLOCK = 64
# Shorter waits than this are beyond an event loop's timers: what is due within it leaves together.
_TICK = 0.002


class Speed(Struct, frozen=True):
    """How the fake model generates.

    Attributes:
        tokens_per_sec: Generation speed; None = as fast as can be.
        prefill_tokens_per_sec: Speed of reading what is not cached of a prompt; None = at once.
        max_tokens_default: Completion cap of a request that names none; None = the rest of the context.
        cached_tokens: Prompt tokens reported as cached.
    """

    tokens_per_sec: float | None
    prefill_tokens_per_sec: float | None
    max_tokens_default: int | None
    cached_tokens: int


class Chats:
    """Serves chat requests."""

    def __init__(
        self, dialect: Dialect, script: Script, state: State, speed: Speed, slots: Slots, responder: Responder
    ) -> None:
        self._dialect = dialect
        self._script = script
        self._state = state
        self._speed = speed
        self._slots = slots
        self._responder = responder
        self._numbers = itertools.count(1)

    async def serve(self, request: web.BaseRequest, ask: Ask, recorded: Recorded) -> web.StreamResponse:
        """Answer one chat request."""
        dialect, fault = self._dialect, recorded.fault
        respond = self._responder.respond
        wrong = dialect.check_chat(ask)
        if wrong is not None:
            return respond(wrong)
        body, context = ask.body or {}, dialect.facts.context
        prompt = prompt_tokens(dialect.facts.tokenizer, body)
        if isinstance(fault, faults.ContextOverflow) or prompt >= context:
            return respond(dialect.overflow(max(prompt, context), len(render(body))))
        streamed = bool(body.get("stream"))
        if isinstance(fault, faults.ErrorFrame) and not streamed:
            return respond(dialect.json(_error_body(dialect, fault), fault.code))
        try:
            tokens, outcome = self._tokens(body, prompt, fault)
        except Exception as error:  # the test's own function may raise anything
            return respond(dialect.error(500, f"the reply function raised {error!r}"))
        chat = self._chat(body, prompt)
        job = _Job(chat, tokens, outcome, self._interval(fault), self._reading(chat))
        if streamed:
            return await _Stream(dialect, self._script, self._state, request, recorded, job).run(self._slots)
        return await self._whole(request, recorded, job)

    def _chat(self, body: dict[str, Any], prompt: int) -> Chat:
        return Chat(
            id=self._dialect.chat_id(next(self._numbers)),
            created=int(time.time()),
            model=self._dialect.echo(body),
            prompt_tokens=prompt,
            cached_tokens=min(self._speed.cached_tokens, prompt - 1),
            include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    def _interval(self, fault: Fault | None) -> float | None:
        if isinstance(fault, faults.SlowTokens):
            return fault.seconds
        speed = self._speed.tokens_per_sec
        return None if speed is None else 1.0 / speed

    def _reading(self, chat: Chat) -> float:
        speed = self._speed.prefill_tokens_per_sec
        return 0.0 if speed is None else (chat.prompt_tokens - chat.cached_tokens) / speed

    def _tokens(self, body: dict[str, Any], prompt: int, fault: Fault | None) -> tuple[list[Token], Outcome]:
        dialect = self._dialect
        constrained = dialect.constrained(body) and not isinstance(fault, faults.IgnoreConstraints)
        tokens, stop = self._script.tokens(body, constrained=constrained)
        finish = "tool_calls" if any(isinstance(kind, int) for kind, _ in tokens) else "stop"
        room = dialect.facts.context - prompt
        asked = dialect.cap(body) or self._speed.max_tokens_default or room
        limit = min(asked, room)
        if len(tokens) > limit:
            tokens, finish, stop = tokens[:limit], "length", None
        reasoning = sum(kind == "reasoning" for kind, _ in tokens)
        reported = not isinstance(fault, faults.NoUsage)
        return tokens, Outcome(finish, len(tokens), reasoning, 0.0, 0.0, stop, reported)

    async def _whole(self, request: web.BaseRequest, recorded: Recorded, job: _Job) -> web.StreamResponse:
        async with self._slots.one():
            started = time.perf_counter()
            self._state.book(job.chat.prompt_tokens, 0)
            if isinstance(recorded.fault, faults.SlowFirstByte):
                await asyncio.sleep(recorded.fault.seconds)
            await asyncio.sleep(job.reading)
            await self._generate(job)
            job.outcome.prompt_ms = (job.reading + (job.interval or 0.0)) * 1000.0
            job.outcome.predicted_ms = (time.perf_counter() - started) * 1000.0 - job.outcome.prompt_ms
            body = self._dialect.completion(job.chat, self._script.message(job.tokens), job.outcome)
            return await self._responder.deliver(request, recorded, self._dialect.json(body))

    async def _generate(self, job: _Job) -> None:
        count, interval, started = len(job.tokens), job.interval, time.perf_counter()
        if not interval:
            self._state.book(0, count)
            return
        try:
            await asyncio.sleep(count * interval)
        finally:
            # A client that leaves early still pays for what had been generated.
            self._state.book(0, min(count, round((time.perf_counter() - started) / interval)))


class _Job(Struct):
    """One accepted chat: what to say and how fast.

    `interval` is seconds a token, None = at once; `reading` is seconds for the prompt.
    """

    chat: Chat
    tokens: list[Token]
    outcome: Outcome
    interval: float | None
    reading: float


class _Stream:
    """One streamed chat."""

    def __init__(
        self,
        dialect: Dialect,
        script: Script,
        state: State,
        request: web.BaseRequest,
        recorded: Recorded,
        job: _Job,
    ) -> None:
        self._dialect = dialect
        self._script = script
        self._state = state
        self._request = request
        self._recorded = recorded
        self._fault = recorded.fault
        self._job = job
        self._announced: set[Kind] = set()
        self._held: list[bytes] = []
        self._first_token = 0.0
        self._due = 0.0
        headers = dialect.headers | dialect.stream_headers | {"Content-Type": dialect.stream_type}
        self._response = web.StreamResponse(headers=headers)

    async def run(self, slots: Slots) -> web.StreamResponse:
        """Wait for a slot, then stream."""
        late = self._fault.seconds if isinstance(self._fault, faults.SlowFirstByte) else 0.0
        if self._dialect.early_head and not late:
            await self._response.prepare(self._request)
        async with slots.one():
            started = time.perf_counter()
            self._state.book(self._job.chat.prompt_tokens, 0)
            if late or self._job.reading:
                await asyncio.sleep(late + self._job.reading)
            await self._response.prepare(self._request)
            self._hold([_event(self._dialect.opening(self._job.chat))])
            self._due = self._first_token = time.perf_counter()
            self._job.outcome.prompt_ms = (self._first_token - started) * 1000.0
            last = await self._body()
        # Before the last bytes, so that whoever has read them finds the books closed and the slot free.
        self._state.finish(self._recorded)
        self._hold(last or [])
        await self._flush()
        if last is None:
            hang_up(self._request)
        return self._response

    async def _body(self) -> list[bytes] | None:
        """Send or hold all but the last events, and return those; None = hang up instead."""
        fault, tokens = self._fault, self._job.tokens
        if not isinstance(
            fault, faults.Silence | faults.Cut | faults.CloseEarly | faults.ErrorFrame | faults.BadChunk
        ):
            return await self._finish(tokens)
        await self._generate(tokens[: fault.after])
        if isinstance(fault, faults.Silence):
            await self._flush()
            await forever()
        if isinstance(fault, faults.Cut):
            return None
        if isinstance(fault, faults.CloseEarly):
            return [_DONE] if fault.done else []
        if isinstance(fault, faults.ErrorFrame):
            done = [_DONE] if self._dialect.done_after_error else []
            return [_event(_error_body(self._dialect, fault)), *done]
        self._hold([_BAD])
        return await self._finish(tokens[fault.after :])

    async def _finish(self, tokens: list[Token]) -> list[bytes]:
        """Generate the tokens and return the events that end the stream well."""
        last = None
        if self._dialect.finish_on_last and tokens and not isinstance(tokens[-1][0], int):
            tokens, last = tokens[:-1], tokens[-1]
        await self._generate(tokens)
        if last is not None:
            await self._wait_turn()
            self._state.book(0, 1)
        if self._job.interval is not None:
            await self._wait_until_due()
        outcome = self._job.outcome
        outcome.predicted_ms = (time.perf_counter() - self._first_token) * 1000.0
        closing = [_event(chunk) for chunk in self._dialect.closing(self._job.chat, outcome, last)]
        return closing if isinstance(self._fault, faults.NoDone) else [*closing, _DONE]

    async def _generate(self, tokens: Sequence[Token]) -> None:
        events = self._events(tokens)
        size = _BLOCK if self._job.interval is None else 1
        for start in range(0, len(events), size):
            # What is held goes out before each wait, so the last block leaves together with the end.
            await self._wait_turn()
            block = events[start : start + size]
            self._state.book(0, len(block))
            self._hold(block)

    async def _wait_turn(self) -> None:
        """Wait until the next token is due. Deadlines are absolute, so that lateness does not add up."""
        interval = self._job.interval
        if interval is not None:
            self._due += interval
            if interval < _TICK and self._due < time.perf_counter() + _TICK:
                return
            await self._wait_until_due()
        elif len(self._held) > _BLOCK:
            await self._flush()
            await asyncio.sleep(0)

    async def _wait_until_due(self) -> None:
        await self._flush()
        await asyncio.sleep(max(0.0, self._due - time.perf_counter()))

    def _events(self, tokens: Sequence[Token]) -> list[bytes]:
        """One event a token, cut from the same cloth: only the token's text differs from one to the next."""
        chat, cloth = self._job.chat, {}
        for kind in {kind for kind, _ in tokens}:
            head, tail = self._dialect.around(chat, kind)
            cloth[kind] = b"data: " + head, tail + b"\n\n"
        hidden = "reasoning" if self._dialect.reasoning_key is None else None
        events = []
        for kind, text in tokens:
            head, tail = cloth[kind]
            # Hidden reasoning takes its time and its place in the bill, but is not sent.
            event = b"" if kind == hidden else head + encode(text) + tail
            if isinstance(kind, int) and kind not in self._announced:
                self._announced.add(kind)
                event = _event(self._dialect.call_opening(chat, kind, self._script.call_name(kind))) + event
            events.append(event)
        return events

    def _hold(self, events: Sequence[bytes]) -> None:
        """Keep events for the next `_flush`: fewer writes, cheaper streams."""
        commented = isinstance(self._fault, faults.KeepAliveComments)
        self._held += [_COMMENT + e for e in events] if commented else events

    async def _flush(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        if isinstance(self._fault, faults.CRLF):
            data = data.replace(b"\n", b"\r\n")
        if data:
            await self._response.write(data)


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + encode(payload) + b"\n\n"


def _error_body(dialect: Dialect, fault: faults.ErrorFrame) -> dict[str, Any]:
    if fault.error is not None:
        return {"error": fault.error}
    return dialect.error_object(fault.code, fault.message)
