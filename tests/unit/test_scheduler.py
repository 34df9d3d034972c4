from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from maxwell import types
from maxwell.amounts import duration
from maxwell.decision import Candidate, Decision, Reason, Rejected, Request
from maxwell.explain import Flip, flips, refusal, ways_out
from maxwell.queueing import OCCUPANCY_FACTOR
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.scheduler import check_weight, decide, request_mills
from maxwell.types import Constraint, Features, HealthState, Requirements

ABILITIES = {
    "reasoning",
    "vision",
    "code_specialized",
    "tools",
    "slots",
    "prefill_tokens_per_sec",
    "thinking_tokens",
}


def llm(
    name: str = "box", *, speed: float = 50.0, context: int = 32768, cap: int = 4096, **fields: Any
) -> LLMSpec:
    able = {key: fields.pop(key) for key in ABILITIES & fields.keys()}
    capabilities = Capabilities(max_tokens=cap, max_context=context, speed_tokens_per_sec=speed, **able)
    return LLMSpec(
        name=name,
        api_base=f"http://{name}:8080",
        model="m",
        backend="llamacpp",
        capabilities=capabilities,
        default_temperature=0.5,
        **fields,
    )


def pool(*specs: LLMSpec, **state: Any) -> list[Candidate]:
    return [Candidate(spec=spec, index=i, **state) for i, spec in enumerate(specs)]


def asking(tokens: int | None = None, features: Features = types.PLAIN, **needs: Any) -> Request:
    """A request with a prompt of about that many tokens, or without one."""
    return Request(
        needs=Requirements(**needs), prompt_bytes=None if tokens is None else 4 * tokens, features=features
    )


def winner(decision: Decision) -> str | None:
    return decision.chosen.spec.name if decision.chosen else None


def reasons(decision: Decision) -> dict[str, Reason]:
    return {no.spec.name: no.reason for no in decision.rejected}


FREE_BOX = llm("free-box", speed=25.0)
PAID_API = llm("paid-api", speed=80.0, cost_per_1k_tokens=0.005)


# --- the specification's examples


@pytest.mark.parametrize(
    ("weight", "expected"), [(10.0, "paid-api"), (0.1, "free-box"), (1, "free-box"), (0, "free-box")]
)
def test_the_weight_decides_between_speed_and_cost(weight: float, expected: str) -> None:
    decision = decide(pool(FREE_BOX, PAID_API), asking(8000, time_cost_weight=weight))
    assert decision.by == "score"
    assert winner(decision) == expected


def test_without_a_prompt_the_fastest_is_chosen() -> None:
    decision = decide(pool(FREE_BOX, PAID_API), asking())
    assert decision.by == "speed"
    assert [s.spec.name for s in decision.ranked] == ["paid-api", "free-box"]


def test_without_a_prompt_equal_speeds_are_decided_by_the_registry() -> None:
    assert winner(decide(pool(llm("first"), llm("second")), asking())) == "first"


def test_a_named_choice_says_so() -> None:
    assert decide(pool(FREE_BOX), asking(), named=True).by == "name"


def test_every_term_of_the_score_is_shown() -> None:
    spec = llm(speed=40.0, context=10000, cost_per_1k_tokens=0.002)
    best = decide(pool(spec, queue_wait=1.5), asking(3000, max_completion=400, time_cost_weight=2.0)).chosen
    assert best is not None
    assert (best.prompt_tokens, best.completion_tokens) == (3000, 400)
    assert best.mills == 0.002 * 3400
    assert best.seconds == 1.5 + 3000 / 800 + 400 / 40
    assert best.utilization_bonus == 1 - abs(3400 / 10000 - 0.7)
    assert best.score == -best.mills - 2.0 * best.seconds + best.utilization_bonus
    assert (best.queue_wait, best.speed, best.context) == (1.5, 40.0, 10000)


