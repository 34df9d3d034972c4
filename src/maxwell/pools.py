"""Pools: a registry with its health and books. They choose; the handles they return call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from maxwell.calls import sync_driver
from maxwell.calls.benching import Bench, bench
from maxwell.calls.benching import Progress as BenchProgress
from maxwell.calls.effects import Flow, T
from maxwell.calls.entries import Entry
from maxwell.calls.locking import Canaries, embed_canaries
from maxwell.calls.locking import Progress as LockProgress
from maxwell.calls.mapping import mapping
from maxwell.calls.retries import shared_budget
from maxwell.calls.select import choose, choose_embedding, choose_reranker, insist
from maxwell.calls.spaces import Spaces
from maxwell.calls.state import PoolState
from maxwell.calls.status import Status, statuses
from maxwell.calls.token_count import TokenCount, count_for_all
from maxwell.calls.truth import Examined, examine
from maxwell.clock import Clock, SystemClock
from maxwell.decision import Decision
from maxwell.errors import LedgerError
from maxwell.explain import ways_out
from maxwell.handles import LLM, AsyncLLM
from maxwell.health import HealthBook
from maxwell.homes import shared_ledger, shared_live
from maxwell.ledger import Ledger, Used
from maxwell.maps import PATIENCE, AsyncMapResults, Item, MapOptions, MapResults, Progress, planned
from maxwell.receipts.book import ReceiptBook
from maxwell.registry.endpoints import api_key
from maxwell.registry.load import load
from maxwell.registry.locate import find, maxwell_home
from maxwell.registry.lock import CANARIES
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, Registry, RerankerSpec, Spec
from maxwell.requirements import Needs, request, requirements
from maxwell.rerankers import AsyncReranker, Reranker
from maxwell.types import Message, Requirements
from maxwell.vectors import AsyncEmbedding, Embedding

if TYPE_CHECKING:
    from maxwell.calls.transport import AsyncTransport, SyncTransport

__all__ = ["AsyncLLMPool", "LLMPool", "shared_pool"]


class _Pool:
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
        self._rerankers = [Entry(spec, i, registry, environ) for i, spec in enumerate(registry.rerankers)]
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
        return ways_out(self._state.candidates(entries), decision)

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


def _secrets(registry: Registry, environ: Mapping[str, str]) -> set[str]:
    """Every key that the registry's entries send."""
    specs: list[Spec] = [*registry.llms, *registry.embeddings, *registry.rerankers]
    return {key for spec in specs if (key := api_key(spec, registry, environ))}


