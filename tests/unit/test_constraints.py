from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import pytest

from maxwell.constraints import constraint_of, misbegun, violation
from maxwell.errors import BadConstraint
from maxwell.types import Constraint

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0},
        "name": {"type": "string"},
        "born": {"type": "string", "format": "date"},
        "code": {"type": "string", "pattern": r"^(a+)+\d$"},
        "children": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["age"],
}


def made(**given: Any) -> Constraint:
    constraint = constraint_of(**given)
    assert constraint is not None
    return constraint


# --- which one is given


def test_nothing_given_is_no_constraint() -> None:
    assert constraint_of() is None


def test_two_at_once_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="one constraint, but grammar and regex are given"):
        constraint_of(grammar='root ::= "a"', regex="a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json_schema": "{}"}, "json_schema must be a dict, not str"),
        ({"json_schema": True}, "json_schema must be a dict, not bool"),
        ({"grammar": b"root"}, "grammar must be a str, not bytes"),
        ({"regex": 5}, "regex must be a str, not int"),
        ({"choices": "yes"}, "choices must be a list of str, not str"),
        ({"choices": {"yes", "no"}}, "choices must be a list of str, not set"),
        ({"choices": ["yes", 1]}, "choices[1] must be a str, not int"),
    ],
)
def test_a_wrong_type_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        constraint_of(**given)


def test_each_kind_is_made() -> None:
    assert made(choices=["yes", "no"]) == Constraint("choices", ("yes", "no"))
    assert made(regex="[ab]+") == Constraint("regex", "[ab]+")
    assert made(grammar='root ::= "a"') == Constraint("grammar", 'root ::= "a"')
    assert made(json_schema=PERSON) == Constraint("json_schema", PERSON)


def test_a_schema_that_is_changed_later_does_not_change_the_constraint() -> None:
    mine = {"type": "object", "properties": {"a": {"type": "integer"}}}
    constraint = made(json_schema=mine)
    mine["properties"]["a"]["type"] = "string"  # type: ignore[index]
    assert constraint.value["properties"]["a"]["type"] == "integer"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "choices: there are none"),
        (["yes", ""], "choices[1]: an empty text cannot be chosen"),
        (["yes", "no", "yes"], "choices[2]: 'yes' is there twice"),
        (["\ud800"], "choices[0]: '\\ud800' holds what is no character"),
        (["a\0"], "choices[0]: 'a\\x00' holds what is no character"),
    ],
)
def test_a_wrong_choice_is_named(choices: list[str], message: str) -> None:
    with pytest.raises(BadConstraint, match=f"^{re.escape(message)}$"):
        constraint_of(choices=choices)


# --- schemas


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"properties": {"age": {"type": "integr"}}},
            "$.properties.age.type: 'integr' is not one of object, ",
        ),
        ({"properties": {"a b": {"minLength": -1}}}, "$.properties['a b'].minLength: -1 is less than"),
        ({"anyOf": []}, "$.anyOf: [] should be non-empty"),
        ({"anyOf": [{"required": "a"}]}, "$.anyOf[0].required: 'a' is not of type 'array'"),
        ({"$ref": "#/$defs/a"}, "$.$ref: there is no '#/$defs/a'"),
        ({"$ref": "#/title", "title": "a"}, "$.$ref: there is no '#/title'"),
        ({"items": {"$ref": "#/own"}, "own": {}}, "$.items.$ref: '#/own' is not where a schema stands"),
        ({"items": {"$ref": "other.json"}}, "$.items.$ref: 'other.json' must lead to a place in the schema"),
        ({"items": {"$ref": "#name"}}, "$.items.$ref: '#name' must lead to a place in the schema"),
        ({"items": {"$dynamicRef": "#a"}}, "$.items.$dynamicRef: only $ref is understood"),
        ({"items": {"$id": "http://a/b"}}, "$.items.$id: only the whole schema may have one"),
        ({"$ref": "#"}, "$: its references come back to it without an end"),
        (
            {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}},
            "$.$defs.a: its references come back to it without an end",
        ),
        ({"pattern": "("}, "$.pattern: '(' is no regex: missing )"),
        ({"patternProperties": {"[": {}}}, "$.patternProperties: '[' is no regex"),
        ({"enum": [(1, 2)]}, "$.enum[0]: a tuple is not JSON"),
        ({"const": {1: 2}}, "$.const: the key 1 is not a str"),
        ({"minimum": math.nan}, "$.minimum: nan is not JSON"),
        ({"const": ["\udc00"]}, "$.const[0]: half of a surrogate pair is not JSON"),
        ({"$schema": "http://example.org/mine"}, "$.$schema: 'http://example.org/mine' is no draft"),
    ],
)
def test_a_wrong_schema_is_refused_with_its_place(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConstraint, match=f"^json_schema, {re.escape(message)}"):
        constraint_of(json_schema=schema)


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    with pytest.raises(BadConstraint, match="nested more than 100 levels deep"):
        constraint_of(json_schema=schema)


