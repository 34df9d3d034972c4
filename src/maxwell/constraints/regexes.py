"""Regular expressions, in the part of the language that every server reads in the same way.

The meaning is one: the whole text must match, `\\d \\w \\s` are ASCII, `.` is anything but a newline. What
others would read differently (lookaround, backreferences, `\\b`, flags, anchors inside) is refused with its
place.
"""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from maxwell.constraints.expressions import (
    ANY,
    EMPTY,
    LAST,
    SURROGATES,
    Alt,
    Chars,
    Expr,
    Ref,
    Repeat,
    Seq,
    alt,
    chars,
    complement,
    repeat,
    seq,
)
from maxwell.errors import BadConstraint

MOST_REPEATS = 10_000

DIGITS = chars([(0x30, 0x39)])
WORD = chars([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
SPACE = chars([(0x09, 0x0D), (0x20, 0x20)])
NEWLINE = chars([(0x0A, 0x0A)])

_CLASSES = {
    "d": DIGITS,
    "w": WORD,
    "s": SPACE,
    "D": complement(DIGITS),
    "W": complement(WORD),
    "S": complement(SPACE),
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_SPECIAL = frozenset("\\.^$*+?{}[]()|")  # what is escaped when it is written out
_SPECIAL_IN_CLASS = frozenset("\\^[]-")


class Pattern(Struct, frozen=True):
    """A regex that was read.

    Attributes:
        expr: What it matches.
        starts: It began with `^`, which says nothing where the whole text must match.
        ends: It ended with `$`.
    """

    expr: Expr
    starts: bool
    ends: bool


@lru_cache(maxsize=64)
def parse_regex(regex: str) -> Pattern:
    """The regex, read.

    Raises:
        BadConstraint: It is no regex, or says what servers read differently; the message names the place.
    """
    return _Reader(regex).pattern()


def plain_regex(regex: str) -> str:
    """The same regex without anchors, class shorthands, `.` and lazy repeats, for servers of another dialect.

    Raises:
        BadConstraint: As `parse_regex`.
    """
    return _written(parse_regex(regex).expr)


class _Reader:
    def __init__(self, regex: str) -> None:
        self._text = regex
        self._at = 0
        self._forked = False  # whether what was read last has alternatives

    def pattern(self) -> Pattern:
        starts = self._taken("^")
        expr = self._alternatives()
        ends = self._taken("$")
        if self._at < len(self._text):
            if not ends and self._peek() == ")":
                raise self._error("a ) without its (")
            raise self._error("an anchor may only stand at an end", self._at - ends)
        if (starts or ends) and self._forked:
            raise self._error(
                "put the alternatives in parentheses, as the anchor belongs to one of them only", 0
            )
        return Pattern(expr, starts, ends)

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _taken(self, expected: str) -> bool:
        found = self._text.startswith(expected, self._at)
        self._at += len(expected) * found
        return found

    def _error(self, message: str, at: int | None = None) -> BadConstraint:
        return BadConstraint(f"regex, character {(self._at if at is None else at) + 1}: {message}")

    def _alternatives(self) -> Expr:
        options = [self._sequence()]
        while self._taken("|"):
            options.append(self._sequence())
        self._forked = len(options) > 1
        return alt(*options)

    def _sequence(self) -> Expr:
        items: list[Expr] = []
        while self._peek() and self._peek() not in "|)$":
            items.append(self._repeated(self._atom()))
        return seq(*items) if items else EMPTY

    def _atom(self) -> Expr:
        char = self._peek()
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape()
        if char == "^":
            raise self._error("an anchor may only stand at an end")
        if char in "*+?":
            raise self._error(f"nothing before {char} to repeat")
        if char == "{":
            raise self._error("write \\{ for the character {")
        self._at += 1
        if char == ".":
            return complement(NEWLINE)
        return self._one(char)

    def _one(self, char: str) -> Chars:
        code = ord(char)
        if SURROGATES[0] <= code <= SURROGATES[1]:
            raise self._error("half of a surrogate pair is no character", self._at - 1)
        return Chars(((code, code),))

    def _group(self) -> Expr:
        start = self._at
        self._at += 1
        if self._peek() == "?" and not self._taken("?:"):
            kind = self._text[self._at : self._at + 3]
            raise self._error(
                f"({kind} is not understood by every server; there are (...) and (?:...)", start
            )
        inside = self._alternatives()
        if not self._taken(")"):
            message = "an anchor may only stand at an end" if self._peek() == "$" else "a ( without its )"
            raise self._error(message, self._at if self._peek() == "$" else start)
        return inside

    def _repeated(self, item: Expr) -> Expr:
        start = self._at
        bounds = self._bounds()
        if bounds is None:
            return item
        least, most = bounds
        if most is not None and least > most:
            raise self._error(f"a repeat of at least {least} and at most {most}", start)
        if max(least, most or 0) > MOST_REPEATS:
            raise self._error(f"more than {MOST_REPEATS} repeats", start)
        self._taken("?")  # lazy: matches the same whole texts
        if self._peek() and self._peek() in "*+?{":
            raise self._error("a repeat of a repeat; put the first in parentheses")
        return repeat(item, least, most)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._taken(sign):
                return bounds
        if self._peek() != "{":
            return None
        inside, closed, _ = self._text[self._at + 1 :].partition("}")
        least, comma, most = inside.partition(",")
        if not closed or not _is_count(least) or (most and not _is_count(most)):
            raise self._error("{ must begin {n}, {n,} or {n,m}; write \\{ for the character")
        self._at += len(inside) + 2
        return int(least), (int(most) if most else None) if comma else int(least)

    def _escape(self) -> Chars:
        start = self._at
        self._at += 1
        char = self._peek()
        self._at += 1
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _CONTROLS:
            return self._one(_CONTROLS[char])
        if char in _HEX_DIGITS:
            return self._hex(_HEX_DIGITS[char], start)
        if not char or char.isalnum() or not char.isascii() or not char.isprintable():
            raise self._error(f"\\{char} is not understood by every server in the same way", start)
        return self._one(char)

    def _hex(self, digits: int, start: int) -> Chars:
        number = self._text[self._at : self._at + digits]
        if len(number) != digits or not all(digit in "0123456789abcdefABCDEF" for digit in number):
            raise self._error(f"an escape of {digits} hexadecimal digits is cut short", start)
        if int(number, 16) > LAST:
            raise self._error("there is no such character", start)
        self._at += digits
        return self._one(chr(int(number, 16)))

    def _class(self) -> Chars:
        start = self._at
        self._at += 1
        negated = self._taken("^")
        parts: list[Chars] = []
        while not self._taken("]"):
            if not self._peek():
                raise self._error("a [ without its ]", start)
            parts.append(self._member())
        found = chars(one for part in parts for one in part.ranges)
        found = complement(found) if negated else found
        if not parts or not found.ranges:
            raise self._error("an empty class; write \\] for the character ]", start)
        return found

    def _member(self) -> Chars:
        start = self._at
        low = self._class_char()
        if self._peek() != "-" or self._peek(1) in ("]", ""):
            return low
        self._at += 1
        high = self._class_char()
        first, last = low.ranges[0], high.ranges[-1]
        if any(len(side.ranges) > 1 or side.ranges[0][0] != side.ranges[0][1] for side in (low, high)):
            raise self._error("a range between classes", start)
        if first[0] > last[0]:
            raise self._error("a range that runs backwards", start)
        return Chars(((first[0], last[0]),))

    def _class_char(self) -> Chars:
        char = self._peek()
        if char == "\\":
            return self._escape()
        if char == "[":
            raise self._error("write \\[ for the character [ inside a class")
        if char in "&|~-" and self._peek(1) == char:
            raise self._error(f"{char}{char} inside a class is not read by every server in the same way")
        self._at += 1
        return self._one(char)


def _is_count(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) < 10


def _written(expr: Expr) -> str:
    match expr:
        case Chars(ranges):
            single = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
            char = _char(ranges[0][0], _SPECIAL) if single else ""
            return char if char and not char.startswith(("\\u", "\\U")) else _set(expr)
        case Seq(items):
            return "".join(f"({_written(i)})" if isinstance(i, Alt) else _written(i) for i in items)
        case Alt(options):
            return "|".join(map(_written, options))
        case Repeat(item, least, most):
            inner = _written(item) if isinstance(item, Chars) else f"({_written(item)})"
            return inner + _times(least, most)
        case Ref(name):
            raise TypeError(f"rule {name} cannot be part of a regex")


def _times(least: int, most: int | None) -> str:
    sign = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
    if sign:
        return sign
    if least == most:
        return f"{{{least}}}"
    return f"{{{least},{'' if most is None else most}}}"


def _set(some: Chars) -> str:
    if some == ANY:
        return "([^a]|a)"  # "." is without the newline for some servers and with it for others
    negated = some.ranges[-1][1] == LAST
    ranges = complement(some).ranges if negated else some.ranges
    # What is escaped stands last: xgrammar forgets the escape of a first ^, and reads on after a number.
    spans = sorted((_span(low, high) for low, high in ranges), key=lambda span: "\\" in span)
    return f"[{'^' if negated else ''}{''.join(spans)}]"


def _span(low: int, high: int) -> str:
    first, last = _char(low, _SPECIAL_IN_CLASS), _char(high, _SPECIAL_IN_CLASS)
    return first if low == high else f"{first}-{last}"


def _char(code: int, special: frozenset[str]) -> str:
    char = chr(code)
    for letter, control in _CONTROLS.items():
        if char == control:
            return f"\\{letter}"
    if char in special:
        return f"\\{char}"
    if char.isprintable():
        return char
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
