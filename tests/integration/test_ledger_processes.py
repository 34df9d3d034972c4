"""Sixteen processes, killed at random, share one small budget: it holds at every moment and is used up."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import msgspec
import pytest
from budget_worker import NAME, Event, Gather, Kill, Nursery, Start, set_time
from calling import assert_idle
from ledgers import SOON, projection

from maxwell.clock import SystemClock
from maxwell.ledger import NANO, Amount, Used
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry
from maxwell.types import BackendName

WORKERS, KILLS = 16, 12
BUDGET = 20_000  # tokens: fifty reservations, some three hundred calls
LEAST_USE = 0.96

ZONE = "Pacific/Auckland"
EVENING = datetime(2026, 1, 15, 23, 59, tzinfo=ZoneInfo(ZONE))
MORNING = EVENING + timedelta(minutes=2)

_BOOKS = """
SELECT day, SUM(tokens), SUM(nanousd) FROM (
    SELECT day, tokens, nanousd FROM day
    UNION ALL SELECT day, tokens, nanousd FROM hold WHERE state != 'expired'
) GROUP BY day
"""

Times = Sequence[tuple[float, datetime]]


# --- the work


class Course:
    """Sixteen workers at work until nothing is left for them, while some are killed and replaced.

    Args:
        nursery: Starts them.
        start: What each is told; each gets a seed of its own.
        kills: How many are killed, a few calls after one another.
        times: What the workers' clock is set to: after how many calls in all, or when nothing is left before.

    Attributes:
        calls: The calls that came to their end, as the callers saw them.
    """

    def __init__(
        self,
        nursery: Nursery,
        start: Start,
        kills: int,
        times: Times,
    ) -> None:
        self.calls: list[Event] = []
        self._nursery = nursery
        self._start = start
        self._times = list(times)
        self._day = date.min
        rng = random.Random(start.seed)
        self._rng = rng
        self._seeds = itertools.count(1000 * start.seed)
        self._kills = list(itertools.accumulate(rng.randint(1, 10) for _ in range(kills)))
        self._starting = 0
        self._alive: list[int] = []
        self._doomed: set[int] = set()

    def run(self) -> None:
        self._set_time()
        for _ in range(WORKERS):
            self._begin_one()
        for event in self._nursery.events():
            self._note(event)
            is_over = event.kind == "idle" and event.days[0] == self._day
            if self._times and (is_over or len(self.calls) >= self._times[0][0]):
                self._set_time()
            if self._kills and self._alive and len(self.calls) >= self._kills[0]:
                self._kill_one()
            if event.kind == "spent" and not (self._alive or self._doomed or self._starting):
                self._nursery.order(Gather())
        assert not self._kills, "the budget was used up before the last kill"
        assert not self._times

    def _note(self, event: Event) -> None:
        if event.kind == "started":
            self._starting -= 1
            self._alive.append(event.pid)
        elif event.kind == "called":
            self.calls.append(event)
        elif event.kind == "spent" and event.pid in self._alive:
            self._alive.remove(event.pid)
        elif event.kind == "killed":
            self._doomed.remove(event.pid)
            self._begin_one()

    def _begin_one(self) -> None:
        self._starting += 1
        self._nursery.order(msgspec.structs.replace(self._start, seed=next(self._seeds)))

    def _kill_one(self) -> None:
        del self._kills[0]
        pid = self._alive.pop(self._rng.randrange(len(self._alive)))
        self._doomed.add(pid)
        self._nursery.order(Kill(pid))

    def _set_time(self) -> None:
        if self._times:
            assert self._start.clock is not None
            now = self._times.pop(0)[1]
            self._day = now.date()
            set_time(Path(self._start.clock), now.timestamp())


@dataclass
class Seen:
    """What looking at the books from outside showed: the most that was settled and held, day by day."""

    samples: int = 0
    tokens: dict[date, int] = field(default_factory=dict)
    nanousd: dict[date, int] = field(default_factory=dict)

    def look(self, db: sqlite3.Connection, home: Path) -> None:
        for day, tokens, nanousd in db.execute(_BOOKS).fetchall():
            on = date.fromisoformat(day)
            self.tokens[on] = max(tokens, self.tokens.get(on, 0))
            self.nanousd[on] = max(nanousd, self.nanousd.get(on, 0))
        self.samples += 1
        with contextlib.suppress(FileNotFoundError):
            projection(home)  # it can be read whenever one looks


@contextmanager
def watching(home: Path) -> Iterator[Seen]:
    """Look again and again, from when there are books."""
    seen, over = Seen(), threading.Event()

    def watch() -> None:
        while not over.wait(0.002) and not (home / "ledger.db").exists():
            pass
        with closing(sqlite3.connect(home / "ledger.db", timeout=SOON)) as db:
            while not over.wait(0.002) and not db.execute("PRAGMA user_version").fetchone()[0]:
                pass
            while not over.wait(0.002):
                seen.look(db, home)
            seen.look(db, home)

    with ThreadPoolExecutor(1) as threads:
        watched = threads.submit(watch)
        try:
            yield seen
        finally:
            over.set()
    watched.result()


# --- what must hold


@dataclass
class Outcome:
    """What is left when everybody is dead.

    Attributes:
        seen: What was seen meanwhile.
        calls: The calls that came to their end, as the callers saw them.
        kills: How many workers were killed.
        used: What stands in the books, day by day.
        metered: What the provider metered, in tokens and nanodollars.
    """

    seen: Seen
    calls: list[Event]
    kills: int
    used: dict[date, Used]
    metered: Amount

    @property
    def total(self) -> Used:
        return sum(self.used.values(), Used())


class World:
    """A provider, a home with a registry, and who uses up the budget there."""

    def __init__(self, home: Path, nursery: Nursery, server: FakeServer, entry: dict[str, Any]) -> None:
        self._home = home
        self._nursery = nursery
        self.server = server
        self._entry = entry

    def use_up(self, start: Start, *, kills: int = KILLS, times: Times = ()) -> Outcome:
        """Let the workers do it."""
        course = Course(self._nursery, msgspec.structs.replace(start, home=str(self._home)), kills, times)
        with watching(self._home) as seen:
            course.run()
        assert_idle(self.server)
        ledger = SQLiteLedger(self._home, SystemClock())
        used = {day: ledger.usage(day)[NAME] for day in seen.tokens}
        assert not ledger.holds()
        ledger.close()
        assert projection(self._home) == {NAME: {str(day): of_day.tokens for day, of_day in used.items()}}
        return Outcome(seen, course.calls, kills, used, self._metered())

    def _metered(self) -> Amount:
        usage, entry = self.server.usage, self._entry
        mills = usage.prompt_tokens * entry.get("cost_per_1k_prompt_tokens", 0)
        mills += usage.completion_tokens * entry.get("cost_per_1k_completion_tokens", 0)
        return Amount.of(usage.total_tokens, mills / 1000)


def assert_all_booked(out: Outcome) -> None:
    """Nothing is held, everything metered is in the books, and no call is in them twice."""
    total = out.total
    assert (total.held_tokens, total.held_nanousd) == (0, 0)
    assert total.tokens >= out.metered.tokens
    assert total.nanousd >= out.metered.nanousd
    assert total.tokens >= sum(call.tokens for call in out.calls)
    # A worker that was killed leaves one call at most that nobody saw end.
    assert len(out.calls) <= total.calls <= len(out.calls) + out.kills


def assert_within(out: Outcome, budget: int) -> None:
    """Each day's budget, in tokens, held whenever anybody looked, and next to nothing of it is left."""
    assert out.seen.samples > WORKERS
    assert max(out.seen.tokens.values()) <= budget
    assert out.metered.tokens <= budget * len(out.used)
    for used in out.used.values():
        assert LEAST_USE * budget <= used.tokens <= budget


