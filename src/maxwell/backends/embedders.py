"""Servers that only embed and rerank: infinity and Hugging Face's text-embeddings-inference (TEI)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from maxwell.backends.base import Backend
from maxwell.backends.native_services import InfoRoute
from maxwell.backends.rerank import RerankReply
from maxwell.backends.services import EmbeddingReply, native_url
from maxwell.backends.wire import BAD_JSON, TokenPiece, TokensReply
from maxwell.registry.specs import RerankerSpec, Spec
from maxwell.types import BackendName, HTTPRequest


class _Embedder(Backend):
    name: ClassVar[BackendName] = "openai"
    no_chat: ClassVar[str] = "its server only embeds and reranks"


class InfinityUnderV1Backend(_Embedder):
    """infinity started with the prefix /v1 for its routes.

    It cuts a text that is too long without a word, answers to any name, and counts characters as tokens.
    """

    family: ClassVar[str] = "infinity"
    truncates: ClassVar[bool] = True
    says_too_long: ClassVar[bool] = False
    answers_any_name: ClassVar[bool] = True

    def decode_embeddings(self, body: bytes, count: int) -> EmbeddingReply:
        """Vectors without usage: what it reports are characters."""
        return msgspec.structs.replace(super().decode_embeddings(body, count), usage=None)

    def decode_rerank(self, body: bytes, count: int) -> RerankReply:
        """Scores without usage, for the same reason."""
        return msgspec.structs.replace(super().decode_rerank(body, count), usage=None)


class InfinityBackend(InfinityUnderV1Backend):
    """infinity as it is by default: its routes lie at the root."""

    def url(self, api_base: str, path: str) -> str:
        """At the root."""
        return native_url(api_base, path)


class TEIBackend(InfoRoute, _Embedder):
    """TEI. Its own routes lie at the root, OpenAI's route for embeddings under /v1."""

    family: ClassVar[str] = "tei"
    most_inputs: ClassVar[int] = 32  # unless it is started with another limit

    def rerank(
        self, spec: RerankerSpec, query: str, documents: Sequence[str], key: str | None
    ) -> HTTPRequest | None:
        """POST /rerank with `texts`."""
        body = {"query": query, "texts": documents}
        return self._post(native_url(spec.api_base, "/rerank"), body, key)

    def tokenize(
        self, spec: Spec, text: str, key: str | None, *, add_special: bool = False
    ) -> HTTPRequest | None:
        """POST /tokenize."""
        body = {"inputs": text, "add_special_tokens": add_special}
        return self._post(native_url(spec.api_base, "/tokenize"), body, key)

    def _tokens_reply(self, body: bytes) -> TokensReply:
        try:
            texts = _decode_texts(body)
        except BAD_JSON as exc:
            raise ValueError(f"not a tokenising reply: {exc}") from None
        return TokensReply(tokens=[piece.id for text in texts for piece in text])


_decode_texts = msgspec.json.Decoder(list[list[TokenPiece]]).decode
