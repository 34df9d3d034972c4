from __future__ import annotations

from typing import Any

import msgspec
import pytest

from maxwell.backends import get_backend
from maxwell.constraints import Unhonoured
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.types import BackendName, ChatCall, Constraint, Features, HTTPRequest, Message

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
ON = {"enable_thinking": True, "thinking": True}
OFF = {"enable_thinking": False, "thinking": False}
PLAIN = {
    "model",
    "messages",
    "temperature",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "stream_options",
}
CHOICES = Constraint("choices", ("yes", "no"))
SCHEMA = Constraint(
    "json_schema", {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
)


def llm(backend: BackendName, model: str = "qwen", *, reasoning: bool = False) -> LLMSpec:
    capabilities = Capabilities(
        max_tokens=512, max_context=4096, speed_tokens_per_sec=30.0, reasoning=reasoning
    )
    return LLMSpec(
        name="entry",
        api_base="http://box:8080",
        model=model,
        backend=backend,
        capabilities=capabilities,
        default_temperature=0.3,
    )


def body(spec: LLMSpec, **fields: Any) -> Any:
    call = ChatCall(messages=HELLO, max_tokens=7, **fields)
    return msgspec.json.decode(get_backend(spec.backend or "openai").chat(spec, call, None).body)


def sent(backend: BackendName, **fields: Any) -> Any:
    """What is sent beyond a plain request."""
    return {name: value for name, value in body(llm(backend), **fields).items() if name not in PLAIN}


@pytest.mark.parametrize("backend", ["llamacpp", "vllm", "openai"])
def test_nothing_is_sent_where_nothing_is_asked(backend: BackendName) -> None:
    assert sent(backend) == {}
    assert sent(backend, thinking_tokens=0) == {}


@pytest.mark.parametrize(("effort", "known"), [("minimal", "low"), ("low", "low"), ("high", "high")])
def test_local_servers_are_told_by_switch_effort_and_room(effort: str, known: str) -> None:
    asked = {"reasoning_effort": effort, "thinking_tokens": 300}
    assert sent("llamacpp", **asked) == {
        "chat_template_kwargs": {**ON, "reasoning_effort": known},
        "reasoning_effort": known,
        "reasoning_budget_tokens": 300,
    }
    assert sent("vllm", **asked) == {
        "chat_template_kwargs": ON,
        "reasoning_effort": known,
        "thinking_token_budget": 300,
    }


@pytest.mark.parametrize("backend", ["llamacpp", "vllm"])
def test_none_switches_thinking_off_and_needs_no_room(backend: BackendName) -> None:
    assert sent(backend, reasoning_effort="none", thinking_tokens=300) == {"chat_template_kwargs": OFF}


def test_room_alone_limits_a_model_that_thinks_anyway() -> None:
    assert sent("llamacpp", thinking_tokens=300) == {"reasoning_budget_tokens": 300}
    assert sent("vllm", thinking_tokens=300) == {"thinking_token_budget": 300}


@pytest.mark.parametrize("backend", ["llamacpp", "vllm"])
def test_extra_wins_and_is_joined_to_the_switch(backend: BackendName) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False, "date": "today"}}
    got = sent(backend, reasoning_effort="low", extra=extra)["chat_template_kwargs"]
    assert (got["enable_thinking"], got["thinking"], got["date"]) == (False, True, "today")
    assert (
        sent(backend, reasoning_effort="low", extra={"chat_template_kwargs": None})["chat_template_kwargs"]
        is None
    )
    assert sent(backend, extra=extra) == extra


@pytest.mark.parametrize(
    ("model", "declared", "takes"),
    [
        ("gpt-5-mini", False, True),
        ("openai/o4-mini", False, True),
        ("gpt-4o", False, False),
        ("gpt-5-chat-latest", False, False),
        ("deepseek-reasoner", False, False),
        ("deepseek-reasoner", True, True),
    ],
)
@pytest.mark.parametrize("effort", ["none", "minimal", "high"])
def test_only_models_that_reason_by_name_or_registry_are_told_an_effort(
    model: str, declared: bool, takes: bool, effort: str
) -> None:
    got = body(llm("openai", model, reasoning=declared), reasoning_effort=effort, thinking_tokens=300)
    assert got.get("reasoning_effort") == (effort if takes else None)
    assert got.keys() <= PLAIN | {"reasoning_effort"}


# --- beside constraints


