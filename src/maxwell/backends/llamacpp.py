"""llama.cpp's server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from maxwell.backends import listing
from maxwell.backends.base import Backend, Compiled
from maxwell.backends.listing import Probes
from maxwell.registry.endpoints import openai_url, root
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.types import BackendName, Constraint, HTTPRequest, Message


class LlamaCppBackend(Backend):
    """llama.cpp's own server. `model` is sent everywhere: router mode needs it, single mode ignores it."""

    name: ClassVar[BackendName] = "llamacpp"
    has_tokenizer: ClassVar[bool] = True
    answers_any_name: ClassVar[bool] = True

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """`grammar`, at the top of the body."""
        return Compiled({"grammar": constraint.value})

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /tokenize."""
        body = {"model": spec.model, "content": text, "add_special": add_special}
        return self._post(root(spec.api_base) + "/tokenize", body, key)

    def detokenize(self, spec: Spec, tokens: Sequence[int], key: str | None) -> HTTPRequest | None:
        """POST /detokenize."""
        return self._post(root(spec.api_base) + "/detokenize", {"model": spec.model, "tokens": tokens}, key)

    def count_chat(self, spec: LLMSpec, messages: Sequence[Message], key: str | None) -> HTTPRequest | None:
        """POST /v1/chat/completions/input_tokens, which applies the chat template."""
        body = {"model": spec.model, "messages": messages}
        return self._post(openai_url(spec.api_base, "/chat/completions/input_tokens"), body, key)

    def probes(self, root: str, key: str | None) -> Probes:
        """Adds /props, for slots, context, sleep and vision stand nowhere else, and /slots."""
        return msgspec.structs.replace(
            super().probes(root, key),
            props=self._get(f"{root}/props", key),
            load=self._get(f"{root}/slots", key),
            load_wakes=True,
        )

    def read_load(self, status: int, body: bytes) -> int | None:
        """Slots at work; those that wait for one are not told."""
        return listing.read_slots(status, body)
