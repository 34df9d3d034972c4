"""Where each family's routes lie, how it takes a key, and by what it is known. Rows: docs/wire.md."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from calling import make_registry

from maxwell.backends import Backend, get_backend
from maxwell.backends.listing import read_models, read_version
from maxwell.calls.entries import Entry
from maxwell.health import Health
from maxwell.registry.endpoints import key_problem, openai_url, root
from maxwell.registry.specs import LLMSpec, Registry
from maxwell.types import ChatCall, HTTPRequest

KEY = "sk-canary-4711"
BASE = "http://box:8080"
CAN = {"max_tokens": 64, "max_context": 4096, "speed_tokens_per_sec": 30}
CALL = ChatCall(messages=[{"role": "user", "content": "Hello"}], max_tokens=9)
FAMILIES = ("llamacpp", "vllm", "openai", "ollama", "sglang", "tgi", "llama-cpp-python")
VLLM = get_backend("vllm")
LLAMACPP = get_backend("llamacpp")
OLLAMA = get_backend("openai", family="ollama")


def llm(api_base: str = BASE, model: str = "m", **fields: Any) -> LLMSpec:
    entry = {"name": "one", "api_base": api_base, "model": model, "backend": "openai"}
    return make_registry(entry | {"capabilities": CAN, "default_temperature": 0.3} | fields).llms[0]


def every_request(backend: Backend, key: str | None = KEY) -> dict[str, HTTPRequest]:
    """What a server of this family may be sent, by its path."""
    probes = backend.probes(BASE, key)
    made = [
        backend.chat(llm(), CALL, key), backend.count_chat(llm(), CALL, key),
        backend.tokenize(llm(), "a", key), backend.detokenize(llm(), [1], key),
        probes.health, probes.models, probes.models_at_root, probes.info, probes.props, probes.load,
    ]  # fmt: skip
    return {request.url.removeprefix(BASE): request for request in made if request is not None}


def models(owner: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"object": "list", "data": [{"id": "m", "owned_by": owner}], **fields})


# --- addresses


def test_llamacpp_routes_are_asked_under_v1_and_its_own_at_the_root() -> None:
    assert {"/v1/chat/completions", "/v1/models", "/props", "/slots", "/tokenize"} <= every_request(
        LLAMACPP
    ).keys()


def test_llamacpp_api_prefix_stays_in_front_of_every_route() -> None:
    spec = llm(f"{BASE}/llm/v1/")
    assert LLAMACPP.chat(spec, CALL, None).url == f"{BASE}/llm/v1/chat/completions"
    counting = LLAMACPP.tokenize(spec, "a", None)
    assert counting is not None
    assert counting.url == f"{BASE}/llm/tokenize"
    props = LLAMACPP.probes(root(spec.api_base), None).props
    assert props is not None
    assert props.url == f"{BASE}/llm/props"


def test_vllm_native_routes_lie_at_the_root() -> None:
    paths = every_request(VLLM).keys()
    assert {"/tokenize", "/detokenize", "/metrics", "/health", "/version", "/v1/chat/completions"} <= paths


def test_openai_default_base_is_taken_with_and_without_v1() -> None:
    for base in ("https://api.openai.com", "https://api.openai.com/v1", "https://api.openai.com/v1/"):
        assert openai_url(base, "/models") == "https://api.openai.com/v1/models"


def test_ollama_native_routes_lie_under_api_beside_v1() -> None:
    paths = every_request(OLLAMA).keys()
    assert "/api/ps" in paths
    assert "/v1/chat/completions" in paths


def test_a_base_loses_slashes_and_one_v1_at_its_end() -> None:
    assert root("http://box:8080//") == root("http://box:8080/v1/") == root("http://box:8080//v1") == BASE
    assert root("http://box:8080/v1/v1") == f"{BASE}/v1"


# --- keys


@pytest.mark.parametrize("family", FAMILIES)
def test_the_key_goes_as_a_bearer_token(family: str) -> None:
    request = every_request(get_backend("openai", family=family))["/v1/chat/completions"]
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in request.headers


def test_llamacpp_gets_the_key_on_every_route_but_health() -> None:
    requests = every_request(LLAMACPP)
    without = [path for path, request in requests.items() if "authorization" not in request.headers]
    assert without == ["/health"]


def test_vllm_gets_the_key_at_the_root_too_where_it_asks_for_none() -> None:
    assert every_request(VLLM)["/tokenize"].headers["authorization"] == f"Bearer {KEY}"


def test_openai_asks_for_a_key_everywhere_so_without_one_it_is_not_called() -> None:
    spec = llm("https://api.openai.com")
    registry = Registry()
    assert key_problem(spec, registry, {}) == "environment variable OPENAI_API_KEY is not set"
    assert key_problem(spec, registry, {"OPENAI_API_KEY": KEY}) is None


def test_ollama_needs_no_key() -> None:
    assert key_problem(llm("http://box:11434"), Registry(), {}) is None
    assert all("authorization" not in request.headers for request in every_request(OLLAMA, None).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_no_header_says_more_than_key_and_type(family: str) -> None:
    for request in every_request(get_backend("openai", family=family)).values():
        assert request.headers.keys() <= {"accept", "content-type", "authorization"}


def test_vllm_demands_that_bodies_are_said_to_be_json() -> None:
    posts = [request for request in every_request(VLLM).values() if request.method == "POST"]
    assert posts
    assert all(request.headers["content-type"] == "application/json" for request in posts)


# --- who it is


def test_a_port_is_no_identity() -> None:
    entry = Entry(llm("http://box:11434"), 0, Registry(), {})  # Ollama's, where a llama.cpp listens
    assert entry.backend().family == "openai"  # as declared, while nothing else is known
    told = read_models(200, {"server": "llama.cpp"}, models("")).family
    assert entry.backend(Health(state="up", at=0.0, family=told)).family == "llamacpp"


def test_llamacpp_is_known_by_its_server_header_even_in_a_refusal() -> None:
    for status in (200, 401, 404, 503):
        assert read_models(status, {"server": "llama.cpp"}, b"").family == "llamacpp"


@pytest.mark.parametrize(
    ("owner", "family"),
    [
        ("llamacpp", "llamacpp"),
        ("vllm", "vllm"),
        ("sglang", "sglang"),
        ("me", "llama-cpp-python"),
        ("library", "ollama"),
    ],
)
def test_a_family_is_known_by_the_owner_of_its_models(owner: str, family: str) -> None:
    assert read_models(200, {}, models(owner)).family == family


def test_ollama_names_the_user_as_owner_of_models_from_other_hosts() -> None:
    def family(id: str, owner: str) -> str:
        return read_models(200, {}, msgspec.json.encode({"data": [{"id": id, "owned_by": owner}]})).family

    assert family("hf.co/bartowski/Qwen3-GGUF:Q4_K_M", "bartowski") == "ollama"
    assert family("hf.co/bartowski/Qwen3-GGUF:Q4_K_M", "somebody") == ""
    assert family("deepseek/deepseek-r1:free", "deepseek") == ""  # as relays name models


def test_vllm_tells_its_version_at_the_root() -> None:
    assert read_version(200, b'{"version":"0.33.0"}').version == "0.33.0"
    assert "/version" in every_request(VLLM)


def test_llamacpp_with_a_list_like_ollama_s_is_no_ollama() -> None:
    body = models("llamacpp", models=[{"name": "m", "model": "m", "details": {"format": "gguf"}}])
    assert read_models(200, {}, body).family == "llamacpp"


def test_sglang_with_ollama_s_routes_is_no_ollama_for_nobody_asks_there() -> None:
    for family in FAMILIES:
        paths = every_request(get_backend("openai", family=family)).keys()
        assert not {"/api/tags", "/api/version", "/"} & paths


# --- wrong keys


def test_llamacpp_s_401_is_a_matter_of_the_key() -> None:
    body = b'{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}'
    error = LLAMACPP.refusal(401, {}, body, "one")
    assert (error.kind, "Invalid API Key" in str(error)) == ("auth", True)
    assert read_models(401, {}, body).state == "misconfigured"


@pytest.mark.parametrize("family", ["vllm", "sglang"])
def test_vllm_s_and_sglang_s_401_has_a_text_for_its_error(family: str) -> None:
    body = b'{"error":"Unauthorized"}'
    error = get_backend("vllm", family=family).refusal(401, {}, body, "one")
    assert (error.kind, "Unauthorized" in str(error)) == ("auth", True)


def test_llama_cpp_python_s_401_has_a_detail() -> None:
    error = get_backend("llamacpp", family="llama-cpp-python").refusal(
        401, {}, b'{"detail":"Invalid API key"}', "one"
    )
    assert (error.kind, "Invalid API key" in str(error)) == ("auth", True)
