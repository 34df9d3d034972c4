"""Each sentence of the specification, as a test that fails if it is untrue.

Named and ordered as the specification's chapters. `world` runs a test on fakes and on real llama.cpp servers;
`fake_world` where it cannot be shown on a real one (requests must be counted, or the server must misbehave).
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from worlds import CONTEXT, EMBEDDING_CONTEXT, World

from maxwell import (
    BudgetExceeded,
    DimensionMismatch,
    InputTooLong,
    LLMPool,
    NoEligibleLM,
    RegistryError,
    UnknownName,
    get_embedding,
    get_lm,
)
from maxwell.registry.load import decode, load
from maxwell.registry.locate import find
from maxwell.testing import FakeServer
from maxwell.testing.clock import FakeClock
from maxwell.testing.fixtures import FakeServers, WriteRegistry


def spend(home: Path, name: str, tokens: int) -> None:
    """Usage as it stands before Maxwell ever ran; tomorrow's too, for a test that runs at midnight."""
    today = datetime.now().astimezone().date()
    days = {day.isoformat(): tokens for day in (today, today + timedelta(days=1))}
    (home / ".maxwell" / "llm_usage.json").write_text(json.dumps({name: days}))


# Overview


def test_all_llms_and_embeddings_are_declared_in_one_place(
    world: World, write_registry: WriteRegistry
) -> None:
    write_registry(world.llm("a"), world.llm("b"), world.embedding("e", tags=["default"]))
    assert get_lm("a").generate("Hello", max_tokens=4)
    assert get_lm("b").generate("Hello", max_tokens=4)
    assert get_embedding("e").embed("Hello")


def test_the_prompt_must_fit_the_context(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("small", speed=500, max_context=1024), world.llm("large", speed=10))
    assert get_lm(prompt="word " * 2000).name == "large"
    assert get_lm(prompt="word").name == "small"


def test_capabilities_select(world: World, write_registry: WriteRegistry) -> None:
    write_registry(
        world.llm("plain", speed=500),
        world.llm("sees", vision=True),
        world.llm("thinks", reasoning=True),
        world.llm("codes", code_specialized=True),
    )
    assert get_lm(vision=True).name == "sees"
    assert get_lm(reasoning=True).name == "thinks"
    assert get_lm(code_specialized=True).name == "codes"
    assert get_lm(vision=False, reasoning=False).name == "plain"


def test_speed_selects(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("slow", speed=10), world.llm("fast", speed=200))
    assert get_lm().name == "fast"


def test_cost_selects(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("dear", speed=80, cost_per_1k_tokens=0.005), world.llm("free", speed=25))
    document = "word " * 1600
    assert get_lm(prompt=document, time_cost_weight=0.1).name == "free"
    assert get_lm(prompt=document, time_cost_weight=10.0).name == "dear"


def test_unreachable_services_are_not_selected(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.dead("dead", speed=500), world.llm("alive", speed=10))
    assert get_lm().name == "alive"


def test_a_used_up_budget_is_not_selected(
    world: World, write_registry: WriteRegistry, maxwell_home: Path
) -> None:
    write_registry(world.llm("spent", speed=500, daily_budget_tokens=1000), world.llm("other", speed=10))
    spend(maxwell_home, "spent", 1000)
    assert get_lm().name == "other"


# Registry location


def test_the_project_s_registry_comes_before_the_global_one(
    fake_world: World, write_registry: WriteRegistry, maxwell_home: Path
) -> None:
    write_registry(fake_world.llm("global"))
    assert get_lm().name == "global"
    project = Path.cwd() / ".maxwell"
    project.mkdir()
    (project / "lm_registry.json").write_text(json.dumps({"llms": [fake_world.llm("project")]}))
    assert get_lm().name == "project"


# LLM configuration


def entry_without(path: str) -> dict[str, Any]:
    entry: dict[str, Any] = World("http://127.0.0.1:1", "http://127.0.0.1:1").llm("one")
    target = entry
    *parents, last = path.split(".")
    for parent in parents:
        target = target[parent]
    del target[last]
    return entry


@pytest.mark.parametrize(
    "field", ["name", "api_base", "model", "backend", "capabilities", "default_temperature"]
)
def test_required_fields(field: str) -> None:
    with pytest.raises(RegistryError, match=field):
        decode(json.dumps({"llms": [entry_without(field)]}).encode(), "file")


def test_defaults_of_optional_fields() -> None:
    entry = World("http://127.0.0.1:1", "http://127.0.0.1:1").llm("one")
    spec = decode(json.dumps({"llms": [entry]}).encode(), "file").llms[0]
    assert (spec.tags, spec.cost_per_1k_tokens, spec.tier, spec.daily_budget_tokens) == (
        (),
        0.0,
        "standard",
        None,
    )
    can = spec.capabilities
    assert (can.vision, can.reasoning, can.code_specialized) == (False, False, False)


