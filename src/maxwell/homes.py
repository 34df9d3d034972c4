"""What all pools of one home share in a process: its books, and what is known of the moment."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from maxwell.clock import Clock, SystemClock
from maxwell.learning import SpeedBook

if TYPE_CHECKING:
    from maxwell.ledger.sqlite import SQLiteLedger

# By home: pools of one home share one, and see what each other books.
_ledgers: weakref.WeakValueDictionary[Path, SQLiteLedger] = weakref.WeakValueDictionary()


def shared_ledger(home: Path, clock: Clock) -> SQLiteLedger:
    """The ledger of a home; another clock than the system's has one of its own."""
    from maxwell.ledger.sqlite import SQLiteLedger

    if not isinstance(clock, SystemClock):
        return SQLiteLedger(home, clock)
    ledger = _ledgers.get(home)
    if ledger is None:
        _ledgers[home] = ledger = SQLiteLedger(home, clock)
    return ledger


LIVE_SECONDS = 0.5  # how long evidence is waited for that another process keeps locked


class Live:
    """What all processes of a user know of the moment: who is at which server, and how fast these are.

    Args:
        home: The user's Maxwell directory.
        clock: Tells the time.
    """

    def __init__(self, home: Path, clock: Clock) -> None:
        from maxwell.database.file import Database
        from maxwell.database.schema import LIVE
        from maxwell.flights.sqlite import SQLiteFlights

        self.database = Database(home, LIVE, patience=LIVE_SECONDS)
        self.flights = SQLiteFlights(self.database, clock)
        self.speeds = SpeedBook(self.database, clock)


_lives: weakref.WeakValueDictionary[Path, Live] = weakref.WeakValueDictionary()


def shared_live(home: Path, clock: Clock) -> Live:
    """The evidence of a home; another clock than the system's has its own."""
    if not isinstance(clock, SystemClock):
        return Live(home, clock)
    live = _lives.get(home)
    if live is None:
        _lives[home] = live = Live(home, clock)
    return live
