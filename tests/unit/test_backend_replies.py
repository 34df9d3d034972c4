# ruff: noqa: E501 - recorded bodies stand as they came

from __future__ import annotations

import base64
import contextlib
import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.backends import DONE, Chunk, Delta, ModelsReply, Props, decode_chunk, get_backend, usage_of
from maxwell.calls.sse import SSEParser
from maxwell.types import HealthState, ServedModel, Usage

BACKENDS = [get_backend(name) for name in ("llamacpp", "vllm", "openai")]
LLAMACPP, VLLM, OPENAI = BACKENDS
JSON = {"content-type": "application/json"}
LOADING = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'

# What hypothesis makes of JSON: near the protocol, so that every field meets every type.
FIELDS = [
    "id", "object", "model", "choices", "usage", "timings", "error", "delta", "message", "content",
    "index", "finish_reason", "tool_calls", "function", "arguments", "data", "embedding",
    "owned_by", "meta", "n_ctx", "aliases", "status", "value", "detail", "type", "code", "param",
    "loc", "msg", "default_generation_settings", "modalities", "vision", "total_slots",
    "prompt_tokens", "completion_tokens", "tokens",
]  # fmt: skip
NAMES = st.sampled_from(FIELDS)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "error", "AAAA", "x", "Loading model", "model not found", "rate_limit_exceeded"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
BODIES = st.binary(max_size=40) | VALUES.map(lambda v: json.dumps(v).encode())
STATUSES = st.integers(100, 599) | st.sampled_from([200, 400, 401, 404, 429, 500, 501, 503])
HEADERS = st.dictionaries(
    st.sampled_from(["server", "content-type", "retry-after", "retry-after-ms", "date", "location"]),
    st.text(max_size=20) | st.sampled_from(["text/html", "llama.cpp", "5", "Sun, 22 Nov 2026 22:13:01 GMT"]),
)

# --- streams, as recorded

LLAMACPP_STREAM = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],'
    b'"created":1795386098,"id":"chatcmpl-Fsm","model":"models/tiny-chat.gguf",'
    b'"system_fingerprint":"b0-unknown","object":"chat.completion.chunk"}\n\n'
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" qu"}}],'
    b'"created":1795386098,"id":"chatcmpl-Fsm","model":"models/tiny-chat.gguf",'
    b'"system_fingerprint":"b0-unknown","object":"chat.completion.chunk"}\n\n'
    b'data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}],"created":1795386098,'
    b'"id":"chatcmpl-Fsm","model":"models/tiny-chat.gguf","system_fingerprint":"b0-unknown",'
    b'"object":"chat.completion.chunk"}\n\n'
    b'data: {"choices":[],"created":1795386098,"id":"chatcmpl-Fsm","model":"models/tiny-chat.gguf",'
    b'"system_fingerprint":"b0-unknown","object":"chat.completion.chunk","usage":{"completion_tokens":3,'
    b'"prompt_tokens":18,"total_tokens":21,"prompt_tokens_details":{"cached_tokens":17}},"timings":{"cache_n":17,'
    b'"prompt_n":1,"prompt_ms":0.127,"prompt_per_token_ms":0.127,"prompt_per_second":7874.015748031496,'
    b'"predicted_n":3,"predicted_ms":0.366,"predicted_per_token_ms":0.183,'
    b'"predicted_per_second":5464.48087431694}}\n\n'
    b"data: [DONE]\n\n"
)
VLLM_STREAM = (
    b'data: {"id":"chatcmpl-9b3","object":"chat.completion.chunk","created":1795385582,"model":"tiny-vllm",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
    b'"prompt_token_ids":null,"prompt_text":null}\n\n'
    b'data: {"id":"chatcmpl-9b3","object":"chat.completion.chunk","created":1795385582,"model":"tiny-vllm",'
    b'"choices":[{"index":0,"delta":{"content":" on"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
    b'data: {"id":"chatcmpl-9b3","object":"chat.completion.chunk","created":1795385582,"model":"tiny-vllm",'
    b'"choices":[{"index":0,"delta":{"content":"me"},"logprobs":null,"finish_reason":"length","stop_reason":null,'
    b'"token_ids":null}]}\n\n'
    b'data: {"id":"chatcmpl-9b3","object":"chat.completion.chunk","created":1795385582,"model":"tiny-vllm",'
    b'"choices":[],"usage":{"prompt_tokens":19,"total_tokens":21,"completion_tokens":2},'
    b'"system_fingerprint":"vllm-0.32.0-c5fa6d6e"}\n\n'
    b"data: [DONE]\n\n"
)
TRANSFORMERS_STREAM = (
    b'data: {"id":"57fb","choices":[{"delta":{"role":"assistant"},"index":0}],"created":1795386001,'
    b'"model":"models/hf-tiny-chat@main","object":"chat.completion.chunk","system_fingerprint":""}\n\n'
    b'data: {"id":"57fb","choices":[{"delta":{"content":" on"},"index":0}],"created":1795386001,'
    b'"model":"models/hf-tiny-chat@main","object":"chat.completion.chunk","system_fingerprint":""}\n\n'
    b'data: {"id":"57fb","choices":[{"delta":{},"index":0,"finish_reason":"length"}],"created":1795386001,'
    b'"model":"models/hf-tiny-chat@main","object":"chat.completion.chunk","system_fingerprint":"",'
    b'"usage":{"completion_tokens":3,"prompt_tokens":19,"total_tokens":22}}\n\n'
)
LLAMA_CPP_PYTHON_STREAM = (
    b'data: {"id": "chatcmpl-fb3", "model": "models/tiny-chat.gguf", "created": 1795386044, "object": '
    b'"chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant"}, "logprobs": null, '
    b'"finish_reason": null}]}\r\n\r\n'
    b'data: {"id": "chatcmpl-fb3", "model": "models/tiny-chat.gguf", "created": 1795386044, "object": '
    b'"chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "peop"}, "logprobs": null, '
    b'"finish_reason": null}]}\r\n\r\n'
    b'data: {"id": "chatcmpl-fb3", "model": "models/tiny-chat.gguf", "created": 1795386044, "object": '
    b'"chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "logprobs": null, "finish_reason": '
    b'"length"}]}\r\n\r\n'
    b"data: [DONE]\r\n\r\n"
)


