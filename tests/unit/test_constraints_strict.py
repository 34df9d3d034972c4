from __future__ import annotations

import re
from typing import Any

import pytest
from constraint_samples import LIST, NAMES, SCHEMAS, TREE, Sampler, obeys, twice
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.constraints import constraint_of
from maxwell.constraints.compile import (
    gbnf_of_schema,
    needs_wrapping,
    strict_schema,
    unenforced,
    wrapped_schema,
)
from maxwell.constraints.gbnf import parse_gbnf
from maxwell.constraints.unhonoured import Unhonoured


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(NAMES, SCHEMAS, min_size=1, max_size=3), st.integers(0, 2**32))
def test_every_text_of_a_strict_schema_obeys_the_original(members: dict[str, Any], seed: int) -> None:
    known = {name: part for name, part in members.items() if is_strict({name: part})}
    schema = {"type": "object", "properties": known, "additionalProperties": False, "$defs": {"tree": TREE}}
    strict = strict_schema(schema)
    grammar = gbnf_of_schema(strict)
    sampler = Sampler(parse_gbnf(grammar), seed)
    for _ in range(10):
        text = sampler.text()
        assert obeys(schema, text) or twice(text), text
    for sub in every(strict):
        if sub.get("type") == "object":
            assert sub["additionalProperties"] is False
            assert sub["required"] == list(sub["properties"])
        assert not sub.keys() & {"allOf", "oneOf", "not", "const", "minLength", "uniqueItems", "default"}


def is_strict(members: dict[str, Any]) -> bool:
    """Whether strict mode can say these members, and a grammar as well."""
    try:
        gbnf_of_schema(strict_schema({"type": "object", "properties": members, "$defs": {"tree": TREE}}))
    except Unhonoured:
        return False
    return True


def every(schema: Any) -> list[dict[str, Any]]:
    """The schema and those in it, for a strict one."""
    if not isinstance(schema, dict):
        return []
    parts = [
        *schema.get("properties", {}).values(),
        *schema.get("$defs", {}).values(),
        *schema.get("anyOf", []),
    ]
    return [schema, *(sub for part in [*parts, schema.get("items")] for sub in every(part))]


# --- strict mode


def test_a_strict_schema_keeps_its_meaning() -> None:
    schema = {
        "title": "T",
        "type": "object",
        "properties": {
            "kind": {"const": "a", "title": "Kind"},
            "n": {"type": "integer", "minimum": 0, "default": 3},
            "of": {"$ref": "#/$defs/of", "description": "beside"},
            "one": {"oneOf": [{"type": "string"}, {"type": "null"}], "examples": ["x"]},
            "all": {"allOf": [{"$ref": "#/$defs/of"}]},
            "list": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "uniqueItems": False},
            "when": {"type": "string", "format": "date-time"},
            "where": {"type": "string", "format": "uri"},
        },
        "required": ["n"],
        "$defs": {"of": {"type": "object", "properties": {}, "additionalProperties": False}},
    }
    assert strict_schema(schema) == {
        "title": "T",
        "type": "object",
        "properties": {
            "kind": {"title": "Kind", "type": "string", "enum": ["a"]},
            "n": {"type": "integer", "minimum": 0},
            "of": {"$ref": "#/$defs/of"},
            "one": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "all": {"$ref": "#/$defs/of"},
            "list": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}, "minItems": 1},
            "when": {"type": "string", "format": "date-time"},
            "where": {"type": "string"},
        },
        "required": ["kind", "n", "of", "one", "all", "list", "when", "where"],
        "additionalProperties": False,
        "$defs": {"of": {"type": "object", "properties": {}, "required": [], "additionalProperties": False}},
    }


