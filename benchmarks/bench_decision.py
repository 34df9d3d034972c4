"""How long a decision takes with 10, 100 and 1,000 LLMs, in microseconds.

Goals: 20 us, 150 us, 1.5 ms. The bound beside it is the bare formula: one pass that computes the score and
keeps the best, with no eligibility, no reasons and no ranking. "In use" has requests at half of the servers,
and something learned of each LLM. LiteLLM's Router joins when it is installed.

Run: python benchmarks/bench_decision.py
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial

from maxwell.calls.state import PoolState
from maxwell.clock import SystemClock
from maxwell.decision import Candidate, Request
from maxwell.health import Health, HealthBook
from maxwell.ledger.memory import MemoryLedger
from maxwell.registry.specs import Capabilities, LLMSpec, Registry
from maxwell.scheduler import decide
from maxwell.types import Requirements
from tables import Spread, options, ratio, repeat, show

FASTEST = Request(needs=Requirements())
SCORED = Request(needs=Requirements(), prompt_bytes=4000)
PICKY = Request(needs=Requirements(tags=("coding",), reasoning=True, min_context=16000), prompt_bytes=4000)
GOALS = {10: 20.0, 100: 150.0, 1000: 1500.0}


def specs(count: int) -> list[LLMSpec]:
    return [
        LLMSpec(
            name=f"llm-{i}",
            api_base=f"http://10.0.{i // 250}.{i % 250}:8080",
            model="m",
            backend="vllm",
            capabilities=Capabilities(
                max_tokens=4096,
                max_context=8192 << (i % 4),
                speed_tokens_per_sec=20 + i % 90,
                reasoning=i % 2 == 0,
            ),
            default_temperature=0.5,
            tags=("coding",) if i % 3 else ("fast", "coding"),
            cost_per_1k_tokens=0.001 * (i % 5),
        )
        for i in range(count)
    ]


def in_use(found: Sequence[LLMSpec]) -> list[Candidate]:
    """Candidates that others call, too: half of them have requests, some more than slots."""
    return [
        Candidate(
            spec=spec,
            index=i,
            in_flight=float(i % 5) if i % 2 else 0.0,
            slots=2,
            overhead=0.1,
            completion=200.0,
        )
        for i, spec in enumerate(found)
    ]


def bare_formula(candidates: Sequence[Candidate], prompt: int, completion: int, weight: float) -> Candidate:
    best, found = float("-inf"), candidates[0]
    for c in candidates:
        total = prompt + completion
        score = (
            -c.spec.cost_per_1k_tokens * total
            - weight * (prompt / c.prefill + completion / c.speed)
            + (1 - abs(total / c.context - 0.7))
        )
        if score > best:
            best, found = score, c
    return found


def pool(found: Sequence[LLMSpec]) -> PoolState:
    """A pool whose endpoints are all known to be up."""
    clock = SystemClock()
    state = PoolState(
        Registry(llms=tuple(found)),
        health=HealthBook(None, clock),
        ledger=MemoryLedger(),
        clock=clock,
        environ={},
    )
    for entry in state.llms:
        state.health.put(entry.endpoint, Health(state="up", at=clock.time() + 1e-3))
    return state


def microseconds(work: Callable[[], object], rounds: int, inner: int) -> Spread:
    def once() -> float:
        began = time.perf_counter()
        for _ in range(inner):
            work()
        return (time.perf_counter() - began) / inner * 1e6

    return repeat(once, rounds)


def litellm_router(count: int) -> Callable[[], object] | None:
    if importlib.util.find_spec("litellm") is None:
        return None
    import litellm

    litellm.suppress_debug_info = True
    router = litellm.Router(
        model_list=[
            {
                "model_name": "m",
                "litellm_params": {
                    "model": f"openai/m{i}",
                    "api_key": "none",
                    "api_base": "http://127.0.0.1:9/v1",
                },
            }
            for i in range(count)
        ]
    )
    messages = [{"role": "user", "content": "hello"}]
    return lambda: router.get_available_deployment("m", messages)


def main() -> None:
    given = options(__doc__)
    rounds = 5 if given.quick else 31
    rows: list[list[object]] = []
    for count, goal in GOALS.items():
        found = specs(count)
        candidates = [Candidate(spec=spec, index=i) for i, spec in enumerate(found)]
        busy = in_use(found)
        state = pool(found)
        inner = max(1, 2000 // count)
        bound = microseconds(partial(bare_formula, candidates, 1000, 512, 1.0), rounds, inner)
        cases: list[tuple[str, Callable[[], object]]] = [
            ("fastest (no prompt)", partial(decide, candidates, FASTEST)),
            ("scored by prompt", partial(decide, candidates, SCORED)),
            ("scored, three requirements", partial(decide, candidates, PICKY)),
            ("fastest, in use", partial(decide, busy, FASTEST)),
            ("scored, in use", partial(decide, busy, SCORED)),
            ("scored, three requirements, in use", partial(decide, busy, PICKY)),
            ("the same as scored, health, load and budgets looked up", partial(state.decide, SCORED)),
        ]
        router = litellm_router(count)
        if router is not None:
            cases.append(("LiteLLM Router, simple shuffle", router))
        rows.append([f"{count} LLMs: bare formula (bound)", bound, "1.00 x", ""])
        for name, work in cases:
            took = microseconds(work, rounds, inner)
            rows.append([f"{count} LLMs: {name}", took, ratio(took.median, bound.median), f"{goal:g}"])
    show("Decision", ["what", "us", "of the bound", "goal us"], rows, as_json=given.json)


if __name__ == "__main__":
    main()
