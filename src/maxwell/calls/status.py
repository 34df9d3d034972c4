"""How every entry stands, for people: health, real limits, budget left."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from maxwell.calls.effects import Flow
from maxwell.calls.entries import Entry
from maxwell.calls.probe import ask_all
from maxwell.calls.state import PoolState, left_today
from maxwell.errors import LedgerError
from maxwell.health import Health
from maxwell.ledger import NANO, Used
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, Spec
from maxwell.speed import Speeds, speeds_of

FAR_OFF = 1.5  # times: so far may a declared speed be from the measured one before it is said
SURELY = 3  # observations, before it is


class Status(Struct, frozen=True, kw_only=True):
    """One entry as it stands.

    Attributes:
        kind: What it is.
        spec: The declaration.
        health: What is known of its endpoint; None = it did not answer in time.
        problem: Why it cannot be used although its server answers, or "".
        context: Usable context in tokens: declared, or the server's when smaller.
        slots: Requests its server works on at once: declared, told or learned; None = not known.
        in_flight: Calls of this user that its server works on now, or that are held back for it, those to
            other entries of that server included.
        measured: What calls to this entry showed of its speed; None = nothing yet.
        used: What it used today; None = the ledger cannot be read.
        tokens_left: What today's token budget has left; None = unlimited, or unknown where `used` is None.
        usd_left: What today's money budget has left; None = unlimited, or unknown where `used` is None.
        resets_in: Seconds until the budgets start anew.
        remarks: What the registry declares and the server tells otherwise.
    """

    kind: Literal["llm", "embedding", "reranker"]
    spec: Spec
    health: Health | None
    problem: str
    context: int
    slots: int | None
    in_flight: int
    measured: Speeds | None
    used: Used | None
    tokens_left: int | None
    usd_left: float | None
    resets_in: float
    remarks: tuple[str, ...]

    @property
    def state(self) -> str:
        """One word: a health state, or what keeps the entry from being used."""
        if self.problem:
            return "blocked"
        return "down" if self.health is None or self.health.state == "unknown" else self.health.state


def statuses(state: PoolState, *, refresh: bool = False) -> Flow[list[Status]]:
    """Every entry's status; asks the endpoints not asked in the last 30 seconds, or all when `refresh`."""
    entries = [*state.llms, *state.embeddings, *state.rerankers]
    ask = [e.endpoint for e in entries if refresh or not state.is_fresh(e)]
    if ask:
        yield from ask_all(ask, state.health, state.clock, anew=refresh)
    yield from state.open_books(entries)
    now = state.clock.time()
    try:
        books = state.ledger.usage(state.today(now))
    except LedgerError:
        books = None
    resets_in = state.resets_at(now).timestamp() - now
    return [_status(state, entry, books, resets_in) for entry in entries]


def _status(state: PoolState, entry: Entry, books: dict[str, Used] | None, resets_in: float) -> Status:
    spec, health = entry.spec, state.known(entry)
    load, learned = state.flights.loads().get(entry.endpoint.root), state.speeds.learned(entry.learned_as)
    measured = speeds_of(learned, spec) if learned is not None and isinstance(spec, LLMSpec) else None
    used = None if books is None else books.get(spec.name, Used())
    left = (None, None) if used is None else left_today(spec, used)
    return Status(
        kind=_kind(spec),
        spec=spec,
        health=health,
        problem=entry.blocked_by(health)[1],
        context=entry.context(health),
        slots=entry.slots(health, measured),
        in_flight=0 if load is None else load.running + load.waiting,
        measured=measured,
        used=used,
        tokens_left=left[0],
        usd_left=None if left[1] is None else left[1] / NANO,
        resets_in=resets_in,
        remarks=(*_remarks(entry, health), *_speed_remarks(spec, measured)),
    )


def _kind(spec: Spec) -> Literal["llm", "embedding", "reranker"]:
    if isinstance(spec, LLMSpec):
        return "llm"
    return "embedding" if isinstance(spec, EmbeddingSpec) else "reranker"


def _remarks(entry: Entry, health: Health | None) -> list[str]:
    """Where the declaration and the server disagree, with the value to use."""
    if health is None or health.state not in ("up", "asleep"):
        return []
    spec, remarks = entry.spec, []
    served = entry.backend(health).serves(spec.model, health.models)
    declared, told = entry.declared_context, entry.context(health)
    if told < declared:
        remarks.append(f"declares a context of {declared} tokens, the server gives {told} to a request")
    if health.models and served is None and entry.backend(health).answers_any_name:
        remarks.append(f"declares model {spec.model}, the server serves {health.models[0].id} to any name")
    if (
        spec.backend
        and health.family in ("llamacpp", "vllm")
        and spec.backend not in ("openai", health.family)
    ):
        remarks.append(f"declares backend {spec.backend}, the server is {health.family}")
    if isinstance(spec, LLMSpec):
        if spec.capabilities.vision and health.vision is False:
            remarks.append("declares vision, the server takes no images")
    elif (
        isinstance(spec, EmbeddingSpec)
        and served is not None
        and served.dimension not in (None, spec.dimension)
    ):
        remarks.append(f"declares dimension {spec.dimension}, the server says {served.dimension}")
    return remarks


def is_far_off(declared: float, measured: float) -> bool:
    """Whether a declared speed is worth correcting."""
    return max(declared, measured) > FAR_OFF * min(declared, measured)


def _speed_remarks(spec: Spec, measured: Speeds | None) -> list[str]:
    if measured is None or measured.seen.speed < SURELY or not isinstance(spec, LLMSpec):
        return []
    declared = spec.capabilities.speed_tokens_per_sec
    if not is_far_off(declared, measured.speed):
        return []
    return [f"declares {_speed(declared)} tokens a second, {_speed(measured.speed)} were measured"]


def _speed(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
