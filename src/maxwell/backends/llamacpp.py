"""llama.cpp's server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from ..registry.specs import LLMSpec, Spec
from ..types import BackendName, HTTPRequest, Message
from .base import Backend
from .listing import Probes


class LlamaCppBackend(Backend):
    """llama.cpp's own server. `model` is sent everywhere: router mode needs it, single mode ignores it."""

    name: ClassVar[BackendName] = "llamacpp"
    honours_grammar: ClassVar[bool] = True
    has_tokenizer: ClassVar[bool] = True
    answers_any_name: ClassVar[bool] = True

    def grammar_fields(self, grammar: str) -> dict[str, Any]:
        """`grammar`, at the top of the body."""
        return {"grammar": grammar}

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /tokenize."""
        body = {"model": spec.model, "content": text, "add_special": add_special}
        return self._post(spec.api_base, "/tokenize", body, key)

    def detokenize(self, spec: Spec, tokens: Sequence[int], key: str | None) -> HTTPRequest | None:
        """POST /detokenize."""
        return self._post(spec.api_base, "/detokenize", {"model": spec.model, "tokens": tokens}, key)

    def count_chat(self, spec: LLMSpec, messages: Sequence[Message], key: str | None) -> HTTPRequest | None:
        """POST /v1/chat/completions/input_tokens, which applies the chat template."""
        body = {"model": spec.model, "messages": messages}
        return self._post(spec.api_base, "/v1/chat/completions/input_tokens", body, key)

    def probes(self, root: str, key: str | None) -> Probes:
        """Adds /props: slots, context, sleep and vision stand nowhere else."""
        return msgspec.structs.replace(super().probes(root, key), props=self._get(root, "/props", key))
