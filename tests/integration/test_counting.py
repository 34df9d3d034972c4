"""Counting tokens: by the server where it can, else an estimate that says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from calling import Calls, dead_entry, entry

from maxwell.errors import UnknownName
from maxwell.testing import faults
from maxwell.testing.fixtures import FakeServers
from maxwell.testing.tokens import Tokenizer, prompt_tokens
from maxwell.types import BackendName

PROMPT = "Why is the sky blue?\n" * 20
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


def truth(messages: list[dict[str, Any]], token_bytes: int = 4, **body: Any) -> int:
    return prompt_tokens(Tokenizer(token_bytes), {"messages": messages, **body})


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm"])
@pytest.mark.parametrize("token_bytes", [2, 7])
def test_the_server_counts_as_it_reads(
    fake_server: FakeServers, tmp_path: Path, dialect: BackendName, token_bytes: int
) -> None:
    server = fake_server(dialect, token_bytes=token_bytes)
    with Calls(tmp_path, entry(server, "a")).pool() as pool:
        (found,) = pool.count_tokens(PROMPT)
        done = pool.get_lm("a").chat([{"role": "user", "content": PROMPT}])
    assert found.exact
    wanted = truth([{"role": "user", "content": PROMPT}], token_bytes)
    assert found.tokens == wanted == done.usage.prompt_tokens
    assert (found.llm, found.context, found.share) == ("a", 4096, found.tokens / 4096)


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm"])
def test_tools_are_counted(fake_server: FakeServers, tmp_path: Path, dialect: BackendName) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Look!"}]
    server = fake_server(dialect)
    with Calls(tmp_path, entry(server, "a")).pool() as pool:
        (found,) = pool.count_tokens(messages, tools=[TOOL])
    assert (found.tokens, found.exact) == (truth(messages, tools=[TOOL]), True)


def test_without_a_tokenizer_it_is_an_estimate_that_says_so(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai")
    with Calls(tmp_path, entry(server, "a")).pool() as pool:
        (found,) = pool.count_tokens(PROMPT)
    assert not found.exact
    assert found.tokens == pytest.approx(truth([{"role": "user", "content": PROMPT}]), rel=0.2)


@pytest.mark.parametrize("trouble", ["down", "loading", "refusing"])
def test_counting_never_fails(fake_server: FakeServers, tmp_path: Path, trouble: str) -> None:
    server = fake_server()
    one = dead_entry(server, "a") if trouble == "down" else entry(server, "a")
    if trouble == "loading":
        server.set_state("loading")
    elif trouble == "refusing":
        server.fail(faults.ServerError(), times=None, path="/v1/chat/completions/input_tokens")
        server.fail(faults.ServerError(), times=None, path="/tokenize")
    with Calls(tmp_path, one).pool() as pool:
        (found,) = pool.count_tokens(PROMPT)
    assert not found.exact
    assert found.tokens > 0


def test_all_are_counted_side_by_side_in_registry_order(fake_server: FakeServers, tmp_path: Path) -> None:
    servers = [fake_server(token_bytes=n) for n in (1, 2, 4)]
    for server in servers:
        server.fail(faults.SlowFirstByte(0.3), times=None, path="/v1/chat/completions/input_tokens")
    calls = Calls(tmp_path, *(entry(server, f"l{i}") for i, server in enumerate(servers)))

    async def main() -> list[Any]:
        async with calls.async_pool() as pool:
            return list(await pool.count_tokens("x" * 400))

    found = asyncio.run(main())
    assert [one.llm for one in found] == ["l0", "l1", "l2"]
    assert all(one.exact for one in found)
    assert found[0].tokens > found[1].tokens > found[2].tokens
    with calls.pool() as pool:
        assert pool.count_tokens("x" * 400) == found
        assert [one.llm for one in pool.count_tokens("x", names=["l2"])] == ["l2"]
        with pytest.raises(UnknownName, match="l9"):
            pool.count_tokens("x", names=["l9"])


def test_a_handle_counts_what_it_would_send(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        lm = pool.get_lm()
        counted = lm.count_tokens("Hello there", system_prompt="Be brief.")
        said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
        done = lm.chat(said)
    assert (counted.exact, counted.llm) == (True, "one")
    assert counted.tokens == done.usage.prompt_tokens
