"""A real llama.cpp over tiny generated models. Whoever collects this needs the fixture `llamas`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from families.meeting import Expected, Server, World

KEY = "a-key-for-loopback"
LACKS = {
    "how_busy": "what came before may still be at work",
    "loading": "a tiny model is loaded before anybody can look",
    "asleep": "the servers are not started so that they fall asleep",
    "a_router": "the servers are started with one model",
    "other_line_ends": "its lines end in LF",
    "a_constraint_that_is_ignored": "it ignores none",
    "an_error_in_the_stream": "it looks at a request before it begins to answer",
    "reasoning_apart": "none of the tiny models thinks",
    "tools_that_it_does_not_take": "it takes tools with every template",
    "no_reply_at_all": "it would have to be killed; tests/real does",
    "a_reply_that_breaks_off": "it would have to be killed; tests/real does",
    "an_error_of_the_servers": "it makes none",
}
TIMED = {"timings": True, "model": "tiny"}
EXPECTS: Mapping[str, Expected] = {
    "a_broken_grammar_is_not_sent": {},
    "found_up": {"family": "llamacpp", "version": r"b\d+-\w+"},
    "context_and_slots": {"context": 4096, "slots": 2},
    "another_model": {"how": "answers"},
    "the_key": {"server": "stops"},
    "a_reply": TIMED,
    "a_stream_is_the_reply": TIMED,
    "a_stop_string": {"stop": ["a", "e", "o", "t"]},
    "a_natural_end": {**TIMED, "server": "stops", "finish": "stop"},
    "room_for_thinking": {},
    "tool_calls": {"server": "tools"},
    "a_schema": {},
    "a_grammar": {},
    "choices": {},
    "a_regex": {},
    "a_constraint_beside_tools": {"how": "refused", "says": "never calls a tool"},
    "an_overflow": {"kind": "context_overflow", "status": 400, "says": "4096 tokens"},
    "a_wrong_field": {"kind": "bad_request", "status": 400, "says": "temperature"},
    "an_image_for_a_text_model": {
        "kind": "unsupported",
        "says": "its server takes no images",
        "requests": 0,
    },
    "embeddings_of_a_chat_server": {"kind": "unsupported"},
    "chat_with_an_embedding_server": {"server": "embedding", "kind": "unsupported"},
    "counting": {},
    "a_vector": {"server": "embedding", "family": "llamacpp", "context": 128},
    "vectors_in_order": {"server": "embedding"},
    "a_text_that_is_too_long": {"server": "embedding", "says so": True},
    "vectors_of_another_size": {"server": "embedding"},
    "ranking": {"server": "reranker"},
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "chat": {"context": 8192, "slots": 2},
    "stops": {"context": 4096, "api_key": KEY},
    "tools": {"context": 4096},
    "embedding": {"embedding": True},
    "reranker": {"embedding": True},
}


class Llamas:
    """Starts each server when it is first wanted; all of them run until `close`."""

    def __init__(self, directory: Path) -> None:
        from maxwell.local.tiny_models import demo_models, write_reranker

        self._models = demo_models(directory)
        self._models |= {"chat": self._models["fast"], "reranker": directory / "tiny-reranker.gguf"}
        write_reranker(self._models["reranker"])
        self._urls: dict[str, str] = {}
        self._running = ExitStack()

    def url(self, name: str) -> str:
        from maxwell.local.server import LocalServer

        if name not in self._urls:
            server = LocalServer(self._models[name], alias="tiny", **_OPTIONS[name])
            self._urls[name] = self._running.enter_context(server).url
        return self._urls[name]

    def close(self) -> None:
        self._running.close()


@contextmanager
def _open(name: str, expected: Expected, request: pytest.FixtureRequest) -> Iterator[Server]:
    llamas: Llamas = request.getfixturevalue("llamas")
    context = 128 if name in ("embedding", "reranker") else 4096
    key = _OPTIONS[name].get("api_key", "")
    yield Server(llamas.url(name), "tiny", "llamacpp", None, key, context)


WORLDS = [World("real llamacpp", _open, EXPECTS, LACKS, marks=[pytest.mark.real])]
