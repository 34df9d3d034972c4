"""Real llama.cpp servers over tiny generated models. All of them compute with one thread.

A tiny model on two busy cores takes 300 ms a token with two threads, and a fraction of one with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from maxwell.local.server import LocalServer
from maxwell.local.tiny_models import demo_models

StartLlama = Callable[..., LocalServer]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model files: "fast", "medium", "slow", "stops", "tools", "embedding" (see `demo_models`)."""
    return demo_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def llama_server(tiny_models: dict[str, Path]) -> Iterator[LocalServer]:
    """A fast chat server: 2 slots that share 4096 tokens of context, 2048 each."""
    with LocalServer(tiny_models["fast"], context=4096, slots=2) as server:
        yield server


@pytest.fixture(scope="session")
def llama_slow_server(tiny_models: dict[str, Path]) -> Iterator[LocalServer]:
    """A chat server that takes long enough to be interrupted: 2 slots of 4096 tokens."""
    with LocalServer(tiny_models["slow"], context=8192, slots=2) as server:
        yield server


@pytest.fixture(scope="session")
def llama_embed_server(tiny_models: dict[str, Path]) -> Iterator[LocalServer]:
    """An embedding server: vectors of 64, inputs of up to 128 tokens."""
    with LocalServer(tiny_models["embedding"], embedding=True) as server:
        yield server


@pytest.fixture
def start_llama(tiny_models: dict[str, Path]) -> Iterator[StartLlama]:
    """Start a server of one's own: `start_llama("fast", slots=1)` or with a path; ready when it returns."""
    with ExitStack() as running:

        def start(model: str | Path, **options: Any) -> LocalServer:
            path = tiny_models[model] if isinstance(model, str) else model
            return running.enter_context(LocalServer(path, **options))

        yield start
