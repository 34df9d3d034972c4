"""How many tokens a text is: estimates and bounds, without a tokenizer.

The estimate is UTF-8 bytes ÷ 4, the usual figure for English on byte-pair vocabularies. The bound holds for
every byte-level or byte-fallback tokenizer, because there one token stands for at least one byte.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from maxwell.types import Message

BYTES_PER_TOKEN = 4.0
DEFAULT_COMPLETION = 512  # assumed of a reply where nobody says how long it may be
USUAL_PROMPT = 500  # tokens; assumed of the requests that others make
# What a chat template adds: role names and turn marks, a few tokens a message. 8 covers ChatML and Llama 3.
TEMPLATE_TOKENS_PER_MESSAGE = 8
# Upper bounds of what a template says on its own account: Llama 3.1 and Harmony write some 60 to 150 tokens
# of system text, and templates that describe tools explain how to call them.
TEMPLATE_TOKENS = 256
TEMPLATE_TOKENS_WITH_TOOLS = 512
# An image costs a bounded number of tokens, whatever its file's size. 1,600 is a high-resolution picture for
# today's open vision models; what a server reports afterwards is what is booked.
IMAGE_TOKENS = 1600


class PromptSize(Struct, frozen=True):
    """How much a conversation holds.

    Attributes:
        text_bytes: UTF-8 bytes of all its text.
        messages: Number of messages.
        images: Number of images.
    """

    text_bytes: int
    messages: int = 1
    images: int = 0

    def estimate(self, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
        """Likely number of prompt tokens."""
        return estimate(self.text_bytes, bytes_per_token) + self.images * IMAGE_TOKENS


def utf8_length(text: str) -> int:
    """Bytes of `text` in UTF-8; lone surrogates count as the replacement they are sent as."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def estimate(text_bytes: int, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
    """Likely number of tokens of a text of that many bytes, at least 1 for any text."""
    return math.ceil(text_bytes / bytes_per_token)


def _texts(messages: Iterable[Message]) -> Iterable[tuple[str, int]]:
    """Each text of the conversation, with how many images came with it."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content, 0
        elif isinstance(content, list):
            for part in content:
                yield _part(part)
        if message.get("tool_calls"):
            yield _json(message["tool_calls"]), 0


def _part(part: Any) -> tuple[str, int]:
    """Text and image count of one content part."""
    if not isinstance(part, dict):
        return str(part), 0
    if "text" in part:
        return str(part["text"]), 0
    return "", 1


def _json(value: Any) -> str:
    """`value` as a template may write it into the prompt."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def measure(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> PromptSize:
    """Size of a conversation; images count as images, never by their base64 length."""
    total = utf8_length(_json(tools)) if tools else 0
    images = 0
    for text, pictures in _texts(messages):
        total += utf8_length(text)
        images += pictures
    return PromptSize(total, len(messages), images)


def upper_bound(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> int:
    """More prompt tokens than any byte-level tokenizer makes of a conversation, its template included.

    Some tokenizers normalise first, so the longer of the raw and the NFKC form counts.
    """
    total = TEMPLATE_TOKENS + (len(messages) + 1) * TEMPLATE_TOKENS_PER_MESSAGE
    if tools:
        indented = msgspec.json.format(_json(tools), indent=4)  # as Llama's template writes them
        total += TEMPLATE_TOKENS_WITH_TOOLS + text_upper_bound(indented)
    for text, pictures in _texts(messages):
        total += text_upper_bound(text) + pictures * IMAGE_TOKENS
    return total


def text_upper_bound(text: str) -> int:
    """More tokens than any byte-level tokenizer makes of `text`."""
    raw = utf8_length(text)
    if text.isascii():
        return raw
    return max(raw, utf8_length(unicodedata.normalize("NFKC", text)))
