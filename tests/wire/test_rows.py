"""docs/wire.md is true: each row has a test that exists, or says why it has none."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = (TESTS.parent / "docs" / "wire.md").read_text(encoding="utf-8")
REASONS = ("cannot occur: ", "not done: ")
SECTIONS = 9


class Row(NamedTuple):
    section: int
    name: str
    servers: str
    does: str
    shown: str

    @property
    def tests(self) -> list[str]:
        """The tests that show it, `path::name`."""
        if self.shown.startswith(REASONS):
            return []
        return [test.strip("`") for test in self.shown.split(", ")]


def rows() -> list[Row]:
    found, section = [], 0
    for line in DOCUMENT.splitlines():
        if title := re.match(r"## (\d+)\. ", line):
            section = int(title[1])
        elif line.startswith("| ") and not line.startswith("| row |"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 4, line
            found.append(Row(section, *cells))
    return found


@cache
def defined_in(path: str) -> frozenset[str]:
    """Names of the test functions in a file, which is not imported."""
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(f.name for f in functions if f.name.startswith("test_"))


def test_every_section_has_rows() -> None:
    assert {row.section for row in rows()} == set(range(1, SECTIONS + 1))


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in rows()]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


@pytest.mark.parametrize("section", range(1, SECTIONS + 1))
def test_every_row_has_a_test_that_exists_or_a_reason(section: int) -> None:
    for row in rows():
        if row.section != section:
            continue
        assert row.servers, row.name
        if not row.tests:
            reason = row.shown.split(": ", 1)[1]
            assert len(reason.split()) >= 3, row.name
            continue
        assert row.does not in ("", "–"), f"{row.name}: it is not said what Maxwell does"
        for test in row.tests:
            path, _, name = test.partition("::")
            assert (TESTS / path).is_file(), f"{row.name}: there is no {path}"
            assert name in defined_in(path), f"{row.name}: {path} has no {name}"


def test_every_test_of_a_section_belongs_to_a_row() -> None:
    listed = {test for row in rows() for test in row.tests}
    for file in sorted(Path(__file__).parent.glob("test_[1-9]_*.py")):
        path = f"wire/{file.name}"
        loose = {f"{path}::{name}" for name in defined_in(path)} - listed
        assert not loose, sorted(loose)
