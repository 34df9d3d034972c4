from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maxwell.local.gguf_header import Header, read_header
from maxwell.local.server import LocalServer, LocalServerError, entry_name, registry_entry
from maxwell.local.tiny_models import write_chat, write_embedding, write_reranker
from maxwell.registry.specs import EmbeddingSpec, LLMSpec

pytestmark = pytest.mark.real

SERVE = [sys.executable, "-m", "maxwell.local.serve_llamacpp"]


def ask(url: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request("GET" if body is None else "POST", url + path, json=body, headers=headers)
        return answer.status, json.loads(answer.data)


def is_refused(url: str) -> bool:
    address = urllib3.util.parse_url(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.host, address.port)) != 0


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


# --- models ---


@pytest.mark.parametrize("write", [write_chat, write_embedding, write_reranker])
def test_the_same_arguments_write_the_same_bytes(
    write: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("one.gguf", "two.gguf", "other.gguf")]
    write(files[0], layers=3, name="twin", seed=7)
    write(files[1], layers=3, name="twin", seed=7)
    write(files[2], layers=3, name="twin", seed=8)
    one, two, other = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert one == two
    assert one != other
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("module", ["numpy", "gguf"])
def test_missing_libraries_are_named_with_the_extra_that_brings_them(module: str) -> None:
    script = f"import sys; sys.modules[{module!r}] = None; import maxwell.local.tiny_models"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"needs {module}, which is not installed: pip install 'maxwell-lm[local]'" in done.stderr


def test_header_tells_what_a_model_is_for(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    write_reranker(tmp_path / "rank.gguf")
    assert read_header(tiny_models["fast"]) == Header("llama", 8192, embedding=False, reranker=False)
    assert read_header(tiny_models["embedding"]) == Header("bert", 128, embedding=True, reranker=False)
    assert read_header(tmp_path / "rank.gguf") == Header("bert", 128, embedding=False, reranker=True)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_header_of_a_damaged_file_is_read_or_refused(
    data: st.DataObject, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    damaged = bytearray(tiny_models["embedding"].read_bytes()[:6000])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    file = tmp_path / "damaged.gguf"
    file.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with suppress(ValueError):
        read_header(file)


def test_stopping_model_ends_its_turn_by_itself(start_llama: Callable[..., LocalServer]) -> None:
    server = start_llama("stops")
    _, reply = ask(server.url, "/v1/chat/completions", CHAT | {"max_tokens": 500, "temperature": 1.0})
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] < 500


def test_tool_model_calls_the_tool_it_is_offered(start_llama: Callable[..., LocalServer]) -> None:
    server = start_llama("tools")
    parameters = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "look", "parameters": parameters}}
    body = CHAT | {"max_tokens": 500, "tools": [tool], "tool_choice": "required"}
    _, reply = ask(server.url, "/v1/chat/completions", body)
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"


# --- serving ---


def test_server_answers_health_and_chat(llama_server: LocalServer) -> None:
    assert ask(llama_server.url, "/health") == (200, {"status": "ok"})
    status, reply = ask(llama_server.url, "/v1/chat/completions", CHAT)
    assert status == 200
    assert reply["usage"]["completion_tokens"] == 8
    assert reply["choices"][0]["message"]["content"].isascii()


def test_the_same_question_gets_the_same_answer(llama_slow_server: LocalServer) -> None:
    replies = [ask(llama_slow_server.url, "/v1/chat/completions", CHAT)[1] for _ in range(2)]
    assert replies[0]["choices"][0]["message"] == replies[1]["choices"][0]["message"]


def test_embedding_server_reads_inputs_longer_than_a_default_batch(
    start_llama: Callable[..., LocalServer], tmp_path: Path
) -> None:
    write_embedding(tmp_path / "long.gguf", context=1024)
    server = start_llama(tmp_path / "long.gguf", embedding=True)
    status, reply = ask(server.url, "/v1/embeddings", {"input": "the " * 900})
    assert (status, reply["usage"]["prompt_tokens"]) == (200, 902)


