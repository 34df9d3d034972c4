"""llama.cpp's grammars (GBNF): read, checked by every rule that makes a server refuse or die of one, written.

A bad grammar is an error 400 at one server and the end of the process at another, so nothing that is not
understood here is ever sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

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
    Rules,
    Seq,
    alt,
    chars,
    complement,
    empty_rules,
    nullable,
    productive_rules,
    seq,
)
from maxwell.errors import BadConstraint

MOST_REPEATS = (
    1999  # llama.cpp refuses 2000 repeats of one thing, and takes a greater `most` for "without end"
)

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


@lru_cache(maxsize=16)
def parse_gbnf(grammar: str) -> Rules:
    """The grammar's rules by name. Not to be changed, as it is kept for the next call.

    Raises:
        BadConstraint: It is not one that every reader of GBNF takes; the message names line and column.
    """
    rules = _Reader(grammar).rules()
    for name, expr in rules.items():
        for ref in _refs(expr):
            if ref not in rules:
                raise BadConstraint(f"grammar, rule {name}: there is no rule {ref}")
    if "root" not in rules:
        raise BadConstraint("grammar: there is no rule root, with which it begins")
    _refuse_left_recursion(rules)
    unending = set(rules) - productive_rules(rules)
    if "root" in unending:
        raise BadConstraint(f"grammar: no text ever ends it (rule {', '.join(sorted(unending)[:5])})")
    return rules


class _Reader:
    def __init__(self, grammar: str) -> None:
        self._text = grammar
        self._at = 0
        self._names: set[str] = set()  # as llama.cpp counts them, its own for groups and repeats included
        self._inner = 0

    def rules(self) -> Rules:
        if "\0" in self._text:
            raise self._error("a NUL character", self._text.index("\0"))
        rules: Rules = {}
        self._skip_space(newlines=True)
        while self._peek():
            start = self._at
            name = self._name()
            if name in rules:
                raise self._error(f"rule {name} is defined twice", start)
            self._names.add(name)
            self._skip_space(newlines=False)
            if not self._text.startswith("::=", self._at):
                raise self._error("::= is expected here")
            self._at += 3
            self._skip_space(newlines=True)
            rules[name] = self._alternatives(nested=False)
            if self._peek() and self._peek() not in "\r\n":
                raise self._error(f"{self._peek()!r} is not understood here")
            self._skip_space(newlines=True)
        return rules

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _error(self, message: str, at: int | None = None) -> BadConstraint:
        before = self._text[: self._at if at is None else at]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return BadConstraint(f"grammar, line {line}, column {column}: {message}")

    def _skip_space(self, *, newlines: bool) -> None:
        blank = " \t\r\n" if newlines else " \t"
        while char := self._peek():
            if char == "#":
                while self._peek() and self._peek() not in "\r\n":
                    self._at += 1
            elif char in blank:
                self._at += 1
            else:
                return

    def _name(self) -> str:
        start = self._at
        while self._peek() in _WORD:
            self._at += 1
        if self._at == start or self._peek() == "_":
            raise self._error("a rule's name is expected here, of letters, digits and -")
        return self._text[start : self._at]

    def _alternatives(self, *, nested: bool) -> Expr:
        options = [self._sequence(nested=nested)]
        while self._peek() == "|":
            self._at += 1
            self._skip_space(newlines=True)
            options.append(self._sequence(nested=nested))
        return alt(*options)

    def _sequence(self, *, nested: bool) -> Expr:
        items: list[Expr] = []
        while self._peek() and self._peek() in _ITEM_STARTS:
            start, names_before = self._at, self._name_count()
            item = self._item(nested=nested)
            size = max(self._name_count() - names_before, 1) if self._text[start] == "(" else 1
            self._skip_space(newlines=nested)
            while self._peek() and self._peek() in "*+?{":
                item, size = self._repeat(item, size, nested=nested)
                self._skip_space(newlines=nested)
            items.append(item)
        if self._peek() and self._peek() in "*+?{":
            raise self._error(f"nothing before {self._peek()} to repeat")
        if self._peek() and self._peek() in "<!":
            raise self._error("tokens (<...>) cannot be checked in a text; write what they stand for")
        return seq(*items) if items else EMPTY

    def _name_count(self) -> int:
        return len(self._names) + self._inner

    def _item(self, *, nested: bool) -> Expr:
        char = self._peek()
        if char == '"':
            return self._literal()
        if char == "[":
            return self._class()
        if char == ".":
            self._at += 1
            return ANY
        if char == "(":
            return self._group()
        name = self._name()
        self._names.add(name)
        return Ref(name)

    def _group(self) -> Expr:
        start = self._at
        self._at += 1
        self._inner += 1
        self._skip_space(newlines=True)
        inside = self._alternatives(nested=True)
        if self._peek() != ")":
            found = f"{self._peek()!r} is not understood here" if self._peek() else "a ( without its )"
            raise self._error(found, self._at if self._peek() else start)
        self._at += 1
        return inside

    def _literal(self) -> Expr:
        start = self._at
        self._at += 1
        codes = []
        while self._peek() != '"':
            if not self._peek():
                raise self._error('a " without its end', start)
            codes.append(self._char())
        self._at += 1
        return seq(*(Chars(((code, code),)) for code in codes))

    def _class(self) -> Expr:
        start = self._at
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            if not self._peek():
                raise self._error("a [ without its ]", start)
            low = high = self._char()
            if self._peek() == "-" and self._peek(1) not in ("]", ""):
                self._at += 1
                high = self._char()
            if low > high:
                raise self._error("a range that runs backwards", start)
            ranges.append((low, high))
        self._at += 1
        found = complement(chars(ranges)) if negated else chars(ranges)
        if not ranges or not found.ranges:
            raise self._error("an empty class", start)
        return found

    def _char(self) -> int:
        start, char = self._at, self._peek()
        self._at += 1
        if char != "\\":
            return self._code(ord(char), start)
        kind = self._peek()
        self._at += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        if kind not in _HEX_DIGITS:
            raise self._error(f"there is no escape \\{kind}", start)
        number = self._text[self._at : self._at + _HEX_DIGITS[kind]]
        if len(number) < _HEX_DIGITS[kind] or not all(digit in "0123456789abcdefABCDEF" for digit in number):
            raise self._error(f"\\{kind} needs {_HEX_DIGITS[kind]} hexadecimal digits", start)
        self._at += len(number)
        return self._code(int(number, 16), start)

    def _code(self, code: int, start: int) -> int:
        if code > LAST or SURROGATES[0] <= code <= SURROGATES[1]:
            raise self._error("there is no such character", start)
        return code

    def _repeat(self, item: Expr, size: int, *, nested: bool) -> tuple[Expr, int]:
        start = self._at
        least, most = self._bounds(nested=nested)
        if item == EMPTY:
            raise self._error("nothing to repeat", start)
        if most is not None and least > most:
            raise self._error(f"a repeat of at least {least} and at most {most} times", start)
        times = most or least or 1
        if max(times, least) > MOST_REPEATS:
            raise self._error(f"more than {MOST_REPEATS} repeats, which llama.cpp does not hold to", start)
        if size * times > MOST_REPEATS:
            raise self._error(
                "too many repeats within repeats for llama.cpp; give the inner one a rule", start
            )
        self._inner += 1 if most is None else most - least
        if (least, most) == (1, 1):
            return item, size
        return (EMPTY if most == 0 else Repeat(item, least, most)), size * times

    def _bounds(self, *, nested: bool) -> tuple[int, int | None]:
        sign = self._peek()
        self._at += 1
        if sign != "{":
            bounds: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
            return bounds[sign]
        self._skip_space(newlines=nested)
        least = self._count()
        most: int | None = least
        if self._peek() == ",":
            self._at += 1
            self._skip_space(newlines=nested)
            most = None if self._peek() == "}" else self._count()
        if self._peek() != "}":
            raise self._error("a repeat is written {n}, {n,} or {n,m}")
        self._at += 1
        return least, most

    def _count(self) -> int:
        start = self._at
        while self._peek() and self._peek() in "0123456789":
            self._at += 1
        digits = self._text[start : self._at]
        if not digits:
            raise self._error("a number is expected here")
        self._skip_space(newlines=False)
        return int(digits[:9])  # far beyond what is allowed


_ITEM_STARTS = frozenset('"[.(') | _WORD


def _refs(expr: Expr) -> Iterator[str]:
    match expr:
        case Ref(name):
            yield name
        case Seq(parts) | Alt(parts):
            for part in parts:
                yield from _refs(part)
        case Repeat(item):
            yield from _refs(item)
        case Chars():
            return


def _refuse_left_recursion(rules: Rules) -> None:
    """Refuses rules that come to themselves without a character between, and endless repeats of nothing."""
    empty = empty_rules(rules)
    first = {name: set(_first_refs(expr, empty, name)) for name, expr in rules.items()}
    done: set[str] = set()
    for start in rules:
        path: list[str] = []
        todo: list[tuple[str, bool]] = [(start, False)]
        while todo:
            name, left = todo.pop()
            if left:
                path.pop()
                done.add(name)
                continue
            if name in path:
                loop = " -> ".join([*path[path.index(name) :], name])
                raise BadConstraint(f"grammar, rule {name}: left recursion ({loop})")
            if name not in done:
                path.append(name)
                todo.append((name, True))
                todo += ((ref, False) for ref in sorted(first[name]))


def _first_refs(expr: Expr, empty: frozenset[str], rule: str) -> Iterator[str]:
    """The rules that `expr` may begin with."""
    match expr:
        case Ref(name):
            yield name
        case Alt(options):
            for option in options:
                yield from _first_refs(option, empty, rule)
        case Seq(items):
            begins = True
            for item in items:  # all of them, for the repeats within
                refs = list(_first_refs(item, empty, rule))
                yield from refs if begins else ()
                begins = begins and nullable(item, empty)
        case Repeat(item, _, most):
            if most is None and nullable(item, empty):
                raise BadConstraint(f"grammar, rule {rule}: an endless repeat of what may be empty")
            yield from _first_refs(item, empty, rule)
        case Chars():
            return
