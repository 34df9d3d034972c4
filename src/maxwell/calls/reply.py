"""One streamed chat reply as it arrives: what has come, whether it ended well, what it used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from maxwell.backends import wire
from maxwell.registry.specs import LLMSpec
from maxwell.types import Completion, Timings, ToolCall, Usage

# Without the server's count, a token is taken to be at least 3 bytes of text: more tokens rather than fewer.
BYTES_PER_SEEN_TOKEN = 3


class Reply:
    """Gathers the chunks of one reply.

    Args:
        spec: Who answers.
        prompt_estimate: Likely prompt tokens, for a server that does not report usage.
        began: When the request was sent, on the monotonic clock.
        receipt: Id of the call's receipt.

    Attributes:
        began: As given. Whoever prepares for long after making this sets it anew when the request goes out.
        first: When the first of the reply itself came: text, reasoning or a tool call; None = not yet.
        last: When the latest of it came.
        held: Seconds for which whoever reads the text as it comes kept the next piece from being taken in.
        timings: llama.cpp's own measurement.
        opened: Whether the server took the request in.
        refused: Whether the model refused in words that the server marks as such.
    """

    def __init__(self, spec: LLMSpec, prompt_estimate: int, began: float, receipt: str = "") -> None:
        self.spec = spec
        self._receipt = receipt
        self.finish_reason: str | None = None
        self.error: Any = None
        self._prompt_estimate = prompt_estimate
        self.began = began
        self.first: float | None = None
        self.last: float | None = None
        self.held = 0.0
        self.timings: wire.WireTimings | None = None
        self.opened = False
        self.refused = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tools: list[list[str]] = []  # id, name, arguments
        self._places: dict[int | None, list[str]] = {}  # the latest one of each index; None = not numbered
        self._usage: wire.WireUsage | None = None
        self._model = ""
        self._chunks = 0

    @property
    def has_content(self) -> bool:
        """Whether anything of the reply itself has come: text, reasoning or a tool call."""
        return self.first is not None

    def add(self, chunk: wire.Chunk, now: Callable[[], float]) -> str:
        """Take in one chunk; returns the text it adds, which may be empty. `now` is the monotonic clock."""
        if chunk.error is not None:
            self.error = chunk.error
            return ""
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.timings is not None:
            self.timings = chunk.timings
        if chunk.model:
            self._model = chunk.model
        added = ""
        for choice in chunk.choices or ():
            if choice.index:  # Maxwell asks for one choice; a second one would be somebody else's text
                continue
            delta = choice.delta or choice.message
            if delta is not None:
                added += self._take(delta, now)
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
        return added

    def _take(self, delta: wire.Delta, now: Callable[[], float]) -> str:
        text = delta.content or delta.refusal or ""
        reasoning = delta.reasoning_content or delta.reasoning
        if not (text or reasoning or delta.tool_calls):
            return ""
        self._chunks += 1
        self.last = now()
        if self.first is None:
            self.first = self.last
        if text:
            self._text.append(text)
            self.refused = self.refused or bool(delta.refusal)
        if reasoning:
            self._reasoning.append(reasoning)
        if delta.tool_calls:
            for call in delta.tool_calls:
                self._take_tool(call)
        return text

    def _take_tool(self, delta: wire.ToolCallDelta) -> None:
        id, name, arguments = delta.id or "", "", ""
        if delta.function is not None:
            name, arguments = delta.function.name or "", delta.function.arguments or ""
        known = self._places.get(delta.index)
        if known is None or _is_another(known, id, name, is_numbered=delta.index is not None):
            known = self._places[delta.index] = ["", "", ""]
            self._tools.append(known)
        known[0] = known[0] or id
        known[1] = known[1] or name
        known[2] += arguments

    @property
    def has_reasoning(self) -> bool:
        """Whether reasoning has come that can be read."""
        return bool(self._reasoning)

    @property
    def usage(self) -> Usage:
        """What the server reported, else a careful count of what was seen, marked `estimated`."""
        reported = wire.usage_of(self._usage, self.timings)
        if reported is not None:
            return reported
        return Usage(self._prompt_estimate, self.seen_tokens(BYTES_PER_SEEN_TOKEN), estimated=True)

    def seen_tokens(self, bytes_per_token: float) -> int:
        """Tokens of the reply so far: its pieces, or its bytes by that ratio, whichever are more."""
        seen = sum(len(t.encode("utf-8", "replace")) for t in (*self._text, *self._reasoning))
        seen += sum(len(c[1]) + len(c[2]) for c in self._tools)
        return max(self._chunks, math.ceil(seen / bytes_per_token))

    def completion(self, now: float, attempts: list[str], usage: Usage, usd: float) -> Completion:
        """The reply as the caller gets it."""
        timings = self.timings
        return Completion(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tool_calls=[ToolCall(*call) for call in self._tools],
            finish_reason=self.finish_reason or "",
            usage=usage,
            cost_usd=usd,
            timings=Timings(
                total_seconds=now - self.began,
                first_token_seconds=None if self.first is None else self.first - self.began,
                prompt_tokens_per_sec=timings.prompt_per_second if timings else None,
                completion_tokens_per_sec=timings.predicted_per_second if timings else None,
            ),
            llm=self.spec.name,
            model=self._model,
            attempts=attempts,
            receipt=self._receipt,
        )


def _is_another(known: list[str], id: str, name: str, *, is_numbered: bool) -> bool:
    """Whether a delta begins another call where one is known: some servers number all calls 0, or none."""
    if id and id != known[0]:
        # A piece may come with an id of its own, but then it has no name.
        return bool(known[0] or known[1]) and (bool(name) or not is_numbered)
    if id or not name or not known[1]:
        return False
    return name != known[1] or _is_whole(known[2])


def _is_whole(arguments: str) -> bool:
    try:
        msgspec.json.decode(arguments)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True
