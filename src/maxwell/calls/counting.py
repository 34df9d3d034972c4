"""Asks a server's own tokenizer. What it cannot tell is None: the call itself will say what is wrong.

There is no tokenizer on this side: one that is not the server's counts wrong, and tiktoken would fetch its
tables over the network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from maxwell.backends.base import Backend
from maxwell.calls.effects import Flow, Limits, T, TransportError
from maxwell.calls.entries import Entry
from maxwell.calls.probe import fetch
from maxwell.registry.specs import LLMSpec
from maxwell.types import ChatCall, HTTPRequest

COUNT_LIMITS = Limits(connect=2.0, first_byte=10.0, idle=10.0, total=30.0)


def text_tokens(
    entry: Entry, backend: Backend, text: str, limits: Limits = COUNT_LIMITS, *, special: bool = False
) -> Flow[list[int] | None]:
    """Token ids of `text`, with those the model puts around a text when `special`."""
    request = partial(backend.tokenize, entry.spec, text, entry.endpoint.key, add_special=special)
    return (yield from _asked(request, limits, backend.decode_tokens))


def text_count(
    entry: Entry, backend: Backend, text: str, limits: Limits = COUNT_LIMITS, *, special: bool = False
) -> Flow[int | None]:
    """Tokens of `text`, with those the model puts around a text when `special`."""
    request = partial(backend.count_text, entry.spec, text, entry.endpoint.key, add_special=special)
    return (yield from _asked(request, limits, backend.decode_count))


def chat_tokens(
    entry: Entry, backend: Backend, chat: ChatCall, limits: Limits = COUNT_LIMITS
) -> Flow[int | None]:
    """Prompt tokens of a call as it would be sent to this entry, template and tools included."""
    assert isinstance(entry.spec, LLMSpec)
    request = partial(backend.count_chat, entry.spec, chat, entry.endpoint.key)
    return (yield from _asked(request, limits, backend.decode_count))


def _asked(
    make: Callable[[], HTTPRequest | None], limits: Limits, decode: Callable[[bytes], T]
) -> Flow[T | None]:
    try:
        request = make()
        if request is None:
            return None
        status, _, body = yield from fetch(request, limits)
        return decode(body) if status == 200 else None
    except (TransportError, ValueError):
        return None
