"""llama.cpp's server, as recorded from b11549 with one model loaded (not in router mode)."""

from __future__ import annotations

import re
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
    Service,
    Token,
)
from maxwell.testing.tokens import prompt_tokens, render

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_PARSE = "[json.exception.parse_error.101] parse error at line 1, column "
_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_EMPTY = (
    "attempting to parse an empty input; check that your input string or stream contains the expected JSON"
)


class LlamaCpp(Dialect):
    """llama.cpp: health states, slots, /props, /tokenize, timings; answers to any model name."""

    name = "llamacpp"
    headers: ClassVar[dict[str, str]] = {"Server": "llama.cpp", "Access-Control-Allow-Origin": ""}
    stream_headers: ClassVar[dict[str, str]] = {"X-Accel-Buffering": "no"}
    json_type = "application/json; charset=utf-8"
    stream_type = "text/event-stream"
    routes: ClassVar[dict[str, Service]] = {
        "/v1/chat/completions": "chat",
        "/chat/completions": "chat",
        "/v1/embeddings": "embeddings",
        "/v1/rerank": "rerank",
        "/rerank": "rerank",
        "/reranking": "rerank",
    }
    reasoning_key = "reasoning_content"
    closes_on_error = True
    done_after_error = False

    # Errors

    def error_object(self, status: int, message: str, kind: str = "", **more: Any) -> dict[str, Any]:
        kind = kind or _TYPES.get(status, "server_error")
        return {"error": {"code": status, "message": message, "type": kind, **more}}

    def error(self, status: int, message: str, kind: str = "", **more: Any) -> Reply:
        return self.json(self.error_object(status, message, kind, **more), status)

    def _early(self, status: int, message: str, kind: str) -> Reply:
        # Errors from before the request is looked at have their keys in another order.
        return self.json({"error": {"message": message, "type": kind, "code": status}}, status)

    def loading(self) -> Reply:
        return self._early(503, "Loading model", "unavailable_error")

    def unauthorized(self, key: str) -> Reply:
        return self._early(401, "Invalid API Key", "authentication_error")

    def not_found(self) -> Reply:
        return self._early(404, "File Not Found", "not_found_error")

    def model_missing(self, model: str) -> Reply:
        # Only a router refuses a name, with 400; a server with one model answers to every name.
        return self.error(400, f"model '{model}' not found")

    def overflow(self, tokens: int, characters: int) -> Reply:
        limit = self.facts.context
        message = f"request ({tokens} tokens) exceeds the available context size ({limit} tokens)"
        more = {"n_prompt_tokens": tokens, "n_ctx": limit}
        return self.error(400, f"{message}, try increasing it", "exceed_context_size_error", **more)

    def embedding_overflow(self, item: Item) -> Reply:
        message = (
            f"input ({item.tokens} tokens) is too large to process. increase the physical batch size "
            f"(current batch size: {self.facts.context})"
        )
        return self.error(500, message)

    def quota(self, code: str) -> Reply:
        return self.error(429, "You exceeded your current quota.", code)

    # Requests

    def refuse(self, ask: Ask) -> Reply | None:
        key = self.facts.api_key
        if key is None or ask.path in ("/health", "/v1/health", "/"):
            return None
        given = ask.headers.get("authorization", "").removeprefix("Bearer ") or ask.headers.get(
            "x-api-key", ""
        )
        return None if given == key else self.unauthorized(given)

    def answer(self, ask: Ask, live: Live) -> Reply | None:
        if ask.method == "POST" and ask.path in self.routes:
            return self._wrong_kind(self.routes[ask.path])
        if ask.method in ("GET", "HEAD"):
            return self._get(ask, live)
        if ask.method == "POST":
            return self._post(ask)
        return self.not_found()

    def _wrong_kind(self, service: Service) -> Reply | None:
        if service == "rerank" and not self.facts.reranker:
            return self.error(501, "This server does not support reranking. Start it with `--reranking`")
        if service == "chat" and (self.facts.embeddings or self.facts.reranker):
            return self.error(500, "the current context does not support logits computation. skipping")
        if service == "embeddings" and not (self.facts.embeddings or self.facts.reranker):
            return self.error(501, "This server does not support embeddings. Start it with `--embeddings`")
        return None

    def _get(self, ask: Ask, live: Live) -> Reply:
        if ask.path in ("/health", "/v1/health"):
            return self.json({"status": "ok"})
        if ask.path in ("/v1/models", "/models"):
            return self.json(self._models())
        if ask.path == "/props":
            return self.json(self._props(live))
        if ask.path == "/slots":
            return self._slots(ask, live)
        if ask.path == "/metrics":
            return Reply(200, self._metrics(live), "text/plain; version=0.0.4")
        return self.not_found()

    def _post(self, ask: Ask) -> Reply:
        if ask.path not in (
            "/tokenize",
            "/detokenize",
            "/apply-template",
            "/v1/chat/completions/input_tokens",
        ):
            return self.not_found()
        if ask.body is None:
            return self._bad_json(ask)
        tokenizer = self.facts.tokenizer
        if ask.path == "/tokenize":
            return self.json({"tokens": self._tokenize(ask.body)})
        if ask.path == "/detokenize":
            return self.json({"content": tokenizer.decode(ask.body.get("tokens") or [])})
        if ask.path == "/apply-template":
            return self.json({"prompt": render(ask.body)})
        return self.json(
            {"input_tokens": prompt_tokens(tokenizer, ask.body), "object": "response.input_tokens"}
        )

    def _tokenize(self, body: dict[str, Any]) -> list[Any]:
        text = str(body.get("content") or "")
        ids = self.facts.tokenizer.encode(text)
        if not body.get("with_pieces"):
            return ids
        return [{"id": i, "piece": p} for i, p in zip(ids, self.facts.tokenizer.split(text), strict=True)]

    def _bad_json(self, ask: Ask) -> Reply:
        column = len(ask.raw) + 1
        what = _EMPTY if not ask.raw else "syntax error while parsing value - unexpected end of input"
        return self.error(400, f"{_PARSE}{column}: {what}")

    def check_chat(self, ask: Ask) -> Reply | None:
        body = ask.body
        if body is None:
            # A JSON array is JSON, and has no messages.
            is_list = ask.raw.lstrip().startswith(b"[")
            return self.error(400, "'messages' is required") if is_list else self._bad_json(ask)
        if "messages" not in body:
            return self.error(400, "'messages' is required")
        if not isinstance(body["messages"], list):
            return self.error(400, "Expected 'messages' to be an array")
        for m in body["messages"]:
            if not isinstance(m, dict) or (m.get("role") != "assistant" and "content" not in m):
                return self.error(400, "All non-assistant messages must contain 'content'")
        if self.images_refused(body):
            hint = "hint: if this is unexpected, you may need to provide the mmproj"
            return self.error(500, f"image input is not supported - {hint}")
        return self._check_number(body) or self._check_constraint(body)

    def _check_number(self, body: dict[str, Any]) -> Reply | None:
        value = body.get("temperature")
        if value is None or isinstance(value, int | float):
            return None
        kind = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
        what = f"[json.exception.type_error.302] type must be number, but is {kind}"
        return self.error(400, f"Field 'temperature': {what}")

    def _check_constraint(self, body: dict[str, Any]) -> Reply | None:
        grammar = body.get("grammar")
        if grammar and body.get("tools"):
            return self.error(400, "Cannot use custom grammar constraints with tools.")
        kind = (body.get("response_format") or {}).get("type")
        if kind not in (None, "text", "json_object", "json_schema"):
            message = f'response_format type must be one of "text" or "json_object", but got: {kind}'
            return self.error(400, message)
        if grammar and not _well_formed(grammar):
            return self.error(400, "Failed to initialize samplers: failed to parse grammar")
        return None

    def check_embeddings(self, ask: Ask) -> Reply | None:
        body = ask.body
        if body is None:
            return self._bad_json(ask)
        if body.get("input") is None:
            return self.error(400, '"input" or "content" must be provided')
        if body["input"] == []:
            return self.error(400, '"input" must not be empty')
        if body.get("encoding_format") not in (None, "float", "base64"):
            message = "The format to return the embeddings in. Can be either float or base64"
            return self.error(400, message)
        return None

    def check_rerank(self, ask: Ask) -> Reply | None:
        body = ask.body
        if body is None:
            return self._bad_json(ask)
        if "query" not in body:
            return self.error(400, '"query" must be provided')
        if not isinstance(body["query"], str):
            return self.error(400, '"query" must be a string')
        if not self.documents(body):
            return self.error(400, '"documents" must be a non-empty string array')
        return None

    def documents(self, body: dict[str, Any]) -> list[str]:
        return [str(one) for one in body.get("documents") or body.get("texts") or ()]

    def reranking(self, body: dict[str, Any], scores: list[float], tokens: int, number: int) -> Any:
        order = self.best(body, scores)
        if "texts" in body:  # as TEI has it
            return [{"index": i, "score": scores[i]} for i in order]
        results = [{"index": i, "relevance_score": scores[i]} for i in order]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {
            "model": body.get("model") or self.served,
            "object": "list",
            "usage": usage,
            "results": results,
        }

    def cap(self, body: dict[str, Any]) -> int | None:
        for key in ("n_predict", "max_completion_tokens", "max_tokens"):
            value = body.get(key)
            if value is not None:
                return None if value < 0 else max(1, int(value))
        return None

    def constrained(self, body: dict[str, Any]) -> bool:
        kind = (body.get("response_format") or {}).get("type")
        return bool(body.get("grammar") or body.get("json_schema")) or kind in ("json_object", "json_schema")

    # Bodies

    @property
    def served(self) -> str:
        return self.facts.aliases[0] if self.facts.aliases else self.facts.model

    def _models(self) -> dict[str, Any]:
        facts, name = self.facts, self.served
        kinds = ["text", "image"] if facts.vision else ["text"]
        details = {"parent_model": "", "format": "gguf", "family": "", "families": [""]}
        old: dict[str, Any] = {
            "name": name,
            "model": name,
            "modified_at": "",
            "size": "",
            "digest": "",
            "type": "model",
        }
        old |= {"description": "", "tags": [""], "capabilities": ["completion"], "parameters": ""}
        old["details"] = details | {"parameter_size": "", "quantization_level": ""}
        meta: dict[str, Any] = {
            "vocab_type": 2,
            "n_vocab": 803,
            "n_ctx": facts.context,
            "n_ctx_train": max(8192, facts.context),
        }
        meta |= {"n_embd": facts.dimension, "n_params": 176832, "size": 707328, "ftype": "all F32"}
        aliases = list(facts.aliases or (name,))
        new: dict[str, Any] = {"id": name, "aliases": aliases, "tags": [], "object": "model"}
        new["architecture"] = {"input_modalities": kinds, "output_modalities": ["text"]}
        new |= {"created": facts.started, "owned_by": "llamacpp", "meta": meta}
        return {"models": [old], "object": "list", "data": [new]}

    def _props(self, live: Live) -> dict[str, Any]:
        facts = self.facts
        params = {
            "seed": 4294967295,
            "temperature": 0.800000011920929,
            "top_k": 40,
            "top_p": 0.949999988079071,
        }
        caps = {"supports_system_role": True, "supports_tool_calls": True, "supports_tools": True}
        return {
            "default_generation_settings": {"params": params, "n_ctx": facts.context},
            "total_slots": facts.slots or 1,
            "model_alias": self.served,
            "model_path": facts.model,
            "modalities": {"vision": facts.vision, "video": False, "audio": False},
            "endpoint_slots": True,
            "endpoint_props": False,
            "endpoint_metrics": True,
            "chat_template": _TEMPLATE,
            "chat_template_caps": caps,
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "build_info": "b0-unknown",
            "is_sleeping": live.asleep,
            "cors_proxy_enabled": False,
        }

    def _slots(self, ask: Ask, live: Live) -> Reply:
        total = self.facts.slots or 1
        if ask.query.get("fail_on_no_slot") and live.busy >= total:
            return self.error(503, "no slot available")
        one = {"n_ctx": self.facts.context, "speculative": False}
        return self.json([{"id": i, **one, "is_processing": i < live.busy} for i in range(total)])

    def _metrics(self, live: Live) -> bytes:
        values = {
            "prompt_tokens_total": live.prompt_tokens,
            "tokens_predicted_total": live.completion_tokens,
            "requests_processing": live.busy,
            "requests_deferred": live.waiting,
        }
        return "".join(f"llamacpp:{name} {value}\n" for name, value in values.items()).encode()

    def chat_id(self, number: int) -> str:
        return f"chatcmpl-{number:032d}"

    def usage(self, chat: Chat, outcome: Outcome) -> dict[str, Any]:
        return {
            "completion_tokens": outcome.completion_tokens,
            "prompt_tokens": chat.prompt_tokens,
            "total_tokens": chat.prompt_tokens + outcome.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": chat.cached_tokens},
        }

    def completion(self, chat: Chat, message: Message, outcome: Outcome) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": message.content}
        if message.reasoning:
            said["reasoning_content"] = message.reasoning
        if message.calls:
            said["tool_calls"] = self.calls(chat, message)
        body: dict[str, Any] = {
            "choices": [{"finish_reason": outcome.finish_reason, "index": 0, "message": said}],
            "created": chat.created,
            "model": chat.model,
            "system_fingerprint": "b0-unknown",
            "object": "chat.completion",
        }
        if outcome.reported:
            body["usage"] = self.usage(chat, outcome)
        body["id"] = chat.id
        if outcome.reported:
            body["timings"] = _timings(chat, outcome)
        return body

    def chunk(self, chat: Chat, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return self._frame(chat, [{"finish_reason": finish, "index": 0, "delta": delta}])

    def _frame(self, chat: Chat, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "choices": choices,
            "created": chat.created,
            "id": chat.id,
            "model": chat.model,
            "system_fingerprint": "b0-unknown",
            "object": "chat.completion.chunk",
        }

    def opening(self, chat: Chat) -> dict[str, Any]:
        return self.chunk(chat, {"role": "assistant", "content": None})

    def closing(self, chat: Chat, outcome: Outcome, last: Token | None) -> list[dict[str, Any]]:
        chunks = [self.chunk(chat, {}, outcome.finish_reason)]
        if not outcome.reported:
            return chunks
        if chat.include_usage:
            chunks.append(self._frame(chat, []) | {"usage": self.usage(chat, outcome)})
        chunks[-1]["timings"] = _timings(chat, outcome)
        return chunks

    def embeddings(
        self, body: dict[str, Any], vectors: list[Any], tokens: int, number: int
    ) -> dict[str, Any]:
        extra = {"encoding_format": "base64"} if body.get("encoding_format") == "base64" else {}
        data = [{"embedding": v, "index": i, "object": "embedding", **extra} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        # Embeddings echo the name that was asked for, chat does not.
        return {"model": body.get("model") or self.served, "object": "list", "usage": usage, "data": data}


def _well_formed(grammar: Any) -> bool:
    """Whether a GBNF text has a root rule and defines the rules it names: a rough check, not a parser."""
    if not isinstance(grammar, str):
        return False
    defined = set(re.findall(r"^\s*([A-Za-z0-9-]+)\s*::=", grammar, re.MULTILINE))
    bare = re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{[^}]*\}|<[^>]*>|#[^\n]*', " ", grammar)
    return "root" in defined and set(re.findall(r"[A-Za-z][A-Za-z0-9-]*", bare)) <= defined


def _timings(chat: Chat, outcome: Outcome) -> dict[str, Any]:
    fresh = max(1, chat.prompt_tokens - chat.cached_tokens)
    read = max(0.001, outcome.prompt_ms)
    count = outcome.completion_tokens
    wrote = max(0.001, outcome.predicted_ms)
    # The first token belongs to the prompt's time, so speeds are those of the others.
    steps = max(0, count - 1)
    return {
        "cache_n": chat.prompt_tokens - fresh,
        "prompt_n": fresh,
        "prompt_ms": read,
        "prompt_per_token_ms": read / fresh,
        "prompt_per_second": 1000.0 * fresh / read,
        "predicted_n": count,
        "predicted_ms": wrote,
        "predicted_per_token_ms": wrote / steps if steps else 0.0,
        "predicted_per_second": 1000.0 * steps / wrote,
    }
