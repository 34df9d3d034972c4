"""S8: a batch with a paid model among the free ones. Money and time together, against the least possible.

J = US dollars + weight x seconds until the last reply, the weight in dollars per second *of the whole batch*.
Maxwell's `time_cost_weight` is in mills per second *of one request's time*, at most 10 ($0.01). In a batch a
second that one slot saves is worth its part of a second of the whole: `weight / slots`. So a batch weight of
0.1 $/s is 100 mills per second over 53 slots, which is within its range.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from scheduling import bounds
from scheduling.machines import PAID, POOL
from scheduling.results import Result, progress
from scheduling.subject import Lab, map_jobs, spec_of, teach
from scheduling.workload import Floats, Load, burst

MACHINES = (*POOL, PAID)
COUNT = 600
WEIGHTS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)  # dollars per second of the batch
MILLS_MOST = 10.0
GOAL = 1.12


def _cost(chosen: Sequence[int], seconds: Floats, usd: Floats) -> tuple[float, float]:
    """Dollars, and seconds until the last ends, where each machine takes its longest jobs first."""
    end = money = 0.0
    for i, machine in enumerate(MACHINES):
        mine = sorted((j for j, where in enumerate(chosen) if where == i), key=lambda j: -seconds[j, i])
        free = [0.0] * machine.slots
        for j in mine:
            heapq.heapreplace(free, free[0] + float(seconds[j, i]))
            money += float(usd[j, i])
        end = max(end, *free)
    return money, end


def _naive(load: Load, weight: float) -> dict[str, list[int]]:
    """What simple rules choose."""
    seconds = load.seconds(MACHINES)
    assumed = load.prompts + 512
    scores = [
        -m.usd_per_1k * assumed / 1000 - weight * assumed / m.speed + 1 - np.abs(assumed / m.context - 0.7)
        for m in MACHINES
    ]
    return {
        "documented formula": np.argmax(scores, axis=0).tolist(),
        "round robin": [j % len(MACHINES) for j in range(len(load))],
        "fastest free one": np.argmin(seconds[:, : len(POOL)], axis=1).tolist(),
    }


def mills_of(weight: float, slots: int) -> float:
    """The `time_cost_weight` of one request for a batch weight in dollars per second."""
    return min(1000.0 * weight / slots, MILLS_MOST)


def _maxwell(load: Load, seed: int, mills: float) -> tuple[float, float]:
    """Dollars and seconds of a map with that weight."""
    lab = Lab(MACHINES, load.jobs())
    state = lab.pool([spec_of(m) for m in MACHINES])
    teach(lab, state, seed)
    found, took = map_jobs(lab, state, lab.jobs[:COUNT], mills)
    assert len(found) == COUNT
    assert not any(mapped.error for mapped in found)
    return sum(PAID.usd(m.prompt, m.completion) for m in lab.servers[PAID.name].meter), took


def run(seeds: Sequence[int]) -> Result:
    """All weights."""
    result = Result("S8", f"batch of {COUNT}: dollars + weight x makespan", "x LP")
    slots = sum(m.slots for m in MACHINES)
    for weight in WEIGHTS:
        for seed in seeds:
            progress("S8", weight, "seed", seed)
            case = f"{weight:g} $/s"
            load = burst(COUNT, seed)
            seconds, usd = load.seconds(MACHINES), load.usd(MACHINES)
            bound = bounds.makespan(load, MACHINES, weight)

            spent = {name: _cost(chosen, seconds, usd) for name, chosen in _naive(load, weight).items()}
            spent["Maxwell, map"] = _maxwell(load, seed, mills_of(weight, slots))
            spent["Maxwell, map, weight as it stands"] = _maxwell(load, seed, mills_of(weight, 1))
            for name, (money, end) in spent.items():
                # Without a weight the bound is nothing: the free ones are the optimum.
                ratio = (money + weight * end) / bound if weight else 1.0 + money
                goal = GOAL if name == "Maxwell, map" else None
                result.row(case, name, goal).add(ratio, usd=money, makespan=end)
    result.remarks += [
        f"Maxwell's weight is that of the batch divided by the pool's {slots} slots, in mills; beside it the"
        " batch's own weight in mills, at most 10.",
        "At 0 $/s the figure is 1 + dollars spent.",
    ]
    return result
