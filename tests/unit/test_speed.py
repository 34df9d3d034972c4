from __future__ import annotations

import math
import random
import statistics
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from maxwell.decision import Candidate, Request
from maxwell.registry.specs import PREFILL_FACTOR, Capabilities, LLMSpec
from maxwell.scheduler import decide
from maxwell.speed import Learned, Sample, Speeds, from_json, learn, speeds_of, to_json
from maxwell.speed.filters import DRIFT_A_CALL, MOST_SIGMAS, NOISE
from maxwell.speed.learned import LIKELY_OVERHEAD
from maxwell.speed.sizes import MOST_KEY, MOST_KEYS
from maxwell.tokens import USUAL_PROMPT
from maxwell.types import Requirements

NOON = 1_800_000_000.0
quick = settings(deadline=None, max_examples=100)


def llm(speed: float = 50.0, *, prefill: float | None = None, cap: int = 4096) -> LLMSpec:
    return LLMSpec(
        name="box",
        api_base="http://box:8080",
        model="m",
        backend="llamacpp",
        capabilities=Capabilities(
            max_tokens=cap, max_context=32768, speed_tokens_per_sec=speed, prefill_tokens_per_sec=prefill
        ),
        default_temperature=0.5,
    )


BOX = llm()


class Server:
    """A server with known curves: overhead o, prefill p and generation d, each call a bit off."""

    def __init__(self, o: float, p: float, d: float, *, measures: bool = False, seed: int = 0) -> None:
        self.o, self.p, self.d = o, p, d
        self.measures = measures
        self.noise, self.outliers, self.slower = 0.1, 0.0, 1.0
        self.random = random.Random(seed)

    def call(self, prompt: int | None = None, reply: int | None = None, **fields: Any) -> Sample:
        draw = self.random
        prompt = prompt or int(min(8000, max(16, draw.lognormvariate(math.log(600), 1.0))))
        reply = reply or int(min(2048, max(8, draw.lognormvariate(math.log(200), 0.9))))
        slower = self.slower * (20.0 if draw.random() < self.outliers else 1.0)
        o, p, d = (math.exp(draw.gauss(0.0, self.noise)) for _ in range(3))
        o, p, d = o * self.o * slower, p * self.p / slower, d * self.d / slower
        first = o + prompt / p
        if self.measures:
            fields |= {
                "server_prompt_tokens": prompt,
                "server_prompt_speed": p,
                "server_completion_tokens": reply,
                "server_completion_speed": d,
            }
        return Sample(
            first_token_seconds=first,
            total_seconds=first + (reply - 1) / d,
            prompt_tokens=prompt,
            cached_tokens=0,
            completion_tokens=reply,
            **fields,
        )

    def calls(self, number: int) -> list[Sample]:
        return [self.call() for _ in range(number)]


def after(samples: list[Sample], spec: LLMSpec = BOX, learned: Learned | None = None) -> Learned:
    """What is learned from calls a minute apart."""
    learned = learned or Learned()
    for i, sample in enumerate(samples):
        learned = learn(learned, sample, spec, NOON + 60.0 * i)
    return learned


def expect(samples: list[Sample], spec: LLMSpec = BOX) -> Speeds:
    return speeds_of(after(samples, spec), spec)


def off(value: float, truth: float) -> float:
    return abs(value / truth - 1.0)


def one(**fields: Any) -> Sample:
    """An unremarkable call of a server with overhead 0.1 s, prefill 1,000 and generation 50 tokens/s."""
    usual: dict[str, Any] = {
        "prompt_tokens": 1000,
        "cached_tokens": 0,
        "completion_tokens": 101,
        "first_token_seconds": 1.1,
        "total_seconds": 3.1,
    }
    return Sample(**usual | fields)


# --- before anything was observed


def test_unobserved_is_what_is_declared() -> None:
    speeds = speeds_of(Learned(), llm(25.0, cap=2048))
    assert (speeds.speed, speeds.prefill, speeds.overhead) == (25.0, 500.0, 0.0)
    assert (speeds.completion, speeds.bytes_per_token) == (512.0, 4.0)
    assert speeds.service == USUAL_PROMPT / 500.0 + 512.0 / 25.0
    assert speeds_of(Learned(), llm(prefill=333.0)).prefill == 333.0
    assert set(msgspec.structs.astuple(speeds.seen)) == {0}