def read(stream: bytes) -> tuple[str, str | None, Usage | None]:
    """Text, finish reason and usage of a recorded stream."""
    text, finish, usage = "", None, None
    for data in SSEParser().feed(stream):
        if data == DONE:
            continue
        chunk = decode_chunk(data)
        assert chunk.error is None
        usage = usage_of(chunk.usage, chunk.timings) or usage
        for choice in chunk.choices or ():
            assert choice.delta is not None
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish, usage


@pytest.mark.parametrize(
    ("stream", "text", "usage"),
    [
        (LLAMACPP_STREAM, " qu", Usage(18, 3, cached_tokens=17)),
        (VLLM_STREAM, " onme", Usage(19, 2)),
        (TRANSFORMERS_STREAM, " on", Usage(19, 3)),
        (LLAMA_CPP_PYTHON_STREAM, "peop", None),
    ],
    ids=["llama.cpp", "vLLM", "transformers", "llama-cpp-python"],
)
def test_reads_recorded_streams(stream: bytes, text: str, usage: Usage | None) -> None:
    assert read(stream) == (text, "length", usage)


def test_reads_recorded_tool_call_pieces() -> None:
    first = decode_chunk(
        b'{"choices":[{"finish_reason":null,"index":0,"delta":{"tool_calls":[{"index":0,"id":"PCA","type":'
        b'"function","function":{"name":"get_weather","arguments":"{"}}]}}],"object":"chat.completion.chunk"}'
    )
    later = decode_chunk(  # vLLM
        b'{"id":"c","choices":[{"index":0,"delta":{"content":null,"tool_calls":[{"index":1,"function":'
        b'{"arguments":"e"}}]},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
    )
    pieces = []
    for chunk in (first, later):
        assert chunk.choices
        delta = chunk.choices[0].delta
        assert delta is not None
        assert delta.tool_calls is not None
        call = delta.tool_calls[0]
        assert call.function is not None
        pieces.append((call.index, call.id, call.function.name, call.function.arguments))
    assert pieces == [(0, "PCA", "get_weather", "{"), (1, None, None, "e")]


def test_reads_a_whole_reply_as_well() -> None:
    chunk = decode_chunk(
        b'{"choices":[{"finish_reason":"tool_calls","index":0,"message":{"role":"assistant","content":"",'
        b'"tool_calls":[{"type":"function","function":{"name":"a","arguments":"{}"},"id":"7XJ"},{"type":"function",'
        b'"function":{"name":"b","arguments":"{}"},"id":"8XJ"}]}}],"created":1795385496,"model":"m",'
        b'"object":"chat.completion","usage":{"completion_tokens":59,"prompt_tokens":311,"total_tokens":370,'
        b'"prompt_tokens_details":{"cached_tokens":0}},"id":"chatcmpl-Srv"}'
    )
    assert chunk.choices
    message = chunk.choices[0].message
    assert message is not None
    assert message.tool_calls is not None
    assert [(c.index, c.id) for c in message.tool_calls] == [(0, "7XJ"), (1, "8XJ")]
    assert usage_of(chunk.usage, chunk.timings) == Usage(311, 59, cached_tokens=0)


