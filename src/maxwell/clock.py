"""Time as a value that is passed in, so that tests decide what time it is."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one to compare with other processes, one to measure with."""

    def time(self) -> float:
        """Seconds since the epoch; may be set back by the machine's owner."""

    def monotonic(self) -> float:
        """Seconds since some moment; never runs backwards."""


class SystemClock:
    """The machine's clocks."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()
