from __future__ import annotations

import heapq
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.speed import Learned, Sample, from_json, learn, speeds_of, to_json
from maxwell.speed.slots import HALF_LIFE, LATEST, MOST_RUNNING, Slots, is_late

NOON = 1_800_000_000.0
BOX = LLMSpec(
    name="box",
    api_base="http://box:8000",
    model="m",
    backend="vllm",
    capabilities=Capabilities(max_tokens=4096, max_context=32768, speed_tokens_per_sec=50.0),
    default_temperature=0.5,
)


def seen(slots: Slots, begun: dict[int, bool], times: int = 4, at: float = NOON) -> Slots:
    """With so many calls beside each number of others, late or not."""
    for _ in range(times):
        for running, late in begun.items():
            slots = slots.plus(running, late, at)
    return slots


def call(running: int | None, first: float = 0.2, **fields: Any) -> Sample:
    usual: dict[str, Any] = {
        "prompt_tokens": 100,
        "completion_tokens": 101,
        "first_token_seconds": first,
        "total_seconds": first + 2.0,
        "running": running,
    }
    return Sample(**usual | fields)


# --- from what was seen, to a number


def test_nothing_is_known_without_evidence_on_both_sides() -> None:
    assert Slots().number is None
    assert seen(Slots(), {0: False, 1: False, 2: False, 30: False}).number is None
    assert seen(Slots(), {4: True, 5: True}).number is None
    assert seen(Slots(), {0: False, 1: False, 2: False, 3: False}, 4).plus(4, True, NOON).number is None


@pytest.mark.parametrize("truth", [1, 2, 4, 8, 32])
def test_the_slots_end_where_calls_begin_to_wait(truth: int) -> None:
    assert seen(Slots(), {n: n >= truth for n in range(2 * truth)}).number == truth


def test_in_a_gap_the_largest_is_tried() -> None:
    assert seen(Slots(), {1: False, 2: False, 8: True, 9: True}).number == 8


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_hide_them(seed: int) -> None:
    draw, slots = random.Random(seed), Slots()
    for _ in range(300):
        running = draw.randrange(12)
        slots = slots.plus(running, (running >= 4) ^ (draw.random() < 0.1), NOON)
    assert slots.number == 4


@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_is_late_at_random_has_no_slots(seed: int) -> None:
    draw, slots = random.Random(seed), Slots()
    for _ in range(500):
        slots = slots.plus(draw.randrange(30), draw.random() < 0.15, NOON)
    assert slots.number is None


def test_a_server_that_got_more_slots_is_seen_to_have_them() -> None:
    slots = seen(Slots(), {n: n >= 2 for n in range(6)}, 20)
    assert seen(slots, {n: n >= 4 for n in range(6)}, 20).number == 4


def test_they_are_forgotten_slowly() -> None:
    slots = seen(Slots(), {0: False, 1: False, 2: True, 3: True}, 5)
    assert slots.plus(0, False, NOON + HALF_LIFE / 2).number == 2
    assert slots.plus(0, False, NOON + 5 * HALF_LIFE).number is None


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**6), st.booleans(), st.floats(0, 1e11, allow_nan=False, allow_infinity=False)
        ),
        max_size=60,
    )
)
def test_whatever_is_seen_it_stays_small_and_is_kept(observed: list[tuple[int, bool, float]]) -> None:
    slots = Slots()
    for running, late, at in observed:
        slots = slots.plus(running, late, at)
    assert slots.number is None or 1 <= slots.number <= MOST_RUNNING
    assert all(0 <= w <= LATEST for w in (*slots.at_once.values(), *slots.late.values()))
    assert from_json(to_json(Learned(slots=slots))) == Learned(slots=slots)


def test_between_early_and_late_nobody_knows() -> None:
    assert [is_late(t, 1.0) for t in (0.5, 1.4, 2.0, 2.9, 3.1)] == [False, False, None, None, True]
    assert [is_late(t, 0.001) for t in (0.002, 0.04, 0.07, 0.2)] == [False, False, None, True]


# --- from calls


def taught(samples: list[Sample]) -> Learned:
    learned = Learned()
    for i, sample in enumerate(samples):
        learned = learn(learned, sample, BOX, NOON + i)
    return learned


