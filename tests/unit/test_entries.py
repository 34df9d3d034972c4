from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from maxwell.breaker import CLOSED, failed
from maxwell.calls.entries import Entry
from maxwell.health import Health
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec, Registry
from maxwell.speed import Learned, Sample, Speeds, learn, speeds_of
from maxwell.types import ServedModel

NOW = 1_800_000_000.0
UP = Health(state="up", at=NOW, family="llamacpp", models=(ServedModel("m"),))


def llm(slots: int | None = None, **fields: Any) -> LLMSpec:
    capabilities = Capabilities(max_tokens=1024, max_context=8192, speed_tokens_per_sec=50.0, slots=slots)
    known = {"name": "box", "api_base": "http://box/v1", "model": "m", "backend": "llamacpp"}
    return LLMSpec(**{**known, "capabilities": capabilities, "default_temperature": 0.5, **fields})


def entry(spec: LLMSpec | EmbeddingSpec | None = None) -> Entry:
    return Entry(spec or llm(), 0, Registry(), {})


def taught(*, speed: float = 20.0, reply: int = 100, calls: int = 3, slots: int | None = None) -> Learned:
    """What so many alike calls taught."""
    sample = Sample(
        total_seconds=reply / speed + 0.1,
        first_token_seconds=0.1,
        prompt_tokens=50,
        completion_tokens=reply,
        server_completion_tokens=reply,
        server_completion_speed=speed,
    )
    learned = Learned()
    for number in range(calls):
        learned = learn(learned, sample, llm(), NOW + number)
    return learned if slots is None else replace(learned, slots=replace(learned.slots, number=slots))


def speeds(**known: Any) -> Speeds:
    return speeds_of(taught(**known), llm())


# --- slots


@pytest.mark.parametrize(
    ("declared", "told", "learned", "slots"),
    [
        (None, None, None, None),
        (3, None, None, 3),
        (None, 4, None, 4),
        (None, None, 5, 5),
        (3, 4, None, 3),
        (4, 3, None, 3),
        (3, None, 5, 3),
        (None, 4, 2, 4),
        (8, 6, 2, 6),
    ],
)
def test_what_is_told_or_declared_counts_and_what_is_learned_only_else(
    declared: int | None, told: int | None, learned: int | None, slots: int | None
) -> None:
    one = entry(llm(declared))
    health, known = replace(UP, slots=told), None if learned is None else speeds(slots=learned)
    assert one.slots(health, known) == slots
    assert one.refresh(health, known).slots == slots


def test_an_embedding_has_the_slots_that_its_server_tells() -> None:
    one = entry(EmbeddingSpec(name="e", api_base="http://e", model="e", dimension=4, max_context=512))
    assert one.slots(None) is None
    assert one.slots(replace(UP, slots=2)) == 2


@pytest.mark.parametrize(
    ("backend", "family", "declared", "told", "is_counted"),
    [
        ("llamacpp", "", None, None, True),
        ("vllm", "", None, None, True),
        ("openai", "", None, None, False),
        ("openai", "", 4, None, True),
        ("openai", "", None, 2, True),
        ("openai", "llamacpp", None, None, True),  # whatever it is declared as
        ("openai", "ollama", None, None, True),
        ("openai", "openai", None, None, False),
        ("vllm", "openai", None, None, True),  # a proxy before it, which says so of itself
        (None, "llamacpp", None, None, True),
        (None, "vllm", None, None, True),
        (None, "", None, None, False),
    ],
)
def test_a_cloud_takes_any_number_and_is_not_counted(
    backend: Any, family: str, declared: int | None, told: int | None, is_counted: bool
) -> None:
    one = entry(llm(declared, backend=backend))
    assert one.is_counted(replace(UP, family=family, slots=told)) == is_counted


def test_before_a_server_was_asked_the_declaration_tells_whether_it_is_counted() -> None:
    assert entry(llm(backend="llamacpp")).is_counted(None)
    assert entry(llm(2, backend="openai")).is_counted(None)
    assert not entry(llm(backend=None)).is_counted(None)


# --- candidates


def test_a_candidate_is_kept_as_long_as_nothing_is_new() -> None:
    one, known = entry(), speeds()
    first = one.refresh(UP, known)
    assert one.refresh(UP, known) is first
    later = replace(UP, at=NOW + 5, source="call", breaker=failed(CLOSED, NOW, draw=0.5), busy=3, busy_at=NOW)
    assert one.refresh(later, known) is first  # each success renews the time, and no more


@pytest.mark.parametrize(
    "news",
    [
        {"state": "loading"},
        {"detail": "something"},
        {"models": (ServedModel("m", context=1024),)},
        {"models": (ServedModel("other"), ServedModel("another"))},
        {"context": 2048},
        {"slots": 7},
        {"family": "vllm"},
    ],
    ids=lambda news: next(iter(news)),
)
def test_news_of_its_server_make_another_candidate(news: dict[str, Any]) -> None:
    one = entry(llm(backend=None))
    before = one.refresh(UP)
    copy = replace(before)
    after = one.refresh(replace(UP, **news))
    assert after is not before
    assert before == copy  # whoever decides on it decides on what it was
    assert one.refresh(UP) is not after
    assert one.refresh(UP) == before