def of_member(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "array"}, "$"),
        (of_member({"allOf": [{"type": "string"}, {"minLength": 1}]}), "$.properties.a.allOf"),
        (of_member({"type": "string", "not": {"const": "x"}}), "$.properties.a.not"),
        (of_member({"type": "string", "minLength": 1}), "$.properties.a.minLength"),
        (
            of_member({"type": "array", "items": {"type": "null"}, "uniqueItems": True}),
            "$.properties.a.uniqueItems",
        ),
        (of_member({"type": "array"}), "$.properties.a.items"),
        (of_member({"type": "array", "prefixItems": [{}]}), "$.properties.a.prefixItems"),
        (of_member({"type": "object"}), "$.properties.a"),
        (of_member({"type": "object", "patternProperties": {"a": {}}}), "$.properties.a.patternProperties"),
        (of_member({"type": "string", "format": "regex"}), "$.properties.a.format"),
        (of_member({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "$.properties.a.oneOf[1]"),
        (of_member({"anyOf": [{"type": "integer"}], "minimum": 1}), "$.properties.a.minimum"),
        (of_member({"enum": [[1]]}), "$.properties.a.enum"),
        (of_member({}), "$.properties.a"),
        (of_member(True), "$.properties.a"),
        (of_member({"$ref": "#"}), "$.properties.a"),
        (of_member({"if": {}, "then": {}}), "$.properties.a.if"),
        ({"type": "object", "required": ["b"], "properties": {}}, "$.required"),
        ({"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(5001)}}, "$"),
        (of_member({"enum": list(range(1001))}), "$"),
        (of_member({"enum": [f"{n:03}" * 30 for n in range(251)]}), "$.properties.a.enum"),
        ({"type": "object", "properties": {f"{n:04}" * 100: {"type": "null"} for n in range(400)}}, "$"),
    ],
)
def test_what_strict_mode_lacks_is_unhonoured_with_its_path(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(Unhonoured, match=f"^{re.escape(path)}: "):
        strict_schema(schema)


def test_strict_mode_takes_ten_levels() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(10):
        schema = of_member(schema)
    assert strict_schema(schema)["required"] == ["a"]
    with pytest.raises(Unhonoured, match="at most 10 levels of nesting, not 11"):
        strict_schema(of_member(schema))


@pytest.mark.parametrize(
    ("schema", "needed"),
    [
        ({"type": "object", "properties": {}}, False),
        ({"type": "array"}, True),
        ({"type": ["object", "null"]}, True),
        ({"properties": {}}, True),
        ({"type": "object", "anyOf": [{}]}, True),
        (LIST, True),
    ],
)
def test_what_needs_wrapping(schema: dict[str, Any], needed: bool) -> None:
    assert needs_wrapping(schema) is needed


@pytest.mark.parametrize(
    ("schema", "inner", "obeyed"),
    [
        (LIST, '{"value": 1, "next": null}', True),
        (LIST, '{"value": 1}', False),
        ({"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "[[[], null]]", True),
        ({"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "[[1]]", False),
        (
            {"type": "string", "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "http://a"},
            '"x"',
            True,
        ),
    ],
)
def test_a_wrapped_schema_holds_the_value_to_the_same(
    schema: dict[str, Any], inner: str, obeyed: bool
) -> None:
    wrapped = wrapped_schema(schema)
    assert constraint_of(json_schema=wrapped) is not None
    assert not needs_wrapping(wrapped)
    assert obeys(schema, inner) is obeyed
    assert obeys(wrapped, f'{{"value": {inner}}}') is obeyed
    assert obeys(strict_schema(wrapped), f'{{"value": {inner}}}') is obeyed


# --- what a server would not enforce


def test_what_a_server_ignores_is_named_with_its_path() -> None:
    schema = {
        "type": "object",
        "title": "T",
        "properties": {
            "a": {"type": "array", "uniqueItems": True, "items": {"type": "number", "minimum": 1}},
            "b c": {"anyOf": [{"type": "integer", "minimum": 1}, {"not": {"const": 1}}]},
        },
        "$defs": {"d": {"type": "string", "format": "email"}},
    }
    enforced = {"type", "properties", "items", "anyOf", "const"}
    found = unenforced(schema, lambda keyword, sub: keyword in enforced or sub.get("type") == "integer")
    assert found == [
        ("$.properties.a.uniqueItems", "uniqueItems"),
        ("$.properties.a.items.minimum", "minimum"),
        ("$.properties['b c'].anyOf[1].not", "not"),
        ("$.$defs.d.format", "format"),
    ]


def test_what_demands_nothing_is_not_asked_about() -> None:
    schema = {
        "type": "object",
        "title": "T",
        "default": {},
        "x-own": 1,
        "minLength": 3,
        "required": [],
        "additionalProperties": True,
        "properties": {
            "a": {"type": "array", "uniqueItems": False, "minItems": 0, "items": True, "then": {}}
        },
    }
    asked = []
    unenforced(schema, lambda keyword, _: bool(asked.append(keyword)) or True)  # type: ignore[func-returns-value]
    assert asked == ["type", "properties", "type"]


def test_a_schema_that_nothing_obeys_is_asked_about() -> None:
    schema = {"type": "object", "properties": {"a": False}, "additionalProperties": False}
    assert unenforced(schema, lambda keyword, _: keyword != "false") == [("$.properties.a", "false")]
