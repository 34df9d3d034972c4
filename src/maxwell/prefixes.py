"""Which beginnings of prompts the servers have read lately, and need not read again.

A server keeps what it computed for the last prompts. One that begins as an earlier one did is read from there
on, so a conversation is cheapest where it was before, as long as it need not wait there. What a server really
has kept nobody tells beforehand: this is a guess that only makes a prompt look shorter.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence

from maxwell.types import Message

BLOCK = 512  # characters that are compared as one
MOST_BLOCKS = 4096  # of one prompt; longer ones are alike from there on
KEPT_TOKENS = 65_536  # of all prompts that a server keeps, where it does not say how many it has room for
TOKENS_A_BLOCK = 128.0


def blocks(text: str) -> tuple[int, ...]:
    """A number for each whole block of `text`, that also stands for everything before it."""
    chain: list[int] = []
    mark = 0
    for start in range(0, min(len(text) - BLOCK + 1, BLOCK * MOST_BLOCKS), BLOCK):
        mark = hash((mark, text[start : start + BLOCK]))
        chain.append(mark)
    return tuple(chain)


def text_of(messages: Sequence[Message]) -> str:
    """What a conversation looks like to the cache of its server: roles, texts and tool calls, in order."""
    return "\n".join([_text(message) for message in messages])


def _text(message: Message) -> str:
    text, calls = f"{message.get('role')}: {message.get('content')}", message.get("tool_calls")
    return f"{text} {calls}" if calls else text


class Prefixes:
    """The beginnings that each server has read, the latest last. Of this process alone: conversations are.

    Single operations on dicts only: threads may lose a beginning, and it is a guess anyway.
    """

    def __init__(self) -> None:
        self._read: dict[str, OrderedDict[int, None]] = {}

    def note(self, root: str, chain: Sequence[int], room: int | None = None) -> None:
        """That server has read a prompt of these blocks; it keeps `room` tokens, None = not known."""
        if not chain:
            return
        read = self._read.setdefault(root, OrderedDict())
        for mark in reversed(chain):  # ends are forgotten first: without its beginning one is worth nothing
            read.pop(mark, None)
            read[mark] = None
        most = int((room or KEPT_TOKENS) / TOKENS_A_BLOCK)
        while len(read) > most:
            with contextlib.suppress(KeyError):  # another thread was faster
                read.popitem(last=False)

    def share(self, root: str, chain: Sequence[int]) -> float:
        """Part of a prompt's whole blocks, from its beginning, that the server has read; 0 to 1."""
        read = self._read.get(root)
        if not read or not chain or chain[0] not in read:
            return 0.0
        known = 0
        for mark in chain:
            if mark not in read:
                break
            known += 1
        return known / len(chain)
