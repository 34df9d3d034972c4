"""Pools: a registry with its health and books. They choose; the handles they return call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from maxwell.calls import sync_driver
from maxwell.calls.benching import Bench, bench
from maxwell.calls.benching import Progress as BenchProgress
from maxwell.calls.effects import Flow, T
from maxwell.calls.locking import Canaries, embed_canaries
from maxwell.calls.locking import Progress as LockProgress
from maxwell.calls.mapping import mapping
from maxwell.calls.select import choose_embedding, choose_reranker, insist
from maxwell.calls.status import Status, statuses
from maxwell.calls.token_count import TokenCount, count_for_all
from maxwell.calls.truth import Examined, examine
from maxwell.decision import Decision
from maxwell.handles import LLM, AsyncLLM
from maxwell.maps import PATIENCE, AsyncMapResults, Item, MapOptions, MapResults, Progress, planned
from maxwell.pool_base import Pool
from maxwell.registry.load import load
from maxwell.registry.locate import find, maxwell_home
from maxwell.registry.lock import CANARIES
from maxwell.registry.specs import Registry
from maxwell.requirements import Needs, PromptOptions, requirements
from maxwell.rerankers import AsyncReranker, Reranker
from maxwell.types import Message
from maxwell.vectors import AsyncEmbedding, Embedding

if TYPE_CHECKING:
    from maxwell.calls.transport import AsyncTransport, SyncTransport

__all__ = ["AsyncLLMPool", "LLMPool", "shared_pool"]


class LLMPool(Pool):
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
        entry = self._run(choose_reranker(self._state, name_or_tag))
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

    def explain(
        self, name: str | None = None, *, options: PromptOptions | None = None, **needs: Unpack[Needs]
    ) -> Decision:
        """The decision that `get_lm` would take, with every candidate's terms and reasons; calls nothing.

        Args:
            name: The only one that may be chosen.
            options: What `generate` would be given: who cannot hold a reply to its schema, or take its
                images, is not eligible.
            **needs: Requirements as in `get_lm`.
        """
        return self._run(self._choose_with(name, requirements(needs), options))

    def health(self, *, refresh: bool = False) -> Sequence[Status]:
        """How every entry stands; asks those not asked in the last 30 seconds, or all when `refresh`."""
        return self._run(statuses(self._state, refresh=refresh))

    def examine(self) -> list[Examined]:
        """Compare every field that can be checked with what the servers are, asked now.

        Each embedding that is up makes one vector of one short text, booked like any call; nothing else is
        generated.
        """
        return self._run(examine(self._state))

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


class AsyncLLMPool(Pool):
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
        entry = await self._run(choose_reranker(self._state, name_or_tag))
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

    async def explain(
        self, name: str | None = None, *, options: PromptOptions | None = None, **needs: Unpack[Needs]
    ) -> Decision:
        """The decision that `get_lm` would take. See `LLMPool.explain`."""
        return await self._run(self._choose_with(name, requirements(needs), options))

    async def health(self, *, refresh: bool = False) -> Sequence[Status]:
        """How every entry stands. See `LLMPool.health`."""
        return await self._run(statuses(self._state, refresh=refresh))

    async def examine(self) -> list[Examined]:
        """Compare every field with what the servers are. See `LLMPool.examine`."""
        return await self._run(examine(self._state))

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
_shared: dict[tuple[type[Pool], Path, Path], tuple[tuple[int, int], Any]] = {}

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
