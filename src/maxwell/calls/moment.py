"""A candidate as its server stands at this moment: who else is there, until when it must be waited for.

Pure: what is known comes in, a candidate goes out.
"""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

from maxwell.amounts import duration
from maxwell.breaker import phase, share
from maxwell.decision import Candidate
from maxwell.flights import Load
from maxwell.health import Health
from maxwell.queueing import remaining, slowdown
from maxwell.speed import LIKELY_LOAD, LIKELY_WAKE, Speeds

LEAST_OVERRUN = 3  # requests running, from which their lateness says something of the server and not of them
LONGEST_LOAD = 600.0  # seconds after which nobody believes that a server is still loading, unless it usually
LOADS_LONGER = 3.0  # takes so: then so many times as long

NOBODY = Load()


class Others(Struct, frozen=True):
    """What others than this user's processes on this machine do at a server.

    Attributes:
        count: Requests of theirs, probably.
        age: How long ago the server was asked, in seconds.
    """

    count: float = 0.0
    age: float = 0.0


NO_OTHERS = Others()


def at_this_moment(
    candidate: Candidate, health: Health, load: Load, others: Others, speeds: Speeds | None, now: float
) -> Candidate:
    """`candidate` with what depends on the moment; the same value where nothing does.

    Args:
        candidate: As its declaration, its server's limits and what was learned have it.
        health: What is known of its server.
        load: What this user's processes have there.
        others: What others have there.
        speeds: What was learned; None = nothing.
        now: Seconds since the epoch.
    """
    breaker = health.breaker
    in_phase, part = phase(breaker, now), share(breaker, now)
    if health.state == "up" and load is NOBODY and others is NO_OTHERS and part == 1.0:
        return candidate
    failing = in_phase == "open" or (in_phase == "half_open" and load.trials > 0)
    slots = candidate.slots
    if slots is not None:
        slots = max(1, math.ceil(slots * part))
    return replace(
        candidate,
        in_flight=load.running + load.waiting + others.count,
        ahead=load.running + load.waiting,
        counted=others.age,
        slots=slots,
        slowdown=slowdown(load.overrun) if load.running >= LEAST_OVERRUN else 1.0,
        ready_in=ready_in(health, speeds, now),
        failing=failing,
        detail=_why_failing(candidate.detail, (breaker.until or now) - now) if failing else candidate.detail,
    )


def ready_in(health: Health, speeds: Speeds | None, now: float) -> float:
    """Seconds until the server can take a request; 0 = now or never, inf = nobody knows."""
    if health.state == "asleep":
        return LIKELY_WAKE if speeds is None else speeds.wake
    if health.state == "rate_limited":
        if health.until is None:  # a health check was refused, and calls perhaps are not: they find out
            return math.inf
        return max(health.until - now, 0.001)
    if health.state == "loading":
        expected = LIKELY_LOAD if speeds is None else speeds.load
        elapsed = max(now - (health.at if health.since is None else health.since), 0.0)
        if elapsed > max(LONGEST_LOAD, LOADS_LONGER * expected):
            return math.inf
        return remaining(expected, elapsed)
    return 0.0


def _why_failing(detail: str, left: float) -> str:
    again = f"it is tried again in {duration(left)}" if left > 0 else "one call is trying it out"
    return f"{detail or 'it failed again and again'}; {again}"
