from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from choosing import WEIGHTS, candidates, pools, requests
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maxwell.decision import Candidate, Decision, Rejected, Request, Scored
from maxwell.explain import flips, refusal
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.scheduler import decide
from maxwell.types import PLAIN, Requirements

quick = settings(deadline=None, max_examples=70)


def winner(decision: Decision) -> str | None:
    return decision.chosen.spec.name if decision.chosen else None


def reindexed(pool: Sequence[Candidate]) -> list[Candidate]:
    return [msgspec.structs.replace(c, index=i) for i, c in enumerate(pool)]


# 1, with every term of the moment and of what was learned at its default


@quick
@given(
    tokens=st.integers(1, 10**6),
    completion=st.integers(1, 10**5),
    context=st.integers(2 * 10**6, 10**7),
    speed=st.floats(1e-3, 1e5),
    price=st.floats(0, 1e3),
    weight=st.floats(0, 10),
)
def test_idle_and_unmeasured_score_is_the_formula_bit_for_bit(
    tokens: int, completion: int, context: int, speed: float, price: float, weight: float
) -> None:
    spec = LLMSpec(
        name="m",
        api_base="http://m",
        model="m",
        backend="vllm",
        capabilities=Capabilities(max_tokens=10**5, max_context=context, speed_tokens_per_sec=speed),
        default_temperature=0.0,
        cost_per_1k_tokens=price,
    )
    needs = Requirements(max_completion=completion, time_cost_weight=weight)
    best = decide([Candidate(spec=spec)], Request(needs=needs, prompt_bytes=4 * tokens)).chosen
    assert best is not None
    mills = price * (tokens + completion)
    seconds = tokens / (20 * speed) + completion / speed
    bonus = 1 - abs((tokens + completion) / context - 0.7)
    assert (best.mills, best.seconds, best.utilization_bonus) == (mills, seconds, bonus)
    assert best.score == -mills - weight * seconds + bonus


# 2


def broken_limits(c: Candidate, chosen: Scored, request: Request) -> list[str]:
    """The hard constraints that a choice breaks, written without the scheduler."""
    needs, spec, can = request.needs, c.spec, c.spec.capabilities
    prompt, reply = chosen.prompt_tokens, chosen.completion_tokens
    usd = (spec.price_prompt * prompt + spec.price_completion * reply) / 1000
    context = min(c.context, 10**9)
    checks = {
        "state": c.state in ("up", "asleep")
        or (c.state in ("loading", "rate_limited") and 0 < c.ready_in < math.inf),
        "blocked": c.blocked is None,
        "vision": needs.vision in (None, can.vision),
        "reasoning": needs.reasoning in (None, can.reasoning),
        "code": needs.code_specialized in (None, can.code_specialized),
        "tools": needs.tools in (None, can.tools),
        "tags": set(needs.tags) <= set(spec.tags),
        "tier": needs.tier in (None, spec.tier),
        "min_context": context >= (needs.min_context or 0),
        "min_speed": can.speed_tokens_per_sec >= (needs.min_speed or 0),
        "cannot": not c.cannot or request.features is PLAIN,
        "max_completion": (needs.max_completion or 0) <= can.max_tokens,
        "context": prompt + reply <= context,
        "tokens": c.tokens_left is None or prompt + reply <= c.tokens_left > 0,
        "usd": c.usd_left is None or (usd <= c.usd_left + 1e-12 and c.usd_left > 0),
    }
    return [name for name, holds in checks.items() if not holds]


@quick
@given(pool=pools(least=1), request=requests())
def test_whatever_is_ranked_meets_every_hard_constraint(pool: list[Candidate], request: Request) -> None:
    by_name = {c.spec.name: c for c in pool}
    ranked = decide(pool, request).ranked
    for scored in ranked:
        assert broken_limits(by_name[scored.spec.name], scored, request) == []
    assert len({by_name[scored.spec.name].failing for scored in ranked}) <= 1


