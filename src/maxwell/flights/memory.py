"""Flights of this process alone: for tests, and where nothing can be shared with others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from maxwell.clock import Clock
from maxwell.flights import Busy, Load, Plan, Planner
from maxwell.flights.counts import Flight, loads_of, replaced, split


class MemoryFlights:
    """Flights of one process. A forked child begins without its parent's.

    Args:
        clock: Tells how long a flight has been running.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.start_afresh()
        from maxwell.database.lifetime import watch

        watch(self, first=True)

    def loads(self) -> Mapping[str, Load]:
        """See `Flights.loads`."""
        return loads_of(*split(self.flights().values()), self._clock.time())

    def place(self, id: str, plan: Planner, *, wait: bool = True) -> Plan | None:
        """See `Flights.place`."""
        with self._up_to_date(wait):
            old = self._flights.get(id)
            others = [flight for known, flight in self._flights.items() if known != id]
            before = self._number if old is None else old.number
            decided = plan(loads_of(*split(others, before), self._clock.time()))
            self._keep(id, decided)
            return decided

    def leave(self, id: str) -> None:
        """See `Flights.leave`."""
        self._left.append(id)  # no lock: a finalizer may say so in a thread that has it

    def keep(self, id: str, plan: Plan | None) -> None:
        """Write down what was decided elsewhere."""
        with self._up_to_date():
            self._keep(id, plan)

    def flights(self) -> dict[str, Flight]:
        """All flights by id, in the order of their first placement."""
        with self._up_to_date():
            return self._flights.copy()

    def _keep(self, id: str, plan: Plan | None) -> None:
        old = self._flights.get(id)
        if plan is None:
            self._flights.pop(id, None)
            return
        self._flights[id] = replaced(old, self._number, plan, self._clock.time())
        self._number += old is None

    @contextmanager
    def _up_to_date(self, wait: bool = True) -> Iterator[None]:
        if not self._lock.acquire(blocking=wait):
            raise Busy
        try:
            while self._left:
                self._flights.pop(self._left.popleft(), None)
            yield
        finally:
            self._lock.release()

    # --- forks

    def start_afresh(self) -> None:
        """Begin with nothing under way."""
        self._lock = threading.RLock()
        self._left: deque[str] = deque()  # not taken out yet
        self._flights: dict[str, Flight] = {}
        self._number = 1

    def before_fork(self) -> None:
        """Nothing to prepare: a child begins anew."""

    def after_fork(self) -> None:
        """Nothing was prepared."""

    def close(self) -> None:
        """Nothing to close."""
