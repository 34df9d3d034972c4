"""What is asked of the pool: seeded, heavy-tailed, the same for every policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduling.machines import Machine
from scheduling.servers import Job

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Load:
    """Jobs and when they come.

    Attributes:
        prompts: Prompt tokens of each.
        completions: Reply tokens of each.
        arrivals: When each comes, in seconds, ascending.
    """

    prompts: NDArray[np.int64]
    completions: NDArray[np.int64]
    arrivals: Floats

    def __len__(self) -> int:
        return len(self.prompts)

    def jobs(self, bytes_per_token: float = 4.0) -> list[Job]:
        """The jobs as servers know them."""
        sizes = zip(self.prompts.tolist(), self.completions.tolist(), strict=True)
        return [Job(i, p, c, int(bytes_per_token * p)) for i, (p, c) in enumerate(sizes)]

    def seconds(self, machines: Sequence[Machine]) -> Floats:
        """How long each job holds a slot of each machine: a row for each job."""
        columns = [m.overhead + self.prompts / m.prefill + self.completions / m.speed for m in machines]
        return np.stack(columns, axis=1)

    def usd(self, machines: Sequence[Machine]) -> Floats:
        """What each job costs on each machine."""
        return np.stack([m.usd_per_1k * (self.prompts + self.completions) / 1000 for m in machines], axis=1)


def sizes(count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompt and reply tokens: log-normal, medians 600 and 200."""
    prompts = np.clip(rng.lognormal(math.log(600), 1.0, count), 16, 8000).astype(np.int64)
    completions = np.clip(rng.lognormal(math.log(200), 0.9, count), 8, 2048).astype(np.int64)
    return prompts, completions


def burst(count: int, seed: int) -> Load:
    """Everything at once."""
    prompts, completions = sizes(count, np.random.default_rng(seed))
    return Load(prompts, completions, np.zeros(count))


def poisson(count: int, seed: int, machines: Sequence[Machine], share: float) -> Load:
    """Arrivals at `share` of what the machines can do, if every job took its mean time."""
    rng = np.random.default_rng(seed)
    prompts, completions = sizes(count, rng)
    seconds = Load(prompts, completions, np.zeros(count)).seconds(machines)
    capacity = sum(m.slots / seconds[:, i].mean() for i, m in enumerate(machines))
    return Load(prompts, completions, np.cumsum(rng.exponential(1 / (share * capacity), count)))
