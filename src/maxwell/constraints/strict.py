"""JSON Schema brought into the subset that OpenAI's strict mode holds a reply to.

Only what leaves every reply obeying the original is changed: no further members are allowed, and optional
members become required, each with its own schema. What the subset lacks is refused with its path.
"""

from __future__ import annotations

import copy
from typing import Any

from maxwell.constraints.disjoint import apart
from maxwell.constraints.schemas import (
    Schema,
    applies,
    member,
    resolved,
    subschemas,
    types_of,
    validator_class,
    words,
)
from maxwell.constraints.unhonoured import Unhonoured

MOST_PROPERTIES = 5000
MOST_LEVELS = 10
MOST_ENUM_VALUES = 1000
MOST_NAME_CHARS = 120_000
MOST_LONG_ENUM_CHARS = 15_000  # of a string enum with more than 250 values

_BY_TYPE = {  # what strict mode holds a value of each type to
    "object": words("properties required additionalProperties unevaluatedProperties"),
    "array": words("items minItems maxItems"),
    "string": words("pattern format"),
    "number": words("multipleOf minimum maximum exclusiveMinimum exclusiveMaximum"),
}
_ALLOWED = words("type $ref anyOf enum const").union(*_BY_TYPE.values())
_FORMATS = words("date-time time date duration email hostname ipv4 ipv6 uuid")
_KEPT = ("title", "description")


def needs_wrapping(schema: Schema) -> bool:
    """Whether the root is not the plain object that strict mode wants: send `wrapped_schema` instead."""
    return types_of(schema) != ("object",) or any(
        keyword in schema for keyword in ("anyOf", "$ref", "enum", "const")
    )


def wrapped_schema(schema: Schema) -> Schema:
    """The schema of `{"value": ...}` around what obeys `schema`, its references mended."""
    inner = copy.deepcopy(schema)
    inner.pop("$schema", None)
    inner.pop("$id", None)
    defs: Schema = {keyword: inner.pop(keyword) for keyword in ("$defs", "definitions") if keyword in inner}
    name = "value"
    while name in defs.get("$defs", {}):
        name += "_"
    value = inner
    for _, sub in subschemas({**defs, "allOf": [inner]}):
        ref = sub.get("$ref") if isinstance(sub, dict) else None
        if isinstance(ref, str) and not ref.startswith(("#/$defs/", "#/definitions/")):
            sub["$ref"] = f"#/$defs/{name}{ref[1:]}"
            value = {"$ref": f"#/$defs/{name}"}  # what refers to the root needs it among the definitions
    if value is not inner:
        defs["$defs"] = {**defs.get("$defs", {}), name: inner}
    return {
        "type": "object",
        "properties": {"value": value},
        "required": ["value"],
        "additionalProperties": False,
        **defs,
    }


def strict_schema(schema: Schema) -> Schema:
    """The schema in OpenAI's strict subset; every reply that obeys it obeys `schema`.

    Raises:
        Unhonoured: The subset cannot say it, or it is beyond the limits; the message begins with the path.
    """
    if needs_wrapping(schema):
        raise Unhonoured("$: strict mode wants an object at the root")
    strict = _strict(schema, "$", schema)
    _check_endless(schema)
    _check_limits(strict)
    return strict


def _strict(schema: Any, path: str, root: Schema) -> Schema:
    if not isinstance(schema, dict):
        raise Unhonoured(f"{path}: strict mode knows no schema {schema}")
    demands = {keyword: value for keyword, value in schema.items() if applies(keyword, schema)}
    out: Schema = {keyword: schema[keyword] for keyword in _KEPT if keyword in schema}
    if schema.get("format") in _FORMATS:
        demands["format"] = schema["format"]
    out |= _demands(schema, demands, path, root)
    if "$ref" in out:
        out = {"$ref": out["$ref"]}  # strict mode takes nothing beside it
    for keyword in ("$defs", "definitions"):
        if keyword in schema:
            where = member(path, keyword)
            out[keyword] = {n: _strict(part, member(where, n), root) for n, part in schema[keyword].items()}
    return out


def _demands(schema: Schema, demands: dict[str, Any], path: str, root: Schema) -> Schema:
    for keyword in ("$ref", "anyOf", "oneOf", "allOf"):
        if keyword in demands:
            beside = next((other for other in demands if other != keyword), None)
            if beside:
                raise Unhonoured(f"{member(path, beside)}: strict mode may not enforce it beside {keyword}")
            return _combined(keyword, demands[keyword], path, root)
    for keyword, value in demands.items():
        _check_keyword(keyword, value, member(path, keyword))
    if "enum" in demands or "const" in demands:
        return _listed(demands, path)
    if "type" not in demands:
        raise Unhonoured(f"{path}: strict mode wants a type here")
    out = copy.deepcopy(demands)
    if "object" in types_of(schema):
        out |= _members(schema, path, root)
        out.pop("unevaluatedProperties", None)
    if "array" in types_of(schema):
        if not isinstance(schema.get("items"), dict) or not schema["items"]:
            raise Unhonoured(f"{path}.items: strict mode wants to know what the elements are")
        out["items"] = _strict(schema["items"], f"{path}.items", root)
    return out


def _check_keyword(keyword: str, value: Any, path: str) -> None:
    if keyword not in _ALLOWED:
        raise Unhonoured(f"{path}: strict mode has no {keyword}")
    if keyword == "format" and value not in _FORMATS:
        raise Unhonoured(f"{path}: strict mode knows no format {str(value)[:80]!r}")


