"""Flights of one user: table `flight` of the file that all of that user's processes share.

They are evidence. Where the file cannot be used a process counts its own flights alone, and goes on.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple

from maxwell.clock import Clock
from maxwell.database.damage import SetAside
from maxwell.database.file import Database
from maxwell.database.lifetime import watch
from maxwell.database.owners import Owner, is_alive, this_process
from maxwell.database.patience import Locked
from maxwell.errors import LedgerError
from maxwell.flights import Busy, Load, Plan, Planner
from maxwell.flights.counts import Flight, Running, loads_of, replaced, split
from maxwell.flights.memory import MemoryFlights

SEEN_SECONDS = 0.25  # so long what others have under way is taken for true without looking again
LOOK_SECONDS = 1.0  # owners are looked at this often
RETRY_SECONDS = 3.0  # a file that cannot be used is tried again this often
# Owners that cannot be seen from here (another machine, another container) have this long, or so many times
# as long as the flight was expected to take.
LEASE_SECONDS, LEASE_FACTOR = 900.0, 3.0

_NEXT = "SELECT IFNULL(MAX(number), 0) + 1 FROM flight"
_OLD = "SELECT number, endpoint, waiting, trial, seconds, since, name FROM flight WHERE id = ?"
_RUNNING = "SELECT endpoint, trial, seconds, since FROM flight WHERE NOT waiting AND id != ?"
_WAITING = "SELECT endpoint, COUNT(*) FROM flight WHERE waiting AND number < ? GROUP BY endpoint"
_KEEP = """
INSERT OR REPLACE INTO flight
    (id, holder, number, endpoint, waiting, trial, seconds, since, name, pid, started, boot, place)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_REMOVE = "DELETE FROM flight WHERE id = ?"

_OTHERS_RUNNING = "SELECT endpoint, trial, seconds, since FROM flight WHERE NOT waiting AND holder != ?"
_OTHERS_WAITING = "SELECT endpoint, COUNT(*) FROM flight WHERE waiting AND holder != ? GROUP BY endpoint"

_END = f"since + MAX({LEASE_SECONDS}, {LEASE_FACTOR} * seconds)"
_OWNERS = f"SELECT holder, MIN({_END}), pid, started, boot, place FROM flight GROUP BY holder"  # noqa: S608
_REMOVE_DEAD = f"DELETE FROM flight WHERE holder = ? AND {_END} < ?"  # noqa: S608