def test_every_term_of_the_moment_is_shown() -> None:
    spec = llm(speed=40.0, context=10000, cost_per_1k_tokens=0.002)
    busy = Candidate(
        spec=spec,
        in_flight=3.0,
        slots=2,
        service=10.0,
        overhead=0.5,
        ready_in=4.0,
        slowdown=2.5,
        completion=100.0,
    )
    best = decide([busy], asking(3000, max_completion=400, time_cost_weight=2.0)).chosen
    assert best is not None
    assert (best.completion_tokens, best.reply_tokens) == (400, 100.0)
    assert best.mills == 0.002 * 3100
    assert (best.queue_wait, best.ready_in, best.overhead) == (2 * 10.0 / 2, 4.0, 0.5)
    assert best.occupancy == OCCUPANCY_FACTOR * 1.0 * 10.0 * 3 / 2
    assert best.seconds == 2.5 * (10.0 + 4.0 + 0.5 + 3000 / 800 + 100 / 40) + best.occupancy
    assert best.utilization_bonus == 1 - abs(3400 / 10000 - 0.7)
    assert best.score == -best.mills - 2.0 * best.seconds + best.utilization_bonus
    assert (best.in_flight, best.slots, best.slowdown, best.state) == (3.0, 2, 2.5, "up")


def test_a_usual_request_tells_how_long_a_slot_is_taken() -> None:
    # 500 tokens of prompt at 1000 a second, and 512 of reply at 50.
    assert Candidate(spec=llm(speed=50.0)).service == 0.5 + 512 / 50
    assert Candidate(spec=llm(speed=50.0, cap=100)).service == 0.5 + 100 / 50
    assert Candidate(spec=llm(), service=3.0).service == 3.0


@pytest.mark.parametrize(
    ("moment", "at_once"),
    [
        ({}, True),
        ({"in_flight": 9.0}, True),
        ({"in_flight": 1.0, "slots": 2}, True),
        ({"in_flight": 2.0, "slots": 2}, False),
        ({"state": "asleep", "ready_in": 3.0}, False),
    ],
)
def test_says_whether_a_request_would_start_at_once(moment: dict[str, Any], at_once: bool) -> None:
    candidate = Candidate(spec=llm(), **moment)
    best = decide([candidate], asking(100)).chosen
    assert best is not None
    assert candidate.starts_at_once == best.starts_at_once == at_once


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ({"cost_per_1k_tokens": 0.005}, 0.005 * 1512),
        ({"cost_per_1k_tokens": 0.005, "cost_per_1k_prompt_tokens": 0.001}, 0.001 * 1000 + 0.005 * 512),
        ({"cost_per_1k_prompt_tokens": 0.003, "cost_per_1k_completion_tokens": 0.015}, 3 + 7.68),
        ({"cost_per_1k_tokens": 0.005, "cost_per_1k_completion_tokens": 0.0}, 5.0),
        ({}, 0.0),
    ],
)
def test_a_request_is_priced_in_mills(prices: dict[str, Any], expected: float) -> None:
    assert request_mills(llm(**prices), 1000, 512) == pytest.approx(expected)


def test_a_declared_prefill_speed_replaces_the_guess() -> None:
    slow_reader = llm("slow-reader", speed=100.0, prefill_tokens_per_sec=50.0)
    best = decide(pool(slow_reader), asking(1000)).chosen
    assert best is not None
    assert best.seconds == 1000 / 50 + 512 / 100


def test_measured_speed_and_real_context_replace_the_declared_ones() -> None:
    best = decide(pool(llm(speed=100.0, context=32768), speed=10.0, context=2048), asking(100)).chosen
    assert best is not None
    assert (best.speed, best.context) == (10.0, 2048)
    assert best.seconds == 100 / 200 + 512 / 10


# --- S1: a brute-force oracle


def oracle(candidates: Sequence[Candidate], tokens: int, weight: float) -> str | None:
    """The specified formula and the hard limits, as plainly as they can be written."""
    for assumed in (512, 64):
        best: tuple[float, float, int] | None = None
        name = None
        for c in candidates:
            can = c.spec.capabilities
            reply = min(assumed, can.max_tokens)
            total = tokens + reply
            if c.state not in ("up", "asleep") or total > can.max_context:
                continue
            if c.tokens_left is not None and total > c.tokens_left:
                continue
            mills = c.spec.cost_per_1k_tokens * total
            seconds = (
                c.queue_wait + tokens / (20 * can.speed_tokens_per_sec) + reply / can.speed_tokens_per_sec
            )
            bonus = 1 - abs(total / can.max_context - 0.7)
            key = (-mills - weight * seconds + bonus, -c.queue_wait, -c.index)
            if best is None or key > best:
                best, name = key, c.spec.name
        if name is not None:
            return name
    return None


