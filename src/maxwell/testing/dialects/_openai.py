"""OpenAI's API: keys, no health path, strict about fields, `max_completion_tokens` on reasoning models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from maxwell.testing.dialects.base import (
    Ask,
    Chat,
    Dialect,
    Item,
    Live,
    Message,
    Outcome,
    Reply,
    Token,
    shortened,
)

_FINGERPRINT = "fp_44709d6fcb"
_REASONING = re.compile(r"(?:.*/)?(?:o1|o3|o4|gpt-5)(?![0-9])")
# Every field the chat API documents.
_FIELDS = frozenset(
    re.findall(
        r"\w+",
        """
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format
    safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools
    top_logprobs top_p user verbosity web_search_options
    """,
    )
)
_MESSAGES = {
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The server is currently overloaded with other requests. Sorry about that! Please try again later.",
}


class OpenAI(Dialect):
    """OpenAI: string error codes, usage on request, `null` usage on every other chunk."""

    name = "openai"
    headers: ClassVar[dict[str, str]] = {"Server": "cloudflare", "x-request-id": "req_fake"}

    # Errors

    def error_object(self, status: int, message: str, kind: str = "", **more: Any) -> dict[str, Any]:
        if not kind:
            kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": None} | more}

    def error(self, status: int, message: str, kind: str = "", **more: Any) -> Reply:
        if status == 503 and not kind:
            kind, more = "service_unavailable_error", {"code": "server_is_overloaded"} | more
        return self.json(
            self.error_object(status, message or _MESSAGES.get(status, ""), kind, **more), status
        )

    def loading(self) -> Reply:
        return self.error(503, _MESSAGES[503])

    def unauthorized(self, key: str) -> Reply:
        if not key:
            why = "You didn't provide an API key. You need to provide your API key in an Authorization header"
            return self.error(401, f"{why} using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).")
        # The real one echoes the ends of a key, so clients must not print its messages unread.
        shown = f"{key[:3]}{'*' * max(0, len(key) - 7)}{key[-4:]}" if len(key) > 10 else "*" * len(key)
        where = "You can find your API key at https://platform.openai.com/account/api-keys."
        return self.error(401, f"Incorrect API key provided: {shown}. {where}", code="invalid_api_key")

    def model_missing(self, model: str) -> Reply:
        why = f"The model `{model}` does not exist or you do not have access to it."
        return self.error(404, why, code="model_not_found")

    def overflow(self, tokens: int, characters: int) -> Reply:
        why = f"This model's maximum context length is {self.facts.context} tokens. However, your messages"
        why = f"{why} resulted in {tokens} tokens. Please reduce the length of the messages."
        return self.error(400, why, param="messages", code="context_length_exceeded")

    def embedding_overflow(self, item: Item) -> Reply:
        why = f"This model's maximum context length is {self.facts.context} tokens, however you requested"
        why = f"{why} {item.tokens} tokens ({item.tokens} in your prompt; 0 for the completion)."
        return self.error(400, f"{why} Please reduce your prompt; or completion length.")

    def rate_limited(self, headers: dict[str, str]) -> Reply:
        why = f"Rate limit reached for {self.served} on requests per min (RPM): Limit 3, Used 3, Requested 1."
        reply = self.error(429, why, "rate_limit_error", code="rate_limit_exceeded")
        limits = {"x-ratelimit-limit-requests": "3", "x-ratelimit-remaining-requests": "0"}
        return Reply(reply.status, reply.body, reply.content_type, limits | headers)

    # Requests

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.facts.model, *self.facts.aliases)

    def refuse(self, ask: Ask) -> Reply | None:
        key = self.facts.api_key
        if key is None or not ask.path.startswith("/v1/"):
            return None
        given = ask.headers.get("authorization", "").removeprefix("Bearer ")
        return None if given == key else self.unauthorized(given)

    def answer(self, ask: Ask, live: Live) -> Reply | None:
        if self.routes.get(ask.path) == "rerank" and not self.facts.reranker:
            return self.error(404, f"Invalid URL ({ask.method} {ask.path})")
        if ask.path in self.routes and ask.method == "POST":
            return None
        cards = {name: self._card(name) for name in self._names}
        if ask.method == "GET" and ask.path == "/v1/models":
            return self.json({"object": "list", "data": list(cards.values())})
        if ask.method == "GET" and ask.path.startswith("/v1/models/"):
            name = ask.path.removeprefix("/v1/models/")
            return self.json(cards[name]) if name in cards else self.model_missing(name)
        return self.error(404, f"Invalid URL ({ask.method} {ask.path})")

    def _card(self, name: str) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": 1715367049, "owned_by": "system"}
        return card | {"shutdown_date": None}

    def _check_body(self, ask: Ask) -> Reply | None:
        if ask.body is None:
            return self.error(400, "We could not parse the JSON body of your request.")
        model = ask.body.get("model")
        if not model:
            return self.error(400, "you must provide a model parameter")
        return None if model in self._names else self.model_missing(model)

    def check_chat(self, ask: Ask) -> Reply | None:
        wrong = self._check_body(ask)
        if wrong is not None:
            return wrong
        body = ask.body or {}
        unknown = sorted(body.keys() - _FIELDS)
        if unknown:
            why = f"Unrecognized request argument supplied: {', '.join(unknown)}"
            return self.error(400, why)
        if not body.get("messages"):
            why = "Missing required parameter: 'messages'."
            return self.error(400, why, param="messages", code="missing_required_parameter")
        if self.images_refused(body):
            why = "Invalid content type. image_url is only supported by certain models."
            return self.error(400, why, param="messages.[0].content.[0].type")
        if body.get("stream_options") and not body.get("stream"):
            why = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            return self.error(400, why, param="stream_options")
        return self._check_numbers(body) or self._check_schema(body)

    def _check_numbers(self, body: dict[str, Any]) -> Reply | None:
        reasoning = _REASONING.match(body["model"]) is not None
        if reasoning and body.get("max_tokens") is not None:
            why = "Unsupported parameter: 'max_tokens' is not supported with this model."
            why = f"{why} Use 'max_completion_tokens' instead."
            return self.error(400, why, param="max_tokens", code="unsupported_parameter")
        heat = body.get("temperature")
        if reasoning and heat not in (None, 1):
            why = f"Unsupported value: 'temperature' does not support {heat} with this model."
            why = f"{why} Only the default (1) value is supported."
            return self.error(400, why, param="temperature", code="unsupported_value")
        if isinstance(heat, str):
            why = "Invalid type for 'temperature': expected a decimal, but got a string instead."
            return self.error(400, why, param="temperature", code="invalid_type")
        cap = self.cap(body)
        if cap is not None and cap < 1:
            name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
            why = f"Invalid '{name}': integer below minimum value. Expected a value >= 1,"
            return self.error(
                400, f"{why} but got {cap} instead.", param=name, code="integer_below_min_value"
            )
        return None

    def _check_schema(self, body: dict[str, Any]) -> Reply | None:
        given = (body.get("response_format") or {}).get("json_schema") or {}
        if not given.get("strict"):
            return None
        flaw = next(strict_flaws(given.get("schema") or {}), None)
        if flaw is None:
            return None
        why = f"Invalid schema for response_format '{given.get('name')}': In context=(), {flaw}"
        return self.error(400, why, param="response_format")

    def check_embeddings(self, ask: Ask) -> Reply | None:
        wrong = self._check_body(ask)
        if wrong is not None:
            return wrong
        value = (ask.body or {}).get("input")
        if value in (None, "", []) or (isinstance(value, list) and "" in value):
            return self.error(400, "'$.input' is invalid. Please check the API reference.")
        if isinstance(value, list) and len(value) > 2048 and not isinstance(value[0], int):
            return self.error(400, "'$.input' is invalid: the array is longer than 2048 items.")
        return None

    def check_rerank(self, ask: Ask) -> Reply | None:
        wrong = self._check_body(ask)
        if wrong is not None:
            return wrong
        if not isinstance((ask.body or {}).get("query"), str) or not self.documents(ask.body or {}):
            return self.error(400, "'$.query' and '$.documents' are needed.")
        return None

    def reranking(self, body: dict[str, Any], scores: list[float], tokens: int, number: int) -> Any:
        # As infinity and most clouds have it; OpenAI itself has no such route.
        results = [
            {"relevance_score": scores[i], "index": i, "document": None} for i in self.best(body, scores)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        made = {"object": "rerank", "results": results, "model": body["model"], "usage": usage}
        return made | {"id": f"rerank-{number:032x}", "created": self.facts.started}

    def cap(self, body: dict[str, Any]) -> int | None:
        for key in ("max_completion_tokens", "max_tokens"):
            if body.get(key) is not None:
                return int(body[key])
        return None

    def constrained(self, body: dict[str, Any]) -> bool:
        return (body.get("response_format") or {}).get("type") in ("json_object", "json_schema")

    def echo(self, body: dict[str, Any]) -> str:
        return str(body["model"])

    # Bodies

    def chat_id(self, number: int) -> str:
        return f"chatcmpl-{number:029d}"

    def usage(self, chat: Chat, outcome: Outcome) -> dict[str, Any]:
        details = {"reasoning_tokens": outcome.reasoning_tokens, "audio_tokens": 0}
        details |= {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
        cached = {"cached_tokens": chat.cached_tokens, "audio_tokens": 0}
        more = {"prompt_tokens_details": cached, "completion_tokens_details": details}
        return super().usage(chat, outcome) | more

    def completion(self, chat: Chat, message: Message, outcome: Outcome) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": message.content}
        if message.calls:
            said |= {"content": None, "tool_calls": self.calls(chat, message)}
        said |= {"refusal": None, "annotations": []}
        choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": outcome.finish_reason}
        body: dict[str, Any] = {"id": chat.id, "object": "chat.completion", "created": chat.created}
        body |= {"model": chat.model, "choices": [choice]}
        if outcome.reported:
            body["usage"] = self.usage(chat, outcome)
        return body | {"service_tier": "default", "system_fingerprint": _FINGERPRINT}

    def _frame(self, chat: Chat, choices: list[dict[str, Any]]) -> dict[str, Any]:
        body = {
            "id": chat.id,
            "object": "chat.completion.chunk",
            "created": chat.created,
            "model": chat.model,
        }
        body |= {"service_tier": "default", "system_fingerprint": _FINGERPRINT, "choices": choices}
        return body | {"usage": None} if chat.include_usage else body

    def chunk(self, chat: Chat, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return self._frame(chat, [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])

    def opening(self, chat: Chat) -> dict[str, Any]:
        return self.chunk(chat, {"role": "assistant", "content": "", "refusal": None})

    def closing(self, chat: Chat, outcome: Outcome, last: Token | None) -> list[dict[str, Any]]:
        chunks = [self.chunk(chat, {}, outcome.finish_reason)]
        if chat.include_usage and outcome.reported:
            chunks.append(self._frame(chat, []) | {"usage": self.usage(chat, outcome)})
        return chunks

    def shorten(self, body: dict[str, Any], packed: bytes) -> bytes:
        size = body.get("dimensions")
        return packed if size is None else shortened(packed, int(size))

    def embeddings(
        self, body: dict[str, Any], vectors: list[Any], tokens: int, number: int
    ) -> dict[str, Any]:
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def strict_flaws(schema: Any) -> Iterator[str]:
    """What strict mode refuses in a schema: open objects, and objects with properties that may be absent."""
    if isinstance(schema, list):
        for one in schema:
            yield from strict_flaws(one)
    if not isinstance(schema, dict):
        return
    if "properties" in schema or schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            yield "'additionalProperties' is required to be supplied and to be false."
        if set(schema.get("required", ())) != set(schema.get("properties", ())):
            yield "'required' is required to be supplied and to be an array including every key."
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions"):
            yield from strict_flaws(list(value.values()))
        elif key not in ("enum", "const", "default", "examples"):
            yield from strict_flaws(value)
