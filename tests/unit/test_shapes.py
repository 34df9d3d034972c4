from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import jsonschema
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.shapes import Shape, ShapeError, shape_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class PydanticPet(pydantic.BaseModel):
    name: str
    colour: Colour


class PydanticPerson(pydantic.BaseModel):
    name: str
    age: int
    pets: list[PydanticPet] = []


class StructPet(msgspec.Struct):
    name: str
    colour: Colour


class StructPerson(msgspec.Struct):
    name: str
    age: int
    pets: list[StructPet] = []


@dataclasses.dataclass
class DataPet:
    name: str
    colour: Colour


@dataclasses.dataclass
class DataPerson:
    name: str
    age: int
    pets: list[DataPet] = dataclasses.field(default_factory=list)


class DictPet(TypedDict):
    name: str
    colour: Colour


class DictPerson(TypedDict):
    name: str
    age: int
    pets: NotRequired[list[DictPet]]


class PlainPet:
    name: str


class StructTree(msgspec.Struct):
    value: int
    children: list[StructTree] = []


class PydanticTree(pydantic.BaseModel):
    value: int
    children: list[PydanticTree] = []


class Place(NamedTuple):
    x: float
    y: float


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


class Even(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        if self.value % 2:
            raise ValueError("it must be even")


class Late(pydantic.BaseModel):
    begin: int
    end: int

    @pydantic.model_validator(mode="after")
    def in_order(self) -> Late:
        if self.end < self.begin:
            raise ValueError("the end comes before the beginning")
        return self


class Lax(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=False)

    age: int


@pydantic.dataclasses.dataclass
class PydanticData:
    age: Annotated[int, pydantic.Field(gt=17)]


class Kennel(msgspec.Struct):
    pets: list[DictPet]


@dataclasses.dataclass
class Household:
    pets: list[PydanticPet]


class Many(pydantic.BaseModel):
    when: datetime.datetime
    id: uuid.UUID
    price: decimal.Decimal
    tags: set[str]
    pair: tuple[int, str]
    by_number: dict[int, str]
    colour: Colour


class Card(pydantic.BaseModel):
    by: Literal["card"] = "card"
    number: str


class Transfer(pydantic.BaseModel):
    by: Literal["transfer"]
    iban: str


class Payment(pydantic.BaseModel):
    how: Annotated[Card | Transfer, pydantic.Field(discriminator="by")]


class WithFunction(pydantic.BaseModel):
    function: Callable[[int], int]


PEOPLE = [PydanticPerson, StructPerson, DataPerson, DictPerson]
ANN = '{"name": "Ann", "age": 41, "pets": [{"name": "Rex", "colour": "red"}]}'


def field(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, dict) else getattr(value, name)


def problem(shape: Shape[Any], text: str) -> str:
    with pytest.raises(ShapeError) as caught:
        shape.decode(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what each kind gives


@pytest.mark.parametrize("kind", PEOPLE)
def test_every_kind_of_class_is_read(kind: type) -> None:
    ann: Any = shape_of(kind).decode(ANN)
    if kind is not DictPerson:
        assert isinstance(ann, kind)
    assert (field(ann, "name"), field(ann, "age")) == ("Ann", 41)
    assert field(field(ann, "pets")[0], "colour") is Colour.RED


@pytest.mark.parametrize("kind", PEOPLE)
def test_a_schema_is_an_object_and_complete_in_itself(kind: type) -> None:
    shape: Shape[Any] = shape_of(kind)
    assert shape.name == kind.__name__
    assert shape.schema["type"] == "object"
    assert set(shape.schema["properties"]) == {"name", "age", "pets"}
    assert sorted(shape.schema["required"]) == ["age", "name"]
    assert kind.__name__ not in shape.schema["$defs"]  # it is at the root
    validator = jsonschema.Draft202012Validator(shape.schema)
    validator.check_schema(shape.schema)
    assert validator.is_valid(json.loads(ANN))
    assert not validator.is_valid({"name": "Ann", "age": 41, "pets": [{"name": "Rex", "colour": "green"}]})
    assert json.loads(json.dumps(shape.schema)) == shape.schema


@pytest.mark.parametrize("kind", PEOPLE)
def test_fields_keep_their_order_because_models_write_in_it(kind: Any) -> None:
    assert list(shape_of(kind).schema["properties"]) == ["name", "age", "pets"]
    [person] = [d for d in shape_of(list[kind]).schema["$defs"].values() if "age" in d.get("properties", {})]
    assert list(person["properties"]) == ["name", "age", "pets"]
    assert list(shape_of(Kennel).schema["$defs"]["DictPet"]["properties"]) == ["name", "colour"]


def test_a_union_told_apart_by_a_tag_is_an_anyof_whose_tag_must_be_there() -> None:
    shape = shape_of(Payment)
    assert "oneOf" not in json.dumps(shape.schema)
    valid = jsonschema.Draft202012Validator(shape.schema).is_valid
    text = '{"how": {"by": "card", "number": "1"}}'
    assert valid(json.loads(text))
    assert shape.decode(text) == Payment(how=Card(number="1"))
    assert not valid({"how": {"number": "1"}})  # pydantic could not tell what that is
    assert not valid({"how": {"by": "transfer", "number": "1"}})
    assert not valid({"how": {"by": "cash", "number": "1"}})
    assert problem(shape, '{"how": {"number": "1"}}').startswith("$.how: ")


@pytest.mark.parametrize("kind", [StructTree, PydanticTree])
def test_a_type_that_holds_itself_has_an_object_at_the_root_too(kind: type) -> None:
    shape: Shape[Any] = shape_of(kind)
    assert shape.schema["type"] == "object"
    validator = jsonschema.Draft202012Validator(shape.schema)
    text = '{"value": 1, "children": [{"value": 2, "children": [{"value": 3}]}]}'
    assert validator.is_valid(json.loads(text))
    assert not validator.is_valid({"value": 1, "children": [{"value": 2, "children": [{}]}]})
    assert shape.decode(text).children[0].children[0].value == 3


def test_a_schema_without_nested_types_has_no_definitions() -> None:
    for kind in (Late, Even, PydanticData):
        assert "$defs" not in shape_of(kind).schema
        assert "$ref" not in shape_of(kind).schema


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "41", 41),
        (str, '"a"', "a"),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (Literal["yes", "no"], '"no"', "no"),
        (Colour, '"blue"', Colour.BLUE),
        (int | None, "null", None),
        (Place, "[1, 2.5]", Place(1.0, 2.5)),
        (Annotated[int, msgspec.Meta(ge=1)], "3", 3),
        (list[StructPet], '[{"name": "a", "colour": "red"}]', [StructPet("a", Colour.RED)]),
        (Cat | Dog, '{"type": "Dog", "tricks": ["sit"]}', Dog(["sit"])),
        (datetime.date, '"2026-11-23"', datetime.date(2026, 11, 23)),
        (Any, '{"a": [1]}', {"a": [1]}),
        (list[PydanticPet], '[{"name": "a", "colour": "red"}]', [PydanticPet(name="a", colour=Colour.RED)]),
        (PydanticPet | int, "3", 3),
        (
            dict[str, PydanticPet],
            '{"x": {"name": "a", "colour": "red"}}',
            {"x": PydanticPet(name="a", colour=Colour.RED)},
        ),
        (
            Household,
            '{"pets": [{"name": "a", "colour": "red"}]}',
            Household([PydanticPet(name="a", colour=Colour.RED)]),
        ),
        (PydanticData, '{"age": 18}', PydanticData(18)),
    ],
)
def test_other_types_are_read_by_the_same_rule(kind: Any, text: str, value: Any) -> None:
    shape = shape_of(kind)
    assert shape.decode(text) == value
    jsonschema.Draft202012Validator.check_schema(shape.schema)
    assert jsonschema.Draft202012Validator(shape.schema).is_valid(json.loads(text))


