"""Types that a reply is parsed into: the JSON Schema of each, and instances read from text. Pure.

Pydantic is the user's: it is known by what its classes carry, and imported only where one of them is given.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, get_args, get_type_hints, is_typeddict, overload

import msgspec
from msgspec import Struct

T = TypeVar("T")

_SAID = 5  # problems of one text that are told; a model that is to mend them needs no more at once
_ALLOWED = (
    "give a pydantic 2 model, a msgspec Struct, a dataclass, a TypedDict, or a type such as list[X], "
    "dict[str, X], Literal, an Enum, int or a union of these"
)
_OF_TYPING = ("typing", "types", "typing_extensions", "msgspec")


class ShapeError(ValueError):
    """A text is no instance of the type. The message says where and why: `$.age: expected int, got str`."""


class Shape(Struct, Generic[T], frozen=True):
    """A type as the schema that is sent and the reader of what comes back.

    Attributes:
        name: What the type is called.
        schema: Its JSON Schema; complete in itself, nested types under `$defs`.
    """

    name: str
    schema: dict[str, Any]
    _read: Callable[[str], T]

    def decode(self, text: str) -> T:
        """The instance that a JSON text stands for. Nothing is coerced: "1" is no int.

        A pydantic model whose own configuration sets `strict` decides that by itself.

        Raises:
            ShapeError: It is none. Validators of the type may refuse what the schema allows.
        """
        return self._read(text)


@overload
def shape_of(kind: type[T]) -> Shape[T]: ...
@overload
def shape_of(kind: Any) -> Shape[Any]: ...
def shape_of(kind: Any) -> Shape[Any]:
    """The shape of a type: a pydantic model, a Struct, a dataclass, a TypedDict, or what is made of them.

    Raises:
        TypeError: It is no such type; the message names it and what is allowed.
    """
    name = _name(kind)
    if kind is None or not (isinstance(kind, type) or _is_of_typing(kind)):
        hint = "; a JSON Schema goes to json_schema=" if isinstance(kind, dict) else ""
        raise TypeError(f"{name} is no type{hint}; {_ALLOWED}")
    try:
        classes = list(_classes(kind, set()))
        is_pydantic = any(map(_is_of_pydantic, classes))
        schema, read = _by_pydantic(kind) if is_pydantic else _by_msgspec(kind, classes)
    except (TypeError, NameError, RuntimeError) as error:  # RuntimeError: pydantic's own
        why = str(error).partition("\n")[0].partition(" - type `")[0]
        raise TypeError(f"{name} cannot be read from JSON: {why}; {_ALLOWED}") from error
    return Shape(name, _rooted(_tagged(copy.deepcopy(schema))), read)


def _name(kind: Any) -> str:
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__
    if kind is None or _is_of_typing(kind):
        return str(kind).replace("typing.", "")
    return f"a value of type {type(kind).__name__}"


def _is_of_typing(kind: Any) -> bool:
    """Whether it is one of the forms of `typing`, such as list[int] or int | None."""
    return type(kind).__module__ in _OF_TYPING and not callable(getattr(kind, "__code__", None))


def _classes(kind: Any, seen: set[int]) -> Iterator[type]:
    """Every class that a type is made of, each once."""
    if id(kind) in seen:
        return
    seen.add(id(kind))
    parts = list(get_args(kind))
    if isinstance(kind, type):
        yield kind
        if dataclasses.is_dataclass(kind) or is_typeddict(kind) or issubclass(kind, Struct):
            parts += get_type_hints(kind, include_extras=True).values()
    for part in parts:
        if not isinstance(part, type) and _is_of_pydantic(type(part)):
            yield type(part)  # a limit in Annotated[...], which nobody else would hold to
        yield from _classes(part, seen)


def _is_of_pydantic(cls: type) -> bool:
    home = cls.__module__.partition(".")[0]
    return hasattr(cls, "__pydantic_validator__") or home in ("pydantic", "annotated_types")


def _rooted(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its own definition at the root, where some servers want to see an object."""
    reference = schema.get("$ref", "")
    definitions = schema.get("$defs", {})
    name = reference.removeprefix("#/$defs/")
    if name not in definitions:
        return schema
    root = {**definitions[name], **{key: value for key, value in schema.items() if key != "$ref"}}
    if not _refers(list(definitions.values()), reference):
        root["$defs"] = {key: value for key, value in definitions.items() if key != name}
    if not root["$defs"]:
        del root["$defs"]
    return root


