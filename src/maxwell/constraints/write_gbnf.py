"""Expressions written as GBNF, in the part of it that llama.cpp and those who follow it read alike."""

from __future__ import annotations

from maxwell.constraints.expressions import ANY, LAST, Alt, Chars, Expr, Ref, Repeat, Rules, Seq, complement
from maxwell.constraints.unhonoured import Unhonoured

_BLOCK = 64  # a repeat of more than `_PLAIN` is written as one of blocks of this many
_PLAIN = 900
_MOST = _BLOCK * _PLAIN

_NAMED = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x5C: "\\\\", 0x22: '\\"'}


def gbnf_text(rules: Rules) -> str:
    """The grammar of these rules, `root` among them.

    Raises:
        Unhonoured: A repeat is beyond what llama.cpp holds to.
    """
    return _Writer(rules).text()


class _Writer:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._inner: dict[Expr, str] = {}  # what is repeated gets a rule: llama.cpp multiplies repeats inside
        self._lines: list[str] = []

    def text(self) -> str:
        lines = [f"{name} ::= {self._written(expr)}" for name, expr in self._rules.items()]
        return "\n".join([*lines, *self._lines]) + "\n"

    def _written(self, expr: Expr) -> str:
        match expr:
            case Chars():
                return class_text(expr)
            case Seq(items):
                return self._sequence(items)
            case Alt(options):
                return " | ".join(map(self._written, options))
            case Repeat(item, least, most):
                return self._repeat(self._atom(item), least, most)
            case Ref(name):
                return name

    def _sequence(self, items: tuple[Expr, ...]) -> str:
        parts: list[str] = []
        literal = ""
        for item in items:
            code = _single(item)
            if code is not None and not _is_control(code):
                literal += _escaped(code, "")
                continue
            if literal:
                parts.append(f'"{literal}"')
                literal = ""
            parts.append(f"({self._written(item)})" if isinstance(item, Alt) else self._written(item))
        if literal or not parts:
            parts.append(f'"{literal}"')
        return " ".join(parts)

    def _atom(self, item: Expr) -> str:
        if isinstance(item, Ref | Chars):
            return self._written(item)
        if item not in self._inner:
            self._inner[item] = self._rule(self._written(item))
        return self._inner[item]

    def _rule(self, body: str) -> str:
        name = f"part-{len(self._lines)}"
        while name in self._rules:
            name += "-"
        self._lines.append(f"{name} ::= {body}")
        return name

    def _repeat(self, atom: str, least: int, most: int | None) -> str:
        if max(least, most or 0) > _MOST:
            raise Unhonoured(f"$: more than {_MOST} repeats are beyond what a grammar holds to")
        sign = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
        if sign:
            return atom + sign
        if max(least, most or 0) <= _PLAIN:
            bounds = f"{least}" if least == most else f"{least},{'' if most is None else most}"
            return f"{atom}{{{bounds}}}"
        return self._blocks(atom, least, most)

    def _blocks(self, atom: str, least: int, most: int | None) -> str:
        """A great repeat as one of blocks: all of `least`, then none to the rest of `most`."""
        block = self._rule(f"{atom}{{{_BLOCK}}}")
        count, rest = divmod(least, _BLOCK)
        parts = [f"{block}{{{count}}}"] if count else []
        parts += [f"{atom}{{{rest}}}"] if rest else []
        if most is None:
            return " ".join([*parts, f"{atom}*"])
        count, rest = divmod(most - least, _BLOCK)
        if count > 1:
            parts.append(f"{block}{{0,{count - 1}}}")
        parts.append(f"{atom}{{0,{min(count, 1) * _BLOCK + rest}}}")
        return " ".join(parts)


def _single(expr: Expr) -> int | None:
    if isinstance(expr, Chars) and len(expr.ranges) == 1 and expr.ranges[0][0] == expr.ranges[0][1]:
        return expr.ranges[0][0]
    return None


def class_text(some: Chars) -> str:
    """A set of characters: a literal, `[...]` or `[^...]`."""
    code = _single(some)
    if code is not None and not _is_control(code):
        return f'"{_escaped(code, "")}"'
    negated = some.ranges[-1][1] == LAST and some != ANY
    ranges = complement(some).ranges if negated else some.ranges
    # Last what is written with \x, as some readers take all hexadecimal digits that follow.
    spans = sorted((_span(low, high) for low, high in ranges), key=lambda span: "\\x" in span)
    return f"[{'^' if negated else ''}{''.join(spans)}]"


def _span(low: int, high: int) -> str:
    first, last = _escaped(low, "[]^-"), _escaped(high, "[]^-")
    return first if low == high else f"{first}-{last}"


def _is_control(code: int) -> bool:
    """Whether it needs \\x, which not all readers know between quotes."""
    return code not in _NAMED and (code < 0x20 or code == 0x7F)


def _escaped(code: int, special: str) -> str:
    """A character as it stands between quotes or brackets; beyond ASCII as itself, which all read alike."""
    if code in _NAMED:
        return _NAMED[code]
    if code < 0x20 or code == 0x7F or chr(code) in special:
        return f"\\x{code:02X}"
    return chr(code)
