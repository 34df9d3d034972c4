# ruff: noqa: E501 - recorded bodies stand as they came

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maxwell.backends import decode_chunk, get_backend
from maxwell.errors import Fault, StatusError

BACKEND = get_backend("llamacpp")
KEY = "sk-canary-0123456789abcdef"


def openai(
    message: str, code: str | None, type_: str = "invalid_request_error", param: str | None = None
) -> bytes:
    return json.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}}).encode()


def refuse(status: int, body: bytes, headers: dict[str, str] | None = None, **more: Any) -> StatusError:
    return BACKEND.refusal(status, headers or {}, body, "entry", **more)


# --- bodies as recorded

LLAMACPP: list[tuple[int, bytes, Fault]] = [
    (503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', "loading"),
    (503, b'{"error":{"code":503,"message":"no slot available","type":"unavailable_error"}}', "overloaded"),
    (401, b'{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}', "auth"),
    (404, b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}', "unsupported"),
    (
        400,
        b'{"error":{"code":400,"message":"request (12014 tokens) exceeds the available context size (4096 tokens), '
        b'try increasing it","type":"exceed_context_size_error","n_prompt_tokens":12014,"n_ctx":4096}}',
        "context_overflow",
    ),
    (
        500,
        b'{"error":{"code":500,"message":"input (802 tokens) is too large to process. increase the physical batch '
        b'size (current batch size: 512)","type":"server_error"}}',
        "context_overflow",
    ),
    (
        500,
        b'{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}',
        "server_error",
    ),
    (
        500,
        b'{"error":{"code":500,"message":"image input is not supported - hint: if this is unexpected, you may need '
        b'to provide the mmproj","type":"server_error"}}',
        "unsupported",
    ),
    (
        500,
        b'{"error":{"code":500,"message":"the current context does not support logits computation. skipping",'
        b'"type":"server_error"}}',
        "unsupported",
    ),
    (
        501,
        b'{"error":{"code":501,"message":"This server does not support embeddings. Start it with `--embeddings`",'
        b'"type":"not_supported_error"}}',
        "unsupported",
    ),
    (
        500,
        b'{"error":{"code":500,"message":"Failed to parse tools: Expected \'tools\' to be an array, got \\"x\\"; '
        b'tools = \\"x\\"","type":"server_error"}}',
        "bad_request",
    ),
    (
        500,  # older versions; newer ones say 400
        b'{"error":{"code":500,"message":"[json.exception.parse_error.101] parse error at line 1, column 15: syntax '
        b'error","type":"server_error"}}',
        "bad_request",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"[json.exception.parse_error.101] parse error at line 1, column 15: syntax '
        b'error while parsing value - unexpected end of input","type":"invalid_request_error"}}',
        "bad_request",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"Field \'temperature\': [json.exception.type_error.302] type must be number, '
        b'but is string","type":"invalid_request_error"}}',
        "bad_request",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"Failed to initialize samplers: failed to parse grammar","type":'
        b'"invalid_request_error"}}',
        "bad_request",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"Cannot use custom grammar constraints with tools.","type":'
        b'"invalid_request_error"}}',
        "unsupported",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"Pooling type \'none\' is not OAI compatible. Please use a different pooling '
        b'type","type":"invalid_request_error"}}',
        "unsupported",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"\'messages\' is required","type":"invalid_request_error"}}',
        "bad_request",
    ),
    (
        400,  # router mode
        b'{"error":{"code":400,"message":"model \'nope\' not found","type":"invalid_request_error"}}',
        "model_missing",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"model name is missing from the request","type":"invalid_request_error"}}',
        "model_missing",
    ),
    (500, b'{"error":{"code":500,"message":"failed to load model","type":"server_error"}}', "server_error"),
]

