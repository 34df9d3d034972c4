"""Python functions as tools: what a model is told of them, and how its arguments are checked. Pure."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from maxwell.errors import ToolError
from maxwell.shapes import Shape, ShapeError, shape_of

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_BY_NAME = {
    inspect.Parameter.POSITIONAL_ONLY: "drop the slash",
    inspect.Parameter.VAR_POSITIONAL: "take a list",
    inspect.Parameter.VAR_KEYWORD: "take a dict",
}


class Parameter(Struct, frozen=True):
    """One parameter of a tool.

    Attributes:
        shape: What reads its value.
        schema: JSON Schema of its value, as the model is told it.
        is_required: Whether the model must give it.
    """

    shape: Shape[Any]
    schema: dict[str, Any]
    is_required: bool


class Tool(Struct, frozen=True):
    """A function that a model may call.

    Attributes:
        name: The function's name.
        definition: What the model is told, OpenAI's shape.
        function: What is called.
        is_async: Whether it is a coroutine function.
        parameters: Its parameters by name.
    """

    name: str
    definition: dict[str, Any]
    function: Callable[..., Any]
    is_async: bool
    parameters: dict[str, Parameter]

    def bind(self, arguments: Mapping[str, Any]) -> Callable[[], Any]:
        """The function with its arguments, which are checked.

        Raises:
            ToolError: They are not what the function takes; the message says so in words for the model.
        """
        wrong = [f"there is no argument {name!r}" for name in arguments if name not in self.parameters]
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if name not in arguments:
                wrong += [f"the argument {name!r} is missing"] if parameter.is_required else []
                continue
            try:
                values[name] = parameter.shape.decode(msgspec.json.encode(arguments[name]).decode())
            except ShapeError as error:
                wrong.append(re.sub(r"(^|; )\$", rf"\1{name}", str(error)))  # places, seen from the outside
        if wrong:
            known = ", ".join(self.parameters) or "none"
            raise ToolError(f"{'; '.join(wrong)} (arguments of {self.name}: {known})")
        return functools.partial(self.function, **values)


def tools_of(functions: Sequence[Callable[..., Any]], *, can_await: bool) -> list[Tool]:
    """Each function as a tool.

    Args:
        functions: See `tool_of`.
        can_await: Whether whoever calls them can await coroutine functions.

    Raises:
        TypeError: A function cannot be a tool.
        ValueError: There are none, or two have one name.
    """
    tools = [tool_of(function) for function in functions]
    if not tools:
        raise ValueError("there are no functions to call; give at least one, or use chat")
    names = [tool.name for tool in tools]
    for tool in tools:
        if names.count(tool.name) > 1:
            raise ValueError(f"two tools are named {tool.name!r}; a model could not tell them apart")
        if tool.is_async and not can_await:
            raise TypeError(f"tool {tool.name!r} is a coroutine function; use AsyncLLM.run_tools for it")
    return tools


def tool_of(function: Callable[..., Any]) -> Tool:
    """A function as a tool.

    Its name is the tool's, the first paragraph of its docstring says what it does, annotations and defaults
    say what it takes, and the docstring's section on arguments, or `Annotated[..., "text"]`, describes that.

    Args:
        function: A function, method or `functools.partial` of one, coroutine functions among them. Every
            parameter needs an annotation that JSON can carry: builtin types and containers, Literal, Enum,
            dates, TypedDict, dataclasses, msgspec Structs, pydantic models, and unions of these.

    Raises:
        TypeError: It cannot be a tool; the message names the parameter and what to do.
    """
    plain, bound = _unbound(function)
    name = _name_of(plain)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"tool {name!r} is a generator; return a list instead")
    description, described = _described(inspect.getdoc(plain) or "")
    parameters: dict[str, Parameter] = {}
    definitions: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in bound:
            continue
        try:
            annotation = _annotation_of(parameter, plain)
            shape = shape_of(annotation)
        except TypeError as error:
            raise TypeError(f"tool {name!r}: parameter {parameter.name!r}: {error}") from error
        schema = _inlined(shape.schema, definitions)
        text = _said_of(annotation) or described.get(parameter.name)
        if text:
            schema["description"] = text  # of this parameter; a type's own says what all of its kind are
        is_required = parameter.default is parameter.empty
        if not is_required:
            schema |= _default(parameter.default)
        parameters[parameter.name] = Parameter(shape, schema, is_required)
    definition = _definition(name, description, parameters, definitions)
    return Tool(name, definition, function, inspect.iscoroutinefunction(function), parameters)


def _definition(
    name: str, description: str, parameters: Mapping[str, Parameter], definitions: Mapping[str, Any]
) -> dict[str, Any]:
    """What a model is told, OpenAI's shape."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {key: parameter.schema for key, parameter in parameters.items()},
        "required": [key for key, parameter in parameters.items() if parameter.is_required],
        "additionalProperties": False,
    }
    if definitions:
        schema["$defs"] = dict(definitions)
    told = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": {key: value for key, value in told.items() if value}}


