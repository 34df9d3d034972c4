"""What the three dialects share: the values that go in and out, and the parts that differ only in a field.

A dialect is pure: it turns requests and facts into bodies. It opens no socket and reads no clock.
"""

from __future__ import annotations

import base64
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct

from maxwell.testing.tokens import Tokenizer, count_images, normalised, unit_vector

# What a generated token belongs to: the reply, its reasoning, or the arguments of the n-th tool call.
Kind = Literal["content", "reasoning"] | int
Token = tuple[Kind, str]
Service = Literal["chat", "embeddings", "rerank"]

encode = msgspec.json.encode
_HOLE = "\0"


class Reply(Struct, frozen=True):
    """A complete HTTP response."""

    status: int
    body: bytes
    content_type: str
    headers: dict[str, str] = {}


class Facts(Struct, kw_only=True):
    """What the server is: its arguments, so to speak."""

    model: str
    aliases: tuple[str, ...]
    context: int
    slots: int | None
    dimension: int
    embeddings: bool
    reranker: bool
    most_documents: int | None
    space: str
    vision: bool
    api_key: str | None
    tokenizer: Tokenizer
    started: int


class Live(Struct):
    """What the server is doing at this moment."""

    busy: int
    waiting: int
    asleep: bool
    prompt_tokens: int
    completion_tokens: int


class Ask(Struct):
    """One HTTP request, read and parsed. `body` is None when it is absent, not JSON or not an object."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    raw: bytes
    body: dict[str, Any] | None


class Chat(Struct):
    """One accepted chat request."""

    id: str
    created: int
    model: str
    prompt_tokens: int
    cached_tokens: int
    include_usage: bool


class Outcome(Struct):
    """How a generation ended. `stop` is the stop string that ended it; `reported` is False to hide usage."""

    finish_reason: str
    completion_tokens: int
    reasoning_tokens: int
    prompt_ms: float
    predicted_ms: float
    stop: str | None = None
    reported: bool = True


class Message(Struct):
    """A whole reply: text, reasoning and (name, arguments) of each tool call."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]


class Item(Struct):
    """One embedding input: how many tokens, how many characters, and the text its vector is drawn from."""

    tokens: int
    characters: int
    text: str


