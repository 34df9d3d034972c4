"""JSON Schema turned into a grammar, for servers that only take grammars.

What it cannot say exactly it says more narrowly, so that every text of the grammar obeys the schema: optional
members may be left out, further members are not written, numbers have a bounded number of digits. Where
no narrower form is sure, it is refused with its path. One thing no grammar can rule out: that an object with
free keys writes one of them twice.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from maxwell.constraints.disjoint import apart
from maxwell.constraints.expressions import (
    ANY,
    Alt,
    Chars,
    Expr,
    Ref,
    Repeat,
    Rules,
    Seq,
    alt,
    chars,
    common,
    complement,
    lengths,
    maybe,
    productive_rules,
    repeat,
    seq,
    text,
)
from maxwell.constraints.formats import format_rules
from maxwell.constraints.gbnf import parse_gbnf
from maxwell.constraints.numbers import integer, number
from maxwell.constraints.schemas import (
    CHECKED_FORMATS,
    TYPES,
    Schema,
    applies,
    checked,
    encoded,
    member,
    path_of,
    resolved,
    types_of,
    words,
)
from maxwell.constraints.unhonoured import Unhonoured
from maxwell.constraints.verify import schema_validator, searched
from maxwell.constraints.write_gbnf import gbnf_text

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_HEX = chars([(0x30, 0x39), (0x41, 0x46), (0x61, 0x66)])
_SHORT_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_RAW = complement(
    chars([(0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F)])
)  # needs no escape in a string

SPACE = Ref("space")
_SPACE = alt(text(" "), seq(text("\n"), repeat(text(" "), 0, 20)), Seq(()))
_CHAR = alt(
    _RAW,
    seq(text("\\"), alt(chars((ord(c), ord(c)) for c in '"\\/bfnrt'), seq(text("u"), Ref("unicode")))),
)
_UNICODE = alt(  # no halves of surrogate pairs
    seq(chars([(0x30, 0x39), (0x41, 0x43), (0x45, 0x46), (0x61, 0x63), (0x65, 0x66)]), Repeat(_HEX, 3, 3)),
    seq(chars([(0x44, 0x44), (0x64, 0x64)]), chars([(0x30, 0x37)]), Repeat(_HEX, 2, 2)),
)
_STRING = seq(text('"'), repeat(Ref("char"), 0, None), text('"'))

_NUMERIC = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
_HANDLED = {
    "object": words(
        "properties required additionalProperties minProperties maxProperties unevaluatedProperties"
    ),
    "array": words("items prefixItems minItems maxItems uniqueItems unevaluatedItems"),
    "string": words("minLength maxLength pattern format"),
    "integer": _NUMERIC,
    "number": _NUMERIC,
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}


def gbnf_of_schema(schema: Schema) -> str:
    """GBNF of texts that obey the schema.

    Raises:
        BadConstraint: It is no schema.
        Unhonoured: A grammar cannot say it; the message begins with the path of what it cannot.
    """
    return _gbnf(encoded(schema))


@lru_cache(maxsize=32)
def _gbnf(encoding: str) -> str:
    schema = checked(encoding)
    rules = _Builder(schema, schema_validator(encoding)).rules()
    if "root" not in productive_rules(rules):
        raise Unhonoured("$: no text that ever ends obeys it")
    grammar = gbnf_text(rules)
    parse_gbnf(grammar)
    return grammar


class _Builder:
    def __init__(self, root: Schema, validator: Validator) -> None:
        self._root = root
        self._validator = validator
        self._rules: Rules = {}
        self._of_ref: dict[str, str] = {}
        self._shared: dict[Expr, str] = {}

    def rules(self) -> Rules:
        self._of_ref["#"] = "value-0"
        self._rules["value-0"] = Ref("value-0")
        self._rules["value-0"] = self._value(self._root, "$")
        rules = {"root": seq(SPACE, Ref("value-0"), SPACE), **self._rules}
        return rules | {"space": _SPACE, "char": _CHAR, "unicode": _UNICODE}

    def _value(self, schema: Any, path: str) -> Expr:
        if schema is False:
            raise Unhonoured(f"{path}: nothing obeys it")
        if schema is True:
            return self._anything()
        demands = [keyword for keyword in schema if applies(keyword, schema)]
        for keyword, build in (
            ("$ref", self._ref),
            ("enum", self._enum),
            ("const", self._enum),
            ("anyOf", self._any_of),
            ("oneOf", self._one_of),
            ("allOf", self._all_of),
        ):
            if keyword in demands:
                return build(schema, demands, path)
        return self._by_type(schema, demands, path)

    def _alone(self, keyword: str, demands: list[str], path: str) -> None:
        others = [other for other in demands if other != keyword]
        if others:
            raise Unhonoured(f"{member(path, others[0])}: a grammar cannot say it together with {keyword}")

    def _ref(self, schema: Schema, demands: list[str], path: str) -> Expr:
        self._alone("$ref", demands, path)
        ref = schema["$ref"]
        if ref not in self._of_ref:
            name = self._of_ref[ref] = f"value-{len(self._of_ref)}"
            self._rules[name] = Ref(name)  # holds its place
            self._rules[name] = self._value(resolved(self._root, ref), path_of(ref))
        return Ref(self._of_ref[ref])

    def _enum(self, schema: Schema, _: list[str], path: str) -> Expr:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        validator = self._validator.evolve(schema=schema)
        allowed = [value for value in values if validator.is_valid(value)]
        if not allowed:
            raise Unhonoured(f"{member(path, 'enum')}: none of its values obeys the rest")
        return alt(*(_literal(value) for value in allowed))

    def _any_of(self, schema: Schema, demands: list[str], path: str) -> Expr:
        self._alone("anyOf", demands, path)
        return self._options(schema["anyOf"], f"{path}.anyOf")

    def _one_of(self, schema: Schema, demands: list[str], path: str) -> Expr:
        self._alone("oneOf", demands, path)
        options = schema["oneOf"]
        for index, option in enumerate(options):
            if not all(apart(self._root, option, other) for other in options[:index]):
                raise Unhonoured(f"{path}.oneOf[{index}]: it is not sure that no other option obeys as well")
        return self._options(options, f"{path}.oneOf")

    def _all_of(self, schema: Schema, demands: list[str], path: str) -> Expr:
        self._alone("allOf", demands, path)
        if len(schema["allOf"]) > 1:
            raise Unhonoured(f"{path}.allOf: a grammar cannot say several demands at once")
        return self._value(schema["allOf"][0], f"{path}.allOf[0]")

    def _options(self, options: list[Any], path: str) -> Expr:
        possible = [(i, option) for i, option in enumerate(options) if option is not False]
        if not possible:
            raise Unhonoured(f"{path}: nothing obeys it")
        return alt(*(self._value(option, f"{path}[{i}]") for i, option in possible))

    def _by_type(self, schema: Schema, demands: list[str], path: str) -> Expr:
        if not demands:
            return self._anything()
        types = types_of(schema)
        if types == TYPES:  # none is named: one that the demands are about is enough
            types = tuple(kind for kind in TYPES if _HANDLED[kind].intersection(demands))[:1]
        known = frozenset[str]().union(*(_HANDLED[kind] for kind in types)) | {"type"}
        for keyword in demands:
            if keyword not in known:
                raise Unhonoured(f"{member(path, keyword)}: a grammar cannot say it")
        return alt(*(self._of_type(kind, schema, path) for kind in types))

    def _of_type(self, kind: str, schema: Schema, path: str) -> Expr:
        match kind:
            case "object":
                return self._object(schema, path)
            case "array":
                return self._array(schema, path)
            case "string":
                return self._string(schema, path)
            case "integer":
                return integer(schema, path)
            case "number":
                return number(schema, path)
            case "boolean":
                return alt(text("true"), text("false"))
            case _:
                return text("null")

    def _anything(self) -> Expr:
        if "any" not in self._rules:
            self._rules["any"] = Ref("any")
            kinds = (self._of_type(kind, {}, "$") for kind in TYPES if kind != "integer")
            self._rules["any"] = alt(*kinds)
        return Ref("any")

    def _rule(self, expr: Expr) -> Ref:
        """A rule of its own for what is written in several places."""
        if isinstance(expr, Ref):
            return expr
        if expr not in self._shared:
            name = self._shared[expr] = f"item-{len(self._shared)}"
            self._rules[name] = expr
        return Ref(self._shared[expr])

    # --- strings

    def _string(self, schema: Schema, path: str) -> Expr:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if most is not None and least > most:
            raise Unhonoured(f"{path}.maxLength: it is less than minLength")
        held = schema.get("format") in CHECKED_FORMATS
        if "pattern" in schema and held:
            raise Unhonoured(f"{path}.format: a grammar cannot say it together with pattern")
        plain = seq(
            text('"'), repeat(Ref("char"), int(least), None if most is None else int(most)), text('"')
        )
        if "pattern" in schema:
            where, rules = f"{path}.pattern", searched(schema["pattern"])
        elif "format" in schema:
            where, rules = f"{path}.format", format_rules(schema["format"])
            if not held and (rules is None or "minLength" in schema or "maxLength" in schema):
                return plain
        else:
            return plain
        if rules is None:
            raise Unhonoured(f"{where}: a grammar cannot say {str(schema[where[len(path) + 1 :]])[:80]!r}")
        shortest, longest = lengths(rules["root"])
        if shortest < least or (most is not None and (longest is None or longest > most)):
            raise Unhonoured(f"{where}: a grammar cannot say it together with minLength and maxLength")
        return seq(text('"'), _in_string(rules["root"]), text('"'))

    # --- arrays

    def _array(self, schema: Schema, path: str) -> Expr:
        items, first = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):
            raise Unhonoured(f"{path}.items: use prefixItems for a list of schemas")
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        most = None if most is None else int(most)
        if items is False or (schema.get("unevaluatedItems", True) is not True and "items" not in schema):
            most = len(first) if most is None else min(most, len(first))
        if most is not None and least > most:
            raise Unhonoured(f"{path}.minItems: there cannot be so many")
        if schema.get("uniqueItems") is True and (most is None or most > 1):
            raise Unhonoured(f"{path}.uniqueItems: a grammar cannot say it")
        parts = [self._value(part, f"{path}.prefixItems[{i}]") for i, part in enumerate(first[:most])]
        body = self._elements(parts, least, most, items, f"{path}.items")
        return seq(text("["), SPACE, body, text("]"))

    def _elements(self, parts: list[Expr], least: int, most: int | None, items: Any, path: str) -> Expr:
        """The elements with their commas: `parts` first, then `items`, from `least` to `most` in all."""
        comma = seq(text(","), SPACE)
        body: Expr = Seq(())
        if most is None or most > len(parts):
            item = self._rule(self._value(items, path))
            further = None if most is None else most - len(parts)
            body = _listed(item, max(least - len(parts), 0), further, comma, begun=bool(parts))
        for index in range(len(parts) - 1, -1, -1):
            head = seq(comma, parts[index], SPACE) if index else seq(parts[index], SPACE)
            body = seq(head, body)
            if index >= least:
                body = maybe(body)
        return body

    # --- objects

    def _object(self, schema: Schema, path: str) -> Expr:
        named: dict[str, Any] = dict(schema.get("properties", {}))
        required = list(dict.fromkeys(schema.get("required", [])))
        extra = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        least, most = int(schema.get("minProperties", 0)), schema.get("maxProperties")
        if not named and not required and extra is not False:
            return self._map(extra, least, None if most is None else int(most), path)
        for name in required:
            if name not in named:
                named[name] = extra
        if least > len(required):
            raise Unhonoured(f"{path}.minProperties: more than are required, which a grammar cannot count")
        if most is not None and len(named) > most:
            named = {name: part for name, part in named.items() if name in required}
            if len(named) > most:
                raise Unhonoured(f"{path}.maxProperties: fewer than are required")
        members = [
            (self._member(name, part, member(f"{path}.properties", name)), name in required)
            for name, part in named.items()
            if part is not False or name in required
        ]
        return seq(text("{"), SPACE, self._members(members), text("}"))

    def _member(self, name: str, schema: Any, path: str) -> Expr:
        return seq(_literal(name), SPACE, text(":"), SPACE, self._value(schema, path), SPACE)

    def _members(self, members: list[tuple[Expr, bool]]) -> Expr:
        """The members in order with their commas, those that are not required possibly left out."""
        comma = seq(text(","), SPACE)
        later: Expr = Seq(())  # what may follow once a member is written
        starts: list[Expr] = []  # what may be written with none before
        for expr, needed in reversed(members):
            rule = self._rule(expr)
            begun = seq(rule, later)
            starts = [begun] if needed else [begun, *starts]
            more = seq(comma, rule)
            later = seq(more if needed else maybe(self._rule(more)), later)
            if len(members) > 1:
                later = self._rule(later)
        if not any(needed for _, needed in members):
            starts.append(Seq(()))
        return alt(*starts)

    def _map(self, extra: Any, least: int, most: int | None, path: str) -> Expr:
        where = f"{path}.additionalProperties"
        if most is not None and least > most:
            raise Unhonoured(f"{path}.minProperties: more than maxProperties")
        entry = seq(_STRING, SPACE, text(":"), SPACE, self._value(extra, where))
        comma = seq(text(","), SPACE)
        return seq(text("{"), SPACE, _listed(self._rule(entry), least, most, comma, begun=False), text("}"))


def _listed(item: Expr, least: int, most: int | None, comma: Expr, *, begun: bool) -> Expr:
    """`item` from `least` to `most` times with commas between, and one before where the list has `begun`."""
    one = seq(item, SPACE)
    more = seq(comma, one)
    if most == 0:
        return Seq(())
    if begun:
        return repeat(more, least, most)
    rest = seq(one, repeat(more, max(least - 1, 0), None if most is None else most - 1))
    return rest if least else maybe(rest)


def _literal(value: Any) -> Expr:
    return text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _in_string(expr: Expr) -> Expr:
    """What `expr` says of a string's characters, said of the characters between its quotes in JSON."""
    match expr:
        case Chars():
            return _escaped_set(expr)
        case Seq(items):
            return seq(*map(_in_string, items))
        case Alt(options):
            return alt(*map(_in_string, options))
        case Repeat(item, least, most):
            return Repeat(_in_string(item), least, most)
        case Ref():
            return expr


def _escaped_set(some: Chars) -> Expr:
    if some == ANY:
        return Ref("char")
    raw = common(some, _RAW)
    options: list[Expr] = [raw] if raw.ranges else []
    for code in [*range(0x20), 0x22, 0x5C, 0x7F]:
        if chr(code) in some:
            short = _SHORT_ESCAPES.get(chr(code))
            options.append(text(f"\\{short}" if short else f"\\u{code:04x}"))
    return alt(*options)
