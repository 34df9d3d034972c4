"""Which LLM should do this: eligibility, score and order. Pure: values in, `Decision` out.

Score (the specification's formula):

    score = -monetary_cost - time_cost_weight * time_seconds + utilization_bonus

with monetary_cost in mills ($0.001) for this request, time_seconds until the last token and
utilization_bonus = 1 - |(prompt + completion) / context - 0.7|. A weight is therefore mills per second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from maxwell.amounts import duration, money, one_line
from maxwell.registry.specs import PREFILL_FACTOR, LLMSpec
from maxwell.tokens import BYTES_PER_TOKEN, DEFAULT_COMPLETION
from maxwell.types import HealthState, Requirements

LEAST_COMPLETION = 64  # the assumed completion shrinks to this before "nothing fits" is said
IDEAL_UTILIZATION = 0.7
MAX_WEIGHT = 10.0

Reason = Literal[
    "vision",
    "reasoning",
    "code_specialized",
    "tools",
    "grammar",
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
    "down",
]

# The states a call may be sent to. A sleeping server wakes at the first request; a loading one refuses it.
SELECTABLE: frozenset[HealthState] = frozenset(("up", "asleep"))


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
        queue_wait: Predicted wait for a free slot, in seconds.
        bytes_per_token: Learned ratio of this model's tokenizer.
        tokens_left: What today's token budget has left; None = unlimited.
        usd_left: What today's money budget has left; None = unlimited.
        resets_in: Seconds until the budgets start anew.
        honours_grammar: Whether its backend obeys a grammar.
    """

    spec: LLMSpec
    index: int = 0
    state: HealthState = "up"
    detail: str = ""
    blocked: Reason | None = None
    context: int = 0
    speed: float = 0.0
    prefill: float = 0.0
    queue_wait: float = 0.0
    bytes_per_token: float = BYTES_PER_TOKEN
    tokens_left: int | None = None
    usd_left: float | None = None
    resets_in: float = 0.0
    honours_grammar: bool = True

    def __post_init__(self) -> None:
        can = self.spec.capabilities
        self.context = self.context or can.max_context
        self.speed = self.speed or can.speed_tokens_per_sec
        self.prefill = self.prefill or can.prefill_tokens_per_sec or PREFILL_FACTOR * self.speed


class Request(Struct, frozen=True, kw_only=True):
    """What is to be chosen for.

    Attributes:
        needs: The caller's requirements.
        prompt_bytes: Size of the prompt in UTF-8 bytes; None = no prompt given, choose the fastest.
        prompt_tokens: Exact prompt tokens by entry name, where a server has counted them.
        bytes_per_token: What those counts came to; the better guess for everyone else. None = no counts.
        extra_tokens: Prompt tokens besides the text (images, template).
        by_speed: Rank by speed although the prompt is known, which then only has to fit.
        grammar: Whether the text must obey a grammar.
    """

    needs: Requirements
    prompt_bytes: int | None = None
    prompt_tokens: Mapping[str, int] = {}
    bytes_per_token: float | None = None
    extra_tokens: int = 0
    by_speed: bool = False
    grammar: bool = False


