"""Reranking calls: which one, order, one server a call, money, what goes wrong."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from calling import BUDGET, SOON, Calls, assert_idle, count
from command_line import unreachable

from maxwell.errors import (
    BudgetExceeded,
    ConnectError,
    DecodeError,
    InputTooLong,
    NoEligibleLM,
    StatusError,
    UnknownName,
)
from maxwell.ledger import Used
from maxwell.lm_pool import LLMPool, get_async_reranker, get_reranker
from maxwell.registry.load import decode
from maxwell.registry.specs import Registry
from maxwell.rerankers import Ranked
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry, grouped
from maxwell.types import BackendName

RERANK = "/v1/rerank"
DIALECTS: list[BackendName] = ["llamacpp", "vllm", "openai"]
QUERY = "a warm cat"
DOCUMENTS = ["a cold dog", "the cat", "a warm cat", "nothing", "the cat"]


def calls_of(home: Path, *entries: dict[str, Any]) -> Calls:
    calls = Calls(home, unreachable())
    made = decode(json.dumps(grouped(entries)).encode(), "test")
    calls.registry = Registry(llms=made.llms, embeddings=made.embeddings, rerankers=made.rerankers)
    return calls


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    return fake_server(reranker=True)


def pool_of(server: FakeServer, home: Path, **fields: Any) -> Calls:
    return calls_of(home, server.reranker_entry("r", **{"daily_budget_tokens": BUDGET, **fields}))


def rank(calls: Calls, query: str = QUERY, documents: list[str] = DOCUMENTS, **options: Any) -> list[Ranked]:
    with calls.pool() as pool:
        return pool.get_reranker("r").rerank(query, documents, **options)


# --- which one


def test_a_name_goes_before_a_tag_and_a_tag_takes_the_first_usable(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    down, up = fake_server(reranker=True), fake_server(reranker=True)
    down.stop()
    calls = calls_of(
        tmp_path,
        down.reranker_entry("first", tags=["default", "fast"]),
        up.reranker_entry("fast"),
        up.reranker_entry("third", tags=["default"]),
    )
    with calls.pool() as pool:
        assert [pool.get_reranker(wanted).name for wanted in ("fast", "default", None)] == [
            "fast",
            "third",
            "third",
        ]
        with pytest.raises(NoEligibleLM, match="no reranker can be chosen: first: cannot connect"):
            pool.get_reranker("first")
        with pytest.raises(UnknownName, match="no reranker 'thirt'; did you mean third"):
            pool.get_reranker("thirt")
        with pytest.raises(UnknownName, match="no embedding 'third': the registry declares none"):
            pool.get_embedding("third")
    with Calls(tmp_path, unreachable()).pool() as pool, pytest.raises(NoEligibleLM, match="declares none"):
        pool.get_reranker()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("named", [True, False], ids=["backend named", "found out"])
def test_every_family_ranks_alike(
    fake_server: FakeServers, tmp_path: Path, dialect: BackendName, named: bool
) -> None:
    server = fake_server(dialect, reranker=True)
    entry = server.reranker_entry("r")
    if not named:
        del entry["backend"]
    ranked = rank(calls_of(tmp_path, entry))
    assert [one.index for one in ranked] == [2, 0, 1, 4, 3]  # of equal ones the earlier first
    assert [one.document for one in ranked] == [DOCUMENTS[one.index] for one in ranked]
    assert [round(one.score, 3) for one in ranked] == [1.0, 0.333, 0.333, 0.333, 0.0]


def test_the_fake_speaks_the_short_form_of_tei_too(server: FakeServer) -> None:
    body = json.dumps({"query": QUERY, "texts": DOCUMENTS[:3], "top_n": 2}).encode()
    request = urllib.request.Request(f"{server.url}/rerank", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=SOON) as reply:
        assert [one["index"] for one in json.load(reply)] == [2, 0]


def test_top_n_cuts_the_result(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path)
    assert [one.index for one in rank(calls, top_n=2)] == [2, 0]
    assert len(rank(calls, top_n=99)) == len(DOCUMENTS)


def test_the_async_twin_gives_the_same(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path)

    async def main() -> list[Ranked]:
        async with calls.async_pool() as pool:
            return await (await pool.get_reranker("r")).rerank(QUERY, DOCUMENTS)

    assert asyncio.run(main()) == rank(calls)


def test_the_door_has_rerankers(server: FakeServer, write_registry: WriteRegistry) -> None:
    write_registry(server.reranker_entry("r"))
    assert get_reranker().rerank(QUERY, DOCUMENTS)[0].index == 2

    async def main() -> int:
        return (await (await get_async_reranker("r")).rerank(QUERY, DOCUMENTS))[0].index

    assert asyncio.run(main()) == 2


@pytest.mark.parametrize(
    ("query", "documents", "options", "error"),
    [
        ("", ["a"], {}, ValueError),
        ("q", "not a list", {}, TypeError),
        ("q", [b"bytes"], {}, TypeError),
        (7, ["a"], {}, TypeError),
        ("q", ["a"], {"top_n": 0}, ValueError),
        ("q", ["a"], {"top_n": True}, TypeError),
        ("q", ["a"], {"timeout": 0}, ValueError),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_sent(
    server: FakeServer, tmp_path: Path, query: Any, documents: Any, options: Any, error: type[Exception]
) -> None:
    with pool_of(server, tmp_path).pool() as pool:
        reranker = pool.get_reranker("r")
        with pytest.raises(error):
            reranker.rerank(query, documents, **options)
    assert count(server, RERANK) == 0


def test_no_documents_make_no_request(server: FakeServer, tmp_path: Path) -> None:
    assert rank(pool_of(server, tmp_path), documents=[]) == []
    assert count(server, RERANK) == 0


# --- one server a call


def test_all_documents_go_to_one_server_in_one_request(fake_server: FakeServers, tmp_path: Path) -> None:
    one, other = fake_server(reranker=True), fake_server(reranker=True)
    calls = calls_of(tmp_path, one.reranker_entry("r"), other.reranker_entry("other"))
    documents = [f"document {i}" for i in range(900)]
    assert len(rank(calls, documents=documents)) == 900
    (request,) = one.requests_to(RERANK)
    assert request.body["documents"] == documents
    assert count(other, RERANK) == 0


def test_no_other_one_ever_takes_over(fake_server: FakeServers, tmp_path: Path) -> None:
    one, other = fake_server(reranker=True), fake_server(reranker=True)
    calls = calls_of(
        tmp_path,
        one.reranker_entry("r", tags=["default"]),
        other.reranker_entry("other", tags=["default"]),
    )
    with calls.pool() as pool:
        reranker = pool.get_reranker()
        one.stop()
        with pytest.raises(ConnectError, match="r: "):
            reranker.rerank(QUERY, DOCUMENTS)
    assert count(other, RERANK) == 0


def test_a_server_that_takes_few_at_once_gets_several_requests(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(reranker=True, most_documents=32)
    documents = [f"cat {i}" if i % 7 else "a warm cat" for i in range(100)]
    ranked = rank(pool_of(server, tmp_path), documents=documents)
    assert sorted(one.index for one in ranked) == list(range(100))
    assert [one.index for one in ranked[:3]] == [0, 7, 14]
    assert [len(r.body["documents"]) for r in server.requests_to(RERANK)] == [100, 32, 32, 32, 4]


# --- money and receipts


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_was_used_is_booked(fake_server: FakeServers, tmp_path: Path, dialect: BackendName) -> None:
    server = fake_server(dialect, reranker=True)
    calls = pool_of(server, tmp_path, cost_per_1k_tokens=0.02)
    rank(calls)
    tokens = server.usage.prompt_tokens
    used = calls.used("r")
    assert (used.tokens, used.calls, used.estimated_tokens) == (tokens, 1, 0)
    assert used.usd == pytest.approx(tokens * 0.02 / 1000)


def test_usage_that_is_not_reported_is_estimated(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path)
    server.fail(faults.NoUsage())
    rank(calls)
    used = calls.used("r")
    assert used.estimated_tokens == used.tokens >= server.usage.prompt_tokens


def test_a_budget_holds(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path, daily_budget_tokens=300)
    with pytest.raises(BudgetExceeded, match="r: daily budget has 300 tokens left"):
        rank(calls)
    assert count(server, RERANK) == 0
    assert calls.used("r") == Used()
    assert rank(calls, documents=["a warm cat"])[0].score == 1.0


def test_the_call_leaves_a_receipt(server: FakeServer, write_registry: WriteRegistry) -> None:
    path = write_registry(server.reranker_entry("r"))
    with LLMPool.from_registry(path) as pool:
        pool.get_reranker("r").rerank(QUERY, DOCUMENTS)
        receipt = pool._state.receipts.last()
    assert receipt is not None
    assert (receipt.kind, receipt.outcome, receipt.llm) == ("rerank", "ok", "r")
    assert receipt.messages == 1 + len(DOCUMENTS)


# --- what goes wrong


def test_a_passing_failure_is_mended_at_the_same_server(server: FakeServer, tmp_path: Path) -> None:
    server.fail(faults.ServerError())
    calls = pool_of(server, tmp_path)
    assert rank(calls)[0].index == 2
    assert count(server, RERANK) == 2
    assert calls.used("r").calls == 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_too_long_documents_are_named(fake_server: FakeServers, tmp_path: Path, dialect: BackendName) -> None:
    server = fake_server(dialect, reranker=True, context=32)
    with pytest.raises(InputTooLong, match=r"limit 32 tokens.*the longest is document 1, 600 bytes"):
        rank(pool_of(server, tmp_path), documents=["a", "b" * 600, "c"])


def test_a_chat_server_says_that_it_cannot(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = calls_of(tmp_path, server.reranker_entry("r"))
    with pytest.raises(StatusError, match="does not support reranking") as caught:
        rank(calls)
    assert caught.value.kind == "unsupported"
    assert calls.used("r") == Used()


@pytest.mark.parametrize("fault", [faults.BadChunk(), faults.CloseEarly()], ids=lambda f: type(f).__name__)
def test_half_a_reply_is_no_reply(server: FakeServer, tmp_path: Path, fault: faults.Fault) -> None:
    server.fail(fault, times=None)
    with pytest.raises(DecodeError, match="r: not a reranking reply"):
        rank(pool_of(server, tmp_path))


def test_a_cancelled_call_gives_its_place_back(server: FakeServer, tmp_path: Path) -> None:
    server.fail(faults.SlowFirstByte(60.0))
    calls = pool_of(server, tmp_path)

    async def main() -> None:
        async with calls.async_pool() as pool:
            reranker = await pool.get_reranker("r")
            task = asyncio.ensure_future(reranker.rerank(QUERY, DOCUMENTS))
            while not server.requests_to(RERANK):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    server.wait_aborted(SOON)
    assert_idle(server)
    assert calls.used("r").tokens > 0  # the server had it
