"""What was reserved and what was used: the values, and the protocol that every store of them keeps.

A reservation ("hold") passes through these states:

    HELD -> SENT -> SETTLED | RELEASED | EXPIRED

HELD: money is set aside and nothing was sent. SENT: from now on the server may be working for it. SETTLED:
what was used stands in the books. RELEASED: nothing was used. EXPIRED: its owner died; one that was HELD is
given back, one that was SENT is charged in full, because nobody knows what it used.

For each name and day a store keeps at every moment, for any number of processes and however they end:

1. settled + held <= budget whenever a reservation is made;
2. each hold is settled or released once, a second time changes nothing; if an owner that was thought dead
   settles after all, its charge is corrected to what was used, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from typing import Literal, Protocol

from msgspec import Struct
from msgspec.structs import astuple

from maxwell.database.owners import Owner
from maxwell.errors import LedgerError

__all__ = ["Amount", "Hold", "Ledger", "LedgerError", "Limit", "NoRoom", "OpenHold", "Owner", "Used"]

NANO = 1_000_000_000


class Amount(Struct, frozen=True):
    """So much of a budget. Money is counted in whole nanodollars, so that sums are exact.

    Attributes:
        tokens: Tokens.
        nanousd: 1e-9 US dollars.
    """

    tokens: int = 0
    nanousd: int = 0

    @classmethod
    def of(cls, tokens: int, usd: float) -> Amount:
        """An amount from US dollars, rounded up: a price is never rounded to nothing."""
        # What is less than a millionth of a nanodollar is the last digit of a float, not money.
        return cls(tokens, math.ceil(round(usd * NANO, 6)))

    @property
    def usd(self) -> float:
        """US dollars."""
        return self.nanousd / NANO


class Limit(Struct, frozen=True):
    """Most that may be settled and held together on one day; None = no limit."""

    tokens: int | None = None
    nanousd: int | None = None


class Used(Struct, frozen=True):
    """What one entry used on one day.

    Attributes:
        tokens: Tokens settled.
        nanousd: Money settled, in 1e-9 US dollars.
        held_tokens: Tokens reserved by calls that run.
        held_nanousd: Money reserved by calls that run, in 1e-9 US dollars.
        estimated_tokens: How many of the settled tokens no server reported.
        calls: Number of calls settled.
    """

    tokens: int = 0
    nanousd: int = 0
    held_tokens: int = 0
    held_nanousd: int = 0
    estimated_tokens: int = 0
    calls: int = 0

    @property
    def usd(self) -> float:
        """US dollars settled."""
        return self.nanousd / NANO

    @property
    def held_usd(self) -> float:
        """US dollars reserved by calls that run."""
        return self.held_nanousd / NANO

    def has_room(self, amount: Amount, limit: Limit) -> bool:
        """Whether a call of that size still fits."""
        if limit.tokens is not None and self.tokens + self.held_tokens + amount.tokens > limit.tokens:
            return False
        return limit.nanousd is None or self.nanousd + self.held_nanousd + amount.nanousd <= limit.nanousd

    def __add__(self, other: Used) -> Used:
        return Used(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Hold(Struct, frozen=True):
    """A reservation, as its owner has it. `id` is unique in its store."""

    id: str
    name: str
    day: date
    amount: Amount


class OpenHold(Struct, frozen=True):
    """A reservation, as it stands in the books.

    Attributes:
        hold: What is reserved.
        state: "held" = nothing was sent yet, "sent" = the server may be working for it.
        since: When it was made, in seconds since the epoch.
        owner: Who made it.
        alive: Whether the owner runs; None = that cannot be seen from here.
    """

    hold: Hold
    state: Literal["held", "sent"]
    since: float
    owner: Owner
    alive: bool | None


class NoRoom(Exception):
    """A reservation does not fit.

    Attributes:
        used: What stood in the books.
    """

    def __init__(self, used: Used) -> None:
        self.used = used
        super().__init__("the budget has no room")


class Ledger(Protocol):
    """A store of reservations and usage, safe from any thread.

    Those that say so raise `LedgerError`. The others never fail: what they were told is kept until it can be
    written down, and counts at once for whoever asks in this process.
    """

    @property
    def is_open(self) -> bool:
        """Whether `ready` has nothing to wait for."""

    def ready(self) -> None:
        """Raise `LedgerError` when the books cannot be kept at present; free of cost when they can."""

    def reserve(self, name: str, day: date, amount: Amount, limit: Limit) -> Hold:
        """Hold the worst case of a call. Raises `NoRoom` when a limit would be passed, or `LedgerError`."""

    def send(self, hold: Hold) -> bool:
        """Say that the request is about to go out: from now on a crash is charged in full.

        Returns False when the hold was given up meanwhile; it must be made anew. Raises `LedgerError`.
        """

    def settle(self, hold: Hold, amount: Amount, *, estimated: bool = False) -> None:
        """Replace the hold by what was used."""

    def release(self, hold: Hold) -> None:
        """Give the hold back: nothing was used."""

    def book(self, name: str, day: date, amount: Amount, *, estimated: bool = False) -> None:
        """Record what an entry without budget used."""

    def usage(self, day: date) -> dict[str, Used]:
        """What every entry used and holds on `day`. Raises `LedgerError`."""

    def history(self, since: date) -> dict[date, dict[str, Used]]:
        """What was settled on each day from `since` on, days in order. Raises `LedgerError`."""

    def holds(self) -> Sequence[OpenHold]:
        """Every open reservation, oldest first; those of dead owners expire first. Raises `LedgerError`."""

    def reset(self, name: str, day: date) -> Used:
        """Let the entry's usage of that day begin at zero; open holds stay. Returns what stood there.

        Raises `LedgerError`.
        """

    def flush(self) -> None:
        """Write down what is still in memory. Raises `LedgerError`."""

    def close(self) -> None:
        """`flush`, and let go of the store. It can be used again. Raises `LedgerError`."""
