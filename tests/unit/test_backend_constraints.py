"""Constraints in each family's words. What these do on real servers: tests/real/test_real_constraints.py."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from maxwell.backends import get_backend
from maxwell.backends.base import CONSTRAINTS, Backend
from maxwell.constraints import Unhonoured
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.types import BackendName, ChatCall, Constraint, Features, Message

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
NULL: dict[str, Any] = {"type": "null"}
INTEGER: dict[str, Any] = {"type": "integer"}
STRING: dict[str, Any] = {"type": "string"}
OBJECT = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"], "type": "string"}, "at": {"$ref": "#/$defs/point"}},
    "required": ["kind"],
    "additionalProperties": False,
    "$defs": {
        "point": {"type": "object", "properties": {"x": INTEGER, "y": INTEGER}, "required": ["x", "y"]}
    },
}
GRAMMAR = Constraint("grammar", 'root ::= "yes" | "no"')
CHOICES = Constraint("choices", ("yes", "no", 'a "b"\n'))
REGEX = Constraint("regex", "[a-z]{2,3}|x")
SCHEMA = Constraint("json_schema", OBJECT)
ALL = [GRAMMAR, CHOICES, REGEX, SCHEMA]


def llm(backend: BackendName, model: str = "qwen") -> LLMSpec:
    capabilities = Capabilities(max_tokens=512, max_context=4096, speed_tokens_per_sec=30.0)
    return LLMSpec(
        name="entry",
        api_base="http://box:8080",
        model=model,
        backend=backend,
        capabilities=capabilities,
        default_temperature=0.3,
    )


def fields(codec: str | Backend, constraint: Constraint, model: str = "qwen") -> dict[str, Any]:
    backend = get_backend(codec) if isinstance(codec, str) else codec
    return backend.constrain(llm(backend.name, model), constraint).fields


def schema(value: dict[str, Any]) -> Constraint:
    return Constraint("json_schema", value)


def only_property(value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"a": value},
        "required": ["a"],
        "additionalProperties": False,
        **more,
    }


# --- all of them


@pytest.mark.parametrize("backend", ["llamacpp", "vllm"])
@pytest.mark.parametrize("rival", CONSTRAINTS)
def test_a_constraint_beside_another_one_is_refused(backend: BackendName, rival: str) -> None:
    call = ChatCall(messages=HELLO, max_tokens=1, constraint=GRAMMAR, extra={rival: {"type": "json_object"}})
    with pytest.raises(ValueError, match=rf"entry: .*{rival}"):
        get_backend(backend).chat(llm(backend), call, None)


@pytest.mark.parametrize("backend", ["llamacpp", "vllm", "openai"])
def test_a_constraint_in_extra_alone_is_the_callers_own(backend: BackendName) -> None:
    call = ChatCall(messages=HELLO, max_tokens=1, extra={"response_format": {"type": "json_object"}})
    body = msgspec.json.decode(get_backend(backend).chat(llm(backend), call, None).body)
    assert body["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("backend", ["llamacpp", "vllm", "openai"])
@pytest.mark.parametrize("constraint", ALL, ids=lambda constraint: constraint.kind)
def test_what_can_be_sent_can_be_chosen_and_the_other_way_round(
    backend: BackendName, constraint: Constraint
) -> None:
    codec, spec = get_backend(backend), llm(backend)
    why = codec.cannot(spec, Features(constraint=constraint))
    call = ChatCall(messages=HELLO, max_tokens=1, constraint=constraint)
    if why:
        assert (backend, constraint) == ("openai", GRAMMAR)
        with pytest.raises(Unhonoured) as caught:
            codec.chat(spec, call, None)
        assert str(caught.value) == why
    else:
        body = msgspec.json.decode(codec.chat(spec, call, None).body)
        assert body.items() >= codec.constrain(spec, constraint).fields.items()


# --- llama.cpp


def test_llamacpp_gets_grammars_as_they_are() -> None:
    assert fields("llamacpp", GRAMMAR) == {"grammar": GRAMMAR.value}


@pytest.mark.parametrize("constraint", [CHOICES, REGEX], ids=lambda constraint: constraint.kind)
def test_llamacpp_gets_choices_and_regular_expressions_as_grammars(constraint: Constraint) -> None:
    ((name, grammar),) = fields("llamacpp", constraint).items()
    assert name == "grammar"
    assert "root ::=" in grammar


def nested(value: Any) -> Any:
    described = {"name": "reply", "schema": value, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def test_llamacpp_gets_schemas_nested_and_unchanged() -> None:
    compiled = get_backend("llamacpp").constrain(llm("llamacpp"), SCHEMA)
    assert compiled.fields == nested(OBJECT)
    assert (compiled.wrapped, compiled.thinks) == (False, True)


HELD_BY_LLAMACPP: list[dict[str, Any]] = [
    OBJECT,
    INTEGER,
    {"type": ["integer", "null"], "minimum": 3, "maximum": 1234},
    {"type": "integer", "exclusiveMinimum": -1},
    {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 3},
    {"type": "integer", "maximum": 0},
    {"type": "string", "minLength": 1, "maxLength": 1999},
    {"type": "string", "format": "uuid"},
    {"type": "array", "items": STRING, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [INTEGER, NULL], "minItems": 2, "maxItems": 2},
    {"type": "object", "additionalProperties": INTEGER},
    {"enum": ["a", 1, None, {"x": 1}]},
    {"type": ["string", "integer"], "enum": ["a", 1]},
    {"type": "boolean", "const": True},
    {"anyOf": [INTEGER, NULL], "title": "T", "default": None},
    only_property({"$ref": "#/$defs/n", "description": "D"}, **{"$defs": {"n": NULL}}),
]


@pytest.mark.parametrize("value", HELD_BY_LLAMACPP, ids=str)
def test_llamacpp_converts_what_its_converter_holds_to(value: dict[str, Any]) -> None:
    assert fields("llamacpp", schema(only_property(value))) == nested(only_property(value))


# What the converter of a real server (b11549) let through although the schema forbids it.
PASSED_OVER_BY_LLAMACPP: list[dict[str, Any]] = [
    {"type": "number", "minimum": 3, "maximum": 17},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    {"type": "integer", "minimum": 1000},  # 12 came
    {"type": "integer", "maximum": -5},  # -05 came
    {"type": "integer", "minimum": 1, "maximum": 2.5},
    {"type": ["integer", "number"], "minimum": 1, "maximum": 2},
    {"type": "string", "pattern": "[a-c]{2}"},
    {"type": "string", "maxLength": 2000},
    {"type": "string", "enum": ["a", 1]},
    {"type": "array", "items": INTEGER, "maxItems": 2000},
    {"type": "array", "prefixItems": [INTEGER], "items": NULL},
    {"type": "object", "properties": {"a": NULL}, "additionalProperties": INTEGER},
    {"type": "object", "properties": {"a": NULL}, "additionalProperties": True},
    {"oneOf": [only_property({"const": "x"}), only_property({"const": "y"})]},
]


@pytest.mark.parametrize("value", PASSED_OVER_BY_LLAMACPP, ids=str)
def test_llamacpp_gets_a_grammar_of_what_its_converter_passes_over(value: dict[str, Any]) -> None:
    compiled = get_backend("llamacpp").constrain(llm("llamacpp"), schema(only_property(value)))
    assert compiled.fields.keys() == {"grammar"}
    assert not compiled.thinks


# --- vLLM


def test_vllm_gets_structured_outputs() -> None:
    assert fields("vllm", CHOICES) == {"structured_outputs": {"choice": list(CHOICES.value)}}
    assert fields("vllm", SCHEMA) == {"structured_outputs": {"json": OBJECT}}
    assert fields("vllm", REGEX)["structured_outputs"].keys() == {"regex"}
    assert fields("vllm", GRAMMAR)["structured_outputs"].keys() == {"grammar"}


def test_vllm_gets_grammars_without_what_one_of_its_engines_does_not_know() -> None:
    sent = fields("vllm", Constraint("grammar", 'root ::= . thing\nthing ::= "\\x41" [\\u00e9]'))
    grammar = sent["structured_outputs"]["grammar"]
    assert "." not in grammar
    assert "Aé" in grammar


@pytest.mark.parametrize("version", ["0.11.0", "0.33.0", "1.0", "", "unknown"])
def test_a_vllm_of_today_or_of_unknown_age_gets_the_fields_of_today(version: str) -> None:
    codec = get_backend("vllm", family="vllm", version=version)
    assert fields(codec, CHOICES).keys() == {"structured_outputs"}


@pytest.mark.parametrize("version", ["0.8.5", "0.10.2", "0.9.0.1"])
def test_an_old_vllm_gets_the_fields_of_its_time(version: str) -> None:
    codec = get_backend("vllm", family="vllm", version=version)
    assert fields(codec, CHOICES) == {"guided_choice": list(CHOICES.value)}
    assert fields(codec, SCHEMA) == {"guided_json": OBJECT}
    assert fields(codec, REGEX).keys() == {"guided_regex"}
    assert fields(codec, GRAMMAR).keys() == {"guided_grammar"}


HELD_BY_VLLM: list[dict[str, Any]] = [
    *(value for value in HELD_BY_LLAMACPP if "prefixItems" not in value),
    {"type": "number", "minimum": 3, "exclusiveMaximum": 17},
    {"type": "integer", "minimum": 1000},
    {"type": "string", "pattern": "^[A-Z]{2}-[^a]$"},
    {"type": "string", "maxLength": 5000},
    {"type": "array", "prefixItems": [INTEGER], "items": NULL},
    {"type": "object", "properties": {"a": NULL}, "additionalProperties": INTEGER},
    {"allOf": [{"$ref": "#/$defs/n"}]},
]


@pytest.mark.parametrize("value", HELD_BY_VLLM, ids=str)
def test_vllm_gets_what_both_its_engines_hold_to(value: dict[str, Any]) -> None:
    whole = only_property(value, **{"$defs": {"n": NULL}})
    assert fields("vllm", schema(whole)) == {"structured_outputs": {"json": whole}}


PASSED_OVER_BY_VLLM: list[dict[str, Any]] = [
    {"type": "string", "enum": ["a", 1]},
    {"type": "string", "pattern": '^"x$'},  # came unescaped
    {"type": "string", "pattern": "^a\\d$"},
    {"type": "integer", "minimum": 0.5},
    {"oneOf": [only_property({"const": "x"}), only_property({"const": "y"})]},
]


@pytest.mark.parametrize("value", PASSED_OVER_BY_VLLM, ids=str)
def test_vllm_gets_a_grammar_of_what_one_of_its_engines_passes_over(value: dict[str, Any]) -> None:
    compiled = get_backend("vllm").constrain(llm("vllm"), schema(only_property(value)))
    assert compiled.fields["structured_outputs"].keys() == {"grammar"}
    assert compiled.thinks


# What stands beside a keyword that decides alone was ignored by both, and members that have no name.
SIBLINGS: list[dict[str, Any]] = [
    {"$ref": "#/$defs/n", "minimum": 5},
    {"type": "object", "properties": {"a": NULL}, "anyOf": [{"required": ["a"]}]},
    {"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 3}]},
    {"type": "string", "enum": ["a", "abc"], "maxLength": 2},
    {"type": "object", "properties": {"a": NULL}, "required": ["a", "z"]},
    {"type": "object", "required": ["z"]},
    {"pattern": "^a+$"},
    {"type": "string", "pattern": "^a+$", "maxLength": 3},
    {"allOf": [INTEGER, {"type": "number", "minimum": 3}]},
    {"minimum": 3},
]


@pytest.mark.parametrize("backend", ["llamacpp", "vllm"])
@pytest.mark.parametrize("value", SIBLINGS, ids=str)
def test_no_schema_is_sent_of_which_a_part_would_be_ignored(backend: str, value: dict[str, Any]) -> None:
    constraint = schema(only_property(value, **{"$defs": {"n": INTEGER}}))
    why = get_backend(backend).cannot(llm(get_backend(backend).name), Features(constraint=constraint))
    if why:
        assert why.startswith("$.properties.a")
        return
    sent = fields(backend, constraint)
    assert "grammar" in sent.get("structured_outputs", sent)


@pytest.mark.parametrize("backend", ["llamacpp", "vllm"])
@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, "$.properties.a.uniqueItems"),
        ({"type": "array", "items": INTEGER, "contains": {"const": 3}}, "$.properties.a.contains"),
        ({"type": "number", "multipleOf": 0.5}, "$.properties.a.multipleOf"),
    ],
)
def test_what_neither_schema_nor_grammar_can_hold_is_refused_with_its_path(
    backend: str, value: dict[str, Any], path: str
) -> None:
    with pytest.raises(Unhonoured) as caught:
        fields(backend, schema(only_property(value)))
    assert str(caught.value).startswith(path + ":")


# --- OpenAI


def test_openai_gets_a_strict_schema() -> None:
    compiled = get_backend("openai").constrain(llm("openai"), SCHEMA)
    described = compiled.fields["response_format"]["json_schema"]
    assert compiled.fields["response_format"]["type"] == "json_schema"
    assert (described["strict"], compiled.wrapped, compiled.thinks) == (True, False, True)
    assert described["name"].isidentifier()
    assert described["schema"]["required"] == ["kind", "at"]
    assert described["schema"]["$defs"]["point"]["additionalProperties"] is False
    assert OBJECT["required"] == ["kind"]  # as the caller gave it


@pytest.mark.parametrize(
    ("constraint", "value"),
    [
        (CHOICES, {"type": "string", "enum": list(CHOICES.value)}),
        (REGEX, {"type": "string", "pattern": "^(?:[a-z]{2,3}|x)$"}),
        (Constraint("regex", "a+"), {"type": "string", "pattern": "^a+$"}),
        (schema({"type": "array", "items": INTEGER}), {"type": "array", "items": INTEGER}),
        (schema({"anyOf": [INTEGER, NULL]}), {"anyOf": [INTEGER, NULL]}),
    ],
)
def test_what_is_no_object_is_wrapped_for_openai(constraint: Constraint, value: dict[str, Any]) -> None:
    compiled = get_backend("openai").constrain(llm("openai"), constraint)
    assert compiled.wrapped
    assert compiled.fields["response_format"]["json_schema"]["schema"] == {
        "type": "object",
        "properties": {"value": value},
        "required": ["value"],
        "additionalProperties": False,
    }


def test_openai_ignores_grammars() -> None:
    with pytest.raises(Unhonoured, match="openai server ignores grammars"):
        fields("openai", GRAMMAR)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, "$.properties.a.uniqueItems"),
        ({"type": "string", "minLength": 3}, "$.properties.a.minLength"),
        ({"not": INTEGER, "type": "null"}, "$.properties.a.not"),
    ],
)
def test_what_openais_subset_lacks_is_refused_with_its_path(value: dict[str, Any], path: str) -> None:
    with pytest.raises(Unhonoured) as caught:
        fields("openai", schema(only_property(value)))
    assert str(caught.value).startswith(path + ":")


def test_the_path_is_that_of_the_callers_schema_where_it_is_wrapped() -> None:
    value = {"type": "array", "items": {"type": "object", "properties": {"a": {"not": INTEGER}}}}
    with pytest.raises(Unhonoured, match=r"^\$\.items\.properties\.a\.not: "):
        fields("openai", schema(value))


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("gpt-4o", True),
        ("gpt-4.1-mini", True),
        ("gpt-5", True),
        ("o3-mini", True),
        ("qwen", True),
        ("gpt-3.5-turbo", False),
        ("gpt-4", False),
        ("openai/gpt-4-turbo", False),
        ("gpt-4o-2024-05-13", False),
        ("o1-mini", False),
    ],
)
def test_models_from_before_strict_schemas_are_not_chosen(model: str, takes: bool) -> None:
    why = get_backend("openai").cannot(llm("openai", model), Features(constraint=SCHEMA))
    assert (why == "") is takes
    assert takes or model in why
