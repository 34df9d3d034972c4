"""A clock that moves only when told to."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

_START = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)


class FakeClock:
    """Time that stands still until `advance` is called.

    Pass its bound methods where code takes `time.time` or `time.monotonic`.

    Args:
        start: Where wall time begins: an aware datetime, or seconds since the epoch.

    Attributes:
        now: Wall time in seconds since the epoch. May be set, also backwards: a wall clock can be changed,
            and `monotonic()` does not follow.
    """

    def __init__(self, start: datetime | float = _START) -> None:
        if isinstance(start, datetime):
            if start.tzinfo is None:
                raise ValueError("start needs a time zone, e.g. datetime(2026, 1, 15, tzinfo=UTC)")
            start = start.timestamp()
        self.now = float(start)
        self._monotonic = 1000.0

    def time(self) -> float:
        """Wall time in seconds since the epoch, as `time.time` gives it."""
        return self.now

    def monotonic(self) -> float:
        """Seconds that never run backwards, as `time.monotonic` gives them."""
        return self._monotonic

    def as_datetime(self, tz: tzinfo = UTC) -> datetime:
        """Wall time as an aware datetime in `tz`."""
        return datetime.fromtimestamp(self.now, tz)

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks. Raises `ValueError` for a negative number."""
        if seconds < 0:
            raise ValueError(
                f"time cannot be advanced by {seconds} seconds; set `now` to move the wall clock back"
            )
        self.now += seconds
        self._monotonic += seconds

    def __repr__(self) -> str:
        return f"FakeClock({self.as_datetime().isoformat()})"
