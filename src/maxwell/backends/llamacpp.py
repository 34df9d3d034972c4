"""llama.cpp's server."""

from __future__ import annotations

from typing import Any

from maxwell.backends.base import Backend, Compiled, thinking_switch
from maxwell.backends.enforced import by_llamacpp
from maxwell.backends.native_services import LlamaCppServices
from maxwell.constraints import Unhonoured
from maxwell.registry.specs import LLMSpec
from maxwell.types import ChatCall, Constraint, Features


class LlamaCppBackend(LlamaCppServices, Backend):
    """llama.cpp's own server."""

    def tool_fields(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """A choice of one tool, which would be taken for "auto", becomes that tool alone and "required".

        Raises:
            ValueError: The chosen tool is not among those offered.
        """
        if not isinstance(call.tool_choice, dict):
            return super().tool_fields(spec, call)
        name = _chosen(call.tool_choice)
        offered = [tool for tool in call.tools or () if _name_of(tool) == name]
        if name is None or not offered:
            raise ValueError(f"{spec.name}: tool_choice {call.tool_choice!r} is none of the offered tools")
        return {"tools": offered, "tool_choice": "required"}

    def reasoning_fields(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """The template's switch, the effort (also where older servers look for it) and the room.

        Templates know no effort below "low". A room of 0 is never sent: it garbles the end of thinking.
        """
        effort = call.reasoning_effort
        fields: dict[str, Any] = {}
        if effort is not None:
            fields["chat_template_kwargs"] = thinking_switch(effort)
        if effort is not None and effort != "none":
            fields["reasoning_effort"] = "low" if effort == "minimal" else effort
            fields["chat_template_kwargs"]["reasoning_effort"] = fields["reasoning_effort"]
        if call.thinking_tokens and effort != "none":
            fields["reasoning_budget_tokens"] = call.thinking_tokens
        return fields

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """`json_schema`, or `grammar` for all that its converter of schemas would pass over.

        A schema leaves the model its thinking. A grammar begins with the first token: the text would come as
        thinking, and with a limit on thinking the server answers 500. Both beside tools: a 400, or no tool is
        ever called.
        """
        if tools:
            raise Unhonoured(f"a {self.family} server that holds its text to a constraint never calls a tool")
        if constraint.kind == "grammar":
            return _as_grammar(constraint.value)
        from maxwell.constraints.compile import gbnf_of_choices, gbnf_of_regex, gbnf_of_schema, unenforced

        if constraint.kind == "choices":
            return _as_grammar(gbnf_of_choices(constraint.value))
        if constraint.kind == "regex":
            return _as_grammar(gbnf_of_regex(constraint.value))
        if unenforced(constraint.value, by_llamacpp):
            return _as_grammar(gbnf_of_schema(constraint.value))
        # OpenAI's place for it: relays between here and the server drop fields that they do not know.
        described = {"name": "reply", "schema": constraint.value, "strict": True}
        return Compiled({"response_format": {"type": "json_schema", "json_schema": described}})

    def cannot(self, spec: LLMSpec, features: Features) -> str:
        """Adds choices among tools that it does not know, and pictures that it cannot read."""
        if features.webp:
            return "llama.cpp reads no WEBP pictures; send them as PNG or JPEG"
        choice = features.tool_choice
        if isinstance(choice, dict) and _chosen(choice) is None:
            return f"llama.cpp knows no tool_choice of type {choice.get('type')!r}"
        return super().cannot(spec, features)


def _as_grammar(grammar: str) -> Compiled:
    return Compiled({"grammar": grammar}, thinks=False)


def _chosen(choice: dict[str, Any]) -> str | None:
    """The name of the one function that is chosen."""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _name_of(tool: Any) -> str | None:
    return _chosen(tool) if isinstance(tool, dict) else None