class Dialect(ABC):
    """One server family's way of speaking."""

    name: ClassVar[str]
    headers: ClassVar[dict[str, str]] = {}
    stream_headers: ClassVar[dict[str, str]] = {}
    json_type: ClassVar[str] = "application/json"
    stream_type: ClassVar[str] = "text/event-stream; charset=utf-8"
    routes: ClassVar[dict[str, Service]] = {
        "/v1/chat/completions": "chat",
        "/v1/embeddings": "embeddings",
        "/v1/rerank": "rerank",
        "/rerank": "rerank",
    }
    reasoning_key: ClassVar[str | None] = None
    # vLLM sends a stream's head before the request has its turn; the others send nothing at all until then.
    early_head: ClassVar[bool] = False
    # vLLM puts the finish reason on the last token's chunk; the others send it on a chunk of its own.
    finish_on_last: ClassVar[bool] = False
    # llama.cpp closes the connection after every error.
    closes_on_error: ClassVar[bool] = False
    # Whether `[DONE]` still follows an error frame.
    done_after_error: ClassVar[bool] = True

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    # Errors

    @abstractmethod
    def error(self, status: int, message: str, kind: str = "", **more: Any) -> Reply:
        """An error response in this dialect's envelope; `kind` is its type, "" for the status's usual one."""

    @abstractmethod
    def error_object(self, status: int, message: str, kind: str = "", **more: Any) -> dict[str, Any]:
        """The envelope of `error`, as it also stands in a stream's error frame."""

    @abstractmethod
    def loading(self) -> Reply:
        """Up, but the model is not ready."""

    @abstractmethod
    def unauthorized(self, key: str) -> Reply:
        """The key is wrong, or absent ("")."""

    @abstractmethod
    def model_missing(self, model: str) -> Reply:
        """No such model here."""

    @abstractmethod
    def overflow(self, tokens: int, characters: int) -> Reply:
        """A chat prompt of that many tokens is longer than the context."""

    @abstractmethod
    def embedding_overflow(self, item: Item) -> Reply:
        """An embedding input is too long."""

    def rate_limited(self, headers: dict[str, str]) -> Reply:
        """Too many requests; waiting helps."""
        reply = self.error(429, "Rate limit reached. Please try again later.", "rate_limit_error")
        return msgspec.structs.replace(reply, headers=headers)

    def quota(self, code: str) -> Reply:
        """No credit left; waiting does not help."""
        message = "You exceeded your current quota, please check your plan and billing details."
        return self.error(429, message, "insufficient_quota", code=code)

    # Requests

    @abstractmethod
    def refuse(self, ask: Ask) -> Reply | None:
        """The 401 for a wrong or missing key, or None."""

    @abstractmethod
    def answer(self, ask: Ask, live: Live) -> Reply | None:
        """The answer to anything but generation; None = this is a generation request, see `routes`."""

    @abstractmethod
    def check_chat(self, ask: Ask) -> Reply | None:
        """The error for a chat request this server would not take, or None."""

    @abstractmethod
    def check_embeddings(self, ask: Ask) -> Reply | None:
        """The error for an embedding request this server would not take, or None."""

    @abstractmethod
    def cap(self, body: dict[str, Any]) -> int | None:
        """Most completion tokens the request asks for; None = it does not say."""

    @abstractmethod
    def constrained(self, body: dict[str, Any]) -> bool:
        """Whether the request holds a constraint that this server honours."""

    def truncation(self, body: dict[str, Any]) -> int | None:
        """Tokens that an embedding input is to be cut to, or None."""
        return None

    def images_refused(self, body: dict[str, Any]) -> bool:
        """Whether the request shows an image to a model without eyes."""
        return not self.facts.vision and count_images(body.get("messages") or []) > 0

    # Chat replies

    @property
    def served(self) -> str:
        """The name the server gives its model."""
        return self.facts.model

    def echo(self, body: dict[str, Any]) -> str:
        """The `model` of a chat reply."""
        return self.served

    @abstractmethod
    def chat_id(self, number: int) -> str:
        """An id for the n-th chat."""

    @abstractmethod
    def completion(self, chat: Chat, message: Message, outcome: Outcome) -> dict[str, Any]:
        """A whole chat reply."""

    @abstractmethod
    def chunk(self, chat: Chat, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """One chunk of a streamed chat."""

    @abstractmethod
    def opening(self, chat: Chat) -> dict[str, Any]:
        """The first chunk."""

    @abstractmethod
    def closing(self, chat: Chat, outcome: Outcome, last: Token | None) -> list[dict[str, Any]]:
        """The last chunks; `last` is the last token, given only where `finish_on_last`."""

    def usage(self, chat: Chat, outcome: Outcome) -> dict[str, Any]:
        """The three totals every dialect reports, in OpenAI's order."""
        return {
            "prompt_tokens": chat.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": chat.prompt_tokens + outcome.completion_tokens,
        }

    def delta(self, kind: Kind, text: str) -> dict[str, Any]:
        """The delta that carries one token."""
        if isinstance(kind, int):
            return {"tool_calls": [{"index": kind, "function": {"arguments": text}}]}
        return {"content" if kind == "content" else self.reasoning_key or "content": text}

    def call_id(self, chat: Chat, index: int) -> str:
        """The id of a chat's n-th tool call."""
        return f"call_{chat.id[-16:]}{index}"

    def call_opening(self, chat: Chat, index: int, name: str) -> dict[str, Any]:
        """The chunk that announces a tool call."""
        function = {"name": name, "arguments": ""}
        call = {"index": index, "id": self.call_id(chat, index), "type": "function", "function": function}
        return self.chunk(chat, {"tool_calls": [call]})

    def calls(self, chat: Chat, message: Message) -> list[dict[str, Any]]:
        """The tool calls of a whole reply."""
        return [
            {"type": "function", "function": {"name": n, "arguments": a}, "id": self.call_id(chat, i)}
            for i, (n, a) in enumerate(message.calls)
        ]

    def around(self, chat: Chat, kind: Kind) -> tuple[bytes, bytes]:
        """The bytes before and after the JSON string of a token, so that a stream is built by joining."""
        head, tail = encode(self.chunk(chat, self.delta(kind, _HOLE))).split(encode(_HOLE))
        return head, tail

    # Embeddings

    def items(self, value: Any) -> list[Item]:
        """The inputs of an embedding request: a string, strings, token ids, or lists of token ids."""
        if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
            value = [value]
        return [self._item(one) for one in value]

    def _item(self, value: Any) -> Item:
        tokenizer = self.facts.tokenizer
        if isinstance(value, str):
            return Item(tokenizer.count(value), len(value), value)
        text = tokenizer.decode(int(n) for n in value)
        return Item(len(value), len(text), text)

    def cut(self, item: Item, tokens: int) -> Item:
        """The item's first `tokens` tokens."""
        text = "".join(self.facts.tokenizer.split(item.text)[:tokens])
        return Item(min(item.tokens, tokens), len(text), text)

    @abstractmethod
    def embeddings(
        self, body: dict[str, Any], vectors: list[Any], tokens: int, number: int
    ) -> dict[str, Any]:
        """A whole embedding reply; `number` counts replies, for the id."""

    def vectors(self, body: dict[str, Any], items: list[Item]) -> list[Any]:
        """The vectors as they stand in the reply: lists of floats, or base64 strings."""
        out: list[Any] = []
        for item in items:
            packed = self.shorten(body, unit_vector(self.facts.space + item.text, self.facts.dimension))
            if body.get("encoding_format") == "base64":
                out.append(base64.b64encode(packed).decode())
            else:
                out.append(list(struct.unpack(f"<{len(packed) // 4}f", packed)))
        return out

    def shorten(self, body: dict[str, Any], packed: bytes) -> bytes:
        """The vector as the request's `dimensions` has it."""
        return packed

    # Reranking

    @abstractmethod
    def check_rerank(self, ask: Ask) -> Reply | None:
        """The error for a reranking request this server would not take, or None."""

    def documents(self, body: dict[str, Any]) -> list[str]:
        """The documents of a reranking request."""
        return [str(one) for one in body.get("documents") or ()]

    def too_many(self, count: int) -> Reply | None:
        """The error for more documents than the server takes at once, in the words of TEI, which counts."""
        most = self.facts.most_documents
        if most is None or count <= most:
            return None
        return self.error(413, f"batch size {count} > maximum allowed batch size {most}", "Validation")

    @abstractmethod
    def reranking(self, body: dict[str, Any], scores: list[float], tokens: int, number: int) -> Any:
        """A whole reranking reply: a score for each document, best first, as many as are asked for."""

    def best(self, body: dict[str, Any], scores: list[float]) -> list[int]:
        """The documents' places, best first, as many as are asked for."""
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return order[: body.get("top_n") or len(scores)]

    # Small helpers

    def json(self, body: Any, status: int = 200) -> Reply:
        """A JSON response."""
        return Reply(status, encode(body), self.json_type)


def shortened(packed: bytes, dimensions: int) -> bytes:
    """The first `dimensions` numbers of a vector, scaled to length 1 again."""
    size = len(packed) // 4
    return normalised(list(struct.unpack(f"<{size}f", packed))[: min(dimensions, size)])
