"""How things are shown: one layout, coloured on a terminal, plain and never cut when piped."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import click

from maxwell.amounts import money as money  # shown by every command

EMPTY = "-"
_GAP = "  "
_INDENT = "    "
# Control characters can steer a terminal; a model's or a server's words must not.
_STEERING = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        title: Its heading.
        right: Whether its values stand at the right.
        beneath: Format of the value where it moves to a line beneath the row because the terminal is too
            narrow, e.g. "{} slots"; "" = it never moves.
        always: Whether it stands beneath the row on every terminal, however wide.
    """

    title: str
    right: bool = False
    beneath: str = ""
    always: bool = False


class Cell(NamedTuple):
    """A value with a style, e.g. "green"; the words alone must do."""

    text: str
    style: str = ""


Row = Sequence[Cell | str]


def is_terminal(stream: IO[Any]) -> bool:
    """Whether a person looks at `stream`."""
    return bool(getattr(stream, "isatty", lambda: False)())


def visible(text: str) -> str:
    """`text` with control characters replaced, line ends and tabs kept."""
    return text.translate(_STEERING)


def fold(text: str) -> str:
    """`text` on one line."""
    return visible(" ".join(text.split()))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str = "", style: str = "") -> None:
    """A line on stdout; wrapped and styled on a terminal."""
    if is_terminal(sys.stdout):
        _console(sys.stdout).print(_text(visible(text), style))
    else:
        click.echo(visible(text))


def hint(text: str) -> None:
    """A dim line on stderr."""
    line = fold(text)
    if is_terminal(sys.stderr):
        _console(sys.stderr).print(_text(line, "dim"), soft_wrap=True)
    else:
        click.echo(line, err=True)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show that something goes on, where somebody looks at stderr."""
    if not is_terminal(sys.stderr):
        yield
        return
    with _console(sys.stderr).status(text):
        yield


def table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Print rows in aligned columns on stdout.

    On a terminal columns without any value are left out, and those that may stand beneath the rows do so
    when the terminal is too narrow. When piped every column is there and nothing is cut.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    shown = list(range(len(columns)))
    if not is_terminal(sys.stdout):
        for line in _aligned(columns, cells, shown):
            click.echo("".join(part.text for part in line).rstrip())
        return
    shown = [i for i in shown if any(row[i].text != EMPTY for row in cells)]
    inline = _fitting(columns, cells, shown, shutil.get_terminal_size().columns)
    _draw(columns, cells, inline, [i for i in shown if i not in inline])


def _cell(value: Cell | str) -> Cell:
    text, style = value if isinstance(value, Cell) else (value, "")
    return Cell(fold(text) or EMPTY, style)


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], shown: Sequence[int]) -> list[int]:
    return [max(len(columns[i].title), *(len(row[i].text) for row in rows), 0) for i in shown]


def _width(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], shown: Sequence[int]) -> int:
    return sum(_widths(columns, rows, shown)) + len(_GAP) * (len(shown) - 1)


def _fitting(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], shown: Sequence[int], width: int
) -> list[int]:
    """The columns that stand side by side; of those that may stand beneath, the first ones that fit."""
    inline = [i for i in shown if not columns[i].beneath]
    for i in shown:
        if columns[i].always or not columns[i].beneath:
            continue
        wider = sorted([*inline, i])
        if _width(columns, rows, wider) > width:
            break
        inline = wider
    return inline


def _aligned(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], shown: Sequence[int]
) -> Iterator[list[Cell]]:
    """The heading and the rows, each as parts whose texts follow one another."""
    widths = _widths(columns, rows, shown)
    heading = [Cell(column.title, "bold") for column in columns]
    for row in (heading, *rows):
        line = []
        for i, width in zip(shown, widths, strict=True):
            text, style = row[i]
            line.append(Cell(text.rjust(width) if columns[i].right else text.ljust(width), style))
            line.append(Cell(_GAP))
        yield line[:-1]


def _draw(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], inline: Sequence[int], beneath: Sequence[int]
) -> None:
    """The table on a terminal."""
    console = _console(sys.stdout)
    lines = _aligned(columns, rows, inline)
    _draw_line(console, next(lines))
    for row, line in zip(rows, lines, strict=True):
        _draw_line(console, line)
        for fact in _beneath(columns, row, beneath):
            for text in _text(*fact).wrap(console, max(console.width - len(_INDENT), 10)):
                _draw_line(console, [Cell(_INDENT), text])


def _draw_line(console: Any, line: Sequence[Any]) -> None:
    from rich.text import Text

    text = Text.assemble(*line)
    text.rstrip()
    console.print(text, no_wrap=True, overflow="ignore", crop=False)


def _beneath(columns: Sequence[Column], row: Sequence[Cell], beneath: Sequence[int]) -> Iterator[Cell]:
    """What stands beneath a row: plain values together on a dim line, styled ones each on its own."""
    facts = [
        Cell(columns[i].beneath.format(row[i].text), row[i].style) for i in beneath if row[i].text != EMPTY
    ]
    plain = " · ".join(text for text, style in facts if not style)
    if plain:
        yield Cell(plain, "dim")
    yield from (fact for fact in facts if fact.style)


def _console(stream: IO[str]) -> Any:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _text(text: str, style: str) -> Any:
    from rich.text import Text

    return Text(text, style)


def number(value: float) -> str:
    """A number as a person reads it: `12,345`, `1.25`."""
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(count: int, word: str) -> str:
    """`1 slot`, `2 slots`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
