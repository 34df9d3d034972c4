from __future__ import annotations

import re

import pytest

from maxwell.constraints import constraint_of, violation
from maxwell.constraints.compile import gbnf_of_choices, gbnf_of_regex, plain_grammar
from maxwell.constraints.gbnf import parse_gbnf
from maxwell.errors import BadConstraint
from maxwell.types import Constraint

JSON = r"""
# A grammar as people write them.
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def fits(grammar: str, text: str) -> bool:
    return violation(Constraint("grammar", grammar), text) == ""


@pytest.mark.parametrize("text", ['{"a": [1, "é\\n", -2.5e3, null], "b": {}}', "{}", '{\n  "a": true }'])
def test_a_grammar_as_people_write_them(text: str) -> None:
    assert constraint_of(grammar=JSON) is not None
    assert fits(JSON, text)
    assert fits(plain_grammar(JSON), text)
    assert not fits(JSON, text[:-1])


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ('root ::= "a" [b-d]? "é"', ["aé", "abé", "adé"], ["abb", "aeé", ""]),
        ('root ::= "a"{2}', ["aa"], ["a", "aaa"]),
        ('root ::= "a"{2,}', ["aa", "aaaaa"], ["a"]),
        ('root ::= "a"{ 1 , 2 }', ["a", "aa"], ["", "aaa"]),
        ('root ::= "a"{0} "b"', ["b"], ["ab"]),
        ('root ::= ("a" | "b" |) "c"', ["ac", "bc", "c"], ["abc"]),
        ('root ::= a b\na ::= [x-z]*\nb ::= "y"', ["y", "xzyy"], ["x", ""]),
        ("root ::= .", ["\n", "a", "\U0001f600"], ["", "ab"]),
        ("root ::= [^a-c\\n]", ["d", "\r"], ["a", "\n"]),
        ("root ::= [a\\-z]", ["a", "-", "z"], ["b", "\\"]),
        ("root ::= [-a] [a-]", ["--", "aa"], ["b-"]),
        ("root ::= [\\]\\[^]", ["]", "[", "^"], ["\\"]),
        ('root ::= "\\x41\\u00e9\\U0001F600\\t\\r\\n\\"\\\\"', ['Aé\U0001f600\t\r\n"\\'], ["A"]),
        ('root ::= "a" | # or\n "b"\n\n', ["a", "b"], ["c"]),
        ('root ::= (\n"a"\n|\n"b"\n)\r\n', ["a", "b"], ["c"]),
        ('root ::= "(" root ")" | ""', ["", "((()))"], ["(()"]),
        ('Root ::= "x"\nroot ::= Root "a"*\n', ["x", "xaa"], ["a"]),
    ],
)
def test_what_a_grammar_means(grammar: str, yes: list[str], no: list[str]) -> None:
    assert constraint_of(grammar=grammar) is not None
    for text in yes:
        assert fits(grammar, text), text
        assert fits(plain_grammar(grammar), text), text
    for text in no:
        assert not fits(grammar, text), text
        assert not fits(plain_grammar(grammar), text), text


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "there is no rule root"),
        ('start ::= "a"', "there is no rule root"),
        ("garbage (((", "line 1, column 9: ::= is expected here"),
        ("root ::= undefined-rule", "rule root: there is no rule undefined-rule"),
        ('root ::= "a"\nb ::= c', "rule b: there is no rule c"),
        ('root ::= my_rule\nmy_rule ::= "a"', "line 1, column 12: a rule's name is expected here"),
        ('root ::= "a"\n_b ::= "b"', "line 2, column 1: a rule's name is expected here"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: rule root is defined twice"),
        ('root ::= "a', 'line 1, column 10: a " without its end'),
        ('root ::= "a\\', "line 1, column 12: there is no escape \\"),
        ("root ::= [a", "line 1, column 10: a [ without its ]"),
        ("root ::= []", "line 1, column 10: an empty class"),
        ("root ::= [^]", "line 1, column 10: an empty class"),
        ("root ::= [z-a]", "line 1, column 10: a range that runs backwards"),
        ('root ::= ("a"', "line 1, column 10: a ( without its )"),
        ('root ::= "a")', "line 1, column 13: ')' is not understood here"),
        ("root ::= 'a'", 'line 1, column 10: "\'" is not understood here'),
        ('root ::= "\\d"', "line 1, column 11: there is no escape \\d"),
        ('root ::= "\\x4"', "line 1, column 11: \\x needs 2 hexadecimal digits"),
        ('root ::= "\\uD800"', "line 1, column 11: there is no such character"),
        ('root ::= "\\U00110000"', "line 1, column 11: there is no such character"),
        ('root ::= "a\0"', "line 1, column 12: a NUL character"),
        ("root ::= *", "line 1, column 10: nothing before * to repeat"),
        ('root ::= ""+', "line 1, column 12: nothing to repeat"),
        ('root ::= "a"{3,2}', "line 1, column 13: a repeat of at least 3 and at most 2"),
        ('root ::= "a"{2000}', "line 1, column 13: more than 1999 repeats"),
        ('root ::= "a"{0,2000}', "line 1, column 13: more than 1999 repeats"),
        ('root ::= "a"{,2}', "line 1, column 14: a number is expected here"),
        ('root ::= "a"{2', "line 1, column 15: a repeat is written"),
        ('root ::= ("a"{0,50}){50}', "line 1, column 21: too many repeats within repeats"),
        ('root ::= "a"{50}{50}', "line 1, column 17: too many repeats within repeats"),
        ("root ::= <think>", "line 1, column 10: tokens (<...>) cannot be checked"),
        ("root ::= !<[1]>", "line 1, column 10: tokens (<...>) cannot be checked"),
        ('root ::= root "a" | "b"', "rule root: left recursion (root -> root)"),
        ('root ::= a\na ::= b\nb ::= c? a "x" | "y"\nc ::= "c"', "rule a: left recursion (a -> b -> a)"),
        ('root ::= "a"\nb ::= b', "rule b: left recursion (b -> b)"),
        ('root ::= ("a"*)*', "rule root: an endless repeat of what may be empty"),
        ('root ::= a+\na ::= "x"?', "rule root: an endless repeat of what may be empty"),
        ('root ::= "x" ("y" a*)?\na ::= "a" | ""', "rule root: an endless repeat of what may be empty"),
        ('root ::= "a" root', "no text ever ends it (rule root)"),
        ('root ::= "a" b\nb ::= "b" c\nc ::= "c" b', "no text ever ends it (rule b, c, root)"),
    ],
)
def test_a_wrong_grammar_is_refused_with_its_place(grammar: str, message: str) -> None:
    with pytest.raises(BadConstraint, match=f"^grammar[,:].*{re.escape(message)}"):
        constraint_of(grammar=grammar)


def test_many_repeats_of_a_rule_are_allowed() -> None:
    assert constraint_of(grammar='root ::= a{30}\na ::= ("b" | "c"){0,100}') is not None


def test_names_that_differ_by_capitals_are_told_apart() -> None:
    grammar = 'root ::= fooBar foo-bar Foo\nfooBar ::= "a"\nfoo-bar ::= "b"\nFoo ::= "c"'
    assert constraint_of(grammar=grammar) is not None
    assert fits(plain_grammar(grammar), "abc")


def test_choices_become_a_grammar() -> None:
    assert gbnf_of_choices(["yes", "no"]) == 'root ::= "yes" | "no"\n'
    odd = ['say "hi"\\', "new\nline\ttab", "Größe", "a", "|", "[x]*", "\x01"]
    grammar = gbnf_of_choices(odd)
    assert grammar.splitlines() == [
        r'root ::= "say \"hi\"\\" | "new\nline\ttab" | "Größe" | "a" | "|" | "[x]*" | [\x01]'
    ]
    assert constraint_of(grammar=grammar) is not None
    assert all(fits(grammar, choice) for choice in odd)
    assert not fits(grammar, "x")
    assert gbnf_of_choices(["only"]) == 'root ::= "only"\n'


def test_a_regex_becomes_a_grammar() -> None:
    assert gbnf_of_regex(r"^\d{3}-(a|b*)?$") == 'root ::= [0-9]{3} "-" part-0?\npart-0 ::= "a" | "b"+\n'
    assert gbnf_of_regex(r"\x01a\x7f") == 'root ::= [\\x01] "a" [\\x7F]\n'
    assert gbnf_of_regex(r"[^\]\-^a-c]") == "root ::= [^a-c\\x2D\\x5D-\\x5E]\n"


@pytest.mark.parametrize("count", [900, 901, 1999, 2500])
def test_many_repeats_are_written_so_that_servers_hold_to_them(count: int) -> None:
    for regex, least, most in ((f"a{{{count}}}", count, count), (f"(ab?){{3,{count}}}", 3, 2 * count)):
        grammar = gbnf_of_regex(regex)
        assert constraint_of(grammar=grammar) is not None
        assert fits(grammar, "a" * least)
        assert not fits(grammar, "a" * (least - 1))
        assert fits(grammar, "ab" * (most // 2) if "b" in regex else "a" * most)
        assert not fits(grammar, "a" * (count + 1))


def test_a_parsed_grammar_is_kept() -> None:
    assert parse_gbnf(JSON) is parse_gbnf(JSON)