def test_llamacpp_holds_thinking_to_a_grammar_so_there_is_none() -> None:
    got = sent("llamacpp", constraint=CHOICES, thinking_tokens=300)
    assert got.keys() == {"grammar", "chat_template_kwargs"}
    assert got["chat_template_kwargs"] == OFF
    assert sent("llamacpp", constraint=CHOICES, reasoning_effort="none") == got
    with pytest.raises(Unhonoured, match="thinking itself"):
        sent("llamacpp", constraint=CHOICES, reasoning_effort="low")


@pytest.mark.parametrize(
    ("backend", "constraint", "can"),
    [
        ("llamacpp", CHOICES, False),
        ("llamacpp", SCHEMA, True),
        ("vllm", CHOICES, True),
        ("openai", CHOICES, True),
    ],
)
def test_who_cannot_think_before_it_obeys_is_not_chosen_for_it(
    backend: BackendName, constraint: Constraint, can: bool
) -> None:
    codec, spec = get_backend(backend), llm(backend)
    assert codec.cannot(spec, Features(constraint=constraint)) == ""
    assert (codec.cannot(spec, Features(constraint=constraint, thinking=True)) == "") is can


def test_llamacpp_thinks_before_it_obeys_a_schema() -> None:
    got = sent("llamacpp", constraint=SCHEMA, reasoning_effort="low", thinking_tokens=300)
    assert got.keys() == {
        "response_format", "chat_template_kwargs", "reasoning_effort", "reasoning_budget_tokens"
    }  # fmt: skip


@pytest.mark.parametrize("constraint", [CHOICES, SCHEMA])
def test_vllm_thinks_before_it_obeys(constraint: Constraint) -> None:
    got = sent("vllm", constraint=constraint, reasoning_effort="low", thinking_tokens=300)
    assert got.keys() == {
        "structured_outputs", "chat_template_kwargs", "reasoning_effort", "thinking_token_budget"
    }  # fmt: skip


# --- mending a refused request

UNKNOWN = (
    b'{"error":{"message":"Unrecognized request argument supplied: reasoning_effort",'
    b'"type":"invalid_request_error","param":null,"code":null}}'
)
UNTAKEN = (
    b'{"error":{"message":"Unsupported value: \'reasoning_effort\' does not support \'%s\' with this model. '
    b'Supported values are: %s.",'
    b'"type":"invalid_request_error","param":"reasoning_effort","code":"unsupported_value"}}'
)
NO_PARSER = (
    b'{"error":{"message":"thinking_token_budget is set but reasoning_config is not configured. Please set '
    b'--reasoning-parser and/or --reasoning-config to use thinking_token_budget.",'
    b'"type":"BadRequestError","param":null,"code":400}}'
)


def mended(backend: BackendName, error: bytes, **fields: Any) -> Any:
    request = HTTPRequest("POST", "http://box/v1/chat/completions", {}, msgspec.json.encode(fields))
    request_after = get_backend(backend).without_refused(request, error)
    return None if request_after is None else msgspec.json.decode(request_after.body)


@pytest.mark.parametrize(
    ("refused", "listed", "then"),
    [
        ("none", b"'minimal', 'low', 'medium', and 'high'", "minimal"),
        ("none", b"'low', 'medium', and 'high'", "low"),
        ("minimal", b"'none', 'low', 'medium', and 'high'", "low"),
        ("low", b"'high'", "high"),
    ],
)
def test_a_refused_effort_becomes_the_nearest_that_is_taken(refused: str, listed: bytes, then: str) -> None:
    error = UNTAKEN % (refused.encode(), listed)
    assert mended("openai", error, model="m", reasoning_effort=refused) == {
        "model": "m",
        "reasoning_effort": then,
    }


def test_a_server_that_knows_no_effort_is_asked_without() -> None:
    assert mended("openai", UNKNOWN, model="m", reasoning_effort="high") == {"model": "m"}


def test_none_is_never_dropped_or_the_model_would_think_and_eat_the_reply() -> None:
    assert mended("openai", UNKNOWN, model="m", reasoning_effort="none") is None
    assert mended("openai", UNTAKEN % (b"none", b""), model="m", reasoning_effort="none") is None


def test_a_vllm_without_parser_is_asked_without_limit_of_thinking() -> None:
    assert mended("vllm", NO_PARSER, model="m", thinking_token_budget=300) == {"model": "m"}
    assert mended("vllm", NO_PARSER, model="m") is None
    assert mended("vllm", UNKNOWN, model="m", reasoning_effort="high") is None
