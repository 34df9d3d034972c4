"""How each family is told to hold its text to a constraint, and what it would ignore. Rows: docs/wire.md."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from calling import make_registry

from maxwell.backends import Backend, get_backend
from maxwell.backends.wire import decode_chunk
from maxwell.calls.reply import Reply
from maxwell.calls.verdict import judged
from maxwell.constraints import Unhonoured, constraint_of, violation
from maxwell.errors import BadConstraint, ConstraintBroken
from maxwell.registry.specs import LLMSpec
from maxwell.types import ChatCall, Constraint, Features, Usage

CAN = {"max_tokens": 64, "max_context": 4096, "speed_tokens_per_sec": 30}
HELLO = [{"role": "user", "content": "Hello"}]
OPENAI, LLAMACPP, VLLM = (get_backend(name) for name in ("openai", "llamacpp", "vllm"))
OLD_VLLM = get_backend("vllm", version="0.10.2")
OLLAMA = get_backend("openai", family="ollama")
SGLANG = get_backend("vllm", family="sglang")
TGI = get_backend("openai", family="tgi")
LLAMA_CPP_PYTHON = get_backend("llamacpp", family="llama-cpp-python")
INTEGER = {"type": "integer", "minimum": 0, "maximum": 9}
OBJECT = {"type": "object", "properties": {"n": INTEGER}, "required": ["n"], "additionalProperties": False}
SCHEMA = Constraint("json_schema", OBJECT)
GRAMMAR = Constraint("grammar", 'root ::= "yes" | "no"')
CHOICES = Constraint("choices", ("yes", "no"))
REGEX = Constraint("regex", "[a-z]+")
EVERY = [SCHEMA, GRAMMAR, CHOICES, REGEX]


def llm(model: str = "m") -> LLMSpec:
    entry = {"name": "one", "api_base": "http://box", "model": model, "backend": "openai"}
    return make_registry(entry | {"capabilities": CAN, "default_temperature": 0.3}).llms[0]


def fields(backend: Backend, constraint: Constraint) -> dict[str, Any]:
    return backend.constrain(llm(), constraint).fields


def only(value: dict[str, Any], **more: Any) -> Constraint:
    return Constraint("json_schema", OBJECT | {"properties": {"n": value}} | more)


def why_not(backend: Backend, constraint: Constraint, **more: Any) -> str:
    return backend.cannot(llm(), Features(constraint=constraint, **more))


def broken(grammar: str) -> str:
    with pytest.raises(BadConstraint) as caught:
        constraint_of(grammar=grammar)
    return str(caught.value)


# --- llama.cpp


def test_llamacpp_gets_a_grammar_at_the_top() -> None:
    assert fields(LLAMACPP, GRAMMAR) == {"grammar": GRAMMAR.value}


def test_llamacpp_reads_a_schema_inside_of_json_schema_only() -> None:
    sent = fields(LLAMACPP, SCHEMA)["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == OBJECT
    assert "schema" not in sent  # which would be any object


def test_llamacpp_refuses_other_types_of_response_format_so_grammars_never_go_there() -> None:
    for constraint in EVERY:
        assert fields(LLAMACPP, constraint).get("response_format", {}).get("type") in (None, "json_schema")


def test_llamacpp_takes_one_of_grammar_and_schema_so_a_second_one_is_refused() -> None:
    for rival in ("json_schema", "response_format", "grammar"):
        call = ChatCall(messages=HELLO, max_tokens=9, constraint=GRAMMAR, extra={rival: {}})
        with pytest.raises(ValueError, match=rival):
            LLAMACPP.chat(llm(), call, None)


def test_llamacpp_refuses_a_grammar_beside_tools_so_that_goes_elsewhere() -> None:
    assert "never calls a tool" in why_not(LLAMACPP, GRAMMAR, tools=True)
    said = b'{"error":{"code":400,"message":"Cannot use custom grammar constraints with tools."}}'
    assert LLAMACPP.refusal(400, {}, said, "one").kind == "unsupported"


def test_llamacpp_says_400_of_a_bad_grammar() -> None:
    said = (
        b'{"error":{"code":400,"message":"Failed to initialize samplers: ","type":"invalid_request_error"}}'
    )
    assert LLAMACPP.refusal(400, {}, said, "one").kind == "bad_request"
    assert "no rule root" in broken('start ::= "a"')  # and it is never sent


# --- vLLM


@pytest.mark.parametrize(
    ("constraint", "kind"), [(SCHEMA, "json"), (GRAMMAR, "grammar"), (CHOICES, "choice"), (REGEX, "regex")]
)
def test_vllm_takes_exactly_one_kind_of_structured_outputs(constraint: Constraint, kind: str) -> None:
    assert fields(VLLM, constraint).keys() == {"structured_outputs"}
    assert fields(VLLM, constraint)["structured_outputs"].keys() == {kind}


def test_vllm_ignores_guided_fields_with_a_200_so_none_is_sent() -> None:
    for constraint in EVERY:
        assert not [name for name in fields(VLLM, constraint) if name.startswith("guided_")]


def test_vllm_before_0_11_needs_guided_fields() -> None:
    assert fields(OLD_VLLM, SCHEMA) == {"guided_json": OBJECT}
    assert fields(OLD_VLLM, CHOICES) == {"guided_choice": ["yes", "no"]}
    assert fields(OLD_VLLM, REGEX) == {"guided_regex": "[a-z]+"}
    assert fields(OLD_VLLM, GRAMMAR).keys() == {"guided_grammar"}


def test_vllm_refuses_a_backend_for_one_request_so_none_is_named() -> None:
    for constraint in EVERY:
        assert len(fields(VLLM, constraint)["structured_outputs"]) == 1


def test_vllm_runs_either_engine_so_only_what_both_hold_is_sent_as_a_schema() -> None:
    both = only({"type": "string", "maxLength": 3})
    assert fields(VLLM, both)["structured_outputs"] == {"json": both.value}
    one_of_them = only({"type": "string", "format": "email"})
    assert fields(VLLM, one_of_them)["structured_outputs"].keys() == {"grammar"}
    neither = only({"type": "string", "pattern": "^a+$", "maxLength": 3})
    assert why_not(VLLM, neither).startswith("$.properties.n")


def test_vllm_reads_a_grammar_with_the_sign_of_a_rule_as_gbnf() -> None:
    sent = fields(VLLM, GRAMMAR)["structured_outputs"]["grammar"]
    assert "::=" in sent
    assert "root" in sent


def test_vllm_may_not_know_tokens_in_a_grammar_so_they_are_refused() -> None:
    assert "tokens (<...>) cannot be checked" in broken("root ::= <think>")


def test_vllm_constrains_after_thinking_so_it_may_think() -> None:
    for constraint in EVERY:
        assert VLLM.constrain(llm(), constraint).thinks


# --- OpenAI


def test_openai_gets_a_named_strict_schema() -> None:
    sent = fields(OPENAI, SCHEMA)["response_format"]["json_schema"]
    assert (sent["name"], sent["strict"]) == ("reply", True)
    assert len(sent["name"]) <= 64


def strict(constraint: Constraint) -> Any:
    return fields(OPENAI, constraint)["response_format"]["json_schema"]["schema"]


def test_openai_wants_an_object_at_the_root_without_anyof() -> None:
    for schema in (INTEGER, {"anyOf": [OBJECT, {"type": "null"}]}):
        compiled = OPENAI.constrain(llm(), Constraint("json_schema", schema))
        assert compiled.wrapped
        assert strict(Constraint("json_schema", schema))["type"] == "object"


def test_openai_wants_every_property_required_and_no_others() -> None:
    loose = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "required": ["a"]}
    sent = strict(Constraint("json_schema", loose))
    assert (sent["required"], sent["additionalProperties"]) == (["a", "b"], False)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("allOf", [{"minimum": 1}, {"maximum": 3}]),
        ("not", {"const": 3}),
        ("if", {"minimum": 3}),
        ("dependentRequired", {"a": ["b"]}),
        ("dependentSchemas", {"a": {"required": ["b"]}}),
    ],
)
def test_openai_s_strict_mode_lacks_keywords_so_they_are_refused_with_their_place(
    keyword: str, value: Any
) -> None:
    inner: dict[str, Any] = {"type": "integer"}
    if keyword.startswith("dependent"):
        inner = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}}
    inner |= {keyword: value, **({"then": {"maximum": 5}} if keyword == "if" else {})}
    with pytest.raises(Unhonoured, match=r"^\$\.properties\.n"):
        fields(OPENAI, only(inner))


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = INTEGER
    for _ in range(levels):
        value = OBJECT | {"properties": {"n": value}}
    return value


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (nested(11), "10 levels of nesting"),
        ({"type": "object", "properties": {f"p{i}": INTEGER for i in range(5001)}}, "5000 properties"),
        (OBJECT | {"properties": {"n": {"enum": list(range(1001))}}}, "1000 enum values"),
        (OBJECT | {"properties": {"n" * 120_001: INTEGER}, "required": []}, "120000 characters"),
    ],
    ids=["levels", "properties", "enum values", "characters"],
)
def test_openai_s_strict_mode_has_limits(schema: dict[str, Any], words: str) -> None:
    assert words in why_not(OPENAI, Constraint("json_schema", schema))


def test_openai_s_refusal_comes_apart_and_breaks_the_constraint() -> None:
    reply = Reply(llm(), 1, 0.0)
    choice = {"index": 0, "delta": {"refusal": "I cannot help with that."}, "finish_reason": "stop"}
    reply.add(decode_chunk(msgspec.json.encode({"choices": [choice]})), lambda: 1.0)
    assert reply.refused
    done = reply.completion(2.0, ["one"], Usage(), 0.0)
    with pytest.raises(ConstraintBroken, match="refused") as caught:
        judged(done, SCHEMA, refused=True)
    assert caught.value.kind == "content_policy"


def test_openai_knows_no_grammars_so_they_go_elsewhere() -> None:
    assert "ignores grammars" in why_not(OPENAI, GRAMMAR)


# --- the others


def test_ollama_takes_a_schema_and_no_grammar() -> None:
    assert fields(OLLAMA, SCHEMA)["response_format"]["json_schema"]["schema"] == OBJECT
    assert "ignores grammars" in why_not(OLLAMA, GRAMMAR)
    assert "ignores regular expressions" in why_not(OLLAMA, REGEX)


def test_sglang_takes_regex_and_ebnf_at_the_top() -> None:
    assert fields(SGLANG, REGEX) == {"regex": "[a-z]+"}
    assert fields(SGLANG, GRAMMAR).keys() == fields(SGLANG, CHOICES).keys() == {"ebnf"}
    assert fields(SGLANG, SCHEMA)["response_format"]["json_schema"]["schema"] == OBJECT


def test_tgi_has_types_of_its_own() -> None:
    assert fields(TGI, REGEX)["response_format"] == {"type": "regex", "value": "[a-z]+"}
    assert fields(TGI, SCHEMA)["response_format"] == {"type": "json", "value": OBJECT}


def test_llama_cpp_python_knows_grammars_only() -> None:
    for constraint in EVERY:
        assert fields(LLAMA_CPP_PYTHON, constraint).keys() == {"grammar"}


# --- GBNF


def test_gbnf_names_have_no_underscore() -> None:
    assert "a rule's name is expected here" in broken('root ::= my_rule\nmy_rule ::= "a"')
    assert constraint_of(grammar='root ::= my-rule\nmy-rule ::= "a"')


def test_gbnf_must_define_root() -> None:
    assert "there is no rule root" in broken('start ::= "a"')


def test_gbnf_has_literals_classes_dots_groups_repeats_and_comments() -> None:
    grammar = 'root ::= ("a" | [b-d] | [^x])* . "e"? [f]+ "g"{2} "h"{1,} "i"{1,2} # all of it\n'
    assert constraint_of(grammar=grammar) == Constraint("grammar", grammar)


def test_gbnf_knows_these_escapes_and_no_others() -> None:
    known = r'root ::= "\n\r\t\\\"\[\]\x41\u00e9\U0001F600" [\-]'
    assert constraint_of(grammar=known)
    assert "no escape" in broken(r'root ::= "\d"')


def test_gbnf_rules_end_with_their_line_except_in_parentheses_and_after_a_bar() -> None:
    assert constraint_of(grammar='root ::= (\n"a"\n) |\n"b"')
    assert broken('root ::= "a"\n"b"')


def test_gbnf_token_terminals_are_refused() -> None:
    for terminal in ("<tok>", "<[12]>", "!<tok>"):
        assert "tokens" in broken(f"root ::= {terminal}")


def test_gbnf_left_recursion_and_undefined_rules_are_refused() -> None:
    assert "left recursion" in broken('root ::= root "a" | "b"')
    assert "there is no rule b" in broken("root ::= b")


def test_gbnf_repeats_beyond_2000_are_refused_for_servers_make_them_endless() -> None:
    assert "1999 repeats" in broken('root ::= "a"{2001}')
    assert "1999 repeats" in broken('root ::= "a"{0,2001}')
    assert "repeats within repeats" in broken('root ::= ("a"{0,50}){50}')


# --- schemas that llama.cpp's converter reads in its own way


def test_llamacpp_s_converter_allows_no_further_members_unless_told() -> None:
    loose = {"type": "object", "properties": {"n": INTEGER}, "required": ["n"]}
    assert violation(Constraint("json_schema", loose), '{"n":1}') == ""  # stricter obeys as well
    assert "response_format" in fields(LLAMACPP, Constraint("json_schema", loose))


def test_llamacpp_does_not_show_the_schema_to_the_model_and_neither_does_maxwell() -> None:
    call = ChatCall(messages=HELLO, max_tokens=9, constraint=SCHEMA)
    assert LLAMACPP.body(llm(), call)["messages"] == HELLO


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "pattern": "a+"},
        {"type": "number", "minimum": 0, "maximum": 9},
        {"type": "string", "format": "email"},
        {"type": "array", "items": INTEGER, "uniqueItems": True},
        {"type": "integer", "not": {"const": 3}},
        {"type": "integer", "if": {"minimum": 3}, "then": {"maximum": 5}},
    ],
    ids=["unanchored pattern", "bounds of a number", "email", "uniqueItems", "not", "if"],
)
def test_llamacpp_s_converter_passes_over_keywords_so_none_of_them_is_sent_to_it(value: Any) -> None:
    constraint = only(value)
    if why := why_not(LLAMACPP, constraint):
        assert why.startswith("$.properties.n")
    else:
        assert fields(LLAMACPP, constraint).keys() == {"grammar"}


def test_llamacpp_s_converter_knows_no_uri_and_nobody_holds_a_text_to_one() -> None:
    uri = only({"type": "string", "format": "uri"})
    assert violation(uri, '{"n":"no address"}') == ""
    assert why_not(LLAMACPP, uri) == ""


def test_vllm_refuses_schemas_nested_beyond_64_levels_which_others_may_take() -> None:
    words = "The JSON schema is nested too deeply: objects and arrays may nest at most 64 levels"
    said = msgspec.json.encode({"error": {"message": words, "type": "BadRequestError", "code": 400}})
    assert VLLM.refusal(400, {}, said, "one").kind == "unsupported"


def test_grammars_are_checked_here_without_a_tokenizer() -> None:
    assert violation(GRAMMAR, "yes") == ""
    assert violation(GRAMMAR, "maybe") != ""