@quick
@given(pool=pools(least=1), request=requests(routed=True))
def test_the_reply_planned_is_the_one_asked_for(pool: list[Candidate], request: Request) -> None:
    for scored in decide(pool, request).ranked:
        asked = request.needs.max_completion
        cap = scored.spec.capabilities.max_tokens
        thinking = scored.spec.capabilities.thinking_tokens if request.thinking is None else request.thinking
        replies = (asked,) if asked else (min(512, cap), min(64, cap))
        assert scored.completion_tokens in [min(reply + (thinking or 0), cap) for reply in replies]


# 3


@quick
@given(pool=pools(), request=requests())
def test_every_candidate_is_ranked_or_rejected_with_a_reason(pool: list[Candidate], request: Request) -> None:
    decision = decide(pool, request)
    names = [s.spec.name for s in decision.ranked] + [no.spec.name for no in decision.rejected]
    assert sorted(names) == sorted(c.spec.name for c in pool)
    assert [no.spec.name for no in decision.rejected] == sorted(no.spec.name for no in decision.rejected)
    for no in decision.rejected:
        assert isinstance(no, Rejected)
        assert no.detail
    if not decision.ranked:
        text = refusal(pool, decision)
        assert all(f"{no.spec.name}: {no.detail}" in text for no in decision.rejected)
        assert len(text.splitlines()) == 1


# 4


@quick
@given(pool=pools(), extra=candidates("extra", 0), at=st.integers(0, 5), request=requests())
def test_an_infeasible_model_never_changes_the_choice(
    pool: list[Candidate], extra: Candidate, at: int, request: Request
) -> None:
    more = reindexed([*pool[:at], extra, *pool[at:]])
    with_it = decide(more, request)
    assume("extra" in [no.spec.name for no in with_it.rejected])
    assert winner(with_it) == winner(decide(pool, request))


# 5


@quick
@given(
    pool=pools(least=2, roomy=True),
    request=requests(routed=True, modest=True),
    cheaper=st.floats(0, 1),
    faster=st.floats(1, 4),
    sooner=st.floats(0, 1),
)
def test_a_lower_price_or_time_keeps_the_chosen_one(
    pool: list[Candidate], request: Request, cheaper: float, faster: float, sooner: float
) -> None:
    before = winner(decide(pool, request))
    assume(before is not None)
    for factors in ((cheaper, 1.0, 1.0), (1.0, faster, 1.0), (1.0, 1.0, sooner), (cheaper, faster, sooner)):
        after = [better(c, *factors) if c.spec.name == before else c for c in pool]
        assert winner(decide(after, request)) == before


def better(c: Candidate, cheaper: float, faster: float, sooner: float) -> Candidate:
    own = c.spec.cost_per_1k_completion_tokens
    spec = msgspec.structs.replace(
        c.spec,
        cost_per_1k_tokens=c.spec.cost_per_1k_tokens * cheaper,
        cost_per_1k_completion_tokens=None if own is None else own * cheaper,
    )
    return msgspec.structs.replace(
        c,
        spec=spec,
        speed=c.speed * faster,
        prefill=c.prefill * faster,
        queue_wait=c.queue_wait * sooner,
        overhead=c.overhead * sooner,
        ready_in=c.ready_in if c.state in ("loading", "rate_limited") else c.ready_in * sooner,
        slowdown=max(c.slowdown * sooner, 1.0),
    )


# 6


@quick
@given(pool=pools(least=2, roomy=True), request=requests(routed=True, modest=True), other=WEIGHTS)
def test_a_higher_weight_never_selects_a_longer_time(
    pool: list[Candidate], request: Request, other: float
) -> None:
    low, high = sorted((request.needs.time_cost_weight, other))
    patient, hurried = decide(pool, at(request, low)).chosen, decide(pool, at(request, high)).chosen
    assume(patient is not None)
    assert patient is not None
    assert hurried is not None
    assert hurried.seconds <= patient.seconds


