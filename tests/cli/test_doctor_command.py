from __future__ import annotations

import json
import os
import pty
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command_line import MAXWELL, unreachable, unstyled

from maxwell.registry.load import load
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]

WINDOWS = "C:\\models\\Qwen3 30B\\real.gguf"

# Two entries full of lies, as a person writes them: one line here, odd spaces there, remarks of their own.
BY_HAND = """{
  "_remark": "my boxes; key sk-abcdefgh12345678 is not here",
  "llms": [
    { "name": "chat", "api_base": "CHAT", "model": "wrong", "backend": "openai",
      "capabilities": {"max_tokens": 4000, "max_context":  8192, "speed_tokens_per_sec": 25, "vision": true},
      "default_temperature": 0.3, "x-note": "sk-abcdefgh12345678",   "tier": "free" }
  ],
  "embeddings": [
    { "name": "vec", "api_base": "VEC",
      "model": "org/vec", "dimension": 1024, "max_context": 512 }
  ]
}
"""
TRUE = {
    '"wrong"': json.dumps(WINDOWS),
    '"openai"': '"llamacpp"',
    '"max_tokens": 4000': '"max_tokens": 2048',
    '"max_context":  8192': '"max_context":  2048',
    '"vision": true': '"vision": false',
    '"dimension": 1024': '"dimension": 48',
}


@pytest.fixture
def lying(fake_server: FakeServers, write_registry: WriteRegistry) -> Path:
    """A registry whose entries are up and not as it says."""
    chat = fake_server(model=WINDOWS, context=2048)
    vec = fake_server("vllm", model="org/vec", embeddings=True, dimension=48, context=512)
    file = write_registry()
    file.write_bytes(BY_HAND.replace("CHAT", chat.url).replace("VEC", vec.url).encode())
    return file


def corrected(text: str) -> str:
    for lie, truth in TRUE.items():
        assert text.count(lie) == 1
        text = text.replace(lie, truth)
    return text


def rows(result: Result) -> list[list[str]]:
    """(verdict, name, field, declared, use) of each finding."""
    table = result.stdout.split("\n\n")[0].splitlines()[1:]
    return [line.replace(WINDOWS, "WINDOWS").split()[:5] for line in table]


def test_every_lie_is_printed_with_the_value_to_use(run: Run, lying: Path) -> None:
    before = lying.read_bytes()
    result = run("doctor")
    assert result.exit_code == 1
    told = rows(result)
    assert told[:5] == [
        ["warning", "chat", "model", "wrong", "WINDOWS"],
        ["warning", "chat", "backend", "openai", "llamacpp"],
        ["warning", "chat", "capabilities.max_tokens", "4000", "2048"],
        ["warning", "chat", "capabilities.max_context", "8192", "2048"],
        ["warning", "chat", "capabilities.vision", "true", "false"],
    ]
    assert told[5][:3] == ["note", "chat", "capabilities.tools"]
    assert told[6] == ["fault", "vec", "dimension", "1024", "48"]
    assert result.stdout.splitlines()[-1].endswith("lm_registry.json: 2 entries, 1 fault, 5 warnings")
    assert "--fix corrects 6 values" in result.stderr
    assert lying.read_bytes() == before


@pytest.mark.parametrize("flag", ["--deep", "--fix"])
def test_check_does_the_same(run: Run, lying: Path, flag: str) -> None:
    assert rows(run("check", flag)) == rows(run("doctor"))


