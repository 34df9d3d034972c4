from __future__ import annotations

import math
import re
from typing import Any

import pytest

from maxwell.requirements import chat_call, prompt_messages, request, requirements
from maxwell.tokens import TEMPLATE_TOKENS_PER_MESSAGE
from maxwell.types import ChatCall, Constraint, Message, Requirements

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]


def test_nothing_demanded_is_the_default() -> None:
    assert requirements({}) == Requirements()


def test_none_means_do_not_care() -> None:
    names = [*Requirements.__struct_fields__]
    assert requirements(dict.fromkeys(names)) == Requirements()


def test_every_requirement_is_taken() -> None:
    needs: dict[str, Any] = {
        "vision": True,
        "reasoning": False,
        "code_specialized": True,
        "tools": False,
        "min_context": 32000,
        "min_speed": 99.5,
        "tags": ["coding", "fast"],
        "tier": "premium",
        "prompt": "Why?",
        "max_completion": 1,
        "time_cost_weight": 10,
    }
    assert requirements(needs) == Requirements(**needs | {"tags": ("coding", "fast")})


@pytest.mark.parametrize("tags", ["coding", ["coding"], ("coding",), {"coding"}, iter(["coding"])])
def test_one_tag_may_be_written_as_a_text(tags: Any) -> None:
    assert requirements({"tags": tags}).tags == ("coding",)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"visoin": True}, "unknown requirement 'visoin'; did you mean vision?"),
        ({"min_contxt": 1}, "unknown requirement 'min_contxt'; did you mean min_context?"),
        ({"max_tokens": 1}, "unknown requirement 'max_tokens'; "),
        ({"qqq": 1}, "unknown requirement 'qqq'; there are vision, reasoning, "),
        ({"vision": 1}, "vision must be True, False or None, not 1"),
        ({"reasoning": "yes"}, "reasoning must be True, False or None, not 'yes'"),
        ({"min_context": 32000.0}, "min_context must be a whole number of tokens, not 32000.0"),
        ({"min_context": True}, "min_context must be a whole number of tokens, not True"),
        ({"min_speed": "fast"}, "min_speed must be a number of tokens per second, not 'fast'"),
        ({"max_completion": "512"}, "max_completion must be a whole number of tokens, not '512'"),
        ({"prompt": b"bytes"}, "the prompt must be a str, not bytes"),
        ({"tags": 5}, "tags must be "),
        ({"tags": [1]}, "tags must be "),
        ({"tags": ["coding", None]}, "tags must be "),
    ],
)
def test_a_wrong_type_is_named(needs: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        requirements(needs)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"min_context": 0}, "min_context must be a whole number of tokens above 0, not 0"),
        ({"max_completion": -1}, "max_completion must be a whole number of tokens above 0, not -1"),
        ({"min_speed": 0.0}, "min_speed must be a number of tokens per second above 0, not 0.0"),
        ({"min_speed": math.nan}, "min_speed must be a number of tokens per second above 0, not nan"),
        ({"tier": "gold"}, "tier must be free, standard, premium, not 'gold'"),
        ({"tier": ""}, "tier must be free, standard, premium, not ''"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n\t"}, "the prompt is empty"),
        ({"time_cost_weight": 11}, "time_cost_weight must be a number from 0 to 10"),
        ({"time_cost_weight": math.nan}, "time_cost_weight must be a number from 0 to 10"),
        ({"time_cost_weight": True}, "time_cost_weight must be a number from 0 to 10"),
    ],
)
def test_a_value_out_of_range_is_named(needs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        requirements(needs)


def test_a_prompt_routes_by_its_bytes_and_its_template() -> None:
    asked = request(requirements({"prompt": "Größe"}))
    assert (asked.prompt_bytes, asked.extra_tokens) == (7, TEMPLATE_TOKENS_PER_MESSAGE)


def test_without_a_prompt_nothing_is_measured() -> None:
    asked = request(requirements({"vision": True}))
    assert (asked.prompt_bytes, asked.extra_tokens) == (None, 0)


# --- how a call is made


def test_a_prompt_becomes_a_conversation() -> None:
    assert prompt_messages("Hi", None) == [{"role": "user", "content": "Hi"}]
    assert prompt_messages("Hi", "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        prompt_messages(prompt, None)


def test_the_options_of_a_call_are_taken() -> None:
    options = {
        "max_tokens": 5,
        "temperature": 2,
        "stop": "END",
        "seed": 0,
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
        "grammar": 'root ::= "a"',
        "extra": {"top_k": 1},
        "timeout": 1.5,
    }
    assert chat_call(HELLO, options) == ChatCall(
        messages=HELLO,
        max_tokens=5,
        temperature=2,
        stop=["END"],
        seed=0,
        tools=[{"type": "function"}],
        tool_choice="auto",
        constraint=Constraint("grammar", 'root ::= "a"'),
        extra={"top_k": 1},
    )


def test_options_of_none_are_not_given() -> None:
    assert chat_call(HELLO, {"max_tokens": None, "stop": None, "timeout": None}) == ChatCall(messages=HELLO)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"timeout": "1"}, "timeout"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": [1]}, "temperature"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"tools": {"type": "function"}}, "tools"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"grammar": 5}, "grammar"),
        ({"extra": ["top_k"]}, "extra"),
    ],
)
def test_an_option_of_the_wrong_type_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(TypeError, match=name):
        chat_call(HELLO, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number of tokens above 0, not 0"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0, not 0"),
        ({"timeout": math.nan}, "timeout must be a number of seconds above 0, not nan"),
        ({"temperature": 2.1}, "temperature must be from 0 to 2, not 2.1"),
        ({"temperature": -1}, "temperature must be from 0 to 2, not -1"),
        ({"temperature": math.nan}, "temperature must be from 0 to 2, not nan"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        chat_call(HELLO, options)


def test_a_misspelt_option_is_answered_with_near_ones() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'max_token'; did you mean max_tokens"):
        chat_call(HELLO, {"max_token": 5})


@pytest.mark.parametrize("messages", ["Hello", {"role": "user"}, ["Hello"], [None], None, (HELLO[0],)])
def test_messages_that_are_none_are_refused(messages: Any) -> None:
    with pytest.raises(TypeError, match="messages must be a list of dicts"):
        chat_call(messages, {})


def test_an_empty_conversation_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no messages"):
        chat_call([], {})