class LLMPool(_Pool):
    """A registry with its health and books: chooses LLMs and embeddings, for use from any thread.

    Build it with `LLMPool.from_registry()`. `lm_pool.get_lm` and `lm_pool.get_embedding` use such a pool.
    """

    def __init__(self, registry: Registry, *, transport: SyncTransport | None = None, **parts: Any) -> None:
        super().__init__(registry, **parts)
        if transport is None:
            from maxwell.calls.urllib3_transport import Urllib3Transport

            transport = Urllib3Transport()
        self._transport = transport

    @classmethod
    def from_registry(cls, path: Path | str | None = None, **parts: Any) -> LLMPool:
        """The pool of the registry at `path`, or of the one that applies here; `parts` as in the constructor.

        Raises `RegistryError`.
        """
        return cls(load(find(path)), **parts)

    def get_lm(self, name: str | None = None, **needs: Unpack[Needs]) -> LLM:
        """The LLM that should do this now.

        Without arguments the fastest; with `prompt` the one of best score for it; with requirements the
        fastest that meets them; with `name` that one and no other, checked against any requirements.

        Raises:
            NoEligibleLM: Nothing may be chosen; the message says why, entry by entry, and what would help.
            UnknownName: There is no entry of that name.
            TypeError, ValueError: A requirement is unknown or out of range.
        """
        decision = self._run(self._choose(name, requirements(needs)))
        return LLM(self._state, insist(self._state, decision), self._transport, pinned=name is not None)

    def get_embedding(self, name_or_tag: str | None = None) -> Embedding:
        """The embedding of that name, else the first usable one with that tag; default tag "default".

        Raises:
            NoEligibleLM: None of that name or tag can be used now.
            UnknownName: Nothing has that name or tag.
        """
        entry = self._run(choose_embedding(self._state, name_or_tag, self._spaces))
        return Embedding(self._state, entry, self._transport, asked=name_or_tag, spaces=self._spaces)

    def get_reranker(self, name_or_tag: str | None = None) -> Reranker:
        """The reranker of that name, else the first usable one with that tag; default tag "default".

        Raises as `get_embedding`.
        """
        entry = self._run(choose_reranker(self._state, self._rerankers, name_or_tag))
        return Reranker(self._state, entry, self._transport, asked=name_or_tag)

    def count_tokens(
        self,
        said: str | Sequence[Message],
        *,
        names: Sequence[str] | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> list[TokenCount]:
        """How many tokens a prompt or a conversation has for these LLMs, or for all.

        Counted by their servers where they can, else estimated and marked so. Raises `UnknownName`.
        """
        return self._run(count_for_all(self._state, self._counting(names), said, tools))

    def embed_canaries(
        self, texts: Sequence[str] = CANARIES, *, progress: LockProgress | None = None
    ) -> list[Canaries]:
        """What every embedding makes of a few texts; two that make the same share a vector space.

        `maxwell registry lock` writes it down. Booked like any call.

        Args:
            texts: What to embed.
            progress: Is told before each entry its name, how many were asked, and how many there are.
        """
        return self._run(embed_canaries(self._state, texts, progress))

    def explain(self, name: str | None = None, **needs: Unpack[Needs]) -> Decision:
        """The decision that `get_lm` would take, with every candidate's terms and reasons; calls nothing."""
        return self._run(self._choose(name, requirements(needs)))

    def health(self, *, refresh: bool = False) -> Sequence[Status]:
        """How every entry stands; asks those not asked in the last 30 seconds, or all when `refresh`."""
        return self._run(statuses(self._state, self._rerankers, refresh=refresh))

    def examine(self) -> list[Examined]:
        """Compare every field that can be checked with what the servers are, asked now.

        Each embedding that is up makes one vector of one short text, booked like any call; nothing else is
        generated.
        """
        return self._run(examine(self._state, self._rerankers))

    def map(
        self,
        items: Iterable[Item],
        *,
        ordered: bool = True,
        at_most: int | None = None,
        patience: float = PATIENCE,
        progress: Progress | None = None,
        **options: Unpack[MapOptions],
    ) -> MapResults:
        """Do many prompts on the whole pool at once: one queue, and whoever has a free slot takes the next.

        There are as many calls at once as the eligible servers have free slots, each chosen and booked as a
        single one would be. A call that its servers let down is made again while one is left, three times at
        most, also where the reply had begun: nobody has seen a word of it. When no items are left, idle free
        servers are given what still runs on slower free ones, too, and the first reply counts.

        Args:
            items: Prompts (`str`), conversations (lists of messages), or mappings with a "prompt" or
                "messages" and options of their own. Taken as slots come free, so a generator may be endless.
            ordered: Whether results come in the items' order; else as they come in.
            at_most: Most calls at once.
            patience: Seconds to wait for a server to come back once none can be chosen any more.
            progress: Called with the number of items done, how many of these failed, and how many there are
                (None = not known) whenever one is done. What it raises ends the map.
            **options: Requirements as in `get_lm` and options as in `generate`, for all items.
                `system_prompt` goes with prompts only.

        Returns:
            An iterator of one `Mapped` an item. What went wrong with an item is its `error`, not raised.

        Raises:
            TypeError, ValueError: An argument or option is unknown, of the wrong type or out of range.
        """
        plan = planned(items, options, ordered=ordered, at_most=at_most, patience=patience, progress=progress)
        return MapResults(sync_driver.iterate(mapping(self._state, plan), self._transport))

    def bench(
        self,
        name: str,
        *,
        at_once: Sequence[int] = (),
        progress: Callable[[BenchProgress], None] | None = None,
    ) -> Bench:
        """Measure the LLM of that name with some ten calls, which are booked and learned from like any.

        Args:
            name: Whom to measure.
            at_once: Numbers of replies to be written at once, besides one.
            progress: Is told before each step, and at the end, how far it is.

        Raises:
            NoEligibleLM: It cannot be used now.
            UnknownName: There is no LLM of that name.
            BudgetExceeded: Its budget has no room for it.
            BackendError: A call failed.
        """
        return self._run(bench(self._state, name, at_once=at_once, progress=progress))

    def _run(self, flow: Flow[T]) -> T:
        return sync_driver.run(flow, self._transport)

    def close(self) -> None:
        """Write the books down and drop pooled connections. The pool can be used again."""
        self._close_books()
        self._transport.close()

    def __enter__(self) -> LLMPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncLLMPool(_Pool):
    """`LLMPool` for use in coroutines, from any event loop, one after another."""

    def __init__(self, registry: Registry, *, transport: AsyncTransport | None = None, **parts: Any) -> None:
        super().__init__(registry, **parts)
        if transport is None:
            from maxwell.calls.aiohttp_transport import AiohttpTransport

            transport = AiohttpTransport()
        self._transport = transport

    @classmethod
    def from_registry(cls, path: Path | str | None = None, **parts: Any) -> AsyncLLMPool:
        """The pool of the registry at `path`, or the one that applies here. See `LLMPool.from_registry`."""
        return cls(load(find(path)), **parts)

    async def get_lm(self, name: str | None = None, **needs: Unpack[Needs]) -> AsyncLLM:
        """The LLM that should do this now. See `LLMPool.get_lm`."""
        decision = await self._run(self._choose(name, requirements(needs)))
        return AsyncLLM(self._state, insist(self._state, decision), self._transport, pinned=name is not None)

    async def get_embedding(self, name_or_tag: str | None = None) -> AsyncEmbedding:
        """The embedding of that name or tag. See `LLMPool.get_embedding`."""
        entry = await self._run(choose_embedding(self._state, name_or_tag, self._spaces))
        return AsyncEmbedding(self._state, entry, self._transport, asked=name_or_tag, spaces=self._spaces)

    async def get_reranker(self, name_or_tag: str | None = None) -> AsyncReranker:
        """The reranker of that name or tag. See `LLMPool.get_reranker`."""
        entry = await self._run(choose_reranker(self._state, self._rerankers, name_or_tag))
        return AsyncReranker(self._state, entry, self._transport, asked=name_or_tag)

    async def count_tokens(
        self,
        said: str | Sequence[Message],
        *,
        names: Sequence[str] | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> list[TokenCount]:
        """How many tokens a prompt or a conversation has for these LLMs. See `LLMPool.count_tokens`."""
        return await self._run(count_for_all(self._state, self._counting(names), said, tools))

    async def embed_canaries(
        self, texts: Sequence[str] = CANARIES, *, progress: LockProgress | None = None
    ) -> list[Canaries]:
        """What every embedding makes of a few texts. See `LLMPool.embed_canaries`."""
        return await self._run(embed_canaries(self._state, texts, progress))

    async def explain(self, name: str | None = None, **needs: Unpack[Needs]) -> Decision:
        """The decision that `get_lm` would take. See `LLMPool.explain`."""
        return await self._run(self._choose(name, requirements(needs)))

    async def health(self, *, refresh: bool = False) -> Sequence[Status]:
        """How every entry stands. See `LLMPool.health`."""
        return await self._run(statuses(self._state, self._rerankers, refresh=refresh))

    async def examine(self) -> list[Examined]:
        """Compare every field with what the servers are. See `LLMPool.examine`."""
        return await self._run(examine(self._state, self._rerankers))

    def map(
        self,
        items: Iterable[Item],
        *,
        ordered: bool = True,
        at_most: int | None = None,
        patience: float = PATIENCE,
        progress: Progress | None = None,
        **options: Unpack[MapOptions],
    ) -> AsyncMapResults:
        """Do many prompts on the whole pool at once. See `LLMPool.map`."""
        from maxwell.calls import async_driver

        plan = planned(items, options, ordered=ordered, at_most=at_most, patience=patience, progress=progress)
        return AsyncMapResults(async_driver.iterate(mapping(self._state, plan), self._transport, []))

    async def bench(
        self,
        name: str,
        *,
        at_once: Sequence[int] = (),
        progress: Callable[[BenchProgress], None] | None = None,
    ) -> Bench:
        """Measure the LLM of that name. See `LLMPool.bench`."""
        return await self._run(bench(self._state, name, at_once=at_once, progress=progress))

    async def _run(self, flow: Flow[T]) -> T:
        from maxwell.calls import async_driver

        return await async_driver.run(flow, self._transport)

    async def close(self) -> None:
        """Write the books down and drop this loop's pooled connections. The pool can be used again."""
        self._close_books()
        await self._transport.close()

    async def __aenter__(self) -> AsyncLLMPool:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


# The pools behind `lm_pool`'s functions, by registry file; a file that changed gets a new one.
_shared: dict[tuple[type[_Pool], Path, Path], tuple[tuple[int, int], Any]] = {}

P = TypeVar("P", LLMPool, AsyncLLMPool)


def shared_pool(cls: type[P], registry: Path | str | None) -> P:
    """The process's pool of the registry at `registry`, or of the one that applies here.

    Raises:
        RegistryError: There is none, or it is wrong.
    """
    located = find(registry)
    try:
        seen = located.path.stat()
        stamp = (seen.st_mtime_ns, seen.st_size)
    except OSError:  # gone or out of reach: loading it says so
        stamp = (0, 0)
    key = (cls, located.path, maxwell_home(os.environ))
    known = _shared.get(key)
    if known is None or known[0] != stamp or known[1].is_outdated():
        known = (stamp, cls(load(located)))
        _shared[key] = known
    pool: P = known[1]
    return pool
