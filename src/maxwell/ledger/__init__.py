"""What was reserved and what was used: the protocol every store keeps, and the days it books on.

A store guarantees for each name and day: settled + held <= budget at every reservation, for any number of
processes; each hold is settled or released once; settling twice changes nothing.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, tzinfo
from typing import Protocol

from msgspec import Struct

from maxwell.errors import LedgerError

__all__ = ["Hold", "Ledger", "LedgerError", "NoRoom", "Used", "budget_day", "has_room", "resets_at", "zone"]


class Used(Struct, frozen=True):
    """What one entry used on one day.

    Attributes:
        tokens: Tokens settled.
        usd: US dollars settled.
        held_tokens: Tokens reserved by calls that run.
        held_usd: US dollars reserved by calls that run.
    """

    tokens: int = 0
    usd: float = 0.0
    held_tokens: int = 0
    held_usd: float = 0.0


class Hold(Struct, frozen=True):
    """A reservation. `id` is unique in its store."""

    id: str
    name: str
    day: date


class NoRoom(Exception):
    """A reservation does not fit.

    Attributes:
        used: What stood in the books.
    """

    def __init__(self, used: Used) -> None:
        self.used = used
        super().__init__("the budget has no room")


class Ledger(Protocol):
    """A store of reservations and usage. Every method may raise `LedgerError`."""

    def reserve(
        self,
        name: str,
        day: date,
        tokens: int,
        usd: float,
        *,
        most_tokens: int | None,
        most_usd: float | None,
    ) -> Hold:
        """Hold the worst case of a call. Raises `NoRoom` when a budget would be passed."""

    def settle(self, hold: Hold, tokens: int, usd: float) -> None:
        """Replace the hold by what was used."""

    def release(self, hold: Hold) -> None:
        """Give the hold back: nothing was sent."""

    def book(self, name: str, day: date, tokens: int, usd: float) -> None:
        """Record what an entry without budget used; written at the latest by `flush`."""

    def used(self, day: date) -> dict[str, Used]:
        """What every entry used and holds on `day`."""

    def flush(self) -> None:
        """Write down what is still in memory."""

    def close(self) -> None:
        """`flush`, and let go of the store. It can be used again."""


def has_room(used: Used, tokens: int, usd: float, most_tokens: int | None, most_usd: float | None) -> bool:
    """Whether a call of that size still fits the budgets."""
    if most_tokens is not None and used.tokens + used.held_tokens + tokens > most_tokens:
        return False
    return most_usd is None or used.usd + used.held_usd + usd <= most_usd


def zone(name: str | None) -> tzinfo | None:
    """The time zone whose midnight starts a day; None = the machine's."""
    if name is None:
        return None
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def budget_day(now: float, tz: tzinfo | None) -> date:
    """The local date at `now` (seconds since the epoch)."""
    return datetime.fromtimestamp(now, tz).date()


def resets_at(now: float, tz: tzinfo | None) -> datetime:
    """The next local midnight after `now`, with its zone; 23 or 25 hours away when the clocks change."""
    tomorrow = budget_day(now, tz) + timedelta(days=1)
    midnight = datetime.combine(tomorrow, time())
    return midnight.astimezone() if tz is None else midnight.replace(tzinfo=tz)
