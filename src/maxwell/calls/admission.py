"""The moment before an attempt: who takes the call now, with everybody else's calls known and counted.

A handle keeps to its choice while that one is well and has a free slot. Otherwise everything is decided
again, in one transaction with the calls of all of the user's processes, so that no two see the same free
slot. A call that has to wait (for a slot, for a server that loads, for the end of a rate limit) is held here
and asks again: what waits inside a server can neither be moved nor told from a server that hangs.
"""

from __future__ import annotations

import itertools
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from maxwell.breaker import phase, share
from maxwell.calls.effects import Aside, Flow, Sleep
from maxwell.calls.entries import Entry
from maxwell.calls.moment import NOBODY, ready_in
from maxwell.calls.probe import PROBE_SECONDS, ask_all
from maxwell.calls.select import learn
from maxwell.calls.state import PoolState
from maxwell.decision import Candidate, Decision, Request, Scored
from maxwell.errors import CallTimeout
from maxwell.flights import Busy, Load, Plan
from maxwell.receipts.record import Record
from maxwell.scheduler import PASSING, SELECTABLE, expected_seconds, is_foreseeable
from maxwell.types import HealthState

# A held call looks again after this share of its predicted wait, within these bounds in seconds; one that is
# not among the next to go, later.
LOOK_SHARE, LOOK_LEAST, LOOK_MOST = 0.05, 0.005, 0.25
LATER_SHARE, LATER_MOST = 0.25, 5.0
BATCH_SECONDS = 1.0  # that a batch of texts to embed is expected to take
USUALLY = 10.0  # seconds that a call is expected to take where nothing is known of its size


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a call may be given.

    Attributes:
        request: What it needs, for the rules.
        bound: Who was chosen before; None = nobody, or that one has failed.
        tiers: Who may take it: the first of these in which anybody is eligible decides.
        more_than: Tokens of context that have proved too few; 0 = none.
        deadline: When the call must be over, on the monotonic clock; None = never.
        thrifty: No retry is left: only a server that has not failed of late may take it. Its slots keep it
            from being stormed.
    """

    request: Request
    bound: Entry | None
    tiers: Sequence[Sequence[Entry]]
    more_than: int = 0
    deadline: float | None = None
    thrifty: bool = False


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Who takes a call.

    Attributes:
        entry: The one.
        candidate: As it stood then.
        decision: The decision taken now; None = the choice made before stands.
        seconds: How long the call is expected to take.
        held: How long it was held back, in seconds.
    """

    entry: Entry
    candidate: Candidate
    decision: Decision | None
    seconds: float
    held: float


# Together with the process id, which a forked child has of its own, they make an id that nobody else has.
_ORIGIN = uuid.uuid4().hex
_numbers = itertools.count()


