"""The ledger of one user: tables `day` and `hold` of the database that all of that user's processes share."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import uuid
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from maxwell.clock import Clock
from maxwell.database.file import Database
from maxwell.database.owners import Owner, is_alive, this_process
from maxwell.database.waiting import Task
from maxwell.errors import LedgerError
from maxwell.ledger import Amount, Hold, Limit, NoRoom, OpenHold, Used
from maxwell.ledger.projection import Projection, take_over
from maxwell.ledger.tasks import Booking, Settling, add, settled

# Owners that cannot be seen from here (another machine, another container) have this long. That they may be
# thought dead too soon is safe: `send` fails for what was given back, and a late `settle` corrects a charge.
LEASE_SECONDS = 900.0
LOOK_SECONDS = 1.0  # owners are looked at this often
LOOK_PATIENCE = 0.05  # seconds that who only reads waits to end the holds of dead ones
_KEPT_SECONDS = 2 * 86400.0  # how long a charge may be corrected

_SETTLED = "SELECT name, tokens, nanousd, 0, 0, estimated, calls FROM day WHERE day = ?"
_HELD = "SELECT name, tokens, nanousd FROM hold WHERE day = ? AND state != 'expired'"
_HISTORY = """
SELECT day, name, tokens, nanousd, 0, 0, estimated, calls FROM day WHERE day >= ? ORDER BY day, name
"""
_OPEN = """
SELECT id, name, day, tokens, nanousd, state, since, pid, started, boot, place
FROM hold WHERE state != 'expired' ORDER BY since, id
"""
_OWNERS = """
SELECT pid, started, boot, place, MIN(since)
FROM hold WHERE state != 'expired' GROUP BY pid, started, boot, place
"""
_SENT = """
SELECT name, day, tokens, nanousd FROM hold
WHERE state = 'sent' AND pid = ? AND started = ? AND boot = ? AND place = ? AND since < ?
"""
_GIVE_BACK = """
DELETE FROM hold WHERE state = 'held' AND pid = ? AND started = ? AND boot = ? AND place = ? AND since < ?
"""
_CHARGE = """
UPDATE hold SET state = 'expired'
WHERE state = 'sent' AND pid = ? AND started = ? AND boot = ? AND place = ? AND since < ?
"""


class SQLiteLedger:
    """Books in `home`. Safe from any thread and across forks; opens its file at first use.

    Args:
        home: The user's Maxwell directory.
        clock: Tells how old a reservation is.
        wal: See `Database`.
    """

    def __init__(self, home: Path, clock: Clock, *, wal: bool | None = None) -> None:
        self.database = Database(home, begin=lambda db: take_over(db, home), wal=wal)
        self._clock = clock
        self._projection = Projection(self.database)
        self.database.before_close.append(self._projection.write)
        self._looked = -LOOK_SECONDS

    @property
    def is_open(self) -> bool:
        """See `Ledger.is_open`."""
        return self.database.is_open

    def ready(self) -> None:
        """See `Ledger.ready`."""
        self.database.ready()

    def reserve(self, name: str, day: date, amount: Amount, limit: Limit) -> Hold:
        """See `Ledger.reserve`. Where there is no room, what dead owners hold is set free first."""
        hold = Hold(uuid.uuid4().hex, name, day, amount)
        try:
            with self.database.write() as db:
                used = _used(db, hold)
                if not used.has_room(amount, limit) and self._expire(db):
                    used = _used(db, hold)
                has_room = used.has_room(amount, limit)
                if has_room:
                    _insert(db, hold, self._clock.time())
        except LedgerError:
            raise
        except BaseException:  # Ctrl-C, which may come when it is written already
            self.release(hold)
            raise
        if not has_room:
            raise NoRoom(used)
        return hold

    def send(self, hold: Hold) -> bool:
        """See `Ledger.send`."""
        with self.database.write() as db:
            changed = db.execute(
                "UPDATE hold SET state = 'sent' WHERE id = ? AND state IN ('held', 'sent')", (hold.id,)
            )
            return bool(changed.rowcount)

    def settle(self, hold: Hold, amount: Amount, *, estimated: bool = False) -> None:
        """See `Ledger.settle`."""
        self._later(hold.id, Settling(hold, amount, estimated))

    def release(self, hold: Hold) -> None:
        """See `Ledger.release`."""
        self._later(hold.id, Settling(hold, None))

    def book(self, name: str, day: date, amount: Amount, *, estimated: bool = False) -> None:
        """See `Ledger.book`."""
        self._later((name, day), Booking(name, day, settled(amount, estimated)))

    def _later(self, key: object, task: Booking | Settling) -> None:
        self.database.later(key, task)
        self._projection.soon()

    def usage(self, day: date) -> dict[str, Used]:
        """See `Ledger.usage`."""
        self._look()

        def look(db: sqlite3.Connection, waiting: Sequence[Task]) -> dict[str, Used]:
            on = (day.isoformat(),)
            books = {name: Used(*amounts) for name, *amounts in db.execute(_SETTLED, on)}
            for name, tokens, nanousd in db.execute(_HELD, on):
                books[name] = books.get(name, Used()) + Used(0, 0, tokens, nanousd)
            for task in waiting:
                if isinstance(task, Booking | Settling) and task.day == day:
                    books[task.name] = books.get(task.name, Used()) + task.effect(db)
            return books

        return self.database.look(look)

    def history(self, since: date) -> dict[date, dict[str, Used]]:
        """See `Ledger.history`."""
        self.database.flush()
        rows, _ = self.database.read(_HISTORY, (since.isoformat(),))
        books: dict[date, dict[str, Used]] = {}
        for day, name, *amounts in rows:
            books.setdefault(date.fromisoformat(day), {})[name] = Used(*amounts)
        return books

    def holds(self) -> Sequence[OpenHold]:
        """See `Ledger.holds`."""
        with self.database.write() as db:
            self._expire(db)
            rows = db.execute(_OPEN).fetchall()
        return [_open_hold(row) for row in rows]

    def reset(self, name: str, day: date) -> Used:
        """See `Ledger.reset`."""
        on = (name, day.isoformat())
        with self.database.write() as db:
            self._expire(db)
            before = _settled(db, on)
            db.execute("DELETE FROM day WHERE name = ? AND day = ?", on)
            # Nobody's late word may take from what is counted from here on.
            db.execute("DELETE FROM hold WHERE name = ? AND day = ? AND state = 'expired'", on)
        self._projection.soon()
        return before

    def flush(self) -> None:
        """See `Ledger.flush`: the books, and `llm_usage.json`."""
        self.database.flush()
        self._projection.write()

    def close(self) -> None:
        """See `Ledger.close`."""
        self.database.close()

    def _look(self) -> None:
        """Expire what dead owners hold, at most once a second."""
        now = self._clock.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        rows, _ = self.database.read(_OWNERS)
        if self._dead(rows):
            # Where others write all the time, what the dead hold counts for another second.
            with contextlib.suppress(LedgerError), self.database.write(LOOK_PATIENCE) as db:
                self._expire(db)

    def _dead(self, rows: Sequence[Any]) -> list[tuple[Owner, float]]:
        """Whose holds have expired, and made before which moment: all of those who no longer run, and the
        older ones of those whom nobody here can see.
        """
        unseen = self._clock.time() - LEASE_SECONDS
        found = []
        for *identity, since in rows:
            owner = Owner(*identity)
            alive = is_alive(owner)
            if alive is False:
                found.append((owner, math.inf))
            elif alive is None and since < unseen:
                found.append((owner, unseen))
        return found

    def _expire(self, db: sqlite3.Connection) -> bool:
        """End the holds of dead owners; returns whether there were any."""
        dead = self._dead(db.execute(_OWNERS).fetchall())
        for owner, before in dead:
            of_owner = (*msgspec.structs.astuple(owner), before)
            for name, day, tokens, nanousd in db.execute(_SENT, of_owner).fetchall():
                add(db, name, day, settled(Amount(tokens, nanousd), estimated=True))
            db.execute(_GIVE_BACK, of_owner)
            db.execute(_CHARGE, of_owner)
        if dead:
            old = self._clock.time() - _KEPT_SECONDS
            db.execute("DELETE FROM hold WHERE state = 'expired' AND since < ?", (old,))
            self._projection.soon()
        return bool(dead)


def _used(db: sqlite3.Connection, hold: Hold) -> Used:
    on = (hold.name, hold.day.isoformat())
    tokens, nanousd = db.execute(
        "SELECT TOTAL(tokens), TOTAL(nanousd) FROM hold WHERE name = ? AND day = ? AND state != 'expired'", on
    ).fetchone()
    return _settled(db, on) + Used(0, 0, int(tokens), int(nanousd))


def _settled(db: sqlite3.Connection, on: tuple[str, str]) -> Used:
    """What stands in the books for a name and day."""
    row = db.execute(
        "SELECT tokens, nanousd, 0, 0, estimated, calls FROM day WHERE name = ? AND day = ?", on
    ).fetchone()
    return Used() if row is None else Used(*row)


def _insert(db: sqlite3.Connection, hold: Hold, now: float) -> None:
    owner = this_process()
    amount = hold.amount
    db.execute(
        "INSERT INTO hold VALUES (?, ?, ?, ?, ?, 'held', ?, ?, ?, ?, ?)",
        (
            hold.id,
            hold.name,
            hold.day.isoformat(),
            amount.tokens,
            amount.nanousd,
            now,
            *msgspec.structs.astuple(owner),
        ),
    )


def _open_hold(row: Sequence[Any]) -> OpenHold:
    id_, name, day, tokens, nanousd, state, since, *identity = row
    owner = Owner(*identity)
    hold = Hold(id_, name, date.fromisoformat(day), Amount(tokens, nanousd))
    return OpenHold(hold, state, since, owner, is_alive(owner))
