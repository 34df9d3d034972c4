"""Admission as a flow, driven by hand: who takes the call now, who is held back, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.calls.admission import LATER_MOST, LOOK_MOST, Flight, Place, Wish, admit, admit_embedding
from maxwell.calls.effects import Aside, Flow, Gather, Sleep
from maxwell.calls.state import PoolState
from maxwell.decision import Request
from maxwell.errors import CallTimeout
from maxwell.flights import Busy, Load, Plan, Planner
from maxwell.flights.memory import MemoryFlights
from maxwell.health import Health, HealthBook
from maxwell.ledger.memory import MemoryLedger
from maxwell.receipts.book import ReceiptBook
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec, Registry
from maxwell.testing.clock import FakeClock
from maxwell.types import Requirements

PRICE = 0.01  # US dollars per 1000 tokens: 5 mills for an answer of 512 tokens
FOREVER = 10_000  # effects


class Watched(MemoryFlights):
    """Flights that remember what was written, and may be in use by another process."""

    def __init__(self, clock: FakeClock) -> None:
        self.is_busy = False
        self.plans: list[Plan | None] = []
        super().__init__(clock)

    def place(self, id: str, plan: Planner, *, wait: bool = True) -> Plan | None:
        if self.is_busy and not wait:
            raise Busy
        self.plans.append(super().place(id, plan, wait=wait))
        return self.plans[-1]


class Pool:
    """A pool, and what happens in it."""

    def __init__(self, *specs: LLMSpec | EmbeddingSpec) -> None:
        self.clock = FakeClock()
        self.flights = Watched(self.clock)
        self.state = PoolState(
            Registry(
                llms=tuple(s for s in specs if isinstance(s, LLMSpec)),
                embeddings=tuple(s for s in specs if isinstance(s, EmbeddingSpec)),
            ),
            health=HealthBook(None, self.clock, random=lambda: 0.5),
            ledger=MemoryLedger(),
            clock=self.clock,
            flights=self.flights,
            draw=lambda: 0.5,
            environ={},
        )
        for entry in self.state.llms:
            self.tell(entry.spec.name)

    def tell(self, name: str, state: str = "up", **more: Any) -> None:
        """A health check finds that out."""
        health = Health(state=state, at=self.clock.time(), **more)  # type: ignore[arg-type]
        self.state.health.put(self.state.llm(name).endpoint, health)

    def fail(self, name: str, *, at_once: bool = True, **more: Any) -> None:
        """A call fails there."""
        kind = more.pop("kind", "server_error")
        self.state.health.note_fault(self.state.llm(name).endpoint, kind, "boom", at_once=at_once, **more)

    def occupy(self, name: str, times: int = 1, **more: Any) -> list[str]:
        """Calls of others that run there."""
        ids = [f"{name} {len(self.flights.plans)} {i}" for i in range(times)]
        plan = Plan(self.state.llm(name).endpoint.root, name, 10.0, **more)
        for id in ids:
            self.flights.place(id, lambda loads: plan)
        return ids

    def load(self, name: str) -> Load:
        return self.flights.loads().get(self.state.llm(name).endpoint.root, Load())

    def wish(
        self, bound: str | None = None, tiers: Sequence[Sequence[str]] | None = None, **more: Any
    ) -> Wish:
        """What a call wants that takes whoever is best, `bound` having been chosen before."""
        weight = more.pop("weight", 1.0)
        size = more.pop("prompt_bytes", 400)
        names = [[e.spec.name for e in self.state.llms]] if tiers is None else tiers
        return Wish(
            request=Request(needs=Requirements(time_cost_weight=weight), prompt_bytes=size),
            bound=None if bound is None else self.state.llm(bound),
            tiers=[[self.state.llm(name) for name in tier] for tier in names],
            **more,
        )

    def call(self, bound: str | None = None, **more: Any) -> Call:
        return Call(self, self.wish(bound, **more))


class Call:
    """One call on its way in, step by step.

    Attributes:
        place: Who took it; None = nobody yet, or nobody at all.
        effects: What was asked of the driver.
    """

    def __init__(self, pool: Pool, wish: Wish) -> None:
        self._pool = pool
        self.place: Place | None = None
        self.is_over = False
        self.effects: list[Any] = []
        self.flight = Flight(pool.state)
        decision = pool.state.decide(wish.request)
        self.record = ReceiptBook(None, pool.clock).chat(decision, [])
        self._flow: Flow[Any] = admit(pool.state, self.flight, wish, self.record)

    def step(self, result: Any = None) -> Any:
        """The next effect, `result` being that of the last one; None when it is over."""
        try:
            self.effects.append(self._flow.send(result))
        except StopIteration as stop:
            self.is_over, self.place = True, stop.value
            return None
        return self.effects[-1]

    def run(self, at_most: int = FOREVER, happens: Callable[[], object] = lambda: None) -> Place | None:
        """Carry out effects until it is over, or `at_most` of them; after each something `happens`."""
        effect = self.effects[-1] if self.effects else self.step()
        for _ in range(at_most):
            if effect is None:
                return self.place
            effect = self.step(self._done(effect))
            happens()
        return self.place

    def _done(self, effect: Any) -> Any:
        if isinstance(effect, Aside):
            return effect.work()
        if isinstance(effect, Sleep):
            self._pool.clock.advance(effect.seconds)
            return None
        assert isinstance(effect, Gather)
        for flow in effect.flows:
            flow.close()
        return [None for _ in effect.flows]

    def leave(self) -> None:
        """The caller has left, or the call has ended."""
        self._flow.close()
        self.flight.leave()

    @property
    def is_held(self) -> bool:
        return not self.is_over and isinstance(self.effects[-1], Sleep)


def llm(name: str, speed: float = 100.0, slots: int | None = 1, **fields: Any) -> LLMSpec:
    capabilities = Capabilities(
        max_tokens=1024, max_context=fields.pop("context", 8192), speed_tokens_per_sec=speed, slots=slots
    )
    known = {"api_base": f"http://{name}", "model": "m", "backend": "llamacpp", "default_temperature": 0.5}
    return LLMSpec(name=name, capabilities=capabilities, **{**known, **fields})


def taken_by(call: Call) -> str | None:
    place = call.run()
    return None if place is None else place.entry.spec.name


# --- who takes it


def test_the_one_chosen_before_keeps_the_call_while_it_is_well() -> None:
    pool = Pool(llm("slow", 10), llm("fast", 1000))
    call = pool.call("slow")
    assert taken_by(call) == "slow"
    assert call.place is not None
    assert (call.place.decision, call.place.held) == (None, 0.0)
    assert call.effects == []  # nothing had to be waited for
    assert pool.load("slow") == Load(running=1)
    assert pool.load("fast") == Load()


def test_of_a_server_never_asked_nothing_bad_is_known() -> None:
    pool = Pool(llm("one"), llm("fast", 1000))
    pool.clock.advance(3600)
    call = pool.call("one")
    assert taken_by(call) == "one"
    assert call.effects == []


def test_a_call_moves_where_a_slot_is_free() -> None:
    pool = Pool(llm("one"), llm("other", 90))
    pool.occupy("one")
    call = pool.call("one")
    assert taken_by(call) == "other"
    assert call.place is not None
    assert call.place.decision is not None
    assert [s.spec.name for s in call.place.decision.ranked] == ["other", "one"]
    assert call.place.decision.ranked[1].queue_wait > 0
    assert (pool.load("one"), pool.load("other").running) == (pool.load("one"), 1)


@pytest.mark.parametrize("state", ["down", "misconfigured", "loading"])
def test_a_call_moves_where_the_server_is_well(state: str) -> None:
    pool = Pool(llm("one"), llm("other", 90))
    pool.tell("one", state)
    assert taken_by(pool.call("one")) == "other"


def test_whoever_failed_of_late_and_whoever_is_full_are_weighed_by_the_same_rules() -> None:
    pool = Pool(llm("one"), llm("full", 90), llm("slow", 60))
    pool.fail("one")
    pool.occupy("full")
    call = pool.call("one")
    assert taken_by(call) == "slow"  # 8 s, rather than 5 s for a slot and another 5
    assert call.effects == []


def test_nobody_bound_means_the_best() -> None:
    pool = Pool(llm("slow", 10), llm("fast", 1000))
    assert taken_by(pool.call()) == "fast"


def test_the_first_tier_with_anybody_decides() -> None:
    pool = Pool(llm("fast", 1000), llm("slow", 10), llm("sick", 500))
    pool.tell("sick", "down")
    assert taken_by(pool.call(tiers=[["sick"], ["slow"], ["fast"]])) == "slow"


def test_who_has_too_little_room_is_nobody() -> None:
    pool = Pool(llm("small", 1000, context=4096), llm("large", 10, context=16384))
    assert taken_by(pool.call(more_than=4096)) == "large"
    assert taken_by(pool.call(more_than=16384)) is None


def test_a_sleeping_server_is_woken_by_the_call() -> None:
    pool = Pool(llm("one"))
    pool.tell("one", "asleep")
    call = pool.call("one")
    assert taken_by(call) == "one"
    assert call.effects == []
    assert call.place is not None
    assert call.place.candidate.ready_in > 0


def test_where_nobody_is_eligible_nothing_is_left_behind() -> None:
    pool = Pool(llm("one"))
    pool.tell("one", "down")
    call = pool.call(None)
    assert call.run() is None
    assert call.is_over
    assert pool.flights.loads() == {}


# --- who is held


def held_pool() -> Pool:
    """A free one that is occupied, and one that costs 5 mills and has room."""
    return Pool(llm("free"), llm("paid", slots=None, backend="openai", cost_per_1k_tokens=PRICE))


def test_a_call_is_held_where_waiting_is_cheaper() -> None:
    pool = held_pool()
    (other,) = pool.occupy("free")
    call = pool.call("free", weight=0.1)
    call.run(at_most=3)
    assert call.is_held
    assert pool.load("free") == Load(running=1, waiting=1, overrun=pool.load("free").overrun)
    pool.flights.leave(other)
    assert taken_by(call) == "free"
    assert call.place is not None
    assert call.place.held == pytest.approx(sum(e.seconds for e in call.effects if isinstance(e, Sleep)))
    assert pool.load("free").running == 1
    assert pool.load("free").waiting == 0


def test_a_call_is_not_held_where_waiting_is_dearer() -> None:
    pool = held_pool()
    pool.occupy("free")
    call = pool.call("free", weight=10.0)
    assert taken_by(call) == "paid"
    assert call.effects == []
    assert pool.load("free") == Load(running=1)


def test_a_held_call_is_no_ones_property() -> None:
    pool = Pool(llm("one"), llm("other", 90))
    pool.occupy("one")
    (busy,) = pool.occupy("other")
    call = pool.call("one")
    call.run(at_most=2)
    assert call.is_held
    pool.flights.leave(busy)
    assert taken_by(call) == "other"
    assert pool.load("one") == Load(running=1, overrun=pool.load("one").overrun)


def test_a_pinned_call_waits_for_its_own() -> None:
    pool = Pool(llm("one"), llm("other", 90))
    (busy,) = pool.occupy("one")
    call = pool.call("one", tiers=[["one"]])
    call.run(at_most=5)
    assert call.is_held
    pool.flights.leave(busy)
    assert taken_by(call) == "one"


def test_who_came_first_goes_first() -> None:
    pool = Pool(llm("one"))
    (busy,) = pool.occupy("one")
    calls = [pool.call("one") for _ in range(3)]
    for call in calls:
        call.run(at_most=1)
    assert pool.load("one").waiting == 3
    pool.flights.leave(busy)
    order = []
    for _ in range(3):
        for number in (2, 1, 0):  # the last one always looks first
            call = calls[number]
            if not call.is_over and call.run(at_most=1) is not None:
                order.append(number)
                call.leave()
    assert order == [0, 1, 2]
    assert pool.flights.loads() == {}


def test_a_place_in_the_queue_is_kept_while_the_call_looks_elsewhere() -> None:
    pool = Pool(llm("one"), llm("other", 99))
    (one,), (other,) = pool.occupy("one"), pool.occupy("other")
    first, second = pool.call(), pool.call()
    for _ in range(4):
        first.run(at_most=1)
        second.run(at_most=1)
    assert first.is_held
    assert second.is_held
    pool.flights.leave(one)
    pool.flights.leave(other)
    assert {taken_by(first), taken_by(second)} == {"one", "other"}


def test_calls_of_strangers_are_waited_for_by_nobody() -> None:
    # They may never end, and their server takes turns: only this user's own calls are held.
    pool = Pool(llm("one", slots=2))
    pool.tell("one", busy=2, own=0, busy_at=pool.clock.time())
    call = pool.call("one")
    assert taken_by(call) == "one"
    assert call.effects == []


def test_a_loading_server_is_waited_for() -> None:
    pool = Pool(llm("one"))
    pool.tell("one", "loading")
    call = pool.call("one")
    call.run(at_most=4)
    assert call.is_held
    assert (pool.load("one").running, pool.load("one").waiting) == (0, 1)
    pool.tell("one")
    assert taken_by(call) == "one"
    assert call.place is not None
    assert call.place.held > 0


def test_a_held_call_learns_what_becomes_of_its_server() -> None:
    pool = Pool(llm("one"))
    pool.tell("one", "loading")
    call = pool.call("one")
    while not any(isinstance(effect, Gather) for effect in call.effects):
        call.run(at_most=1)
        assert len(call.effects) < 60, "the server was never asked again"
    assert pool.clock.time() - pool.state.known(pool.state.llm("one")).at <= 3.0  # type: ignore[union-attr]


def test_the_next_to_go_looks_often_and_those_behind_less() -> None:
    pool = Pool(llm("one"))
    pool.occupy("one")
    calls = [pool.call("one") for _ in range(4)]
    for call in calls:
        call.run(at_most=1)
    pauses = [call.effects[-1].seconds for call in calls]
    assert pauses[0] <= LOOK_MOST
    assert pauses == sorted(pauses)
    assert LOOK_MOST < pauses[-1] <= LATER_MOST


def test_the_decision_that_is_told_is_the_one_that_had_it_wait() -> None:
    pool = held_pool()
    call = pool.call("free", weight=0.1)  # chosen while it was idle
    (other,) = pool.occupy("free")
    call.run(at_most=2)
    pool.flights.leave(other)
    assert taken_by(call) == "free"
    assert call.place is not None
    assert call.place.decision is None  # in the end the one chosen before had a slot
    # The wait itself is told, with what it was weighed against.
    told = call.record._decision
    assert told is not None
    assert [s.spec.name for s in told.ranked] == ["free", "paid"]
    assert told.ranked[0].queue_wait > 0
    assert told.ranked[1].mills > 0


# --- failing


def test_one_call_tries_out_a_server_that_failed() -> None:
    pool = Pool(llm("sick", 500, slots=4), llm("well"))
    pool.fail("sick")
    elsewhere = pool.call("sick")
    assert taken_by(elsewhere) == "well"
    assert pool.load("well") == Load(running=1)  # which is no trial
    elsewhere.leave()
    pool.clock.advance(7)
    trial = pool.call("sick")
    assert taken_by(trial) == "sick"
    assert (pool.load("sick").running, pool.load("sick").trials) == (1, 1)
    assert taken_by(pool.call("sick")) == "well"
    assert pool.load("sick").trials == 1
    trial.leave()
    assert taken_by(pool.call("sick")) == "sick"  # that one told nothing, so another one tries


def test_only_a_server_that_failed_is_tried_out() -> None:
    pool = Pool(llm("one", slots=4))
    for _ in range(2):
        assert taken_by(pool.call("one")) == "one"
    assert pool.load("one").trials == 0
    pool.fail("one", at_once=False)  # a single failure
    assert taken_by(pool.call("one")) == "one"
    assert pool.load("one").trials == 0


def test_the_last_one_is_never_ejected() -> None:
    pool = Pool(llm("one"))
    pool.fail("one")
    assert taken_by(pool.call("one")) == "one"


@pytest.mark.parametrize("state", ["down", "misconfigured"])
def test_a_handle_goes_to_its_server_whatever_is_said_of_it(state: str) -> None:
    pool = Pool(llm("one"))
    pool.tell("one", state)
    call = pool.call("one")
    assert taken_by(call) == "one"
    assert call.place is not None
    assert call.place.held == 0.0


def test_nobody_knows_how_long_it_loads_so_the_call_finds_out() -> None:
    pool = Pool(llm("one"))
    for _ in range(20):
        pool.tell("one", "loading")
        pool.clock.advance(60)
    pool.tell("one", "loading")
    call = pool.call("one")
    assert taken_by(call) == "one"
    assert not any(isinstance(effect, Sleep) for effect in call.effects)


def test_without_a_retry_left_only_who_has_not_failed_may_take_it() -> None:
    pool = Pool(llm("shaky", 1000), llm("well", 10))
    pool.fail("shaky", at_once=False)
    assert taken_by(pool.call(thrifty=True)) == "well"
    pool.fail("well", at_once=False)
    call = pool.call(thrifty=True)
    assert call.run() is None
    assert not call.flight.is_placed
    assert taken_by(pool.call()) == "shaky"


@pytest.mark.parametrize("state", ["loading", "rate_limited"])
def test_without_a_retry_left_nobody_is_waited_for_that_may_fail_again(state: str) -> None:
    pool = Pool(llm("one"))
    pool.tell("one", state, until=pool.clock.time() + 5)
    assert pool.call(thrifty=True).run() is None


def test_without_a_retry_left_a_full_one_is_waited_for() -> None:
    # Its slots keep it from being stormed.
    pool = Pool(llm("one"))
    (busy,) = pool.occupy("one")
    call = pool.call(thrifty=True)
    call.run(at_most=2)
    assert call.is_held
    pool.flights.leave(busy)
    assert taken_by(call) == "one"


# --- however calls come and go


class Traffic:
    """Calls that come, look again, end and are cancelled, in any order."""

    def __init__(self, slots: Sequence[int]) -> None:
        self.slots = {f"box{number}": most for number, most in enumerate(slots)}
        self.pool = Pool(*(llm(name, 100 - i, most) for i, (name, most) in enumerate(self.slots.items())))
        self.held: list[Call] = []
        self.running: list[Call] = []

    def come(self, number: int) -> None:
        self.held.append(self.pool.call(list(self.slots)[number % len(self.slots)]))
        self.look(-1)

    def look(self, number: int) -> None:
        if self.held:
            call = self.held.pop(number % len(self.held))
            call.run(at_most=1)
            (self.running if call.is_over else self.held).append(call)

    def end(self, number: int) -> None:
        if self.running:
            self.running.pop(number % len(self.running)).leave()

    def cancel(self, number: int) -> None:
        if self.held:
            self.held.pop(number % len(self.held)).leave()

    def wait(self, number: int) -> None:
        self.pool.clock.advance(number / 100)

    def check(self) -> None:
        """Slots are kept to, and the books are right."""
        loads = {name: self.pool.load(name) for name in self.slots}
        assert all(loads[name].running <= most for name, most in self.slots.items())
        assert sum(load.running for load in loads.values()) == len(self.running)
        assert sum(load.waiting for load in loads.values()) == len(self.held)

    def tell_all(self) -> None:
        for name in self.slots:
            self.pool.tell(name)


DOINGS = st.tuples(st.sampled_from(["come", "come", "look", "end", "cancel", "wait"]), st.integers(0, 99))


@settings(deadline=None, max_examples=80)
@given(slots=st.lists(st.integers(1, 3), min_size=1, max_size=3), doings=st.lists(DOINGS, max_size=60))
def test_slots_are_kept_to_and_used_and_all_are_served(
    slots: list[int], doings: list[tuple[str, int]]
) -> None:
    traffic = Traffic(slots)
    for doing, number in doings:
        getattr(traffic, doing)(number)
        traffic.tell_all()
        traffic.check()
    for _ in range(len(traffic.held) + len(traffic.running) + 1):
        for _ in range(len(traffic.held)):
            traffic.look(0)  # the one that looked longest ago
        idle = sum(slots) - len(traffic.running)
        assert not (idle and traffic.held), "a call is held though all have looked and a slot is free"
        traffic.end(0)
        traffic.tell_all()
        traffic.check()
    assert traffic.held == traffic.running == []
    assert traffic.pool.flights.loads() == {}


# --- deadlines


@pytest.mark.parametrize("seconds", [0.02, 0.3, 2.0, 7.0])
@pytest.mark.parametrize("ahead", [0, 5])
def test_a_deadline_ends_the_wait_and_not_before(seconds: float, ahead: int) -> None:
    pool = Pool(llm("one"))
    pool.occupy("one")
    pool.occupy("one", ahead, waiting=True)
    began = pool.clock.monotonic()
    call = pool.call("one", deadline=began + seconds)

    def renew() -> None:
        pool.tell("one")

    with pytest.raises(CallTimeout, match="of waiting for a free slot"):
        call.run(happens=renew)
    waited = pool.clock.monotonic() - began
    assert 0.5 * seconds <= waited <= seconds
    assert seconds - waited <= 0.02  # a slot could have come free until the end
    call.leave()
    assert pool.load("one").waiting == ahead


def test_a_slot_that_comes_free_just_before_the_deadline_is_taken() -> None:
    pool = Pool(llm("one"))
    (busy,) = pool.occupy("one")
    pool.occupy("one", 0)
    began = pool.clock.monotonic()
    call = pool.call("one", deadline=began + 2.0)

    def happens() -> None:
        if pool.clock.monotonic() - began > 1.9:
            pool.flights.leave(busy)

    place = call.run(happens=happens)
    assert place is not None
    assert 1.9 < place.held < 2.0


def test_a_wait_that_is_told_to_be_too_long_is_not_begun() -> None:
    pool = Pool(llm("one"))
    pool.fail("one", kind="rate_limited", retry_after=20.0)
    call = pool.call("one", deadline=pool.clock.monotonic() + 5.0)
    with pytest.raises(CallTimeout, match="the end of a rate limit"):
        call.run()
    assert not any(isinstance(effect, Sleep) for effect in call.effects)


def test_who_will_be_ready_in_time_is_preferred_to_who_is_cheaper() -> None:
    pool = held_pool()
    pool.occupy("free")
    deadline = pool.clock.monotonic() + 6.0  # the free one needs 5 s for a slot and 5 s for the answer
    assert taken_by(pool.call("free", weight=0.0, deadline=deadline)) == "paid"


def test_a_prediction_alone_forbids_nothing() -> None:
    pool = Pool(llm("one", 1.0))  # 512 s for an answer, if it is as long as that
    assert taken_by(pool.call("one", deadline=pool.clock.monotonic() + 3.0)) == "one"


# --- clouds


def cloud(name: str = "cloud", **fields: Any) -> LLMSpec:
    return llm(name, slots=None, backend="openai", **fields)


def test_what_is_not_counted_is_not_written() -> None:
    pool = Pool(cloud(), llm("box", 10))
    for _ in range(3):
        call = pool.call("cloud")
        assert taken_by(call) == "cloud"
        assert call.effects == []
        assert not call.flight.is_placed
        call.leave()
    assert pool.flights.plans == []


def test_a_cloud_that_failed_is_tried_out_by_one_call_as_any_other() -> None:
    pool = Pool(cloud(), llm("box", 10))
    pool.fail("cloud")
    pool.clock.advance(7)
    assert taken_by(pool.call("cloud")) == "cloud"
    assert pool.load("cloud").trials == 1
    assert taken_by(pool.call("cloud")) == "box"


# --- others at the flights


def test_who_must_wait_for_another_process_does_so_aside() -> None:
    pool = Pool(llm("one"), llm("other", 90))
    pool.flights.is_busy = True
    call = pool.call("one")
    effect = call.step()
    assert isinstance(effect, Aside)
    assert call.flight.is_placed  # who leaves now must give it back
    pool.occupy("one")  # the other process was at this
    assert call.step(effect.work()) is None
    assert call.place is not None
    assert call.place.entry.spec.name == "other"
    assert pool.load("other").running == 1


def test_an_error_of_the_work_aside_leaves_nothing() -> None:
    pool = Pool(llm("one"))
    pool.flights.is_busy = True
    call = pool.call("one")
    call.step()
    with pytest.raises(RuntimeError):
        call._flow.throw(RuntimeError("no thread"))
    call.flight.leave()
    assert pool.flights.loads() == {}


@pytest.mark.parametrize("state", ["up", "loading"])
@pytest.mark.parametrize("is_busy", [False, True])
def test_whoever_leaves_at_any_moment_leaves_nothing(state: str, is_busy: bool) -> None:
    for number in range(1, 30):
        pool = Pool(llm("one"), llm("other", 90))
        for name in ("one", "other"):
            pool.occupy(name)
            pool.tell(name, state)
        before = {root: (load.running, load.waiting) for root, load in pool.flights.loads().items()}
        pool.flights.is_busy = is_busy
        call = pool.call("one")
        with call.flight:
            call.run(at_most=number - 1)
            assert not call.is_over
            call._flow.close()
        after = {root: (load.running, load.waiting) for root, load in pool.flights.loads().items()}
        assert after == before
        assert not call.flight.is_placed


def test_a_flight_is_left_once() -> None:
    pool = Pool(llm("one"))
    call = pool.call("one")
    call.run()
    call.flight.leave()
    pool.flights.place(call.flight.id, lambda loads: Plan("http://one", "one", 1.0))
    call.flight.leave()
    assert pool.load("one").running == 1


# --- embeddings


def embedding_pool(**more: Any) -> tuple[Pool, Callable[[float | None], Flow[None]], Flight]:
    pool = Pool(
        EmbeddingSpec(
            name="e", api_base="http://e", model="e", dimension=4, max_context=512, backend="llamacpp"
        )
    )
    entry, flight = pool.state.embeddings[0], Flight(pool.state)
    pool.state.health.put(entry.endpoint, Health(at=pool.clock.time(), **{"state": "up", "slots": 1, **more}))
    record = ReceiptBook(None, pool.clock).embed("e", [])

    def flow(deadline: float | None) -> Flow[None]:
        return admit_embedding(pool.state, flight, entry, deadline, record)

    return pool, flow, flight


def running(pool: Pool) -> tuple[int, int]:
    load: Mapping[str, Load] = pool.flights.loads()
    return sum(x.running for x in load.values()), sum(x.waiting for x in load.values())


def test_an_embedding_takes_a_slot_and_waits_for_one() -> None:
    pool, flow, flight = embedding_pool()
    pool.flights.place("other", lambda loads: Plan("http://e", "e", 1.0))
    with flight:
        steps = flow(None)
        assert isinstance(next(steps), Sleep)
        assert running(pool) == (1, 1)
        pool.flights.leave("other")
        with pytest.raises(StopIteration):
            steps.send(None)
        assert running(pool) == (1, 0)
    assert running(pool) == (0, 0)


def test_an_embedding_whose_server_says_no_end_goes_and_finds_out() -> None:
    pool, flow, flight = embedding_pool(state="rate_limited")
    with flight, pytest.raises(StopIteration):
        next(flow(None))
    assert running(pool) == (0, 0)


def test_an_embedding_waits_until_its_deadline_and_no_longer() -> None:
    pool, flow, flight = embedding_pool()
    pool.flights.place("other", lambda loads: Plan("http://e", "e", 1.0))
    began = pool.clock.monotonic()
    steps = flow(began + 2.0)

    def wait() -> None:
        for effect in steps:
            assert isinstance(effect, Sleep)
            pool.clock.advance(effect.seconds)

    with flight, pytest.raises(CallTimeout):
        wait()
    assert pool.clock.monotonic() - began == pytest.approx(2.0, abs=0.02)
    assert running(pool) == (1, 0)
