"""What a real vLLM says of itself, while it loads and afterwards, and what a newcomer sees of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from calling import SOON, Calls
from command_line import MAXWELL
from msgspec.structs import replace
from real_vllm import KEY, RealVLLM, chat_entry, embed_entry, exchange, told

from maxwell.backends import get_backend
from maxwell.errors import NoEligibleLM
from maxwell.testing.fixtures import WriteRegistry
from maxwell.types import ChatCall

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.loading
def test_while_it_loads_it_refuses_connections_and_is_down(loading_server: RealVLLM, tmp_path: Path) -> None:
    assert not loading_server.is_ready(), "this test has to come first"
    with Calls(tmp_path, chat_entry(loading_server)).pool() as pool:
        status = pool.health()[0]
        assert status.state == "down"
        assert status.health is not None
        assert "refused" in status.health.detail
        with pytest.raises(NoEligibleLM, match=r"v: .*refused"):
            pool.get_lm()


def test_once_loaded_it_is_up_and_tells_what_it_is(chat_server: RealVLLM, calls: Calls) -> None:
    with calls.pool() as pool:
        status = pool.health(refresh=True)[0]
    health = status.health
    assert health is not None
    assert (status.state, health.family, status.context) == ("up", "vllm", 8192)
    assert [(model.id, model.context) for model in health.models] == [("tiny-chat", 8192)]
    assert health.version == told(chat_server.url, "/version")["version"]
    assert (health.busy, status.remarks, status.problem) == (0, (), "")


def test_it_tells_how_busy_it_is(chat_server: RealVLLM, calls: Calls) -> None:
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        streams = [lm.stream("Hello", max_tokens=8000) for _ in range(3)]
        for stream in streams:
            next(stream)
        chat_server.wait_running(3, SOON)  # its metrics come a moment later than its tokens
        health = pool.health(refresh=True)[0].health
        for stream in streams:
            stream.close()
    assert health is not None
    assert health.busy == 3
    chat_server.wait_running(0, 5)


def test_the_context_is_the_servers_where_the_registry_says_more(
    chat_server: RealVLLM, tmp_path: Path
) -> None:
    calls = Calls(tmp_path, chat_entry(chat_server, capabilities={"max_context": 32768}))
    calls.warm()
    with calls.pool() as pool:
        assert pool.health()[0].context == 8192
        with pytest.raises(NoEligibleLM, match="context is 8,192"):
            pool.get_lm(prompt="the cat " * 9000)


def test_a_model_that_it_does_not_have_is_told_before_a_call(chat_server: RealVLLM, tmp_path: Path) -> None:
    calls = Calls(tmp_path, chat_entry(chat_server, model="gpt-nobody"))
    with calls.pool() as pool:
        pool.health()
        with pytest.raises(NoEligibleLM, match="tiny-chat"):
            pool.get_lm()


def test_a_model_that_it_does_not_have_is_a_404_of_that_kind(calls: Calls) -> None:
    vllm, spec = get_backend("vllm"), replace(calls.registry.llms[0], model="gpt-nobody")
    answer = exchange(vllm.chat(spec, ChatCall(messages=HELLO, max_tokens=3), None))
    error = vllm.refusal(answer.status, answer.headers, answer.data, "v")
    assert (answer.status, error.kind) == (404, "model_missing")
    assert "gpt-nobody" in str(error)


@pytest.mark.parametrize("key", ["", "not-the-key"])
def test_a_server_that_refuses_the_key_is_named_as_such(
    embed_server: RealVLLM, tmp_path: Path, key: str
) -> None:
    calls = Calls(tmp_path, embed_entry(embed_server), environ={"TINY_API_KEY": key} if key else {})
    with calls.pool() as pool:
        assert pool.health()[0].state == ("misconfigured" if key else "blocked")
        with pytest.raises(NoEligibleLM, match="401" if key else "TINY_API_KEY") as caught:
            pool.get_embedding("e").embed("the cat")
    assert "not-the-key" not in str(caught.value)


def test_a_refused_key_is_an_error_of_that_kind(embed_server: RealVLLM, tmp_path: Path) -> None:
    vllm, spec = get_backend("vllm"), Calls(tmp_path, embed_entry(embed_server)).registry.embeddings[0]
    answer = exchange(vllm.embed(spec, ["the cat"], "not-the-key"))
    error = vllm.refusal(answer.status, answer.headers, answer.data, "e", secrets=["not-the-key"])
    assert (answer.status, error.kind) == (401, "auth")


def maxwell(*arguments: str, key: str = KEY) -> tuple[int, str]:
    """Exit code and output of the command line, as a newcomer meets it."""
    environ = {**os.environ, "TINY_API_KEY": key, "COLUMNS": "200"}
    done = subprocess.run([*MAXWELL, *arguments], env=environ, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_check_and_list_show_it(
    chat_server: RealVLLM, embed_server: RealVLLM, write_registry: WriteRegistry
) -> None:
    write_registry(chat_entry(chat_server), embed_entry(embed_server))
    code, said = maxwell("check")
    assert code == 0, said
    assert "0 faults, 0 warnings" in said
    assert "8,192 tokens a request" in said
    code, said = maxwell("check", "--deep")
    assert code == 0, said
    code, said = maxwell("list", "--json")
    assert code == 0, said
    states = {entry["name"]: entry["state"] for entry in json.loads(said)}
    assert states == {"v": "up", "e": "up"}
    code, said = maxwell("ask", "Hello", "--max-tokens", "8")
    assert code == 0, said


def test_check_finds_what_the_registry_says_wrongly(
    chat_server: RealVLLM, embed_server: RealVLLM, write_registry: WriteRegistry
) -> None:
    write_registry(
        chat_entry(chat_server, capabilities={"max_context": 32768}),
        chat_entry(chat_server, "w", model="gpt-nobody"),
        embed_entry(embed_server),
    )
    code, said = maxwell("check", "--deep")
    assert code == 1, said
    assert "8192" in said
    code, said = maxwell("check", key="not-the-key")
    assert code == 1, said
    lines = {line.split()[1]: line for line in said.splitlines() if line.count(" ") > 3}
    assert "the server gives 8192" in lines["v"]
    assert "tiny-chat" in lines["w"]
    assert "TINY_API_KEY" in lines["e"]
    assert "not-the-key" not in said
