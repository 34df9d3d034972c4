"""A server's error, read from any envelope and classified.

Five envelopes are in use: `{"error": {message, type, code, param}}` with a string or integer code, `{"error":
"text"}`, `{"detail": ...}`, a flat `{"object": "error", message, ...}`, and Anthropic's `{"type": "error",
"error": {...}}`. Everything here takes arbitrary bytes.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from maxwell.backends.wire import BAD_JSON
from maxwell.errors import Fault

# Only so much of a message is searched for known wordings; one may quote a whole prompt.
_SEARCHED = 4000


class Complaint(Struct, frozen=True):
    """A server's error in one form, whichever envelope it came in. `code` and `type` are lower case."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str = ""

    def says(self, wording: str) -> bool:
        """Whether the message contains `wording`, a regular expression; case does not matter."""
        return re.search(wording, self.message[:_SEARCHED], re.IGNORECASE) is not None

    def named(self, words: frozenset[str]) -> bool:
        """Whether `code` or `type` is one of `words`."""
        return self.code in words or self.type in words


def read_complaint(body: bytes) -> Complaint:
    """The error in a response body."""
    try:
        return complaint_of(msgspec.json.decode(body))
    except BAD_JSON:
        text = body.decode("utf-8", "replace").strip()
        if text.startswith("<"):
            title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
            text = f"a web page, {title[1].strip()!r}" if title else "a web page"
        return Complaint(message=text)


def complaint_of(value: Any) -> Complaint:
    """The error in a decoded body."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[0] if "error" in value[0] else {"detail": value}
    if not isinstance(value, dict):
        return Complaint(message=_text(value))
    error, detail = value.get("error"), value.get("detail")
    if isinstance(error, dict):
        value = error
    elif error:
        return Complaint(message=_text(error), type=_word(value.get("error_type")))
    elif detail and "message" not in value:
        if isinstance(detail, list):
            return _validation(detail)
        return complaint_of(detail)
    message = value.get("message")
    return Complaint(
        message=_text(value if message is None else message),
        type=_word(value.get("type")),
        code=_word(value.get("code")),
        param=_text(value.get("param")),
    )


def _validation(detail: list[Any]) -> Complaint:
    """FastAPI's list of what is wrong with a body."""
    entries = [d for d in detail if isinstance(d, dict)]
    if not entries:
        return Complaint(message=_text(detail))
    places = [[_text(p) for p in d["loc"]] if isinstance(d.get("loc"), list) else [] for d in entries]
    said = "; ".join(f"{'.'.join(p)}: {_text(d.get('msg'))}" for p, d in zip(places, entries, strict=True))
    return Complaint(
        message=said, type=_word(entries[0].get("type")), param=places[0][-1] if places[0] else ""
    )


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return f"({type(value).__name__})"


def _word(value: Any) -> str:
    return _text(value).lower()


# --- classification -----------------------------------------------------------------------------------------

_QUOTA = frozenset({
    "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
    "billing_not_active", "budget_exceeded",
})  # fmt: skip
_OVERFLOW = frozenset({"context_length_exceeded", "exceed_context_size_error", "contextwindowexceedederror"})
_POLICY = frozenset({
    "content_policy_violation", "content_filter", "responsibleaipolicyviolation", "moderation_blocked",
    "invalid_prompt",
})  # fmt: skip
_AUTH = frozenset({"invalid_api_key", "authentication_error", "permission_error", "permission_denied_error"})
_NO_MODEL = frozenset({"model_not_found", "model_not_available", "model_not_supported", "deploymentnotfound"})
_CANNOT = frozenset({"unsupported_parameter", "unsupported_value", "not_supported_error", "extra_forbidden"})

# Where a frame in a stream carries no status, its type stands for one.
_STATUS_OF = {
    "invalid_request_error": 400, "badrequesterror": 400, "bad request": 400, "validation": 422,
    "authentication_error": 401, "permission_error": 403, "notfounderror": 404, "not_found_error": 404,
    "request_too_large": 413, "rate_limit_error": 429, "rate_limit_exceeded": 429, "insufficient_quota": 429,
    "not_supported_error": 501, "unavailable_error": 503, "service_unavailable_error": 503,
    "serviceunavailableerror": 503, "server_is_overloaded": 503, "overloaded_error": 529,
    "timeout_error": 504, "exceed_context_size_error": 400, "context_length_exceeded": 400,
}  # fmt: skip

