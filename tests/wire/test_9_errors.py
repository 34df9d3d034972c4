"""How each family says that something is wrong, and what follows from it. Rows: docs/wire.md."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from calling import Calls, entry, make_registry

from maxwell.backends import Backend, get_backend
from maxwell.backends.complaints import read_complaint
from maxwell.backends.refusals import retry_after
from maxwell.calls.chat import FINAL, OF_SERVER
from maxwell.calls.entries import Entry
from maxwell.calls.retries import is_worth_waiting, may_ask_again
from maxwell.errors import Fault
from maxwell.health import Health
from maxwell.registry.specs import Registry
from maxwell.testing.fixtures import FakeServers
from maxwell.types import ServedModel

OPENAI, LLAMACPP, VLLM = (get_backend(name) for name in ("openai", "llamacpp", "vllm"))
OLLAMA = get_backend("openai", family="ollama")
SGLANG = get_backend("vllm", family="sglang")
TGI = get_backend("openai", family="tgi")
LLAMA_CPP_PYTHON = get_backend("llamacpp", family="llama-cpp-python")


def kind(
    backend: Backend, status: int, body: bytes | dict[str, Any], headers: dict[str, str] | None = None
) -> Fault:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return backend.refusal(status, headers or {}, raw, "one").kind


def of(message: str, type: str | None = None, code: str | int | None = None, **more: Any) -> dict[str, Any]:
    """The usual envelope."""
    return {"error": {"message": message, "type": type, "code": code, **more}}


# --- envelopes


def test_openai_s_and_litellm_s_code_is_a_text() -> None:
    found = read_complaint(
        msgspec.json.encode(of("no", "invalid_request_error", "model_not_found", param="model"))
    )
    assert (found.message, found.code, found.param) == ("no", "model_not_found", "model")
    assert kind(OPENAI, 400, of("no", None, "429")) == "bad_request"  # the status counts


def test_llamacpp_s_and_vllm_s_code_is_a_number() -> None:
    found = read_complaint(msgspec.json.encode(of("no", "invalid_request_error", 400)))
    assert (found.message, found.type, found.code) == ("no", "invalid_request_error", "400")


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"no such thing"}',
        b'{"error":"no such thing","error_type":"generation"}',
    ],
    ids=["vLLM, SGLang and Ollama", "TGI, with a type"],
)
def test_an_error_may_be_a_text(body: bytes) -> None:
    assert read_complaint(body).message == "no such thing"


def test_fastapi_and_llama_cpp_python_say_detail() -> None:
    assert read_complaint(b'{"detail":"Not Found"}').message == "Not Found"
    listed = b'{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required"}]}'
    assert "messages: Field required" in read_complaint(listed).message


def test_sglang_s_error_is_flat() -> None:
    found = read_complaint(
        b'{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}'
    )
    assert (found.message, found.code) == ("no", "400")


def test_anthropic_s_error_says_its_type_twice() -> None:
    found = read_complaint(b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}')
    assert (found.message, found.type) == ("Overloaded", "overloaded_error")


# --- overflow of the context


@pytest.mark.parametrize(
    "body",
    [
        of("too long", "invalid_request_error", "context_length_exceeded", param="messages"),
        of("Input tokens exceed the configured limit of 272000 tokens.", "invalid_request_error"),
    ],
    ids=["code", "wording of gpt-5"],
)
def test_openai_s_overflow(body: dict[str, Any]) -> None:
    assert kind(OPENAI, 400, body) == "context_overflow"


def test_llamacpp_s_overflow_says_both_numbers() -> None:
    said = "the request exceeds the available context size, try increasing it"
    body = of(said, "exceed_context_size_error", 400, n_prompt_tokens=5000, n_ctx=4096)
    assert kind(LLAMACPP, 400, body) == "context_overflow"


def test_llamacpp_s_full_cache_is_a_500_that_passes() -> None:
    fault = kind(LLAMACPP, 500, of("Context size has been exceeded.", "server_error", 500))
    assert fault == "server_error"
    assert may_ask_again(fault, 1)


@pytest.mark.parametrize("param", ["input_tokens", "input_text"])
def test_vllm_s_overflow(param: str) -> None:
    said = "This model's maximum context length is 2048 tokens. However, your prompt has 3000 tokens"
    assert kind(VLLM, 400, of(said, "BadRequestError", 400, param=param)) == "context_overflow"


def test_vllm_refuses_more_completion_than_its_context() -> None:
    said = "max_tokens=9000 cannot be greater than max_model_len=2048. Please request fewer output tokens."
    assert kind(VLLM, 400, of(said, "BadRequestError", 400)) == "context_overflow"


def test_vllm_refuses_a_prompt_of_exactly_its_context() -> None:
    said = "max_tokens must be at least 1, got 0."
    assert kind(VLLM, 400, of(said, "BadRequestError", 400)) == "context_overflow"


def test_sglang_s_overflow_may_be_of_input_and_completion_together() -> None:
    for said in (
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "Requested token count exceeds the model's maximum context length of 8192 tokens.",
    ):
        body = {"object": "error", "message": said, "type": "BadRequestError", "code": 400}
        assert kind(SGLANG, 400, body) == "context_overflow"


def test_llama_cpp_python_s_overflow() -> None:
    said = "This model's maximum context length is 2048 tokens, however you requested 3000 tokens"
    body = of(said, "invalid_request_error", "context_length_exceeded", param="messages")
    assert kind(LLAMA_CPP_PYTHON, 400, body) == "context_overflow"


def test_tgi_s_overflow_is_a_422() -> None:
    said = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 3000 `inputs`"
    assert kind(TGI, 422, {"error": said, "error_type": "validation"}) == "context_overflow"


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm"])
def test_large_caps_are_clamped_in_silence_so_none_beyond_the_context_is_sent(
    fake_server: FakeServers, tmp_path: Any, dialect: Any
) -> None:
    server = fake_server(dialect, context=256, token_bytes=4)
    calls = Calls(tmp_path, entry(server, "one", capabilities={"max_tokens": 200, "max_context": 256}))
    calls.ask("generate", "word" * 100)
    (chat,) = server.requests_to("/v1/chat/completions")
    assert chat.body["max_tokens"] <= 256 - 100


def test_ollama_drops_the_oldest_messages_so_what_it_has_loaded_is_the_limit() -> None:
    fields = {"name": "one", "api_base": "http://box", "model": "m", "backend": "openai"}
    can = {"max_tokens": 64, "max_context": 131072, "speed_tokens_per_sec": 30}
    spec = make_registry(fields | {"capabilities": can, "default_temperature": 0}).llms[0]
    health = Health(state="up", at=0.0, models=(ServedModel("m:latest", context=4096),), family="ollama")
    assert Entry(spec, 0, Registry(), {}).context(health) == 4096


# --- OpenAI's words


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "slow_down"])
def test_openai_s_rate_limits_pass(code: str) -> None:
    assert kind(OPENAI, 429, of("Slow down", "rate_limit_error", code)) == "rate_limited"


@pytest.mark.parametrize(
    "code",
    [
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "insufficient_quota",
    ],
)
def test_openai_s_spent_credit_does_not_pass(code: str) -> None:
    for type in ("insufficient_quota", "rate_limit_error"):
        fault = kind(OPENAI, 429, of("You exceeded your current quota", type, code))
        assert fault == "quota"
        assert not may_ask_again(fault, 1)


def test_openai_s_code_is_read_before_its_type() -> None:
    assert kind(OPENAI, 429, of("Slow", "insufficient_quota", "rate_limit_exceeded")) == "rate_limited"
    assert kind(OPENAI, 429, of("Spent", "insufficient_quota")) == "quota"


@pytest.mark.parametrize("code", ["server_is_overloaded", "slow_down"])
def test_openai_s_503_is_an_overload(code: str) -> None:
    assert kind(OPENAI, 503, of("Overloaded", "service_unavailable_error", code)) == "overloaded"


def test_openai_s_401_and_403_are_a_matter_of_the_key() -> None:
    assert kind(OPENAI, 401, of("Incorrect API key provided", None, "invalid_api_key")) == "auth"
    for said in (
        "Country, region, or territory not supported",
        "Project `p` does not have access to model `m`",
    ):
        assert kind(OPENAI, 403, of(said, None, "unsupported_country_region_territory")) == "auth"


def test_openai_s_404_is_a_model_that_is_not_there_for_this_key() -> None:
    said = "The model `m` does not exist or you do not have access to it."
    assert kind(OPENAI, 404, of(said, "invalid_request_error", "model_not_found")) == "model_missing"


@pytest.mark.parametrize("code", ["unsupported_parameter", "unsupported_value"])
def test_openai_s_unsupported_parameters_are_mended_or_told(code: str) -> None:
    body = of("Unsupported: 'temperature' does not support 0.2", None, code, param="temperature")
    assert kind(OPENAI, 400, body) == "unsupported"
    assert "temperature" in OPENAI.mends


# --- headers


@pytest.mark.parametrize(
    ("value", "seconds"), [("20", 20.0), ("0.5", 0.5), ("Thu, 15 Jan 2026 12:00:30 GMT", 30.0)]
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    headers = {"retry-after": value, "date": "Thu, 15 Jan 2026 12:00:00 GMT"}
    assert retry_after(headers) == seconds


def test_retry_after_ms_is_finer_and_goes_before() -> None:
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25


@pytest.mark.parametrize(("value", "seconds"), [("6m0s", 360.0), ("12ms", 0.012), ("1h2m3s", 3723.0)])
def test_the_reset_of_a_used_up_limit_stands_in_for_retry_after(value: str, seconds: float) -> None:
    headers = {
        "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": value,
        "x-ratelimit-remaining-tokens": "9000", "x-ratelimit-reset-tokens": "1s",
    }  # fmt: skip
    assert retry_after(headers) == pytest.approx(seconds)


def test_x_should_retry_is_believed() -> None:
    rate = of("Slow down", "rate_limit_error", "rate_limit_exceeded")
    assert kind(OPENAI, 429, rate, {"x-should-retry": "false"}) == "quota"
    assert kind(OPENAI, 400, of("Try again"), {"x-should-retry": "true"}) == "server_error"


def test_a_long_wait_is_told_and_nobody_waits_for_it() -> None:
    assert retry_after({"retry-after": "600"}) == 600.0
    assert not is_worth_waiting("rate_limited", 600.0, 0.5, left=9000.0)
    assert is_worth_waiting("rate_limited", 20.0, 0.5, left=21.0)
    assert not is_worth_waiting("rate_limited", 20.0, 0.5, left=19.0)


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 529])
def test_what_openai_s_own_library_asks_again_is_taken_for_a_failure_of_the_server(status: int) -> None:
    assert kind(OPENAI, status, b"") not in FINAL


# --- others' words


def test_anthropic_s_529_is_an_overload() -> None:
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert kind(OPENAI, 529, body) == kind(OPENAI, 529, b"") == "overloaded"


def test_anthropic_s_413_is_an_overflow() -> None:
    body = {"type": "error", "error": {"type": "request_too_large", "message": "Request exceeds the limit"}}
    assert kind(OPENAI, 413, body) == "context_overflow"


def test_llamacpp_s_501_is_a_feature_that_is_off() -> None:
    said = "This server does not support metrics endpoint. Start it with `--metrics`"
    assert kind(LLAMACPP, 501, of(said, "not_supported_error", 501)) == "unsupported"


def test_llamacpp_s_500_may_be_json_that_it_cannot_read() -> None:
    said = "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error"
    fault = kind(LLAMACPP, 500, of(said, "server_error", 500))
    assert (fault, fault in FINAL) == ("bad_request", True)


def test_llamacpp_is_never_asked_to_fail_where_no_slot_is_free() -> None:
    load = LLAMACPP.probes("http://box", None).load
    assert load is not None
    assert load.url == "http://box/slots"


def test_vllm_s_503_is_a_full_queue_or_passes_anyway() -> None:
    for type in ("Service Unavailable", "ServiceUnavailableError"):
        fault = kind(VLLM, 503, of("The server is overloaded", type, 503))
        assert fault == "overloaded"
        assert may_ask_again(fault, 1)


def test_vllm_s_501_is_a_model_without_that_api() -> None:
    said = "The model does not support Chat Completions API"
    assert kind(VLLM, 501, of(said, "NotImplementedError", 501)) == "unsupported"


def test_vllm_s_422_is_a_picture_that_is_none() -> None:
    assert kind(VLLM, 422, of("Failed to load image", "UnprocessableEntityError", 422)) == "bad_request"


def test_sglang_s_503_is_a_full_queue() -> None:
    body = {
        "object": "error",
        "message": "The request queue is full.",
        "type": "ServiceUnavailable",
        "code": 503,
    }
    assert kind(SGLANG, 503, body) == "overloaded"


def test_ollama_s_503_is_a_full_queue() -> None:
    said = "server busy, please try again.  maximum pending requests exceeded"
    assert kind(OLLAMA, 503, {"error": said}) == "overloaded"


def test_ollama_s_499_was_cancelled() -> None:
    assert kind(OLLAMA, 499, {"error": "request canceled"}) == "server_error"


def test_ollama_s_404_is_a_model_that_is_not_pulled() -> None:
    body = of('model "m" not found, try pulling it first', "api_error")
    assert kind(OLLAMA, 404, body) == "model_missing"


def test_tgi_s_429_is_an_overload_and_not_a_limit_of_the_key() -> None:
    assert kind(TGI, 429, {"error": "Model is overloaded", "error_type": "overloaded"}) == "overloaded"


def test_tgi_s_424_is_a_failed_generation() -> None:
    assert kind(TGI, 424, {"error": "Request failed", "error_type": "generation"}) == "server_error"


def test_litellm_without_a_deployment_says_429_and_when() -> None:
    body = of("No deployments available for selected model, Try again in 5 seconds.", "None", "429")
    error = OPENAI.refusal(429, {"retry-after": "5"}, msgspec.json.encode(body), "one")
    assert (error.kind, error.retry_after) == ("rate_limited", 5.0)


@pytest.mark.parametrize("status", [400, 429])
def test_litellm_s_spent_budget_does_not_pass(status: int) -> None:
    body = of("Budget has been exceeded! Current cost: 1.0, Max budget: 0.5", "budget_exceeded", str(status))
    assert kind(OPENAI, status, body) == "quota"


# --- what follows


@pytest.mark.parametrize("fault", ["refused", "loading", "overloaded", "rate_limited"])
def test_what_passes_is_asked_again_and_goes_elsewhere_first(fault: Fault) -> None:
    assert fault not in FINAL
    assert may_ask_again(fault, 2)


def test_a_timeout_goes_elsewhere_and_is_not_waited_for_twice() -> None:
    assert "timeout" not in FINAL
    assert not may_ask_again("timeout", 1)


@pytest.mark.parametrize("fault", ["quota", "auth"])
def test_quota_and_keys_are_never_asked_again_and_go_elsewhere(fault: Fault) -> None:
    assert fault not in FINAL
    assert not may_ask_again(fault, 1)


def test_a_failure_of_the_server_is_asked_again_once() -> None:
    for status in (500, 502):
        assert kind(OPENAI, status, b"") == "server_error"
    assert may_ask_again("server_error", 1)
    assert not may_ask_again("server_error", 2)
    assert "server_error" in OF_SERVER


@pytest.mark.parametrize("fault", ["unsupported", "context_overflow", "model_missing"])
def test_what_another_one_may_be_able_to_do_goes_elsewhere_only(fault: Fault) -> None:
    assert fault not in FINAL
    assert fault not in OF_SERVER  # which may still answer others
    assert not may_ask_again(fault, 1)


def test_a_wrong_request_goes_nowhere() -> None:
    assert kind(OPENAI, 400, of("Invalid value for 'role'")) in FINAL
    assert kind(VLLM, 422, of("Unprocessable")) in FINAL
    assert not may_ask_again("bad_request", 1)
