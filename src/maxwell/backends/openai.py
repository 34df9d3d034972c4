"""OpenAI and the many services that speak its wire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from maxwell.backends.base import Backend, Compiled
from maxwell.backends.native_services import OpenAIServices
from maxwell.constraints import Unhonoured
from maxwell.registry.endpoints import is_openai
from maxwell.registry.specs import LLMSpec
from maxwell.types import ChatCall, Constraint

# gpt-4o, gpt-5-mini, chatgpt-4o-latest, o1, o3-mini ... but not gpt-oss, gpt-j or gpt4all.
_OPENAI_MODEL = re.compile(r"gpt-\d|chatgpt-|o\d+(?:-|$)")

# Models that reason refuse any temperature but 1.
_REASONING_MODEL = re.compile(r"gpt-5(?!-chat)|o\d+(?:-|$)")

# Models from before strict schemas: they refuse one.
_WITHOUT_SCHEMAS = re.compile(r"gpt-3\.5|gpt-4(?![.o\d])|gpt-4o-2024-05-13|chatgpt-4o|o1-(?:mini|preview)")


class OpenAIBackend(OpenAIServices, Backend):
    """OpenAI's own API and its imitations."""

    mends: ClassVar[Mapping[str, str | None]] = {
        "temperature": None,
        "stream_options": None,
        "max_tokens": "max_completion_tokens",
        "max_completion_tokens": "max_tokens",
        "reasoning_effort": None,
    }

    def cap_field(self, spec: LLMSpec) -> str:
        """`max_completion_tokens` where OpenAI's own models need it; Ollama drops it, others refuse it."""
        newer = is_openai(spec.api_base) or _OPENAI_MODEL.match(_bare(spec.model))
        return "max_completion_tokens" if newer else "max_tokens"

    def temperature(self, spec: LLMSpec, call: ChatCall) -> float | None:
        """None for models that reason; `extra` can still send one."""
        return None if _REASONING_MODEL.match(_bare(spec.model)) else super().temperature(spec, call)

    def reasoning_fields(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """`reasoning_effort`, to models that reason by their name or by the registry; others refuse it."""
        reasons = spec.capabilities.reasoning or _REASONING_MODEL.match(_bare(spec.model))
        return {"reasoning_effort": call.reasoning_effort} if call.reasoning_effort and reasons else {}

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """A strict `response_format`, which constrains the text alone: tools can be called beside it.

        Its root must be an object, so choices, regular expressions and other roots are wrapped.
        """
        if constraint.kind == "grammar":
            raise Unhonoured(f"an {self.family} server ignores grammars; choose a llamacpp or vllm entry")
        if _WITHOUT_SCHEMAS.match(_bare(spec.model)):
            raise Unhonoured(f"{spec.model} takes no JSON schema, by which text is constrained here")
        from maxwell.constraints.compile import needs_wrapping, strict_schema, wrapped_schema

        schema = _schema_of(constraint)
        wrapped = needs_wrapping(schema)
        try:
            strict = strict_schema(wrapped_schema(schema) if wrapped else schema)
        except Unhonoured as error:
            if not wrapped:
                raise
            raise Unhonoured(str(error).replace("$.properties.value", "$", 1)) from None
        described = {"name": "reply", "schema": strict, "strict": True}
        return Compiled({"response_format": {"type": "json_schema", "json_schema": described}}, wrapped)


def _schema_of(constraint: Constraint) -> dict[str, Any]:
    if constraint.kind == "choices":
        return {"type": "string", "enum": list(constraint.value)}
    if constraint.kind == "regex":
        from maxwell.constraints.compile import plain_regex

        plain = plain_regex(constraint.value)
        return {"type": "string", "pattern": f"^(?:{plain})$" if "|" in plain else f"^{plain}$"}
    schema: dict[str, Any] = constraint.value
    return schema


def _bare(model: str) -> str:
    """The model's own name, without a router's prefixes (`openai/`, `ft:`)."""
    return model.rsplit("/", 1)[-1].removeprefix("ft:").lower()