WEIGHTS = (0, 0.001, 0.01, 0.1, 0.5, 1, 1.7, 2, 5, 10)
PROMPTS = (1, 16, 300, 2000, 3700, 4000, 8000, 30000, 32700, 120000, 2_000_000)
MODELS = (
    llm("tiny", speed=300.0, context=2048, cap=1024),
    llm("small", speed=150.0, context=4096, cap=2048),
    llm("coder", speed=25.0, context=32768, cap=16384),
    llm("coder-twin", speed=25.0, context=32768, cap=16384),
    llm("cheap-api", speed=80.0, context=128000, cap=4096, cost_per_1k_tokens=0.0002),
    llm("dear-api", speed=120.0, context=128000, cap=4096, cost_per_1k_tokens=0.005),
    llm("short-replies", speed=500.0, context=16384, cap=32),
)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_agrees_with_brute_force(size: int) -> None:
    for specs in itertools.combinations(MODELS, size):
        candidates = pool(*specs)
        # Some are down, some nearly out of budget, some busy: chosen by place, so that every run is the same.
        for i, c in enumerate(candidates):
            c.state = "down" if i == 4 else "asleep" if i == 2 else "up"
            c.tokens_left = 5000 if i == 1 else None
            c.queue_wait = 3.0 if i == 0 and size == 3 else 0.0
        for weight, tokens in itertools.product(WEIGHTS, PROMPTS):
            decision = decide(candidates, asking(tokens, time_cost_weight=weight))
            assert winner(decision) == oracle(candidates, tokens, weight), (specs, weight, tokens)


# --- requirements

ABLE = llm(
    "able",
    reasoning=True,
    vision=True,
    code_specialized=True,
    tools=True,
    tags=("coding", "fast"),
    tier="premium",
    speed=100.0,
    context=65536,
)
PLAIN = llm("plain", speed=20.0, context=4096, tags=("coding",), tier="free")


@pytest.mark.parametrize(
    ("needs", "chosen", "reason"),
    [
        ({"vision": True}, "able", "vision"),
        ({"vision": False}, "plain", "vision"),
        ({"reasoning": True}, "able", "reasoning"),
        ({"reasoning": False}, "plain", "reasoning"),
        ({"code_specialized": True}, "able", "code_specialized"),
        ({"code_specialized": False}, "plain", "code_specialized"),
        ({"tools": True}, "able", "tools"),
        ({"tools": False}, "plain", "tools"),
        ({"min_context": 4097}, "able", "min_context"),
        ({"min_speed": 20.5}, "able", "min_speed"),
        ({"tags": ("coding", "fast")}, "able", "tags"),
        ({"tier": "free"}, "plain", "tier"),
        ({"tier": "premium"}, "able", "tier"),
    ],
)
@pytest.mark.parametrize("tokens", [None, 100])
def test_a_requirement_decides(
    needs: dict[str, Any], chosen: str, reason: Reason, tokens: int | None
) -> None:
    decision = decide(pool(ABLE, PLAIN), asking(tokens, **needs))
    assert [s.spec.name for s in decision.ranked] == [chosen]
    assert list(reasons(decision).values()) == [reason]


def test_limits_are_met_by_equality() -> None:
    request = asking(min_context=4096, min_speed=20.0, tags=("coding",))
    assert {s.spec.name for s in decide(pool(ABLE, PLAIN), request).ranked} == {"able", "plain"}


def test_min_speed_and_min_context_look_at_what_is_real() -> None:
    assert reasons(decide(pool(ABLE, speed=30.0), asking(min_speed=50))) == {"able": "min_speed"}
    assert reasons(decide(pool(ABLE, context=2048), asking(min_context=4096))) == {"able": "min_context"}


def test_a_constraint_needs_a_backend_that_honours_it() -> None:
    deaf, obedient = pool(llm("deaf"), llm("obedient"))
    deaf.cannot = "obeys no grammar"
    decision = decide([deaf, obedient], asking(100, Features(Constraint("grammar", "root ::= 'x'"))))
    assert (winner(decision), reasons(decision)) == ("obedient", {"deaf": "cannot"})
    assert decision.rejected[0].detail == "obeys no grammar"


def test_thinking_has_room_besides_the_reply() -> None:
    thinks = llm("thinks", cap=2000, thinking_tokens=1000)
    (planned,) = decide(pool(thinks), asking(100, max_completion=300)).ranked
    assert planned.completion_tokens == 1300
    (planned,) = decide(pool(thinks), asking(100, max_completion=1500)).ranked
    assert planned.completion_tokens == 2000
    without = msgspec.structs.replace(asking(100, max_completion=300), thinking=0)
    assert decide(pool(thinks), without).ranked[0].completion_tokens == 300