class SQLiteFlights:
    """Flights in a file. Safe from any thread and across forks; opens its file at first use.

    Args:
        database: The file.
        clock: Tells how long a flight has been running.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.start_afresh()
        watch(self, first=True)

    # --- forks

    def start_afresh(self) -> None:
        """Begin with nothing under way, in a forked child."""
        self._mine = MemoryFlights(self._clock)  # all that is decided here, whatever becomes of the file
        self._holder = int.from_bytes(os.urandom(7))  # tells this one from others of the same process
        self._filed: set[str] = set()  # own flights that are in the file
        self._under_way: dict[str, bool] = {}  # being placed; False = and left meanwhile
        self._others: tuple[list[Running], list[tuple[str, int]]] = [], []
        self._seen_at = self._looked_at = self._retry_at = -LOOK_SECONDS
        self._opened = -1  # how often the file had been opened when all that is under way here was in it

    def before_fork(self) -> None:
        """Nothing to prepare: a child begins anew."""

    def after_fork(self) -> None:
        """Nothing was prepared."""

    def close(self) -> None:
        """Nothing to close; the file is closed by whoever opened it."""

    # --- what others ask for

    def loads(self) -> Mapping[str, Load]:
        """See `Flights.loads`. What others have under way was looked at 0.25 s ago at most."""
        now = self._clock.monotonic()
        if now - self._seen_at >= SEEN_SECONDS and now >= self._retry_at:
            self._see(now)
        others, others_waiting = self._others
        running, waiting = split(self._mine.flights().values())
        for endpoint, count in others_waiting:
            waiting[endpoint] = waiting.get(endpoint, 0) + count
        return loads_of((*running, *others), waiting, self._clock.time())

    def place(self, id: str, plan: Planner, *, wait: bool = True) -> Plan | None:
        """See `Flights.place`."""
        failure: Exception
        self._under_way[id] = True
        try:
            return self._place(id, plan, wait)
        except _PlanFailed as failed:
            failure = failed.error
        finally:
            if not self._under_way.pop(id, True):  # it was left meanwhile, in another thread
                self.leave(id)
        raise failure

    def leave(self, id: str) -> None:
        """See `Flights.leave`."""
        if id in self._under_way:
            self._under_way[id] = False
        self._mine.leave(id)
        if id in self._filed:  # else there is nothing to write, now or when the file can be used again
            self._filed.discard(id)
            self._database.later(("flight", id), _Leaving(id))

    # --- in the file

    def _place(self, id: str, plan: Planner, wait: bool) -> Plan | None:
        for _ in range(2):  # where a file was put aside the second time makes a new one
            if self._clock.monotonic() < self._retry_at:
                break
            try:
                return self._place_in_file(id, plan, wait)
            except LedgerError as error:
                self._fail(error)
        return self._mine.place(id, plan, wait=wait)

    def _place_in_file(self, id: str, plan: Planner, wait: bool) -> Plan | None:
        """`place` in the file. Raises `LedgerError` when it cannot be used."""
        try:
            with self._database.write() if wait else self._database.write_at_once() as db:
                opened = self._database.opened
                decided = self._decide(db, id, plan)
        except Locked as error:
            raise Busy from error
        self._opened = opened
        self._mine.keep(id, decided)
        return decided

    def _decide(self, db: sqlite3.Connection, id: str, plan: Planner) -> Plan | None:
        self._tidy(db)
        # Nobody else places it, so it is in the file only if it was placed from here.
        old = self._old(db, id) if id in self._filed else None
        number = db.execute(_NEXT).fetchone()[0] if old is None else old.number
        running = db.execute(_RUNNING, (id,)).fetchall()
        waiting = dict(db.execute(_WAITING, (number,)).fetchall())
        now = self._clock.time()
        try:
            decided = plan(loads_of(running, waiting, now))
        except Exception as error:  # which must not be taken for one of the file
            raise _PlanFailed(error) from error
        if decided is not None:
            self._filed.add(id)
            self._keep(db, id, replaced(old, number, decided, now))
        elif old is not None:
            db.execute(_REMOVE, (id,))
        return decided

    def _old(self, db: sqlite3.Connection, id: str) -> Flight | None:
        row = db.execute(_OLD, (id,)).fetchone()
        return None if row is None else Flight(*row)

    def _tidy(self, db: sqlite3.Connection) -> None:
        """Remove what dead owners had under way, and add what others do not know of this one."""
        if self._clock.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._remove(db, self._dead(db.execute(_OWNERS)))
        if self._database.opened != self._opened:
            self._repeat(db)

    def _repeat(self, db: sqlite3.Connection) -> None:
        """Write down what was decided while the file could not be used, or was lost with it."""
        for id in self._mine.flights():
            self._filed.add(id)
            flight = self._mine.flights().get(id)  # now: who leaves from here on finds itself in `_filed`
            if flight is None:
                self._filed.discard(id)
            else:
                old = self._old(db, id)
                number = db.execute(_NEXT).fetchone()[0] if old is None else old.number
                self._keep(db, id, flight._replace(number=number))

    def _keep(self, db: sqlite3.Connection, id: str, flight: Flight) -> None:
        db.execute(_KEEP, (id, self._holder, *flight, *astuple(this_process())))

    # --- others

    def _see(self, now: float) -> None:
        """Look at what others have under way, unless somebody is in the way."""
        database, besides = self._database, (self._holder,)
        try:
            if now - self._looked_at >= LOOK_SECONDS:
                dead = self._dead(database.read_at_once(_OWNERS)[0])
                if dead:
                    with database.write_at_once() as db:
                        self._remove(db, dead)
            running, _ = database.read_at_once(_OTHERS_RUNNING, besides)
            waiting, _ = database.read_at_once(_OTHERS_WAITING, besides)
        except Locked:
            return
        except LedgerError as error:
            self._fail(error)
            return
        self._others = running, waiting
        self._seen_at = now

    def _dead(self, owners: Iterable[Any]) -> list[tuple[int, float]]:
        """Whose flights are to be removed, and which of them: those that end before a moment."""
        self._looked_at = self._clock.monotonic()
        now, found = self._clock.time(), []
        for holder, end, *who in owners:
            alive = holder == self._holder or is_alive(Owner(*who))
            if alive is False:
                found.append((holder, math.inf))
            elif alive is None and end < now:
                found.append((holder, now))
        return found

    def _remove(self, db: sqlite3.Connection, dead: list[tuple[int, float]]) -> None:
        db.executemany(_REMOVE_DEAD, dead)

    def _fail(self, error: LedgerError) -> None:
        """Go on alone for a while."""
        self._database.warn(error)
        self._others = [], []
        self._opened = -1
        if not isinstance(error, SetAside):
            self._retry_at = self._clock.monotonic() + RETRY_SECONDS


class _PlanFailed(Exception):
    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(str(error))


class _Leaving(Struct, frozen=True):
    """The end of a flight."""

    id: str

    def apply(self, db: sqlite3.Connection) -> None:
        """See `Task.apply`."""
        db.execute(_REMOVE, (self.id,))

    def merged(self, later: _Leaving) -> _Leaving:
        """See `Task.merged`."""
        return self
