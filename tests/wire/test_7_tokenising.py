"""Where each family counts tokens, what it is asked and how its answer is read. Rows: docs/wire.md."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest
from calling import make_registry

from maxwell.backends import Backend, get_backend
from maxwell.registry.specs import LLMSpec
from maxwell.tokens import estimate, text_upper_bound
from maxwell.types import ChatCall, HTTPRequest

CAN = {"max_tokens": 64, "max_context": 4096, "speed_tokens_per_sec": 30}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
HELLO = [{"role": "user", "content": "Hello"}]
CALL = ChatCall(messages=HELLO, max_tokens=9, tools=[TOOL], reasoning_effort="low")
OPENAI, LLAMACPP, VLLM = (get_backend(name) for name in ("openai", "llamacpp", "vllm"))
LLAMA_CPP_PYTHON = get_backend("llamacpp", family="llama-cpp-python")
TGI = get_backend("openai", family="tgi")


def llm(api_base: str = "http://box", model: str = "m") -> LLMSpec:
    declared = {"name": "one", "api_base": api_base, "model": model, "backend": "openai"}
    return make_registry(declared | {"capabilities": CAN, "default_temperature": 0.3}).llms[0]


def sent(request: HTTPRequest | None) -> tuple[str, dict[str, Any]]:
    """Where it goes and what it says."""
    assert request is not None
    return request.url.removeprefix("http://box"), msgspec.json.decode(request.body)


def test_llamacpp_tokenizes_content_and_adds_what_surrounds_a_text_only_when_told() -> None:
    assert sent(LLAMACPP.tokenize(llm(), "a", None)) == (
        "/tokenize", {"model": "m", "content": "a", "add_special": False})  # fmt: skip
    assert sent(LLAMACPP.tokenize(llm(), "a", None, add_special=True))[1]["add_special"]
    assert LLAMACPP.decode_tokens(b'{"tokens":[1,2,3]}') == [1, 2, 3]
    assert LLAMACPP.decode_count(b'{"tokens":[1,2,3]}') == 3


def test_llamacpp_detokenizes_to_content() -> None:
    assert sent(LLAMACPP.detokenize(llm(), [1, 2], None)) == ("/detokenize", {"model": "m", "tokens": [1, 2]})
    assert LLAMACPP.decode_text(b'{"content":"ab"}') == "ab"


def test_llamacpp_counts_a_chat_exactly_with_its_template_and_tools() -> None:
    path, body = sent(LLAMACPP.count_chat(llm(), CALL, None))
    assert path == "/v1/chat/completions/input_tokens"
    assert (body["messages"], body["tools"]) == (HELLO, [TOOL])
    assert body["chat_template_kwargs"]["enable_thinking"]
    assert LLAMACPP.decode_count(b'{"object":"response.input_tokens","input_tokens":18}') == 18


def test_vllm_tokenizes_a_prompt_and_counts() -> None:
    assert sent(VLLM.tokenize(llm(), "a", None)) == (
        "/tokenize", {"model": "m", "prompt": "a", "add_special_tokens": False})  # fmt: skip
    assert VLLM.decode_count(b'{"count":2,"max_model_len":2048,"tokens":[1,2],"token_strs":null}') == 2
    assert VLLM.decode_tokens(b'{"count":2,"max_model_len":2048,"tokens":[1,2]}') == [1, 2]


def test_vllm_tokenizes_messages_with_tools_and_variables_of_the_template() -> None:
    path, body = sent(VLLM.count_chat(llm(), CALL, None))
    assert (path, body["messages"], body["tools"]) == ("/tokenize", HELLO, [TOOL])
    assert body["chat_template_kwargs"]["reasoning_effort"] == "low"
    assert "reasoning_effort" not in body


def test_vllm_detokenizes_to_prompt() -> None:
    assert sent(VLLM.detokenize(llm(), [1], None)) == ("/detokenize", {"model": "m", "tokens": [1]})
    assert VLLM.decode_text(b'{"prompt":"ab"}') == "ab"


def test_openai_counts_at_its_responses_route() -> None:
    plain = ChatCall(messages=HELLO, max_tokens=9)
    path, body = sent(OPENAI.count_chat(llm("https://api.openai.com/v1", "gpt-5"), plain, "key"))
    assert path == "https://api.openai.com/v1/responses/input_tokens"
    assert body == {"model": "gpt-5", "input": HELLO}
    assert OPENAI.decode_count(b'{"object":"response.input_tokens","input_tokens":8}') == 8
    assert OPENAI.count_chat(llm(), plain, None) is None  # its imitations do not


def test_llama_cpp_python_counts_among_its_extras() -> None:
    assert sent(LLAMA_CPP_PYTHON.count_text(llm(), "a", None)) == (
        "/extras/tokenize/count", {"model": "m", "input": "a"})  # fmt: skip
    assert sent(LLAMA_CPP_PYTHON.tokenize(llm(), "a", None))[0] == "/extras/tokenize"
    assert LLAMA_CPP_PYTHON.decode_count(b'{"count":3}') == 3


def test_tgi_tokenizes_inputs_and_chats() -> None:
    assert sent(TGI.tokenize(llm(), "a", None)) == ("/tokenize", {"inputs": "a"})
    assert sent(TGI.count_chat(llm(), CALL, None))[0] == "/chat_tokenize"
    assert TGI.decode_count(b'[{"id":1,"text":"a","start":0,"stop":1}]') == 1
    assert TGI.decode_count(b'{"templated_text":"x","tokenize_response":[{"id":1},{"id":2}]}') == 2


@pytest.mark.parametrize("backend", [LLAMACPP, VLLM, OPENAI, LLAMA_CPP_PYTHON, TGI], ids=lambda b: b.family)
def test_no_other_route_is_used_to_count(backend: Backend) -> None:
    spec = llm("https://api.openai.com", "gpt-5")
    made = (backend.count_chat(spec, CALL, None), backend.tokenize(spec, "a", None))
    for path in ("/apply-template", "/messages/count_tokens", "/render"):
        assert not [request for request in made if request is not None and path in request.url]


def test_tiktoken_would_fetch_its_tables_so_it_is_not_used() -> None:
    code = "import sys, maxwell.lm_pool, maxwell.calls.counting; print('tiktoken' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_without_a_tokenizer_bytes_tell_and_never_too_few() -> None:
    assert estimate(400) == 100
    assert text_upper_bound("words of a prompt") >= len("words of a prompt")
