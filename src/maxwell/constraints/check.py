"""Makes a `Constraint` of what a caller gives, and refuses what is itself wrong before a server sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maxwell.errors import BadConstraint
from maxwell.types import Constraint, ConstraintKind


def constraint_of(
    *,
    json_schema: dict[str, Any] | None = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    regex: str | None = None,
) -> Constraint | None:
    """The one constraint that is given, checked; None where none is.

    Args:
        json_schema: JSON Schema (2020-12, or the draft that `$schema` names), referring only to itself.
        grammar: GBNF with a rule `root`.
        choices: Different, non-empty texts.
        regex: Matches the whole reply; `\\d \\w \\s` are ASCII, `.` is anything but a newline.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: More than one is given.
        BadConstraint: It is itself wrong; the message names the place.
    """
    given = {"json_schema": json_schema, "grammar": grammar, "choices": choices, "regex": regex}
    found = [name for name, value in given.items() if value is not None]
    if len(found) > 1:
        raise ValueError(f"a reply obeys one constraint, but {' and '.join(found)} are given")
    if json_schema is not None:
        return Constraint("json_schema", _checked_schema(json_schema))
    if choices is not None:
        return Constraint("choices", _checked_choices(choices))
    if grammar is not None:
        return Constraint("grammar", _checked_grammar(grammar))
    if regex is not None:
        return Constraint("regex", _checked_regex(regex))
    return None


def _str(kind: ConstraintKind, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{kind} must be a str, not {type(value).__name__}")
    return value


def _checked_schema(schema: object) -> dict[str, Any]:
    import json

    from maxwell.constraints.schemas import checked, encoded

    if not isinstance(schema, dict):
        raise TypeError(f"json_schema must be a dict, not {type(schema).__name__}")
    encoding = encoded(schema)
    checked(encoding)
    own: dict[str, Any] = json.loads(encoding)  # the caller may change theirs later
    return own


def _checked_choices(choices: object) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise TypeError(f"choices must be a list of str, not {type(choices).__name__}")
    if not choices:
        raise BadConstraint("choices: there are none")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise TypeError(f"choices[{index}] must be a str, not {type(choice).__name__}")
        if not choice:
            raise BadConstraint(f"choices[{index}]: an empty text cannot be chosen")
        if "\0" in choice or any("\ud800" <= char <= "\udfff" for char in choice):
            raise BadConstraint(f"choices[{index}]: {choice[:80]!r} holds what is no character")
        if choice in choices[:index]:
            raise BadConstraint(f"choices[{index}]: {choice[:80]!r} is there twice")
    return tuple(choices)


def _checked_grammar(grammar: object) -> str:
    from maxwell.constraints.grammars import check_grammar

    own = _str("grammar", grammar)
    check_grammar(own)
    return own


def _checked_regex(regex: object) -> str:
    from maxwell.constraints.regexes import parse_regex

    own = _str("regex", regex)
    if not own:
        raise BadConstraint("regex: it is empty")
    parse_regex(own)
    return own
