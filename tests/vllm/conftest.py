"""Real vLLM servers over tiny models, started once a session. Only `make test-vllm` collects this directory.

One vLLM has one engine for constraints, xgrammar or llguidance: the first constrained request that it ever
gets decides which, and both hold different things. So there are two chat servers, one of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from calling import Calls
from real_vllm import KEY, RealVLLM, chat_entry, told, write_models

CHAT = (
    "--served-model-name=tiny-chat",
    "--max-model-len=8192",
    "--max-num-seqs=4",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
)
# xgrammar takes the first of these; the second it knows that it cannot hold, so that llguidance does.
FIRST_SCHEMAS = {
    "xgrammar": {"type": "boolean"},
    "llguidance": {"type": "string", "pattern": "^a+$", "maxLength": 3},
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "loading: looks at a server while it loads, before all other tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "loading" not in item.keywords)


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter that has vLLM."""
    python = os.environ.get("VLLM_PYTHON", "")
    assert python, "VLLM_PYTHON does not say which Python has vLLM; run these tests with `make test-vllm`"
    return Path(python)


@pytest.fixture(scope="session")
def models(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(vllm_python, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def start_vllm(
    vllm_python: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RealVLLM]]:
    """Start a server of "chat" or "embedding" with further options; it is not ready when this returns."""
    with ExitStack() as running:

        def start(model: str, *options: str) -> RealVLLM:
            server = RealVLLM(vllm_python, models[model], *options, home=tmp_path_factory.mktemp("vllm"))
            running.callback(server.stop)
            return server

        yield start


@pytest.fixture(scope="session")
def loading_server(start_vllm: Callable[..., RealVLLM]) -> RealVLLM:
    """The chat server that will be `chat_server`, a moment after its start."""
    return start_vllm("chat", *CHAT)


@pytest.fixture(scope="session")
def chat_server(loading_server: RealVLLM) -> RealVLLM:
    """Chat: "tiny-chat", 8,192 tokens, 4 requests at once, tools; its engine is xgrammar."""
    return with_engine(loading_server, "xgrammar")


@pytest.fixture(scope="session")
def guidance_server(start_vllm: Callable[..., RealVLLM], chat_server: RealVLLM) -> RealVLLM:
    """The same, where the engine is llguidance."""
    return with_engine(start_vllm("chat", *CHAT), "llguidance")


@pytest.fixture(scope="session")
def embed_server(start_vllm: Callable[..., RealVLLM]) -> RealVLLM:
    """Embeddings: "tiny-embed", vectors of 64, 128 tokens; needs `KEY`."""
    server = start_vllm("embedding", "--served-model-name=tiny-embed", f"--api-key={KEY}")
    server.wait_ready()
    return server


@pytest.fixture(params=["xgrammar", "llguidance"])
def engine_server(request: pytest.FixtureRequest) -> RealVLLM:
    """A chat server of each engine."""
    name = {"xgrammar": "chat_server", "llguidance": "guidance_server"}[request.param]
    server: RealVLLM = request.getfixturevalue(name)
    return server


def with_engine(server: RealVLLM, engine: str) -> RealVLLM:
    """The server, ready, its engine decided."""
    server.wait_ready()
    message = {"role": "user", "content": "Hello"}
    body = {"model": "tiny-chat", "messages": [message], "max_tokens": 50}
    told(server.url, "/v1/chat/completions", {**body, "structured_outputs": {"json": FIRST_SCHEMAS[engine]}})
    return server


@pytest.fixture
def calls(chat_server: RealVLLM, tmp_path: Path) -> Calls:
    """Pools over the chat server, as the entry "v"."""
    return Calls(tmp_path, chat_entry(chat_server))
