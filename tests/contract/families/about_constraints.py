"""A constraint is obeyed, refused before it is sent, or its breach is told. One test is one topic."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from families.asking import CHAT, GRAMMAR, SCHEMA, WEATHER, chat, lm_of
from families.meeting import Meeting

from maxwell.errors import BadConstraint, ConstraintBroken, NoEligibleLM, StatusError


def constrained(meeting: Meeting, **constraint: Any) -> str | None:
    """The text, which must obey; None where the expected refusal came in its place."""
    how, asks = meeting.expected.get("how", "obeys"), meeting.expected.get("asks", {})
    if how == "obeys":
        text = chat(meeting, max_tokens=400, repair=False, **asks, **constraint).text
        assert text == meeting.expected.get("text", text)
        return text
    if how == "ignored":
        with pytest.raises(ConstraintBroken) as caught:
            chat(meeting, max_tokens=400, repair=False, **constraint)
        assert caught.value.completion.text == meeting.expected["text"]
    else:
        with pytest.raises((NoEligibleLM, StatusError), match=meeting.expected["says"]):
            chat(meeting, max_tokens=400, **constraint)
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
