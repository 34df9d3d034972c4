"""What servers do besides chat, as most of them do it: embed, rerank, count tokens, tell how they are.

Pure, as all of a backend: requests are made and replies are read, and nothing is sent.
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
from maxwell.backends.rerank import RerankReply, decode_rerank
from maxwell.backends.wire import (
    BAD_JSON,
    TokensReply,
    decode_embeddings_reply,
    decode_tokens_reply,
    embedding_usage,
)
from maxwell.errors import StatusError
from maxwell.registry.endpoints import openai_url, root
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, RerankerSpec, Spec
from maxwell.types import BackendName, ChatCall, HealthState, HTTPRequest, ServedModel, Usage

# What of a chat request makes its prompt. The counting routes read these fields as the chat route does.
_OF_THE_PROMPT = (
    "model", "messages", "tools", "tool_choice", "chat_template_kwargs", "reasoning_effort",
    "add_generation_prompt", "continue_final_message",
)  # fmt: skip


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


class Services:
    """Requests and replies outside chat; here as OpenAI and most of its imitations have them.

    Attributes:
        name: The registry's word for how the server is spoken to.
        family: What the server itself is, see `listing.ModelsReply`.
        has_tokenizer: Whether the server counts and splits text on request.
        truncates: Whether `embed` takes `truncate_to`.
        no_rerank: Why such a server cannot rerank, in a few words; "" = it can, as far as is known.
        most_inputs: How many texts one request may hold, where that is known.
        says_too_long: Whether it refuses to embed a text that is too long; another cuts it without a word, or
            dies of it.
        answers_any_name: Whether a server with one model answers to any model name.
    """

    name: ClassVar[BackendName] = "openai"
    family: ClassVar[str] = "openai"
    has_tokenizer: ClassVar[bool] = False
    truncates: ClassVar[bool] = False
    no_rerank: ClassVar[str] = ""
    most_inputs: ClassVar[int] = 2048
    says_too_long: ClassVar[bool] = True
    answers_any_name: ClassVar[bool] = False

    def url(self, api_base: str, path: str) -> str:
        """Where one of OpenAI's routes lies, such as `/embeddings`."""
        return openai_url(api_base, path)

    def body(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """The body of a chat request; see `base.Backend`."""
        raise NotImplementedError

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
        if truncate_to is not None and not self.truncates:
            raise ValueError(
                f"{spec.name}: an {self.family} server does not truncate; cut the input before sending"
            )
        body = {"model": spec.model, "input": inputs, **self._embed_options(base64, truncate_to)}
        return self._post(self.url(spec.api_base, "/embeddings"), body, key)

    def _embed_options(self, base64: bool, truncate_to: int | None) -> dict[str, Any]:
        """Body fields beside model and input; `truncate_to` is None unless `truncates`."""
        return {"encoding_format": "base64"} if base64 else {}

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
            vectors[item.index] = vector_of(item.embedding)
        if len(reply.data) != count:
            raise ValueError(f"the embeddings reply has {len(reply.data)} vectors for {count} inputs")
        return EmbeddingReply(vectors, embedding_usage(reply.usage), reply.model or "")

    # --- rerank

    def rerank(
        self, spec: RerankerSpec, query: str, documents: Sequence[str], key: str | None
    ) -> HTTPRequest | None:
        """A request that scores every one of `documents` for `query`; None where `no_rerank` says why."""
        if self.no_rerank:
            return None
        body = {"model": spec.model, "query": query, "documents": documents}
        return self._post(self.url(spec.api_base, "/rerank"), body, key)

    def decode_rerank(self, body: bytes, count: int) -> RerankReply:
        """Scores of `count` documents, in their order. See `rerank.decode_rerank`."""
        return decode_rerank(body, count)

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
        for text in (reply.content, reply.prompt, reply.text):
            if text is not None:
                return text
        raise ValueError("the reply to /detokenize has no text")

    def count_text(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """Request that counts a text's tokens; None where the family has no such route."""
        return self.tokenize(spec, text, key, add_special=add_special)

    def count_chat(self, spec: LLMSpec, call: ChatCall, key: str | None) -> HTTPRequest | None:
        """Request that counts a call's prompt tokens, template and tools included; None = no such route."""
        return None

    def decode_count(self, body: bytes) -> int:
        """Tokens of a `count_text` or `count_chat` reply. Raises ValueError when it is none."""
        reply = self._tokens_reply(body)
        count = reply.input_tokens if reply.input_tokens is not None else reply.count
        if count is None and reply.tokens is not None:
            count = len(reply.tokens)
        if count is None or count < 0:
            raise ValueError("the reply has no count of tokens")
        return count

    def _prompt_of(self, spec: LLMSpec, call: ChatCall) -> dict[str, Any]:
        """What of the chat request for `call` makes its prompt, so that the count is of what will be sent."""
        plain = msgspec.structs.replace(call, max_tokens=1, constraint=None)
        sent = self.body(spec, plain)
        return {name: sent[name] for name in _OF_THE_PROMPT if name in sent}

    def _tokens_reply(self, body: bytes) -> TokensReply:
        try:
            return decode_tokens_reply(body)
        except BAD_JSON as exc:
            raise ValueError(f"not a tokenising reply: {exc}") from None

    # --- health

    def probes(self, root: str, key: str | None) -> Probes:
        """Free requests that tell how the server at `root` (see `registry.endpoints.root`) is.

        `/health` gets no key: who guards it may do much to answer it, such as to call each model behind it.
        """
        return Probes(
            health=self._get(f"{root}/health", None),
            models=self._get(openai_url(root, "/models"), key),
            models_at_root=self._get(f"{root}/models", key),
            info=self._get(f"{root}/info", key),
        )

    def read_health(self, status: int, headers: Mapping[str, str], body: bytes) -> HealthState | None:
        """State by the reply to `probes().health`; None = it does not tell. Never raises."""
        return listing.read_health(status, headers, body)

    def read_models(self, status: int, headers: Mapping[str, str], body: bytes) -> ModelsReply:
        """State, models and family by the reply to `probes().models`. Never raises."""
        return listing.read_models(status, headers, body)

    def read_props(self, status: int, body: bytes) -> Props:
        """Properties by the reply to `probes().props`. Never raises."""
        return Props()

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


def native_url(api_base: str, path: str) -> str:
    """Where one of a server's own routes lies, outside /v1."""
    return root(api_base) + path


def vector_of(embedding: bytes | list[float]) -> list[float]:
    """The vector of one embedding: numbers, or float32 in little-endian order.

    Raises:
        ValueError: It is empty, or holds a value that is no number.
    """
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


def _headers(key: str | None, accept: str) -> dict[str, str]:
    headers = {"accept": accept}
    key = key.strip() if key else ""  # a file read into a variable ends with a newline
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key holds a character that no HTTP header may hold; set its variable anew")
    if key:
        headers["authorization"] = f"Bearer {key}"
    return headers
