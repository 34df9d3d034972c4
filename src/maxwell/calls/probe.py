"""The health check of one endpoint, as a flow: `/health`, then `/v1/models`, then what the backend adds.

A probe never generates a token, so it costs nothing anywhere, and wakes no server that sleeps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from maxwell.backends import ModelsReply, Probes, Props, get_backend
from maxwell.backends.base import Backend
from maxwell.backends.listing import read_info, read_models_at_root
from maxwell.calls.effects import Close, Flow, Gather, Limits, Pull, Send, Sleep, TransportError
from maxwell.clock import Clock
from maxwell.health import FRESH_SECONDS, Endpoint, Health, HealthBook
from maxwell.health.evidence import NOTHING
from maxwell.types import HTTPRequest, ServedModel

PROBE_SECONDS = 2.0  # a whole round of health checks takes no longer
_LIMITS = Limits(connect=1.9, first_byte=1.9, idle=1.9, total=1.9)
# How busy a server is would be good to know, but nobody is to wait long for it.
_LOAD_LIMITS = Limits(connect=0.5, first_byte=0.5, idle=0.5, total=0.5)
_WAIT_SECONDS, _MOST_WAIT_SECONDS = 0.02, 0.16  # between two looks at what somebody else is finding out
MOST_BODY = 4 * 1024 * 1024  # bytes; a list of models is far smaller


def probe(endpoint: Endpoint, book: HealthBook, clock: Clock, since: float) -> Flow[Health]:
    """Find out the state of `endpoint` and record it; waits for whoever is already doing so.

    What anybody found out after `since` (seconds since the epoch) is good enough, as long as it is fresh.
    """
    asked = clock.monotonic()
    pause = _WAIT_SECONDS
    while (claim := book.claim(endpoint)) is None:
        yield Sleep(pause)
        pause = min(2 * pause, _MOST_WAIT_SECONDS)
        found = _news(endpoint, book, clock, since)
        if found is not None:
            return found
        if clock.monotonic() - asked > PROBE_SECONDS:
            return Health(state="unknown", at=clock.time(), detail="another process is still asking")
    with claim:
        found = _news(endpoint, book, clock, since)
        if found is not None:
            return found  # by another, while this flow waited for its turn
        health = yield from _ask(endpoint, book, clock)
        book.put(endpoint, health)
        return health


def _news(endpoint: Endpoint, book: HealthBook, clock: Clock, since: float) -> Health | None:
    """What anybody found out after `since`, to the last moment."""
    now = clock.time()
    book.look(now)
    found = book.get(endpoint, now)
    return found if found is not None and found.at >= since and book.is_fresh(found) else None


def _ask(endpoint: Endpoint, book: HealthBook, clock: Clock) -> Flow[Health]:
    """Ask the endpoint itself, in the words of the family that it was found to be of."""
    began = clock.monotonic()
    known = book.get(endpoint, clock.time()) or NOTHING
    declared = endpoint.backend or "openai"
    backend = get_backend(declared, family=known.family)
    props = Props()
    try:
        health = yield from _state(backend, backend.probes(endpoint.root, endpoint.key), known, clock)
        backend = get_backend(declared, family=health.family)
        if health.state == "up":
            health, props = yield from _with_props(health, backend, endpoint)
    except TransportError as error:
        health = _still_of(known, Health(state="down", at=clock.time(), detail=str(error)))
    health = msgspec.structs.replace(health, seconds=clock.monotonic() - began)
    probes = backend.probes(endpoint.root, endpoint.key)
    told = props.lists_slots and props.slots is not None and not book.sleeps(endpoint)
    if health.state != "up" or probes.load is None or (probes.load_wakes and not told):
        return health
    return (yield from _with_load(health, backend, probes.load, clock, partial(book.own, endpoint.root)))


def _still_of(known: Health, found: Health, *, another: bool = False) -> Health:
    """`found`, of the family and version that is known where it does not tell, as while it is down.

    One that is seen to be `another` server by now is of the family that it tells alone.
    """
    family = found.family or ("" if another else known.family)
    version = known.version if family == known.family else ""
    return msgspec.structs.replace(found, family=family, version=found.version or version)


def _state(backend: Backend, probes: Probes, known: Health, clock: Clock) -> Flow[Health]:
    """The state, by `/health` and `/v1/models`, and by what stands elsewhere where there is no /v1."""
    status, headers, body = yield from fetch(probes.health, _LIMITS)
    state = backend.read_health(status, headers, body)
    if state not in (None, "up"):
        return _still_of(known, Health(state=state, at=clock.time(), detail=f"/health says {status}"))
    told = state
    status, headers, body = yield from fetch(probes.models, _LIMITS)
    reply = backend.read_models(status, headers, body)
    if status == 404 and not reply.family:
        reply = (yield from _elsewhere(probes)) or reply
    # A server whose /health is fine may have no list of models; one with neither is no LLM server.
    state = reply.state or told or "down"
    detail = "" if state == "up" else f"/v1/models says {status}"
    found = Health(state=state, at=clock.time(), detail=detail, models=reply.models, family=reply.family)
    # Every family that is known by its list tells itself in it, and has one of the two paths.
    return _still_of(known, found, another=bool(found.models) or state == "down")


def _elsewhere(probes: Probes) -> Flow[ModelsReply | None]:
    """What a server without /v1/models lists at its root; None where that, too, tells nothing."""
    with contextlib.suppress(TransportError):
        if probes.models_at_root is not None:
            status, headers, body = yield from fetch(probes.models_at_root, _LIMITS)
            reply = read_models_at_root(status, headers, body)
            if reply.family:
                return reply
        if probes.info is not None:
            status, _, body = yield from fetch(probes.info, _LIMITS)
            reply = read_info(status, body)
            if reply.family:
                return reply
    return None


def _with_props(health: Health, backend: Backend, endpoint: Endpoint) -> Flow[tuple[Health, Props]]:
    """Version, slots, context and sleep, where the server tells them; their absence is no fault."""
    props = Props()
    request = backend.probes(endpoint.root, endpoint.key).props
    if request is None:
        return health, props
    with contextlib.suppress(TransportError):
        status, _, body = yield from fetch(request, _LIMITS)
        props = backend.read_props(status, body)
        health = msgspec.structs.replace(
            health,
            state="asleep" if props.sleeping else health.state,
            version=props.version or health.version,
            models=tuple(_in_context(model, props) for model in health.models),
            slots=props.slots,
            context=props.context,
            vision=props.vision,
        )
    return health, props


def _in_context(model: ServedModel, props: Props) -> ServedModel:
    """`model` with the context that it has by `props`, where it has one of its own."""
    context = props.contexts.get(model.id)
    return model if context is None else msgspec.structs.replace(model, context=context)


def _with_load(
    health: Health, backend: Backend, request: HTTPRequest, clock: Clock, own: Callable[[], int]
) -> Flow[Health]:
    """How busy the server is, where it tells; its silence is no fault."""
    before = own()
    with contextlib.suppress(TransportError):
        status, _, body = yield from fetch(request, _LOAD_LIMITS)
        busy = backend.read_load(status, body)
        if busy is not None:
            # One of ours that began or ended meanwhile is not to be taken for somebody else's.
            mine = max(before, own())
            return msgspec.structs.replace(health, busy=busy, own=mine, busy_at=clock.time())
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
    """Probe each endpoint once, however many entries share it, until all are known or `enough()`.

    Args:
        endpoints: Whom to ask.
        book: Where it is recorded.
        clock: Tells the time.
        seconds: Longest to wait; what takes longer goes on in the background.
        enough: Whether waiting may end; asked whenever one has answered.
        anew: Ask also those whose state is fresh.
    """
    since = clock.time() - (0.0 if anew else FRESH_SECONDS)
    flows: list[Flow[Health]] = [probe(e, book, clock, since) for e in dict.fromkeys(endpoints)]
    for result in (yield Gather(flows, seconds, enough)):
        if isinstance(
            result, Exception
        ):  # a server cannot cause one, so it is a bug and must not look like an outage
            raise result