def test_a_completion_longer_than_the_model_makes_is_refused() -> None:
    decision = decide(pool(llm("short", cap=1000), llm("long", cap=4000)), asking(10, max_completion=2000))
    assert (winner(decision), reasons(decision)) == ("long", {"short": "max_completion"})


def test_max_completion_counts_without_a_prompt_too() -> None:
    fast_but_short = llm("fast-but-short", speed=200.0, cap=1000)
    decision = decide(pool(fast_but_short, llm("long", cap=4000)), asking(max_completion=2000))
    assert (winner(decision), reasons(decision)) == ("long", {"fast-but-short": "max_completion"})


def test_a_named_entry_is_checked_for_max_completion_without_a_prompt() -> None:
    decision = decide(pool(llm("short", cap=1000)), asking(max_completion=2000), named=True)
    assert reasons(decision) == {"short": "max_completion"}


# --- context


def test_prompt_and_completion_must_fit_the_context() -> None:
    exact = Request(
        needs=Requirements(max_completion=1000), prompt_bytes=1, prompt_tokens={"a": 3096, "b": 3097}
    )
    decision = decide(pool(llm("a", context=4096), llm("b", context=4096)), exact)
    assert (winner(decision), reasons(decision)) == ("a", {"b": "context"})
    assert decision.rejected[0].detail == "needs 4,097 tokens, context is 4,096"


def test_template_and_images_count_towards_the_context() -> None:
    request = Request(needs=Requirements(max_completion=100), prompt_bytes=400, extra_tokens=900)
    decision = decide(pool(llm(context=1099)), request)
    assert decision.rejected[0].detail == "needs about 1,100 tokens, context is 1,099"


def test_an_estimate_is_never_shown_as_exact() -> None:
    counted_elsewhere = Request(
        needs=Requirements(max_completion=10), prompt_bytes=40000, prompt_tokens={"other": 9000}
    )
    decision = decide(pool(llm(context=4096)), counted_elsewhere)
    assert decision.rejected[0].detail == "needs about 10,010 tokens, context is 4,096"


def test_a_learned_ratio_replaces_the_usual_one() -> None:
    best = decide(pool(llm(), bytes_per_token=2.0), asking(100)).chosen
    assert best is not None
    assert best.prompt_tokens == 200


def test_the_assumed_completion_shrinks_when_nothing_else_fits() -> None:
    best = decide(pool(llm(context=4096)), asking(4000)).chosen
    assert best is not None
    assert best.completion_tokens == 64
    assert winner(decide(pool(llm(context=4096)), asking(4033))) is None


def test_the_assumed_completion_does_not_shrink_while_something_fits() -> None:
    decision = decide(pool(llm("tight", context=4096, speed=500.0), llm("roomy")), asking(4000))
    assert (winner(decision), reasons(decision)) == ("roomy", {"tight": "context"})


def test_an_asked_completion_never_shrinks() -> None:
    assert winner(decide(pool(llm(context=4096)), asking(4000, max_completion=100))) is None


def test_the_assumed_completion_shrinks_to_the_budget_too() -> None:
    best = decide(pool(llm(), tokens_left=200), asking(100)).chosen
    assert best is not None
    assert best.completion_tokens == 64


# --- budgets


def test_skips_lm_over_budget() -> None:
    spent, rich = pool(llm("spent"), llm("rich", speed=1.0))
    spent.tokens_left, spent.resets_in = 611, 11400.0
    decision = decide([spent, rich], asking(100))
    assert winner(decision) == "rich"
    assert decision.rejected[0].detail == "daily budget has 611 tokens left; it resets in 3 h 10 min"
    spent.tokens_left = 612
    assert winner(decide([spent, rich], asking(100))) == "spent"


def test_skips_lm_over_its_money_budget() -> None:
    spec = llm(cost_per_1k_tokens=0.01)
    assert winner(decide(pool(spec, usd_left=0.00612), asking(100))) == "box"
    decision = decide(pool(spec, usd_left=0.0006, resets_in=59.2), asking(100, max_completion=512))
    assert decision.rejected[0].detail == "daily budget has $0.0006 left; it resets in 1 min"


