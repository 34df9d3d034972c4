"""The doctor where something is in the way: files that change, odd files, secrets, silent servers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from calling import SOON
from click.testing import CliRunner, Result
from command_line import unreachable

from maxwell.cli.app import cli
from maxwell.testing import faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
EMBED = "/v1/embeddings"


@pytest.fixture
def run(maxwell_home: object) -> Run:
    def run(*args: str) -> Result:
        result = CliRunner().invoke(cli, ["doctor", *args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def lying(fake_server: FakeServers, write_registry: WriteRegistry) -> Path:
    """One embedding whose dimension is wrong."""
    server = fake_server("vllm", embeddings=True, dimension=48)
    return write_registry(server.embedding_entry("vec", dimension=64))


def with_remark(file: Path, key: str, value: Any) -> None:
    """The remark stands beside the dimension, so that the diff shows it."""
    text = file.read_text(encoding="utf-8")
    wrong = '"dimension": 64'
    assert text.count(wrong) == 1
    line = f"{wrong}, {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
    file.write_text(text.replace(wrong, line), encoding="utf-8")


# --- what is never shown


@pytest.mark.parametrize(
    ("key", "value", "secret"),
    [
        ("x-url", "https://h/?key=sk-abcdefgh12345678", "abcdefgh12345678"),
        ("x-brackets", "(sk-abcdefgh12345678)", "abcdefgh12345678"),
        ("x-lines", "one\nsk-abcdefgh12345678", "abcdefgh12345678"),
        ("x-curl", "Authorization: Bearer abcdefghijklmnop", "abcdefghijklmnop"),
        ("x-login", "http://me:s3cretpw@host/v1", "s3cretpw"),
        ("_api_key", "hunter2", "hunter2"),
        ("_passwords", ["hunter1", "hunter2"], "hunter"),
        ("_other", {"token": "hunter2"}, "hunter2"),
        ("_plain", "Zq3" * 10, "Zq3Zq3"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",), ("--yes",)])
def test_a_diff_shows_no_secret_wherever_it_stands(
    run: Run, lying: Path, options: tuple[str, ...], key: str, value: Any, secret: str
) -> None:
    with_remark(lying, key, value)
    result = run("--fix", *options)
    assert '"dimension": 48' in result.stdout.replace('\\"', '"')
    assert secret not in result.output
    assert secret in lying.read_text(encoding="utf-8")


def test_a_diff_shows_what_is_no_secret(run: Run, lying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_remark(lying, "api_key_env", "BOX_KEY")
    with_remark(lying, "_note", 'C:\\models\\a "good" one, see me@home and //host/share')
    monkeypatch.setenv("BOX_KEY", "sk-canary-4711")
    result = run("--fix", "--yes")
    assert '"api_key_env": "BOX_KEY"' in result.stdout
    assert '"_note": "C:\\\\models\\\\a \\"good\\" one, see me@home and //host/share"' in result.stdout
    assert "(hidden)" not in result.stdout
    assert "canary" not in result.output


# --- files


@pytest.mark.parametrize("change", [
    lambda text: text.replace('"dimension": 64', '"dimension": 32'),
    lambda text: text.replace('"vec"', '"renamed"'),
    lambda text: "{",
], ids=["the field", "the name", "cut off"])  # fmt: skip
def test_a_file_that_changes_while_servers_are_asked_is_left_alone(
    fake_server: FakeServers, write_registry: WriteRegistry, run: Run, change: Callable[[str], str]
) -> None:
    server = fake_server("vllm", embeddings=True, dimension=48)
    file = write_registry(server.embedding_entry("vec", dimension=64))
    server.fail(faults.SlowFirstByte(0.5), path=EMBED)
    mine = change(file.read_text(encoding="utf-8"))

    def edit() -> None:
        deadline = time.monotonic() + SOON
        while not server.requests_to(EMBED) and time.monotonic() < deadline:
            time.sleep(0.005)
        file.write_text(mine, encoding="utf-8")

    editor = threading.Thread(target=edit)
    editor.start()
    result = run("--fix", "--yes")
    editor.join()
    assert result.exit_code == 3
    assert "was changed by somebody else meanwhile; nothing was written" in " ".join(result.stderr.split())
    assert file.read_text(encoding="utf-8") == mine


def test_marks_and_links_stay_and_a_second_time_changes_nothing(
    run: Run, lying: Path, tmp_path: Path
) -> None:
    real = tmp_path / "dotfiles.json"
    lying.rename(real)
    lying.symlink_to(real)
    real.write_bytes(b"\xef\xbb\xbf" + real.read_bytes())
    before = real.read_bytes()
    assert run("--fix", "--yes").exit_code == 0
    assert lying.is_symlink()
    assert real.read_bytes() == before.replace(b'"dimension": 64', b'"dimension": 48')
    once = real.read_bytes()
    assert json.loads(run("--fix", "--yes", "--json").stdout)["ok"] is True
    assert real.read_bytes() == once


# --- servers


@pytest.fixture
def holes() -> Iterator[list[str]]:
    """Addresses of servers that take a connection and never say a word."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(50)]
        yield [f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def test_fifty_silent_servers_take_no_longer_than_one(
    run: Run, write_registry: WriteRegistry, holes: list[str]
) -> None:
    write_registry(*[unreachable(f"e{i}") | {"api_base": hole} for i, hole in enumerate(holes)])
    began = time.monotonic()
    result = run("--json")
    assert time.monotonic() - began < 2 * SOON
    assert [entry["verdict"] for entry in json.loads(result.stdout)["entries"]] == ["fault"] * 50


def test_an_entry_without_a_budget_is_asked_for_no_vector(
    fake_server: FakeServers, write_registry: WriteRegistry, run: Run
) -> None:
    server = fake_server("vllm", embeddings=True, dimension=48)
    write_registry(server.embedding_entry("vec", dimension=64, daily_budget_tokens=0))
    result = run()
    assert result.exit_code == 0
    assert "was not asked for a vector" in result.stdout
    assert server.requests_to(EMBED) == []


def test_notes_are_never_written(fake_server: FakeServers, write_registry: WriteRegistry, run: Run) -> None:
    server = fake_server(context=4096)
    file = write_registry(server.llm_entry("chat", capabilities={"max_context": 1024, "max_tokens": 512}))
    before = file.read_bytes()
    told = json.loads(run("--fix", "--yes", "--json").stdout)
    (entry,) = told["entries"]
    assert {lie["severity"] for lie in entry["lies"]} == {"note"}
    assert all(lie["use"] is None for lie in entry["lies"])
    assert file.read_bytes() == before
