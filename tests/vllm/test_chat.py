"""Calls on a real vLLM: text, streams, usage, leaving early, tools, counting, refusals."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from calling import MODES, SOON, Calls
from real_vllm import RealVLLM, chat_entry, exchange, told

from maxwell.backends import get_backend
from maxwell.errors import CallTimeout, StatusError, StreamBroken
from maxwell.types import ChatCall

AT_ONCE = 4.0  # seconds; how soon a server must have let a request go
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_a_reply_is_what_the_server_says(chat_server: RealVLLM, calls: Calls, mode: str) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "seed": 7}
    reply = told(
        chat_server.url, "/v1/chat/completions", {"model": "tiny-chat", "messages": HELLO, **options}
    )
    got = calls.ask(mode, **options)
    assert got.text == reply["choices"][0]["message"]["content"]
    assert calls.used("v").tokens == reply["usage"]["total_tokens"]
    if got.completion is not None:
        usage = got.completion.usage
        told_usage = (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"])
        assert (usage.prompt_tokens, usage.completion_tokens) == told_usage
        assert not usage.estimated
        assert got.completion.finish_reason == reply["choices"][0]["finish_reason"] == "length"
        assert got.completion.model == "tiny-chat"


def test_a_seed_repeats_a_reply_and_another_does_not(calls: Calls) -> None:
    with calls.pool() as pool:
        lm = pool.get_lm()
        said = [lm.generate("Hello", seed=seed, temperature=1.5, max_tokens=24) for seed in (1, 2, 1)]
    assert said[0] == said[2] != said[1]


def test_stop_strings_end_a_reply_before_they_come(calls: Calls) -> None:
    with calls.pool() as pool:
        done = pool.get_lm().chat(HELLO, stop=["a", "e", "o", "t"], seed=3, temperature=1.0, max_tokens=400)
    assert done.finish_reason == "stop"
    assert not set("aeot") & set(done.text)
    assert done.usage.completion_tokens < 400


def test_a_conversation_goes_on(calls: Calls) -> None:
    with calls.pool() as pool:
        lm, messages = pool.get_lm(), list(HELLO)
        prompts = []
        for _ in range(3):
            done = lm.chat(messages, max_tokens=8)
            prompts.append(done.usage.prompt_tokens)
            messages += [done.message, {"role": "user", "content": "And then?"}]
    assert prompts == sorted(set(prompts))


def test_more_calls_than_it_takes_at_once(chat_server: RealVLLM, calls: Calls) -> None:
    async def main() -> list[str]:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()
            return await asyncio.gather(*(lm.generate("Hello", max_tokens=8) for _ in range(24)))

    assert len(asyncio.run(main())) == 24
    chat_server.wait_running(0, AT_ONCE)
    assert calls.used("v").held_tokens == 0


# --- leaving early

LONG: dict[str, Any] = {"max_tokens": 8000, "temperature": 1.0}


def assert_freed(calls: Calls, server: RealVLLM) -> None:
    server.wait_running(0, AT_ONCE)
    used = calls.used("v")
    assert used.held_tokens == 0
    assert 0 < used.tokens < 8000


def test_closing_a_stream_ends_the_generation(chat_server: RealVLLM, calls: Calls) -> None:
    with calls.pool() as pool:
        stream = pool.get_lm().stream("Hello", **LONG)
        next(stream)
        assert chat_server.running() == 1
        stream.close()
        assert_freed(calls, chat_server)


def test_a_timeout_ends_the_generation(chat_server: RealVLLM, calls: Calls) -> None:
    with pytest.raises((StreamBroken, CallTimeout)):
        calls.ask("generate", timeout=0.7, **LONG)
    assert_freed(calls, chat_server)


def test_cancelling_a_task_ends_the_generation(chat_server: RealVLLM, calls: Calls) -> None:
    async def main() -> None:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()
            task = asyncio.create_task(lm.generate("Hello", timeout=60, **LONG))
            while await asyncio.to_thread(chat_server.running) != 1:
                assert not task.done(), task.exception()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(assert_freed, calls, chat_server)

    asyncio.run(main())


def test_a_thread_that_waits_gets_its_turn(chat_server: RealVLLM, calls: Calls) -> None:
    """The server takes 4 at once: a fifth waits there, and is not taken for a failure."""
    with calls.pool() as pool:
        lm = pool.get_lm()
        streams = [lm.stream("Hello", **LONG) for _ in range(4)]
        for stream in streams:
            next(stream)
        said: list[str] = []
        fifth = threading.Thread(target=lambda: said.append(lm.generate("Hello", max_tokens=4)))
        fifth.start()
        for stream in streams:
            stream.close()
        fifth.join(SOON)
    assert len(said) == 1


# --- counting


CONVERSATIONS: list[list[dict[str, Any]]] = [
    HELLO,
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'the cat\n"and" the dog é 漢'}],
    [*HELLO, {"role": "assistant", "content": "Hello to you."}, {"role": "user", "content": "x" * 300}],
]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["short", "system", "turns"])
@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["plain", "tools"])
def test_what_it_counts_is_what_it_reads(
    calls: Calls, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    with calls.pool() as pool:
        counted = pool.count_tokens(messages, tools=tools)[0]
        done = pool.get_lm().chat(messages, tools=tools, max_tokens=1)
    assert (counted.tokens, counted.exact) == (done.usage.prompt_tokens, True)


def test_text_is_split_and_joined_again(calls: Calls) -> None:
    vllm, spec = get_backend("vllm"), calls.registry.llms[0]
    text = "the cat and\n\tthe dog é 漢 \U0001f600"
    split = vllm.tokenize(spec, text, None)
    assert split is not None
    tokens = vllm.decode_tokens(exchange(split).data)
    joined = vllm.detokenize(spec, tokens, None)
    assert joined is not None
    assert vllm.decode_text(exchange(joined).data) == text


# --- refusals


def refused(calls: Calls, **options: Any) -> StatusError:
    with pytest.raises(StatusError) as caught:
        calls.ask("chat", **options)
    assert calls.used("v").tokens == calls.used("v").held_tokens == 0
    return caught.value


def test_a_prompt_that_is_too_long_is_an_overflow(chat_server: RealVLLM, tmp_path: Path) -> None:
    # Nobody has asked the server yet how much it takes, and the registry says more than that.
    calls = Calls(tmp_path, chat_entry(chat_server, capabilities={"max_context": 65536}))
    error = refused(calls, prompt="a1 " * 9000, max_tokens=4)
    assert (error.kind, error.status) == ("context_overflow", 400)


def test_an_image_is_refused_for_good(calls: Calls) -> None:
    pixel = "data:image/png;base64,iVBORw0KGgo="
    content = [{"type": "image_url", "image_url": {"url": pixel}}, {"type": "text", "text": "What is this?"}]
    vllm, spec = get_backend("vllm"), calls.registry.llms[0]
    call = ChatCall(messages=[{"role": "user", "content": content}], max_tokens=4)
    answer = exchange(vllm.chat(spec, call, None))
    error = vllm.refusal(answer.status, answer.headers, answer.data, "v")
    assert (answer.status, error.kind) == (400, "unsupported")


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high"])
def test_thinking_may_be_asked_for(calls: Calls, effort: Any) -> None:
    with calls.pool() as pool:
        assert pool.get_lm().chat(HELLO, reasoning_effort=effort, max_tokens=4).text


def test_room_for_thinking_is_no_reason_to_refuse(calls: Calls) -> None:
    """A server without a reasoning parser answers 400 to a budget for thinking."""
    with calls.pool() as pool:
        done = pool.get_lm().chat(HELLO, thinking_tokens=100, max_tokens=4)
    assert 4 <= done.usage.completion_tokens <= 104


# --- tools


@pytest.mark.parametrize("choice", [None, "auto", "none", "required", "named"])
def test_tools_may_be_offered_in_every_way(calls: Calls, choice: str | None) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    options: Any = {"tools": [WEATHER], "max_tokens": 60, "temperature": 0.0}
    if choice is not None:
        options["tool_choice"] = named if choice == "named" else choice
    with calls.pool() as pool:
        done = pool.get_lm().chat(HELLO, **options)
    if choice in ("required", "named"):
        assert done.tool_calls
        assert {call.name for call in done.tool_calls} == {"get_weather"}
    else:
        assert (done.text != "", done.tool_calls) == (True, [])


def test_what_a_tool_answered_is_fed_back(calls: Calls) -> None:
    with calls.pool() as pool:
        lm = pool.get_lm()
        done = lm.chat(HELLO, tools=[WEATHER], tool_choice="required", max_tokens=60, temperature=0.0)
        answers = [
            {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sun": True})}
            for call in done.tool_calls
        ]
        again = lm.chat([*HELLO, done.message, *answers], tools=[WEATHER], tool_choice="none", max_tokens=8)
    assert again.usage.prompt_tokens > done.usage.prompt_tokens
    assert again.text
