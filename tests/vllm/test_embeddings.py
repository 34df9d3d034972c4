"""Embeddings and reranking on a real vLLM, which demands a key."""

from __future__ import annotations

import asyncio
import base64
import struct
from pathlib import Path
from typing import Any

import pytest
import urllib3
from calling import Calls
from msgspec import json
from real_vllm import KEY, RealVLLM, embed_entry, exchange

from maxwell.backends import get_backend
from maxwell.errors import DimensionMismatch, InputTooLong
from maxwell.lm_pool import LLMPool
from maxwell.testing.fixtures import WriteRegistry

TEXTS = ["the cat", "a long day", "down the road", "?", "the cat the dog"]


@pytest.fixture
def calls(embed_server: RealVLLM, tmp_path: Path) -> Calls:
    return embeddings(embed_server, tmp_path)


def embeddings(server: RealVLLM, home: Path, **fields: Any) -> Calls:
    return Calls(home, embed_entry(server, **fields), environ={"TINY_API_KEY": KEY})


def told(server: RealVLLM, path: str, body: Any) -> Any:
    with urllib3.PoolManager(retries=False, headers={"Authorization": f"Bearer {KEY}"}) as pool:
        answer = pool.request("POST", server.url + path, json={"model": "tiny-embed", **body})
    assert answer.status == 200, answer.data
    return json.decode(answer.data)


def test_vectors_are_the_servers_own(embed_server: RealVLLM, calls: Calls) -> None:
    plain = told(embed_server, "/v1/embeddings", {"input": TEXTS})
    with calls.pool() as pool:
        vectors = pool.get_embedding("e").embed_many(TEXTS)
    assert [len(vector) for vector in vectors] == [64] * len(TEXTS)
    for vector, item in zip(vectors, plain["data"], strict=True):
        assert vector == pytest.approx(item["embedding"], abs=1e-6)
    assert calls.used("e").tokens == plain["usage"]["total_tokens"]


def test_base64_is_asked_for_and_read_in_the_right_byte_order(calls: Calls) -> None:
    vllm, spec = get_backend("vllm"), calls.registry.embeddings[0]
    answer = exchange(vllm.embed(spec, ["the cat"], KEY))
    raw = json.decode(answer.data)["data"][0]["embedding"]
    assert isinstance(raw, str)
    numbers = struct.unpack("<64f", base64.b64decode(raw))
    assert sum(number * number for number in numbers) == pytest.approx(1, abs=1e-3)
    assert vllm.decode_embeddings(answer.data, 1).vectors == [pytest.approx(list(numbers))]


def test_many_texts_keep_their_order(calls: Calls) -> None:
    words = ["the", "cat", "long", "down", "day", "see"]
    texts = [" ".join(words[(i + k) % 6] for k in range(1 + i % 5)) for i in range(200)]

    async def main() -> list[list[float]]:
        async with calls.async_pool() as pool:
            return await (await pool.get_embedding("e")).embed_many(texts)

    many = asyncio.run(main())
    with calls.pool() as pool:
        for index in (0, 1, 63, 64, 199):
            assert many[index] == pytest.approx(pool.get_embedding("e").embed(texts[index]), abs=1e-4)


@pytest.mark.parametrize("limit", [16, 128])
def test_a_long_text_is_cut_to_what_is_declared(embed_server: RealVLLM, tmp_path: Path, limit: int) -> None:
    text = "the cat sees the dog down the long road " * 40
    whole = told(embed_server, "/tokenize", {"prompt": text})["tokens"]
    # Two of the tokens stand around the text.
    cut = told(embed_server, "/v1/embeddings", {"input": [*whole[: limit - 1], whole[-1]]})
    calls = embeddings(embed_server, tmp_path, max_context=limit)
    with calls.pool() as pool:
        vectors = pool.get_embedding("e").embed_many([text, "down"], truncate=True)
        alone = pool.get_embedding("e").embed("down")
    assert vectors[0] == pytest.approx(cut["data"][0]["embedding"], abs=1e-4)
    assert vectors[1] == pytest.approx(alone, abs=1e-4)


def test_a_text_that_is_too_long_is_named(calls: Calls) -> None:
    with (
        calls.pool() as pool,
        pytest.raises(InputTooLong, match=r"e: text 2 \(\d{3,} tokens\).*limit 128 tokens"),
    ):
        pool.get_embedding("e").embed_many(["the", "cat", "the cat " * 200, "down"])


def test_another_dimension_than_declared_is_told(embed_server: RealVLLM, tmp_path: Path) -> None:
    calls = embeddings(embed_server, tmp_path, dimension=32)
    with calls.pool() as pool, pytest.raises(DimensionMismatch, match="64"):
        pool.get_embedding("e").embed("the cat")


def test_texts_are_reranked(embed_server: RealVLLM, calls: Calls, write_registry: WriteRegistry) -> None:
    """An embedding model reranks, by the angle between vectors."""
    reranker = embed_entry(embed_server, name="r")
    del reranker["dimension"]
    path = write_registry(reranker)
    with LLMPool.from_registry(path, environ={"TINY_API_KEY": KEY}) as pool:
        ranked = pool.get_reranker("r").rerank("the cat", TEXTS)
        with pytest.raises(InputTooLong):
            pool.get_reranker("r").rerank("the cat", ["the", "the cat " * 200])
    with calls.pool() as vectors:
        asked, *found = vectors.get_embedding("e").embed_many(["the cat", *TEXTS])
    angles = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in found]
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert (ranked[0].index, len(ranked)) == (0, len(TEXTS))
    for one in ranked:
        assert one.document == TEXTS[one.index]
        assert one.score == pytest.approx(angles[one.index], abs=1e-4)
