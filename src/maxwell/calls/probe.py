"""The health check of one endpoint, as a flow: `/health`, then `/v1/models`, then what the backend adds.

A probe never generates a token, so it costs nothing anywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from maxwell.backends import get_backend
from maxwell.backends.base import Backend
from maxwell.calls.effects import Close, Flow, Gather, Limits, Pull, Send, Sleep, TransportError
from maxwell.clock import Clock
from maxwell.health import FRESH_SECONDS, Endpoint, Health, HealthBook
from maxwell.types import HTTPRequest

PROBE_SECONDS = 2.0  # a whole round of health checks takes no longer
_LIMITS = Limits(connect=1.9, first_byte=1.9, idle=1.9, total=1.9)
_WAIT_SECONDS = 0.02  # between two looks at what another process is finding out
MOST_BODY = 4 * 1024 * 1024  # bytes; a list of models is far smaller


def probe(endpoint: Endpoint, book: HealthBook, clock: Clock, since: float) -> Flow[Health]:
    """Find out the state of `endpoint` and record it; waits for whoever is already doing so.

    What anybody found out after `since` (seconds since the epoch) is good enough.
    """
    asked = clock.monotonic()
    while (claim := book.claim(endpoint)) is None:
        yield Sleep(_WAIT_SECONDS)
        found = book.get(endpoint, clock.time())
        if found is not None and found.at >= since:
            return found
        if clock.monotonic() - asked > PROBE_SECONDS:
            return Health(state="unknown", at=clock.time(), detail="another process is still asking")
    with claim:
        found = book.get(endpoint, clock.time())
        if found is not None and found.at >= since:
            return found  # by another, while this flow waited for its turn
        health = yield from _ask(endpoint, get_backend(endpoint.backend or "openai"), clock)
        book.put(endpoint, health)
        return health


def _ask(endpoint: Endpoint, backend: Backend, clock: Clock) -> Flow[Health]:
    """Ask the endpoint itself."""
    began = clock.monotonic()
    probes = backend.probes(endpoint.root, endpoint.key)
    try:
        status, headers, body = yield from fetch(probes.health, _LIMITS)
        state = backend.read_health(status, headers, body)
        detail = "" if state == "up" else f"/health says {status}"
        if state in (None, "up"):
            told = state
            status, headers, body = yield from fetch(probes.models, _LIMITS)
            reply = backend.read_models(status, headers, body)
            # A server whose /health is fine may have no list of models; one with neither is no LLM server.
            state = reply.state or told or "down"
            detail = "" if state == "up" else f"/v1/models says {status}"
            health = Health(
                state=state, at=clock.time(), detail=detail, models=reply.models, family=reply.family
            )
        else:
            health = Health(state=state, at=clock.time(), detail=detail)
        if health.state == "up" and probes.props is not None:
            health = yield from _with_props(health, backend, probes.props)
    except TransportError as error:
        health = Health(state="down", at=clock.time(), detail=str(error))
    return msgspec.structs.replace(health, seconds=clock.monotonic() - began)


def _with_props(health: Health, backend: Backend, request: HTTPRequest) -> Flow[Health]:
    """Slots, per-slot context and sleep, where the server tells them; their absence is no fault."""
    with contextlib.suppress(TransportError):
        status, _, body = yield from fetch(request, _LIMITS)
        props = backend.read_props(status, body)
        return msgspec.structs.replace(
            health,
            state="asleep" if props.sleeping else health.state,
            slots=props.slots,
            context=props.context,
            vision=props.vision,
        )
    return health


def fetch(
    request: HTTPRequest, limits: Limits, most: int = MOST_BODY
) -> Flow[tuple[int, Mapping[str, str], bytes]]:
    """One whole exchange: status, headers and body. A body above `most` bytes is cut there."""
    exchange = yield Send(request, limits)
    pieces: list[bytes] = []
    size = 0
    while size <= most:
        piece = yield Pull(exchange)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    yield Close(exchange)
    return exchange.status, exchange.headers, b"".join(pieces)


def ask_all(
    endpoints: Sequence[Endpoint],
    book: HealthBook,
    clock: Clock,
    *,
    seconds: float = PROBE_SECONDS,
    enough: Callable[[], bool] = lambda: False,
    anew: bool = False,
) -> Flow[None]:
    """Probe each endpoint once, however many entries share it, until all are known or `enough()`."""
    since = clock.time() - (0.0 if anew else FRESH_SECONDS)
    flows: list[Flow[Health]] = [probe(e, book, clock, since) for e in dict.fromkeys(endpoints)]
    for result in (yield Gather(flows, seconds, enough)):
        if isinstance(
            result, Exception
        ):  # a server cannot cause one, so it is a bug and must not look like an outage
            raise result
