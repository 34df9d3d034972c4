"""The edges of calls that must obey: money, time, streams, who is asked."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from calling import MODES, SOON, Calls, assert_idle, chats, entry, wait_tokens

from maxwell.calls.effects import Limits
from maxwell.calls.transport import SyncExchange, SyncTransport
from maxwell.errors import (
    AllAttemptsFailed,
    BudgetExceeded,
    ConstraintBroken,
    EmptyReply,
    ReplyCutOff,
    StatusError,
)
from maxwell.handles import LLM
from maxwell.testing import FakeClock, FakeServer, faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import BackendName, HTTPRequest

YES_NO: dict[str, Any] = {"choices": ["yes", "no"]}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)
STREAMS = ("stream", "async stream")
BIG = {"max_tokens": 4_000, "max_context": 32_000}


def deaf(fake_server: FakeServers, dialect: BackendName = "llamacpp", **more: Any) -> FakeServer:
    """A server that says "maybe", whatever was asked."""
    return fake_server(dialect, constrained_reply="maybe", reply="maybe", **more)


def spent(server: FakeServer) -> int:
    return server.usage.total_tokens


# --- money


@pytest.mark.parametrize("mode", MODES)
def test_a_broken_reply_is_booked_exactly_once(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    server = deaf(fake_server)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ConstraintBroken) as caught:
        calls.ask(mode, **YES_NO)
    used = calls.used("one")
    assert used.tokens == spent(server) == caught.value.completion.usage.total_tokens
    assert (used.held_tokens, used.calls) == (0, 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_reply_cut_off_is_booked_exactly_once(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    server = fake_server(constrained_reply=["y", "es"])
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ReplyCutOff) as caught:
        calls.ask(mode, **YES_NO, max_tokens=1)
    assert calls.used("one").tokens == spent(server) == caught.value.completion.usage.total_tokens
    assert calls.used("one").held_tokens == 0


def test_a_reply_sent_back_is_two_bookings(fake_server: FakeServers, tmp_path: Path) -> None:
    server = deaf(fake_server)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ConstraintBroken):
        calls.ask("generate", **YES_NO, repair=True)
    assert len(chats(server)) == 2
    assert calls.used("one").tokens == spent(server)
    assert calls.used("one").held_tokens == 0


def test_a_budget_holds_although_replies_are_sent_back(fake_server: FakeServers, tmp_path: Path) -> None:
    server = deaf(fake_server)
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=80))
    for _ in range(10):
        with pytest.raises((ConstraintBroken, BudgetExceeded)) as caught:
            calls.ask("generate", repair=True, max_tokens=20, **YES_NO)
    assert caught.type is BudgetExceeded
    assert 0 < calls.used("one").tokens <= 80
    assert calls.used("one").held_tokens == 0


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm"])
def test_no_more_is_asked_for_than_was_reserved(
    fake_server: FakeServers, tmp_path: Path, dialect: BackendName
) -> None:
    server = fake_server(dialect, context=32_000)
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=500, capabilities=BIG))
    calls.ask("generate", thinking_tokens=1_000)
    body = chats(server)[0].body
    thinking = body.get("reasoning_budget_tokens") or body["thinking_token_budget"]
    assert body["max_tokens"] < 500
    assert thinking == body["max_tokens"] // 2  # thinking must leave room for the reply
    assert calls.used("one").held_tokens == 0


@pytest.mark.parametrize(
    ("options", "most", "thinking"),
    [
        ({"max_tokens": 10, "thinking_tokens": 1_000}, 1_010, 1_000),
        ({"thinking_tokens": 1_000}, 4_000, 1_000),
        ({"max_tokens": 4_000, "thinking_tokens": 1_000}, 4_000, 1_000),  # no more than the model's most
        ({"max_tokens": 4_000, "thinking_tokens": 9_000}, 4_000, 2_000),
        ({"max_tokens": 10, "thinking_tokens": 0}, 10, None),
        ({"max_tokens": 10, "thinking_tokens": 1_000, "reasoning_effort": "none"}, 10, None),
        ({"max_tokens": 10}, 310, 300),  # what the entry declares
    ],
)
def test_the_room_for_thinking(
    fake_server: FakeServers, tmp_path: Path, options: dict[str, Any], most: int, thinking: int | None
) -> None:
    server = fake_server(context=32_000)
    calls = Calls(tmp_path, entry(server, "one", capabilities={**BIG, "thinking_tokens": 300}))
    calls.ask("generate", **options)
    body = chats(server)[0].body
    assert (body["max_tokens"], body.get("reasoning_budget_tokens")) == (most, thinking)


def test_where_nothing_can_be_thought_no_room_is_made_for_it(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(constrained_reply="yes")
    calls = Calls(tmp_path, entry(server, "one", capabilities={"thinking_tokens": 300}))
    calls.ask("generate", max_tokens=10, **YES_NO)  # a grammar begins with the first token
    assert chats(server)[0].body["max_tokens"] == 10


def test_a_full_context_leaves_half_of_the_rest_to_the_reply(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(context=600)
    capabilities = {"max_tokens": 500, "max_context": 600}
    calls = Calls(tmp_path, entry(server, "one", capabilities=capabilities))
    calls.ask("generate", "word " * 300, thinking_tokens=400, max_tokens=100)
    body = chats(server)[0].body
    left = body["max_tokens"]
    assert left < 500
    assert body["reasoning_budget_tokens"] == max(left - 100, left // 2)


def test_an_entry_is_not_left_out_for_the_room_that_it_would_like(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    capabilities = {"max_tokens": 4_096, "max_context": 4_096, "thinking_tokens": 4_000}
    server = fake_server(context=4_096)
    text = "word " * 600
    with Calls(tmp_path, entry(server, "one", capabilities=capabilities)).pool() as pool:
        pool.get_lm(prompt=text).generate(text)
        (done,) = pool.map([text])
    assert done.error is None
    for request in chats(server):
        assert request.body["reasoning_budget_tokens"] == request.body["max_tokens"] // 2


# --- time


class Slow:
    """A transport whose every exchange takes 12 s by the pool's clock, and how long each may take in all."""

    def __init__(self, transport: SyncTransport, clock: FakeClock) -> None:
        self._transport = transport
        self._clock = clock
        self.totals: list[float | None] = []

    def send(self, request: HTTPRequest, limits: Limits) -> SyncExchange:
        self.totals.append(limits.total)
        self._clock.advance(12.0)
        return self._transport.send(request, limits)

    def close(self) -> None:
        self._transport.close()


