"""Candidates, pools and requests at random, for the properties of choosing."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from maxwell.decision import Candidate, Request
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.types import PLAIN, Features, Requirements

TAGS = ("coding", "fast", "big")


@st.composite
def specs(draw: st.DrawFn, name: str, *, roomy: bool) -> LLMSpec:
    """Entries whose numbers are few and exact in binary, so that ties and crossings happen and are exact."""
    able = 15 if roomy else draw(st.integers(0, 15))
    capabilities = Capabilities(
        max_tokens=1024 if roomy else draw(st.sampled_from((32, 256, 1024))),
        max_context=draw(st.sampled_from((16384, 65536) if roomy else (512, 2048, 65536))),
        speed_tokens_per_sec=draw(st.sampled_from((8.0, 16.0, 32.0, 128.0))),
        prefill_tokens_per_sec=draw(st.sampled_from((256.0, 1024.0, 4096.0))),
        vision=bool(able & 1),
        reasoning=bool(able & 2),
        code_specialized=bool(able & 4),
        tools=bool(able & 8),
    )
    return LLMSpec(
        name=name,
        api_base=f"http://{name}",
        model="m",
        backend="llamacpp",
        capabilities=capabilities,
        default_temperature=0.5,
        tags=TAGS if roomy else TAGS[: draw(st.integers(0, 3))],
        tier="standard" if roomy else draw(st.sampled_from(("free", "standard", "premium"))),
        cost_per_1k_tokens=draw(st.sampled_from((0.0, 0.0, 1 / 1024, 1 / 128, 1 / 16))),
        cost_per_1k_completion_tokens=draw(st.sampled_from((None, None, 1 / 64))),
    )


FLAWS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"state": "asleep"},
    {"queue_wait": 2.0},
    {"context": 1024},
    {"tokens_left": 700},
    {"tokens_left": 0},
    {"usd_left": 0.004},
    {"usd_left": 0.0},
    {"cannot": "obeys no grammar"},
    {"blocked": "key", "detail": "no key"},
    {"blocked": "model_missing"},
    *({"state": state} for state in ("unknown", "loading", "rate_limited", "misconfigured", "down")),
)


# How a server stands at the moment; two entries of one server see the same.
IDLE: dict[str, Any] = {}
MOMENTS: tuple[dict[str, Any], ...] = (
    IDLE,
    IDLE,
    {"in_flight": 1.0, "slots": 4},
    {"in_flight": 2.0, "slots": 2},
    {"in_flight": 5.0, "slots": 2},
    {"in_flight": 2.7, "slots": 4},
    {"in_flight": 9.0},
    {"slots": 8},
    {"slowdown": 2.5},
    {"cached": 0.75, "in_flight": 1.0, "slots": 2},
    {"in_flight": 3.0, "slots": 3, "slowdown": 4.0},
    {"state": "loading", "ready_in": 8.0},
    {"state": "loading", "ready_in": math.inf},
    {"state": "rate_limited", "ready_in": 16.0, "slots": 2, "in_flight": 1.0},
    {"state": "asleep", "ready_in": 2.0},
    {"failing": True},
    {"failing": True, "in_flight": 2.0, "slots": 2},
)
# What was learned of an entry.
LEARNED: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"overhead": 0.25},
    {"completion": 48.0},
    {"completion": 4096.0, "service": 8.0},
    {"service": 2.0, "overhead": 1.0, "completion": 96.0},
)
ENDPOINTS = ("http://one", "http://two", "http://three")


@st.composite
def candidates(
    draw: st.DrawFn, name: str, index: int, *, roomy: bool = False, moment: dict[str, Any] | None = None
) -> Candidate:
    flaw = draw(st.sampled_from(FLAWS[:5] if roomy else FLAWS))
    spec, learned = draw(specs(name, roomy=roomy)), draw(st.sampled_from(LEARNED))
    moment = draw(st.sampled_from(MOMENTS)) if moment is None else moment
    return Candidate(spec=spec, index=index, resets_in=60.0, **(flaw | learned | moment))


@st.composite
def pools(draw: st.DrawFn, least: int = 0, most: int = 4, *, roomy: bool = False) -> list[Candidate]:
    size = draw(st.integers(least, most))
    if draw(st.booleans()):
        return [draw(candidates(f"m{i}", i, roomy=roomy, moment=IDLE)) for i in range(size)]
    moments = {endpoint: draw(st.sampled_from(MOMENTS)) | {"endpoint": endpoint} for endpoint in ENDPOINTS}
    return [
        draw(candidates(f"m{i}", i, roomy=roomy, moment=moments[draw(st.sampled_from(ENDPOINTS))]))
        for i in range(size)
    ]


WEIGHTS = st.sampled_from((0.0, 0.125, 0.5, 1.0, 2.0, 8.0, 10.0))
DEMANDS: tuple[dict[str, Any], ...] = (
    {"vision": True},
    {"vision": False},
    {"reasoning": True},
    {"code_specialized": True},
    {"tools": True},
    {"tools": False},
    {"min_context": 1024},
    {"min_context": 4096},
    {"min_speed": 16.0},
    {"min_speed": 100.0},
    {"tags": ("coding",)},
    {"tags": ("fast", "coding")},
    {"tier": "free"},
    {"max_completion": 1},
    {"max_completion": 128},
    {"max_completion": 900},
)


@st.composite
def requests(draw: st.DrawFn, *, routed: bool | None = None, modest: bool = False) -> Request:
    needs: dict[str, Any] = {"time_cost_weight": draw(WEIGHTS)}
    for demand in () if modest else draw(st.lists(st.sampled_from(DEMANDS), max_size=2)):
        needs |= demand
    tokens = draw(st.sampled_from((1, 64, 256, 448) if modest else (1, 256, 448, 1000, 1980, 8000)))
    if routed is None:
        routed = draw(st.booleans())
    return Request(
        needs=Requirements(**needs),
        prompt_bytes=4 * tokens if routed else None,
        extra_tokens=8 if tokens == 1000 else 0,
        features=Features(images=True) if not modest and draw(st.integers(0, 3)) == 3 else PLAIN,
        thinking=None if modest else draw(st.sampled_from((None, None, 0, 256))),
    )
