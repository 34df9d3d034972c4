"""S1: on idle servers the choice is the specified formula's, computed here a second time, by brute force."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from maxwell.calls.state import PoolState
from maxwell.clock import SystemClock
from maxwell.decision import Request
from maxwell.health import Health, HealthBook
from maxwell.ledger.memory import MemoryLedger
from maxwell.registry.specs import Capabilities, LLMSpec, Registry
from maxwell.types import Requirements
from scheduling.results import Result, progress

WEIGHTS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
PROMPTS = range(50, 30000, 250)
RANDOM_POOLS = 20


@dataclass(frozen=True)
class Model:
    """What the formula looks at."""

    most: int
    context: int
    speed: float
    usd_per_1k: float = 0.0
    prefill: float | None = None
    usd_per_1k_reply: float | None = None

    def score(self, prompt: int, completion: int, weight: float) -> float:
        """The specified formula, money in mills."""
        dear = self.usd_per_1k if self.usd_per_1k_reply is None else self.usd_per_1k_reply
        mills = self.usd_per_1k * prompt + dear * completion
        seconds = prompt / (self.prefill or 20 * self.speed) + completion / self.speed
        return -mills - weight * seconds + 1 - abs((prompt + completion) / self.context - 0.7)

    def fits(self, prompt: int, completion: int) -> bool:
        """Whether the context holds it."""
        return prompt + completion <= self.context


SPECIFIED = (
    Model(16384, 32768, 25.0),
    Model(2048, 4096, 150.0),
    Model(16384, 128000, 80.0, 0.005),
)


def random_pool(seed: int) -> tuple[Model, ...]:
    """Two to ten models of all sorts."""
    draw = random.Random(seed)
    return tuple(
        Model(
            most=draw.choice((128, 512, 2048, 8192)),
            context=draw.choice((2048, 4096, 8192, 32768, 131072)),
            speed=round(draw.lognormvariate(4.0, 0.8), 1),
            usd_per_1k=draw.choice((0.0, 0.0, 0.0005, 0.005, 0.03)),
            prefill=draw.choice((None, 400.0, 6000.0)),
            usd_per_1k_reply=draw.choice((None, None, 0.015)),
        )
        for _ in range(draw.randint(2, 10))
    )


def oracle(pool: Sequence[Model], prompt: int, weight: float) -> int | None:
    """The best index by brute force, the first of equals; None = nothing fits."""
    for assumed in (512, 64):
        best: tuple[float, int] | None = None
        for index, model in enumerate(pool):
            completion = min(assumed, model.most)
            if model.fits(prompt, completion):
                score = model.score(prompt, completion, weight)
                if best is None or score > best[0]:
                    best = (score, index)
        if best is not None:
            return best[1]
    return None


def sentinel(pool: Sequence[Model], prompt: int, weight: float) -> int:
    """As a former program chose: money in dollars, one speed for every token, -1 for what does not fit."""
    scores = []
    for model in pool:
        total = prompt + min(512, model.most)
        fits = total <= model.context
        usd = model.usd_per_1k * total / 1000
        score = -usd - weight * total / model.speed + 1 - abs(total / model.context - 0.7)
        scores.append(score if fits else -1.0)
    return scores.index(max(scores))


def state_of(pool: Sequence[Model]) -> PoolState:
    """The project's own state of that pool, every server up and idle."""
    clock = SystemClock()
    specs = tuple(
        LLMSpec(
            name=str(i),
            api_base=f"http://host-{i}",
            model="m",
            backend="vllm",
            default_temperature=0.5,
            cost_per_1k_tokens=model.usd_per_1k,
            cost_per_1k_completion_tokens=model.usd_per_1k_reply,
            capabilities=Capabilities(
                max_tokens=model.most,
                max_context=model.context,
                speed_tokens_per_sec=model.speed,
                prefill_tokens_per_sec=model.prefill,
            ),
        )
        for i, model in enumerate(pool)
    )
    state = PoolState(
        Registry(llms=specs),
        health=HealthBook(None, clock),
        ledger=MemoryLedger(),
        clock=clock,
        environ={},
    )
    for entry in state.llms:
        state.health.put(entry.endpoint, Health(state="up", at=clock.time()))
    return state


def compare(pool: Sequence[Model]) -> Counter[str]:
    """How often each rule is right over the whole grid, and how often the former one takes what is unfit."""
    state, counts = state_of(pool), Counter[str]()
    for weight, prompt in product(WEIGHTS, PROMPTS):
        request = Request(needs=Requirements(time_cost_weight=weight), prompt_bytes=4 * prompt)
        right, chosen = oracle(pool, prompt, weight), state.decide(request).chosen
        other = sentinel(pool, prompt, weight)
        fits = [model.fits(prompt, min(512, model.most)) for model in pool]
        counts["cells"] += 1
        counts["ours"] += (None if chosen is None else int(chosen.spec.name)) == right
        counts["former"] += other == right
        counts["narrow"] += any(fits) and not all(fits)
        counts["unfit"] += any(fits) and not fits[other]
    return counts


def run(seeds: Sequence[int]) -> Result:
    """Compare on all pools."""
    result = Result("S1", "idle servers: choice as the specified formula's", "agreement")
    pools: dict[str, list[tuple[Model, ...]]] = {"specified models": [SPECIFIED]}
    for seed in seeds:
        pools[f"random pools, seed {seed}"] = [random_pool(1000 * seed + i) for i in range(RANDOM_POOLS)]
    for case, members in pools.items():
        progress("S1", case)
        found = sum((compare(pool) for pool in members), Counter[str]())
        cells, unfit = found["cells"], found["unfit"] / max(found["narrow"], 1)
        result.row(case, "Maxwell", 1.0, at_least=True).add(found["ours"] / cells, cells=cells)
        former = result.row(case, "-1 for what does not fit", at_least=True)
        former.add(found["former"] / cells, **{"chooses what does not fit": unfit})
    return result
