"""A world has servers of one family; a topic is one thing that Maxwell has to get right with each of them.

A world says for every topic either what is to be found there (`expects`) or why it cannot be asked there
(`lacks`). The tests are in `topics`, one function a topic, and whoever collects them names the worlds:

    from families.fixtures import *
    from families.topics import asked_of

    WORLDS = [World("vllm", open_server, expects={"found_up": {"family": "vllm", ...}}, lacks={...})]
    globals().update(asked_of(WORLDS))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from maxwell.ledger.memory import MemoryLedger
from maxwell.lm_pool import LLMPool
from maxwell.registry.load import decode
from maxwell.registry.specs import Registry

Expected = Mapping[str, Any]
NAME = "x"
KEY_ENV = "FAMILIES_API_KEY"


class Server(NamedTuple):
    """A server that runs.

    Attributes:
        url: Its root.
        model: What it calls its model.
        backend: What a registry would declare it as.
        asked: Paths of the requests that came so far; None = it does not tell.
        key: What it demands, or "".
        context: What a registry would declare, in tokens.
        dimension: Of its vectors.
    """

    url: str
    model: str
    backend: str
    asked: Callable[[], Sequence[str]] | None = None
    key: str = ""
    context: int = 4096
    dimension: int = 64


# Runs the server of that name with what the topic expects, which may say how it is to behave.
Opens = Callable[[str, Expected, pytest.FixtureRequest], AbstractContextManager[Server]]


class World(NamedTuple):
    """Servers of one family.

    Attributes:
        name: What it is called in the tests' names.
        open: Runs one of them.
        expects: What each topic is to find; "server" says with which of them, default "chat".
        lacks: Why a topic is not asked.
        marks: For pytest.
    """

    name: str
    open: Opens
    expects: Mapping[str, Expected]
    lacks: Mapping[str, str] = {}
    marks: Sequence[pytest.MarkDecorator] = ()


class Meeting:
    """One topic in one world: the server that runs, what is to be found, and pools that know this server."""

    def __init__(self, server: Server, expected: Expected, home: Path) -> None:
        self.server = server
        self.expected = expected
        self._home = home

    def pool(self, kind: str = "llm", key: str | None = None, **fields: Any) -> LLMPool:
        """A pool whose one entry `NAME` is this server.

        Args:
            kind: "llm", "embedding" or "reranker".
            key: Which key is sent; None = the right one.
            **fields: Of the entry; "context" is what it declares.
        """
        server = self.server
        entry: dict[str, Any] = {"name": NAME, "api_base": server.url, "model": server.model}
        entry |= {"backend": server.backend, **_of_kind(kind, server, fields.pop("context", server.context))}
        entry |= fields
        key = server.key if key is None else key
        if server.key:
            entry["api_key_env"] = KEY_ENV
        made = decode(json.dumps({"llms": [], "embeddings": [], f"{kind}s": [entry]}).encode(), "test")
        registry = Registry(
            llms=made.llms,
            embeddings=made.embeddings,
            rerankers=made.rerankers,
            budget_timezone=made.budget_timezone,
        )
        environ = {KEY_ENV: key} if key else {}
        return LLMPool(registry, home=self._home, environ=environ, ledger=MemoryLedger())

    def count(self, path: str) -> int | None:
        """How many requests to paths that end so the server got; None = it does not tell."""
        if self.server.asked is None:
            return None
        return sum(one.endswith(path) for one in self.server.asked())


def _of_kind(kind: str, server: Server, context: int) -> dict[str, Any]:
    if kind == "embedding":
        return {"dimension": server.dimension, "max_context": context}
    if kind == "reranker":
        return {"max_context": context}
    capabilities = {"max_tokens": min(512, context), "max_context": context, "speed_tokens_per_sec": 100.0}
    capabilities |= {"tools": True, "vision": True}  # as somebody may declare who does not know better
    return {"default_temperature": 0.7, "capabilities": capabilities}
