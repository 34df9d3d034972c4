"""What a chat request says to each family, and the names under which a reply comes. Rows: docs/wire.md."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from calling import make_registry

from maxwell.backends import Backend, get_backend
from maxwell.backends.wire import decode_chunk
from maxwell.calls.reply import Reply
from maxwell.images import image_part
from maxwell.registry.specs import LLMSpec
from maxwell.requirements import chat_call
from maxwell.types import ChatCall, Completion, Features, Usage

CAN = {"max_tokens": 64, "max_context": 4096, "speed_tokens_per_sec": 30}
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "hear", "parameters": {"type": "object"}}}
LOOK = {"type": "function", "function": {"name": "look"}}
OPENAI, LLAMACPP, VLLM = (get_backend(name) for name in ("openai", "llamacpp", "vllm"))
OLLAMA = get_backend("openai", family="ollama")
SGLANG = get_backend("vllm", family="sglang")
LOCAL = [LLAMACPP, VLLM, OLLAMA, SGLANG]
PNG = "data:image/png;base64,iVBORw0KGgo="
LINK = "https://pictures.example/cat.png"


def llm(model: str = "m", api_base: str = "http://box", **capabilities: Any) -> LLMSpec:
    entry = {"name": "one", "api_base": api_base, "model": model, "backend": "openai"}
    return make_registry(entry | {"capabilities": CAN | capabilities, "default_temperature": 0.3}).llms[0]


def body(backend: Backend, spec: LLMSpec | None = None, **fields: Any) -> dict[str, Any]:
    """What is sent for a call."""
    given: dict[str, Any] = {"messages": HELLO, "max_tokens": 9} | fields
    sent: dict[str, Any] = msgspec.json.decode(backend.chat(spec or llm(), ChatCall(**given), None).body)
    return sent


def refused(backend: Backend, status: int, message: str, **more: Any) -> str:
    """What kind of failure a refusal in these words is."""
    told = msgspec.json.encode({"error": {"message": message, **more}})
    return backend.refusal(status, {}, told, "one").kind


def replied(*deltas: dict[str, Any], finish: str | None = "stop", **fields: Any) -> Completion:
    """The reply that these deltas make."""
    reply = Reply(llm(), 1, 0.0)
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        reply.add(decode_chunk(msgspec.json.encode({"choices": [choice]})), lambda: 1.0)
    last = {"index": 0, "delta": {}, "finish_reason": finish} | fields
    reply.add(decode_chunk(msgspec.json.encode({"choices": [last]})), lambda: 1.0)
    return reply.completion(2.0, ["one"], Usage(), 0.0)


# --- cap


def test_openai_is_told_max_completion_tokens() -> None:
    sent = body(OPENAI, llm("gpt-5", "https://api.openai.com"))
    assert sent["max_completion_tokens"] == 9
    assert "max_tokens" not in sent


@pytest.mark.parametrize("backend", [LLAMACPP, VLLM, SGLANG], ids=lambda b: b.family)
def test_local_servers_are_told_one_cap_only(backend: Backend) -> None:
    sent = body(backend, llm("gpt-5"))
    assert {name: sent.get(name) for name in ("max_tokens", "max_completion_tokens", "n_predict")} == {
        "max_tokens": 9,
        "max_completion_tokens": None,
        "n_predict": None,
    }


def test_ollama_drops_max_completion_tokens_so_max_tokens_is_sent() -> None:
    sent = body(OLLAMA, llm("gpt-4o"))
    assert sent["max_tokens"] == 9
    assert "max_completion_tokens" not in sent


@pytest.mark.parametrize("backend", [OPENAI, *LOCAL], ids=lambda b: b.family)
def test_a_server_s_default_cap_is_all_its_context_so_one_is_always_sent(backend: Backend) -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        body(backend, max_tokens=None)


# --- sampling


def test_openai_s_reasoning_models_are_sent_no_temperature() -> None:
    for model in ("gpt-5", "o3", "o4-mini"):
        assert "temperature" not in body(OPENAI, llm(model), temperature=0.5)
    assert body(OPENAI, llm("gpt-5-chat-latest"), temperature=0.5)["temperature"] == 0.5


def test_openai_s_exceptions_may_be_sent_a_temperature_by_extra() -> None:
    sent = body(OPENAI, llm("gpt-5.1"), extra={"temperature": 0.2, "reasoning_effort": "none"})
    assert (sent["temperature"], sent["reasoning_effort"]) == (0.2, "none")


@pytest.mark.parametrize("backend", LOCAL, ids=lambda b: b.family)
def test_each_server_has_another_default_temperature_so_one_is_always_sent(backend: Backend) -> None:
    assert body(backend)["temperature"] == 0.3
    assert body(backend, temperature=0.0)["temperature"] == 0.0


def test_what_only_some_servers_sample_by_goes_through_extra_unchanged() -> None:
    extra = {
        "top_k": 40, "min_p": 0.05, "frequency_penalty": 0.1, "presence_penalty": 0.2, "repeat_penalty": 1.1,
        "repeat_last_n": 64, "dry_multiplier": 0.8, "repetition_penalty": 1.05, "stop_token_ids": [2],
    }  # fmt: skip
    for backend in (LLAMACPP, VLLM):
        sent = body(backend, extra=extra)
        assert {name: sent[name] for name in extra} == extra


def test_stop_strings_are_sent_as_they_are_to_whoever_takes_any_number() -> None:
    five = ["a", "b", "c", "d", "e"]
    assert body(LLAMACPP, stop=five)["stop"] == body(OLLAMA, stop=five)["stop"] == five


def test_openai_and_vllm_take_four_stop_strings_and_a_fifth_is_their_refusal() -> None:
    assert refused(OPENAI, 400, "Invalid 'stop': array too long.", param="stop") == "bad_request"
    said = "1 validation error: body.stop List should have at most 4 items after validation, not 5"
    assert refused(VLLM, 400, said, type="BadRequestError", param="body.stop") == "bad_request"


def test_openai_s_o3_takes_no_stop_strings_and_its_refusal_is_not_mended_away() -> None:
    said = "Unsupported parameter: 'stop' is not supported with this model."
    error = {"error": {"message": said, "code": "unsupported_parameter", "param": "stop"}}
    request = OPENAI.chat(llm("o3"), ChatCall(messages=HELLO, max_tokens=9, stop=["a"]), None)
    assert OPENAI.without_refused(request, msgspec.json.encode(error)) is None
    assert refused(OPENAI, 400, said, code="unsupported_parameter", param="stop") == "unsupported"


@pytest.mark.parametrize("backend", [OPENAI, *LOCAL], ids=lambda b: b.family)
def test_a_seed_is_sent_as_it_is(backend: Backend) -> None:
    assert body(backend, seed=2**40)["seed"] == 2**40
    assert "seed" not in body(backend)


def test_one_choice_is_asked_for_by_everybody_so_n_is_refused() -> None:
    with pytest.raises(ValueError, match="'n'"):
        chat_call(HELLO, {"extra": {"n": 2}})
    assert all("n" not in body(backend) for backend in (OPENAI, *LOCAL))


def test_logprobs_are_never_asked_for_and_passed_over_where_extra_does() -> None:
    assert all("logprobs" not in body(backend) for backend in (OPENAI, *LOCAL))
    sent = body(VLLM, extra={"logprobs": True, "top_logprobs": 3})
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 3)
    assert replied({"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -0.1}]}).text == "a"


def test_llamacpp_forbids_logprobs_beside_tools_in_a_stream() -> None:
    said = "logprobs is not supported with tools + stream"
    assert refused(LLAMACPP, 400, said, type="invalid_request_error") == "unsupported"


# --- tools


def test_openai_and_vllm_take_every_tool_choice() -> None:
    for backend in (OPENAI, VLLM):
        for choice in ("none", "auto", "required", LOOK):
            sent = body(backend, tools=[TOOL, OTHER], tool_choice=choice)
            assert (sent["tools"], sent["tool_choice"]) == ([TOOL, OTHER], choice)


def test_llamacpp_takes_an_object_choice_for_auto_so_that_tool_alone_is_required() -> None:
    sent = body(LLAMACPP, tools=[TOOL, OTHER], tool_choice=LOOK)
    assert (sent["tools"], sent["tool_choice"]) == ([TOOL], "required")


def test_vllm_refuses_an_empty_list_of_tools_so_none_is_sent() -> None:
    assert "tools" not in body(VLLM, tools=[])


def test_ollama_ignores_tool_choice_so_who_must_call_a_tool_goes_elsewhere() -> None:
    for choice in ("required", LOOK):
        why = OLLAMA.cannot(llm(), Features(tools=True, tool_choice=choice))
        assert why == "Ollama ignores tool_choice"
    assert OLLAMA.cannot(llm(), Features(tools=True, tool_choice="auto")) == ""
    assert "tools" not in body(OLLAMA, tools=[TOOL], tool_choice="none")


# --- thinking


def test_openai_is_told_an_effort_where_the_model_reasons() -> None:
    assert body(OPENAI, llm("gpt-5"), reasoning_effort="minimal")["reasoning_effort"] == "minimal"
    assert "reasoning_effort" not in body(OPENAI, llm("gpt-4o"), reasoning_effort="low")
    assert body(OPENAI, llm("gpt-5"), extra={"verbosity": "low"})["verbosity"] == "low"


def test_llamacpp_is_told_switch_effort_and_budget_of_thinking() -> None:
    sent = body(LLAMACPP, reasoning_effort="high", thinking_tokens=100)
    assert sent["chat_template_kwargs"]["enable_thinking"] is True  # a text would be a 400
    assert (sent["reasoning_effort"], sent["reasoning_budget_tokens"]) == ("high", 100)


def test_llamacpp_puts_thinking_apart_by_itself_so_no_format_is_asked_for() -> None:
    assert "reasoning_format" not in body(LLAMACPP, reasoning_effort="high")


def test_vllm_is_told_switch_effort_and_budget_of_thinking() -> None:
    sent = body(VLLM, reasoning_effort="low", thinking_tokens=100)
    assert sent["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True}
    assert (sent["reasoning_effort"], sent["thinking_token_budget"]) == ("low", 100)
    off = body(VLLM, reasoning_effort="none", thinking_tokens=100)
    assert off["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    assert "thinking_token_budget" not in off
    assert "include_reasoning" not in off  # true unless it is said


def test_ollama_is_told_an_effort_where_the_model_reasons() -> None:
    assert body(OLLAMA, llm(reasoning=True), reasoning_effort="high")["reasoning_effort"] == "high"
    assert "reasoning_effort" not in body(OLLAMA, llm(), reasoning_effort="high")
    assert body(OLLAMA, llm(), reasoning_effort="none")["reasoning_effort"] == "none"


# --- where it runs, and unknown fields


def test_wishes_about_place_and_cache_go_through_extra_unchanged() -> None:
    for backend, extra in (
        (OPENAI, {"service_tier": "flex", "prompt_cache_key": "k"}),
        (LLAMACPP, {"cache_prompt": False, "id_slot": 1}),
        (VLLM, {"priority": 5, "cache_salt": "s"}),
    ):
        sent = body(backend, extra=extra)
        assert {name: sent[name] for name in extra} == extra
        assert not extra.keys() & body(backend).keys()


def test_openai_refuses_unknown_fields_and_says_which() -> None:
    said = "Unrecognized request argument supplied: top_k"
    assert refused(OPENAI, 400, said, type="invalid_request_error") == "unsupported"


def test_local_servers_ignore_unknown_fields_so_no_constraint_is_sent_in_another_s_words() -> None:
    constraint = chat_call(HELLO, {"choices": ["yes", "no"]}).constraint
    assert body(LLAMACPP, constraint=constraint).keys() & {"grammar", "structured_outputs"} == {"grammar"}
    assert body(VLLM, constraint=constraint).keys() & {"grammar", "structured_outputs"} == {
        "structured_outputs"
    }


# --- images


def test_images_go_as_image_url() -> None:
    assert image_part(LINK) == {"type": "image_url", "image_url": {"url": LINK}}
    assert image_part(PNG)["image_url"]["url"].startswith("data:image/png;base64,")


def test_llamacpp_takes_more_forms_of_images_than_are_ever_sent() -> None:
    for odd in ("iVBORw0KGgo" * 20, "file:///srv/cat.png"):
        with pytest.raises(ValueError, match=r"address|path"):
            image_part(odd)
    assert LLAMACPP.cannot(llm(), Features(images=True, image_links=True)) == ""


def test_llamacpp_without_eyes_says_500_and_will_never_see() -> None:
    said = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
    assert refused(LLAMACPP, 500, said, type="server_error", code=500) == "unsupported"


def test_llamacpp_reads_no_webp_so_that_goes_elsewhere() -> None:
    assert "WEBP" in LLAMACPP.cannot(llm(), Features(images=True, webp=True))
    assert VLLM.cannot(llm(), Features(images=True, webp=True)) == ""


def test_ollama_fetches_no_images_so_links_go_elsewhere() -> None:
    assert OLLAMA.cannot(llm(), Features(images=True, image_links=True)) == (
        "Ollama fetches no images; pass them as data"
    )
    assert OLLAMA.cannot(llm(), Features(images=True)) == ""


def test_vllm_says_422_of_an_image_that_it_cannot_fetch() -> None:
    assert refused(VLLM, 422, "Failed to load image: cannot identify image file") == "bad_request"


# --- the rest of a request


@pytest.mark.parametrize("backend", [OPENAI, *LOCAL], ids=lambda b: b.family)
def test_vllm_rejects_stream_options_without_stream_so_both_are_sent(backend: Backend) -> None:
    for extra in ({}, {"stream_options": {"include_usage": False}}, {"stream": False}):
        sent = body(backend, extra=extra)
        assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})


@pytest.mark.parametrize("backend", [OPENAI, *LOCAL], ids=lambda b: b.family)
def test_only_llamacpp_takes_null_for_absent_so_none_is_sent(backend: Backend) -> None:
    assert None not in body(backend).values()


def test_llamacpp_goes_on_with_an_assistant_message_at_the_end() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Once"}]
    assert body(LLAMACPP, messages=messages)["messages"] == messages


def test_llamacpp_refuses_two_assistant_messages_at_the_end() -> None:
    said = "Cannot have 2 or more assistant messages at the end of the list."
    assert refused(LLAMACPP, 400, said, type="invalid_request_error") == "bad_request"


def test_vllm_goes_on_with_a_message_where_extra_says_so_and_counts_it_so() -> None:
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    assert extra.items() <= body(VLLM, extra=extra).items()
    request = VLLM.count_chat(llm(), ChatCall(messages=HELLO, max_tokens=9, extra=extra), None)
    assert request is not None
    assert extra.items() <= msgspec.json.decode(request.body).items()


# --- replies


@pytest.mark.parametrize(
    "name",
    ["reasoning_content", "reasoning"],
    ids=["llama.cpp, SGLang, vLLM before 0.15, LM Studio", "vLLM, Ollama, LM Studio"],
)
def test_reasoning_is_read_under_both_its_names(name: str) -> None:
    done = replied({name: "Let me "}, {name: "see."}, {"content": "42"})
    assert (done.reasoning, done.text) == ("Let me see.", "42")


def test_vllm_that_sent_both_names_of_reasoning_is_read_once() -> None:
    assert replied({"reasoning": "a", "reasoning_content": "a"}).reasoning == "a"


def test_a_history_is_sent_as_it_is_so_either_name_of_reasoning_may_stand_in_it() -> None:
    past = {"role": "assistant", "content": "42", "reasoning": "Let me see."}
    assert body(VLLM, messages=[*HELLO, past, *HELLO])["messages"][1] == past
    assert "reasoning" not in replied({"content": "42", "reasoning": "x"}).message


def test_openai_hides_its_reasoning() -> None:
    assert replied({"role": "assistant", "content": "", "refusal": None}, {"content": "42"}).reasoning == ""


def test_llamacpp_and_vllm_send_a_tool_call_in_pieces() -> None:
    first = {"index": 0, "id": "x", "type": "function", "function": {"name": "look", "arguments": ""}}
    then = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"a"', ":1}")]
    done = replied(*({"tool_calls": [call]} for call in (first, *then)), finish="tool_calls")
    assert [(c.id, c.name, c.arguments) for c in done.tool_calls] == [("x", "look", '{"a":1}')]


def test_ollama_sends_a_tool_call_in_one_delta() -> None:
    call = {"index": 0, "id": "x", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    done = replied({"role": "assistant", "content": "", "tool_calls": [call]}, finish="tool_calls")
    assert [(c.name, c.arguments) for c in done.tool_calls] == [("look", "{}")]


def test_vllm_leaves_tool_calls_out_where_there_are_none() -> None:
    assert replied({"content": "a"}).tool_calls == []
    assert replied({"content": "a", "tool_calls": []}).tool_calls == []


def test_vllm_started_without_tool_calls_says_what_it_lacks() -> None:
    said = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    assert refused(VLLM, 400, said, type="BadRequestError", code=400) == "unsupported"


def test_vllm_with_another_parser_leaves_the_call_in_the_text() -> None:
    done = replied({"content": '<tool_call>{"name":"look"}</tool_call>'})
    assert (done.text, done.tool_calls) == ('<tool_call>{"name":"look"}</tool_call>', [])


def test_vllm_s_own_finish_reasons_are_handed_over() -> None:
    assert replied({"content": "a"}, finish="repetition").finish_reason == "repetition"


def test_vllm_s_stop_reason_is_passed_over() -> None:
    assert replied({"content": "a"}, stop_reason=151645).finish_reason == "stop"


def test_llamacpp_that_runs_out_of_context_says_length() -> None:
    assert replied({"content": "a"}, finish="length").finish_reason == "length"