def at(request: Request, weight: float) -> Request:
    return msgspec.structs.replace(
        request, needs=msgspec.structs.replace(request.needs, time_cost_weight=weight)
    )


# 7


@quick
@given(pool=pools(least=2), request=requests(), data=st.data())
def test_a_permuted_registry_changes_only_ties(
    pool: list[Candidate], request: Request, data: st.DataObject
) -> None:
    before = decide(pool, request).chosen
    shuffled = reindexed(data.draw(st.permutations(pool)))
    after = decide(shuffled, request).chosen
    if before is None or after is None:
        assert before is after
        return
    assert rank(after) == rank(before)
    tied = [
        c.spec.name
        for c in shuffled
        for s in decide(shuffled, request).ranked
        if s.spec.name == c.spec.name and rank(s) == rank(after)
    ]
    assert after.spec.name == tied[0]


def rank(s: Scored) -> tuple[float, float, float]:
    """What the order goes by: the score; where no prompt is given the wait and then the speed at present."""
    wait = s.queue_wait + s.ready_in
    return (s.score, wait, 0.0) if s.prompt_tokens else (wait, s.speed / s.slowdown, 0.0)


@quick
@given(pool=pools(least=2), request=requests(), data=st.data())
def test_the_order_in_which_candidates_are_given_does_not_matter(
    pool: list[Candidate], request: Request, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(pool))
    assert decide(shuffled, request).ranked == decide(pool, request).ranked


@quick
@given(pool=pools(least=1, roomy=True), request=requests(modest=True), copies=st.integers(2, 4))
def test_of_equal_entries_the_first_is_chosen(pool: list[Candidate], request: Request, copies: int) -> None:
    one = pool[0]
    twins = [
        msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, name=f"twin{i}"), index=i)
        for i in range(copies)
    ]
    decision = decide(twins, request)
    assume(decision.ranked)
    assert [s.spec.name for s in decision.ranked] == [c.spec.name for c in twins]


# flips


def line(scored: Scored, weight: float) -> float:
    return -scored.mills - weight * scored.seconds + scored.utilization_bonus


@settings(deadline=None, max_examples=150)
@given(
    pool=pools(least=2, roomy=True),
    request=requests(routed=True, modest=True),
    weight=st.sampled_from((0.3, 0.7, 1.0, 1.9, 4.7)),
)
def test_beyond_a_flip_the_named_one_is_chosen_and_before_it_nothing_changes(
    pool: list[Candidate], request: Request, weight: float
) -> None:
    decision = decide(pool, at(request, weight))
    before = winner(decision)
    for flip in flips(decision):
        assert flip.name != before
        assert 0 <= flip.weight <= 10
        towards = 1 if flip.weight >= weight else -1
        beyond = flip.weight * (1 + towards * 1e-6)
        if 0 < beyond <= 10 and flip.weight > 0:
            # Just beyond, by the plain formula: nobody is better than the one named.
            best = max(line(s, beyond) for s in decision.ranked)
            named = next(s for s in decision.ranked if s.spec.name == flip.name)
            assert math.isclose(line(named, beyond), best, abs_tol=1e-9)
            assert line(decision.ranked[0], beyond) < best
        within = weight + (flip.weight - weight) * 0.999
        assert winner(decide(pool, at(request, within))) == before


@quick
@given(pool=pools(least=2, roomy=True), request=requests(routed=True, modest=True), other=st.floats(0, 10))
def test_without_a_flip_in_between_the_choice_stays(
    pool: list[Candidate], request: Request, other: float
) -> None:
    used = request.needs.time_cost_weight
    decision = decide(pool, request)
    low, high = sorted((used, other))
    # A crossing at either end is a tie there, where the registry decides.
    assume(not any(low - 1e-9 <= f.weight <= high + 1e-9 for f in flips(decision)))
    again = decide(pool, at(request, other)).chosen
    if decision.chosen is None:
        assert again is None
        return
    assert again is not None
    assert math.isclose(line(again, other), line(decision.chosen, other), rel_tol=1e-12, abs_tol=1e-12)
