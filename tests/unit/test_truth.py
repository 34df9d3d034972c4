from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from calling import make_registry
from msgspec.structs import replace

from maxwell.calls.lies import Facts, Lie, Template, lies
from maxwell.calls.prices import KnownPrice, known_price
from maxwell.calls.truth import SAMPLE, Examined
from maxwell.health import Health
from maxwell.ledger.memory import MemoryLedger
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec, RerankerSpec, Spec
from maxwell.speed import Learned, Sample, Speeds, learn, speeds_of
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import HealthState, ServedModel

NOW = 1_800_000_000.0
PAID = "https://api.example.com"
PRICE = KnownPrice(0.0025, 0.01, 0.00125, "a list")


def llm(**fields: Any) -> LLMSpec:
    can: dict[str, Any] = {"max_tokens": 1024, "max_context": 4096, "speed_tokens_per_sec": 50.0}
    can |= {key: fields.pop(key) for key in list(fields) if key in Capabilities.__struct_fields__}
    known: dict[str, Any] = {"name": "box", "api_base": "http://box/v1", "model": "m", "backend": "llamacpp"}
    return LLMSpec(**{**known, "capabilities": Capabilities(**can), "default_temperature": 0.5, **fields})


def embedding(**fields: Any) -> EmbeddingSpec:
    known: dict[str, Any] = {
        "name": "vec",
        "api_base": "http://box",
        "model": "m",
        "dimension": 64,
        "max_context": 512,
    }
    return EmbeddingSpec(**{**known, **fields})


def up(*models: str | ServedModel, family: str = "llamacpp", **told: Any) -> Health:
    served = tuple(ServedModel(m) if isinstance(m, str) else m for m in models or ("m",))
    state: HealthState = told.pop("state", "up")
    return Health(state=state, at=NOW, models=served, family=family, **told)


def found(spec: Spec, health: Health | None = None, **facts: Any) -> dict[str, Lie]:
    """The lies by field."""
    place = ("llms" if isinstance(spec, LLMSpec) else "embeddings", 2)
    told = lies(spec, Facts(place=place, health=health, **facts))
    fields = {lie.field: lie for lie in told}
    assert len(fields) == len(told)
    return fields


def shown(lie: Lie) -> tuple[Any, Any, Any, str]:
    return lie.declared, lie.found, lie.fix, lie.severity


# --- names


def test_what_is_true_is_no_lie() -> None:
    spec = llm(slots=2, vision=True, tools=True, reasoning=True)
    health = up(ServedModel("m", context=4096), slots=2, context=4096, vision=True)
    assert found(spec, health, template=Template(tools=True, effort=True)) == {}
    assert found(embedding(), up(ServedModel("m", context=512)), dimension=64, normalised=False) == {}


def test_a_lie_has_its_place_and_its_entry() -> None:
    lie = found(llm(), up(ServedModel("m", context=2048)))["capabilities.max_context"]
    assert lie.path == "llms[2].capabilities.max_context"
    assert lie.where == ("llms", 2, "capabilities", "max_context")
    assert lie.entry == "box"
    assert shown(lie) == (4096, 2048, 2048, "warning")
    assert "2,048" in lie.words


@pytest.mark.parametrize(
    "name",
    [
        "/models/Qwen3 30B/Qwen3-Coder.gguf",
        "C:\\models\\Qwen3-Coder.gguf",
        "\\\\nas\\m\\qwen3-coder.GGUF",
        "Qwen3-Coder",
        "Qwen/Qwen3-Coder",
    ],
)
@pytest.mark.parametrize("family", ["llamacpp", "vllm"])
def test_the_only_model_of_a_server_is_the_one_to_use(name: str, family: str) -> None:
    declared = llm(model="something else", backend=family)
    assert shown(found(declared, up(name, family=family))["model"])[1:3] == (name, name)
    assert "model" not in found(llm(model=name, backend=family), up(name, family=family))


def test_llamacpp_answers_to_any_name_and_vllm_does_not() -> None:
    alone = found(llm(model="x"), up("m"))["model"]
    assert shown(alone) == ("x", "m", "m", "warning")
    assert "any name" in alone.words
    strict = found(llm(model="x", backend="vllm"), up("m", family="vllm"))["model"]
    assert shown(strict) == ("x", "m", "m", "fault")
    assert "is not served; the server serves m" in strict.words


