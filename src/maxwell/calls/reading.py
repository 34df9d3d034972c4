"""Reads a chat reply to its end. Success is a finish reason *and* a clean end; anything else is an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from maxwell.backends import wire
from maxwell.backends.base import Backend
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
    name = reply.spec.name
    parser = SSEParser()
    while piece := (yield Pull(exchange)):
        for data in _payloads(parser, piece, name):
            if data == DONE:
                yield from _drain(exchange)
                return
            text = reply.add(_decode(data, name), now())
            if reply.error is not None:
                return
            if emit and text:
                yield Emit(text)
    rest = parser.end()
    if rest is not None and rest != DONE:
        text = reply.add(_decode(rest, name), now())
        if emit and text:
            yield Emit(text)


def _read_document(exchange: Exchange, reply: Reply, now: Callable[[], float], emit: bool) -> Flow[None]:
    """A server that ignores `stream: true` answers with one JSON document."""
    pieces: list[bytes] = []
    size = 0
    while size < MOST_DOCUMENT and (piece := (yield Pull(exchange))):
        pieces.append(piece)
        size += len(piece)
    text = reply.add(_decode(b"".join(pieces), reply.spec.name), now())
    if emit and text:
        yield Emit(text)


def _drain(exchange: Exchange) -> Flow[None]:
    """Read what is left after `[DONE]`, so that the connection can be used again."""
    try:
        while (yield Pull(exchange, DRAIN_SECONDS)):
            pass
    except TransportError:  # everything was said; the driver drops the connection
        return


def _payloads(parser: SSEParser, piece: bytes, name: str) -> list[bytes]:
    try:
        return parser.feed(piece)
    except ValueError as error:
        raise DecodeError(str(error), llm=name, kind="bad_reply") from error


def _decode(data: bytes, name: str) -> wire.Chunk:
    try:
        return wire.decode_chunk(data)
    except msgspec.MsgspecError as error:
        # Its bytes are not quoted: they may be anything, the key we sent included.
        raise DecodeError(
            f"the server sent {len(data)} bytes that are not a chat chunk ({error}); is its address right?",
            llm=name,
            kind="bad_reply",
        ) from None