class Scored(Struct, frozen=True, gc=False):
    """An eligible LLM with every term of its score.

    Attributes:
        spec: The entry.
        prompt_tokens: Expected prompt, in tokens; 0 when no prompt was given.
        completion_tokens: Expected completion, in tokens; 0 when no prompt was given.
        mills: Price of the request in mills ($0.001).
        seconds: Time until the last token.
        utilization_bonus: 1 - |utilization - 0.7|.
        score: Higher is better; generation speed where no prompt was given.
        queue_wait: Part of `seconds` spent waiting for a slot.
        speed: Generation speed used, in tokens per second.
        context: Usable context, in tokens.
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


class Rejected(Struct, frozen=True, gc=False):
    """An LLM that may not be chosen, and why.

    Attributes:
        spec: The entry.
        reason: The first requirement it fails.
        need: What was asked, where the reason is a number.
        have: What the entry has, where the reason is a number.
        note: Further words: the health check's, the missing tags, the budget's unit.
        resets_in: Seconds until the budget starts anew, where the reason is "budget".
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
        by: "score" (a prompt was given), "speed" (none was) or "name" (the caller named it).
    """

    ranked: tuple[Scored, ...]
    rejected: tuple[Rejected, ...]
    request: Request
    by: Literal["score", "speed", "name"]

    @property
    def chosen(self) -> Scored | None:
        """The best one, or None when nothing is eligible."""
        return self.ranked[0] if self.ranked else None


def check_weight(weight: float) -> None:
    """Raise ValueError unless `weight` is a number from 0 to 10."""
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(
            f"time_cost_weight must be a number from 0 to 10 (mills per second of waiting), not {weight!r}"
        )


def decide(candidates: Sequence[Candidate], request: Request, *, named: bool = False) -> Decision:
    """Rank `candidates` for `request`.

    Where no completion length was asked and the assumed one fits nowhere, it is shrunk once to 64 tokens.

    Raises:
        ValueError: The weight is not a number from 0 to 10.
    """
    check_weight(request.needs.time_cost_weight)
    decision = _decide(candidates, request, DEFAULT_COMPLETION, named)
    if not decision.ranked and request.prompt_bytes is not None and request.needs.max_completion is None:
        return _decide(candidates, request, LEAST_COMPLETION, named)
    return decision


def _decide(candidates: Sequence[Candidate], request: Request, assumed: int, named: bool) -> Decision:
    needs = request.needs
    selective = _is_selective(request)
    routed = request.prompt_bytes is not None
    weight = needs.time_cost_weight
    eligible: list[tuple[float, float, int, Scored]] = []
    rejected: list[Rejected] = []
    for c in candidates:
        result: Scored | Rejected | None = _unable(c, request) if selective else None
        available = c.blocked is None and c.state in SELECTABLE
        if result is None and not available and (c.state != "unknown" or c.blocked is not None):
            result = _unavailable(c)
        if result is None:
            result = _score(c, request, assumed, weight) if routed else _unrouted(c, needs)
        # Nobody asks a server that cannot be chosen anyway, so its unknown state is the last reason to give.
        if not available and type(result) is Scored:
            result = _unavailable(c)
        if type(result) is Scored:
            key = c.speed if request.by_speed else result.score
            eligible.append((-key, c.queue_wait, c.index, result))
        else:
            assert type(result) is Rejected
            rejected.append(result)
    eligible.sort()  # the index is unique, so a comparison never reaches the last item
    by: Literal["score", "speed", "name"] = "name" if named else "score" if routed else "speed"
    return Decision(ranked=tuple([e[3] for e in eligible]), rejected=tuple(rejected), request=request, by=by)


def _unrouted(c: Candidate, needs: Requirements) -> Scored | Rejected:
    """Where no prompt is given the speed is the score; a budget must have something left."""
    cap = c.spec.capabilities.max_tokens
    if needs.max_completion is not None and needs.max_completion > cap:
        return Rejected(c.spec, "max_completion", needs.max_completion, cap)
    no = _over_budget(c, 1, 0)
    if no is not None:
        return no
    return Scored(c.spec, 0, 0, 0.0, 0.0, 0.0, c.speed, c.queue_wait, c.speed, c.context)


def _score(c: Candidate, request: Request, assumed: int, weight: float) -> Scored | Rejected:
    """Score an able and available candidate, or reject it for its context, reply length or budget."""
    spec = c.spec
    cap = spec.capabilities.max_tokens
    completion = request.needs.max_completion
    if completion is None:
        completion = assumed if assumed < cap else cap
    elif completion > cap:
        return Rejected(spec, "max_completion", completion, cap)
    prompt = request.prompt_tokens.get(spec.name)
    if prompt is None:
        assert request.prompt_bytes is not None
        ratio = request.bytes_per_token or c.bytes_per_token
        prompt = math.ceil(request.prompt_bytes / ratio) + request.extra_tokens
    total = prompt + completion
    if total > c.context:
        return Rejected(
            spec, "context", total, c.context, "" if spec.name in request.prompt_tokens else "estimated"
        )
    if c.tokens_left is not None or c.usd_left is not None:
        no = _over_budget(c, prompt, completion)
        if no is not None:
            return no
    mills = request_mills(spec, prompt, completion)
    seconds = c.queue_wait + prompt / c.prefill + completion / c.speed
    bonus = 1 - abs(total / c.context - IDEAL_UTILIZATION)
    score = -mills - weight * seconds + bonus
    return Scored(spec, prompt, completion, mills, seconds, bonus, score, c.queue_wait, c.speed, c.context)


def request_mills(spec: LLMSpec, prompt: int, completion: int) -> float:
    """Price of a request in mills: 1000 x $, and prices are per 1000 tokens, so price x tokens."""
    if spec.cost_per_1k_prompt_tokens is None and spec.cost_per_1k_completion_tokens is None:
        return spec.cost_per_1k_tokens * (prompt + completion)
    return spec.price_prompt * prompt + spec.price_completion * completion


def _is_selective(request: Request) -> bool:
    """Whether anything is asked of the model itself; usually nothing is, and those checks are skipped."""
    n = request.needs
    return (
        request.grammar
        or bool(n.tags)
        or any(
            v is not None
            for v in (n.vision, n.reasoning, n.code_specialized, n.tools, n.min_context, n.min_speed, n.tier)
        )
    )


def _unable(c: Candidate, request: Request) -> Rejected | None:
    """The first demand on the model itself that `c` does not meet."""
    needs, spec = request.needs, c.spec
    can = spec.capabilities
    asked: tuple[tuple[Reason, bool | None, bool], ...] = (
        ("vision", needs.vision, can.vision),
        ("reasoning", needs.reasoning, can.reasoning),
        ("code_specialized", needs.code_specialized, can.code_specialized),
        ("tools", needs.tools, can.tools),
    )
    for reason, wanted, has in asked:
        if wanted is not None and wanted != has:
            return Rejected(spec, reason, float(wanted), float(has))
    if request.grammar and not c.honours_grammar:
        return Rejected(spec, "grammar")
    missing = [tag for tag in needs.tags if tag not in spec.tags]
    if missing:
        return Rejected(spec, "tags", note=", ".join(missing))
    if needs.tier is not None and needs.tier != spec.tier:
        return Rejected(spec, "tier", note=needs.tier)
    if needs.min_context is not None and c.context < needs.min_context:
        return Rejected(spec, "min_context", needs.min_context, c.context)
    if needs.min_speed is not None and c.speed < needs.min_speed:
        return Rejected(spec, "min_speed", needs.min_speed, c.speed)
    return None


def _unavailable(c: Candidate) -> Rejected:
    """Why `c` cannot be called right now."""
    if c.blocked is not None:
        return Rejected(c.spec, c.blocked, note=c.detail)
    return Rejected(c.spec, "down" if c.state == "unknown" else c.state, note=c.detail)  # type: ignore[arg-type]


def _over_budget(c: Candidate, prompt: int, completion: int) -> Rejected | None:
    """Why today's budget does not hold this request."""
    if c.tokens_left is not None and prompt + completion > c.tokens_left:
        return Rejected(c.spec, "budget", prompt + completion, c.tokens_left, "tokens", c.resets_in)
    if c.usd_left is not None:
        usd = request_mills(c.spec, prompt, completion) / 1000
        if usd > c.usd_left or c.usd_left <= 0:
            return Rejected(c.spec, "budget", usd, c.usd_left, "usd", c.resets_in)
    return None


def describe(no: Rejected) -> str:
    """A rejection in words, without the entry's name."""
    if no.reason == "budget":
        have = max(no.have, 0)
        left = money(have) if no.note == "usd" else f"{have:,.0f} tokens"
        return f"daily budget has {left} left; it resets in {duration(no.resets_in)}"
    if no.reason in ("vision", "reasoning", "code_specialized", "tools"):
        return f"{no.reason} is {'required' if no.need else 'excluded'}"
    texts = {
        "grammar": "its backend does not obey grammars",
        "tags": f"lacks tag {no.note}",
        "tier": f"tier is {no.spec.tier}, not {no.note}",
        "min_context": f"context is {no.have:,.0f} tokens, {no.need:,.0f} required",
        "min_speed": f"speed is {no.have:g} tokens/s, {no.need:g} required",
        "max_completion": f"completes at most {no.have:,.0f} tokens, {no.need:,.0f} wanted",
        "context": f"needs {'about ' if no.note else ''}{no.need:,.0f} tokens, context is {no.have:,.0f}",
    }
    return texts.get(no.reason) or one_line(no.note) or no.reason.replace("_", " ")
