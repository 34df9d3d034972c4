"""What a grammar or a regular expression says, once read: sets of characters, sequences, choices, repeats.

Regexes, grammars and schemas meet here, so that what is checked locally and what a server is sent are made of
the same values and mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from msgspec import Struct

LAST = 0x10FFFF  # the last code point there is
SURROGATES = (0xD800, 0xDFFF)  # code points that are no characters

Range: TypeAlias = tuple[int, int]


class Chars(Struct, frozen=True):
    """One character out of a set: `ranges` are inclusive, sorted, apart from each other."""

    ranges: tuple[Range, ...]

    def __contains__(self, char: str) -> bool:
        code = ord(char)
        return any(low <= code <= high for low, high in self.ranges)


class Seq(Struct, frozen=True):
    """One after the other; without items the empty text."""

    items: tuple[Expr, ...]


class Alt(Struct, frozen=True):
    """One of these."""

    options: tuple[Expr, ...]


class Repeat(Struct, frozen=True):
    """`least` to `most` times the same; `most` None is without end."""

    item: Expr
    least: int
    most: int | None


class Ref(Struct, frozen=True):
    """What the rule of that name says."""

    name: str


Expr: TypeAlias = Chars | Seq | Alt | Repeat | Ref
Rules: TypeAlias = dict[str, Expr]

EMPTY = Seq(())
ANY = Chars(((0, SURROGATES[0] - 1), (SURROGATES[1] + 1, LAST)))


def chars(ranges: Iterable[Range]) -> Chars:
    """The set of all these that are characters, put in order."""
    return complement(complement(Chars(tuple(ranges))))


def complement(some: Chars) -> Chars:
    """Every character that is not in `some`."""
    out, start = [], 0
    for low, high in _merged([*some.ranges, SURROGATES]):
        if start < low:
            out.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        out.append((start, LAST))
    return Chars(tuple(out))


def _merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def common(left: Chars, right: Chars) -> Chars:
    """The characters that are in both."""
    pairs = ((max(a, c), min(b, d)) for a, b in left.ranges for c, d in right.ranges)
    return Chars(tuple(sorted((low, high) for low, high in pairs if low <= high)))


def text(words: str) -> Expr:
    """Exactly this text."""
    return seq(*(Chars(((ord(char), ord(char)),)) for char in words))


def seq(*items: Expr) -> Expr:
    """One after the other, without needless nesting."""
    flat: list[Expr] = []
    for item in items:
        flat += item.items if isinstance(item, Seq) else [item]
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alt(*options: Expr) -> Expr:
    """One of these, without needless nesting and without the same twice."""
    flat: dict[Expr, None] = {}
    for option in options:
        flat |= dict.fromkeys(option.options if isinstance(option, Alt) else [option])
    return next(iter(flat)) if len(flat) == 1 else Alt(tuple(flat))


def maybe(item: Expr) -> Expr:
    """This, or nothing."""
    return repeat(item, 0, 1)


def repeat(item: Expr, least: int, most: int | None) -> Expr:
    """That many times; a repeat of what may be empty (without `Ref`s) is turned into one of what is not.

    llama.cpp refuses an endless repeat of something empty, and every other repeat of it is ambiguous.
    """
    if nullable(item):
        filled = _filled(item)
        return EMPTY if filled is None else repeat(filled, 0, most)
    if most == 0:
        return EMPTY
    return item if (least, most) == (1, 1) else Repeat(item, least, most)


def nullable(expr: Expr, empty_rules: frozenset[str] = frozenset()) -> bool:
    """Whether it may be the empty text, where `empty_rules` are the rules that may."""
    return _derivable(expr, empty_rules, with_chars=False)


def _derivable(expr: Expr, rules: frozenset[str], *, with_chars: bool) -> bool:
    """Whether some text fits that is made of `rules`, and of characters where `with_chars`."""
    match expr:
        case Chars():
            return with_chars
        case Seq(items):
            return all(_derivable(item, rules, with_chars=with_chars) for item in items)
        case Alt(options):
            return any(_derivable(option, rules, with_chars=with_chars) for option in options)
        case Repeat(item, least, _):
            return least == 0 or _derivable(item, rules, with_chars=with_chars)
        case Ref(name):
            return name in rules


def _filled(expr: Expr) -> Expr | None:
    """The same without the empty text; None where nothing else is left. For expressions without `Ref`s."""
    if not nullable(expr):
        return expr
    match expr:
        case Seq((first, *others)):
            rest = seq(*others)
            head, tail = _filled(first), _filled(rest)
            found = [] if head is None else [seq(head, rest)]
            found += [] if tail is None else [tail]
            return alt(*found) if found else None
        case Alt(options):
            left = [filled for filled in map(_filled, options) if filled is not None]
            return alt(*left) if left else None
        case Repeat(item, _, most):  # made by `repeat`, so the item is not empty
            return repeat(item, 1, most)
        case _:
            return None


def lengths(expr: Expr) -> tuple[int, int | None]:
    """Least and most characters of its texts; None = without end. For expressions without `Ref`s."""
    match expr:
        case Chars():
            return 1, 1
        case Seq(items):
            spans = [lengths(item) for item in items]
            return sum(low for low, _ in spans), _total([high for _, high in spans])
        case Alt(options):
            spans = [lengths(option) for option in options]
            highs = [high for _, high in spans]
            most = None if None in highs else max(high for high in highs if high is not None)
            return min(low for low, _ in spans), most
        case Repeat(item, least, most):
            low, high = lengths(item)
            return low * least, None if most is None or high is None else high * most
        case Ref(name):
            raise TypeError(f"the length of rule {name} is not known")


def _total(numbers: list[int | None]) -> int | None:
    return None if None in numbers else sum(number for number in numbers if number is not None)


def empty_rules(rules: Mapping[str, Expr]) -> frozenset[str]:
    """The rules that may be the empty text."""
    return _derivable_rules(rules, with_chars=False)


def productive_rules(rules: Mapping[str, Expr]) -> frozenset[str]:
    """The rules that some text fits, rather than going on for ever."""
    return _derivable_rules(rules, with_chars=True)


def _derivable_rules(rules: Mapping[str, Expr], *, with_chars: bool) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    while True:
        more = frozenset(n for n, expr in rules.items() if _derivable(expr, found, with_chars=with_chars))
        if more == found:
            return found
        found = more
