"""Every way a server can misbehave, met by every way to call: what is seen, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from calling import MODES, Calls, assert_idle, assert_no_threads, chats, entry

from maxwell.errors import (
    BackendError,
    CallTimeout,
    ConnectError,
    DecodeError,
    StatusError,
    StreamBroken,
)
from maxwell.ledger import Used
from maxwell.testing import FakeClock, FakeServer, faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import BackendName, Usage

NEVER = float("inf")
TEXT = "One two three four five six seven eight nine ten."
OTHER = "From the second one."
REASONING = "Let me think about it for a while."
STREAMS = tuple(mode for mode in MODES if mode.endswith("stream"))
WHOLE = tuple(mode for mode in MODES if mode not in STREAMS)  # nothing is shown before all is there
PATIENCE = 0.25  # seconds that an entry whose server falls silent may take

# fault, kind, error: nothing of a reply has come when these act.
BEFORE: dict[str, tuple[faults.Fault, str, type[BackendError]]] = {
    "loading": (faults.Loading(), "loading", StatusError),
    "rate limited": (faults.RateLimited(retry_after=0.05), "rate_limited", StatusError),
    "quota": (faults.QuotaExhausted(), "quota", StatusError),
    "unauthorized": (faults.Unauthorized(), "auth", StatusError),
    "model missing": (faults.ModelMissing(), "model_missing", StatusError),
    "status 408": (faults.Status(408), "timeout", StatusError),
    "status 500": (faults.ServerError(500), "server_error", StatusError),
    "status 502": (faults.ServerError(502), "server_error", StatusError),
    "status 503": (faults.ServerError(503), "overloaded", StatusError),
    "status 504": (faults.ServerError(504), "timeout", StatusError),
    "status 529": (faults.ServerError(529), "overloaded", StatusError),
    "context overflow": (faults.ContextOverflow(), "context_overflow", StatusError),
    "reset": (faults.Reset(), "server_error", ConnectError),
    "no head": (faults.SlowFirstByte(NEVER), "timeout", CallTimeout),
    "empty body": (faults.EmptyBody(), "bad_reply", DecodeError),
    "web page": (faults.Garbage(), "bad_reply", DecodeError),
    "cut at once": (faults.Cut(), "server_error", ConnectError),
    "silent at once": (faults.Silence(), "timeout", CallTimeout),
    "bad chunk first": (faults.BadChunk(), "bad_reply", DecodeError),
    "error frame first": (faults.ErrorFrame(), "server_error", StatusError),
    "closed at once": (faults.CloseEarly(), "bad_reply", DecodeError),
    "done at once": (faults.CloseEarly(done=True), "bad_reply", DecodeError),
}
# So often in all the only server is asked after failures of these kinds, which may pass; of all others once.
ASKED = {"loading": 3, "rate_limited": 3, "overloaded": 3, "server_error": 2, "broken_stream": 2}
# The others go on at once; a model that loads is waited for.
AT_ONCE = [fault for fault in BEFORE if fault != "loading"]

# The request is at fault: nobody else is asked.
FINAL: dict[str, tuple[faults.Fault, str]] = {
    "status 400": (faults.Status(400), "bad_request"),
    "status 422": (faults.Status(422), "bad_request"),
    "content policy": (
        faults.Status(400, {"error": {"message": "no", "code": "content_policy_violation"}}),
        "content_policy",
    ),
}
# These act when three tokens have been sent.
AFTER: dict[str, faults.Fault] = {
    "cut": faults.Cut(3),
    "silence": faults.Silence(3),
    "bad chunk": faults.BadChunk(3),
    "error frame": faults.ErrorFrame(3),
    "overloaded frame": faults.ErrorFrame(3, code=503, message="overloaded"),
    "closed early": faults.CloseEarly(3),
    "done early": faults.CloseEarly(3, done=True),
}
BENIGN: dict[str, faults.Fault] = {
    "crlf": faults.CRLF(),
    "keep-alive comments": faults.KeepAliveComments(),
    "no done": faults.NoDone(),
    "no usage": faults.NoUsage(),
    "slow tokens": faults.SlowTokens(0.002),
    "late head": faults.SlowFirstByte(0.02),
    "ignored constraints": faults.IgnoreConstraints(),
}

Make = Callable[
    ..., tuple[Calls, FakeServer, FakeServer]
]  # a quick server that misbehaves, a slower one that does not


@pytest.fixture
def make(fake_server: FakeServers, tmp_path: Path) -> Make:
    def world(
        fault: faults.Fault | None = None,
        dialect: BackendName = "llamacpp",
        *,
        alone: bool = False,
        hasty: bool = False,
        **options: Any,
    ) -> tuple[Calls, FakeServer, FakeServer]:
        first = fake_server(dialect, reply=TEXT, **options)
        second = fake_server(dialect, reply=OTHER, context=8192)
        silent = isinstance(fault, faults.Silence) or fault == faults.SlowFirstByte(NEVER)
        limit = {"timeout_seconds": PATIENCE} if silent or hasty else {}
        entries = [entry(first, "first", 500, **limit), entry(second, "second")]
        calls = Calls(tmp_path, *entries[: 1 if alone else 2])
        calls.warm()
        if fault is not None:
            first.fail(fault, times=None)
        return calls, first, second

    return world


def assert_left_clean(calls: Calls, *servers: FakeServer) -> None:
    assert_idle(*servers)
    assert_no_threads()
    for spec in calls.registry.llms:
        assert calls.used(spec.name).held_tokens == 0


def test_every_fault_is_in_the_matrix() -> None:
    tried = {type(row[0]) for row in (*BEFORE.values(), *FINAL.values())}
    tried |= {type(fault) for fault in (*AFTER.values(), *BENIGN.values())}
    bases = {faults.Fault, faults.Answer}
    known = {k for k in vars(faults).values() if isinstance(k, type) and issubclass(k, faults.Fault)} - bases
    assert tried == known


# --- before the first content


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", BEFORE)
def test_a_failure_before_content_is_another_ones_chance(make: Make, mode: str, fault: str) -> None:
    calls, first, second = make(BEFORE[fault][0])
    got = calls.ask(mode)
    assert got.text == OTHER
    if got.completion is not None:
        assert (got.completion.llm, got.completion.attempts) == ("second", ["first", "second"])
        assert got.completion.usage == Usage(
            second.usage.prompt_tokens, second.usage.completion_tokens, got.completion.usage.cached_tokens
        )
    assert len(chats(second)) == 1
    assert calls.used("second").tokens == second.usage.total_tokens
    assert_left_clean(calls, first, second)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", AT_ONCE)
def test_a_failure_with_no_alternative_is_typed(make: Make, mode: str, fault: str) -> None:
    fail, kind, error = BEFORE[fault]
    calls, first, _ = make(fail, alone=True)
    with pytest.raises(error) as caught:
        calls.ask(mode)
    assert not isinstance(caught.value, StreamBroken)
    assert (caught.value.llm, caught.value.kind) == ("first", kind)
    assert str(caught.value).startswith("first: ")
    assert calls.pieces == []
    assert len(chats(first)) == ASKED.get(kind, 1)
    assert_left_clean(calls, first)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["first", None])
def test_a_model_that_goes_on_loading_is_told_in_the_end(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock, mode: str, name: str | None
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "first"), clock=fake_clock)
    calls.warm()
    server.fail(faults.Loading(), times=None)  # its health check says otherwise
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(calls.ask, mode, name=name)
        while wait([call], timeout=0.01).not_done:
            fake_clock.advance(0.5)  # every two seconds it is asked how it is
    with pytest.raises(StatusError, match="first: ") as caught:
        call.result()
    assert (caught.value.llm, caught.value.kind) == ("first", "loading")
    assert len(chats(server)) == 3
    assert calls.used("first") == Used()
    assert_left_clean(calls, server)


@pytest.mark.parametrize("fault", ["status 500", "web page", "error frame first"])
def test_an_error_is_not_its_own_cause(make: Make, fault: str) -> None:
    calls, _, _ = make(BEFORE[fault][0], alone=True)
    with pytest.raises(BackendError) as caught:
        calls.ask("generate")
    assert caught.value.__cause__ is not caught.value  # whoever walks up the causes must arrive


@pytest.mark.parametrize("fault", AT_ONCE)
def test_a_pinned_llm_is_never_replaced(make: Make, fault: str) -> None:
    calls, first, second = make(BEFORE[fault][0])
    with pytest.raises(BackendError) as caught:
        calls.ask("stream", name="first")
    assert caught.value.kind == BEFORE[fault][1]
    assert len(chats(first)) == ASKED.get(caught.value.kind, 1)
    assert chats(second) == []
    assert_left_clean(calls, first, second)


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
@pytest.mark.parametrize("fault", BEFORE)
def test_every_dialect_fails_over(make: Make, dialect: BackendName, fault: str) -> None:
    calls, first, second = make(BEFORE[fault][0], dialect)
    got = calls.ask("chat")
    assert got.completion is not None
    assert (got.text, got.completion.attempts) == (OTHER, ["first", "second"])
    assert_left_clean(calls, first, second)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FINAL)
def test_a_wrong_request_goes_nowhere_else(make: Make, mode: str, fault: str) -> None:
    fail, kind = FINAL[fault]
    calls, first, second = make(fail)
    with pytest.raises(StatusError) as caught:
        calls.ask(mode)
    assert caught.value.kind == kind
    assert chats(second) == []
    assert_left_clean(calls, first, second)


ACCEPTED = ("cut at once", "silent at once", "bad chunk first", "error frame first", "closed at once")


@pytest.mark.parametrize("fault", ACCEPTED)
def test_a_prompt_that_was_read_is_booked_whatever_becomes_of_it(make: Make, fault: str) -> None:
    calls, first, _ = make(BEFORE[fault][0], alone=True)
    with pytest.raises(BackendError):
        calls.ask("generate", "A prompt of some length, which the server reads before it fails. " * 10)
    assert first.usage.prompt_tokens > 0
    assert calls.used("first").tokens > 0


REFUSED = ("rate limited", "unauthorized", "status 500", "context overflow")


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refusal_costs_nothing(make: Make, fault: str) -> None:
    calls, first, _ = make(BEFORE[fault][0], alone=True)
    with pytest.raises(BackendError):
        calls.ask("generate")
    assert calls.used("first").tokens == first.usage.total_tokens == 0


def test_a_failed_attempt_is_cut_before_the_next_one_begins(fake_server: FakeServers, tmp_path: Path) -> None:
    # The first server goes on generating for 50 s unless it is told to stop.
    first = fake_server(reply=["x "] * 1000, tokens_per_sec=20)
    second = fake_server(reply=["y "] * 1000, tokens_per_sec=20)
    first.fail(faults.BadChunk())
    calls = Calls(tmp_path, entry(first, "first", 500), entry(second, "second"))
    calls.warm()
    with calls.pool() as pool, pool.get_lm().stream("Hello") as stream:
        assert next(stream) == "y "
        assert chats(first)[0].finished.wait(10.0), "the first server still generates for nobody"


# --- after it


def assert_tells_all(error: StreamBroken, attempts: list[str]) -> None:
    partial = error.partial
    assert partial.text == TEXT[:12]
    assert (error.llm, error.kind, partial.finish_reason) == ("first", "broken_stream", "error")
    assert (partial.llm, partial.attempts) == ("first", attempts)
    assert partial.usage.estimated
    assert partial.usage.prompt_tokens > 0
    assert partial.usage.completion_tokens >= 3


@pytest.mark.parametrize("mode", STREAMS)
@pytest.mark.parametrize("alone", [False, True], ids=["alternative", "alone"])
@pytest.mark.parametrize("fault", AFTER)
def test_a_failure_after_content_was_shown_is_told_with_what_had_come(
    make: Make, mode: str, alone: bool, fault: str
) -> None:
    calls, first, second = make(AFTER[fault], alone=alone)
    with pytest.raises(StreamBroken) as caught:
        calls.ask(mode)
    assert "".join(calls.pieces) == TEXT[:12]
    assert_tells_all(caught.value, ["first"])
    assert calls.used("first").tokens == caught.value.partial.usage.total_tokens
    assert len(chats(first)) == 1
    assert chats(second) == []
    assert_left_clean(calls, first, second)


@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("fault", AFTER)
def test_a_failure_after_content_that_nobody_was_shown_is_another_ones_chance(
    make: Make, mode: str, fault: str
) -> None:
    calls, first, second = make(AFTER[fault])
    got = calls.ask(mode)
    assert got.text == OTHER  # not a word of the first one's
    if got.completion is not None:
        assert (got.completion.llm, got.completion.attempts) == ("second", ["first", "second"])
        assert got.completion.usage.total_tokens == second.usage.total_tokens
    assert (len(chats(first)), len(chats(second))) == (1, 1)
    assert calls.used("second").tokens == second.usage.total_tokens
    lost = calls.used("first")  # what came to nothing was used all the same
    assert lost.calls == 1
    assert lost.tokens == lost.estimated_tokens >= first.usage.prompt_tokens + 3
    assert_left_clean(calls, first, second)


@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("fault", AFTER)
def test_a_failure_after_content_that_nobody_can_mend_is_told_with_what_had_come(
    make: Make, mode: str, fault: str
) -> None:
    calls, first, _ = make(AFTER[fault], alone=True)
    with pytest.raises(StreamBroken) as caught:
        calls.ask(mode)
    assert_tells_all(caught.value, ["first", "first"])
    assert len(chats(first)) == 2
    assert calls.used("first").tokens == 2 * caught.value.partial.usage.total_tokens
    assert calls.used("first").calls == 2
    assert_left_clean(calls, first)


@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("fault", AFTER)
def test_a_failure_after_content_that_passes_is_mended_by_the_same_server(
    make: Make, mode: str, fault: str
) -> None:
    calls, first, _ = make(alone=True, hasty=fault == "silence")
    first.fail(AFTER[fault])
    got = calls.ask(mode)
    assert got.text == TEXT
    if got.completion is not None:
        assert got.completion.attempts == ["first", "first"]
    assert len(chats(first)) == 2
    assert_left_clean(calls, first)


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
@pytest.mark.parametrize("fault", AFTER)
def test_every_dialect_tells_of_a_broken_stream(make: Make, dialect: BackendName, fault: str) -> None:
    calls, first, second = make(AFTER[fault], dialect)
    with pytest.raises(StreamBroken) as caught:
        calls.ask("stream")
    assert caught.value.partial.text == "".join(calls.pieces) == TEXT[:12]
    assert calls.used("first").tokens == caught.value.partial.usage.total_tokens > 0
    assert chats(second) == []
    assert_left_clean(calls, first, second)


def test_a_broken_stream_after_a_failover_names_all_that_were_tried(make: Make) -> None:
    calls, _, second = make(faults.ServerError())
    second.fail(faults.Cut(2))
    with pytest.raises(StreamBroken) as caught:
        calls.ask("stream")
    assert (caught.value.llm, caught.value.partial.text) == ("second", OTHER[:8])
    assert caught.value.partial.attempts == ["first", "second"]


@pytest.mark.parametrize("mode", STREAMS)
def test_a_break_after_reasoning_alone_is_no_silent_restart(make: Make, mode: str) -> None:
    calls, first, second = make(faults.Cut(4), reasoning=REASONING)
    with pytest.raises(StreamBroken) as caught:
        calls.ask(mode)
    assert (caught.value.partial.text, caught.value.partial.reasoning) == ("", REASONING[:16])
    assert caught.value.partial.usage.completion_tokens >= 4
    assert chats(second) == []
    assert_left_clean(calls, first, second)


@pytest.mark.parametrize("mode", WHOLE)
def test_a_break_after_reasoning_alone_that_nobody_was_shown_is_another_ones_chance(
    make: Make, mode: str
) -> None:
    calls, first, second = make(faults.Cut(4), reasoning=REASONING)
    got = calls.ask(mode)
    assert got.text == OTHER
    if got.completion is not None:
        assert got.completion.reasoning == ""
    assert calls.used("first").tokens >= first.usage.prompt_tokens + 4
    assert_left_clean(calls, first, second)


# --- harmless ones


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alone", [False, True], ids=["alternative", "alone"])
@pytest.mark.parametrize("fault", BENIGN)
def test_an_oddity_does_no_harm(make: Make, mode: str, alone: bool, fault: str) -> None:
    calls, first, second = make(BENIGN[fault], alone=alone)
    got = calls.ask(mode)
    assert got.text == TEXT
    used = calls.used("first").tokens
    if fault == "no usage":
        assert used >= first.usage.completion_tokens > 0
    else:
        assert used == first.usage.total_tokens
    if got.completion is not None:
        assert (got.completion.finish_reason, got.completion.attempts) == ("stop", ["first"])
        assert got.completion.usage.estimated == (fault == "no usage")
        assert got.completion.usage.total_tokens == used
    assert chats(second) == []
    assert_left_clean(calls, first, second)


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
@pytest.mark.parametrize("fault", BENIGN)
def test_an_oddity_does_no_harm_in_any_dialect(make: Make, dialect: BackendName, fault: str) -> None:
    calls, first, _ = make(BENIGN[fault], dialect, alone=True)
    got = calls.ask("stream")
    assert got.completion is not None
    assert (got.text, got.completion.finish_reason) == (TEXT, "stop")
    assert got.completion.usage.estimated == (fault == "no usage")
    assert got.completion.usage.prompt_tokens > 0
    assert got.completion.usage.completion_tokens > 0
    assert_left_clean(calls, first)


# --- several at once


def test_no_more_than_three_are_tried(fake_server: FakeServers, tmp_path: Path) -> None:
    servers = [fake_server() for _ in range(5)]
    for server in servers:
        server.fail(faults.ServerError(), times=None)
    calls = Calls(tmp_path, *(entry(s, f"llm-{i}", 500 - i) for i, s in enumerate(servers)))
    calls.warm()
    with pytest.raises(Exception, match=r"llm-0.*llm-1.*llm-2") as caught:
        calls.ask("generate")
    assert [a.llm for a in caught.value.attempts] == ["llm-0", "llm-1", "llm-2"]  # type: ignore[attr-defined]
    assert sum(len(chats(s)) for s in servers) == 3
    assert_left_clean(calls, *servers)


def test_attempts_go_to_distinct_servers_while_there_are_others(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    sick, well = fake_server(), fake_server(reply=OTHER)
    sick.fail(faults.ServerError(), times=None)
    entries = [entry(sick, f"same-{i}", 500 - i) for i in range(3)]
    calls = Calls(tmp_path, *entries, entry(well, "well"))
    calls.warm()
    got = calls.ask("chat")
    assert got.completion is not None
    assert got.completion.attempts == ["same-0", "well"]


def test_an_overflow_looks_for_a_larger_context_only(fake_server: FakeServers, tmp_path: Path) -> None:
    small, tiny, large = fake_server(context=2048), fake_server(context=512), fake_server(context=8192)
    calls = Calls(tmp_path, entry(small, "small", 500), entry(tiny, "tiny", 400), entry(large, "large", 10))
    calls.warm()
    got = calls.ask("chat", "word " * 2000, max_tokens=16)
    assert got.completion is not None
    assert got.completion.attempts == ["small", "large"]
    assert chats(tiny) == []


def test_another_failure_does_not_make_an_overflow_forgotten(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    small, sick, tiny, large = (fake_server(context=n) for n in (2048, 4096, 1024, 8192))
    sick.fail(faults.ServerError(), times=None)
    calls = Calls(
        tmp_path,
        entry(small, "small", 500),
        entry(sick, "sick", 400),
        entry(tiny, "tiny", 300),
        entry(large, "large", 10),
    )
    calls.warm()
    got = calls.ask("chat", "word " * 2000, max_tokens=16)
    assert got.completion is not None
    assert got.completion.attempts == ["small", "sick", "large"]


def test_a_hop_goes_only_where_the_prompt_fits(fake_server: FakeServers, tmp_path: Path) -> None:
    # Nothing was said of the prompt when choosing; now it is known, and the quick one cannot hold it.
    sick, tiny, large = fake_server(context=8192), fake_server(context=512), fake_server(context=8192)
    sick.fail(faults.ServerError(), times=None)
    calls = Calls(tmp_path, entry(sick, "sick", 500), entry(tiny, "tiny", 400), entry(large, "large", 10))
    calls.warm()
    got = calls.ask("chat", "word " * 2000, max_tokens=16)
    assert got.completion is not None
    assert got.completion.attempts == ["sick", "large"]


def test_a_hop_is_not_refused_by_a_rough_estimate(fake_server: FakeServers, tmp_path: Path) -> None:
    # 2,500 tokens in truth, 5,000 by bytes / 4. Nobody else is left, and a refusal would cost nothing.
    sick = fake_server(context=16384, token_bytes=8)
    able = fake_server(context=4096, token_bytes=8, reply=OTHER)
    sick.fail(faults.ServerError(), times=None)
    calls = Calls(tmp_path, entry(sick, "sick", 500), entry(able, "able", 10))
    calls.warm()
    assert calls.ask("generate", "x" * 20_000, max_tokens=16).text == OTHER


def test_a_missing_model_does_not_discredit_its_server(fake_server: FakeServers, tmp_path: Path) -> None:
    # Ollama and routers serve many models; the next best there comes before a worse one elsewhere.
    host, paid = fake_server("openai", model="a", aliases=["b"]), fake_server("openai", model="c")
    host.fail(faults.ModelMissing())
    calls = Calls(
        tmp_path,
        entry(host, "a", 500, model="a"),
        entry(host, "b", 400, model="b"),
        entry(paid, "c", 100, cost_per_1k_tokens=1.0),
    )
    calls.warm()
    got = calls.ask("chat")
    assert got.completion is not None
    assert got.completion.attempts == ["a", "b"]


def test_a_hop_goes_only_where_images_are_seen(fake_server: FakeServers, tmp_path: Path) -> None:
    sick, blind, seeing = fake_server(vision=True), fake_server(), fake_server(vision=True, reply="A cat.")
    sick.fail(faults.ServerError(), times=None)
    calls = Calls(tmp_path, entry(sick, "sick", 500), entry(blind, "blind", 400), entry(seeing, "seeing", 10))
    calls.warm()
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    content = [{"type": "text", "text": "What is this?"}, picture]
    with calls.pool() as pool:
        done = pool.get_lm().chat([{"role": "user", "content": content}])
    assert (done.text, done.attempts) == ("A cat.", ["sick", "seeing"])
    assert chats(blind) == []


def test_a_hop_goes_only_where_the_wanted_reply_can_be_given(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    sick, terse, able = (fake_server(reply=["x "] * 300) for _ in range(3))
    sick.fail(faults.ServerError(), times=None)
    calls = Calls(
        tmp_path,
        entry(sick, "sick", 500),
        entry(terse, "terse", 400, capabilities={"max_tokens": 16}),
        entry(able, "able", 10),
    )
    calls.warm()
    got = calls.ask("chat", max_tokens=300)
    assert got.completion is not None
    assert (got.completion.attempts, got.completion.finish_reason) == (["sick", "able"], "stop")


def test_over_budget_entries_are_passed_over_at_the_call(fake_server: FakeServers, tmp_path: Path) -> None:
    poor, rich = fake_server(), fake_server(reply=OTHER)
    calls = Calls(tmp_path, entry(poor, "poor", 500, daily_budget_tokens=100), entry(rich, "rich"))
    calls.warm()
    got = calls.ask("chat", "x" * 400, max_tokens=50)
    assert got.completion is not None
    assert (got.completion.llm, got.completion.attempts) == ("rich", ["poor", "rich"])
    assert chats(poor) == []
    assert_left_clean(calls, poor, rich)


@pytest.mark.parametrize("mode", MODES)
def test_a_failover_asks_servers_whose_state_is_not_known_yet(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    # The choice was certain before the second one had answered its health check, as remote ones do late.
    first, second = fake_server(), fake_server(reply=OTHER)
    first.fail(faults.ServerError())
    second.fail(faults.SlowFirstByte(0.3), path="/health")
    calls = Calls(tmp_path, entry(first, "first", 500), entry(second, "second"))
    assert calls.ask(mode).text == OTHER


def test_a_failover_asks_servers_whose_state_has_been_forgotten(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    first, second = fake_server(), fake_server(reply=OTHER)
    calls = Calls(tmp_path, entry(first, "first", 500), entry(second, "second"), clock=fake_clock)
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        fake_clock.advance(600)  # a handle is kept, as programs do
        first.fail(faults.ServerError())
        assert lm.generate("Hello") == OTHER
