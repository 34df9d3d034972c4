"""What servers send, as far as Maxwell reads it. Unknown fields are passed over, any field may be null.

A Struct here mirrors one JSON object of the OpenAI wire or of a server's native routes. Readers that must
work on arbitrary bytes catch `BAD_JSON`.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct

from maxwell.types import Usage

# Payload of the event that closes a chat stream. It proves nothing: it may follow an error, or never come.
DONE = b"[DONE]"

MOST_TOKENS = 2**40  # a larger count is no count; it would only break the books

# What decoding bytes that are not the expected JSON can raise: bad syntax, types or UTF-8, endless nesting.
BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class FunctionDelta(Struct, gc=False):
    """Name and arguments (JSON text) of a tool call, or the next piece of them."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, gc=False):
    """A tool call, or the next piece of one. Pieces of one call share `index`."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(Struct, gc=False):
    """What a chunk adds to the reply; in a reply that was not streamed, all of it.

    Reasoning text comes as `reasoning_content` (llama.cpp, SGLang) or `reasoning` (vLLM, Ollama).
    """

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    refusal: str | None = None


class Choice(Struct, gc=False):
    """One alternative of a reply: `delta` in a stream, `message` in a whole reply."""

    index: int | None = 0
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(Struct, gc=False):
    """Split of `prompt_tokens`. Null is not zero: the server did not say."""

    cached_tokens: int | None = None


class CompletionDetails(Struct, gc=False):
    """Split of `completion_tokens`. Null is not zero: the server did not say."""

    reasoning_tokens: int | None = None


class WireUsage(Struct, gc=False):
    """Tokens as the server counted them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's name for the cached ones
    cost: float | None = None  # OpenRouter's price of the call, in US dollars


class WireTimings(Struct, gc=False):
    """llama.cpp's own measurement of one request; it comes with the last chunk even where usage does not.

    Attributes:
        cache_n: Prompt tokens served from the cache.
        prompt_n: Prompt tokens read, cached ones not included.
        prompt_ms: Milliseconds that took.
        predicted_n: Tokens generated.
        predicted_ms: Milliseconds that took.
        prompt_per_second: Prefill speed, tokens per second.
        predicted_per_second: Generation speed, tokens per second.
    """

    cache_n: int | None = None
    prompt_n: int | None = None
    prompt_ms: float | None = None
    predicted_n: int | None = None
    predicted_ms: float | None = None
    prompt_per_second: float | None = None
    predicted_per_second: float | None = None


class Chunk(Struct):
    """One event of a chat stream, or a whole reply from a server that ignored `stream`.

    Look at `error` before anything else. `choices` may be absent, null or empty at any time.
    """

    id: str | None = None
    object: str | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: WireUsage | None = None
    timings: WireTimings | None = None
    error: Any = None


class EmbeddingItem(Struct):
    """One vector; base64 text arrives decoded. An absent index is 0: proto3 servers leave zeros out."""

    embedding: bytes | list[float]
    index: int = 0


class EmbeddingsReply(Struct):
    """Reply of /v1/embeddings."""

    data: list[EmbeddingItem]
    model: str | None = None
    usage: WireUsage | None = None


class TokenPiece(Struct):
    """One token, as text-generation-inference and text-embeddings-inference tell it."""

    id: int


class TokensReply(Struct):
    """Replies of the tokenising routes of every family: whichever fields they share."""

    tokens: list[int] | None = None
    count: int | None = None
    input_tokens: int | None = None
    content: str | None = None
    prompt: str | None = None
    text: str | None = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_embeddings = msgspec.json.Decoder(EmbeddingsReply).decode
_decode_tokens = msgspec.json.Decoder(TokensReply).decode


def decode_chunk(data: bytes) -> Chunk:
    """One event's payload, or the body of a reply that was not streamed.

    Raises:
        msgspec.DecodeError: Not JSON, or (as `msgspec.ValidationError`) not of this shape.
    """
    try:
        try:
            chunk = _decode_chunk(data)
        except msgspec.ValidationError:
            chunk = msgspec.convert(_in_line(msgspec.json.decode(data)), Chunk)
        if chunk.object == "error" and chunk.error is None:
            chunk.error = msgspec.json.decode(data)  # SGLang's flat form: the event itself is the error
    except (UnicodeDecodeError, RecursionError) as exc:
        raise msgspec.DecodeError(f"not a chat event: {exc}") from None
    for choice in chunk.choices or ():
        if choice.message is not None and choice.message.tool_calls:
            for i, call in enumerate(
                choice.message.tool_calls
            ):  # only streamed ones are numbered by the server
                call.index = i
    return chunk


