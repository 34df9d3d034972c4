"""Chat in the dialect every server shares, OpenAI's wire; a server family overrides what it does differently.

A backend is a pure codec: it makes requests and reads replies, and touches neither network nor clock. What it
does besides chat is in `services`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from maxwell.backends.mending import without_refused
from maxwell.backends.services import EmbeddingReply, Services
from maxwell.constraints import Unhonoured
from maxwell.registry.specs import LLMSpec
from maxwell.types import ChatCall, Constraint, Features, HTTPRequest

__all__ = ["CAPS", "CONSTRAINTS", "Backend", "Compiled", "EmbeddingReply"]

# Every name by which a server takes the most tokens to generate. A request carries one of them.
CAPS = ("max_tokens", "max_completion_tokens", "n_predict")

# Body fields that constrain the text. Servers drop all but one of them without a word.
CONSTRAINTS = (
    "grammar", "json_schema", "response_format", "structured_outputs", "regex", "ebnf",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip


class Compiled(Struct, frozen=True):
    """A constraint in one server's words.

    Attributes:
        fields: Body fields.
        wrapped: Whether the server must be asked for `{"value": ...}`, of which only the value is the reply.
        thinks: Whether the model may think before it writes; False where the server would hold its thinking
            to the constraint as well.
    """

    fields: dict[str, Any]
    wrapped: bool = False
    thinks: bool = True


_FREE = Compiled({})


class Backend(Services):
    """Requests and replies of one server family; this one speaks plain OpenAI wire.

    Attributes:
        mends: Fields that a server may refuse by name, and the field that stands in for each; None = the
            request goes without.
        no_tool_choice: Why it cannot be made to call a tool, in a few words; "" = it can.
        no_chat: Why it does not chat at all, in a few words; "" = it does.
        no_links: Why it takes no image by its address, in a few words; "" = it does.
    """

    mends: ClassVar[Mapping[str, str | None]] = {}
    no_tool_choice: ClassVar[str] = ""
    no_chat: ClassVar[str] = ""
    no_links: ClassVar[str] = ""

    def chat(self, spec: LLMSpec, call: ChatCall, key: str | None) -> HTTPRequest:
        """A streamed chat request that asks for usage and has a cap on the completion.

        `call.extra` wins over everything but the stream itself; a cap it names, in
        any spelling, replaces ours.

        Raises:
            ValueError: No `max_tokens`, or a constraint beside another one in `extra`, of which servers would
                silently drop one.
            Unhonoured: A constraint that this family cannot honour.
        """
        url = self.url(spec.api_base, "/chat/completions")
        return self._post(url, self.body(spec, call), key, "text/event-stream, application/json")

    def body(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """The body of a `chat` request, and its errors."""
        if call.max_tokens is None:
            raise ValueError(f"{spec.name}: a chat request needs max_tokens; fill it in from the entry")
        extra = call.extra or {}
        compiled = self.compiled(spec, call)
        if not compiled.thinks:
            call = msgspec.structs.replace(call, reasoning_effort="none", thinking_tokens=None)
        body: dict[str, Any] = {"model": spec.model, "messages": call.messages}
        temperature = self.temperature(spec, call)
        if temperature is not None:
            body["temperature"] = temperature
        if call.stop:
            body["stop"] = call.stop
        if call.seed is not None:
            body["seed"] = call.seed
        _merge(body, self.tool_fields(spec, call))
        _merge(body, self.reasoning_fields(spec, call))
        _merge(body, compiled.fields)
        _merge(body, extra)
        if not extra or all(body.get(cap) is None for cap in CAPS):
            body[self.cap_field(spec)] = call.max_tokens
        options = extra.get("stream_options")
        body["stream"] = True
        body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return body

    def cap_field(self, spec: LLMSpec) -> str:
        """The name under which this server takes the most tokens to generate."""
        return "max_tokens"

    def temperature(self, spec: LLMSpec, call: ChatCall) -> float | None:
        """The temperature to send; None = send none."""
        return spec.default_temperature if call.temperature is None else call.temperature

    def tool_fields(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """The body fields that offer tools and say which to call. Definitions are passed on as they are."""
        fields: dict[str, Any] = {}
        if call.tools:  # vLLM refuses an empty list
            fields["tools"] = call.tools
        if call.tool_choice is not None and (call.tools or call.tool_choice not in ("auto", "none")):
            fields["tool_choice"] = call.tool_choice
        return fields

    def reasoning_fields(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """The body fields that say how much to think; `chat_template_kwargs` among them are merged."""
        return {}

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """The body fields that hold the text to `constraint`, beside offered tools where `tools`.

        Raises:
            Unhonoured: This family cannot; the message says why.
        """
        raise Unhonoured(f"an {self.family} server holds its text to no constraint")

    def compiled(self, spec: LLMSpec, call: ChatCall) -> Compiled:
        """How the constraint of `call`, if it has one, is sent.

        Raises:
            ValueError: A constraint beside another one in `extra`.
            Unhonoured: A constraint that this family cannot honour in this call.
        """
        if call.constraint is None:
            return _FREE
        rival = next((name for name in CONSTRAINTS if (call.extra or {}).get(name) is not None), None)
        if rival is not None:
            raise ValueError(
                f"{spec.name}: the call's constraint and {rival!r} cannot both be obeyed; drop one"
            )
        tools = bool(call.tools) and call.tool_choice != "none"
        compiled = _constrained(self, spec, call.constraint, tools)
        if isinstance(compiled, str):
            raise Unhonoured(compiled)
        if not compiled.thinks and call.reasoning_effort not in (None, "none"):
            raise Unhonoured(self._holds_thinking())
        return compiled

    def cannot(self, spec: LLMSpec, features: Features) -> str:
        """Why this family cannot do what a call asks beyond writing text, in a few words; "" = it can."""
        choice = features.tool_choice
        if self.no_tool_choice and (choice == "required" or isinstance(choice, dict)):
            return self.no_tool_choice
        if self.no_links and features.image_links:
            return self.no_links
        if features.constraint is not None:
            tools = features.tools and choice != "none"
            compiled = _constrained(self, spec, features.constraint, tools)
            if isinstance(compiled, str):
                return compiled
            if features.thinking and not compiled.thinks:
                return self._holds_thinking()
        return ""

    def without_refused(self, request: HTTPRequest, error_body: bytes) -> HTTPRequest | None:
        """A chat request mended by what a 400 or 422 says, or None when that does not help. See `mends`."""
        return without_refused(request, error_body, self.mends)

    def _holds_thinking(self) -> str:
        return (
            f"a {self.family} server holds thinking itself to this constraint; leave reasoning_effort out, "
            "or use a JSON schema without unusual keywords"
        )


@lru_cache(maxsize=256)
def _constrained(backend: Backend, spec: LLMSpec, constraint: Constraint, tools: bool) -> Compiled | str:
    """What `constrain` gives, or why it cannot: every choice asks each entry, and calls are many."""
    try:
        return backend.constrain(spec, constraint, tools=tools)
    except Unhonoured as error:
        return str(error)


def thinking_switch(effort: str) -> dict[str, Any]:
    """Variables of chat templates that switch thinking on or off: Qwen's name for it, and DeepSeek's."""
    return {"enable_thinking": effort != "none", "thinking": effort != "none"}


def _merge(body: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Put `fields` into `body`; the template's variables are joined to those already there."""
    known, more = body.get("chat_template_kwargs"), fields.get("chat_template_kwargs")
    body.update(fields)
    if isinstance(known, dict) and isinstance(more, dict):
        body["chat_template_kwargs"] = {**known, **more}