@pytest.mark.parametrize(
    "left", [{"tokens_left": 0}, {"tokens_left": -5}, {"usd_left": 0.0}, {"usd_left": -1.0}]
)
@pytest.mark.parametrize("tokens", [None, 10])
def test_a_spent_budget_excludes(left: dict[str, Any], tokens: int | None) -> None:
    spec = llm(cost_per_1k_tokens=0.01)
    assert reasons(decide(pool(spec, **left), asking(tokens))) == {"box": "budget"}


def test_an_overdrawn_budget_is_shown_as_empty() -> None:
    assert "has 0 tokens left" in decide(pool(llm(), tokens_left=-70), asking(10)).rejected[0].detail


# --- states


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("unknown", "down"),
        ("loading", "loading"),
        ("rate_limited", "rate_limited"),
        ("misconfigured", "misconfigured"),
        ("down", "down"),
    ],
)
def test_a_state_that_refuses_calls_excludes(state: HealthState, reason: Reason) -> None:
    decision = decide(pool(llm(), state=state, detail="it says so"), asking(10))
    assert reasons(decision) == {"box": reason}
    assert decision.rejected[0].detail == "it says so"


@pytest.mark.parametrize("state", ["up", "asleep"])
def test_a_state_that_takes_calls_does_not(state: HealthState) -> None:
    assert winner(decide(pool(llm(), state=state), asking(10))) == "box"


@pytest.mark.parametrize("blocked", ["key", "model_missing", "budget_unknown"])
def test_a_blocked_entry_is_refused_whatever_its_state(blocked: Reason) -> None:
    for state in ("up", "down"):
        decision = decide(pool(llm(), state=state, blocked=blocked, detail="why"), asking(10))
        assert reasons(decision) == {"box": blocked}


# --- ties


def test_equal_scores_go_to_the_shorter_queue() -> None:
    # Without a weight on time the wait is not in the score, so it decides the tie.
    busy, idle = pool(llm("busy"), llm("idle"))
    busy.queue_wait = 2.0
    assert winner(decide([busy, idle], asking(100, time_cost_weight=0))) == "idle"


def test_equal_scores_and_queues_go_to_the_first_in_the_registry() -> None:
    for order in itertools.permutations(pool(llm("one"), llm("two"), llm("three"))):
        assert winner(decide(order, asking(100))) == "one"


# --- the weight


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, -0.1, 10.01, True, False, "1", None, 1j])
def test_a_weight_out_of_range_is_refused(weight: Any) -> None:
    with pytest.raises(ValueError, match=r"time_cost_weight must be a number from 0 to 10 .*, not "):
        check_weight(weight)
    with pytest.raises(ValueError, match="time_cost_weight"):
        decide(pool(llm()), asking(time_cost_weight=weight))


@pytest.mark.parametrize("weight", [0, 0.0, -0.0, 5, 10, 10.0])
def test_a_weight_in_range_is_taken(weight: float) -> None:
    check_weight(weight)


# --- in words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.2, "1 s"),
        (45, "45 s"),
        (59.5, "1 min"),
        (61, "2 min"),
        (3599, "1 h"),
        (3600, "1 h"),
        (11400, "3 h 10 min"),
        (90000, "25 h"),
    ],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def no(reason: Reason, **fields: Any) -> Rejected:
    return Rejected(llm(tier="free"), reason, **fields)


@pytest.mark.parametrize(
    ("rejected", "words"),
    [
        (no("vision", need=True), "vision is required"),
        (no("tools", need=False), "tools is excluded"),
        (no("cannot", note="obeys no grammar"), "obeys no grammar"),
        (no("tags", note="coding, fast"), "lacks tag coding, fast"),
        (no("tier", note="premium"), "tier is free, not premium"),
        (no("min_context", need=32000, have=4096), "context is 4,096 tokens, 32,000 required"),
        (no("min_speed", need=100, have=25.5), "speed is 25.5 tokens/s, 100 required"),
        (no("max_completion", need=9000, have=2048), "completes at most 2,048 tokens, 9,000 wanted"),
        (no("context", need=5000, have=4096), "needs 5,000 tokens, context is 4,096"),
        (no("context", need=5000, have=4096, note="estimated"), "needs about 5,000 tokens, context is 4,096"),
        (no("key", note="environment variable K is not set"), "environment variable K is not set"),
        (no("rate_limited"), "rate limited"),
        (no("down", note="connection refused"), "connection refused"),
        (no("failing", note="HTTP 500; it is tried again in 12 s"), "HTTP 500; it is tried again in 12 s"),
        (no("failing"), "it failed again and again"),
    ],
)
def test_a_rejection_is_said_in_words(rejected: Rejected, words: str) -> None:
    assert rejected.detail == words


