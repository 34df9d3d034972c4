"""Dialects of server families: pure codecs that encode requests, decode replies and classify errors."""

from __future__ import annotations

from maxwell.backends.base import Backend, EmbeddingReply
from maxwell.backends.listing import ModelsReply, Probes, Props
from maxwell.backends.llamacpp import LlamaCppBackend
from maxwell.backends.openai import OpenAIBackend
from maxwell.backends.vllm import VLLMBackend
from maxwell.backends.wire import (
    DONE,
    Choice,
    Chunk,
    Delta,
    ToolCallDelta,
    WireTimings,
    WireUsage,
    decode_chunk,
    usage_of,
)

__all__ = [
    "DONE",
    "Backend",
    "Choice",
    "Chunk",
    "Delta",
    "EmbeddingReply",
    "LlamaCppBackend",
    "ModelsReply",
    "OpenAIBackend",
    "Probes",
    "Props",
    "ToolCallDelta",
    "VLLMBackend",
    "WireTimings",
    "WireUsage",
    "decode_chunk",
    "get_backend",
    "usage_of",
]

_BACKENDS: dict[str, Backend] = {b.name: b for b in (LlamaCppBackend(), VLLMBackend(), OpenAIBackend())}


def get_backend(name: str) -> Backend:
    """The backend of a registry entry's `backend`: "llamacpp", "vllm" or "openai".

    Raises:
        ValueError: No such backend.
    """
    try:
        return _BACKENDS[name]
    except KeyError:
        raise ValueError(f"no backend {name!r}; there are {', '.join(_BACKENDS)}") from None