@pytest.mark.parametrize(
    ("field", "value"),
    [("backend", "ollama"), ("tier", "gold"), ("default_temperature", 1.5), ("default_temperature", -0.1)],
)
def test_field_values_are_those_specified(field: str, value: object) -> None:
    entry = World("http://127.0.0.1:1", "http://127.0.0.1:1").llm("one") | {field: value}
    with pytest.raises(RegistryError, match=field):
        decode(json.dumps({"llms": [entry]}).encode(), "file")


def test_names_are_unique() -> None:
    entry = World("http://127.0.0.1:1", "http://127.0.0.1:1").llm("one")
    with pytest.raises(RegistryError, match="one"):
        decode(json.dumps({"llms": [entry, entry]}).encode(), "file")


def test_model_temperature_and_cap_reach_the_server(fake_world: World, write_registry: WriteRegistry) -> None:
    assert fake_world.chat is not None
    write_registry(
        fake_world.llm("one", default_temperature=0.3, max_tokens=77, model="C:\\models\\tiny.gguf")
    )
    get_lm("one").generate("Hello")
    body = fake_world.chat.requests_to("/v1/chat/completions")[-1].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("C:\\models\\tiny.gguf", 0.3, 77)


def test_max_tokens_caps_the_completion(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("one", max_tokens=3))
    done = get_lm("one").chat([{"role": "user", "content": "Hello"}])
    assert done.usage.completion_tokens <= 3
    assert done.finish_reason == "length"


def test_tags_filter(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("one", tags=["coding", "fast"]), world.llm("two", speed=500, tags=["coding"]))
    assert get_lm(tags=["coding", "fast"]).name == "one"


def test_tier_filters(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("one", tier="premium"), world.llm("two", speed=500))
    assert get_lm(tier="premium").name == "one"


# Supported backends


def test_llamacpp_obeys_a_grammar(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("one"))
    assert get_lm("one").generate("Well?", grammar='root ::= "yes" | "no"', max_tokens=8) in ("yes", "no")


