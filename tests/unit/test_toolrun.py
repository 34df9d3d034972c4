from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest

from maxwell.calls import async_driver, sync_driver
from maxwell.calls.effects import Flow, Sleep
from maxwell.calls.toolrun import run_tools
from maxwell.errors import MaxwellError, ReplyCutOff, ToolError, ToolStepsExceeded
from maxwell.tools import tools_of
from maxwell.types import Completion, Message, Timings, ToolCall, ToolRun, Usage

PROMPT: list[Message] = [{"role": "user", "content": "Hello"}]
Wanted = tuple[str, str] | tuple[str, str, str]  # name, arguments, id


def reply(text: str = "", *calls: Wanted, finish: str = "", **fields: Any) -> Completion:
    """What a model says; each call has an id of its own unless one is given."""
    wanted = [
        ToolCall(call[2] if len(call) > 2 else f"id{i}", call[0], call[1]) for i, call in enumerate(calls)
    ]
    return Completion(
        text=text,
        tool_calls=wanted,
        finish_reason=finish or ("tool_calls" if calls else "stop"),
        usage=fields.pop("usage", Usage(10, 2)),
        cost_usd=0.25,
        timings=Timings(1.0),
        llm="one",
        **fields,
    )


class Model:
    """Says one reply after the other, the last one for ever, and remembers what it was asked."""

    def __init__(self, *replies: Completion) -> None:
        self.replies = list(replies)
        self.asked: list[list[Message]] = []

    def ask(self, messages: list[Message]) -> Flow[Completion]:
        self.asked.append(messages)  # not a copy: what was asked must stay as it was
        yield Sleep(0)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


Functions = Sequence[Callable[..., Any]]
Run = Callable[..., ToolRun]


def run_sync(model: Model, functions: Functions, messages: list[Message] = PROMPT, **options: Any) -> ToolRun:
    tools = tools_of(functions, can_await=False)
    transport: Any = None
    return sync_driver.run(run_tools(model.ask, messages, tools, **options), transport)


def run_async(
    model: Model, functions: Functions, messages: list[Message] = PROMPT, **options: Any
) -> ToolRun:
    tools = tools_of(functions, can_await=True)
    transport: Any = None
    return asyncio.run(async_driver.run(run_tools(model.ask, messages, tools, **options), transport))


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    return run_sync if request.param == "sync" else run_async


def add(a: int, b: int) -> int:
    return a + b


def greet(name: str = "you") -> str:
    return f"Hello, {name}."


def results(run: ToolRun) -> list[str]:
    """What the model was told."""
    return [message["content"] for message in run.messages if message["role"] == "tool"]


# --- the conversation


def test_a_reply_without_calls_is_the_end(run: Run) -> None:
    model = Model(reply("Hi."))
    done = run(model, [add])
    assert (done.text, done.calls, model.asked) == ("Hi.", [], [PROMPT])
    assert done.messages == [*PROMPT, {"role": "assistant", "content": "Hi."}]


def test_calls_are_performed_and_their_results_told(run: Run) -> None:
    model = Model(
        reply("", ("add", '{"a": 1, "b": 2}', "x")), reply("Hm", ("greet", '{"name": "Bo"}', "y")), reply("3")
    )
    done = run(model, [add, greet])
    assert done.text == "3"
    assert [(c.name, c.arguments, c.result, c.error) for c in done.calls] == [
        ("add", '{"a": 1, "b": 2}', 3, ""),
        ("greet", '{"name": "Bo"}', "Hello, Bo.", ""),
    ]

    def asks(text: str, id: str, name: str, arguments: str) -> Message:
        function = {"name": name, "arguments": arguments}
        calls = [{"id": id, "type": "function", "function": function}]
        return {"role": "assistant", "content": text, "tool_calls": calls}

    whole = [
        *PROMPT,
        asks("", "x", "add", '{"a": 1, "b": 2}'),
        {"role": "tool", "tool_call_id": "x", "content": "3"},
        asks("Hm", "y", "greet", '{"name": "Bo"}'),
        {"role": "tool", "tool_call_id": "y", "content": "Hello, Bo."},
        {"role": "assistant", "content": "3"},
    ]
    assert done.messages == whole
    assert model.asked == [whole[:1], whole[:3], whole[:5]]


def test_the_callers_messages_are_left_as_they_are(run: Run) -> None:
    messages = copy.deepcopy(PROMPT)
    run(Model(reply("", ("greet", "")), reply("Bye.")), [greet], messages)
    assert messages == PROMPT


