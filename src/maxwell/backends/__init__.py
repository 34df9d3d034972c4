"""Dialects of server families: pure codecs that encode requests, decode replies and classify errors."""

from __future__ import annotations

from .base import Backend, EmbeddingReply
from .listing import ModelsReply, Probes, Props
from .llamacpp import LlamaCppBackend
from .openai import OpenAIBackend
from .vllm import VLLMBackend
from .wire import DONE, Choice, Chunk, Delta, ToolCallDelta, WireTimings, WireUsage, decode_chunk, usage_of

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