# --- the tests


class Make(Protocol):
    """What the fixture `make` gives."""

    def __call__(
        self,
        dialect: BackendName = "llamacpp",
        *,
        words: int = 1,
        speed: float | None = None,
        zone: str | None = None,
        **fields: Any,
    ) -> World:
        """A world whose provider says so many words for each letter of a prompt; `fields` are its entry's."""


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    place = tmp_path / "nursery"
    place.mkdir()
    with Nursery(place) as made:
        yield made


@pytest.fixture
def make(
    maxwell_home: Path, nursery: Nursery, fake_server: FakeServers, write_registry: WriteRegistry
) -> Make:
    def world(
        dialect: BackendName = "llamacpp",
        *,
        words: int = 1,
        speed: float | None = None,
        zone: str | None = None,
        **fields: Any,
    ) -> World:
        server = fake_server(
            dialect,
            reply=lambda body: ["word "] * words * len(body["messages"][-1]["content"]),
            slots=WORKERS,
            tokens_per_sec=speed,
        )
        fields.setdefault("capabilities", {"max_tokens": 64})
        entry = server.llm_entry(NAME, **fields)
        write_registry(entry, budget_timezone=zone)
        return World(maxwell_home / ".maxwell", nursery, server, entry)

    return world


@pytest.mark.parametrize("seed", range(10))
def test_killed_processes_use_up_a_token_budget_and_no_more(make: Make, seed: int) -> None:
    out = make(daily_budget_tokens=BUDGET).use_up(Start(seed=seed))
    assert_all_booked(out)
    assert_within(out, BUDGET)


