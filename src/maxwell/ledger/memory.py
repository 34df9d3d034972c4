"""A ledger that lives in memory: for tests, and for callers who want nothing written."""

from __future__ import annotations

import threading
import uuid
from datetime import date

from maxwell.ledger import Hold, NoRoom, Used, has_room


class MemoryLedger:
    """Books of this process alone. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settled: dict[tuple[str, date], tuple[int, float]] = {}
        self._held: dict[str, tuple[Hold, int, float]] = {}

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
        """See `Ledger.reserve`."""
        with self._lock:
            used = self._used(day).get(name, Used())
            if not has_room(used, tokens, usd, most_tokens, most_usd):
                raise NoRoom(used)
            hold = Hold(uuid.uuid4().hex, name, day)
            self._held[hold.id] = (hold, tokens, usd)
            return hold

    def settle(self, hold: Hold, tokens: int, usd: float) -> None:
        """See `Ledger.settle`."""
        with self._lock:
            if self._held.pop(hold.id, None) is not None:
                self._add(hold.name, hold.day, tokens, usd)

    def release(self, hold: Hold) -> None:
        """See `Ledger.release`."""
        with self._lock:
            self._held.pop(hold.id, None)

    def book(self, name: str, day: date, tokens: int, usd: float) -> None:
        """See `Ledger.book`."""
        with self._lock:
            self._add(name, day, tokens, usd)

    def used(self, day: date) -> dict[str, Used]:
        """See `Ledger.used`."""
        with self._lock:
            return self._used(day)

    def flush(self) -> None:
        """Nothing to write."""

    def close(self) -> None:
        """Nothing to close."""

    def _add(self, name: str, day: date, tokens: int, usd: float) -> None:
        old_tokens, old_usd = self._settled.get((name, day), (0, 0.0))
        self._settled[name, day] = (old_tokens + tokens, old_usd + usd)

    def _used(self, day: date) -> dict[str, Used]:
        books = {name: Used(*amounts) for (name, on), amounts in self._settled.items() if on == day}
        for hold, tokens, usd in self._held.values():
            if hold.day == day:
                old = books.get(hold.name, Used())
                books[hold.name] = Used(old.tokens, old.usd, old.held_tokens + tokens, old.held_usd + usd)
        return books
