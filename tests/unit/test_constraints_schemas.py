from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.constraints import constraint_of, violation
from maxwell.constraints.compile import (
    gbnf_of_schema,
    needs_wrapping,
    strict_schema,
    unenforced,
    wrapped_schema,
)
from maxwell.constraints.expressions import Alt, Chars, Expr, Ref, Repeat, Rules, Seq
from maxwell.constraints.gbnf import parse_gbnf
from maxwell.constraints.unhonoured import Unhonoured
from maxwell.types import Constraint

LIST: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/link"}},
            "required": ["value", "next"],
        },
        "link": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "$ref": "#/$defs/node",
}


def obeys(schema: dict[str, Any], text: str) -> bool:
    return violation(Constraint("json_schema", schema), text) == ""


def fits(grammar: str, text: str) -> bool:
    return violation(Constraint("grammar", grammar), text) == ""


# --- texts of a grammar, by chance


class Sampler:
    """Writes texts of a grammar; what nests without end is cut short by always taking the flattest way."""

    def __init__(self, rules: Rules, seed: int) -> None:
        self._rules = rules
        self._random = random.Random(seed)
        self._heights: dict[str, float] = dict.fromkeys(rules, float("inf"))
        for _ in rules:
            self._heights = {name: 1 + self._height(expr) for name, expr in rules.items()}

    def _height(self, expr: Expr) -> float:
        match expr:
            case Seq(items):
                return max(map(self._height, items), default=0)
            case Alt(options):
                return min(map(self._height, options))
            case Repeat(item, least, _):
                return self._height(item) if least else 0
            case Ref(name):
                return self._heights[name]
            case Chars():
                return 0

    def text(self) -> str:
        return self._text(Ref("root"), 12)

    def _text(self, expr: Expr, budget: int) -> str:
        match expr:
            case Seq(items):
                return "".join(self._text(item, budget) for item in items)
            case Alt(options):
                flattest = min(options, key=self._height)
                return self._text(self._random.choice(options) if budget > 0 else flattest, budget - 1)
            case Repeat(item, least, most):
                more = (
                    0 if budget <= 0 else self._random.randint(0, 3 if most is None else min(most - least, 3))
                )
                if most is not None and budget > 0 and most < 40 and self._random.random() < 0.1:
                    more = most - least
                return "".join(self._text(item, budget - 1) for _ in range(least + more))
            case Ref(name):
                return self._text(self._rules[name], budget - 1)
            case Chars(ranges):
                low, high = self._random.choice(ranges)
                return chr(self._random.choice([low, high, self._random.randint(low, high)]))


def twice(text: str) -> bool:
    """Whether an object says a key twice, the one thing that a grammar with free keys cannot rule out."""
    found = []

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len(dict(pairs)) < len(pairs))
        return dict(pairs)

    json.loads(text, object_pairs_hook=members)
    return any(found)


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


# --- schemas, by chance

NAMES = st.sampled_from(["a", "b", "c d", 'e"', "é", "$f"])
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from(["", "x", 'y"\n', "é"])
    | st.just([1, {"a": 2.5}])
)
BOUNDS = st.integers(-120, 1200) | st.sampled_from([0.5, -0.5, 99.99, -7.25])


def some(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


def typed(kind: str, **options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return some(**options).map(lambda found: {"type": kind, **found})


NUMBERS = {
    "minimum": BOUNDS,
    "maximum": BOUNDS,
    "exclusiveMinimum": BOUNDS,
    "exclusiveMaximum": BOUNDS,
}
LEAVES = (
    typed("string", minLength=st.integers(0, 3), maxLength=st.integers(2, 1500))
    | typed("string", pattern=st.sampled_from(["^a+$", "b", r'^["\\\n]{2}', r"\W$", "x{2,3}", "^.{3}$"]))
    | typed(
        "string",
        format=st.sampled_from(["date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "odd"]),
    )
    | typed("integer", multipleOf=st.sampled_from([1, 3]), **NUMBERS)
    | typed("number", **NUMBERS)
    | st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {}, {"title": "any"}]
    )
    | st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values})
    | VALUES.map(lambda value: {"const": value})
    | st.just({"$ref": "#/$defs/tree"})
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    sizes = {"minItems": st.integers(0, 3), "maxItems": st.integers(0, 4)}
    objects = st.tuples(
        st.dictionaries(NAMES, inner | st.just(True), max_size=4),
        st.lists(NAMES, max_size=3, unique=True),
        some(
            additionalProperties=st.booleans() | inner,
            minProperties=st.integers(0, 3),
            maxProperties=st.integers(1, 4),
        ),
    ).map(lambda parts: {"type": "object", "properties": parts[0], "required": parts[1], **parts[2]})
    return (
        objects
        | typed("array", items=inner, prefixItems=st.lists(inner, min_size=1, max_size=3), **sizes)
        | typed("array", items=inner | st.just(False), uniqueItems=st.booleans(), **sizes)
        | st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
        | st.lists(inner, min_size=1, max_size=3).map(lambda options: {"oneOf": options})
        | inner.map(lambda part: {"allOf": [part], "description": "x"})
        | some(items=inner, properties=st.dictionaries(NAMES, inner, max_size=2))
    )


TREE: dict[str, Any] = {
    "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}, {"type": "boolean"}]
}


def with_tree(schema: Any) -> dict[str, Any]:
    return {**schema, "$defs": {"tree": TREE}}


SCHEMAS = st.recursive(LEAVES, nested, max_leaves=6).map(with_tree)


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
