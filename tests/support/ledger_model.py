"""The books of a ledger as they should be, in plain Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import msgspec

from maxwell.ledger import Amount, Hold, Limit, Used
from maxwell.ledger.sqlite import LEASE_SECONDS

CORRECTABLE = 2 * 86400.0  # seconds; how long a charge may be corrected

Key = tuple[str, date]
State = dict[str, dict[str, int]]


@dataclass
class Entry:
    """A reservation in the model. Its state is one of held, sent, expired, ended."""

    hold: Hold
    program: int
    since: float
    state: str = "held"
    owner: str = "here"

    @property
    def is_open(self) -> bool:
        return self.state in ("held", "sent")


@dataclass
class Model:
    """The books as they should be."""

    settled: dict[Key, Used] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    waiting: dict[int, list[tuple[Key, Used]]] = field(default_factory=dict)  # of each program

    def add(self, key: Key, change: Used) -> None:
        self.settled[key] = self.settled.get(key, Used()) + change

    def used(self, key: Key) -> Used:
        used = self.settled.get(key, Used())
        for entry in self.entries.values():
            if entry.is_open and (entry.hold.name, entry.hold.day) == key:
                used += Used(0, 0, entry.hold.amount.tokens, entry.hold.amount.nanousd)
        return used

    def views(self, key: Key, program: int) -> list[Used]:
        """What a program may see: of what waits in each of the others, the latest may not be written yet."""
        missing = [
            list(
                itertools.accumulate(
                    (change for on, change in reversed(changes) if on == key), initial=Used()
                )
            )
            for number, changes in self.waiting.items()
            if number != program
        ]
        all_written = self.used(key)
        return [all_written + negative(sum(parts, Used())) for parts in itertools.product(*missing)]

    def end(self, entry: Entry, change: Used) -> None:
        """A settlement or a release; only the first one counts, and it may come late."""
        key, held = (entry.hold.name, entry.hold.day), entry.hold.amount
        if entry.is_open:
            back = Used(0, 0, -held.tokens, -held.nanousd)
            self.waiting.setdefault(entry.program, []).append((key, change + back))
            if change != Used():
                self.add(key, change)
        elif entry.state == "expired":
            self.add(key, change + Used(-held.tokens, -held.nanousd, 0, 0, -held.tokens, -1))
        entry.state = "ended"

    def gone(self, now: float) -> list[Entry]:
        """The open reservations of owners who are dead, or cannot be seen and have had their time."""
        return [
            entry
            for entry in self.entries.values()
            if entry.is_open
            and (entry.owner == "dead" or (entry.owner == "elsewhere" and now - entry.since > LEASE_SECONDS))
        ]

    def look(self, now: float) -> None:
        """Some program looks whose owners are dead."""
        gone = self.gone(now)
        for entry in gone:
            amount = entry.hold.amount
            if entry.state == "sent":
                full = Used(amount.tokens, amount.nanousd, 0, 0, amount.tokens, 1)
                self.add((entry.hold.name, entry.hold.day), full)
            entry.state = "expired" if entry.state == "sent" else "ended"
        if gone:
            self.forget(lambda entry: entry.since < now - CORRECTABLE)

    def forget(self, which: Callable[[Entry], bool]) -> None:
        """From now on nothing corrects these charges."""
        for entry in self.entries.values():
            if entry.state == "expired" and which(entry):
                entry.state = "ended"

    def tokens(self) -> State:
        """What `llm_usage.json` should say."""
        state: State = {}
        for (name, day), used in sorted(self.settled.items()):
            state.setdefault(name, {})[day.isoformat()] = used.tokens
        return state


def negative(used: Used) -> Used:
    return Used(*(-number for number in msgspec.structs.astuple(used)))


def fits(used: Used, amount: Amount, limit: Limit) -> bool:
    """Whether all of it together stays within the limit."""
    tokens = used.tokens + used.held_tokens + amount.tokens
    nanousd = used.nanousd + used.held_nanousd + amount.nanousd
    return (limit.tokens is None or tokens <= limit.tokens) and (
        limit.nanousd is None or nanousd <= limit.nanousd
    )
