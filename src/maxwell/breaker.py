"""When a server that fails is left alone, and when it may show that it is well again. Pure.

closed --failures--> open --time--> half-open --a trial succeeds--> closed
                      ^                 |
                      +--a trial fails--+ (for twice as long)

Time (seconds since the epoch) and chance (`draw`, in [0, 1)) are passed in. That only one trial runs while
half-open is the business of whoever sends requests.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

Phase = Literal["closed", "open", "half_open"]

FAILURES_IN_A_ROW = 3
WINDOW_SECONDS = 30.0  # within which half of the results, and of LEAST_RESULTS at least, may not be failures
LEAST_RESULTS = 10
SHORTEST_OPEN = 5.0  # seconds, doubled each time
LONGEST_OPEN = 120.0
JITTER = 0.2  # so that many processes do not come back at one moment
WELL_SECONDS = 60.0  # so long a server must stay well until its earlier failures are forgotten
SLOW_START_SECONDS = 10.0
LEAST_SHARE = 0.1

_HALF = WINDOW_SECONDS / 2
_MOST_DOUBLINGS = 5


class Breaker(Struct, frozen=True, omit_defaults=True):
    """What is remembered of one server's results; the default has never seen a failure.

    Results are counted in two halves of the window, the present one and the one before.

    Attributes:
        until: When the open phase ends, in seconds since the epoch; None = closed.
        times: How often it opened without staying well in between.
        refused: Whether it is open because no connection could be made.
        closed_at: When it closed again; None = it never was open.
        at: When something last happened that other processes should know; 0 = never.
        in_a_row: Failures since the last success.
        half_began: When the present half began.
        good: Successes in it.
        bad: Failures in it.
        good_before: Successes in the half before.
        bad_before: Failures in the half before.
    """

    until: float | None = None
    times: int = 0
    refused: bool = False
    closed_at: float | None = None
    at: float = 0.0
    in_a_row: int = 0
    half_began: float = 0.0
    good: int = 0
    bad: int = 0
    good_before: int = 0
    bad_before: int = 0


CLOSED = Breaker()


def phase(b: Breaker, now: float) -> Phase:
    """Closed: anything goes. Open: no traffic. Half-open: one trial at a time."""
    if b.until is None:
        return "closed"
    # An end much farther away than any is of a time before the clock was set back.
    return "open" if now < b.until < now + 2 * LONGEST_OPEN else "half_open"


def share(b: Breaker, now: float) -> float:
    """Part of the server's slots that may be used, in (0, 1]: grows for 10 s after it closed again."""
    if b.until is not None:
        return LEAST_SHARE
    if b.closed_at is None or not 0 <= now - b.closed_at < SLOW_START_SECONDS:
        return 1.0
    return LEAST_SHARE + (1 - LEAST_SHARE) * (now - b.closed_at) / SLOW_START_SECONDS


def failed(b: Breaker, now: float, *, at_once: bool = False, refused: bool = False, draw: float) -> Breaker:
    """After a failure of the server.

    Args:
        b: What was remembered.
        now: Time of the failure.
        at_once: Open without waiting for more failures: the server fell silent.
        refused: No connection could be made; opens at once, too.
        draw: Chance in [0, 1), for the length of the open phase.
    """
    before = phase(b, now)
    if before == "open":  # a request from before; one outage counts once
        return replace(b, refused=True, at=now) if refused and not b.refused else b
    in_a_row = b.in_a_row + 1
    counted = replace(_counted(b, now, bad=1), at=now, in_a_row=in_a_row)
    if at_once or refused or before == "half_open" or in_a_row >= FAILURES_IN_A_ROW or _is_bad(counted):
        return _opened(b, now, refused, draw)
    return counted


def succeeded(b: Breaker, now: float) -> Breaker:
    """After a real success, which closes it whatever was before."""
    if b.until is not None:
        return Breaker(times=b.times, closed_at=now, at=now, half_began=now, good=1)
    counted = _counted(b, now, good=1)
    return replace(counted, in_a_row=0, at=now) if b.in_a_row else counted


def answered(b: Breaker, now: float) -> Breaker:
    """After a reply that is neither success nor failure of the server, e.g. that the request is wrong."""
    return replace(b, in_a_row=0, at=now) if b.in_a_row else b


def came_back(b: Breaker, now: float) -> Breaker:
    """After a sign that the server takes connections: one that refused them may be tried at once."""
    return replace(b, until=now, at=now) if b.refused and phase(b, now) == "open" else b


def newer(one: Breaker, other: Breaker, now: float) -> Breaker:
    """Of what two processes remember, what happened last; `one` where neither did."""
    return other if (other.at <= now, other.at) > (one.at <= now, one.at) else one


def _opened(b: Breaker, now: float, refused: bool, draw: float) -> Breaker:
    was_well = b.until is None and (b.closed_at is None or not 0 <= now - b.closed_at < WELL_SECONDS)
    doublings = 0 if was_well else min(max(b.times, 0), _MOST_DOUBLINGS)
    seconds = min(SHORTEST_OPEN * 2**doublings, LONGEST_OPEN) * (1 - JITTER + 2 * JITTER * draw)
    return Breaker(until=now + seconds, times=min(doublings + 1, _MOST_DOUBLINGS), refused=refused, at=now)


def _is_bad(b: Breaker) -> bool:
    bad = b.bad + b.bad_before
    total = bad + b.good + b.good_before
    return total >= LEAST_RESULTS and 2 * bad >= total


def _counted(b: Breaker, now: float, *, good: int = 0, bad: int = 0) -> Breaker:
    """With one more result, and without those that left the window."""
    age = now - b.half_began
    if 0 <= age < _HALF:
        return replace(b, good=b.good + good, bad=b.bad + bad)
    recent = _HALF <= age < WINDOW_SECONDS
    return replace(
        b,
        half_began=b.half_began + _HALF if recent else now,
        good_before=b.good if recent else 0,
        bad_before=b.bad if recent else 0,
        good=good,
        bad=bad,
    )