def test_a_server_that_is_not_known_any_more_is_another_candidate() -> None:
    one = entry()
    assert one.refresh(UP).state == "up"
    assert one.refresh(None).state == "unknown"
    assert one.refresh(None) is one.refresh(None)
    assert one.refresh(UP).state == "up"


def test_what_calls_taught_makes_another_candidate() -> None:
    one = entry()
    declared = one.refresh(UP)
    assert (declared.speed, declared.completion, declared.overhead) == (50.0, None, 0.0)
    known = speeds(speed=20.0)
    measured = one.refresh(UP, known)
    assert measured.speed == known.speed
    assert measured.speed < 40.0
    assert (measured.completion, measured.service) == (known.completion, known.service)
    assert measured.overhead == known.overhead > 0.0
    assert one.refresh(UP, speeds(speed=10.0)).speed < measured.speed


def test_what_was_not_observed_stays_as_declared() -> None:
    known = speeds_of(Learned(), llm())
    assert entry().refresh(UP, known) == entry().refresh(UP)


# --- speeds


def test_the_usual_length_of_replies_is_shared() -> None:
    one = entry()
    found = one.speeds(None, taught(reply=40, calls=20), NOW)
    assert found is not None
    assert found.speed == 50.0
    assert found.seen.speed == 0
    assert found.seen.completion == 20
    assert 40 < found.completion < 200


def test_speeds_are_reckoned_once_and_again_when_something_is_new() -> None:
    one, learned, usual = entry(), taught(), taught(reply=200)
    first = one.speeds(learned, usual, NOW)
    assert one.speeds(learned, usual, NOW) is first
    assert one.speeds(learned, usual, NOW, "") is first
    for known in (
        (taught(speed=5.0), usual, NOW),
        (learned, taught(reply=10), NOW),
        (learned, usual, NOW, "poem"),
    ):
        again = one.speeds(*known)
        assert again is not first
        assert one.speeds(*known) is again


def test_a_task_has_a_length_of_its_own() -> None:
    sample = Sample(completion_tokens=900, key="poem")
    learned = Learned()
    for number in range(30):
        learned = learn(learned, sample, llm(), NOW + number)
        learned = learn(learned, replace(sample, completion_tokens=10, key="yes or no"), llm(), NOW + number)
    one = entry()
    poem, answer = one.speeds(learned, None, NOW, "poem"), one.speeds(learned, None, NOW, "yes or no")
    assert poem is not None
    assert answer is not None
    assert answer.completion < 150 < 700 < poem.completion
    assert one.speeds(learned, None, NOW, "poem") == poem


def test_of_nothing_nothing_follows() -> None:
    assert entry().speeds(None, None, NOW) is None
    embedding = entry(EmbeddingSpec(name="e", api_base="http://e", model="e", dimension=4, max_context=512))
    assert embedding.speeds(taught(), taught(), NOW) is None


@pytest.mark.parametrize(
    ("changed", "begins_anew"),
    [
        ({"api_base": "http://elsewhere"}, True),
        ({"model": "another"}, True),
        ({"name": "renamed"}, True),
        ({"api_base": "http://box"}, False),
        ({"cost_per_1k_tokens": 1.0}, False),
        ({"tags": ("new",)}, False),
        ({"backend": "vllm"}, False),
    ],
)
def test_what_is_learned_belongs_to_a_name_and_where_it_points(
    changed: dict[str, Any], begins_anew: bool
) -> None:
    assert (entry(llm(**changed)).learned_as != entry().learned_as) == begins_anew


# --- how long a server loads


def test_a_loading_is_told_once() -> None:
    one = entry()
    one.refresh(replace(UP, state="loading"))
    ready = replace(UP, loaded_in=12.0)
    one.refresh(ready)
    assert one.load_to_learn(ready) == 12.0
    assert one.load_to_learn(ready) is None
    assert one.load_to_learn(replace(ready, loaded_in=14.0)) == 14.0


def test_a_loading_before_the_first_look_is_no_news() -> None:
    # Else the first call of every process would count as the first after a loading, which teaches no speed.
    one = entry()
    one.refresh(None)
    one.refresh(replace(UP, loaded_in=12.0))
    assert one.load_to_learn(replace(UP, loaded_in=12.0)) is None
    assert one.load_to_learn(replace(UP, loaded_in=13.0)) == 13.0


def test_a_server_that_never_loaded_has_nothing_to_tell() -> None:
    assert entry().load_to_learn(UP) is None
    assert entry().load_to_learn(None) is None
