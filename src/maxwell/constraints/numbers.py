"""Numbers within bounds, as grammars of their digits."""

from __future__ import annotations

import math
from typing import Any

from maxwell.constraints.expressions import Expr, Repeat, alt, chars, maybe, repeat, seq, text
from maxwell.constraints.schemas import Schema
from maxwell.constraints.unhonoured import Unhonoured

_DIGIT = chars([(0x30, 0x39)])
_NOT_ZERO = chars([(0x31, 0x39)])
_WHOLE = alt(text("0"), seq(_NOT_ZERO, Repeat(_DIGIT, 0, 14)))
_SIGN = maybe(text("-"))
_FRACTION = seq(text("."), Repeat(_DIGIT, 1, 15))
_EXPONENT = seq(chars([(0x45, 0x45), (0x65, 0x65)]), maybe(alt(text("+"), text("-"))), Repeat(_DIGIT, 1, 2))

MOST = 10**15 - 1  # greatest whole number that is written, where nothing else bounds it
MOST_WITH_FRACTION = (
    10**9 - 1
)  # beside the six digits behind the point, a double still tells all of them apart
MOST_LISTED = 1000


def integer(schema: Schema, path: str) -> Expr:
    """Whole numbers that obey the bounds of `schema`.

    Raises:
        Unhonoured: There are none, or `multipleOf` is beyond a grammar.
    """
    low, high = _whole_bounds(schema, path)
    step = schema.get("multipleOf", 1)
    if step not in (1, 1.0):
        return _multiples(step, low, high, path)
    if low is None and high is None:
        return seq(_SIGN, _WHOLE)
    return _between(-MOST if low is None else low, MOST if high is None else high, path)


def number(schema: Schema, path: str) -> Expr:
    """Numbers that obey the bounds of `schema`.

    Raises:
        Unhonoured: As `integer`.
    """
    if "multipleOf" in schema:
        if schema["multipleOf"] not in (1, 1.0):
            raise Unhonoured(f"{path}.multipleOf: a grammar cannot say it")
        return integer(schema, path)
    low, high = _whole_bounds(schema, path)
    if low is None and high is None:
        return seq(_SIGN, _WHOLE, maybe(_FRACTION), maybe(_EXPONENT))
    low = max(-MOST_WITH_FRACTION, -MOST_WITH_FRACTION if low is None else low)
    high = min(MOST_WITH_FRACTION, MOST_WITH_FRACTION if high is None else high)
    options = _fractions(schema, low, high)
    if low <= high:
        options.append(_between(low, high, path))
    if not options:
        raise Unhonoured(f"{path}: a grammar finds no number between its bounds")
    return alt(*options)


def _whole_bounds(schema: Schema, path: str) -> tuple[int | None, int | None]:
    """Least and greatest whole number within the bounds."""
    lows, highs = [], []
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        bound = schema.get(keyword)
        if isinstance(bound, bool):
            raise Unhonoured(
                f"{path}.{keyword}: True and False are of a draft that a grammar is not made for"
            )
        if bound is None:
            continue
        match keyword:
            case "minimum":
                lows.append(math.ceil(bound))
            case "exclusiveMinimum":
                lows.append(math.floor(bound) + 1)
            case "maximum":
                highs.append(math.floor(bound))
            case _:
                highs.append(math.ceil(bound) - 1)
    return max(lows, default=None), min(highs, default=None)


def _multiples(step: Any, low: int | None, high: int | None, path: str) -> Expr:
    if low is None or high is None or step != int(step) or (high - low) // int(step) >= MOST_LISTED:
        raise Unhonoured(f"{path}.multipleOf: a grammar cannot say it, except of few whole numbers")
    first = -(-low // int(step)) * int(step)
    found = [text(str(value)) for value in range(first, high + 1, int(step))]
    if not found:
        raise Unhonoured(f"{path}.multipleOf: no number obeys it")
    return alt(*found)


def _fractions(schema: Schema, low: int, high: int) -> list[Expr]:
    """Numbers with a point: `n.x` lies between n and n + 1, `-n.x` between -n - 1 and -n.

    The first whole number below the bound is taken with a fraction above zero where the bound is exclusive.
    """
    fraction = seq(text("."), Repeat(_DIGIT, 0, 5), _NOT_ZERO)  # not zero, so never the whole number itself
    floor, ceiling = low, high
    if schema.get("exclusiveMinimum") == low - 1:
        floor = low - 1  # n itself does not obey, n.x does
    if schema.get("exclusiveMaximum") == high + 1:
        ceiling = high + 1
    options: list[Expr] = []
    if ceiling - 1 >= max(floor, 0):
        options.append(seq(_digits(max(floor, 0), ceiling - 1), fraction))
    if floor + 1 <= min(ceiling, 0):
        options.append(seq(text("-"), _digits(max(-ceiling, 0), -floor - 1), fraction))
    return options


def _between(low: int, high: int, path: str) -> Expr:
    """The whole numbers from `low` to `high`."""
    if low > high:
        raise Unhonoured(f"{path}: no whole number lies between its bounds")
    options: list[Expr] = []
    if low < 0:
        options.append(seq(text("-"), _digits(max(1, -high), -low)))
    if high >= 0:
        options.append(_digits(max(0, low), high))
    return alt(*options)


def _digits(low: int, high: int) -> Expr:
    """The whole numbers from `low` to `high`, neither below 0, without leading zeros."""
    options: list[Expr] = []
    while len(str(low)) < len(str(high)):
        last = 10 ** len(str(low)) - 1
        options.append(_same_length(str(low), str(last)))
        low = last + 1
    options.append(_same_length(str(low), str(high)))
    return alt(*options)


def _same_length(low: str, high: str) -> Expr:
    """The digits from `low` to `high`, which are equally long."""
    if not low:
        return text("")
    rest = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return repeat(_DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return seq(text(low[0]), _same_length(low[1:], high[1:]))
    options: list[Expr] = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        options.append(seq(text(low[0]), _same_length(low[1:], "9" * rest)))
        first += 1
    tail: list[Expr] = []
    if high[1:] != "9" * rest:
        tail.append(seq(text(high[0]), _same_length("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        some = chars([(0x30 + first, 0x30 + last)])
        options.append(seq(some, repeat(_DIGIT, rest, rest)) if rest else some)
    return alt(*options, *tail)
