"""`__all__` of every package is sorted and complete; that its names exist is `test_exports`' business."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import maxwell

SOURCE = Path(maxwell.__file__).parent
PACKAGES = sorted(SOURCE.rglob("__init__.py"))


def exports(tree: ast.Module) -> list[str] | None:
    """The names in `__all__`, or None where there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def defined(body: list[ast.stmt]) -> Iterator[str]:
    """The public names that a module defines."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            yield node.name


def order(name: str) -> tuple[int, str]:
    """Constants, classes, functions, each by the alphabet: the order in which imports are sorted."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def readable(path: Path) -> str:
    return ".".join(path.parent.relative_to(SOURCE.parent).parts)


@pytest.mark.parametrize("path", PACKAGES, ids=readable)
def test_the_exports_of_a_package_are_sorted_and_complete(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names, public = exports(tree), set(defined(tree.body))
    if names is None:
        # A package that only holds modules exports nothing; a command line has its `main`.
        assert public <= {"main"}
        return
    assert names == sorted(names, key=order)
    assert public - set(names) == set()
    assert [name for name in names if name.startswith("_")] == []


def documented() -> Iterator[tuple[str, str, str]]:
    """(where, module, name) of every import shown in the documentation and in docstrings."""
    root = SOURCE.parents[1]
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md")), *sorted(SOURCE.rglob("*.py"))]:
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        for module, names in re.findall(r"^\s*from (maxwell[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
            yield from ((path.name, module, name.strip()) for name in names.split(","))


@pytest.mark.parametrize(("where", "module", "name"), sorted(set(documented())))
def test_what_the_documentation_imports_is_exported(where: str, module: str, name: str) -> None:
    imported = importlib.import_module(module)
    assert hasattr(imported, name)
    assert name in getattr(imported, "__all__", [name])
