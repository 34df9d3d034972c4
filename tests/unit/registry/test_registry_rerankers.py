"""The registry's rerankers: read, checked, advised on as embeddings are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from maxwell.errors import RegistryError
from maxwell.registry import RegistryFile, RerankerSpec, advise, decode, load, schema

RERANKER = {"name": "r", "api_base": "http://box:8080", "model": "rank-4b", "max_context": 8192}
EMBEDDING = {**RERANKER, "name": "e", "dimension": 4}


def read(*rerankers: dict[str, Any], **more: Any) -> RegistryFile:
    return decode(json.dumps({"rerankers": rerankers, **more}).encode(), "file")


def problems(*rerankers: dict[str, Any], **more: Any) -> list[str]:
    with pytest.raises(RegistryError) as caught:
        read(*rerankers, **more)
    return caught.value.lines()


def test_the_least_and_the_most_that_may_stand_there(tmp_path: Path) -> None:
    assert read(RERANKER).rerankers == (
        RerankerSpec(name="r", api_base="http://box:8080", model="rank-4b", max_context=8192),
    )
    full = RERANKER | {
        "backend": "vllm",
        "tags": ["default"],
        "cost_per_1k_tokens": 0.02,
        "daily_budget_tokens": 5,
        "daily_budget_usd": 0.5,
        "api_key_env": "BOX_KEY",
        "timeout_seconds": 9.5,
        "_note": "mine",
    }
    path = tmp_path / "lm_registry.json"
    path.write_text(json.dumps({"rerankers": [full]}))
    (spec,) = load(path).rerankers
    assert (spec.price_prompt, spec.is_free, spec.tags) == (0.02, False, ("default",))
    assert list(Draft202012Validator(schema()).iter_errors({"rerankers": [full]})) == []


def test_a_file_without_them_has_none() -> None:
    made = decode(json.dumps({"embeddings": [EMBEDDING]}).encode(), "file")
    assert made.rerankers == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 4}, 'rerankers[0].dimension: unknown key; "dimension" belongs in an entry of "embedd'),
        ({"max_contxt": 4}, 'did you mean "max_context"?'),
        ({"max_context": 0}, "rerankers[0].max_context: is 0; allowed: a whole number, 1 or more"),
        ({"api_base": "http://box/rerank"}, "one endpoint, not the base"),
        ({"api_base": "http://box/v1/rerank"}, "one endpoint, not the base"),
        ({"name": "  "}, "rerankers[0].name: "),
        ({"daily_budget_usd": 1.0}, "limits dollars, but this entry has no price"),
        ({"api_key_env": "sk-1234567890"}, "is not the name of an environment variable"),
    ],
)
def test_mistakes_are_told_with_their_place(change: dict[str, Any], message: str) -> None:
    assert any(message in line for line in problems(RERANKER | change)), problems(RERANKER | change)


def test_names_are_unique_over_all_kinds() -> None:
    (line,) = problems(RERANKER, embeddings=[EMBEDDING | {"name": "r"}])
    assert 'rerankers[0].name: "r" is already the name of embeddings[0]' in line or (
        'embeddings[0].name: "r" is already the name of rerankers[0]' in line
    )
    assert len(problems(RERANKER, RERANKER)) == 1


def test_a_misspelt_list_is_told() -> None:
    with pytest.raises(RegistryError, match='did you mean "rerankers"'):
        decode(json.dumps({"reranker": [RERANKER]}).encode(), "file")


def test_advice_looks_at_them() -> None:
    (found,) = advise(read(RERANKER | {"api_base": "https://api.example.com"}))
    assert (found.path, "has no price" in found.message) == ("rerankers[0]", True)
