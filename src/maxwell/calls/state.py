"""What all calls of one pool share: registry, health, ledger, clock, and each entry as it stands now."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime

import msgspec

from maxwell.backends import get_backend
from maxwell.backends.base import Backend
from maxwell.calls.effects import Aside, Flow
from maxwell.clock import Clock
from maxwell.errors import BudgetExceeded, LedgerError, UnknownName
from maxwell.health import Endpoint, Health, HealthBook
from maxwell.ledger import NANO, Ledger, Limit, Used
from maxwell.ledger.days import budget_day, resets_at, zone
from maxwell.receipts.book import ReceiptBook
from maxwell.registry.endpoints import api_key, key_problem, root
from maxwell.registry.specs import LLMSpec, Registry, Spec
from maxwell.scheduler import SELECTABLE, Candidate, Decision, Request, decide


class Entry:
    """One declared LLM or embedding in use: its spec, where it lives, how it is spoken to.

    Attributes:
        spec: The declaration.
        index: Its place in the registry.
        endpoint: Its server, with the key this user sends.
        key_problem: Why there is no key although one is needed, or None.
    """

    __slots__ = ("_declared", "_latest", "endpoint", "index", "key_problem", "spec")

    def __init__(self, spec: Spec, index: int, registry: Registry, environ: Mapping[str, str]) -> None:
        self.spec = spec
        self.index = index
        self.endpoint = Endpoint(root(spec.api_base), spec.backend, api_key(spec, registry, environ))
        self.key_problem = key_problem(spec, registry, environ)
        self._declared = get_backend(spec.backend or "openai")
        # What was known and how the scheduler saw it, replaced as one so that threads never mix two.
        self._latest: tuple[Health | None, Candidate] | None = None

    def backend(self, health: Health | None = None) -> Backend:
        """How to speak to it; an entry that names no backend is spoken to as what its server says it is."""
        if self.spec.backend is None and health is not None and health.family in ("llamacpp", "vllm"):
            return get_backend(health.family)
        return self._declared

    def blocked_by(self, health: Health | None) -> tuple[str, str]:
        """Why it cannot be used although its server may be up: (reason, words), or two empty strings."""
        if self.key_problem is not None:
            return "key", self.key_problem
        if health is None or not health.models:
            return "", ""
        backend = self.backend(health)
        if backend.serves(self.spec.model, health.models) is not None:
            return "", ""
        if backend.answers_any_name and len(health.models) == 1:
            return "", ""
        served = ", ".join(m.id for m in health.models[:3]) + (", ..." if len(health.models) > 3 else "")
        return "model_missing", f"{self.endpoint.root} does not serve {self.spec.model}; it serves {served}"

    @property
    def declared_context(self) -> int:
        """Most tokens of one request, as declared."""
        spec = self.spec
        return spec.capabilities.max_context if isinstance(spec, LLMSpec) else spec.max_context

    def context(self, health: Health | None) -> int:
        """Most tokens of one request: as declared, or as the server tells when that is less."""
        if health is None:
            return self.declared_context
        served = self.backend(health).serves(self.spec.model, health.models)
        told = (served.context if served else None) or health.context
        return min(self.declared_context, told or self.declared_context)

    def refresh(self, health: Health | None) -> Candidate:
        """This LLM as the scheduler is to see it. The value is shared: replace it, never change it."""
        latest = self._latest
        if latest is not None and _says_the_same(latest[0], health):
            return latest[1]
        spec = self.spec
        assert isinstance(spec, LLMSpec)
        reason, words = self.blocked_by(health)
        candidate = Candidate(
            spec=spec,
            index=self.index,
            state="unknown" if health is None else health.state,
            detail=words or ("no answer to the health check" if health is None else health.detail),
            blocked=reason or None,  # type: ignore[arg-type]
            context=self.context(health),
            honours_grammar=self.backend(health).honours_grammar,
        )
        self._latest = (health, candidate)
        return candidate


class PoolState:
    """Everything a flow may ask about the pool.

    Args:
        registry: The declared entries.
        health: What is known of their endpoints.
        ledger: What they used.
        clock: Tells the time.
        receipts: Where each call's decision and outcome are kept; None = nowhere.
        environ: Where API keys are found.

    Attributes:
        margins: Tokens by which a server used more than was reserved, by entry; the next calls reserve more.
        told: Entries about whose prices a warning has been given.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        health: HealthBook,
        ledger: Ledger,
        clock: Clock,
        receipts: ReceiptBook | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self.registry = registry
        self.health = health
        self.ledger = ledger
        self.clock = clock
        self.receipts = receipts or ReceiptBook(None, clock)
        self.zone = zone(registry.budget_timezone)
        self.llms = [Entry(spec, i, registry, environ) for i, spec in enumerate(registry.llms)]
        self.embeddings = [Entry(spec, i, registry, environ) for i, spec in enumerate(registry.embeddings)]
        self._by_name = {e.spec.name: e for e in (*self.llms, *self.embeddings)}
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
            raise UnknownName(self._unknown(name, self.llms, "LLM"))
        return entry

    def embedding_entries(self, name_or_tag: str) -> list[Entry]:
        """The embedding of that name, else all with that tag, in registry order. Raises `UnknownName`."""
        _check_name(name_or_tag)
        named = [e for e in self.embeddings if e.spec.name == name_or_tag]
        found = named or [e for e in self.embeddings if name_or_tag in e.spec.tags]
        if not found:
            raise UnknownName(self._unknown(name_or_tag, self.embeddings, "embedding"))
        return found

    @staticmethod
    def _unknown(name: str, entries: Sequence[Entry], what: str) -> str:
        names = [e.spec.name for e in entries]
        if not names:
            return f"no {what} {name!r}: the registry declares none"
        if what == "embedding":
            names += sorted({tag for e in entries for tag in e.spec.tags})
        import difflib  # only for a mistake

        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names[:8])}"
        return f"no {what} {name!r}; {hint}"

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
        """One LLM entry as it stands now, budgets left aside."""
        return entry.refresh(self.known(entry))

    def candidates(self, entries: Iterable[Entry]) -> list[Candidate]:
        """LLM entries as they stand now: health, real context, budget left."""
        now = self.clock.time()
        get = self.health.get
        found = [entry.refresh(get(entry.endpoint, now)) for entry in entries]
        return self._with_books(found, now) if self._needs_books else found

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
        return decide(self.candidates(entries), request, named=name is not None)

    def today(self, now: float | None = None) -> date:
        """The budget day it is."""
        return budget_day(self.clock.time() if now is None else now, self.zone)

    def resets_at(self, now: float | None = None) -> datetime:
        """When the next budget day begins."""
        return resets_at(self.clock.time() if now is None else now, self.zone)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a name must be a str, not {name!r}")


def _says_the_same(one: Health | None, other: Health | None) -> bool:
    """Whether two states make the same candidate: every successful call renews a state's time and no more."""
    if one is None or other is None:
        return one is other
    return one is other or (
        one.state == other.state
        and one.detail == other.detail
        and one.models is other.models
        and one.context == other.context
        and one.family == other.family
    )


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