# Wordings, each from a server or service that sends no telling code with it. They are compiled when first
# needed: most processes never meet an error.
_OVERFLOW_TEXT = "|".join(
    (
        r"maximum (?:context|prompt) length",  # vLLM, OpenAI, llama-cpp-python, SGLang (sum), most services
        r"model'?s context (?:length|window)",  # SGLang (input), Together
        r"(?:context (?:size|length|window)|input tokens?) exceeds?\b",
        r"exceeds? the (?:available |model'?s )?(?:maximum )?context",  # llama.cpp
        r"exceeds? the configured limit",  # OpenAI, newer models
        r"cannot be greater than max_model_len",  # vLLM, completion alone
        r"max_(?:completion_)?tokens.{0,30} is too large",  # OpenAI, SGLang
        r"`inputs` (?:tokens \+ `max_new_tokens` must be <=|must have less than)",  # TGI, TEI
        r"prompt is too long|input is too long|request too large",  # Anthropic, Bedrock, Groq
        r"exceeds the maximum number of tokens allowed",  # Google
        r"reduce the length of the (?:messages|input|prompt)",
        r"max_tokens must be at least 1, got 0",  # vLLM, where the prompt leaves no room: none was asked for
        r"context length of only|greater than the context length",  # LM Studio
        r"contextwindowexceeded",  # LiteLLM
        r"too many tokens|cannot exceed [\d,]+ tokens|string too long",  # Cohere, Jina, OpenAI
    )
)
_QUOTA_TEXT = r"credit balance is too low|insufficient (?:balance|credits?|funds)"
_POLICY_TEXT = (
    r"content (?:management )?policy|usage polic(?:y|ies)|safety system"
    r"|flagged (?:by|as potentially|for)|input was flagged"
)
_AUTH_TEXT = r"(?:invalid|incorrect) api[ _-]?key|api key not valid"
_NO_MODEL_TEXT = "|".join(
    (
        r"\bmodel\b.{0,200}\b(?:not found|does not exist|doesn't exist|not exist)",  # vLLM, Ollama, llama.cpp
        r"\bserver is pinned to\b",  # transformers serve
        r"is not a valid model|invalid model|unknown model|no such model|model name is missing",
        r"no models? (?:is |are )?loaded",  # LM Studio
        r"\bmodel is not (?:found|loaded|running)",  # llama.cpp's router
    )
)
_CANNOT_TEXT = "|".join(
    (
        r"(?:image|audio|video|file) inputs? (?:is|are) not supported",  # llama.cpp without mmproj
        r"does(?: not|n't) support",  # logits, embeddings, image input, Matryoshka, this API ...
        r"not a multimodal model|not a chat model|(?:not|only) supported (?:in|with|by|for)",
        r"is not an? (?:re-?ranker|embedding|classifier)|missing data required for image",  # TEI, Ollama
        r"unexpected fields in the request|unrecognized request argument|extra inputs are not permitted",
        r"requires --|--tool-call-parser",  # vLLM started without what the request needs
        r"is not oai compatible|custom grammar constraints with tools",
        r"schema is nested too deeply",  # vLLM, beyond 64 levels
        r"must be created with embedding=true|input should be 'text' or 'json_object'",  # llama-cpp-python
    )
)
_WRONG_TEXT = r"json\.exception|failed to parse (?:tools|messages|json)|\d+ validation errors?:"
_NOT_READY = r"\b(?:loading|scaling|warming up|starting up)\b"
_FAILED = r"\b(?:fail|error)"


def is_loading(complaint: Complaint) -> bool:
    """Whether a 503 means "not ready yet" and not "no room" or "broken"."""
    return complaint.says(_NOT_READY) and not complaint.says(_FAILED)


def is_incapable(complaint: Complaint) -> bool:
    """Whether the server says in words that it, or its model, cannot do what was asked."""
    return complaint.named(_CANNOT) or complaint.says(_CANNOT_TEXT)


def classify(status: int | None, complaint: Complaint) -> Fault:
    """What an error means for what happens next. `status` None: an error frame that names none."""
    if status is None:
        status = _STATUS_OF.get(complaint.code) or _STATUS_OF.get(complaint.type) or 500
    if status == 429:
        return _too_many(complaint)
    if status >= 500:
        return _server_side(status, complaint)
    if status == 402 or complaint.named(_QUOTA) or complaint.says(_QUOTA_TEXT):
        return "quota"
    if complaint.named(_POLICY) or complaint.says(_POLICY_TEXT):
        return "content_policy"
    if status in (401, 403) or complaint.named(_AUTH) or complaint.says(_AUTH_TEXT):
        return "auth"
    if status == 404:
        return "model_missing" if _lacks_model(complaint) else "unsupported"
    if complaint.says(r"\bbatch size \d+ >"):  # TEI, of the number of texts in one request
        return "bad_request"
    if status == 413 or complaint.named(_OVERFLOW) or complaint.says(_OVERFLOW_TEXT):
        return "context_overflow"
    return _client_side(status, complaint)


def _too_many(complaint: Complaint) -> Fault:
    if complaint.says("^request too large"):
        return "context_overflow"  # OpenAI: larger by itself than what the key may use in a minute
    if complaint.code in ("rate_limit_exceeded", "slow_down"):
        return "rate_limited"
    if complaint.named(_QUOTA):
        return "quota"
    return "overloaded" if complaint.type == "overloaded" else "rate_limited"  # TGI's queue is full


def _server_side(status: int, complaint: Complaint) -> Fault:
    if status == 504:
        return "timeout"
    if status == 501:
        return "unsupported"
    if status == 529 or complaint.type == "overloaded_error":
        return "overloaded"
    if status == 503:
        return "loading" if is_loading(complaint) else "overloaded"
    if status != 500:
        return "server_error"
    # llama.cpp answers 500 to requests that it will never serve. "Context size has been exceeded", though, is
    # a full cache that others fill: it passes.
    if complaint.says(r"too large to process|input length exceeds"):  # the latter is Ollama's, of embeddings
        return "context_overflow"
    if is_incapable(complaint):
        return "unsupported"
    return "bad_request" if complaint.says(_WRONG_TEXT) else "server_error"


def _client_side(status: int, complaint: Complaint) -> Fault:
    if status < 400:
        return "bad_reply" if status >= 300 else "server_error"
    if status == 408:
        return "timeout"
    if status in (409, 424, 425, 499):
        return "unsupported" if is_incapable(complaint) else "server_error"
    if _lacks_model(complaint):
        return "model_missing"
    return "unsupported" if status in (405, 415, 426) or is_incapable(complaint) else "bad_request"


def _lacks_model(complaint: Complaint) -> bool:
    return complaint.named(_NO_MODEL) or complaint.says(_NO_MODEL_TEXT)
