"""What each dialect of the fake server says, against recordings of the real servers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from fake_http import CHAT, HELLO, REPLY, STREAM, call, events, shape, text

from maxwell.testing import FakeServer

# llama.cpp, against the recordings


def test_llamacpp_is_healthy_in_the_recorded_words() -> None:
    with FakeServer("llamacpp") as server:
        for path in ("/health", "/v1/health"):
            answer = call(server, path)
            assert (answer.status, answer.raw) == (200, b'{"status":"ok"}')
            assert answer.headers["server"] == "llama.cpp"
            assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_llamacpp_says_loading_on_every_path_even_before_the_key() -> None:
    recorded = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
    with FakeServer("llamacpp", api_key="sekret") as server:
        server.set_state("loading")
        for path, body in (("/health", None), ("/v1/models", None), ("/props", None), (CHAT, HELLO)):
            answer = call(server, path, body)
            assert (answer.status, answer.raw) == (503, recorded)
            assert answer.headers["connection"] == "close"
        server.set_state("up")
        assert call(server, "/health").status == 200


def test_llamacpp_models_have_the_recorded_shape() -> None:
    recorded = json.loads(
        '{"models":[{"name":"models/tiny-chat.gguf","model":"models/tiny-chat.gguf","modified_at":"","size":'
        '"","digest":"","type":"model","description":"","tags":[""],"capabilities":["completion"],"parameters":'
        '"","details":{"parent_model":"","format":"gguf","family":"","families":[""],"parameter_size":"",'
        '"quantization_level":""}}],"object":"list","data":[{"id":"models/tiny-chat.gguf",'
        '"aliases":["models/tiny-chat.gguf"],"tags":[],"object":"model",'
        '"architecture":{"input_modalities":["text"],"output_modalities":["text"]},"created":1795386098,'
        '"owned_by":"llamacpp","meta":{"vocab_type":2,"n_vocab":803,"n_ctx":4096,"n_ctx_train":8192,"n_embd":'
        '64,"n_params":176832,"size":707328,"ftype":"all F32"}}]}'
    )
    with FakeServer("llamacpp", model="models/tiny-chat.gguf", context=4096) as server:
        made = call(server, "/v1/models").json
        assert shape(made) == shape(recorded)
        assert made["data"][0]["id"] == "models/tiny-chat.gguf"
        assert made["data"][0]["meta"]["n_ctx"] == 4096
        assert call(server, "/models").json == made


def test_llamacpp_goes_by_its_alias_and_keeps_its_path() -> None:
    path = "C:\\models\\qwen.gguf"
    with FakeServer("llamacpp", model=path, aliases=["qwen", "coder"]) as server:
        card = call(server, "/v1/models").json["data"][0]
        assert (card["id"], card["aliases"]) == ("qwen", ["qwen", "coder"])
        assert call(server, "/props").json["model_path"] == path
        assert call(server, CHAT, HELLO).json["model"] == "qwen"


def test_llamacpp_slots_and_props_tell_slots_and_context() -> None:
    with FakeServer("llamacpp", slots=2, context=512, vision=True) as server:
        slots = call(server, "/slots").json
        assert slots[1] == {"id": 1, "n_ctx": 512, "speculative": False, "is_processing": False}
        assert len(slots) == 2
        props = call(server, "/props").json
        assert props["default_generation_settings"]["n_ctx"] == 512
        assert (props["total_slots"], props["is_sleeping"]) == (2, False)
        assert props["modalities"] == {"vision": True, "video": False, "audio": False}


def test_llamacpp_chat_has_the_recorded_shape_and_honest_usage() -> None:
    recorded = json.loads(
        '{"choices":[{"finish_reason":"length","index":0,"message":{"role":"assistant","content":" qu"}}],'
        '"created":1795386098,"model":"tiny","system_fingerprint":"b0-unknown","object":"chat.completion",'
        '"usage":{"completion_tokens":12,"prompt_tokens":18,"total_tokens":30,'
        '"prompt_tokens_details":{"cached_tokens":0}},"id":"chatcmpl-zsvyCBxUxbZf0ngtddGsYFveIc2v5Zxr",'
        '"timings":{"cache_n":0,"prompt_n":18,"prompt_ms":0.671,"prompt_per_token_ms":0.03,'
        '"prompt_per_second":26825.6,"predicted_n":12,"predicted_ms":0.9,"predicted_per_token_ms":0.08,'
        '"predicted_per_second":11917.6}}'
    )
    with FakeServer("llamacpp", cached_tokens=5) as server:
        made = call(server, CHAT, HELLO | {"model": "no-such-model"}).json
        assert shape(made) == shape(recorded)
        assert made["model"] == "tiny"
        prompt = call(server, "/apply-template", HELLO).json["prompt"]
        assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        count = len(call(server, "/tokenize", {"content": prompt}).json["tokens"])
        assert count == math.ceil(len(prompt) / 4)
        assert made["usage"]["prompt_tokens"] == count
        assert made["usage"]["completion_tokens"] == len(REPLY) // 4
        assert made["timings"]["cache_n"] == made["usage"]["prompt_tokens_details"]["cached_tokens"] == 5
        counted = call(server, CHAT + "/input_tokens", HELLO).json
        assert counted == {"input_tokens": count, "object": "response.input_tokens"}


def test_llamacpp_stream_has_the_recorded_chunks() -> None:
    with FakeServer("llamacpp", reasoning="hm") as server:
        answer = call(server, CHAT, STREAM)
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.headers["x-accel-buffering"] == "no"
        chunks = events(answer.raw)
        assert chunks[0]["choices"] == [
            {"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}
        ]
        assert list(chunks[0]) == ["choices", "created", "id", "model", "system_fingerprint", "object"]
        assert chunks[1]["choices"][0]["delta"] == {"reasoning_content": "hm"}
        assert chunks[2]["choices"][0]["delta"] == {"content": "Hell"}
        assert chunks[-3]["choices"] == [{"finish_reason": "stop", "index": 0, "delta": {}}]
        assert chunks[-2]["choices"] == []
        assert list(chunks[-2])[-2:] == ["usage", "timings"]
        assert chunks[-1] == "[DONE]"
        assert text(chunks) == REPLY


def test_llamacpp_sends_timings_but_no_usage_when_usage_is_not_asked_for() -> None:
    with FakeServer("llamacpp") as server:
        chunks = events(call(server, CHAT, HELLO | {"stream": True}).raw)
        assert not any("usage" in c for c in chunks if isinstance(c, dict))
        assert chunks[-2]["timings"]["predicted_n"] == 5


def test_llamacpp_demands_its_key_everywhere_but_on_health() -> None:
    recorded = b'{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}'
    with FakeServer("llamacpp", api_key="sekret") as server:
        assert call(server, "/health").status == 200
        for path in ("/v1/models", "/props", "/slots", "/metrics", "/nosuch"):
            answer = call(server, path)
            assert (answer.status, answer.raw) == (401, recorded)
        for headers in (
            {"Authorization": "Bearer sekret"},
            {"Authorization": "sekret"},
            {"X_Api_Key": "sekret"},
        ):
            assert call(server, "/v1/models", **headers).status == 200
        assert call(server, CHAT, HELLO, Authorization="Bearer wrong").status == 401


@pytest.mark.parametrize("stream", [False, True])
def test_llamacpp_refuses_a_prompt_longer_than_a_slot(stream: bool) -> None:
    body = HELLO | {"messages": [{"role": "user", "content": "zqx " * 200}], "stream": stream}
    with FakeServer("llamacpp", context=128) as server:
        answer = call(server, CHAT, body)
        count = call(server, CHAT + "/input_tokens", body).json["input_tokens"]
        assert answer.status == 400
        assert answer.json == {
            "error": {
                "code": 400,
                "message": f"request ({count} tokens) exceeds the available context size (128 tokens), "
                "try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": count,
                "n_ctx": 128,
            }
        }


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "attempting to parse an empty input"),
        (b'{"messages": [', 400, "parse error at line 1, column 15"),
        ({"max_tokens": 3}, 400, "'messages' is required"),
        ([], 400, "'messages' is required"),
        ({"messages": "hi"}, 400, "Expected 'messages' to be an array"),
        ({"messages": [{"role": "user"}]}, 400, "All non-assistant messages must contain 'content'"),
        (HELLO | {"temperature": "hot"}, 400, "type must be number, but is string"),
        (HELLO | {"grammar": "garbage ((("}, 400, "Failed to initialize samplers: failed to parse grammar"),
        (HELLO | {"grammar": "root ::= undefined_rule"}, 400, "failed to parse grammar"),
        (HELLO | {"response_format": {"type": "yaml"}}, 400, "response_format type must be one of"),
    ],
)
def test_llamacpp_names_what_is_wrong_with_a_request(body: Any, status: int, message: str) -> None:
    with FakeServer("llamacpp") as server:
        answer = call(server, CHAT, body)
        assert answer.status == status
        assert message in answer.json["error"]["message"]


def test_llamacpp_tokenizes_and_back() -> None:
    words = "Grüße, 世界! 🙂 plain"
    with FakeServer("llamacpp", token_bytes=3) as server:
        ids = call(server, "/tokenize", {"content": words}).json["tokens"]
        pieces = call(server, "/tokenize", {"content": words, "with_pieces": True}).json["tokens"]
        assert [p["id"] for p in pieces] == ids
        assert "".join(p["piece"] for p in pieces) == words
        assert call(server, "/detokenize", {"tokens": ids}).json == {"content": words}
        assert call(server, "/tokenize", {}).json == {"tokens": []}


def test_llamacpp_sleeps_until_a_chat_wakes_it() -> None:
    with FakeServer("llamacpp") as server:
        server.set_state("asleep")
        assert call(server, "/health").status == 200
        assert call(server, "/props").json["is_sleeping"] is True
        assert call(server, CHAT, HELLO).status == 200
        assert call(server, "/props").json["is_sleeping"] is False
        assert server.state == "up"


# vLLM, against the recordings


def test_vllm_is_healthy_with_an_empty_body_and_has_a_version() -> None:
    with FakeServer("vllm") as server:
        answer = call(server, "/health")
        assert (answer.status, answer.raw, answer.headers["server"]) == (200, b"", "uvicorn")
        assert "content-type" not in answer.headers
        assert call(server, "/version").json == {"version": "0.32.0"}
        assert (call(server, "/props").status, call(server, "/props").json) == (404, {"detail": "Not Found"})
        assert call(server, CHAT).status == 405


def test_vllm_models_have_the_recorded_shape() -> None:
    recorded = json.loads(
        '{"object":"list","data":[{"id":"tiny-vllm","object":"model","created":1795385582,"owned_by":"vllm",'
        '"root":"models/hf-tiny-chat","parent":null,"max_model_len":2048,'
        '"permission":[{"id":"modelperm-8d",'
        '"object":"model_permission","created":1795385582,"allow_create_engine":false,"allow_sampling":true,'
        '"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,'
        '"organization":"*","group":null,"is_blocking":false}]}]}'
    )
    with FakeServer("vllm", model="tiny-vllm", context=2048) as server:
        made = call(server, "/v1/models").json
        assert shape(made) == shape(recorded)
        assert made["data"][0]["max_model_len"] == 2048


def test_vllm_chat_has_the_recorded_shape() -> None:
    recorded = json.loads(
        '{"id":"chatcmpl-98dd4decd98a669e","object":"chat.completion","created":1795385582,"model":'
        '"tiny-vllm","choices":[{"index":0,"message":{"role":"assistant","content":" on","refusal":null,'
        '"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length",'
        '"stop_reason":null,"token_ids":null,"routed_experts":null}],"service_tier":null,'
        '"system_fingerprint":"vllm-0.32.0-c5fa6d6e","usage":{"prompt_tokens":19,"total_tokens":27,'
        '"completion_tokens":8,"prompt_tokens_details":null,"completion_tokens_details":null},'
        '"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,'
        '"ec_transfer_params":null,"metrics":null}'
    )
    with FakeServer("vllm") as server:
        assert shape(call(server, CHAT, HELLO).json) == shape(recorded)


def test_vllm_stream_finishes_on_its_last_token() -> None:
    with FakeServer("vllm", reasoning="hm") as server:
        chunks = events(call(server, CHAT, STREAM | {"max_tokens": 3}).raw)
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert chunks[0]["prompt_token_ids"] is None
        assert chunks[1]["choices"][0]["delta"] == {"reasoning": "hm"}
        last = chunks[-3]["choices"][0]
        assert last["delta"] == {"content": "o th"}
        assert (last["finish_reason"], last["stop_reason"]) == ("length", None)
        assert chunks[-2]["choices"] == []
        assert chunks[-2]["usage"]["completion_tokens"] == 3
        assert chunks[-2]["system_fingerprint"] == "vllm-0.32.0-c5fa6d6e"
        assert chunks[-1] == "[DONE]"


def test_vllm_knows_its_names_only_but_needs_none() -> None:
    with FakeServer("vllm", aliases=["other"]) as server:
        answer = call(server, CHAT, HELLO | {"model": "nope"})
        assert answer.status == 404
        assert answer.json["error"] == {
            "message": "The model `nope` does not exist. Valid aliases: tiny, other.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
        assert call(server, CHAT, HELLO | {"model": "other"}).status == 200
        assert call(server, CHAT, {"messages": HELLO["messages"]}).status == 200


def test_vllm_demands_its_key_under_v1_only() -> None:
    with FakeServer("vllm", api_key="sekret") as server:
        for path in ("/health", "/version", "/metrics"):
            assert call(server, path).status == 200
        answer = call(server, "/v1/models")
        assert (answer.status, answer.raw) == (401, b'{"error":"Unauthorized"}')
        assert call(server, "/v1/models", Authorization="Bearer sekret").status == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"),
        (
            {"max_tokens": 5000},
            "max_tokens=5000 cannot be greater than max_model_len=256. Please request fewer output tokens. "
            "(parameter=max_tokens, value=5000)",
        ),
        (
            {"messages": []},
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        ),
        (
            {"messages": [{"role": "user", "content": "zqx " * 400}]},
            "This model's maximum context length is 256 tokens. However, your prompt contains at least 257 "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
            "of the input prompt. (parameter=input_tokens, value=257)",
        ),
        ({"structured_outputs": {"grammar": "garbage ((("}}, "Expected ::= at line 1"),
        ({"stream_options": {"include_usage": True}}, "Stream options can only be defined when"),
    ],
)
def test_vllm_names_what_is_wrong_with_a_request(change: dict[str, Any], message: str) -> None:
    with FakeServer("vllm", context=256) as server:
        answer = call(server, CHAT, HELLO | change)
        assert answer.status == 400
        assert message in answer.json["error"]["message"]
        assert answer.json["error"]["code"] == 400


def test_vllm_tokenizes_prompts_and_messages() -> None:
    with FakeServer("vllm", context=256) as server:
        prompt = call(server, "/tokenize", {"model": "tiny", "prompt": "Hello the world"}).json
        assert list(prompt) == ["count", "max_model_len", "tokens", "token_strs"]
        assert (prompt["count"], prompt["max_model_len"]) == (4, 256)
        messages = call(server, "/tokenize", HELLO).json
        assert messages["count"] == call(server, CHAT, HELLO).json["usage"]["prompt_tokens"]
        back = call(server, "/detokenize", {"model": "tiny", "tokens": prompt["tokens"]}).json
        assert back == {"prompt": "Hello the world"}


# OpenAI


def test_openai_has_no_health_path() -> None:
    with FakeServer("openai", api_key="sk-sekret-key-0000") as server:
        assert call(server, "/health").status == 404
        answer = call(server, "/v1/models", Authorization="Bearer sk-wrong-key-9999")
        assert answer.status == 401
        assert answer.json["error"]["code"] == "invalid_api_key"
        assert "sk-wrong-key-9999" not in answer.raw.decode()
        assert call(server, "/v1/models").json["error"]["code"] is None
        models = call(server, "/v1/models", Authorization="Bearer sk-sekret-key-0000").json
        assert [m["id"] for m in models["data"]] == ["tiny"]
        assert set(models["data"][0]) == {"id", "created", "object", "owned_by", "shutdown_date"}


def test_openai_reasoning_models_refuse_max_tokens_and_temperature() -> None:
    with FakeServer("openai", model="gpt-5-mini", aliases=["o3", "gpt-4o"]) as server:
        for model in ("gpt-5-mini", "o3"):
            ask = HELLO | {"model": model}
            answer = call(server, CHAT, ask | {"max_tokens": 5})
            assert answer.status == 400
            assert answer.json["error"]["code"] == "unsupported_parameter"
            assert answer.json["error"]["param"] == "max_tokens"
            answer = call(server, CHAT, ask | {"temperature": 0.3})
            assert answer.json["error"]["code"] == "unsupported_value"
            assert call(server, CHAT, ask | {"max_completion_tokens": 5, "temperature": 1}).status == 200
        assert (
            call(server, CHAT, HELLO | {"model": "gpt-4o", "max_tokens": 5, "temperature": 0.3}).status == 200
        )


def test_openai_refuses_what_it_does_not_know() -> None:
    with FakeServer("openai", context=128) as server:
        unknown = call(server, CHAT, HELLO | {"grammar": 'root ::= "x"'})
        assert unknown.status == 400
        assert "grammar" in unknown.json["error"]["message"]
        missing = call(server, CHAT, HELLO | {"model": "nope"})
        assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")
        long = call(server, CHAT, HELLO | {"messages": [{"role": "user", "content": "zqx " * 200}]})
        assert (long.status, long.json["error"]["code"]) == (400, "context_length_exceeded")
        assert long.json["error"]["param"] == "messages"


def test_openai_counts_reasoning_and_hides_it() -> None:
    with FakeServer("openai", reasoning="think hard ") as server:
        chunks = events(call(server, CHAT, STREAM).raw)
        assert text(chunks) == REPLY
        assert all(c["usage"] is None for c in chunks[:-2])
        usage = chunks[-2]["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 3
        assert usage["completion_tokens"] == 8
        assert server.usage.completion_tokens == 8


def test_openai_holds_strict_schemas_to_its_rules() -> None:
    open_object = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    closed = open_object | {"additionalProperties": False}
    with FakeServer("openai", constrained_reply='{"a":"x"}') as server:
        for schema, status in ((open_object, 400), (closed, 200), (closed | {"required": []}, 400)):
            wanted = {"name": "x", "strict": True, "schema": schema}
            body = HELLO | {"response_format": {"type": "json_schema", "json_schema": wanted}}
            assert call(server, CHAT, body).status == status
