"""Grammars as servers other than llama.cpp read them."""

from __future__ import annotations

from functools import lru_cache

from maxwell.constraints.expressions import Alt, Expr, Ref, Repeat, Seq
from maxwell.constraints.gbnf import parse_gbnf
from maxwell.constraints.write_gbnf import gbnf_text
from maxwell.errors import BadConstraint


@lru_cache(maxsize=16)
def check_grammar(grammar: str) -> None:
    """Refuses a grammar that llama.cpp would, or that the servers with llguidance inside would.

    Raises:
        BadConstraint: It is wrong; the message names the place, or the reason.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    plain = plain_grammar(grammar)
    try:
        lark = any_to_lark(plain)
    except Exception as error:  # it raises a plain Exception for a grammar that it does not understand
        raise BadConstraint(f"grammar: {error}") from error
    wrong = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark))
    if wrong and not wrong.startswith("WARNING"):
        raise BadConstraint(f"grammar: {wrong.splitlines()[0][:200]}")


@lru_cache(maxsize=16)
def plain_grammar(grammar: str) -> str:
    """The same grammar in the part of GBNF that every server reads alike.

    Without `.` (with or without the newline, by server), without escapes that not all readers know, without
    repeats of repeats, and with rule names that do not fall together where capitals are not told apart.

    Raises:
        BadConstraint: It is no grammar.
    """
    rules = parse_gbnf(grammar)
    others = [name for name in rules if name != "root"]
    names = {"root": "root"} | {name: f"r{index}" for index, name in enumerate(others)}
    return gbnf_text({names[name]: _renamed(expr, names) for name, expr in rules.items()})


def _renamed(expr: Expr, names: dict[str, str]) -> Expr:
    match expr:
        case Ref(name):
            return Ref(names[name])
        case Seq(items):
            return Seq(tuple(_renamed(item, names) for item in items))
        case Alt(options):
            return Alt(tuple(_renamed(option, names) for option in options))
        case Repeat(item, least, most):
            return Repeat(_renamed(item, names), least, most)
        case _:
            return expr