def test_a_file_name_is_enough_where_any_name_is_taken_and_nowhere_else() -> None:
    windows = "C:\\dev\\Qwen3-Coder.gguf"
    assert found(llm(model=windows), up("/models/qwen3-coder.gguf")) == {}
    part = found(llm(model="Qwen3-VL", backend="vllm"), up("Qwen/Qwen3-VL", family="vllm"))["model"]
    assert shown(part) == ("Qwen3-VL", "Qwen/Qwen3-VL", "Qwen/Qwen3-VL", "fault")
    router = found(llm(model="b"), up("a", "models/b"))["model"]
    assert shown(router) == ("b", "models/b", "models/b", "fault")
    assert found(llm(model="gemini", backend="openai"), up("models/gemini", "x", family="")) == {}
    assert found(llm(model="qwen3", backend="openai"), up("qwen3:latest", "x", family="ollama")) == {}


def test_an_alias_is_a_name() -> None:
    served = ServedModel("id", aliases=("alias", "other"))
    assert found(llm(model="other", backend="vllm"), up(served, family="vllm")) == {}


def test_of_several_models_the_nearest_is_the_one_to_use() -> None:
    served = ("mistral-small", "org/Qwen3-Coder-30B", "org/Qwen3-VL-4B")
    health = up(*served, family="vllm")
    assert found(llm(model="qwen3_coder-30b-q5", backend="vllm"), health)["model"].fix == served[1]
    far = found(llm(model="gpt-4o", backend="vllm"), health)["model"]
    assert shown(far) == ("gpt-4o", None, None, "fault")
    assert all(name in far.words for name in served)


def test_another_model_of_a_price_is_only_suggested() -> None:
    health = up("gpt-5o", "gpt-5o-mini", family="")
    priced = llm(model="gpt-5o-mni", backend="openai", cost_per_1k_tokens=0.01)
    lie = found(priced, health)["model"]
    assert (lie.fix, lie.severity) == (None, "fault")
    assert "gpt-5o-mini may be meant" in lie.words


def test_a_name_that_no_registry_may_hold_is_not_written() -> None:
    assert found(llm(model="x"), up("na\u202eme"))["model"].fix is None
    assert found(llm(model="x"), up(" m"))["model"].fix is None


def test_a_server_that_lists_nothing_is_not_contradicted() -> None:
    assert found(llm(model="x"), replace(up(), models=())) == {}


@pytest.mark.parametrize("state", ["down", "loading", "misconfigured", "unknown", "rate_limited"])
def test_a_server_that_does_not_answer_tells_nothing(state: HealthState) -> None:
    assert found(llm(model="x", backend="vllm"), up("m", slots=1, context=9, state=state)) == {}
    assert found(llm(), None) == {}


# --- dialects


@pytest.mark.parametrize(
    ("declared", "family", "fix"),
    [
        ("vllm", "llamacpp", "llamacpp"),
        ("openai", "llamacpp", "llamacpp"),
        ("llamacpp", "vllm", "vllm"),
        ("openai", "vllm", "vllm"),
        ("openai", "ollama", None),
        ("vllm", "", None),
        ("llamacpp", "llama-cpp-python", None),
    ],
)
def test_the_dialect_is_the_one_that_the_server_says(declared: str, family: str, fix: str | None) -> None:
    told = found(llm(backend=declared), up(family=family))
    assert (told["backend"].fix if told else None) == fix


def test_openais_own_host_speaks_openai() -> None:
    spec = llm(backend="vllm", api_base="https://api.openai.com/v1", tier="free")
    assert found(spec, up("m", "n", family="openai"))["backend"].fix == "openai"


def test_an_embedding_need_not_name_its_dialect() -> None:
    assert found(embedding(), up("m", family="vllm")) == {}
    assert found(embedding(backend="vllm"), up("m"))["backend"].fix == "llamacpp"


def test_a_wrong_dialect_does_not_make_a_name_wrong() -> None:
    told = found(llm(model="x", backend="vllm"), up("m"))
    assert (told["model"].severity, told["backend"].severity) == ("warning", "warning")


# --- sizes


def test_the_context_is_the_one_of_the_model_else_of_a_slot() -> None:
    assert found(llm(), up("m", context=2048))["capabilities.max_context"].fix == 2048
    both = up(ServedModel("m", context=3000), context=2048)
    assert found(llm(), both)["capabilities.max_context"].fix == 3000


