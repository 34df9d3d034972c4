"""vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from maxwell.backends.base import Backend, Compiled, thinking_switch
from maxwell.backends.enforced import by_vllm
from maxwell.backends.native_services import VLLMServices
from maxwell.constraints import Unhonoured
from maxwell.registry.specs import LLMSpec
from maxwell.types import ChatCall, Constraint


class VLLMBackend(VLLMServices, Backend):
    """vLLM's server. Its native routes lie at the root, outside /v1."""

    # Refused where the server was started without a parser for the model's thinking.
    mends: ClassVar[Mapping[str, str | None]] = {"thinking_token_budget": None}

    def reasoning_fields(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """The template's switch, which every version obeys, the effort and the room.

        Versions and templates know no effort below "low"; older ones refuse "none" and "minimal".
        """
        effort = call.reasoning_effort
        fields: dict[str, Any] = {}
        if effort is not None:
            fields["chat_template_kwargs"] = thinking_switch(effort)
            if effort != "none":
                fields["reasoning_effort"] = "low" if effort == "minimal" else effort
        if call.thinking_tokens and effort != "none":
            fields["thinking_token_budget"] = call.thinking_tokens
        return fields

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """`structured_outputs`; `grammar` and the older `guided_grammar` are ignored with a 200."""
        if tools:
            raise Unhonoured(f"a {self.family} server that holds its text to a constraint never calls a tool")
        return Compiled(self.constraint_field(*_words(constraint)))

    def constraint_field(self, name: str, value: Any) -> dict[str, Any]:
        """The body field for a constraint that is called `name`: "json", "regex", "choice" or "grammar"."""
        return {"structured_outputs": {name: value}}


class OldVLLMBackend(VLLMBackend):
    """vLLM before 0.11, which ignores `structured_outputs`. (0.12 ignores what this one sends.)"""

    def constraint_field(self, name: str, value: Any) -> dict[str, Any]:
        """`guided_json` and its like."""
        return {f"guided_{name}": value}


def _words(constraint: Constraint) -> tuple[str, Any]:
    """A constraint as one of vLLM's kinds, in words that both of its engines understand."""
    from maxwell.constraints.compile import gbnf_of_schema, plain_grammar, plain_regex, unenforced

    if constraint.kind == "grammar":
        return "grammar", plain_grammar(constraint.value)
    if constraint.kind == "choices":
        return "choice", list(constraint.value)
    if constraint.kind == "regex":
        return "regex", plain_regex(constraint.value)
    if unenforced(constraint.value, by_vllm):
        return "grammar", gbnf_of_schema(constraint.value)
    return "json", constraint.value
