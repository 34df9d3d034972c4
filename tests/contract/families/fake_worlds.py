"""`maxwell.testing.FakeServer` in its three dialects: what users test with has to keep the contract, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from families.meeting import Expected, Server, World

from maxwell.testing import FakeServer, faults
from maxwell.types import BackendName

KEY = "sekret"
REPLY = {"text": "Hello there,"}  # three tokens of "Hello there, friend."
THOUGHT = {"text": "Six.", "reasoning": "Two times three"}
CALL = [{"city": "Paris", "days": 4}]
SCHEMA = {"text": '{"ok": true, "n": 7, "c": "red"}'}
TIMED = {**REPLY, "timings": True}
SLOW = {"tokens_per_sec": 500.0}  # so that a stream comes in pieces

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "chat": {},
    "key": {"api_key": KEY},
    "thinker": {"reply": THOUGHT["text"], "reasoning": THOUGHT["reasoning"]},
    "caller": {"tool_calls": [("get_weather", CALL[0])]},
    "embedding": {"embeddings": True, "context": 128},
    "reranker": {"reranker": True},
    "small": {"token_bytes": 1},  # a token a character
}


def says(text: str, **more: Any) -> Expected:
    """An obedient model: `text` comes only where the request holds a constraint that the server honours."""
    return {"options": {"constrained_reply": text}, "text": text, **more}


COMMON: Mapping[str, Expected] = {
    "a_broken_grammar_is_not_sent": {},
    "context_and_slots": {"context": 4096, "slots": None},
    "the_key": {"server": "key"},
    "a_reply": REPLY,
    "a_stream_is_the_reply": {**REPLY, "options": SLOW},
    "other_line_ends": {**REPLY, "fault": faults.CRLF()},
    "a_stop_string": {"stop": [" there"], "text": "Hello"},
    "a_natural_end": {"text": "Hello there, friend.", "finish": "stop"},
    "reasoning_apart": {**THOUGHT, "server": "thinker"},
    "room_for_thinking": {"text": "Hello there, friend."},
    "tool_calls": {"server": "caller", "required": CALL, "named": CALL},
    "a_schema": says(SCHEMA["text"]),
    "a_grammar": says("maybe-123"),
    "choices": says("beta"),
    "a_regex": says("no"),
    "a_constraint_beside_tools": {"how": "refused", "says": "never calls a tool"},
    "a_constraint_that_is_ignored": {
        "options": {"reply": "Well?", "constrained_reply": SCHEMA["text"]},
        "fault": faults.IgnoreConstraints(),
        "text": "Well?",
    },
    "an_error_in_the_stream": {
        "fault": faults.ErrorFrame(code=400, message="Grammar error: Unimplemented keys"),
        "kind": "bad_request",
        "status": 400,
        "says": "Unimplemented keys",
    },
    "an_overflow": {"server": "small", "kind": "context_overflow", "status": 400},
    "a_wrong_field": {"kind": "bad_request", "status": 400},
    "an_image_for_a_text_model": {"kind": "unsupported", "status": 400, "says": "multimodal"},
    "no_reply_at_all": {"fault": faults.Reset(), "times": None, "kind": "server_error", "requests": 3},
    "a_reply_that_breaks_off": {"fault": faults.Cut(after=2), "text": "Hello th"},
    "an_error_of_the_servers": {"fault": faults.ServerError(), "times": None},
    "embeddings_of_a_chat_server": {"kind": "unsupported"},
    "chat_with_an_embedding_server": {"server": "embedding", "kind": "unsupported"},
    "counting": {},
    "vectors_in_order": {"server": "embedding"},
    "a_text_that_is_too_long": {"server": "embedding", "says so": True},
    "vectors_of_another_size": {"server": "embedding"},
    "ranking": {"server": "reranker"},
}

LLAMACPP: Mapping[str, Expected] = {
    **COMMON,
    "found_up": {"family": "llamacpp", "version": "b0-unknown"},
    "context_and_slots": {"context": 4096, "slots": 4},
    "how_busy": {},
    "another_model": {"how": "answers"},
    "loading": {"state": "loading", "condition": "loading"},
    "asleep": {"condition": "asleep"},
    "a_reply": TIMED,
    "a_stream_is_the_reply": {**TIMED, "options": SLOW},
    "other_line_ends": {**TIMED, "fault": faults.CRLF()},
    "a_natural_end": {**COMMON["a_natural_end"], "timings": True},
    "an_image_for_a_text_model": {
        "kind": "unsupported",
        "says": "its server takes no images",
        "requests": 0,
    },
    "a_vector": {"server": "embedding", "family": "llamacpp", "context": 128},
}
LLAMACPP_LACKS = {
    "a_router": "the fake serves one model",
    "tools_that_it_does_not_take": "it takes tools with every template",
}

VLLM: Mapping[str, Expected] = {
    **COMMON,
    "found_up": {"family": "vllm", "version": "0.32.0"},
    "how_busy": {},
    "another_model": {"how": "known before"},
    "a_vector": {"server": "embedding", "family": "vllm", "context": 128},
}
VLLM_LACKS = {
    "loading": "it refuses connections until its model is loaded",
    "asleep": "its models do not sleep",
    "a_router": "it serves one model",
    "tools_that_it_does_not_take": "the fake always takes tools",
}

OPENAI: Mapping[str, Expected] = {
    **COMMON,
    "found_up": {"family": "openai"},
    "context_and_slots": {"context": 9999, "slots": None},
    "another_model": {"how": "known before"},
    "reasoning_apart": {**THOUGHT, "reasoning": "", "server": "thinker"},
    # Its error frames name no status.
    "an_error_in_the_stream": {**COMMON["an_error_in_the_stream"], "status": None},
    "a_grammar": {"how": "refused", "says": "ignores grammars"},
    "choices": {"options": {"constrained_reply": '{"value": "beta"}'}, "text": "beta"},
    "a_regex": {"options": {"constrained_reply": '{"value": "no"}'}, "text": "no"},
    "a_constraint_beside_tools": says(SCHEMA["text"]),
    "an_image_for_a_text_model": {"kind": "unsupported", "status": 400, "says": "image_url"},
    "counting": {"exact": False},
    "a_vector": {"server": "embedding", "family": "openai", "context": 128},
}
OPENAI_LACKS = {
    "how_busy": "it does not tell",
    "loading": "its models are always loaded",
    "asleep": "its models do not sleep",
    "a_router": "it takes any of the models it lists, and all are loaded",
    "tools_that_it_does_not_take": "the fake always takes tools",
    "embeddings_of_a_chat_server": "it does both",
    "chat_with_an_embedding_server": "it does both",
    "ranking": "it has no such route",
}


def _world(dialect: BackendName, expects: Mapping[str, Expected], lacks: Mapping[str, str]) -> World:
    @contextmanager
    def fake(name: str, expected: Expected, request: pytest.FixtureRequest) -> Iterator[Server]:
        options = {**OPTIONS[name], **expected.get("options", {})}
        with FakeServer(dialect, **options) as server:
            if "fault" in expected:
                server.fail(expected["fault"], times=expected.get("times", 1))
            server.set_state(expected.get("condition", "up"))
            yield Server(
                server.url,
                server.llm_entry("x")["model"],
                dialect,
                lambda: [asked.path for asked in server.requests],
                options.get("api_key", ""),
                options.get("context", 4096),
            )

    kept = {topic: expected for topic, expected in expects.items() if topic not in lacks}
    return World(f"fake {dialect}", fake, kept, lacks)


WORLDS = [
    _world("llamacpp", LLAMACPP, LLAMACPP_LACKS),
    _world("vllm", VLLM, VLLM_LACKS),
    _world("openai", OPENAI, OPENAI_LACKS),
]
