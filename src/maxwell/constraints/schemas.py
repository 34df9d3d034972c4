"""JSON Schemas: checked, walked, and looked through for what a server would silently not enforce."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from maxwell.errors import BadConstraint

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Schema: TypeAlias = dict[str, Any]

DEEPEST = 100  # levels of a schema's own JSON


def words(names: str) -> frozenset[str]:
    """These keywords."""
    return frozenset(names.split())


_SUBSCHEMA = words(
    "additionalProperties unevaluatedProperties propertyNames additionalItems unevaluatedItems contains "
    "not if then else items contentSchema"
)
_LISTS = frozenset(["allOf", "anyOf", "oneOf", "prefixItems", "items"])
_MAPS = frozenset(
    ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions", "dependencies"]
)
_IN_PLACE = frozenset(
    ["allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"]
)

# The keywords that only do something to values of one type.
_OF_TYPE = {
    "object": words(
        "properties required additionalProperties patternProperties propertyNames minProperties "
        "maxProperties dependentRequired dependentSchemas dependencies unevaluatedProperties"
    ),
    "array": words(
        "items prefixItems additionalItems unevaluatedItems minItems maxItems uniqueItems contains "
        "minContains maxContains"
    ),
    "string": words("minLength maxLength pattern format"),
    "number": words("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf"),
}
# Everything that demands something; another keyword demands nothing, here as at the servers.
_KNOWN = frozenset[str]().union(
    *_OF_TYPE.values(),
    words("type enum const $ref allOf anyOf oneOf not if then else minContains maxContains"),
)
# The formats that a reply is held to, whatever is installed. Any other is a remark, as the standard has it.
CHECKED_FORMATS = words("date email idn-email ipv4 ipv6 regex uuid")
# Values with which a keyword demands nothing.
_VOID: dict[str, list[Any]] = {
    "uniqueItems": [False],
    "minItems": [0],
    "minLength": [0],
    "minProperties": [0],
    "additionalProperties": [True, {}],
    "unevaluatedProperties": [True, {}],
    "items": [True, {}],
    "required": [[]],
    "properties": [{}],
}
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def member(path: str, name: str) -> str:
    """`path` and the member `name` of it: `$.a`, or `$['odd name']`."""
    return f"{path}.{name}" if re.fullmatch(r"\$?[A-Za-z_][A-Za-z0-9_]*", name) else f"{path}[{name!r}]"


def subschemas(schema: Any, path: str = "$") -> Iterator[tuple[str, Any]]:
    """(path, schema) of the schema and of every schema in it; a schema may be True or False."""
    yield path, schema
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        where = member(path, keyword)
        if keyword in _LISTS and isinstance(value, list):
            for index, part in enumerate(value):
                yield from subschemas(part, f"{where}[{index}]")
        elif keyword in _SUBSCHEMA and isinstance(value, dict | bool):
            yield from subschemas(value, where)
        elif keyword in _MAPS and isinstance(value, dict):
            for name, part in value.items():
                if isinstance(part, dict | bool):
                    yield from subschemas(part, member(where, name))


def applies(keyword: str, schema: Schema) -> bool:
    """Whether `keyword` demands anything in `schema`: not an annotation, not beside the type, not void."""
    value = schema[keyword]
    if keyword not in _KNOWN or (keyword in _VOID and value in _VOID[keyword]):
        return False
    if keyword == "format" and value not in CHECKED_FORMATS:
        return False
    if keyword in ("then", "else") and "if" not in schema:
        return False
    named = types_of(schema)
    of = next((kind for kind, keywords in _OF_TYPE.items() if keyword in keywords), None)
    return of is None or of in named or (of == "number" and "integer" in named)


def types_of(schema: Schema) -> tuple[str, ...]:
    """The types that `schema` names; all of them where it names none."""
    named = schema.get("type", TYPES)
    return (named,) if isinstance(named, str) else tuple(named)


def unenforced(schema: Schema, enforces: Callable[[str, Schema], bool]) -> list[tuple[str, str]]:
    """Each (path, keyword) that demands something and that `enforces(keyword, subschema)` denies.

    `enforces` is asked about every keyword of every subschema that can change what obeys: not about
    annotations, keywords beside the declared type (`minimum` of a string) and void ones
    (`uniqueItems: false`, a `format` that replies are not held to).
    A subschema False is asked about as the keyword "false".
    """
    found = []
    for path, sub in subschemas(schema):
        if sub is False and not path.endswith((".additionalProperties", ".unevaluatedProperties", ".items")):
            found += [] if enforces("false", {}) else [(path, "false")]
        if isinstance(sub, dict):
            found += [
                (member(path, keyword), keyword)
                for keyword in sub
                if applies(keyword, sub) and not enforces(keyword, sub)
            ]
    return found


def resolved(root: Schema, ref: str) -> Any:
    """What a reference within the schema (`#`, `#/...`) leads to.

    Raises:
        LookupError: Nothing, or it is not a reference of that form.
    """
    if ref == "#":
        return root
    if not ref.startswith("#/"):
        raise LookupError(ref)
    from urllib.parse import unquote

    found: Any = root
    for part in unquote(ref[2:]).split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        found = found[int(name)] if isinstance(found, list) and name.isdigit() else found[name]
    if not isinstance(found, dict | bool):
        raise LookupError(ref)
    return found


def path_of(ref: str) -> str:
    """The place that a reference names, written as a path: `#/$defs/a` is `$.$defs.a`."""
    path = "$"
    for part in ref.split("/")[1:]:
        path = member(path, part.replace("~1", "/").replace("~0", "~"))
    return path


def encoded(schema: Any) -> str:
    """The schema as JSON.

    Raises:
        BadConstraint: It holds what JSON does not; the message names the path.
    """
    _check_json(schema, "$", 0)
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _check_json(value: Any, path: str, depth: int) -> None:
    if depth > DEEPEST:
        raise BadConstraint(f"json_schema, {path[:80]}: nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str):
                raise BadConstraint(f"json_schema, {path}: the key {name!r} is not a str")
            _check_scalar(name, path)
            _check_json(part, member(path, name), depth + 1)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _check_json(part, f"{path}[{index}]", depth + 1)
    else:
        _check_scalar(value, path)


def _check_scalar(value: Any, path: str) -> None:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise BadConstraint(f"json_schema, {path}: a {type(value).__name__} is not JSON")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadConstraint(f"json_schema, {path}: {value} is not JSON")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadConstraint(f"json_schema, {path}: half of a surrogate pair is not JSON")


@lru_cache(maxsize=64)
def checked(encoding: str) -> Schema:
    """The schema of this JSON. Not to be changed, as it is kept for the next call.

    Raises:
        BadConstraint: It is no JSON Schema, or has a reference or a pattern that leads nowhere.
    """
    schema: Schema = json.loads(encoding)
    _check_meta(schema)
    places = {id(sub) for _, sub in subschemas(schema)}
    for path, sub in subschemas(schema):
        if isinstance(sub, dict):
            _check_refs(schema, places, sub, path)
            _check_patterns(sub, path)
    _check_loops(schema)
    return schema


def _check_meta(schema: Schema) -> None:
    from jsonschema.exceptions import best_match

    kind = validator_class(schema)
    error = best_match(kind(kind.META_SCHEMA).iter_errors(schema))
    if error is not None:
        message = shortened(error.message, error.instance)
        if error.json_path.endswith(".type") and error.validator == "anyOf":
            message = (
                f"{shortened(repr(error.instance))} is not one of {', '.join(TYPES)}, nor a list of them"
            )
        raise BadConstraint(f"json_schema, {error.json_path}: {message}")


def validator_class(schema: Schema) -> type[Validator]:
    """jsonschema's validator for the draft that the schema names, else for 2020-12."""
    from jsonschema.validators import Draft4Validator, Draft202012Validator, validator_for

    named = schema.get("$schema")
    if named is None:
        return Draft202012Validator
    # Another default each: only a draft that is known gives the same twice.
    found = {validator_for({"$schema": named}, kind) for kind in (Draft4Validator, Draft202012Validator)}
    if len(found) > 1:
        raise BadConstraint(
            f"json_schema, $.$schema: {named!r} is no draft of JSON Schema that is known here"
        )
    return found.pop()


