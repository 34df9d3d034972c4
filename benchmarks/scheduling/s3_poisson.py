"""S3: requests that keep coming. How long does one take, against the least mean?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from scheduling import bounds
from scheduling.machines import POOL
from scheduling.naive import CAREFUL, USUAL, play
from scheduling.results import Result, percentiles, progress
from scheduling.subject import Calls, Lab, call, spec_of
from scheduling.workload import poisson

COUNT = 4000
GOALS = {0.5: 1.15, 0.8: 1.30, 0.9: 1.65}


def run(seeds: Sequence[int]) -> Result:
    """All shares of the capacity, all policies."""
    result = Result("S3", f"Poisson arrivals, {COUNT} requests: mean time of one", "x LP mean")
    for share, goal in GOALS.items():
        for seed in seeds:
            progress("S3", share, "seed", seed)
            load = poisson(COUNT, seed, POOL, share)
            bound = bounds.mean_seconds(load, POOL)
            case = f"rho {share:g}"
            for kind in (*USUAL, *CAREFUL):
                latencies = play(POOL, load, kind(POOL, load, seed))
                result.row(case, kind.name).add(latencies.mean() / bound, **percentiles(latencies))
            lab = Lab(POOL, load.jobs())
            state = lab.pool([spec_of(m) for m in POOL])
            done = Calls(lab, load, partial(call, state)).run()
            assert not done.errors, done.errors[0]
            ratio = float(done.latencies.mean()) / bound
            result.row(case, "Maxwell", goal).add(ratio, **percentiles(done.latencies))
    return result