def test_key_is_demanded_and_not_on_the_command_line(start_llama: Callable[..., LocalServer]) -> None:
    server = start_llama("fast", api_key="sesame-42")
    assert ask(server.url, "/v1/models")[0] == 401
    assert ask(server.url, "/v1/models", Authorization="Bearer sesame-42")[0] == 200
    shown = subprocess.run(
        ["ps", "-o", "args=", "-p", str(server.pid)], capture_output=True, text=True
    ).stdout
    assert "serve_llamacpp" in shown
    assert "sesame" not in shown


def test_key_in_the_environment_is_for_another_server(
    start_llama: Callable[..., LocalServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "elsewhere")
    assert ask(start_llama("fast").url, "/v1/models")[0] == 200


def test_alias_is_the_served_name(start_llama: Callable[..., LocalServer]) -> None:
    _, listed = ask(start_llama("fast", alias="little").url, "/v1/models")
    assert listed["data"][0]["id"] == "little"


def test_web_pages_are_not_let_in(llama_server: LocalServer) -> None:
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request("GET", llama_server.url + "/health", headers={"Origin": "http://page.example"})
    assert not answer.headers.get("Access-Control-Allow-Origin")


# --- registry entries ---


def test_chat_entry_says_what_the_server_says(
    llama_server: LocalServer, tiny_models: dict[str, Path]
) -> None:
    entry = registry_entry(llama_server.url, tiny_models["fast"])
    spec = msgspec.convert(entry, LLMSpec)
    assert spec.name == "tiny-fast"
    assert spec.api_base == llama_server.url
    assert spec.model == str(tiny_models["fast"])
    assert (spec.capabilities.max_context, spec.capabilities.max_tokens) == (2048, 1024)
    assert (spec.capabilities.slots, spec.capabilities.tools, spec.capabilities.vision) == (2, True, False)
    assert spec.capabilities.speed_tokens_per_sec > 1
    assert (spec.backend, spec.tier, spec.tags, spec.is_free) == ("llamacpp", "free", ("local",), True)


def test_embedding_entry_says_what_the_server_says(
    llama_embed_server: LocalServer, tiny_models: dict[str, Path]
) -> None:
    file = tiny_models["embedding"]
    entry = registry_entry(llama_embed_server.url, file, name="mine", section="embeddings")
    spec = msgspec.convert(entry, EmbeddingSpec)
    assert (spec.name, spec.dimension, spec.max_context) == ("mine", 64, 128)
    assert (spec.backend, spec.tags) == ("llamacpp", ("local",))


def test_entry_names_the_variable_and_never_the_key(start_llama: Callable[..., LocalServer]) -> None:
    server = start_llama("fast", api_key="sesame-42")
    entry = registry_entry(server.url, Path("m.gguf"), api_key="sesame-42", api_key_env="BOX_KEY")
    assert msgspec.convert(entry, LLMSpec).api_key_env == "BOX_KEY"
    assert "sesame" not in json.dumps(entry)
    with pytest.raises(LocalServerError, match="401"):
        registry_entry(server.url, Path("m.gguf"))


def test_entry_of_nothing_running_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LocalServerError, match="no usable answer"):
        registry_entry(f"http://127.0.0.1:{port}", Path("m.gguf"))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen3-Coder-30B-Q5_K_M.gguf", "qwen3-coder-30b-q5_k_m"),
        ("big-00001-of-00003.gguf", "big"),
        ("my model.gguf", "my-model"),
    ],
)
def test_entry_is_named_after_the_file(file: str, name: str) -> None:
    assert entry_name(Path("/models") / file) == name


# --- its end ---


def test_stop_leaves_no_process(tiny_models: dict[str, Path]) -> None:
    with LocalServer(tiny_models["fast"]) as server:
        url, pid = server.url, server.pid
    assert not is_running(pid)
    assert is_refused(url)
    server.stop()


def test_stop_does_not_wait_for_a_generation(tiny_models: dict[str, Path]) -> None:
    with LocalServer(tiny_models["slow"]) as server, urllib3.PoolManager(retries=False) as pool:
        body = CHAT | {"max_tokens": 8000, "stream": True}
        reply = pool.request("POST", server.url + "/v1/chat/completions", json=body, preload_content=False)
        assert next(reply.stream(16))
        server.stop()
        assert server.wait() == -signal.SIGTERM
        reply.close()


