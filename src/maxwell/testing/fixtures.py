"""pytest fixtures: a home of its own, a registry in it, a clock that obeys, fake servers.

Switch them on in a conftest.py: `pytest_plugins = ["maxwell.testing.fixtures"]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from maxwell.testing.clock import FakeClock
from maxwell.testing.server import FakeServer
from maxwell.types import BackendName

_UNSET = ("MAXWELL_HOME", "MAXWELL_REGISTRY", "OPENAI_API_KEY")


class WriteRegistry(Protocol):
    """What the fixture `write_registry` gives."""

    def __call__(self, *entries: Mapping[str, Any] | Iterable[Mapping[str, Any]], **top_level: Any) -> Path:
        """Write the entries to the temporary home's registry and return its path.

        Args:
            *entries: Entries, or lists of them; those with a `dimension` are
                embeddings, those with neither that nor `capabilities` rerankers.
            **top_level: Further top-level fields, e.g. `budget_timezone="Europe/Oslo"`.
        """


class FakeServers(Protocol):
    """What the fixture `fake_server` gives."""

    def __call__(self, dialect: BackendName = "llamacpp", **options: Any) -> FakeServer:
        """Start a `FakeServer` with these arguments; it is closed when the test ends."""


def grouped(entries: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Entries by what they are, as a registry has them: LLMs, embeddings, and rerankers if there are any."""
    found: dict[str, list[Mapping[str, Any]]] = {"llms": [], "embeddings": []}
    for entry in entries:
        kind = "embeddings" if "dimension" in entry else "llms" if "capabilities" in entry else "rerankers"
        found.setdefault(kind, []).append(entry)
    return found


@pytest.fixture
def maxwell_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own; the working directory is an empty project beside it.

    Keys and paths that the environment may hold for Maxwell are out of sight.
    """
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in _UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(project)
    return home


@pytest.fixture
def write_registry(maxwell_home: Path) -> WriteRegistry:
    """A function that writes `~/.maxwell/lm_registry.json` in the temporary home."""

    def write(*entries: Mapping[str, Any] | Iterable[Mapping[str, Any]], **top_level: Any) -> Path:
        flat: list[Mapping[str, Any]] = []
        for entry in entries:
            flat += [entry] if isinstance(entry, Mapping) else entry
        document = {
            **grouped(flat),
            "_schema_version": "1.0",
        }
        path = maxwell_home / ".maxwell" / "lm_registry.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document | top_level, indent=2), encoding="utf-8")
        return path

    return write


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still at 2026-01-15 12:00 UTC until it is advanced."""
    return FakeClock()


@pytest.fixture
def fake_server() -> Iterator[FakeServers]:
    """A function that starts fake servers; all of them are closed when the test ends."""
    with ExitStack() as stack:

        def serve(dialect: BackendName = "llamacpp", **options: Any) -> FakeServer:
            return stack.enter_context(FakeServer(dialect, **options))

        yield serve
