"""What all calls of one pool share: registry, health, ledger, clock, and each entry as it stands now."""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime

import msgspec

from maxwell.calls.effects import Aside, Flow
from maxwell.calls.entries import Entry
from maxwell.calls.moment import NOBODY, at_this_moment
from maxwell.calls.obedience import Obedience
from maxwell.calls.outside import Outside
from maxwell.calls.retries import RetryBudget
from maxwell.clock import Clock
from maxwell.decision import Candidate, Decision, Request
from maxwell.errors import BudgetExceeded, LedgerError, UnknownName
from maxwell.flights import Flights, Load
from maxwell.flights.memory import MemoryFlights
from maxwell.health import Health, HealthBook
from maxwell.learning import USUAL, SpeedBook
from maxwell.ledger import NANO, Ledger, Limit, Used
from maxwell.ledger.days import budget_day, resets_at, zone
from maxwell.prefixes import Prefixes
from maxwell.receipts.book import ReceiptBook
from maxwell.registry.specs import LLMSpec, Registry, Spec
from maxwell.scheduler import SELECTABLE, decide
from maxwell.speed import Sample, Speeds, sizes_of
from maxwell.types import PLAIN, Features


class PoolState:
    """Everything a flow may ask about the pool.

    Args:
        registry: The declared entries.
        health: What is known of their endpoints.
        ledger: What they used.
        clock: Tells the time.
        receipts: Where each call's decision and outcome are kept; None = nowhere.
        flights: Who is at which server now; None = this pool alone is counted.
        speeds: What calls teach of the entries; None = kept in memory.
        retries: How many retries there may be; None = as many as one process may make.
        draw: Gives random numbers in [0, 1).
        environ: Where API keys are found.

    Attributes:
        margins: Tokens by which a server used more than was reserved, by entry; the next calls reserve more.
        told: Entries about whose prices a warning has been given.
    """

    def __init__(  # noqa: PLR0913 - the parts a pool is made of
        self,
        registry: Registry,
        *,
        health: HealthBook,
        ledger: Ledger,
        clock: Clock,
        receipts: ReceiptBook | None = None,
        flights: Flights | None = None,
        speeds: SpeedBook | None = None,
        retries: RetryBudget | None = None,
        draw: Callable[[], float] = random.random,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self.registry = registry
        self.health = health
        self.ledger = ledger
        self.clock = clock
        self.receipts = receipts or ReceiptBook(None, clock)
        self.flights = MemoryFlights(clock) if flights is None else flights
        self.speeds = SpeedBook(None, clock) if speeds is None else speeds
        self.retries = RetryBudget(clock) if retries is None else retries
        flights_now = self.flights
        health.own = lambda root: flights_now.loads().get(root, NOBODY).running
        self.outside = Outside()
        self.obedience = Obedience()
        self.prefixes = Prefixes()
        self.draw = draw
        self.zone = zone(registry.budget_timezone)
        self.llms = [Entry(spec, i, registry, environ) for i, spec in enumerate(registry.llms)]
        self.embeddings = [Entry(spec, i, registry, environ) for i, spec in enumerate(registry.embeddings)]
        self.rerankers = [Entry(spec, i, registry, environ) for i, spec in enumerate(registry.rerankers)]
        self._by_name = {e.spec.name: e for e in (*self.llms, *self.embeddings, *self.rerankers)}
        self.margins: dict[str, int] = {}
        self.told: set[str] = set()
        self._has_budgets = any(has_budget(e.spec) for e in self.llms)
        self._needs_books = any(needs_books(e.spec) for e in self.llms)
        self._environ = environ
        self._keys = self._found_keys()

    def keys_changed(self) -> bool:
        """Whether the environment holds other keys than when this was made."""
        return self._keys != self._found_keys()

    def _found_keys(self) -> list[str | None]:
        names = {e.spec.api_key_env or "OPENAI_API_KEY" for e in self._by_name.values()}
        return [self._environ.get(name) for name in sorted(names)]

    def llm(self, name: str) -> Entry:
        """The LLM of that name. Raises `UnknownName`."""
        _check_name(name)
        entry = self._by_name.get(name)
        if entry is None or not isinstance(entry.spec, LLMSpec):
            raise _unknown("LLM", name, [e.spec.name for e in self.llms])
        return entry

    def known(self, entry: Entry) -> Health | None:
        """Usable health of the entry's endpoint, or None."""
        return self.health.get(entry.endpoint, self.clock.time())

    def is_fresh(self, entry: Entry) -> bool:
        """Whether the entry's endpoint needs no new probe yet."""
        known = self.known(entry)
        return known is not None and self.health.is_fresh(known)

    def must_ask(self, entry: Entry) -> bool:
        """Whether nothing is known of the entry's endpoint, or only something old that forbids its use."""
        known = self.known(entry)
        if known is None:
            return True
        forbids = known.state not in SELECTABLE or bool(entry.blocked_by(known)[0])
        return forbids and entry.key_problem is None and not self.health.is_fresh(known)

    def open_books(self, entries: Iterable[Entry]) -> Flow[None]:
        """Open the ledger if one of `entries` needs it, off the event loop: a lock may have to be waited for.

        What goes wrong is told by whoever looks at the books next.
        """
        if not self.ledger.is_open and any(needs_books(entry.spec) for entry in entries):
            yield Aside(self._try_books)

    def _try_books(self) -> None:
        with contextlib.suppress(LedgerError):
            self.ledger.ready()

    def budget_problem(self, entry: Entry) -> BudgetExceeded | LedgerError | None:
        """Why the entry's daily budget, or the want of books, forbids any call now."""
        spec = entry.spec
        if not needs_books(spec):
            return None
        try:
            self.ledger.ready()
            used = self.ledger.usage(self.today()).get(spec.name, Used())
        except LedgerError as error:
            return error
        tokens, nanousd = left_today(spec, used)
        resets = self.resets_at()
        if tokens is not None and tokens <= 0:
            return BudgetExceeded(spec.name, left=tokens, unit="tokens", resets_at=resets)
        if nanousd is not None and nanousd <= 0:
            return BudgetExceeded(spec.name, left=nanousd / NANO, unit="usd", resets_at=resets)
        return None

    def candidate(self, entry: Entry) -> Candidate:
        """One LLM entry as it is, whoever else is at its server and whatever its budget has left."""
        return entry.refresh(self.known(entry), self.speeds_of(entry))

    def speeds_of(self, entry: Entry, task: str = "", now: float | None = None) -> Speeds | None:
        """What was learned of the entry; None = nothing."""
        now = self.clock.time() if now is None else now
        return entry.speeds(self.speeds.learned(entry.learned_as), self.speeds.learned(USUAL), now, task)

    def teach(self, entry: Entry, sample: Sample) -> None:
        """Keep what a call taught of its entry, and of the size of calls."""
        assert isinstance(entry.spec, LLMSpec)
        self.speeds.note(entry.learned_as, entry.spec, sample)
        if not sample.unusual:
            self.speeds.note(USUAL, entry.spec, sizes_of(sample))

    def candidates(
        self,
        entries: Iterable[Entry],
        loads: Mapping[str, Load] | None = None,
        request: Request | None = None,
    ) -> list[Candidate]:
        """LLM entries as they stand now: health, real context, load, budget left.

        Args:
            entries: Whose.
            loads: Who is at which server; None = as far as that is known without asking.
            request: For what: replies of its kind have a length of their own, and a server that has read the
                beginning of its prompt need not read it again.
        """
        now = self.clock.time()
        loads = self.flights.loads() if loads is None else loads
        task = "" if request is None else task_of(request)
        found = [self._candidate(entry, loads, task, now) for entry in entries]
        if request is not None and request.features is not PLAIN:
            found = [self._with_cannot(c, request.features) for c in found]
        if request is not None and request.prefix:
            found = [self._with_prefix(candidate, request.prefix) for candidate in found]
        return self._with_books(found, now) if self._needs_books else found

    def _candidate(self, entry: Entry, loads: Mapping[str, Load], task: str, now: float) -> Candidate:
        health = self.health.get(entry.endpoint, now)
        speeds = self.speeds_of(entry, task, now)
        candidate = entry.refresh(health, speeds)
        if health is None:
            return candidate
        load = loads.get(entry.endpoint.root, NOBODY)
        root = entry.endpoint.root
        others = self.outside.at(root, health, candidate.slots, candidate.service, now)
        return at_this_moment(candidate, health, load, others, speeds, now)

    def _with_cannot(self, candidate: Candidate, features: Features) -> Candidate:
        entry = self.llm(candidate.spec.name)
        words = entry.cannot(features, self.known(entry))
        if words:
            return msgspec.structs.replace(candidate, cannot=words)
        if features.constraint is None or candidate.failing:
            return candidate
        ignored = self.obedience.words(entry.spec.name, features.constraint, self.clock.monotonic())
        # It could: it is left out as one that fails is, while there is another one.
        return msgspec.structs.replace(candidate, failing=True, detail=ignored) if ignored else candidate

    def note_read(self, candidate: Candidate, prefix: tuple[int, ...]) -> None:
        """Its server has read a prompt of that beginning."""
        room = None if candidate.slots is None else candidate.slots * candidate.context
        self.prefixes.note(_cache_of(candidate), prefix, room)

    def _with_prefix(self, candidate: Candidate, prefix: tuple[int, ...]) -> Candidate:
        share = self.prefixes.share(_cache_of(candidate), prefix)
        return msgspec.structs.replace(candidate, cached=share) if share else candidate

    def _with_books(self, found: list[Candidate], now: float) -> list[Candidate]:
        try:
            self.ledger.ready()
            books = self.ledger.usage(self.today(now)) if self._has_budgets else {}
        except LedgerError as error:
            # Fail closed: without books nothing that costs money or has a budget may be called.
            return [_without_books(c, str(error)) if needs_books(c.spec) else c for c in found]
        resets_in = self.resets_at(now).timestamp() - now
        return [_within_budget(c, books, resets_in) if has_budget(c.spec) else c for c in found]

    def decide(self, request: Request, *, name: str | None = None) -> Decision:
        """Choose among what is known now; endpoints never asked count as down."""
        entries = self.llms if name is None else [self.llm(name)]
        return self.decide_among(self.candidates(entries, request=request), request, named=name is not None)

    def decide_among(
        self, candidates: Sequence[Candidate], request: Request, *, named: bool = False
    ) -> Decision:
        """Choose among `candidates`, by chance where what is known of their load is old."""
        is_stale = any([c.counted for c in candidates])
        draws = (self.draw(), self.draw()) if is_stale else None
        return decide(candidates, request, named=named, draws=draws)

    def today(self, now: float | None = None) -> date:
        """The budget day it is."""
        return budget_day(self.clock.time() if now is None else now, self.zone)

    def resets_at(self, now: float | None = None) -> datetime:
        """When the next budget day begins."""
        return resets_at(self.clock.time() if now is None else now, self.zone)


def _cache_of(candidate: Candidate) -> str:
    """Whose prompts are kept together: those of one model at one server."""
    return f"{candidate.endpoint} {candidate.spec.model}"


def called(entries: Sequence[Entry], what: str, name_or_tag: str) -> list[Entry]:
    """The one of that name, else all with that tag, in registry order. Raises `UnknownName`.

    `what` they are is for the message: "embedding", "reranker".
    """
    _check_name(name_or_tag)
    named = [e for e in entries if e.spec.name == name_or_tag]
    found = named or [e for e in entries if name_or_tag in e.spec.tags]
    if found:
        return found
    tags = sorted({tag for e in entries for tag in e.spec.tags})
    raise _unknown(what, name_or_tag, list(dict.fromkeys([*(e.spec.name for e in entries), *tags])))


def _unknown(what: str, name: str, names: Sequence[str]) -> UnknownName:
    if not names:
        return UnknownName(f"no {what} {name!r}: the registry declares none")
    import difflib  # only for a mistake

    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names[:8])}"
    return UnknownName(f"no {what} {name!r}; {hint}")


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a name must be a str, not {name!r}")


