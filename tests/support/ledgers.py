"""What the tests of the ledger share: amounts in one word, other programs, and owners that have died."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from maxwell.clock import Clock
from maxwell.database.owners import Owner
from maxwell.ledger import Amount, Hold, Ledger, Limit, Used
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.testing.clock import FakeClock

MONDAY, TUESDAY = date(2026, 1, 12), date(2026, 1, 13)
NAME = "gpt-4o"
SOON = 20.0  # seconds; how long something that must happen may take before a test gives up


def take(
    ledger: Ledger,
    tokens: int,
    nanousd: int = 0,
    *,
    name: str = NAME,
    day: date = MONDAY,
    most: int | None = None,
    most_nanousd: int | None = None,
) -> Hold:
    """Reserve so much; `most` is the budget."""
    return ledger.reserve(name, day, Amount(tokens, nanousd), Limit(most, most_nanousd))


def use(ledger: Ledger, tokens: int, nanousd: int = 0, *, name: str = NAME, day: date = MONDAY) -> None:
    """A whole call: reserved, sent and settled."""
    hold = take(ledger, tokens, nanousd, name=name, day=day)
    assert ledger.send(hold)
    ledger.settle(hold, hold.amount)


def used(ledger: Ledger, name: str = NAME, day: date = MONDAY) -> Used:
    """What one entry used."""
    return ledger.usage(day).get(name, Used())


def settled(tokens: int, nanousd: int = 0, *, calls: int = 1, estimated: int = 0) -> Used:
    """Usage of which nothing is held any more."""
    return Used(tokens, nanousd, 0, 0, estimated, calls)


def held(tokens: int, nanousd: int = 0) -> Used:
    """Nothing used yet, and so much reserved."""
    return Used(0, 0, tokens, nanousd)


def projection(home: Path) -> Any:
    """What `llm_usage.json` says."""
    return json.loads((home / "llm_usage.json").read_text(encoding="utf-8"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said to the user."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Programs:
    """Opens ledgers in one home, as as many programs would."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clock = FakeClock()
        self._opened: list[SQLiteLedger] = []

    def __call__(self, clock: Clock | None = None) -> SQLiteLedger:
        """One more."""
        self._opened.append(SQLiteLedger(self.home, clock or self.clock))
        return self._opened[-1]

    def close(self) -> None:
        """All of them end."""
        for one in self._opened:
            one.close()


# --- a hand in the file


@contextmanager
def opened(home: Path) -> Iterator[sqlite3.Connection]:
    """The ledger's file, by a hand of its own."""
    with closing(sqlite3.connect(home / "ledger.db", isolation_level=None, timeout=SOON)) as db:
        yield db


def refuse_writing(home: Path) -> None:
    """From now on whoever writes usage fails."""
    with opened(home) as db:
        db.execute("CREATE TRIGGER refuse BEFORE INSERT ON day BEGIN SELECT RAISE(ABORT, 'refused'); END")


def allow_writing(home: Path) -> None:
    """The end of that."""
    with opened(home) as db:
        db.execute("DROP TRIGGER refuse")


@cache
def ended_process() -> Owner:
    """A process that has ended."""
    script = "import msgspec; from maxwell.database.owners import this_process as me; "
    script += "print(msgspec.json.encode(me()).decode())"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
    return msgspec.json.decode(done.stdout, type=Owner)


def give(db: sqlite3.Connection, hold: Hold, owner: Owner) -> None:
    """Let a hold be another process's: of one that has ended, its owner has been killed."""
    changed = db.execute(
        "UPDATE hold SET pid = ?, started = ?, boot = ?, place = ? WHERE id = ?",
        (*msgspec.structs.astuple(owner), hold.id),
    )
    assert changed.rowcount == 1


def kill_owner(home: Path, *holds: Hold) -> None:
    """The process that made these holds has been killed."""
    with opened(home) as db:
        for hold in holds:
            give(db, hold, ended_process())


# --- other processes


def program(script: str, *arguments: object) -> list[str]:
    """The command of another program that has all of this module, a `home` and a `ledger` in it."""
    begin = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from ledgers import *\n"
    begin += "from maxwell.clock import SystemClock\n"
    begin += "home = Path(sys.argv[1]); ledger = SQLiteLedger(home, SystemClock())\n"
    return [sys.executable, "-c", begin + script, *map(str, arguments)]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Let another program run to its end."""
    command = program(script, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON, check=False)
    assert done.returncode == 0, done.stderr
    return done


@contextmanager
def running(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another program that has printed its first line; it is killed in the end, if it still runs."""
    command = program(script, *arguments)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread or process does."""
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
