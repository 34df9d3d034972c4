"""The door: `get_lm` & co. on the pool of the registry that applies where the program runs.

Thin on purpose: what choosing and calling need is imported by the first call, so that importing this costs
next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

if TYPE_CHECKING:
    from pathlib import Path

    from maxwell.handles import LLM, AsyncLLM
    from maxwell.pools import AsyncLLMPool, LLMPool
    from maxwell.requirements import Needs
    from maxwell.rerankers import AsyncReranker, Reranker
    from maxwell.vectors import AsyncEmbedding, Embedding

__all__ = [
    "AsyncLLMPool",
    "LLMPool",
    "get_async_embedding",
    "get_async_lm",
    "get_async_reranker",
    "get_embedding",
    "get_lm",
    "get_reranker",
]


def get_lm(name: str | None = None, *, registry: Path | str | None = None, **needs: Unpack[Needs]) -> LLM:
    """The LLM that should do this now, from the registry that applies here. See `LLMPool.get_lm`."""
    from maxwell.pools import LLMPool, shared_pool

    return shared_pool(LLMPool, registry).get_lm(name, **needs)


def get_embedding(name_or_tag: str | None = None, *, registry: Path | str | None = None) -> Embedding:
    """The embedding of that name or tag. See `LLMPool.get_embedding`."""
    from maxwell.pools import LLMPool, shared_pool

    return shared_pool(LLMPool, registry).get_embedding(name_or_tag)


def get_reranker(name_or_tag: str | None = None, *, registry: Path | str | None = None) -> Reranker:
    """The reranker of that name or tag. See `LLMPool.get_reranker`."""
    from maxwell.pools import LLMPool, shared_pool

    return shared_pool(LLMPool, registry).get_reranker(name_or_tag)


async def get_async_lm(
    name: str | None = None, *, registry: Path | str | None = None, **needs: Unpack[Needs]
) -> AsyncLLM:
    """`get_lm` for coroutines."""
    from maxwell.pools import AsyncLLMPool, shared_pool

    return await shared_pool(AsyncLLMPool, registry).get_lm(name, **needs)


async def get_async_embedding(
    name_or_tag: str | None = None, *, registry: Path | str | None = None
) -> AsyncEmbedding:
    """`get_embedding` for coroutines."""
    from maxwell.pools import AsyncLLMPool, shared_pool

    return await shared_pool(AsyncLLMPool, registry).get_embedding(name_or_tag)


async def get_async_reranker(
    name_or_tag: str | None = None, *, registry: Path | str | None = None
) -> AsyncReranker:
    """`get_reranker` for coroutines."""
    from maxwell.pools import AsyncLLMPool, shared_pool

    return await shared_pool(AsyncLLMPool, registry).get_reranker(name_or_tag)


def __getattr__(name: str) -> Any:
    if name not in ("AsyncLLMPool", "LLMPool"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from maxwell import pools

    return getattr(pools, name)
