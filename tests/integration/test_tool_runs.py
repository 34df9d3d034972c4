"""Models that call Python functions, on fake servers of each family."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from calling import Calls, assert_idle, chats, entry

from maxwell.calls import async_driver, sync_driver
from maxwell.calls.effects import Flow
from maxwell.calls.toolrun import run_tools
from maxwell.errors import BudgetExceeded, ReplyCutOff, ToolStepsExceeded
from maxwell.testing import FakeServer
from maxwell.testing.fixtures import FakeServers
from maxwell.tools import tools_of
from maxwell.types import BackendName, Completion, Message, ToolRun

DIALECTS: tuple[BackendName, ...] = ("llamacpp", "vllm", "openai")
SAID = [("weather", {"city": "Oslo", "days": 2}), ("weather", {"city": "Rome"}), ("clock", {})]


def weather(city: str, days: int = 1) -> dict[str, Any]:
    """Look up the weather."""
    return {"city": city, "days": days}


def clock() -> str:
    """Tell the time."""
    return "noon"


async def later(city: str) -> str:
    """Look it up and wait for it."""
    await asyncio.sleep(0)
    return f"{city}: sun"


@pytest.fixture(params=DIALECTS)
def server(request: pytest.FixtureRequest, fake_server: FakeServers) -> FakeServer:
    return fake_server(request.param, tool_calls=SAID, reply="It is noon.")


def asking(lm: Any, functions: list[Any], seen: list[Completion]) -> Flow[ToolRun]:
    """A run whose model has no calls once it has seen results."""
    tools = tools_of(functions, can_await=True)

    def ask(messages: list[Message]) -> Flow[Completion]:
        choice = "none" if messages[-1]["role"] == "tool" else "auto"
        options = {"tools": [tool.definition for tool in tools], "tool_choice": choice}
        seen.append((yield from lm._chat_flow(messages, options)))
        return seen[-1]

    return run_tools(ask, [{"role": "user", "content": "Hello"}], tools)


def run_once(calls: Calls, mode: str, functions: list[Any], seen: list[Completion]) -> ToolRun:
    if mode == "sync":
        with calls.pool() as pool:
            lm = pool.get_lm()
            return sync_driver.run(asking(lm, functions, seen), lm._transport)

    async def main() -> ToolRun:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()
            return await async_driver.run(asking(lm, functions, seen), lm._transport)

    return asyncio.run(main())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_parallel_calls_are_performed_and_told(server: FakeServer, tmp_path: Path, mode: str) -> None:
    seen: list[Completion] = []
    calls = Calls(tmp_path, entry(server, "one", capabilities={"tools": True}))
    run = run_once(calls, mode, [weather, clock], seen)
    assert run.text == "It is noon."
    assert [(c.name, c.result) for c in run.calls] == [
        ("weather", {"city": "Oslo", "days": 2}),
        ("weather", {"city": "Rome", "days": 1}),
        ("clock", "noon"),
    ]
    # Each result goes to the call that the server gave that id.
    assert len(seen) == 2
    assert [m["tool_call_id"] for m in run.messages[2:5]] == [c.id for c in seen[0].tool_calls]
    assert len({c.id for c in seen[0].tool_calls}) == 3
    first, second = (request.body for request in chats(server))
    assert [tool["function"]["name"] for tool in first["tools"]] == ["weather", "clock"]
    assert second["messages"] == run.messages[:-1]
    assert run.usage.total_tokens == calls.used("one").tokens == sum(c.usage.total_tokens for c in seen)
    assert_idle(server)


def test_coroutine_functions_are_awaited(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(tool_calls=[("later", {"city": "Oslo"})], reply="Sun.")
    calls = Calls(tmp_path, entry(server, "one", capabilities={"tools": True}))
    assert run_once(calls, "async", [later], []).messages[2]["content"] == "Oslo: sun"


# --- by the handle


def test_a_handle_runs_functions_until_its_limit(server: FakeServer, tmp_path: Path) -> None:
    calls = Calls(tmp_path, entry(server, "one", capabilities={"tools": True}))
    with calls.pool() as pool, pytest.raises(ToolStepsExceeded) as caught:
        pool.get_lm().run_tools("Hello", [weather, clock], most_steps=2)
    assert len(chats(server)) == 2
    assert len(caught.value.run.calls) == 6
    assert caught.value.run.usage.total_tokens == calls.used("one").tokens


def test_an_async_handle_awaits_coroutine_functions(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(tool_calls=[("later", {"city": "Oslo"})])

    async def main() -> None:
        async with Calls(tmp_path, entry(server, "one", capabilities={"tools": True})).async_pool() as pool:
            await (await pool.get_lm()).run_tools("Hello", [later], most_steps=1)

    with pytest.raises(ToolStepsExceeded) as caught:
        asyncio.run(main())
    assert [c.result for c in caught.value.run.calls] == ["Oslo: sun"]


def test_a_tool_call_that_is_cut_off_is_not_performed(server: FakeServer, tmp_path: Path) -> None:
    calls = Calls(tmp_path, entry(server, "one", capabilities={"tools": True}))
    with calls.pool() as pool, pytest.raises(ReplyCutOff, match="one: "):
        pool.get_lm().run_tools("Hello", [weather, clock], max_tokens=4)
    assert len(chats(server)) == 1
    assert calls.used("one").tokens > 0


def test_a_budget_ends_a_run(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(tool_calls=[("clock", {})])
    limited = entry(server, "one", daily_budget_tokens=2_000, capabilities={"tools": True})
    calls = Calls(tmp_path, limited)
    with calls.pool() as pool, pytest.raises(BudgetExceeded):
        pool.get_lm().run_tools("Hello", [clock], most_steps=1_000, max_tokens=100)
    assert 0 < calls.used("one").tokens <= 2_000
