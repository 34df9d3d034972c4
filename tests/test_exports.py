"""What may be imported from where, and that the sync and the async face are the same."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import maxwell
from maxwell import errors, lm_pool

SOURCE = Path(maxwell.__file__)
WITH_EXPORTS = [
    name
    for name in ("maxwell", *(m.name for m in pkgutil.walk_packages([str(SOURCE.parent)], "maxwell.")))
    if not name.endswith("__main__") and hasattr(importlib.import_module(name), "__all__")
]
TWINS = [
    (maxwell.LLMPool, maxwell.AsyncLLMPool),
    (maxwell.LLM, maxwell.AsyncLLM),
    (maxwell.Embedding, maxwell.AsyncEmbedding),
    (maxwell.Reranker, maxwell.AsyncReranker),
    (maxwell.TextStream, maxwell.AsyncTextStream),
    (maxwell.MapResults, maxwell.AsyncMapResults),
]
# The async protocol has its own names for these.
RENAMED = {"aclose": "close"}


@pytest.mark.parametrize("name", WITH_EXPORTS)
def test_exports_exist_and_are_listed_once(name: str) -> None:
    module = importlib.import_module(name)
    assert [export for export in module.__all__ if not hasattr(module, export)] == []
    assert len(set(module.__all__)) == len(module.__all__)


def test_package_exports_what_type_checkers_see() -> None:
    (block,) = (
        node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.If)
    )
    seen = [alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(maxwell.__all__) == sorted(seen)


def test_package_exports_the_door_and_every_error() -> None:
    raised = {
        name
        for name, error in vars(errors).items()
        if inspect.isclass(error) and issubclass(error, Exception)
    }
    assert raised | set(lm_pool.__all__) <= set(maxwell.__all__)


def test_unknown_export_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="get_llm"):
        maxwell.get_llm  # noqa: B018


def public(cls: type) -> dict[str, Any]:
    """A class's public methods and properties, inherited ones included."""
    return {RENAMED.get(n, n): v for n, v in inspect.getmembers(cls) if not n.startswith("_")}


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("sync", "twin"), TWINS, ids=lambda cls: cls.__name__)
def test_sync_and_async_take_the_same(sync: type, twin: type) -> None:
    ours, theirs = public(sync), public(twin)
    assert set(ours) == set(theirs)
    for name, member in ours.items():
        if callable(member):
            assert parameters(member) == parameters(theirs[name]), name


@pytest.mark.parametrize("name", ["get_lm", "get_embedding"])
def test_functions_of_the_door_have_async_twins(name: str) -> None:
    sync, twin = getattr(lm_pool, name), getattr(lm_pool, name.replace("get_", "get_async_"))
    assert parameters(sync) == parameters(twin)
    assert inspect.iscoroutinefunction(twin)