@pytest.mark.parametrize(
    ("part", "delta"),
    [
        ({"content": None}, Delta()),
        ({"reasoning_content": "hm", "content": None}, Delta(reasoning_content="hm")),  # llama.cpp, SGLang
        ({"reasoning": "hm"}, Delta(reasoning="hm")),  # vLLM, Ollama
        ({"refusal": "no", "content": None, "tool_calls": None}, Delta(refusal="no")),
        (
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "a"}, {"type": "x"}, {"text": "b"}, 1],
            },
            Delta(role="assistant", content="ab"),
        ),
    ],
)
def test_reads_odd_deltas(part: dict[str, Any], delta: Delta) -> None:
    chunk = decode_chunk(msgspec.json.encode({"choices": [{"delta": part}]}))
    assert chunk.choices
    assert chunk.choices[0].delta == delta


def test_arguments_given_as_an_object_become_text() -> None:
    part = {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    chunk = decode_chunk(msgspec.json.encode({"choices": [{"message": part}]}))
    assert chunk.choices
    message = chunk.choices[0].message
    assert message is not None
    assert message.tool_calls is not None
    assert message.tool_calls[0].function is not None
    assert message.tool_calls[0].function.arguments == '{"a":1}'


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"choices":null,"usage":null,"timings":null,"error":null,"id":null,"model":null}',
        b'{"choices":[]}',
        b'{"id":7,"model":{},"usage":"n/a","timings":[]}',
    ],
)
def test_an_empty_chunk_is_no_error(body: bytes) -> None:
    assert decode_chunk(body) in (Chunk(), Chunk(choices=[]))


def test_counts_written_as_decimals_are_counts() -> None:
    chunk = decode_chunk(
        b'{"choices":[],"usage":{"prompt_tokens":12.0,"completion_tokens":3.0,"cost":"x",'
        b'"prompt_tokens_details":{"cached_tokens":4.0,"audio_tokens":null}}}'
    )
    assert usage_of(chunk.usage, None) == Usage(12, 3, cached_tokens=4)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error":{"message":"boom","code":500}}', {"message": "boom", "code": 500}),
        (b'{"error":"boom"}', "boom"),
        (
            b'{"object":"error","message":"boom","code":400}',
            {"object": "error", "message": "boom", "code": 400},
        ),
    ],
)
def test_error_frames_are_seen(body: bytes, error: Any) -> None:
    assert decode_chunk(body).error == error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[DONE]",
        b"[]",
        b"null",
        b'"x"',
        b'{"choices":5}',
        b'{"choices":[{"delta":7}]}',
        b'{"a":',
        b"\xff",
    ],
)
def test_what_is_no_chunk_raises_msgspec_errors(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_chunk(body)


def test_bad_utf8_and_endless_nesting_raise_msgspec_errors() -> None:
    for body in (b'{"model":"\xff"}', b'{"error":' + b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(msgspec.DecodeError):
            decode_chunk(body)


@settings(deadline=None, max_examples=300)
@given(BODIES)
def test_decode_chunk_raises_nothing_else(body: bytes) -> None:
    try:
        chunk = decode_chunk(body)
    except msgspec.DecodeError:
        return
    usage = usage_of(chunk.usage, chunk.timings)
    assert usage is None or usage.total_tokens > 0


# --- usage


@pytest.mark.parametrize(
    ("usage", "timings", "told"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, None, Usage(5, 2)),
        ({"prompt_tokens": 5, "completion_tokens": 0}, None, Usage(5, 0)),
        ({"prompt_tokens": 5, "total_tokens": 9}, None, Usage(5, 4)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}, None, Usage(5, 2)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 7},
            },
            None,
            Usage(5, 9, cached_tokens=0, reasoning_tokens=7),
        ),
        (None, {"prompt_n": 1, "cache_n": 17, "predicted_n": 3}, Usage(18, 3, cached_tokens=17)),
        (None, {"prompt_n": 4, "predicted_n": 3}, Usage(4, 3)),
        ({}, {"prompt_n": 4, "predicted_n": 3}, Usage(4, 3)),
        (None, None, None),
        ({}, None, None),
        ({"prompt_tokens": 5}, None, None),  # half a report is none: the rest would count as free
        ({"completion_tokens": 5}, None, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None, None),
        ({"prompt_tokens": -1, "completion_tokens": 5}, None, None),
        (None, {"predicted_n": 3}, None),
    ],
)
def test_usage_is_what_was_told_and_never_a_silent_zero(usage: Any, timings: Any, told: Usage | None) -> None:
    chunk = decode_chunk(msgspec.json.encode({"usage": usage, "timings": timings}))
    assert usage_of(chunk.usage, chunk.timings) == told


