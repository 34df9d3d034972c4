"""vLLM's server, as recorded from 0.32.0."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from maxwell.testing.dialects.base import (
    Ask,
    Chat,
    Dialect,
    Item,
    Live,
    Message,
    Outcome,
    Reply,
    Service,
    Token,
)
from maxwell.testing.tokens import prompt_tokens, render

_FINGERPRINT = "vllm-0.32.0-c5fa6d6e"
_TYPES = {
    400: "BadRequestError",
    401: "Unauthorized",
    404: "NotFoundError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
_GETS = ("/health", "/ping", "/version", "/load", "/metrics", "/v1/models")
_POSTS = (
    "/tokenize",
    "/detokenize",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
)
# vLLM refuses by characters, before it tokenises, what no tokenizer could make fit.
_CHARACTERS_PER_TOKEN = 8


class VLLM(Dialect):
    """vLLM: empty /health, `max_model_len`, `reasoning`, `structured_outputs`; knows its names only."""

    name = "vllm"
    headers: ClassVar[dict[str, str]] = {"Server": "uvicorn"}
    routes: ClassVar[dict[str, Service]] = {**Dialect.routes, "/v2/rerank": "rerank"}
    reasoning_key = "reasoning"
    early_head = True
    finish_on_last = True

    # Errors

    def error_object(self, status: int, message: str, kind: str = "", **more: Any) -> dict[str, Any]:
        kind = kind or _TYPES.get(status, "InternalServerError")
        return {"error": {"message": message, "type": kind, "param": None, "code": status, **more}}

    def error(self, status: int, message: str, kind: str = "", **more: Any) -> Reply:
        return self.json(self.error_object(status, message, kind, **more), status)

    def _wrong(self, parameter: str, value: Any, message: str) -> Reply:
        return self.error(400, f"{message} (parameter={parameter}, value={value})", param=parameter)

    def _invalid(self, kind: str, where: str, what: str, given: str) -> Reply:
        detail = f"{{'type': '{kind}', 'loc': '{where}', 'msg': '{what}', 'input': {given}}}"
        return self.error(400, f"1 validation error:\n  {detail}", "Bad Request", param=where)

    def loading(self) -> Reply:
        # A real one refuses connections until it is ready; what answers 503 is something in front of it.
        return self.error(503, "Service Unavailable")

    def unauthorized(self, key: str) -> Reply:
        return self.json({"error": "Unauthorized"}, 401)

    def model_missing(self, model: str) -> Reply:
        known = "" if self.facts.embeddings else f" Valid aliases: {', '.join(self._names)}."
        return self.error(
            404, f"The model `{model}` does not exist.{known}", param="model" if known else None
        )

    def _too_long(self, tokens: int, characters: int) -> Reply:
        limit = self.facts.context
        start = f"This model's maximum context length is {limit} tokens. However, your prompt contains"
        bound = _CHARACTERS_PER_TOKEN * limit
        if characters > bound:
            why = f"{start} {characters} characters (more than {bound} characters, which is the upper bound"
            why = f"{why} for {limit} input tokens). Please reduce the length of the input prompt."
            return self._wrong("input_text", characters, why)
        why = f"{start} at least {limit + 1} input tokens, which exceeds this limit even without any output"
        why = f"{why} tokens. Please reduce the length of the input prompt."
        return self._wrong("input_tokens", limit + 1, why)

    def overflow(self, tokens: int, characters: int) -> Reply:
        return self._too_long(tokens, characters)

    def embedding_overflow(self, item: Item) -> Reply:
        return self._too_long(item.tokens, item.characters)

    # Requests

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.facts.model, *self.facts.aliases)

    @property
    def _service(self) -> Service:
        """What it serves: a route for anything else is not there."""
        return "rerank" if self.facts.reranker else "embeddings" if self.facts.embeddings else "chat"

    def refuse(self, ask: Ask) -> Reply | None:
        key = self.facts.api_key
        if key is None or not ask.path.startswith("/v1/"):
            return None
        given = ask.headers.get("authorization", "")
        return None if given == f"Bearer {key}" else self.unauthorized(given)

    def answer(self, ask: Ask, live: Live) -> Reply | None:
        unknown = self.json({"detail": "Not Found"}, 404)
        service = self.routes.get(ask.path)
        if service is not None and service != self._service:
            return unknown
        if ask.path not in _GETS + _POSTS:
            return unknown
        if ask.method != ("GET" if ask.path in _GETS else "POST"):
            return self.json({"detail": "Method Not Allowed"}, 405)
        if ask.method == "GET":
            return self._get(ask.path, live)
        return None if service else self._tokens(ask)

    def _get(self, path: str, live: Live) -> Reply:
        if path == "/version":
            return self.json({"version": "0.32.0"})
        if path == "/load":
            return self.json({"server_load": 0})
        if path == "/metrics":
            return Reply(200, self._metrics(live), "text/plain; version=1.0.0; charset=utf-8")
        if path == "/v1/models":
            return self.json({"object": "list", "data": [self._card(name) for name in self._names]})
        return Reply(200, b"", "")

    def _metrics(self, live: Live) -> bytes:
        label = f'{{engine="0",model_name="{self.served}"}}'
        awake = f'{{engine="0",model_name="{self.served}",sleep_state="awake"}}'
        values = [
            ("num_requests_running", label, live.busy),
            ("num_requests_waiting", label, live.waiting),
            ("prompt_tokens_total", label, live.prompt_tokens),
            ("generation_tokens_total", label, live.completion_tokens),
            ("engine_sleep_state", awake, 0 if live.asleep else 1),
        ]
        return "".join(f"vllm:{name}{labels} {float(value)}\n" for name, labels, value in values).encode()

    def _card(self, name: str) -> dict[str, Any]:
        started = self.facts.started
        may = {"allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True}
        may |= {"allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False}
        permission = {"id": "modelperm-8d4a2af5dadabbca", "object": "model_permission", "created": started}
        permission |= may | {"organization": "*", "group": None, "is_blocking": False}
        card = {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "vllm",
            "root": self.facts.model,
        }
        return card | {"parent": None, "max_model_len": self.facts.context, "permission": [permission]}

    def _tokens(self, ask: Ask) -> Reply:
        wrong = self._check_json(ask)
        if wrong is not None:
            return wrong
        body, tokenizer = ask.body or {}, self.facts.tokenizer
        if ask.path == "/detokenize":
            return self.json({"prompt": tokenizer.decode(body.get("tokens") or [])})
        if "messages" in body:
            count = prompt_tokens(tokenizer, body)
            ids = tokenizer.encode(render(body))
            ids += [0] * (count - len(ids))
        else:
            ids = tokenizer.encode(str(body.get("prompt") or ""))
            count = len(ids)
        limit = self.facts.context
        return self.json({"count": count, "max_model_len": limit, "tokens": ids, "token_strs": None})

    def _check_json(self, ask: Ask) -> Reply | None:
        if not ask.headers.get("content-type", "").startswith("application/json"):
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            return self.error(400, message, "Bad Request")
        if ask.body is None:
            where = f"body.{len(ask.raw)}"
            given = "'<dict of 0 items>', 'ctx': {'error': 'Expecting value'}"
            return self._invalid("json_invalid", where, "JSON decode error", given)
        name = ask.body.get("model")
        return self.model_missing(name) if name is not None and name not in self._names else None

    def check_chat(self, ask: Ask) -> Reply | None:
        wrong = self._check_json(ask)
        if wrong is not None:
            return wrong
        body = ask.body or {}
        if not isinstance(body.get("messages"), list):
            return self._missing(body, "messages")
        if not body["messages"]:
            why = "Cannot apply chat template to an empty conversation. Provide at least one message."
            return self.error(400, why)
        if self.images_refused(body):
            return self.error(400, f"{body.get('model') or self.served} is not a multimodal model")
        if body.get("stream_options") and not body.get("stream"):
            what, where = "Stream options can only be defined when `stream=True`.", "body.stream_options"
            return self._invalid("value_error", where, what, f"'<dict of {len(body)} items>'")
        return self._check_numbers(body) or self._check_constraint(body)

    def _missing(self, body: dict[str, Any], field: str) -> Reply:
        return self._invalid("missing", f"body.{field}", "Field required", f"'<dict of {len(body)} items>'")

    def _check_numbers(self, body: dict[str, Any]) -> Reply | None:
        value = body.get("temperature")
        if isinstance(value, str):
            what = "Input should be a valid number, unable to parse string as a number"
            return self._invalid("float_parsing", "body.temperature", what, f"'{value}'")
        cap, limit = self.cap(body), self.facts.context
        if cap is not None and cap < 1:
            return self._wrong("max_tokens", cap, f"max_tokens must be at least 1, got {cap}.")
        if cap is not None and cap > limit:
            why = f"max_tokens={cap} cannot be greater than max_model_len={limit}."
            return self._wrong("max_tokens", cap, f"{why} Please request fewer output tokens.")
        return None

    def _check_constraint(self, body: dict[str, Any]) -> Reply | None:
        given = body.get("structured_outputs")
        if given is None:
            return None
        kinds = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
        used = [k for k in kinds if isinstance(given, dict) and given.get(k) is not None]
        if len(used) != 1:
            why = (
                f"You must use one kind of structured outputs constraint but {used or 'none'} are specified."
            )
            return self.error(400, why)
        grammar = given.get("grammar")
        if grammar is not None and "::=" not in str(grammar):
            why = "Invalid grammar specification: Failed to convert the grammar from GBNF to Lark"
            return self.error(400, f"{why}: Expected ::= at line 1, {str(grammar)[:20]!r}")
        return None

    def check_embeddings(self, ask: Ask) -> Reply | None:
        wrong = self._check_json(ask)
        if wrong is not None:
            return wrong
        body = ask.body or {}
        if body.get("input") is None:
            return self._missing(body, "input")
        if body["input"] == []:
            return self.error(400, "You must pass at least one prompt")
        if body.get("dimensions") is not None:
            name, size = body.get("model") or self.served, body["dimensions"]
            why = f"Model '{name}' does not support Matryoshka embeddings; dimensions must be unset"
            return self.error(400, f"{why} (received dimensions={size}).")
        cut, limit = body.get("truncate_prompt_tokens"), self.facts.context
        if cut is not None and cut > limit:
            why = f"truncate_prompt_tokens value ({cut}) is greater than max_model_len ({limit})."
            return self.error(400, f"{why} Please request a smaller truncation size.")
        return None

    def check_rerank(self, ask: Ask) -> Reply | None:
        wrong = self._check_json(ask)
        if wrong is not None:
            return wrong
        body = ask.body or {}
        missing = next((name for name in ("query", "documents") if body.get(name) is None), None)
        return None if missing is None else self._missing(body, missing)

    def reranking(self, body: dict[str, Any], scores: list[float], tokens: int, number: int) -> Any:
        documents = self.documents(body)
        results = [
            {
                "index": i,
                "document": {"text": documents[i], "multi_modal": None},
                "relevance_score": scores[i],
            }
            for i in self.best(body, scores)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"id": f"rerank-{number:032x}", "model": self.served, "usage": usage, "results": results}

    def truncation(self, body: dict[str, Any]) -> int | None:
        cut = body.get("truncate_prompt_tokens")
        return None if cut is None else self.facts.context if cut < 0 else int(cut)

    def cap(self, body: dict[str, Any]) -> int | None:
        for key in ("max_completion_tokens", "max_tokens"):
            if body.get(key) is not None:
                return int(body[key])
        return None

    def constrained(self, body: dict[str, Any]) -> bool:
        kind = (body.get("response_format") or {}).get("type")
        return body.get("structured_outputs") is not None or kind in (
            "json_object",
            "json_schema",
            "structural_tag",
        )

    # Bodies

    def chat_id(self, number: int) -> str:
        return f"chatcmpl-{number:016x}"

    def call_id(self, chat: Chat, index: int) -> str:
        return f"chatcmpl-tool-{chat.id[-15:]}{index}"

    def usage(self, chat: Chat, outcome: Outcome) -> dict[str, Any]:
        return {
            "prompt_tokens": chat.prompt_tokens,
            "total_tokens": chat.prompt_tokens + outcome.completion_tokens,
            "completion_tokens": outcome.completion_tokens,
        }

    def completion(self, chat: Chat, message: Message, outcome: Outcome) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
        said |= {"annotations": None, "audio": None, "function_call": None}
        if message.calls:
            said["tool_calls"] = self.calls(chat, message)
        said["reasoning"] = message.reasoning or None
        choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": outcome.finish_reason}
        choice |= {"stop_reason": outcome.stop, "token_ids": None, "routed_experts": None}
        body: dict[str, Any] = {"id": chat.id, "object": "chat.completion", "created": chat.created}
        body |= {
            "model": chat.model,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
        }
        if outcome.reported:
            cached = {"cached_tokens": chat.cached_tokens} if chat.cached_tokens else None
            details = {"prompt_tokens_details": cached, "completion_tokens_details": None}
            body["usage"] = self.usage(chat, outcome) | details
        nulls = (
            "prompt_logprobs",
            "prompt_token_ids",
            "prompt_text",
            "kv_transfer_params",
            "ec_transfer_params",
        )
        return body | dict.fromkeys((*nulls, "metrics"))

    def _frame(self, chat: Chat, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": chat.id, "object": "chat.completion.chunk", "created": chat.created}
        return head | {"model": chat.model, "choices": choices}

    def chunk(self, chat: Chat, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if finish is not None:
            choice["stop_reason"] = None
        return self._frame(chat, [choice | {"token_ids": None}])

    def call_opening(self, chat: Chat, index: int, name: str) -> dict[str, Any]:
        call = {
            "id": self.call_id(chat, index),
            "type": "function",
            "index": index,
            "function": {"name": name},
        }
        return self.chunk(chat, {"content": None, "tool_calls": [call]})

    def opening(self, chat: Chat) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._frame(chat, [choice]) | {"prompt_token_ids": None, "prompt_text": None}

    def closing(self, chat: Chat, outcome: Outcome, last: Token | None) -> list[dict[str, Any]]:
        delta = self.delta(*last) if last is not None else {}
        chunks = [self.chunk(chat, delta, outcome.finish_reason)]
        chunks[0]["choices"][0]["stop_reason"] = outcome.stop
        if chat.include_usage and outcome.reported:
            chunks.append(self._frame(chat, []) | {"usage": self.usage(chat, outcome)})
        chunks[-1]["system_fingerprint"] = _FINGERPRINT
        return chunks

    def embeddings(
        self, body: dict[str, Any], vectors: list[Any], tokens: int, number: int
    ) -> dict[str, Any]:
        data = [{"index": i, "object": "embedding", "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        usage_details = dict.fromkeys(("prompt_tokens_details", "completion_tokens_details"))
        head = {"id": f"embd-{number:016x}", "object": "list", "created": self.facts.started}
        head |= {"model": body.get("model") or self.served, "data": data}
        return head | {"usage": usage | usage_details}

    def rate_limited(self, headers: dict[str, str]) -> Reply:
        reply = self.error(429, "Too Many Requests", "RateLimitError")
        return msgspec.structs.replace(reply, headers=headers)
