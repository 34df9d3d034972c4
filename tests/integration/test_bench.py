"""Measuring on purpose: what a bench finds out of servers whose speeds are known."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from calling import assert_idle, chats, entry, make_registry

from maxwell.calls.benching import Bench, Progress, most_used, steps
from maxwell.errors import BudgetExceeded, NoEligibleLM, StatusError, UnknownName
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import BackendName

LONG = ["word "] * 400


def spec(context: int = 32768, cap: int = 4096, price: float = 0.0) -> LLMSpec:
    return LLMSpec(
        name="box",
        api_base="http://box:8080",
        model="m",
        backend="openai",
        capabilities=Capabilities(max_tokens=cap, max_context=context, speed_tokens_per_sec=50.0),
        default_temperature=0.5,
        cost_per_1k_tokens=price,
    )


def pool_of(home: Path, *entries: Any) -> LLMPool:
    return LLMPool(make_registry(*entries), home=home, environ={})


def free(server: FakeServer, name: str = "box", **fields: Any) -> dict[str, Any]:
    return entry(server, name, daily_budget_tokens=None, **fields)


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm", "openai"])
def test_a_servers_speed_is_measured(tmp_path: Path, fake_server: FakeServers, dialect: BackendName) -> None:
    server = fake_server(dialect, tokens_per_sec=400, reply=LONG)
    with pool_of(tmp_path, free(server)) as pool:
        found = pool.bench("box")
    assert found.speed is not None
    assert found.speed.middle == pytest.approx(400, rel=0.2)
    assert found.speed.low <= found.speed.middle <= found.speed.high
    assert found.speed.count == 3
    assert found.overhead is not None
    assert found.overhead.middle < 0.2
    assert found.at_once == {}
    assert (found.llm, found.calls, found.cost_usd) == ("box", 10, 0.0)
    assert found.tokens == server.usage.total_tokens


def test_reading_is_told_from_starting(tmp_path: Path, fake_server: FakeServers) -> None:
    """A server that tells nothing takes 0.1 s for anything, and longer for a long prompt."""
    server = fake_server("vllm", tokens_per_sec=1000, reply=LONG, context=8192)
    for late in (0.0, 0.1, 0.4, 0.0, 0.1, 0.4, 0.0, 0.1, 0.4, 0.0):
        server.fail(faults.SlowFirstByte(late), path="/v1/chat")
    with pool_of(tmp_path, free(server)) as pool:
        found = pool.bench("box")
    assert found.prefill is not None
    assert found.overhead is not None
    assert found.prefill.middle == pytest.approx(2000 / 0.3, rel=0.2)
    assert found.overhead.middle == pytest.approx(0.1, rel=0.3)


def test_several_replies_at_once(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server(tokens_per_sec=400, reply=LONG, slots=4)
    with pool_of(tmp_path, free(server)) as pool:
        found = pool.bench("box", at_once=(2, 4))
    assert list(found.at_once) == [2, 4]
    assert [figure.count for figure in found.at_once.values()] == [2, 4]
    assert all(figure.middle == pytest.approx(400, rel=0.3) for figure in found.at_once.values())
    assert server.max_in_flight == 4
    assert_idle(server)


def test_no_prompt_begins_like_another(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server(reply=LONG)
    with pool_of(tmp_path, free(server)) as pool:
        pool.bench("box")
        pool.bench("box")
    beginnings = [request.body["messages"][0]["content"][:9] for request in chats(server)]
    assert len(set(beginnings)) == len(beginnings) == 20


@pytest.mark.parametrize(("dialect", "endless"), [("llamacpp", True), ("vllm", True), ("openai", None)])
def test_replies_are_kept_going_where_that_can_be_asked(
    tmp_path: Path, fake_server: FakeServers, dialect: BackendName, endless: bool | None
) -> None:
    server = fake_server(dialect, reply=LONG)
    with pool_of(tmp_path, free(server)) as pool:
        pool.bench("box")
    asked = {r.body.get("ignore_eos") for r in chats(server) if 192 in r.body.values()}
    assert asked == {endless}


def test_what_it_shows_is_learned(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server(tokens_per_sec=400, reply=LONG)
    with pool_of(tmp_path, free(server, capabilities={"speed_tokens_per_sec": 50.0})) as pool:
        pool.bench("box")
        [status] = pool.health()
    assert status.measured is not None
    assert status.measured.speed == pytest.approx(400, rel=0.3)


def test_progress_tells_what_comes_and_what_was_found(tmp_path: Path, fake_server: FakeServers) -> None:
    told: list[Progress] = []
    server = fake_server(tokens_per_sec=400, reply=LONG)
    with pool_of(tmp_path, free(server)) as pool:
        found = pool.bench("box", progress=told.append)
    assert [p.done for p in told] == list(range(11))
    assert {p.steps for p in told} == {10}
    assert told[0].so_far == Bench(llm="box")
    assert told[-1].so_far == found
    assert [p.doing for p in told[:4]] == ["waking it", "short prompt", "long prompt", "long reply"]


def test_the_async_pool_measures_alike(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server(tokens_per_sec=400, reply=LONG)

    async def run() -> Bench:
        async with AsyncLLMPool(make_registry(free(server)), home=tmp_path, environ={}) as pool:
            found: Bench = await pool.bench("box", at_once=(2,))
            return found

    found = asyncio.run(run())
    assert found.speed is not None
    assert found.speed.middle == pytest.approx(400, rel=0.2)
    assert found.at_once[2].count == 2


def test_what_cannot_be_measured_is_not_guessed(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server("vllm", reply="Yes.")
    with pool_of(tmp_path, free(server)) as pool:
        assert pool.bench("box").speed is None


# --- what goes wrong


def test_a_server_that_is_down_is_said_to_be(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server(reply=LONG)
    with pool_of(tmp_path, free(server)) as pool:
        with pytest.raises(UnknownName):
            pool.bench("bix")
        server.stop()
        with pytest.raises(NoEligibleLM):
            pool.bench("box")


def test_a_failing_call_ends_it(tmp_path: Path, fake_server: FakeServers) -> None:
    told: list[Progress] = []
    server = fake_server(tokens_per_sec=1000, reply=LONG)
    with pool_of(tmp_path, free(server)) as pool:
        pool.health()
        server.fail(faults.SlowFirstByte(0.0), times=6, path="/v1/chat")
        server.fail(faults.Status(500), times=None, path="/v1/chat")
        with pytest.raises(StatusError):
            pool.bench("box", progress=told.append)
    assert told[-1].so_far.calls == 6
    assert_idle(server)


def test_one_of_several_that_fails_ends_the_others(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server(tokens_per_sec=100, reply=LONG, slots=4)
    with pool_of(tmp_path, free(server, capabilities={"max_tokens": 8})) as pool:
        pool.health()
        server.fail(faults.SlowFirstByte(0.0), times=12, path="/v1/chat")
        server.fail(faults.Status(400), times=None, path="/v1/chat")
        with pytest.raises(StatusError):
            pool.bench("box", at_once=(4,))
    assert_idle(server)


def test_its_budget_bounds_it(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server(reply=LONG)
    with pool_of(tmp_path, entry(server, "box", daily_budget_tokens=1000)) as pool:
        with pytest.raises(BudgetExceeded):
            pool.bench("box")
        assert pool.usage()["box"].tokens <= 1000


# --- the most it can use


@pytest.mark.parametrize("context", [64, 512, 4096, 128_000])
@pytest.mark.parametrize("at_once", [(), (2, 4)])
def test_the_most_it_can_use_is_never_exceeded(
    tmp_path: Path, fake_server: FakeServers, context: int, at_once: tuple[int, ...]
) -> None:
    server = fake_server("vllm", reply=LONG, context=context, token_bytes=2)
    priced = free(server, cost_per_1k_tokens=0.01)
    with pool_of(tmp_path, priced) as pool:
        most = most_used(pool.llms[0], context, at_once)
        try:
            pool.bench("box", at_once=at_once)
        except StatusError:
            assert context == 64  # has no room for anything
        used = pool.usage()["box"]
    assert used.tokens <= most[0]
    assert used.usd <= most[1]


def test_the_most_it_can_cost_counts_each_price() -> None:
    tokens, usd = most_used(spec(price=0.01), 32768)
    assert usd == pytest.approx(tokens * 0.01 / 1000)
    assert most_used(spec(), 32768)[1] == 0.0
    assert most_used(spec(price=0.01), 32768, (8,))[1] > usd


def test_a_plan_fits_into_the_context() -> None:
    for context in (256, 512, 2048, 8192):
        for step in steps(spec(context, cap=context), context, draw=lambda: 0.5):
            assert len(step.prompt) / 4 + step.most <= context