def test_a_decision_survives_json() -> None:
    decision = decide(pool(ABLE, PLAIN, llm("third")), asking(100, vision=True, min_speed=10))
    again = msgspec.json.decode(msgspec.json.encode(decision), type=Decision)
    assert again == decision


# --- flips


def test_names_the_weight_at_which_the_choice_flips() -> None:
    decision = decide(pool(FREE_BOX, PAID_API), asking(8000))
    (flip,) = flips(decision)
    assert flip.name == "paid-api"
    # Price / time saved: 42.56 mills for 25.08 seconds; the free box is as full as the paid one.
    assert flip.weight == pytest.approx(42.56 / 25.08)


def test_shows_the_flip_below_before_the_one_above() -> None:
    cheap, middle, dear = (
        llm("cheap", speed=10.0),
        llm("middle", speed=40.0, cost_per_1k_tokens=0.01),
        llm("dear", speed=160.0, cost_per_1k_tokens=0.05),
    )
    decision = decide(pool(cheap, middle, dear), asking(1000, time_cost_weight=1.0))
    assert winner(decision) == "middle"
    assert [f.name for f in flips(decision)] == ["cheap", "dear"]


def test_choices_by_speed_or_of_nothing_have_no_flips() -> None:
    assert flips(decide(pool(FREE_BOX, PAID_API), asking())) == []
    assert flips(decide(pool(FREE_BOX, state="down"), asking(10))) == []
    assert flips(decide(pool(FREE_BOX), asking(10))) == []


# Prompts of 512 tokens are read in a second; speeds and prices are such that every score is exact in binary.
SLOW, MIDDLE, FAST = (
    llm("slow", speed=16.0, prefill_tokens_per_sec=512.0),
    llm("middle", speed=32.0, prefill_tokens_per_sec=512.0, cost_per_1k_tokens=16 / 1024),
    llm("fast", speed=64.0, prefill_tokens_per_sec=512.0, cost_per_1k_tokens=24 / 1024),
)


@pytest.mark.parametrize("specs", [(SLOW, MIDDLE), (MIDDLE, SLOW)])
def test_a_tie_at_the_weight_in_use_is_a_flip(specs: tuple[LLMSpec, LLMSpec]) -> None:
    # 16 mills buy 16 seconds, so the two are equal at a weight of 1 and the registry decides.
    decision = decide(pool(*specs), asking(512, max_completion=512, time_cost_weight=1.0))
    first, second = decision.ranked
    assert first.score == second.score
    assert flips(decision) == [Flip(1.0, second.spec.name)]


def test_of_flips_at_one_weight_the_one_that_wins_beyond_is_named() -> None:
    # All three lines cross at a weight of 1.
    request = asking(512, max_completion=512, time_cost_weight=0.5)
    decision = decide(pool(SLOW, MIDDLE, FAST), request)
    assert winner(decision) == "slow"
    assert winner(decide(pool(SLOW, MIDDLE, FAST), asking_again(request, 1.001))) == "fast"
    assert flips(decision) == [Flip(1.0, "fast")]


def asking_again(request: Request, weight: float) -> Request:
    needs = msgspec.structs.replace(request.needs, time_cost_weight=weight)
    return msgspec.structs.replace(request, needs=needs)


# --- ways out


def outs(candidates: list[Candidate], request: Request) -> list[str]:
    return ways_out(candidates, decide(candidates, request))


def test_there_is_no_way_out_of_a_choice() -> None:
    assert outs(pool(llm()), asking(10)) == []


def test_dropping_one_requirement_is_a_way_out() -> None:
    candidates = pool(llm("gpt-4o", cost_per_1k_tokens=0.005))
    assert outs(candidates, asking(288, vision=True)) == ["without vision=True: fits gpt-4o for $0.004"]
    assert outs(candidates, asking(tags=("fast", "coding"))) == ["without tags=fast,coding: fits gpt-4o"]


