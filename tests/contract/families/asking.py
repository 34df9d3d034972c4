"""How the topics call, and what they call with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from families.meeting import NAME, Meeting

from maxwell.errors import BackendError
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
