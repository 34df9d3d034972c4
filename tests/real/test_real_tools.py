"""Functions called by a real llama.cpp model, whose calls are random but obey the tools' schemas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from calling import BUDGET, Calls
from msgspec import Meta, Struct
from msgspec.structs import replace

from maxwell.calls import async_driver, sync_driver
from maxwell.calls.effects import Flow
from maxwell.calls.toolrun import run_tools
from maxwell.errors import ReplyCutOff, ToolError, ToolStepsExceeded
from maxwell.local.server import LocalServer
from maxwell.tools import tools_of
from maxwell.types import Completion, Message, ToolCall, ToolRun

pytestmark = pytest.mark.real

PROMPT: list[Message] = [{"role": "user", "content": "Hello"}]


class Place(Struct):
    city: Literal["Paris", "Oslo"]
    is_far: bool


class Basket(Struct):
    item: Literal["tea", "ale"]
    inner: Basket | None = None


def weather(place: Place, days: Annotated[int, Meta(ge=1, le=9)]) -> dict[str, Any]:
    """Look up the weather.

    Args:
        place: Where.
        days: How many days.
    """
    assert isinstance(place, Place)
    assert 1 <= days <= 9
    return {"city": place.city, "days": days}


def unpack(basket: Basket) -> str:
    """Look into a basket."""
    return basket.item


@pytest.fixture(scope="module")
def server(tiny_models: dict[str, Path]) -> Iterator[LocalServer]:
    with LocalServer(tiny_models["tools"], context=8192) as server:
        yield server


@pytest.fixture
def calls(server: LocalServer, tmp_path: Path) -> Calls:
    entry = {
        "name": "one",
        "api_base": server.url,
        "model": "tiny.gguf",
        "backend": "llamacpp",
        "default_temperature": 0.7,
        "daily_budget_tokens": BUDGET,
        "capabilities": {"max_tokens": 1024, "max_context": 8192, "speed_tokens_per_sec": 100, "tools": True},
    }
    return Calls(tmp_path, entry)


def conversation(
    lm: Any, functions: list[Callable[..., Any]], choice: Callable[[list[Message]], str], most_steps: int
) -> Flow[ToolRun]:
    """A run in which each reply's `tool_choice` depends on what has been said."""
    tools = tools_of(functions, can_await=True)
    definitions = [tool.definition for tool in tools]

    def ask(messages: list[Message]) -> Flow[Completion]:
        options = {"tools": definitions, "tool_choice": choice(messages), "seed": 3, "max_tokens": 400}
        return lm._chat_flow(messages, options)  # type: ignore[no-any-return]

    return run_tools(ask, PROMPT, tools, most_steps=most_steps)


def required(messages: list[Message]) -> str:
    return "required"


def once(messages: list[Message]) -> str:
    return "none" if messages[-1]["role"] == "tool" else "required"


def run_sync(calls: Calls, *args: Any) -> ToolRun:
    with calls.pool() as pool:
        lm = pool.get_lm()
        return sync_driver.run(conversation(lm, *args), lm._transport)


def run_async(calls: Calls, *args: Any) -> ToolRun:
    async def main() -> ToolRun:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()
            return await async_driver.run(conversation(lm, *args), lm._transport)

    return asyncio.run(main())


def test_a_model_calls_functions_until_it_may_not(calls: Calls) -> None:
    run = run_sync(calls, [weather], once, 10)
    assert run.completion.tool_calls == []
    assert run.calls
    assert {(call.error, call.result["city"]) for call in run.calls} <= {("", "Paris"), ("", "Oslo")}
    assert calls.used("one").tokens == run.usage.total_tokens


@pytest.mark.parametrize("run_it", [run_sync, run_async])
def test_a_conversation_with_results_is_taken_step_after_step(
    calls: Calls, run_it: Callable[..., ToolRun]
) -> None:
    with pytest.raises(ToolStepsExceeded) as caught:
        run_it(calls, [weather], required, 3)
    run = caught.value.run
    assert sum(message["role"] == "assistant" for message in run.messages) == 3
    assert [c.error for c in run.calls] == [""] * len(run.calls)


def test_a_model_hears_what_went_wrong_and_goes_on(calls: Calls) -> None:
    def lookup(city: Literal["Paris", "Oslo"]) -> str:
        raise ToolError(f"nobody knows {city}")

    run = run_sync(calls, [lookup], once, 2)
    assert run.calls
    assert all(call.error.startswith("nobody knows") for call in run.calls)


def test_types_that_hold_themselves_constrain_the_model(calls: Calls) -> None:
    with calls.pool() as pool, pytest.raises(ToolStepsExceeded) as caught:
        pool.get_lm().run_tools(
            "Hello", [unpack], most_steps=1, tool_choice="required", seed=5, max_tokens=900, temperature=0.2
        )
    assert {call.result for call in caught.value.run.calls} <= {"tea", "ale"}


def test_a_call_that_is_cut_off_is_named(calls: Calls) -> None:
    with calls.pool() as pool, pytest.raises(ReplyCutOff, match="one: "):
        pool.get_lm().run_tools("Hello", [weather], tool_choice="required", seed=1, max_tokens=30)


@pytest.mark.parametrize("broken", ['{"place": ', "", "true"])
def test_a_server_goes_on_after_broken_arguments(calls: Calls, broken: str) -> None:
    """Sent back as they are, it would answer HTTP 500."""
    tools = tools_of([weather], can_await=False)
    with calls.pool() as pool:
        lm = pool.get_lm()

        def ask(messages: list[Message]) -> Flow[Completion]:
            options = {"tools": [t.definition for t in tools], "tool_choice": "none", "max_tokens": 4}
            done = yield from lm._chat_flow(messages, options)
            if messages[-1]["role"] == "tool":
                return done
            call = ToolCall("x", "weather", broken)
            return replace(done, tool_calls=[call], finish_reason="tool_calls")

        run = sync_driver.run(run_tools(ask, PROMPT, tools), lm._transport)
    assert [bool(call.error) for call in run.calls] == [True]
