"""Embeddings take over from each other inside one vector space, as the registry's lock proves it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from calling import count
from vector_spaces import DIMENSION, EMBED, Locked, lock, locked, proofs, serve, tagged, texts_of

from maxwell.errors import (
    AllAttemptsFailed,
    BackendError,
    BudgetExceeded,
    InputTooLong,
    NoEligibleLM,
    VectorSpaceChanged,
)
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.lock import in_spaces, lock_file, read_lock
from maxwell.testing import FakeClock, FakeServer, faults
from maxwell.testing.fixtures import WriteRegistry

__all__ = ["locked", "serve"]  # fixtures


# --- taking over


@pytest.mark.parametrize(
    "fault",
    [faults.ServerError(), faults.Reset(), faults.Cut(), faults.Unauthorized(), faults.RateLimited()],
    ids=lambda fault: type(fault).__name__,
)
def test_another_of_the_same_space_takes_the_texts(
    serve: Callable[..., FakeServer], locked: Locked, fault: faults.Fault
) -> None:
    one, other = serve(), serve("vllm")
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        assert embedding.name == "a"
        before = embedding.embed("Hello")
        one.fail(fault, times=None)
        vectors = embedding.embed_many(["Hello", "again"])
        assert vectors[0] == before
        assert vectors.llms == ("b",)
        receipt = pool._state.receipts.last()
    assert receipt is not None
    assert vectors.receipt == receipt.id
    assert (receipt.outcome, receipt.llm) == ("ok", "b")
    assert [attempt.name for attempt in receipt.attempts] == ["a", "b"]


def test_a_call_may_be_made_by_two(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve(), serve()
    texts = [f"text {i}" for i in range(600)]
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        whole = embedding.embed_many(texts)
        one.fail(faults.SlowFirstByte(0.0))  # that is: the first request succeeds
        one.fail(faults.ServerError(), times=None)
        mixed = embedding.embed_many(texts)
    assert mixed == whole
    assert mixed.llms == ("a", "b")
    assert set(texts_of(other)) < set(texts)  # what the first had made was not made again


def test_the_async_twin_takes_over_too(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve(), serve()
    path = locked(tagged(one, "a"), tagged(other, "b"))

    async def main() -> tuple[str, ...]:
        async with AsyncLLMPool.from_registry(path) as pool:
            embedding = await pool.get_embedding()
            one.stop()
            return (await embedding.embed_many(["Hello"])).llms

    assert asyncio.run(main()) == ("b",)


def test_a_hanging_server_leaves_time_for_the_other(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve(), serve()
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        embedding.embed("Hello")
        one.fail(faults.SlowFirstByte(60.0), times=None)
        assert embedding.embed_many(["Hello"], timeout=4.0).llms == ("b",)


def test_a_spent_budget_is_taken_over_from(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve(), serve()
    path = locked(tagged(one, "a", daily_budget_tokens=400), tagged(other, "b"))
    with LLMPool.from_registry(path) as pool:
        embedding = pool.get_embedding()
        assert embedding.embed_many(["x" * 300]).llms == ("a",)
        assert embedding.embed_many(["x" * 2400]).llms == ("b",)
        with pytest.raises(BudgetExceeded, match="a: "):
            pool.get_embedding("a").embed("x" * 2400)


def test_a_text_that_is_cut_is_cut_alike_everywhere(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, shorter, longer = serve(context=64), serve(context=48), serve("vllm", context=128)
    path = locked(tagged(one, "a"), tagged(shorter, "b"), tagged(longer, "c"))
    with LLMPool.from_registry(path) as pool:
        embedding = pool.get_embedding()
        before = embedding.embed_many(["word " * 200, "x"], truncate=True)
        one.fail(faults.Unauthorized(), times=None)
        after = embedding.embed_many(["word " * 200, "x"], truncate=True)
        assert (before.llms, after.llms) == (("a",), ("c",))
        assert after == before
        shorter.fail(faults.ServerError())
        assert embedding.embed_many(["x"]).llms == ("c",)  # which need not cut anything


def test_when_all_fail_each_is_named(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve(), serve()
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        for server in (one, other):
            server.fail(faults.Unauthorized(), times=None)
        with pytest.raises(AllAttemptsFailed, match=r"a: .*; b: "):
            embedding.embed("Hello")


def test_a_failure_of_everybody_that_passes_is_waited_out(
    serve: Callable[..., FakeServer], locked: Locked
) -> None:
    one, other = serve(), serve()
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        for server in (one, other):
            server.fail(faults.ServerError())
        assert embedding.embed_many(["Hello"]).llms == ("a",)


# --- not taking over


def test_a_name_is_that_one_or_an_error(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve(), serve()
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding("a")
        one.fail(faults.ServerError(), times=None)
        with pytest.raises(BackendError, match="a: "):
            embedding.embed("Hello")
    assert texts_of(other) == []


def test_another_space_never_takes_over_nor_is_chosen(
    serve: Callable[..., FakeServer], locked: Locked
) -> None:
    one, other = serve(), serve(space="other ")
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        one.stop()
        with pytest.raises(BackendError, match="a: "):
            embedding.embed("Hello")
        with pytest.raises(
            NoEligibleLM, match=r"a: cannot connect.*b: the registry's lock puts it in another"
        ):
            pool.get_embedding()
        assert pool.get_embedding("b").name == "b"
    assert texts_of(other) == []


def test_another_scale_is_another_space(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one = serve()
    path = locked(tagged(one, "a"))
    found = read_lock(lock_file(path))
    assert found is not None
    (mine,) = found.embeddings
    import msgspec

    longer = msgspec.structs.replace(mine, name="b", lengths=tuple(3 * n for n in mine.lengths))
    assert [one.space for one in in_spaces([mine, longer])] == ["a", "b"]


def test_a_changed_entry_counts_for_nothing(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve("llamacpp"), serve("llamacpp")
    path = locked(tagged(one, "a"), tagged(other, "b"))
    document = json.loads(path.read_text())
    document["embeddings"][1]["model"] = "something-else"
    path.write_text(json.dumps(document))
    with LLMPool.from_registry(path) as pool:
        embedding = pool.get_embedding()
        one.stop()
        with pytest.raises(BackendError, match="a: "):
            embedding.embed("Hello")
    assert texts_of(other) == []


def test_a_text_too_long_is_too_long_everywhere(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve(context=64), serve(context=64)
    path = locked(tagged(one, "a"), tagged(other, "b"))
    with LLMPool.from_registry(path) as pool, pytest.raises(InputTooLong, match="a: text 0"):
        pool.get_embedding().embed("x" * 1000)
    assert texts_of(other) == []


# --- proofs


def test_a_swapped_substitute_is_refused(
    serve: Callable[..., FakeServer], locked: Locked, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = serve(), serve()
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        other.swap_model("other ")
        one.fail(faults.Unauthorized(), times=None)
        with (
            caplog.at_level(logging.WARNING, "maxwell"),
            pytest.raises(AllAttemptsFailed, match=r"a: .*; b: makes other vectors than the registry's lock"),
        ):
            embedding.embed("Hello")
    assert texts_of(other) == []  # it was never given a text whose vector would count
    assert "b: makes other vectors than the registry's lock records (cosine " in caplog.text


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by tag"])
def test_a_swapped_model_is_refused_before_it_spoils_an_index(
    serve: Callable[..., FakeServer], locked: Locked, named: bool
) -> None:
    one = serve()
    path = locked(tagged(one, "a"))
    one.swap_model("other ")
    with LLMPool.from_registry(path) as pool:
        embedding = pool.get_embedding("a" if named else None)
        with pytest.raises(VectorSpaceChanged, match=r"a: .*make the index anew") as caught:
            embedding.embed("Hello")
        assert texts_of(one) == []
        assert caught.value.llm == "a"
        one.swap_model("")
        assert len(embedding.embed("Hello")) == DIMENSION  # it is looked at anew, each time


def test_a_swapped_model_is_taken_over_from(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one, other = serve(), serve()
    path = locked(tagged(one, "a"), tagged(other, "b"))
    one.swap_model("other ")
    with LLMPool.from_registry(path) as pool:
        embedding = pool.get_embedding()
        for _ in range(3):
            assert embedding.embed_many(["Hello"]).llms == ("b",)
    assert texts_of(one) == []
    assert proofs(one) == 2  # once to lock it, once to find out


def test_vectors_of_another_size_are_another_space(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one = serve()
    path = locked(tagged(one, "a"))
    one._facts.dimension = 8
    with (
        LLMPool.from_registry(path) as pool,
        pytest.raises(VectorSpaceChanged, match="declared dimension 16, but the server returned 8"),
    ):
        pool.get_embedding().embed("Hello")


def test_a_space_is_proved_once_and_again_after_a_while(
    serve: Callable[..., FakeServer], locked: Locked, fake_clock: FakeClock
) -> None:
    one = serve()
    path = locked(tagged(one, "a"))
    with LLMPool.from_registry(path, clock=fake_clock) as pool:
        embedding = pool.get_embedding()
        for _ in range(3):
            embedding.embed("Hello")
        assert proofs(one) == 2
        fake_clock.advance(601.0)
        embedding.embed("Hello")
    assert proofs(one) == 3


@pytest.mark.parametrize("change", ["failure", "models"])
def test_a_space_is_proved_again_when_its_server_may_have_changed(
    serve: Callable[..., FakeServer], locked: Locked, change: str
) -> None:
    one = serve(model="m1")
    with LLMPool.from_registry(locked(tagged(one, "a"))) as pool:
        embedding = pool.get_embedding()
        embedding.embed("Hello")
        if change == "failure":
            one.fail(faults.ServerError(), times=9)
            with pytest.raises(BackendError):
                embedding.embed("Hello")
            one.heal()
        else:
            one._facts.model = "m2"
            pool.health(refresh=True)
        embedding.embed("Hello")
    assert proofs(one) == 3


def test_many_calls_at_once_prove_a_space_once(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one = serve()
    path = locked(tagged(one, "a"))

    async def main() -> None:
        async with AsyncLLMPool.from_registry(path) as pool:
            embedding = await pool.get_embedding()
            await asyncio.gather(*(embedding.embed(f"text {i}") for i in range(20)))

    asyncio.run(main())
    assert proofs(one) == 2
    with LLMPool.from_registry(path) as pool, ThreadPoolExecutor(8) as threads:
        embedding = pool.get_embedding()
        list(threads.map(embedding.embed, ["text"] * 20))
    assert proofs(one) == 3


def test_without_a_lock_nothing_is_proved_and_nobody_takes_over(
    serve: Callable[..., FakeServer], write_registry: WriteRegistry
) -> None:
    one, other = serve(), serve()
    with LLMPool.from_registry(write_registry(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        embedding.embed("Hello")
        one.fail(faults.ServerError(), times=None)
        with pytest.raises(BackendError, match="a: "):
            embedding.embed("Hello")
    assert proofs(one) == 0
    assert count(other, EMBED) == 0


def test_a_lock_made_meanwhile_counts_at_once(
    serve: Callable[..., FakeServer], write_registry: WriteRegistry
) -> None:
    one, other = serve(), serve()
    path = write_registry(tagged(one, "a"), tagged(other, "b"))
    with LLMPool.from_registry(path) as pool:
        embedding = pool.get_embedding()
        lock(path)
        one.fail(faults.Unauthorized(), times=None)
        assert embedding.embed_many(["Hello"]).llms == ("b",)


def test_a_lock_that_cannot_be_read_is_told_once_and_counts_for_nothing(
    serve: Callable[..., FakeServer], write_registry: WriteRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    one = serve()
    path = write_registry(tagged(one, "a"))
    lock_file(path).write_text("<<<<<<< HEAD")
    with caplog.at_level(logging.WARNING, "maxwell"), LLMPool.from_registry(path) as pool:
        embedding = pool.get_embedding()
        for _ in range(2):
            assert len(embedding.embed("Hello")) == DIMENSION
    assert caplog.text.count("is no lock") == 1


def test_a_proof_is_booked(serve: Callable[..., FakeServer], locked: Locked) -> None:
    one = serve()
    path = locked(tagged(one, "a"))
    with LLMPool.from_registry(path) as pool:
        pool.get_embedding().embed("Hello")
        used = pool.usage()["a"]
    assert used.tokens == one.usage.prompt_tokens
