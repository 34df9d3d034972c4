"""What `maxwell usage` shows: one day, several days, as tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import click

from maxwell.amounts import duration
from maxwell.calls.state import left_today, limit_of
from maxwell.cli.render import (
    Cell,
    Column,
    Row,
    is_terminal,
    money,
    number,
    plural,
    print_json,
    say,
    table,
    visible,
)
from maxwell.cli.usage_books import specs
from maxwell.ledger import NANO, Limit, Used
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, Registry, Spec

_TODAY = (
    Column("NAME"),
    Column("TOKENS", right=True),
    Column("MONEY", right=True),
    Column("LEFT", beneath="left {}"),  # before the budget: a narrow terminal has room for one of them
    Column("BUDGET", beneath="budget {}"),
    Column("HELD", beneath="held {}"),
    Column("CALLS", right=True, beneath="calls {}"),
    Column("RESETS IN", beneath="resets in {}"),
    Column("NOTE", beneath="{}"),
)
_DAYS = (
    Column("DAY"),
    Column("TOKENS", right=True),
    Column("MONEY", right=True),
    Column("CALLS", right=True),
    Column(""),
)
_TOTALS = (
    Column("NAME"),
    Column("TOKENS", right=True),
    Column("MONEY", right=True),
    Column("CALLS", right=True),
    Column("NOTE", beneath="{}"),
)
_CSV = ("day", "name", "tokens", "usd", "estimated_tokens", "calls")
_UNKNOWN = "not in the registry"
_BAR, _NARROWEST_BAR = 40, 4
_EIGHTHS = "▏▎▍▌▋▊▉█"

Books = Mapping[date, Mapping[str, Used]]


class Line(NamedTuple):
    """One entry and what it used; `spec` None = the registry does not declare it."""

    name: str
    spec: Spec | None
    used: Used


class Period(NamedTuple):
    """Several days' books, from `since` on, and who is declared."""

    registry: Registry
    since: date
    today: date
    books: Books

    @property
    def days(self) -> list[date]:
        """Every day of the period, and those later ones that stand in the books."""
        spread = (self.today - self.since).days + 1
        later = [day for day in self.books if day > self.today]  # the clock was set back, or the zone changed
        return [self.since + timedelta(n) for n in range(spread)] + later

    @property
    def totals(self) -> list[Line]:
        """What each entry used in all; those that used nothing are left out."""
        sums: dict[str, Used] = {}
        for used in self.books.values():
            for name, amount in used.items():
                sums[name] = sums.get(name, Used()) + amount
        return [line for line in lines(self.registry, sums) if line.used != Used()]


def lines(registry: Registry, books: Mapping[str, Used]) -> list[Line]:
    """Every declared entry in registry order, then the names that only stand in the books."""
    declared = specs(registry)
    others = sorted(name for name, used in books.items() if name not in declared and used != Used())
    return [Line(name, declared.get(name), books.get(name, Used())) for name in (*declared, *others)]


def total(found: Iterable[Used]) -> Used:
    """The sum."""
    return sum(found, Used())


def show_today(found: Sequence[Line], resets_in: float, *, with_total: bool) -> None:
    """A table of today's usage."""
    rows = [_today_row(line, resets_in) for line in found]
    if with_total:
        used = total(line.used for line in found)
        rows.append(
            [
                Cell("TOTAL", "bold"),
                Cell(number(used.tokens), "bold"),
                Cell(money(used.usd), "bold"),
                "",
                "",
                _amounts(used.held_tokens or None, used.held_nanousd or None),
                number(used.calls),
                "",
                _estimated(used),
            ]
        )
    table(_TODAY, rows)


def _today_row(line: Line, resets_in: float) -> Row:
    used, spec = line.used, line.spec
    limit = Limit() if spec is None else limit_of(spec)
    has_budget = limit != Limit()
    left = _left(line)
    is_spent = any(part is not None and part <= 0 for part in left)
    return [
        Cell(line.name, "bold" if spec else ""),
        number(used.tokens),
        money(used.usd),
        Cell(_amounts(*left) if has_budget else "unlimited" if spec else "", "red" if is_spent else ""),
        _amounts(limit.tokens, limit.nanousd),
        _amounts(used.held_tokens or None, used.held_nanousd or None),
        number(used.calls),
        duration(resets_in) if has_budget else "",
        Cell(_note(line), "red" if is_spent else "" if spec else "yellow"),
    ]


def _left(line: Line) -> tuple[int | None, int | None]:
    """What is left in tokens and nanodollars, negative where a budget was passed; None = unlimited."""
    return (None, None) if line.spec is None else left_today(line.spec, line.used)


def _amounts(tokens: int | None, nanousd: int | None) -> str:
    parts = [] if tokens is None else [plural(max(tokens, 0), "token")]
    if nanousd is not None:
        parts.append(money(max(nanousd, 0) / NANO))
    return ", ".join(parts)


def _note(line: Line) -> str:
    return _joined(
        "" if line.spec else _UNKNOWN, _spent(line), _estimated(line.used), _unpriced(line, [line.used])
    )


def _joined(*said: str) -> str:
    return "; ".join(filter(None, said))


def _spent(line: Line) -> str:
    """Why nothing is left, or ""."""
    used, left = line.used, _left(line)
    held = (used.held_tokens, used.held_nanousd)
    spent = [part + kept for part, kept in zip(left, held, strict=True) if part is not None and part <= 0]
    if not spent:
        return ""
    return "budget used up" if min(spent) <= 0 else "all that is left is held by running calls"


def _estimated(used: Used) -> str:
    return f"{plural(used.estimated_tokens, 'token')} estimated" if used.estimated_tokens else ""