def test_a_wrong_name_hides_no_wrong_context() -> None:
    served = up(ServedModel("a", context=100), ServedModel("box-large", context=200), family="vllm")
    told = found(llm(model="box-lrge", backend="vllm"), served)
    assert (told["model"].fix, told["capabilities.max_context"].fix) == ("box-large", 200)


def test_a_reply_must_fit_into_the_context_too() -> None:
    told = found(llm(max_tokens=4096), up(ServedModel("m", context=2048)))
    assert shown(told["capabilities.max_tokens"]) == (4096, 2048, 2048, "warning")
    assert told["capabilities.max_context"].fix == 2048


def test_less_than_the_server_has_is_told_and_left() -> None:
    told = found(llm(slots=1), up(ServedModel("m", context=8192), slots=4))
    assert shown(told["capabilities.max_context"]) == (4096, 8192, None, "note")
    assert shown(told["capabilities.slots"]) == (1, 4, None, "note")


def test_more_slots_than_there_are() -> None:
    assert shown(found(llm(slots=8), up(slots=4))["capabilities.slots"]) == (8, 4, 4, "warning")
    assert found(llm(), up(slots=4)) == {}  # it is asked for them


def test_what_a_router_says_of_itself_is_not_true_of_its_models() -> None:
    router = up("m", "n", slots=1, context=1, vision=False)
    assert found(llm(slots=8, vision=True), router) == {}


def test_an_embedding_reads_as_much_as_the_server_says() -> None:
    told = found(embedding(max_context=8192), up(ServedModel("m", context=512)))
    assert shown(told["max_context"]) == (8192, 512, 512, "warning")


def test_a_reranker_is_compared_too() -> None:
    spec = RerankerSpec(name="rank", api_base="http://box", model="x", backend="vllm", max_context=8192)
    told = lies(spec, Facts(place=("rerankers", 0), health=up(ServedModel("m", context=512), family="vllm")))
    assert {lie.path: lie.fix for lie in told} == {"rerankers[0].model": "m", "rerankers[0].max_context": 512}


# --- abilities


def test_vision_is_what_the_server_says() -> None:
    assert shown(found(llm(vision=True), up(vision=False))["capabilities.vision"]) == (
        True,
        False,
        False,
        "warning",
    )
    assert found(llm(), up(vision=True))["capabilities.vision"].fix is True
    assert found(llm(vision=True), up(vision=None)) == {}


def test_the_template_tells_of_tools_and_thinking() -> None:
    none = Template(tools=False, effort=False)
    assert found(llm(tools=True, reasoning=True), up(), template=none)["capabilities.tools"].fix is False
    assert set(found(llm(reasoning=True), up(), template=none)) == set()  # may think without being told to
    can = found(llm(), up(), template=Template(tools=True, effort=True))
    assert shown(can["capabilities.tools"]) == (False, True, None, "note")
    assert shown(can["capabilities.reasoning"]) == (False, True, True, "warning")
    assert found(llm(tools=True), up(), template=Template()) == {}


def measured(speed: float, calls: int) -> Speeds:
    learned = Learned()
    for number in range(calls):
        sample = Sample(
            total_seconds=100 / speed + 0.1,
            first_token_seconds=0.1,
            prompt_tokens=50,
            completion_tokens=100,
            server_completion_tokens=100,
            server_completion_speed=speed,
        )
        learned = learn(learned, sample, llm(), NOW + number)
    return speeds_of(learned, llm())


@pytest.mark.parametrize(("calls", "speed", "fix"), [(3, 20.0, 20.1), (2, 20.0, None), (5, 40.0, None)])
def test_a_speed_must_be_measured_well_and_far_off(calls: int, speed: float, fix: float | None) -> None:
    told = found(llm(), measured=measured(speed, calls))
    assert (told["capabilities.speed_tokens_per_sec"].fix if told else None) == fix


# --- vectors


def test_a_wrong_dimension_is_a_fault() -> None:
    told = found(embedding(), up(), dimension=100)
    assert shown(told["dimension"]) == (64, 100, 100, "fault")


def test_no_vector_is_a_fault_and_no_budget_for_one_is_not() -> None:
    refused = found(embedding(), up(), refusal="HTTP 501")[""]
    assert (refused.path, refused.severity, refused.fix) == ("embeddings[2]", "fault", None)
    assert found(embedding(), up(), unasked="no room")[""].severity == "note"


# --- prices


