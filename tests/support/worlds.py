"""Where sentences are tried: a chat server and an embedding server, fake or real, and entries for them."""

from __future__ import annotations

import socket
from typing import Any

from maxwell.testing import FakeServer

CONTEXT = 32768  # the example registry's largest
DIMENSION = 64
EMBEDDING_CONTEXT = 128


class World:
    """A chat server and an embedding server, and entries that point to them.

    Attributes:
        chat_url: Root URL of the chat server.
        embedding_url: Root URL of the embedding server.
        chat: The fake behind `chat_url`, or None in the real world.
    """

    def __init__(self, chat_url: str, embedding_url: str, chat: FakeServer | None = None) -> None:
        self.chat_url = chat_url
        self.embedding_url = embedding_url
        self.chat = chat

    def llm(self, name: str, *, speed: float = 100.0, **fields: Any) -> dict[str, Any]:
        """A complete LLM entry; keyword arguments that are capabilities go there."""
        capabilities = {"max_tokens": 1024, "max_context": CONTEXT, "speed_tokens_per_sec": speed}
        for key in ("max_tokens", "max_context", "vision", "reasoning", "code_specialized"):
            if key in fields:
                capabilities[key] = fields.pop(key)
        return {
            "name": name,
            "api_base": self.chat_url,
            "model": "tiny.gguf",
            "backend": "llamacpp",
            "capabilities": capabilities,
            "default_temperature": 0.5,
            **fields,
        }

    def dead(self, name: str, **fields: Any) -> dict[str, Any]:
        """An LLM entry where nothing listens."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return self.llm(name, **{"api_base": f"http://127.0.0.1:{port}", **fields})

    def embedding(self, name: str, **fields: Any) -> dict[str, Any]:
        """A complete embedding entry."""
        return {
            "name": name,
            "api_base": self.embedding_url,
            "model": "tiny-embedding.gguf",
            "dimension": DIMENSION,
            "max_context": EMBEDDING_CONTEXT,
            "backend": "llamacpp",
            **fields,
        }
