"""How servers say that they are well, what they serve and how much of it at once. Rows: docs/wire.md."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from calling import CHAT, Calls, count, entry, make_registry

from maxwell.backends import Backend, get_backend
from maxwell.backends.listing import (
    find_served,
    read_health,
    read_info_props,
    read_loaded,
    read_metrics,
    read_models,
    read_props,
    read_slots,
)
from maxwell.calls.entries import Entry
from maxwell.errors import Fault
from maxwell.health import Health
from maxwell.registry.specs import Registry
from maxwell.testing import faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import ServedModel

BASE = "http://box:8080"
CAN = {"max_tokens": 64, "max_context": 9999, "speed_tokens_per_sec": 30}
LOADING = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
EVERY = [
    get_backend("openai", family=family)
    for family in ("", "llamacpp", "vllm", "ollama", "sglang", "tgi", "tei", "infinity", "llama-cpp-python")
]


def listed(*cards: dict[str, Any]) -> tuple[ServedModel, ...]:
    return read_models(200, {}, msgspec.json.encode({"data": cards})).models


def an_entry(model: str = "m", backend: str = "openai") -> Entry:
    declared = {"name": "one", "api_base": BASE, "model": model, "backend": backend}
    spec = make_registry(declared | {"capabilities": CAN, "default_temperature": 0}).llms[0]
    return Entry(spec, 0, Registry(), {})


def up(*served: ServedModel, **fields: Any) -> Health:
    return Health(state="up", at=0.0, models=served, **fields)


def paths(backend: Backend) -> dict[str, str]:
    """What is asked of such a server, by what for."""
    probes = msgspec.structs.asdict(backend.probes(BASE, "key"))
    return {name: r.url.removeprefix(BASE) for name, r in probes.items() if hasattr(r, "url")}


# --- up and not up


def test_llamacpp_that_is_well_says_ok() -> None:
    assert read_health(200, {"server": "llama.cpp"}, b'{"status":"ok"}') == "up"


def test_llamacpp_that_loads_says_503_on_every_route_before_the_key() -> None:
    assert read_health(503, {}, LOADING) == read_models(503, {}, LOADING).state == "loading"
    assert get_backend("llamacpp").refusal(503, {}, LOADING, "one").kind == "loading"


def test_llamacpp_asleep_says_ok_and_props_tell() -> None:
    assert read_health(200, {}, b'{"status":"ok"}') == "up"
    assert read_props(200, b'{"is_sleeping":true}').sleeping
    assert paths(get_backend("llamacpp"))["props"] == "/props"


def test_llamacpp_router_says_ok_with_nothing_loaded() -> None:
    card = {"id": "a", "owned_by": "llamacpp", "status": {"value": "unloaded"}}
    assert [model.loaded for model in listed(card)] == [False]
    assert an_entry("a").blocked_by(up(*listed(card), family="llamacpp")) == ("", "")


def test_vllm_that_is_well_says_nothing_with_a_200() -> None:
    assert read_health(200, {"server": "uvicorn"}, b"") == "up"


def test_vllm_whose_engine_died_says_503_without_a_word() -> None:
    assert read_health(503, {}, b"") == "down"


def test_vllm_that_loads_refuses_connections(fake_server: FakeServers, tmp_path: Any) -> None:
    server = fake_server("vllm")
    server.stop()
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        assert pool.health()[0].state == "down"


def test_vllm_that_scales_says_503_with_a_text() -> None:
    body = b'{"error":"The model is currently scaling. Please try again later."}'
    assert read_health(503, {}, body) == "loading"
    assert get_backend("vllm").refusal(503, {}, body, "one").kind == "loading"


def test_openai_has_no_health_and_lists_models_instead() -> None:
    assert read_health(404, {}, b"") is None
    assert read_models(200, {}, b'{"data":[{"id":"gpt-4o","owned_by":"system"}]}').state == "up"


def test_openai_s_401_is_a_wrong_key_and_no_outage() -> None:
    assert read_models(401, {}, b'{"error":{"code":"invalid_api_key"}}').state == "misconfigured"


def test_ollama_without_health_is_up_by_its_list() -> None:
    assert read_health(404, {}, b"404 page not found") is None
    assert read_models(200, {}, b'{"data":[{"id":"a:latest","owned_by":"library"}]}').state == "up"


def test_ollama_tells_what_is_loaded_and_with_which_context() -> None:
    told = read_loaded(200, b'{"models":[{"name":"a:latest","context_length":4096}]}')
    assert told.contexts == {"a:latest": 4096}
    assert paths(get_backend("openai", family="ollama"))["props"] == "/api/ps"


def test_ollama_lists_what_is_not_loaded_and_that_can_be_called() -> None:
    health = up(ServedModel("cold"), ServedModel("warm:latest"), family="ollama")
    assert an_entry("cold").blocked_by(health) == ("", "")


def test_sglang_s_health_generates_so_its_info_is_asked() -> None:
    asked = paths(get_backend("vllm", family="sglang"))
    assert asked["health"] == "/get_model_info"
    assert not {"/health", "/health_generate"} & set(asked.values())


def test_sglang_that_is_not_ready_says_503() -> None:
    assert get_backend("vllm", family="sglang").read_health(503, {}, b"") == "down"


def test_llama_cpp_python_has_no_health() -> None:
    assert read_health(404, {}, b'{"detail":"Not Found"}') is None
    assert read_models(200, {}, b'{"data":[{"id":"m","owned_by":"me"}]}').state == "up"


def test_tgi_that_is_unhealthy_says_503() -> None:
    assert read_health(503, {}, b'{"error":"unhealthy","error_type":"healthcheck"}') == "down"
    assert read_health(200, {}, b"") == "up"


def test_tgi_tells_its_limits_in_info() -> None:
    body = b'{"model_id":"m","max_total_tokens":2048,"version":"3.3.4"}'
    assert (read_info_props(200, body).context, read_info_props(200, body).version) == (2048, "3.3.4")
    assert paths(get_backend("openai", family="tgi"))["props"] == "/info"


def test_litellm_s_health_gets_no_key_so_it_calls_no_model() -> None:
    for backend in EVERY:
        assert "authorization" not in backend.probes(BASE, "sk-1").health.headers or (
            backend.family == "sglang"
        )
    assert read_health(401, {}, b'{"error":{"message":"No api key passed in."}}') is None


def test_litellm_that_drains_says_503() -> None:
    assert get_backend("openai").refusal(503, {}, b'{"detail":"draining"}', "one").kind == "overloaded"


def test_no_probe_makes_a_server_generate_load_or_write() -> None:
    for backend in EVERY:
        probes = msgspec.structs.asdict(backend.probes(BASE, "key"))
        assert {r.method for r in probes.values() if hasattr(r, "method")} == {"GET"}
        assert not {"/ping", "/is_sleeping", "/models/sse", "/load"} & set(paths(backend).values())


# --- models and limits


def test_llamacpp_s_context_is_that_of_a_slot() -> None:
    meta = {"n_ctx": 4096, "n_ctx_train": 131072, "n_embd": 64, "n_params": 1, "size": 1, "n_vocab": 9}
    (model,) = listed({"id": "m", "aliases": ["x"], "tags": [], "owned_by": "llamacpp", "meta": meta})
    assert (model.context, model.dimension, model.aliases) == (4096, 64, ("x",))


@pytest.mark.parametrize(
    ("declared", "id"),
    [
        ("alias", "alias"),
        ("bartowski/Qwen3-GGUF", "bartowski/Qwen3-GGUF"),
        (r"D:\models\qwen.gguf", r"D:\models\qwen.gguf"),
        ("qwen.gguf", r"D:\models\qwen.gguf"),
        ("Qwen.GGUF", r"d:\models\qwen.gguf"),
        ("qwen", "/srv/models/qwen.gguf"),
    ],
)
def test_llamacpp_s_id_is_alias_repository_or_path(declared: str, id: str) -> None:
    assert find_served(declared, [ServedModel("other"), ServedModel(id)]) == ServedModel(id)


def test_llamacpp_s_props_tell_slots_context_vision_and_build() -> None:
    body = {
        "default_generation_settings": {"n_ctx": 8192}, "total_slots": 4, "model_path": "m.gguf",
        "model_alias": "m", "modalities": {"vision": True, "video": False, "audio": False},
        "chat_template": "", "chat_template_caps": {}, "is_sleeping": False, "endpoint_metrics": False,
        "endpoint_slots": False, "build_info": "b11549-0c1e57098",
    }  # fmt: skip
    told = read_props(200, msgspec.json.encode(body))
    assert (told.slots, told.context, told.vision, told.sleeping) == (4, 8192, True, False)
    assert (told.lists_slots, told.version) == (False, "b11549-0c1e57098")


def test_llamacpp_shares_its_cache_among_slots_so_each_is_counted() -> None:
    health = up(family="llamacpp", slots=4)
    assert an_entry(backend="llamacpp").slots(health) == 4
    assert an_entry(backend="llamacpp").is_counted(health)
    assert read_slots(200, b'[{"is_processing":true},{"is_processing":false}]') == 1


def test_llamacpp_ignores_the_model_so_its_only_one_answers() -> None:
    only = up(ServedModel("other"), family="llamacpp")
    assert an_entry("m", "llamacpp").blocked_by(only) == ("", "")
    two = up(ServedModel("other"), ServedModel("third"), family="llamacpp")
    assert an_entry("m", "llamacpp").blocked_by(two)[0] == "model_missing"


def test_llamacpp_echoes_a_wrong_name_for_vectors_so_the_list_tells_what_is_served() -> None:
    body = b'{"model":"as asked","data":[{"index":0,"embedding":[0.5]}]}'
    assert get_backend("llamacpp").decode_embeddings(body, 1).model == "as asked"
    assert find_served("as asked", [ServedModel("other")]) is None


def test_llamacpp_router_is_told_the_model_in_every_body() -> None:
    backend, spec = get_backend("llamacpp"), an_entry("a").spec
    for request in (backend.tokenize(spec, "x", None), backend.detokenize(spec, [1], None)):
        assert request is not None
        assert msgspec.json.decode(request.body)["model"] == "a"


def test_llamacpp_router_s_props_without_a_model_tell_no_context() -> None:
    body = b'{"role":"router","default_generation_settings":{"params":null,"n_ctx":0}}'
    told = read_props(200, body)
    assert (told.context, told.slots) == (None, None)


def test_llamacpp_router_s_failed_model_is_not_loaded() -> None:
    status = {"value": "unloaded", "failed": True, "exit_code": 1}
    assert [m.loaded for m in listed({"id": "a", "owned_by": "llamacpp", "status": status})] == [False]


@pytest.mark.parametrize("value", ["unloaded", "loading", "sleeping", "downloading", "downloaded"])
def test_llamacpp_router_loads_when_it_is_asked_so_any_status_can_be_called(value: str) -> None:
    card = {"id": "a", "owned_by": "llamacpp", "status": {"value": value}}
    assert an_entry("a").blocked_by(up(*listed(card), family="llamacpp")) == ("", "")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error":{"code":400,"message":"model \'x\' not found","type":"invalid_request_error"}}',
         "model_missing"),
        (400, b'{"error":{"code":400,"message":"model is not loaded","type":"invalid_request_error"}}',
         "model_missing"),
        (500, b'{"error":{"code":500,"message":"failed to load model","type":"server_error"}}',
         "server_error"),
        (500, b'{"error":{"code":500,"message":"proxy error: Could not establish connection",'
              b'"type":"server_error"}}', "server_error"),
    ],
    ids=["unknown", "unloaded", "failed load", "failed proxy"],
)  # fmt: skip
def test_llamacpp_router_says_400_of_a_model_it_lacks_and_500_of_one_that_fails(
    status: int, body: bytes, kind: Fault
) -> None:
    assert get_backend("llamacpp").refusal(status, {}, body, "one").kind == kind


def test_vllm_tells_the_context_on_base_models_only() -> None:
    base, lora = listed(
        {"id": "m", "owned_by": "vllm", "root": "/m", "parent": None, "max_model_len": 2048},
        {"id": "lora", "owned_by": "vllm", "root": "/l", "parent": "m", "max_model_len": None},
    )
    assert (base.context, lora.context) == (2048, None)
    health = up(base, lora, family="vllm")
    assert an_entry("m").context(health) == 2048
    assert an_entry("lora").context(health) == 9999  # as declared


def test_vllm_lists_every_served_name() -> None:
    health = up(*listed({"id": "a", "owned_by": "vllm"}, {"id": "b", "owned_by": "vllm"}), family="vllm")
    assert an_entry("b", "vllm").blocked_by(health) == ("", "")


def test_vllm_says_404_of_a_model_it_lacks() -> None:
    body = b'{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","code":404}}'
    assert get_backend("vllm").refusal(404, {}, body, "one").kind == "model_missing"
    reason, words = an_entry("x", "vllm").blocked_by(up(ServedModel("m"), family="vllm"))
    assert (reason, "m" in words) == ("model_missing", True)


def test_openai_tells_no_context_so_the_declared_one_counts() -> None:
    card = {"id": "m", "object": "model", "created": 1, "owned_by": "system", "shutdown_date": None}
    assert an_entry("m").context(up(*listed(card), family="openai")) == 9999


def test_sglang_tells_the_context() -> None:
    assert listed({"id": "m", "owned_by": "sglang", "max_model_len": 8192})[0].context == 8192


def test_sglang_may_ignore_a_wrong_name_so_it_must_be_listed() -> None:
    reason, _ = an_entry("x", "vllm").blocked_by(up(ServedModel("m"), family="sglang"))
    assert reason == "model_missing"


def test_lm_studio_lists_what_it_has_not_loaded_and_loads_it_when_asked() -> None:
    cards = [{"id": "qwen", "object": "model", "owned_by": "organization_owner"}, {"id": "other"}]
    health = up(*listed(*cards))
    assert an_entry("qwen").blocked_by(health) == ("", "")
    assert an_entry("qwen").context(health) == 9999
    assert get_backend("openai").refusal(
        400, {}, b'{"error":"Trying to keep the first 9000 tokens when context overflows. However, the model '
        b'is loaded with context length of only 4096 tokens"}', "one",
    ).kind == "context_overflow"  # fmt: skip


def test_vllm_tells_how_many_run_and_wait_of_all_engines() -> None:
    lines = [
        b'vllm:num_requests_running{engine="0",model_name="m"} 1.0',
        b'vllm:num_requests_running{engine="1",model_name="m"} 2.0',
        b'vllm:num_requests_waiting{engine="0",model_name="m"} 4.0',
        b'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 4.0',
    ]
    assert read_metrics(200, b"\n".join(lines)) == 7


def test_a_server_that_is_not_well_is_not_asked_to_chat(fake_server: FakeServers, tmp_path: Any) -> None:
    server = fake_server("llamacpp")
    server.fail(faults.Status(500), times=None, path="/health")
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        assert pool.health()[0].state == "down"
    assert count(server, CHAT) == 0