# --- embeddings


def b64(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def embeddings(*items: Any, **more: Any) -> bytes:
    return json.dumps({"object": "list", "data": list(items), **more}).encode()


def test_reads_vectors_in_the_order_of_their_index() -> None:
    reply = OPENAI.decode_embeddings(
        embeddings(
            {"object": "embedding", "embedding": [0.5, 1], "index": 1},
            {"object": "embedding", "embedding": b64(0.25, -2.0), "index": 0, "encoding_format": "base64"},
            model="nope",
            usage={"prompt_tokens": 17, "total_tokens": 17},
        ),
        2,
    )
    assert reply.vectors == [[0.25, -2.0], [0.5, 1.0]]
    assert (reply.usage, reply.model) == (Usage(17, 0), "nope")


def test_reads_the_recorded_base64() -> None:
    reply = LLAMACPP.decode_embeddings(
        b'{"model":"models/tiny-embed.gguf","object":"list","usage":{"prompt_tokens":6,"total_tokens":6},'
        b'"data":[{"embedding":"yQaNvXdfR717f+K9+Bddu2GdHz5Xmyu9","index":0,"object":"embedding",'
        b'"encoding_format":"base64"}]}',
        1,
    )
    # The same server's first values as plain numbers.
    assert reply.vectors[0] == pytest.approx(
        [-0.06886060, -0.04867503, -0.11059471, -0.00337362, 0.15587379, -0.04189619], abs=1e-8
    )
    assert reply.usage == Usage(6, 0)


def test_unreported_embedding_usage_is_none() -> None:
    item = {"embedding": [1.0], "index": 0}
    for usage in (None, {}, {"prompt_tokens": 0, "total_tokens": 0}):
        assert OPENAI.decode_embeddings(embeddings(item, usage=usage), 1).usage is None
    assert OPENAI.decode_embeddings(embeddings(item, usage={"total_tokens": 3}), 1).usage == Usage(3, 0)


def test_an_absent_index_is_zero() -> None:
    reply = OPENAI.decode_embeddings(embeddings({"embedding": [1.0]}, {"embedding": [2.0], "index": 1}), 2)
    assert reply.vectors == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (embeddings(), 1),
        (embeddings({"embedding": [1.0], "index": 0}), 2),
        (embeddings({"embedding": [1.0], "index": 0}, {"embedding": [1.0], "index": 1}), 1),
        (embeddings({"embedding": [1.0], "index": 0}, {"embedding": [1.0], "index": 0}), 2),
        (embeddings({"embedding": [1.0], "index": 1}), 1),
        (embeddings({"embedding": [1.0], "index": -1}), 1),
        (embeddings({"embedding": [], "index": 0}), 1),
        (embeddings({"embedding": "", "index": 0}), 1),
        (embeddings({"embedding": "AAAA", "index": 0}), 1),  # three bytes
        (embeddings({"embedding": "no base64!", "index": 0}), 1),
        (embeddings({"embedding": [None, 1.0], "index": 0}), 1),  # llama.cpp writes NaN as null
        (embeddings({"embedding": b64(float("nan"), 1.0), "index": 0}), 1),
        (embeddings({"embedding": b64(float("inf"), float("-inf")), "index": 0}), 1),
        (embeddings({"embedding": [[1.0]], "index": 0}), 1),
        (b'[{"index":0,"embedding":[[1.0]]}]', 1),  # llama.cpp's legacy route
        (b'{"error":"x"}', 1),
        (b"", 1),
        (b"\xff", 1),
        (b'{"data":' + b"[" * 100_000, 1),
    ],
)
def test_refuses_embeddings_that_are_not_exactly_those_asked_for(body: bytes, count: int) -> None:
    with pytest.raises(ValueError, match=r"embeddings reply|multiple"):
        OPENAI.decode_embeddings(body, count)


