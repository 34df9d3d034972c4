"""Imports point down only, and siblings on one floor do not know each other (docs/design.md, "The shape")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"

# Top floor first. What stands together may not import each other.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["testing", "local"],
    ["__init__"],  # the package's own names, each loaded at first use
    ["lm_pool"],
    ["pools"],
    ["pool_base"],
    ["handles", "vectors", "rerankers", "maps", "homes"],
    ["calls"],
    ["receipts"],
    ["explain", "requirements", "tools"],
    ["scheduler", "health", "ledger", "backends", "learning", "flights"],
    ["decision", "speed"],
    ["registry", "tokens", "database", "breaker", "queueing", "prefixes", "constraints", "images", "shapes"],
    ["types", "errors", "clock", "ending", "redaction"],
    ["amounts"],
]
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module; packages go by their `__init__`."""
    for path in sorted((SRC / "maxwell").rglob("*.py")):
        yield ".".join(path.relative_to(SRC).with_suffix("").parts), path


def part_of(module: str) -> str:
    """The part of the house a module belongs to: `maxwell.calls.chat` is of `calls`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(node: ast.AST, package: str) -> Iterator[str]:
    """Every module that is imported under `node`, inside functions too, but not for type checking alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: -child.level + 1 or None] if child.level else []
            base = ".".join([*above, *([child.module] if child.module else [])])
            yield from (
                f"{base}.{a.name}" if base == "maxwell" and a.name in FLOOR_OF else base for a in child.names
            )
        yield from imports(child, package)


def edges() -> Iterator[tuple[str, str]]:
    """(importing module, imported module) within the package."""
    for module, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for imported in imports(tree, module.rpartition(".")[0]):
            if imported.split(".")[0] == "maxwell":
                yield module, imported


def test_every_module_stands_on_a_floor() -> None:
    assert {part_of(module) for module, _ in modules()} == set(FLOOR_OF)


def test_imports_point_down() -> None:
    found = list(edges())
    assert ("maxwell.lm_pool", "maxwell.pools") in found
    wrong = [
        f"{module} imports {imported}"
        for module, imported in found
        if part_of(module) != part_of(imported) and FLOOR_OF[part_of(module)] >= FLOOR_OF[part_of(imported)]
    ]
    assert wrong == []
