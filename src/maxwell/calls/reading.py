"""Reads a chat reply to its end. Success is a finish reason *and* a clean end; anything else is an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from maxwell.backends.base import Backend
from maxwell.backends.wire import decode_chunk
from maxwell.calls.effects import Emit, Exchange, Flow, Pull, TransportError
from maxwell.calls.reply import Reply
from maxwell.calls.sse import SSEParser
from maxwell.errors import DecodeError, StatusError

DONE = b"[DONE]"
GIVEN_UP = ("abort", "error")  # finish reasons of a generation that the server gave up: vLLM's, OpenRouter's
IDLE_SECONDS = 60.0  # without a word of the reply, once it has begun
DRAIN_SECONDS = 1.0  # a stream that said everything may take this long to end, or its connection is dropped
MOST_DOCUMENT = 64 * 1024 * 1024  # bytes of a reply that is not streamed


def read(  # noqa: PLR0913 - what is read, how, and what must not be said of it
    exchange: Exchange,
    backend: Backend,
    reply: Reply,
    now: Callable[[], float],
    *,
    emit: bool,
    secrets: Sequence[str],
    silence: float | None = None,
) -> Flow[None]:
    """Take the body in; emits each piece of text when `emit`.

    Args:
        exchange: The response.
        backend: Whose dialect it is in.
        reply: Where it is gathered.
        now: The monotonic clock.
        emit: Whether to emit text as it comes.
        secrets: What must not be quoted from it.
        silence: How long the first content may take, in seconds; None = as long as any other piece. Signs of
            life without content do not prolong it, then or later.

    Raises:
        DecodeError: It is not the protocol, or it ends without a finish reason.
        StatusError: The server reports an error in it, or gave it up.
        TransportError: It broke off.
    """
    # A server that does not say what it sends is believed to do as it was asked.
    if "event-stream" in exchange.headers.get("content-type", "event-stream"):
        yield from _read_stream(exchange, reply, now, emit, silence)
    else:
        yield from _read_document(exchange, reply, now, emit)
    if reply.error is not None:
        raise backend.frame_error(reply.error, reply.spec.name, secrets=secrets)
    if reply.finish_reason in GIVEN_UP:
        words = f"the server gave the reply up (finish_reason {reply.finish_reason!r})"
        raise StatusError(words, llm=reply.spec.name, kind="server_error")
    if reply.finish_reason is None:
        raise DecodeError("the reply ended without a finish reason", llm=reply.spec.name, kind="bad_reply")


class _Silence:
    """How long a stream has been without a word of the reply. Signs of life do not count.

    Args:
        reply: What has come.
        now: The monotonic clock.
        longest: How long the first word may take, in seconds; None = as long as any other piece.
    """

    def __init__(self, reply: Reply, now: Callable[[], float], longest: float | None) -> None:
        self._reply = reply
        self._now = now
        self._longest = longest
        self._since = now()
        self._last = reply.last

    def left(self) -> float | None:
        """Seconds that the next piece may take; None = the usual. Raises TransportError when none is left."""
        last = self._reply.last
        if last is not None and last is not self._last:
            self._last = self._since = last
            return None
        before = not self._reply.has_content
        longest = self._longest if before and self._longest is not None else IDLE_SECONDS
        left = longest - (self._now() - self._since)
        if left <= 0:
            raise TransportError("idle", f"not a word of the reply for {longest:.3g} s", fresh=False)
        return left if before and self._longest is not None else None


def _read_stream(
    exchange: Exchange, reply: Reply, now: Callable[[], float], emit: bool, longest: float | None
) -> Flow[None]:
    """Server-sent events until `[DONE]`, an error frame or the end of the body."""
    parser = SSEParser()
    silence = _Silence(reply, now, longest)
    pull = Pull(exchange)
    try:
        while piece := (yield pull if (left := silence.left()) is None else Pull(exchange, left)):
            for data in parser.feed(piece):
                if data == DONE:
                    yield from _drain(exchange)
                    return
                text = reply.add(decode_chunk(data), now)
                if reply.error is not None:
                    return
                if emit and text:
                    yield from _shown(reply, text, now)
        rest = parser.end()
        text = "" if rest is None or rest == DONE else reply.add(decode_chunk(rest), now)
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: an event without end
        raise _not_a_chunk(reply, error) from None
    if emit and text:
        yield from _shown(reply, text, now)


def _shown(reply: Reply, text: str, now: Callable[[], float]) -> Flow[None]:
    """Hand text over. How long the reader then takes is no time of the server's."""
    began = now()
    yield Emit(text)
    reply.held += now() - began


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
