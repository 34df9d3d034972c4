"""Routes that servers have of their own, outside OpenAI's: to count tokens, and to tell of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from maxwell.backends import listing
from maxwell.backends.listing import Probes, Props
from maxwell.backends.services import Services, native_url
from maxwell.registry.endpoints import is_openai
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.types import BackendName, ChatCall, HTTPRequest, Message

_TEXT_ROLES = ("system", "developer", "user", "assistant")


class TokenRoutes(Services):
    """What has /tokenize and /detokenize at its root, as vLLM and SGLang write them."""

    has_tokenizer: ClassVar[bool] = True

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /tokenize."""
        body = {"model": spec.model, "prompt": text, "add_special_tokens": add_special}
        return self._post(native_url(spec.api_base, "/tokenize"), body, key)

    def detokenize(self, spec: Spec, tokens: Sequence[int], key: str | None) -> HTTPRequest | None:
        """POST /detokenize."""
        body = {"model": spec.model, "tokens": tokens}
        return self._post(native_url(spec.api_base, "/detokenize"), body, key)


class InfoRoute(Services):
    """What tells its limits at /info: Hugging Face's own servers."""

    has_tokenizer: ClassVar[bool] = True

    def probes(self, root: str, key: str | None) -> Probes:
        """Adds /info."""
        plain = super().probes(root, key)
        return msgspec.structs.replace(plain, props=plain.info)

    def read_props(self, status: int, body: bytes) -> Props:
        """Context and version."""
        return listing.read_info_props(status, body)


class LlamaCppServices(TokenRoutes):
    """llama.cpp's own server. `model` is sent everywhere: router mode needs it, single mode ignores it."""

    name: ClassVar[BackendName] = "llamacpp"
    family: ClassVar[str] = "llamacpp"
    answers_any_name: ClassVar[bool] = True

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /tokenize."""
        body = {"model": spec.model, "content": text, "add_special": add_special}
        return self._post(native_url(spec.api_base, "/tokenize"), body, key)

    def count_chat(self, spec: LLMSpec, call: ChatCall, key: str | None) -> HTTPRequest | None:
        """POST /v1/chat/completions/input_tokens, which applies the chat template."""
        url = self.url(spec.api_base, "/chat/completions/input_tokens")
        return self._post(url, self._prompt_of(spec, call), key)

    def probes(self, root: str, key: str | None) -> Probes:
        """Adds /props, for slots, context, sleep and vision stand nowhere else, and /slots."""
        return msgspec.structs.replace(
            super().probes(root, key),
            props=self._get(f"{root}/props", key),
            load=self._get(f"{root}/slots", key),
            load_wakes=True,
        )

    def read_props(self, status: int, body: bytes) -> Props:
        """Slots, per-slot context, sleep, vision and version."""
        return listing.read_props(status, body)

    def read_load(self, status: int, body: bytes) -> int | None:
        """Slots at work; those that wait for one are not told."""
        return listing.read_slots(status, body)


class VLLMServices(TokenRoutes):
    """vLLM's server. Its native routes lie at the root, outside /v1."""

    name: ClassVar[BackendName] = "vllm"
    family: ClassVar[str] = "vllm"
    truncates: ClassVar[bool] = True

    def _embed_options(self, base64: bool, truncate_to: int | None) -> dict[str, Any]:
        # Its base64 is in the order of its machine's bytes unless told otherwise.
        options = {"encoding_format": "base64", "endianness": "little"} if base64 else {}
        return options if truncate_to is None else {**options, "truncate_prompt_tokens": truncate_to}

    def count_chat(self, spec: LLMSpec, call: ChatCall, key: str | None) -> HTTPRequest | None:
        """POST /tokenize with messages. The effort goes where the chat route puts it: to the variables."""
        prompt = self._prompt_of(spec, call)
        effort = prompt.pop("reasoning_effort", None)
        if effort is not None:
            prompt["chat_template_kwargs"] = {
                "reasoning_effort": effort,
                **(prompt.get("chat_template_kwargs") or {}),
            }
        return self._post(native_url(spec.api_base, "/tokenize"), prompt, key)

    def probes(self, root: str, key: str | None) -> Probes:
        """Adds /version and /metrics, at the root."""
        return msgspec.structs.replace(
            super().probes(root, key),
            props=self._get(f"{root}/version", key),
            load=self._get(f"{root}/metrics", key),
        )

    def read_props(self, status: int, body: bytes) -> Props:
        """The version."""
        return listing.read_version(status, body)

    def read_load(self, status: int, body: bytes) -> int | None:
        """Requests running and waiting."""
        return listing.read_metrics(status, body)


class OpenAIServices(Services):
    """OpenAI's own API; its imitations have no route that counts.

    Nothing is counted here by tiktoken: it would fetch its tables over the network at its first use.
    """

    def count_chat(self, spec: LLMSpec, call: ChatCall, key: str | None) -> HTTPRequest | None:
        """POST /v1/responses/input_tokens, for plain text: tools and images have another shape there."""
        if not is_openai(spec.api_base) or call.tools:
            return None
        items = [
            {"role": message.get("role"), "content": message.get("content")}
            for message in call.messages
            if _is_plain(message)
        ]
        if len(items) < len(call.messages):
            return None
        url = self.url(spec.api_base, "/responses/input_tokens")
        return self._post(url, {"model": spec.model, "input": items}, key)


def _is_plain(message: Message) -> bool:
    is_text = isinstance(message.get("content"), str)
    return is_text and message.get("role") in _TEXT_ROLES and not message.keys() - {"role", "content"}
