from __future__ import annotations

import json
from typing import Any

import pytest
from calling import make_registry

from maxwell.backends.wire import decode_chunk
from maxwell.calls.reply import Reply
from maxwell.types import Usage

A, B = '{"a":1}', '{"b":2}'
ENTRY = {"name": "one", "api_base": "http://one", "model": "m", "backend": "openai", "default_temperature": 0}
CAN = {"max_tokens": 9, "max_context": 99, "speed_tokens_per_sec": 9}


def delta(name: Any, arguments: Any, **fields: Any) -> dict[str, Any]:
    """A call, or a piece of one where there is no name."""
    function = {"arguments": arguments} | ({"name": name} if name is not None else {})
    return {"type": "function", "function": function, **fields}


def called(*chunks: Any) -> list[tuple[str, str, str]]:
    """The calls that a reply of these chunks has; a chunk is a delta or a list of them."""
    reply = Reply(make_registry({**ENTRY, "capabilities": CAN}).llms[0], 1, 0.0)
    for chunk in chunks:
        choice = {"index": 0, "delta": {"tool_calls": chunk if isinstance(chunk, list) else [chunk]}}
        reply.add(decode_chunk(json.dumps({"choices": [choice]}).encode()), lambda: 1.0)
    done = reply.completion(2.0, ["one"], Usage(), 0.0)
    return [(call.id, call.name, call.arguments) for call in done.tool_calls]


TWO = [("x", "f", A), ("y", "g", B)]
NAMELESS = [("", "f", A), ("", "g", B)]


@pytest.mark.parametrize(
    ("chunks", "calls"),
    [
        pytest.param(
            [
                delta("f", "", index=0, id="x"),
                delta(None, '{"a"', index=0),
                delta("g", "", index=1, id="y"),
                delta(None, ":1}", index=0),
                delta(None, B, index=1),
            ],
            TWO,
            id="in pieces that take turns",
        ),
        pytest.param([delta("f", A, index=0, id="x"), delta("g", B, index=1, id="y")], TWO, id="whole"),
        pytest.param([[delta("f", A, index=0, id="x"), delta("g", B, index=1, id="y")]], TWO, id="one chunk"),
        pytest.param(
            [delta("f", A, index=0, id="x"), delta("g", B, index=0, id="y")], TWO, id="all number 0"
        ),
        pytest.param(
            [
                delta("f", "", index=0, id="x"),
                delta(None, A, index=0, id=""),
                delta("g", "", index=0, id="y"),
                delta(None, B, index=0, id=""),
            ],
            TWO,
            id="all number 0 in pieces",
        ),
        pytest.param([delta("f", A, index=0), delta("g", B, index=0)], NAMELESS, id="all number 0, no ids"),
        pytest.param([delta("f", A, id="x"), delta("g", B, id="y")], TWO, id="no numbers"),
        pytest.param(
            [delta("f", '{"a"', id="x"), delta(None, ":1}"), delta("g", B, id="y")],
            TWO,
            id="no numbers in pieces",
        ),
        pytest.param([[delta("f", A), delta("g", B)]], NAMELESS, id="no numbers, no ids"),
        pytest.param([delta("f", A), delta("f", B)], [("", "f", A), ("", "f", B)], id="the same one twice"),
        pytest.param([delta("f", {"a": 1}, index=0, id="x")], TWO[:1], id="arguments as an object"),
        pytest.param(
            [delta("f", '{"a"', index=0, id="x"), delta("f", ":1}", index=0, id="x")],
            TWO[:1],
            id="all repeated",
        ),
        pytest.param(
            [delta("f", '{"a"', index=0), delta("f", ":1}", index=0)], NAMELESS[:1], id="the name repeated"
        ),
        pytest.param(
            [delta("f", '{"a"', index=0, id="x"), delta(None, ":1}", index=0, id="z")],
            TWO[:1],
            id="an id for each piece",
        ),
        pytest.param(
            [delta("f", None, index=0, id="x"), delta("", A, index=0, id="")],
            TWO[:1],
            id="empty names and ids",
        ),
        pytest.param(
            [delta("f", "", index=1, id="x"), delta(None, A, index=1)], TWO[:1], id="numbers from 1"
        ),
    ],
)
def test_calls_of_tools_are_put_together(chunks: list[Any], calls: list[tuple[str, str, str]]) -> None:
    assert called(*chunks) == calls
