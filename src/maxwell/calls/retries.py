"""When a call is tried again: what may pass at the same server, how soon, and how often in all.

A process may make one retry for ten calls, and one every ten seconds. Without such a bound every failing
call becomes three, and a server in trouble gets more work than one that is well.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

from maxwell.clock import Clock, SystemClock
from maxwell.errors import Fault
from maxwell.scheduler import PASSING, is_foreseeable
from maxwell.types import HealthState

# How often in all one server may be asked, where there is no other, after failures that may pass.
MOST_ASKED: dict[Fault, int] = {
    "refused": 3,
    "overloaded": 3,
    "rate_limited": 3,
    "loading": 3,
    "server_error": 2,
    "broken_stream": 2,
}
BACKOFF, MOST_BACKOFF = 0.5, 8.0  # seconds

A_CALL = 0.1  # a call earns so many retries
A_SECOND = 0.1
MOST_SAVED = 10.0


def may_ask_again(kind: Fault, asked: int) -> bool:
    """Whether a server that was asked so often, and failed like that, may be asked once more."""
    return asked < MOST_ASKED.get(kind, 1)


def is_worth_waiting(state: HealthState, ready_in: float, pause: float, left: float) -> bool:
    """Whether a server may be asked again after `pause`, with so many seconds `left`.

    What a server says of a rate limit can be relied on: there is no use in waiting for less.
    """
    passes = state not in PASSING or is_foreseeable(state, ready_in)
    told = ready_in if state == "rate_limited" else 0.0
    return passes and max(pause, told) < left


def backoff(asked: int, draw: float) -> float:
    """Seconds to leave a server alone that was asked so often: a random part of a span that doubles.

    `draw` is in [0, 1). Those who failed together must not come back together.
    """
    return draw * min(BACKOFF * 2.0 ** (asked - 1), MOST_BACKOFF)


_all: weakref.WeakSet[RetryBudget] = weakref.WeakSet()


def _in_child() -> None:
    for budget in _all:
        budget.start_afresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class RetryBudget:
    """A bucket of retries, filled by calls and by time. Safe from any thread.

    Args:
        clock: Tells how much time has passed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._saved = MOST_SAVED
        self._at = clock.monotonic()
        self._lock = threading.Lock()
        _all.add(self)

    def start_afresh(self) -> None:
        """In a forked child: the lock may be a thread's that is not there."""
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Retries that may be made now."""
        with self._lock:
            return self._filled()

    def earn(self) -> None:
        """A call is made."""
        with self._lock:
            self._saved = min(self._filled() + A_CALL, MOST_SAVED)

    def take(self) -> bool:
        """Take one retry out; False when there is none."""
        with self._lock:
            if self._filled() < 1.0:
                return False
            self._saved -= 1.0
            return True

    def _filled(self) -> float:
        now = self._clock.monotonic()
        self._saved = min(self._saved + A_SECOND * max(now - self._at, 0.0), MOST_SAVED)
        self._at = now
        return self._saved


_of_homes: dict[Path, RetryBudget] = {}


def shared_budget(home: Path, clock: Clock) -> RetryBudget:
    """This process's own, for all pools of a home; another clock than the system's is a world of its own."""
    if not isinstance(clock, SystemClock):
        return RetryBudget(clock)
    return _of_homes.setdefault(home, RetryBudget(clock))
