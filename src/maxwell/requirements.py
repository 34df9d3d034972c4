"""Keyword arguments become checked values: what `get_lm` demands, what `generate` asks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, get_args

import msgspec

from maxwell.decision import Request
from maxwell.prefixes import blocks, text_of
from maxwell.scheduler import check_weight
from maxwell.tokens import IMAGE_TOKENS, TEMPLATE_TOKENS_PER_MESSAGE, PromptSize, utf8_length
from maxwell.types import ChatCall, Message, Requirements, Tier


class Needs(TypedDict, total=False):
    """What may be demanded of an LLM; see `types.Requirements` for each."""

    vision: bool | None
    reasoning: bool | None
    code_specialized: bool | None
    tools: bool | None
    min_context: int | None
    min_speed: float | None
    tags: Iterable[str] | None
    tier: Tier | None
    prompt: str | None
    max_completion: int | None
    time_cost_weight: float


class ChatOptions(TypedDict, total=False):
    """How a chat call is made.

    Attributes:
        max_tokens: Most completion tokens; default: `max_completion` of the choice, else the entry's
            `capabilities.max_tokens`, within its context.
        temperature: Sampling temperature; default: the entry's `default_temperature`.
        stop: Strings that end the completion.
        seed: Sampling seed.
        tools: Tool definitions, OpenAI's shape.
        tool_choice: "none", "auto", "required" or OpenAI's object form.
        grammar: GBNF grammar that the text must obey; only llama.cpp and vLLM do.
        extra: Further fields of the request body, sent as they are.
        timeout: Longest the whole call may take, all attempts together, in seconds.
    """

    max_tokens: int | None
    temperature: float | None
    stop: str | list[str] | None
    seed: int | None
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None
    grammar: str | None
    extra: dict[str, Any] | None
    timeout: float | None


class PromptOptions(ChatOptions, total=False):
    """How a prompt is sent: `ChatOptions` and

    Attributes:
        system_prompt: Instructions that come before the prompt.
    """

    system_prompt: str | None


# Body fields that decide what a call costs or how it is read; the books and the reader rely on them.
_OURS_WHY = {
    "n": "one reply a call is accounted for",
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "n_predict"), "use max_tokens="),
}
_OURS = frozenset((*_OURS_WHY, "model", "messages", "stream"))

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "temperature": ((int, float), "a number"),
    "seed": ((int,), "a whole number"),
    "tools": ((list,), "a list of tool definitions"),
    "tool_choice": ((str, dict), "a word or a dict"),
    "grammar": ((str,), "GBNF text"),
    "extra": ((dict,), "a dict of body fields"),
}

_BOOLEANS = ("vision", "reasoning", "code_specialized", "tools")


def requirements(needs: Mapping[str, Any]) -> Requirements:
    """The demands as a checked value.

    Raises:
        TypeError: An unknown requirement (the message suggests near ones), or a value of the wrong type.
        ValueError: A value out of range.
    """
    _only_known(needs, Needs.__annotations__, "requirement")
    checked = {key: value for key, value in needs.items() if value is not None}
    for key in _BOOLEANS:
        if not isinstance(checked.get(key, False), bool):
            raise TypeError(f"{key} must be True, False or None, not {checked[key]!r}")
    for key in ("min_context", "max_completion"):
        _positive(checked, key, int, "a whole number of tokens")
    _positive(checked, "min_speed", (int, float), "a number of tokens per second")
    if "tags" in checked:
        checked["tags"] = _texts("tags", checked["tags"])
    if checked.get("tier", "free") not in get_args(Tier):
        raise ValueError(f"tier must be {', '.join(get_args(Tier))}, not {checked['tier']!r}")
    if "prompt" in checked:
        check_prompt(checked["prompt"])
    check_weight(checked.get("time_cost_weight", 1.0))
    return Requirements(**checked)


def request(needs: Requirements) -> Request:
    """What the scheduler is to choose for; without the prompt's text, since decisions are shown and kept."""
    if needs.prompt is None:
        return Request(needs=needs)
    return Request(
        needs=msgspec.structs.replace(needs, prompt=None),
        prompt_bytes=utf8_length(needs.prompt),
        extra_tokens=TEMPLATE_TOKENS_PER_MESSAGE,
        prefix=blocks(text_of(prompt_messages(needs.prompt, None))),
    )


