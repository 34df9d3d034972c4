# ruff: noqa: E501 - recorded bodies stand as they came
"""Requests to rerankers and their replies, in every shape that servers have for them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.backends import RerankReply, get_backend
from maxwell.registry.specs import RerankerSpec
from maxwell.types import Usage

KEY = "sk-canary-4711"
SPEC = RerankerSpec(name="entry", api_base="http://box:8080", model="bge", max_context=512)
OPENAI = get_backend("openai")

# llama.cpp (xllamacpp b11549)
LLAMACPP = (
    b'{"model":"m","object":"list","usage":{"prompt_tokens":25,"total_tokens":25},'
    b'"results":[{"index":2,"relevance_score":0.7322347164154053},{"index":1,"relevance_score":'
    b'0.6058770418167114},{"index":0,"relevance_score":0.49362191557884216}]}'
)
VLLM = (
    b'{"id":"rerank-9c1","model":"bge","usage":{"prompt_tokens":56,"total_tokens":56},"results":['
    b'{"index":1,"document":{"text":"b","multi_modal":null},"relevance_score":0.99},'
    b'{"index":0,"document":{"text":"a","multi_modal":null},"relevance_score":0.01}]}'
)
COHERE = (
    b'{"id":"07734bd2","results":[{"index":1,"relevance_score":0.99},{"index":0,"relevance_score":0.1}],'
    b'"meta":{"api_version":{"version":"2"},"billed_units":{"search_units":1}}}'
)
INFINITY = (
    b'{"object":"rerank","results":[{"relevance_score":0.9,"index":0,"document":null},'
    b'{"relevance_score":0.2,"index":1,"document":null}],"model":"bge","usage":{"prompt_tokens":30,'
    b'"total_tokens":30},"id":"infinity-1","created":1795386169}'
)
SCORES = (  # vLLM's /score
    b'{"id":"score-1","object":"list","data":[{"index":0,"object":"score","score":1},'
    b'{"index":1,"object":"score","score":0.25}],"usage":{"prompt_tokens":17,"total_tokens":17}}'
)
TEI = b'[{"index":1,"score":0.998},{"index":0,"score":0.02}]'
SGLANG = b'[{"score":0.998,"document":"b","index":1,"meta_info":{"id":"1"}},{"score":0.02,"document":"a","index":0}]'


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        (
            LLAMACPP,
            RerankReply([0.49362191557884216, 0.6058770418167114, 0.7322347164154053], Usage(25), "m"),
        ),
        (VLLM, RerankReply([0.01, 0.99], Usage(56), "bge")),
        (COHERE, RerankReply([0.1, 0.99])),
        (INFINITY, RerankReply([0.9, 0.2], Usage(30), "bge")),
        (SCORES, RerankReply([1.0, 0.25], Usage(17))),
        (TEI, RerankReply([0.02, 0.998])),
        (SGLANG, RerankReply([0.02, 0.998])),
        (
            b'{"results":[{"index":1,"score":2.0},{"index":0,"relevance_score":1e-9}]}',
            RerankReply([1e-9, 2.0]),
        ),
    ],
    ids=["llama.cpp", "vLLM", "Cohere", "infinity", "vLLM's scores", "TEI", "SGLang", "mixed"],
)
def test_scores_come_in_the_order_of_the_documents(body: bytes, reply: RerankReply) -> None:
    assert OPENAI.decode_rerank(body, len(reply.scores)) == reply


def test_characters_that_are_counted_as_tokens_are_not_usage() -> None:
    for family in ("infinity", "infinity-v1"):
        assert get_backend("openai", family=family).decode_rerank(INFINITY, 2) == RerankReply(
            [0.9, 0.2], None, "bge"
        )


def results(*items: Any) -> bytes:
    return json.dumps({"results": list(items)}).encode()


FIRST, SECOND = {"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": 0.5}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (results(FIRST), "1 scores for 2 documents"),
        (results(), "0 scores for 2 documents"),
        (results(FIRST, FIRST), "unexpected document with index 0"),
        (results(FIRST, SECOND, {"index": 2, "relevance_score": 0.5}), "unexpected document with index 2"),
        (results(FIRST, {"index": -1, "relevance_score": 0.5}), "unexpected document with index -1"),
        (results(FIRST, {"index": 1}), "no score for document 1"),
        (results(FIRST, {"index": 1, "relevance_score": None}), "no score for document 1"),
        (results(FIRST, {"relevance_score": 0.5}), "not a rerank reply"),
        (results(FIRST, {"index": True, "relevance_score": 0.5}), "not a rerank reply"),
        (results(FIRST, {"index": 1, "relevance_score": "0.5"}), "not a rerank reply"),
        (b'{"results":[{"index":0,"score":1},{"index":1,"score":NaN}]}', "not a rerank reply"),
        (b'{"results":[{"index":0,"score":1},{"index":1,"score":1e999}]}', "rerank reply"),
        (b'{"results":null}', "neither results nor data"),
        (b'{"error":{"message":"x"}}', "neither results nor data"),
        (b"{}", "neither results nor data"),
        (b"[1]", "not a rerank reply"),
        (b"", "not a rerank reply"),
        (b"\xff", "not a rerank reply"),
        (b"[" * 100_000, "not a rerank reply"),
    ],
)
def test_a_reply_that_does_not_score_each_document_once_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OPENAI.decode_rerank(body, 2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8), st.randoms())
def test_the_order_of_the_reply_does_not_matter(scores: list[float], random: Any) -> None:
    items = [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]
    random.shuffle(items)
    assert OPENAI.decode_rerank(results(*items), len(scores)).scores == scores


@pytest.mark.parametrize(
    ("name", "family", "version", "url", "body"),
    [
        ("llamacpp", "", "", "http://box:8080/v1/rerank", {"documents": ["a", "b"]}),
        ("vllm", "", "", "http://box:8080/v1/rerank", {"documents": ["a", "b"]}),
        ("openai", "", "", "http://box:8080/v1/rerank", {"documents": ["a", "b"]}),
        ("vllm", "vllm", "0.10.2", "http://box:8080/v1/rerank", {"documents": ["a", "b"]}),
        ("openai", "sglang", "", "http://box:8080/v1/rerank", {"documents": ["a", "b"]}),
        ("openai", "infinity", "", "http://box:8080/rerank", {"documents": ["a", "b"]}),
        ("openai", "infinity-v1", "", "http://box:8080/v1/rerank", {"documents": ["a", "b"]}),
    ],
)
def test_where_rerankers_are_asked(
    name: str, family: str, version: str, url: str, body: dict[str, Any]
) -> None:
    request = get_backend(name, family=family, version=version).rerank(SPEC, "q", ["a", "b"], KEY)
    assert request is not None
    assert (request.method, request.url, request.headers["authorization"]) == ("POST", url, f"Bearer {KEY}")
    assert msgspec.json.decode(request.body) == {"model": "bge", "query": "q", **body}


def test_tei_has_words_of_its_own() -> None:
    request = get_backend("openai", family="tei").rerank(SPEC, "q", ["a", "b"], None)
    assert request is not None
    assert request.url == "http://box:8080/rerank"
    assert msgspec.json.decode(request.body) == {"query": "q", "texts": ["a", "b"]}


@pytest.mark.parametrize("family", ["ollama", "tgi", "llama-cpp-python"])
def test_who_cannot_rerank_says_so(family: str) -> None:
    backend = get_backend("openai", family=family)
    assert backend.rerank(SPEC, "q", ["a"], None) is None
    assert "reranks" in backend.no_rerank


def test_the_others_can() -> None:
    for family in ("llamacpp", "vllm", "openai", "sglang", "infinity", "tei", ""):
        assert get_backend("openai", family=family).no_rerank == ""
