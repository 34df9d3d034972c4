"""A ledger that lives in memory: for tests, and for callers who want nothing written."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial

import msgspec

from maxwell.database.owners import this_process
from maxwell.ledger import Amount, Hold, Limit, NoRoom, OpenHold, Used
from maxwell.ledger.tasks import settled


class MemoryLedger:
    """Books of this process alone. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # What is settled, released and booked, not yet in the books: a finalizer may say so at any moment, in
        # a thread that holds the lock.
        self._told: deque[Callable[[], None]] = deque()
        self._books: dict[tuple[date, str], Used] = {}
        self._open: dict[str, OpenHold] = {}

    @property
    def is_open(self) -> bool:
        """See `Ledger.is_open`."""
        return True

    def ready(self) -> None:
        """See `Ledger.ready`: they always can."""

    def reserve(self, name: str, day: date, amount: Amount, limit: Limit) -> Hold:
        """See `Ledger.reserve`."""
        hold = Hold(uuid.uuid4().hex, name, day, amount)
        with self._up_to_date():
            used = self._usage(day).get(name, Used())
            if not used.has_room(amount, limit):
                raise NoRoom(used)
            self._open[hold.id] = OpenHold(hold, "held", time.time(), this_process(), True)
        return hold

    def send(self, hold: Hold) -> bool:
        """See `Ledger.send`."""
        with self._up_to_date():
            known = self._open.get(hold.id)
            if known is None:
                return False
            self._open[hold.id] = msgspec.structs.replace(known, state="sent")
            return True

    def settle(self, hold: Hold, amount: Amount, *, estimated: bool = False) -> None:
        """See `Ledger.settle`."""
        self._told.append(partial(self._end, hold, settled(amount, estimated)))

    def release(self, hold: Hold) -> None:
        """See `Ledger.release`."""
        self._told.append(partial(self._end, hold, Used()))

    def book(self, name: str, day: date, amount: Amount, *, estimated: bool = False) -> None:
        """See `Ledger.book`."""
        self._told.append(partial(self._add, name, day, settled(amount, estimated)))

    def usage(self, day: date) -> dict[str, Used]:
        """See `Ledger.usage`."""
        with self._up_to_date():
            return self._usage(day)

    def history(self, since: date) -> dict[date, dict[str, Used]]:
        """See `Ledger.history`."""
        books: dict[date, dict[str, Used]] = {}
        with self._up_to_date():
            for (day, name), used in sorted(self._books.items()):
                if day >= since:
                    books.setdefault(day, {})[name] = used
        return books

    def holds(self) -> Sequence[OpenHold]:
        """See `Ledger.holds`."""
        with self._up_to_date():
            return sorted(self._open.values(), key=lambda found: (found.since, found.hold.id))

    def reset(self, name: str, day: date) -> Used:
        """See `Ledger.reset`."""
        with self._up_to_date():
            return self._books.pop((day, name), Used())

    def flush(self) -> None:
        """Nothing to write."""

    def close(self) -> None:
        """Nothing to close."""

    @contextmanager
    def _up_to_date(self) -> Iterator[None]:
        with self._lock:
            while self._told:
                self._told.popleft()()
            yield

    def _end(self, hold: Hold, change: Used) -> None:
        if self._open.pop(hold.id, None) is not None and change != Used():
            self._add(hold.name, hold.day, change)

    def _add(self, name: str, day: date, change: Used) -> None:
        self._books[day, name] = self._books.get((day, name), Used()) + change

    def _usage(self, day: date) -> dict[str, Used]:
        books = {name: used for (on, name), used in self._books.items() if on == day}
        for found in self._open.values():
            hold = found.hold
            if hold.day == day:
                held = Used(0, 0, hold.amount.tokens, hold.amount.nanousd)
                books[hold.name] = books.get(hold.name, Used()) + held
        return books
