"""Reads a chat reply to its end. Success is a finish reason *and* a clean end; anything else is an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from maxwell.backends.base import Backend
from maxwell.backends.wire import decode_chunk
from maxwell.calls.effects import Emit, Exchange, Flow, Pull, TransportError
from maxwell.calls.reply import Reply
from maxwell.calls.sse import SSEParser
from maxwell.errors import DecodeError

DONE = b"[DONE]"
DRAIN_SECONDS = 1.0  # a stream that said everything may take this long to end, or its connection is dropped
MOST_DOCUMENT = 64 * 1024 * 1024  # bytes of a reply that is not streamed


def read(
    exchange: Exchange,
    backend: Backend,
    reply: Reply,
    now: Callable[[], float],
    *,
    emit: bool,
    secrets: Sequence[str],
) -> Flow[None]:
    """Take the body in; emits each piece of text when `emit`.

    Args:
        exchange: The response.
        backend: Whose dialect it is in.
        reply: Where it is gathered.
        now: The monotonic clock.
        emit: Whether to emit text as it comes.
        secrets: What must not be quoted from it.

    Raises:
        DecodeError: It is not the protocol, or it ends without a finish reason.
        StatusError: The server reports an error in it.
        TransportError: It broke off.
    """
    # A server that does not say what it sends is believed to do as it was asked.
    if "event-stream" in exchange.headers.get("content-type", "event-stream"):
        yield from _read_stream(exchange, reply, now, emit)
    else:
        yield from _read_document(exchange, reply, now, emit)
    if reply.error is not None:
        raise backend.frame_error(reply.error, reply.spec.name, secrets=secrets)
    if reply.finish_reason is None:
        raise DecodeError("the reply ended without a finish reason", llm=reply.spec.name, kind="bad_reply")


def _read_stream(exchange: Exchange, reply: Reply, now: Callable[[], float], emit: bool) -> Flow[None]:
    """Server-sent events until `[DONE]`, an error frame or the end of the body."""
    parser = SSEParser()
    pull = Pull(exchange)
    try:
        while piece := (yield pull):
            for data in parser.feed(piece):
                if data == DONE:
                    yield from _drain(exchange)
                    return
                text = reply.add(decode_chunk(data), now)
                if reply.error is not None:
                    return
                if emit and text:
                    yield Emit(text)
        rest = parser.end()
        text = "" if rest is None or rest == DONE else reply.add(decode_chunk(rest), now)
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: an event without end
        raise _not_a_chunk(reply, error) from None
    if emit and text:
        yield Emit(text)


def _read_document(exchange: Exchange, reply: Reply, now: Callable[[], float], emit: bool) -> Flow[None]:
    """A server that ignores `stream: true` answers with one JSON document."""
    pieces: list[bytes] = []
    size = 0
    while size < MOST_DOCUMENT and (piece := (yield Pull(exchange))):
        pieces.append(piece)
        size += len(piece)
    try:
        text = reply.add(decode_chunk(b"".join(pieces)), now)
    except msgspec.MsgspecError as error:
        raise _not_a_chunk(reply, error) from None
    if emit and text:
        yield Emit(text)


def _drain(exchange: Exchange) -> Flow[None]:
    """Read what is left after `[DONE]`, so that the connection can be used again."""
    try:
        while (yield Pull(exchange, DRAIN_SECONDS)):
            pass
    except TransportError:  # everything was said; the driver drops the connection
        return


def _not_a_chunk(reply: Reply, error: Exception) -> DecodeError:
    # What it sent instead is not quoted: it may be anything, the key we sent included.
    return DecodeError(
        f"the server's reply is not a chat reply ({error}); is api_base right?",
        llm=reply.spec.name,
        kind="bad_reply",
    )
