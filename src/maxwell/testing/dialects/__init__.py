"""The dialects the fake server speaks: pure bodies, one module a server family."""

from __future__ import annotations

from ...types import BackendName
from ._llamacpp import LlamaCpp
from ._openai import OpenAI
from ._vllm import VLLM
from .base import Dialect

DIALECTS: dict[BackendName, type[Dialect]] = {"llamacpp": LlamaCpp, "vllm": VLLM, "openai": OpenAI}

__all__ = ["DIALECTS", "Dialect"]
