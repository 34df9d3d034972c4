"""The loads that flights make. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from maxwell.flights import Load, Plan

Running = tuple[str, bool, float, float]  # endpoint, trial, seconds, since


class Flight(NamedTuple):
    """One flight as it is kept.

    Attributes:
        number: Grows with the moment of the first placement.
        endpoint: See `Plan`.
        waiting: See `Plan`.
        trial: See `Plan`.
        seconds: See `Plan`.
        since: When it began to run there, or last asked while it waits; in seconds since the epoch.
        name: See `Plan`.
    """

    number: int
    endpoint: str
    waiting: bool
    trial: bool
    seconds: float
    since: float
    name: str


def replaced(old: Flight | None, number: int, plan: Plan, now: float) -> Flight:
    """The flight after `plan` was decided for it: its place in the queue stays, and so does what runs on."""
    since = now
    if old is not None:
        number = old.number
        goes_on = not (old.waiting or plan.waiting) and (old.endpoint, old.name) == (plan.endpoint, plan.name)
        since = old.since if goes_on else now
    seconds = plan.seconds if math.isfinite(plan.seconds) else 0.0
    return Flight(number, plan.endpoint, plan.waiting, plan.trial, seconds, since, plan.name)


def split(flights: Iterable[Flight], before: float = math.inf) -> tuple[list[Running], dict[str, int]]:
    """Those that run, and how many wait at each endpoint; of these only the ones numbered below `before`."""
    running: list[Running] = []
    waiting: dict[str, int] = {}
    for number, endpoint, waits, trial, seconds, since, _ in flights:
        if not waits:
            running.append((endpoint, trial, seconds, since))
        elif number < before:
            waiting[endpoint] = waiting.get(endpoint, 0) + 1
    return running, waiting


def loads_of(running: Iterable[Running], waiting: Mapping[str, int], now: float) -> dict[str, Load]:
    """The load of each endpoint at `now`, in seconds since the epoch."""
    counts: dict[str, list[int]] = {}  # running, trials
    parts: dict[str, list[float]] = {}
    for endpoint, trial, seconds, since in running:
        count = counts.get(endpoint)
        if count is None:
            count = counts[endpoint] = [0, 0]
        count[0] += 1
        count[1] += trial
        if seconds > 0.0:
            # A clock that was set back shows no time that has passed.
            parts.setdefault(endpoint, []).append(max(now - since, 0.0) / seconds)
    loads = {
        endpoint: Load(number, waiting.get(endpoint, 0), trials, _median(parts.get(endpoint, ())))
        for endpoint, (number, trials) in counts.items()
    }
    for endpoint, number in waiting.items():
        if endpoint not in loads:
            loads[endpoint] = Load(0, number)
    return loads


def _median(parts: Sequence[float]) -> float:
    if not parts:
        return 0.0
    ordered, middle = sorted(parts), len(parts) // 2
    return ordered[middle] if len(parts) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