@settings(deadline=None, max_examples=200)
@given(BODIES, st.integers(0, 3))
def test_decode_embeddings_raises_nothing_else(body: bytes, count: int) -> None:
    try:
        reply = OPENAI.decode_embeddings(body, count)
    except ValueError:
        return
    assert len(reply.vectors) == count


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), max_size=4))
def test_base64_vectors_come_back_exactly(vectors: list[list[float]]) -> None:
    items = [{"embedding": b64(*v), "index": i} for i, v in enumerate(vectors)]
    assert VLLM.decode_embeddings(embeddings(*reversed(items)), len(vectors)).vectors == vectors


# --- tokens


def test_reads_recorded_token_replies() -> None:
    assert LLAMACPP.decode_tokens(b'{"tokens":[72,101,108,517,32,257]}') == [72, 101, 108, 517, 32, 257]
    assert VLLM.decode_tokens(b'{"count":2,"max_model_len":2048,"tokens":[42,336],"token_strs":null}') == [
        42,
        336,
    ]
    assert LLAMACPP.decode_text(b'{"content":"\'DK"}') == "'DK"
    assert VLLM.decode_text(b'{"prompt":"Fd"}') == "Fd"
    assert LLAMACPP.decode_count(b'{"input_tokens":18,"object":"response.input_tokens"}') == 18
    assert VLLM.decode_count(b'{"count":19,"max_model_len":2048,"tokens":[1,87],"token_strs":null}') == 19


@settings(deadline=None, max_examples=100)
@given(BODIES)
def test_token_replies_raise_value_errors_only(body: bytes) -> None:
    for decode in (LLAMACPP.decode_tokens, LLAMACPP.decode_text, LLAMACPP.decode_count):
        with contextlib.suppress(ValueError):
            assert decode(body) is not None


@pytest.mark.parametrize("body", [b"{}", b"", b'{"tokens":["a"]}', b'{"count":-1}', b"[1]"])
def test_what_is_no_token_reply_is_refused(body: bytes) -> None:
    for decode in (VLLM.decode_tokens, VLLM.decode_text, VLLM.decode_count):
        with pytest.raises(ValueError, match="reply"):
            decode(body)


# --- health


@pytest.mark.parametrize(
    ("status", "headers", "body", "state"),
    [
        (200, {"server": "llama.cpp"}, b'{"status":"ok"}', "up"),
        (200, {"server": "uvicorn"}, b"", "up"),  # vLLM
        (200, JSON, b'{"unix":1795386169.4277701}', "up"),  # infinity
        (503, {"server": "llama.cpp"}, LOADING, "loading"),
        (503, {}, b'{"error":"The model is currently scaling. Please try again later."}', "loading"),
        (503, {}, b"", "down"),  # vLLM after its engine died
        (503, {}, b'{"error":"unhealthy","error_type":"healthcheck"}', "down"),  # TGI
        (503, {}, b'{"error":"error loading model"}', "down"),
        (500, {}, b"Internal Server Error", "down"),
        (502, {}, b"<html><title>502 Bad Gateway</title></html>", "down"),
        (504, {}, b"", "down"),
        (429, {}, b"", "rate_limited"),
        (404, JSON, b'{"detail":"Not Found"}', None),  # llama-cpp-python
        (405, JSON, b'{"detail":"Method Not Allowed"}', None),
        (401, JSON, b'{"error":"Unauthorized"}', None),
        (403, {}, b"", None),
        (501, {}, b"", None),
        (302, {"location": "/login"}, b"", None),
        (200, {"content-type": "text/html; charset=utf-8"}, b"<!doctype html>", None),  # a web page
        (200, {}, b"  <html>", None),
    ],
)
def test_health_replies(status: int, headers: dict[str, str], body: bytes, state: HealthState | None) -> None:
    for backend in BACKENDS:
        assert backend.read_health(status, headers, body) == state


