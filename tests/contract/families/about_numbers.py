"""Tokens are counted; vectors and ranks come in the order of the texts. One test is one topic."""

from __future__ import annotations

import pytest
from families.asking import HELLO, state_of
from families.meeting import NAME, Meeting

from maxwell.errors import DimensionMismatch, InputTooLong


def test_counting(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        found = pool.count_tokens(HELLO)[0]
        done = pool.get_lm().chat(HELLO, max_tokens=3)
    assert found.exact == meeting.expected.get("exact", True)
    if found.exact:
        assert found.tokens == done.usage.prompt_tokens == meeting.expected.get("tokens", found.tokens)


def test_a_vector(meeting: Meeting) -> None:
    with meeting.pool("embedding") as pool:
        status = state_of(pool)
        assert status.health.family == meeting.expected["family"]
        assert status.context == meeting.expected["context"]
        vector = pool.get_embedding(NAME).embed("hello")
        used = pool.usage()[NAME]
    assert len(vector) == 64
    assert vector[:3] == pytest.approx(meeting.expected.get("vector", vector[:3]), abs=1e-6)
    assert used.tokens == meeting.expected.get("tokens", used.tokens) > 0


def test_vectors_in_order(meeting: Meeting) -> None:
    texts = meeting.expected.get("texts", ["hello world", "the cat"])
    with meeting.pool("embedding") as pool:
        vectors = pool.get_embedding(NAME).embed_many(texts)
    assert [len(vector) for vector in vectors] == [64, 64]
    assert vectors[0] != vectors[1]
    for vector, begins in zip(vectors, meeting.expected.get("vectors", vectors), strict=True):
        assert vector[: len(begins)] == pytest.approx(begins, abs=1e-6)


def test_a_text_that_is_too_long(meeting: Meeting) -> None:
    """Whether the server says so, cuts it without a word or dies of it."""
    with meeting.pool("embedding") as pool:
        state_of(pool)
        with pytest.raises(InputTooLong, match="text 1 "):
            pool.get_embedding(NAME).embed_many(["ok", "the cat " * 200])
    asked = meeting.count("/embeddings")
    assert asked is None or asked == int(meeting.expected["says so"])


def test_vectors_of_another_size(meeting: Meeting) -> None:
    with meeting.pool("embedding", dimension=65) as pool, pytest.raises(DimensionMismatch, match="64"):
        pool.get_embedding(NAME).embed("hello")


def test_ranking(meeting: Meeting) -> None:
    documents = ["the cat", "way down", "no"]
    with meeting.pool("reranker") as pool:
        reranker = pool.get_reranker(NAME)
        ranked = reranker.rerank("a cat", documents)
        best = reranker.rerank("a cat", documents, top_n=1)
    assert sorted(one.index for one in ranked) == [0, 1, 2]
    assert [documents[one.index] for one in ranked] == [one.document for one in ranked]
    scores = [one.score for one in ranked]
    assert scores == sorted(scores, reverse=True)
    assert [one.index for one in ranked] == meeting.expected.get("order", [one.index for one in ranked])
    assert best == ranked[:1]
