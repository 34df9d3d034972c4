"""The values of choosing: who could do it, what is to be done, and what was decided. Plain data.

How a decision is made stands in `scheduler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from maxwell.amounts import duration, money, one_line
from maxwell.queueing import queue_wait
from maxwell.registry.specs import PREFILL_FACTOR, LLMSpec
from maxwell.tokens import BYTES_PER_TOKEN, DEFAULT_COMPLETION, USUAL_PROMPT
from maxwell.types import PLAIN, Features, HealthState, Requirements

Reason = Literal[
    "vision",
    "reasoning",
    "code_specialized",
    "tools",
    "cannot",
    "tags",
    "tier",
    "min_context",
    "min_speed",
    "max_completion",
    "context",
    "budget",
    "budget_unknown",
    "key",
    "model_missing",
    "loading",
    "rate_limited",
    "misconfigured",
    "failing",
    "down",
]


class Candidate(Struct, kw_only=True):
    """One LLM as it stands at the moment of choosing.

    Attributes:
        spec: The declared entry.
        index: Its place in the registry.
        state: Health of its endpoint.
        detail: What the health check or the last call said, for messages.
        blocked: Why it cannot be used whatever its state ("key", "model_missing" or
            "budget_unknown"), or None.
        context: Usable context in tokens: the declared one, or the server's per-slot one when smaller.
        speed: Generation speed in tokens per second, measured once known, else declared.
        prefill: Prompt speed in tokens per second.
        endpoint: Its server, to know entries of one server from those of several.
        in_flight: Other requests at its server, running or held back for it.
        ahead: Those of them that this user's processes sent, or hold back and will send first.
        slots: Requests its server works on at once; None = any number.
        service: Seconds a request usually occupies a slot.
        queue_wait: Predicted wait for a free slot, in seconds; follows from the three above.
        counted: How long ago, in seconds, `in_flight` was true; above 0 where others send work unseen.
        overhead: Seconds to the first token besides reading the prompt.
        ready_in: Seconds until a loading, sleeping or rate-limited server can take a request; inf = nobody
            knows.
        slowdown: How many times slower than expected its server is at the moment.
        completion: Likely tokens of a reply, as learned; None = not learned.
        cached: Part of the prompt that its server has probably read before and need not read again, 0 to 1.
        failing: Whether its server failed again and again, or ignored constraints like the request's, so that
            it is left alone for a while.
        bytes_per_token: Learned ratio of this model's tokenizer.
        tokens_left: What today's token budget has left; None = unlimited.
        usd_left: What today's money budget has left; None = unlimited.
        resets_in: Seconds until the budgets start anew.
        cannot: Why its server cannot do what the request asks beyond writing text (`types.Features`), or "".
    """

    spec: LLMSpec
    index: int = 0
    state: HealthState = "up"
    detail: str = ""
    blocked: Reason | None = None
    context: int = 0
    speed: float = 0.0
    prefill: float = 0.0
    endpoint: str = ""
    in_flight: float = 0.0
    ahead: int = 0
    slots: int | None = None
    service: float = 0.0
    queue_wait: float = 0.0
    counted: float = 0.0
    overhead: float = 0.0
    ready_in: float = 0.0
    slowdown: float = 1.0
    completion: float | None = None
    cached: float = 0.0
    failing: bool = False
    bytes_per_token: float = BYTES_PER_TOKEN
    tokens_left: int | None = None
    usd_left: float | None = None
    resets_in: float = 0.0
    cannot: str = ""

    def __post_init__(self) -> None:
        can = self.spec.capabilities
        self.context = self.context or can.max_context
        self.speed = self.speed or can.speed_tokens_per_sec
        self.prefill = self.prefill or can.prefill_tokens_per_sec or PREFILL_FACTOR * self.speed
        self.endpoint = self.endpoint or self.spec.api_base
        if not self.service:
            self.service = USUAL_PROMPT / self.prefill + min(DEFAULT_COMPLETION, can.max_tokens) / self.speed
        if self.in_flight:
            self.queue_wait = queue_wait(self.in_flight, self.slots, self.service)

    @property
    def starts_at_once(self) -> bool:
        """Whether a request sent now would not have to wait."""
        return not self.ready_in and (self.slots is None or self.in_flight < self.slots)


class Request(Struct, frozen=True, kw_only=True):
    """What is to be chosen for.

    Attributes:
        needs: The caller's requirements.
        prompt_bytes: Size of the prompt in UTF-8 bytes; None = no prompt given, choose the fastest.
        prompt_tokens: Exact prompt tokens by entry name, where a server has counted them.
        bytes_per_token: What those counts came to; the better guess for everyone else. None = no counts.
        extra_tokens: Prompt tokens besides the text (images, template).
        by_speed: Rank by speed although the prompt is known, which then only has to fit.
        features: What is asked of the server beyond writing text.
        thinking: Room for thinking, in tokens, besides the reply; None = what the entry declares.
        prefix: Marks of the prompt's beginning (see `prefixes.blocks`).
        backlog: Further requests of its kind that nobody has begun, and that wait for the same servers.
    """

    needs: Requirements
    prompt_bytes: int | None = None
    prompt_tokens: Mapping[str, int] = {}
    bytes_per_token: float | None = None
    extra_tokens: int = 0
    by_speed: bool = False
    features: Features = PLAIN
    thinking: int | None = None
    prefix: tuple[int, ...] = ()
    backlog: int = 0


class Scored(Struct, frozen=True, gc=False):
    """An eligible LLM with every term of its score.

    Attributes:
        spec: The entry.
        prompt_tokens: Expected prompt, in tokens; 0 when no prompt was given.
        completion_tokens: Tokens of completion that must have room; 0 when no prompt was given.
        mills: Price of the request in mills ($0.001).
        seconds: Time until the last token, with what it costs those that come after.
        utilization_bonus: 1 - |utilization - 0.7|.
        score: Higher is better; generation speed where no prompt was given.
        queue_wait: Part of `seconds` spent waiting for a slot.
        speed: Generation speed used, in tokens per second.
        context: Usable context, in tokens.
        reply_tokens: Likely completion, in tokens, which price and time are reckoned with.
        ready_in: Part of `seconds` until its server is ready.
        overhead: Part of `seconds` before the prompt is read.
        occupancy: Part of `seconds` that is the cost to those that come after.
        slowdown: What the other parts of `seconds` are multiplied with.
        in_flight: Other requests at its server.
        slots: Requests its server works on at once; None = any number.
        state: Health of its endpoint.
        failing: Whether its server failed again and again; it is ranked because nothing else is eligible.
    """

    spec: LLMSpec
    prompt_tokens: int
    completion_tokens: int
    mills: float
    seconds: float
    utilization_bonus: float
    score: float
    queue_wait: float
    speed: float
    context: int
    reply_tokens: float = 0.0
    ready_in: float = 0.0
    overhead: float = 0.0
    occupancy: float = 0.0
    slowdown: float = 1.0
    in_flight: float = 0.0
    slots: int | None = None
    state: HealthState = "up"
    failing: bool = False

    @property
    def starts_at_once(self) -> bool:
        """Whether a request sent now would not have to wait."""
        return not self.ready_in and (self.slots is None or self.in_flight < self.slots)


class Rejected(Struct, frozen=True, gc=False):
    """An LLM that may not be chosen, and why.

    Attributes:
        spec: The entry.
        reason: The first requirement it fails.
        need: What was asked, where the reason is a number.
        have: What the entry has, where the reason is a number.
        note: Further words: the health check's, the missing tags, the budget's unit.
        resets_in: Seconds until the budget starts anew, where the reason is "budget", or until its server is
            ready, where it is a passing state; 0 = nobody knows.
    """

    spec: LLMSpec
    reason: Reason
    need: float = 0.0
    have: float = 0.0
    note: str = ""
    resets_in: float = 0.0

    @property
    def detail(self) -> str:
        """The reason in words."""
        return describe(self)


class Decision(Struct, frozen=True, kw_only=True):
    """What was chosen and why.

    Attributes:
        ranked: Eligible LLMs, best first.
        rejected: All others, in registry order.
        request: What was asked.
        by: "score" (a prompt was given), "speed" (none was, or only to see whether it fits) or "name" (the
            caller named it).
    """

    ranked: tuple[Scored, ...]
    rejected: tuple[Rejected, ...]
    request: Request
    by: Literal["score", "speed", "name"]

    @property
    def chosen(self) -> Scored | None:
        """The best one, or None when nothing is eligible."""
        return self.ranked[0] if self.ranked else None


def describe(no: Rejected) -> str:
    """A rejection in words, without the entry's name."""
    if no.reason == "budget":
        have = max(no.have, 0)
        left = money(have) if no.note == "usd" else f"{have:,.0f} tokens"
        return f"daily budget has {left} left; it resets in {duration(no.resets_in)}"
    if no.reason in ("vision", "reasoning", "code_specialized", "tools"):
        return f"{no.reason} is {'required' if no.need else 'excluded'}"
    texts = {
        "tags": f"lacks tag {no.note}",
        "tier": f"tier is {no.spec.tier}, not {no.note}",
        "min_context": f"context is {no.have:,.0f} tokens, {no.need:,.0f} required",
        "min_speed": f"speed is {no.have:g} tokens/s, {no.need:g} required",
        "max_completion": f"completes at most {no.have:,.0f} tokens, {no.need:,.0f} wanted",
        "context": f"needs {'about ' if no.note else ''}{no.need:,.0f} tokens, context is {no.have:,.0f}",
        "failing": one_line(no.note) or "it failed again and again",
    }
    return texts.get(no.reason) or one_line(no.note) or no.reason.replace("_", " ")
