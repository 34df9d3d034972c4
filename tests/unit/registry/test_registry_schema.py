from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from maxwell.registry import schema

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


def example() -> Any:
    return json.loads((DATA / "spec_registry.json").read_text(encoding="utf-8"))


def objects(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [found for child in node for found in objects(child)]
    if not isinstance(node, dict):
        return []
    here = [node] if node.get("type") == "object" else []
    return here + [found for child in node.values() for found in objects(child)]


def test_is_a_valid_schema_without_id() -> None:
    made = schema()
    Draft202012Validator.check_schema(made)
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$id" not in json.dumps(made)


def test_accepts_the_specified_example(validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors(example())) == []


def test_every_object_is_closed_but_for_the_users_own_keys() -> None:
    found = objects(schema())
    assert len(found) == 5
    for node in found:
        assert node["additionalProperties"] is False
        assert node["patternProperties"] == {"^(_|x-)": True}


def test_every_field_is_described() -> None:
    for node in objects(schema()):
        assert node["title"]
        for key, field in node["properties"].items():
            assert field.get("description") or "$ref" in field, key


def test_own_keys_are_accepted_at_every_level(validator: Draft202012Validator) -> None:
    value = example()
    for place in (value, value["llms"][0], value["llms"][0]["capabilities"], value["embeddings"][0]):
        place["_note"] = {"any": ["thing"]}
        place["x-owner"] = None
    assert list(validator.iter_errors(value)) == []


@pytest.mark.parametrize("change", ["unknown", "missing", "range", "enum"])
def test_refuses_what_the_format_refuses(validator: Draft202012Validator, change: str) -> None:
    value = example()
    entry = value["llms"][0]
    if change == "unknown":
        entry["max_contxt"] = 1
    elif change == "missing":
        del entry["api_base"]
    elif change == "range":
        entry["default_temperature"] = 1.5
    else:
        entry["tier"] = "gold"
    assert len(list(validator.iter_errors(value))) == 1


def test_every_call_gives_a_schema_of_its_own() -> None:
    schema()["properties"].clear()
    assert schema()["properties"]