def test_it_assumes_what_the_scheduler_assumes() -> None:
    candidate = Candidate(spec=llm())
    request = Request(needs=Requirements(), prompt_bytes=4)
    [best] = decide([candidate], request).ranked
    speeds = speeds_of(Learned(), llm())
    assert (speeds.speed, speeds.prefill) == (candidate.speed, candidate.prefill)
    assert speeds.completion == best.completion_tokens


def test_an_undeclared_prefill_follows_the_generation_that_was_observed() -> None:
    speeds = expect(
        [Sample(completion_tokens=500, server_completion_tokens=500, server_completion_speed=10.0)]
    )
    assert off(speeds.speed, 10.0) < 0.05
    assert speeds.prefill == PREFILL_FACTOR * speeds.speed


# --- known curves


@pytest.mark.parametrize("measures", [False, True], ids=["by arrival", "by its own clock"])
@pytest.mark.parametrize(
    ("o", "p", "d"), [(0.1, 1000, 50), (0.3, 2000, 80), (0.5, 6000, 60), (0.2, 500, 12), (2.0, 1000, 50)]
)
def test_known_curves_are_recovered(o: float, p: float, d: float, measures: bool) -> None:
    found = []
    for seed in range(7):
        server = Server(o, p, d, measures=measures, seed=seed)
        found.append(expect(server.calls(150)))
    assert off(statistics.median(f.speed for f in found), d) < 0.05
    assert off(statistics.median(f.prefill for f in found), p) < 0.1
    assert off(statistics.median(f.overhead for f in found), o) < 0.1
    for f in found:
        assert off(f.speed, d) < 0.1
        for prompt in (100, 600, 4000):
            assert off(f.overhead + prompt / f.prefill, o + prompt / p) < 0.15


def test_time_to_the_first_token_says_nothing_of_generation() -> None:
    soon = expect([one()] * 5)
    late = expect([one(first_token_seconds=41.1, total_seconds=43.1)] * 5)
    assert soon.speed == late.speed
    assert late.prefill < soon.prefill


def test_what_was_generated_out_of_sight_makes_nothing_faster() -> None:
    sample = one(completion_tokens=1101, hidden_tokens=1000, first_token_seconds=21.1, total_seconds=23.1)
    learned = after([sample] * 5)
    assert off(speeds_of(learned, BOX).speed, 50.0) < 0.02
    assert learned.arrivals is None  # its first token was none


@pytest.mark.parametrize(
    "fields",
    [
        {"completion_tokens": 7},
        {"completion_tokens": 1, "total_seconds": 1.1},
        {"completion_tokens": 12, "total_seconds": 1.12},
        {"first_token_seconds": None},
        {"server_completion_tokens": 3, "server_completion_speed": 1e5, "completion_tokens": 3},
    ],
)
def test_too_little_of_a_reply_is_no_measure_of_speed(fields: dict[str, Any]) -> None:
    assert after([one(**fields)]).generation is None


def test_a_reply_that_was_held_back_and_came_in_one_piece_is_not_fast() -> None:
    samples = [one(first_token_seconds=t, total_seconds=3.1) for t in (3.1, 3.09, 3.0999)]
    learned = after(samples * 4)
    assert off(speeds_of(learned, BOX).speed, 50.0) < 0.2
    assert learned.arrivals is None


def test_a_server_far_faster_than_declared_is_believed() -> None:
    server = Server(0.1, 20000, 900)
    assert off(expect(server.calls(30), llm(10.0)).speed, 900.0) < 0.1


def test_a_server_cannot_have_measured_longer_than_the_call_took() -> None:
    liar = {"server_completion_tokens": 101, "server_completion_speed": 5.0}
    assert off(expect([one(**liar)] * 5).speed, 50.0) < 0.05


def test_short_and_cached_prompts_say_little_of_reading() -> None:
    usual = one(server_prompt_tokens=1000, server_prompt_speed=1000.0)
    cached = one(
        cached_tokens=999, first_token_seconds=0.12, server_prompt_tokens=1, server_prompt_speed=12.0
    )
    short = one(prompt_tokens=40, first_token_seconds=0.2, server_prompt_tokens=40, server_prompt_speed=300.0)
    assert off(expect([usual] * 5 + [cached, short] * 3).prefill, 1000.0) < 0.1


