from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from maxwell.backends import Backend, get_backend
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec
from maxwell.types import BackendName, ChatCall, HTTPRequest, Message

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
USAGE = {"include_usage": True}
KEY = "sk-canary-4711"
BACKENDS = ["llamacpp", "vllm", "openai"]


def llm(backend: BackendName = "llamacpp", model: str = "qwen", api_base: str = "http://box:8080") -> LLMSpec:
    capabilities = Capabilities(max_tokens=512, max_context=4096, speed_tokens_per_sec=30.0)
    return LLMSpec(
        name="entry",
        api_base=api_base,
        model=model,
        backend=backend,
        capabilities=capabilities,
        default_temperature=0.3,
    )


def embedding(api_base: str = "http://box:8001") -> EmbeddingSpec:
    return EmbeddingSpec(name="entry", api_base=api_base, model="embed-4b", dimension=4, max_context=512)


def body(request: HTTPRequest | None) -> Any:
    assert request is not None
    return msgspec.json.decode(request.body)


def chat_body(spec: LLMSpec, call: ChatCall) -> Any:
    return body(get_backend(spec.backend).chat(spec, call, None))


# --- chat


@pytest.mark.parametrize(
    ("spec", "cap"),
    [
        (llm("llamacpp"), {"max_tokens": 64, "temperature": 0.3}),
        (llm("vllm"), {"max_tokens": 64, "temperature": 0.3}),
        (llm("openai"), {"max_tokens": 64, "temperature": 0.3}),
        (
            llm("openai", "gpt-4o-2024-05-13", "https://api.openai.com"),
            {"max_completion_tokens": 64, "temperature": 0.3},
        ),
        (llm("openai", "o4-mini", "https://api.openai.com/v1"), {"max_completion_tokens": 64}),
    ],
)
def test_plain_chat_bodies(spec: LLMSpec, cap: dict[str, Any]) -> None:
    assert chat_body(spec, ChatCall(messages=HELLO, max_tokens=64)) == {
        "model": spec.model,
        "messages": HELLO,
        "stream": True,
        "stream_options": USAGE,
        **cap,
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_chat_bodies(backend: BackendName) -> None:
    call = ChatCall(
        messages=HELLO,
        max_tokens=7,
        temperature=0.0,
        stop=["\n"],
        seed=0,
        tools=[WEATHER],
        tool_choice="required",
        extra={"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert chat_body(llm(backend), call) == {
        "model": "qwen",
        "messages": HELLO,
        "max_tokens": 7,
        "temperature": 0.0,
        "stop": ["\n"],
        "seed": 0,
        "tools": [WEATHER],
        "tool_choice": "required",
        "top_k": 5,
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": True,
        "stream_options": USAGE,
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_lists_and_idle_tool_choice_are_left_out(backend: BackendName) -> None:
    call = ChatCall(messages=HELLO, max_tokens=1, stop=[], tools=[], tool_choice="auto")
    assert not {"stop", "tools", "tool_choice", "seed", "grammar"} & chat_body(llm(backend), call).keys()


def test_a_demanded_tool_choice_is_sent_even_without_tools() -> None:
    call = ChatCall(messages=HELLO, max_tokens=1, tool_choice="required")
    assert chat_body(llm(), call)["tool_choice"] == "required"


@pytest.mark.parametrize("backend", BACKENDS)
def test_extra_wins_over_everything_but_the_stream(backend: BackendName) -> None:
    extra = {"temperature": 1.5, "stream": False, "stream_options": {"continuous_usage_stats": True}}
    sent = chat_body(llm(backend), ChatCall(messages=HELLO, max_tokens=1, extra=extra))
    assert sent["temperature"] == 1.5
    assert sent["stream"] is True
    assert sent["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


@pytest.mark.parametrize("options", [None, "yes", {"include_usage": False}])
def test_usage_is_asked_for_whatever_extra_says(options: Any) -> None:
    call = ChatCall(messages=HELLO, max_tokens=1, extra={"stream_options": options})
    assert chat_body(llm(), call)["stream_options"] == USAGE


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_cap_in_extra_replaces_ours(name: str) -> None:
    sent = chat_body(llm(), ChatCall(messages=HELLO, max_tokens=64, extra={name: 9}))
    assert {k: v for k, v in sent.items() if "max" in k or k == "n_predict"} == {name: 9}


def test_a_null_cap_in_extra_does_not_remove_ours() -> None:
    sent = chat_body(llm(), ChatCall(messages=HELLO, max_tokens=64, extra={"max_tokens": None}))
    assert sent["max_tokens"] == 64


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chat_without_cap_is_refused(backend: BackendName) -> None:
    with pytest.raises(ValueError, match=r"entry: .* max_tokens"):
        chat_body(llm(backend), ChatCall(messages=HELLO))


@pytest.mark.parametrize(
    ("model", "cap", "temperature"),
    [
        ("gpt-4o", "max_completion_tokens", True),
        ("gpt-3.5-turbo", "max_completion_tokens", True),
        ("chatgpt-4o-latest", "max_completion_tokens", True),
        ("ft:gpt-4o-mini:acme::x", "max_completion_tokens", True),
        ("openai/gpt-4.1", "max_completion_tokens", True),
        ("gpt-5", "max_completion_tokens", False),
        ("gpt-5-mini-2025-08-07", "max_completion_tokens", False),
        ("openai/gpt-5.1", "max_completion_tokens", False),
        ("gpt-5-chat-latest", "max_completion_tokens", True),
        ("o1", "max_completion_tokens", False),
        ("o3-mini", "max_completion_tokens", False),
        ("openai/o4-mini-high", "max_completion_tokens", False),
        ("gpt-oss-120b", "max_tokens", True),
        ("openai/gpt-oss-20b", "max_tokens", True),
        ("gpt-j-6b", "max_tokens", True),
        ("gpt4all", "max_tokens", True),
        ("llama3.3:latest", "max_tokens", True),
        ("olmo-2", "max_tokens", True),
        ("o1ive", "max_tokens", True),
        ("mistral-large-latest", "max_tokens", True),
    ],
)
def test_models_elsewhere_get_what_they_understand(model: str, cap: str, temperature: bool) -> None:
    sent = chat_body(llm("openai", model, "https://llm.example/v1"), ChatCall(messages=HELLO, max_tokens=5))
    assert sent[cap] == 5
    assert ("temperature" in sent) is temperature


def test_only_openai_itself_is_taken_for_openai() -> None:
    call = ChatCall(messages=HELLO, max_tokens=5)
    assert "max_completion_tokens" in chat_body(llm("openai", "new", "https://api.openai.com"), call)
    for base in ("http://api.openai.com", "https://api.openai.com.evil.example", "https://x/api.openai.com"):
        assert "max_tokens" in chat_body(llm("openai", "new", base), call)


# --- addresses and headers


@pytest.mark.parametrize(
    ("api_base", "at"),
    [
        ("http://box:8080", "http://box:8080"),
        ("http://box:8080/", "http://box:8080"),
        ("http://box:8080/v1", "http://box:8080"),
        ("http://box:8080/v1/", "http://box:8080"),
        ("https://host/llm", "https://host/llm"),
        ("https://host/llm/v1/", "https://host/llm"),
        ("https://host/api/openai/v1", "https://host/api/openai"),
    ],
)
def test_base_url_with_and_without_v1_and_prefix(api_base: str, at: str) -> None:
    spec, embed_spec = llm(api_base=api_base), embedding(api_base)
    for backend in map(get_backend, BACKENDS):
        chat = backend.chat(spec, ChatCall(messages=HELLO, max_tokens=1), None)
        assert (chat.method, chat.url) == ("POST", f"{at}/v1/chat/completions")
        assert backend.embed(embed_spec, ["a"], None).url == f"{at}/v1/embeddings"
    for backend in map(get_backend, ["llamacpp", "vllm"]):
        for request, path in (
            (backend.tokenize(spec, "a", None), "/tokenize"),
            (backend.detokenize(embed_spec, [1], None), "/detokenize"),
        ):
            assert request is not None
            assert request.url == at + path


@pytest.mark.parametrize("backend", BACKENDS)
def test_headers(backend: BackendName) -> None:
    call = ChatCall(messages=HELLO, max_tokens=1)
    assert get_backend(backend).chat(llm(backend), call, None).headers == {
        "accept": "text/event-stream, application/json",
        "content-type": "application/json",
    }
    with_key = get_backend(backend).chat(llm(backend), call, KEY).headers
    assert with_key["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["", "  \n"])
def test_a_blank_key_is_no_key(key: str) -> None:
    assert "authorization" not in get_backend("vllm").probes("http://box", key).models.headers


def test_a_key_read_from_a_file_loses_its_newline() -> None:
    headers = get_backend("vllm").probes("http://box", KEY + "\n").models.headers
    assert headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk-canary\nx-evil: 1", "sk-canary–dash", "sk-canary\x00"])
def test_a_key_no_header_can_hold_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        get_backend("openai").probes("http://box", key)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "model", ["C:\\dev\\Qwen3 Coder.gguf", "/models/a b.gguf", "Qwen/Qwen3-VL-4B", "模型"]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_model_names_survive(backend: BackendName, model: str) -> None:
    assert chat_body(llm(backend, model), ChatCall(messages=HELLO, max_tokens=1))["model"] == model


# --- embeddings


@pytest.mark.parametrize("backend", BACKENDS)
def test_embedding_bodies(backend: str) -> None:
    codec = get_backend(backend)
    order = {"endianness": "little"} if backend == "vllm" else {}  # its own default is the machine's
    assert body(codec.embed(embedding(), ["a", ""], None)) == {
        "model": "embed-4b",
        "input": ["a", ""],
        "encoding_format": "base64",
        **order,
    }
    assert body(codec.embed(embedding(), [[5, 6], [7]], None, base64=False)) == {
        "model": "embed-4b",
        "input": [[5, 6], [7]],
    }


def test_only_vllm_truncates() -> None:
    request = get_backend("vllm").embed(embedding(), ["a"], KEY, truncate_to=128)
    assert body(request)["truncate_prompt_tokens"] == 128
    assert request.headers["authorization"] == f"Bearer {KEY}"
    for codec in map(get_backend, ["llamacpp", "openai"]):
        assert not codec.truncates
        with pytest.raises(ValueError, match="does not truncate"):
            codec.embed(embedding(), ["a"], None, truncate_to=128)


# --- tokens


def test_llamacpp_token_requests() -> None:
    codec = get_backend("llamacpp")
    assert codec.has_tokenizer
    assert body(codec.tokenize(llm(), "a b", None)) == {
        "model": "qwen",
        "content": "a b",
        "add_special": False,
    }
    assert body(codec.tokenize(llm(), "a", None, add_special=True))["add_special"] is True
    assert body(codec.detokenize(llm(), [1, 2], None)) == {"model": "qwen", "tokens": [1, 2]}
    count = codec.count_chat(llm(), ChatCall(messages=HELLO), KEY)
    assert body(count) == {"model": "qwen", "messages": HELLO}
    assert count is not None
    assert count.url == "http://box:8080/v1/chat/completions/input_tokens"
    assert count.headers["authorization"] == f"Bearer {KEY}"


def test_vllm_token_requests() -> None:
    codec, spec = get_backend("vllm"), llm("vllm")
    assert codec.has_tokenizer
    assert body(codec.tokenize(spec, "a b", None)) == {
        "model": "qwen",
        "prompt": "a b",
        "add_special_tokens": False,
    }
    assert body(codec.detokenize(spec, [1, 2], None)) == {"model": "qwen", "tokens": [1, 2]}
    count = codec.count_chat(spec, ChatCall(messages=HELLO), None)
    assert body(count) == {"model": "qwen", "messages": HELLO}
    assert count is not None
    assert count.url == "http://box:8080/tokenize"


def test_openai_has_no_token_routes() -> None:
    codec, spec = get_backend("openai"), llm("openai")
    assert not codec.has_tokenizer
    assert codec.tokenize(spec, "a", None) is None
    assert codec.detokenize(spec, [1], None) is None
    assert codec.count_chat(spec, ChatCall(messages=HELLO), None) is None


# --- probes


@pytest.mark.parametrize(("backend", "has_props"), [("llamacpp", True), ("vllm", True), ("openai", False)])
def test_probes_are_free_gets(backend: str, has_props: bool) -> None:
    probes = get_backend(backend).probes("http://box/llm", KEY)
    assert probes.health.url == "http://box/llm/health"
    assert probes.models.url == "http://box/llm/v1/models"
    assert (probes.props is not None) is has_props
    for request in filter(None, (probes.health, probes.models, probes.props, probes.load)):
        assert (request.method, request.body) == ("GET", b"")
        key = {} if request is probes.health else {"authorization": f"Bearer {KEY}"}
        assert request.headers == {"accept": "application/json", **key}


def test_props_lie_at_the_root() -> None:
    props = get_backend("llamacpp").probes("http://box/llm", None).props
    assert props is not None
    assert props.url == "http://box/llm/props"


@pytest.mark.parametrize(
    ("backend", "url", "wakes"),
    [("llamacpp", "http://box/llm/slots", True), ("vllm", "http://box/llm/metrics", False)],
)
def test_who_tells_how_busy_it_is(backend: str, url: str, wakes: bool) -> None:
    probes = get_backend(backend).probes("http://box/llm", None)
    assert probes.load is not None
    assert (probes.load.url, probes.load_wakes) == (url, wakes)


def test_a_cloud_does_not_tell_how_busy_it_is() -> None:
    assert get_backend("openai").probes("https://api.openai.com", None).load is None


# --- mending a refused request

PARAMETER = b'{"error":{"message":"%s","type":"invalid_request_error","param":%s,"code":%s}}'
MAX_TOKENS = (
    b"Unsupported parameter: 'max_tokens' is not supported with this model. "
    b"Use 'max_completion_tokens' instead."
)
EXTRA_FORBIDDEN = (
    b'{"detail":[{"type":"extra_forbidden","loc":["body","%s"],"msg":"Extra inputs are not permitted"}]}'
)


def mended(error: bytes, **fields: Any) -> Any:
    codec = get_backend("openai")
    request = codec.chat(llm("openai"), ChatCall(messages=HELLO, max_tokens=64, extra=fields), KEY)
    again = codec.without_refused(request, error)
    if again is None:
        return None
    assert (again.method, again.url, again.headers) == (request.method, request.url, request.headers)
    before, after = body(request), body(again)
    return (
        {k: v for k, v in before.items() if k not in after},
        {k: v for k, v in after.items() if k not in before},
    )


@pytest.mark.parametrize(
    ("error", "gone", "new"),
    [
        (
            PARAMETER % (MAX_TOKENS, b'"max_tokens"', b'"unsupported_parameter"'),
            {"max_tokens": 64},
            {"max_completion_tokens": 64},
        ),
        (PARAMETER % (MAX_TOKENS, b"null", b"null"), {"max_tokens": 64}, {"max_completion_tokens": 64}),
        (
            PARAMETER
            % (
                b"Unsupported value: 'temperature' does not support 0.3 with this model.",
                b'"temperature"',
                b'"unsupported_value"',
            ),
            {"temperature": 0.3},
            {},
        ),
        (
            PARAMETER % (b"Unrecognized request argument supplied: stream_options", b"null", b"null"),
            {"stream_options": USAGE},
            {},
        ),
        (EXTRA_FORBIDDEN % b"stream_options", {"stream_options": USAGE}, {}),
        (
            b'{"detail":"Unexpected fields in the request: {\'stream_options\'}"}',
            {"stream_options": USAGE},
            {},
        ),
    ],
)
def test_a_refused_field_is_dropped_or_renamed(error: bytes, gone: Any, new: Any) -> None:
    assert mended(error) == (gone, new)


def test_the_newer_cap_is_renamed_back() -> None:
    gone, new = mended(EXTRA_FORBIDDEN % b"max_completion_tokens", max_completion_tokens=9)
    assert (gone, new) == ({"max_completion_tokens": 9}, {"max_tokens": 9})


@pytest.mark.parametrize(
    "error",
    [
        PARAMETER % (b"Unsupported value: 'top_p'", b'"top_p"', b'"unsupported_value"'),
        PARAMETER % (b"Unsupported parameter: 'n'. See max_tokens.", b'"n"', b'"unsupported_parameter"'),
        PARAMETER % (b"max_tokens must be at least 1, got 0", b'"max_tokens"', b"400"),
        PARAMETER
        % (b"Unsupported value", b'"max_completion_tokens"', b'"unsupported_value"'),  # not in the request
        EXTRA_FORBIDDEN % b"grammar",  # a constraint is never dropped
        b'{"error":{"message":"temperature is too high"}}',
        b"",
        b"<html>",
        b"[1]",
        b"\xff",
    ],
)
def test_other_errors_mend_nothing(error: bytes) -> None:
    assert mended(error) is None


@pytest.mark.parametrize("sent", [b"", b"[]", b"\xff", b'"temperature"'])
def test_a_request_that_is_no_chat_is_not_mended(sent: bytes) -> None:
    error = PARAMETER % (b"x", b'"temperature"', b'"unsupported_value"')
    request = HTTPRequest("POST", "http://box/v1/chat/completions", {}, sent)
    assert get_backend("openai").without_refused(request, error) is None


def test_local_servers_need_no_mending() -> None:
    error = PARAMETER % (b"x", b'"temperature"', b'"unsupported_value"')
    for codec in map(get_backend, ["llamacpp", "vllm"]):
        request = codec.chat(llm(), ChatCall(messages=HELLO, max_tokens=1), None)
        assert codec.without_refused(request, error) is None


# --- the door


@pytest.mark.parametrize("name", BACKENDS)
def test_one_backend_a_name(name: str) -> None:
    backend = get_backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    assert get_backend(name) is backend


def test_an_unknown_backend_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=re.escape("no backend 'tgi'; there are llamacpp, vllm, openai")):
        get_backend("tgi")
