"""S2: many requests at once. How long until the last reply, against the least that is possible?"""

from __future__ import annotations

from collections.abc import Sequence

from scheduling import bounds
from scheduling.machines import POOL
from scheduling.naive import USUAL, LeastDelay, WeightedTwoChoices, play
from scheduling.results import Result, percentiles, progress
from scheduling.subject import Calls, Lab, call, spec_of, teach
from scheduling.workload import burst

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
            case = f"{count} requests"
            for kind in (*USUAL, WeightedTwoChoices, LeastDelay):
                latencies = play(POOL, load, kind(POOL, load, seed))
                result.row(case, kind.name).add(latencies.max() / bound, **percentiles(latencies))
            for taught in (False, True):
                lab = Lab(POOL, load.jobs())
                state = lab.pool([spec_of(m) for m in POOL])
                if taught:
                    teach(lab, state, seed)
                done = Calls(lab, load, lambda job, state=state: call(state, job)).run()
                assert not done.errors, done.errors[0]
                took = float(done.latencies.max())
                name = "Maxwell, calls" if taught else "Maxwell, calls, nothing learned yet"
                result.row(case, name, GOALS.get(count)).add(took / bound, **percentiles(done.latencies))
    return result
