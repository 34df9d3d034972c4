"""Which keywords of a JSON Schema a server holds its text to; what it would pass over in silence is not sent.

Both rules are made for `constraints.compile.unenforced` and say whether `keyword` is held where it stands in
`schema`. They follow what real servers did. Where one says no, the schema is sent as a grammar instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]
_Rules = Mapping[str, Callable[[Schema], bool]]

# A keyword that decides alone, in the order of llama.cpp's converter: what stands beside it is ignored.
_RULING = ("$ref", "oneOf", "anyOf", "const", "enum")
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_BOUNDS = (*_LOWER, *_UPPER)
_LENGTHS = ("minLength", "maxLength")
_COUNTS = ("minItems", "maxItems")

# References that every server resolves; escapes and steps into lists are read differently.
_PLAIN_REF = re.compile(r"#/(?:\$defs|definitions|properties)/[A-Za-z0-9_.-]+")

# llama.cpp's grammars repeat at most so often; beyond it a limit is dropped or the grammar refused.
_MOST_REPEATS = 1999

# One-sided bounds of integers come out right only within these: a lone minimum of 1000 lets 12 through, and a
# lone negative maximum lets -05 through, which is no JSON.
_MOST_LONE_MINIMUM, _LEAST_LONE_MAXIMUM = 10, 0
_MOST_INTEGER = 10**15

# A pattern without anything that xgrammar reads in its own way, or writes into JSON without escaping it.
_PLAIN_PATTERN = re.compile(r'\^?(?:\[\^?[^]\["\\^$]+\]|\(\?:|[^]\["\\^$?]|(?<=[^(])\?)*\$?')

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
    "integer": (int,),
    "number": (int, float),
}


def by_llamacpp(keyword: str, schema: Schema) -> bool:
    """Whether llama.cpp's converter, which turns a schema into a grammar, holds to `keyword`."""
    return _is_held(keyword, schema, _RULING, _BY_LLAMACPP)


def by_vllm(keyword: str, schema: Schema) -> bool:
    """Whether both of vLLM's engines, xgrammar and llguidance, hold to `keyword`: a server may run either."""
    return _is_held(keyword, schema, (*_RULING, "allOf"), _BY_VLLM)


def _is_held(keyword: str, schema: Schema, ruling: tuple[str, ...], rules: _Rules) -> bool:
    ruler = next((name for name in ruling if name in schema), None)
    if keyword == "type" and ruler in ("const", "enum"):
        values = schema["enum"] if ruler == "enum" else [schema["const"]]
        return all(_has_type(value, _types(schema)) for value in values)
    if ruler is not None and keyword != ruler:
        return False
    return keyword in rules and rules[keyword](schema)


def _always(schema: Schema) -> bool:
    return True


def _has_plain_ref(schema: Schema) -> bool:
    return _PLAIN_REF.fullmatch(schema["$ref"]) is not None


def _requires_named(schema: Schema) -> bool:
    return bool(schema.get("properties", {}).keys() >= set(schema["required"]))


def _has_alone(schema: Schema, kind: str, *others: str) -> bool:
    """Whether a keyword for values of `kind` stands beside that type, and beside none of `others`."""
    return kind in _types(schema) and not schema.keys() & set(others)


def _is_counted(schema: Schema) -> bool:
    """Whether the number of items is right: as many as one likes of one kind, or exactly those of a tuple."""
    if "items" in schema or "prefixItems" not in schema:
        return "items" in schema
    length = len(schema["prefixItems"])
    return bool(schema.get("minItems", 0) <= length <= schema.get("maxItems", length))


def _is_whole_range(schema: Schema) -> bool:
    numeric = not _types(schema).isdisjoint(("integer", "number"))
    return numeric and all(_is_whole(schema[name]) for name in _BOUNDS if name in schema)


def _is_sound_range(schema: Schema) -> bool:
    """Whether llama.cpp writes these bounds of an integer down rightly."""
    types = _types(schema)
    lower = [schema[name] + (name != "minimum") for name in _LOWER if name in schema]
    upper = [schema[name] - (name != "maximum") for name in _UPPER if name in schema]
    if "integer" not in types or "number" in types or not all(map(_is_whole, lower + upper)):
        return False
    if len(lower) > 1 or len(upper) > 1:
        return False
    if lower and upper:
        return bool(lower[0] <= upper[0])
    return bool(lower[0] <= _MOST_LONE_MINIMUM if lower else upper[0] >= _LEAST_LONE_MAXIMUM)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and abs(value) <= _MOST_INTEGER


def _is_bearable(schema: Schema, *names: str) -> bool:
    return all(schema.get(name, 0) <= _MOST_REPEATS for name in names)


def _types(schema: Schema) -> frozenset[str]:
    """The types a schema names; none where it names none."""
    named = schema.get("type", ())
    return frozenset((named,) if isinstance(named, str) else named)


def _has_type(value: Any, types: frozenset[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, _TYPES[name]) for name in types)


def _are_schemas(values: Any) -> bool:
    """Whether none of them is `true` or `false`, which llama.cpp refuses."""
    return all(isinstance(value, dict) for value in values)


_BY_LLAMACPP: _Rules = {
    "type": _always,
    "const": _always,
    "enum": _always,
    "$ref": _has_plain_ref,
    "anyOf": lambda schema: _are_schemas(schema["anyOf"]),
    "required": _requires_named,
    "additionalProperties": _always,
    # Beside named properties the further keys may be any text, even what is no JSON.
    "properties": lambda schema: (
        schema.get("additionalProperties", False) is False and _are_schemas(schema["properties"].values())
    ),
    "items": lambda schema: isinstance(schema["items"], dict),
    "prefixItems": lambda schema: "items" not in schema and _are_schemas(schema["prefixItems"]),
    "format": lambda schema: schema["format"] == "uuid" and "pattern" not in schema,
    **dict.fromkeys(_BOUNDS, _is_sound_range),
    **dict.fromkeys(_COUNTS, lambda schema: _is_counted(schema) and _is_bearable(schema, *_COUNTS)),
    **dict.fromkeys(
        _LENGTHS,
        lambda schema: _has_alone(schema, "string", "pattern", "format") and _is_bearable(schema, *_LENGTHS),
    ),
}

_BY_VLLM: _Rules = {
    "type": _always,
    "const": _always,
    "enum": _always,
    "$ref": lambda schema: schema["$ref"] == "#" or _has_plain_ref(schema),
    "anyOf": _always,
    "allOf": lambda schema: len(schema["allOf"]) == 1,
    "required": _requires_named,
    "properties": _always,
    "additionalProperties": _always,
    "minProperties": _always,
    "maxProperties": _always,
    "items": lambda schema: not isinstance(schema["items"], list),
    "prefixItems": _always,
    "format": lambda schema: schema["format"] == "uuid",
    "pattern": lambda schema: (
        _has_alone(schema, "string", "format", *_LENGTHS)
        and _PLAIN_PATTERN.fullmatch(schema["pattern"]) is not None
    ),
    **dict.fromkeys(_BOUNDS, _is_whole_range),
    **dict.fromkeys(_COUNTS, _is_counted),
    **dict.fromkeys(_LENGTHS, lambda schema: _has_alone(schema, "string", "pattern", "format")),
}