def test_cached_tokens_are_not_read() -> None:
    samples = [
        one(),
        one(prompt_tokens=9000, cached_tokens=8000),
        one(cached_tokens=900, first_token_seconds=0.2),
    ]
    assert off(expect(samples * 10).prefill, 1000.0) < 0.05


def test_a_queued_call_says_nothing_of_reading_but_all_of_writing() -> None:
    queued = [one(first_token_seconds=31.1, total_seconds=33.1, queued=True)] * 5
    learned = after(queued)
    assert (learned.arrivals, learned.overhead) == (None, None)
    assert off(speeds_of(learned, BOX).speed, 50.0) < 0.02
    measured = [replace(s, server_prompt_tokens=1000, server_prompt_speed=700.0) for s in queued]
    learned = after(measured)
    assert learned.overhead is None
    assert off(speeds_of(learned, BOX).prefill, 700.0) < 0.02


def test_overhead_is_known_where_every_prompt_is_short() -> None:
    short = one(
        prompt_tokens=20, first_token_seconds=0.31, server_prompt_tokens=20, server_prompt_speed=2000.0
    )
    speeds = expect([short] * 10)
    assert off(speeds.overhead, 0.3) < 0.05
    assert (speeds.seen.overhead, speeds.seen.prefill) == (10, 0)


def test_arrivals_count_again_when_a_server_no_longer_measures() -> None:
    measuring, silent = Server(0.1, 1000, 50, measures=True), Server(0.1, 4000, 50)
    speeds = expect(measuring.calls(20) + silent.calls(40))
    assert off(speeds.prefill, 4000.0) < 0.15


def test_a_cut_reply_does_not_end_the_trust_in_the_servers_own_figures() -> None:
    measured = after(Server(0.1, 1000, 50, measures=True).calls(20))
    cut = learn(measured, one(cut=True, first_token_seconds=0.2), BOX, NOON + 9999)
    assert speeds_of(cut, BOX).prefill == speeds_of(measured, BOX).prefill


# --- drift and outliers


DRIFTS = [
    pytest.param(400.0, 0, 1.0, id="declared 8 times too fast"),
    pytest.param(6.25, 0, 1.0, id="declared 8 times too slow"),
    pytest.param(50.0, 50, 4.0, id="4 times slower at once"),
    pytest.param(50.0, 50, 0.25, id="4 times faster at once"),
    pytest.param(400.0, 30, 4.0, id="declared too fast and then slower"),
]


@pytest.mark.parametrize("measures", [False, True], ids=["by arrival", "by its own clock"])
@pytest.mark.parametrize(("declared", "before", "slower"), DRIFTS)
def test_ten_calls_are_enough(declared: float, before: int, slower: float, measures: bool) -> None:
    spec, speed, time = llm(declared), [], []
    for seed in range(40):
        server = Server(0.05, 1000, 50, measures=measures, seed=seed)
        server.outliers = 0.02
        earlier = server.calls(before)
        server.slower = slower
        found = expect(earlier + server.calls(10), spec)
        speed.append(off(found.speed, 50.0 / slower))
        predicted = found.overhead + 1000 / found.prefill + 200 / found.speed
        time.append(off(predicted, slower * (0.05 + 1.0 + 4.0)))
    assert sum(e < 0.15 for e in speed) >= 38
    assert sum(e < 0.15 for e in time) >= 38


@pytest.mark.parametrize("factor", [1 / 20, 20])
def test_an_outlier_hardly_moves_what_is_known(factor: float) -> None:
    known = after(Server(0.05, 1000, 50).calls(60))
    strange = one(first_token_seconds=1.1 * factor, total_seconds=3.1 * factor)
    moved, before = speeds_of(learn(known, strange, BOX, NOON), BOX), speeds_of(known, BOX)
    assert off(moved.speed, before.speed) < 0.1
    assert off(moved.overhead + 1000 / moved.prefill, before.overhead + 1000 / before.prefill) < 0.12


