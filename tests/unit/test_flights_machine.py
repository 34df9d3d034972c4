"""A machine that lets programs begin, ask again, end, be forked and be killed in any order.

Beside it stands a plain model of who is where. What one program ends waits in its memory for a moment, and
what others do is looked at now and then: the model knows who may see what.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
from databases import wait_until
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from ledgers import ended_process
from live import A, B, Programs, give, in_file

from maxwell.database.owners import Owner, this_process
from maxwell.flights import Flights, Load, Plan
from maxwell.flights.memory import MemoryFlights
from maxwell.flights.sqlite import LEASE_FACTOR, LEASE_SECONDS, LOOK_SECONDS, SEEN_SECONDS, SQLiteFlights
from maxwell.testing.clock import FakeClock

DEAD, UNSEEN, PARENT = "dead", "unseen", "parent"

plans = st.builds(
    Plan,
    endpoint=st.sampled_from((A, B)),
    name=st.sampled_from(("one", "two")),
    seconds=st.sampled_from((0.0, 0.5, 10.0, 1000.0)),
    waiting=st.booleans(),
    trial=st.booleans(),
)


@dataclass
class Entry:
    """A flight as it should be kept."""

    program: int
    plan: Plan
    since: float
    owner: str = "here"

    def has_expired(self, now: float) -> bool:
        if self.owner == UNSEEN:
            return now - self.since > max(LEASE_SECONDS, LEASE_FACTOR * self.plan.seconds)
        return self.owner == DEAD


def loads_of(entries: list[Entry], now: float) -> dict[str, Load]:
    """The load of each endpoint, without a word of the code that is tested."""
    loads = {}
    for endpoint in {entry.plan.endpoint for entry in entries}:
        here = [entry for entry in entries if entry.plan.endpoint == endpoint]
        running = [entry for entry in here if not entry.plan.waiting]
        parts = [(now - e.since) / e.plan.seconds for e in running if e.plan.seconds]
        trials = [entry for entry in running if entry.plan.trial]
        late = median(parts) if parts else 0.0
        loads[endpoint] = Load(len(running), len(here) - len(running), len(trials), late)
    return loads


class Sky(RuleBasedStateMachine):
    """One program, and its flights in memory."""

    ids = Bundle("ids")
    programs = 1

    @initialize()
    def start(self) -> None:
        self.clock = FakeClock()
        self.model: dict[str, Entry] = {}  # in the order of first placement
        self.number = 0
        self.prepare()
        self.flights = [self.open() for _ in range(self.programs)]

    def prepare(self) -> None:
        """Nothing to prepare."""

    def open(self) -> MemoryFlights | SQLiteFlights:
        return MemoryFlights(self.clock)

    def settle(self) -> None:
        """From here on every program sees all that the others have done."""

    # --- what programs do

    @rule(target=ids, program=st.integers(0, 2), plan=plans, wait=st.booleans())
    def begin(self, program: int, plan: Plan, wait: bool) -> str:
        self.number += 1
        id = f"flight {self.number}"
        self.place(id, program % self.programs, plan, wait)
        return id

    @rule(id=ids, plan=st.one_of(plans, st.none()), wait=st.booleans())
    def ask_again(self, id: str, plan: Plan | None, wait: bool) -> None:
        entry = self.model.get(id)
        if entry is None or entry.owner == "here":
            self.place(id, 0 if entry is None else entry.program, plan, wait)

    def place(self, id: str, program: int, plan: Plan | None, wait: bool) -> None:
        self.settle()
        self.expire()
        before = list(self.model)[: list(self.model).index(id)] if id in self.model else list(self.model)
        counted = [
            e for other, e in self.model.items() if other != id and (other in before or not e.plan.waiting)
        ]
        seen: list[Mapping[str, Load]] = []

        def planner(loads: Mapping[str, Load]) -> Plan | None:
            seen.append(loads)
            return plan

        assert self.flights[program].place(id, planner, wait=wait) == plan
        assert seen == [loads_of(counted, self.clock.time())]
        if plan is None:
            self.model.pop(id, None)
            return
        old = self.model.get(id)
        since = self.clock.time()
        if old is not None and not old.plan.waiting and not plan.waiting:
            same = (old.plan.endpoint, old.plan.name) == (plan.endpoint, plan.name)
            since = old.since if same else since
        self.model[id] = Entry(program, plan, since)

    @rule(id=ids)
    def leave(self, id: str) -> None:
        entry = self.model.get(id)
        if entry is None or entry.owner == "here":
            self.flights[0 if entry is None else entry.program].leave(id)
            self.model.pop(id, None)

    @rule(seconds=st.sampled_from((0.1, SEEN_SECONDS, LOOK_SECONDS, LEASE_SECONDS + 1, 3001.0)))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def expire(self) -> None:
        """The flights of those who are dead are gone."""
        gone = [id for id, entry in self.model.items() if entry.has_expired(self.clock.time())]
        for id in gone:
            del self.model[id]

    @invariant()
    def every_program_sees_its_own(self) -> None:
        for program, flights in enumerate(getattr(self, "flights", ())):
            own = [entry for entry in self.model.values() if self.is_of(entry, program)]
            loads = flights.loads()
            for endpoint, load in loads_of(own, self.clock.time()).items():
                assert loads[endpoint].running >= load.running
                assert loads[endpoint].waiting >= load.waiting

    def is_of(self, entry: Entry, program: int) -> bool:
        return entry.program == program and entry.owner == "here"

    @rule()
    def all_see_the_same(self) -> None:
        self.settle()
        self.clock.advance(max(LOOK_SECONDS, SEEN_SECONDS))
        self.expire()
        expected = loads_of(list(self.model.values()), self.clock.time())
        for flights in self.flights:
            # The background may be at the file for a moment, and who only looks does not wait for it.
            wait_until(partial(self.sees, flights, expected))

    def sees(self, flights: Flights, expected: dict[str, Load]) -> bool:
        return flights.loads() == expected

    def teardown(self) -> None:
        if hasattr(self, "flights"):
            for id, entry in list(self.model.items()):
                if entry.owner == "here":
                    self.leave(id)
            self.clock.advance(4000)
            self.all_see_the_same()
            assert self.model == {}


class SharedSky(Sky):
    """Several programs and one file; some of them are killed, forked, or cannot be seen any more."""

    programs = 3

    def prepare(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="sky"))
        self.opened = Programs(self.home)
        self.opened.clock = self.clock
        self.lost = 0

    def open(self) -> SQLiteFlights:
        return self.opened()

    def settle(self) -> None:
        self.opened.write()

    @rule(program=st.integers(0, 2))
    def end_and_begin_again(self, program: int) -> None:
        """A program ends as it should: all that it began has been left."""
        for id in [id for id, entry in self.model.items() if self.is_of(entry, program)]:
            self.leave(id)
        self.opened.databases[program].close()

    @rule(
        program=st.integers(0, 2), how=st.sampled_from(("ended", "another boot", "another process", UNSEEN))
    )
    def lose_owner(self, program: int, how: str) -> None:
        """A program is killed, with or without the machine, or cannot be seen from here any more."""
        self.settle()
        self.give_away(how, [id for id, entry in self.model.items() if self.is_of(entry, program)])
        self.opened.databases[program].close()
        self.flights[program] = self.open()
        self.opened.databases[program] = self.opened.databases.pop()

    def give_away(self, how: str, lost: list[str]) -> None:
        me = this_process()
        self.lost += 1
        owner = {
            "ended": ended_process(),
            "another boot": msgspec.structs.replace(me, boot="another"),
            "another process": msgspec.structs.replace(me, started=me.started + 1),
            UNSEEN: Owner(self.lost, 1, me.boot, "another machine/"),
        }[how]
        if lost:
            give(self.home, owner, *lost)
        for id in lost:
            self.model[id].owner = UNSEEN if how == UNSEEN else DEAD
        self.clock.advance(LOOK_SECONDS)  # owners are looked at so often

    @rule(program=st.integers(0, 2))
    def fork(self, program: int) -> None:
        """A program goes on as a forked child; what its parent began is another's from then on."""
        self.settle()
        parents = [entry for entry in self.model.values() if self.is_of(entry, program)]
        for one in (self.opened.databases[program], self.flights[program]):
            one.before_fork()
            one.start_afresh()
        for entry in parents:
            entry.owner = PARENT

    @invariant()
    def the_file_has_what_the_model_has(self) -> None:
        if hasattr(self, "home") and (self.home / "live.db").exists():
            self.settle()
            now = self.clock.time()
            living = [id for id, entry in self.model.items() if not entry.has_expired(now)]
            assert [id for id in in_file(self.home) if id in living] == living

    def teardown(self) -> None:
        try:
            parents = [id for id, entry in getattr(self, "model", {}).items() if entry.owner == PARENT]
            if parents:
                self.give_away("ended", parents)
            super().teardown()
        finally:
            if hasattr(self, "home"):
                self.opened.close()
                shutil.rmtree(self.home)


TestMemorySky = Sky.TestCase
TestMemorySky.settings = settings(deadline=None, max_examples=300, stateful_step_count=25)
TestSharedSky = SharedSky.TestCase
TestSharedSky.settings = settings(deadline=None, max_examples=100, stateful_step_count=25)
