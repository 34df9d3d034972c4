"""No call uses more than it reserved, and every call asks for as much as it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from calling import BUDGET, MODES, Calls, chats, entry

from maxwell.errors import BudgetExceeded, EmptyReply, MaxwellError
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers

LONG = ["word "] * 3000


def assert_kept(calls: Calls, server: FakeServer, budget: int) -> None:
    """What the server metered in truth is within the budget, and the books say so."""
    assert server.usage.total_tokens <= budget
    used = calls.used("one")
    assert (used.tokens <= budget, used.held_tokens) == (True, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_reply_is_cut_to_what_the_budget_holds(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    server = fake_server(reply=LONG)
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=600))
    assert calls.ask(mode).text.startswith("word word ")
    assert_kept(calls, server, 600)
    assert calls.used("one").tokens > 200


def test_what_was_asked_for_outright_is_not_cut(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(reply=LONG)
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=300))
    with pytest.raises(BudgetExceeded, match="one: daily budget has 300 tokens left"):
        calls.ask("chat", max_tokens=1000)
    assert chats(server) == []


@pytest.mark.parametrize("cap", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_cap_given_as_an_extra_field_does_not_pass_the_budget(
    fake_server: FakeServers, tmp_path: Path, cap: str
) -> None:
    server = fake_server(reply=LONG)
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=300))
    with pytest.raises((BudgetExceeded, ValueError)):
        calls.ask("chat", max_tokens=50, extra={cap: 3000})
    assert_kept(calls, server, 300)


def test_several_choices_are_paid_for(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(reply=LONG)
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=300))
    with pytest.raises((BudgetExceeded, ValueError)):
        calls.ask("chat", max_tokens=100, extra={"n": 8})
    assert chats(server) == []


def test_tool_definitions_are_part_of_the_prompt(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=300))
    tool = {"type": "function", "function": {"name": "look", "description": "words " * 600, "parameters": {}}}
    with calls.pool() as pool:
        lm = pool.get_lm()
        with pytest.raises(BudgetExceeded):
            lm.chat([{"role": "user", "content": "Hello"}], tools=[tool], max_tokens=16)
    assert_kept(calls, server, 300)


def test_a_conversation_with_tool_calls_is_reserved_whole(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=BUDGET))
    call = {"id": "c1", "type": "function", "function": {"name": "look_" * 100, "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]
    with calls.pool() as pool:
        used = pool.get_lm().chat(messages, max_tokens=16).usage
    bound = Calls(tmp_path, entry(server, "one", daily_budget_tokens=used.prompt_tokens + 15))
    with bound.pool() as pool, pytest.raises(BudgetExceeded):
        pool.get_lm().chat(messages, max_tokens=16)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {"grammar": 'root ::= "x"', "extra": {"json_schema": {}}},
        {"extra": {"odd": object()}},
    ],
    ids=["two constraints", "an object"],
)
def test_a_call_that_cannot_be_sent_costs_nothing(
    fake_server: FakeServers, tmp_path: Path, mode: str, options: dict[str, Any]
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises((ValueError, TypeError, MaxwellError)):
        calls.ask(mode, "Hello " * 50, **options)
    assert chats(server) == []
    used = calls.used("one")
    assert (used.tokens, used.held_tokens) == (0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_that_is_not_valid_unicode_is_told(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    # Such text comes from files that are read with errors="surrogateescape".
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ValueError, match="not valid Unicode"):
        calls.ask(mode, "caf\udce9")
    assert chats(server) == []
    assert (calls.used("one").tokens, calls.used("one").held_tokens) == (0, 0)


# --- how much is asked for


def test_a_long_prompt_of_few_tokens_gets_a_whole_reply(fake_server: FakeServers, tmp_path: Path) -> None:
    # Eight bytes a token, as in indented code: by bytes / 4 the context would be full. The choice counted it.
    server = fake_server(reply=["word "] * 300, context=4096, token_bytes=8)
    calls = Calls(tmp_path, entry(server, "one"))
    prompt = "x" * 4 * 4000
    with calls.pool() as pool:
        lm = pool.get_lm(prompt=prompt)
        done = lm.chat([{"role": "user", "content": prompt}])
    assert (done.usage.completion_tokens, done.finish_reason) == (300, "stop")


def test_a_named_llm_gives_a_whole_reply_to_a_long_prompt(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(reply=["word "] * 300, context=4096, token_bytes=8)
    calls = Calls(tmp_path, entry(server, "one"))
    got = calls.ask("chat", "x" * 4 * 4000, name="one")
    assert got.completion is not None
    assert (got.completion.usage.completion_tokens, got.completion.finish_reason) == (300, "stop")


def test_an_estimate_does_not_cut_a_reply_to_nothing(fake_server: FakeServers, tmp_path: Path) -> None:
    # Nobody can count for this server. By bytes / 4 the context is full; in truth half of it is free.
    server = fake_server("openai", reply=["word "] * 300, context=4096, token_bytes=8)
    got = Calls(tmp_path, entry(server, "one")).ask("chat", "x" * 4 * 4100)
    assert got.completion is not None
    assert got.completion.usage.completion_tokens >= 64


def test_the_wanted_length_is_sent(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one", capabilities={"max_tokens": 700}))
    with calls.pool() as pool:
        pool.get_lm().generate("Hello")
        pool.get_lm(max_completion=33).generate("Hello")
        pool.get_lm(max_completion=33).generate("Hello", max_tokens=44)
    assert [r.body["max_tokens"] for r in chats(server)] == [700, 33, 44]


def test_every_chat_request_streams_and_asks_for_usage(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    for mode in MODES:
        calls.ask(mode)
    assert [(r.body["stream"], r.body["stream_options"]["include_usage"]) for r in chats(server)] == [
        (True, True)
    ] * len(MODES)


def test_a_server_that_ignores_streaming_is_understood(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    message = {"role": "assistant", "content": "All at once."}
    reply = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
    server.fail(faults.Status(200, reply), times=None)
    calls = Calls(tmp_path, entry(server, "one"))
    for mode in MODES:
        assert calls.ask(mode).text == "All at once."
    assert calls.used("one").tokens == 12 * len(MODES)


def test_thinking_that_eats_the_reply_is_visible(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(reasoning="Let me think. " * 100)
    calls = Calls(tmp_path, entry(server, "one"))
    got = calls.ask("chat", max_tokens=20)
    assert got.completion is not None
    assert (got.text, got.completion.finish_reason) == ("", "length")
    assert got.completion.reasoning.startswith("Let me think.")
    assert got.completion.usage.completion_tokens == 20


def test_generate_does_not_return_nothing_in_silence(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(reasoning="Let me think. " * 100)
    with pytest.raises(EmptyReply, match="one: all 20 tokens went into reasoning; raise max_tokens"):
        Calls(tmp_path, entry(server, "one")).ask("generate", max_tokens=20)


def test_a_parameter_that_a_server_refuses_is_mended_once(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", model="deepseek-reasoner")
    why = {"message": "Unsupported parameter: 'temperature'", "param": "temperature"}
    server.fail(faults.Status(400, {"error": why | {"code": "unsupported_parameter"}}))
    calls = Calls(tmp_path, entry(server, "one"))
    assert calls.ask("chat").text
    assert ["temperature" in r.body for r in chats(server)] == [True, False]
    assert calls.used("one").tokens == server.usage.total_tokens


def test_cached_tokens_have_their_own_price(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", cached_tokens=8)
    prices = {"cost_per_1k_prompt_tokens": 1.0, "cost_per_1k_cached_tokens": 0.1, "daily_budget_usd": 100.0}
    calls = Calls(tmp_path, entry(server, "one", cost_per_1k_completion_tokens=2.0, **prices))
    got = calls.ask("chat")
    assert got.completion is not None
    usage = got.completion.usage
    assert usage.cached_tokens == 8
    dollars = ((usage.prompt_tokens - 8) * 1.0 + 8 * 0.1 + usage.completion_tokens * 2.0) / 1000
    assert got.completion.cost_usd == pytest.approx(dollars)
    assert calls.used("one").usd == pytest.approx(dollars)


def test_a_server_that_reports_nonsense_does_not_earn_money(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    usage = {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 1000}}
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}
    server.fail(faults.Status(200, {"choices": [choice], "usage": usage}))
    calls = Calls(tmp_path, entry(server, "one", cost_per_1k_tokens=1.0, cost_per_1k_cached_tokens=0.0))
    got = calls.ask("chat")
    assert got.completion is not None
    assert got.completion.cost_usd >= 0