def test_both_calls_share_the_time(fake_server: FakeServers, tmp_path: Path) -> None:
    clock = FakeClock()
    with Calls(tmp_path, entry(deaf(fake_server), "one"), clock=clock).pool() as pool:
        chosen = pool.get_lm()
        slow = Slow(chosen._transport, clock)
        lm = LLM(chosen._state, chosen.decision, slow, pinned=False)
        with pytest.raises(ConstraintBroken):
            lm.generate("Well?", repair=True, timeout=20, **YES_NO)
    assert slow.totals == [pytest.approx(20.0), pytest.approx(8.0)]


def test_what_breaks_when_the_time_is_over_is_not_sent_back(tmp_path: Path, fake_server: FakeServers) -> None:
    clock = FakeClock()

    def slow(body: dict[str, Any]) -> str:
        clock.advance(30.0)
        return "maybe"

    server = fake_server(constrained_reply=slow)
    calls = Calls(tmp_path, entry(server, "one"), clock=clock)
    with pytest.raises(ConstraintBroken):
        calls.ask("generate", repair=True, timeout=20, **YES_NO)
    assert len(chats(server)) == 1


# --- streams


@pytest.mark.parametrize("mode", STREAMS)
def test_what_is_shown_comes_live_and_is_judged_at_the_end(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    server = fake_server(constrained_reply=["ma", "yb", "e"])
    calls = Calls(tmp_path, entry(server, "one"), entry(fake_server(), "two", 1))
    with pytest.raises(ConstraintBroken):
        calls.ask(mode, **YES_NO)
    assert calls.pieces == ["ma", "yb", "e"]


@pytest.mark.parametrize("mode", STREAMS)
def test_what_comes_wrapped_is_shown_once_and_whole(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    server = fake_server("openai", constrained_reply=['{"va', 'lue":', '"yes"}'])
    calls = Calls(tmp_path, entry(server, "one"))
    assert calls.ask(mode, **YES_NO).text == "yes"
    assert calls.pieces == ["yes"]


@pytest.mark.parametrize("mode", STREAMS)
def test_of_what_is_broken_in_its_wrapping_nothing_is_shown(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    server = deaf(fake_server, "openai")
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ConstraintBroken):
        calls.ask(mode, **YES_NO)
    assert calls.pieces == []
    assert calls.used("one").tokens == spent(server)


def test_a_constrained_stream_may_be_left_early(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(constrained_reply=["y"] * 400, tokens_per_sec=100)
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        stream = pool.get_lm().stream("Well?", regex="y+")
        assert next(stream) == "y"
        stream.close()
    server.wait_aborted(SOON)
    assert_idle(server)
    assert calls.used("one").tokens > 0
    assert calls.used("one").held_tokens == 0


def test_a_wrapped_stream_may_be_cancelled(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", constrained_reply=["y"] * 400, tokens_per_sec=100)
    calls = Calls(tmp_path, entry(server, "one"))

    async def read() -> None:
        async with calls.async_pool() as pool:
            async for _ in (await pool.get_lm()).stream("Well?", regex="y+"):
                pytest.fail("it is not whole yet")

    async def main() -> None:
        task = asyncio.create_task(read())
        await asyncio.to_thread(wait_tokens, server, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    server.wait_aborted(SOON)
    assert calls.used("one").tokens > 0
    assert calls.used("one").held_tokens == 0


@pytest.mark.parametrize("mode", STREAMS)
def test_an_empty_stream_without_room_ends_as_an_error(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    server = fake_server(reasoning="I must think about that for long.", reply="Hello")
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(EmptyReply):
        calls.ask(mode, max_tokens=3)
    assert calls.pieces == []
    assert calls.used("one").tokens == spent(server)


# --- who is asked


@pytest.mark.parametrize("mode", MODES)
def test_pictures_are_for_who_takes_them(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    blind, sees = fake_server(), fake_server(vision=True, reply="A cat.")
    calls = Calls(tmp_path, entry(blind, "blind", 500), entry(sees, "sees", capabilities={"vision": True}))
    calls.warm()
    if mode != "chat":
        assert calls.ask(mode, images=[PNG]).text == "A cat."
        with pytest.raises(StatusError, match=r"blind: .*images") as caught:
            calls.ask(mode, name="blind", images=[PNG])
        assert caught.value.kind == "unsupported"
    assert chats(blind) == []


@pytest.mark.parametrize("images", ["cat.png", PNG, Path("cat.png"), {"type": "image_url"}, 7])
def test_a_single_picture_is_no_list_of_pictures(
    fake_server: FakeServers, tmp_path: Path, images: Any
) -> None:
    server = fake_server(vision=True)
    calls = Calls(tmp_path, entry(server, "one", capabilities={"vision": True}))
    with pytest.raises(TypeError, match="images must be a list"):
        calls.ask("generate", images=images)
    with calls.pool() as pool, pytest.raises(TypeError, match="images must be a list"):
        pool.map(["a"], images=images)
    assert chats(server) == []


def test_pictures_of_a_map_are_for_every_item(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(vision=True)
    with Calls(tmp_path, entry(server, "one", capabilities={"vision": True})).pool() as pool:
        done = list(pool.map(["a", {"prompt": "b", "images": None}], images=iter([PNG])))  # type: ignore[arg-type]
    assert [mapped.error for mapped in done] == [None, None]
    contents = sorted((r.body["messages"][0]["content"] for r in chats(server)), key=str)
    assert contents[1] == "b"
    assert [part["type"] for part in contents[0]] == ["image_url", "text"]


def test_who_does_not_obey_is_still_asked_where_there_is_no_other(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(constrained_reply=lambda body: "yes" if "Q4" in str(body) else "maybe")
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        done = list(pool.map([f"Q{i}" for i in range(5)], at_most=1, **YES_NO))
        assert [type(mapped.error) for mapped in done[:4]] == [ConstraintBroken] * 4
        assert done[4].text == "yes"
    assert len(chats(server)) == 5


def test_of_two_that_do_not_obey_both_are_asked(fake_server: FakeServers, tmp_path: Path) -> None:
    servers = [deaf(fake_server) for _ in range(2)]
    with Calls(tmp_path, entry(servers[0], "one"), entry(servers[1], "two")).pool() as pool:
        for _ in range(4):
            with pytest.raises((AllAttemptsFailed, ConstraintBroken)):
                pool.get_lm().generate("Well?", **YES_NO)
        assert len(chats(servers[0])) >= 3
        lm = pool.get_lm()
        why = {no.spec.name: no for no in lm.decision.rejected}
        assert why == {}  # free text is another matter


def test_disobedience_is_forgotten(fake_server: FakeServers, tmp_path: Path) -> None:
    clock = FakeClock()
    ignores, obeys = deaf(fake_server), fake_server(constrained_reply="yes")
    calls = Calls(tmp_path, entry(ignores, "ignores", 500), entry(obeys, "obeys"), clock=clock)
    with calls.pool() as pool:
        assert all(status.state == "up" for status in pool.health())
        for _ in range(4):
            assert pool.get_lm().generate("Well?", **YES_NO) == "yes"
        assert len(chats(ignores)) == 2
        clock.advance(601.0)
        assert all(status.state == "up" for status in pool.health())
        assert pool.get_lm().generate("Well?", **YES_NO) == "yes"
        assert len(chats(ignores)) == 3


def test_a_server_never_asked_is_asked_where_the_known_one_cannot(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    known, unknown = fake_server("openai"), fake_server(constrained_reply="yes")
    calls = Calls(tmp_path, entry(known, "known", 500), entry(unknown, "unknown"))
    with calls.pool() as pool:
        pool.get_lm("known")
        (done,) = pool.map(["Well?"], grammar='root ::= "yes"')
    assert done.completion is not None
    assert done.completion.attempts == ["unknown"]


def test_a_refusal_is_not_taken_elsewhere_or_sent_back(fake_server: FakeServers, tmp_path: Path) -> None:
    server, other = fake_server("openai"), fake_server(constrained_reply="yes")
    refused = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    server.fail(faults.Status(200, {"choices": [{"message": refused, "finish_reason": "stop"}]}), times=None)
    calls = Calls(tmp_path, entry(server, "one", 500), entry(other, "two"))
    calls.warm()
    with pytest.raises(ConstraintBroken, match="refused") as caught:
        calls.ask("generate", repair=True, **YES_NO)
    assert caught.value.kind == "content_policy"
    assert len(chats(server)) == 1
    assert chats(other) == []


def test_what_a_content_filter_ended_is_no_fault_of_the_server(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(constrained_reply="yes")
    filtered = {"message": {"role": "assistant", "content": "y"}, "finish_reason": "content_filter"}
    server.fail(faults.Status(200, {"choices": [filtered]}), times=3)
    with Calls(tmp_path, entry(server, "one"), entry(fake_server(), "two", 1)).pool() as pool:
        lm = pool.get_lm()
        for _ in range(3):
            with pytest.raises(ConstraintBroken, match="content filter"):
                lm.generate("Well?", **YES_NO)
        assert lm.generate("Well?", **YES_NO) == "yes"
    assert len(chats(server)) == 4


def test_threads_may_ask_at_once(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(constrained_reply=lambda body: "7" if "number" in str(body["messages"]) else "yes")
    said: list[str] = []
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        lm = pool.get_lm()

        def work(i: int) -> None:
            options = {"regex": "[0-9]+"} if i % 2 else YES_NO
            said.extend(lm.generate("number" if i % 2 else "Well?", **options) for _ in range(3))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(said) == ["7"] * 12 + ["yes"] * 12
    assert calls.used("one").tokens == spent(server)


def test_two_constraints_are_refused_before_anything_is_sent(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ValueError, match="cannot both be obeyed"):
        calls.ask("generate", extra={"json_schema": {"type": "object"}}, **YES_NO)
    assert chats(server) == []
    assert calls.used("one").held_tokens == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_refusal_in_the_first_frame_costs_nothing(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    server = fake_server("vllm")
    server.fail(faults.ErrorFrame(after=0, code=400), times=None)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(StatusError):
        calls.ask(mode)
    used = calls.used("one")
    assert (used.tokens, used.held_tokens) == (0, 0)


def test_a_reply_that_a_filter_kept_back_is_no_empty_text(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    nothing = {"message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"}
    server.fail(faults.Status(200, {"choices": [nothing]}))
    with pytest.raises(StatusError, match="content filter") as caught:
        Calls(tmp_path, entry(server, "one")).ask("generate")
    assert caught.value.kind == "content_policy"
