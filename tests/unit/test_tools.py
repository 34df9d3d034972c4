from __future__ import annotations

import asyncio
import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypedDict, Union

import jsonschema
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.errors import ToolError
from maxwell.tools import Tool, tool_of, tools_of

if TYPE_CHECKING:
    from decimal import Decimal as NotThere


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


class Where(TypedDict, total=False):
    street: str


@dataclass
class Point:
    x: float
    y: float = 0.0


class Leaf(msgspec.Struct):
    name: str
    points: list[Point] = []


class Tree(msgspec.Struct):
    name: str
    children: list[Tree] = []


class Person(pydantic.BaseModel):
    """Somebody."""

    age: int = pydantic.Field(ge=0, description="in years")
    home: Optional[Home] = None  # noqa: UP045 - as many still write it


class Home(pydantic.BaseModel):
    city: str


class Chain(pydantic.BaseModel):
    next: Chain | None = None


def parameters_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What a model is told of the parameters."""
    schema: dict[str, Any] = tool_of(function).definition["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def property_of(annotation: Any) -> dict[str, Any]:
    """What a model is told of one parameter of that type."""

    def function(x: Any) -> None: ...

    function.__annotations__["x"] = annotation
    schema: dict[str, Any] = parameters_of(function)["properties"]["x"]
    return schema


# --- what a model is told


def forecast(city: str, days: int = 3, unit: Literal["celsius", "kelvin"] = "celsius") -> str:
    """Look up the weather
    of the next days.

    It asks nobody.

    Args:
        city: Name of the city,
            in English.
        days (int): How many days.
    """
    return f"{city} {days} {unit}"


def test_a_function_becomes_a_definition() -> None:
    assert tool_of(forecast).definition == {
        "type": "function",
        "function": {
            "name": "forecast",
            "description": "Look up the weather of the next days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the city,\nin English."},
                    "days": {"type": "integer", "description": "How many days.", "default": 3},
                    "unit": {"enum": ["celsius", "kelvin"], "default": "celsius"},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }


def test_a_function_without_docstring_or_parameters_is_a_tool() -> None:
    def now(): ...  # type: ignore[no-untyped-def]

    parameters = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert tool_of(now).definition["function"] == {"name": "now", "parameters": parameters}


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (float, {"type": "number"}),
        (None, {"type": "null"}),
        (Any, {}),
        (list, {"type": "array"}),
        (dict, {"type": "object"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (Literal[1, "a"], {"enum": [1, "a"]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045
        (Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),  # noqa: UP007
        (date, {"type": "string", "format": "date"}),
        (Unit, {"title": "Unit", "enum": ["celsius", "kelvin"]}),
        (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
        (
            Annotated[int, msgspec.Meta(ge=1, description="how many")],
            {"type": "integer", "minimum": 1, "description": "how many"},
        ),
        (
            Where,
            {
                "title": "Where",
                "type": "object",
                "properties": {"street": {"type": "string"}},
                "required": [],
            },
        ),
    ],
    ids=str,
)
def test_a_type_becomes_a_schema(annotation: Any, schema: dict[str, Any]) -> None:
    assert property_of(annotation) == schema


def test_a_tuple_has_its_length() -> None:
    schema = property_of(tuple[int, str])
    assert (schema["minItems"], schema["maxItems"], schema["prefixItems"][1]) == (2, 2, {"type": "string"})


@pytest.mark.parametrize("annotation", [Leaf, list[Leaf], Leaf | None, Person, dict[str, Person]], ids=str)
def test_nested_types_need_no_references(annotation: Any) -> None:
    assert "$ref" not in str(property_of(annotation))


@pytest.mark.parametrize(("annotation", "name"), [(Tree, "Tree"), (list[Tree], "Tree"), (Chain, "Chain")])
def test_types_that_hold_themselves_are_defined_where_references_find_them(
    annotation: Any, name: str
) -> None:
    def function(plain: Point, x: Any) -> None: ...

    function.__annotations__["x"] = annotation
    schema = parameters_of(function)
    assert list(schema["$defs"]) == [name]
    validator = jsonschema.Draft202012Validator(schema)
    deep: Any = {"next": {"next": None}} if name == "Chain" else {"name": "a", "children": [{"name": "b"}]}
    broken: Any = {"next": {"next": 7}} if name == "Chain" else {"name": "a", "children": [{"name": 7}]}
    for value, is_right in ((deep, True), (broken, False)):
        value = [value] if annotation == list[Tree] else value
        assert validator.is_valid({"plain": {"x": 1}, "x": value}) == is_right


def test_what_is_said_of_a_type_stays() -> None:
    assert property_of(Person)["properties"]["age"]["description"] == "in years"


def test_the_annotation_describes_before_the_docstring() -> None:
    def function(
        a: Annotated[str, "mine"],
        b: Annotated[str, msgspec.Meta(description="mine")],
        c: Annotated[Person, pydantic.Field(description="mine")],
        d: Person,
        e: Person,
    ) -> None:
        """Do it.

        Args:
            a: theirs
            b: theirs
            c: theirs
            d: theirs
        """

    told = parameters_of(function)["properties"]
    assert [told[key]["description"] for key in "abcde"] == ["mine", "mine", "mine", "theirs", "Somebody."]


@pytest.mark.parametrize(
    "doc",
    [
        "Do.\n\n:param a: the a",
        "Do.\n\nParameters\n----------\na : str\n    the a",
        "Do.\n\nArgs:\n    a: the a",
    ],
    ids=["rest", "numpy", "google"],
)
def test_each_usual_kind_of_docstring_is_read(doc: str) -> None:
    def function(a: str) -> None: ...

    function.__doc__ = doc
    told = tool_of(function).definition["function"]
    assert (told["description"], told["parameters"]["properties"]["a"]["description"]) == ("Do.", "the a")


def test_a_default_without_a_json_form_is_not_told() -> None:
    def function(a: Annotated[int, "n"] = object(), b: Unit = Unit.KELVIN) -> None: ...  # type: ignore[assignment]

    told = parameters_of(function)
    assert told["required"] == []
    assert "default" not in told["properties"]["a"]
    assert told["properties"]["b"]["default"] == "kelvin"


# --- what may be a tool


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    def price(self, item: str) -> str:
        """Tell a price."""
        return f"{item} at {self.name}"

    async def order(self, item: str) -> str:
        return item

    @classmethod
    def open(cls, town: str) -> str:
        return f"{cls.__name__} {town}"

    @staticmethod
    def close(town: str) -> str:
        return town


def called(tool: Tool, **arguments: Any) -> Any:
    return tool.bind(arguments)()


def test_methods_are_tools() -> None:
    shop = Shop("Bo's")
    price = tool_of(shop.price)
    assert price.definition["function"]["description"] == "Tell a price."
    assert called(price, item="tea") == "tea at Bo's"
    assert called(tool_of(Shop.open), town="Oslo") == "Shop Oslo"
    assert called(tool_of(Shop.close), town="Oslo") == "Oslo"
    assert tool_of(shop.order).is_async
    assert not price.is_async


def test_a_partial_hides_what_it_has_given() -> None:
    partial = functools.partial(functools.partial(forecast, unit="kelvin"), "Oslo")
    tool = tool_of(partial)
    assert tool.name == "forecast"
    assert tool.definition["function"]["description"].startswith("Look up")
    assert list(tool.parameters) == ["days"]
    assert called(tool, days=1) == "Oslo 1 kelvin"
    with pytest.raises(ToolError, match="no argument 'unit'"):
        tool.bind({"unit": "celsius"})
    assert tool_of(functools.partial(Shop("x").order)).is_async


def test_a_decorated_function_is_known_by_what_it_decorates() -> None:
    @functools.wraps(forecast)
    def traced(*args: Any, **kwargs: Any) -> str:
        return "traced " + forecast(*args, **kwargs)

    tool = tool_of(traced)
    assert tool.definition == tool_of(forecast).definition
    assert called(tool, city="Oslo") == "traced Oslo 3 celsius"


def test_a_cached_function_is_a_tool() -> None:
    tool = tool_of(functools.lru_cache(forecast))
    assert called(tool, city="Oslo") == "Oslo 3 celsius"


def test_a_decorator_decides_whether_there_is_something_to_await() -> None:
    async def wait(n: int) -> list[int]:
        return [n]

    def count(n: int) -> Any:
        yield n

    @functools.wraps(wait)
    def waits(n: int) -> list[int]:
        return asyncio.run(wait(n))

    @functools.wraps(forecast)
    async def later(city: str) -> str:
        return forecast(city)

    @functools.wraps(count)
    def counts(n: int) -> list[int]:
        return list(count(n))

    assert [tool_of(f).is_async for f in (wait, waits, later, forecast)] == [True, False, True, False]
    assert called(tool_of(waits), n=1) == called(tool_of(counts), n=1) == [1]


def test_only_annotations_of_parameters_have_to_be_there() -> None:
    def function(a: int) -> NotThere | None: ...  # the result is no parameter

    assert list(tool_of(function).parameters) == ["a"]


def slash(a: int, /) -> None: ...
def many(*values: int) -> None: ...
def named(**values: int) -> None: ...
def bare(a, b: int) -> None: ...  # type: ignore[no-untyped-def]
def odd(a: complex) -> None: ...
def absent(a: NotThere) -> None: ...
def listed(a: list[Callable[[], int]]) -> None: ...
def numbers(n: int) -> Any:
    yield n


async def numbers_later(n: int) -> Any:
    yield n


def größe(n: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (slash, r"tool 'slash': parameter 'a': .* drop the slash"),
        (many, r"tool 'many': parameter 'values': .* take a list"),
        (named, r"tool 'named': parameter 'values': .* take a dict"),
        (bare, r"tool 'bare': parameter 'a': it has no annotation; say what type"),
        (odd, r"tool 'odd': parameter 'a': complex cannot be read from JSON"),
        (
            absent,
            r"tool 'absent': parameter 'a': .*'NotThere' is not defined.*names of the function's module",
        ),
        (listed, r"tool 'listed': parameter 'a': "),
        (Shop.price, r"tool 'price': parameter 'self': it has no annotation"),
        (lambda x: x, r"named '<lambda>'; give it a name with def"),
        (größe, r"named 'größe'; use letters"),
        (numbers, r"tool 'numbers' is a generator; return a list"),
        (numbers_later, r"tool 'numbers_later' is a generator"),
        (Shop, r"a function or a method, not class Shop"),
        (Shop("x"), r"a function or a method, not Shop"),
        ("forecast", r"a function or a method, not str"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tool_of(function)


def test_several_tools_are_told_apart_by_name() -> None:
    assert [t.name for t in tools_of([forecast, Shop.open], can_await=False)] == ["forecast", "open"]
    with pytest.raises(ValueError, match="two tools are named 'forecast'"):
        tools_of([forecast, functools.partial(forecast, days=1)], can_await=False)
    with pytest.raises(ValueError, match="no functions"):
        tools_of([], can_await=True)


def test_coroutine_functions_are_refused_where_nothing_awaits_them() -> None:
    assert tools_of([Shop("x").order], can_await=True)[0].is_async
    with pytest.raises(TypeError, match=r"'order' is a coroutine function; use AsyncLLM\.run_tools"):
        tools_of([forecast, Shop("x").order], can_await=False)


# --- arguments


def takes(
    city: str, at: Point, unit: Unit = Unit.CELSIUS, when: date | None = None, who: Person | None = None
) -> Any:
    return city, at, unit, when, who


def test_arguments_become_what_the_function_takes() -> None:
    arguments = {"city": "Oslo", "at": {"x": 1}, "unit": "kelvin", "when": "2026-11-23", "who": {"age": 3}}
    assert called(tool_of(takes), **arguments) == (
        "Oslo",
        Point(1.0),
        Unit.KELVIN,
        date(2026, 11, 23),
        Person(age=3),
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"city": 7}, "city: Expected `str`, got `int`"),
        ({"at": {"x": "1"}}, "at.x: Expected `float`, got `str`"),
        ({"at": None}, "at: Expected `object`, got `null`"),
        ({"unit": "feet"}, "unit: Invalid enum value 'feet'"),
        ({"who": {"age": -1}}, "who.age: Input should be greater than or equal to 0"),
        ({"town": "Oslo"}, "there is no argument 'town'"),
    ],
)
def test_wrong_arguments_are_named_in_words_for_the_model(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolError) as caught:
        tool_of(takes).bind({"city": "Oslo", "at": {"x": 1}} | wrong)
    assert str(caught.value) == f"{message} (arguments of takes: city, at, unit, when, who)"


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ToolError) as caught:
        tool_of(forecast).bind({"town": 1, "days": "three"})
    assert str(caught.value) == (
        "there is no argument 'town'; the argument 'city' is missing; days: Expected `int`, got `str` "
        "(arguments of forecast: city, days, unit)"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.sampled_from("ab"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(["city", "at", "unit", "when", "who", "no"]), JSON))
def test_whatever_a_model_sends_is_bound_or_told(arguments: dict[str, Any]) -> None:
    tool = tool_of(takes)
    try:
        city, at, unit, _, _ = tool.bind(arguments)()
    except ToolError:
        return
    assert (type(city), type(at), type(unit)) == (str, Point, Unit)
    assert jsonschema.Draft202012Validator(tool.definition["function"]["parameters"]).is_valid(arguments)
