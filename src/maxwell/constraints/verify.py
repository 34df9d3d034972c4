"""Whether a reply obeys its constraint."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from maxwell.constraints.expressions import ANY, Rules, repeat, seq
from maxwell.constraints.machine import Machine, TooAmbiguousError
from maxwell.errors import BadConstraint
from maxwell.types import Constraint

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


_INCOMPLETE, _EMPTY = "it is not complete: ", "it is empty"
_CUT = re.compile(r"\s*(?:t|tr|tru|f|fa|fal|fals|n|nu|nul|-?[0-9.eE+-]*)\s*")  # a word or a number begun
_ESCAPE = 6  # characters of \u1234
_FENCE = "`"  # of Markdown, which llama.cpp lets a model write around JSON and takes away at the end


def violation(constraint: Constraint, text: str) -> str:
    """In what `text` does not obey, e.g. "$.age: 'x' is not of type 'integer'"; "" where it does.

    Messages are short: of a long text only the place is quoted. Made for constraints of `constraint_of`.
    """
    match constraint.kind:
        case "json_schema":
            return _of_schema(constraint.key.decode(), text)
        case "choices":
            return "" if text in constraint.value else f"{_quoted(text)} is none of the choices"
        case "regex":
            from maxwell.constraints.regexes import parse_regex

            return _of_rules({"root": parse_regex(constraint.value).expr}, text)
        case "grammar":
            from maxwell.constraints.gbnf import parse_gbnf

            return _of_rules(parse_gbnf(constraint.value), text)


def misbegun(constraint: Constraint, text: str) -> str:
    """Why no text that begins with `text` can obey, as far as that can be told; "" where one may.

    For replies that were cut off: of a schema only that it is JSON is looked at.
    """
    match constraint.kind:
        case "json_schema":
            return _not_json_so_far(text)
        case "choices":
            begun = any(choice.startswith(text) for choice in constraint.value)
            return "" if begun else f"{_quoted(text)} is the beginning of no choice"
    broken = violation(constraint, text)
    return "" if broken == _EMPTY or broken.startswith(_INCOMPLETE) else broken


def _not_json_so_far(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        # What was cut in the midst of a text, an escape, a number or a word is told where that begins.
        is_at_end = error.pos >= len(text.rstrip()) or _CUT.fullmatch(text, error.pos)
        is_escape = error.msg.startswith("Invalid \\u") and len(text) - error.pos <= _ESCAPE
        is_text = error.msg.startswith("Unterminated") or text.lstrip().startswith(_FENCE)
        if is_at_end or is_escape or is_text:
            return ""
        return f"it is not JSON: {error.msg} ({_place(text, error.pos)})"
    except (ValueError, RecursionError):
        return ""
    return ""


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."


def _of_rules(rules: Rules, text: str) -> str:
    try:
        index = Machine(rules).misfit(text)
    except TooAmbiguousError as error:
        return f"it cannot be checked: {error}"
    if index is None:
        return ""
    before = _place(text, index)
    if index == len(text):
        return f"{_INCOMPLETE}more must follow {before}" if text else _EMPTY
    return f"character {index + 1}, {text[index]!r}, does not fit {before}"


def _place(text: str, index: int) -> str:
    """Where that is, by what stands before it."""
    return f"after {_tail(text[:index])}" if index else "at the beginning"


def _tail(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"...{text[-40:]!r}"


class _BadJSON(ValueError):
    pass


def _of_schema(encoding: str, text: str) -> str:
    from jsonschema.exceptions import best_match

    from maxwell.constraints.schemas import shortened

    try:
        value = _parsed(text)
    except _BadJSON as error:
        return f"it is not JSON: {error}"
    try:
        broken = best_match(schema_validator(encoding).iter_errors(value))
    except RecursionError:
        return "it is nested too deeply to be checked"
    return "" if broken is None else f"{broken.json_path[:80]}: {shortened(broken.message, broken.instance)}"


def _parsed(text: str) -> Any:
    """The JSON value of the whole text, by the letter of the standard.

    Raises:
        _BadJSON: It is none, or one that readers understand differently.
    """
    try:
        return json.loads(text, object_pairs_hook=_members, parse_constant=_constant, parse_float=_float)
    except _BadJSON:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _BadJSON(f"{error.msg} ({place}, {_place(text, error.pos)})") from None
    except RecursionError:
        raise _BadJSON("it is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise _BadJSON(str(error)[:80]) from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _BadJSON(f"the key {_quoted(name)} is there twice")
        found[name] = value
    return found


def _constant(name: str) -> Any:
    raise _BadJSON(f"{name} is no JSON value")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _BadJSON(f"the number {_quoted(digits)} is beyond what a reader can hold")
    return number


@lru_cache(maxsize=32)
def schema_validator(encoding: str) -> Validator:
    """A validator of the schema, made once; it is not changed by its use."""
    from jsonschema import FormatChecker
    from jsonschema.validators import extend

    from maxwell.constraints.schemas import CHECKED_FORMATS, checked, validator_class

    schema = checked(encoding)
    kind: type[Validator] = extend(validator_class(schema), {"pattern": _pattern})  # type: ignore[no-untyped-call]
    return kind(schema, format_checker=FormatChecker(CHECKED_FORMATS))


def _pattern(_: Any, pattern: str, instance: object, __: Any) -> Iterator[Exception]:
    """The keyword `pattern`, where the pattern allows without `re`'s exponential time and its own `\\d`."""
    import re

    from jsonschema.exceptions import ValidationError

    if not isinstance(instance, str):
        return
    rules = searched(pattern)
    try:
        found = (
            bool(re.search(pattern, instance)) if rules is None else Machine(rules).misfit(instance) is None
        )
    except TooAmbiguousError:
        found = False
    if not found:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def searched(pattern: str) -> Rules | None:
    """The texts in which `pattern` is found; None where it is no regex of the common kind."""
    from maxwell.constraints.regexes import parse_regex

    try:
        found = parse_regex(pattern)
    except BadConstraint:
        return None
    anything = repeat(ANY, 0, None)
    before = [] if found.starts else [anything]
    after = [] if found.ends else [anything]
    return {"root": seq(*before, found.expr, *after)}
