from __future__ import annotations

import re
from typing import Any

import pytest
from constraint_samples import LIST, SCHEMAS, Sampler, fits, obeys, twice
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.constraints import constraint_of, violation
from maxwell.constraints.compile import gbnf_of_schema
from maxwell.constraints.gbnf import parse_gbnf
from maxwell.constraints.unhonoured import Unhonoured


def check_sound(schema: dict[str, Any], seed: int, count: int = 10) -> None:
    constraint = constraint_of(json_schema=schema)
    grammar = gbnf_of_schema(schema)
    assert constraint is not None
    assert constraint_of(grammar=grammar) is not None
    sampler = Sampler(parse_gbnf(grammar), seed)
    for _ in range(count):
        text = sampler.text()
        assert fits(grammar, text)
        assert violation(constraint, text) == "" or twice(text), text


@settings(deadline=None, max_examples=100)
@given(SCHEMAS, st.integers(0, 2**32))
def test_every_text_of_a_schemas_grammar_obeys_the_schema(schema: dict[str, Any], seed: int) -> None:
    assert constraint_of(json_schema=schema) is not None
    try:
        gbnf_of_schema(schema)
    except Unhonoured as refusal:
        named = refusal
    else:
        check_sound(schema, seed)
        return
    assert re.match(r"\$\S*( \S+'\])?\S*: ", str(named))


# --- schemas as people write them


@pytest.mark.parametrize(
    "schema",
    [
        LIST,
        {"type": "object"},
        {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "minProperties": 1,
            "maxProperties": 2,
        },
        {"type": "array", "items": {"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "minItems": 2},
        {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "null"}],
            "items": False,
            "minItems": 1,
        },
        {"type": "string", "minLength": 1000, "maxLength": 1003},
        {"type": "integer", "minimum": -1050, "maximum": 90_007},
        {"type": "integer", "exclusiveMinimum": 17},
        {"type": "integer", "maximum": -3},
        {"type": "number", "minimum": -0.5, "maximum": 12.5},
        {"enum": [1, "a", None, {"b": [1]}], "type": ["integer", "string"]},
        {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]},
        {"type": "object", "properties": {"a": {}, "b": {}}, "additionalProperties": False},
        {
            "oneOf": [
                {"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]},
                {
                    "type": "object",
                    "properties": {"kind": {"const": "b"}, "n": True},
                    "required": ["kind", "n"],
                },
            ]
        },
    ],
)
def test_usual_schemas_become_sound_grammars(schema: dict[str, Any]) -> None:
    check_sound(schema, seed=1, count=15)


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        (LIST, ['{"value":1,"next":{"value": 2,\n  "next": null}}', '{ "value" : -7 , "next" : null }']),
        ({"properties": {"a": {}, "b": {}, "c": {}}}, ["{}", '{"a":1}', '{"b":1,"c":2}', '{"a":1,"c":[]}']),
        (
            {"properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]},
            ['{"b":1}', '{"a":{},"b":null}', '{"b":1,"c":""}', '{"a":1,"b":2,"c":3}'],
        ),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, ["[]", "[1]", "[1, -2]"]),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}},
            ["[]", "[1]", "[1,null]", "[1,null,null]"],
        ),
        ({"type": "string"}, ['""', '"é\\n\\u00e9\\"/"', '"\U0001f600"']),
        ({"type": "string", "pattern": "b"}, ['"b"', '"abc"']),
        ({"type": "number"}, ["0", "-1.5e-10", "123456789012345", "1E+5"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "1", "0.5", "0.000001"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.1", "1", "99.25"]),
        (
            {"type": "integer", "minimum": 8, "maximum": 213},
            ["8", "9", "10", "99", "100", "199", "200", "213"],
        ),
        ({"type": "integer", "minimum": -12, "maximum": 3}, ["-12", "-1", "0", "3"]),
        ({"type": "string", "format": "date"}, ['"2024-12-31"', '"0001-02-28"']),
        ({"type": "string", "format": "uri"}, ['"anything"']),
        ({}, ["1", '{"a": [true, null]}', '"x"']),
    ],
)
def test_a_schemas_grammar_allows_what_one_expects(schema: dict[str, Any], texts: list[str]) -> None:
    grammar = gbnf_of_schema(schema)
    for text in texts:
        assert fits(grammar, text), text
        assert obeys(schema, text), text


@pytest.mark.parametrize(
    "bounds", [(0, 0), (3, 7), (8, 213), (-12, 3), (-5, -5), (-1005, -99), (99, 1000), (0, 10)]
)
def test_whole_numbers_between_bounds_are_exact(bounds: tuple[int, int]) -> None:
    grammar = gbnf_of_schema({"type": "integer", "minimum": bounds[0], "maximum": bounds[1]})
    found = [number for number in range(-1100, 1100) if fits(grammar, str(number))]
    assert found == list(range(bounds[0], bounds[1] + 1))
    assert not fits(grammar, "-0")


def test_an_exclusive_bound_is_not_met_by_a_fraction_of_nothing() -> None:
    above = gbnf_of_schema({"type": "number", "exclusiveMinimum": 0})
    below = gbnf_of_schema({"type": "number", "exclusiveMaximum": 0})
    assert [text for text in ("0", "0.0", "-0.0", "0.5", "-0.5") if fits(above, text)] == ["0.5"]
    assert [text for text in ("0", "0.0", "-0.0", "0.5", "-0.5") if fits(below, text)] == ["-0.5"]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"items": {"uniqueItems": True}, "type": "array"}, "$.items.uniqueItems"),
        ({"properties": {"a b": {"not": {}}}, "type": "object"}, "$.properties['a b'].not"),
        ({"type": "object", "patternProperties": {"a": {}}}, "$.patternProperties"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "$.minProperties"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "$.dependentRequired"),
        ({"type": "array", "contains": {"type": "null"}}, "$.contains"),
        ({"type": "number", "multipleOf": 0.1}, "$.multipleOf"),
        ({"type": "integer", "multipleOf": 7}, "$.multipleOf"),
        ({"type": "string", "pattern": "a(?=b)"}, "$.pattern"),
        ({"type": "string", "pattern": "a+", "maxLength": 5}, "$.pattern"),
        ({"type": "string", "format": "regex"}, "$.format"),
        ({"allOf": [{"type": "string"}, {"minLength": 2}]}, "$.allOf"),
        ({"anyOf": [{"type": "string"}], "minLength": 1}, "$.minLength"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}, "type": "string"}, "$.type"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "$.oneOf[1]"),
        ({"if": {}, "then": {}}, "$.if"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "$.properties.a"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "$"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "$.minItems"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "$.maxLength"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "$"),
        ({"enum": [1], "type": "string"}, "$.enum"),
        (
            {"$defs": {"a": {"type": "array", "uniqueItems": True}}, "$ref": "#/$defs/a"},
            "$.$defs.a.uniqueItems",
        ),
    ],
)
def test_what_a_grammar_cannot_say_is_unhonoured_with_its_path(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(Unhonoured, match=f"^{re.escape(path)}: "):
        gbnf_of_schema(schema)