def test_what_json_has_no_word_for_is_read_from_text() -> None:
    text = (
        '{"when": "2026-11-23T09:00:00Z", "id": "12345678-1234-5678-1234-567812345678", "price": "1.50",'
        '"tags": ["a"], "pair": [1, "b"], "by_number": {"7": "c"}, "colour": "red"}'
    )
    many = shape_of(Many).decode(text)
    assert (many.price, many.tags, many.by_number, many.when.year) == (
        decimal.Decimal("1.50"),
        {"a"},
        {7: "c"},
        2026,
    )


class Flat(msgspec.Struct):
    number: int
    share: float
    text: str
    flag: bool
    maybe: int | None
    words: list[str]
    one: Literal["a", "b"]


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        Flat,
        number=st.integers(-(2**63), 2**63),
        share=st.floats(allow_nan=False, allow_infinity=False),
        text=st.text(st.characters(codec="utf-8")),
        flag=st.booleans(),
        maybe=st.none() | st.integers(0, 9),
        words=st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3),
        one=st.sampled_from(["a", "b"]),
    )
)
def test_what_was_written_is_read_again_and_obeys_its_schema(value: Flat) -> None:
    text = msgspec.json.encode(value).decode()
    shape = shape_of(Flat)
    assert shape.decode(text) == value
    assert jsonschema.Draft202012Validator(shape.schema).is_valid(json.loads(text))


# --- what is refused


@pytest.mark.parametrize("kind", PEOPLE)
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"name": "Ann", "age": "41"}', "$.age: "),
        ('{"name": "Ann", "age": 41.0}', "$.age: "),
        ('{"name": "Ann", "age": true}', "$.age: "),
        ('{"name": 5, "age": 41}', "$.name: "),
        ('{"name": null, "age": 41}', "$.name: "),
        ('{"name": "Ann", "age": 41, "pets": [{"name": "R", "colour": "green"}]}', "$.pets[0].colour: "),
        ('{"name": "Ann", "age": 41, "pets": [{"name": "R", "colour": "red"}, 5]}', "$.pets[1]: "),
        ('{"name": "Ann"}', "$"),
        ("[]", "$: "),
        ('"Ann"', "$: "),
        ("", "$: "),
        ('{"name": "Ann", ', "$: "),
        ('{"name": "Ann", "age": 41} and more', "$: "),
        ("Ann is 41.", "$: "),
    ],
)
def test_nothing_is_coerced_and_the_place_is_told(kind: type, text: str, place: str) -> None:
    assert problem(shape_of(kind), text).startswith(place)