VLLM: list[tuple[int, bytes, Fault]] = [
    (401, b'{"error":"Unauthorized"}', "auth"),
    (
        404,
        b'{"error":{"message":"The model `nope` does not exist. Valid aliases: tiny-vllm.","type":"NotFoundError",'
        b'"param":"model","code":404}}',
        "model_missing",
    ),
    (404, b'{"detail":"Not Found"}', "unsupported"),
    (405, b'{"detail":"Method Not Allowed"}', "unsupported"),
    (
        400,
        b'{"error":{"message":"This model\'s maximum context length is 2048 tokens. However, your prompt contains at '
        b"least 2049 input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
        b'of the input prompt. (parameter=input_tokens, value=2049)","type":"BadRequestError","param":"input_tokens",'
        b'"code":400}}',
        "context_overflow",
    ),
    (
        400,
        b'{"error":{"message":"This model\'s maximum context length is 128 tokens. However, your prompt contains 1600 '
        b"characters (more than 1024 characters, which is the upper bound for 128 input tokens). Please reduce the "
        b'length of the input prompt. (parameter=input_text, value=1600)","type":"BadRequestError","param":'
        b'"input_text","code":400}}',
        "context_overflow",
    ),
    (
        400,
        b'{"error":{"message":"max_tokens=5000 cannot be greater than max_model_len=2048. Please request fewer output '
        b'tokens. (parameter=max_tokens, value=5000)","type":"BadRequestError","param":"max_tokens","code":400}}',
        "context_overflow",
    ),
    (
        400,
        b'{"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)","type":'
        b'"BadRequestError","param":"max_tokens","code":400}}',
        "context_overflow",  # Maxwell never asks for none: the prompt left no room
    ),
    (
        400,
        b'{"error":{"message":"tiny-vllm is not a multimodal model","type":"BadRequestError","param":null,"code":400}}',
        "unsupported",
    ),
    (
        400,
        b'{"error":{"message":"\\"auto\\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be '
        b'set","type":"BadRequestError","param":null,"code":400}}',
        "unsupported",
    ),
    (
        400,
        b'{"error":{"message":"Model \'tiny-embed\' does not support Matryoshka embeddings; dimensions must be unset '
        b'(received dimensions=16).","type":"BadRequestError","param":null,"code":400}}',
        "unsupported",
    ),
    (
        400,
        b"{\"error\":{\"message\":\"1 validation error:\\n  {'type': 'json_invalid', 'loc': 'body.14', 'msg': "
        b'\'JSON decode error\'}","type":"Bad Request","param":"body.14","code":400}}',
        "bad_request",
    ),
    (
        400,
        b'{"error":{"message":"Invalid grammar specification: Failed to convert the grammar from GBNF to Lark: '
        b'Expected ::= at line 1","type":"BadRequestError","param":null,"code":400}}',
        "bad_request",
    ),
    (
        503,
        b'{"error":{"message":"Service Unavailable","type":"Service Unavailable","code":503}}',
        "overloaded",
    ),
    (503, b'{"error":{"message":"queue is full","type":"ServiceUnavailableError","code":503}}', "overloaded"),
    (503, b'{"error":"The model is currently scaling. Please try again later."}', "loading"),
    (
        501,
        b'{"error":{"message":"The model does not support Chat Completions API","code":501}}',
        "unsupported",
    ),
    (
        422,
        b'{"error":{"message":"cannot fetch image","type":"UnprocessableEntityError","code":422}}',
        "bad_request",
    ),
]

