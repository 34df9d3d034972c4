"""The contract: what Maxwell makes of a server, whatever its family. One test is one topic, see `meeting`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from wire.meeting import NAME, Meeting, World

from maxwell.errors import (
    BackendError,
    BadConstraint,
    ConstraintBroken,
    InputTooLong,
    NoEligibleLM,
    ReplyCutOff,
    StatusError,
    StreamBroken,
)
from maxwell.handles import LLM
from maxwell.lm_pool import LLMPool
from maxwell.types import Completion

CHAT = "/chat/completions"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "c": {"enum": ["red", "blue"]},
    },
    "required": ["ok", "n", "c"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= "yes" | "no" | "maybe-" [0-9]{3}'
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
IMAGE = "data:image/png;base64,iVBORw0KGgo="
KEY = "not-the-key"


@contextmanager
def lm_of(meeting: Meeting, **fields: Any) -> Iterator[LLM]:
    with meeting.pool(**fields) as pool:
        yield pool.get_lm()


def chat(meeting: Meeting, messages: list[dict[str, Any]] = HELLO, **options: Any) -> Completion:
    with lm_of(meeting) as lm:
        return lm.chat(messages, **options)


def refused(meeting: Meeting, messages: list[dict[str, Any]] = HELLO, **options: Any) -> BackendError:
    """The error of a call, which must be the expected one, after as many requests as are expected."""
    with pytest.raises(BackendError) as caught:
        chat(meeting, messages, **options)
    assert caught.value.kind == meeting.expected["kind"]
    assert caught.value.status == meeting.expected.get("status")
    assert str(caught.value).startswith(f"{NAME}: ")
    assert meeting.expected.get("says", "") in str(caught.value)
    assert meeting.count(CHAT) in (meeting.expected.get("requests", 1), None)
    return caught.value


def state_of(pool: LLMPool) -> Any:
    return pool.health(refresh=True)[0]


# --- what a server tells of itself


def test_found_up(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        status = state_of(pool)
    health, expected = status.health, meeting.expected
    assert (status.state, status.problem) == ("up", "")
    assert health.family == expected["family"]
    assert re.fullmatch(expected.get("version", ""), health.version)
    listed = [model.id for model in health.models]
    assert (meeting.server.model in listed) == expected.get("lists", True)
    assert meeting.count(CHAT) in (0, None)


def test_context_and_slots(meeting: Meeting) -> None:
    expected = meeting.expected
    with meeting.pool(context=9999) as pool:
        status = state_of(pool)
        assert (status.context, status.slots) == (expected["context"], expected["slots"])
        if expected["context"] < 9999:
            assert [r for r in status.remarks if "declares a context of 9999" in r]
            with pytest.raises(NoEligibleLM, match=f"context is {expected['context']:,}"):
                pool.get_lm(prompt="the cat " * 5000)


def test_how_busy(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        assert state_of(pool).health.busy == 0


def test_another_model(meeting: Meeting) -> None:
    """It answers to any name, it lists its names, or it refuses."""
    how = meeting.expected["how"]
    with meeting.pool(model="nope") as pool:
        if how == "known before":
            state_of(pool)
            with pytest.raises(NoEligibleLM, match=re.escape(meeting.server.model)):
                pool.get_lm()
            assert meeting.count(CHAT) in (0, None)
            return
        lm = pool.get_lm()
        if how == "answers":
            assert lm.chat(HELLO, max_tokens=3).text
            assert [remark for remark in state_of(pool).remarks if "to any name" in remark]
        else:
            with pytest.raises(StatusError, match="nope") as caught:
                lm.chat(HELLO, max_tokens=3)
            assert caught.value.kind == "model_missing"


@pytest.mark.parametrize("key", [KEY, ""])
def test_the_key(meeting: Meeting, key: str) -> None:
    kind = meeting.expected.get("kind", "llm")

    def use(pool: LLMPool) -> Any:
        if kind == "llm":
            return pool.get_lm().generate("Hello", max_tokens=3)
        return pool.get_embedding(NAME).embed("hello")

    with meeting.pool(kind, key=key) as pool:
        assert state_of(pool).state == ("misconfigured" if key else "blocked")
        with pytest.raises(NoEligibleLM) as caught:
            use(pool)
        assert KEY not in str(caught.value)
    with meeting.pool(kind) as pool:
        assert state_of(pool).state == "up"
        assert use(pool)


def test_loading(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        assert state_of(pool).state == meeting.expected["state"]
    assert meeting.count(CHAT) in (0, None)


def test_asleep(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        assert state_of(pool).state == "asleep"
        assert meeting.count("/slots") in (0, None), "it would be kept from sleeping"
        assert pool.get_lm().generate("Hello", max_tokens=2)


def test_a_router(meeting: Meeting) -> None:
    """Several models behind one address, loaded when they are first asked."""
    with meeting.pool() as pool:
        status = state_of(pool)
        assert (status.state, status.problem) == ("up", "")
        assert [model.loaded for model in status.health.models] == [False] * 3
        assert pool.get_lm().chat(HELLO, max_tokens=3).model == meeting.server.model
    with meeting.pool(model="nope") as pool:
        state_of(pool)
        with pytest.raises(NoEligibleLM, match="tiny-chat"):
            pool.get_lm()


# --- replies


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


# --- constraints


def constrained(meeting: Meeting, **constraint: Any) -> str | None:
    """The text, which must obey; None where the expected refusal came in its place."""
    how = meeting.expected.get("how", "obeys")
    if how == "obeys":
        text = chat(meeting, max_tokens=200, repair=False, **constraint).text
        assert text == meeting.expected.get("text", text)
        return text
    if how == "cut off":  # before it could be told that it does not obey
        with pytest.raises(ReplyCutOff) as caught:
            chat(meeting, max_tokens=200, repair=False, **constraint)
        assert caught.value.completion.text == meeting.expected["text"]
    else:
        with pytest.raises((NoEligibleLM, StatusError), match=meeting.expected["says"]):
            chat(meeting, max_tokens=200, **constraint)
        assert meeting.count(CHAT) in (0, None), "it was to be refused before it is sent"
    return None


def test_a_schema(meeting: Meeting) -> None:
    text = constrained(meeting, json_schema=SCHEMA)
    if text is not None:
        value = json.loads(text)
        assert set(value) == {"ok", "n", "c"}
        assert isinstance(value["ok"], bool)
        assert value["n"] in range(100)
        assert value["c"] in ("red", "blue")


def test_a_grammar(meeting: Meeting) -> None:
    text = constrained(meeting, grammar=GRAMMAR)
    assert text is None or re.fullmatch("yes|no|maybe-[0-9]{3}", text)


def test_choices(meeting: Meeting) -> None:
    choices = meeting.expected.get("choices", ["alpha", "beta"])
    assert constrained(meeting, choices=choices) in (None, *choices)


def test_a_regex(meeting: Meeting) -> None:
    text = constrained(meeting, regex="yes|no|maybe-[0-9]{3}")
    assert text is None or re.fullmatch("yes|no|maybe-[0-9]{3}", text)


def test_a_constraint_beside_tools(meeting: Meeting) -> None:
    text = constrained(meeting, json_schema=SCHEMA, tools=[WEATHER])
    assert text is None or set(json.loads(text)) == {"ok", "n", "c"}


def test_a_constraint_that_is_ignored(meeting: Meeting) -> None:
    with pytest.raises(ConstraintBroken) as caught:
        chat(meeting, json_schema=SCHEMA, repair=False)
    assert (caught.value.kind, caught.value.completion.finish_reason) == ("constraint_broken", "stop")
    assert caught.value.violation
    assert caught.value.completion.text == meeting.expected["text"]


def test_a_broken_grammar_is_not_sent(meeting: Meeting) -> None:
    """Where it is sent, it kills one family of servers."""
    with lm_of(meeting) as lm, pytest.raises(BadConstraint):
        lm.generate("Hello", grammar="garbage (((")
    assert meeting.count(CHAT) in (0, None)


# --- errors


def test_an_overflow(meeting: Meeting) -> None:
    """A prompt that is longer than Maxwell thinks: one token a character."""
    prompt = "zqx " * 2000
    if meeting.expected.get("how") == "answers":
        assert chat(meeting, [{"role": "user", "content": prompt}], max_tokens=4).text
        return
    refused(meeting, [{"role": "user", "content": prompt}], max_tokens=4)


def test_a_wrong_field(meeting: Meeting) -> None:
    refused(meeting, extra=meeting.expected.get("extra", {"temperature": "hot"}))


def test_an_image_for_a_text_model(meeting: Meeting) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    refused(meeting, [{"role": "user", "content": parts}], max_tokens=5)


def test_tools_that_it_does_not_take(meeting: Meeting) -> None:
    refused(meeting, tools=[WEATHER], max_tokens=50)


def test_an_error_in_the_stream(meeting: Meeting) -> None:
    """A 200, and the error in the first event."""
    refused(meeting, extra=meeting.expected.get("extra", {}))


def test_no_reply_at_all(meeting: Meeting) -> None:
    refused(meeting, extra=meeting.expected.get("extra", {}))


def test_a_reply_that_breaks_off(meeting: Meeting) -> None:
    pieces: list[str] = []
    with lm_of(meeting) as lm, pytest.raises(StreamBroken) as caught:
        pieces.extend(lm.stream("Hello", max_tokens=50))
    assert caught.value.kind == "broken_stream"
    assert caught.value.partial.text == "".join(pieces) == meeting.expected["text"]
    assert meeting.count(CHAT) in (1, None)
    assert caught.value.partial.usage.estimated
    assert caught.value.partial.finish_reason == "error"


def test_an_error_of_the_servers(meeting: Meeting) -> None:
    with pytest.raises(BackendError) as caught:
        chat(meeting, extra=meeting.expected.get("extra", {}))
    assert (caught.value.kind, caught.value.status) == ("server_error", 500)


def test_embeddings_of_a_chat_server(meeting: Meeting) -> None:
    with meeting.pool("embedding") as pool, pytest.raises(StatusError) as caught:
        pool.get_embedding(NAME).embed("x")
    assert caught.value.kind == meeting.expected["kind"]


def test_chat_with_an_embedding_server(meeting: Meeting) -> None:
    with pytest.raises((StatusError, NoEligibleLM)) as caught:
        chat(meeting)
    kind = caught.value.kind if isinstance(caught.value, StatusError) else "not chosen"
    assert kind == meeting.expected["kind"]


# --- tokens, vectors, ranks


def test_counting(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        found = pool.count_tokens(HELLO)[0]
        done = pool.get_lm().chat(HELLO, max_tokens=3)
    assert found.exact == meeting.expected.get("exact", True)
    if found.exact:
        assert found.tokens == done.usage.prompt_tokens == meeting.expected.get("tokens", found.tokens)


def test_a_vector(meeting: Meeting) -> None:
    with meeting.pool("embedding") as pool:
        status = state_of(pool)
        assert status.health.family == meeting.expected["family"]
        assert status.context == meeting.expected["context"]
        vector = pool.get_embedding(NAME).embed("hello")
        used = pool.usage()[NAME]
    assert len(vector) == 64
    assert vector[:3] == pytest.approx(meeting.expected.get("vector", vector[:3]), abs=1e-6)
    assert used.tokens == meeting.expected.get("tokens", used.tokens) > 0


def test_vectors_in_order(meeting: Meeting) -> None:
    texts = meeting.expected.get("texts", ["hello world", "the cat"])
    with meeting.pool("embedding") as pool:
        vectors = pool.get_embedding(NAME).embed_many(texts)
    assert [len(vector) for vector in vectors] == [64, 64]
    assert vectors[0] != vectors[1]
    for vector, begins in zip(vectors, meeting.expected.get("vectors", vectors), strict=True):
        assert vector[: len(begins)] == pytest.approx(begins, abs=1e-6)


def test_a_text_that_is_too_long(meeting: Meeting) -> None:
    """Whether the server says so, cuts it without a word or dies of it."""
    with meeting.pool("embedding") as pool:
        state_of(pool)
        with pytest.raises(InputTooLong, match="text 1 "):
            pool.get_embedding(NAME).embed_many(["ok", "the cat " * 200])
    asked = meeting.count("/embeddings")
    assert asked is None or asked == int(meeting.expected["says so"])


def test_vectors_of_another_size(meeting: Meeting) -> None:
    from maxwell.errors import DimensionMismatch

    with meeting.pool("embedding", dimension=65) as pool, pytest.raises(DimensionMismatch, match="64"):
        pool.get_embedding(NAME).embed("hello")


def test_ranking(meeting: Meeting) -> None:
    documents = ["the cat", "way down", "no"]
    with meeting.pool("reranker") as pool:
        reranker = pool.get_reranker(NAME)
        ranked = reranker.rerank("a cat", documents)
        best = reranker.rerank("a cat", documents, top_n=1)
    assert sorted(one.index for one in ranked) == [0, 1, 2]
    assert [documents[one.index] for one in ranked] == [one.document for one in ranked]
    scores = [one.score for one in ranked]
    assert scores == sorted(scores, reverse=True)
    assert [one.index for one in ranked] == meeting.expected.get("order", [one.index for one in ranked])
    assert best == ranked[:1]


TESTS = {name: test for name, test in globals().items() if name.startswith("test_")}
TOPICS = {name.removeprefix("test_") for name in TESTS}


def asked_of(worlds: Sequence[World]) -> dict[str, Any]:
    """The tests that some of these worlds have something to be asked for, and the one of what they lack."""
    asked = {topic for world in worlds for topic in world.expects}
    here = {name: test for name, test in TESTS.items() if name.removeprefix("test_") in asked}
    return {**here, "test_every_topic_is_asked_or_has_a_reason": every_topic_is_asked_or_has_a_reason}


def every_topic_is_asked_or_has_a_reason(request: pytest.FixtureRequest) -> None:
    worlds: list[World] = request.module.WORLDS
    assert len({world.name for world in worlds}) == len(worlds)
    for world in worlds:
        assert world.expects.keys() & world.lacks.keys() == set(), world.name
        assert world.expects.keys() | world.lacks.keys() == TOPICS, world.name
        assert all(len(reason.split()) > 1 for reason in world.lacks.values()), world.name
