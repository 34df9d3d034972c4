from __future__ import annotations

import base64
import json
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.tokens import (
    IMAGE_TOKENS,
    TEMPLATE_TOKENS,
    TEMPLATE_TOKENS_PER_MESSAGE,
    PromptSize,
    estimate,
    measure,
    text_upper_bound,
    upper_bound,
    utf8_length,
)
from maxwell.types import Message

quick = settings(deadline=None, max_examples=150)

# What tokenizers stumble over: NFKC grows the ligature 18-fold, joins the Hangul and leaves the rest alone.
ODD = [
    "\ufdfa",
    "\u3392",
    "ﬁ",
    "e\u0301",
    "\u1100\u1161",
    "👩‍👩‍👧",
    "Ⅷ",
    "½",
    "\u00a0",
    "\x00",
    "\u2126",
    "İ",
    "漢字",
]
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.lists(st.sampled_from(ODD), max_size=8).map("".join),
)


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def byte_tokens(text: str) -> int:
    """The most tokens that a byte-level tokenizer can make: one a byte, whether it normalises or not."""
    forms = (text, unicodedata.normalize("NFKC", text), unicodedata.normalize("NFC", text))
    return max(len(form.encode()) for form in forms)


def chatml(messages: list[Message]) -> int:
    """Tokens of a conversation in ChatML, its turn marks one token each and everything else one a byte."""
    count = 1  # begin of text
    for message in messages:
        count += 4 + len(message["role"].split())  # <|im_start|> role newline ... <|im_end|> newline
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        count += sum(byte_tokens(p["text"]) if "text" in p else IMAGE_TOKENS for p in parts)
    return count + 3  # <|im_start|> assistant newline


@quick
@given(TEXTS)
def test_the_bound_holds_for_any_text(text: str) -> None:
    assert text_upper_bound(text) >= byte_tokens(text)


PARTS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    st.just({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
)
CONVERSATIONS = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant"]),
        st.one_of(TEXTS, st.lists(PARTS, max_size=3)),
    ),
    min_size=1,
    max_size=4,
)


@quick
@given(CONVERSATIONS)
def test_the_bound_holds_for_any_conversation(messages: list[Message]) -> None:
    assert upper_bound(messages) >= chatml(messages)


@quick
@given(CONVERSATIONS)
def test_the_estimate_is_never_above_the_bound(messages: list[Message]) -> None:
    assert measure(messages).estimate() <= upper_bound(messages)


def test_a_text_that_normalising_makes_longer_is_bounded_by_the_longer_form() -> None:
    assert text_upper_bound("\ufdfa" * 10) == len("صلى الله عليه وسلم".encode()) * 10


def test_lone_surrogates_are_measured_and_not_stumbled_over() -> None:
    for text in ("\ud800", "a\udfffb", "\udcff" * 3):
        assert utf8_length(text) == len(text)
        assert text_upper_bound(text) >= len(text)
        assert measure([user(text)]).text_bytes == len(text)


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("a", 1), ("é", 2), ("漢", 3), ("👍", 4), ("a\ud800", 2)]
)
def test_a_length_is_in_utf8_bytes(text: str, size: int) -> None:
    assert utf8_length(text) == size


@pytest.mark.parametrize(("size", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (4000, 1000)])
def test_a_token_is_about_four_bytes(size: int, tokens: int) -> None:
    assert estimate(size) == tokens


def test_a_learned_ratio_changes_the_estimate() -> None:
    assert PromptSize(100).estimate(2.5) == 40


def test_an_image_never_counts_by_its_base64_length() -> None:
    picture = base64.b64encode(bytes(2_000_000)).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    messages = [user([{"type": "text", "text": "What is this?"}, image, image])]
    assert measure(messages) == PromptSize(text_bytes=13, messages=1, images=2)
    assert measure(messages).estimate() == 4 + 2 * IMAGE_TOKENS
    assert upper_bound(messages) == TEMPLATE_TOKENS + 13 + 2 * IMAGE_TOKENS + 2 * TEMPLATE_TOKENS_PER_MESSAGE


def test_a_large_picture_leaves_room_in_a_small_context() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_700_000}}
    assert measure([user([image])]).estimate() < 4096


def test_arguments_of_tool_calls_count() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"query":"hello"}'}}
    message: Message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert measure([message]).text_bytes >= 17
    assert upper_bound([message]) >= 17 + TEMPLATE_TOKENS_PER_MESSAGE


def test_names_of_called_tools_are_within_the_bound() -> None:
    # Every template writes them; names of 64 characters are allowed, and there may be many calls.
    call = {"id": "1", "type": "function", "function": {"name": "n" * 64, "arguments": "{}"}}
    message: Message = {"role": "assistant", "content": None, "tool_calls": [call] * 20}
    assert upper_bound([message]) >= 20 * 66


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": []},
        {"role": "user", "content": ["plain", 7]},
        {"role": "assistant", "content": "", "tool_calls": None},
        {"role": "assistant", "content": "", "tool_calls": [{}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": None}]},
    ],
)
def test_odd_messages_are_measured_without_failing(message: Message) -> None:
    assert 0 <= measure([message]).estimate() <= upper_bound([message])


def test_every_message_and_the_reply_have_room_for_their_turn_marks() -> None:
    assert upper_bound([user("a"), user("b")]) == TEMPLATE_TOKENS + 2 + 3 * TEMPLATE_TOKENS_PER_MESSAGE


# What templates in wide use make of the single message "Hello": words of their own come before it.
LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
HARMONY = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: "
    "2024-06\nCurrent date: 2026-01-15\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final."
    " Channel must be included for every message.<|end|>"
    "<|start|>user<|message|>Hello<|end|><|start|>assistant"
)


@pytest.mark.parametrize("prompt", [LLAMA_3, HARMONY], ids=["llama-3.1", "harmony"])
def test_the_bound_holds_for_templates_with_words_of_their_own(prompt: str) -> None:
    # No vocabulary joins words, marks and punctuation, so each of these is a token at least.
    at_least = len(re.findall(r"<\|\w+\|>|\w+|[^\w\s]", prompt))
    assert upper_bound([user("Hello")]) >= at_least


def test_the_bound_holds_for_what_templates_say_about_tools() -> None:
    # The usual words around the definitions of tools, and the definitions as Llama's template writes them.
    words = (
        "You may call one or more functions to assist with the user query. You are provided with function "
        "signatures within <tools></tools> XML tags: For each function call, return a json object with "
        "function name and arguments within <tool_call></tool_call> XML tags: "
        "{name: <function-name>, arguments: <args-json-object>}"
    )
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    at_least = len(re.findall(r"\w+|[^\w\s]", words + json.dumps(tools, indent=4)))
    assert upper_bound([user("Hello")], tools) - upper_bound([user("Hello")]) >= at_least
