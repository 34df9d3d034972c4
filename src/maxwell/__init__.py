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
        UnknownName,
        UnknownReceipt,
    )
    from maxwell.handles import LLM, AsyncLLM, AsyncTextStream, TextStream
    from maxwell.lm_pool import (
        AsyncLLMPool,
        LLMPool,
        get_async_embedding,
        get_async_lm,
        get_embedding,
        get_lm,
    )
    from maxwell.maps import AsyncMapResults, Mapped, MapResults
    from maxwell.types import Completion, Timings, ToolCall, Usage
    from maxwell.vectors import AsyncEmbedding, Embedding

__all__ = [
    "LLM",
    "AllAttemptsFailed",
    "AsyncEmbedding",
    "AsyncLLM",
    "AsyncLLMPool",
    "AsyncMapResults",
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
    "RegistryError",
    "ReplyCutOff",
    "StatusError",
    "StreamBroken",
    "TextStream",
    "Timings",
    "ToolCall",
    "UnknownName",
    "UnknownReceipt",
    "Usage",
    "get_async_embedding",
    "get_async_lm",
    "get_embedding",
    "get_lm",
]

_HOMES = {
    "handles": ("LLM", "AsyncLLM", "AsyncTextStream", "TextStream"),
    "lm_pool": (
        "AsyncLLMPool",
        "LLMPool",
        "get_async_embedding",
        "get_async_lm",
        "get_embedding",
        "get_lm",
    ),
    "maps": ("AsyncMapResults", "MapResults", "Mapped"),
    "types": ("Completion", "Timings", "ToolCall", "Usage"),
    "vectors": ("AsyncEmbedding", "Embedding"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
