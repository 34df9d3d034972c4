"""Keyword arguments become checked values: what `get_lm` demands, what `generate` asks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, get_args

import msgspec

from maxwell.decision import Request
from maxwell.prefixes import blocks, text_of
from maxwell.scheduler import check_weight
from maxwell.tokens import IMAGE_TOKENS, TEMPLATE_TOKENS_PER_MESSAGE, PromptSize, measure, utf8_length
from maxwell.types import PLAIN, ChatCall, Features, Message, ReasoningEffort, Requirements, Tier


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
        json_schema: JSON Schema that the text must obey.
        grammar: GBNF grammar with a rule `root` that the text must obey.
        choices: Texts of which the reply must be exactly one.
        regex: Regular expression that must match the whole reply.
        repair: Whether a reply that breaks its constraint is sent back once, with what is wrong with it.
        reasoning_effort: "none", "minimal", "low", "medium" or "high".
        thinking_tokens: Room for thinking in tokens, besides `max_tokens`; default: what the entry declares.
        extra: Further fields of the request body, sent as they are.
        timeout: Longest the whole call may take, all attempts together, in seconds.
    """

    max_tokens: int | None
    temperature: float | None
    stop: str | list[str] | None
    seed: int | None
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None
    json_schema: dict[str, Any] | None
    grammar: str | None
    choices: Sequence[str] | None
    regex: str | None
    repair: bool | None
    reasoning_effort: ReasoningEffort | None
    thinking_tokens: int | None
    extra: dict[str, Any] | None
    timeout: float | None


class PromptOptions(ChatOptions, total=False):
    """How a prompt is sent: `ChatOptions` and

    Attributes:
        system_prompt: Instructions that come before the prompt.
        images: Pictures that go with the prompt: paths, bytes, http(s) addresses or PIL images.
    """

    system_prompt: str | None
    images: Sequence[Any] | None


class CountOptions(TypedDict, total=False):
    """What goes with a prompt whose tokens are counted; see `PromptOptions`."""

    system_prompt: str | None
    images: Sequence[Any] | None
    tools: list[dict[str, Any]] | None


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
    "thinking_tokens": ((int,), "a whole number of tokens"),
    "extra": ((dict,), "a dict of body fields"),
}

CONSTRAINTS = ("json_schema", "grammar", "choices", "regex")

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


def request_with(needs: Requirements, options: Mapping[str, Any]) -> Request:
    """What the scheduler is to choose for, where the call will have these `PromptOptions`.

    Raises as `chat_call`.
    """
    wanted = request(needs)
    rest = {key: value for key, value in options.items() if value is not None}
    if not rest:
        return wanted
    system_prompt, images = rest.pop("system_prompt", None), rest.pop("images", None)
    chat = chat_call(prompt_messages(needs.prompt or "any", system_prompt, images), rest)
    asked = chat_request(chat, wanted.needs, measure(chat.messages, chat.tools))
    if needs.prompt is None:
        return msgspec.structs.replace(asked, prompt_bytes=None, extra_tokens=0)
    return msgspec.structs.replace(asked, prefix=wanted.prefix)


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
        features=features_of(chat),
        thinking=0 if chat.reasoning_effort == "none" else chat.thinking_tokens,
    )


def features_of(chat: ChatCall) -> Features:
    """What the call asks of a server beyond writing text."""
    links = [
        part
        for message in chat.messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, dict) and part.get("type") == "image_url"
    ]
    if not (links or chat.tools or chat.constraint):
        return PLAIN
    return Features(
        constraint=chat.constraint,
        tools=bool(chat.tools),
        tool_choice=chat.tool_choice if chat.tools else None,
        images=bool(links),
        image_links=any(_address(part).startswith("http") for part in links),
        webp=any(_address(part).startswith("data:image/webp") for part in links),
        thinking=chat.reasoning_effort not in (None, "none"),
    )


def _address(part: dict[str, Any]) -> str:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) else ""


def check_prompt(prompt: object) -> None:
    """Raise TypeError or ValueError unless `prompt` is text with something in it."""
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt must be a str, not {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError("the prompt is empty")


def prompt_messages(
    prompt: str, system_prompt: str | None, images: Sequence[Any] | None = None
) -> list[Message]:
    """A prompt as a conversation, with its pictures before its text."""
    check_prompt(prompt)
    messages = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    content: Any = prompt
    pictures = () if images is None else as_pictures(images)
    if pictures:
        from maxwell.images import image_part

        content = [*map(image_part, pictures), {"type": "text", "text": prompt}]
    return [*messages, {"role": "user", "content": content}]


def as_pictures(images: Any) -> Sequence[Any]:
    """Several pictures, which can be gone through more than once. Raises TypeError for a single one."""
    if isinstance(images, str | bytes | bytearray | memoryview | Mapping) or not isinstance(images, Iterable):
        raise TypeError(f"images must be a list of pictures, not {type(images).__name__}; put it in a list")
    return images if isinstance(images, list | tuple) else tuple(images)


def chat_call(messages: list[Message], options: Mapping[str, Any]) -> ChatCall:
    """The call as a checked value; `timeout` and `repair` are not part of it.

    Raises:
        TypeError: An unknown option (the message suggests near ones), or a value of the wrong type.
        ValueError: A value out of range, or no messages.
    """
    _only_known(options, ChatOptions.__annotations__, "option")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise TypeError("messages must be a list of dicts, each with a role and a content")
    if not messages:
        raise ValueError("there are no messages")
    given = {key: value for key, value in options.items() if value is not None}
    check_timeout(given.pop("timeout", None))
    if not isinstance(given.pop("repair", False), bool):
        raise TypeError(f"repair must be True or False, not {options['repair']!r}")
    if given:
        _check_options(given)
    if "stop" in given:
        given["stop"] = list(_texts("stop", given["stop"]))
    constrained = {key: given.pop(key) for key in CONSTRAINTS if key in given}
    if constrained:
        from maxwell.constraints import constraint_of  # heavy, and few calls have one

        given["constraint"] = constraint_of(**constrained)
    return ChatCall(messages=messages, **given)


def _check_options(given: Mapping[str, Any]) -> None:
    _positive(given, "max_tokens", int, "a whole number of tokens")
    for key, (kinds, words) in _KINDS.items():
        if key in given and (not isinstance(given[key], kinds) or isinstance(given[key], bool)):
            raise TypeError(f"{key} must be {words}, not {given[key]!r}")
    if not 0 <= given.get("temperature", 0.0) <= 2:
        raise ValueError(f"temperature must be from 0 to 2, not {given['temperature']!r}")
    if given.get("thinking_tokens", 0) < 0:
        raise ValueError(f"thinking_tokens must be 0 or more, not {given['thinking_tokens']!r}")
    if given.get("reasoning_effort", "none") not in get_args(ReasoningEffort):
        efforts = ", ".join(get_args(ReasoningEffort))
        raise ValueError(f"reasoning_effort must be {efforts}, not {given['reasoning_effort']!r}")
    for key in _OURS.intersection(given.get("extra", ())):
        raise ValueError(f"extra may not hold {key!r}: {_OURS_WHY.get(key, 'Maxwell sets it')}")


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
