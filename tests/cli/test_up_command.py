from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import urllib3
from click.testing import CliRunner, Result

from maxwell.cli.up_command import up
from maxwell.lm_pool import LLMPool
from maxwell.local.tiny_models import write_chat, write_embedding, write_reranker
from maxwell.registry.load import load
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, RerankerSpec

pytestmark = pytest.mark.real


class Running:
    """`maxwell up` that has said all it says before it serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.said = ""
        for line in process.stderr:
            self.said += line
            if "Ctrl-C stops it" in line:
                break
        else:
            pytest.fail(self.said)
        lines = iter(process.stdout.readline, "}\n")
        self.entry: dict[str, Any] = json.loads("".join([*lines, "}"]))

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C. Returns the exit code and what stood on stderr."""
        self.process.send_signal(signal.SIGINT)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        rest, errors = self.process.communicate(timeout=30)
        assert rest == ""
        return self.process.returncode, self.said + errors


RunUp = Callable[..., Running]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MAXWELL_HOME", raising=False)
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_chat(tmp_path / "Tiny-Chat.gguf", context=2048)
    return tmp_path / "Tiny-Chat.gguf"


@pytest.fixture
def run_up(home: Path) -> Iterator[RunUp]:
    command = [sys.executable, "-c", "from maxwell.cli.up_command import up; up(prog_name='maxwell up')"]
    with ExitStack() as started:

        def run(*arguments: str | Path) -> Running:
            process = subprocess.Popen(
                [*command, "--threads", "1", "--port", "0", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return Running(process)

        yield run


def fails(*arguments: str | Path) -> str:
    """Run a command that cannot succeed; its one line on stderr."""
    result: Result = CliRunner().invoke(up, [str(a) for a in arguments])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.strip()


def is_refused(url: str) -> bool:
    address = urllib3.util.parse_url(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.host, address.port)) != 0


def status_of(url: str, **headers: str) -> int:
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("GET", url, headers=headers).status


def test_serves_until_interrupted_and_prints_the_entry(run_up: RunUp, model: Path) -> None:
    running = run_up(model, "--ctx-size", "1024", "--parallel", "2")
    spec = msgspec.convert(running.entry, LLMSpec)
    assert (spec.name, spec.model) == ("tiny-chat", str(model))
    assert (spec.capabilities.max_context, spec.capabilities.slots) == (512, 2)
    assert status_of(spec.api_base + "/health") == 200
    code, errors = running.interrupt()
    assert code == 0
    assert errors.splitlines()[-2:] == [
        f"serving tiny-chat on {spec.api_base}; Ctrl-C stops it",
        "stopped tiny-chat",
    ]
    assert is_refused(spec.api_base)


def test_embedding_model_is_known_by_its_file(run_up: RunUp, tmp_path: Path) -> None:
    write_embedding(tmp_path / "vectors.gguf")
    running = run_up(tmp_path / "vectors.gguf", "--name", "default")
    spec = msgspec.convert(running.entry, EmbeddingSpec)
    assert (spec.name, spec.dimension, spec.max_context) == ("default", 64, 128)
    assert running.interrupt()[0] == 0


def test_add_writes_the_entry_into_the_users_registry(run_up: RunUp, model: Path, home: Path) -> None:
    running = run_up(model, "--add")
    registry = home / ".maxwell" / "lm_registry.json"
    assert load(registry).llms == (msgspec.convert(running.entry, LLMSpec),)
    code, errors = running.interrupt()
    assert code == 0
    assert f"added to {registry}" in errors


def test_add_refuses_a_taken_name_and_leaves_the_file_alone(home: Path, model: Path) -> None:
    registry = home / "mine.json"
    entry = {"name": "tiny-chat", "api_base": "http://b", "model": "m", "dimension": 3, "max_context": 9}
    before = json.dumps({"llms": [], "embeddings": [entry]})
    registry.write_text(before)
    said = fails(model, "--add", "--registry", registry)
    assert said == (
        f'Error: {registry} has an entry named "tiny-chat"; '
        "choose another name with --name, or leave --add out"
    )
    assert registry.read_text() == before


def test_add_into_a_named_registry_keeps_what_is_there(run_up: RunUp, home: Path, model: Path) -> None:
    registry = home / "mine.json"
    registry.write_text('{"llms": [], "x-note": "mine"}')
    running = run_up(model, "--add", "--registry", registry, "--name", "second")
    assert [spec.name for spec in load(registry).llms] == ["second"]
    assert json.loads(registry.read_text())["x-note"] == "mine"
    assert running.interrupt()[0] == 0


def test_add_to_a_broken_registry_fails_before_the_model_is_loaded(home: Path, model: Path) -> None:
    registry = home / "broken.json"
    registry.write_text("{")
    assert str(registry) in fails(model, "--add", "--registry", registry)


def test_key_is_demanded_and_never_shown(run_up: RunUp, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOX_KEY", "sesame-42")
    running = run_up(model, "--api-key-env", "BOX_KEY")
    models = running.entry["api_base"] + "/v1/models"
    assert (status_of(models), status_of(models, Authorization="Bearer sesame-42")) == (401, 200)
    assert running.entry["api_key_env"] == "BOX_KEY"
    code, errors = running.interrupt()
    assert code == 0
    assert "sesame" not in json.dumps(running.entry) + errors


def test_server_that_dies_is_told(run_up: RunUp, model: Path) -> None:
    running = run_up(model)
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    (server,) = [int(pid) for pid, parent in pairs if int(parent) == running.process.pid]
    os.kill(server, signal.SIGKILL)
    code, errors = running.ended()
    assert code == 1
    assert (
        errors.splitlines()[-1]
        == "Error: the server of tiny-chat ended by itself: SIGKILL; --verbose shows its log"
    )


def test_killed_command_takes_its_server_along(run_up: RunUp, model: Path) -> None:
    # With --verbose the server shares the command's stderr, which ends only when both are gone.
    running = run_up(model, "--verbose")
    running.process.kill()
    running.ended()
    assert is_refused(running.entry["api_base"])


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "none.gguf"
    assert fails(file) == f"Error: cannot read the model {file}: No such file or directory"


def test_other_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "readme.gguf"
    file.write_text("hello")
    assert fails(file) == f"Error: {file} is not a GGUF file: it begins with b'hell'"


def test_reranker_is_known_by_its_file_and_its_entry_ranks(run_up: RunUp, home: Path) -> None:
    write_reranker(home / "rank.gguf")
    running = run_up(home / "rank.gguf", "--add")
    spec = msgspec.convert(running.entry, RerankerSpec)
    assert (spec.name, spec.backend, spec.max_context) == ("rank", "llamacpp", 128)
    file = home / ".maxwell" / "lm_registry.json"
    assert load(file).rerankers == (spec,)
    with LLMPool.from_registry(file) as pool:
        ranked = pool.get_reranker().rerank("who", ["some people", "day"])
    assert sorted(one.index for one in ranked) == [0, 1]
    assert running.interrupt()[0] == 0


@pytest.mark.parametrize("flag", ["--chat", "--embedding"])
def test_reranker_serves_nothing_else(flag: str, tmp_path: Path) -> None:
    write_reranker(tmp_path / "rank.gguf")
    said = fails(tmp_path / "rank.gguf", flag)
    assert said.endswith("rank.gguf is a reranker; leave out --embedding and --chat")


def test_unset_key_variable_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOX_KEY", raising=False)
    said = fails(model, "--api-key-env", "BOX_KEY")
    assert said == "Error: --api-key-env: environment variable BOX_KEY is not set"


def test_taken_port_is_told(home: Path, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = fails(model, "--port", str(port))
    assert said == (
        f"Error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port"
    )
