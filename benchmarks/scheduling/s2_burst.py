"""S2: many requests at once. How long until the last reply, against the least that is possible?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from maxwell.calls.state import PoolState
from scheduling import bounds
from scheduling.machines import POOL
from scheduling.naive import CAREFUL, USUAL, play
from scheduling.results import Result, percentiles, progress
from scheduling.subject import Calls, Lab, call, map_jobs, spec_of, teach
from scheduling.workload import Load, burst

SIZES = (64, 256, 600)
GOALS = {600: 1.15}


def run(seeds: Sequence[int]) -> Result:
    """All sizes, all policies."""
    result = Result("S2", "a burst at t = 0: time until the last reply", "x LP makespan")
    for count in SIZES:
        for seed in seeds:
            progress("S2", count, "seed", seed)
            load = burst(count, seed)
            bound = bounds.makespan(load, POOL)
            case, goal = f"{count} requests", GOALS.get(count)
            for kind in (*USUAL, *CAREFUL):
                latencies = play(POOL, load, kind(POOL, load, seed))
                result.row(case, kind.name).add(latencies.max() / bound, **percentiles(latencies))
            for name, taught in (("Maxwell, calls, nothing learned yet", False), ("Maxwell, calls", True)):
                lab, state = _pool(load, seed if taught else None)
                done = Calls(lab, load, partial(call, state)).run()
                assert not done.errors, done.errors[0]
                ratio = float(done.latencies.max()) / bound
                result.row(case, name, goal).add(ratio, **percentiles(done.latencies))
            lab, state = _pool(load, seed)
            found, took = map_jobs(lab, state, lab.jobs[:count])
            assert len(found) == count
            assert not any(mapped.error for mapped in found)
            result.row(case, "Maxwell, map", goal).add(took / bound)
    return result


def _pool(load: Load, seed: int | None) -> tuple[Lab, PoolState]:
    """A pool; `seed` = it has learned from a day's work of that seed."""
    lab = Lab(POOL, load.jobs())
    state = lab.pool([spec_of(m) for m in POOL])
    if seed is not None:
        teach(lab, state, seed)
    return lab, state
