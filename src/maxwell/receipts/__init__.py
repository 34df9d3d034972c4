"""Receipts: why a call went where it went and what became of it, kept 30 days in the user's database.

Here are the values. `record` makes them while a call runs, `book` keeps and finds them.
"""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Struct

from maxwell.decision import Decision, Rejected, Scored
from maxwell.explain import wait_or_spend
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.types import Features, Requirements, Usage

N = TypeVar("N", int, float)

__all__ = [
    "Attempted",
    "Choice",
    "Prices",
    "Ranked",
    "Receipt",
    "Refused",
    "sum_of",
]


class Ranked(Struct, frozen=True, array_like=True, gc=False):
    """A candidate with every term of its score, see `decision.Scored`. New fields go to the end."""

    name: str
    score: float = 0.0
    mills: float = 0.0
    seconds: float = 0.0
    utilization_bonus: float = 0.0
    queue_wait: float = 0.0
    speed: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    context: int = 0
    reply_tokens: float = 0.0
    ready_in: float = 0.0
    overhead: float = 0.0
    occupancy: float = 0.0
    slowdown: float = 1.0
    in_flight: float = 0.0
    slots: int | None = None
    state: str = "up"
    failing: bool = False

    @classmethod
    def of(cls, scored: Scored) -> Ranked:
        """Without the spec, and without digits that nobody looks at."""
        return cls(
            scored.spec.name,
            round(scored.score, 6),
            round(scored.mills, 6),
            round(scored.seconds, 6),
            round(scored.utilization_bonus, 6),
            round(scored.queue_wait, 6),
            scored.speed,
            scored.prompt_tokens,
            scored.completion_tokens,
            scored.context,
            round(scored.reply_tokens, 1),
            round(scored.ready_in, 3),
            round(scored.overhead, 6),
            round(scored.occupancy, 6),
            round(scored.slowdown, 3),
            round(scored.in_flight, 2),
            scored.slots,
            scored.state,
            scored.failing,
        )


class Refused(Struct, frozen=True, array_like=True, gc=False):
    """Who could not be chosen, and why. New fields go to the end.

    Attributes:
        name: The entry.
        reason: See `decision.Reason`.
        detail: The reason in words.
    """

    name: str
    reason: str = ""
    detail: str = ""

    @classmethod
    def of(cls, no: Rejected) -> Refused:
        """Without the spec."""
        return cls(no.spec.name, no.reason, no.detail)


