"""What a simulated server can do, and what befalls it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Machine:
    """One server with fixed rates.

    Attributes:
        name: Its name, in the registry and on the network.
        slots: Requests it serves at once; the others queue, first come, first served.
        speed: Generation speed of a slot, in tokens per second.
        prefill: Prompt speed of a slot, in tokens per second.
        overhead: Seconds that any request costs besides.
        usd_per_1k: US dollars per 1000 tokens.
        context: Context of one request, in tokens.
    """

    name: str
    slots: int
    speed: float
    prefill: float
    overhead: float = 0.05
    usd_per_1k: float = 0.0
    context: int = 32768

    def seconds(self, prompt: float, completion: float) -> float:
        """How long a request of that size holds a slot."""
        return self.overhead + prompt / self.prefill + completion / self.speed

    def usd(self, prompt: float, completion: float) -> float:
        """What it costs."""
        return self.usd_per_1k * (prompt + completion) / 1000.0


@dataclass(frozen=True)
class Spell:
    """A time of trouble, from `begins` until `ends` (seconds of virtual time).

    "refusal": no connection; "storm": 429 to every chat; "slow": a request that begins in it takes `factor`
    times as long to its end.
    """

    kind: Literal["refusal", "storm", "slow"]
    begins: float
    ends: float
    factor: float = 1.0


@dataclass
class Weather:
    """The troubles of one server."""

    spells: list[Spell] = field(default_factory=list)

    def is_in(self, kind: str, now: float) -> bool:
        """Whether there is such trouble now."""
        return any(s.kind == kind and s.begins <= now < s.ends for s in self.spells)

    def slowness(self, now: float) -> float:
        """By what a request that begins now takes longer."""
        factor = 1.0
        for spell in self.spells:
            if spell.kind == "slow" and spell.begins <= now < spell.ends:
                factor *= spell.factor
        return factor


POOL = (
    Machine("A", 1, 25.0, 400.0),
    Machine("B", 4, 50.0, 1500.0),
    Machine("C", 8, 100.0, 4000.0),
    Machine("D", 8, 150.0, 6000.0),
)
PAID = Machine("G", 32, 80.0, 8000.0, overhead=0.3, usd_per_1k=0.005, context=128000)