OTHERS: list[tuple[int, bytes, Fault]] = [
    # transformers serve
    (400, b"{\"detail\":\"Server is pinned to 'models/hf-tiny-chat'; requested 'nope'.\"}", "model_missing"),
    (422, b'{"detail":"Unexpected fields in the request: {\'grammar\'}"}', "unsupported"),
    (
        422,
        b'{"detail":[{"type":"json_invalid","loc":["body",1],"msg":"JSON decode error","input":{},"ctx":{"error":'
        b'"Expecting property name enclosed in double quotes"}}]}',
        "bad_request",
    ),
    (500, b"Internal Server Error", "server_error"),
    # llama-cpp-python
    (401, b'{"detail":"Invalid API key"}', "auth"),
    (
        400,
        b'{"error":{"message":"This model\'s maximum context length is 512 tokens. However, you requested 2418 tokens '
        b'(2414 in the messages, 4 in the completion). Please reduce the length of the messages or completion.",'
        b'"type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}',
        "context_overflow",
    ),
    (
        500,
        b"{\"error\":{\"message\":\"1 validation error:\\n  {'type': 'literal_error', 'loc': ('body', "
        b"'response_format', 'type'), 'msg': \\\"Input should be 'text' or 'json_object'\\\"}\",\"type\":"
        b'"internal_server_error","param":null,"code":null}}',
        "unsupported",
    ),
    (
        500,
        b'{"error":{"message":"Llama model must be created with embedding=True to call this method","type":'
        b'"internal_server_error","param":null,"code":null}}',
        "unsupported",
    ),
    # infinity
    (
        422,
        b'{"detail":[{"type":"missing","loc":["body","text","input"],"msg":"Field required","input":{}}]}',
        "bad_request",
    ),
    # SGLang: flat
    (
        400,
        b'{"object":"error","message":"The input (5000 tokens) is longer than the model\'s context length (4096 '
        b'tokens).","type":"BadRequestError","param":null,"code":400}',
        "context_overflow",
    ),
    (
        400,
        b'{"object":"error","message":"Requested token count exceeds the model\'s maximum context length of 1000 '
        b'tokens. You requested a total of 1206 tokens","type":"BadRequestError","param":null,"code":400}',
        "context_overflow",
    ),
    (503, b'{"object":"error","message":"The request queue is full.","code":503}', "overloaded"),
    (401, b'{"error":"Unauthorized"}', "auth"),
    # TGI and TEI
    (
        422,
        b'{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` '
        b'tokens and 100 `max_new_tokens`","error_type":"validation"}',
        "context_overflow",
    ),
    (
        413,
        b'{"error":"Input validation error: `inputs` must have less than 512 tokens. Given: 900","error_type":'
        b'"Validation"}',
        "context_overflow",
    ),
    (
        422,
        b'{"error":"Input validation error: `temperature` must be positive","error_type":"validation"}',
        "bad_request",
    ),
    (429, b'{"error":"Model is overloaded","error_type":"overloaded"}', "overloaded"),
    (424, b'{"error":"Request failed during generation","error_type":"generation"}', "server_error"),
    # Ollama
    (
        404,
        b'{"error":{"message":"model \\"nope\\" not found, try pulling it first","type":"api_error","param":null,'
        b'"code":null}}',
        "model_missing",
    ),
    (404, b'{"error":"model \'nope\' not found"}', "model_missing"),
    (503, b'{"error":"server busy, please try again.  maximum pending requests exceeded"}', "overloaded"),
    (499, b'{"error":"request cancelled"}', "server_error"),
    # LiteLLM
    (
        429,
        b'{"error":{"message":"Budget has been exceeded!","type":"budget_exceeded","code":"429"}}',
        "quota",
    ),
    (
        400,
        b'{"error":{"message":"Budget has been exceeded!","type":"budget_exceeded","code":"400"}}',
        "quota",
    ),
    (
        429,
        b'{"error":{"message":"No deployments available for selected model","code":"429"}}',
        "rate_limited",
    ),
    # Anthropic
    (529, b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', "overloaded"),
    (413, b'{"type":"error","error":{"type":"request_too_large","message":"Too large"}}', "context_overflow"),
    (
        400,
        b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > '
        b'200000 maximum"}}',
        "context_overflow",
    ),
    # Google sends a list
    (400, b'[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key."}}]', "auth"),
]

# Further wordings, by the row of servers and services that have them; written after their sources where no
# version is given.
FURTHER: list[tuple[str, int, bytes, Fault]] = [
    ("llama.cpp b11549: text to embed too long", 500, b'{"error":{"code":500,"message":"input (2400 tokens) is too large to process. increase the physical batch size (current batch size: 512)","type":"server_error"}}', "context_overflow"),
    ("llama.cpp b11549: no reranker", 501, b'{"error":{"code":501,"message":"This server does not support reranking. Start it with `--reranking`","type":"not_supported_error"}}', "unsupported"),
    ("vLLM: queue is full", 503, b'{"error":{"message":"Service Unavailable","type":"ServiceUnavailableError","param":null,"code":503}}', "overloaded"),
    ("vLLM: queue is full, older", 503, b'{"error":{"message":"Server overloaded","type":"Service Unavailable","code":503}}', "overloaded"),
    ("vLLM: scaling", 503, b'{"error":"The model is currently scaling. Please try again later."}', "loading"),
    ("vLLM: engine dead", 500, b'{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","type":"InternalServerError","param":null,"code":500}}', "server_error"),
    ("vLLM: model without that API", 501, b'{"error":{"message":"The model does not support Score API","type":"NotImplementedError","param":null,"code":501}}', "unsupported"),
    ("vLLM: image out of reach", 422, b'{"error":{"message":"Failed to load image from URL http://x/a.png","type":"UnprocessableEntityError","param":null,"code":422}}', "bad_request"),
    ("vLLM 0.32.0: fewer than no tokens", 400, b'{"error":{"message":"max_tokens must be at least 1, got -5. (parameter=max_tokens, value=-5)","type":"BadRequestError","param":"max_tokens","code":400}}', "bad_request"),
    ("vLLM 0.32.0: no such dimension", 400, b'{"error":{"message":"Model \'tiny-embed\' does not support Matryoshka embeddings; dimensions must be unset (received dimensions=16).","type":"BadRequestError","param":null,"code":400}}', "unsupported"),
    ("vLLM on /v1/messages", 400, b'{"type":"error","error":{"type":"invalid_request_error","message":"This model\'s maximum context length is 2048 tokens."}}', "context_overflow"),
    ("Ollama: text to embed too long", 400, b'{"error":"the input length exceeds the context length"}', "context_overflow"),
    ("Ollama: the same, with 500", 500, b'{"error":"the input length exceeds the context length"}', "context_overflow"),
    ("Ollama: llama.cpp's error in its own", 400, b'{"error":"{\\"error\\":{\\"code\\":400,\\"message\\":\\"request (2622 tokens) exceeds the available context size (512 tokens), try increasing it\\",\\"type\\":\\"exceed_context_size_error\\"}}"}', "context_overflow"),
    ("Ollama: no tools", 400, b'{"error":{"message":"registry.ollama.ai/library/gemma:2b does not support tools","type":"api_error","param":null,"code":null}}', "unsupported"),
    ("Ollama: no images", 400, b'{"error":{"message":"this model is missing data required for image input","type":"invalid_request_error","param":null,"code":null}}', "unsupported"),
    ("Ollama: not in memory", 500, b'{"error":"model requires more system memory (5.6 GiB) than is available (3.1 GiB)"}', "server_error"),
    ("TGI: unhealthy", 503, b'{"error":"unhealthy","error_type":"healthcheck"}', "overloaded"),
    ("TGI: tools beside a constraint", 422, b'{"error":"Tool error: Grammar and tools are mutually exclusive","error_type":"tool_error"}', "bad_request"),
    ("TEI: not that kind of model", 424, b'{"error":"model is not a re-ranker model","error_type":"Backend"}', "unsupported"),
    ("TEI: backend failed", 424, b'{"error":"Model backend error: CUDA_ERROR","error_type":"Backend"}', "server_error"),
    ("TEI: too many texts", 413, b'{"error":"batch size 64 > maximum allowed batch size 32","error_type":"Validation"}', "bad_request"),
    ("TEI: queue is full", 429, b'{"error":"Model is overloaded","error_type":"Overloaded"}', "overloaded"),
    ("infinity 0.0.78: empty list", 422, b'{"detail":[{"type":"too_short","loc":["body","text","input","list[constrained-str]"],"msg":"List should have at least 1 item after validation, not 0","input":[],"ctx":{"field_type":"List","min_length":1,"actual_length":0}}]}', "bad_request"),
    ("infinity: not that kind of model", 400, b'{"error":{"message":"ModelNotDeployedError: model=`m` does not support `rerank`. Reason: the loaded moded cannot fullyfill `rerank`.","type":null,"param":null,"code":400}}', "unsupported"),
    ("LiteLLM: context", 400, b'{"error":{"message":"litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError: OpenAIException - too long","type":null,"param":null,"code":"400"}}', "context_overflow"),
    ("LiteLLM: model", 400, b'{"error":{"message":"/chat/completions: Invalid model name passed in model=x. Call `/v1/models` to view available models for your key.","type":"invalid_request_error","param":"None","code":"400"}}', "model_missing"),
    ("LiteLLM: model not for this key", 401, b'{"error":{"message":"key not allowed to access model. This key can only access models=[\'a\'].","type":"key_model_access_denied","param":"model","code":"401"}}', "auth"),
    ("LiteLLM: draining", 503, b'{"error":{"message":"Server is shutting down","type":"service_unavailable","code":"503"}}', "overloaded"),
    ("LM Studio: context", 400, b'{"error":"Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens, which is not enough. Try to load the model with a larger context length, or provide a shorter input"}', "context_overflow"),
    ("LM Studio: nothing loaded", 404, b'{"error":{"message":"No models loaded. Please load a model in the developer page or use the `lms load` command.","type":"invalid_request_error","param":"model","code":"model_not_found"}}', "model_missing"),
    ("OpenAI: more than a minute's tokens", 429, openai("Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 45000.", "rate_limit_exceeded", "tokens"), "context_overflow"),
    ("OpenAI: string too long", 400, openai("Invalid 'messages[0].content': string too long. Expected a string with maximum length 10485760.", "string_above_max_length"), "context_overflow"),
    ("OpenAI: image that is none", 400, openai("You uploaded an unsupported image. Please make sure your image is valid.", "invalid_image_format"), "bad_request"),
    ("OpenAI: too many tokens to embed at once", 400, openai("Requested 320000 tokens, max 300000 tokens per request", "max_tokens_per_request"), "bad_request"),
    ("Anthropic: key", 401, b'{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}', "auth"),
    ("Anthropic: may not", 403, b'{"type":"error","error":{"type":"permission_error","message":"no"}}', "auth"),
    ("Anthropic: no credit", 400, b'{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}', "quota"),
    ("Cohere: context", 400, b'{"message":"too many tokens: size limit exceeded by 11326 tokens. Try using shorter or fewer inputs."}', "context_overflow"),
    ("Jina: context", 422, b'{"detail":"Failed to encode text. Single text cannot exceed 8,194 tokens. 17000 tokens given."}', "context_overflow"),
    ("Mistral: context", 400, b'{"object":"error","message":"Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length","type":"invalid_request_prompt","param":null,"code":"3051"}', "context_overflow"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "kind"), [row[1:] for row in FURTHER], ids=[row[0] for row in FURTHER]
)
def test_further_wordings_are_classified(status: int, body: bytes, kind: Fault) -> None:
    assert refuse(status, body).kind == kind


QUOTA = [
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "insufficient_quota",
]

OPENAI: list[tuple[int, bytes, Fault]] = [
    *((429, openai("You ran out.", code, "insufficient_quota"), "quota") for code in QUOTA),
    *((429, openai("You ran out.", code, "rate_limit_error"), "quota") for code in QUOTA),
    (429, openai("You ran out.", None, "insufficient_quota"), "quota"),
    (429, openai("Rate limit reached", "rate_limit_exceeded", "rate_limit_error"), "rate_limited"),
    (
        429,
        openai("Rate limit reached", "rate_limit_exceeded", "insufficient_quota"),
        "rate_limited",
    ),  # code first
    (429, openai("Slow down", "slow_down", "rate_limit_error"), "rate_limited"),
    (429, openai("Rate limit reached", "rate_limit_exceeded", "tokens"), "rate_limited"),
    (429, b"", "rate_limited"),
    (402, openai("Insufficient Balance", "invalid_request_error"), "quota"),
    (400, openai("Billing hard limit has been reached", "billing_hard_limit_reached"), "quota"),
    (503, openai("Overloaded", "server_is_overloaded", "service_unavailable_error"), "overloaded"),
    (503, openai("Slow down", "slow_down"), "overloaded"),
    (401, openai("Incorrect API key provided: sk-x", "invalid_api_key"), "auth"),
    (
        403,
        openai("Country, region, or territory not supported", "unsupported_country_region_territory"),
        "auth",
    ),
    (403, openai("Project does not have access to model", "model_not_found"), "auth"),
    (
        404,
        openai("The model `gpt-9` does not exist or you do not have access to it.", "model_not_found"),
        "model_missing",
    ),
    (404, openai("Invalid URL (POST /v1/v1/chat/completions)", None), "unsupported"),
    (
        404,
        openai("This is not a chat model and thus not supported in the v1/chat/completions endpoint.", None),
        "unsupported",
    ),
    (
        400,
        openai(
            "This model's maximum context length is 8192 tokens.", "context_length_exceeded", param="messages"
        ),
        "context_overflow",
    ),
    (
        400,
        openai("Input tokens exceed the configured limit of 272000 tokens.", "context_length_exceeded"),
        "context_overflow",
    ),
    (400, openai("Input tokens exceed the configured limit of 272000 tokens.", None), "context_overflow"),
    (
        400,
        openai("This model's maximum context length is 8192 tokens, however you requested 9000", None),
        "context_overflow",
    ),
    (
        400,
        openai(
            "max_tokens is too large: 5000. This model supports at most 4096 completion tokens.",
            "invalid_value",
        ),
        "context_overflow",
    ),
    (
        400,
        openai("Unsupported parameter: 'max_tokens'", "unsupported_parameter", param="max_tokens"),
        "unsupported",
    ),
    (
        400,
        openai("Unsupported value: 'temperature'", "unsupported_value", param="temperature"),
        "unsupported",
    ),
    (
        400,
        openai("Your request was rejected by our safety system", "content_policy_violation"),
        "content_policy",
    ),
    (400, openai("The response was filtered", "content_filter"), "content_policy"),
    (400, openai("Invalid prompt: your prompt was flagged", "invalid_prompt"), "content_policy"),
    (403, b'{"error":{"code":403,"message":"Input was flagged"}}', "content_policy"),
    (400, openai("Invalid value for 'role'", "invalid_value"), "bad_request"),
    (408, b"", "timeout"),
    (409, b"", "server_error"),
    (500, openai("The server had an error", None, "server_error"), "server_error"),
    (502, b"<html><head><title>502 Bad Gateway</title></head></html>", "server_error"),
    (504, b"", "timeout"),
    (520, b"", "server_error"),
    (413, b"<html><title>413 Request Entity Too Large</title></html>", "context_overflow"),
    (422, b"", "bad_request"),
    (400, b"", "bad_request"),
    (404, b"", "unsupported"),
    (415, b"", "unsupported"),
    (501, b"", "unsupported"),
    (503, b"", "overloaded"),
    (307, b"", "bad_reply"),
]


@pytest.mark.parametrize(("status", "body", "kind"), LLAMACPP + VLLM + OTHERS + OPENAI)
def test_refusals_are_classified(status: int, body: bytes, kind: Fault) -> None:
    error = refuse(status, body)
    assert (error.kind, error.status, error.llm) == (kind, status, "entry")


def test_every_backend_classifies_alike() -> None:
    for status, body, kind in LLAMACPP + VLLM + OTHERS:
        for name in ("vllm", "openai"):
            assert get_backend(name).refusal(status, {}, body, "entry").kind == kind


# --- frames in a stream


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (
            b'{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}',
            "server_error",
        ),
        (
            b'{"error":{"message":"boom","type":"InternalServerError","param":null,"code":500}}',
            "server_error",
        ),
        (b'{"error":{"message":"x","type":"BadRequestError","param":null,"code":400}}', "bad_request"),
        (
            b'{"error":{"message":"The server had an error","type":"server_error","code":null}}',
            "server_error",
        ),
        (b'{"error":{"message":"Overloaded","type":"overloaded_error"}}', "overloaded"),
        (b'{"error":{"message":"x","type":"rate_limit_error","code":"rate_limit_exceeded"}}', "rate_limited"),
        (b'{"error":{"message":"x","type":"insufficient_quota","code":"insufficient_quota"}}', "quota"),
        (b'{"error":{"message":"x","code":"429"}}', "rate_limited"),
        (b'{"error":{"message":"x","code":"context_length_exceeded"}}', "context_overflow"),
        (b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', "loading"),
        (b'{"error":{"message":"x","code":401}}', "auth"),
        (b'{"error":"boom"}', "server_error"),
        (b'{"error":{}}', "server_error"),
        (b'{"error":true}', "server_error"),
        (b'{"object":"error","message":"x","type":"BadRequestError","param":null,"code":400}', "bad_request"),
    ],
)
def test_error_frames_are_classified(frame: bytes, kind: Fault) -> None:
    error = BACKEND.frame_error(decode_chunk(frame).error, "entry")
    assert (error.kind, error.llm) == (kind, "entry")
    assert str(error).startswith("entry: error in the stream")


