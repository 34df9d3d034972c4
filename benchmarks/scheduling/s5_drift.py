"""S5: the registry is wrong, a server becomes slower, and some measurements lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from maxwell.calls.state import PoolState
from maxwell.learning import key_of
from maxwell.speed import Learned, Sample
from maxwell.speed.filters import Mean, Rate
from scheduling.machines import POOL, Machine
from scheduling.naive import LeastDelay, Line
from scheduling.results import Result, percentiles, progress
from scheduling.servers import noisy
from scheduling.subject import Calls, Lab, call, spec_of
from scheduling.workload import Floats, Load, poisson

COUNT, SHARE = 3000, 0.36  # the slowed server leaves less of the capacity: about 0.6 of what is left
WRONG = {"A": 200.0, "D": 40.0}  # tokens per second in the registry, truly 25 and 150
SLOWER = 4.0  # D, in the second half
NOISE, OUTLIERS, OUTLIER = 0.14, 0.02, 0.1  # spread of a measured speed; share and factor of those that lie
GOAL = 1.07
SURE = 1000  # observations that the truth counts as
NEAR = 0.2  # a speed is known when it is believed as near as this


def _slowed(machine: Machine) -> Machine:
    return replace(machine, speed=machine.speed / SLOWER) if machine.name == "D" else machine


AFTER = tuple(_slowed(m) for m in POOL)


class Told:
    """In place of what calls teach: the truth about every server, or nothing at all."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._known: dict[str, Learned] = {}

    def tell(self, machines: Sequence[Machine], keys: Sequence[str]) -> None:
        """From now on these are the machines."""
        replies = Mean(float(self._load.completions.mean()), 50.0, SURE)
        prompts = Mean(float(self._load.prompts.mean()), 50.0, SURE)
        for machine, key in zip(machines, keys, strict=True):
            self._known[key] = Learned(
                generation=Rate(math.log(machine.speed), 1e-6, seen=SURE),
                prefill=Rate(math.log(machine.prefill), 1e-6, seen=SURE),
                overhead=Rate(math.log(machine.overhead), 1e-6, seen=SURE),
                lengths={"": replies},
                prompts=prompts,
                replies=replies,
            )

    def learned(self, key: str) -> Learned | None:
        """See `SpeedBook.learned`."""
        return self._known.get(key)

    def note(self, key: str, spec: Any, sample: Sample) -> None:
        """See `SpeedBook.note`: nothing is learned."""

    def forget(self, key: str) -> None:
        """See `SpeedBook.forget`."""


def _naive(load: Load, believed: Sequence[Machine], after: Sequence[Machine], seed: int) -> Floats:
    """Least expected delay by these beliefs, in the first half and in the second."""
    lines = [Line(machine) for machine in POOL]
    times = (load.seconds(POOL), load.seconds(AFTER))
    rules = (LeastDelay(believed, load, seed), LeastDelay(after, load, seed))
    half = load.arrivals[len(load) // 2]
    latencies = np.zeros(len(load))
    for number, now in enumerate(load.arrivals.tolist()):
        late = int(now > half)
        counts = np.array([line.count(now) for line in lines], float)
        chosen = rules[late].choose(number, counts)
        latencies[number] = lines[chosen].submit(now, float(times[late][number, chosen])) - now
    return latencies


def _maxwell(load: Load, seed: int, knows: str) -> tuple[Floats, float]:
    """Latencies, and D's replies until its change is known; `knows` is "learns", "truth" or "registry"."""
    lab = Lab(POOL, load.jobs(), told_speed=noisy(seed, NOISE, OUTLIERS, OUTLIER))
    specs = [spec_of(m, speed=WRONG.get(m.name, m.speed)) for m in POOL]
    keys = [key_of(spec) for spec in specs]
    book = Told(load)
    if knows == "truth":
        book.tell(POOL, keys)
    instead: dict[str, Any] = {} if knows == "learns" else {"speeds": book}
    state = lab.pool(specs, **instead)
    watch = _Recovery(lab, state)

    def turn() -> None:
        for machine in AFTER:
            lab.servers[machine.name].machine = machine
        if knows == "truth":
            book.tell(AFTER, keys)
        watch.begin()

    lab.world.after(float(load.arrivals[len(load) // 2]), turn)
    done = Calls(lab, load, partial(call, state)).run()
    assert not done.errors, done.errors[0]
    return done.latencies, watch.replies


class _Recovery:
    """How many of D's slow replies it takes until its new speed is believed.

    Attributes:
        replies: That many; NaN as long as it is not believed.
    """

    def __init__(self, lab: Lab, state: PoolState) -> None:
        self.replies = math.nan
        self._lab = lab
        self._entry = state.llm("D")
        self._state = state
        self._from = 0.0

    def begin(self) -> None:
        """It is slow from now on."""
        self._from = self._lab.world.now - 1e-6
        self._look()

    def _look(self) -> None:
        speeds, server = self._state.speeds_of(self._entry), self._lab.servers["D"]
        if speeds is not None and abs(speeds.speed / server.machine.speed - 1) <= NEAR:
            took = server.machine.seconds
            begun = [m.at - took(m.prompt, m.completion) for m in server.meter]
            self.replies = sum(at >= self._from for at in begun)
        else:
            self._lab.world.after(0.1, self._look)


def run(seeds: Sequence[int]) -> Result:
    """Maxwell beside itself with perfect and with no knowledge, and a simple rule with both."""
    result = Result("S5", "wrong registry, drift, outliers: mean time", "x true speeds known")
    wrong = tuple(replace(m, speed=WRONG.get(m.name, m.speed)) for m in POOL)
    for seed in seeds:
        progress("S5 seed", seed)
        load = poisson(COUNT, seed, POOL, SHARE)
        simple = _naive(load, POOL, AFTER, seed)
        case = "registry up to 8 x wrong, D 4 x slower at half time"
        for name, latencies, bound, goal in (
            ("least expected delay, true speeds", simple, simple, None),
            ("least expected delay, registry", _naive(load, wrong, wrong, seed), simple, None),
        ):
            result.row(case, name, goal).add(latencies.mean() / bound.mean(), **percentiles(latencies))
        best = _maxwell(load, seed, "truth")[0]
        learns, replies = _maxwell(load, seed, "learns")
        for name, latencies, goal in (
            ("Maxwell told the truth (the bound)", best, None),
            ("Maxwell that never learns", _maxwell(load, seed, "registry")[0], None),
            ("Maxwell", learns, GOAL),
        ):
            figures = percentiles(latencies)
            figures["x simple oracle"] = latencies.mean() / simple.mean()
            if latencies is learns:
                figures["replies until known"] = replies
            result.row(case, name, goal).add(latencies.mean() / best.mean(), **figures)
    result.remarks.append(
        "The simple rules are multiples of the simple rule with true speeds, Maxwell of itself with them."
    )
    return result