def test_kill_ends_the_server_at_once(tiny_models: dict[str, Path]) -> None:
    with LocalServer(tiny_models["fast"]) as server:
        server.kill()
        assert server.wait() == -signal.SIGKILL
        assert is_refused(server.url)


def test_server_ends_when_its_parent_is_killed(tiny_models: dict[str, Path]) -> None:
    # The server inherits its parent's stderr, so that pipe ends only when both processes are gone.
    script = (
        "import sys; from pathlib import Path; from maxwell.local.server import LocalServer\n"
        "server = LocalServer(Path(sys.argv[1]), verbose=True)\n"
        "print(server.wait_ready(), server.pid, flush=True)\n"
        "server.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny_models["fast"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        url, pid = parent.stdout.readline().split()
        parent.kill()
        try:
            parent.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.kill(int(pid), signal.SIGKILL)
            raise
    assert is_refused(url)


# --- failures ---


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LocalServerError) as caught:
        LocalServer(tmp_path / "none.gguf").__enter__()
    assert str(caught.value) == f"cannot read the model {tmp_path / 'none.gguf'}: No such file or directory"


def test_other_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "readme.gguf"
    file.write_text("hello")
    with pytest.raises(LocalServerError) as caught:
        LocalServer(file).__enter__()
    assert str(caught.value) == f"{file} is not a GGUF file: it begins with b'hell'"


def test_truncated_model_is_told_in_llamacpps_words(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "half.gguf"
    file.write_bytes(tiny_models["fast"].read_bytes()[:300_000])
    with pytest.raises(LocalServerError) as caught:
        LocalServer(file).__enter__()
    assert str(caught.value).startswith(f"llama.cpp could not serve {file}: ")
    assert "corrupted or incomplete" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_taken_port_is_told(llama_server: LocalServer, tiny_models: dict[str, Path]) -> None:
    port = urllib3.util.parse_url(llama_server.url).port
    assert port is not None
    with pytest.raises(LocalServerError) as caught:
        LocalServer(tiny_models["fast"], port=port).__enter__()
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port"
    )


def test_server_that_is_not_ready_in_time_is_told_and_goes_on(tiny_models: dict[str, Path]) -> None:
    server = LocalServer(tiny_models["fast"])
    try:
        with pytest.raises(LocalServerError, match="not ready yet"):
            _ = server.url
        with pytest.raises(LocalServerError, match="not ready within 0"):
            server.wait_ready(timeout=0)
        assert ask(server.wait_ready(), "/health")[0] == 200
    finally:
        server.stop()


def test_stop_before_ready_is_told(tiny_models: dict[str, Path]) -> None:
    server = LocalServer(tiny_models["fast"])
    server.stop()
    with pytest.raises(LocalServerError, match="stopped before it was ready"):
        server.wait_ready()


# --- the command itself ---


def test_command_says_ready_and_nothing_else(tiny_models: dict[str, Path]) -> None:
    command = [*SERVE, "-m", str(tiny_models["fast"]), "--port", "0", "-t", "1", "--exit-with-parent"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("READY http://127.0.0.1:")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_is_ended_by_signals(tiny_models: dict[str, Path], number: signal.Signals) -> None:
    command = [*SERVE, "-m", str(tiny_models["fast"]), "--port", "0", "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -number
    assert errors == ""


def test_command_without_its_library_names_the_extra(tiny_models: dict[str, Path]) -> None:
    script = (
        "import sys; sys.modules['xllamacpp'] = None\n"
        "from maxwell.local.serve_llamacpp import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "-m", str(tiny_models["fast"])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr
        == "serving a model needs xllamacpp, which is not installed: pip install 'maxwell-lm[local]'\n"
    )


def test_verbose_command_logs_to_stderr_only(tiny_models: dict[str, Path]) -> None:
    command = [*SERVE, "-m", str(tiny_models["fast"]), "--port", "0", "-t", "1", "--exit-with-parent"]
    done = subprocess.run(
        [*command, "--verbose"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count("\n") == 1
    assert "loading model" in done.stderr