def test_a_frame_s_status_is_kept() -> None:
    assert BACKEND.frame_error({"message": "x", "code": 503}, "entry").status == 503
    assert BACKEND.frame_error({"message": "x", "code": 1261}, "entry").status is None


# --- what the user reads


def test_the_message_says_what_the_server_said_and_what_to_do() -> None:
    assert str(refuse(*LLAMACPP[4][:2])) == (
        'entry: HTTP 400, "request (12014 tokens) exceeds the available context size (4096 tokens), try increasing '
        'it": shorten the prompt, ask for fewer tokens or use a model with a larger context'
    )


@pytest.mark.parametrize(
    "body", [b'{"detail":"Not Found"}', b"", b"<html><title>404 Not Found</title></html>"]
)
def test_a_missing_route_points_at_the_base_url(body: bytes) -> None:
    assert "`api_base`" in str(refuse(404, body))


def test_a_model_of_another_kind_does_not_point_at_the_base_url() -> None:
    assert "api_base" not in str(refuse(404, openai("This is not a chat model", None)))


def test_a_redirect_names_where_to() -> None:
    error = refuse(301, b"", {"location": "https://host/llm/"})
    assert "https://host/llm/" in str(error)


def test_a_web_page_is_told_by_its_title() -> None:
    assert "502 Bad Gateway" in str(
        refuse(502, b"<html><head><title> 502 Bad Gateway</title></head><body>...")
    )
    assert "a web page" in str(refuse(502, b"<html>"))


