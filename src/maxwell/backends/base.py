"""The dialect every server shares: OpenAI's wire. A server family overrides what it does differently.

A backend is a pure codec: it makes requests and reads replies, and touches neither network nor clock.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from maxwell.backends import listing, refusals
from maxwell.backends.listing import ModelsReply, Probes, Props
from maxwell.backends.wire import (
    BAD_JSON,
    TokensReply,
    decode_embeddings_reply,
    decode_tokens_reply,
    embedding_usage,
)
from maxwell.constraints import Unhonoured
from maxwell.errors import StatusError
from maxwell.registry.endpoints import openai_url
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, Spec
from maxwell.types import (
    BackendName,
    ChatCall,
    Constraint,
    Features,
    HealthState,
    HTTPRequest,
    Message,
    ServedModel,
    Usage,
)

# Every name by which a server takes the most tokens to generate. A request carries one of them.
CAPS = ("max_tokens", "max_completion_tokens", "n_predict")

# Body fields that constrain the text. Servers drop all but one of them without a word.
CONSTRAINTS = ("grammar", "json_schema", "response_format", "structured_outputs")


class EmbeddingReply(Struct, frozen=True):
    """Vectors in the order of the inputs.

    Attributes:
        vectors: One per input.
        usage: Tokens as the server reported them; None = it did not.
        model: Model name as the server gave it.
    """

    vectors: list[list[float]]
    usage: Usage | None
    model: str


class Compiled(Struct, frozen=True):
    """A constraint in one server's words.

    Attributes:
        fields: Body fields.
        wrapped: Whether the server must be asked for `{"value": ...}`, of which only the value is the reply.
    """

    fields: dict[str, Any]
    wrapped: bool = False


class Backend:
    """Requests and replies of one server family; this one speaks plain OpenAI wire.

    Attributes:
        name: The registry's word for the family.
        has_tokenizer: Whether the server counts and splits text on request.
        truncates: Whether `embed` takes `truncate_to`.
        answers_any_name: Whether a server with one model answers to any model name.
    """

    name: ClassVar[BackendName] = "openai"
    has_tokenizer: ClassVar[bool] = False
    truncates: ClassVar[bool] = False
    answers_any_name: ClassVar[bool] = False

    # --- chat

    def chat(self, spec: LLMSpec, call: ChatCall, key: str | None) -> HTTPRequest:
        """A streamed chat request that asks for usage and has a cap on the completion.

        `call.extra` wins over everything but the stream itself; a cap it names, in
        any spelling, replaces ours.

        Raises:
            ValueError: No `max_tokens`, or a constraint beside another one in `extra`, of which servers would
                silently drop one.
            Unhonoured: A constraint that this family cannot honour.
        """
        if call.max_tokens is None:
            raise ValueError(f"{spec.name}: a chat request needs max_tokens; fill it in from the entry")
        extra = call.extra or {}
        body: dict[str, Any] = {"model": spec.model, "messages": call.messages}
        temperature = self.temperature(spec, call)
        if temperature is not None:
            body["temperature"] = temperature
        if call.stop:
            body["stop"] = call.stop
        if call.seed is not None:
            body["seed"] = call.seed
        if call.tools:  # vLLM refuses an empty list
            body["tools"] = call.tools
        if call.tool_choice is not None and (call.tools or call.tool_choice not in ("auto", "none")):
            body["tool_choice"] = call.tool_choice
        if call.constraint is not None:
            _check_alone(spec, extra)
            body.update(self.constrain(spec, call.constraint, tools=bool(call.tools)).fields)
        body.update(extra)
        if not extra or all(body.get(cap) is None for cap in CAPS):
            body[self.cap_field(spec)] = call.max_tokens
        options = extra.get("stream_options")
        body["stream"] = True
        body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        url = openai_url(spec.api_base, "/chat/completions")
        return self._post(url, body, key, "text/event-stream, application/json")

    def cap_field(self, spec: LLMSpec) -> str:
        """The name under which this server takes the most tokens to generate."""
        return "max_tokens"

    def temperature(self, spec: LLMSpec, call: ChatCall) -> float | None:
        """The temperature to send; None = send none."""
        return spec.default_temperature if call.temperature is None else call.temperature

    def constrain(self, spec: LLMSpec, constraint: Constraint, *, tools: bool = False) -> Compiled:
        """The body fields that hold the text to `constraint`, beside offered tools where `tools`.

        Raises:
            Unhonoured: This family cannot; the message says why.
        """
        raise Unhonoured(f"an {self.name} server ignores grammars; choose a llamacpp or vllm entry")

    def cannot(self, spec: LLMSpec, features: Features) -> str:
        """Why this family cannot do what a call asks beyond writing text, in a few words; "" = it can."""
        if features.constraint is not None:
            try:
                self.constrain(spec, features.constraint, tools=features.tools)
            except Unhonoured as error:
                return str(error)
        return ""

    def without_refused(self, request: HTTPRequest, error_body: bytes) -> HTTPRequest | None:
        """A 400 chat request mended by what its error says, or None when that does not help."""
        return None

    # --- embeddings

    def embed(
        self,
        spec: EmbeddingSpec,
        inputs: Sequence[str | list[int]],
        key: str | None,
        *,
        base64: bool = True,
        truncate_to: int | None = None,
    ) -> HTTPRequest:
        """An embedding request for texts or token lists.

        Args:
            spec: The entry.
            inputs: Texts, or token lists where the server takes them.
            key: API key or None.
            base64: Ask for base64, a third of the bytes; a server that ignores it is understood as well.
            truncate_to: Tokens after which the server cuts an input.

        Raises:
            ValueError: `truncate_to` where not `truncates`.
        """
        body: dict[str, Any] = {"model": spec.model, "input": inputs}
        if base64:
            body["encoding_format"] = "base64"
        if truncate_to is not None:
            if not self.truncates:
                raise ValueError(
                    f"{spec.name}: an {self.name} server does not truncate; cut the input before sending"
                )
            body["truncate_prompt_tokens"] = truncate_to
        return self._post(openai_url(spec.api_base, "/embeddings"), body, key)

    def decode_embeddings(self, body: bytes, count: int) -> EmbeddingReply:
        """Vectors of `count` inputs, in their order.

        Raises:
            ValueError: Not such a reply, an input without its vector, or a vector with NaN or infinity.
        """
        try:
            reply = decode_embeddings_reply(body)
        except BAD_JSON as exc:
            raise ValueError(f"not an embeddings reply: {exc}") from None
        vectors: list[list[float]] = [[]] * count
        for item in reply.data:
            if not 0 <= item.index < count or vectors[item.index]:
                raise ValueError(f"the embeddings reply has an unexpected vector with index {item.index}")
            vectors[item.index] = _vector(item.embedding)
        if len(reply.data) != count:
            raise ValueError(f"the embeddings reply has {len(reply.data)} vectors for {count} inputs")
        return EmbeddingReply(vectors, embedding_usage(reply.usage), reply.model or "")

    # --- tokens

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """Request that splits `text` into tokens; None where the family has no such route."""
        return None

    def decode_tokens(self, body: bytes) -> list[int]:
        """Token ids of a `tokenize` reply. Raises ValueError when it is none."""
        tokens = self._tokens_reply(body).tokens
        if tokens is None:
            raise ValueError("the reply to /tokenize has no tokens")
        return tokens

    def detokenize(self, spec: Spec, tokens: Sequence[int], key: str | None) -> HTTPRequest | None:
        """Request that joins tokens into text; None where the family has no such route."""
        return None

    def decode_text(self, body: bytes) -> str:
        """Text of a `detokenize` reply. Raises ValueError when it is none."""
        reply = self._tokens_reply(body)
        text = reply.content if reply.content is not None else reply.prompt
        if text is None:
            raise ValueError("the reply to /detokenize has no text")
        return text

    def count_chat(self, spec: LLMSpec, messages: Sequence[Message], key: str | None) -> HTTPRequest | None:
        """Request that counts a conversation's prompt tokens, template included; None = no such route."""
        return None

    def decode_count(self, body: bytes) -> int:
        """Tokens of a `count_chat` reply. Raises ValueError when it is none."""
        reply = self._tokens_reply(body)
        count = reply.input_tokens if reply.input_tokens is not None else reply.count
        if count is None or count < 0:
            raise ValueError("the reply has no count of tokens")
        return count

    def _tokens_reply(self, body: bytes) -> TokensReply:
        try:
            return decode_tokens_reply(body)
        except BAD_JSON as exc:
            raise ValueError(f"not a tokenising reply: {exc}") from None

    # --- health

    def probes(self, root: str, key: str | None) -> Probes:
        """Free requests that tell how the server at `root` (see `registry.endpoints.root`) is."""
        return Probes(
            health=self._get(f"{root}/health", key), models=self._get(openai_url(root, "/models"), key)
        )

    def read_health(self, status: int, headers: Mapping[str, str], body: bytes) -> HealthState | None:
        """State by the reply to `probes().health`; None = it does not tell. Never raises."""
        return listing.read_health(status, headers, body)

    def read_models(self, status: int, headers: Mapping[str, str], body: bytes) -> ModelsReply:
        """State, models and family by the reply to `probes().models`. Never raises."""
        return listing.read_models(status, headers, body)

    def read_props(self, status: int, body: bytes) -> Props:
        """Properties by the reply to `probes().props`. Never raises."""
        return listing.read_props(status, body)

    def read_load(self, status: int, body: bytes) -> int | None:
        """Requests the server has, by the reply to `probes().load`; None = it does not tell. Never raises."""
        return None

    def serves(self, model: str, served: Sequence[ServedModel]) -> ServedModel | None:
        """The listed model that an entry's `model` means, or None."""
        return listing.find_served(model, served)

    # --- errors

    def refusal(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        llm: str,
        *,
        now: float | None = None,
        secrets: Sequence[str] = (),
    ) -> StatusError:
        """The typed error for a response that is not 2xx. Never raises. See `refusals.refusal`."""
        return refusals.refusal(status, headers, body, llm, now=now, secrets=secrets)

    def frame_error(self, error: Any, llm: str, *, secrets: Sequence[str] = ()) -> StatusError:
        """The typed error for an `error` object inside a stream. Never raises. See `refusals.frame_error`."""
        return refusals.frame_error(error, llm, secrets=secrets)

    # --- requests

    def _post(self, url: str, body: Any, key: str | None, accept: str = "application/json") -> HTTPRequest:
        headers = {"content-type": "application/json", **_headers(key, accept)}
        try:
            encoded = msgspec.json.encode(body)
        except UnicodeEncodeError:
            raise ValueError("the text to send is not valid Unicode: it holds half a character") from None
        return HTTPRequest("POST", url, headers, encoded)

    def _get(self, url: str, key: str | None) -> HTTPRequest:
        return HTTPRequest("GET", url, _headers(key, "application/json"))


def _check_alone(spec: LLMSpec, extra: Mapping[str, Any]) -> None:
    rival = next((name for name in CONSTRAINTS if extra.get(name) is not None), None)
    if rival is not None:
        raise ValueError(f"{spec.name}: the call's constraint and {rival!r} cannot both be obeyed; drop one")


def _headers(key: str | None, accept: str) -> dict[str, str]:
    headers = {"accept": accept}
    key = key.strip() if key else ""  # a file read into a variable ends with a newline
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key holds a character that no HTTP header may hold; set its variable anew")
    if key:
        headers["authorization"] = f"Bearer {key}"
    return headers


def _vector(embedding: bytes | list[float]) -> list[float]:
    if isinstance(embedding, list):
        vector = embedding
    else:
        values = array("f")
        values.frombytes(embedding)  # ValueError unless a multiple of four bytes
        if sys.byteorder == "big":
            values.byteswap()
        vector = values.tolist()
    # The sum of float32 values cannot overflow: it is finite when all of them are.
    if not vector or not isfinite(sum(vector)):
        raise ValueError("the embeddings reply has a vector that is empty or holds a value that is no number")
    return vector
