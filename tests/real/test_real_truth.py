"""A registry full of lies about real llama.cpp servers: every one is found, and none is left after a fix."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maxwell.calls.truth import Examined
from maxwell.cli.app import cli
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.local.server import LocalServer
from maxwell.registry.load import load
from maxwell.testing.fixtures import WriteRegistry

pytestmark = pytest.mark.real


def lies_about(chat: LocalServer, vectors: LocalServer) -> list[dict[str, Any]]:
    """Two entries, of which every field that a server tells is wrong."""
    capabilities = {"max_tokens": 9000, "max_context": 32768, "speed_tokens_per_sec": 25}
    return [
        {
            "name": "chat",
            "api_base": chat.url,
            "model": "C:\\models\\another.gguf",
            "backend": "vllm",
            "capabilities": {**capabilities, "vision": True, "slots": 16},
            "default_temperature": 0.3,
        },
        {
            "name": "vectors",
            "api_base": f"{vectors.url}/v1",
            "model": "another/embedding",
            "backend": "openai",
            "dimension": 1024,
            "max_context": 8192,
        },
    ]


def test_every_lie_is_found_and_after_the_fix_none_is_left(
    llama_server: LocalServer,
    llama_embed_server: LocalServer,
    tiny_models: dict[str, Path],
    write_registry: WriteRegistry,
) -> None:
    file = write_registry(lies_about(llama_server, llama_embed_server))
    with LLMPool.from_registry() as pool:
        chat, vectors = pool.examine()
        used = pool.usage()
    assert {lie.path: lie.fix for lie in chat.lies if lie.severity != "note"} == {
        "llms[0].model": str(tiny_models["fast"]),
        "llms[0].backend": "llamacpp",
        "llms[0].capabilities.max_tokens": 2048,
        "llms[0].capabilities.max_context": 2048,
        "llms[0].capabilities.slots": 2,
        "llms[0].capabilities.vision": False,
    }
    assert {lie.path: lie.fix for lie in vectors.lies} == {
        "embeddings[0].model": str(tiny_models["embedding"]),
        "embeddings[0].backend": "llamacpp",
        "embeddings[0].dimension": 64,
        "embeddings[0].max_context": 128,
    }
    assert vectors.facts.normalised is True
    assert (chat.facts.template.tools, chat.facts.template.effort) == (True, False)
    assert (used["chat"].calls, used["vectors"].calls) == (0, 1)

    result = CliRunner().invoke(cli, ["doctor", "--fix", "--yes", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["ok"], told["written"]) == (True, 10)
    with LLMPool.from_registry() as pool:
        assert [lie for one in pool.examine() for lie in one.lies if lie.severity != "note"] == []
        assert pool.get_lm("chat").generate("Hello", max_tokens=4)
        assert len(pool.get_embedding("vectors").embed("Hello")) == 64
    assert load(file).llms[0].capabilities.speed_tokens_per_sec == 25


def test_a_chat_server_makes_no_vectors(llama_server: LocalServer, write_registry: WriteRegistry) -> None:
    write_registry(lies_about(llama_server, llama_server)[1])

    async def examined() -> list[Examined]:
        async with AsyncLLMPool.from_registry() as pool:
            return await pool.examine()

    (one,) = asyncio.run(examined())
    fault = next(lie for lie in one.lies if lie.field == "")
    assert fault.severity == "fault"
    assert "does not support embeddings" in fault.words
