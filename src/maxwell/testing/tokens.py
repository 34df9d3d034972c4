"""The fake's tokenizer, chat template and vectors: pure, deterministic, the same on every machine.

The tokenizer packs characters greedily into tokens of at most `token_bytes` UTF-8 bytes and never splits a
character, so ASCII text of n characters has ceil(n / token_bytes) tokens. There are no special tokens.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

IMAGE_TOKENS = 256
"""Prompt tokens that one image costs, whatever its size."""


class Tokenizer:
    """Splits text into tokens.

    Args:
        token_bytes: Most UTF-8 bytes of one token, >= 1. A character longer than that is a token of its own.
    """

    def __init__(self, token_bytes: int = 4) -> None:
        if token_bytes < 1:
            raise ValueError(f"token_bytes must be at least 1, got {token_bytes}")
        self.token_bytes = token_bytes
        self._pieces: dict[int, str] = {}

    def split(self, text: str) -> list[str]:
        """The text's tokens, in order; joined they are the text again."""
        size = self.token_bytes
        if text.isascii():
            return [text[i : i + size] for i in range(0, len(text), size)]
        tokens: list[str] = []
        start = used = 0
        for i, char in enumerate(text):
            width = len(char.encode("utf-8", "surrogatepass"))
            if used and used + width > size:
                tokens.append(text[start:i])
                start, used = i, 0
            used += width
        tokens.append(text[start:])
        return tokens

    def count(self, text: str) -> int:
        """How many tokens the text has."""
        return math.ceil(len(text) / self.token_bytes) if text.isascii() else len(self.split(text))

    def encode(self, text: str) -> list[int]:
        """The text's token ids, each 0 to 2**31 - 1; the same text has the same ids on every server."""
        ids = []
        for piece in self.split(text):
            number = zlib.crc32(piece.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF
            self._pieces[number] = piece
            ids.append(number)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids that `encode` gave out; an id never given out reads as `<|id|>`."""
        return "".join(self._pieces.get(i, f"<|{i}|>") for i in ids)


def content_text(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))


def count_images(messages: Any) -> int:
    """How many image parts the messages hold."""
    lists = [m["content"] for m in messages if isinstance(m, dict) and isinstance(m.get("content"), list)]
    return sum(1 for parts in lists for p in parts if isinstance(p, dict) and p.get("type") == "image_url")


def render(body: dict[str, Any]) -> str:
    """The prompt a chat request stands for, in the ChatML template. Images are left out."""
    out = []
    if body.get("tools"):
        out.append(f"<|im_start|>system\n{msgspec.json.encode(body['tools']).decode()}<|im_end|>\n")
    for message in body.get("messages") or []:
        if not isinstance(message, dict):
            continue
        text = content_text(message.get("content"))
        if message.get("tool_calls"):
            text += msgspec.json.encode(message["tool_calls"]).decode()
        out.append(f"<|im_start|>{message.get('role', '')}\n{text}<|im_end|>\n")
    return "".join(out) + "<|im_start|>assistant\n"


def prompt_tokens(tokenizer: Tokenizer, body: dict[str, Any]) -> int:
    """Prompt tokens of a chat request: the rendered template and `IMAGE_TOKENS` for each image."""
    return tokenizer.count(render(body)) + IMAGE_TOKENS * count_images(body.get("messages") or [])


def relevance(query: str, document: str) -> float:
    """How well a document answers a query: the share of the query's words that stand in it."""
    wanted, there = set(query.lower().split()), set(document.lower().split())
    return len(wanted & there) / max(1, len(wanted))


def unit_vector(text: str, dimension: int) -> bytes:
    """The text's embedding: a unit vector drawn from its hash, as little-endian float32."""
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * dimension)
    raw = [n / 2**31 for n in struct.unpack(f"<{dimension}i", digest)]
    return normalised(raw)


def normalised(values: list[float]) -> bytes:
    """The vector scaled to length 1, as little-endian float32."""
    length = math.hypot(*values) or 1.0
    return struct.pack(f"<{len(values)}f", *(v / length for v in values))
