"""Maxwell: which of my language models should do this, right now?

    from maxwell import get_lm
    print(get_lm(prompt="Why is the sky blue?").generate("Why is the sky blue?"))

Everything here is imported at first use, so that `import maxwell` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from maxwell.errors import (
        AllAttemptsFailed,
        BackendError,
        BadConstraint,
        BudgetExceeded,
        CallTimeout,
        ConnectError,
        ConstraintBroken,
        DecodeError,
        DimensionMismatch,
        EmptyReply,
        InputTooLong,
        LedgerError,
        MaxwellError,
        NoEligibleLM,
        RegistryError,
        ReplyCutOff,
        StatusError,
        StreamBroken,
        ToolError,
        ToolStepsExceeded,
        UnknownName,
        UnknownReceipt,
        VectorSpaceChanged,
    )
    from maxwell.handles import LLM, AsyncLLM, AsyncTextStream, TextStream
    from maxwell.images import image_part
    from maxwell.lm_pool import (
        AsyncLLMPool,
        LLMPool,
        get_async_embedding,
        get_async_lm,
        get_async_reranker,
        get_embedding,
        get_lm,
        get_reranker,
    )
    from maxwell.maps import AsyncMapResults, Mapped, MapResults
    from maxwell.rerankers import AsyncReranker, Ranked, Reranker
    from maxwell.types import Completion, PerformedCall, Timings, ToolCall, ToolRun, Usage
    from maxwell.vectors import AsyncEmbedding, Embedding

__all__ = [
    "LLM",
    "AllAttemptsFailed",
    "AsyncEmbedding",
    "AsyncLLM",
    "AsyncLLMPool",
    "AsyncMapResults",
    "AsyncReranker",
    "AsyncTextStream",
    "BackendError",
    "BadConstraint",
    "BudgetExceeded",
    "CallTimeout",
    "Completion",
    "ConnectError",
    "ConstraintBroken",
    "DecodeError",
    "DimensionMismatch",
    "Embedding",
    "EmptyReply",
    "InputTooLong",
    "LLMPool",
    "LedgerError",
    "MapResults",
    "Mapped",
    "MaxwellError",
    "NoEligibleLM",
    "PerformedCall",
    "Ranked",
    "RegistryError",
    "ReplyCutOff",
    "Reranker",
    "StatusError",
    "StreamBroken",
    "TextStream",
    "Timings",
    "ToolCall",
    "ToolError",
    "ToolRun",
    "ToolStepsExceeded",
    "UnknownName",
    "UnknownReceipt",
    "Usage",
    "VectorSpaceChanged",
    "get_async_embedding",
    "get_async_lm",
    "get_async_reranker",
    "get_embedding",
    "get_lm",
    "get_reranker",
    "image_part",
]

_HOMES = {
    "handles": ("LLM", "AsyncLLM", "AsyncTextStream", "TextStream"),
    "lm_pool": (
        "AsyncLLMPool",
        "LLMPool",
        "get_async_embedding",
        "get_async_lm",
        "get_async_reranker",
        "get_embedding",
        "get_lm",
        "get_reranker",
    ),
    "images": ("image_part",),
    "maps": ("AsyncMapResults", "MapResults", "Mapped"),
    "rerankers": ("AsyncReranker", "Ranked", "Reranker"),
    "types": ("Completion", "PerformedCall", "Timings", "ToolCall", "ToolRun", "Usage"),
    "vectors": ("AsyncEmbedding", "Embedding"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
