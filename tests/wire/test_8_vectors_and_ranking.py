"""How each family embeds and ranks: what is sent, how vectors come, what is too long. Rows: docs/wire.md."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import pytest
from calling import make_registry

from maxwell.backends import Backend, get_backend
from maxwell.calls.embed_batch import BATCH_BYTES, BATCH_ITEMS, batches
from maxwell.registry.specs import EmbeddingSpec, RerankerSpec
from maxwell.types import HTTPRequest

OPENAI, LLAMACPP, VLLM = (get_backend(name) for name in ("openai", "llamacpp", "vllm"))
OLLAMA = get_backend("openai", family="ollama")
SGLANG = get_backend("vllm", family="sglang")
TEI = get_backend("openai", family="tei")
EVERY = [OPENAI, LLAMACPP, VLLM, SGLANG, OLLAMA]
RANKER = RerankerSpec(name="one", api_base="http://box", model="m", max_context=512)


def embedder() -> EmbeddingSpec:
    entry = {"name": "one", "api_base": "http://box", "model": "m", "dimension": 2, "max_context": 512}
    return make_registry(entry).embeddings[0]


def sent(request: HTTPRequest | None) -> tuple[str, dict[str, Any]]:
    assert request is not None
    return request.url.removeprefix("http://box"), msgspec.json.decode(request.body)


def vectors(*data: dict[str, Any], **fields: Any) -> bytes:
    return msgspec.json.encode({"object": "list", "data": data, **fields})


def refused(backend: Backend, status: int, message: str, **more: Any) -> str:
    return backend.refusal(
        status, {}, msgspec.json.encode({"error": {"message": message, **more}}), "one"
    ).kind


# --- input


@pytest.mark.parametrize("backend", [OPENAI, LLAMACPP, VLLM, SGLANG], ids=lambda b: b.family)
def test_texts_and_lists_of_tokens_are_sent_as_input(backend: Backend) -> None:
    path, body = sent(backend.embed(embedder(), ["a", [1, 2]], None))
    assert (path, body["input"], body["model"]) == ("/v1/embeddings", ["a", [1, 2]], "m")


def test_openai_takes_2048_texts_and_300000_tokens_a_request_so_batches_are_smaller() -> None:
    assert BATCH_ITEMS <= OPENAI.most_inputs == 2048
    assert BATCH_BYTES <= 300_000  # a token is a byte at least
    sizes = [len(batch.texts) for batch in batches(["a" * 1000] * 3000)]
    assert sum(sizes) == 3000
    assert max(sizes) <= BATCH_ITEMS


def test_llamacpp_takes_content_for_its_native_form_so_it_is_never_sent() -> None:
    assert "content" not in sent(LLAMACPP.embed(embedder(), ["a"], None))[1]


def test_ollama_takes_texts_only_and_cuts_by_itself_so_no_tokens_are_sent() -> None:
    assert OLLAMA.truncates  # so nothing is cut into tokens here
    assert OLLAMA.tokenize(embedder(), "a", None) is None


# --- vectors


def test_openai_s_base64_is_little_endian_float32() -> None:
    assert sent(OPENAI.embed(embedder(), ["a"], None))[1]["encoding_format"] == "base64"
    coded = base64.b64encode(struct.pack("<2f", 0.5, -2.0)).decode()
    assert OPENAI.decode_embeddings(vectors({"index": 0, "embedding": coded}), 1).vectors == [[0.5, -2.0]]


def test_llamacpp_names_the_encoding_of_each_vector() -> None:
    coded = base64.b64encode(struct.pack("<2f", 0.5, -2.0)).decode()
    body = vectors({"index": 0, "embedding": coded, "encoding_format": "base64", "object": "embedding"})
    assert LLAMACPP.decode_embeddings(body, 1).vectors == [[0.5, -2.0]]


def test_vllm_s_base64_is_in_its_machine_s_order_unless_told_otherwise() -> None:
    body = sent(VLLM.embed(embedder(), ["a"], None))[1]
    assert (body["encoding_format"], body["endianness"]) == ("base64", "little")
    assert "embed_dtype" not in body  # float32 unless told otherwise


@pytest.mark.parametrize("backend", EVERY, ids=lambda b: b.family)
def test_dimensions_are_ignored_refused_or_obeyed_so_none_are_asked_for(backend: Backend) -> None:
    assert "dimensions" not in sent(backend.embed(embedder(), ["a"], None))[1]


def test_vllm_refuses_dimensions_of_models_that_cannot() -> None:
    said = 'Model "m" does not support matryoshka representation, changing output dimensions will lead to'
    assert refused(VLLM, 400, said, type="BadRequestError", code=400) == "unsupported"


@pytest.mark.parametrize("backend", [OPENAI, LLAMACPP, VLLM, SGLANG], ids=lambda b: b.family)
def test_vectors_are_put_in_order_by_their_index(backend: Backend) -> None:
    body = vectors({"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]})
    assert backend.decode_embeddings(body, 2).vectors == [[1.0], [2.0]]


def test_llamacpp_s_vectors_are_as_the_server_norms_them() -> None:
    assert "embd_normalize" not in sent(LLAMACPP.embed(embedder(), ["a"], None))[1]
    body = vectors({"index": 0, "embedding": [3.0, 4.0]})
    assert LLAMACPP.decode_embeddings(body, 1).vectors == [[3.0, 4.0]]


# --- too long, or not possible


def test_openai_says_400_of_a_text_that_is_too_long() -> None:
    said = "This model's maximum context length is 8192 tokens, however you requested 9000 tokens"
    assert refused(OPENAI, 400, said, type="invalid_request_error") == "context_overflow"


def test_llamacpp_says_500_of_a_text_beyond_its_batch() -> None:
    said = "input (600 tokens) is too large to process. increase the physical batch size (current: 512)"
    assert refused(LLAMACPP, 500, said, type="server_error", code=500) == "context_overflow"


def test_llamacpp_says_400_of_a_text_beyond_its_context() -> None:
    said = "input (9000 tokens) is larger than the max context size (8192 tokens). skipping"
    assert refused(LLAMACPP, 400, said, type="exceed_context_size_error") == "context_overflow"


def test_vllm_says_400_of_a_text_that_is_too_long_or_cuts_it_when_told_to() -> None:
    said = "This model's maximum context length is 128 tokens. However, you requested 200 tokens"
    assert refused(VLLM, 400, said, type="BadRequestError") == "context_overflow"
    assert sent(VLLM.embed(embedder(), ["a"], None, truncate_to=99))[1]["truncate_prompt_tokens"] == 99
    assert "truncate_prompt_tokens" not in sent(VLLM.embed(embedder(), ["a"], None))[1]


def test_ollama_cuts_in_silence_unless_its_own_route_is_told_not_to() -> None:
    path, body = sent(OLLAMA.embed(embedder(), ["a"], None))
    assert (path, body["truncate"]) == ("/api/embed", False)
    assert sent(OLLAMA.embed(embedder(), ["a"], None, truncate_to=99))[1]["truncate"] is True
    assert refused(OLLAMA, 500, "the input length exceeds the context length") == "context_overflow"


def test_llamacpp_without_embeddings_says_501() -> None:
    said = "This server does not support embeddings. Start it with `--embeddings`"
    assert refused(LLAMACPP, 501, said, type="not_supported_error") == "unsupported"


def test_llamacpp_for_embeddings_does_not_chat() -> None:
    said = "This server does not support completions. Start it without `--embeddings`"
    assert refused(LLAMACPP, 501, said, type="not_supported_error") == "unsupported"


def test_llamacpp_with_pooling_none_says_400() -> None:
    said = "Pooling type 'none' is not OAI compatible. Please use a different pooling type"
    assert refused(LLAMACPP, 400, said, type="invalid_request_error") == "unsupported"


# --- ranking


@pytest.mark.parametrize("backend", [LLAMACPP, VLLM, OPENAI], ids=lambda b: b.family)
def test_documents_are_ranked_under_v1_by_index_and_relevance(backend: Backend) -> None:
    path, body = sent(backend.rerank(RANKER, "q", ["a", "b"], None))
    assert (path, body) == ("/v1/rerank", {"model": "m", "query": "q", "documents": ["a", "b"]})
    reply = b'{"results":[{"index":1,"relevance_score":0.9},{"index":0,"relevance_score":0.1}]}'
    assert backend.decode_rerank(reply, 2).scores == [0.1, 0.9]


def test_llamacpp_takes_texts_for_tei_s_form_so_they_go_to_tei_alone() -> None:
    assert "texts" not in sent(LLAMACPP.rerank(RANKER, "q", ["a"], None))[1]
    assert sent(TEI.rerank(RANKER, "q", ["a"], None)) == ("/rerank", {"query": "q", "texts": ["a"]})
    assert TEI.decode_rerank(b'[{"index":0,"score":0.5}]', 1).scores == [0.5]


def test_top_n_is_never_sent_for_every_document_must_have_its_score() -> None:
    for backend in (LLAMACPP, VLLM, OPENAI, TEI):
        assert "top_n" not in sent(backend.rerank(RANKER, "q", ["a"], None))[1]


def test_vllm_repeats_the_documents() -> None:
    reply = (
        b'{"results":[{"index":0,"document":{"text":"a"},"relevance_score":0.9}],"usage":{"total_tokens":7}}'
    )
    found = VLLM.decode_rerank(reply, 1)
    assert found.scores == [0.9]
    assert found.usage is not None
    assert found.usage.prompt_tokens == 7


def test_vllm_s_older_route_answers_with_data_and_scores() -> None:
    assert VLLM.decode_rerank(b'{"data":[{"index":0,"object":"score","score":0.4}]}', 1).scores == [0.4]