def test_two_percent_of_outliers_are_lived_with() -> None:
    server, learned, worst = Server(0.05, 1000, 50, seed=3), Learned(), 0.0
    server.outliers = 0.02
    for i in range(600):
        learned = learn(learned, server.call(), BOX, NOON + i)
        if i > 20:
            worst = max(worst, off(speeds_of(learned, BOX).speed, 50.0))
    assert worst < 0.25


def test_an_outlier_that_ends_a_run_of_strange_calls_is_not_taken_at_its_word() -> None:
    known = after(Server(0.05, 1000, 50).calls(60))
    slow = [one(first_token_seconds=1.6, total_seconds=1.6 + 2.0 * k) for k in (1.6, 1.6)]
    outlier = one(first_token_seconds=44.0, total_seconds=88.0)
    found = speeds_of(after([*slow, outlier], learned=known), BOX)
    assert found.speed > 50.0 / 4
    assert found.overhead + 1000 / found.prefill < 4.0


def test_after_a_quiet_night_one_call_counts_more() -> None:
    known = after([one()] * 20)
    slower = one(total_seconds=1.1 + 2.0 * 1.3)
    at_once = speeds_of(learn(known, slower, BOX, NOON + 1200), BOX).speed
    next_day = speeds_of(learn(known, slower, BOX, NOON + 40_000), BOX).speed
    assert next_day < at_once - 3.0


def test_the_order_of_calls_matters_little() -> None:
    server = Server(0.2, 1000, 50, seed=5)
    samples = [server.call(key="a" if i % 2 else "b") for i in range(60)]
    there, back = expect(samples), expect(samples[::-1])
    for name in ("speed", "prefill", "overhead", "service", "completion"):
        assert off(getattr(there, name), getattr(back, name)) < 0.3, name
    assert replace(there.seen, prefill=0) == replace(back.seen, prefill=0)


# --- cut short


@quick
@given(
    st.lists(st.floats(2.0, 60.0), max_size=6),
    st.integers(1, 500),
    st.floats(0.0, 50.0),
    st.floats(0.0, 50.0),
)
def test_a_cut_reply_only_makes_slower(totals: list[float], seen: int, first: float, writing: float) -> None:
    known = after([one(first_token_seconds=1.1, total_seconds=1.1 + t) for t in totals])
    cut = one(completion_tokens=seen, first_token_seconds=first, total_seconds=first + writing, cut=True)
    assert speeds_of(learn(known, cut, BOX, NOON), BOX).speed <= speeds_of(known, BOX).speed


def test_a_first_token_that_was_not_waited_for_only_makes_slower() -> None:
    known = after([one()] * 10)
    for patience, calls, least in (
        (0.2, 9, 1.1),
        (1.0, 9, 1.1),
        (1.5, 1, 1.1),
        (30.0, 1, 1.1),
        (30.0, 3, 20.0),
    ):
        speeds = speeds_of(after([_silent(patience)] * calls, learned=known), BOX)
        assert (speeds.overhead + 1000 / speeds.prefill > 1.11) == (patience > 1.1)
        assert speeds.overhead + 1000 / speeds.prefill > 0.99 * least


def _silent(waited: float) -> Sample:
    return Sample(prompt_tokens=1000, cached_tokens=0, total_seconds=waited, cut=True)


# --- cold starts


def test_time_to_ready_teaches_nothing_else() -> None:
    learned = after([one(load_seconds=t) for t in (41.0, 40.0, 39.0, 40.0)])
    speeds = speeds_of(learned, BOX)
    assert off(speeds.load, 40.0) < 0.05
    assert speeds.seen.load == 4
    assert (learned.generation, learned.arrivals, learned.prompts.seen) == (None, None, 0)
    assert after([Sample(load_seconds=12.0)]).load is not None


def test_time_to_wake_is_what_the_first_token_took_longer() -> None:
    awake = after([one()] * 20)
    asleep = one(first_token_seconds=9.1, total_seconds=11.1, asleep=True)
    learned = after([asleep] * 5, learned=awake)
    assert off(speeds_of(learned, BOX).wake, 8.0) < 0.1
    assert (learned.generation, learned.arrivals) == (awake.generation, awake.arrivals)


# --- sizes


