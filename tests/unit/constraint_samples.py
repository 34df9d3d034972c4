"""Schemas by chance, and texts by chance of the grammars that are made of them."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import strategies as st

from maxwell.constraints import violation
from maxwell.constraints.expressions import Alt, Chars, Expr, Ref, Repeat, Rules, Seq
from maxwell.types import Constraint

LIST: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/link"}},
            "required": ["value", "next"],
        },
        "link": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "$ref": "#/$defs/node",
}


def obeys(schema: dict[str, Any], text: str) -> bool:
    return violation(Constraint("json_schema", schema), text) == ""


def fits(grammar: str, text: str) -> bool:
    return violation(Constraint("grammar", grammar), text) == ""


# --- texts of a grammar, by chance


class Sampler:
    """Writes texts of a grammar; what nests without end is cut short by always taking the flattest way."""

    def __init__(self, rules: Rules, seed: int) -> None:
        self._rules = rules
        self._random = random.Random(seed)
        self._heights: dict[str, float] = dict.fromkeys(rules, float("inf"))
        for _ in rules:
            self._heights = {name: 1 + self._height(expr) for name, expr in rules.items()}

    def _height(self, expr: Expr) -> float:
        match expr:
            case Seq(items):
                return max(map(self._height, items), default=0)
            case Alt(options):
                return min(map(self._height, options))
            case Repeat(item, least, _):
                return self._height(item) if least else 0
            case Ref(name):
                return self._heights[name]
            case Chars():
                return 0

    def text(self) -> str:
        return self._text(Ref("root"), 12)

    def _text(self, expr: Expr, budget: int) -> str:
        match expr:
            case Seq(items):
                return "".join(self._text(item, budget) for item in items)
            case Alt(options):
                flattest = min(options, key=self._height)
                return self._text(self._random.choice(options) if budget > 0 else flattest, budget - 1)
            case Repeat(item, least, most):
                more = (
                    0 if budget <= 0 else self._random.randint(0, 3 if most is None else min(most - least, 3))
                )
                if most is not None and budget > 0 and most < 40 and self._random.random() < 0.1:
                    more = most - least
                return "".join(self._text(item, budget - 1) for _ in range(least + more))
            case Ref(name):
                return self._text(self._rules[name], budget - 1)
            case Chars(ranges):
                low, high = self._random.choice(ranges)
                return chr(self._random.choice([low, high, self._random.randint(low, high)]))


def twice(text: str) -> bool:
    """Whether an object says a key twice, the one thing that a grammar with free keys cannot rule out."""
    found = []

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len(dict(pairs)) < len(pairs))
        return dict(pairs)

    json.loads(text, object_pairs_hook=members)
    return any(found)


# --- schemas, by chance

NAMES = st.sampled_from(["a", "b", "c d", 'e"', "é", "$f"])
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from(["", "x", 'y"\n', "é"])
    | st.just([1, {"a": 2.5}])
)
BOUNDS = st.integers(-120, 1200) | st.sampled_from([0.5, -0.5, 99.99, -7.25])


def some(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


def typed(kind: str, **options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return some(**options).map(lambda found: {"type": kind, **found})


NUMBERS = {
    "minimum": BOUNDS,
    "maximum": BOUNDS,
    "exclusiveMinimum": BOUNDS,
    "exclusiveMaximum": BOUNDS,
}
LEAVES = (
    typed("string", minLength=st.integers(0, 3), maxLength=st.integers(2, 1500))
    | typed("string", pattern=st.sampled_from(["^a+$", "b", r'^["\\\n]{2}', r"\W$", "x{2,3}", "^.{3}$"]))
    | typed(
        "string",
        format=st.sampled_from(["date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "odd"]),
    )
    | typed("integer", multipleOf=st.sampled_from([1, 3]), **NUMBERS)
    | typed("number", **NUMBERS)
    | st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {}, {"title": "any"}]
    )
    | st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values})
    | VALUES.map(lambda value: {"const": value})
    | st.just({"$ref": "#/$defs/tree"})
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    sizes = {"minItems": st.integers(0, 3), "maxItems": st.integers(0, 4)}
    objects = st.tuples(
        st.dictionaries(NAMES, inner | st.just(True), max_size=4),
        st.lists(NAMES, max_size=3, unique=True),
        some(
            additionalProperties=st.booleans() | inner,
            minProperties=st.integers(0, 3),
            maxProperties=st.integers(1, 4),
        ),
    ).map(lambda parts: {"type": "object", "properties": parts[0], "required": parts[1], **parts[2]})
    return (
        objects
        | typed("array", items=inner, prefixItems=st.lists(inner, min_size=1, max_size=3), **sizes)
        | typed("array", items=inner | st.just(False), uniqueItems=st.booleans(), **sizes)
        | st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
        | st.lists(inner, min_size=1, max_size=3).map(lambda options: {"oneOf": options})
        | inner.map(lambda part: {"allOf": [part], "description": "x"})
        | some(items=inner, properties=st.dictionaries(NAMES, inner, max_size=2))
    )


TREE: dict[str, Any] = {
    "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}, {"type": "boolean"}]
}


def with_tree(schema: Any) -> dict[str, Any]:
    return {**schema, "$defs": {"tree": TREE}}


SCHEMAS = st.recursive(LEAVES, nested, max_leaves=6).map(with_tree)
