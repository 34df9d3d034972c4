"""Embedding calls: which model, order, batches, dimension, length, money."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from calling import BUDGET, SOON, Calls, assert_idle, count, wait_held

from maxwell.errors import (
    BackendError,
    BudgetExceeded,
    CallTimeout,
    ConnectError,
    DecodeError,
    DimensionMismatch,
    InputTooLong,
    NoEligibleLM,
    StatusError,
    UnknownName,
)
from maxwell.ledger import Used
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers

EMBED = "/v1/embeddings"


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    return fake_server(embeddings=True, context=64, dimension=16)


def pool_of(server: FakeServer, tmp_path: Path, **fields: Any) -> Calls:
    return Calls(tmp_path, server.embedding_entry("e", **{"daily_budget_tokens": BUDGET, **fields}))


def embed(calls: Calls, texts: list[str], **options: Any) -> list[list[float]]:
    with calls.pool() as pool:
        return pool.get_embedding("e").embed_many(texts, **options)


def singly(server: FakeServer, tmp_path: Path, texts: list[str]) -> list[list[float]]:
    with pool_of(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        return [embedding.embed(text) for text in texts]


# --- which one


def test_a_name_goes_before_a_tag(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai")
    calls = Calls(
        tmp_path,
        server.embedding_entry("tagged", tags=["fast", "default"]),
        server.embedding_entry("fast", tags=["other"]),
        server.embedding_entry("third", tags=["other"]),
    )
    with calls.pool() as pool:
        names = [pool.get_embedding(wanted).name for wanted in ("fast", "other", "default", "third", None)]
        assert names == ["fast", "fast", "tagged", "third", "tagged"]
        with pytest.raises(UnknownName, match="no embedding 'defalt'; did you mean default"):
            pool.get_embedding("defalt")


def test_a_tag_takes_the_first_that_is_usable_and_a_name_no_other(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    down, up = fake_server(embeddings=True), fake_server(embeddings=True)
    down.stop()
    calls = Calls(
        tmp_path,
        down.embedding_entry("first", tags=["default"]),
        up.embedding_entry("second", tags=["default"]),
    )
    with calls.pool() as pool:
        assert pool.get_embedding("default").name == "second"
        with pytest.raises(NoEligibleLM, match="first: cannot connect"):
            pool.get_embedding("first")


def test_no_other_model_ever_takes_over(fake_server: FakeServers, tmp_path: Path) -> None:
    # Vectors of two models cannot be compared, even where their dimensions agree.
    first, second = fake_server(embeddings=True), fake_server(embeddings=True)
    calls = Calls(
        tmp_path,
        first.embedding_entry("first", tags=["default"]),
        second.embedding_entry("second", tags=["default"]),
    )
    with calls.pool() as pool:
        embedding = pool.get_embedding()
        for fault in (faults.ServerError(), faults.Cut(), faults.Reset(), faults.Unauthorized()):
            first.heal()
            first.fail(fault, times=None)
            with pytest.raises(BackendError, match="first: "):
                embedding.embed("Hello")
        first.stop()
        with pytest.raises(ConnectError, match="first: "):
            embedding.embed("Hello")
    assert count(second, EMBED) == 0


def test_an_entry_without_backend_is_spoken_to_as_what_it_is(server: FakeServer, tmp_path: Path) -> None:
    # As in the specification: embeddings name no backend. Cutting needs the server's own tokenizer.
    entry = server.embedding_entry("e")
    del entry["backend"]
    with Calls(tmp_path, entry).pool() as pool:
        assert len(pool.get_embedding("e").embed("word " * 200, truncate=True)) == 16


# --- order and batches


def test_the_order_is_kept_over_batches(server: FakeServer, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(600)]
    vectors = embed(pool_of(server, tmp_path), texts)
    sizes = [len(r.body["input"]) for r in server.requests_to(EMBED)]
    assert sum(sizes) == 600
    assert len(sizes) > 1
    picked = [0, 1, 255, 256, 257, 511, 512, 599]
    assert [vectors[i] for i in picked] == singly(server, tmp_path, [texts[i] for i in picked])


def test_the_async_twin_gives_the_same(server: FakeServer, tmp_path: Path) -> None:
    calls, texts = pool_of(server, tmp_path), [f"text {i}" for i in range(300)]

    async def main() -> tuple[list[list[float]], list[float]]:
        async with calls.async_pool() as pool:
            embedding = await pool.get_embedding("e")
            many, one = await asyncio.gather(embedding.embed_many(texts), embedding.embed(texts[7]))
            return many, one

    many, one = asyncio.run(main())
    assert many == embed(calls, texts)
    assert one == many[7]


def test_large_texts_make_small_batches(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(embeddings=True, context=100_000)
    embed(pool_of(server, tmp_path), ["x" * 100_000] * 6)
    sizes = [sum(map(len, r.body["input"])) for r in server.requests_to(EMBED)]
    assert sum(sizes) == 600_000
    assert max(sizes) <= 300_000


def test_no_texts_are_no_request(server: FakeServer, tmp_path: Path) -> None:
    assert embed(pool_of(server, tmp_path), []) == []
    assert count(server, EMBED) == 0


def test_shuffled_replies_are_put_in_order(server: FakeServer, tmp_path: Path) -> None:
    data = [{"index": i, "embedding": [float(i + 1)] * 16} for i in (2, 0, 1)]
    server.fail(faults.Status(200, {"data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}))
    assert embed(pool_of(server, tmp_path), ["a", "b", "c"]) == [[1.0] * 16, [2.0] * 16, [3.0] * 16]


# --- forms of a reply


def test_base64_is_asked_for_and_floats_are_understood(server: FakeServer, tmp_path: Path) -> None:
    (packed,) = embed(pool_of(server, tmp_path), ["Hello"])
    assert server.requests_to(EMBED)[0].body["encoding_format"] == "base64"
    floats = {"data": [{"index": 0, "embedding": packed}], "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    server.fail(faults.Status(200, floats))
    assert embed(pool_of(server, tmp_path), ["Hello"]) == [packed]
    assert sum(x * x for x in packed) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "reply",
    [
        {"data": []},
        {"data": [{"index": 0, "embedding": [1.0] * 16}]},
        {"data": [{"index": 0, "embedding": [1.0] * 16}] * 2},
        {"data": [{"index": 0, "embedding": [1.0] * 16}, {"index": 5, "embedding": [1.0] * 16}]},
        {"data": [{"index": 0, "embedding": "AAA"}, {"index": 1, "embedding": "AAAA"}]},
        {"data": [{"index": i, "embedding": []} for i in range(2)]},
        {"nothing": "of it"},
        "<html>",
        "",
    ],
)
def test_a_reply_that_is_none_is_an_error(server: FakeServer, tmp_path: Path, reply: Any) -> None:
    server.fail(faults.Status(200, reply))
    calls = pool_of(server, tmp_path)
    with pytest.raises(DecodeError, match="e: ") as caught:
        embed(calls, ["a", "b"])
    assert caught.value.kind == "bad_reply"
    assert calls.used("e").tokens > 0  # it was computed, whatever came back
    assert calls.used("e").held_tokens == 0


def test_a_wrong_dimension_is_an_error_that_names_both(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path, dimension=2560)
    with pytest.raises(DimensionMismatch, match=r"e: declared dimension 2560, .* returned 16"):
        embed(calls, ["Hello"])
    assert calls.used("e").tokens == server.usage.total_tokens > 0


def test_a_swapped_server_is_noticed(server: FakeServer, tmp_path: Path) -> None:
    mixed = [{"index": 0, "embedding": [1.0] * 16}, {"index": 1, "embedding": [1.0] * 8}]
    server.fail(faults.Status(200, {"data": mixed}))
    with pytest.raises(DimensionMismatch, match="8"):
        embed(pool_of(server, tmp_path), ["a", "b"])


# --- length


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm", "openai"])
def test_a_text_that_is_too_long_is_named_by_its_index(
    fake_server: FakeServers, tmp_path: Path, dialect: Any
) -> None:
    server = fake_server(dialect, embeddings=True, context=64)
    calls = pool_of(server, tmp_path)
    texts = ["short"] * 300 + ["word " * 100] + ["short"] * 10
    with pytest.raises(InputTooLong, match=r"e: text 300 .*64 tokens"):
        embed(calls, texts)
    assert calls.used("e").held_tokens == 0
    assert_idle(server)


def test_the_longest_in_tokens_is_named_not_the_longest_in_bytes(server: FakeServer, tmp_path: Path) -> None:
    # 62 tokens of 4 bytes fit; 70 of 3 bytes do not, although they are fewer bytes.
    fits, too_long = "abcd" * 62, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 70
    with pytest.raises(InputTooLong, match="text 2 "):
        embed(pool_of(server, tmp_path), ["short", fits, too_long])


def test_a_long_text_is_cut_to_the_servers_own_tokens(server: FakeServer, tmp_path: Path) -> None:
    long, cut = "abcd" * 100 + "zz", "abcd" * 64
    vectors = embed(pool_of(server, tmp_path), [long, "short", cut], truncate=True)
    assert vectors[0] == vectors[2]
    assert vectors[1:] == singly(server, tmp_path, ["short", cut])


def test_a_smaller_declared_limit_is_kept_to(server: FakeServer, tmp_path: Path) -> None:
    (cut,) = embed(pool_of(server, tmp_path, max_context=10), ["abcd" * 50], truncate=True)
    assert [cut] == singly(server, tmp_path, ["abcd" * 10])


def test_vllm_cuts_by_itself(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("vllm", embeddings=True, context=64)
    vectors = embed(pool_of(server, tmp_path), ["abcd" * 100, "short"], truncate=True)
    assert server.requests_to(EMBED)[-1].body["truncate_prompt_tokens"] == 64
    assert vectors == singly(server, tmp_path, ["abcd" * 64, "short"])


def test_openai_cannot_cut_and_says_so(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", context=64)
    with pytest.raises(InputTooLong) as caught:
        embed(pool_of(server, tmp_path), ["short", "abcd" * 100], truncate=True)
    assert "e: text 1 " in str(caught.value)
    assert "64 tokens" in str(caught.value)
    assert "truncate=True" not in str(caught.value)  # that is what does not help here


def test_a_text_that_fits_needs_no_cutting(fake_server: FakeServers, tmp_path: Path) -> None:
    # 50 tokens in 200 bytes: more bytes than the limit has tokens, and yet it fits.
    server = fake_server("openai", context=64)
    assert len(embed(pool_of(server, tmp_path), ["abcd" * 50], truncate=True)) == 1


def test_a_server_that_died_is_not_said_to_lack_a_tokenizer(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        server.stop()
        with pytest.raises(ConnectError, match="e: cannot connect"):
            embedding.embed("abcd" * 100, truncate=True)


# --- bad input


@pytest.mark.parametrize("texts", [[""], ["a", ""], ["a"] * 500 + [""]])
def test_an_empty_text_is_refused_before_anything_is_sent(
    server: FakeServer, tmp_path: Path, texts: list[str]
) -> None:
    calls = pool_of(server, tmp_path)
    with pytest.raises(ValueError, match=f"text {len(texts) - 1} to embed is empty"):
        embed(calls, texts)
    assert count(server, EMBED) == 0
    assert calls.used("e").tokens == 0


@pytest.mark.parametrize("texts", ["one text", [1, 2], [b"bytes"], [None]])
def test_texts_are_a_list_of_str(server: FakeServer, tmp_path: Path, texts: Any) -> None:
    with pytest.raises(TypeError, match="sequence of str"):
        embed(pool_of(server, tmp_path), texts)


def test_a_text_that_is_not_valid_unicode_is_told(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path)
    with pytest.raises(ValueError, match="not valid Unicode"):
        embed(calls, ["a\ud800b"])
    assert count(server, EMBED) == 0
    assert (calls.used("e").tokens, calls.used("e").held_tokens) == (0, 0)


# --- keys


def test_a_missing_key_is_named(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", api_key="sk-right-one")
    calls = pool_of(server, tmp_path, api_key_env="EMBED_KEY")
    with calls.pool() as pool, pytest.raises(NoEligibleLM, match="e: environment variable EMBED_KEY"):
        pool.get_embedding("e")


def test_a_key_that_was_revoked_is_named(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai")
    calls = pool_of(server, tmp_path)
    server.fail(faults.Unauthorized())
    with calls.pool() as pool:
        embedding = pool.get_embedding("e")
        with pytest.raises(StatusError) as caught:
            embedding.embed("Hello")
        assert caught.value.kind == "auth"
        with pytest.raises(NoEligibleLM, match=r"e: .*401"):
            pool.get_embedding("e")
    assert calls.used("e").tokens == 0


# --- money


def test_usage_is_booked_as_the_server_reports_it(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path, cost_per_1k_tokens=0.02)
    embed(calls, [f"text number {i}" for i in range(600)])
    used = calls.used("e")
    assert used.tokens == server.usage.total_tokens
    assert used.usd == pytest.approx(0.02 * used.tokens / 1000)
    assert used.held_tokens == 0


def test_usage_that_is_not_reported_is_estimated_never_zero(server: FakeServer, tmp_path: Path) -> None:
    server.fail(faults.NoUsage(), times=None)
    calls = pool_of(server, tmp_path)
    embed(calls, ["a", "some longer text"])
    assert calls.used("e").tokens >= 2


def test_a_budget_is_kept(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path, daily_budget_tokens=100)
    embed(calls, ["a" * 80])
    with pytest.raises(BudgetExceeded, match="e: daily budget has 80 tokens left"):
        embed(calls, ["a" * 400])
    assert calls.used("e").tokens == 20
    assert count(server, EMBED) == 1


def test_a_budget_that_is_used_up_excludes_the_entry(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path, daily_budget_tokens=20)
    vector = {"index": 0, "embedding": [1.0] * 16}
    server.fail(faults.Status(200, {"data": [vector], "usage": {"prompt_tokens": 20, "total_tokens": 20}}))
    embed(calls, ["Hello"])
    with (
        calls.pool() as pool,
        pytest.raises(BudgetExceeded, match="e: daily budget has 0 tokens left; it resets at"),
    ):
        pool.get_embedding("e")


def test_a_refused_call_costs_nothing_and_a_broken_one_does(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path)
    with calls.pool() as pool:
        embedding = pool.get_embedding("e")
        refusals = (
            faults.ServerError(),
            faults.Status(400),
            faults.RateLimited(retry_after=600),
            faults.QuotaExhausted(),
        )
        for fault in refusals:
            server.heal()
            server.fail(fault, times=None)
            with pytest.raises(StatusError):
                embedding.embed("Hello")
        assert count(server, EMBED) == 5  # that of the server's own is made twice
        assert calls.used("e") == Used()
        server.heal()
        server.fail(faults.Cut(), times=2)
        with pytest.raises(ConnectError):
            embedding.embed("Hello")
        assert calls.used("e").tokens > 0
        assert (calls.used("e").calls, calls.used("e").held_tokens) == (2, 0)


def test_many_tiny_texts_do_not_pass_the_budget(tmp_path: Path) -> None:
    # A server counts the marks it puts around each text: three tokens here for a text of one byte.
    reply = {
        "data": [{"index": i, "embedding": [1.0] * 16} for i in range(100)],
        "usage": {"prompt_tokens": 300, "total_tokens": 300},
    }
    with FakeServer("openai", dimension=16) as server:
        server.fail(faults.Status(200, reply), times=None)
        calls = pool_of(server, tmp_path, daily_budget_tokens=150)
        with pytest.raises(BudgetExceeded):
            embed(calls, ["a"] * 100)
        assert calls.used("e").tokens <= 150


def test_what_came_before_a_failing_batch_is_booked(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(server, tmp_path)
    texts = ["abcd"] * 256 + ["abcd" * 100]
    with pytest.raises(InputTooLong, match="text 256 "):
        embed(calls, texts)
    assert calls.used("e").tokens == server.usage.total_tokens == 256


# --- what passes

PASSING: tuple[faults.Fault, ...] = (
    faults.RateLimited(retry_after=0.1),
    faults.ServerError(500),
    faults.ServerError(503),
    faults.Reset(),
    faults.Cut(),
)


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: type(fault).__name__)
def test_a_passing_failure_does_not_lose_the_batches_before_it(
    server: FakeServer, tmp_path: Path, fault: faults.Fault
) -> None:
    calls, texts = pool_of(server, tmp_path), [f"text {i}" for i in range(600)]
    expected = singly(server, tmp_path, texts[-1:])
    sent = count(server, EMBED)

    with calls.pool() as pool:
        embedding = pool.get_embedding("e")
        server.fail(faults.SlowFirstByte(0.0))  # meets the first batch, the next one the second
        server.fail(fault)
        vectors = embedding.embed_many(texts, timeout=SOON)
    assert len(vectors) == 600
    assert vectors[-1:] == expected
    batches = [request.body["input"] for request in server.requests_to(EMBED)[sent:]]
    assert [batch[0] for batch in batches] == ["text 0", "text 256", "text 256", "text 512"]
    assert calls.used("e").held_tokens == 0


@pytest.mark.parametrize(
    ("fault", "most"),
    [
        (faults.ServerError(500), 2),
        (faults.ServerError(503), 3),
        (faults.RateLimited(retry_after=0.05), 3),
        (faults.Status(400), 1),
        (faults.RateLimited(retry_after=600), 1),
    ],
)
def test_a_failure_that_stays_is_told_as_it_is(
    server: FakeServer, tmp_path: Path, fault: faults.Fault, most: int
) -> None:
    with pool_of(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        server.fail(fault, times=None)
        with pytest.raises(StatusError, match="e: "):
            embedding.embed("Hello")
    assert count(server, EMBED) == most


def test_a_rate_limit_that_outlasts_the_deadline_is_an_error_at_once(
    server: FakeServer, tmp_path: Path
) -> None:
    with pool_of(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        server.fail(faults.RateLimited(retry_after=30))
        began = time.monotonic()
        with pytest.raises(StatusError) as caught:
            embedding.embed("Hello", timeout=20)
        assert time.monotonic() - began < SOON
    assert (caught.value.kind, caught.value.retry_after) == ("rate_limited", 30)
    assert count(server, EMBED) == 1


def test_a_model_that_loads_is_waited_for(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(server, tmp_path).pool() as pool, ThreadPoolExecutor(1) as threads:
        embedding = pool.get_embedding("e")
        server.set_state("loading")
        held = threads.submit(embedding.embed, "Hello")
        wait_held(pool)
        server.set_state("up")
        assert len(held.result(SOON)) == 16
    assert count(server, EMBED) == 2


def test_a_deadline_bounds_the_wait_for_a_model_that_loads(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(server, tmp_path).pool() as pool:
        embedding = pool.get_embedding("e")
        server.set_state("loading")
        with pytest.raises(CallTimeout, match=r"e: .* waiting for its server to load"):
            embedding.embed("Hello", timeout=1.0)  # longer than any pause between two attempts
    assert count(server, EMBED) == 1


def test_nothing_listens(server: FakeServer, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        calls = pool_of(server, tmp_path, api_base=f"http://127.0.0.1:{free.getsockname()[1]}")
        with calls.pool() as pool, pytest.raises(NoEligibleLM, match="e: cannot connect"):
            pool.get_embedding("e")
