"""S6: a server that refuses, one that answers 429, one that becomes twenty times slower."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import partial
from statistics import fmean

import numpy as np

from maxwell.calls.status import statuses
from scheduling.driver import run_all
from scheduling.machines import POOL, Spell, Weather
from scheduling.naive import LeastDelay, Line
from scheduling.results import Result, Row, percentiles, progress
from scheduling.subject import Calls, Lab, call, spec_of
from scheduling.workload import Floats, Load, poisson

COUNT, SHARE = 850, 0.4
P99_GOAL = 44.0
BROWN_OUT = "p99 s, brown-out"
FAILURE_SECONDS = 0.005
HEALTH_SECONDS = 30.0


# The usual case slows a server that a good dispatcher hardly needs; the other one the server it needs most.
CASES = {"refusal, 429, B 20 x slower": "B", "refusal, 429, D 20 x slower": "D"}


def weather(slow: str) -> dict[str, Weather]:
    """D refuses from 60 to 120 s, C answers 429 from 120 to 180 s, `slow` is that from 180 to 240 s."""
    spells: dict[str, list[Spell]] = {"D": [Spell("refusal", 60, 120)], "C": [Spell("storm", 120, 180)]}
    spells.setdefault(slow, []).append(Spell("slow", 180, 240, 20.0))
    return {name: Weather(befalls) for name, befalls in spells.items()}


class _Naive:
    """A rule, with what its health checks or its measured times tell it.

    Args:
        load: The jobs.
        troubles: What befalls the servers.
        attempts: Most attempts of a job, all at the server first chosen.
        by_latency: Whether it goes by a moving mean of times, which a fast failure improves.
    """

    def __init__(
        self, load: Load, troubles: dict[str, Weather], *, attempts: int = 1, by_latency: bool = False
    ) -> None:
        self._load = load
        self._attempts = attempts
        self._by_latency = by_latency
        self._weather = [troubles.get(m.name, Weather()) for m in POOL]
        self._rule = LeastDelay(POOL, load, 0)
        self._recent = self._rule.service.copy()
        self._up = np.ones(len(POOL), bool)

    def play(self) -> tuple[Floats, int]:
        """Latencies (NaN = failed) and attempts."""
        lines = [Line(machine) for machine in POOL]
        seconds = self._load.seconds(POOL)
        latencies = np.full(len(self._load), np.nan)
        ended: list[tuple[float, int, float]] = []
        next_look, attempts = -HEALTH_SECONDS / 2, 0
        for number, now in enumerate(self._load.arrivals.tolist()):
            while now >= next_look:  # the last answer before now
                self._up = np.array([not w.is_in("refusal", max(next_look, 0.0)) for w in self._weather])
                next_look += HEALTH_SECONDS
            while ended and ended[0][0] <= now:
                _, i, took = heapq.heappop(ended)
                self._recent[i] += 0.2 * (took - self._recent[i])
            chosen = self._choose(number, np.array([line.count(now) for line in lines], float))
            at = now
            for _ in range(self._attempts):
                attempts += 1
                if not self._fails(chosen, at):
                    slow = self._weather[chosen].slowness(at)
                    end = lines[chosen].submit(at, float(seconds[number, chosen]) * slow)
                    latencies[number] = end - now
                    heapq.heappush(ended, (end, chosen, end - now))
                    break
                at += FAILURE_SECONDS
                self._recent[chosen] += 0.2 * (FAILURE_SECONDS - self._recent[chosen])
        return latencies, attempts

    def _fails(self, chosen: int, at: float) -> bool:
        weather = self._weather[chosen]
        return weather.is_in("refusal", at) or weather.is_in("storm", at)

    def _choose(self, number: int, counts: Floats) -> int:
        if self._by_latency:
            return int(np.argmin(self._recent * (counts + 1) / self._rule.slots))
        return int(np.argmin(np.where(self._up, self._rule.expected(number, counts), np.inf)))


def run(seeds: Sequence[int]) -> Result:
    """Success and the far end of the times."""
    result = Result("S6", f"faults, rho {SHARE:g}: share of calls that succeed", "success")
    for case, slow in CASES.items():
        for seed in seeds:
            progress("S6", case, "seed", seed)
            load = poisson(COUNT, seed, POOL, SHARE)
            for name, rule in (
                ("by moving mean of times", _Naive(load, weather(slow), by_latency=True)),
                ("health check every 30 s", _Naive(load, weather(slow))),
                ("the same, two retries at the same server", _Naive(load, weather(slow), attempts=3)),
            ):
                latencies, attempts = rule.play()
                _add(result.row(case, name, at_least=True), latencies, load, attempts)
            lab = Lab(POOL, load.jobs(), weather(slow))
            state = lab.pool([spec_of(m) for m in POOL])
            run_all(lab.world, [lab.task(statuses(state))])
            done = Calls(lab, load, partial(call, state)).run()
            attempts = sum(len(c.attempts) for c in done.done if c is not None) + len(done.errors)
            row = result.row(case, "Maxwell", 1.0, at_least=True)
            _add(row, done.latencies, load, attempts)
    for row in result.rows:
        if row.policy == "Maxwell":
            p99 = fmean(row.figures[BROWN_OUT])
            verdict = "reached" if p99 < P99_GOAL else "missed"
            goal = f"goal of its p99 in the brown-out: below {P99_GOAL:g} s"
            result.remarks.append(f"Maxwell, {row.case}: {goal}; {p99:.1f} s, {verdict}.")
    return result


def _add(row: Row, latencies: Floats, load: Load, attempts: int) -> None:
    good = ~np.isnan(latencies)
    late = good & (load.arrivals >= 180.0) & (load.arrivals < 240.0)
    figures = percentiles(latencies[good])
    figures[BROWN_OUT] = float(np.percentile(latencies[late], 99))
    figures["worst s"] = float(latencies[good].max())
    figures["attempts a call"] = attempts / len(load)
    row.add(float(good.mean()), **figures)