def test_a_price_above_nothing_is_not_shown_as_nothing() -> None:
    candidates = pool(llm("mini", cost_per_1k_tokens=0.00006))
    (out,) = outs(candidates, asking(88, max_completion=12, vision=True))
    assert out.startswith("without vision=True: fits mini for ")
    assert not re.search(r"\$0\.0+\b", out)


def test_trimming_is_a_way_out_and_says_how_much() -> None:
    request = Request(needs=Requirements(max_completion=500), prompt_bytes=1, prompt_tokens={"box": 4008})
    assert outs(pool(llm(context=4096)), request) == ["trim 412 tokens to fit box"]


def test_no_more_is_trimmed_than_has_to_be() -> None:
    # 4050 tokens leave 46 of 4096, and 64 are enough: trimming 18 would do.
    candidates = pool(llm(context=4096))
    assert winner(decide(candidates, asking(4050 - 18))) == "box"
    assert outs(candidates, asking(4050)) == ["trim 18 tokens to fit box"]


def test_more_is_never_trimmed_than_the_prompt_holds() -> None:
    (out,) = outs(pool(llm(context=4096, cap=16384)), asking(10, max_completion=8000))
    assert "trim" not in out


def test_the_nearest_way_out_comes_first() -> None:
    candidates = pool(llm("far", context=2048), llm("near", context=4096))
    (first, second) = outs(candidates, asking(5000, max_completion=100))
    assert ("near" in first, "far" in second) == (True, True)


@pytest.mark.parametrize(
    ("state", "request_", "expected"),
    [
        ({"state": "loading"}, asking(10), "wait for box, it is loading"),
        ({"state": "down"}, asking(10), "start box at http://box:8080"),
        ({"tokens_left": 5, "resets_in": 11400.0}, asking(10), "box: budget resets in 3 h 10 min"),
        ({}, asking(10, max_completion=9000), "ask box for at most 4,096 tokens"),
    ],
)
def test_ways_out_of_a_state(state: dict[str, Any], request_: Request, expected: str) -> None:
    assert outs(pool(llm(), **state), request_) == [expected]


def test_a_rate_limit_has_a_way_out() -> None:
    unknown = pool(llm(), state="rate_limited", detail="429", ready_in=math.inf)
    assert outs(unknown, asking(10)) == ["wait for box, it is rate-limited"]
    known = pool(llm(), state="rate_limited", detail="429", ready_in=90.0)
    assert outs(known, asking(10)) == ["box is rate-limited: ask again in 2 min"]


def test_what_is_known_to_pass_is_nearer_than_what_is_not() -> None:
    candidates = pool(llm("soon"), llm("later"), llm("some-day"), state="rate_limited")
    for candidate, seconds in zip(candidates, (70.0, 900.0, math.inf), strict=True):
        candidate.ready_in = seconds
    assert [out.split()[0] for out in outs(candidates, asking(10))] == ["soon", "later", "wait"]


# --- the refusal


def refused(candidates: list[Candidate], request: Request) -> str:
    return refusal(candidates, decide(candidates, request))


def test_a_refusal_names_every_entry_and_the_ways_out() -> None:
    candidates = pool(llm("vl", context=4096), llm("coder"), llm("gpt-4o"))
    candidates[1].tokens_left, candidates[1].resets_in = 100, 11400.0
    candidates[2].state, candidates[2].detail = "down", "connection refused"
    assert refused(candidates, asking(4000, max_completion=500)) == (
        "no LLM can be chosen: vl: needs about 4,500 tokens, context is 4,096; "
        "coder: daily budget has 100 tokens left; it resets in 3 h 10 min; gpt-4o: connection refused. "
        "Ways out: trim 404 tokens to fit vl; coder: budget resets in 3 h 10 min; start gpt-4o at http://gpt-4o:8080"
    )


def test_a_refusal_without_entries_says_so() -> None:
    assert refused([], asking(10)) == "no LLM can be chosen: the registry declares none"


def test_a_refusal_is_one_line_whatever_a_server_said() -> None:
    text = refused(pool(llm(), state="down", detail="502 Bad Gateway\n<html>\r\n</html>\t."), asking(10))
    assert len(text.splitlines()) == 1


def test_a_long_refusal_is_cut_and_counts_the_rest() -> None:
    text = refused(pool(*(llm(f"box-{i}") for i in range(15)), state="down", detail="off"), asking(10))
    assert "box-11: off; and 3 more (see `maxwell explain`). Ways out: " in text
    assert "box-12: off" not in text
    assert text.count("start ") == 4
