"""S7: a daily budget that is asked for six times over by many calls at once."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from maxwell.calls.effects import Flow
from maxwell.calls.state import PoolState
from maxwell.errors import MaxwellError
from maxwell.ledger.memory import MemoryLedger
from scheduling.driver import Task, run_all
from scheduling.machines import Machine
from scheduling.results import Result, progress
from scheduling.servers import Job
from scheduling.subject import Lab, call, spec_of
from scheduling.workload import Load, sizes

COUNT, BUDGET, MOST = 600, 100_000, 512
IN_FLIGHT = {"64 in flight": 64, "8 in flight": 8}
GOAL = 0.96
# The model with the budget is so much better that it is always asked first.
DEAR = Machine("X", 64, 1000.0, 20000.0)
OTHER = Machine("Y", 64, 10.0, 400.0)


def workload(seed: int) -> tuple[Load, list[Job]]:
    """Jobs whose prompts have about, not exactly, 4 bytes a token."""
    rng = np.random.default_rng(seed)
    prompts, completions = sizes(COUNT, rng)
    load = Load(np.minimum(prompts, 4000), np.minimum(completions, MOST), np.zeros(COUNT))
    ratios = 4.0 * np.exp(rng.normal(0.0, 0.15, COUNT))
    sized = zip(load.jobs(), ratios.tolist(), strict=True)
    return load, [job._replace(bytes=max(int(job.prompt * ratio), 16)) for job, ratio in sized]


def _naive(load: Load, seed: int, in_flight: int, rule: str) -> tuple[float, float]:
    """Used and overshot shares of the budget when no money is held back before a call."""
    rng = np.random.default_rng(seed + 1000)
    tokens = (load.prompts + load.completions).tolist()
    used = seen = over = 0
    number, now = 0, 0.0
    running: list[tuple[float, int]] = []  # until when, how many tokens
    while number < COUNT or running:
        while number < COUNT and len(running) < in_flight:
            estimate = int(load.prompts[number]) + MOST
            goes = rule == "never charged" or seen + estimate <= BUDGET
            heapq.heappush(running, (now + rng.uniform(1, 5), tokens[number] if goes else 0))
            number += 1
        now, amount = heapq.heappop(running)
        used += amount
        lost = rule == "unlocked read-modify-write" and rng.random() < 0.3
        seen += 0 if lost or rule == "never charged" else amount
        over = max(over, used - BUDGET)
    return used / BUDGET, max(over, 0) / BUDGET


class _Watched(MemoryLedger):
    """The project's ledger; remembers the most that was ever settled and held together."""

    most = 0

    def reserve(self, name: str, day: Any, amount: Any, limit: Any) -> Any:
        """See `Ledger.reserve`."""
        hold = super().reserve(name, day, amount, limit)
        if name == DEAR.name:
            used = self.usage(day)[name]
            self.most = max(self.most, used.tokens + used.held_tokens)
        return hold


def _workers(lab: Lab, state: PoolState, in_flight: int) -> list[Task]:
    """So many loops that take one job after another."""
    left = iter(lab.jobs)

    def work() -> Flow[int]:
        failed = 0
        for job in left:
            try:
                yield from call(state, job, max_tokens=MOST)
            except MaxwellError:
                failed += 1
        return failed

    return [lab.task(work()) for _ in range(in_flight)]


def _maxwell(load: Load, jobs: Sequence[Job], seed: int, in_flight: int) -> tuple[float, float, float, int]:
    """Used and overshot shares of the budget, the most that was settled and held, failed calls."""
    rng = np.random.default_rng(seed + 1000)
    times = rng.uniform(1, 5, COUNT).tolist()
    lab = Lab((DEAR, OTHER), jobs, service=lambda number: times[number])
    ledger = _Watched()
    specs = [spec_of(DEAR, daily_budget_tokens=BUDGET), spec_of(OTHER)]
    state = lab.pool(specs, ledger=ledger)
    tasks = _workers(lab, state, in_flight)
    run_all(lab.world, tasks)
    failed = sum(task.result or 0 for task in tasks)
    paid = sum(m.prompt + m.completion for m in lab.servers[DEAR.name].meter)
    return paid / BUDGET, max(paid - BUDGET, 0) / BUDGET, ledger.most / BUDGET, failed


def run(seeds: Sequence[int]) -> Result:
    """Overshoot and use."""
    result = Result("S7", f"a budget of {BUDGET:,} tokens, demand six times as much: use", "of the budget")
    for case, in_flight in IN_FLIGHT.items():
        for seed in seeds:
            progress("S7", case, "seed", seed)
            load, jobs = workload(seed)
            for rule in ("never charged", "check-then-charge", "unlocked read-modify-write"):
                use, over = _naive(load, seed, in_flight, rule)
                result.row(case, rule).add(use, overshot=over)
            use, over, held, failed = _maxwell(load, jobs, seed, in_flight)
            row = result.row(case, "Maxwell", GOAL, at_least=True)
            row.add(use, overshot=over, **{"most settled and held": held, "failed calls": float(failed)})
    return result