LLAMACPP_MODELS = (
    b'{"models":[{"name":"models/tiny-chat.gguf","model":"models/tiny-chat.gguf","modified_at":"","size":"",'
    b'"digest":"","type":"model","description":"","tags":[""],"capabilities":["completion"],"parameters":"",'
    b'"details":{"parent_model":"","format":"gguf","family":"","families":[""],"parameter_size":"",'
    b'"quantization_level":""}}],"object":"list","data":[{"id":"models/tiny-chat.gguf",'
    b'"aliases":["models/tiny-chat.gguf"],"tags":[],"object":"model","architecture":{"input_modalities":["text"],'
    b'"output_modalities":["text"]},"created":1795386098,"owned_by":"llamacpp","meta":{"vocab_type":2,'
    b'"n_vocab":803,"n_ctx":4096,"n_ctx_train":8192,"n_embd":64,"n_params":176832,"size":707328,'
    b'"ftype":"all F32"}}]}'
)
ROUTER_MODELS = (
    b'{"data":[{"id":"tiny-chat","aliases":[],"tags":[],"object":"model","owned_by":"llamacpp",'
    b'"created":1795385490,"status":{"value":"unloaded","args":["llama-server"],"preset":"[tiny-chat]\\n"},'
    b'"architecture":{"input_modalities":["text"],"output_modalities":["text"]}},{"id":"tiny-embed",'
    b'"aliases":["emb"],"object":"model","owned_by":"llamacpp","status":{"value":"loaded"},'
    b'"meta":{"n_ctx":128,"n_embd":64},"source":"models_dir","can_remove":false}],"object":"list"}'
)
VLLM_MODELS = (
    b'{"object":"list","data":[{"id":"tiny-vllm","object":"model","created":1795385582,"owned_by":"vllm",'
    b'"root":"models/hf-tiny-chat","parent":null,"max_model_len":2048,"permission":[{"id":"modelperm-8d4",'
    b'"object":"model_permission","is_blocking":false}]},{"id":"lora","object":"model","owned_by":"vllm",'
    b'"parent":"tiny-vllm","max_model_len":null}]}'
)
TINY = "models/tiny-chat.gguf"


@pytest.mark.parametrize(
    ("body", "models", "family"),
    [
        (LLAMACPP_MODELS, (ServedModel(TINY, (TINY,), context=4096, dimension=64),), "llamacpp"),
        (
            ROUTER_MODELS,
            (
                ServedModel("tiny-chat", loaded=False),
                ServedModel("tiny-embed", ("emb",), context=128, dimension=64),
            ),
            "llamacpp",
        ),
        (VLLM_MODELS, (ServedModel("tiny-vllm", context=2048), ServedModel("lora")), "vllm"),
        (
            b'{"object":"list","data":[{"id":"models/tiny-chat.gguf","object":"model","owned_by":"me",'
            b'"permissions":[]}]}',
            (ServedModel(TINY),),
            "llama-cpp-python",
        ),
        (
            b'{"data":[{"id":"models/hf-tiny-embed4","stats":{"queue_fraction":0.0},"object":"model",'
            b'"owned_by":"infinity","created":1795386169,"backend":"torch","capabilities":["embed"]}]}',
            (ServedModel("models/hf-tiny-embed4"),),
            "infinity-v1",
        ),
        (
            b'{"object":"list","data":[{"id":"llama3:latest","object":"model","created":1,"owned_by":"library"}]}',
            (ServedModel("llama3:latest"),),
            "ollama",
        ),
        (
            b'{"object":"list","data":[{"id":"Qwen/Qwen3","owned_by":"sglang","max_model_len":8192}]}',
            (ServedModel("Qwen/Qwen3", context=8192),),
            "sglang",
        ),
        (
            b'{"data":[{"id":"gpt-4o","object":"model","owned_by":"system"}]}',
            (ServedModel("gpt-4o"),),
            "openai",
        ),
        (b'{"data":[{"id":"o1","owned_by":"openai-internal"}]}', (ServedModel("o1"),), "openai"),
        (b'[{"id":"m","max_model_len":true},{"id":""},{"id":null},7]', (ServedModel("m"),), ""),
        (b'{"object":"list","data":[]}', (), ""),
        (b'{"data":null}', (), ""),
        (b'{"data":{"id":"x"}}', (), ""),
        (b"3", (), ""),
    ],
)
def test_model_lists(body: bytes, models: tuple[ServedModel, ...], family: str) -> None:
    for backend in BACKENDS:
        assert backend.read_models(200, JSON, body) == ModelsReply("up", models, family)