def test_a_long_or_ragged_message_becomes_one_short_line() -> None:
    error = refuse(400, openai("a\nb\t\x00c\u2028d " + "x" * 5000, None))
    assert 'HTTP 400, "a b c d xxx' in str(error)
    assert len(str(error)) < 450
    assert str(error).isprintable()


def test_every_problem_in_a_validation_list_is_told() -> None:
    detail = [{"loc": ["body", "a"], "msg": "missing"}, {"loc": None, "msg": "odd"}, {"msg": ["deep"]}, 3]
    assert 'body.a: missing; : odd; : ["deep"]' in str(refuse(422, json.dumps({"detail": detail}).encode()))


def test_the_wait_asked_for_is_told() -> None:
    assert "wait 20 s" in str(refuse(429, b"", {"retry-after": "20"}))
    assert "wait" not in str(refuse(400, b"", {"retry-after": "20"}))


# --- retry-after

DATE = "Sun, 22 Nov 2026 22:13:01 GMT"
EPOCH = 1795385581.0


@pytest.mark.parametrize(
    ("headers", "now", "seconds"),
    [
        ({"retry-after": "20"}, None, 20.0),
        ({"retry-after": " 1.5 "}, None, 1.5),
        ({"retry-after": "0"}, None, 0.0),
        ({"retry-after-ms": "250"}, None, 0.25),
        ({"retry-after-ms": "250", "retry-after": "20"}, None, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "20"}, None, 20.0),
        ({"retry-after": "Sun, 22 Nov 2026 22:14:01 GMT", "date": DATE}, None, 60.0),
        ({"retry-after": "Sun, 22 Nov 2026 22:14:01 GMT", "date": DATE}, EPOCH + 9999, 60.0),
        ({"retry-after": "Sun, 22 Nov 2026 22:14:01 GMT"}, EPOCH, 60.0),
        ({"retry-after": "Sun, 22 Nov 2026 22:14:01 GMT", "date": "nonsense"}, EPOCH, 60.0),
        ({"retry-after": "Sunday, 22-Nov-26 22:14:01 GMT", "date": DATE}, None, 60.0),  # obsolete form
        ({"retry-after": "Sun, 22 Nov 2026 23:14:01 +0100", "date": DATE}, None, 60.0),
        ({"retry-after": "Sun, 22 Nov 2026 22:12:01 GMT", "date": DATE}, None, 0.0),  # over already
        ({"retry-after": "Sun, 22 Nov 2026 22:14:01 GMT"}, None, None),
        ({"retry-after": "-5"}, EPOCH, None),
        ({"retry-after": "nan"}, EPOCH, None),
        ({"retry-after": "inf"}, EPOCH, None),
        ({"retry-after": "1e999"}, EPOCH, None),
        ({"retry-after": ""}, EPOCH, None),
        ({"retry-after": "soon"}, EPOCH, None),
        ({"retry-after": "0\x1f"}, EPOCH, 0.0),
        ({"retry-after": "0\n0"}, EPOCH, None),
        ({}, EPOCH, None),
    ],
)
def test_retry_after(headers: dict[str, str], now: float | None, seconds: float | None) -> None:
    assert refuse(429, b"", headers, now=now).retry_after == seconds