def _tagged(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with each union that a tag tells apart as an anyOf whose tag must be there.

    Where tags differ that says the same as pydantic's oneOf, and servers can hold their text to it.
    """
    definitions = schema.get("$defs", {})
    for union in _within(schema):
        discriminator = union.get("discriminator")
        if not isinstance(discriminator, dict) or "oneOf" not in union:
            continue
        union["anyOf"] = union.pop("oneOf")
        for reference in discriminator.get("mapping", {}).values():
            option = definitions.get(reference.removeprefix("#/$defs/"), {})
            tag = discriminator["propertyName"]
            if tag in option.get("properties", {}) and tag not in option.get("required", []):
                option["required"] = [tag, *option.get("required", [])]
    return schema


def _within(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _within(part)


def _refers(value: Any, reference: str) -> bool:
    return any(part.get("$ref") == reference for part in _within(value))


# --- what msgspec reads


def _by_msgspec(kind: Any, classes: Sequence[type]) -> tuple[dict[str, Any], Callable[[str], Any]]:
    decoder = msgspec.json.Decoder(kind)

    def read(text: str) -> Any:
        try:
            return decoder.decode(text)
        except msgspec.ValidationError as error:
            raise ShapeError(_placed(str(error))) from None
        except msgspec.DecodeError as error:
            raise ShapeError(f"$: {error}") from None

    schema = msgspec.json.schema(kind, schema_hook=_unknown)
    for cls in filter(is_typeddict, classes):
        _in_order(schema, cls)
    return schema, read


def _unknown(kind: type) -> dict[str, Any]:
    raise TypeError(f"nobody knows how to read {kind.__module__}.{kind.__qualname__}")


def _in_order(schema: dict[str, Any], cls: type) -> None:
    """Put a TypedDict's keys as they were written; msgspec sorts them, and models write in that order."""
    keys = list(get_type_hints(cls))
    for definition in schema.get("$defs", {}).values():
        properties = definition.get("properties", {})
        if definition.get("title") == cls.__name__ and properties.keys() == set(keys):
            definition["properties"] = {key: properties[key] for key in keys}


def _placed(message: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.age`", its place first."""
    why, _, place = message.rpartition(" - at ")
    if not why:
        return f"$: {message}"
    return f"{place.replace('`', '')}: {why}"


# --- what pydantic reads


def _by_pydantic(kind: Any) -> tuple[dict[str, Any], Callable[[str], Any]]:
    if isinstance(kind, type) and hasattr(kind, "model_validate_json"):
        schema, validate = kind.model_json_schema(), kind.model_validate_json  # type: ignore[attr-defined]
    else:
        from pydantic import TypeAdapter

        adapter = TypeAdapter(kind)
        schema, validate = adapter.json_schema(), adapter.validate_json
    # An argument would overrule what the model says of itself.
    strict = None if "strict" in getattr(kind, "model_config", ()) else True

    def read(text: str) -> Any:
        try:
            return validate(text, strict=strict)
        except ValueError as error:
            raise ShapeError(_told(error)) from None

    return schema, read


def _told(error: Any) -> str:
    """pydantic's ValidationError on one line, without what was read."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{_path(problem['loc'])}: {problem['msg']}" for problem in problems[:_SAID]]
    if len(problems) > _SAID:
        lines.append(f"and {len(problems) - _SAID} more")
    return "; ".join(lines)


def _path(place: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
