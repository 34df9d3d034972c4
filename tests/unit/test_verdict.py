"""Whether a whole reply obeys: wrapped or not, refused, cut off, filtered."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.calls.verdict import judged
from maxwell.constraints import constraint_of
from maxwell.errors import ConstraintBroken, ReplyCutOff
from maxwell.types import Completion, Constraint, Timings, Usage


def made(**options: Any) -> Constraint:
    constraint = constraint_of(**options)
    assert constraint is not None
    return constraint


TEXT = made(json_schema={"type": "string"})
NUMBER = made(json_schema={"type": "number"})
LIST = made(json_schema={"type": "array"})
WORD = made(regex="[a-zé😀]+")
CHOICES = made(choices=["true", "7", "yes"])


def reply(text: str, finish_reason: str = "stop", reasoning: str = "") -> Completion:
    return Completion(
        text=text,
        reasoning=reasoning,
        finish_reason=finish_reason,
        usage=Usage(7, 3),
        cost_usd=0.0,
        timings=Timings(1.0),
        llm="one",
    )


def wrapped(constraint: Constraint, text: str) -> str:
    return judged(reply(text), constraint, wrapped=True).text


# --- out of the wrapping


@pytest.mark.parametrize(
    ("constraint", "sent", "text"),
    [
        (TEXT, '{"value":"Oslo"}', '"Oslo"'),  # a schema asks for JSON
        (TEXT, ' {"value" : "a\\"b"}\n', '"a\\"b"'),
        (made(json_schema={"type": ["string", "null"]}), '{"value":null}', "null"),
        (made(json_schema={"enum": ["a", 1]}), '{"value":"a"}', '"a"'),
        (LIST, '{"value": [1, "é😀"]}', '[1, "é😀"]'),
        (WORD, '{"value":"é😀"}', "é😀"),
        (WORD, '{"value":"\\u00e9"}', "é"),
        (CHOICES, '{"value":"7"}', "7"),
    ],
)
def test_the_value_is_the_reply(constraint: Constraint, sent: str, text: str) -> None:
    assert wrapped(constraint, sent) == text


@pytest.mark.parametrize(
    "digits", ["1.10", "1e5", "-0.0", "123456789012345678901234567890", "0.1000000000000000000001"]
)
def test_a_number_stays_as_it_was_written(digits: str) -> None:
    assert wrapped(NUMBER, f'{{"value":{digits}}}') == digits


@pytest.mark.parametrize(
    ("constraint", "sent", "words"),
    [
        (WORD, "", "not JSON"),
        (WORD, "oslo", "not JSON"),
        (WORD, '{"value":"oslo"} and more', "not JSON"),
        (WORD, '```json\n{"value":"oslo"}\n```', "not JSON"),
        (WORD, '{"value":"oslo"', "not JSON"),
        (WORD, '{"value":"\\ud83d"}', "not JSON"),  # half a character
        (WORD, '"oslo"', "object"),
        (WORD, "[]", "object"),
        (WORD, "{}", "value"),
        (WORD, '{"values":"oslo"}', "value"),
        (WORD, '{"value":"oslo","why":"it is"}', "why"),
        (WORD, '{"value":"oslo","value":"rome"}', "twice"),
        (WORD, '{"value":null}', "string"),
        (CHOICES, '{"value":true}', "string"),
        (CHOICES, '{"value":7}', "string"),
        (NUMBER, '{"value":1e999}', "beyond"),
        (NUMBER, '{"value":NaN}', "NaN"),
        (NUMBER, '{"value":' + "9" * 5000 + "}", "digits"),
        (LIST, '{"value":' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        (LIST, '{"value":[{"a":1,"a":2}]}', "twice"),
    ],
)
def test_what_is_not_that_value_is_broken(constraint: Constraint, sent: str, words: str) -> None:
    with pytest.raises(ConstraintBroken, match=words) as caught:
        wrapped(constraint, sent)
    assert caught.value.kind == "constraint_broken"
    assert caught.value.completion.usage == Usage(7, 3)
    assert len(str(caught.value)) < 400


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(value=values, is_ascii=st.booleans())
def test_any_value_comes_out_as_it_went_in(value: Any, is_ascii: bool) -> None:
    anything = made(json_schema={"title": "anything"})
    text = wrapped(anything, json.dumps({"value": value}, ensure_ascii=is_ascii))
    assert json.loads(text) == value


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=40))
def test_no_wrapping_brings_it_down(text: str) -> None:
    for constraint in (TEXT, WORD, CHOICES):
        try:
            done = wrapped(constraint, text)
        except ConstraintBroken:
            continue
        assert msgspec.json.decode(text)["value"] in (done, msgspec.json.decode(done))


# --- not all that is wrong is disobedience


def test_a_refusal_in_words_is_no_disobedience() -> None:
    with pytest.raises(ConstraintBroken, match='the model refused, "I will not') as caught:
        judged(reply("I will  not.\n" * 100), WORD, wrapped=True, refused=True)
    assert caught.value.kind == "content_policy"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_what_a_content_filter_ended_is_no_disobedience(is_wrapped: bool) -> None:
    with pytest.raises(ConstraintBroken, match="content filter") as caught:
        judged(reply('{"val', "content_filter"), NUMBER, wrapped=is_wrapped)
    assert caught.value.kind == "content_policy"


def test_what_obeys_although_a_filter_looked_at_it_is_a_reply() -> None:
    assert judged(reply("7", "content_filter"), NUMBER).text == "7"


@pytest.mark.parametrize(
    ("text", "is_wrapped"),
    [("", True), ("{", True), ('{"value":"os', True), ('{"value":"oslo"}', True), ("", False), ("os", False)],
)
def test_a_reply_without_room_is_cut_off(text: str, is_wrapped: bool) -> None:
    with pytest.raises(ReplyCutOff, match=r"one: .*3 tokens"):
        judged(reply(text, "length"), WORD, wrapped=is_wrapped)


def test_an_empty_reply_is_broken() -> None:
    with pytest.raises(ConstraintBroken, match="empty"):
        judged(reply(""), WORD)


def test_only_what_could_not_be_thought_is_taken_for_the_text() -> None:
    assert judged(reply("", reasoning="oslo"), WORD, thinks=False).text == "oslo"
    with pytest.raises(ConstraintBroken):
        judged(reply("", reasoning="oslo"), WORD)
    with pytest.raises(ConstraintBroken):
        judged(reply("Oslo", reasoning="oslo"), WORD, thinks=False)
