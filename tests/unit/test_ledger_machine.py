"""A machine that lets programs reserve, send, settle, die, come back late and cross midnight in any order.

Beside it stands a plain model of the books. What a program settles or books waits in its memory for a moment;
until all of it is written the others may see the books without the latest of it, and the model knows how.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from ledger_model import Entry, Model, State, fits
from ledgers import ended_process, give, projection

from maxwell.database.owners import Owner, this_process
from maxwell.ledger import Amount, Hold, Ledger, Limit, NoRoom, Used
from maxwell.ledger.days import budget_day
from maxwell.ledger.memory import MemoryLedger
from maxwell.ledger.sqlite import LEASE_SECONDS, LOOK_SECONDS, SQLiteLedger
from maxwell.testing.clock import FakeClock

BERLIN = ZoneInfo("Europe/Berlin")
LIMITS = {"a": Limit(100), "b": Limit(60, 900), "c": Limit(None, 1000), "free": Limit()}
HOUR, DAY = 3600.0, 86400.0
# Just before a midnight after which the clock goes forward, goes back, and does neither.
EVENINGS = ("2026-03-28T22:59", "2026-10-24T21:59", "2026-01-12T22:59")

# Few, so that limits are often met exactly, or missed by one.
amounts = st.builds(Amount, st.sampled_from((0, 1, 20, 40, 60)), st.sampled_from((0, 1, 100, 500, 1000)))


class Books(RuleBasedStateMachine):
    """One program and a ledger in its memory."""

    holds = Bundle("holds")
    programs = 1

    @initialize(evening=st.sampled_from(EVENINGS))
    def start(self, evening: str) -> None:
        self.clock = FakeClock(datetime.fromisoformat(evening).replace(tzinfo=UTC))
        self.model = Model()
        self.prepare()
        self.ledgers = [self.open() for _ in range(self.programs)]
        self.looked = [-LOOK_SECONDS] * self.programs
        self.days = {self.today}

    def prepare(self) -> None:
        """Nothing to prepare."""

    def open(self) -> Ledger:
        return MemoryLedger()

    @property
    def today(self) -> date:
        return budget_day(self.clock.time(), BERLIN)

    def pick(self, number: int) -> tuple[int, Ledger]:
        return number % self.programs, self.ledgers[number % self.programs]

    def write(self, *numbers: int) -> None:
        """These programs write down what waits; all when none is named."""
        for number in numbers or range(self.programs):
            self.ledgers[number].flush()
            self.model.waiting.pop(number, None)

    # --- what programs do

    @rule(target=holds, number=st.integers(0, 2), name=st.sampled_from(sorted(LIMITS)), amount=amounts)
    def reserve(self, number: int, name: str, amount: Amount) -> Any:
        number, ledger = self.pick(number)
        key, limit, now = (name, self.today), LIMITS[name], self.clock.time()
        self.days.add(self.today)
        if self.model.gone(now):
            self.write()  # so that there is one answer to whether they are in the way
        views = self.model.views(key, number)
        if not any(fits(view, amount, limit) for view in views):
            self.model.look(now)
            views = self.model.views(key, number)
        self.model.waiting.pop(number, None)
        refused: Used | None = None
        try:
            hold = ledger.reserve(name, self.today, amount, limit)
        except NoRoom as full:
            refused = full.used
        if refused is not None:
            assert refused in views
            assert not fits(refused, amount, limit)
            return multiple()
        assert any(fits(view, amount, limit) for view in views)
        assert (hold.name, hold.day, hold.amount) == (*key, amount)
        self.model.entries[hold.id] = Entry(hold, number, now)
        return hold

    @rule(hold=holds)
    def send(self, hold: Hold) -> None:
        entry = self.model.entries[hold.id]
        assert self.ledgers[entry.program].send(hold) is entry.is_open
        self.model.waiting.pop(entry.program, None)
        if entry.is_open:
            entry.state = "sent"

    @rule(hold=holds, part=st.sampled_from((0, 1, 2, 2)), estimated=st.booleans())
    def settle(self, hold: Hold, part: int, estimated: bool) -> None:
        amount = Amount(hold.amount.tokens * part // 2, hold.amount.nanousd * part // 2)
        entry = self.model.entries[hold.id]
        self.ledgers[entry.program].settle(hold, amount, estimated=estimated)
        self.end(entry, Used(amount.tokens, amount.nanousd, 0, 0, amount.tokens if estimated else 0, 1))

    @rule(hold=holds)
    def release(self, hold: Hold) -> None:
        entry = self.model.entries[hold.id]
        self.ledgers[entry.program].release(hold)
        self.end(entry, Used())

    def end(self, entry: Entry, change: Used) -> None:
        self.model.end(entry, change)
        if entry.owner != "here":
            self.assert_sees(entry.program, look=False)
            self.write(entry.program)  # else it would depend on the moment whether it comes too late

    @rule(number=st.integers(0, 2), amount=amounts, estimated=st.booleans())
    def book(self, number: int, amount: Amount, estimated: bool) -> None:
        number, ledger = self.pick(number)
        self.days.add(self.today)
        ledger.book("free", self.today, amount, estimated=estimated)
        change = Used(amount.tokens, amount.nanousd, 0, 0, amount.tokens if estimated else 0, 1)
        self.model.add(("free", self.today), change)
        self.model.waiting.setdefault(number, []).append((("free", self.today), change))

    @rule(number=st.integers(0, 2), name=st.sampled_from(sorted(LIMITS)), back=st.integers(0, 3))
    def reset(self, number: int, name: str, back: int) -> None:
        number, ledger = self.pick(number)
        day = sorted(self.days)[-1 - back % len(self.days)]
        self.write()
        self.model.look(self.clock.time())
        assert ledger.reset(name, day) == self.model.settled.pop((name, day), Used())
        self.model.forget(lambda entry: (entry.hold.name, entry.hold.day) == (name, day))

    @rule(number=st.integers(0, 2))
    def list_open(self, number: int) -> None:
        number, ledger = self.pick(number)
        self.write()
        self.model.look(self.clock.time())
        expected = {entry.hold: entry.state for entry in self.model.entries.values() if entry.is_open}
        found = ledger.holds()
        assert {one.hold: one.state for one in found} == expected
        assert [(one.since, one.hold.id) for one in found] == sorted(
            (one.since, one.hold.id) for one in found
        )

    # --- what time does

    @rule(seconds=st.sampled_from((0.5, 61.0, LEASE_SECONDS + 1, HOUR, 23 * HOUR, 25 * HOUR, 3 * DAY)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from((61.0, HOUR, 2 * DAY)))
    def set_back(self, seconds: float) -> None:
        self.clock.now -= seconds

    # --- what always holds

    def assert_sees(self, number: int, *, look: bool = True) -> None:
        """What a program is told is what the model says; it looks after dead owners once a second."""
        ledger = self.ledgers[number]
        if look and self.clock.monotonic() - self.looked[number] >= LOOK_SECONDS:
            self.looked[number] = self.clock.monotonic()
            self.model.look(self.clock.time())
        for day in self.days:
            books = ledger.usage(day)
            assert books.keys() <= LIMITS.keys()
            for name, limit in LIMITS.items():
                seen = books.get(name, Used())
                assert seen in self.model.views((name, day), number), (name, day)
                assert fits(seen, Amount(), limit)  # settled + held are never above the limit

    @invariant()
    def every_program_sees_the_books(self) -> None:
        if hasattr(self, "ledgers"):
            for number in range(self.programs):
                self.assert_sees(number)

    def teardown(self) -> None:
        """Once every call has ended nothing is held, and every token is booked."""
        if not hasattr(self, "ledgers"):
            return
        for entry in self.model.entries.values():
            if entry.is_open:
                self.release(entry.hold)
        self.write()
        for ledger in self.ledgers:
            assert list(ledger.holds()) == []
            expected: dict[date, dict[str, Used]] = {}
            for (name, day), used in sorted(self.model.settled.items(), key=lambda item: item[0][::-1]):
                assert (used.held_tokens, used.held_nanousd) == (0, 0)
                expected.setdefault(day, {})[name] = used
            assert ledger.history(date.min) == expected


@cache
def new_file() -> bytes:
    """An empty ledger that also keeps every state that it was ever in."""
    with tempfile.TemporaryDirectory() as home:
        with closing(SQLiteLedger(Path(home), FakeClock())) as ledger:
            ledger.usage(date.min)
        with closing(sqlite3.connect(Path(home) / "ledger.db")) as db:
            db.executescript("""
                PRAGMA journal_mode = WAL;
                CREATE TABLE past (number INTEGER PRIMARY KEY, name TEXT, day TEXT, tokens INTEGER);
                CREATE TRIGGER made AFTER INSERT ON day BEGIN
                    INSERT INTO past VALUES (NULL, new.name, new.day, new.tokens); END;
                CREATE TRIGGER changed AFTER UPDATE ON day BEGIN
                    INSERT INTO past VALUES (NULL, new.name, new.day, new.tokens); END;
                CREATE TRIGGER removed AFTER DELETE ON day BEGIN
                    INSERT INTO past VALUES (NULL, old.name, old.day, NULL); END;
            """)
        return (Path(home) / "ledger.db").read_bytes()


class SQLiteBooks(Books):
    """Three programs that share a file, and a hand that changes who owns what in it."""

    holds = Bundle("holds")
    programs = 3

    def prepare(self) -> None:
        self.home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        (self.home / "ledger.db").write_bytes(new_file())
        self.hand = sqlite3.connect(self.home / "ledger.db", isolation_level=None, timeout=20.0)
        self.past: Iterator[Any] = iter(())
        self.state: State = {}
        self.number = 0
        self.shown = b""

    def open(self) -> SQLiteLedger:
        return SQLiteLedger(self.home, self.clock, wal=True)

    @rule(number=st.integers(0, 2))
    def restart(self, number: int) -> None:
        self.ledgers[number].close()
        self.model.waiting.pop(number, None)
        self.ledgers[number] = self.open()
        self.looked[number] = -LOOK_SECONDS

    @rule(number=st.integers(0, 2))
    def write_down(self, number: int) -> None:
        self.write(number)

    @rule()
    def write_all_down(self) -> None:
        self.write()
        if self.shown or self.model.settled:
            assert projection(self.home) == self.model.tokens()

    @rule(
        hold=Books.holds,
        how=st.sampled_from(("ended", "another boot", "another process", "elsewhere")),
        is_sent=st.booleans(),
        seconds=st.sampled_from((0.0, LOOK_SECONDS)),
    )
    def lose_owner(self, hold: Hold, how: str, is_sent: bool, seconds: float) -> None:
        """Its owner is killed, with or without the machine, or cannot be seen from here any more."""
        entry = self.model.entries[hold.id]
        if not entry.is_open:
            return
        if is_sent:
            self.send(hold)
        me = this_process()
        owner = {
            "ended": ended_process(),
            "another boot": msgspec.structs.replace(me, boot="another"),
            "another process": msgspec.structs.replace(me, started=me.started + 1),
            # Each has an owner of its own there.
            "elsewhere": Owner(len(self.model.entries), 1, me.boot, "another machine/"),
        }[how]
        give(self.hand, hold, owner)
        entry.owner = "elsewhere" if how == "elsewhere" else "dead"
        self.wait(seconds)

    @precondition(lambda self: any(entry.state == "expired" for entry in self.model.entries.values()))
    @rule(number=st.integers(0, 9), part=st.sampled_from((None, 0, 1, 2)), estimated=st.booleans())
    def come_back_late(self, number: int, part: int | None, estimated: bool) -> None:
        """One that was thought dead ends its call after all."""
        expired = [entry.hold for entry in self.model.entries.values() if entry.state == "expired"]
        hold = expired[number % len(expired)]
        if part is None:
            self.release(hold)
        else:
            self.settle(hold, part, estimated)

    @invariant()
    def the_projection_is_a_state_that_was(self) -> None:
        """It always parses, and it never goes back to an earlier one."""
        file = self.home / "llm_usage.json" if hasattr(self, "home") else None
        if file is None or not file.exists() or file.read_bytes() == self.shown:
            return
        self.shown = file.read_bytes()
        shown: State = msgspec.json.decode(self.shown, type=State)
        query = "SELECT number, name, day, tokens FROM past WHERE number > ? ORDER BY number"
        for number, name, day, tokens in self.hand.execute(query, (self.number,)).fetchall():
            if shown == self.state:
                return
            self.number = number
            if tokens is None:
                del self.state[name][day]
                self.state = {one: days for one, days in self.state.items() if days}
            else:
                self.state.setdefault(name, {})[day] = tokens
        assert shown == self.state

    def teardown(self) -> None:
        try:
            super().teardown()
            if hasattr(self, "ledgers"):
                self.write_all_down()
        finally:
            for ledger in getattr(self, "ledgers", ()):
                ledger.close()
            if hasattr(self, "home"):
                self.hand.close()
                shutil.rmtree(self.home)


TestMemoryBooks = Books.TestCase
TestMemoryBooks.settings = settings(deadline=None, max_examples=1300, stateful_step_count=20)
TestSQLiteBooks = SQLiteBooks.TestCase
TestSQLiteBooks.settings = settings(deadline=None, max_examples=800, stateful_step_count=20)