@pytest.mark.parametrize("seed", range(2))
def test_killed_processes_use_up_a_money_budget_and_no_more(make: Make, seed: int) -> None:
    prices: dict[str, Any] = {"cost_per_1k_prompt_tokens": 0.5, "cost_per_1k_completion_tokens": 2.0}
    out = make("openai", daily_budget_usd=20.0, **prices).use_up(Start(seed=seed))
    assert_all_booked(out)
    assert max(out.seen.nanousd.values()) <= 20 * NANO
    assert LEAST_USE * 20 * NANO <= out.total.nanousd <= 20 * NANO


@pytest.mark.parametrize("seed", range(2))
def test_streams_left_half_way_are_paid_for(make: Make, seed: int) -> None:
    world = make(speed=100, capabilities={"max_tokens": 400}, daily_budget_tokens=3 * BUDGET)
    out = world.use_up(Start(seed=seed, manner="half"))
    assert_all_booked(out)
    assert_within(out, 3 * BUDGET)
    assert out.total.estimated_tokens > BUDGET


@pytest.mark.parametrize("seed", range(2))
def test_a_provider_that_reports_no_usage_is_never_booked_too_low(make: Make, seed: int) -> None:
    # Replies so long that a careful count of the prompt does not cover them.
    world = make(words=40, capabilities={"max_tokens": 2000}, daily_budget_tokens=10 * BUDGET)
    world.server.fail(faults.NoUsage(), times=None)
    out = world.use_up(Start(seed=seed))
    assert_all_booked(out)
    assert_within(out, 10 * BUDGET)
    assert out.total.estimated_tokens == out.total.tokens


@pytest.mark.parametrize(("seed", "kills"), [(0, KILLS), (1, 0)])
def test_each_day_has_its_budget_across_midnight_and_back(
    make: Make, tmp_path: Path, seed: int, kills: int
) -> None:
    times = [(0, EVENING), (50, MORNING), (100, EVENING), (math.inf, MORNING)]
    start = Start(seed=seed, clock=str(tmp_path / "time"), until=MORNING.date())
    out = make(zone=ZONE, daily_budget_tokens=BUDGET // 2).use_up(start, kills=kills, times=times)
    assert_all_booked(out)
    assert_within(out, BUDGET // 2)
    assert list(out.used) == [EVENING.date(), MORNING.date()]
    for day, used in out.used.items():
        assert used.tokens >= sum(call.tokens for call in out.calls if call.days == (day, day))
    if not kills:
        assert out.total.tokens == out.metered.tokens == sum(call.tokens for call in out.calls)
