"""Chat servers that are declared as one of the three families and are of another: what they do differently.

Each is recognised by what it says of itself (`listing.read_models`), and spoken to in its own words from then
on. None of them mixes a constraint with tools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from maxwell.backends import listing
from maxwell.backends.base import Backend, Compiled, thinking_switch
from maxwell.backends.enforced import by_llamacpp, by_vllm
from maxwell.backends.listing import Probes, Props
from maxwell.backends.native_services import InfoRoute, TokenRoutes
from maxwell.backends.services import EmbeddingReply, native_url, vector_of
from maxwell.backends.wire import BAD_JSON, TokenPiece, TokensReply
from maxwell.constraints import Unhonoured
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, Spec
from maxwell.types import BackendName, ChatCall, Constraint, HTTPRequest, Usage


class LlamaCppPythonBackend(Backend):
    """llama-cpp-python's server, which runs llama.cpp's model code behind routes of its own.

    It has no /health, answers to any name, never reports usage in a stream, and dies of a text to embed that
    is too long.
    """

    name: ClassVar[BackendName] = "llamacpp"
    family: ClassVar[str] = "llama-cpp-python"
    has_tokenizer: ClassVar[bool] = True
    answers_any_name: ClassVar[bool] = True
    says_too_long: ClassVar[bool] = False
    no_rerank: ClassVar[str] = "llama-cpp-python's server has no route that reranks"

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """Always `grammar`: OpenAI's form of a schema gives 500."""
        _no_tools(self.family, tools)
        return Compiled({"grammar": _grammar_of(constraint)}, thinks=False)

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /extras/tokenize. It always puts the token before the text that the model begins with."""
        return self._extra(spec, "/tokenize", {"input": text}, key)

    def detokenize(self, spec: Spec, tokens: Sequence[int], key: str | None) -> HTTPRequest | None:
        """POST /extras/detokenize."""
        return self._extra(spec, "/detokenize", {"tokens": tokens}, key)

    def count_text(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /extras/tokenize/count."""
        return self._extra(spec, "/tokenize/count", {"input": text}, key)

    def _extra(self, spec: Spec, path: str, body: dict[str, Any], key: str | None) -> HTTPRequest:
        return self._post(native_url(spec.api_base, "/extras" + path), {"model": spec.model, **body}, key)


