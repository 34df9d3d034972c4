"""What providers report, as documented or recorded, and what the call then costs, summed by hand."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from maxwell.backends import get_backend, usage_of
from maxwell.backends.wire import decode_chunk
from maxwell.calls.accounts import Account, cost_usd
from maxwell.calls.state import PoolState
from maxwell.health import HealthBook
from maxwell.ledger.memory import MemoryLedger
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec, Registry
from maxwell.testing import FakeClock
from maxwell.types import Usage

OPENAI = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920},
    "completion_tokens_details": {"reasoning_tokens": 128},
}
# github.com/Wei-Shaw/sub2api/issues/5771: the provider's own figure for this call is $0.0232856.
XAI = {
    "prompt_tokens": 10120,
    "completion_tokens": 1499,
    "total_tokens": 14428,
    "prompt_tokens_details": {"cached_tokens": 128},
    "completion_tokens_details": {"reasoning_tokens": 2809},
}
DEEPSEEK = {
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "total_tokens": 1100,
    "prompt_cache_hit_tokens": 900,
    "prompt_cache_miss_tokens": 100,
}
OPENROUTER = {"prompt_tokens": 194, "completion_tokens": 2, "total_tokens": 196, "cost": 0.00095}
VLLM = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, "prompt_tokens_details": None}
LLAMACPP_TIMINGS = {"cache_n": 17, "prompt_n": 1, "predicted_n": 3}


def llm(prompt: float, completion: float, cached: float | None = None) -> LLMSpec:
    """An LLM of those prices in US dollars per million tokens."""
    return LLMSpec(
        name="paid",
        api_base="https://api.example.com",
        model="m",
        backend="openai",
        capabilities=Capabilities(max_tokens=4096, max_context=32768, speed_tokens_per_sec=50.0),
        default_temperature=0.5,
        cost_per_1k_prompt_tokens=prompt / 1000,
        cost_per_1k_completion_tokens=completion / 1000,
        cost_per_1k_cached_tokens=None if cached is None else cached / 1000,
    )


def reported(**chunk: Any) -> Usage:
    found = decode_chunk(msgspec.json.encode({"choices": [], **chunk}))
    usage = usage_of(found.usage, found.timings)
    assert usage is not None
    return usage


@pytest.mark.parametrize(
    ("chunk", "spec", "usd"),
    [
        # 86 fresh x 2.50 + 1920 cached x 1.25 + 300 x 10, reasoning being among the 300
        ({"usage": OPENAI}, llm(2.50, 10.0, 1.25), (86 * 2.50 + 1920 * 1.25 + 300 * 10) / 1e6),
        ({"usage": OPENAI}, llm(2.50, 10.0), (2006 * 2.50 + 300 * 10) / 1e6),
        ({"usage": OPENAI}, llm(2.50, 10.0, 0.0), (86 * 2.50 + 300 * 10) / 1e6),
        ({"usage": XAI}, llm(1.25, 2.50, 0.20), 0.0232856),
        ({"usage": DEEPSEEK}, llm(0.28, 0.42, 0.028), (100 * 0.28 + 900 * 0.028 + 100 * 0.42) / 1e6),
        ({"usage": OPENROUTER}, llm(3.0, 15.0), (194 * 3 + 2 * 15) / 1e6),
        ({"usage": VLLM}, llm(1.0, 2.0), (20 * 1 + 5 * 2) / 1e6),
        ({"usage": None, "timings": LLAMACPP_TIMINGS}, llm(1.0, 2.0, 0.1), (1 * 1 + 17 * 0.1 + 3 * 2) / 1e6),
    ],
    ids=["openai", "no cache price", "free cache", "xai", "deepseek", "openrouter", "vllm", "llama.cpp"],
)
def test_an_invoice(chunk: dict[str, Any], spec: LLMSpec, usd: float) -> None:
    assert cost_usd(spec, reported(**chunk)) == pytest.approx(usd, rel=1e-12)


def test_an_embeddings_invoice() -> None:
    spec = EmbeddingSpec(
        name="e",
        api_base="https://api.example.com",
        model="m",
        dimension=2,
        max_context=512,
        cost_per_1k_tokens=0.00002,
    )
    body = {
        "data": [{"index": 0, "embedding": [0.0, 1.0]}],
        "usage": {"prompt_tokens": 1500, "total_tokens": 1500},
    }
    reply = get_backend("openai").decode_embeddings(msgspec.json.encode(body), 1)
    assert reply.usage is not None
    assert cost_usd(spec, reply.usage) == pytest.approx(0.00003)


@pytest.mark.parametrize("count", [-1, 2**41, 10**30, None])
def test_a_count_that_cannot_be_is_no_report(count: int | None) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": 5, "total_tokens": 5}
    found = decode_chunk(msgspec.json.encode({"choices": [], "usage": usage}))
    assert usage_of(found.usage, found.timings) is None


def settle(state: PoolState, usage: Usage) -> None:
    Account(state, state.llms[0].spec, state.receipts.embed(None, [])).settle(usage)


def test_a_servers_own_price_that_differs_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    state = PoolState(
        Registry(llms=(llm(3.0, 15.0),)),
        health=HealthBook(None, clock),
        ledger=MemoryLedger(),
        clock=clock,
        environ={},
    )
    with caplog.at_level(logging.WARNING, "maxwell"):
        settle(state, Usage(1000, 0, reported_usd=0.0031))
        assert caplog.messages == []
        settle(state, reported(usage=OPENROUTER))
        settle(state, reported(usage=OPENROUTER))
    assert len(caplog.messages) == 1
    assert (
        "paid: its server says that a call cost $0.00095 where the registry's prices make it $0.000612"
        in (caplog.messages[0])
    )
    assert state.ledger.usage(state.today())["paid"].nanousd == 3_000_000 + 2 * 612_000


@pytest.mark.parametrize("cost", [-1.0, None])
def test_a_price_that_cannot_be_is_no_price(cost: float | None) -> None:
    assert reported(usage={**VLLM, "cost": cost}).reported_usd is None