class Flight:
    """A call's place among those under way. Leaving the `with` block gives it back, however that happens."""

    def __init__(self, state: PoolState) -> None:
        self.id = f"{_ORIGIN}-{os.getpid()}-{next(_numbers)}"
        self.is_placed = False
        self._state = state

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Be nowhere."""
        if self.is_placed:
            self.is_placed = False
            self._state.flights.leave(self.id)


def admit(state: PoolState, flight: Flight, wish: Wish, record: Record) -> Flow[Place | None]:
    """Wait until somebody can take the call, and take the place there; None when nobody is eligible.

    Raises CallTimeout when the deadline comes first.
    """
    began = state.clock.monotonic()
    found = _Finding(state, wish)
    held = 0.0
    try:
        yield from _search(state, flight, wish, found, began)
    finally:
        if found.has_waited:
            held = state.clock.monotonic() - began
            record.held(held)
    chosen = found.chosen
    if chosen is None:
        return None
    decision = _told(found.held_for, found.decision, chosen)
    if decision is not None:
        record.decided(decision)
    state.outside.sent(chosen.endpoint.root, state.clock.time())
    return Place(
        entry=chosen,
        candidate=found.candidate,
        decision=found.decision,
        seconds=found.seconds,
        held=held,
    )


def _search(state: PoolState, flight: Flight, wish: Wish, found: _Finding, began: float) -> Flow[None]:
    """Ask who can take the call until somebody can at once, or nobody is eligible."""
    now = state.clock.monotonic
    while True:
        if found.has_waited or not found.keeps_bound():
            yield from learn(state, _everybody(wish), wish.request, seconds=_left(wish, now(), PROBE_SECONDS))
        yield from _placed(state, flight, found)
        if found.chosen is None or not found.wait:
            return
        found.held_for = found.held_for or found.decision
        if wish.deadline is not None and _is_in_vain(found, wish.deadline - now()):
            raise _too_late(found.candidate.state, found.chosen, now() - began)
        yield from _hold(state, found.pause(), found.candidate.state, found.chosen, began, wish.deadline)


def _placed(state: PoolState, flight: Flight, found: _Finding) -> Flow[None]:
    """Decide with the loads of this moment and take the place, as one; off the event loop if it must wait."""
    if not found.has_waited and found.needs_no_place():
        return
    yield from _registered(state, flight, found.plan)
    if found.chosen is None:
        flight.leave()


def _place_unless_left(
    state: PoolState, flight: Flight, plan: Callable[[Mapping[str, Load]], Plan | None]
) -> None:
    """On a thread of its own: whoever waited for it may have left before it began, or meanwhile."""
    if flight.is_placed:
        state.flights.place(flight.id, plan)
    if not flight.is_placed:
        state.flights.leave(flight.id)


def _registered(
    state: PoolState, flight: Flight, plan: Callable[[Mapping[str, Load]], Plan | None]
) -> Flow[None]:
    """Have `plan` decided; off the event loop where it must wait for another process."""
    flight.is_placed = True  # before it is: who leaves in between must give it back
    try:
        state.flights.place(flight.id, plan, wait=False)
    except Busy:
        yield Aside(partial(_place_unless_left, state, flight, plan))


class _Finding:
    """Decides who takes a call. Holds the last decision; `plan` may be called any number of times.

    Attributes:
        chosen: Who; None = nobody is eligible.
        candidate: That one as it stood.
        decision: The decision it comes from; None = it was chosen before.
        wait: Seconds until it can take the call, as predicted; 0 = now.
        has_waited: Whether it ever had to wait.
        held_for: The decision that had it wait.
        seconds: How long the call is expected to take.
    """

    candidate: Candidate

    def __init__(self, state: PoolState, wish: Wish) -> None:
        self._state = state
        self._wish = wish
        self.chosen: Entry | None = None
        self.decision: Decision | None = None
        self.wait = 0.0
        self.has_waited = False
        self.held_for: Decision | None = None
        self.seconds = USUALLY
        self._bound: Candidate | None = None

    def keeps_bound(self) -> bool:
        """Whether, as far as is known without asking, the one chosen before takes the call."""
        bound = self._wish.bound
        if bound is None:
            return False
        self._bound = self._state.candidates([bound], request=self._wish.request)[0]
        return _is_well(self._bound)

    def needs_no_place(self) -> bool:
        """Whether the one chosen before takes the call, and its server any number of them: a cloud."""
        bound, candidate = self._wish.bound, self._bound
        if bound is None or candidate is None or not _is_well(candidate):
            return False
        health = self._state.known(bound)
        if bound.is_counted(health) or (health is not None and health.breaker.until is not None):
            return False
        self._go(bound, candidate)
        return True

    def pause(self) -> float:
        """Seconds until a held call looks again."""
        c = self.candidate
        is_next = c.state in PASSING or c.slots is None or c.ahead < 2 * c.slots
        return _pause(self.wait) if is_next else min(LATER_SHARE * self.wait, LATER_MOST)

    def plan(self, loads: Mapping[str, Load]) -> Plan | None:
        """Choose with these loads; see `Flights.place`."""
        bound = self._wish.bound
        self.decision, self.wait = None, 0.0
        if bound is not None:
            candidate = self._state.candidates([bound], loads, self._wish.request)[0]
            if _is_well(candidate):
                return self._go(bound, candidate)
        self._choose(loads)
        if self.chosen is None and bound is not None:
            # The last candidate is never ejected: a handle goes to its server whatever is said of it.
            return self._go(bound, self._state.candidates([bound], loads, self._wish.request)[0])
        return None if self.chosen is None else self._planned(self.chosen)

    def _go(self, entry: Entry, candidate: Candidate) -> Plan:
        self.chosen, self.candidate = entry, candidate
        wait = _wait(candidate)
        self.wait = wait if wait < math.inf else 0.0  # nobody knows until when: its server may say so itself
        self.seconds = _seconds(candidate, self._wish.request)
        return self._planned(entry)

    def _planned(self, entry: Entry) -> Plan:
        self.has_waited = self.has_waited or self.wait > 0
        health = self._state.known(entry)
        trial = health is not None and phase(health.breaker, self._state.clock.time()) == "half_open"
        return Plan(entry.endpoint.root, entry.spec.name, self.seconds, waiting=self.wait > 0, trial=trial)

    def _choose(self, loads: Mapping[str, Load]) -> None:
        """The best of the first tier in which there is one."""
        state, wish = self._state, self._wish
        self.chosen = None
        for tier in wish.tiers:
            candidates = state.candidates(tier, loads, wish.request)
            candidates = [c for c in candidates if c.context > wish.more_than]
            if wish.thrifty:
                candidates = [c for c in candidates if not _has_failed(state, c)]
            decision = _decided(state, candidates, wish.request)
            if decision.ranked:
                best = _in_time(decision.ranked, wish.deadline, state.clock.monotonic())
                others = [s for s in decision.ranked if s is not best]
                self.decision = msgspec.structs.replace(decision, ranked=(best, *others))
                self.chosen = state.llm(best.spec.name)
                self.candidate = next(c for c in candidates if c.spec.name == best.spec.name)
                self.wait = _wait(self.candidate)
                self.seconds = _seconds(self.candidate, wish.request)
                return


def _decided(state: PoolState, candidates: Sequence[Candidate], request: Request) -> Decision:
    """By every rule. Where an estimate excludes everybody, the servers say themselves what fits."""
    decision = state.decide_among(candidates, request)
    if decision.ranked:
        return decision
    return state.decide_among(candidates, msgspec.structs.replace(request, prompt_bytes=None))


def _in_time(ranked: Sequence[Scored], deadline: float | None, now: float) -> Scored:
    """The best of those that are expected to end before the deadline, if there is one."""
    if deadline is None:
        return ranked[0]
    return next((s for s in ranked if s.seconds <= deadline - now), ranked[0])


def _is_well(c: Candidate) -> bool:
    """Whether a call can go there at once. Of a server never asked nothing bad is known."""
    usable = c.state in SELECTABLE or c.state == "unknown"
    return usable and c.blocked is None and not c.cannot and not c.failing and _wait(c) <= 0


def _wait(c: Candidate) -> float:
    """Seconds that the call must be held back. A sleeping server is woken by the call itself."""
    if c.state in PASSING:
        return c.ready_in if is_foreseeable(c.state, c.ready_in) else math.inf
    if c.slots is None or c.ahead < c.slots:
        return 0.0
    return max(c.queue_wait, c.service / c.slots)


def _pause(wait: float) -> float:
    return min(max(LOOK_SHARE * wait, LOOK_LEAST), LOOK_MOST)


def _has_failed(state: PoolState, c: Candidate) -> bool:
    health, now = state.known(state.llm(c.spec.name)), state.clock.time()
    if health is None or health.state in PASSING:
        return True
    return health.breaker.in_a_row > 0 or share(health.breaker, now) < 1.0


def _seconds(c: Candidate, request: Request) -> float:
    """How long the call will hold its slot."""
    return expected_seconds(c, request) or USUALLY


def _everybody(wish: Wish) -> list[Entry]:
    bound = [] if wish.bound is None else [wish.bound]
    return list(dict.fromkeys([*bound, *(entry for tier in wish.tiers for entry in tier)]))


def has_other(state: PoolState, wish: Wish, entry: Entry) -> bool:
    """Whether another one than `entry` could take the call, too."""
    others = [e for tier in wish.tiers for e in tier if e is not entry]
    return bool(others) and bool(
        _decided(state, state.candidates(others, request=wish.request), wish.request).ranked
    )


def _left(wish: Wish, now: float, most: float) -> float:
    return most if wish.deadline is None else max(0.0, min(wish.deadline - now, most))


def _hold(
    state: PoolState, pause: float, health: HealthState, entry: Entry, began: float, deadline: float | None
) -> Flow[None]:
    """Wait for `pause` seconds. Raises CallTimeout when the deadline comes first."""
    now = state.clock.monotonic()
    if deadline is not None:
        pause = min(pause, max((deadline - now) / 2, LOOK_LEAST))  # it may look again before it is too late
        if now + pause >= deadline:
            raise _too_late(health, entry, now - began)
    yield Sleep(pause)


def _too_late(health: HealthState, entry: Entry, held: float) -> CallTimeout:
    why = {"loading": "its server to load", "rate_limited": "the end of a rate limit"}
    return CallTimeout(
        f"the time ran out after {held:.1f} s of waiting for {why.get(health, 'a free slot')}",
        llm=entry.spec.name,
        kind="timeout",
    )


def _is_in_vain(found: _Finding, left: float) -> bool:
    """Whether the wait is known to be too long: all others are only predicted."""
    return found.candidate.state == "rate_limited" and found.wait >= left


def _told(held_for: Decision | None, at_last: Decision | None, chosen: Entry) -> Decision | None:
    """The decision to tell: where the call waited, and for the right one, the one that had it wait."""
    if held_for is not None and held_for.ranked[0].spec is chosen.spec:
        return held_for
    return at_last


def admit_embedding(
    state: PoolState, flight: Flight, entry: Entry, deadline: float | None, record: Record
) -> Flow[None]:
    """Wait until the embedding's server can take a request, and take the place there.

    Raises CallTimeout when the deadline comes first.
    """
    began = state.clock.monotonic()
    waits: list[tuple[float, HealthState]] = []

    def plan(loads: Mapping[str, Load]) -> Plan:
        health, now = state.known(entry), state.clock.time()
        load, slots = loads.get(entry.endpoint.root, NOBODY), entry.slots(health)
        until = 0.0 if health is None or health.state not in PASSING else ready_in(health, None, now)
        if health is not None and not is_foreseeable(health.state, until):
            until = 0.0
        if not until and slots is not None and load.running + load.waiting >= slots:
            until = BATCH_SECONDS * (load.running + load.waiting - slots + 1) / slots
        waits.append((until, "up" if health is None else health.state))
        return Plan(entry.endpoint.root, entry.spec.name, BATCH_SECONDS, waiting=until > 0)

    while True:
        if not entry.is_counted(state.known(entry)) and not plan({}).waiting:
            return
        yield from _registered(state, flight, plan)
        wait, health = waits[-1]
        if not wait:
            break
        yield from _hold(state, _pause(wait), health, entry, began, deadline)
        if state.must_ask(entry):  # whether it has loaded
            left = PROBE_SECONDS if deadline is None else deadline - state.clock.monotonic()
            seconds = max(0.0, min(left, PROBE_SECONDS))
            yield from ask_all([entry.endpoint], state.health, state.clock, seconds=seconds)
    if len(waits) > 1:
        record.held(state.clock.monotonic() - began)
