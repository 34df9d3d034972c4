"""A real vLLM over tiny generated models. Only tests/vllm collects this: it has the servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from families.meeting import Expected, Server, World
from real_vllm import KEY, RealVLLM

LACKS = {
    "how_busy": "what came before may still be at work",
    "loading": "it refuses connections until its model is loaded",
    "asleep": "its models do not sleep",
    "a_router": "it serves one model",
    "other_line_ends": "its lines end in LF",
    "a_natural_end": "the tiny model never ends by itself",
    "reasoning_apart": "the tiny model does not think",
    "a_constraint_that_is_ignored": "it ignores none that is sent to it",
    "tools_that_it_does_not_take": "it is started so that it takes them",
    "no_reply_at_all": "it would have to be killed",
    "a_reply_that_breaks_off": "it would have to be killed",
    "an_error_of_the_servers": "it makes none",
}
REPLY = {"model": "tiny-chat"}
EXPECTS: Mapping[str, Expected] = {
    "a_broken_grammar_is_not_sent": {},
    "found_up": {"family": "vllm", "version": r"0\.32\.\d+.*"},
    "context_and_slots": {"context": 8192, "slots": None},
    "another_model": {"how": "known before"},
    "the_key": {"server": "embedding", "kind": "embedding"},
    "a_reply": REPLY,
    "a_stream_is_the_reply": REPLY,
    "a_stop_string": {"stop": ["a", "e", "o", "t"]},
    "room_for_thinking": {},
    "tool_calls": {"finish": ["length", "stop", "tool_calls"], "obeys": False},
    "a_schema": {"asks": {"temperature": 1.5, "seed": 1}},  # else it may write spaces until it is cut off
    "a_grammar": {},
    "choices": {},
    "a_regex": {},
    "a_constraint_beside_tools": {"how": "refused", "says": "never calls a tool"},
    "an_error_in_the_stream": {
        "kind": "bad_request",
        "status": 400,
        "extra": {"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}},
    },
    "an_overflow": {"kind": "context_overflow", "status": 400, "says": "8192 tokens", "words": 3000},
    "a_wrong_field": {"kind": "bad_request", "status": 400, "says": "temperature"},
    "an_image_for_a_text_model": {"kind": "unsupported", "status": 400, "says": "not a multimodal model"},
    "embeddings_of_a_chat_server": {"kind": "unsupported"},
    "chat_with_an_embedding_server": {"server": "embedding", "kind": "unsupported"},
    "counting": {},
    "a_vector": {"server": "embedding", "family": "vllm", "context": 128},
    "vectors_in_order": {"server": "embedding"},
    "a_text_that_is_too_long": {"server": "embedding", "says so": True},
    "vectors_of_another_size": {"server": "embedding"},
    "ranking": {"server": "embedding"},  # by the vectors' likeness
}


@contextmanager
def _open(name: str, expected: Expected, request: pytest.FixtureRequest) -> Iterator[Server]:
    if name == "embedding":
        embedding: RealVLLM = request.getfixturevalue("embed_server")
        yield Server(embedding.url, "tiny-embed", "vllm", None, KEY, 128)
    else:
        chat: RealVLLM = request.getfixturevalue("chat_server")
        yield Server(chat.url, "tiny-chat", "vllm", None, "", 4096)


WORLDS = [World("real vllm", _open, EXPECTS, LACKS)]
