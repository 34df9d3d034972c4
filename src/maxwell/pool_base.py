"""What the sync and the async pool share: a registry with its health, books and receipts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from maxwell.calls.effects import Flow
from maxwell.calls.entries import Entry
from maxwell.calls.retries import shared_budget
from maxwell.calls.select import choose
from maxwell.calls.spaces import Spaces
from maxwell.calls.state import PoolState
from maxwell.clock import Clock, SystemClock
from maxwell.decision import Decision
from maxwell.errors import LedgerError
from maxwell.explain import ways_out
from maxwell.health import HealthBook
from maxwell.homes import shared_ledger, shared_live
from maxwell.ledger import Ledger, Used
from maxwell.receipts.book import ReceiptBook
from maxwell.registry.endpoints import api_key
from maxwell.registry.locate import maxwell_home
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, Registry, RerankerSpec, Spec
from maxwell.requirements import request, request_with
from maxwell.types import Requirements


class Pool:
    """What the sync and the async pool share.

    Args:
        registry: The declared entries.
        home: Directory of the ledger and the shared health states; default `~/.maxwell`.
        clock: Tells the time.
        environ: Where API keys are found; default the process's environment.
        ledger: Where usage is booked; default SQLite in `home`. With another one no receipts are kept.
        log_content: Whether receipts keep what was asked and answered; default whether the environment has
            `MAXWELL_LOG_CONTENT=1`.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        home: Path | None = None,
        clock: Clock | None = None,
        environ: Mapping[str, str] | None = None,
        ledger: Ledger | None = None,
        log_content: bool | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        home = maxwell_home(environ) if home is None else home
        clock = clock or SystemClock()
        if log_content is None:
            log_content = environ.get("MAXWELL_LOG_CONTENT") == "1"
        database = None
        if ledger is None:
            ledger = shared_ledger(home, clock)
            database = ledger.database
        self._live = live = shared_live(home, clock)
        self._state = PoolState(
            registry,
            health=HealthBook(home / "health", clock),
            ledger=ledger,
            clock=clock,
            environ=environ,
            flights=live.flights,
            speeds=live.speeds,
            retries=shared_budget(home, clock),
            receipts=ReceiptBook(
                database, clock, log_content=log_content, secrets=_secrets(registry, environ)
            ),
        )
        self._spaces = Spaces(registry.path, self._state.embeddings, clock)

    @property
    def registry(self) -> Registry:
        """The registry in use."""
        return self._state.registry

    @property
    def llms(self) -> tuple[LLMSpec, ...]:
        """The declared LLMs, in registry order."""
        return self._state.registry.llms

    @property
    def embeddings(self) -> tuple[EmbeddingSpec, ...]:
        """The declared embeddings, in registry order."""
        return self._state.registry.embeddings

    @property
    def rerankers(self) -> tuple[RerankerSpec, ...]:
        """The declared rerankers, in registry order."""
        return self._state.registry.rerankers

    def is_outdated(self) -> bool:
        """Whether the environment's keys, or the user's trust in the registry, may have changed since."""
        return self._state.keys_changed() or not self.registry.trusted

    @property
    def ledger(self) -> Ledger:
        """The books: reservations, and what was used on any day."""
        return self._state.ledger

    def today(self) -> date:
        """The day that usage is booked on now, in the registry's `budget_timezone`."""
        return self._state.today()

    def resets_at(self) -> datetime:
        """When the daily budgets start anew."""
        return self._state.resets_at()

    def usage(self) -> dict[str, Used]:
        """What each entry used today, by name. Raises `LedgerError`."""
        books = self._state.ledger.usage(self._state.today())
        declared: list[Spec] = [*self.llms, *self.embeddings, *self.rerankers]
        return {spec.name: books.get(spec.name, Used()) for spec in declared}

    def ways_out(self, decision: Decision) -> list[str]:
        """What would make something eligible, nearest first; empty when something is."""
        entries = [self._state.llm(no.spec.name) for no in decision.rejected]
        return ways_out(self._state.candidates(entries, request=decision.request), decision)

    def _close_books(self) -> None:
        # What cannot be written now is tried again, and the end of the process says what was not. The calls
        # that it was used for have succeeded.
        with contextlib.suppress(LedgerError):
            self._state.ledger.close()
        with contextlib.suppress(LedgerError):
            self._live.database.close()

    def _counting(self, names: Sequence[str] | None) -> list[Entry]:
        return self._state.llms if names is None else [self._state.llm(name) for name in names]

    def _choose(self, name: str | None, needs: Requirements) -> Flow[Decision]:
        return choose(self._state, request(needs), name=name, prompt=needs.prompt)

    def _choose_with(
        self, name: str | None, needs: Requirements, options: Mapping[str, Any] | None
    ) -> Flow[Decision]:
        if not options:
            return self._choose(name, needs)
        # Servers count the bare prompt; beside pictures and instructions that is not the call's size.
        counted = not (options.get("images") or options.get("system_prompt"))
        wanted = request_with(needs, options)
        return choose(self._state, wanted, name=name, prompt=needs.prompt if counted else None)


def _secrets(registry: Registry, environ: Mapping[str, str]) -> set[str]:
    """Every key that the registry's entries send."""
    specs: list[Spec] = [*registry.llms, *registry.embeddings, *registry.rerankers]
    return {key for spec in specs if (key := api_key(spec, registry, environ))}
