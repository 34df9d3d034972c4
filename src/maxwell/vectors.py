"""What `get_embedding` returns: a handle that makes vectors of texts. Thin: one driver call a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maxwell.calls import sync_driver
from maxwell.calls.effects import Flow
from maxwell.calls.embed import Vectors, embed
from maxwell.calls.entries import Entry
from maxwell.calls.spaces import Spaces
from maxwell.calls.state import PoolState
from maxwell.registry.specs import EmbeddingSpec
from maxwell.requirements import check_timeout

if TYPE_CHECKING:
    from maxwell.calls.transport import AsyncTransport, SyncTransport

__all__ = ["AsyncEmbedding", "Embedding", "Vectors"]


class _ChosenEmbedding:
    """What the sync and the async handle of one embedding share."""

    def __init__(self, state: PoolState, entry: Entry, asked: str | None, spaces: Spaces) -> None:
        self._state = state
        self._spaces = spaces
        self._entry = entry
        self._asked = asked

    @property
    def spec(self) -> EmbeddingSpec:
        """The chosen entry as declared."""
        assert isinstance(self._entry.spec, EmbeddingSpec)
        return self._entry.spec

    @property
    def name(self) -> str:
        """The chosen entry's name."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _flow(self, texts: Sequence[str], truncate: bool, timeout: float | None) -> Flow[Vectors]:
        listed = [] if isinstance(texts, str) else list(texts)  # an iterator gives them only once
        if isinstance(texts, str) or not all(isinstance(t, str) for t in listed):
            raise TypeError("texts must be a sequence of str; for a single text there is embed()")
        check_timeout(timeout)
        return embed(
            self._state,
            self._entry,
            listed,
            spaces=self._spaces,
            asked=self._asked,
            truncate=truncate,
            seconds=timeout,
        )


class Embedding(_ChosenEmbedding):
    """A chosen embedding model.

    Another entry takes over where its server fails only if the registry's lock proves that it makes the same
    vectors (see `maxwell registry lock`), and never where it was asked for by name.
    """

    def __init__(
        self, state: PoolState, entry: Entry, transport: SyncTransport, *, asked: str | None, spaces: Spaces
    ) -> None:
        super().__init__(state, entry, asked, spaces)
        self._transport = transport

    def embed(self, text: str, *, truncate: bool = False, timeout: float | None = None) -> list[float]:
        """The vector of one text.

        Args:
            text: What to embed.
            truncate: Cut a text that is too long to the model's limit, by the server's own tokens.
            timeout: Longest the call may take, in seconds.

        Raises:
            InputTooLong: The text is too long for the model.
            DimensionMismatch: The server's vectors have another size than declared.
            VectorSpaceChanged: The server's vectors are not the ones that the registry's lock records.
            BackendError: The call failed.
            AllAttemptsFailed: It failed with several servers of one vector space.
            BudgetExceeded: The daily budget has no room for the call.
        """
        return self.embed_many([text], truncate=truncate, timeout=timeout)[0]

    def embed_many(
        self, texts: Sequence[str], *, truncate: bool = False, timeout: float | None = None
    ) -> Vectors:
        """One vector a text, in the texts' order, however many there are. See `embed`.

        The result is a list that also says who made the vectors (`llms`).
        """
        return sync_driver.run(self._flow(texts, truncate, timeout), self._transport)


class AsyncEmbedding(_ChosenEmbedding):
    """A chosen embedding model for use in coroutines: `Embedding`'s methods, awaited."""

    def __init__(
        self, state: PoolState, entry: Entry, transport: AsyncTransport, *, asked: str | None, spaces: Spaces
    ) -> None:
        super().__init__(state, entry, asked, spaces)
        self._transport = transport

    async def embed(self, text: str, *, truncate: bool = False, timeout: float | None = None) -> list[float]:
        """The vector of one text. See `Embedding.embed`."""
        return (await self.embed_many([text], truncate=truncate, timeout=timeout))[0]

    async def embed_many(
        self, texts: Sequence[str], *, truncate: bool = False, timeout: float | None = None
    ) -> Vectors:
        """One vector a text, in the texts' order. See `Embedding.embed_many`."""
        from maxwell.calls import async_driver

        return await async_driver.run(self._flow(texts, truncate, timeout), self._transport)