def _unpriced(line: Line, days: Iterable[Used]) -> str:
    """How many tokens came from an `llm_usage.json`, which tells no money."""
    if line.spec is None or line.spec.is_free:
        return ""
    tokens = sum(used.tokens for used in days if not used.calls and not used.nanousd)
    return f"price of {plural(tokens, 'token')} unknown" if tokens else ""


def show_days(period: Period, name: str | None) -> None:
    """A table of days, from the first one with use on, and one of the entries."""
    totals = period.totals
    if not totals:
        days = (period.today - period.since).days + 1
        when = "today" if days == 1 else f"in the last {days} days"
        say(f"nothing was used {when}" if name is None else f"{name} used nothing {when}")
        return
    by_day = {day: total(period.books.get(day, {}).values()) for day in period.days}
    first = min(period.books)
    shown = {day: used for day, used in by_day.items() if day >= first}
    most = max(used.tokens for used in shown.values())
    rows: list[list[Cell | str]] = [_sums(f"{day:%Y-%m-%d %a}", used) for day, used in shown.items()]
    width = _bar_width(rows)
    for row, used in zip(rows, shown.values(), strict=True):
        row.append(Cell(_bar(used.tokens, most, width), "cyan"))
    table(_DAYS, rows)
    say()
    entries: list[Row] = [[*_sums(line.name, line.used), _period_note(line, period)] for line in totals]
    if name is None:
        used = total(line.used for line in totals)
        entries.append([*(Cell(str(text), "bold") for text in _sums("TOTAL", used)), _estimated(used)])
    table(_TOTALS, entries)


def _sums(title: str, used: Used) -> list[Cell | str]:
    return [title, number(used.tokens), money(used.usd), number(used.calls)]


def _period_note(line: Line, period: Period) -> str:
    days = (used[line.name] for used in period.books.values() if line.name in used)
    return _joined("" if line.spec else _UNKNOWN, _estimated(line.used), _unpriced(line, days))


def _bar_width(rows: Sequence[Sequence[Cell | str]]) -> int:
    """What is left of the terminal's width; 0 = too little for a bar."""
    if not is_terminal(sys.stdout):
        return _BAR
    titles = [column.title for column in _DAYS]
    taken = sum(max(len(str(text)) for text in column) + 2 for column in zip(titles, *rows, strict=False))
    free = shutil.get_terminal_size().columns - taken
    return 0 if free < _NARROWEST_BAR else min(free, _BAR)


def _bar(value: int, most: int, width: int) -> str:
    """A bar as long as `value` is of `most`; one that stands for something is never empty."""
    if not value or not width:
        return ""
    if not _draws_blocks():
        return "#" * max(value * width // most, 1)
    eighths = max(value * width * 8 // most, 1)
    whole, rest = divmod(eighths, 8)
    return _EIGHTHS[-1] * whole + (_EIGHTHS[rest - 1] if rest else "")


def _draws_blocks() -> bool:
    return is_terminal(sys.stdout) and (sys.stdout.encoding or "").lower().startswith("utf")


def print_today_json(found: Sequence[Line], day: date, resets_at: datetime, resets_in: float) -> None:
    """Today's usage as JSON."""
    entries = []
    for line in found:
        spec, (tokens, nanousd) = line.spec, _left(line)
        entries.append(
            {
                **_named(line),
                **_figures(line.used),
                **_held(line.used),
                "daily_budget_tokens": spec.daily_budget_tokens if spec else None,
                "daily_budget_usd": spec.daily_budget_usd if spec else None,
                "tokens_left": tokens,
                "usd_left": None if nanousd is None else nanousd / NANO,
            }
        )
    used = total(line.used for line in found)
    print_json(
        {
            "day": day.isoformat(),
            "resets_at": resets_at.isoformat(),
            "resets_in_seconds": round(resets_in),
            "entries": entries,
            "total": _figures(used) | _held(used),
        }
    )


def print_days_json(period: Period) -> None:
    """The period's usage as JSON."""
    days = []
    for day in period.days:
        books = period.books.get(day, {})
        entries = [{"name": name, **_figures(used)} for name, used in sorted(books.items())]
        days.append({"day": day.isoformat(), **_figures(total(books.values())), "entries": entries})
    totals = period.totals
    print_json(
        {
            "since": period.since.isoformat(),
            "until": period.days[-1].isoformat(),
            "days": days,
            "entries": [{**_named(line), **_figures(line.used)} for line in totals],
            "total": _figures(total(line.used for line in totals)),
        }
    )


def _named(line: Line) -> dict[str, Any]:
    return {"name": line.name, "kind": None if line.spec is None else _kind(line.spec)}


def _kind(spec: Spec) -> str:
    if isinstance(spec, LLMSpec):
        return "llm"
    return "embedding" if isinstance(spec, EmbeddingSpec) else "reranker"


def _figures(used: Used) -> dict[str, Any]:
    # Dividing whole nanodollars gives the float that is written as that very decimal number.
    return {
        "tokens": used.tokens,
        "usd": used.usd,
        "estimated_tokens": used.estimated_tokens,
        "calls": used.calls,
    }


def _held(used: Used) -> dict[str, Any]:
    return {"held_tokens": used.held_tokens, "held_usd": used.held_usd}


def print_csv(books: Books) -> None:
    """One line for each entry and day."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for day, used in books.items():
        for name, amount in used.items():
            usd = decimal(amount.nanousd)
            writer.writerow((day, name, amount.tokens, usd, amount.estimated_tokens, amount.calls))
    click.echo(visible(text.getvalue()), nl=False)


def decimal(nanousd: int) -> str:
    """US dollars as an exact decimal number: `0.3`, `0.000000001`."""
    whole, rest = divmod(nanousd, NANO)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")
