"""What must hold of a decision whatever the load: SCHEDULING's properties of the terms of the moment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from choosing import pools, requests
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maxwell.decision import Candidate, Decision, Request, Scored
from maxwell.queueing import FRESH_COUNT_SECONDS, OCCUPANCY_FACTOR, OLD_COUNT_SECONDS
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.scheduler import MOST_RATE_LIMIT, decide
from maxwell.types import Requirements

quick = settings(deadline=None, max_examples=70)

loads = st.integers(0, 12)
slots = st.one_of(st.none(), st.integers(1, 6))


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


def llm(name: str = "box", *, speed: float = 50.0, price: float = 0.0, cap: int = 4096) -> LLMSpec:
    return LLMSpec(
        name=name,
        api_base=f"http://{name}",
        model="m",
        backend="llamacpp",
        capabilities=Capabilities(max_tokens=cap, max_context=32768, speed_tokens_per_sec=speed),
        default_temperature=0.5,
        cost_per_1k_tokens=price,
    )


def asking(weight: float = 1.0, *, routed: bool = True) -> Request:
    return Request(needs=Requirements(time_cost_weight=weight), prompt_bytes=4000 if routed else None)


def names(decision: Decision) -> list[str]:
    return [s.spec.name for s in decision.ranked]


def scored(decision: Decision, name: str) -> Scored:
    return next(s for s in decision.ranked if s.spec.name == name)


# --- 8: the score and the number of requests


@quick
@given(
    pool=pools(least=1, roomy=True),
    request=requests(routed=True, modest=True),
    n=loads,
    more=st.integers(1, 9),
)
def test_the_score_falls_with_the_requests_that_are_there(
    pool: list[Candidate], request: Request, n: int, more: int
) -> None:
    one = changed(pool[0], endpoint="http://alone", failing=False, in_flight=0.0, queue_wait=0.0)
    here = [changed(one, in_flight=float(n)), *pool[1:]]
    there = [changed(one, in_flight=float(n + more)), *pool[1:]]
    before, after = decide(here, request), decide(there, request)
    assume(one.spec.name in names(before))
    fewer, many = scored(before, one.spec.name), scored(after, one.spec.name)
    assert many.score <= fewer.score
    if one.slots is not None and request.needs.time_cost_weight > 0:
        assert many.score < fewer.score
    else:
        assert many.score == fewer.score


@quick
@given(
    pool=pools(least=2, roomy=True),
    at=st.lists(loads, min_size=4, max_size=4),
    request=requests(routed=True, modest=True),
)
def test_without_a_weight_on_time_load_does_not_change_a_score(
    pool: list[Candidate], at: list[int], request: Request
) -> None:
    careless = changed(request, needs=changed(request.needs, time_cost_weight=0.0))
    loaded = [changed(c, in_flight=float(n)) for c, n in zip(pool, at, strict=False)]
    idle = [changed(c, in_flight=0.0, queue_wait=0.0) for c in pool]
    scores = {s.spec.name: s.score for s in decide(idle, careless).ranked}
    assert {s.spec.name: s.score for s in decide(loaded, careless).ranked} == scores


@quick
@given(pool=pools(least=1, roomy=True), request=requests(routed=True, modest=True))
def test_every_term_of_the_time_is_there_and_none_is_negative(
    pool: list[Candidate], request: Request
) -> None:
    by_name = {c.spec.name: c for c in pool}
    for s in decide(pool, request).ranked:
        c = by_name[s.spec.name]
        assert min(s.queue_wait, s.ready_in, s.overhead, s.occupancy) >= 0
        before = s.queue_wait + s.ready_in + s.overhead
        unread = (1 - c.cached) * s.prompt_tokens
        at_its_pace = before + unread / c.prefill + s.reply_tokens / c.speed
        assert s.seconds == pytest.approx(s.slowdown * at_its_pace + s.occupancy)
        weight = request.needs.time_cost_weight
        assert s.score == pytest.approx(s.utilization_bonus - s.mills - weight * s.seconds)
        assert (s.in_flight, s.slots, s.state, s.failing) == (c.in_flight, c.slots, c.state, c.failing)
        if not c.in_flight or c.slots is None:
            assert s.occupancy == 0


# --- occupancy


def occupancies(*pool: Candidate) -> dict[str, float]:
    return {s.spec.name: s.occupancy for s in decide(pool, asking()).ranked}


def test_two_entries_of_one_server_count_its_slots_once() -> None:
    def at(name: str, index: int, endpoint: str, n: float, slots: int) -> Candidate:
        return Candidate(
            spec=llm(name), index=index, endpoint=endpoint, in_flight=n, slots=slots, service=8.0
        )

    one, other = at("one", 0, "http://box", 2.0, 2), at("other", 1, "http://box", 2.0, 2)
    idle = at("idle", 2, "http://idle", 0.0, 6)
    # 2 of 8 slots are taken; counted twice it would be 4 of 10.
    cost = OCCUPANCY_FACTOR * 2 / 8 * 8.0
    assert occupancies(one, other, idle) == {"one": cost, "other": cost, "idle": 0.0}
    assert occupancies(one, idle) == {"one": cost, "idle": 0.0}


def test_servers_that_cannot_be_chosen_have_no_slots_to_offer() -> None:
    busy = Candidate(spec=llm("busy"), in_flight=2.0, slots=2, service=8.0)
    off = Candidate(spec=llm("off"), index=1, slots=30, state="down")
    assert occupancies(busy) == occupancies(busy, off) == {"busy": OCCUPANCY_FACTOR * 8.0}


def test_what_a_slot_costs_others_may_decide() -> None:
    # Both have a free slot, but the quicker one is one of the last that is left in a busy pool.
    quick_one = Candidate(spec=llm("quick", speed=100.0), in_flight=3.0, slots=4, service=20.0)
    slow_one = Candidate(spec=llm("slow", speed=60.0), index=1, slots=1)
    assert names(decide([quick_one, slow_one], asking())) == ["slow", "quick"]
    assert names(decide([changed(quick_one, in_flight=0.0), slow_one], asking())) == ["quick", "slow"]


# --- 18, the pure half: failing ones


@quick
@given(pool=pools(least=1), request=requests())
def test_who_is_failing_is_chosen_when_nobody_else_is_left_and_only_then(
    pool: list[Candidate], request: Request
) -> None:
    well = [c for c in pool if not c.failing]
    spared = [changed(c, failing=False) for c in pool]
    decision = decide(pool, request)
    if decide(well, request).ranked:
        assert names(decision) == names(decide(well, request))
    else:
        assert names(decision) == names(decide(spared, request))
        assert all(s.failing for s in decision.ranked)


def test_who_is_failing_says_so() -> None:
    note = "failed 3 times in a row; it is tried again in 12 s"
    pool = [Candidate(spec=llm("bad"), failing=True, detail=note), Candidate(spec=llm("good"), index=1)]
    decision = decide(pool, asking())
    assert names(decision) == ["good"]
    assert [(no.reason, no.detail) for no in decision.rejected] == [("failing", note)]


def test_a_reply_is_cut_short_rather_than_to_ask_who_is_failing() -> None:
    # With the usual 512 tokens of reply only the failing one has room; with 64 the other one has it, too.
    tight = Candidate(spec=llm("tight"), context=1100)
    failing = Candidate(spec=llm("failing"), index=1, failing=True)
    assert names(decide([tight, failing], asking())) == ["tight"]


# --- waiting for what passes


@pytest.mark.parametrize("state", ["loading", "rate_limited", "asleep"])
def test_a_wait_that_can_be_foreseen_is_priced(state: Any) -> None:
    idle = Candidate(spec=llm("idle", speed=50.0))
    soon = Candidate(spec=llm("soon", speed=100.0), index=1, state=state, ready_in=4.0)
    decision = decide([idle, soon], asking())
    assert names(decision) == ["soon", "idle"]  # 4 + 5.6 s against 11.3
    assert scored(decision, "soon").seconds == pytest.approx(4 + 1000 / 2000 + 512 / 100)
    assert names(decide([idle, changed(soon, ready_in=6.0)], asking())) == ["idle", "soon"]


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize(
    ("state", "ready_in"), [("loading", 0.0), ("loading", math.inf), ("rate_limited", math.inf)]
)
def test_a_wait_that_nobody_can_foresee_is_a_refusal(state: Any, ready_in: float, routed: bool) -> None:
    pool = [Candidate(spec=llm(), state=state, ready_in=ready_in)]
    decision = decide(pool, asking(routed=routed))
    assert [(no.reason, no.resets_in) for no in decision.rejected] == [(state, 0.0)]


def test_a_long_rate_limit_is_a_refusal_that_says_how_long() -> None:
    pool = [Candidate(spec=llm(), state="rate_limited", ready_in=MOST_RATE_LIMIT)]
    assert names(decide(pool, asking())) == ["box"]
    pool[0].ready_in = 300.0
    assert [(no.reason, no.resets_in) for no in decide(pool, asking()).rejected] == [("rate_limited", 300.0)]


@quick
@given(pool=pools(least=2, roomy=True), request=requests(routed=False, modest=True))
def test_by_speed_who_is_ready_comes_before_who_is_not(pool: list[Candidate], request: Request) -> None:
    ranked = decide(pool, request).ranked
    order = [(s.queue_wait + s.ready_in, -s.speed / s.slowdown) for s in ranked]
    assert order == sorted(order)


def test_by_speed_counts_for_a_prompt_too_where_it_only_has_to_fit() -> None:
    pool = [
        Candidate(spec=llm("fast", speed=100.0, price=0.01), in_flight=1.0, slots=1),
        Candidate(spec=llm("slow", speed=10.0), index=1),
    ]
    decision = decide(pool, changed(asking(), by_speed=True))
    assert (decision.by, names(decision)) == ("speed", ["slow", "fast"])


# --- likely replies


@quick
@given(
    pool=pools(least=1), request=requests(routed=True), likely=st.sampled_from((0.0, 1.0, 40.0, 300.0, 1e5))
)
def test_a_likely_reply_shortens_price_and_time_but_never_what_must_fit(
    pool: list[Candidate], request: Request, likely: float
) -> None:
    blank = [changed(c, completion=None) for c in pool]
    learned = [changed(c, completion=likely) for c in pool]
    before, after = decide(blank, request), decide(learned, request)
    assert sorted(names(before)) == sorted(names(after))
    assert [(no.spec.name, no.reason, no.need) for no in before.rejected] == [
        (no.spec.name, no.reason, no.need) for no in after.rejected
    ]
    for s in after.ranked:
        full = scored(before, s.spec.name)
        assert (s.prompt_tokens, s.completion_tokens) == (full.prompt_tokens, full.completion_tokens)
        assert s.utilization_bonus == full.utilization_bonus
        assert s.reply_tokens == min(likely, s.completion_tokens)
        assert s.mills <= full.mills
        assert s.seconds <= full.seconds


def test_what_a_server_has_read_before_is_not_read_again() -> None:
    fresh, warm = Candidate(spec=llm("fresh")), Candidate(spec=llm("warm"), index=1, cached=0.75)
    decision = decide([fresh, warm], asking())
    assert names(decision) == ["warm", "fresh"]
    assert scored(decision, "fresh").seconds - scored(decision, "warm").seconds == pytest.approx(750 / 1000)
    # It is paid for and must have room all the same.
    assert scored(decision, "warm").prompt_tokens == scored(decision, "fresh").prompt_tokens
    assert scored(decision, "warm").utilization_bonus == scored(decision, "fresh").utilization_bonus


# --- order


@quick
@given(pool=pools(least=2), request=requests(), data=st.data())
def test_the_order_of_the_candidates_does_not_matter(
    pool: list[Candidate], request: Request, data: st.DataObject
) -> None:
    draws = data.draw(st.tuples(unit, unit))
    counted = data.draw(st.sampled_from((0.0, 1.0, 100.0)))
    old = [changed(c, counted=counted) for c in pool]
    shuffled = data.draw(st.permutations(old))
    assert decide(shuffled, request, draws=draws).ranked == decide(old, request, draws=draws).ranked


# --- counts that are old

unit = st.floats(0, 1, exclude_max=True)


@quick
@given(pool=pools(least=2, roomy=True), request=requests(), draws=st.tuples(unit, unit))
def test_without_old_counts_nothing_is_left_to_chance(
    pool: list[Candidate], request: Request, draws: tuple[float, float]
) -> None:
    fresh = [changed(c, counted=FRESH_COUNT_SECONDS) for c in pool]
    assert decide(fresh, request, draws=draws) == decide(fresh, request)


@quick
@given(pool=pools(least=2, roomy=True), request=requests(), age=st.floats(0, 1e4))
def test_without_draws_nothing_is_left_to_chance(pool: list[Candidate], request: Request, age: float) -> None:
    old = decide([changed(c, counted=age) for c in pool], request)
    if age <= FRESH_COUNT_SECONDS:
        assert old == decide([changed(c, counted=0.0) for c in pool], request)
        return
    # How busy all are together is too fine a difference for counts that are old.
    assert all(s.occupancy == 0 for s in old.ranked)
    assert old.ranked == tuple(sorted(old.ranked, key=lambda s: -s.score)) or old.by == "speed"


@quick
@given(
    pool=pools(least=2, roomy=True),
    request=requests(),
    draws=st.tuples(unit, unit),
    age=st.sampled_from((1.0, 30.0, 100.0)),
)
def test_chance_never_spends_money_nor_loses_anybody(
    pool: list[Candidate], request: Request, draws: tuple[float, float], age: float
) -> None:
    old = [changed(c, counted=age, slots=c.slots or 2) for c in pool]
    sure, drawn = decide(old, request), decide(old, request, draws=draws)
    assume(sure.ranked)
    assert sorted(names(drawn)) == sorted(names(sure))
    rest = [s for s in sure.ranked if s != drawn.ranked[0]]
    assert list(drawn.ranked[1:]) == rest  # the others keep their order
    assert drawn.rejected == sure.rejected
    price = price_of(request)
    assert price(drawn.ranked[0]) == price(sure.ranked[0])


def price_of(request: Request) -> Callable[[Scored], object]:
    """What tells whether two cost the same: the request's price, or the prices where no prompt is known."""
    if request.prompt_bytes is not None:
        return lambda s: s.mills
    return lambda s: (s.spec.price_prompt, s.spec.price_completion)


