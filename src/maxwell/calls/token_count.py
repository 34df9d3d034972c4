"""How many tokens a prompt has for an LLM: counted by its server, else estimated and marked so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from maxwell.calls.counting import COUNT_LIMITS, chat_tokens
from maxwell.calls.effects import Flow, Gather
from maxwell.calls.entries import Entry
from maxwell.calls.state import PoolState
from maxwell.scheduler import SELECTABLE
from maxwell.tokens import TEMPLATE_TOKENS_PER_MESSAGE, measure
from maxwell.types import ChatCall, Message

_SECONDS = COUNT_LIMITS.total or 30.0


class TokenCount(Struct, frozen=True):
    """How long a prompt is.

    Attributes:
        tokens: So many, the chat template, tools and images included.
        exact: Whether the server counted; else it is an estimate.
        llm: For whom: each model counts in its own way.
        context: What one request may hold there, prompt and completion together, in tokens.
    """

    tokens: int
    exact: bool
    llm: str
    context: int

    @property
    def share(self) -> float:
        """How much of the context that is: 1.0 = all of it."""
        return self.tokens / self.context


def count(
    state: PoolState, entry: Entry, said: str | Sequence[Message], tools: list[dict[str, Any]] | None = None
) -> Flow[TokenCount]:
    """Tokens of a prompt or a conversation for one LLM, as a call would send it. Never fails.

    Args:
        state: The pool's state.
        entry: The LLM.
        said: The prompt, or messages in OpenAI's shape.
        tools: Tool definitions that go with it.
    """
    messages: list[Message] = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
    candidate = state.candidate(entry)
    health = state.known(entry)
    counted = None
    if entry.key_problem is None and (health is None or health.state in SELECTABLE):
        call = ChatCall(messages=messages, tools=tools, max_tokens=1)
        counted = yield from chat_tokens(entry, entry.backend(health), call)
    if counted is not None:
        return TokenCount(counted, True, entry.spec.name, candidate.context)
    guess = measure(messages, tools).estimate(candidate.bytes_per_token)
    guess += TEMPLATE_TOKENS_PER_MESSAGE * len(messages)
    return TokenCount(guess, False, entry.spec.name, candidate.context)


def count_for_all(
    state: PoolState,
    entries: Sequence[Entry],
    said: str | Sequence[Message],
    tools: list[dict[str, Any]] | None = None,
) -> Flow[list[TokenCount]]:
    """The same for several LLMs, asked side by side."""
    flows = [count(state, entry, said, tools) for entry in entries]
    found = yield Gather(flows, 2 * _SECONDS, lambda: False)
    for result in found:
        if isinstance(result, Exception):
            raise result
    return [one for one in found if one is not None]