def _combined(keyword: str, value: Any, path: str, root: Schema) -> Schema:
    where = member(path, keyword)
    if keyword == "$ref":
        return {"$ref": value}
    if keyword == "allOf":
        if len(value) > 1:
            raise Unhonoured(f"{where}: strict mode has no allOf")
        return _strict(value[0], f"{where}[0]", root)
    for index, option in enumerate(value if keyword == "oneOf" else ()):
        if not all(apart(root, option, other) for other in value[:index]):
            raise Unhonoured(f"{where}[{index}]: strict mode has no oneOf, and more than one option may obey")
    return {"anyOf": [_strict(part, f"{where}[{index}]", root) for index, part in enumerate(value)]}


def _listed(demands: dict[str, Any], path: str) -> Schema:
    """Listed values: those that obey what stands beside the list, with their types."""
    others = {keyword: value for keyword, value in demands.items() if keyword not in ("enum", "const")}
    values = demands["enum"] if "enum" in demands else [demands["const"]]
    types_by_value = [_type_of(value, path) for value in values]
    if "const" in demands:
        others["const"] = demands["const"]
    validator = validator_class({})(others)
    allowed = [value for value in values if validator.is_valid(value)]
    if not allowed:
        raise Unhonoured(f"{path}.enum: none of its values obeys the rest")
    types = list(
        dict.fromkeys(kind for value, kind in zip(values, types_by_value, strict=True) if value in allowed)
    )
    return {"type": types[0] if len(types) == 1 else types, "enum": allowed}


def _type_of(value: Any, path: str) -> str:
    kinds: dict[type, str] = {
        str: "string",
        bool: "boolean",
        int: "integer",
        float: "number",
        type(None): "null",
    }
    if type(value) not in kinds:
        raise Unhonoured(f"{path}.enum: strict mode lists no objects and arrays")
    return kinds[type(value)]


def _members(schema: Schema, path: str, root: Schema) -> Schema:
    named = schema.get("properties", {})
    extra = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
    for name in schema.get("required", []):
        if name not in named:
            raise Unhonoured(f"{path}.required: {name!r} is not among the properties")
    if not named and extra is not False:
        raise Unhonoured(f"{path}: strict mode knows no object with free keys; name its properties")
    where = f"{path}.properties"
    return {
        "properties": {name: _strict(part, member(where, name), root) for name, part in named.items()},
        "required": list(named),
        "additionalProperties": False,
    }


def _check_endless(root: Schema) -> None:
    """Refuses members that only end by being left out, which strict mode does not allow."""
    ending: set[int] = set()
    while True:
        found = {id(sub) for _, sub in subschemas(root) if isinstance(sub, dict) and _ends(sub, root, ending)}
        if found == ending:
            break
        ending = found
    for path, sub in subschemas(root):
        if isinstance(sub, dict) and "$ref" in sub and id(sub) not in ending:
            raise Unhonoured(
                f"{path}: strict mode wants every member, so this contains itself for ever; allow null"
            )


def _ends(schema: Any, root: Schema, ending: set[int]) -> bool:
    """Whether some value obeys where every named member must be there, `ending` being known to have one."""

    def known(part: Any) -> bool:
        return part is True or id(part) in ending

    if "$ref" in schema:
        return known(resolved(root, schema["$ref"]))
    for keyword in ("anyOf", "oneOf", "allOf"):
        if keyword in schema:
            return any(map(known, schema[keyword]))
    if "enum" in schema or "const" in schema or set(types_of(schema)) - {"object", "array"}:
        return True
    if "array" in types_of(schema) and (schema.get("minItems", 0) == 0 or known(schema.get("items", True))):
        return True
    return "object" in types_of(schema) and all(map(known, schema.get("properties", {}).values()))


def _levels(schema: Schema) -> int:
    """How deep objects and arrays are nested, references not followed."""
    inside = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    below = [1 + _levels(part) for part in inside]
    beside = [
        *schema.get("anyOf", []),
        *schema.get("$defs", {}).values(),
        *schema.get("definitions", {}).values(),
    ]
    return max([*below, *map(_levels, beside)], default=0)


def _check_limits(schema: Schema) -> None:
    properties = enum_values = chars = 0
    for path, sub in subschemas(schema):
        if not isinstance(sub, dict):  # additionalProperties: False
            continue
        names = [*sub.get("properties", {}), *sub.get("$defs", {}), *sub.get("definitions", {})]
        values = [*sub.get("enum", []), *([sub["const"]] if "const" in sub else [])]
        texts = [value for value in values if isinstance(value, str)]
        properties += len(sub.get("properties", {}))
        enum_values += len(values)
        chars += sum(map(len, names)) + sum(map(len, texts))
        if len(texts) > 250 and sum(map(len, texts)) > MOST_LONG_ENUM_CHARS:
            raise Unhonoured(f"{path}.enum: strict mode takes at most {MOST_LONG_ENUM_CHARS} characters here")
    for count, most, what in (
        (_levels(schema), MOST_LEVELS, "levels of nesting"),
        (properties, MOST_PROPERTIES, "properties"),
        (enum_values, MOST_ENUM_VALUES, "enum values"),
        (chars, MOST_NAME_CHARS, "characters of names and enum values"),
    ):
        if count > most:
            raise Unhonoured(f"$: strict mode takes at most {most} {what}, not {count}")