def test_vllm_backend(fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    server = fake_server("vllm", model="Qwen/Qwen3-VL-4B-Instruct", reply="Fine.")
    write_registry(server.llm_entry("one", model="Qwen/Qwen3-VL-4B-Instruct"))
    assert get_lm().generate("How are you?") == "Fine."


def test_openai_backend_takes_its_key_from_the_environment(
    fake_server: FakeServers, write_registry: WriteRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fake_server("openai", model="gpt-4o-2024-05-13", api_key="sk-right")
    write_registry(server.llm_entry("cloud", api_key_env="CLOUD_KEY"))
    with pytest.raises(NoEligibleLM, match="CLOUD_KEY is not set"):
        get_lm("cloud")
    monkeypatch.setenv("CLOUD_KEY", "sk-right")
    with LLMPool(load(find())) as pool:
        assert pool.get_lm("cloud").generate("Hello")


# Embedding configuration


@pytest.mark.parametrize("field", ["name", "api_base", "model", "dimension", "max_context"])
def test_required_embedding_fields(field: str) -> None:
    entry = World("http://127.0.0.1:1", "http://127.0.0.1:1").embedding("e")
    del entry[field]
    with pytest.raises(RegistryError, match=field):
        decode(json.dumps({"embeddings": [entry]}).encode(), "file")


def test_dimension_is_that_of_the_vectors(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.embedding("right"), world.embedding("wrong", dimension=65))
    assert len(get_embedding("right").embed("Some text")) == 64
    with pytest.raises(DimensionMismatch, match="65"):
        get_embedding("wrong").embed("Some text")


def test_max_context_is_the_longest_input(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.embedding("e"))
    long_text = "the cat " * EMBEDDING_CONTEXT * 5
    with pytest.raises(InputTooLong, match=str(EMBEDDING_CONTEXT)):
        get_embedding("e").embed(long_text)
    assert len(get_embedding("e").embed(long_text, truncate=True)) == 64


# Usage examples


def test_a_name_gets_that_llm_or_an_error(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("one"), world.dead("two", speed=500))
    assert get_lm("one").name == "one"
    with pytest.raises(NoEligibleLM, match="two"):
        get_lm("two")
    with pytest.raises(UnknownName, match="did you mean one"):
        get_lm("onne")


def test_routing_by_prompt_size(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("quick", speed=300, max_context=2048), world.llm("roomy", speed=30))
    assert get_lm(prompt="Quick question", time_cost_weight=10.0).name == "quick"
    assert get_lm(prompt="A long document. " * 1000, time_cost_weight=0.1).name == "roomy"


def test_an_embedding_is_found_by_name_then_by_tag(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.embedding("default"), world.embedding("other", tags=["default", "fast"]))
    assert get_embedding("default").name == "default"
    assert get_embedding("fast").name == "other"


# Health checking


def test_health_is_asked_before_the_list_of_models(fake_world: World, write_registry: WriteRegistry) -> None:
    assert fake_world.chat is not None
    write_registry(fake_world.llm("one"))
    get_lm()
    assert [r.path for r in fake_world.chat.requests][:2] == ["/health", "/v1/models"]


def test_the_list_of_models_stands_in_for_health(
    fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server("openai", model="m")  # has no /health
    write_registry(server.llm_entry("one"))
    assert get_lm().name == "one"
    assert [r.path for r in server.requests] == ["/health", "/v1/models"]


def test_health_is_cached_for_30_seconds(
    fake_world: World, write_registry: WriteRegistry, fake_clock: FakeClock
) -> None:
    assert fake_world.chat is not None
    write_registry(fake_world.llm("one"))
    with LLMPool(load(find()), clock=fake_clock) as pool:
        pool.get_lm()
        asked = len(fake_world.chat.requests)
        fake_clock.advance(29.9)
        pool.get_lm()
        assert len(fake_world.chat.requests) == asked
        fake_clock.advance(70)
        pool.get_lm()
        assert len(fake_world.chat.requests) > asked


def test_unhealthy_services_are_skipped(fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    sick, well = fake_server("llamacpp"), fake_server("llamacpp")
    sick.set_state("loading")
    write_registry(sick.llm_entry("sick", capabilities={"speed_tokens_per_sec": 500}), well.llm_entry("well"))
    assert get_lm().name == "well"


# Budget tracking


def test_usage_is_tracked_in_the_home_directory(
    world: World, write_registry: WriteRegistry, maxwell_home: Path
) -> None:
    write_registry(world.llm("one", daily_budget_tokens=100_000), world.llm("free"))
    with LLMPool(load(find())) as pool:
        limited = pool.get_lm("one").chat([{"role": "user", "content": "Hello"}], max_tokens=5)
        unlimited = pool.get_lm("free").chat([{"role": "user", "content": "Hello"}], max_tokens=5)
    booked = json.loads((maxwell_home / ".maxwell" / "llm_usage.json").read_text())
    assert sum(booked["one"].values()) == limited.usage.total_tokens > 0
    assert sum(booked["free"].values()) == unlimited.usage.total_tokens > 0


def test_over_budget_llms_are_skipped_and_refused_by_name(
    world: World, write_registry: WriteRegistry, maxwell_home: Path
) -> None:
    write_registry(world.llm("one", speed=500, daily_budget_tokens=5000), world.llm("two"))
    spend(maxwell_home, "one", 4990)
    assert get_lm(prompt="Hello " * 20).name == "two"
    with pytest.raises(BudgetExceeded, match=r"one: daily budget has 10 tokens left, .* it resets at"):
        get_lm("one", prompt="Hello " * 20)
    with pytest.raises(BudgetExceeded, match="10 tokens left"):
        get_lm("one").generate("Hello " * 20, max_tokens=50)


# Scheduling algorithm


def test_cost_lowers_and_weight_multiplies_time(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("one", cost_per_1k_tokens=0.004, speed=50))
    with LLMPool(load(find())) as pool:
        low = pool.explain(prompt="x" * 4000, max_completion=100, time_cost_weight=0).ranked[0]
        high = pool.explain(prompt="x" * 4000, max_completion=100, time_cost_weight=10).ranked[0]
    assert low.mills == pytest.approx(0.004 * (low.prompt_tokens + 100))
    assert low.score == -low.mills + low.utilization_bonus
    assert high.score == pytest.approx(low.score - 10 * high.seconds)


@pytest.mark.parametrize("weight", [-0.1, 10.1, float("nan"), float("inf")])
def test_the_weight_goes_from_0_to_10(
    fake_world: World, write_registry: WriteRegistry, weight: float
) -> None:
    write_registry(fake_world.llm("one"))
    with pytest.raises(ValueError, match="0 to 10"):
        get_lm(time_cost_weight=weight)


def test_the_bonus_prefers_70_percent_utilization(world: World, write_registry: WriteRegistry) -> None:
    prompt = "x" * 4 * 5500  # far enough from the limit to be judged by its estimated size
    write_registry(world.llm("vast"), world.llm("snug", max_context=10_000))
    assert get_lm(prompt=prompt, max_completion=500).name == "snug"


# Tips


def test_local_first_wins_ties(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("first"), world.llm("second"))
    assert get_lm().name == "first"
    assert get_lm(prompt="Hello").name == "first"


def test_the_specified_context_is_the_real_one(world: World, write_registry: WriteRegistry) -> None:
    write_registry(world.llm("boasts", speed=500, max_context=CONTEXT * 4), world.llm("honest", speed=10))
    with pytest.raises(NoEligibleLM):
        get_lm(min_context=CONTEXT * 2)


# See also


def test_the_implementation_is_where_it_says() -> None:
    assert (Path(__file__).parents[2] / "src" / "maxwell" / "lm_pool.py").is_file()


def test_fake_servers_are_public() -> None:
    assert FakeServer.__module__.startswith("maxwell.testing")
