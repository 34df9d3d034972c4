"""Lower bounds that no dispatcher can beat, by linear programming (HiGHS).

Jobs may be split and their lengths are known, so the bounds are optimistic:

    minimise  sum cost x + w M   so that   sum_i x_ij = 1,  sum_j t_ij x_ij <= S_i M,  M >= max_j min_i t_ij
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, hstack

from scheduling.machines import Machine
from scheduling.workload import Floats, Load


def _whole_jobs(jobs: int, machines: int) -> csr_matrix:
    """One row a job: its shares on all machines."""
    rows = np.repeat(np.arange(jobs), machines)
    return csr_matrix((np.ones(jobs * machines), (rows, np.arange(jobs * machines))))


def _work(seconds: Floats) -> csr_matrix:
    """One row a machine: the slot-seconds that each share of a job takes there."""
    jobs, machines = seconds.shape
    where = (np.tile(np.arange(machines), jobs), np.arange(jobs * machines))
    return csr_matrix((seconds.ravel(), where), shape=(machines, jobs * machines))


def makespan(load: Load, machines: Sequence[Machine], weight: float = 1.0) -> float:
    """Least money + `weight` x (time until the last reply), in US dollars and dollars per second.

    Without prices and with weight 1 that is the least time.
    """
    seconds, usd = load.seconds(machines), load.usd(machines)
    jobs, count = seconds.shape
    slots = np.array([[float(m.slots)] for m in machines])
    longest = float(seconds.min(axis=1).max()) if weight > 0 else 0.0
    found = linprog(
        np.append(usd.ravel(), weight),
        A_ub=hstack([_work(seconds), csr_matrix(-slots)], format="csr"),
        b_ub=np.zeros(count),
        A_eq=hstack([_whole_jobs(jobs, count), csr_matrix((jobs, 1))], format="csr"),
        b_eq=np.ones(jobs),
        bounds=[(0, 1)] * (jobs * count) + [(longest, None)],
        method="highs",
    )
    return float(found.fun)


def mean_seconds(load: Load, machines: Sequence[Machine]) -> float:
    """Least mean time of a job: nobody queues, but machines work no more than their slots allow.

    That is counted until the last arrival, so the bound is asymptotic: a few jobs may end after that.
    """
    seconds = load.seconds(machines)
    jobs, count = seconds.shape
    found = linprog(
        seconds.ravel() / jobs,
        A_ub=_work(seconds),
        b_ub=[m.slots * load.arrivals[-1] for m in machines],
        A_eq=_whole_jobs(jobs, count),
        b_eq=np.ones(jobs),
        bounds=(0, 1),
        method="highs",
    )
    return float(found.fun)
