from __future__ import annotations

from typing import Any

import msgspec
import pytest

from maxwell.backends import get_backend
from maxwell.constraints import Unhonoured
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.types import BackendName, ChatCall, Constraint, Features, Message

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
BACKENDS = ["llamacpp", "vllm", "openai"]
CHOICES = Constraint("choices", ("yes", "no"))


def tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"at": {"type": "string"}}, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": schema}}


TOOLS = [tool("weather"), tool("time")]
TIME = {"type": "function", "function": {"name": "time"}}


def llm(backend: BackendName) -> LLMSpec:
    capabilities = Capabilities(max_tokens=512, max_context=4096, speed_tokens_per_sec=30.0)
    return LLMSpec(
        name="entry",
        api_base="http://box:8080",
        model="qwen",
        backend=backend,
        capabilities=capabilities,
        default_temperature=0.3,
    )


def sent(backend: BackendName, **fields: Any) -> Any:
    call = ChatCall(messages=HELLO, max_tokens=7, **fields)
    return msgspec.json.decode(get_backend(backend).chat(llm(backend), call, None).body)


@pytest.mark.parametrize("backend", BACKENDS)
def test_definitions_are_passed_on_as_they_are(backend: BackendName) -> None:
    assert sent(backend, tools=TOOLS)["tools"] == TOOLS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("choice", ["none", "auto", "required"])
def test_a_word_is_passed_on_as_it_is(backend: BackendName, choice: str) -> None:
    assert sent(backend, tools=TOOLS, tool_choice=choice)["tool_choice"] == choice


@pytest.mark.parametrize("backend", ["vllm", "openai"])
def test_a_choice_of_one_tool_is_passed_on(backend: BackendName) -> None:
    body = sent(backend, tools=TOOLS, tool_choice=TIME)
    assert (body["tools"], body["tool_choice"]) == (TOOLS, TIME)


def test_llamacpp_is_offered_only_the_chosen_tool_and_must_call_one() -> None:
    body = sent("llamacpp", tools=TOOLS, tool_choice=TIME)
    assert (body["tools"], body["tool_choice"]) == ([tool("time")], "required")


@pytest.mark.parametrize(
    "choice",
    [{"type": "function", "function": {"name": "other"}}, {"type": "allowed_tools"}, {"function": 1}],
)
def test_llamacpp_never_takes_a_choice_it_does_not_know_for_auto(choice: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"entry: tool_choice .* none of the offered tools"):
        sent("llamacpp", tools=TOOLS, tool_choice=choice)


def test_a_choice_that_llamacpp_does_not_know_keeps_it_from_being_chosen() -> None:
    codec = get_backend("llamacpp")
    for choice, known in ((TIME, True), ("required", True), ({"type": "allowed_tools"}, False)):
        why = codec.cannot(llm("llamacpp"), Features(tools=True, tool_choice=choice))
        assert (why == "") is known
    assert "allowed_tools" in why


@pytest.mark.parametrize("backend", ["llamacpp", "vllm"])
def test_where_a_constraint_keeps_tools_from_being_called_it_is_refused_beside_them(
    backend: BackendName,
) -> None:
    codec = get_backend(backend)
    with pytest.raises(Unhonoured, match="never calls a tool"):
        sent(backend, tools=TOOLS, constraint=CHOICES)
    assert "never calls a tool" in codec.cannot(llm(backend), Features(constraint=CHOICES, tools=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tools_that_may_not_be_called_are_no_hindrance_to_a_constraint(backend: BackendName) -> None:
    assert sent(backend, tools=TOOLS, tool_choice="none", constraint=CHOICES)["tools"] == TOOLS
    features = Features(constraint=CHOICES, tools=True, tool_choice="none")
    assert get_backend(backend).cannot(llm(backend), features) == ""


def test_openai_calls_tools_beside_a_constraint() -> None:
    body = sent("openai", tools=TOOLS, constraint=CHOICES)
    assert body["tools"] == TOOLS
    assert body["response_format"]["type"] == "json_schema"
    assert get_backend("openai").cannot(llm("openai"), Features(constraint=CHOICES, tools=True)) == ""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("url", ["data:image/png;base64,iVBOR", "https://pictures.example/a.png"])
def test_images_are_passed_on_as_they_are(backend: BackendName, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    messages: list[Message] = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    call = ChatCall(messages=messages, max_tokens=7)
    body = msgspec.json.decode(get_backend(backend).chat(llm(backend), call, None).body)
    assert body["messages"] == messages
    assert get_backend(backend).cannot(llm(backend), Features(images=True, image_links=True)) == ""