class OllamaBackend(Backend):
    """Ollama. It drops without a word what it does not know, such as the newer name of the cap."""

    name: ClassVar[BackendName] = "openai"
    family: ClassVar[str] = "ollama"
    truncates: ClassVar[bool] = True
    no_rerank: ClassVar[str] = "Ollama has no route that reranks"
    no_tool_choice: ClassVar[str] = "Ollama ignores tool_choice"
    no_links: ClassVar[str] = "Ollama fetches no images; pass them as data"

    def body(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """As everywhere; where no tool is to be called none is offered, for `tool_choice` is ignored."""
        if call.tools and call.tool_choice == "none":
            call = msgspec.structs.replace(call, tools=None, tool_choice=None)
        return super().body(spec, call)

    def reasoning_fields(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """`reasoning_effort`; a model that cannot think refuses any but "none"."""
        effort = "low" if call.reasoning_effort == "minimal" else call.reasoning_effort
        if effort is None or (effort != "none" and not spec.capabilities.reasoning):
            return {}
        return {"reasoning_effort": effort}

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """`response_format` with a schema, which it turns into a grammar by llama.cpp's means."""
        _no_tools(self.family, tools)
        schema = _schema_of(self.family, constraint)
        if constraint.kind == "json_schema":
            where = _unenforced(schema, by_llamacpp)
            if where:
                raise Unhonoured(f"{where}: {self.family} passes over it without a word")
        form = {"name": "reply", "schema": schema}
        fields = {"response_format": {"type": "json_schema", "json_schema": form}}
        return Compiled(fields, constraint.kind == "choices")

    def embed(
        self,
        spec: EmbeddingSpec,
        inputs: Sequence[str | list[int]],
        key: str | None,
        *,
        base64: bool = True,
        truncate_to: int | None = None,
    ) -> HTTPRequest:
        """POST /api/embed: OpenAI's route cuts what is too long without a word, this one can refuse it."""
        body = {"model": spec.model, "input": inputs, "truncate": truncate_to is not None}
        return self._post(native_url(spec.api_base, "/api/embed"), body, key)

    def decode_embeddings(self, body: bytes, count: int) -> EmbeddingReply:
        """Vectors of `count` inputs, in their order. Raises ValueError as ever."""
        try:
            reply = _decode_embedded(body)
        except BAD_JSON as exc:
            raise ValueError(f"not an embeddings reply: {exc}") from None
        if len(reply.embeddings) != count:
            raise ValueError(f"the embeddings reply has {len(reply.embeddings)} vectors for {count} inputs")
        tokens = reply.prompt_eval_count
        usage = Usage(prompt_tokens=tokens) if tokens is not None and tokens > 0 else None
        return EmbeddingReply([vector_of(v) for v in reply.embeddings], usage, reply.model or "")

    def probes(self, root: str, key: str | None) -> Probes:
        """Adds /api/ps: the context of a loaded model may be far below what the model could read."""
        return msgspec.structs.replace(super().probes(root, key), props=self._get(f"{root}/api/ps", key))

    def read_props(self, status: int, body: bytes) -> Props:
        """Contexts of the loaded models."""
        return listing.read_loaded(status, body)


class _Embedded(msgspec.Struct):
    embeddings: list[list[float]]
    model: str | None = None
    prompt_eval_count: int | None = None


_decode_embedded = msgspec.json.Decoder(_Embedded).decode


class SGLangBackend(TokenRoutes, Backend):
    """SGLang. Its /tokenize is vLLM's, but for conversations, which it does not take."""

    name: ClassVar[BackendName] = "vllm"
    family: ClassVar[str] = "sglang"

    def reasoning_fields(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """The template's switch."""
        effort = call.reasoning_effort
        return {} if effort is None else {"chat_template_kwargs": thinking_switch(effort)}

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """`regex`, `ebnf` or `response_format` with a schema."""
        _no_tools(self.family, tools)
        if constraint.kind == "regex":
            from maxwell.constraints.compile import plain_regex

            return Compiled({"regex": plain_regex(constraint.value)})
        if constraint.kind == "json_schema" and not _unenforced(constraint.value, by_vllm):
            form = {"name": "reply", "schema": constraint.value}
            return Compiled({"response_format": {"type": "json_schema", "json_schema": form}})
        return Compiled({"ebnf": _grammar_of(constraint)})  # the same engine as vLLM's, the same EBNF

    def probes(self, root: str, key: str | None) -> Probes:
        """Its /health generates a token; /get_model_info, which answers while the server is up, does not."""
        health = self._get(f"{root}/get_model_info", key)
        return msgspec.structs.replace(super().probes(root, key), health=health)


class TGIBackend(InfoRoute, Backend):
    """Hugging Face's text-generation-inference."""

    name: ClassVar[BackendName] = "openai"
    family: ClassVar[str] = "tgi"
    no_rerank: ClassVar[str] = "text-generation-inference has no route that reranks"

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """`response_format` of its own kind, with a schema or a regular expression as `value`."""
        _no_tools(self.family, tools)
        if constraint.kind == "regex":
            from maxwell.constraints.compile import plain_regex

            return Compiled({"response_format": {"type": "regex", "value": plain_regex(constraint.value)}})
        schema = _schema_of(self.family, constraint)
        fields = {"response_format": {"type": "json", "value": schema}}
        return Compiled(fields, constraint.kind == "choices")

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /tokenize. It always adds the tokens that the model puts around a text."""
        return self._post(native_url(spec.api_base, "/tokenize"), {"inputs": text}, key)

    def count_chat(self, spec: LLMSpec, call: ChatCall, key: str | None) -> HTTPRequest | None:
        """POST /chat_tokenize, which applies the chat template."""
        return self._post(native_url(spec.api_base, "/chat_tokenize"), self._prompt_of(spec, call), key)

    def _tokens_reply(self, body: bytes) -> TokensReply:
        try:
            reply = _decode_pieces(body)
        except BAD_JSON as exc:
            raise ValueError(f"not a tokenising reply: {exc}") from None
        pieces = reply if isinstance(reply, list) else reply.tokenize_response
        return TokensReply(tokens=[piece.id for piece in pieces])


class _Templated(msgspec.Struct):
    tokenize_response: list[TokenPiece]


_decode_pieces = msgspec.json.Decoder(list[TokenPiece] | _Templated).decode


def _no_tools(family: str, tools: bool) -> None:
    if tools:
        raise Unhonoured(f"{family} cannot hold its text to a constraint and be offered tools; drop one")


def _grammar_of(constraint: Constraint) -> str:
    """Any constraint as llama.cpp's kind of grammar."""
    from maxwell.constraints.compile import gbnf_of_choices, gbnf_of_regex, gbnf_of_schema

    if constraint.kind == "json_schema":
        return gbnf_of_schema(constraint.value)
    if constraint.kind == "choices":
        return gbnf_of_choices(constraint.value)
    if constraint.kind == "regex":
        return gbnf_of_regex(constraint.value)
    grammar: str = constraint.value
    return grammar


def _unenforced(schema: dict[str, Any], enforces: Callable[[str, dict[str, Any]], bool]) -> str:
    """Where in `schema` the first keyword stands that a server would pass over; "" = nowhere."""
    from maxwell.constraints.compile import unenforced

    wrong = unenforced(schema, enforces)
    return wrong[0][0] if wrong else ""


def _schema_of(family: str, constraint: Constraint) -> dict[str, Any]:
    """The JSON Schema to ask for; choices are wrapped into an object, which every such server can write."""
    if constraint.kind == "json_schema":
        schema: dict[str, Any] = constraint.value
        return schema
    if constraint.kind == "choices":
        value = {"type": "string", "enum": list(constraint.value)}
        return {
            "type": "object",
            "properties": {"value": value},
            "required": ["value"],
            "additionalProperties": False,
        }
    kind = {"grammar": "grammars", "regex": "regular expressions"}[constraint.kind]
    raise Unhonoured(f"{family} ignores {kind}; choose a llamacpp or vllm entry")