@pytest.mark.parametrize(
    ("status", "headers", "body", "state", "family"),
    [
        (
            401,
            {"server": "llama.cpp"},
            b'{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}',
            "misconfigured",
            "llamacpp",
        ),
        (401, {}, b'{"error":"Unauthorized"}', "misconfigured", ""),  # vLLM
        (401, {}, b'{"detail":"Invalid API key"}', "misconfigured", ""),  # llama-cpp-python
        (403, {}, b"", "misconfigured", ""),
        (503, {"server": "llama.cpp"}, LOADING, "loading", "llamacpp"),
        (503, {}, b"", None, ""),
        (500, {"content-type": "text/plain"}, b"Internal Server Error", None, ""),  # transformers
        (404, {}, b'{"detail":"Not Found"}', None, ""),  # infinity
        (429, {}, b"", "rate_limited", ""),
        (200, {}, b"<html>", None, ""),
        (200, {"server": "llama.cpp"}, b"", None, "llamacpp"),
        (200, {}, b"\xff", None, ""),
        (200, {}, b"[" * 100_000, None, ""),
    ],
)
def test_model_lists_that_are_none(
    status: int, headers: dict[str, str], body: bytes, state: HealthState | None, family: str
) -> None:
    for backend in BACKENDS:
        assert backend.read_models(status, headers, body) == ModelsReply(state, (), family)


@pytest.mark.parametrize(
    ("status", "body", "props"),
    [
        (
            200,
            b'{"default_generation_settings":{"params":{"seed":4294967295},"n_ctx":4096},"total_slots":2,'
            b'"model_path":"m","modalities":{"vision":false,"audio":false},"is_sleeping":false}',
            Props(slots=2, context=4096, vision=False),
        ),
        (
            200,
            b'{"total_slots":1,"modalities":{"vision":true},"is_sleeping":true}',
            Props(1, None, True, True),
        ),
        (
            200,  # router mode
            b'{"role":"router","max_instances":2,"models_autoload":true,"model_alias":"llama-server",'
            b'"model_path":"none","default_generation_settings":{"params":null,"n_ctx":0},"ui_settings":{},'
            b'"build_info":"b0-unknown","cors_proxy_enabled":false}',
            Props(version="b0-unknown"),
        ),
        (404, b'{"detail":"Not Found"}', Props()),
        (401, b'{"total_slots":2}', Props()),
        (503, LOADING, Props()),
        (200, b"", Props()),
        (200, b"[]", Props()),
        (200, b'{"total_slots":true,"default_generation_settings":[],"modalities":3}', Props()),
    ],
)
def test_props(status: int, body: bytes, props: Props) -> None:
    assert LLAMACPP.read_props(status, body) == props


@pytest.mark.parametrize(("told", "lists"), [(b"true", True), (b"false", False), (b"null", True)])
def test_props_say_whether_slots_are_listed(told: bytes, lists: bool) -> None:
    body = b'{"total_slots":2,"endpoint_slots":%s,"endpoint_props":false}' % told
    assert LLAMACPP.read_props(200, body).lists_slots is lists


@pytest.mark.parametrize(
    ("status", "body", "busy"),
    [
        (
            200,
            b'[{"id":0,"n_ctx":4096,"speculative":false,"is_processing":false},'
            b'{"id":1,"n_ctx":4096,"speculative":false,"is_processing":false}]',
            0,
        ),
        (
            200,
            b'[{"id":0,"n_ctx":2048,"speculative":false,"is_processing":true,"id_task":4,"n_prompt_tokens":20,'
            b'"n_prompt_tokens_processed":0,"params":{"seed":5,"lora":[]},'
            b'"next_token":[{"has_next_token":true,"has_new_line":false,"n_remain":-1,"n_decoded":3}]},'
            b'{"id":1,"n_ctx":2048,"speculative":false,"is_processing":false}]',
            1,
        ),
        (501, b'{"error":{"code":501,"message":"This server does not support slots endpoint. Start it with `--slots`","type":"not_supported_error"}}', None),
        (400, b'{"error":{"code":400,"message":"model name is missing from the request","type":"invalid_request_error"}}', None),
        (401, b'{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}', None),
        (503, LOADING, None),
        (404, b'{"detail":"Not Found"}', None),
        (200, b"[]", None),
        (200, b'[{"id":0,"state":1}]', None),  # an older server
        (200, b"{}", None),
        (200, b"<html>", None),
    ],
)  # fmt: skip
def test_slots_at_work(status: int, body: bytes, busy: int | None) -> None:
    assert LLAMACPP.read_load(status, body) == busy


METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-VL-4B"} 3.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3-VL-4B"} 2.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-VL-4B"} 4.0
vllm:num_requests_waiting{engine="1",model_name="Qwen/Qwen3-VL-4B"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3-VL-4B",reason="capacity"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-VL-4B"} 0.25
"""


@pytest.mark.parametrize(
    ("status", "body", "busy"),
    [
        (200, METRICS, 9),
        (200, b'vllm:num_requests_running{model_name="a}b c"} 1.0 1795386098000\n', 1),
        (200, b"vllm:num_requests_running 2.0\nvllm:num_requests_waiting 1e1\n", 12),
        (200, b"vllm:num_requests_waiting 1.0\n", None),
        (200, b"vllm:num_requests_running NaN\n", None),
        (200, b"vllm:num_requests_running +Inf\n", None),
        (200, b"vllm:num_requests_running -1\n", None),
        (200, b"vllm:num_requests_running x\n", None),
        (200, b"vllm:num_requests_running_total 7\n", None),
        (200, b"python_gc_objects_collected_total 3.0\n", None),
        (200, b"", None),
        (404, METRICS, None),
        (401, b'{"error":"Unauthorized"}', None),
    ],
)
def test_requests_running_and_waiting(status: int, body: bytes, busy: int | None) -> None:
    assert VLLM.read_load(status, body) == busy


def test_other_servers_do_not_tell_how_busy_they_are() -> None:
    assert OPENAI.read_load(200, METRICS) is None


@settings(deadline=None, max_examples=300)
@given(STATUSES, HEADERS, BODIES)
def test_health_readers_never_raise(status: int, headers: dict[str, str], body: bytes) -> None:
    LLAMACPP.read_health(status, headers, body)
    LLAMACPP.read_props(status, body)
    for backend in BACKENDS:
        busy = backend.read_load(status, body)
        assert busy is None or busy >= 0
    reply = LLAMACPP.read_models(status, headers, body)
    assert all(model.id for model in reply.models)


# --- which of the served models is meant

WINDOWS = "C:\\dev\\Qwen3-Coder-30B-A3B-Instruct-Q5_K_M.gguf"


@pytest.mark.parametrize(
    ("model", "served", "found"),
    [
        ("qwen", ["llama", "qwen"], "qwen"),
        (WINDOWS, [WINDOWS], WINDOWS),
        (WINDOWS, ["Qwen3-Coder-30B-A3B-Instruct-Q5_K_M.gguf"], "Qwen3-Coder-30B-A3B-Instruct-Q5_K_M.gguf"),
        (WINDOWS, ["qwen3-coder-30b-a3b-instruct-q5_k_m"], "qwen3-coder-30b-a3b-instruct-q5_k_m"),
        (
            WINDOWS,
            ["D:/Models/QWEN3-CODER-30B-A3B-INSTRUCT-Q5_K_M.GGUF"],
            "D:/Models/QWEN3-CODER-30B-A3B-INSTRUCT-Q5_K_M.GGUF",
        ),
        ("/models/tiny-chat.gguf", ["tiny-chat"], "tiny-chat"),  # router mode lists names without .gguf
        ("tiny-chat", ["models/tiny-chat.gguf"], "models/tiny-chat.gguf"),
        ("Qwen/Qwen3-VL-4B-Instruct", ["Qwen3-VL-4B-Instruct"], "Qwen3-VL-4B-Instruct"),
        ("models/with space", ["with space"], "with space"),
        ("models/dir/", ["dir"], "dir"),
        ("llama3", ["llama3:latest"], "llama3:latest"),
        ("llama3:latest", ["llama3"], "llama3"),
        ("b/x", ["a/x", "b/x"], "b/x"),  # an exact id wins over a file name
        ("qwen3-coder-30b-a3b-instruct-q5_k_m", [WINDOWS], WINDOWS),
        ("llama3:8b", ["llama3:latest"], None),
        ("qwen", ["Qwen"], None),
        ("/models/qwen.gguf", ["/models/Qwen.gguf"], None),
        ("qwen", ["qwen2"], None),
        ("qwen", [], None),
        ("/", ["\\"], None),
        (".gguf", ["x"], None),
    ],
)
def test_the_served_model_that_is_meant(model: str, served: list[str], found: str | None) -> None:
    for backend in BACKENDS:
        match = backend.serves(model, [ServedModel(s) for s in served])
        assert (match.id if match else None) == found


def test_aliases_count_as_ids() -> None:
    served = [ServedModel("a/qwen-fast"), ServedModel("m.gguf", ("big", "/x/Second.gguf"))]
    for model in ("big", "Second", "m"):
        found = VLLM.serves(model, served)
        assert found is not None
        assert found.id == "m.gguf"


def test_only_llamacpp_answers_to_any_name() -> None:
    assert [b.answers_any_name for b in BACKENDS] == [True, False, False]
