"""Vector spaces and rerankers where something is in the way: damaged locks, swaps, cancels, odd input."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from calling import SOON
from vector_spaces import DIMENSION, EMBED, Locked, locked, proofs, serve, tagged, texts_of

from maxwell.errors import BackendError, DimensionMismatch, RegistryError, VectorSpaceChanged
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.lock import CANARIES, Lock, lock_file, read_lock, write_lock
from maxwell.registry.lock import locked as recorded
from maxwell.registry.specs import EmbeddingSpec
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

__all__ = ["locked", "serve"]  # fixtures

Serve = Callable[..., FakeServer]


def rewritten(registry: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change each record of the lock."""
    file = lock_file(registry)
    held = json.loads(file.read_text(encoding="utf-8"))
    for one in held["embeddings"]:
        change(one)
    file.write_text(json.dumps(held), encoding="utf-8")


# --- the lock


def test_a_lock_that_was_merged_from_two_proves_nothing(
    serve: Serve, locked: Locked, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = serve(), serve()
    other.swap_model("other ")
    path = locked(tagged(one, "a"), tagged(other, "b"))
    rewritten(path, lambda record: record.update(space="a"))
    one.fail(faults.Unauthorized(), times=None, path=EMBED)
    with LLMPool.from_registry(path) as pool, pytest.raises(BackendError):
        pool.get_embedding().embed("Hello")
    assert texts_of(other) == []
    assert 'says that "a" and "b" share a space, but records other vectors' in caplog.text


def test_a_record_of_no_numbers_is_like_nothing(serve: Serve, locked: Locked) -> None:
    one = serve()
    path = locked(tagged(one, "a"))
    nothing = base64.b64encode(struct.pack(f"<{DIMENSION}e", *[math.nan] * DIMENSION)).decode()
    rewritten(path, lambda record: record.update(vectors=[nothing] * len(CANARIES)))
    with LLMPool.from_registry(path) as pool, pytest.raises(VectorSpaceChanged, match=r"cosine 0\.0000"):
        pool.get_embedding().embed("Hello")
    assert texts_of(one) == []


def test_a_vector_beyond_all_bounds_cannot_be_locked() -> None:
    spec = EmbeddingSpec(name="e", api_base="http://box", model="m", dimension=2, max_context=512)
    with pytest.raises(ValueError, match="e: its server gives a vector of zeros or without bounds"):
        recorded(spec, [[1.7e308, -1.7e308] for _ in CANARIES], "")


def test_a_lock_without_an_end_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "lm_registry.lock.json"
    os.mkfifo(file)
    with pytest.raises(RegistryError, match="it is no file, or far too large"):
        read_lock(file)
    file.unlink()
    with file.open("wb") as huge:
        huge.truncate(2**30)  # takes no room on the disk
    with pytest.raises(RegistryError, match="it is no file, or far too large"):
        read_lock(file)


def test_a_lock_that_cannot_be_reached_is_told(
    serve: Serve, write_registry: WriteRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_registry(tagged(serve(), "a"))
    lock_file(path).symlink_to(lock_file(path))
    with LLMPool.from_registry(path) as pool:
        for _ in range(2):
            assert len(pool.get_embedding().embed("Hello")) == DIMENSION
    assert caplog.text.count("until then no embedding stands in for another") == 1


def test_a_linked_lock_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles.json", tmp_path / "lm_registry.lock.json"
    link.symlink_to(real)
    write_lock(link, Lock())
    assert link.is_symlink()
    assert read_lock(real) == Lock()


def test_a_lock_that_cannot_be_written_is_told_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "lm_registry.lock.json"
    file.mkdir()
    with pytest.raises(RegistryError, match=r"lm_registry\.lock\.json: cannot be written: Is a directory"):
        write_lock(file, Lock())
    assert list(tmp_path.iterdir()) == [file]


# --- swaps and cancels in the middle


def test_vectors_that_change_their_size_after_the_proof_are_taken_over_from(
    serve: Serve, locked: Locked
) -> None:
    one, other = serve(), serve()
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        assert embedding.embed_many(["Hello"]).llms == ("a",)
        one._facts.dimension = 8
        assert embedding.embed_many(["Hello"]).llms == ("b",)
        named = pool.get_embedding("a")
        with pytest.raises(VectorSpaceChanged, match="declared dimension 16, but the server returned 8"):
            named.embed("Hello")


def test_without_a_lock_another_size_is_no_other_space(serve: Serve, write_registry: WriteRegistry) -> None:
    one = serve()
    with LLMPool.from_registry(write_registry(tagged(one, "a"))) as pool:
        embedding = pool.get_embedding()
        one._facts.dimension = 8
        with pytest.raises(DimensionMismatch):
            embedding.embed("Hello")


def test_a_call_cancelled_while_it_proves_leaves_the_proof_to_the_next(serve: Serve, locked: Locked) -> None:
    one = serve()
    path = locked(tagged(one, "a"))
    before = proofs(one)

    async def main() -> int:
        async with AsyncLLMPool.from_registry(path) as pool:
            embedding = await pool.get_embedding()
            one.fail(faults.SlowFirstByte(30.0), path=EMBED)
            proving = asyncio.ensure_future(embedding.embed("Hello"))
            while proofs(one) == before:
                await asyncio.sleep(0.005)
            waiting = asyncio.ensure_future(embedding.embed("Hello"))
            await asyncio.sleep(0)
            proving.cancel()
            await asyncio.gather(proving, return_exceptions=True)
            assert proving.cancelled()
            return len(await waiting)

    assert asyncio.run(main()) == DIMENSION
    assert proofs(one) == before + 2


def test_calls_that_wait_for_a_proof_share_its_failure(serve: Serve, locked: Locked) -> None:
    one, other = serve(), serve()
    path = locked(tagged(one, "a", timeout_seconds=1), tagged(other, "b"))
    before = proofs(one)
    one.fail(faults.SlowFirstByte(30.0), times=None, path=EMBED)
    with LLMPool.from_registry(path) as pool:
        embedding = pool.get_embedding()
        began = time.monotonic()
        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(lambda i: embedding.embed_many([f"text {i}"]).llms, range(16)))
        assert time.monotonic() - began < SOON  # one after another they would take 16 s
    assert found == [("b",)] * 16
    assert proofs(one) == before + 1


def test_a_call_with_little_time_does_not_wait_for_another_one_s_proof(serve: Serve, locked: Locked) -> None:
    one, other = serve(), serve()
    path = locked(tagged(one, "a"), tagged(other, "b"))
    before = proofs(one)
    one.fail(faults.SlowFirstByte(1.2), path=EMBED)
    with LLMPool.from_registry(path) as pool, ThreadPoolExecutor(1) as threads:
        embedding = pool.get_embedding()
        proving = threads.submit(embedding.embed_many, ["Hello"])
        while proofs(one) == before:
            time.sleep(0.005)
        assert embedding.embed_many(["Hello"], timeout=1.0).llms == ("b",)
        assert proving.result().llms == ("a",)


def test_each_attempt_of_a_call_that_is_taken_over_is_booked_once(serve: Serve, locked: Locked) -> None:
    one, other = serve(), serve()
    with LLMPool.from_registry(locked(tagged(one, "a"), tagged(other, "b"))) as pool:
        embedding = pool.get_embedding()
        embedding.embed("Hello")
        booked = pool.usage()
        one.fail(faults.ServerError(), times=None, path=EMBED)
        embedding.embed("Hello")
        now = pool.usage()
    assert now["a"] == booked["a"]  # it refused
    assert now["b"].calls == booked["b"].calls + 2  # the canaries, and the text
    assert [used.held_tokens for used in now.values()] == [0, 0]


# --- odd input


def test_an_iterator_is_no_empty_list(serve: Serve, fake_server: FakeServers, locked: Locked) -> None:
    ranks = fake_server(reranker=True)
    path = locked(tagged(serve(), "a"), ranks.reranker_entry("r"))

    def texts() -> Iterator[str]:
        yield from ("a cat", "a dog")

    with LLMPool.from_registry(path) as pool:
        assert len(pool.get_embedding().embed_many(texts())) == 2  # type: ignore[arg-type]
        assert len(pool.get_reranker().rerank("cat", texts())) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("proves", [True, False])
def test_a_server_that_takes_few_texts_at_once_gets_several_requests(
    serve: Serve, locked: Locked, proves: bool
) -> None:
    one = serve()
    path = locked(tagged(one, "a"))
    texts = [f"text {i}" for i in range(8)]
    with LLMPool.from_registry(path) as pool:
        whole = pool.get_embedding().embed_many(texts)
    if not proves:
        lock_file(path).unlink()
    seen = len(one.requests_to(EMBED))
    one.fail(faults.Status(413, {"error": "batch size 8 > maximum allowed batch size 3"}), path=EMBED)
    with LLMPool.from_registry(path) as pool:
        assert pool.get_embedding("a").embed_many(texts) == whole
        assert pool.usage()["a"].held_tokens == 0
    sizes = [len(request.body["input"]) for request in one.requests_to(EMBED)][seen:]
    assert sizes == ([4, 3, 1, 3, 3, 2] if proves else [8, 3, 3, 2])


def test_ten_thousand_documents_are_ranked_by_one_server(
    fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server(reranker=True)
    documents = [f"dog {i}" for i in range(10_000)]
    documents[9_876] = "a warm cat"
    with LLMPool.from_registry(write_registry(server.reranker_entry("r"))) as pool:
        ranked = pool.get_reranker().rerank("a warm cat", documents, top_n=2)
        assert [one.index for one in ranked] == [9_876, 0]  # of equals the first
        assert pool.usage()["r"].calls == len(server.requests_to("/v1/rerank")) == 10
