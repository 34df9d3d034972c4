"""Text, usage, reasoning and tool calls, whole and in pieces. One test is one topic."""

from __future__ import annotations

import json
from typing import Any

import pytest
from families.asking import CHAT, WEATHER, chat, lm_of
from families.meeting import NAME, Meeting

from maxwell.types import Completion


def assert_reply(done: Completion, meeting: Meeting) -> None:
    expected, usage = meeting.expected, done.usage
    assert done.text == expected.get("text", done.text) != ""
    assert (done.reasoning, done.tool_calls, done.attempts) == ("", [], [NAME])
    assert done.finish_reason == expected.get("finish", "length")
    assert done.model == expected.get("model", done.model) != ""
    assert usage.estimated == expected.get("estimated", False)
    prompt, completion = expected.get("usage", (usage.prompt_tokens, usage.completion_tokens))
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, completion)
    assert usage.prompt_tokens > 0
    assert usage.cached_tokens == expected.get("cached", usage.cached_tokens)
    timings = done.timings
    assert timings.first_token_seconds is not None
    assert 0 < timings.first_token_seconds <= timings.total_seconds
    assert (timings.completion_tokens_per_sec is not None) == expected.get("timings", False)


def test_a_reply(meeting: Meeting) -> None:
    assert_reply(chat(meeting, max_tokens=3, seed=1, temperature=0.0), meeting)


def test_a_stream_is_the_reply(meeting: Meeting) -> None:
    with lm_of(meeting) as lm:
        options: dict[str, Any] = {"max_tokens": 3, "seed": 1, "temperature": 0.0}
        text = lm.generate("Hello", **options)
        stream = lm.stream("Hello", **options)
        pieces = list(stream)
        done = stream.completion
    assert done is not None
    assert done.text == "".join(pieces) == text
    assert len(pieces) == meeting.expected.get("pieces", 3)
    assert_reply(done, meeting)


def test_other_line_ends(meeting: Meeting) -> None:
    assert_reply(chat(meeting, max_tokens=3, seed=1, temperature=0.0), meeting)


def test_a_stop_string(meeting: Meeting) -> None:
    stops = meeting.expected["stop"]
    done = chat(meeting, stop=stops, max_tokens=200, seed=3, temperature=0.0)
    assert done.finish_reason == "stop"
    assert not any(stop in done.text for stop in stops)
    assert done.text == meeting.expected.get("text", done.text)


def test_a_natural_end(meeting: Meeting) -> None:
    done = chat(meeting, max_tokens=200, seed=5)
    assert_reply(done, meeting)
    assert done.usage.completion_tokens < 200


def test_reasoning_apart(meeting: Meeting) -> None:
    done = chat(meeting, max_tokens=200)
    assert (done.text, done.reasoning) == (meeting.expected["text"], meeting.expected["reasoning"])
    assert done.finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", "named"])
def test_tool_calls(meeting: Meeting, choice: str) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    tool_choice: Any = named if choice == "named" else choice
    done = chat(meeting, tools=[WEATHER], tool_choice=tool_choice, max_tokens=120, temperature=0.0)
    calls = done.tool_calls
    assert {call.name for call in calls} == {"get_weather"}
    assert len({call.id for call in calls}) == len(calls)
    assert all(call.id for call in calls)
    arguments = [json.loads(call.arguments) for call in calls]
    assert arguments == meeting.expected.get(choice, arguments)
    if meeting.expected.get("obeys", True):
        assert set(arguments[0]) == {"city", "days"}
    assert done.finish_reason in meeting.expected.get("finish", ["tool_calls"])


def test_room_for_thinking(meeting: Meeting) -> None:
    """Servers without it refuse it, pass it over, or say so in a stream that has begun."""
    done = chat(meeting, thinking_tokens=100, max_tokens=3)
    assert done.text == meeting.expected.get("text", done.text) != ""
    assert meeting.count(CHAT) in (meeting.expected.get("requests", 1), None)