def test_bytes_per_token_are_learned_from_prompts() -> None:
    def prompt(size: int, messages: int) -> Sample:
        return Sample(prompt_bytes=size, messages=messages, prompt_tokens=size // 2 + 5 * messages + 4)

    speeds = expect([prompt(400 + 100 * i, 1 + i) for i in range(25)])
    assert off(speeds.bytes_per_token, 2.0) < 0.05
    assert speeds.seen.bytes_per_token == 25
    once = expect([prompt(400, 1)]).bytes_per_token
    assert 2.5 < once < 4.0


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_bytes": None},  # an image
        {"prompt_bytes": 100, "prompt_tokens": 59},
        {"prompt_bytes": 100_000},
        {"prompt_bytes": 600},
        {"prompt_bytes": 2000, "estimated": True},
        {"prompt_bytes": 2000, "prompt_tokens": 5},
    ],
)
def test_prompts_that_tell_nothing_of_bytes_per_token(fields: dict[str, Any]) -> None:
    assert speeds_of(after([one(**fields)] * 3), BOX).bytes_per_token == 4.0


def test_one_huge_prompt_does_not_outweigh_the_usual_ones() -> None:
    usual = [Sample(prompt_bytes=2000, prompt_tokens=509)] * 30
    dense = Sample(prompt_bytes=100_000, prompt_tokens=90_009)
    assert expect([*usual, dense]).bytes_per_token > 3.5


def test_the_likely_reply_is_drawn_to_what_is_assumed_with_the_weight_of_eight() -> None:
    learned = after([one(completion_tokens=100)])
    assert math.isclose(speeds_of(learned, BOX).completion, (8 * 512 + 100) / 9)
    assert off(expect([one(completion_tokens=100)] * 400).completion, 100.0) < 0.1


def test_a_task_has_its_own_likely_reply() -> None:
    samples = [one(completion_tokens=20, key="classify"), one(completion_tokens=900, key="write")] * 60
    learned = after(samples)
    likely = {key: speeds_of(learned, BOX, key).completion for key in ("classify", "", "write", "unheard of")}
    assert likely["classify"] < 100 < 400 < likely[""] < 600 < 800 < likely["write"]
    assert likely["unheard of"] == likely[""]
    assert speeds_of(learned, BOX, "write").seen.completion == 60


def test_the_likely_reply_is_within_the_cap() -> None:
    assert speeds_of(Learned(), llm(cap=100)).completion == 100.0
    assert speeds_of(after([one(completion_tokens=3000)] * 50), llm(cap=800)).completion == 800.0


@pytest.mark.parametrize("how", ["capped", "cut"])
def test_a_reply_that_had_to_end_was_at_least_as_long(how: str) -> None:
    known = after([one(completion_tokens=400)] * 30)
    likely = speeds_of(known, BOX).completion
    short = learn(known, one(completion_tokens=16, **{how: True}), BOX, NOON)
    long = learn(known, one(completion_tokens=1000, **{how: True}), BOX, NOON)
    assert speeds_of(short, BOX).completion == likely < speeds_of(long, BOX).completion
    assert short.replies.mean < known.replies.mean  # its slot was occupied no longer


def test_kinds_of_tasks_are_forgotten_beyond_a_number() -> None:
    learned = after([one(key=f"{i:04}" + "x" * 500) for i in range(3 * MOST_KEYS)] + [one()])
    assert len(learned.lengths) == MOST_KEYS
    assert "" in learned.lengths
    assert f"{3 * MOST_KEYS - 1:04}" + "x" * (MOST_KEY - 4) in learned.lengths
    assert len(to_json(learned)) < 6000


def test_a_kind_of_task_that_goes_on_is_not_forgotten() -> None:
    others = [one(key=str(i)) for i in range(2 * MOST_KEYS)]
    learned = after([sample for other in others for sample in (other, one(key="steady"))])
    assert learned.lengths["steady"].seen == 2 * MOST_KEYS


def test_service_is_the_time_in_the_server_and_follows_its_speed() -> None:
    queued = [one(first_token_seconds=60.0, total_seconds=62.0, queued=True)] * 60
    service = expect([one()] * 20 + queued).service
    assert off(service, 3.1) < 0.3
    slow = [one(first_token_seconds=4.4, total_seconds=12.4)] * 6
    assert off(expect([one()] * 20 + queued + slow).service, 4 * service) < 0.1


