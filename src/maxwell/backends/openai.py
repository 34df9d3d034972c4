"""OpenAI and the many services that speak its wire."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import msgspec

from maxwell.backends.base import Backend
from maxwell.backends.complaints import read_complaint
from maxwell.backends.wire import BAD_JSON
from maxwell.registry.endpoints import is_openai
from maxwell.registry.specs import LLMSpec
from maxwell.types import BackendName, ChatCall, HTTPRequest

# gpt-4o, gpt-5-mini, chatgpt-4o-latest, o1, o3-mini ... but not gpt-oss, gpt-j or gpt4all.
_OPENAI_MODEL = re.compile(r"gpt-\d|chatgpt-|o\d+(?:-|$)")

# Models that reason refuse any temperature but 1.
_REASONING_MODEL = re.compile(r"gpt-5(?!-chat)|o\d+(?:-|$)")

# Fields a server may refuse and what stands in for them; None = it goes without.
_MENDS = {
    "temperature": None,
    "stream_options": None,
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
_REFUSING = frozenset({"unsupported_parameter", "unsupported_value", "extra_forbidden"})
_REFUSING_TEXT = (
    r"unsupported (?:parameter|value)|unrecognized request argument|unexpected fields"
    r"|not (?:permitted|supported)"
)


class OpenAIBackend(Backend):
    """OpenAI's own API and its imitations."""

    name: ClassVar[BackendName] = "openai"

    def cap_field(self, spec: LLMSpec) -> str:
        """`max_completion_tokens` where OpenAI's own models need it; Ollama drops it, others refuse it."""
        newer = is_openai(spec.api_base) or _OPENAI_MODEL.match(_bare(spec.model))
        return "max_completion_tokens" if newer else "max_tokens"

    def temperature(self, spec: LLMSpec, call: ChatCall) -> float | None:
        """None for models that reason; `extra` can still send one."""
        return None if _REASONING_MODEL.match(_bare(spec.model)) else super().temperature(spec, call)

    def without_refused(self, request: HTTPRequest, error_body: bytes) -> HTTPRequest | None:
        """`request` without the field that a 400 or 422 complains of, or with it under its other name.

        None when the error names no such field, or the request does not hold it. A server could refuse both
        names of the cap in turn, so the caller must bound how often it asks.
        """
        field = _refused_field(error_body)
        if field is None:
            return None
        try:
            body: Any = msgspec.json.decode(request.body)
        except BAD_JSON:
            return None
        if not isinstance(body, dict) or field not in body:
            return None
        value, other = body.pop(field), _MENDS[field]
        if other is not None:
            body.setdefault(other, value)
        return HTTPRequest(request.method, request.url, request.headers, msgspec.json.encode(body))


def _bare(model: str) -> str:
    """The model's own name, without a router's prefixes (`openai/`, `ft:`)."""
    return model.rsplit("/", 1)[-1].removeprefix("ft:").lower()


def _refused_field(error_body: bytes) -> str | None:
    complaint = read_complaint(error_body)
    if not (complaint.named(_REFUSING) or complaint.says(_REFUSING_TEXT)):
        return None
    if complaint.param:
        return complaint.param if complaint.param in _MENDS else None
    # The first name is the refused one: "'max_tokens' is not supported ... use 'max_completion_tokens'".
    found = re.search(r"\b(" + "|".join(_MENDS) + r")\b", complaint.message)
    return found[1] if found else None