def test_an_older_draft_is_checked_by_its_own_rules() -> None:
    draft_4 = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 5, "exclusiveMaximum": True}
    assert violation(made(json_schema=draft_4), "5")
    assert violation(made(json_schema=draft_4), "4") == ""
    with pytest.raises(BadConstraint, match=r"\$\.exclusiveMaximum: True is not of type 'number'"):
        constraint_of(json_schema={"maximum": 5, "exclusiveMaximum": True})


@pytest.mark.parametrize(
    "text",
    [
        '{"age": 1}',
        ' {"age":1,\n"name":"B\\u00f6", "born": "2024-02-29", "children":[{"age":0}]} ',
        '{"age":1.0}',
    ],
)
def test_a_reply_that_obeys_a_schema(text: str) -> None:
    assert violation(made(json_schema=PERSON), text) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"age": "x"}', "$.age: 'x' is not of type 'integer'"),
        ('{"age": true}', "$.age: True is not of type 'integer'"),
        ('{"age": 1, "children": [{"age": 0}, {"age": -1}]}', "$.children[1].age: -1 is less than"),
        ("{}", "$: 'age' is a required property"),
        ('{"age": 1, "born": "2023-02-29"}', "$.born: '2023-02-29' is not a 'date'"),
        ("", "it is not JSON: Expecting value (line 1, column 1, at the beginning)"),
        ('{"age": 1', "it is not JSON: Expecting ',' delimiter (line 1, column 10, after '{\"age\": 1')"),
        ('{"age": 1} So', "it is not JSON: Extra data (line 1, column 12, after '{\"age\": 1} ')"),
        ('```json\n{"age": 1}\n```', "it is not JSON: Expecting value (line 1, column 1"),
        ('{"age": NaN}', "it is not JSON: NaN is no JSON value"),
        ('{"age": -Infinity}', "it is not JSON: -Infinity is no JSON value"),
        ('{"age": 1e999}', "it is not JSON: the number '1e999' is beyond what a reader can hold"),
        ('{"age": 1, "age": 1}', "it is not JSON: the key 'age' is there twice"),
        ('{"age": 01}', "it is not JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "it is not JSON: it is nested too deeply"),
        ('{"age":1,"children":[' * 300 + "]}" * 300, "it is nested too deeply to be checked"),
        (f'{{"age": {"9" * 5000}}}', "it is not JSON: Exceeds the limit"),
    ],
)
def test_a_reply_that_does_not_obey_a_schema(text: str, message: str) -> None:
    assert violation(made(json_schema=PERSON), text).startswith(message)


def test_a_pattern_cannot_take_for_ever() -> None:
    text = f'{{"age": 1, "code": "{"a" * 2000}"}}'
    assert violation(made(json_schema=PERSON), text).endswith("does not match '^(a+)+\\\\d$'")


def test_a_pattern_is_searched_for_and_is_ascii() -> None:
    digits = made(json_schema={"pattern": r"\d"})
    assert violation(digits, '"a1b"') == ""
    assert violation(digits, '"\u0663"') != ""
    assert violation(made(json_schema={"pattern": "^a"}), '"ab"') == ""
    assert violation(made(json_schema={"pattern": "a$"}), '"ab"') != ""
    assert violation(made(json_schema={"pattern": "(?i)^A$"}), '"a"') == ""


# --- the others