def task_of(request: Request) -> str:
    """What kind of replies a request will have, in so far as they may differ in length: its tags."""
    return ",".join(sorted(request.needs.tags))


def has_budget(spec: Spec) -> bool:
    """Whether the entry may use only so much a day."""
    return spec.daily_budget_tokens is not None or spec.daily_budget_usd is not None


def needs_books(spec: Spec) -> bool:
    """Whether the entry may only be called while its usage can be written down."""
    return has_budget(spec) or not spec.is_free


def limit_of(spec: Spec) -> Limit:
    """The entry's daily budgets."""
    usd = spec.daily_budget_usd
    return Limit(spec.daily_budget_tokens, None if usd is None else math.floor(round(usd * NANO, 6)))


def left_today(spec: Spec, used: Used) -> tuple[int | None, int | None]:
    """Tokens and nanodollars left today; None = unlimited."""
    limit = limit_of(spec)
    return (
        None if limit.tokens is None else limit.tokens - used.tokens - used.held_tokens,
        None if limit.nanousd is None else limit.nanousd - used.nanousd - used.held_nanousd,
    )


def _without_books(candidate: Candidate, words: str) -> Candidate:
    return msgspec.structs.replace(candidate, blocked="budget_unknown", detail=words)


def _within_budget(candidate: Candidate, books: Mapping[str, Used], resets_in: float) -> Candidate:
    tokens, nanousd = left_today(candidate.spec, books.get(candidate.spec.name, Used()))
    usd = None if nanousd is None else nanousd / NANO
    return msgspec.structs.replace(candidate, tokens_left=tokens, usd_left=usd, resets_in=resets_in)


def with_tokens(request: Request, counted: Mapping[str, int]) -> Request:
    """`request` with exact prompt sizes for some entries, and what they tell of the others'."""
    known = {**request.prompt_tokens, **counted}
    ratio = (request.prompt_bytes or 1) / max(1, *known.values())
    return msgspec.structs.replace(request, prompt_tokens=known, bytes_per_token=ratio)
