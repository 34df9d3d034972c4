"""Text in receipts: how much there was, what may be kept of it, and what may not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from maxwell.redaction import redacted
from maxwell.types import Message

MOST_TEXT = 100_000  # characters of a prompt or a reply, where the user wants them kept

_MIN_QUOTE = 4  # less of a prompt says nothing
_RUN = 12  # characters that error and prompt have in common are a quotation from here on
_LOOKED_AT = 1_000_000  # characters of one message
_STRUCK = "[...]"

Said = Sequence[Message] | Sequence[str]


def texts(said: Said) -> Iterator[tuple[str, bool]]:
    """Each text of a conversation, or each text to embed; True with one that stands for an image."""
    for message in said:
        content = message if isinstance(message, str) else message.get("content")
        if isinstance(content, str):
            yield content, False
        elif isinstance(content, list):
            for part in content:
                text = part.get("text") if isinstance(part, dict) else str(part)
                yield ("", True) if text is None else (str(text), False)


def sizes(said: Said) -> tuple[int, int, int]:
    """Number of messages or texts, of characters and of images."""
    characters = images = 0
    for text, is_image in texts(said):
        characters += len(text)
        images += is_image
    return len(said), characters, images


def transcript(said: Said) -> str:
    """A conversation for people to read; a prompt alone is just its text."""
    alone = len(said) == 1
    return "\n\n".join(
        ("" if alone or isinstance(message, str) else f"{message.get('role')}: ") + _content(message)
        for message in said
    )


def _content(message: Message | str) -> str:
    return "\n".join("[image]" if is_image else text for text, is_image in texts([message]))  # type: ignore[arg-type]


def fit_to_keep(text: str, secrets: Iterable[str]) -> str:
    """`text` without keys, and of bearable length; in this order, or half a key stays."""
    text = redacted(text, secrets)
    if len(text) > MOST_TEXT:
        text = f"{text[:MOST_TEXT]}\n[... and {len(text) - MOST_TEXT:,} more characters]"
    return text.encode("utf-8", "replace").decode()


def without_quotes(message: str, said: Said) -> str:
    """An error's words without what they quote of the prompt, which a server may well do."""
    quoted = bytearray(len(message))
    for text, _ in texts(said):
        _mark(quoted, message, " ".join(text[:_LOOKED_AT].split()))
    pieces: list[str] = []
    for i, character in enumerate(message):
        if not quoted[i]:
            pieces.append(character)
        elif not i or not quoted[i - 1]:
            pieces.append(_STRUCK)
    return "".join(pieces)


def _mark(quoted: bytearray, message: str, text: str) -> None:
    """Mark what of `message` stands in `text`.

    Every common run of 2 * `_RUN` - 1 characters holds one of the pieces looked for.
    """
    if len(text) < 2 * _RUN:
        if len(text) >= _MIN_QUOTE:
            for found in re.finditer(re.escape(text), message):
                quoted[found.start() : found.end()] = b"\x01" * len(text)
        return
    for start in range(0, len(message) - _RUN + 1, _RUN):
        end = start + _RUN
        if message[start:end] not in text:
            continue
        while start and message[start - 1 : end] in text:
            start -= 1
        while end < len(message) and message[start : end + 1] in text:
            end += 1
        quoted[start:end] = b"\x01" * (end - start)
