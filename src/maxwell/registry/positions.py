"""Where each value and key of a JSON text stands.

`json.loads` forgets positions and keeps the last of two equal keys in silence; error messages and edits need
both. This scanner reads the same language, with the same values, and remembers.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from json import JSONDecodeError, JSONDecoder
from math import inf, isinf
from typing import Any, Literal, NamedTuple, NoReturn

Where = tuple[str | int, ...]

# Deep enough for any registry, shallow enough for every caller's stack.
MAX_DEPTH = 64
# Longer integers than this overflow a float; Python itself refuses them from 4300 digits on.
MAX_DIGITS = 300

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"-?[A-Za-z_]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_NOT_NUMBERS = {"NaN": float("nan"), "Infinity": inf, "-Infinity": -inf}
_STRING = JSONDecoder()


class Span(NamedTuple):
    """A piece of the text: offsets `start` to `end`, and the 1-based line and column of its start."""

    start: int
    end: int
    line: int
    column: int


class Fault(NamedTuple):
    """Something that JSON readers disagree about, found at a place that could still be read."""

    kind: Literal["duplicate", "literal", "range", "surrogate"]
    where: Where
    line: int
    column: int
    message: str


class NotJSON(Exception):
    """The text is not JSON from `line`:`column` on."""

    def __init__(self, message: str, line: int, column: int) -> None:
        self.message = message
        self.line = line
        self.column = column
        super().__init__(f"{line}:{column}: {message}")


class Document(NamedTuple):
    """A JSON text, read.

    Attributes:
        value: What `json.loads` gives (integers beyond 300 digits become infinity, with a fault).
        values: Where each value stands; () is the whole.
        keys: Where the key of each object member stands, quotes included.
        faults: Duplicate keys, NaN and Infinity, numbers out of range, lone surrogates.
    """

    value: Any
    values: dict[Where, Span]
    keys: dict[Where, Span]
    faults: list[Fault]


def scan(text: str) -> Document:
    """Read a JSON text with the position of everything in it. A byte order mark in front is skipped.

    Raises:
        NotJSON: The text is not JSON, or is nested deeper than 64 levels.
    """
    scanner = _Scanner(text)
    value = scanner.whole()
    return Document(value, scanner.values, scanner.keys, scanner.faults)


class _Scanner:
    """Recursive descent over one text; `at` is the next character to read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 1 if text.startswith("\ufeff") else 0
        self.first = self.at
        self.breaks = [m.start() for m in re.finditer("\n", text)]
        self.values: dict[Where, Span] = {}
        self.keys: dict[Where, Span] = {}
        self.faults: list[Fault] = []

    def place(self, offset: int) -> tuple[int, int]:
        line = bisect_left(self.breaks, offset)
        start = self.breaks[line - 1] + 1 if line else self.first
        return line + 1, offset - start + 1

    def span(self, start: int) -> Span:
        return Span(start, self.at, *self.place(start))

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        raise NotJSON(message, *self.place(self.at if at is None else at))

    def fault(
        self, kind: Literal["duplicate", "literal", "range", "surrogate"], where: Where, at: int, message: str
    ) -> None:
        self.faults.append(Fault(kind, where, *self.place(at), message))

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.text[self.at : self.at + 1]

    def whole(self) -> Any:
        if not self.peek():
            self.fail("the file is empty")
        value = self.value((), 0)
        if rest := self.peek():
            self.fail(_hint(rest) or "the JSON value ends before this; nothing may follow it")
        return value

    def value(self, where: Where, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH} levels")
        char = self.peek()
        start = self.at
        value: Any
        if char == "{":
            value = self.object(where, depth + 1)
        elif char == "[":
            value = self.array(where, depth + 1)
        elif char == '"':
            value = self.string(where)
        else:
            value = self.scalar(where, char)
        self.values[where] = self.span(start)
        return value

    def object(self, where: Where, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        self.at += 1
        if self.peek() == "}":
            self.at += 1
            return result
        while True:
            self.member(result, where, depth)
            if self.closes("}"):
                return result

    def member(self, result: dict[str, Any], where: Where, depth: int) -> None:
        char = self.peek()
        start = self.at
        if char != '"':
            self.fail(_hint(char) or "a key in double quotes is expected here")
        key = self.string(where)
        path = (*where, key)
        if key in result:
            first = self.keys[path]
            self.fault(
                "duplicate",
                path,
                start,
                f"this key was given before, at line {first.line}; keep one of the two",
            )
        self.keys[path] = self.span(start)
        if self.peek() != ":":
            self.fail("a colon is expected between a key and its value")
        self.at += 1
        result[key] = self.value(path, depth)

    def array(self, where: Where, depth: int) -> list[Any]:
        result: list[Any] = []
        self.at += 1
        if self.peek() == "]":
            self.at += 1
            return result
        while True:
            result.append(self.value((*where, len(result)), depth))
            if self.closes("]"):
                return result

    def closes(self, bracket: str) -> bool:
        """Step over what follows a member: True at the closing bracket, False at a comma."""
        char = self.peek()
        if char == bracket:
            self.at += 1
            return True
        if char != ",":
            self.fail(_hint(char) or f'a comma or "{bracket}" is expected here')
        comma = self.at
        self.at += 1
        if self.peek() == bracket:
            self.fail(f'a comma may not stand before "{bracket}"', comma)
        return False

    def string(self, where: Where) -> str:
        start = self.at
        try:
            value, self.at = _STRING.raw_decode(self.text, start)
        except JSONDecodeError as error:
            self.fail(_string_hint(error.msg), error.pos)
        if not value.isascii() and _SURROGATE.search(value):
            self.fault("surrogate", where, start, "holds half a surrogate pair, which is no character")
        return str(value)

    def scalar(self, where: Where, char: str) -> Any:
        start = self.at
        number = _NUMBER.match(self.text, start)
        if number and number[0] != "-":
            self.at = number.end()
            return self.number(where, number)
        word = _WORD.match(self.text, start)
        if word and word[0] in _WORDS:
            self.at = word.end()
            return _WORDS[word[0]]
        if word and word[0] in _NOT_NUMBERS:
            self.at = word.end()
            self.fault(
                "literal", where, start, f"is {word[0]}, which JSON does not have; a finite number is allowed"
            )
            return _NOT_NUMBERS[word[0]]
        if word and word[0].lower() in {*_WORDS, "none"}:
            lower = word[0].lower().replace("none", "null")
            self.fail(f'in JSON this word is written "{lower}"')
        return self.fail(_hint(char) or "a value is expected here")

    def number(self, where: Where, match: re.Match[str]) -> int | float:
        if match[2] or match[3]:
            value: int | float = float(match[0])
        elif len(match[0]) <= MAX_DIGITS:
            return int(match[0])
        else:
            value = -inf if match[0].startswith("-") else inf
        if isinf(value):
            self.fault("range", where, match.start(), "is a number too large to be meant")
        return value


def _hint(char: str) -> str:
    """What a character that cannot stand here probably means, "" when nothing comes to mind."""
    if not char:
        return "the file ends in the middle of a value"
    if char == "'":
        return "text is written in double quotes"
    if char in "/#":
        return 'JSON has no comments; a key of your own, such as "_comment", may hold a remark'
    return ""


def _string_hint(message: str) -> str:
    if message.startswith("Invalid \\"):
        return r'a backslash inside text is written twice ("C:\\models\\a.gguf")'
    if message.startswith("Invalid control"):
        return "a line break or control character inside text; a closing quote may be missing"
    return "this text has no closing quote"