# --- what always holds (SCHEDULING 4, items 9 and 10)

paces = st.floats(0.01, 1e6)
spoken = st.lists(st.tuples(paces, st.floats(0.0, 1e5)), min_size=1, max_size=25)


def told(speed: float) -> Sample:
    return Sample(server_completion_tokens=100, server_completion_speed=speed)


@quick
@given(st.floats(0.01, 1e6), spoken)
def test_speed_stays_between_what_was_declared_and_observed(
    declared: float, observations: list[tuple[float, float]]
) -> None:
    spec, learned, now = llm(declared), Learned(), NOON
    seen = [declared]
    for speed, pause in observations:
        now += pause
        learned = learn(learned, told(speed), spec, now)
        seen.append(speed)
        assert min(seen) * (1 - 1e-9) <= speeds_of(learned, spec).speed <= max(seen) * (1 + 1e-9)


@quick
@given(
    st.floats(1.0, 1e4),
    st.lists(st.tuples(st.integers(1, 20000), st.floats(0.02, 300.0)), min_size=1, max_size=25),
)
def test_reading_stays_between_what_was_declared_and_possible(
    declared: float, observations: list[tuple[int, float]]
) -> None:
    """A prompt was read no slower than in all the time to the first token, and in no less than 2% of it."""
    spec, learned = llm(prefill=declared), Learned()
    slowest = fastest = declared
    most = LIKELY_OVERHEAD
    for tokens, first in observations:
        learned = learn(
            learned, Sample(prompt_tokens=tokens, first_token_seconds=first, total_seconds=first), spec, NOON
        )
        slowest, fastest, most = (
            min(slowest, tokens / first),
            max(fastest, 50 * tokens / first),
            max(most, first),
        )
        speeds = speeds_of(learned, spec)
        assert slowest * (1 - 1e-9) <= speeds.prefill <= fastest * (1 + 1e-9)
        assert 0.0 <= speeds.overhead <= most


@quick
@given(st.lists(st.floats(40.0, 60.0), max_size=20), paces)
def test_one_outlier_moves_the_speed_by_its_gain_at_most(usual: list[float], outlier: float) -> None:
    before = after([told(speed) for speed in usual]).generation
    assume(before is None or before.strange == 0)
    moved = learn(Learned(generation=before), told(outlier), BOX, before.at if before else NOON).generation
    assert moved is not None
    log, variance = (
        (before.log, before.variance + DRIFT_A_CALL) if before else (math.log(50.0), math.log(4.0) ** 2)
    )
    gain = variance / (variance + NOISE)
    assert abs(moved.log - log) <= MOST_SIGMAS * math.sqrt(variance + NOISE) * gain + 1e-9


# --- nonsense

nonsense = st.one_of(st.none(), st.floats(), st.sampled_from((0.0, -1.0, 1e-300, 1e300, math.inf, math.nan)))
numbers = st.one_of(st.none(), st.integers(-5, 5), st.integers(), st.sampled_from((0, 10**400, -(10**400))))


@st.composite
def any_sample(draw: st.DrawFn) -> Sample:
    good = draw(st.booleans())
    floats, counts = (st.floats(0.001, 100.0), st.integers(1, 5000)) if good else (nonsense, numbers)
    fields: dict[str, Any] = {
        name: draw(st.one_of(floats, nonsense) if draw(st.booleans()) else floats)
        for name in ("total_seconds", "first_token_seconds", "server_prompt_speed", "server_completion_speed")
    }
    for name in (
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "server_prompt_tokens",
        "server_completion_tokens",
        "prompt_bytes",
    ):
        fields[name] = draw(counts)
    fields["hidden_tokens"] = draw(st.sampled_from((0, 0, 3, -7, 10**400)))
    fields["messages"] = draw(st.sampled_from((1, 2, 0, -7, 10**400)))
    fields["key"] = draw(st.sampled_from(("", "a", "b")))
    for name in ("queued", "cut", "capped", "asleep", "estimated"):
        fields[name] = draw(st.sampled_from((False, False, False, True)))
    if draw(st.integers(0, 5)) == 0:
        fields["load_seconds"] = draw(nonsense)
    return Sample(**fields)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(any_sample(), st.one_of(st.floats(), st.floats(0, 2e9))), max_size=12), paces)