# --- further headers


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "12ms"}, 0.012),
        ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-tokens": "2m59.56s"}, 179.56),
        ({"x-ratelimit-reset-tokens": "7.66"}, 7.66),
        ({"x-ratelimit-reset": "30"}, 30.0),
        ({"x-ratelimit-reset": "1795385641", "date": DATE}, 60.0),
        ({"x-ratelimit-reset": "1795385641000", "date": DATE}, 60.0),  # OpenRouter counts milliseconds
        ({"x-ratelimit-reset": "1795385521000", "date": DATE}, 0.0),
        ({"x-ratelimit-reset": "1795385641"}, 60.0),
        # The limit that is used up counts; without knowing which, the one that ends first.
        ({"x-ratelimit-reset-requests": "20s", "x-ratelimit-reset-tokens": "6m0s"}, 20.0),
        ({"x-ratelimit-reset-requests": "20s", "x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-remaining-requests": "59"}, 360.0),
        ({"x-ratelimit-reset-requests": "20s", "x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-remaining-requests": "0"}, 360.0),
        # What is asked for in so many words goes before.
        ({"retry-after": "5", "x-ratelimit-reset-tokens": "6m0s"}, 5.0),
        ({"retry-after-ms": "5", "x-ratelimit-reset-tokens": "6m0s"}, 0.005),
        ({"retry-after": "soon", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": ""}, None),
        ({"x-ratelimit-reset-tokens": "soon"}, None),
        ({"x-ratelimit-reset-tokens": "5x"}, None),
        ({"x-ratelimit-reset-tokens": "-5s"}, None),
        ({"x-ratelimit-reset-tokens": "1.2.3s"}, None),
        ({"x-ratelimit-reset-tokens": "9" * 400 + "s"}, None),
    ],
)  # fmt: skip
def test_when_a_limit_begins_anew_stands_in_for_retry_after(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert refuse(429, b"", headers, now=EPOCH).retry_after == (
        None if seconds is None else pytest.approx(seconds)
    )


@pytest.mark.parametrize(
    ("told", "status", "kind"),
    [
        ("false", 429, "quota"),  # waiting does not mend it
        ("true", 429, "rate_limited"),
        ("true", 400, "server_error"),  # it passes
        ("False ", 429, "quota"),
        ("false", 400, "bad_request"),
        ("false", 503, "overloaded"),
        ("false", 500, "server_error"),
        ("true", 401, "auth"),
        ("true", 413, "context_overflow"),
        ("perhaps", 429, "rate_limited"),
    ],
)
def test_a_server_that_says_whether_to_ask_again_is_believed(told: str, status: int, kind: Fault) -> None:
    assert refuse(status, b"", {"x-should-retry": told}).kind == kind


# --- secrets


@pytest.mark.parametrize(("status", "body", "kind"), LLAMACPP + VLLM + OTHERS + OPENAI)
def test_no_key_appears_in_any_error(status: int, body: bytes, kind: Fault) -> None:
    """Wherever a server echoes the key it was sent, in whichever envelope."""
    for place in (b'"message":"', b'"detail":"', b'"error":"', b'"msg":"', b"<title>", b'"type":"'):
        echoed = body.replace(place, place + KEY.encode() + b" ") or KEY.encode()
        error = refuse(status, echoed, {"location": f"/?key={KEY}"}, secrets=[KEY])
        for shown in (str(error), repr(error), error.message, str(error.args)):
            assert KEY not in shown


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.",
        f"{KEY}{KEY}",
        "x" * 280 + KEY,  # the cut must not leave half of it
        "x" * 290 + KEY,
        " " * 5000 + KEY,
    ],
)
def test_a_key_is_gone_before_the_message_is_cut(said: str) -> None:
    for error in (
        refuse(401, openai(said, None), secrets=[KEY]),
        refuse(401, said.encode(), secrets=["other-key", KEY]),
        BACKEND.frame_error({"message": said}, "entry", secrets=[KEY]),
        BACKEND.frame_error(said, "entry", secrets=[KEY]),
    ):
        assert KEY[:6] not in str(error)


