"""What backends make of constraints: the same demand in another server's words. All of it pure.

Each is sound: a text that obeys the result obeys the constraint it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence

from maxwell.constraints.expressions import alt, text
from maxwell.constraints.grammars import plain_grammar
from maxwell.constraints.regexes import parse_regex, plain_regex
from maxwell.constraints.schema_gbnf import gbnf_of_schema
from maxwell.constraints.schemas import unenforced
from maxwell.constraints.strict import needs_wrapping, strict_schema, wrapped_schema
from maxwell.constraints.write_gbnf import gbnf_text

__all__ = [
    "gbnf_of_choices",
    "gbnf_of_regex",
    "gbnf_of_schema",
    "needs_wrapping",
    "plain_grammar",
    "plain_regex",
    "strict_schema",
    "unenforced",
    "wrapped_schema",
]


def gbnf_of_choices(choices: Sequence[str]) -> str:
    """GBNF of exactly one of these texts."""
    return gbnf_text({"root": alt(*map(text, choices))})


def gbnf_of_regex(regex: str) -> str:
    """GBNF of exactly the texts that the regex matches whole.

    Raises:
        BadConstraint: It is not a regex of the common kind.
        Unhonoured: A repeat is beyond what llama.cpp holds to.
    """
    return gbnf_text({"root": parse_regex(regex).expr})
