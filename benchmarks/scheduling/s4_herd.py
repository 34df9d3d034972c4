"""S4: sixteen dispatchers that see the load only now and then, or share one table of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from maxwell.calls.state import PoolState
from maxwell.flights.memory import MemoryFlights
from maxwell.health import Health
from maxwell.learning import SpeedBook
from scheduling import bounds
from scheduling.machines import POOL
from scheduling.naive import LeastDelay, Line, Policy, TwoChoices, WeightedTwoChoices, play
from scheduling.results import Result, percentiles, progress
from scheduling.subject import Calls, Lab, call, spec_of
from scheduling.workload import Floats, Load, poisson

MACHINES = tuple(replace(m, name=f"{m.name}{copy}") for copy in (1, 2) for m in POOL)
COUNT, SHARE, DISPATCHERS = 4000, 0.7, 16
AGES = (0.25, 1.0, 5.0, 30.0)
GOALS = {30.0: 1.40}
SHARED_GOAL = 1.12


def play_stale(load: Load, policy: Policy, every: float, who: Sequence[int], own_times: int) -> Floats:
    """As `naive.play`, but the queues are seen every so many seconds.

    Args:
        load: The jobs.
        policy: The rule.
        every: Seconds between two looks.
        who: Which dispatcher gets each job.
        own_times: What a dispatcher sent since the last look counts so many times; 0 = it forgets.
    """
    lines = [Line(machine) for machine in MACHINES]
    seconds = load.seconds(MACHINES)
    seen, looked, own = np.zeros(len(MACHINES)), 0.0, np.zeros((DISPATCHERS, len(MACHINES)))
    latencies = np.zeros(len(load))
    for number, now in enumerate(load.arrivals.tolist()):
        if now >= looked + every:
            looked = now - now % every
            seen = np.array([line.count(looked) for line in lines], float)
            own[:] = 0
        counts = seen
        if own_times:
            drained = (now - looked) * np.minimum(seen, policy.slots) / policy.service
            counts = np.maximum(seen - drained, 0) + own[who[number]] * own_times
        chosen = policy.choose(number, counts)
        own[who[number], chosen] += 1
        latencies[number] = lines[chosen].submit(now, float(seconds[number, chosen])) - now
    return latencies


def _naive(result: Result, case: str, load: Load, seed: int, every: float, bound: float) -> None:
    who = np.random.default_rng(seed).integers(DISPATCHERS, size=len(load)).tolist()
    rules: tuple[tuple[str, type[Policy], int], ...] = (
        ("least expected delay (argmin)", LeastDelay, 0),
        ("two choices (P2C)", TwoChoices, 0),
        ("two choices by capacity, own x 16", WeightedTwoChoices, DISPATCHERS),
    )
    for name, kind, own_times in rules:
        latencies = play_stale(load, kind(MACHINES, load, seed), every, who, own_times)
        result.row(case, name).add(latencies.mean() / bound, **percentiles(latencies))


def _look(lab: Lab, states: Sequence[PoolState], every: float) -> None:
    """Tell every dispatcher how busy the servers are, now and every so many seconds."""
    for state in states:
        loads = state.flights.loads()
        for entry in state.llms:
            server = lab.servers[entry.spec.name]
            mine = loads.get(entry.endpoint.root)
            health = Health(
                state="up",
                at=lab.world.time(),
                slots=server.machine.slots,
                context=server.machine.context,
                busy=server.count,
                busy_at=lab.world.time(),
                own=0 if mine is None else mine.running,
            )
            state.health.put(entry.endpoint, health)
    lab.world.after(every, lambda: _look(lab, states, every))


def _maxwell(load: Load, seed: int, every: float | None) -> Floats:
    """Sixteen pools that look at the servers every so many seconds; None = they share one table instead."""
    lab = Lab(MACHINES, load.jobs())
    shared: dict[str, Any] = {}
    if every is None:
        shared = {"flights": MemoryFlights(lab.world), "speeds": SpeedBook(None, lab.world)}
    draws = [random.Random(DISPATCHERS * seed + k).random for k in range(DISPATCHERS)]
    states = [lab.pool([spec_of(m) for m in MACHINES], draw=draw, **shared) for draw in draws]
    if every is not None:
        _look(lab, states, every)
    who = np.random.default_rng(seed).integers(DISPATCHERS, size=len(load)).tolist()
    done = Calls(lab, load, lambda job: call(states[who[job.number]], job)).run()
    assert not done.errors, done.errors[0]
    return done.latencies


def run(seeds: Sequence[int]) -> Result:
    """All ages of what is known, and the shared table."""
    result = Result(
        "S4",
        f"{DISPATCHERS} dispatchers that see the load every so often, rho {SHARE:g}: mean time",
        "x LP mean",
    )
    for seed in seeds:
        load = poisson(COUNT, seed, MACHINES, SHARE)
        bound = bounds.mean_seconds(load, MACHINES)
        for every in AGES:
            progress("S4", every, "s, seed", seed)
            case = f"{every:g} s"
            _naive(result, case, load, seed, every, bound)
            latencies = _maxwell(load, seed, every)
            result.row(case, "Maxwell", GOALS.get(every)).add(
                latencies.mean() / bound, **percentiles(latencies)
            )
        progress("S4 shared table, seed", seed)
        case = "shared"
        latencies = play(MACHINES, load, LeastDelay(MACHINES, load, seed))
        result.row(case, LeastDelay.name).add(latencies.mean() / bound, **percentiles(latencies))
        latencies = _maxwell(load, seed, None)
        result.row(case, "Maxwell", SHARED_GOAL).add(latencies.mean() / bound, **percentiles(latencies))
    return result
