"""How long a request waits at servers that are in use, and what it costs those that come after it. Pure.

Notation: n requests are at a server (running, or held for it) besides the one that is asked about, it serves
S at once, and one usually occupies a slot for `service` seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FRESH_COUNT_SECONDS = 0.25  # a count of a server's requests that is older may not be taken at its word
OLD_COUNT_SECONDS = 60.0  # and one older than this says nothing
OVERRUN_FACTOR = 2.0  # requests that take so many times longer than expected: the server has become slow
MOST_SLOWDOWN = 5.0  # beyond that the speeds learned from what ends there tell more
MOST_DISPATCHERS = 64
OCCUPANCY_FACTOR = 1.5


def queue_wait(n: float, slots: int | None, service: float) -> float:
    """Seconds until a slot is free: max(0, n - S + 1) * service / S; 0 where any number is served at once."""
    if slots is None or n < slots:
        return 0.0
    return (n - slots + 1) * service / slots


def utilization(loads: Sequence[tuple[float, int]]) -> float:
    """Share of all slots that are in use: sum(min(n, S)) / sum(S), over servers given as (n, S)."""
    total = sum([slots for _, slots in loads])
    # `fsum`, because the order of the servers must not matter, and estimated counts are no whole numbers.
    return math.fsum([n if n < slots else slots for n, slots in loads]) / total if total else 0.0


def occupancy(n: float, slots: int | None, service: float, utilization: float) -> float:
    """What taking a slot costs those that come after, in seconds: 1.5 * U * service * n / S.

    The busier the whole pool, the dearer a slot of a server that is itself busy. The factor was found by
    simulation (benchmarks/scheduling, S3).
    """
    if slots is None or not n:
        return 0.0
    return OCCUPANCY_FACTOR * utilization * service * n / slots


def remaining(expected: float, elapsed: float) -> float:
    """Seconds until something ends that was expected to take `expected` and has taken `elapsed` so far.

    What is overdue is expected to go on for half as long as it is late: nobody knows, and it must not look
    as if it were about to end at every moment.
    """
    return max(expected - elapsed, 0.1 * expected, 0.5 * (elapsed - expected))


def slowdown(overrun: float) -> float:
    """How much slower a server has become, by the median of elapsed / expected seconds of what runs there."""
    return min(overrun, MOST_SLOWDOWN) if overrun > OVERRUN_FACTOR else 1.0


def stale_count(
    seen: float, age: float, slots: int | None, service: float, own: float, dispatchers: float
) -> float:
    """Requests that are probably at a server now, where others send it work that is not seen from here.

    Args:
        seen: Requests of others when the server was last asked.
        age: How long ago that was, in seconds.
        slots: Requests it serves at once.
        service: Seconds a request usually occupies a slot.
        own: Requests sent from here since then.
        dispatchers: How many send it work as this one does, itself included.
    """
    busy = seen if slots is None else min(seen, slots)
    drained = max(seen - age * busy / service, 0.0) if service > 0 else 0.0
    return drained + own * max(dispatchers - 1.0, 0.0)


def dispatchers(busy: float, own: float) -> float:
    """How many send work to the same servers, by how much is there and how much of that is ours."""
    if own <= 0:
        return 1.0
    return min(max(busy / own, 1.0), MOST_DISPATCHERS)


def two_of(weights: Sequence[float], draws: tuple[float, float]) -> tuple[int, int]:
    """Two different indexes drawn with probabilities in proportion to `weights`; the same one of one weight.

    Never uniformly: that would give a slow server as much as a fast one.
    """
    first = _drawn(weights, draws[0])
    if len(weights) == 1:
        return first, first
    rest = [0.0 if i == first else w for i, w in enumerate(weights)]
    return first, _drawn(rest, draws[1])


def _drawn(weights: Sequence[float], draw: float) -> int:
    """The index at which the running sum passes `draw` (in [0, 1)) of the total."""
    mark, running, last = draw * math.fsum(weights), 0.0, 0
    for i, weight in enumerate(weights):
        if weight <= 0:
            continue
        running, last = running + weight, i
        if mark < running:
            return i
    return last
