"""Sends a chat request and takes its reply in; what a server refuses by name is mended, once."""

from __future__ import annotations

import msgspec

from maxwell.backends.base import Backend
from maxwell.calls.effects import Close, Exchange, Flow, Limits, Send
from maxwell.calls.entries import Entry
from maxwell.calls.failures import error_body, refusal
from maxwell.calls.reading import read
from maxwell.calls.reply import Reply
from maxwell.calls.state import PoolState
from maxwell.errors import BackendError
from maxwell.types import HTTPRequest

REFUSALS = (400, 422)  # statuses of requests that are wrong


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """One request and what holds for its exchange.

    Attributes:
        request: What is sent.
        limits: Its time limits.
        silent_until: When the first content must have come, on the monotonic clock.
        emit: Whether text is to be emitted as it comes.
    """

    request: HTTPRequest
    limits: Limits
    silent_until: float
    emit: bool


def ask(state: PoolState, entry: Entry, backend: Backend, asking: Asking, reply: Reply) -> Flow[None]:
    """Send the request and take the reply in.

    A parameter that the server refuses by name, by its status or in the first frame of a stream, is dropped
    or renamed and the request sent once more.

    Raises:
        BackendError: The server refused, or its reply is not whole.
        TransportError: The exchange failed.
    """
    request = asking.request
    for last in (False, True):
        exchange: Exchange = yield Send(request, asking.limits)
        if exchange.status == 200:
            reply.opened = True
            failed, body = yield from _taken_in(state, entry, backend, asking, exchange, reply)
            if failed is None:
                return
        else:
            body = yield from error_body(exchange)
            failed = refusal(state, entry, backend, exchange.status, exchange.headers, body)
            body = body if exchange.status in REFUSALS else b""
        if body:  # it has not worked
            reply.opened, reply.error = False, None
        mended = backend.without_refused(request, body) if body and not last else None
        if mended is None:
            raise failed
        request = mended


def _taken_in(
    state: PoolState, entry: Entry, backend: Backend, asking: Asking, exchange: Exchange, reply: Reply
) -> Flow[tuple[BackendError | None, bytes]]:
    """The error it ended with, and its words if it is a refusal: vLLM sends those as the first frame."""
    now = state.clock.monotonic
    silence = max(asking.silent_until - now(), 0.001)
    try:
        yield from read(
            exchange, backend, reply, now, emit=asking.emit, secrets=entry.endpoint.secrets, silence=silence
        )
    except BackendError as error:
        yield Close(exchange)  # it may still be generating
        refused = error.status in REFUSALS and not reply.has_content
        return error, msgspec.json.encode({"error": reply.error}) if refused else b""
    return None, b""
