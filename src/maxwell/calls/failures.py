"""What went wrong below and at HTTP, in the terms of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from maxwell.backends.base import Backend
from maxwell.calls.accounts import cost_usd
from maxwell.calls.effects import Close, Exchange, Flow, Pull, TransportError
from maxwell.calls.entries import Entry
from maxwell.calls.reply import Reply
from maxwell.calls.state import PoolState
from maxwell.errors import BackendError, CallTimeout, ConnectError, StatusError, StreamBroken
from maxwell.types import Usage

MOST_ERROR_BODY = 64 * 1024  # bytes of an error reply that are looked at


def refusal(
    state: PoolState, entry: Entry, backend: Backend, status: int, headers: Mapping[str, str], body: bytes
) -> StatusError:
    """The server's refusal as our error, keys struck out."""
    return backend.refusal(
        status, headers, body, entry.spec.name, now=state.clock.time(), secrets=entry.endpoint.secrets
    )


def error_body(exchange: Exchange) -> Flow[bytes]:
    """The body of an error reply; one that breaks off is as good as what came of it."""
    pieces: list[bytes] = []
    size = 0
    try:
        while size < MOST_ERROR_BODY and (piece := (yield Pull(exchange))):
            pieces.append(piece)
            size += len(piece)
    except TransportError:
        pass
    yield Close(exchange)
    return b"".join(pieces)


def transport_failure(name: str, error: TransportError) -> BackendError:
    """A failure below HTTP."""
    if error.stage in ("connect", "refused"):
        return ConnectError(str(error), llm=name, kind="refused")
    if error.stage == "closed":
        return ConnectError(str(error), llm=name, kind="server_error")
    return CallTimeout(str(error), llm=name, kind="timeout")


def broken(error: BackendError, reply: Reply, usage: Usage, now: float, tried: Sequence[str]) -> BackendError:
    """`error`; once content has begun, a `StreamBroken` with it: such a call is never repeated in silence."""
    if not reply.has_content:
        return error
    whole = reply.completion(now, list(tried), usage, cost_usd(reply.spec, usage))
    partial = msgspec.structs.replace(whole, finish_reason="error")  # whatever it said before it broke
    return StreamBroken(
        f"the reply broke off after {len(partial.text)} characters: {error.message}",
        partial=partial,
        llm=error.llm or reply.spec.name,
        status=error.status,
        retry_after=error.retry_after,
    )