def test_a_finish_reason_of_stop_does_not_hide_calls(run: Run) -> None:
    """As vLLM says when one function is demanded."""
    done = run(Model(reply("", ("greet", "{}"), finish="stop"), reply("Bye.")), [greet])
    assert results(done) == ["Hello, you."]


def test_usage_and_cost_are_those_of_all_steps(run: Run) -> None:
    first = Usage(10, 5, cached_tokens=4, reasoning_tokens=1)
    second = Usage(20, 7, cached_tokens=9, estimated=True)
    done = run(Model(reply("", ("greet", "{}"), usage=first), reply("Bye.", usage=second)), [greet])
    # Reasoning was reported once only: a sum would be too small.
    assert done.usage == Usage(30, 12, cached_tokens=13, reasoning_tokens=None, estimated=True)
    assert done.cost_usd == 0.5


# --- results


@dataclass
class Point:
    x: int


class Person(pydantic.BaseModel):
    age: int


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        ([1, "a"], '[1,"a"]'),
        ({"a": Point(1)}, '{"a":{"x":1}}'),
        ([Person(age=3)], '[{"age":3}]'),
        (ValueError("a value, not raised").args, '["a value, not raised"]'),
    ],
    ids=str,
)
def test_results_are_told_as_text_or_json(run: Run, value: Any, text: str) -> None:
    def give() -> Any:
        return value

    done = run(Model(reply("", ("give", "{}")), reply("Bye.")), [give])
    assert results(done) == [text]
    assert done.calls[0].result == value


@pytest.mark.parametrize("value", [object(), Person, {1: {2: object()}}], ids=["object", "class", "inside"])
def test_a_result_without_a_json_form_is_the_callers_error(run: Run, value: Any) -> None:
    def give() -> Any:
        return value

    with pytest.raises(TypeError, match=r"the tool 'give' returned a \w+, which has no JSON form"):
        run(Model(reply("", ("give", "{}"))), [give])


# --- what is wrong with a call is told to the model


@pytest.mark.parametrize(
    ("name", "arguments", "told", "resent"),
    [
        ("ad", '{"a": 1}', "there is no tool 'ad'; there are add, greet", '{"a": 1}'),
        ("add", '{"a": 1', 'the arguments must be one JSON object, not {"a": 1', "{}"),
        ("add", "true", "the arguments must be one JSON object, not true", "{}"),
        ("add", "[" * 100_000, "the arguments must be one JSON object, not " + "[" * 200, "{}"),
        (
            "add",
            '{"a": "1", "c": 2}',
            "there is no argument 'c'; a: Expected `int`, got `str`; the argument 'b' is missing "
            "(arguments of add: a, b)",
            '{"a": "1", "c": 2}',
        ),
    ],
    ids=["unknown tool", "cut", "no object", "deep", "wrong types"],
)
def test_what_is_wrong_with_a_call_is_told(
    run: Run, name: str, arguments: str, told: str, resent: str
) -> None:
    done = run(Model(reply("", (name, arguments)), reply("Sorry.")), [add, greet])
    assert results(done) == [f"Error: {told}"]
    (call,) = done.calls
    assert (call.name, call.arguments, call.result, call.error) == (name, arguments, None, told)
    # Servers refuse conversations with arguments that are no JSON object.
    assert done.messages[1]["tool_calls"][0]["function"]["arguments"] == resent


@pytest.mark.parametrize("arguments", ["", " ", "{}"])
def test_a_call_without_arguments_may_leave_them_empty(run: Run, arguments: str) -> None:
    done = run(Model(reply("", ("greet", arguments)), reply("Bye.")), [greet])
    assert results(done) == ["Hello, you."]
    assert done.messages[1]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_tool_error_is_told_to_the_model(run: Run) -> None:
    def look(what: str) -> str:
        raise ToolError(f"there is no {what}; try tea")

    done = run(Model(reply("", ("look", '{"what": "ale"}')), reply("Tea, then.")), [look])
    assert results(done) == ["Error: there is no ale; try tea"]
    assert done.calls[0].error == "there is no ale; try tea"


def test_a_tool_error_without_words_is_still_an_error(run: Run) -> None:
    def look() -> str:
        raise ToolError

    assert results(run(Model(reply("", ("look", "")), reply("Oh.")), [look])) == ["Error: the tool failed"]