def chat_request(chat: ChatCall, needs: Requirements, size: PromptSize) -> Request:
    """What the scheduler is to choose for, by what a call of that size is known to need."""
    if chat.tools and needs.tools is None:
        needs = msgspec.structs.replace(needs, tools=True)
    if size.images and needs.vision is None:
        needs = msgspec.structs.replace(needs, vision=True)
    if chat.max_tokens is not None:
        needs = msgspec.structs.replace(needs, max_completion=chat.max_tokens)
    return Request(
        needs=needs,
        prompt_bytes=size.text_bytes,
        extra_tokens=size.messages * TEMPLATE_TOKENS_PER_MESSAGE + size.images * IMAGE_TOKENS,
        grammar=chat.grammar is not None,
    )


def check_prompt(prompt: object) -> None:
    """Raise TypeError or ValueError unless `prompt` is text with something in it."""
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt must be a str, not {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError("the prompt is empty")


def prompt_messages(prompt: str, system_prompt: str | None) -> list[Message]:
    """A prompt as a conversation."""
    check_prompt(prompt)
    messages = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*messages, {"role": "user", "content": prompt}]


def chat_call(messages: list[Message], options: Mapping[str, Any]) -> ChatCall:
    """The call as a checked value; `timeout` is not part of it.

    Raises:
        TypeError: An unknown option (the message suggests near ones), or a value of the wrong type.
        ValueError: A value out of range, or no messages.
    """
    _only_known(options, ChatOptions.__annotations__, "option")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise TypeError("messages must be a list of dicts, each with a role and a content")
    if not messages:
        raise ValueError("there are no messages")
    given = {key: value for key, value in options.items() if value is not None and key != "timeout"}
    _positive(given, "max_tokens", int, "a whole number of tokens")
    check_timeout(options.get("timeout"))
    for key, (kinds, words) in _KINDS.items():
        if key in given and (not isinstance(given[key], kinds) or isinstance(given[key], bool)):
            raise TypeError(f"{key} must be {words}, not {given[key]!r}")
    if not 0 <= given.get("temperature", 0.0) <= 2:
        raise ValueError(f"temperature must be from 0 to 2, not {given['temperature']!r}")
    for key in _OURS.intersection(given.get("extra", ())):
        raise ValueError(f"extra may not hold {key!r}: {_OURS_WHY.get(key, 'Maxwell sets it')}")
    if "stop" in given:
        given["stop"] = list(_texts("stop", given["stop"]))
    return ChatCall(messages=messages, **given)


def check_timeout(timeout: object) -> None:
    """Raise TypeError or ValueError unless `timeout` is None or a number of seconds above 0."""
    _positive({"timeout": timeout}, "timeout", (int, float), "a number of seconds")


def _texts(key: str, value: Any) -> tuple[str, ...]:
    """One text or several, as several."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping | bytes):
        raise TypeError(f"{key} must be texts, not {value!r}")
    found = tuple(texts)
    if not all(isinstance(text, str) for text in found):
        raise TypeError(f"{key} must be texts, not {value!r}")
    return found


def _positive(values: Mapping[str, Any], key: str, kind: Any, words: str) -> None:
    value = values.get(key)
    if value is None:
        return
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{key} must be {words}, not {value!r}")
    if not value > 0:
        raise ValueError(f"{key} must be {words} above 0, not {value!r}")


def _only_known(given: Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
    for key in given:
        if key not in known:
            import difflib  # only for a mistake

            near = difflib.get_close_matches(key, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise TypeError(f"unknown {what} {key!r}; {hint}")