def test_a_choice_is_exactly_one_of_them() -> None:
    yes_or_no = made(choices=["yes", "no"])
    assert violation(yes_or_no, "yes") == ""
    assert violation(yes_or_no, "yes ") == "'yes ' is none of the choices"
    assert violation(yes_or_no, "Yes") == "'Yes' is none of the choices"
    assert violation(yes_or_no, "") == "'' is none of the choices"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aab-12", ""),
        ("", "it is empty"),
        ("aa", "it is not complete: more must follow after 'aa'"),
        ("aab-1", "it is not complete: more must follow after 'aab-1'"),
        ("aab-123", "character 7, '3', does not fit after 'aab-12'"),
        ("b", "character 1, 'b', does not fit at the beginning"),
        ("a" * 900, f"it is not complete: more must follow after ...'{'a' * 40}'"),
    ],
)
@pytest.mark.parametrize("given", [{"regex": "a+b-[0-9]{2}"}, {"grammar": 'root ::= "a"+ "b-" [0-9] [0-9]'}])
def test_where_a_text_does_not_fit(given: dict[str, Any], text: str, message: str) -> None:
    assert violation(made(**given), text) == message


@pytest.mark.parametrize(
    "given",
    [
        {"regex": "(a*)*b"},
        {"regex": "(a|a|aa)+b"},
        {"regex": "(a|b)*a(a|b){15}c"},
        {"regex": ".*.*.*x.*y{0,900}z"},
        {"grammar": 'root ::= "b" | "a" root'},
        {"grammar": 'root ::= x x x "b"\nx ::= "a"*'},
    ],
)
def test_no_expression_takes_for_ever(given: dict[str, Any]) -> None:
    assert violation(made(**given), "a" * 3000).startswith("it is not complete")


def test_what_is_too_ambiguous_is_not_called_right() -> None:
    grammar = made(grammar='root ::= "a" root "b" | "a" root "c" | "a"')
    assert violation(grammar, "a" * 300 + "b").startswith(
        "it cannot be checked: there are more than 20000 ways"
    )


@pytest.mark.parametrize(
    "given",
    [
        {"json_schema": {"type": "integer"}},
        {"json_schema": {"enum": ["a" * 50] * 1 + [f"{n}" * 50 for n in range(100)]}},
        {"json_schema": {"type": "object", "additionalProperties": False}},
        {"choices": ["a"]},
        {"regex": "a"},
        {"grammar": 'root ::= "a"'},
    ],
)
@pytest.mark.parametrize("text", ["x" * 10_000, f'"{"x" * 10_000}"', f'{{"{"x" * 10_000}": 1}}'])
def test_a_message_is_short(given: dict[str, Any], text: str) -> None:
    assert 0 < len(violation(made(**given), text)) < 320


def test_heavy_libraries_are_not_imported_before_they_are_needed() -> None:
    code = (
        "import sys, maxwell.constraints, maxwell.constraints.compile;"
        "print([name for name in ('jsonschema', 'llguidance') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


# --- replies that were cut off


WHOLE = '{"a": [1, -2.5e+10, true, null, {"b": "q\\\\u0041\\"x\\u00e9\\n"}], "c": "d", "e": false}'


@pytest.mark.parametrize("length", range(len(WHOLE) + 1))
def test_the_beginning_of_json_is_never_misbegun(length: int) -> None:
    constraint = constraint_of(json_schema={"type": "object"})
    assert constraint is not None
    assert misbegun(constraint, WHOLE[:length]) == ""


@pytest.mark.parametrize(
    ("given", "text", "is_misbegun"),
    [
        ({"json_schema": {}}, " notcity", True),
        ({"json_schema": {}}, "Sure! {", True),
        ({"json_schema": {}}, '{a: "', True),
        ({"json_schema": {}}, '```json\n{"a', False),  # llama.cpp takes the fence away at the end
        ({"choices": ["yes", "no"]}, "ye", False),
        ({"choices": ["yes", "no"]}, "Ye", True),
        ({"regex": "[a-z]{3}"}, "ab", False),
        ({"regex": "[a-z]{3}"}, "aB", True),
        ({"grammar": 'root ::= "ab" [0-9]{2}'}, "ab1", False),
        ({"grammar": 'root ::= "ab" [0-9]{2}'}, "abc", True),
        ({"grammar": 'root ::= "ab" [0-9]{2}'}, "", False),
    ],
)
def test_what_cannot_become_obedient_is_told(given: dict[str, Any], text: str, is_misbegun: bool) -> None:
    constraint = constraint_of(**given)
    assert constraint is not None
    assert bool(misbegun(constraint, text)) == is_misbegun