def test_any_other_error_of_a_tool_is_the_callers(run: Run) -> None:
    error = LookupError("mine")

    def look() -> str:
        raise error

    model = Model(reply("", ("greet", "{}"), ("look", "{}")))
    with pytest.raises(LookupError, match="mine") as caught:
        run(model, [greet, look])
    assert caught.value is error
    assert caught.value.__notes__ == ["raised by the tool 'look'"]
    assert len(model.asked) == 1


def test_an_error_that_a_tool_returns_is_a_result(run: Run) -> None:
    def look() -> Any:
        return ToolError("returned")

    with pytest.raises(TypeError, match="returned a ToolError"):
        run(Model(reply("", ("look", ""))), [look])


def test_a_call_that_was_cut_off_is_not_performed(run: Run) -> None:
    performed: list[str] = []

    def note(text: str) -> None:
        performed.append(text)

    model = Model(reply("", ("note", '{"text": "whole"}'), ("note", '{"text": "cu"}'), finish="length"))
    with pytest.raises(ReplyCutOff) as caught:
        run(model, [note])
    assert caught.value.completion.finish_reason == "length"
    assert (performed, len(model.asked)) == ([], 1)


def test_a_text_that_was_cut_off_is_the_last_reply(run: Run) -> None:
    assert run(Model(reply("Once upon", finish="length")), [add]).completion.finish_reason == "length"


# --- the limit


def test_a_model_that_never_stops_is_stopped(run: Run) -> None:
    model = Model(reply("", ("add", "nonsense")))
    with pytest.raises(ToolStepsExceeded, match="after 3 steps") as caught:
        run(model, [add], most_steps=3)
    so_far = caught.value.run
    assert isinstance(caught.value, MaxwellError)
    assert (len(model.asked), len(so_far.calls), so_far.usage) == (3, 3, Usage(30, 6))


def test_after_the_limit_the_conversation_can_be_gone_on_with(run: Run) -> None:
    with pytest.raises(ToolStepsExceeded) as caught:
        run(Model(reply("", ("greet", "{}", ""))), [greet], most_steps=2)
    model = Model(reply("", ("greet", "{}", "")), reply("Enough."))
    done = run(model, [greet], caught.value.run.messages, most_steps=2)
    assert model.asked[0][-1] == {"role": "tool", "tool_call_id": "call00002", "content": "Hello, you."}
    ids = [c["id"] for message in done.messages for c in message.get("tool_calls", ())]
    assert ids == ["call00001", "call00002", "call00003"]


@pytest.mark.parametrize("most_steps", [0, -1])
def test_a_limit_below_one_is_refused(run: Run, most_steps: int) -> None:
    with pytest.raises(ValueError, match="most_steps must be 1 or more"):
        run(Model(reply("Hi.")), [add], most_steps=most_steps)


# --- several calls in one reply


def test_results_come_in_the_order_of_the_calls(run: Run) -> None:
    calls: list[Wanted] = [("add", json.dumps({"a": i, "b": 0})) for i in range(20)]
    calls[7] = ("no", "{}")
    calls[9] = ("add", "{")
    done = run(Model(reply("", *calls), reply("Bye.")), [add])
    told = results(done)
    assert [told[i] for i in range(20) if i not in (7, 9)] == [str(i) for i in range(20) if i not in (7, 9)]
    assert [message["tool_call_id"] for message in done.messages[2:22]] == [f"id{i}" for i in range(20)]
    assert [bool(c.error) for c in done.calls] == [i in (7, 9) for i in range(20)]


@pytest.mark.parametrize("id", ["", "same"])
def test_calls_without_an_id_of_their_own_get_one(run: Run, id: str) -> None:
    done = run(Model(reply("", ("greet", "{}", id), ("greet", "{}", id)), reply("Bye.")), [greet])
    ids = [c["id"] for c in done.messages[1]["tool_calls"]]
    assert ids == [id or "call00001", "call00002"]
    assert [m["tool_call_id"] for m in done.messages[2:4]] == ids


def test_coroutine_functions_are_performed_side_by_side() -> None:
    arrived: list[str] = []

    async def meet(name: str) -> str:
        arrived.append(name)
        while len(arrived) < 3:
            await asyncio.sleep(0)
        return name

    calls: list[Wanted] = [("meet", json.dumps({"name": name})) for name in "abc"]
    assert results(run_async(Model(reply("", *calls), reply("Bye.")), [meet])) == ["a", "b", "c"]
