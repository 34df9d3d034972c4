from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.ledger.days import budget_day, resets_at, zone
from maxwell.testing.clock import FakeClock

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")


def instant(text: str) -> float:
    """Seconds since the epoch of a UTC time."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.fixture
def machine_in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("now", "tz", "day", "hours"),
    [
        # An ordinary day.
        ("2026-01-14T23:00", BERLIN, date(2026, 1, 15), 24),
        # The clock goes forward: 23 hours in Berlin on 29 March, in New York on 8 March.
        ("2026-03-28T23:00", BERLIN, date(2026, 3, 29), 23),
        ("2026-03-08T05:00", NEW_YORK, date(2026, 3, 8), 23),
        # It goes back: 25 hours in Berlin on 25 October, in New York on 1 November.
        ("2026-10-24T22:00", BERLIN, date(2026, 10, 25), 25),
        ("2026-11-01T04:00", NEW_YORK, date(2026, 11, 1), 25),
    ],
)
def test_a_day_lasts_from_midnight_to_midnight(now: str, tz: tzinfo, day: date, hours: int) -> None:
    start = instant(now)
    assert budget_day(start, tz) == day
    assert budget_day(start - 0.001, tz) == day - timedelta(days=1)
    assert resets_at(start, tz).timestamp() - start == hours * 3600
    assert budget_day(start + hours * 3600 - 0.001, tz) == day
    assert budget_day(start + hours * 3600, tz) == day + timedelta(days=1)


@pytest.mark.parametrize(
    ("now", "tz", "shown"),
    [
        ("2026-03-29T00:30", BERLIN, "2026-03-30 00:00 CEST"),  # just before the clock goes forward
        ("2026-03-29T12:00", BERLIN, "2026-03-30 00:00 CEST"),
        ("2026-10-25T00:30", BERLIN, "2026-10-26 00:00 CET"),  # in the hour that comes twice
        ("2026-10-25T01:30", BERLIN, "2026-10-26 00:00 CET"),
        ("2026-03-08T06:59", NEW_YORK, "2026-03-09 00:00 EDT"),
        ("2026-11-01T05:59", NEW_YORK, "2026-11-02 00:00 EST"),
    ],
)
def test_a_reset_is_told_in_the_zone_of_that_midnight(now: str, tz: tzinfo, shown: str) -> None:
    assert f"{resets_at(instant(now), tz):%Y-%m-%d %H:%M %Z}" == shown


def test_at_midnight_the_new_day_has_begun() -> None:
    midnight = instant("2026-06-30T22:00")
    assert budget_day(midnight, BERLIN) == date(2026, 7, 1)
    assert resets_at(midnight, BERLIN).timestamp() - midnight == 24 * 3600


@pytest.mark.parametrize(
    ("start", "hours"), [("2026-03-27T23:00", 23), ("2026-10-23T22:00", 25), ("2026-06-13T22:00", 24)]
)
def test_no_hour_is_lost_or_counted_twice(start: str, hours: int) -> None:
    """A clock that goes on through three days: the one in the middle is the one of the change."""
    clock = FakeClock(instant(start))
    first = budget_day(clock.time(), BERLIN)
    days = []
    while (day := budget_day(clock.time(), BERLIN)) < first + timedelta(days=3):
        days.append(day)
        clock.advance(600)
    assert days == sorted(days)
    counts = [days.count(first + timedelta(days=n)) for n in range(3)]
    assert counts == [24 * 6, hours * 6, 24 * 6]


def test_a_clock_that_is_set_back_is_believed() -> None:
    clock = FakeClock(instant("2026-07-01T22:30"))
    assert budget_day(clock.time(), BERLIN) == date(2026, 7, 2)
    clock.now -= 3600
    assert budget_day(clock.time(), BERLIN) == date(2026, 7, 1)
    assert resets_at(clock.time(), BERLIN).timestamp() - clock.time() == 1800


def test_zones_disagree_about_the_day() -> None:
    now = instant("2026-07-01T01:00")
    assert budget_day(now, BERLIN) == date(2026, 7, 1)
    assert budget_day(now, NEW_YORK) == date(2026, 6, 30)


@pytest.mark.parametrize(
    ("now", "day", "hours"),
    [
        ("2026-03-08T05:00", date(2026, 3, 8), 23),
        ("2026-11-01T04:00", date(2026, 11, 1), 25),
        ("2026-07-04T04:00", date(2026, 7, 4), 24),
    ],
)
@pytest.mark.usefixtures("machine_in_new_york")
def test_without_a_zone_the_machines_own_counts(now: str, day: date, hours: int) -> None:
    start = instant(now)
    assert budget_day(start, None) == day
    assert budget_day(start - 1, None) == day - timedelta(days=1)
    reset = resets_at(start, None)
    assert reset.timestamp() - start == hours * 3600
    assert reset.tzname() in ("EST", "EDT")


# Zones that change at midnight, have no whole hours, skipped a day or lie far from everything.
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Asia/Beirut",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Pacific/Kiritimati",
    "UTC",
)


@settings(deadline=None, max_examples=300)
@given(now=st.floats(instant("2010-01-01T00:00"), instant("2037-01-01T00:00")), name=st.sampled_from(ZONES))
def test_the_day_changes_at_the_reset_and_not_before(now: float, name: str) -> None:
    tz = ZoneInfo(name)
    reset = resets_at(now, tz).timestamp()
    assert now < reset <= now + 25 * 3600
    assert budget_day(reset - 0.01, tz) == budget_day(now, tz)
    assert budget_day(reset, tz) > budget_day(now, tz)


def test_a_zone_is_found_by_name() -> None:
    assert zone(None) is None
    assert zone("Europe/Berlin") == BERLIN
