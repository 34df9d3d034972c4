"""Embedding servers that share vector spaces, and registries that are locked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maxwell.lm_pool import LLMPool
from maxwell.registry.lock import CANARIES, Lock, in_spaces, lock_file, write_lock
from maxwell.testing import FakeServer
from maxwell.testing.fixtures import FakeServers, WriteRegistry

EMBED = "/v1/embeddings"
DIMENSION = 16

Locked = Callable[..., Path]


@pytest.fixture
def serve(fake_server: FakeServers) -> Callable[..., FakeServer]:
    def serve(dialect: Any = "llamacpp", **options: Any) -> FakeServer:
        return fake_server(dialect, embeddings=True, dimension=DIMENSION, **options)

    return serve


@pytest.fixture
def locked(write_registry: WriteRegistry) -> Locked:
    """Writes a registry of these entries, and its lock."""

    def locked(*entries: dict[str, Any], **top_level: Any) -> Path:
        path = write_registry(*entries, **top_level)
        lock(path)
        return path

    return locked


def lock(registry: Path) -> None:
    with LLMPool.from_registry(registry) as pool:
        found = [shown.found for shown in pool.embed_canaries() if shown.found is not None]
    write_lock(lock_file(registry), Lock(embeddings=in_spaces(found)))


def tagged(server: FakeServer, name: str, **fields: Any) -> dict[str, Any]:
    return server.embedding_entry(name, tags=["default"], **fields)


def texts_of(server: FakeServer) -> list[str]:
    """What was embedded there but the canaries."""
    asked = [text for request in server.requests_to(EMBED) for text in request.body["input"]]
    return [text for text in asked if text not in CANARIES]


def proofs(server: FakeServer) -> int:
    """How often the canaries were embedded there."""
    return sum(request.body["input"] == list(CANARIES) for request in server.requests_to(EMBED))