def test_nonsense_never_enters(calls: list[tuple[Sample, float]], declared: float) -> None:
    spec, learned = llm(declared), Learned()
    for sample, now in calls:
        learned = learn(learned, sample, spec, now)
        for key in ("", "a"):
            speeds = speeds_of(learned, spec, key)
            values = [v for v in msgspec.structs.astuple(speeds) if isinstance(v, float)]
            assert all(math.isfinite(v) for v in values)
            assert min(v for v in values if v is not speeds.overhead) > 0.0
            assert 0.0 <= speeds.overhead <= 86_400.0
            assert 1.0 <= speeds.bytes_per_token <= 16.0
            assert 0.0 < speeds.completion <= 4096
    assert from_json(to_json(learned)) == learned


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300])
def test_a_call_of_nonsense_teaches_nothing(bad: float) -> None:
    known = after([one(prompt_bytes=4000)] * 3)
    sample = Sample(
        total_seconds=bad,
        first_token_seconds=bad,
        prompt_tokens=0,
        completion_tokens=-3,
        server_prompt_tokens=100,
        server_prompt_speed=bad,
        server_completion_tokens=100,
        server_completion_speed=bad,
        prompt_bytes=10**30,
    )
    assert learn(known, sample, BOX, bad) == known
    assert learn(Learned(), sample, BOX, bad) == Learned()
    assert learn(known, Sample(load_seconds=bad), BOX, bad) == known
    assert learn(known, Sample(), BOX, NOON) == known


@pytest.mark.parametrize(
    "fields",
    [
        {"first_token_seconds": 5.0, "total_seconds": 3.1, "completion_tokens": 3},
        {"prompt_tokens": 50_000_000, "first_token_seconds": 1.1},
    ],
)
def test_a_first_token_that_cannot_be_says_nothing_of_reading(fields: dict[str, Any]) -> None:
    assert after([one(**fields)]).arrivals is None


def test_an_absurd_declaration_is_unlearned() -> None:
    for declared in (1e300, 1e-300):
        speeds = expect([one()] * 30, llm(declared, prefill=declared))
        assert off(speeds.speed, 50.0) < 0.05
        assert off(speeds.overhead + 1000 / speeds.prefill, 1.1) < 0.05


def test_a_reply_longer_than_the_context_is_not_believed() -> None:
    assert after([one(completion_tokens=32769)]).replies.seen == 0
    assert after([one(completion_tokens=32768)]).replies.seen == 1


# --- kept


def test_what_is_kept_comes_back_equal() -> None:
    server = Server(0.1, 1000, 50, measures=True)
    samples = [server.call(prompt_bytes=3000, key=str(i % 5)) for i in range(9)]
    learned = after(
        [
            *samples,
            one(),
            one(asleep=True, first_token_seconds=7.0, total_seconds=9.0),
            one(load_seconds=30.0),
        ]
    )
    assert from_json(to_json(learned)) == learned
    assert list(from_json(to_json(learned)).lengths) == list(learned.lengths)
    assert to_json(Learned()) == b"{}"


def test_fields_of_other_versions_are_passed_over() -> None:
    kept = b'{"generation":{"log":3.0,"colour":"red"},"later":[1,2],"replies":{"mean":7.0}}'
    learned = from_json(kept)
    assert learned.generation is not None
    assert off(speeds_of(learned, BOX).speed, math.exp(3.0)) < 1e-9
    assert learn(learned, one(), BOX, NOON).generation is not None


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"nonsense",
        b"\xff\xfe",
        b"[]",
        b'{"generation":{"log":null}}',
        b'{"generation":{"log":1e9}}',
        b'{"generation":{"log":3.0,"variance":-1.0}}',
        b'{"arrivals":{"overhead":0.1,"per_token":0.0,"overhead_variance":1.0,"per_token_variance":1.0}}',
        b'{"replies":{"mean":1e999}}',
        b'{"lengths":{"":{"weight":-8.0}}}',
    ],
)
def test_what_makes_no_sense_is_forgotten(kept: bytes) -> None:
    assert from_json(kept) == Learned()
