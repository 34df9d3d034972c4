# ruff: noqa: E501 - recorded bodies stand as they came
"""Which server it is, as it says itself, and what is said to it outside of chat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.backends import Props, get_backend
from maxwell.calls.counting import chat_tokens, text_count, text_tokens
from maxwell.calls.effects import Limits, TransportError
from maxwell.calls.embed_batch import BATCH_BYTES, BATCH_ITEMS
from maxwell.calls.entries import Entry
from maxwell.calls.probe import probe
from maxwell.calls.sync_driver import run
from maxwell.health import Endpoint, Health, HealthBook
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec, Registry
from maxwell.testing import FakeClock
from maxwell.types import BackendName, ChatCall, Constraint, Features, HTTPRequest, ServedModel, Usage

KEY = "sk-canary-4711"
ROOT = "http://box:8080"
JSON = {"content-type": "application/json"}
UVICORN = {"server": "uvicorn", **JSON}
NOT_FOUND = (404, UVICORN, b'{"detail":"Not Found"}')
FAMILIES = [
    "llamacpp", "vllm", "llama-cpp-python", "ollama", "sglang", "tgi", "tei", "infinity", "infinity-v1",
]  # fmt: skip

Answer = tuple[int, Mapping[str, str], bytes]


class Recorded:
    """A server that answers as one was recorded, by path; what is missing is `missing`. Notes what it is asked."""

    def __init__(self, answers: dict[str, Answer], missing: Answer = NOT_FOUND) -> None:
        self.answers = answers
        self.missing = missing
        self.asked: list[str] = []
        self.keys: dict[str, str | None] = {}

    def send(self, request: HTTPRequest, limits: Limits) -> Reply:
        path = urlsplit(request.url).path
        self.asked.append(path)
        self.keys[path] = request.headers.get("authorization")
        answer = self.answers.get(path, self.missing)
        if answer[0] == 0:
            raise TransportError("refused", "connection refused")
        return Reply(answer)

    def close(self) -> None: ...


class Reply:
    def __init__(self, answer: Answer) -> None:
        self.status, self.headers, self._body = answer

    def read(self, seconds: float | None = None) -> bytes:
        body, self._body = self._body, b""
        return body

    def close(self) -> None: ...


def ok(body: str | bytes, headers: Mapping[str, str] = UVICORN) -> Answer:
    return 200, headers, body.encode() if isinstance(body, str) else body


# --- servers as recorded; those without a version in their comment are written after their sources

LLAMACPP = Recorded(  # xllamacpp b11549
    {
        "/health": ok('{"status":"ok"}', {"server": "llama.cpp"}),
        "/v1/models": ok('{"object":"list","data":[{"id":"m","aliases":["m"],"owned_by":"llamacpp","meta":{"n_ctx":4096,"n_embd":64}}]}', {"server": "llama.cpp"}),
        "/props": ok('{"default_generation_settings":{"n_ctx":4096},"total_slots":2,"modalities":{"vision":false},"build_info":"b11549-0c1e57098","is_sleeping":false}'),
        "/slots": ok('[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]'),
    },
    missing=(404, {"server": "llama.cpp"}, b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}'),
)  # fmt: skip
VLLM = Recorded({  # vLLM 0.32.0
    "/health": ok(""),
    "/v1/models": ok('{"object":"list","data":[{"id":"m","object":"model","created":1795385582,"owned_by":"vllm","root":"m","parent":null,"max_model_len":2048}]}'),
    "/version": ok('{"version":"0.32.0"}'),
    "/metrics": ok("vllm:num_requests_running 1.0\nvllm:num_requests_waiting 2.0\n"),
})  # fmt: skip
LLAMA_CPP_PYTHON = Recorded({  # llama-cpp-python 0.3.36
    "/v1/models": ok('{"object":"list","data":[{"id":"m","object":"model","owned_by":"me","permissions":[]}]}'),
})  # fmt: skip
INFINITY = Recorded({  # infinity-emb 0.0.78
    "/health": ok('{"unix":1795386169.4277701}'),
    "/models": ok('{"data":[{"id":"m","stats":{"queue_fraction":0.0,"queue_absolute":0,"results_pending":0,"batch_size":32},"object":"model","owned_by":"infinity","created":1795386169,"backend":"torch","capabilities":["embed"]}],"object":"list"}'),
})  # fmt: skip
INFINITY_UNDER_V1 = Recorded(
    {"/health": INFINITY.answers["/health"], "/v1/models": INFINITY.answers["/models"]}
)
OLLAMA = Recorded({
    "/v1/models": ok('{"object":"list","data":[{"id":"m:latest","object":"model","created":1,"owned_by":"library"},{"id":"cold","owned_by":"library"}]}'),
    "/api/ps": ok('{"models":[{"name":"m:latest","model":"m:latest","size":1,"context_length":4096}]}'),
})  # fmt: skip
SGLANG = Recorded({
    "/health": ok(""),
    "/get_model_info": ok('{"model_path":"m","is_generation":true}'),
    "/v1/models": ok('{"object":"list","data":[{"id":"m","object":"model","owned_by":"sglang","root":"m","max_model_len":8192}]}'),
})  # fmt: skip
TGI = Recorded({
    "/health": ok(""),
    "/v1/models": ok('{"object":"list","data":[{"id":"org/m","object":"model","created":0,"owned_by":"org/m"}]}'),
    "/info": ok('{"model_id":"org/m","max_input_tokens":1024,"max_total_tokens":2048,"router":"text-generation-router","version":"3.3.4"}'),
})  # fmt: skip
TEI = Recorded({
    "/health": ok(""),
    "/info": ok('{"model_id":"org/m","model_type":{"reranker":{"id2label":{"0":"L"}}},"max_input_length":512,"max_client_batch_size":32,"version":"1.8.2"}'),
}, missing=(404, {}, b""))  # fmt: skip
TRANSFORMERS = Recorded({  # transformers 5.19.0, offline
    "/health": ok('{"status":"ok"}'),
    "/v1/models": (500, {"content-type": "text/plain; charset=utf-8"}, b"Internal Server Error"),
})  # fmt: skip
CLOUD = Recorded({"/v1/models": ok('{"data":[{"id":"m","object":"model","owned_by":"system"}]}')})


def found(server: Recorded, *, backend: BackendName | None = None) -> Health:
    """What a health check finds out."""
    server.asked.clear()
    clock = FakeClock()
    book = HealthBook(None, clock)
    return run(probe(Endpoint(ROOT, backend, KEY), book, clock, clock.time()), server)


@pytest.mark.parametrize("declared", ["llamacpp", "vllm", "openai", None])
@pytest.mark.parametrize(
    ("server", "family", "version"),
    [
        (LLAMACPP, "llamacpp", "b11549-0c1e57098"),
        (VLLM, "vllm", "0.32.0"),
        (LLAMA_CPP_PYTHON, "llama-cpp-python", ""),
        (INFINITY, "infinity", ""),
        (INFINITY_UNDER_V1, "infinity-v1", ""),
        (OLLAMA, "ollama", ""),
        (SGLANG, "sglang", ""),
        (TGI, "tgi", "3.3.4"),
        (TEI, "tei", "1.8.2"),
        (TRANSFORMERS, "", ""),  # it says nothing of itself
        (CLOUD, "openai", ""),
    ],
    ids=["llama.cpp", "vLLM", "llama-cpp-python", "infinity", "infinity under /v1", "Ollama", "SGLang", "TGI", "TEI", "transformers", "cloud"],
)  # fmt: skip
def test_a_server_is_known_by_what_it_says_whatever_it_is_declared_as(
    server: Recorded, family: str, version: str, declared: BackendName | None
) -> None:
    health = found(server, backend=declared)
    assert (health.state, health.family, health.version, health.detail) == ("up", family, version, "")


def test_limits_are_read_where_each_family_tells_them() -> None:
    health = found(LLAMACPP, backend="openai")
    assert (health.slots, health.context, health.vision, health.busy) == (2, 4096, False, 1)
    assert found(VLLM, backend="openai").busy == 3
    assert found(OLLAMA).models == (ServedModel("m:latest", context=4096), ServedModel("cold"))
    assert found(TGI).context == 2048
    health = found(TEI)
    assert (health.context, health.models) == (512, (ServedModel("org/m", context=512),))
    assert found(INFINITY).models == (ServedModel("m"),)


@pytest.mark.parametrize(
    "server", [LLAMACPP, VLLM, LLAMA_CPP_PYTHON, OLLAMA, SGLANG, TGI, TRANSFORMERS, CLOUD]
)
def test_nothing_is_looked_for_elsewhere_where_there_is_v1(server: Recorded) -> None:
    found(server)
    assert "/models" not in server.asked


def test_health_gets_no_key() -> None:
    # LiteLLM's /health calls every model behind it for whoever has a key, and each call costs money.
    found(VLLM)
    assert VLLM.keys["/health"] is None
    assert VLLM.keys["/v1/models"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_server_that_does_not_tell_its_version_is_up(status: int) -> None:
    server = Recorded(VLLM.answers | {"/version": (status, JSON, b'{"error":"Unauthorized"}')})
    health = found(server, backend="vllm")
    assert (health.state, health.family, health.version) == ("up", "vllm", "")


def test_a_404_that_names_its_server_is_not_looked_behind() -> None:
    server = Recorded({"/health": LLAMACPP.answers["/health"]}, missing=LLAMACPP.missing)
    assert found(server).family == "llamacpp"
    assert "/models" not in server.asked


def test_one_that_has_nothing_anywhere_is_no_server() -> None:
    health = found(Recorded({}))
    assert (health.state, health.detail) == ("down", "/v1/models says 404")


def test_looking_elsewhere_must_not_fail_a_server_that_is_up() -> None:
    server = Recorded({"/health": ok(""), "/models": (0, {}, b""), "/info": (0, {}, b"")})
    assert found(server).state == "up"


def test_a_known_family_is_asked_for_its_health_in_its_own_way() -> None:
    # SGLang's /health generates a token.
    clock = FakeClock()
    book, endpoint = HealthBook(None, clock), Endpoint(ROOT)
    run(probe(endpoint, book, clock, clock.time()), SGLANG)
    SGLANG.asked.clear()
    clock.advance(40)
    assert run(probe(endpoint, book, clock, clock.time()), SGLANG).state == "up"
    assert SGLANG.asked == ["/get_model_info", "/v1/models"]


def test_family_and_version_outlast_an_outage_and_another_server_at_its_place_is_noticed() -> None:
    clock = FakeClock()
    book, endpoint = HealthBook(None, clock), Endpoint(ROOT)

    def now(server: Recorded) -> tuple[str, str, str]:
        clock.advance(40)
        health = run(probe(endpoint, book, clock, clock.time()), server)
        return health.state, health.family, health.version

    down = Recorded({}, missing=(0, {}, b""))
    assert now(VLLM) == ("up", "vllm", "0.32.0")
    assert now(down) == ("down", "vllm", "0.32.0")
    assert now(LLAMA_CPP_PYTHON) == ("up", "llama-cpp-python", "")


def test_other_processes_learn_family_and_version_too(tmp_path: Path) -> None:
    clock = FakeClock()
    endpoint = Endpoint(ROOT)
    run(probe(endpoint, HealthBook(tmp_path, clock), clock, clock.time()), VLLM)
    shared = HealthBook(tmp_path, clock).get(endpoint, clock.time())
    assert shared is not None
    assert (shared.family, shared.version) == ("vllm", "0.32.0")


@settings(deadline=None, max_examples=200)
@given(st.integers(100, 599), st.binary(max_size=60) | st.recursive(
    st.none() | st.integers() | st.sampled_from(["org/m", "0.1", "x" * 200, "a\nb"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["version", "model_id", "max_total_tokens", "model_type", "models", "context_length", "build_info"]), inner, max_size=4),
    max_leaves=8).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_readers_of_properties_never_raise(status: int, body: bytes) -> None:
    for family in FAMILIES:
        props = get_backend("openai", family=family).read_props(status, body)
        assert isinstance(props, Props)
        assert props.version.isprintable()


# --- which codec


@pytest.mark.parametrize("name", ["llamacpp", "vllm", "openai"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_server_says_it_is_goes_before_the_declaration(name: str, family: str) -> None:
    backend = get_backend(name, family=family)
    assert backend.family == family.removesuffix("-v1")
    assert get_backend(name, family=family) is backend


@pytest.mark.parametrize("name", ["llamacpp", "vllm", "openai"])
@pytest.mark.parametrize("family", ["", "openai", "lemonade", "LLAMACPP"])
def test_the_declaration_stands_where_a_server_says_nothing_of_use(name: str, family: str) -> None:
    # Every imitation, and every proxy before a server of another family, says it were OpenAI's.
    assert get_backend(name, family=family) is get_backend(name)


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("0.10.2", True),
        ("v0.9.0.1", True),
        ("0.6.3.post1", True),
        ("0.10.2.dev3+g1a2b3c4", True),
        ("0.11.0", False),
        ("0.11.0rc1", False),
        ("0.32.0", False),
        ("1.0", False),
        ("0.1.dev11457+g17c540a99", False),  # built without tags, however new
        ("", False),
        ("dev", False),
        ("9" * 50 + ".1", False),
    ],
)
def test_a_vllm_from_before_structured_outputs_is_spoken_to_in_its_words(version: str, old: bool) -> None:
    spec = llm("vllm")
    for family in ("", "vllm"):
        backend = get_backend("vllm", family=family, version=version)
        fields = backend.constrain(spec, Constraint("grammar", 'root ::= "a"')).fields
        assert list(fields) == (["guided_grammar"] if old else ["structured_outputs"])


def test_another_family_s_version_says_nothing_of_vllm() -> None:
    assert get_backend("llamacpp", version="0.1") is get_backend("llamacpp")
    assert get_backend("vllm", family="ollama", version="0.6").family == "ollama"


def test_an_entry_speaks_as_its_server_needs() -> None:
    one = Entry(llm("openai"), 0, Registry(), {})
    up = Health(state="up", at=0.0)
    assert one.backend() is one.backend(up) is get_backend("openai")
    assert one.backend(msgspec.structs.replace(up, family="ollama")).family == "ollama"
    old = msgspec.structs.replace(up, family="vllm", version="0.10.2")
    assert one.backend(old) is get_backend("vllm", version="0.10.2")


def test_a_server_that_says_it_takes_no_images_is_sent_none() -> None:
    spec = llm("llamacpp")
    sees = msgspec.structs.replace(spec.capabilities, vision=True)
    one = Entry(msgspec.structs.replace(spec, capabilities=sees), 0, Registry(), {})
    images, up = Features(images=True), Health(state="up", at=0.0, family="llamacpp")
    for told, said in ((None, ""), (True, ""), (False, "its server takes no images, whatever is declared")):
        assert one.cannot(images, msgspec.structs.replace(up, vision=told)) == said
    assert one.cannot(images, None) == ""
    assert Entry(spec, 0, Registry(), {}).cannot(images, None) == "takes no images (capabilities.vision)"


def test_what_cannot_be_asked_is_not_counted_and_fails_only_the_call_itself() -> None:
    server = Recorded({})
    one = Entry(llm("llamacpp"), 0, Registry(), {})
    chosen = ChatCall(
        messages=HELLO, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}}
    )
    assert run(chat_tokens(one, one.backend(), chosen), server) is None
    assert (
        run(
            chat_tokens(one, one.backend(), ChatCall(messages=[{"role": "user", "content": "\ud83d"}])),
            server,
        )
        is None
    )
    assert run(text_tokens(one, one.backend(), "\ud83d"), server) is None
    assert run(text_count(one, one.backend(), "\ud83d"), server) is None
    assert server.asked == []


def test_counting_asks_the_server_and_takes_no_for_an_answer() -> None:
    one = Entry(llm("openai"), 0, Registry(), {})
    codec = one.backend(Health(state="up", at=0.0, family="llama-cpp-python"))
    server = Recorded({"/extras/tokenize/count": ok('{"count":6}'), "/extras/tokenize": (500, {}, b"x")})
    assert run(text_count(one, codec, "Hello the"), server) == 6
    assert run(text_tokens(one, codec, "Hello the"), server) is None
    assert run(chat_tokens(one, codec, conversation()), server) is None
    assert run(text_count(one, get_backend("openai"), "Hello the"), server) is None
    assert run(text_count(one, get_backend("vllm"), "Hello the"), Recorded({}, missing=(0, {}, b""))) is None


def test_a_new_version_makes_a_new_candidate() -> None:
    one = Entry(llm("vllm"), 0, Registry(), {})
    old = Health(state="up", at=0.0, family="vllm", version="0.10.2")
    assert one.refresh(old) is one.refresh(msgspec.structs.replace(old, at=1.0))
    assert one.refresh(old) is not one.refresh(msgspec.structs.replace(old, version="0.32.0"))


# --- what a relative is sent


def llm(backend: BackendName = "openai", api_base: str = ROOT, *, reasoning: bool = False) -> LLMSpec:
    capabilities = Capabilities(
        max_tokens=512, max_context=4096, speed_tokens_per_sec=30.0, reasoning=reasoning
    )
    return LLMSpec(
        name="entry", api_base=api_base, model="gpt-5", backend=backend, capabilities=capabilities, default_temperature=0.3
    )  # fmt: skip


def embedding() -> EmbeddingSpec:
    return EmbeddingSpec(name="entry", api_base=ROOT, model="embed", dimension=2, max_context=512)


def body(request: HTTPRequest | None) -> Any:
    assert request is not None
    return msgspec.json.decode(request.body)


HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
CHOICES = Constraint("choices", ("red", "blue"))
REGEX = Constraint("regex", "[a-c]+")
GRAMMAR = Constraint("grammar", 'root ::= "yes" | "no"')
OBJECT = Constraint("json_schema", SCHEMA)


@pytest.mark.parametrize("family", ["ollama", "llama-cpp-python", "sglang", "tgi"])
def test_relatives_are_sent_the_older_name_of_the_cap_and_a_temperature(family: str) -> None:
    # Ollama drops the newer name without a word, whatever the model is called.
    sent = body(
        get_backend("openai", family=family).chat(llm(), ChatCall(messages=HELLO, max_tokens=64), None)
    )
    assert (sent["max_tokens"], sent["temperature"]) == (64, 0.3)
    assert "max_completion_tokens" not in sent


@pytest.mark.parametrize(
    ("family", "constraint", "fields"),
    [
        ("llama-cpp-python", GRAMMAR, {"grammar": GRAMMAR.value}),
        ("ollama", OBJECT, {"response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA}}}),
        ("sglang", GRAMMAR, {"ebnf": GRAMMAR.value}),
        ("sglang", REGEX, {"regex": "[a-c]+"}),
        ("sglang", OBJECT, {"response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA}}}),
        ("tgi", OBJECT, {"response_format": {"type": "json", "value": SCHEMA}}),
        ("tgi", REGEX, {"response_format": {"type": "regex", "value": "[a-c]+"}}),
    ],
)  # fmt: skip
def test_constraints_in_the_words_of_relatives(family: str, constraint: Constraint, fields: Any) -> None:
    compiled = get_backend("openai", family=family).constrain(llm(), constraint)
    assert (compiled.fields, compiled.wrapped) == (fields, False)


@pytest.mark.parametrize("constraint", [CHOICES, REGEX, OBJECT])
def test_llama_cpp_python_takes_grammars_and_no_schema_as_openai_has_it(constraint: Constraint) -> None:
    fields = get_backend("llamacpp", family="llama-cpp-python").constrain(llm(), constraint).fields
    assert list(fields) == ["grammar"]
    assert "root ::=" in fields["grammar"]


@pytest.mark.parametrize("family", ["ollama", "tgi"])
def test_choices_are_wrapped_where_only_schemas_are_obeyed(family: str) -> None:
    compiled = get_backend("openai", family=family).constrain(llm(), CHOICES)
    assert compiled.wrapped
    assert '"enum":["red","blue"]' in msgspec.json.encode(compiled.fields).decode()


@pytest.mark.parametrize(
    ("family", "features", "said"),
    [
        ("ollama", Features(constraint=GRAMMAR), "ollama ignores grammars"),
        ("ollama", Features(constraint=REGEX), "ollama ignores regular expressions"),
        ("ollama", Features(constraint=Constraint("json_schema", {"type": "array", "uniqueItems": True})), "$.uniqueItems"),
        ("ollama", Features(tools=True, tool_choice="required"), "ignores tool_choice"),
        ("ollama", Features(tools=True, tool_choice={"type": "function", "function": {"name": "f"}}), "ignores tool_choice"),
        ("ollama", Features(images=True, image_links=True), "fetches no images"),
        ("ollama", Features(images=True), ""),
        ("ollama", Features(tools=True, tool_choice="none"), ""),
        ("tgi", Features(constraint=GRAMMAR), "tgi ignores grammars"),
        *((family, Features(constraint=OBJECT, tools=True), "drop one") for family in ("ollama", "sglang", "tgi", "llama-cpp-python")),
        *((family, Features(constraint=OBJECT), "") for family in ("ollama", "sglang", "tgi", "llama-cpp-python")),
        *((family, Features(constraint=GRAMMAR), "") for family in ("sglang", "llama-cpp-python")),
    ],
)  # fmt: skip
def test_what_relatives_cannot(family: str, features: Features, said: str) -> None:
    cannot = get_backend("openai", family=family).cannot(llm(), features)
    assert said in cannot
    assert bool(said) == bool(cannot)


def test_ollama_is_offered_no_tools_where_none_is_to_be_called() -> None:
    codec = get_backend("openai", family="ollama")
    call = ChatCall(messages=HELLO, max_tokens=1, tools=[TOOL], tool_choice="none")
    assert not {"tools", "tool_choice"} & body(codec.chat(llm(), call, None)).keys()
    call = msgspec.structs.replace(call, tool_choice="auto")
    assert body(codec.chat(llm(), call, None))["tools"] == [TOOL]


def test_how_much_relatives_are_told_to_think() -> None:
    def told(family: str, effort: Any, *, reasoning: bool = False) -> Any:
        call = ChatCall(messages=HELLO, max_tokens=1, reasoning_effort=effort)
        sent = body(get_backend("openai", family=family).chat(llm(reasoning=reasoning), call, None))
        return {k: v for k, v in sent.items() if k in ("reasoning_effort", "chat_template_kwargs")}

    assert told("ollama", None) == told("ollama", "high") == told("tgi", "high") == {}
    assert told("ollama", "none") == {"reasoning_effort": "none"}
    assert told("ollama", "minimal", reasoning=True) == {"reasoning_effort": "low"}
    assert told("sglang", "none")["chat_template_kwargs"]["enable_thinking"] is False


# --- embeddings


@pytest.mark.parametrize(
    ("family", "url"), [("infinity", f"{ROOT}/embeddings"), ("infinity-v1", f"{ROOT}/v1/embeddings")]
)
def test_infinity_embeds_where_its_routes_lie_cuts_in_silence_and_counts_characters(
    family: str, url: str
) -> None:
    codec = get_backend("openai", family=family)
    request = codec.embed(embedding(), ["hello"], KEY, truncate_to=128)
    assert (request.url, body(request)) == (
        url,
        {"model": "embed", "input": ["hello"], "encoding_format": "base64"},
    )
    assert codec.truncates
    assert not codec.says_too_long
    recorded = b'{"object":"list","data":[{"object":"embedding","embedding":"bxaHvQhuIT0=","index":0}],"model":"m","usage":{"prompt_tokens":5,"total_tokens":5},"id":"infinity-cf4","created":1795386169}'
    reply = codec.decode_embeddings(recorded, 1)
    assert reply.vectors[0] == pytest.approx([-0.06596075743436813, 0.039411574602127075])
    assert reply.usage is None  # "hello" has five characters


def test_ollama_is_asked_to_refuse_what_is_too_long() -> None:
    codec = get_backend("openai", family="ollama")
    request = codec.embed(embedding(), ["a", "b"], None)
    assert (request.url, body(request)) == (
        f"{ROOT}/api/embed",
        {"model": "embed", "input": ["a", "b"], "truncate": False},
    )
    assert body(codec.embed(embedding(), ["a"], None, truncate_to=512))["truncate"] is True
    reply = codec.decode_embeddings(
        b'{"model":"embed","embeddings":[[0.5,1],[2,-1]],"total_duration":14143917,"prompt_eval_count":8}', 2
    )
    assert (reply.vectors, reply.usage, reply.model) == ([[0.5, 1.0], [2.0, -1.0]], Usage(8), "embed")


@pytest.mark.parametrize(
    "reply",
    [b'{"embeddings":[]}', b'{"embeddings":[[1.0],[2.0]]}', b'{"embeddings":[[]]}', b'{"embeddings":[[null]]}', b'{"error":"x"}', b"", b"[1]", b"\xff"],
)  # fmt: skip
def test_ollama_s_vectors_are_exactly_those_asked_for(reply: bytes) -> None:
    with pytest.raises(ValueError, match="embeddings reply"):
        get_backend("openai", family="ollama").decode_embeddings(reply, 1)


def test_vllm_s_base64_is_asked_for_in_the_order_of_bytes_that_is_read() -> None:
    codec = get_backend("vllm")
    assert body(codec.embed(embedding(), ["a"], None))["endianness"] == "little"
    assert "endianness" not in body(codec.embed(embedding(), ["a"], None, base64=False))


def test_a_list_is_read_where_base64_was_asked_for() -> None:
    # llama-cpp-python 0.3.36
    recorded = b'{"object":"list","data":[{"object":"embedding","embedding":[-0.398188978433609,-0.2815656065940857],"index":0}],"model":"m","usage":{"prompt_tokens":6,"total_tokens":6}}'
    codec = get_backend("llamacpp", family="llama-cpp-python")
    assert codec.decode_embeddings(recorded, 1).vectors == [[-0.398188978433609, -0.2815656065940857]]
    assert not codec.says_too_long  # it dies of it


def test_how_many_texts_a_request_may_hold() -> None:
    assert get_backend("openai").most_inputs == 2048
    assert get_backend("openai", family="tei").most_inputs == 32
    assert get_backend("openai").most_inputs >= BATCH_ITEMS
    assert BATCH_BYTES <= 300_000  # tokens in all at OpenAI; none is shorter than a byte


# --- tokens


def conversation(**more: Any) -> ChatCall:
    return ChatCall(messages=HELLO, **more)


@pytest.mark.parametrize(
    ("family", "url", "sent"),
    [
        ("llamacpp", "/tokenize", {"model": "gpt-5", "content": "a b", "add_special": True}),
        ("vllm", "/tokenize", {"model": "gpt-5", "prompt": "a b", "add_special_tokens": True}),
        ("sglang", "/tokenize", {"model": "gpt-5", "prompt": "a b", "add_special_tokens": True}),
        ("llama-cpp-python", "/extras/tokenize", {"model": "gpt-5", "input": "a b"}),
        ("tgi", "/tokenize", {"inputs": "a b"}),
        ("tei", "/tokenize", {"inputs": "a b", "add_special_tokens": True}),
    ],
)
def test_who_splits_a_text_and_where(family: str, url: str, sent: Any) -> None:
    codec = get_backend("openai", family=family)
    request = codec.tokenize(llm(), "a b", KEY, add_special=True)
    assert request is not None
    assert (request.url, body(request)) == (ROOT + url, sent)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert codec.has_tokenizer


@pytest.mark.parametrize("family", ["", "ollama", "infinity"])
def test_who_does_not(family: str) -> None:
    codec = get_backend("openai", family=family)
    assert codec.tokenize(llm(), "a", None) is codec.count_text(llm(), "a", None) is None
    assert codec.count_chat(llm(), conversation(), None) is None
    assert not codec.has_tokenizer


@pytest.mark.parametrize(
    ("family", "reply", "tokens"),
    [
        ("llamacpp", b'{"tokens":[72,101,108,517,32,257]}', [72, 101, 108, 517, 32, 257]),
        ("vllm", b'{"count":2,"max_model_len":2048,"tokens":[42,336],"token_strs":null}', [42, 336]),
        ("sglang", b'{"tokens":[42,336],"count":2,"max_model_len":8192}', [42, 336]),
        ("llama-cpp-python", b'{"tokens":[72,101]}', [72, 101]),
        ("tgi", b'[{"id":42,"text":"a","start":0,"stop":1},{"id":7,"text":" b","start":1,"stop":3}]', [42, 7]),
        ("tei", b'[[{"id":101,"text":"[CLS]","special":true,"start":null,"stop":null},{"id":7,"text":"a","special":false,"start":0,"stop":1}]]', [101, 7]),
    ],
)  # fmt: skip
def test_tokens_of_each_family_and_their_number(family: str, reply: bytes, tokens: list[int]) -> None:
    codec = get_backend("openai", family=family)
    assert codec.decode_tokens(reply) == tokens
    assert codec.decode_count(reply) == len(tokens)


@pytest.mark.parametrize(
    ("family", "url", "reply", "count"),
    [
        ("llamacpp", "/v1/chat/completions/input_tokens", b'{"input_tokens":18,"object":"response.input_tokens"}', 18),
        ("vllm", "/tokenize", b'{"count":3,"max_model_len":2048,"tokens":[1,87,85],"token_strs":null}', 3),
        ("tgi", "/chat_tokenize", b'{"tokenize_response":[{"id":1,"text":"<s>","start":0,"stop":0}],"templated_text":"<s>"}', 1),
    ],
)  # fmt: skip
def test_a_conversation_is_counted_as_it_would_be_sent(
    family: str, url: str, reply: bytes, count: int
) -> None:
    codec = get_backend("openai", family=family)
    call = conversation(
        tools=[TOOL], tool_choice="required", constraint=GRAMMAR, max_tokens=None, reasoning_effort="none"
    )
    request = codec.count_chat(llm(), call, KEY)
    assert request is not None
    assert request.url == ROOT + url
    sent = body(request)
    chat = body(codec.chat(llm(), msgspec.structs.replace(call, constraint=None, max_tokens=9), None))
    assert sent == {name: chat[name] for name in sent}
    assert sent["messages"] == HELLO
    assert sent["tools"] == [TOOL]
    assert not {"max_tokens", "stream", "grammar", "temperature"} & sent.keys()
    assert codec.decode_count(reply) == count


def test_vllm_s_counting_route_is_told_the_effort_where_the_chat_route_puts_it() -> None:
    call = conversation(reasoning_effort="low")
    sent = body(get_backend("vllm").count_chat(llm("vllm"), call, None))
    assert "reasoning_effort" not in sent
    assert sent["chat_template_kwargs"]["reasoning_effort"] == "low"
    plain = body(get_backend("vllm").count_chat(llm("vllm"), conversation(), None))
    assert plain == {"model": "gpt-5", "messages": HELLO}


def test_llama_cpp_python_counts_without_splitting() -> None:
    codec = get_backend("llamacpp", family="llama-cpp-python")
    request = codec.count_text(llm(), "Hello the", None)
    assert request is not None
    assert request.url == f"{ROOT}/extras/tokenize/count"
    assert codec.decode_count(b'{"count":6}') == 6
    assert codec.decode_text(b'{"text":" the"}') == " the"


OPENAI_API = "https://api.openai.com/v1"
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}


def test_openai_counts_plain_text() -> None:
    codec = get_backend("openai")
    request = codec.count_chat(llm(api_base=OPENAI_API), conversation(), KEY)
    assert request is not None
    assert request.url == "https://api.openai.com/v1/responses/input_tokens"
    assert body(request) == {"model": "gpt-5", "input": HELLO}
    assert codec.decode_count(b'{"object":"response.input_tokens","input_tokens":11}') == 11


@pytest.mark.parametrize(
    ("base", "call"),
    [
        (ROOT, conversation()),
        ("https://example.com/v1", conversation()),
        (OPENAI_API, conversation(tools=[TOOL])),
        (OPENAI_API, ChatCall(messages=[IMAGE])),
        (OPENAI_API, ChatCall(messages=[*HELLO, {"role": "tool", "tool_call_id": "x", "content": "1"}])),
        (OPENAI_API, ChatCall(messages=[*HELLO, {"role": "assistant", "content": "x", "tool_calls": []}])),
        (OPENAI_API, ChatCall(messages=[{"role": "user", "content": "x", "name": "ann"}])),
    ],
)
def test_openai_s_imitations_count_nothing_and_what_is_not_plain_text_is_not_counted(
    base: str, call: ChatCall
) -> None:
    assert get_backend("openai").count_chat(llm(api_base=base), call, KEY) is None