def test_a_missing_price_is_filled_where_it_is_known() -> None:
    told = found(llm(api_base=PAID), price=PRICE)
    assert {field: lie.fix for field, lie in told.items()} == {
        "cost_per_1k_prompt_tokens": 0.0025,
        "cost_per_1k_completion_tokens": 0.01,
        "cost_per_1k_cached_tokens": 0.00125,
    }
    assert all("a list" in lie.words for lie in told.values())
    single = found(embedding(api_base=PAID), price=KnownPrice(0.00002, None, None, "a list"))
    assert shown(single["cost_per_1k_tokens"]) == (0.0, 0.00002, 0.00002, "warning")
    same = found(llm(api_base=PAID), price=KnownPrice(0.001, 0.001, None, "a list"))
    assert set(same) == {"cost_per_1k_tokens"}


def test_a_declared_price_and_a_free_tier_stand() -> None:
    assert found(llm(api_base=PAID, cost_per_1k_tokens=0.5), price=PRICE) == {}
    assert found(llm(api_base=PAID, cost_per_1k_completion_tokens=0.5), price=PRICE) == {}
    assert found(llm(api_base=PAID, tier="free"), price=PRICE) == {}
    assert found(llm(api_base=PAID)) == {}


def test_prices_are_looked_up_for_hosts_outside_only() -> None:
    assert known_price(llm(api_base="http://10.0.0.1:8080", model="gpt-4o")) is None
    assert known_price(llm(api_base="https://box.lan", model="gpt-4o")) is None


def test_published_prices_are_those_of_the_host() -> None:
    pytest.importorskip("genai_prices")
    cloud = "https://api.openai.com"
    price = known_price(llm(api_base=cloud, model="gpt-4o-2024-05-13"))
    assert price is not None
    assert (price.prompt, price.completion) == (0.005, 0.015)
    assert price.source.startswith("genai-prices ")
    assert known_price(llm(api_base=cloud, model="no-such-model")) is None
    assert known_price(llm(api_base="https://api.openai.com.elsewhere.org", model="gpt-4o")) is None
    assert known_price(llm(api_base=PAID, model="gpt-4o")) is None
    # A price that depends on the size of the prompt is not one figure.
    assert known_price(llm(api_base="https://api.anthropic.com", model="claude-sonnet-4-5")) is None
    small = known_price(embedding(api_base=cloud, model="text-embedding-3-small"))
    assert small is not None
    assert (small.prompt, small.completion) == (0.00002, None)


# --- the flow


def examined(home: Path, *entries: dict[str, Any], mode: str = "sync", **parts: Any) -> dict[str, Examined]:
    """What a look at these entries gives, by name."""
    registry = make_registry(*entries)
    parts = {"home": home, "environ": {}, "ledger": MemoryLedger(), **parts}
    if mode == "sync":
        with LLMPool(registry, **parts) as pool:
            told = pool.examine()
    else:

        async def look() -> list[Examined]:
            async with AsyncLLMPool(registry, **parts) as pool:
                return await pool.examine()

        told = asyncio.run(look())
    assert [one.status.spec.name for one in told] == [entry["name"] for entry in entries]
    return {one.status.spec.name: one for one in told}


def fixes(one: Examined) -> dict[str, Any]:
    return {lie.field: lie.fix for lie in one.lies if lie.fix is not None}


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_every_lie_about_every_server_comes_to_light(
    tmp_path: Path, fake_server: FakeServers, mode: str
) -> None:
    box = fake_server(model="/m/real.gguf", context=2048, slots=2, vision=True)
    farm = fake_server("vllm", model="org/real", context=1024)
    vectors = fake_server("vllm", model="org/vec", embeddings=True, dimension=48, context=256)
    told = examined(
        tmp_path,
        box.llm_entry(
            "box",
            model="D:\\wrong.gguf",
            backend="vllm",
            capabilities={"max_tokens": 4000, "max_context": 8000, "slots": 9, "vision": False},
        ),
        farm.llm_entry("farm", model="real", capabilities={"max_context": 9999}),
        vectors.embedding_entry("vec", model="vec-large", dimension=1024, max_context=4096),
        mode=mode,
    )
    assert fixes(told["box"]) == {
        "model": "/m/real.gguf",
        "backend": "llamacpp",
        "capabilities.max_tokens": 2048,
        "capabilities.max_context": 2048,
        "capabilities.slots": 2,
        "capabilities.vision": True,
    }
    assert fixes(told["farm"]) == {"model": "org/real", "capabilities.max_context": 1024}
    assert fixes(told["vec"]) == {"model": "org/vec", "dimension": 48, "max_context": 256}
    assert {one.problem for one in told.values()} == {""}
    assert told["vec"].facts.dimension == 48
    assert told["vec"].facts.normalised is not None


