"""The dialects the fake server speaks: pure bodies, one module a server family."""

from __future__ import annotations

from maxwell.testing.dialects._llamacpp import LlamaCpp
from maxwell.testing.dialects._openai import OpenAI
from maxwell.testing.dialects._vllm import VLLM
from maxwell.testing.dialects.base import Dialect
from maxwell.types import BackendName

DIALECTS: dict[BackendName, type[Dialect]] = {"llamacpp": LlamaCpp, "vllm": VLLM, "openai": OpenAI}

__all__ = ["DIALECTS", "Dialect"]