def test_a_key_is_recognised_in_other_dress() -> None:
    quoted = 'pass"word\\1234'
    assert (
        "word"
        not in str(refuse(401, json.dumps({"sent": quoted}).encode(), secrets=[quoted])).split("API")[0]
    )
    assert KEY not in str(refuse(401, KEY.encode(), secrets=[KEY + "\n"]))
    assert KEY not in str(refuse(401, json.dumps([{"key": KEY}]).encode(), secrets=[KEY]))


def test_the_longer_of_two_keys_goes_whole() -> None:
    assert KEY[-4:] not in str(refuse(401, KEY.encode(), secrets=[KEY[:-4], KEY]))


def test_a_placeholder_key_does_not_garble_the_message() -> None:
    assert '"fix the next text"' in str(refuse(400, b"fix the next text", secrets=["x", ""]))


# --- arbitrary bytes

STATUSES = st.integers(100, 599) | st.sampled_from([200, 301, 400, 401, 404, 422, 429, 500, 503])
NAMES = st.sampled_from(
    ["error", "detail", "message", "type", "code", "param", "error_type", "loc", "msg", "object"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.just(KEY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
BODIES = st.binary(max_size=40) | VALUES.map(lambda v: json.dumps(v).encode())
HEADERS = st.dictionaries(
    st.sampled_from(
        ["retry-after", "retry-after-ms", "date", "location", "x-should-retry"]
        + [
            f"x-ratelimit-{what}{of}"
            for what in ("reset", "remaining")
            for of in ("", "-requests", "-tokens")
        ]
    ),
    st.text(max_size=30)
    | st.from_regex(r"[0-9.hms ]{1,12}")
    | st.sampled_from([DATE, "5", KEY, "Sun, 99 Nov 99999 99:99:99 GMT"]),
)


@settings(deadline=None, max_examples=300)
@given(STATUSES, HEADERS, BODIES, st.lists(st.text(max_size=5), max_size=2))
@example(400, {}, b'{"error":' + b"[" * 100_000, [])
@example(400, {"retry-after": "\udcff"}, b"\xff\xfe", ["\udcff\udcff\udcff\udcff"])
def test_refusal_never_raises(status: int, headers: dict[str, str], body: bytes, secrets: list[str]) -> None:
    error = refuse(status, body, headers, now=EPOCH, secrets=[KEY, *secrets])
    assert KEY not in str(error)
    assert len(str(error)) < 1000
    assert error.retry_after is None or error.retry_after >= 0


@settings(deadline=None, max_examples=200)
@given(VALUES)
def test_frame_error_never_raises(frame: Any) -> None:
    assert KEY not in str(BACKEND.frame_error(frame, "entry", secrets=[KEY]))
