"""The days that budgets run on: local dates in the registry's `budget_timezone`."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, tzinfo


def zone(name: str | None) -> tzinfo | None:
    """The time zone whose midnight starts a day; None = the machine's."""
    if name is None:
        return None
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def budget_day(now: float, tz: tzinfo | None) -> date:
    """The local date at `now` (seconds since the epoch)."""
    return datetime.fromtimestamp(now, tz).date()


def resets_at(now: float, tz: tzinfo | None) -> datetime:
    """The next local midnight after `now`, with its zone; 23 or 25 hours away when the clocks change."""
    tomorrow = budget_day(now, tz) + timedelta(days=1)
    midnight = datetime.combine(tomorrow, time())
    return midnight.astimezone() if tz is None else midnight.replace(tzinfo=tz)
