"""The floors inside `calls`: effects below, then the machines that perform them, flows apart from both."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import maxwell.calls

CALLS = Path(maxwell.calls.__file__).parent

# Each part with what it may import of `calls`. Drivers and transports know no flow, and flows know neither:
# a flow says what it wants, and whoever runs it decides how.
SEAM = {"effects", "transport", "sse", "network", "running"}
MACHINES = {"sync_driver", "async_driver", "urllib3_transport", "aiohttp_transport"}
ALLOWED: dict[str, set[str]] = {
    "effects": set(),
    "sse": set(),
    "transport": {"effects"},
    "network": {"effects"},
    "running": {"effects"},
    **dict.fromkeys(MACHINES, SEAM),
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of the modules of `calls` imported under `tree`, but for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1 or module.startswith("maxwell.calls"):
                inside = module.removeprefix("maxwell.calls").lstrip(".")
                yield from [inside.split(".")[0]] if inside else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[2] for a in node.names if a.name.startswith("maxwell.calls."))
        yield from imported(node)


def edges() -> set[tuple[str, str]]:
    return {
        (path.stem, name)
        for path in CALLS.glob("*.py")
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
    }


def test_the_parts_are_there() -> None:
    assert {path.stem for path in CALLS.glob("*.py")} >= SEAM | MACHINES
    assert ("chat", "state") in edges()


def test_the_seam_and_the_machines_import_only_the_seam() -> None:
    wrong = [
        f"{who} imports {what}, but may only import {', '.join(sorted(ALLOWED[who])) or 'nothing of calls'}"
        for who, what in sorted(edges())
        if who in ALLOWED and what not in ALLOWED[who]
    ]
    assert wrong == []


def test_flows_import_no_machine() -> None:
    wrong = [
        f"{who} imports {what}: a flow yields effects and leaves it to a driver to perform them"
        for who, what in sorted(edges())
        if who not in ALLOWED and what in MACHINES
    ]
    assert wrong == []


def test_no_two_modules_import_each_other() -> None:
    below: dict[str, set[str]] = {}
    for who, what in edges():
        below.setdefault(who, set()).add(what)

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(
            n == goal or (n not in seen and reaches(n, goal, seen | {n})) for n in below.get(start, set())
        )

    assert [who for who in sorted(below) if reaches(who, who, set())] == []