class Choice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision in names and numbers; for an embedding or a reranker, what was asked for.

    Attributes:
        by: "score", "speed" or "name"; for those "name", "tag", or "default" where neither was given.
        asked: The name or tag of the embedding or reranker that was asked for.
        needs: Those requirements that the caller stated.
        time_cost_weight: The weight used, in mills a second.
        prompt_bytes: Size of the prompt that was chosen for; None = none was given.
        ranked: The eligible ones, best first.
        wait_or_spend: Why to wait for the best one, or to pay instead of waiting; see `explain`.
        more_ranked: How many further ones there were.
        rejected: Those that could not be chosen, in registry order.
        more_rejected: How many further ones there were.
    """

    by: str = ""
    asked: str = ""
    needs: dict[str, Any] = {}
    time_cost_weight: float = 1.0
    prompt_bytes: int | None = None
    ranked: tuple[Ranked, ...] = ()
    wait_or_spend: str = ""
    more_ranked: int = 0
    rejected: tuple[Refused, ...] = ()
    more_rejected: int = 0

    @classmethod
    def of(
        cls, decision: Decision, *, most_ranked: int | None = None, most_rejected: int | None = None
    ) -> Choice:
        """A decision without its specs; of its lists at most so many, None = all."""
        request = decision.request
        ranked, rejected = decision.ranked[:most_ranked], decision.rejected[:most_rejected]
        return cls(
            by=decision.by,
            needs=_stated(request.needs) | _asked(request.features),
            time_cost_weight=request.needs.time_cost_weight,
            prompt_bytes=request.prompt_bytes,
            ranked=tuple([Ranked.of(scored) for scored in ranked]),
            wait_or_spend=wait_or_spend(decision) or "",
            more_ranked=len(decision.ranked) - len(ranked),
            rejected=tuple([Refused.of(no) for no in rejected]),
            more_rejected=len(decision.rejected) - len(rejected),
        )

    @classmethod
    def of_takeover(cls, decision: Decision) -> Choice:
        """What tells in a line why the best one took over: it and the next best."""
        return cls.of(decision, most_ranked=2, most_rejected=0)


def _asked(features: Features) -> dict[str, Any]:
    """What must be known of a constraint to understand a choice: of which kind it was."""
    return {} if features.constraint is None else {"constraint": features.constraint.kind}


_ANYTHING = Requirements()
_STATED_APART = ("prompt", "time_cost_weight")


def _stated(needs: Requirements) -> dict[str, Any]:
    """The requirements that are not what they are when nobody says anything."""
    if needs == _ANYTHING:
        return {}
    fields = (field for field in needs.__struct_fields__ if field not in _STATED_APART)
    return {field: value for field in fields if (value := getattr(needs, field)) not in (None, ())}


class Prices(Struct, frozen=True):
    """What was counted with, in US dollars per 1000 tokens."""

    prompt: float = 0.0
    completion: float = 0.0
    cached: float = 0.0

    @classmethod
    def of(cls, spec: Spec) -> Prices | None:
        """As the registry has them; None = it is free."""
        if spec.is_free:
            return None
        if isinstance(spec, LLMSpec):
            return cls(spec.price_prompt, spec.price_completion, spec.price_cached)
        return cls(spec.price_prompt, 0.0, spec.price_prompt)


class Attempted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry that was asked.

    Attributes:
        name: The entry.
        outcome: "ok", a `Fault`, "budget", "ledger", "cancelled" (the caller left) or "failed".
        message: What went wrong, in words.
        choice: The decision that chose it where that is not the receipt's own, with its best two alone.
        held_seconds: How long the call was held back before it: for a slot, or until its server was ready.
        seconds: How long it took, without that.
        usage: What was booked for it; None = nothing.
        usd: What that cost, in US dollars.
        prices: What was counted with; None = it was free.
    """

    name: str = ""
    outcome: str = ""
    message: str = ""
    choice: Choice | None = None
    held_seconds: float = 0.0
    seconds: float = 0.0
    usage: Usage | None = None
    usd: float = 0.0
    prices: Prices | None = None


class Receipt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call: what was asked, who was chosen and why, what became of it.

    Attributes:
        id: Short, for people to type.
        at: When the call began, in seconds since the epoch.
        kind: "chat", "embed" or "rerank".
        outcome: As `Attempted.outcome`; "failed" also where several were asked and none answered,
            "unreadable" where the receipt itself is.
        llm: Who answered, or "".
        choice: The decision that counted: the one at the moment of the call.
        chosen_before: Who had been chosen before that, where it was another one; else "".
        attempts: Who was asked, in order.
        held_seconds: How long the call was held back at its end, without anybody being asked after it.
        message: What went wrong, in words, where nobody was asked.
        messages: Number of messages, or of texts: those to embed, or query and documents.
        characters: Size of their text.
        images: Number of images.
        seconds: How long the call took in all.
        first_token_seconds: From sending to the first content of the reply; None = not known.
        finish_reason: Why the reply ended, in the server's word.
        prompt: What was asked, where the user wants it kept.
        reply: What was answered, where the user wants it kept.
    """

    id: str = ""
    at: float = 0.0
    kind: str = "chat"
    outcome: str = ""
    llm: str = ""
    choice: Choice = Choice()
    chosen_before: str = ""
    attempts: tuple[Attempted, ...] = ()
    held_seconds: float = 0.0
    message: str = ""
    messages: int = 0
    characters: int = 0
    images: int = 0
    seconds: float = 0.0
    first_token_seconds: float | None = None
    finish_reason: str = ""
    prompt: str | None = None
    reply: str | None = None

    @property
    def usage(self) -> Usage | None:
        """What all attempts used together; None = nothing was booked."""
        total: Usage | None = None
        for attempt in self.attempts:
            if attempt.usage is not None:
                total = sum_of(total, attempt.usage)
        return total

    @property
    def usd(self) -> float:
        """What all attempts cost together, in US dollars."""
        return sum(attempt.usd for attempt in self.attempts)


def sum_of(one: Usage | None, other: Usage) -> Usage:
    """Two usages as one: estimated when either is."""
    if one is None:
        return other
    return Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        _known_sum(one.cached_tokens, other.cached_tokens),
        _known_sum(one.reasoning_tokens, other.reasoning_tokens),
        one.estimated or other.estimated,
        _known_sum(one.reported_usd, other.reported_usd),
    )


def _known_sum(one: N | None, other: N | None) -> N | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