@pytest.mark.parametrize("kind", PEOPLE)
def test_a_missing_field_is_named(kind: type) -> None:
    assert "age" in problem(shape_of(kind), '{"name": "Ann"}')


@pytest.mark.parametrize("kind", [list[PydanticPerson], list[StructPerson]])
def test_types_inside_a_list_are_not_coerced_either(kind: Any) -> None:
    assert problem(shape_of(kind), '[{"name": "Ann", "age": "41"}]').startswith("$[0].age: ")


def test_a_validator_may_refuse_what_the_schema_allows() -> None:
    assert problem(shape_of(Even), '{"value": 3}') == "$: it must be even"
    late = problem(shape_of(Late), '{"begin": 2, "end": 1}')
    assert late == "$: Value error, the end comes before the beginning"
    assert problem(shape_of(PydanticData), '{"age": 17}') == "$.age: Input should be greater than 17"


def test_a_model_that_says_so_itself_is_lax() -> None:
    assert shape_of(Lax).decode('{"age": "41"}').age == 41


def test_several_problems_are_told_at_once_up_to_a_bound() -> None:
    told = problem(shape_of(PydanticPerson), '{"name": 1, "age": "x"}')
    assert told == "$.name: Input should be a valid string; $.age: Input should be a valid integer"
    pets = ", ".join(['{"name": 1, "colour": "red"}'] * 9)
    many = problem(shape_of(PydanticPerson), f'{{"name": "a", "age": 1, "pets": [{pets}]}}')
    assert many.count("$.pets[") == 5
    assert many.endswith("; and 4 more")


def test_the_text_is_not_quoted_in_a_problem_of_pydantic() -> None:
    assert "secret" not in problem(shape_of(PydanticPerson), '{"name": ["secret"], "age": "secret"}')


def test_numbers_that_no_float_holds_are_refused() -> None:
    assert problem(shape_of(float), "1e999").startswith("$: ")
    assert math.isfinite(shape_of(float).decode("1e300"))


# --- types that cannot be


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (None, "None is no type"),
        ("DataPerson", "a value of type str is no type"),
        (DataPet("a", Colour.RED), "a value of type DataPet is no type"),
        (PydanticPet(name="a", colour=Colour.RED), "a value of type PydanticPet is no type"),
        ([int], "a value of type list is no type"),
        (len, "a value of type builtin_function_or_method is no type"),
        (lambda: 1, "a value of type function is no type"),
        ({"type": "object"}, "a value of type dict is no type; a JSON Schema goes to json_schema="),
        (PlainPet, "PlainPet cannot be read from JSON: nobody knows how to read .*PlainPet"),
        (list[PlainPet], r"list\[.*PlainPet\] cannot be read from JSON: nobody knows how to read .*PlainPet"),
        (complex, "complex cannot be read from JSON: nobody knows how to read builtins.complex"),
        (StructPet | StructPerson, "cannot be read from JSON: .*must be tagged"),
        (WithFunction, "WithFunction cannot be read from JSON: Cannot generate a JsonSchema"),
    ],
)
def test_a_type_that_cannot_be_read_is_named_with_what_is_allowed(kind: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words) as caught:
        shape_of(kind)
    assert "give a pydantic 2 model, a msgspec Struct, a dataclass, a TypedDict" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_type_that_is_not_defined_is_named() -> None:
    fields: Any = {"other": ("Nowhere", ...)}
    for kind in (
        dataclasses.make_dataclass("Made", [("other", "Nowhere")]),
        pydantic.create_model("Model", **fields),
    ):
        with pytest.raises(TypeError, match="Nowhere"):
            shape_of(kind)


def test_pydantic_is_not_imported_for_those_who_do_not_use_it() -> None:
    code = (
        "import sys, dataclasses; from maxwell.shapes import shape_of\n"
        "@dataclasses.dataclass\n"
        "class A:\n    x: int\n"
        "shape_of(list[A]).decode('[]'); print('pydantic' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout
    assert out == b"False\n"


@dataclasses.dataclass
class Limited:
    age: Annotated[int, pydantic.Field(ge=1, le=120)]


@pytest.mark.parametrize("kind", [Limited, list[Annotated[int, pydantic.Field(ge=1)]]])
def test_limits_of_pydantic_hold_outside_its_models(kind: Any) -> None:
    shape = shape_of(kind)
    assert '"minimum": 1' in json.dumps(shape.schema)
    with pytest.raises(ShapeError, match="greater than or equal to 1"):
        shape.decode('{"age": 0}' if kind is Limited else "[0]")
