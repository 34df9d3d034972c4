"""Several programs of one user and the file in which they tell each other what is under way."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
from databases import LOCKER

from maxwell.clock import Clock
from maxwell.database.file import Database
from maxwell.database.owners import Owner
from maxwell.database.schema import LIVE
from maxwell.flights import Flights, Load, Plan, Planner
from maxwell.flights.sqlite import SQLiteFlights
from maxwell.testing.clock import FakeClock

A, B = "http://a:8080", "http://b:8080"
FILE = "live.db"


def runs(endpoint: str = A, seconds: float = 10.0, *, trial: bool = False, name: str = "one") -> Plan:
    return Plan(endpoint, name, seconds, trial=trial)


def waits(endpoint: str = A, seconds: float = 10.0) -> Plan:
    return Plan(endpoint, "one", seconds, waiting=True)


def place(flights: Flights, id: str, plan: Plan | None, *, wait: bool = True) -> dict[str, Load]:
    """Place it without looking; returns what could have been seen."""
    seen: dict[str, Load] = {}

    def planner(loads: Mapping[str, Load]) -> Plan | None:
        seen.clear()
        seen.update(loads)
        return plan

    assert flights.place(id, planner, wait=wait) == plan
    return seen


def counts(loads: Mapping[str, Load]) -> dict[str, tuple[int, int]]:
    """How many run and wait, by endpoint."""
    return {endpoint: (load.running, load.waiting) for endpoint, load in loads.items()}


def at_most(most: int, endpoint: str = A) -> Planner:
    """Run where fewer than so many run, else wait."""

    def planner(loads: Mapping[str, Load]) -> Plan:
        load = loads.get(endpoint, Load())
        return runs(endpoint) if load.running + load.waiting < most else waits(endpoint)

    return planner


class Programs:
    """Opens flights in one home, as as many programs would."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clock = FakeClock()
        self.databases: list[Database] = []

    def __call__(self, clock: Clock | None = None, *, wal: bool | None = None) -> SQLiteFlights:
        self.databases.append(Database(self.home, LIVE, wal=wal))
        return SQLiteFlights(self.databases[-1], clock or self.clock)

    def write(self) -> None:
        """All that waits is written."""
        for database in self.databases:
            database.flush()

    def close(self) -> None:
        for database in self.databases:
            database.close()


def in_file(home: Path) -> list[str]:
    """The flights that another program finds."""
    with closing(sqlite3.connect(home / FILE, timeout=30)) as db:
        return [row[0] for row in db.execute("SELECT id FROM flight ORDER BY number")]


def give(home: Path, owner: Owner, *ids: str) -> None:
    """Let these flights be another process's."""
    with closing(sqlite3.connect(home / FILE, isolation_level=None, timeout=30)) as db:
        for id in ids:
            changed = db.execute(
                "UPDATE flight SET holder = ?, pid = ?, started = ?, boot = ?, place = ? WHERE id = ?",
                (hash(owner), *msgspec.structs.astuple(owner), id),
            )
            assert changed.rowcount == 1


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Another program has the file for itself."""
    command = [sys.executable, "-c", LOCKER, str(home / FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            locker.communicate("go\n")
