from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.constraints import constraint_of, violation
from maxwell.constraints.compile import gbnf_of_regex, plain_regex
from maxwell.errors import BadConstraint
from maxwell.types import Constraint


def fits(kind: str, value: str, text: str) -> bool:
    return violation(Constraint(kind, value), text) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("regex", "plain"),
    [
        (r"^\d+$", "[0-9]+"),
        (r"\w*", "[0-9A-Z_a-z]*"),
        (r"a\s", r"a[ \t-\r]"),
        (r"\D|\W|\S", r"[^0-9]|[^0-9A-Z_a-z]|[^ \t-\r]"),
        (r".", r"[^\n]"),
        (r"[\s\S]*", "([^a]|a)*"),
        (r"(?:ab)+?c??", "(ab)+c?"),
        (r"a{2,}b{3}c{0,1}d{0,}e{1,}f{1}", "a{2,}b{3}c?d*e+f"),
        (r"(a|b)c", "(a|b)c"),
        (r"((a))", "a"),
        (r"[a\-\]\[^]", r"[a\-\[\]-\^]"),
        (r"[+-]", r"[+\-]"),
        (r"\x01[\x01\^a-f]", r"[\u0001][a-f\u0001\^]"),
        (r"\.\*\$\x41\u00e9\U0001f600\n\x00", "\\.\\*\\$Aé\U0001f600\\n[\\u0000]"),
        (r"a}b]", r"a\}b\]"),
        (r"^(a|b)$", "a|b"),
        (r"()|a", "|a"),
        (r"(a*)*", "(a+)*"),
        (r"(a?b?){2,3}", "(ab?|b){0,3}"),
    ],
)
def test_plain_writing(regex: str, plain: str) -> None:
    assert constraint_of(regex=regex) is not None
    assert plain_regex(regex) == plain


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("", "it is empty"),
        ("a(?=b)", "character 2: (?=b is not understood by every server"),
        ("a(?!b)", "character 2: (?!b is not understood"),
        ("(?<=a)b", "character 1: (?<= is not understood"),
        ("(?i)a", "character 1: (?i) is not understood"),
        ("(?P<n>a)", "character 1: (?P< is not understood"),
        ("(?>a)", "character 1: (?>a is not understood"),
        (r"(a)\1", r"character 4: \1 is not understood by every server in the same way"),
        (r"\ba", r"character 1: \b is not understood"),
        (r"\Aa", r"character 1: \A is not understood"),
        (r"\p{L}", r"character 1: \p is not understood"),
        ("\\", "character 1: \\ is not understood"),
        ("\\é", "character 1: \\é is not understood"),
        (r"\x4", "character 1: an escape of 2 hexadecimal digits is cut short"),
        (r"\U00110000", "character 1: there is no such character"),
        (r"a\ud800", "character 7: half of a surrogate pair"),
        ("a^b", "character 2: an anchor may only stand at an end"),
        ("a$b", "character 2: an anchor may only stand at an end"),
        ("(a$)b", "character 3: an anchor may only stand at an end"),
        ("^a|b", "character 1: put the alternatives in parentheses"),
        ("(a", "character 1: a ( without its )"),
        ("a)", "character 2: a ) without its ("),
        ("[a", "character 1: a [ without its ]"),
        ("[]", "character 1: an empty class"),
        ("[]a]", "character 1: an empty class"),
        ("[^]", "character 1: an empty class"),
        (r"[^\s\S]", "character 1: an empty class"),
        ("[[a]", r"character 2: write \[ for the character ["),
        ("[a&&b]", "character 3: && inside a class"),
        ("[z-a]", "character 2: a range that runs backwards"),
        (r"[a-\d]", "character 2: a range between classes"),
        ("*a", "character 1: nothing before * to repeat"),
        ("(+)", "character 2: nothing before + to repeat"),
        ("a**", "character 3: a repeat of a repeat"),
        ("a*+", "character 3: a repeat of a repeat"),
        ("a{2}{3}", "character 5: a repeat of a repeat"),
        ("a{", "character 2: { must begin {n}, {n,} or {n,m}"),
        ("a{,2}", "character 2: { must begin"),
        ("{a", r"character 1: write \{ for the character {"),
        ("a{3,2}", "character 2: a repeat of at least 3 and at most 2"),
        ("a{10001}", "character 2: more than 10000 repeats"),
    ],
)
def test_a_regex_that_servers_read_differently_is_refused_with_its_place(regex: str, message: str) -> None:
    with pytest.raises(BadConstraint, match=f"^regex[,:] {re.escape(message)}"):
        constraint_of(regex=regex)


@pytest.mark.parametrize(
    ("regex", "text", "obeys"),
    [
        (r"\d", "\u0663", False),
        (r"\w", "é", False),
        (r"\W", "é", True),
        (r"\s", "\u00a0", False),
        (r".", "\n", False),
        (r".", "\r", True),
        (r"[^a]", "\n", True),
        (r"a$", "a\n", False),
        (r"a|ab", "ab", True),
        (r"a*?", "aaa", True),
    ],
)
def test_the_one_meaning(regex: str, text: str, obeys: bool) -> None:
    assert fits("regex", regex, text) is obeys
    assert fits("grammar", gbnf_of_regex(regex), text) is obeys


# --- the same as Python's own regexes, where those have one meaning too

ATOMS = st.sampled_from(
    ["a", "b", "-", r"\.", ".", r"\d", r"\W", r"\s", "[ab]", r"[^a\n]", "[a-c-]", r"\n", "é", '"']
)
SIGNS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])


def bigger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.tuples(st.lists(inner, min_size=1, max_size=3).map("|".join), SIGNS)
    return st.lists(
        st.tuples(ATOMS, SIGNS).map("".join) | group.map(lambda g: f"({g[0]}){g[1]}"), max_size=3
    ).map("".join)


REGEXES = st.recursive(st.tuples(ATOMS, SIGNS).map("".join), bigger, max_leaves=8).filter(bool)
TEXTS = st.text(alphabet='ab-.1_ \n"éc', max_size=8)


@settings(deadline=None, max_examples=120)
@given(REGEXES, st.data())
def test_every_writing_of_a_regex_means_the_same(regex: str, data: st.DataObject) -> None:
    truth = re.compile(regex, re.ASCII)
    plain = re.compile(plain_regex(regex))
    grammar = gbnf_of_regex(regex)
    assert constraint_of(grammar=grammar) is not None
    matching = st.from_regex(truth, fullmatch=True)
    for text in (data.draw(TEXTS), data.draw(matching)):
        obeys = truth.fullmatch(text) is not None
        assert fits("regex", regex, text) is obeys
        assert (plain.fullmatch(text) is not None) is obeys
        assert fits("grammar", grammar, text) is obeys
