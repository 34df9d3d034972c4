"""Which LLM should do this: eligibility, score and order. Pure: values in, `Decision` out.

Score (the specification's formula):

    score = -monetary_cost - time_cost_weight * time_seconds + utilization_bonus

with monetary_cost in mills ($0.001) for this request, time_seconds until the last token and
utilization_bonus = 1 - |(prompt + completion) / context - 0.7|. A weight is therefore mills per second.

With what is known of the moment (see `queueing`)

    time_seconds = slowdown * (queue_wait + ready_in + overhead + prompt / prefill + reply / speed)
                 + occupancy

where of the prompt only counts what its server has not read lately. For servers idle and not measured yet
that is the specification's prompt / prefill + completion / speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from maxwell.decision import Candidate, Decision, Reason, Rejected, Request, Scored
from maxwell.queueing import (
    FRESH_COUNT_SECONDS,
    OLD_COUNT_SECONDS,
    occupancy,
    two_of,
    utilization,
)
from maxwell.registry.specs import LLMSpec
from maxwell.tokens import DEFAULT_COMPLETION
from maxwell.types import PLAIN, HealthState, Requirements

LEAST_COMPLETION = 64  # the assumed completion shrinks to this before "nothing fits" is said
IDEAL_UTILIZATION = 0.7
MAX_WEIGHT = 10.0

# The states a call may be sent to at once. A sleeping server wakes at the first request.
SELECTABLE: frozenset[HealthState] = frozenset(("up", "asleep"))
# The states that end by themselves: such a server may be chosen where its `ready_in` is foreseeable.
PASSING: frozenset[HealthState] = frozenset(("loading", "rate_limited"))
MOST_RATE_LIMIT = 60.0  # seconds; a longer rate limit is not waited for

_Eligible = tuple[float, float, int, Scored]  # what is sorted by, the index last, and what is sorted


def check_weight(weight: float) -> None:
    """Raise ValueError unless `weight` is a number from 0 to 10."""
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(
            f"time_cost_weight must be a number from 0 to 10 (mills per second of waiting), not {weight!r}"
        )


def decide(
    candidates: Sequence[Candidate],
    request: Request,
    *,
    named: bool = False,
    draws: tuple[float, float] | None = None,
) -> Decision:
    """Rank `candidates` for `request`.

    Where no completion length was asked and the assumed one fits nowhere, it is shrunk once to 64 tokens.
    Those that are failing are left out as long as there is another one.

    Args:
        candidates: Who could do it, as they stand.
        request: What is to be done.
        named: Whether the caller named the only candidate.
        draws: Two random numbers in [0, 1), for servers that others send work to unseen.

    Raises:
        ValueError: The weight is not a number from 0 to 10.
    """
    check_weight(request.needs.time_cost_weight)
    decision = _shrinking(candidates, request, named, spare_failing=False)
    if not decision.ranked and any(c.failing for c in candidates):
        decision = _shrinking(candidates, request, named, spare_failing=True)
    if request.backlog:
        decision = _beside_a_backlog(candidates, decision)
    return decision if draws is None else _spread(candidates, decision, draws)


def _shrinking(
    candidates: Sequence[Candidate], request: Request, named: bool, *, spare_failing: bool
) -> Decision:
    decision = _decide(candidates, request, DEFAULT_COMPLETION, named, spare_failing)
    if not decision.ranked and request.prompt_bytes is not None and request.needs.max_completion is None:
        return _decide(candidates, request, LEAST_COMPLETION, named, spare_failing)
    return decision


def _decide(
    candidates: Sequence[Candidate], request: Request, assumed: int, named: bool, spare_failing: bool
) -> Decision:
    needs = request.needs
    selective = _is_selective(request)
    routed = request.prompt_bytes is not None
    by_speed = request.by_speed or not routed
    weight = needs.time_cost_weight
    eligible: list[_Eligible] = []
    rejected: list[Rejected] = []
    busy = False
    for c in candidates:
        result: Scored | Rejected | None = _unable(c, request) if selective else None
        available = (
            c.blocked is None
            and (c.state in SELECTABLE or is_foreseeable(c.state, c.ready_in))
            and (not c.failing or spare_failing)
        )
        # Nobody asks a server that cannot be chosen anyway, so its unknown state is the last reason to give.
        if result is None and (available or (c.state == "unknown" and c.blocked is None)):
            result = _score(c, request, assumed, weight) if routed else _unrouted(c, needs)
        if not available and type(result) is not Rejected:
            result = _unavailable(c)
        if type(result) is Scored:
            if c.in_flight:
                busy = True
            wait = c.queue_wait + c.ready_in
            # By speed, who can begin comes before who cannot, and the fastest first among equals.
            if by_speed:
                eligible.append((wait, -c.speed / c.slowdown, c.index, result))
            else:
                eligible.append((-result.score, wait, c.index, result))
        else:
            assert type(result) is Rejected
            rejected.append(result)
    # How busy all are together is too fine a difference for counts that are old.
    if busy and not by_speed and not any([c.counted > FRESH_COUNT_SECONDS for c in candidates]):
        eligible = _with_occupancy(candidates, eligible, weight)
    eligible.sort()  # the index is unique, so a comparison never reaches the last item
    by: Literal["score", "speed", "name"] = "name" if named else "speed" if by_speed else "score"
    return Decision(ranked=tuple([e[3] for e in eligible]), rejected=tuple(rejected), request=request, by=by)


def _with_occupancy(
    candidates: Sequence[Candidate], eligible: list[_Eligible], weight: float
) -> list[_Eligible]:
    """`eligible` with what a slot costs those that come after, by how busy all these servers are together.

    Who is not eligible has no say in that: it must never change the choice among the others.
    """
    by_index = {c.index: c for c in candidates}
    servers = {c.endpoint: c for e in eligible if (c := by_index[e[2]]).slots is not None}
    used = utilization([(c.in_flight, c.slots or 0) for c in servers.values()])
    return [_occupied(e, by_index[e[2]], used, weight) if e[3].in_flight else e for e in eligible]


def _occupied(e: _Eligible, c: Candidate, used: float, weight: float) -> _Eligible:
    s = e[3]
    cost = occupancy(c.in_flight, c.slots, c.service, used)
    seconds = s.seconds + cost
    score = -s.mills - weight * seconds + s.utilization_bonus
    return -score, e[1], e[2], replace(s, seconds=seconds, score=score, occupancy=cost)


def is_foreseeable(state: HealthState, ready_in: float) -> bool:
    """Whether a server of that state cannot take a request now, and it is known that it can before long."""
    if state == "rate_limited":
        return 0 < ready_in <= MOST_RATE_LIMIT
    return state == "loading" and 0 < ready_in < math.inf


def _beside_a_backlog(candidates: Sequence[Candidate], decision: Decision) -> Decision:
    """`decision` with that one first, of those that cost the same as the best, which is done soonest.

    Where many requests have not begun, all of them wait for the servers without a free slot, too; not only
    this one. It must not buy: among different prices the score has decided.
    """
    if len(decision.ranked) < 2 or decision.by != "score":
        return decision
    by_name = {c.spec.name: c for c in candidates}
    servers = {c.endpoint: c for s in decision.ranked if (c := by_name[s.spec.name]).slots is not None}
    rate = sum([(c.slots or 1) / c.service for c in servers.values()])
    wait = decision.request.backlog / rate if rate else 0.0
    ranked, best = decision.ranked, decision.ranked[0]

    def done(i: int) -> float:
        s = ranked[i]
        return s.seconds if s.slots is None or s.in_flight < s.slots else s.seconds + wait

    first = min([i for i, s in enumerate(ranked) if s.mills == best.mills], key=done)
    return replace(decision, ranked=(ranked[first], *ranked[:first], *ranked[first + 1 :]))


def _spread(candidates: Sequence[Candidate], decision: Decision, draws: tuple[float, float]) -> Decision:
    """`decision` with the better of two drawn candidates first, where the counts behind it are stale.

    Everybody who sees the same old count would run to the same server. Only among those that cost the same as
    the best: chance must not spend money. Drawn in proportion to slots / service.
    """
    if not decision.ranked:
        return decision
    stale = {c.spec.name: c for c in candidates if c.counted > FRESH_COUNT_SECONDS and c.slots is not None}
    best = decision.ranked[0]
    price = _price(best)
    drawn = [i for i, s in enumerate(decision.ranked) if s.spec.name in stale and _price(s) == price]
    if best.spec.name not in stale or len(drawn) < 2:
        return decision
    among = [stale[decision.ranked[i].spec.name] for i in drawn]
    pair = two_of([(c.slots or 1) / c.service for c in among], draws)
    # What is older than a minute says nothing: the first one drawn it is. Otherwise the better of two.
    chosen = drawn[pair[0] if min(c.counted for c in among) > OLD_COUNT_SECONDS else min(pair)]
    ranked = decision.ranked
    return replace(decision, ranked=(ranked[chosen], *ranked[:chosen], *ranked[chosen + 1 :]))


def _price(s: Scored) -> tuple[float, float, float]:
    """What the request costs there; where no prompt is known the prices alone tell."""
    return s.mills, s.spec.price_prompt, s.spec.price_completion


def _unrouted(c: Candidate, needs: Requirements) -> Scored | Rejected:
    """Where no prompt is given the speed is the score; a budget must have something left."""
    cap = c.spec.capabilities.max_tokens
    if needs.max_completion is not None and needs.max_completion > cap:
        return Rejected(c.spec, "max_completion", needs.max_completion, cap)
    if c.tokens_left is not None or c.usd_left is not None:
        no = _over_budget(c, 1, 0)
        if no is not None:
            return no
    return Scored(
        c.spec,
        0,
        0,
        0.0,
        0.0,
        0.0,
        c.speed,
        c.queue_wait,
        c.speed,
        c.context,
        0,
        c.ready_in,
        c.overhead,
        0.0,
        c.slowdown,
        c.in_flight,
        c.slots,
        c.state,
        c.failing,
    )


def expected_seconds(c: Candidate, request: Request) -> float:
    """How long `c` would work on `request`, waiting left aside; 0 = the size of the request is not known."""
    prompt = _prompt_tokens(c, request)
    if prompt is None:
        return 0.0
    most = request.needs.max_completion or min(DEFAULT_COMPLETION, c.spec.capabilities.max_tokens)
    reply = most if c.completion is None else min(c.completion, most)
    return c.overhead + (1.0 - c.cached) * prompt / c.prefill + reply / c.speed


def _prompt_tokens(c: Candidate, request: Request) -> int | None:
    """As its server counted them, else as the size of the text makes likely; None = no prompt is known."""
    counted = request.prompt_tokens.get(c.spec.name)
    if counted is not None or request.prompt_bytes is None:
        return counted
    ratio = request.bytes_per_token or c.bytes_per_token
    return math.ceil(request.prompt_bytes / ratio) + request.extra_tokens


def _score(c: Candidate, request: Request, assumed: int, weight: float) -> Scored | Rejected:
    """Score an able and available candidate, or reject it for its context, reply length or budget."""
    spec = c.spec
    cap = spec.capabilities.max_tokens
    completion = request.needs.max_completion
    if completion is None:
        completion = assumed if assumed < cap else cap
    elif completion > cap:
        return Rejected(spec, "max_completion", completion, cap)
    thinking = spec.capabilities.thinking_tokens if request.thinking is None else request.thinking
    if thinking:
        if assumed == LEAST_COMPLETION:  # where too little is left, half of it is for thinking
            thinking = min(thinking, completion)
        completion = min(completion + thinking, cap)
    prompt = request.prompt_tokens.get(spec.name) if request.prompt_tokens else None
    if prompt is None:
        assert request.prompt_bytes is not None
        # As `_prompt_tokens` has it: a call for each candidate would be a tenth of the whole decision.
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
    reply = completion if c.completion is None or c.completion > completion else c.completion
    mills = request_mills(spec, prompt, reply)
    unread = (1.0 - c.cached) * prompt if c.cached else prompt
    seconds = c.queue_wait + c.ready_in + c.overhead + unread / c.prefill + reply / c.speed
    if c.slowdown != 1.0:
        seconds *= c.slowdown
    bonus = 1 - abs(total / c.context - IDEAL_UTILIZATION)
    score = -mills - weight * seconds + bonus
    return Scored(
        spec,
        prompt,
        completion,
        mills,
        seconds,
        bonus,
        score,
        c.queue_wait,
        c.speed,
        c.context,
        reply,
        c.ready_in,
        c.overhead,
        0.0,
        c.slowdown,
        c.in_flight,
        c.slots,
        c.state,
        c.failing,
    )


def request_mills(spec: LLMSpec, prompt: int, completion: float) -> float:
    """Price of a request in mills: 1000 x $, and prices are per 1000 tokens, so price x tokens."""
    if spec.cost_per_1k_prompt_tokens is None and spec.cost_per_1k_completion_tokens is None:
        return spec.cost_per_1k_tokens * (prompt + completion)
    return spec.price_prompt * prompt + spec.price_completion * completion


_NOTHING = (None,) * 7


def _is_selective(request: Request) -> bool:
    """Whether anything is asked of the model itself; usually nothing is, and those checks are skipped."""
    n = request.needs
    asked = (n.vision, n.reasoning, n.code_specialized, n.tools, n.min_context, n.min_speed, n.tier)
    return request.features is not PLAIN or bool(n.tags) or asked != _NOTHING


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
    if c.cannot:
        return Rejected(spec, "cannot", note=c.cannot)
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
    if c.failing and c.state in SELECTABLE:
        return Rejected(c.spec, "failing", note=c.detail)
    reason = "down" if c.state == "unknown" else c.state
    ready_in = c.ready_in if c.state in PASSING and c.ready_in < math.inf else 0.0
    return Rejected(c.spec, reason, note=c.detail, resets_in=ready_in)  # type: ignore[arg-type]


def _over_budget(c: Candidate, prompt: int, completion: int) -> Rejected | None:
    """Why today's budget does not hold this request."""
    if c.tokens_left is not None and prompt + completion > c.tokens_left:
        return Rejected(c.spec, "budget", prompt + completion, c.tokens_left, "tokens", c.resets_in)
    if c.usd_left is not None:
        usd = request_mills(c.spec, prompt, completion) / 1000
        if usd > c.usd_left or c.usd_left <= 0:
            return Rejected(c.spec, "budget", usd, c.usd_left, "usd", c.resets_in)
    return None
