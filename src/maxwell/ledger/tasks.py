"""What the ledger writes a moment later: usage, and the ends of reservations."""

from __future__ import annotations

import sqlite3
from datetime import date

from msgspec import Struct

from maxwell.ledger import Amount, Hold, Used

_MOST = 2**53  # more is no amount, and would end in an integer that SQLite cannot hold

_ADD = """
INSERT INTO day (name, day, tokens, nanousd, estimated, calls) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (day, name) DO UPDATE SET
    tokens = MAX(tokens + excluded.tokens, 0), nanousd = MAX(nanousd + excluded.nanousd, 0),
    estimated = MAX(estimated + excluded.estimated, 0), calls = MAX(calls + excluded.calls, 0)
"""


def add(db: sqlite3.Connection, name: str, day: str, change: Used) -> None:
    """Add `change` to what the entry used that day; it may be negative, the sums never are."""
    amounts = (change.tokens, change.nanousd, change.estimated_tokens, change.calls)
    if any(amounts):
        db.execute(_ADD, (name, day, *(max(-_MOST, min(amount, _MOST)) for amount in amounts)))


class Booking(Struct, frozen=True):
    """Usage of an entry without a budget."""

    name: str
    day: date
    change: Used

    def effect(self, db: sqlite3.Connection) -> Used:
        """What it will do to that day's books."""
        return self.change

    def apply(self, db: sqlite3.Connection) -> None:
        """See `Task.apply`."""
        add(db, self.name, self.day.isoformat(), self.change)

    def merged(self, later: Booking) -> Booking:
        """See `Task.merged`."""
        return Booking(self.name, self.day, self.change + later.change)


class Settling(Struct, frozen=True):
    """The end of a reservation; `amount` None = nothing was used."""

    hold: Hold
    amount: Amount | None
    estimated: bool = False

    @property
    def name(self) -> str:
        """Whose budget it is."""
        return self.hold.name

    @property
    def day(self) -> date:
        """The day it is booked on."""
        return self.hold.day

    def effect(self, db: sqlite3.Connection) -> Used:
        """What it will do to that day's books, holds included; nothing when the hold has ended before."""
        row = db.execute("SELECT state, tokens, nanousd FROM hold WHERE id = ?", (self.hold.id,)).fetchone()
        if row is None:
            return Used()
        state, tokens, nanousd = row
        used = Used() if self.amount is None else settled(self.amount, self.estimated)
        if state == "expired":  # its owner was thought dead and charged in full
            return used + Used(-tokens, -nanousd, 0, 0, -tokens, -1)
        return used + Used(0, 0, -tokens, -nanousd)

    def apply(self, db: sqlite3.Connection) -> None:
        """See `Task.apply`."""
        change = self.effect(db)
        db.execute("DELETE FROM hold WHERE id = ?", (self.hold.id,))
        add(db, self.hold.name, self.hold.day.isoformat(), change)

    def merged(self, later: Settling) -> Settling:
        """See `Task.merged`: it ends once."""
        return self


def settled(amount: Amount, estimated: bool) -> Used:
    """One call's usage."""
    return Used(amount.tokens, amount.nanousd, 0, 0, amount.tokens if estimated else 0, 1)
