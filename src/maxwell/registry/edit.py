"""Edits of a registry's text that keep every byte they do not touch.

People write this file by hand: their order, indentation, line ends and own keys are theirs. So an edit
never serialises the file anew; it finds the place in the text and splices.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from maxwell.errors import Problem, RegistryError
from maxwell.registry.checks import entries
from maxwell.registry.files import write_atomically
from maxwell.registry.load import decode, digest_of, read
from maxwell.registry.locate import maxwell_home
from maxwell.registry.positions import Document, NotJSON, Span, Where, scan
from maxwell.registry.trust import is_trusted, trust
from maxwell.registry.wording import did_you_mean, path_text, shown

MINIMAL = '{\n  "llms": [],\n  "embeddings": [],\n  "_schema_version": "1.0"\n}\n'
LOCK_SECONDS = 10.0

Section = Literal["llms", "embeddings", "rerankers"]


class _Page(NamedTuple):
    """A text, what stands where in it, and how new text is written to look like it."""

    text: str
    document: Document
    newline: str
    step: str
    colon: str
    comma: str

    @property
    def value(self) -> Any:
        return self.document.value

    def with_cut(self, start: int, end: int, new: str) -> str:
        return self.text[:start] + new + self.text[end:]


def add_entry(text: str, kind: Section, entry: dict[str, Any]) -> str:
    """The registry text with one more entry, at the end of its list.

    Raises:
        RegistryError: The text is not JSON, has no such list, or has an entry of that name already.
    """
    page = _page(text)
    name = entry.get("name")
    if taken := _find(page, name):
        message = f"{shown(name)} is the name of an entry already; remove that one or choose another name"
        raise _error(page, (*taken, "name"), message)
    if not isinstance(page.value, dict):
        raise _error(page, (), "the file must hold an object")
    if kind not in page.value:
        return _add_member(page, (), kind, [entry])
    if not isinstance(page.value[kind], list):
        raise _error(page, (kind,), "must be a list to take an entry")
    return _append(page, (kind,), entry)


def set_field(text: str, path: Where, value: Any) -> str:
    """The registry text with the value at `path` replaced, or added as the last key of its object.

    Args:
        text: The registry.
        path: Keys and indexes from the top, e.g. `("llms", 0, "cost_per_1k_tokens")`.
        value: Any JSON value.

    Raises:
        RegistryError: The text is not JSON, or has no object to hold that key.
    """
    page = _page(text)
    span = page.document.values.get(path)
    if span is None:
        parent, key = path[:-1], path[-1]
        if not isinstance(key, str) or not isinstance(_at(page.value, parent), dict):
            raise _error(page, (), f"has no place {path_text(path)}")
        return _add_member(page, parent, key, value)
    lines = _spreads(page, path) or _spreads(page, path[:-1])
    return page.with_cut(
        span.start, span.end, _written(page, value, _indentation(page, span.start), lines=lines)
    )


def place_of(text: str, name: str) -> tuple[str, int]:
    """Where the entry of that name stands, as the beginning of a path for `set_field`.

    Raises:
        RegistryError: The text is not JSON, or has no such entry.
    """
    return _known(_page(text), name)


def remove_entry(text: str, name: str) -> str:
    """The registry text without the entry of that name.

    Raises:
        RegistryError: The text is not JSON, or has no such entry.
    """
    page = _page(text)
    kind, index = _known(page, name)
    spans = _members(page, (kind,))
    whole = page.document.values[(kind,)]
    if len(spans) == 1:
        return page.with_cut(whole.start + 1, whole.end - 1, "")
    if index < len(spans) - 1:
        return page.with_cut(spans[index].start, spans[index + 1].start, "")
    return page.with_cut(spans[index - 1].end, spans[index].end, "")


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a registry file in one step, safe against other writers and against crashes.

    The file is locked, read, changed, checked and replaced. A file that does not exist begins as an empty
    registry. A symbolic link stays one: its target is written. Trust in the old content (see `trust`) passes
    to the new.

    Args:
        path: The registry file.
        change: Text in, text out; line ends and a byte order mark come through as they are.

    Raises:
        RegistryError: The change fails, its result is not a valid registry, or the file cannot be written;
            nothing was written then.
    """
    from filelock import FileLock, Timeout

    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=LOCK_SECONDS):
            _rewrite_locked(target, change)
    except Timeout:
        raise RegistryError(
            str(path), [Problem("", "is being changed by another process; try again")]
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise RegistryError(str(path), [Problem("", f"cannot be written: {reason}")]) from None


def _rewrite_locked(target: Path, change: Callable[[str], str]) -> None:
    old = read(target) if target.exists() else None
    text = MINIMAL if old is None else _text(old, target)
    try:
        new = change(text).encode(errors="surrogatepass")
    except RegistryError as error:
        raise RegistryError(error.file or str(target), error.problems) from None
    decode(new, str(target))
    if new == old:
        return
    home = maxwell_home(os.environ)
    trusted = old is not None and is_trusted(target, digest_of(old), home)
    write_atomically(target, new)
    if trusted:
        with suppress(OSError):  # the file is written; what cannot be recorded is merely not trusted
            trust(target, digest_of(new), home)


def _text(data: bytes, target: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        decode(data, str(target))  # says where
        raise


def _page(text: str) -> _Page:
    try:
        document = scan(text)
    except NotJSON as error:
        raise RegistryError(
            "", [Problem("", f"not JSON: {error.message}", error.line, error.column)]
        ) from None
    twice = [f for f in document.faults if f.kind == "duplicate"]
    if twice:
        raise RegistryError("", [Problem(path_text(f.where), f.message, f.line, f.column) for f in twice])
    first = next(iter(document.keys.values()), None)
    tight = first is not None and re.match(r":\S", text[first.end : first.end + 2])
    newline = "\r\n" if "\r\n" in text else "\n"
    page = _Page(text, document, newline, "  ", ":" if tight else ": ", "," if tight else ", ")
    own_line = first is not None and first.line > document.values[()].line
    return page._replace(step=_indentation(page, first.start) or "  ") if first and own_line else page


def _error(page: _Page, where: Where, message: str) -> RegistryError:
    span = page.document.values.get(where) or page.document.values[()]
    return RegistryError("", [Problem(path_text(where), message, span.line, span.column)])


def _names(page: _Page) -> list[tuple[str, tuple[str, int]]]:
    """Each entry's name with its place."""
    if not isinstance(page.value, dict):
        return []
    listed = entries(page.value)
    return [(e["name"], (kind, i)) for (kind, i), e in listed if isinstance(e.get("name"), str)]


def _find(page: _Page, name: Any) -> tuple[str, int] | None:
    return next((place for known, place in _names(page) if known == name), None)


def _known(page: _Page, name: str) -> tuple[str, int]:
    found = _find(page, name)
    if not found:
        guess = did_you_mean(name, [known for known, _ in _names(page)])
        raise _error(page, (), f"has no entry named {shown(name)}{guess}")
    return found


def _at(value: Any, where: Where) -> Any:
    for step in where:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _members(page: _Page, where: Where) -> list[Span]:
    """Where the members of a list or object stand, in order; a member of an object begins with its key."""
    value = _at(page.value, where)
    values, keys = page.document.values, page.document.keys
    if isinstance(value, dict):
        return [keys[(*where, key)]._replace(end=values[(*where, key)].end) for key in value]
    return [values[(*where, index)] for index in range(len(value))]


def _append(page: _Page, where: Where, value: Any) -> str:
    """One more element at the end of a list, written as the last one is."""
    spans = _members(page, where)
    lines = _has_break(page, spans[-1]) if spans else _spreads(page, where[:-1])
    return _insert(page, where, spans, lambda indent: _written(page, value, indent, lines=lines), lines=lines)


def _add_member(page: _Page, where: Where, key: str, value: Any) -> str:
    """One more key at the end of an object."""
    lines = _spreads(page, where)

    def member(indent: str) -> str:
        return _one_line(page, key) + page.colon + _written(page, value, indent, lines=lines)

    return _insert(page, where, _members(page, where), member, lines=lines)


def _insert(
    page: _Page, where: Where, spans: list[Span], written: Callable[[str], str], *, lines: bool
) -> str:
    """Put a member behind the others, `spans`, of the list or object at `where`."""
    whole = page.document.values[where]
    if spans:
        end = spans[-1].end
        new = written(_indentation(page, spans[-1].start))
        return page.with_cut(end, end, "," + _gap(page, whole, spans) + new)
    if not lines:
        return page.with_cut(whole.start + 1, whole.end - 1, written(""))
    indent = _indentation(page, whole.start)
    deeper = indent + page.step
    inner = f"{page.newline}{deeper}{written(deeper)}{page.newline}{indent}"
    return page.with_cut(whole.start + 1, whole.end - 1, inner)


def _gap(page: _Page, whole: Span, spans: list[Span]) -> str:
    """The white space that separates members: what stands before the last one."""
    if len(spans) > 1:
        return page.text[spans[-2].end : spans[-1].start].partition(",")[2]
    before = page.text[whole.start + 1 : spans[0].start]
    return before if "\n" in before else page.comma[1:]


def _has_break(page: _Page, span: Span) -> bool:
    return "\n" in page.text[span.start : span.end]


def _spreads(page: _Page, where: Where) -> bool:
    """Whether the value at `where` takes several lines; what is put into an empty file shall."""
    return _has_break(page, page.document.values[where]) or not page.value


def _indentation(page: _Page, at: int) -> str:
    """The white space at the beginning of the line in which `at` stands."""
    line = page.text[page.text.rfind("\n", 0, at) + 1 : at].removeprefix("\ufeff")
    return line[: len(line) - len(line.lstrip(" \t"))]


def _written(page: _Page, value: Any, indent: str, *, lines: bool) -> str:
    """A value as JSON text: objects over several lines where `lines`, lists of plain values always on one."""
    if not lines or not value or not (isinstance(value, dict) or _holds_containers(value)):
        return _one_line(page, value)
    deeper = indent + page.step
    if isinstance(value, dict):
        opening, closing = "{}"
        parts = [
            _one_line(page, str(key)) + page.colon + _written(page, child, deeper, lines=True)
            for key, child in value.items()
        ]
    else:
        opening, closing = "[]"
        parts = [_written(page, child, deeper, lines=True) for child in value]
    inner = f",{page.newline}{deeper}".join(parts)
    return f"{opening}{page.newline}{deeper}{inner}{page.newline}{indent}{closing}"


def _holds_containers(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(child, dict | list | tuple) for child in value)


def _one_line(page: _Page, value: Any) -> str:
    separators = (page.comma, page.colon)
    text = json.dumps(value, ensure_ascii=False, separators=separators)
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return json.dumps(value, separators=separators)  # a lone surrogate can only be written escaped
