"""S6: a server that refuses, one that answers 429, one that becomes twenty times slower."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from maxwell.calls.status import statuses
from scheduling.driver import run_all
from scheduling.machines import POOL, Spell, Weather
from scheduling.naive import LeastDelay, Line
from scheduling.results import Result, percentiles, progress
from scheduling.subject import Calls, Lab, call, spec_of
from scheduling.workload import Floats, Load, poisson

COUNT, SHARE = 850, 0.4
P99_GOAL = 44.0
FAILURE_SECONDS = 0.005
HEALTH_SECONDS = 30.0


def weather() -> dict[str, Weather]:
    """D refuses from 60 to 120 s, C answers 429 from 120 to 180 s, B is slow from 180 to 240 s."""
    return {
        "D": Weather([Spell("refusal", 60, 120)]),
        "C": Weather([Spell("storm", 120, 180)]),
        "B": Weather([Spell("slow", 180, 240, 20.0)]),
    }


class _Naive:
    """A rule, with what its health checks or its measured times tell it.

    Args:
        load: The jobs.
        attempts: Most attempts of a job, all at the server first chosen.
        by_latency: Whether it goes by a moving mean of times, which a fast failure improves.
    """

    def __init__(self, load: Load, *, attempts: int = 1, by_latency: bool = False) -> None:
        self._load = load
        self._attempts = attempts
        self._by_latency = by_latency
        self._weather = [weather().get(m.name, Weather()) for m in POOL]
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
    case = "refusal, 429, 20 x slow"
    for seed in seeds:
        progress("S6 seed", seed)
        load = poisson(COUNT, seed, POOL, SHARE)
        for name, rule in (
            ("by moving mean of times", _Naive(load, by_latency=True)),
            ("health check every 30 s", _Naive(load)),
            ("the same, two retries at the same server", _Naive(load, attempts=3)),
        ):
            latencies, attempts = rule.play()
            _add(result, case, name, latencies, load, attempts, None)
        lab = Lab(POOL, load.jobs(), weather())
        state = lab.pool([spec_of(m) for m in POOL])
        run_all(lab.world, [lab.task(statuses(state))])
        done = Calls(lab, load, lambda job, state=state: call(state, job)).run()
        attempts = sum(len(c.attempts) for c in done.done if c is not None) + len(done.errors)
        _add(result, case, "Maxwell", done.latencies, load, attempts, 1.0)
    ours = next(row for row in result.rows if row.policy == "Maxwell")
    p99 = float(np.mean(ours.figures["p99 s"]))
    verdict = "reached" if p99 < P99_GOAL else "missed"
    result.remarks.append(f"Goal of Maxwell's p99, all calls: below {P99_GOAL:g} s; {p99:.1f} s: {verdict}.")
    return result


def _add(
    result: Result,
    case: str,
    name: str,
    latencies: Floats,
    load: Load,
    attempts: int,
    goal: float | None,
) -> None:
    good = latencies[~np.isnan(latencies)]
    late = load.arrivals >= 180.0
    slow = latencies[late & (load.arrivals < 240.0) & ~np.isnan(latencies)]
    figures = percentiles(good)
    figures["p99 s in the brown-out"] = float(np.percentile(slow, 99))
    figures["attempts a call"] = attempts / len(load)
    result.row(case, name, goal, at_least=True).add(len(good) / len(load), **figures)