def burst(slots: int, number: int, *, seconds: float = 4.0) -> list[Sample]:
    """Calls one beside the other, in the order in which they end."""
    return [call(n, 0.2 + seconds * (n // slots)) for n in range(number)]


def test_bursts_show_the_slots() -> None:
    assert speeds_of(taught(burst(4, 12) * 3), BOX).slots == 4


def test_a_server_without_slots_has_none() -> None:
    assert speeds_of(taught(burst(100, 40) * 3), BOX).slots is None


def test_waiting_is_not_taken_for_a_slow_start() -> None:
    speeds = speeds_of(taught(burst(4, 12) * 3), BOX)
    assert speeds.overhead + 100 / speeds.prefill == pytest.approx(0.2, rel=0.2)
    slower = taught(burst(4, 12) * 3 + [call(0, 2.0)] * 30)
    assert speeds_of(slower, BOX).overhead + 100 / speeds_of(slower, BOX).prefill > 1.0


def test_what_tells_nothing_is_left_out() -> None:
    begun = taught(burst(100, 6))
    for sample in (
        call(None, 9.0),
        call(-1, 9.0),
        call(9, 9.0, asleep=True),
        call(9, 9.0, hidden_tokens=50),
        call(9, 9.0, completion_tokens=101, total_seconds=9.0),
        call(9, 9.0, prompt_tokens=None),
    ):
        assert learn(begun, sample, BOX, NOON + 10).slots == begun.slots


def test_the_first_call_of_all_proves_nothing_unless_it_was_alone() -> None:
    assert taught([call(5, 9.0)]).slots == Slots()
    assert taught([call(0, 9.0)]).slots.at_once == {0: 1.0}


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("told", [False, True])
def test_the_first_burst_of_all_is_not_taken_for_a_slow_start(slots: int, told: bool) -> None:
    fields = {"server_prompt_tokens": 100, "server_prompt_speed": 2000.0} if told else {}
    samples = [call(n, 0.2 + 4.0 * (n // slots), **fields) for n in range(12)]
    speeds = speeds_of(taught(samples), BOX)
    assert speeds.overhead < 0.5
    assert speeds_of(taught(samples * 3), BOX).slots == slots


def test_a_long_reading_is_no_waiting_where_the_server_measures_it() -> None:
    def read(n: int, prompt: int) -> Sample:
        told = {"server_prompt_tokens": prompt, "server_prompt_speed": 1000.0, "prompt_tokens": prompt}
        return call(n, 0.2 + prompt / 1000.0, **told)

    learned = taught([*(read(0, 100) for _ in range(5)), *(read(n, 20_000) for n in range(8))] * 3)
    assert learned.slots.late == {}
    assert learned.slots.number is None


def queue(slots: int, rate: float, *, number: int = 400, seed: int = 1, noise: float = 0.15) -> list[Sample]:
    """Calls at a server with so many slots, each as it went, in the order in which they end.

    `rate` is how much of its capacity is asked for. Overhead 0.1 s, prefill 2,000, generation 50 tokens/s.
    """
    draw, now = random.Random(seed), 0.0
    free, running, ended = [0.0] * slots, list[float](), list[tuple[float, Sample]]()
    for _ in range(number):
        prompt, reply = 20 + int(draw.expovariate(1 / 800)), 8 + int(draw.expovariate(1 / 200))
        now += draw.expovariate(rate * slots / (0.1 + 820 / 2000 + 208 / 50))
        running = [end for end in running if end > now]
        begins = max(now, heapq.heappop(free))
        first = begins + (0.1 + prompt / 2000) * math.exp(draw.gauss(0.0, noise))
        end = first + reply / 50 * math.exp(draw.gauss(0.0, noise))
        heapq.heappush(free, end)
        sample = call(
            len(running), first - now, prompt_tokens=prompt, completion_tokens=reply, total_seconds=end - now
        )
        running.append(end)
        ended.append((end, sample))
    return [sample for _, sample in sorted(ended, key=lambda pair: pair[0])]


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_the_slots_of_a_busy_server_are_found(slots: int) -> None:
    speeds = speeds_of(taught(queue(slots, 0.8)), BOX)
    assert speeds.slots is not None
    assert abs(speeds.slots - slots) <= 1
    assert speeds.overhead == pytest.approx(0.1, rel=0.4)
    assert speeds.prefill == pytest.approx(2000, rel=0.4)


def test_a_queue_that_grows_slowly_does_not_pass_for_a_slow_start() -> None:
    speeds = speeds_of(taught(queue(16, 1.2)), BOX)
    assert speeds.slots is not None
    assert abs(speeds.slots - 16) <= 2
    assert speeds.overhead < 0.3


def test_a_cloud_has_no_slots() -> None:
    assert speeds_of(taught(queue(1000, 0.02, noise=0.4)), BOX).slots is None
