"""What the fake model says: from a request and the test's wishes to a list of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from maxwell.testing.dialects.base import Kind, Message, Token
from maxwell.testing.tokens import Tokenizer

Says = str | Sequence[str] | Callable[[dict[str, Any]], str | Sequence[str]]


class Script:
    """What to say.

    Args:
        tokenizer: Splits texts into tokens.
        reply: A text, a list of tokens, or a function from the request's body to either.
        reasoning: The same for the reasoning that comes first; "" = none.
        constrained_reply: The same for requests whose constraint the server honours; None = `reply`.
        tool_calls: (name, arguments) of the calls made when the request offers tools, in place of the reply.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        reply: Says,
        reasoning: Says,
        constrained_reply: Says | None,
        tool_calls: Sequence[tuple[str, Mapping[str, Any]]],
    ) -> None:
        self._tokenizer = tokenizer
        self._reply = self._prepare(reply)
        self._reasoning = self._prepare(reasoning)
        self._constrained = self._reply if constrained_reply is None else self._prepare(constrained_reply)
        self._calls = [(name, msgspec.json.encode(arguments).decode()) for name, arguments in tool_calls]

    def _prepare(self, says: Says) -> Says:
        return self._tokenizer.split(says) if isinstance(says, str) else says

    def _resolve(self, says: Says, body: dict[str, Any]) -> Sequence[str]:
        said = says(body) if callable(says) else says
        return self._tokenizer.split(said) if isinstance(said, str) else said

    def tokens(self, body: dict[str, Any], *, constrained: bool) -> tuple[list[Token], str | None]:
        """The tokens of a reply that nothing cuts short, and the stop string that ended it, if one did."""
        tokens: list[Token] = [("reasoning", t) for t in self._resolve(self._reasoning, body)]
        if self._calls and body.get("tools") and body.get("tool_choice") != "none":
            for index, (_, arguments) in enumerate(self._calls):
                tokens += [(index, t) for t in self._tokenizer.split(arguments)]
            return tokens, None
        said, stop = _until_stop(self._resolve(self._constrained if constrained else self._reply, body), body)
        tokens += [("content", t) for t in said]
        return tokens, stop

    def call_name(self, index: int) -> str:
        """The name of the n-th tool call."""
        return self._calls[index][0]

    def message(self, tokens: Sequence[Token]) -> Message:
        """The whole message those tokens make."""
        texts: dict[Kind, list[str]] = {}
        for kind, text in tokens:
            texts.setdefault(kind, []).append(text)
        joined = {kind: "".join(parts) for kind, parts in texts.items()}
        calls = [(self.call_name(k), v) for k, v in joined.items() if isinstance(k, int)]
        return Message(joined.get("content", ""), joined.get("reasoning", ""), calls)


def _until_stop(tokens: Sequence[str], body: dict[str, Any]) -> tuple[Sequence[str], str | None]:
    """The tokens before the first of the request's stop strings, and that string."""
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    text = "".join(tokens) if stops else ""
    found = [(text.index(s), s) for s in stops if s and s in text]
    if not found:
        return tokens, None
    at, stop = min(found)
    ends = list(accumulate(map(len, tokens)))
    kept = [t for t, end in zip(tokens, ends, strict=True) if end <= at]
    rest = at - sum(map(len, kept))
    return [*kept, tokens[len(kept)][:rest]] if rest else kept, stop