def _in_line(chunk: Any) -> Any:
    """A decoded chunk of odd shape brought nearer to the usual one, as some servers need it."""
    if not isinstance(chunk, dict):
        return chunk
    for name in ("id", "object", "model"):
        if not isinstance(chunk.get(name), str):
            chunk[name] = None
    for name in ("usage", "timings"):
        chunk[name] = _numbers(chunk.get(name))
    for choice in _list(chunk.get("choices")):
        parts = (choice.get("delta"), choice.get("message")) if isinstance(choice, dict) else ()
        for part in parts:
            if isinstance(part, dict):
                _plain_text(part)
    return chunk


def _numbers(fields: Any) -> Any:
    """Counts written as 12.0 become integers; what is no number is left out, it tells nothing."""
    if not isinstance(fields, dict):
        return None
    out: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            out[name] = _numbers(value)
        elif isinstance(value, float):
            out[name] = int(value) if value.is_integer() else value
        elif isinstance(value, int) and not isinstance(value, bool):
            out[name] = value
    return out


def _plain_text(part: dict[str, Any]) -> None:
    """Content given as a list of parts becomes text, arguments given as an object become JSON text."""
    content = part.get("content")
    if isinstance(content, list):
        texts = (p.get("text") for p in content if isinstance(p, dict))
        part["content"] = "".join(t for t in texts if isinstance(t, str))
    for call in _list(part.get("tool_calls")):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
            function["arguments"] = msgspec.json.encode(function["arguments"]).decode()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def decode_embeddings_reply(body: bytes) -> EmbeddingsReply:
    """Raises `BAD_JSON`."""
    return _decode_embeddings(body)


def decode_tokens_reply(body: bytes) -> TokensReply:
    """Raises `BAD_JSON`."""
    return _decode_tokens(body)


def usage_of(usage: WireUsage | None, timings: WireTimings | None) -> Usage | None:
    """Tokens of a chat call as the server reported them; None = it did not, or not all of it.

    All-zero counts are no report: a chat prompt is never empty. llama.cpp's timings stand in for usage.
    """
    if usage is not None:
        prompt, completion = _count(usage.prompt_tokens), _count(usage.completion_tokens)
        total = _count(usage.total_tokens)
        if prompt is not None and total is not None and total >= prompt:
            # xAI counts reasoning in the total alone, and bills it (github.com/vercel/ai/pull/12425).
            completion = max(completion or 0, total - prompt)
        if prompt is not None and completion is not None and prompt + completion:
            details, reasoning = usage.prompt_tokens_details, usage.completion_tokens_details
            cached = _count(details.cached_tokens) if details else None
            return Usage(
                prompt_tokens=prompt,
                completion_tokens=completion,
                cached_tokens=_count(usage.prompt_cache_hit_tokens) if cached is None else cached,
                reasoning_tokens=_count(reasoning.reasoning_tokens) if reasoning else None,
                reported_usd=usage.cost if usage.cost is not None and 0 <= usage.cost < math.inf else None,
            )
    if timings is not None:
        fresh, completion = _count(timings.prompt_n), _count(timings.predicted_n)
        cached_n = _count(timings.cache_n)
        if fresh is not None and completion is not None and fresh + completion:
            return Usage(
                prompt_tokens=fresh + (cached_n or 0), completion_tokens=completion, cached_tokens=cached_n
            )
    return None


def embedding_usage(usage: WireUsage | None) -> Usage | None:
    """Tokens of an embedding call as the server reported them; None = it did not."""
    if usage is None:
        return None
    tokens = _count(usage.prompt_tokens) or _count(usage.total_tokens)
    return Usage(prompt_tokens=tokens) if tokens else None


def _count(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= MOST_TOKENS else None