# --- the function itself


def _unbound(function: Any) -> tuple[Any, set[str]]:
    """The function behind partials and decorators, and the parameters that a partial has given by name."""
    bound: set[str] = set()
    while isinstance(function, functools.partial):
        bound |= set(function.keywords)  # they stay in its signature, but are not for the model to give
        function = function.func
    plain = inspect.unwrap(function)
    if not inspect.isroutine(plain):
        what = f"class {plain.__name__}" if isinstance(plain, type) else type(plain).__name__
        raise TypeError(f"a tool is a function or a method, not {what}")
    return plain, bound


def _name_of(plain: Any) -> str:
    name: str = plain.__name__
    if not _NAME.fullmatch(name):
        hint = "give it a name with def" if name == "<lambda>" else "use letters, digits and _, 64 at most"
        raise TypeError(f"a model cannot call a function named {name!r}; {hint}")
    return name


def _annotation_of(parameter: inspect.Parameter, plain: Any) -> Any:
    """A parameter's type. Raises TypeError."""
    if parameter.kind in _NOT_BY_NAME:
        remedy = _NOT_BY_NAME[parameter.kind]
        raise TypeError(f"a model gives each argument by its name, which this one has not; {remedy}")
    if parameter.annotation is parameter.empty:
        raise TypeError("it has no annotation; say what type it takes")
    # Each for itself: an annotation that cannot be resolved, the result's for one, does no harm elsewhere.
    holder = type("_", (), {"__annotations__": {"it": parameter.annotation}})
    try:
        return typing.get_type_hints(holder, getattr(plain, "__globals__", {}), {}, include_extras=True)["it"]
    except (NameError, AttributeError, SyntaxError) as error:
        raise TypeError(
            f"its annotation cannot be resolved ({error}); use names of the function's module"
        ) from error


def _described(doc: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring, and what it says of each argument."""
    if not doc:
        return "", {}
    from docstring_parser import parse

    parsed = parse(doc)
    paragraph = (parsed.description or "").partition("\n\n")[0]
    arguments = {p.arg_name: p.description for p in parsed.params if p.description}
    return " ".join(paragraph.split()), arguments


def _said_of(annotation: Any) -> str:
    """What `Annotated[..., "text"]` says, or the description of a `Meta` or `Field` in its place; or ""."""
    for said in getattr(annotation, "__metadata__", ()):
        text = said if isinstance(said, str) else getattr(said, "description", None)
        if isinstance(text, str):
            return text
    return ""


def _default(value: Any) -> dict[str, Any]:
    """The default as the schema tells it; nothing where JSON has no form for it."""
    try:
        return {"default": msgspec.to_builtins(value)}
    except (TypeError, ValueError):
        return {}


# --- types


def _inlined(schema: dict[str, Any], recursive: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, since many servers resolve none.

    Types that hold themselves cannot do without; their definitions are added to `recursive`.
    """
    definitions = schema.get("$defs", {})
    loops = {name for name in definitions if name in _reachable(definitions[name], definitions)}

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        name = _reference(node)
        rest = {key: resolve(value) for key, value in node.items() if key != "$ref" or not name}
        if name in loops:
            recursive.setdefault(name, {})
            return {"$ref": node["$ref"], **rest}
        return {**resolve(definitions[name]), **rest} if name else rest

    resolved: dict[str, Any] = resolve({key: value for key, value in schema.items() if key != "$defs"})
    while missing := [name for name, known in recursive.items() if not known and name in definitions]:
        recursive[missing[0]] = resolve(definitions[missing[0]])
    return resolved


def _reachable(node: Any, definitions: Mapping[str, Any]) -> set[str]:
    """Names of all definitions that a schema leads to."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            name = _reference(node)
            if name and name not in found:
                found.add(name)
                waiting.append(definitions[name])
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found


def _reference(node: Mapping[str, Any]) -> str:
    """The definition's name that a schema refers to, or ""."""
    target = node.get("$ref")
    return target.rpartition("/")[2] if isinstance(target, str) else ""
