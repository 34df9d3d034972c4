"""Reranking, counting and vector spaces on real llama.cpp servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maxwell.errors import InputTooLong, StatusError, VectorSpaceChanged
from maxwell.ledger import Used
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.local.server import LocalServer
from maxwell.local.tiny_models import write_embedding, write_reranker
from maxwell.registry.lock import Lock, in_spaces, lock_file, write_lock
from maxwell.testing.fixtures import WriteRegistry

pytestmark = pytest.mark.real

Start = Callable[..., LocalServer]
DOCUMENTS = ["the cat", "way down", "no", "it is what it is", "way down"]


def reranker(server: LocalServer, **fields: Any) -> dict[str, Any]:
    entry = {"name": "r", "api_base": server.url, "model": "tiny-rerank.gguf", "max_context": 128}
    return entry | {"daily_budget_tokens": 100_000} | fields


def embedding(server: LocalServer, name: str) -> dict[str, Any]:
    entry = {"name": name, "api_base": server.url, "model": "tiny.gguf", "dimension": 64, "max_context": 128}
    return entry | {"backend": "llamacpp", "tags": ["default"]}


@pytest.fixture
def ranking(start_llama: Start, tmp_path: Path) -> LocalServer:
    write_reranker(tmp_path / "rank.gguf")
    return start_llama(tmp_path / "rank.gguf", embedding=True)


def test_a_real_server_ranks(ranking: LocalServer, write_registry: WriteRegistry) -> None:
    path = write_registry(reranker(ranking))
    with LLMPool.from_registry(path) as pool:
        ranked = pool.get_reranker().rerank("a cat", DOCUMENTS)
        assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
        assert sorted(one.index for one in ranked) == [0, 1, 2, 3, 4]
        equal = [one for one in ranked if one.document == "way down"]
        assert [one.index for one in equal] == [1, 4]
        assert equal[0].score == pytest.approx(equal[1].score)
        assert pool.get_reranker("r").rerank("a cat", DOCUMENTS, top_n=2) == ranked[:2]
        used = pool.usage()["r"]
        assert used.estimated_tokens == 0
        assert used.tokens > 2 * 5 * 3
        with pytest.raises(InputTooLong, match="the longest is document 1"):
            pool.get_reranker().rerank("a cat", ["no", "way down " * 200])

    async def main() -> Any:
        async with AsyncLLMPool.from_registry(path) as pool:
            return await (await pool.get_reranker()).rerank("a cat", DOCUMENTS)

    assert asyncio.run(main()) == ranked


def test_a_server_without_ranking_says_so(
    llama_embed_server: LocalServer, write_registry: WriteRegistry
) -> None:
    path = write_registry(reranker(llama_embed_server))
    with LLMPool.from_registry(path) as pool:
        with pytest.raises(StatusError, match="does not support reranking") as caught:
            pool.get_reranker().rerank("a cat", DOCUMENTS)
        assert caught.value.kind == "unsupported"
        assert pool.usage()["r"] == Used()


def test_a_real_server_counts_what_it_reads(llama_server: LocalServer, write_registry: WriteRegistry) -> None:
    capabilities = {"max_tokens": 16, "max_context": 2048, "speed_tokens_per_sec": 100}
    entry = {"name": "a", "api_base": llama_server.url, "model": "tiny.gguf", "backend": "llamacpp"}
    path = write_registry(entry | {"capabilities": capabilities, "default_temperature": 0.5})
    prompt = "Where is the model that could answer this question? " * 5
    with LLMPool.from_registry(path) as pool:
        (found,) = pool.count_tokens(prompt)
        done = pool.get_lm("a").chat([{"role": "user", "content": prompt}], max_tokens=4)
    assert (found.exact, found.tokens) == (True, done.usage.prompt_tokens)


def test_one_space_on_two_real_servers_and_a_swapped_model(
    start_llama: Start, tmp_path: Path, write_registry: WriteRegistry
) -> None:
    write_embedding(tmp_path / "one.gguf")
    write_embedding(tmp_path / "swapped.gguf", seed=99)
    first, second = (start_llama(tmp_path / "one.gguf", embedding=True) for _ in range(2))
    path = write_registry(embedding(first, "a"), embedding(second, "b"))
    with LLMPool.from_registry(path) as pool:
        found = [one.found for one in pool.embed_canaries() if one.found is not None]
    lock = Lock(embeddings=in_spaces(found))
    assert [one.space for one in lock.embeddings] == ["a", "a"]
    write_lock(lock_file(path), lock)
    with LLMPool.from_registry(path) as pool:
        handle = pool.get_embedding()
        before = handle.embed_many(["the cat"])
        first.stop()
        after = handle.embed_many(["the cat"])
        assert (before.llms, after.llms) == (("a",), ("b",))
        assert after[0] == pytest.approx(before[0], abs=1e-5)
    other = start_llama(tmp_path / "swapped.gguf", embedding=True)
    document = json.loads(path.read_text())
    document["embeddings"] = [embedding(other, "a")]
    path.write_text(json.dumps(document))
    write_lock(lock_file(path), Lock(embeddings=tuple(at(one, other.url) for one in lock.embeddings)))
    with (
        LLMPool.from_registry(path) as pool,
        pytest.raises(VectorSpaceChanged, match="a: makes other vectors"),
    ):
        pool.get_embedding().embed("the cat")


def at(one: Any, url: str) -> Any:
    """The record as if its server had always been there."""
    import msgspec

    return msgspec.structs.replace(one, api_base=url)
