"""Dialects of server families: pure codecs that encode requests, decode replies and classify errors."""

from __future__ import annotations

import re
from functools import lru_cache

from maxwell.backends.base import Backend
from maxwell.backends.embedders import InfinityBackend, InfinityUnderV1Backend, TEIBackend
from maxwell.backends.listing import ModelsReply, Probes, Props
from maxwell.backends.llamacpp import LlamaCppBackend
from maxwell.backends.openai import OpenAIBackend
from maxwell.backends.relatives import LlamaCppPythonBackend, OllamaBackend, SGLangBackend, TGIBackend
from maxwell.backends.rerank import RerankReply
from maxwell.backends.services import EmbeddingReply
from maxwell.backends.vllm import OldVLLMBackend, VLLMBackend
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
    "RerankReply",
    "ToolCallDelta",
    "VLLMBackend",
    "WireTimings",
    "WireUsage",
    "decode_chunk",
    "get_backend",
    "usage_of",
]

_BACKENDS: dict[str, Backend] = {b.name: b for b in (LlamaCppBackend(), VLLMBackend(), OpenAIBackend())}

# By the family that a server says it is of, whatever it is declared as. That it were OpenAI's is no news: its
# imitations and every proxy say so of themselves.
_FAMILIES: dict[str, Backend] = {
    "llamacpp": _BACKENDS["llamacpp"],
    "vllm": _BACKENDS["vllm"],
    "llama-cpp-python": LlamaCppPythonBackend(),
    "ollama": OllamaBackend(),
    "sglang": SGLangBackend(),
    "tgi": TGIBackend(),
    "tei": TEIBackend(),
    "infinity": InfinityBackend(),
    "infinity-v1": InfinityUnderV1Backend(),
}
_OLD_VLLM, _OLD_VLLM_BEFORE = OldVLLMBackend(), (0, 11)


@lru_cache(maxsize=256)
def get_backend(name: str, *, family: str = "", version: str = "") -> Backend:
    """How to speak to a server.

    Args:
        name: The `backend` that its registry entry declares: "llamacpp", "vllm" or "openai".
        family: What the server says it is (`ModelsReply.family`); one that is not known counts as not said.
        version: The version it says it has.

    Raises:
        ValueError: No such backend.
    """
    if name not in _BACKENDS:
        raise ValueError(f"no backend {name!r}; there are {', '.join(_BACKENDS)}")
    backend = _FAMILIES.get(family) or _BACKENDS[name]
    if backend.family == "vllm" and _is_before(version, _OLD_VLLM_BEFORE):
        return _OLD_VLLM
    return backend


def _is_before(version: str, limit: tuple[int, int]) -> bool:
    """Whether `version` is older than `limit`; one that does not tell is not."""
    found = re.match(r"v?([0-9]{1,9})\.([0-9]{1,9})(\.dev)?", version)
    if found is None or found[3]:  # 0.1.dev123 is what a build without tags is called, however new
        return False
    return (int(found[1]), int(found[2])) < limit