def twins(count: int, age: float) -> list[Candidate]:
    """Equal but for their load: the first has the least."""
    return [
        Candidate(spec=llm(f"box-{i}"), index=i, in_flight=float(i), slots=8 >> i, service=8.0, counted=age)
        for i in range(count)
    ]


def first(pool: list[Candidate], a: float, b: float) -> str:
    return names(decide(pool, asking(), draws=(a, b)))[0]


def test_of_two_that_are_drawn_the_better_one_is_chosen() -> None:
    pool = twins(3, age=1.0)
    # In proportion to slots / service: 8, 4 and 2 of 14.
    assert first(pool, 0.0, 0.99) == "box-0"
    assert first(pool, 0.99, 0.0) == "box-0"
    assert first(pool, 0.99, 0.9) == "box-1"
    assert first(pool, 0.7, 0.99) == "box-1"


def test_a_count_of_a_quarter_of_a_second_ago_is_taken_at_its_word() -> None:
    assert first(twins(3, age=FRESH_COUNT_SECONDS), 0.99, 0.9) == "box-0"


def test_of_counts_older_than_a_minute_the_first_that_is_drawn_is_chosen() -> None:
    pool = twins(3, age=OLD_COUNT_SECONDS + 1)
    assert first(pool, 0.0, 0.99) == "box-0"
    assert first(pool, 0.99, 0.0) == "box-2"
    assert first(pool, 0.7, 0.0) == "box-1"


def test_a_best_one_that_is_well_known_is_not_left_to_chance() -> None:
    pool = twins(3, age=1.0)
    pool[0].counted = 0.0
    for draw in (0.0, 0.5, 0.99):
        assert first(pool, draw, draw) == "box-0"
