from __future__ import annotations

from typing import Any

import pytest

from maxwell.decision import Candidate, Decision, Request
from maxwell.explain import Flip, flips, is_by_lot, standing, wait_or_spend
from maxwell.queueing import OCCUPANCY_FACTOR
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.scheduler import decide
from maxwell.types import Requirements


def candidate(
    name: str, index: int = 0, *, speed: float = 64.0, price: float = 0.0, **moment: Any
) -> Candidate:
    """It reads 1,024 tokens in a second, and writes 512 in 512 / speed."""
    spec = LLMSpec(
        name=name,
        api_base=f"http://{name}",
        model="m",
        backend="llamacpp",
        capabilities=Capabilities(
            max_tokens=512, max_context=16384, speed_tokens_per_sec=speed, prefill_tokens_per_sec=1024.0
        ),
        default_temperature=0.5,
        cost_per_1k_tokens=price,
    )
    return Candidate(spec=spec, index=index, **moment)


def decided(*pool: Candidate, weight: float = 1.0, routed: bool = True, **settings: Any) -> Decision:
    request = Request(needs=Requirements(time_cost_weight=weight), prompt_bytes=4096 if routed else None)
    return decide(pool, request, **settings)


def told(*pool: Candidate, **settings: Any) -> str | None:
    return wait_or_spend(decided(*pool, **settings))


# 1 s of reading and 8 s of writing; a slot is taken for 9 s, so that of two slots one is free in 4.5 s.
BUSY = candidate("box-a", in_flight=2.0, slots=2, service=9.0)
OTHERS = OCCUPANCY_FACTOR * 9.0  # seconds that a slot of it costs others
SAVED = 4.5 + OTHERS  # by another one that is idle and as fast
LOADING = candidate("box-a", state="loading", ready_in=25.0)
PAID = candidate("gpt", 1, price=2 / 1536)  # 2 mills a request
DEAR = candidate("gpt", 1, price=30 / 1536)
SLOW = candidate("box-b", 2, speed=8.0)  # 65 s


# --- how a server stands


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ({}, ""),
        ({"overhead": 0.5, "completion": 20.0, "slots": 4}, ""),
        ({"in_flight": 3.0}, ""),
        ({"in_flight": 1.0, "slots": 4, "service": 8.0}, "1 of 4 slots busy"),
        ({"in_flight": 1.3, "slots": 4, "service": 8.0}, "2 of 4 slots busy"),
        ({"in_flight": 2.0, "slots": 2, "service": 28.0}, "busy (2 of 2 slots; about 14 s)"),
        ({"in_flight": 5.0, "slots": 2, "service": 7.0}, "busy (2 of 2 slots, 3 waiting; about 14 s)"),
        ({"queue_wait": 3.0}, "busy (about 3 s)"),
        ({"state": "loading", "ready_in": 24.2}, "loading (ready in about 25 s)"),
        ({"state": "asleep", "ready_in": 4.0}, "asleep (awake in about 4 s)"),
        ({"state": "rate_limited", "ready_in": 40.0}, "rate-limited (for about 40 s)"),
        ({"slowdown": 3.0}, "3 times slower than usual"),
        (
            {"slowdown": 2.5, "in_flight": 1.0, "slots": 1, "service": 4.0},
            "busy (1 of 1 slot; about 10 s), 2.5 times slower than usual",
        ),
        ({"failing": True}, "failing"),
    ],
)
def test_what_is_special_about_a_server_is_said(moment: dict[str, Any], words: str) -> None:
    best = decided(candidate("box", **moment)).chosen
    assert best is not None
    assert standing(best) == words


# --- to wait or to spend


def test_nothing_is_said_where_nobody_must_be_waited_for() -> None:
    idle = candidate("box-a")
    assert told(idle, PAID) is None
    assert told(idle, PAID, weight=10.0) is None
    assert told(candidate("box-a", in_flight=1.0, slots=2), PAID) is None
    assert told() is None
    assert told(candidate("box-a", state="down")) is None


def test_to_spend_because_the_free_one_is_busy() -> None:
    assert decided(candidate("box-a"), PAID).ranked[0].spec.name == "box-a"
    assert told(BUSY, PAID) == (
        f"box-a is busy (2 of 2 slots; about 5 s): gpt saves {SAVED:g} s ({OTHERS:g} s of them to other "
        f"calls), worth {SAVED:g} mills at weight 1, and costs 2 mills: spending."
    )


def test_to_wait_although_the_free_one_is_busy() -> None:
    assert told(BUSY, PAID, weight=0.1) == (
        f"box-a is busy (2 of 2 slots; about 5 s): gpt would save {SAVED:g} s ({OTHERS:g} s of them to other "
        f"calls), worth {0.1 * SAVED:g} mills at weight 0.1, but costs 2 mills: waiting."
    )


