"""What was recorded of real servers, and what Maxwell is to make of it. The recordings: tests/data/wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from families.meeting import Expected, Server, World
from recorded import FAMILIES, Replay, recordings

NOT_RECORDED = "none was recorded"
NO_CHAT = "it does not chat"
NO_VECTORS = "it was recorded without an embedding model"
NO_RANKS = "no reranker of it was recorded"
ONE_LOADS = "it refuses connections until its model is loaded"
NO_SLEEP = "its models do not sleep"
NO_ROUTER = "it serves one model"
NO_THOUGHT = "none of the tiny models thinks"
KEY = "sekret"

BROKEN_GRAMMAR: Mapping[str, Expected] = {"a_broken_grammar_is_not_sent": {}}


_LLAMACPP_SAYS = {"text": " qu peo(", "usage": (18, 3), "cached": 17, "model": "models/tiny-chat.gguf"}
_LLAMACPP_REPLY = {**_LLAMACPP_SAYS, "timings": True}
_LLAMACPP_GRAMMAR = {"text": "yes"}
_LLAMACPP_CALL = [{"city": "Paris", "days": 4}]

LLAMACPP: Mapping[str, Expected] = {
    **BROKEN_GRAMMAR,
    "found_up": {"family": "llamacpp", "version": "b0-unknown"},
    "context_and_slots": {"context": 4096, "slots": 2},
    "how_busy": {},
    "another_model": {"how": "answers"},
    "the_key": {"server": "key"},
    "loading": {"server": "loading", "state": "loading"},
    "asleep": {"server": "asleep"},
    "a_router": {"server": "router"},
    "a_reply": _LLAMACPP_REPLY,
    "a_stream_is_the_reply": _LLAMACPP_REPLY,
    "other_line_ends": {**_LLAMACPP_REPLY, "crlf": True},
    "a_stop_string": {"stop": ["e"], "text": "p"},
    # Without a chunk of usage: only the last one's timings tell.
    "a_natural_end": {
        "server": "stops",
        "text": "peop one",
        "finish": "stop",
        "usage": (18, 3),
        "timings": True,
    },
    "tool_calls": {"server": "tools", "required": _LLAMACPP_CALL, "named": _LLAMACPP_CALL},
    "a_schema": {"text": '{ "ok" :false, "n" :54, "c" : "red"}'},
    "a_grammar": _LLAMACPP_GRAMMAR,
    "choices": {**_LLAMACPP_GRAMMAR, "choices": ["yes", "no"]},
    "a_regex": _LLAMACPP_GRAMMAR,
    "a_constraint_beside_tools": {"how": "refused", "says": "never calls a tool"},
    "an_overflow": {"kind": "context_overflow", "status": 400, "says": "12014 tokens"},
    "a_wrong_field": {"kind": "bad_request", "status": 400, "says": "Field 'temperature'"},
    "an_image_for_a_text_model": {"kind": "unsupported", "says": "its server takes no images", "requests": 0},
    "embeddings_of_a_chat_server": {"kind": "unsupported"},
    "chat_with_an_embedding_server": {"server": "embedding", "kind": "unsupported"},
    "counting": {"tokens": 18},
    "a_vector": {
        "server": "embedding",
        "family": "llamacpp",
        "context": 128,
        "vector": [-0.068860598, -0.048675027, -0.110594712],
        "tokens": 6,
    },
    "vectors_in_order": {
        "server": "embedding",
        "vectors": [[0.014298237, -0.089160956, -0.174092606], []],
    },
    "a_text_that_is_too_long": {"server": "embedding", "says so": True},
    "vectors_of_another_size": {"server": "embedding"},
    "ranking": {"server": "reranker", "order": [2, 1, 0]},
}
LLAMACPP_LACKS = {
    "a_constraint_that_is_ignored": "it ignores none that is sent to it",
    "an_error_in_the_stream": NOT_RECORDED,
    "room_for_thinking": NOT_RECORDED,
    "reasoning_apart": NO_THOUGHT,
    "tools_that_it_does_not_take": "it takes tools with every template",
    "no_reply_at_all": NOT_RECORDED,
    "a_reply_that_breaks_off": NOT_RECORDED,
    "an_error_of_the_servers": NOT_RECORDED,
}

_VLLM_REPLY = {"text": " onme", "usage": (19, 2), "model": "tiny-vllm", "pieces": 2}
_VLLM_GRAMMAR = {"text": "maybe-444"}

VLLM: Mapping[str, Expected] = {
    **BROKEN_GRAMMAR,
    "found_up": {"family": "vllm", "version": "0.32.0"},
    "context_and_slots": {"context": 2048, "slots": None},
    "how_busy": {},
    "another_model": {"how": "known before"},
    "the_key": {"server": "embedding", "kind": "embedding"},
    "a_reply": _VLLM_REPLY,
    "a_stream_is_the_reply": _VLLM_REPLY,
    "other_line_ends": {**_VLLM_REPLY, "crlf": True},
    "a_stop_string": {"stop": ["e"], "text": "u6%ou who hiQ qu"},
    # The calls that were recorded do not obey the tool's schema; a named one ends with "stop".
    "tool_calls": {
        "server": "tools",
        "required": [True, True],
        "named": [True],
        "obeys": False,
        "finish": ["length", "stop", "tool_calls"],
    },
    # A server without a parser for thinking: the refusal is in the stream.
    "room_for_thinking": {"text": " onme", "requests": 2},
    "an_error_in_the_stream": {
        "kind": "bad_request",
        "status": 400,
        "says": "Unimplemented keys",
        "extra": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
    },
    "a_schema": {},
    "a_grammar": _VLLM_GRAMMAR,
    "choices": {"text": "alpha"},
    "a_constraint_beside_tools": {"how": "refused", "says": "never calls a tool"},
    "an_overflow": {"kind": "context_overflow", "status": 400, "says": "2048 tokens"},
    "a_wrong_field": {"kind": "bad_request", "status": 400, "says": "float_parsing"},
    "an_image_for_a_text_model": {"kind": "unsupported", "status": 400, "says": "not a multimodal model"},
    "tools_that_it_does_not_take": {
        "kind": "unsupported",
        "status": 400,
        "says": "--enable-auto-tool-choice",
    },
    "embeddings_of_a_chat_server": {"kind": "unsupported"},
    "chat_with_an_embedding_server": {"server": "embedding", "kind": "unsupported"},
    "counting": {"tokens": 19},
    "a_vector": {"server": "embedding", "family": "vllm", "context": 128, "tokens": 6},
    "vectors_in_order": {
        "server": "embedding",
        "vectors": [[-0.0854567363858223, 0.0492253340780735, 0.060220327228307724], []],
    },
    "a_text_that_is_too_long": {"server": "embedding", "says so": True},
    "vectors_of_another_size": {"server": "embedding"},
}
VLLM_LACKS = {
    "a_constraint_that_is_ignored": "it ignores none that is sent to it",
    "loading": ONE_LOADS,
    "asleep": NO_SLEEP,
    "a_router": NO_ROUTER,
    "a_natural_end": "the tiny model never ends by itself",
    "reasoning_apart": NO_THOUGHT,
    "a_regex": "no reply to its `regex` was recorded",
    "no_reply_at_all": NOT_RECORDED,
    "a_reply_that_breaks_off": NOT_RECORDED,
    "an_error_of_the_servers": NOT_RECORDED,
    "ranking": NO_RANKS,
}

_TF_REPLY = {"text": " onme?", "usage": (19, 3), "model": "models/hf-tiny-chat@main"}
_TF_IGNORED = {"how": "ignored", "text": " onme?delme?delme?ll writeou who whichve witH witH wit"}

TRANSFORMERS: Mapping[str, Expected] = {
    **BROKEN_GRAMMAR,
    "found_up": {"family": "", "lists": False},  # its list of models is a 500
    "context_and_slots": {"context": 9999, "slots": None},
    "another_model": {"how": "refuses"},
    "a_reply": _TF_REPLY,  # no [DONE], and the usage stands in the chunk that ends it
    "a_stream_is_the_reply": _TF_REPLY,
    "other_line_ends": {**_TF_REPLY, "crlf": True},
    "a_schema": _TF_IGNORED,
    "a_grammar": {"how": "refused", "says": "grammar"},
    "choices": _TF_IGNORED,
    "a_regex": _TF_IGNORED,
    "an_overflow": {"how": "answers"},
    "a_wrong_field": {
        "kind": "unsupported",
        "status": 422,
        "says": "Unexpected fields",
        "extra": {"grammar": 'root ::= "a"'},
    },
    "embeddings_of_a_chat_server": {"kind": "unsupported"},
    "counting": {"exact": False},
}
TRANSFORMERS_LACKS = {
    "a_constraint_that_is_ignored": "see `a_schema`: it ignores all",
    "an_error_in_the_stream": NOT_RECORDED,
    "room_for_thinking": NOT_RECORDED,
    "how_busy": "it does not tell",
    "the_key": "it takes any key",
    "loading": ONE_LOADS,
    "asleep": NO_SLEEP,
    "a_router": NO_ROUTER,
    "a_stop_string": NOT_RECORDED,
    "a_natural_end": NOT_RECORDED,
    "reasoning_apart": NO_THOUGHT,
    "tool_calls": NOT_RECORDED,
    "a_constraint_beside_tools": NOT_RECORDED,
    "an_image_for_a_text_model": NOT_RECORDED,
    "tools_that_it_does_not_take": NOT_RECORDED,
    "no_reply_at_all": NOT_RECORDED,
    "a_reply_that_breaks_off": NOT_RECORDED,
    "an_error_of_the_servers": NOT_RECORDED,
    "chat_with_an_embedding_server": NO_VECTORS,
    "a_vector": NO_VECTORS,
    "vectors_in_order": NO_VECTORS,
    "a_text_that_is_too_long": NO_VECTORS,
    "vectors_of_another_size": NO_VECTORS,
    "ranking": NO_RANKS,
}

_LCP_REPLY = {"text": "peopto N", "model": "models/tiny-chat.gguf", "estimated": True}
_LCP_GRAMMAR = {"text": "maybe-082"}

LLAMA_CPP_PYTHON: Mapping[str, Expected] = {
    **BROKEN_GRAMMAR,
    "found_up": {"family": "llama-cpp-python"},  # it has no /health
    "context_and_slots": {"context": 9999, "slots": None},
    "another_model": {"how": "answers"},
    "the_key": {"server": "embedding", "kind": "embedding"},
    "a_reply": _LCP_REPLY,
    "a_stream_is_the_reply": _LCP_REPLY,
    "other_line_ends": {**_LCP_REPLY, "crlf": True},
    "a_grammar": _LCP_GRAMMAR,
    "choices": {**_LCP_GRAMMAR, "choices": ["maybe-082", "no"]},
    "a_regex": _LCP_GRAMMAR,
    "a_constraint_beside_tools": {"how": "refused", "says": "drop one"},
    "an_overflow": {"kind": "bad_reply"},  # a 200, and a stream with nothing in it
    "a_wrong_field": {
        "kind": "unsupported",
        "status": 500,
        "says": "'text' or 'json_object'",
        "extra": {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
    },
    # What it did with a malformed grammar, which only `extra` can send it.
    "no_reply_at_all": {"kind": "server_error", "extra": {"grammar": "garbage ((("}, "requests": 3},
    "a_reply_that_breaks_off": {"server": "cut", "text": "peopto"},
    "an_error_of_the_servers": {"extra": {"temperature": "hot"}},  # any error that it did not foresee
    "embeddings_of_a_chat_server": {"kind": "unsupported"},
    "counting": {"exact": False},
    "a_vector": {  # floats, though base64 was asked for
        "server": "embedding",
        "family": "llama-cpp-python",
        "context": 128,
        "vector": [-0.398188978433609, -0.2815656065940857, -0.6389748454093933],
        "tokens": 6,
    },
    "vectors_in_order": {
        "server": "embedding",
        "texts": ["hello", "the cat"],
        "vectors": [[-0.3981890082359314, -0.2815656065940857], []],
    },
    "a_text_that_is_too_long": {"server": "embedding", "says so": False},  # the server dies of it
    "vectors_of_another_size": {"server": "embedding"},
}
LLAMA_CPP_PYTHON_LACKS = {
    "a_constraint_that_is_ignored": "it ignores none that is sent to it",
    "an_error_in_the_stream": NOT_RECORDED,
    "room_for_thinking": NOT_RECORDED,
    "how_busy": "it does not tell",
    "loading": ONE_LOADS,
    "asleep": NO_SLEEP,
    "a_router": NO_ROUTER,
    "a_stop_string": NOT_RECORDED,
    "a_natural_end": NOT_RECORDED,
    "reasoning_apart": NO_THOUGHT,
    "tool_calls": NOT_RECORDED,
    "a_schema": "it is sent as a grammar, and no reply to one that means a schema was recorded",
    "an_image_for_a_text_model": NOT_RECORDED,
    "tools_that_it_does_not_take": NOT_RECORDED,
    "chat_with_an_embedding_server": NOT_RECORDED,
    "ranking": "it has no such route",
}

INFINITY: Mapping[str, Expected] = {
    "a_vector": {"server": "embedding", "family": "infinity", "context": 128},
    "vectors_in_order": {"server": "embedding", "texts": ["hello", "the cat"]},
    "a_text_that_is_too_long": {"server": "embedding", "says so": False},  # it would be cut
    "vectors_of_another_size": {"server": "embedding"},
    "chat_with_an_embedding_server": {"server": "embedding", "kind": "not chosen"},
}
INFINITY_LACKS = {
    **dict.fromkeys(
        (
            *("a_broken_grammar_is_not_sent", "context_and_slots", "another_model", "a_reply", "a_router"),
            *("a_stream_is_the_reply", "other_line_ends", "a_stop_string", "a_natural_end", "an_overflow"),
            *("reasoning_apart", "tool_calls", "a_schema", "a_grammar", "choices", "a_regex", "counting"),
            *("a_constraint_beside_tools", "a_wrong_field", "an_image_for_a_text_model", "no_reply_at_all"),
            *("tools_that_it_does_not_take", "a_reply_that_breaks_off", "an_error_of_the_servers"),
            *("embeddings_of_a_chat_server", "a_constraint_that_is_ignored", "an_error_in_the_stream"),
            "room_for_thinking",
        ),
        NO_CHAT,
    ),
    "found_up": "an LLM of it would not be chosen; `a_vector` looks at its family",
    "how_busy": "it does not tell",
    "the_key": NOT_RECORDED,
    "loading": ONE_LOADS,
    "asleep": NO_SLEEP,
    "ranking": NO_RANKS,
}

_MODELS = {
    "llamacpp": {"": "models/tiny-chat.gguf", "embedding": "models/tiny-embed.gguf", "router": "tiny-chat"},
    "vllm": {"": "tiny-vllm", "embedding": "tiny-embed"},
    "transformers": {"": "models/hf-tiny-chat"},
    "llama-cpp-python": {"": "models/tiny-chat.gguf", "embedding": "models/tiny-embed.gguf"},
    "infinity": {"": "models/hf-tiny-embed4"},
}
_BACKENDS = {"llamacpp": "llamacpp", "vllm": "vllm", "llama-cpp-python": "llamacpp"}
_KEYED = {("llamacpp", "key"), ("vllm", "embedding"), ("llama-cpp-python", "embedding")}


def _world(family: str, expects: Mapping[str, Expected], lacks: Mapping[str, str]) -> World:
    @contextmanager
    def play(name: str, expected: Expected, request: pytest.FixtureRequest) -> Iterator[Server]:
        with Replay(family, name, crlf=expected.get("crlf", False)) as replay:
            names: dict[str, Any] = _MODELS[family]
            yield Server(
                replay.url,
                names.get(name, names[""]),
                _BACKENDS.get(family, "openai"),
                lambda: [asked.path for asked in replay.asked],
                KEY if (family, name) in _KEYED else "",
                128 if name == "embedding" else 4096,
            )

    return World(f"recorded {family}", play, expects, lacks)


WORLDS = [
    _world("llamacpp", LLAMACPP, LLAMACPP_LACKS),
    _world("vllm", VLLM, VLLM_LACKS),
    _world("transformers", TRANSFORMERS, TRANSFORMERS_LACKS),
    _world("llama-cpp-python", LLAMA_CPP_PYTHON, LLAMA_CPP_PYTHON_LACKS),
    _world("infinity", INFINITY, INFINITY_LACKS),
]


def played() -> dict[str, set[str]]:
    """Which of the recorded servers the topics meet, by family."""
    return {
        world.name.removeprefix("recorded "): {str(e.get("server", "chat")) for e in world.expects.values()}
        for world in WORLDS
    }


def recorded() -> dict[str, set[str]]:
    """Which there are."""
    return {family: set(recordings(family)["servers"]) - {"errors"} for family in FAMILIES}
