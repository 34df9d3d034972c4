"""The policies that others use, without flows and without bytes: a queue at each server and a rule.

They know more than Maxwell does: the mean length of a reply and every server's true rates.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from scheduling.machines import Machine
from scheduling.workload import Floats, Load

ASSUMED_COMPLETION = 512  # of a reply, where a policy is not told the mean


class Line:
    """One server: slots and a queue, first come, first served."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._free = [0.0] * machine.slots
        self._ends: list[float] = []

    def submit(self, now: float, seconds: float) -> float:
        """Take a job; returns when it ends."""
        end = max(now, heapq.heappop(self._free)) + seconds
        heapq.heappush(self._free, end)
        heapq.heappush(self._ends, end)
        return end

    def count(self, now: float) -> int:
        """Requests it has, queue included."""
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        return len(self._ends)


class Policy(ABC):
    """A rule that picks a machine.

    Args:
        machines: The pool.
        load: What will be asked of it; a policy may look at means only.
        seed: Of its randomness.
    """

    name = ""

    def __init__(self, machines: Sequence[Machine], load: Load, seed: int) -> None:
        self.machines = machines
        self.load = load
        self.rng = np.random.default_rng(seed)
        self.likely = float(load.completions.mean())
        self.slots = np.array([m.slots for m in machines], float)
        # How long a usual job holds a slot.
        prompt = float(load.prompts.mean())
        self.service = np.array([m.seconds(prompt, self.likely) for m in machines])
        self.rates = self.slots / self.service

    @abstractmethod
    def choose(self, number: int, counts: Floats) -> int:
        """The machine for job `number`, where the machines have so many requests each."""

    def idle_seconds(self, number: int) -> Floats:
        """What the job is expected to take on each machine, without waiting."""
        prompt = float(self.load.prompts[number])
        return np.array([m.seconds(prompt, self.likely) for m in self.machines])

    def expected(self, number: int, counts: Floats) -> Floats:
        """Waiting and service."""
        wait: Floats = np.maximum(counts - self.slots + 1, 0) * self.service / self.slots
        return wait + self.idle_seconds(number)


class Documented(Policy):
    """The specified formula as it stands: no load, every token at the generation speed."""

    name = "documented formula"

    def choose(self, number: int, counts: Floats) -> int:
        """The fastest one."""
        tokens = float(self.load.prompts[number]) + ASSUMED_COMPLETION
        return int(np.argmin([tokens / m.speed for m in self.machines]))


class RoundRobin(Policy):
    """One after the other."""

    name = "round robin"

    def choose(self, number: int, counts: Floats) -> int:
        """The next one."""
        return number % len(self.machines)


class Random(Policy):
    """Any."""

    name = "random"

    def choose(self, number: int, counts: Floats) -> int:
        """Any."""
        return int(self.rng.integers(len(self.machines)))


class ShortestQueue(Policy):
    """The least requests, however fast it is."""

    name = "shortest queue (JSQ)"

    def choose(self, number: int, counts: Floats) -> int:
        """The least busy one."""
        return int(np.argmin(counts))


class TwoChoices(Policy):
    """The less busy of two drawn uniformly."""

    name = "two choices (P2C)"

    def choose(self, number: int, counts: Floats) -> int:
        """The better of two."""
        a, b = self.rng.choice(len(self.machines), 2, replace=False)
        return int(a if counts[a] <= counts[b] else b)


class LeastDelay(Policy):
    """Shortest expected delay: waiting and service, by what is known of the load. Herds when that is old."""

    name = "least expected delay"

    def choose(self, number: int, counts: Floats) -> int:
        """The quickest one."""
        return int(np.argmin(self.expected(number, counts)))


class WeightedTwoChoices(Policy):
    """The quicker of two drawn by their capacity."""

    name = "two choices by capacity"

    def choose(self, number: int, counts: Floats) -> int:
        """The better of two."""
        share = self.rates / self.rates.sum()
        a, b = self.rng.choice(len(self.machines), 2, replace=False, p=share)
        seconds = self.expected(number, counts)
        return int(a if seconds[a] <= seconds[b] else b)


USUAL: tuple[type[Policy], ...] = (Documented, RoundRobin, Random, ShortestQueue, TwoChoices)
CAREFUL: tuple[type[Policy], ...] = (WeightedTwoChoices, LeastDelay)


def play(machines: Sequence[Machine], load: Load, policy: Policy) -> Floats:
    """How long each job takes, waiting included, where the policy sees every queue as it is."""
    lines = [Line(machine) for machine in machines]
    seconds = load.seconds(machines)
    latencies = np.zeros(len(load))
    for number, now in enumerate(load.arrivals.tolist()):
        counts = np.array([line.count(now) for line in lines], float)
        chosen = policy.choose(number, counts)
        latencies[number] = lines[chosen].submit(now, float(seconds[number, chosen])) - now
    return latencies
