from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from command_line import MAXWELL, one_line, unreachable

import maxwell
from maxwell.cli.app import _COMMANDS
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
Start = Callable[..., subprocess.Popen[bytes]]


def finished(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **settings}
    return subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=60, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_help_lists_every_command_and_exit_code(run: Run, args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 0
    for name in _COMMANDS:
        assert f"\n  {name} " in result.stdout
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "130", "141"):
        assert f"\n    {code}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "name", [name for name in _COMMANDS if name not in ("registry", "trust", "up", "demo")]
)
def test_every_command_has_help_with_an_example(run: Run, name: str) -> None:
    result = run(name, "-h")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"  maxwell {name}" in result.stdout
    assert "--registry PATH" in result.stdout or name == "why"  # which looks at what was, not at what is
    # What the list of commands says is what the command says of itself.
    assert _COMMANDS[name][1].split(":")[0].rstrip(".") in " ".join(result.stdout.split())


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"maxwell {maxwell.__version__}\n"


@pytest.mark.parametrize("module", ["maxwell", "maxwell.cli"])
def test_runs_as_a_module(module: str) -> None:
    done = finished(sys.executable, "-m", module, "--version")
    assert (done.returncode, done.stdout) == (0, f"maxwell {maxwell.__version__}\n")


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = "{'msgspec', 'rich', 'urllib3', 'sqlite3', 'asyncio', 'maxwell.lm_pool', 'maxwell.registry'}"
    code = "import sys, maxwell.cli; sys.argv = ['maxwell']; maxwell.cli.main()"
    watched = f"import atexit, sys; atexit.register(lambda: print({heavy} & set(sys.modules))); {code}"
    assert finished(sys.executable, "-c", watched).stdout.splitlines()[-1] == "set()"
    assert (
        finished(sys.executable, "-c", "import sys, maxwell.cli; print('click' in sys.modules)").stdout
        == "False\n"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["aks", "hi"], "no command 'aks'; did you mean ask?; see `maxwell --help`"),
        (["--vresion"], "No such option '--vresion'. Did you mean '--version'?; see `maxwell --help`"),
        (["list", "extra"], "Got unexpected extra argument (extra); see `maxwell list --help`"),
    ],
)
def test_wrong_usage_is_one_line_and_ends_with_2(run: Run, args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert one_line(result) == message


COMMANDS = [["ask", "hi"], ["embed", "hi"], ["list"], ["explain", "hi"], ["check"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_registry_ends_with_3(run: Run, command: list[str]) -> None:
    result = run(*command)
    assert result.exit_code == 3
    assert one_line(result).startswith("no registry found; looked at ")
    result = run(*command, "--registry", "nowhere.json")
    assert result.exit_code == 3
    assert '"nowhere.json", which does not exist' in one_line(result)


BAD_FILES = {
    "not UTF-8": b'{"llms": "na\xefve"}',
    "UTF-16": '{"llms": []}'.encode("utf-16"),
    "not JSON": b'{"llms": [}',
    "binary": bytes(range(256)),
    "empty": b"",
    "a list": b"[]",
    "no entries": b'{"llms": [], "embeddings": []}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_registry_ends_with_3_and_its_line(run: Run, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(BAD_FILES[kind])
    for command in COMMANDS:
        result = run(*command, "--registry", str(file))
        assert result.exit_code == 3
        assert result.stdout == ""
        assert one_line(result).startswith(f"{file}:")


def test_a_directory_as_registry_ends_with_3(run: Run, tmp_path: Path) -> None:
    result = run("list", "--registry", str(tmp_path))
    assert result.exit_code == 3
    assert "cannot be read: Is a directory" in one_line(result)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_registry_ends_with_3(run: Run, write_registry: WriteRegistry) -> None:
    write_registry(unreachable()).chmod(0)
    result = run("list")
    assert result.exit_code == 3
    assert "cannot be read: Permission denied" in one_line(result)


def test_duplicate_names_end_with_3(run: Run, write_registry: WriteRegistry) -> None:
    write_registry(unreachable("twin"), unreachable("twin"))
    result = run("ask", "hi")
    assert result.exit_code == 3
    assert "twin" in one_line(result)


def test_a_reader_that_is_gone_ends_quietly_with_141(write_registry: WriteRegistry, start: Start) -> None:
    write_registry(unreachable())
    process = start("list")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stderr.close()
    assert process.stdin is not None
    process.stdin.close()


def test_a_gone_reader_of_errors_keeps_the_exit_code(start: Start) -> None:
    process = start("list")
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(timeout=60) == 3
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def test_debug_shows_the_traceback(maxwell_home: Path) -> None:
    done = finished(*MAXWELL, "list", MAXWELL_DEBUG="1")
    assert "Traceback" in done.stderr
    assert "RegistryError" in done.stderr
    assert done.returncode != 0


def test_output_that_the_terminal_cannot_encode_is_no_error(
    fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server(reply="Häschen 🐇").llm_entry("tiny"))
    done = finished(*MAXWELL, "ask", "hi", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "H?schen ?\n")


def test_a_home_that_cannot_be_written_is_one_line(write_registry: WriteRegistry, maxwell_home: Path) -> None:
    file = write_registry(unreachable())
    done = finished(*MAXWELL, "list", "--registry", str(file), MAXWELL_HOME="/dev/null/nowhere")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(write_registry: WriteRegistry) -> None:
    write_registry(unreachable())
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*MAXWELL, "list"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "maxwell: error: No space left on device\n")


def test_closed_streams_are_no_error(
    fake_server: FakeServers, write_registry: WriteRegistry, maxwell_home: Path
) -> None:
    write_registry(fake_server().llm_entry("tiny"))
    command = f"exec {MAXWELL[0]} -m maxwell ask hi <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], timeout=60).returncode == 0


@pytest.mark.parametrize("name", ["ask", "embed", "list", "explain", "check"])
def test_the_documentation_names_every_option(run: Run, name: str) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", run(name, "-h").stdout.split("Example")[0]))
    assert "--registry" in options
    missing = {
        option for option in options if f"`{option}" not in documented and f"{option}`" not in documented
    }
    assert missing <= {"-h", "--help"}
