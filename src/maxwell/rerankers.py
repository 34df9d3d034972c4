"""What `get_reranker` returns: a handle that scores documents for a query. Thin: one driver call a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maxwell.calls import sync_driver
from maxwell.calls.effects import Flow
from maxwell.calls.entries import Entry
from maxwell.calls.rerank import Ranked, rerank
from maxwell.calls.state import PoolState
from maxwell.registry.specs import RerankerSpec
from maxwell.requirements import check_timeout

if TYPE_CHECKING:
    from maxwell.calls.transport import AsyncTransport, SyncTransport

__all__ = ["AsyncReranker", "Ranked", "Reranker"]


class _ChosenReranker:
    """What the sync and the async handle of one reranker share."""

    def __init__(self, state: PoolState, entry: Entry, asked: str | None) -> None:
        self._state = state
        self._entry = entry
        self._asked = asked

    @property
    def spec(self) -> RerankerSpec:
        """The chosen entry as declared."""
        assert isinstance(self._entry.spec, RerankerSpec)
        return self._entry.spec

    @property
    def name(self) -> str:
        """The chosen entry's name."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _flow(
        self, query: str, documents: Sequence[str], top_n: int | None, timeout: float | None
    ) -> Flow[list[Ranked]]:
        if not isinstance(query, str):
            raise TypeError(f"query must be a str, not {query!r}")
        listed = [] if isinstance(documents, str) else list(documents)  # an iterator gives them only once
        if isinstance(documents, str) or not all(isinstance(d, str) for d in listed):
            raise TypeError("documents must be a sequence of str")
        if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int)):
            raise TypeError(f"top_n must be a whole number, not {top_n!r}")
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n must be at least 1, not {top_n}")
        check_timeout(timeout)
        return rerank(
            self._state,
            self._entry,
            query,
            listed,
            asked=self._asked,
            top_n=top_n,
            seconds=timeout,
        )


class Reranker(_ChosenReranker):
    """A chosen reranker. Never replaced by another: each model's scores have a scale of their own."""

    def __init__(
        self, state: PoolState, entry: Entry, transport: SyncTransport, *, asked: str | None
    ) -> None:
        super().__init__(state, entry, asked)
        self._transport = transport

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, timeout: float | None = None
    ) -> list[Ranked]:
        """The documents by how well they answer the query, best first.

        All of them are scored by one server, in one request where it takes that many. Scores can be compared
        within the result, not with another call's.

        Args:
            query: What is looked for.
            documents: What to look in.
            top_n: Give only the best so many, >= 1.
            timeout: Longest the call may take, in seconds.

        Raises:
            InputTooLong: The query and a document are too long for the model.
            BackendError: The call failed.
            BudgetExceeded: The daily budget has no room for the call.
        """
        return sync_driver.run(self._flow(query, documents, top_n, timeout), self._transport)


class AsyncReranker(_ChosenReranker):
    """A chosen reranker for use in coroutines: `Reranker`'s methods, awaited."""

    def __init__(
        self, state: PoolState, entry: Entry, transport: AsyncTransport, *, asked: str | None
    ) -> None:
        super().__init__(state, entry, asked)
        self._transport = transport

    async def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, timeout: float | None = None
    ) -> list[Ranked]:
        """The documents by how well they answer the query, best first. See `Reranker.rerank`."""
        from maxwell.calls import async_driver

        return await async_driver.run(self._flow(query, documents, top_n, timeout), self._transport)
