"""Virtual time: a clock that jumps from one event to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import UTC, datetime

EPOCH = datetime(2026, 1, 15, 6, 0, tzinfo=UTC).timestamp()  # hours from midnight wherever the machine stands


class Timer:
    """Something that is to happen, unless it is cancelled."""

    __slots__ = ("work",)

    def __init__(self, work: Callable[[], None]) -> None:
        self.work: Callable[[], None] | None = work

    def cancel(self) -> None:
        """Let it not happen."""
        self.work = None


class World:
    """A clock (see `maxwell.clock.Clock`) and the events still to come.

    Attributes:
        now: Seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0  # of two events at one moment the earlier planned comes first
        self._events: list[tuple[float, int, Timer]] = []

    def time(self) -> float:
        """Seconds since the epoch."""
        return EPOCH + self.now

    def monotonic(self) -> float:
        """Seconds since the beginning."""
        return self.now

    def after(self, seconds: float, work: Callable[[], None]) -> Timer:
        """Have `work` called in so many seconds; what lies in the past happens next."""
        timer = Timer(work)
        self._count += 1
        heapq.heappush(self._events, (self.now + max(seconds, 0.0), self._count, timer))
        return timer

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that is to happen, until it is over or `until()`."""
        while self._events and not until():
            when, _, timer = heapq.heappop(self._events)
            if timer.work is not None:  # a cancelled one moves no time
                self.now = when
                timer.work()
