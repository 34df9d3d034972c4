"""How long to wait for whoever holds a lock."""

from __future__ import annotations

import random
import sqlite3
import time

from maxwell.database.damage import is_busy

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.01  # seconds


class Locked(Exception):
    """A transaction could not begin.

    Attributes:
        error: What SQLite said.
    """

    def __init__(self, error: sqlite3.OperationalError) -> None:
        self.error = error
        super().__init__(str(error))


class Patience:
    """Waits again and again, for at most `seconds` in all."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE

    def rest(self, error: sqlite3.OperationalError) -> None:
        """Wait a little; raises `error` when it is no lock or the time is up."""
        if not is_busy(error) or time.monotonic() >= self._deadline:
            raise error
        # Random, so that waiting processes do not march in step.
        time.sleep(self._pause * random.uniform(0.5, 1.5))  # noqa: S311
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
