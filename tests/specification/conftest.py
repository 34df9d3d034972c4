"""The two worlds every sentence of the specification is tried in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from worlds import CONTEXT, DIMENSION, EMBEDDING_CONTEXT, World

from maxwell.local.server import LocalServer
from maxwell.local.tiny_models import write_chat, write_embedding
from maxwell.testing import FakeServer


@pytest.fixture(scope="session")
def _real_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    models = tmp_path_factory.mktemp("specification")
    write_chat(models / "tiny.gguf", context=CONTEXT)
    write_embedding(models / "tiny-embedding.gguf", context=EMBEDDING_CONTEXT)
    with (
        LocalServer(models / "tiny.gguf", context=CONTEXT, slots=1) as chat,
        LocalServer(models / "tiny-embedding.gguf", embedding=True) as embedding,
    ):
        yield World(chat.url, embedding.url)


@pytest.fixture
def fake_world() -> Iterator[World]:
    """Fake servers that speak llama.cpp's dialect."""
    with (
        FakeServer("llamacpp", model="tiny.gguf", context=CONTEXT, constrained_reply="yes") as chat,
        FakeServer(
            "llamacpp",
            model="tiny-embedding.gguf",
            context=EMBEDDING_CONTEXT,
            embeddings=True,
            dimension=DIMENSION,
        ) as embedding,
    ):
        yield World(chat.url, embedding.url, chat)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def world(request: pytest.FixtureRequest) -> World:
    """Each test that takes this runs twice: on fakes and on real llama.cpp servers."""
    found: World = request.getfixturevalue("fake_world" if request.param == "fake" else "_real_world")
    return found