def test_one_vector_an_embedding_is_made_and_booked_and_nothing_else(
    tmp_path: Path, fake_server: FakeServers
) -> None:
    box, vectors = fake_server(), fake_server("vllm", embeddings=True, dimension=8)
    books = MemoryLedger()
    told = examined(
        tmp_path,
        box.llm_entry("box"),
        vectors.embedding_entry("vec", dimension=9, daily_budget_tokens=1000),
        ledger=books,
    )
    assert fixes(told["vec"]) == {"dimension": 8}
    (request,) = vectors.requests_to("/v1/embeddings")
    assert request.body is not None
    assert request.body["input"] == [SAMPLE]
    assert not box.requests_to("/v1/chat/completions")
    assert not box.requests_to("/v1/embeddings")
    with LLMPool(make_registry(vectors.embedding_entry("vec")), home=tmp_path, ledger=books) as pool:
        assert 0 < pool.usage()["vec"].tokens < 50
    assert list(books.holds()) == []


def test_a_budget_without_room_is_said_and_nothing_is_sent(tmp_path: Path, fake_server: FakeServers) -> None:
    vectors = fake_server(embeddings=True)
    told = examined(tmp_path, vectors.embedding_entry("vec", daily_budget_tokens=1))
    (lie,) = told["vec"].lies
    assert (lie.severity, lie.fix, told["vec"].facts.refusal) == ("note", None, "")
    assert not vectors.requests_to("/v1/embeddings")


def test_a_server_that_makes_no_vectors_is_a_fault(tmp_path: Path, fake_server: FakeServers) -> None:
    told = examined(tmp_path, fake_server().embedding_entry("vec"))
    (lie,) = told["vec"].lies
    assert lie.severity == "fault"
    assert "does not support embeddings" in lie.words


def test_a_vector_that_is_none_is_a_fault(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server("vllm", embeddings=True)
    server.fail(faults.ServerError(500), path="/v1/embeddings", times=None)
    told = examined(tmp_path, server.embedding_entry("vec"))
    assert [lie.severity for lie in told["vec"].lies] == ["fault"]


def test_a_dead_server_and_a_missing_key_tell_nothing(tmp_path: Path, fake_server: FakeServers) -> None:
    gone, locked = fake_server(), fake_server(api_key="right", embeddings=True)
    gone.stop()
    told = examined(
        tmp_path,
        gone.llm_entry("gone", model="x"),
        locked.embedding_entry("locked", api_key_env="NO_SUCH_KEY", dimension=3),
    )
    assert (told["gone"].lies, told["gone"].status.state) == ((), "down")
    assert told["locked"].lies == ()
    assert "NO_SUCH_KEY" in told["locked"].problem
    assert not locked.requests_to("/v1/embeddings")


def test_without_its_key_an_embedding_is_asked_for_nothing(tmp_path: Path, fake_server: FakeServers) -> None:
    open_to_all = fake_server("vllm", embeddings=True)
    told = examined(tmp_path, open_to_all.embedding_entry("vec", api_key_env="NO_SUCH_KEY", dimension=3))
    assert "NO_SUCH_KEY" in told["vec"].problem
    assert told["vec"].lies == ()
    assert not open_to_all.requests_to("/v1/embeddings")


def test_what_no_lie_explains_stays_a_problem(tmp_path: Path, fake_server: FakeServers) -> None:
    server = fake_server("vllm", model="a", aliases=["b"])
    told = examined(tmp_path, server.llm_entry("box", model="zzz"))
    assert told["box"].status.problem
    assert (told["box"].problem, told["box"].lies[0].severity) == ("", "fault")


def test_entries_of_one_server_are_examined_each(tmp_path: Path, fake_server: FakeServers) -> None:
    server: FakeServer = fake_server("vllm", model="a", aliases=["b"], context=512)
    told = examined(
        tmp_path, *(server.llm_entry(n, model=n, capabilities={"max_context": 999}) for n in "ab")
    )
    assert [fixes(one) for one in told.values()] == [{"capabilities.max_context": 512}] * 2
