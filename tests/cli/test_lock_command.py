from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command_line import unreachable, unstyled

from maxwell.registry.lock import lock_file, read_lock
from maxwell.testing import FakeServer
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]


class Set:
    """Three embedding servers, of which two make the same vectors, and their registry."""

    def __init__(self, fake_server: FakeServers, write_registry: WriteRegistry) -> None:
        self.a: FakeServer = fake_server(embeddings=True, dimension=8, api_key="secret-of-a")
        self.b: FakeServer = fake_server("vllm", embeddings=True, dimension=8)
        self.c: FakeServer = fake_server(embeddings=True, dimension=8, space="c ")
        self._write = write_registry
        self.entries: dict[str, dict[str, Any]] = {
            "a": self.a.embedding_entry("a", api_key_env="KEY_OF_A"),
            "b": self.b.embedding_entry("b"),
            "c": self.c.embedding_entry("c"),
        }
        self.path = self.write()
        self.file = lock_file(self.path)

    def write(self) -> Path:
        return self._write(*self.entries.values())

    def spaces(self) -> dict[str, str]:
        lock = read_lock(self.file)
        assert lock is not None
        return {one.name: one.space for one in lock.embeddings}


@pytest.fixture
def three(fake_server: FakeServers, write_registry: WriteRegistry, monkeypatch: pytest.MonkeyPatch) -> Set:
    monkeypatch.setenv("KEY_OF_A", "secret-of-a")
    return Set(fake_server, write_registry)


def test_locks_and_checks(three: Set, run: Run) -> None:
    result = run("registry", "lock")
    assert result.exit_code == 0, result.output
    assert three.spaces() == {"a": "a", "b": "a", "c": "c"}
    assert f"{three.file}: 3 embeddings in 2 vector spaces" in result.stdout
    assert "embedding the texts with c, 3 of 3" in result.stderr
    text = three.file.read_text()
    assert "secret" not in text
    assert text.startswith('{\n  "_note": "Written by `maxwell registry lock`')
    before = three.file.read_bytes()
    result = run("registry", "lock", "--check")
    assert result.exit_code == 0, result.output
    assert "as it was locked" in result.stdout
    assert three.file.read_bytes() == before


def test_check_finds_a_swapped_model(three: Set, run: Run) -> None:
    run("registry", "lock")
    three.b.swap_model("other ")
    found = run("registry", "lock", "--check", "--json")
    assert found.exit_code == 1
    told = json.loads(found.stdout)
    assert {one["name"]: one["ok"] for one in told["embeddings"]} == {"a": True, "b": False, "c": True}
    assert "makes other vectors than on 20" in told["embeddings"][1]["note"]
    result = run("registry", "lock")
    assert result.exit_code == 0
    assert "what was embedded until then must be embedded anew" in result.stdout
    assert three.spaces() == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize("field", ["model", "api_base", "dimension", "name", "new", "gone"])
def test_a_lock_that_does_not_fit_is_told_everywhere(three: Set, run: Run, field: str) -> None:
    run("registry", "lock")
    if field == "new":
        three.entries["d"] = three.c.embedding_entry("d")
    elif field == "gone":
        del three.entries["c"]
    else:
        change: dict[str, Callable[[], Any]] = {
            "model": lambda: "another",
            "api_base": lambda: three.b.url,
            "dimension": lambda: 9,
            "name": lambda: "renamed",
        }
        three.entries["c"][field] = change[field]()
        three.entries["c"].pop("backend")
    three.write()
    said = {
        "new": '"d" is not in the lock',
        "gone": '"c" is in the lock and not in the registry',
        "name": '"renamed" is not in the lock',
    }.get(field, f'"c" had {field} ')
    result = run("registry", "lock", "--check")
    assert result.exit_code == 1
    assert said in result.stdout
    assert said in run("registry", "check").stderr
    if field not in ("gone", "api_base"):
        checked = json.loads(run("check", "--json").stdout)
        found = " ".join(words for one in checked["entries"] for words in one["findings"])
        assert said.split('" ', 1)[1] in found
    run("registry", "lock")
    again = run("registry", "lock", "--check")
    assert again.exit_code == (1 if field == "dimension" else 0), again.output


def test_who_cannot_be_asked_keeps_its_record(three: Set, run: Run) -> None:
    run("registry", "lock")
    three.b.stop()
    result = run("registry", "lock")
    assert result.exit_code == 0
    assert "could not be asked: cannot connect" in result.stdout
    assert "it keeps its record of 20" in result.stdout
    assert three.spaces() == {"a": "a", "b": "a", "c": "c"}
    assert run("registry", "lock", "--check").exit_code == 1


def test_who_was_down_a_moment_ago_is_asked_again(three: Set, run: Run) -> None:
    run("registry", "lock")
    three.b.stop()
    result = run("registry", "lock", "--check")
    assert result.exit_code == 1
    assert "could not be asked" in result.stdout
    assert "2 of 3 embeddings as locked" in result.stdout
    three.b.start()
    assert run("registry", "lock", "--check").exit_code == 0


def test_who_was_never_asked_is_left_out(three: Set, run: Run) -> None:
    three.b.stop()
    result = run("registry", "lock")
    assert result.exit_code == 1
    assert three.spaces() == {"a": "a", "c": "c"}


def test_no_lock_and_a_broken_one(three: Set, run: Run) -> None:
    result = run("registry", "lock", "--check")
    assert result.exit_code == 1
    assert "there is no lock" in result.stdout
    assert three.a.usage.prompt_tokens == 0
    three.file.write_text("<<<<<<< HEAD")
    result = run("registry", "lock", "--check")
    assert result.exit_code == 3
    assert "is no lock" in result.stderr
    assert "its lock is no lock" in run("registry", "check").stderr
    assert run("registry", "lock").exit_code == 0
    assert run("registry", "lock", "--check").exit_code == 0


def test_nothing_to_lock(write_registry: WriteRegistry, run: Run) -> None:
    path = write_registry(unreachable("c"))
    for check in ((), ("--check",)):
        result = run("registry", "lock", *check)
        assert result.exit_code == 0
        assert "declares no embedding" in result.stdout
    assert not lock_file(path).exists()


def test_a_terminal_shows_it(three: Set, on_terminal: Callable[..., tuple[int, str]]) -> None:
    code, shown = on_terminal("registry", "lock", columns=60)
    assert code == 0
    assert "3 embeddings in 2 vector spaces" in " ".join(unstyled(shown).split())