def test_to_spend_because_the_free_one_is_loading() -> None:
    assert told(LOADING, PAID) == (
        "box-a is loading (ready in about 25 s): gpt saves 25 s, worth 25 mills at weight 1, "
        "and costs 2 mills: spending."
    )


def test_to_wait_although_the_free_one_is_loading() -> None:
    assert told(LOADING, DEAR) == (
        "box-a is loading (ready in about 25 s): gpt would save 25 s, worth 25 mills at weight 1, "
        "but costs 30 mills: waiting."
    )


def test_the_difference_is_told_where_both_cost_something() -> None:
    cheap = candidate("cheap", price=1 / 1536, state="rate_limited", ready_in=10.0)
    assert told(cheap, PAID) == (
        "cheap is rate-limited (for about 10 s): gpt saves 10 s, worth 10 mills at weight 1, "
        "and costs 1 mill more: spending."
    )


def test_a_busy_one_may_be_done_first_all_the_same() -> None:
    assert told(LOADING, SLOW) == (
        "box-a is loading (ready in about 25 s): even so it is done 31 s before box-b: waiting."
    )
    slow_and_paid = candidate("box-b", 2, speed=8.0, price=2 / 1536)
    assert told(LOADING, slow_and_paid) == (
        "box-a is loading (ready in about 25 s): even so it is done 31 s before box-b, "
        "which costs 2 mills: waiting."
    )


def test_nobody_else_may_begin_sooner() -> None:
    sentence = "box-a is loading (ready in about 25 s): waiting, because nobody else can begin sooner."
    assert told(LOADING) == sentence
    assert told(LOADING, candidate("box-b", 1, state="loading", ready_in=26.0)) == sentence


def test_a_named_one_is_waited_for() -> None:
    assert told(LOADING, named=True) == (
        "box-a is loading (ready in about 25 s): waiting, because it is the one you named."
    )


def test_a_paid_one_that_would_win_anyway_is_no_spending_for_want_of_a_slot() -> None:
    # Even idle the slow free one would lose: its load decides nothing.
    slow_and_busy = candidate("box-b", speed=2.0, in_flight=2.0, slots=2, service=1.0)
    assert decided(slow_and_busy, PAID).ranked[0].spec.name == "gpt"
    assert told(slow_and_busy, PAID) is None


def test_another_free_one_instead_of_a_busy_one_is_no_spending() -> None:
    for other in (candidate("box-b", 1, speed=60.0), candidate("box-b", 1, speed=60.0, price=1 / 1536)):
        dearer_and_busy = candidate("box-a", in_flight=2.0, slots=2, service=9.0, price=1 / 1536)
        assert decided(dearer_and_busy, other).ranked[0].spec.name == "box-b"
        assert told(dearer_and_busy, other) is None


def test_by_speed_a_paid_one_may_be_called_because_it_can_begin_at_once() -> None:
    fast_and_busy = candidate("box-a", speed=200.0, in_flight=1.0, slots=1, service=9.0)
    assert told(fast_and_busy, PAID, routed=False) == (
        "box-a is busy (1 of 1 slot; about 9 s): gpt can begin at once, and costs money: spending."
    )
    assert told(BUSY, candidate("gpt", 1, speed=200.0, price=0.01), routed=False) is None
    assert told(fast_and_busy, candidate("box-b", 1), routed=False) is None


@pytest.mark.parametrize("weight", [0.05, 0.1, 1.0, 10.0])
def test_the_sentence_agrees_with_the_choice(weight: float) -> None:
    decision = decided(BUSY, PAID, SLOW, weight=weight)
    sentence = wait_or_spend(decision) or ""
    assert sentence.endswith(": waiting." if decision.ranked[0].spec.name == "box-a" else ": spending.")


# --- where the choice would flip, under load


def test_the_flip_goes_by_every_second_of_the_score() -> None:
    assert flips(decided(LOADING, PAID)) == [Flip(2 / 25, "box-a")]
    assert flips(decided(BUSY, PAID)) == [Flip(2 / SAVED, "box-a")]
    slowed = candidate("box-a", slowdown=3.0, overhead=1.0)  # 30 s instead of 9
    assert flips(decided(slowed, PAID)) == [Flip(2 / 21, "box-a")]


def test_no_weight_flips_a_choice_by_lot() -> None:
    def box(name: str, index: int, n: float) -> Candidate:
        return candidate(name, index, in_flight=n, slots=2, service=9.0, counted=100.0)

    pool = box("one", 0, 0.0), box("other", 1, 2.0)
    drawn = decided(*pool, draws=(0.9, 0.0))
    assert drawn.ranked[0].spec.name == "other"
    assert is_by_lot(drawn.ranked)
    assert flips(drawn) == []
    assert not is_by_lot(decided(*pool).ranked)
    sentence = wait_or_spend(drawn) or ""
    assert sentence.startswith("other is busy (2 of 2 slots; about 5 s): one would save ")
    assert sentence.endswith(" s, but other was drawn by lot: waiting.")
