"""Whether two schemas can both be obeyed by one value, as far as that is plain to see."""

from __future__ import annotations

import json
from typing import Any

from maxwell.constraints.schemas import Schema, resolved, types_of


def apart(root: Schema, left: Any, right: Any) -> bool:
    """True where surely no value obeys both.

    That is where their types are others, their listed values, or those of a member that both require.
    """
    left, right = _followed(root, left), _followed(root, right)
    if left is False or right is False:
        return True
    if left is True or right is True:
        return False
    values = _values(left), _values(right)
    if values[0] is not None and values[1] is not None:
        return not values[0] & values[1]
    if not _kinds(left, values[0]) & _kinds(right, values[1]):
        return True
    if _kinds(left, values[0]) & _kinds(right, values[1]) != {"object"}:
        return False
    shared = set(left.get("required", [])) & set(right.get("required", []))
    return any(
        name in left.get("properties", {})
        and name in right.get("properties", {})
        and apart(root, left["properties"][name], right["properties"][name])
        for name in sorted(shared)
    )


def _followed(root: Schema, schema: Any) -> Any:
    while isinstance(schema, dict) and "$ref" in schema:
        schema = resolved(root, schema["$ref"])
    return schema


def _values(schema: Schema) -> frozenset[str] | None:
    """The values that may obey, each in one writing; None where they are not listed."""
    if "const" in schema:
        return frozenset([_writing(schema["const"])])
    return frozenset(map(_writing, schema["enum"])) if "enum" in schema else None


def _writing(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()  # 1.0 and 1 are the same number
    return json.dumps(int(value) if whole else value, sort_keys=True)


def _kinds(schema: Schema, values: frozenset[str] | None) -> set[str]:
    if values is not None:
        return {_kind(value) for value in values}
    return {"number" if kind == "integer" else kind for kind in types_of(schema)}


def _kind(writing: str) -> str:
    known = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
    return known.get(writing[0], "number")
