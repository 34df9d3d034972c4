"""Databases to be harmed: what tests of `maxwell.database` do to them, in this process and in others."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from processes import ended, fork

from maxwell.database.file import Database
from maxwell.errors import LedgerError

SOON = 30.0  # seconds; a test gives up then
SHORT = 0.1  # seconds; patience of those who are to lose it

# What programs begin with.
BEGIN = """
import atexit, logging, os, pwd, resource, sys, threading, time
from datetime import date
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.database.file import Database
from maxwell.errors import LedgerError
from maxwell.ledger import Amount, Limit
from maxwell.ledger.sqlite import SQLiteLedger

home, day, no_limit = Path(sys.argv[1]), date(2026, 1, 12), Limit()

class Add:
    def __init__(self, tokens):
        self.tokens = tokens
    def apply(self, db):
        db.execute(
            "INSERT INTO day VALUES ('a', '2026-01-12', ?, 0, 0, 0) "
            "ON CONFLICT (name, day) DO UPDATE SET tokens = tokens + excluded.tokens",
            (self.tokens,),
        )
    def merged(self, later):
        return Add(self.tokens + later.tokens)

def make(**options):
    return Database(home, begin=lambda db: None, **options)

def fails(attempt):
    try:
        attempt()
    except LedgerError as error:
        return str(error)
    raise AssertionError("no LedgerError")

def is_ready(database):
    try:
        database.ready()
    except LedgerError:
        return False
    return True

def wait_until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def become_nobody():
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
"""


class Add(NamedTuple):
    """Tokens for entry "a"."""

    tokens: int

    def apply(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO day VALUES ('a', '2026-01-12', ?, 0, 0, 0) "
            "ON CONFLICT (name, day) DO UPDATE SET tokens = tokens + excluded.tokens",
            (self.tokens,),
        )

    def merged(self, later: Add) -> Add:
        return Add(self.tokens + later.tokens)


class Run(NamedTuple):
    """Something to be done in a transaction."""

    apply: Callable[[sqlite3.Connection], object]


def make(home: Path, **options: Any) -> Database:
    return Database(home, begin=lambda db: None, **options)


def write(database: Database, *tasks: Add | Run) -> None:
    with database.write() as db:
        for task in tasks:
            task.apply(db)


def raise_(error: Exception) -> Run:
    def fail(_: sqlite3.Connection) -> None:
        raise error

    return Run(fail)


def add(database: Database, tokens: int = 1) -> None:
    write(database, Add(tokens))


def total(database: Database) -> int:
    rows, waiting = database.read("SELECT TOTAL(tokens) FROM day")
    return int(rows[0][0]) + sum(task.tokens for task in waiting if isinstance(task, Add))


def written(home: Path) -> int:
    """What another program sees."""
    with closing(sqlite3.connect(home / "ledger.db", timeout=SOON)) as db:
        return int(db.execute("SELECT TOTAL(tokens) FROM day").fetchone()[0])


def assert_sound(home: Path) -> None:
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run(script: str, *arguments: object, code: int = 0) -> str:
    """Run a program to its end; returns what it wrote to stderr."""
    command = [sys.executable, "-c", BEGIN + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def is_ready(database: Database) -> bool:
    try:
        database.ready()
    except LedgerError:
        return False
    return True


LOCKER = """
import sqlite3, sys

db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
db.execute("COMMIT")
db.close()
"""


@contextmanager
def locked(home: Path) -> Iterator[None]:
    command = [sys.executable, "-c", LOCKER, str(home / "ledger.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            locker.communicate("go\n")


def work_at_once(database: Database, processes: int, times: int) -> None:
    """Let forked children add twice as many tokens each, one half at once, one half later."""

    def work() -> None:
        for _ in range(times):
            add(database)
            database.later("a", Add(1))
        database.close()

    add(database, 0)
    children = [fork(work) for _ in range(processes)]
    assert [ended(child) for child in children] == [0] * processes
