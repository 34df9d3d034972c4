"""vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from maxwell.backends import listing
from maxwell.backends.base import Backend, Compiled
from maxwell.backends.listing import Probes
from maxwell.registry.endpoints import root
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.types import BackendName, Constraint, HTTPRequest, Message


class VLLMBackend(Backend):
    """vLLM's server. Its native routes lie at the root, outside /v1."""

    name: ClassVar[BackendName] = "vllm"
    has_tokenizer: ClassVar[bool] = True
    truncates: ClassVar[bool] = True

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """`structured_outputs`; `grammar` and the older `guided_grammar` are ignored with a 200."""
        return Compiled({"structured_outputs": {"grammar": constraint.value}})

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /tokenize."""
        body = {"model": spec.model, "prompt": text, "add_special_tokens": add_special}
        return self._post(root(spec.api_base) + "/tokenize", body, key)

    def detokenize(self, spec: Spec, tokens: Sequence[int], key: str | None) -> HTTPRequest | None:
        """POST /detokenize."""
        return self._post(root(spec.api_base) + "/detokenize", {"model": spec.model, "tokens": tokens}, key)

    def count_chat(self, spec: LLMSpec, messages: Sequence[Message], key: str | None) -> HTTPRequest | None:
        """POST /tokenize with messages."""
        return self._post(root(spec.api_base) + "/tokenize", {"model": spec.model, "messages": messages}, key)

    def probes(self, root: str, key: str | None) -> Probes:
        """Adds /metrics, at the root."""
        return msgspec.structs.replace(super().probes(root, key), load=self._get(f"{root}/metrics", key))

    def read_load(self, status: int, body: bytes) -> int | None:
        """Requests running and waiting."""
        return listing.read_metrics(status, body)