def test_what_is_true_is_0_and_has_nothing_to_fix(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(
        fake_server("vllm").llm_entry("chat"),
        fake_server("vllm", embeddings=True, dimension=8).embedding_entry("vec"),
    )
    result = run("doctor", "--fix")
    assert result.exit_code == 0, result.output
    assert [row[:2] for row in rows(result)] == [["ok", "chat"], ["ok", "vec"]]
    assert "vectors of 8 numbers" in result.stdout
    assert "there is nothing to correct" in result.stderr


def test_generates_one_vector_and_nothing_else(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    chat, vec = fake_server("openai"), fake_server("openai", embeddings=True)
    write_registry(chat.llm_entry("chat"), vec.embedding_entry("vec"))
    assert run("doctor").exit_code == 0
    assert chat.usage.total_tokens == 0
    assert len(vec.requests_to("/v1/embeddings")) == 1
    assert "vec" in run("usage").stdout


# --- correcting


def test_where_nobody_can_be_asked_the_diff_is_shown_and_nothing_written(run: Run, lying: Path) -> None:
    before = lying.read_bytes()
    result = run("doctor", "--fix")
    assert result.exit_code == 1
    diff = result.stdout[result.stdout.index("--- ") :].splitlines()
    assert diff[0] == f"--- {lying}"
    assert sum(line.startswith("-") for line in diff) == sum(line.startswith("+") for line in diff)
    assert any(line.startswith("+") and '"dimension": 48' in line for line in diff)
    assert "nothing was written; --fix --yes writes these 6 values" in result.stderr
    assert lying.read_bytes() == before


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_lie_is_corrected_and_not_one_byte_more(run: Run, lying: Path, newline: str) -> None:
    before = lying.read_bytes().decode().replace("\n", newline)
    lying.write_bytes(before.encode())
    result = run("doctor", "--fix", "--yes")
    assert result.exit_code == 0, result.output
    assert "\r" not in result.stdout
    assert "\ufffd" not in result.stdout
    assert lying.read_bytes().decode() == corrected(before)
    assert "wrote 6 values" in result.stderr
    assert "checked again: nothing is left to correct" in result.stderr
    assert load(lying).llms[0].model == WINDOWS
    assert [row[0] for row in rows(run("doctor"))] == ["ok", "note", "ok"]
    assert [path.name for path in lying.parent.iterdir() if "tmp" in path.name] == []


def test_a_diff_shows_no_keys(run: Run, lying: Path) -> None:
    result = run("doctor", "--fix")
    assert '"x-note": "(hidden)"' in result.stdout
    assert '"my boxes; key (hidden) is not here"' in result.stdout
    assert "sk-abcdefgh12345678" not in result.output


def test_what_cannot_be_corrected_stays_a_fault(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    several = fake_server("vllm", model="one", aliases=["two"])
    small = fake_server("vllm", context=1000)
    file = write_registry(
        several.llm_entry("which", model="something else"),
        small.llm_entry("small", capabilities={"max_context": 4096}),
        unreachable("gone"),
    )
    result = run("doctor", "--fix", "--yes")
    assert result.exit_code == 1
    assert load(file).llms[0].model == "something else"
    assert load(file).llms[1].capabilities.max_context == 1000
    again = result.stdout[result.stdout.rindex("VERDICT") :]
    assert "which" in again
    assert "gone" in again
    assert "small" not in again.split("\n\n")[0]


def test_a_warning_is_1_only_where_it_was_to_be_corrected(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server("vllm", context=1000).llm_entry("chat", capabilities={"max_context": 4096}))
    assert run("doctor").exit_code == 0
    assert run("doctor", "--fix").exit_code == 1
    assert run("doctor", "--fix", "--yes").exit_code == 0


def test_a_price_is_never_guessed(run: Run, write_registry: WriteRegistry) -> None:
    file = write_registry(unreachable("cloud", api_base="https://192.0.2.1.example.invalid"))
    before = file.read_bytes()
    result = run("doctor", "--fix", "--yes")
    assert "has no price" in result.stdout
    assert file.read_bytes() == before


@contextmanager
def asked(*args: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], None], list[bytes]]]:
    """A command on a terminal that has just asked its question; the function answers it."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"}
    process = subprocess.Popen([*MAXWELL, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown: list[bytes] = []
    question = threading.Event()

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            shown.append(piece)
            if b"[y/N]" in b"".join(shown):
                question.set()
        question.set()

    def answer(words: str) -> None:
        os.write(ours, words.encode() + b"\n")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert question.wait(30)
        yield process, answer, shown
    finally:
        process.kill()
        process.wait()
        reader.join(timeout=10)
        os.close(ours)


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_on_a_terminal_it_asks_before_it_writes(lying: Path, answer: str, code: int) -> None:
    before = lying.read_text(encoding="utf-8")
    with asked("doctor", "--fix") as (process, say, shown):
        assert lying.read_text(encoding="utf-8") == before
        say(answer)
        assert process.wait(timeout=60) == code
    text = b"".join(shown).decode()
    assert "Write these 6 values?" in text
    assert "\x1b[32m+" in text  # a diff in colours
    assert lying.read_text(encoding="utf-8") == (corrected(before) if answer == "y" else before)


def test_only_what_was_shown_is_written(lying: Path) -> None:
    with asked("doctor", "--fix") as (process, say, shown):
        mine = lying.read_text(encoding="utf-8").replace(
            '"default_temperature": 0.3', '"default_temperature": 0'
        )
        lying.write_text(mine, encoding="utf-8")
        say("y")
        assert process.wait(timeout=60) == 3
    assert "was changed by somebody else meanwhile" in " ".join(unstyled(b"".join(shown).decode()).split())
    assert lying.read_text(encoding="utf-8") == mine


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_terminal_of_any_width_shows_everything(on_terminal: OnTerminal, lying: Path, columns: int) -> None:
    code, shown = on_terminal("doctor", columns=columns)
    assert code == 1
    shown = unstyled(shown)
    lines = shown[shown.index("VERDICT") :].splitlines()
    assert max(len(line) for line in lines if "lm_registry.json" not in line) <= columns
    told = " ".join(shown.split())
    assert WINDOWS in told
    assert "the server's vectors have 48 numbers, so every call fails" in told


# --- JSON


def test_json_tells_every_lie(run: Run, lying: Path) -> None:
    result = run("doctor", "--json")
    told: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code, told["ok"], told["registry"]) == (1, False, str(lying))
    chat, vec = told["entries"]
    assert (chat["verdict"], vec["verdict"], vec["dimension"]) == ("warning", "fault", 48)
    assert chat["lies"][0]["path"] == "llms[0].model"
    assert chat["lies"][0]["use"] == WINDOWS
    (lie,) = vec["lies"]
    assert lie == {
        "path": "embeddings[0].dimension",
        "severity": "fault",
        "declared": 1024,
        "found": 48,
        "use": 48,
        "words": "the server's vectors have 48 numbers, so every call fails",
    }
    assert "diff" not in told


def test_json_writes_with_yes_only(run: Run, lying: Path) -> None:
    before = lying.read_text(encoding="utf-8")
    told = json.loads(run("doctor", "--fix", "--json").stdout)
    assert (told["ok"], told["written"]) == (False, 0)
    assert told["diff"].startswith("--- ")
    assert lying.read_text(encoding="utf-8") == before
    told = json.loads(run("doctor", "--fix", "--json", "--yes").stdout)
    assert (told["ok"], told["written"]) == (True, 6)
    assert [lie["severity"] for entry in told["entries"] for lie in entry["lies"]] == ["note"]
    assert lying.read_text(encoding="utf-8") == corrected(before)


def test_json_never_asks(on_terminal: OnTerminal, lying: Path) -> None:
    before = lying.read_bytes()
    code, shown = on_terminal("doctor", "--fix", "--json", columns=160)
    assert code == 1
    assert "[y/N]" not in shown
    assert lying.read_bytes() == before


def test_a_wrong_file_is_told_as_json_too(run: Run, write_registry: WriteRegistry) -> None:
    write_registry(unreachable("a", tier="gold"))
    result = run("doctor", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["problems"]


def test_the_servers_words_do_not_steer_the_terminal(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server("vllm", model="na\x1b[2Jme\x07")
    write_registry(server.llm_entry("chat", model="name"))
    result = run("doctor", "--fix")
    assert result.exit_code == 1
    assert "is not served; the server serves na" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
