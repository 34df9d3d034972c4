"""How every entry stands, for people: health, real limits, budget left."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from maxwell.calls.effects import Flow
from maxwell.calls.probe import ask_all
from maxwell.calls.state import Entry, PoolState, left_today
from maxwell.errors import LedgerError
from maxwell.health import Health
from maxwell.ledger import NANO, Used
from maxwell.registry.specs import LLMSpec, Spec


class Status(Struct, frozen=True, kw_only=True):
    """One entry as it stands.

    Attributes:
        kind: What it is.
        spec: The declaration.
        health: What is known of its endpoint; None = it did not answer in time.
        problem: Why it cannot be used although its server answers, or "".
        context: Usable context in tokens: declared, or the server's when smaller.
        slots: Requests its server takes at once; None = not told.
        used: What it used today; None = the ledger cannot be read.
        tokens_left: What today's token budget has left; None = unlimited, or unknown where `used` is None.
        usd_left: What today's money budget has left; None = unlimited, or unknown where `used` is None.
        resets_in: Seconds until the budgets start anew.
        remarks: What the registry declares and the server tells otherwise.
    """

    kind: Literal["llm", "embedding"]
    spec: Spec
    health: Health | None
    problem: str
    context: int
    slots: int | None
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
    entries = [*state.llms, *state.embeddings]
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
    is_llm = isinstance(spec, LLMSpec)
    used = None if books is None else books.get(spec.name, Used())
    left = (None, None) if used is None else left_today(spec, used)
    return Status(
        kind="llm" if is_llm else "embedding",
        spec=spec,
        health=health,
        problem=entry.blocked_by(health)[1],
        context=entry.context(health),
        slots=None if health is None else health.slots,
        used=used,
        tokens_left=left[0],
        usd_left=None if left[1] is None else left[1] / NANO,
        resets_in=resets_in,
        remarks=tuple(_remarks(entry, health)),
    )


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
    elif served is not None and served.dimension not in (None, spec.dimension):
        remarks.append(f"declares dimension {spec.dimension}, the server says {served.dimension}")
    return remarks