def _check_refs(root: Schema, places: set[int], sub: Schema, path: str) -> None:
    for keyword in ("$dynamicRef", "$recursiveRef"):
        if keyword in sub:
            raise BadConstraint(f"json_schema, {path}.{keyword}: only $ref is understood")
    if path != "$" and isinstance(sub.get("$id"), str):
        raise BadConstraint(f"json_schema, {path}.$id: only the whole schema may have one")
    ref = sub.get("$ref")
    if not isinstance(ref, str):
        return
    if ref != "#" and not ref.startswith("#/"):
        raise BadConstraint(
            f"json_schema, {path}.$ref: {ref!r} must lead to a place in the schema itself (#/...)"
        )
    try:
        found = resolved(root, ref)
    except (LookupError, TypeError):
        raise BadConstraint(f"json_schema, {path}.$ref: there is no {ref!r}") from None
    if isinstance(found, dict) and id(found) not in places:
        raise BadConstraint(f"json_schema, {path}.$ref: {ref!r} is not where a schema stands")


def _check_patterns(sub: Schema, path: str) -> None:
    found = [(f"{path}.pattern", sub["pattern"])] if "pattern" in sub else []
    found += [(f"{path}.patternProperties", pattern) for pattern in sub.get("patternProperties", {})]
    for where, pattern in found:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise BadConstraint(f"json_schema, {where}: {pattern[:80]!r} is no regex: {error}") from None


def _check_loops(root: Schema) -> None:
    """Refuses references that come back to themselves at the same value: nothing decides such a schema."""
    done: set[int] = set()
    paths = {id(sub): path for path, sub in subschemas(root)}

    def visit(sub: Any, above: tuple[int, ...]) -> None:
        if not isinstance(sub, dict) or id(sub) in done:
            return
        if id(sub) in above:
            where = paths.get(id(sub), "$")
            raise BadConstraint(f"json_schema, {where}: its references come back to it without an end")
        for part in _in_place(root, sub):
            visit(part, (*above, id(sub)))
        done.add(id(sub))

    for _, sub in subschemas(root):
        visit(sub, ())


def _in_place(root: Schema, sub: Schema) -> Iterator[Any]:
    """The schemas that are applied to the same value as `sub`."""
    if isinstance(sub.get("$ref"), str):
        yield resolved(root, sub["$ref"])
    for keyword in _IN_PLACE & sub.keys():
        value = sub[keyword]
        if isinstance(value, list):
            yield from value
        elif keyword in ("dependentSchemas", "dependencies"):
            yield from value.values()
        else:
            yield value


def shortened(message: str, instance: Any = None, most: int = 200) -> str:
    """A validator's message with long quotations cut."""
    quoted = repr(instance)
    if len(quoted) > 80:
        message = message.replace(quoted, f"{quoted[:60]}... ({type(instance).__name__})")
    return message if len(message) <= most else f"{message[: most - 3]}..."
