from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any

import pytest

from maxwell.backends import decode_chunk, get_backend
from maxwell.calls import sync_driver
from maxwell.calls.effects import Flow, Limits, Send
from maxwell.calls.reading import read
from maxwell.calls.reply import Reply
from maxwell.calls.samples import Sent, sample_of
from maxwell.calls.urllib3_transport import Urllib3Transport
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.speed import Learned, Sample, learn, speeds_of
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import BackendName, ChatCall

NOON = 1_800_000_000.0
SENT = Sent()
DIALECTS: tuple[BackendName, ...] = ("llamacpp", "vllm", "openai")


def llm(url: str = "http://box:8080", backend: BackendName = "llamacpp", speed: float = 30.0) -> LLMSpec:
    return LLMSpec(
        name="box",
        api_base=url,
        model="tiny",
        backend=backend,
        capabilities=Capabilities(max_tokens=1024, max_context=4096, speed_tokens_per_sec=speed),
        default_temperature=0.5,
    )


def chunk(text: str = "", *, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **fields}


def usage(prompt: int, completion: int, **fields: Any) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": completion, **fields}}


def reply_of(chunks: Iterable[dict[str, Any]], *, began: float = 100.0, step: float = 0.5) -> Reply:
    """A reply whose chunks came `step` seconds apart."""
    reply = Reply(llm(), 40, began)
    times = itertools.count(1)
    for body in chunks:
        moment = began + step * next(times)
        reply.add(decode_chunk(json.dumps(body).encode()), lambda at=moment: at)  # type: ignore[misc]
    return reply


def words(number: int) -> Iterator[dict[str, Any]]:
    return (chunk(" word") for _ in range(number))


def taken(reply: Reply, now: float = 200.0, sent: Sent = SENT, **ended: bool) -> Sample:
    sample = sample_of(reply, sent, now, **ended)
    assert sample is not None
    return sample


# --- what is known of a reply


def test_llamacpp_measures_itself() -> None:
    timings = {
        "cache_n": 17,
        "prompt_n": 301,
        "prompt_ms": 602.0,
        "prompt_per_second": 500.0,
        "predicted_n": 10,
        "predicted_ms": 450.0,
        "predicted_per_second": 20.0,
    }
    told = usage(318, 10, prompt_tokens_details={"cached_tokens": 17})
    sample = taken(reply_of([*words(10), chunk(finish="stop"), {"choices": [], "timings": timings, **told}]))
    assert (sample.server_prompt_tokens, sample.server_prompt_speed) == (301, 500.0)
    assert (sample.server_completion_tokens, sample.server_completion_speed) == (10, 20.0)
    assert (sample.prompt_tokens, sample.cached_tokens, sample.completion_tokens) == (318, 17, 10)
    assert (sample.estimated, sample.cut, sample.capped, sample.asleep) == (False, False, False, False)


def test_times_are_those_of_the_first_and_the_last_token() -> None:
    after = [chunk(finish="stop"), {"choices": [], **usage(20, 4)}, {"choices": []}]
    sample = taken(reply_of([chunk(), *words(4), *after]))
    assert (sample.first_token_seconds, sample.total_seconds) == (1.0, 2.5)


def test_what_preparing_took_is_not_the_servers() -> None:
    reply = reply_of(words(4))
    reply.began += 0.25
    sample = taken(reply)
    assert (sample.first_token_seconds, sample.total_seconds) == (0.25, 1.75)


def test_older_llamacpp_tells_its_cache_in_the_timings_alone() -> None:
    timings = {"prompt_n": 5, "prompt_per_second": 100.0, "predicted_n": 4, "predicted_per_second": 20.0}
    sample = taken(reply_of([*words(4), {"choices": [], "timings": timings, **usage(25, 4)}]))
    assert (sample.prompt_tokens, sample.cached_tokens) == (25, 20)


def test_without_usage_the_counts_are_likely_ones_and_said_to_be_estimates() -> None:
    sample = taken(reply_of([chunk("x" * 400), chunk("x" * 400, finish="stop")]))
    assert (sample.prompt_tokens, sample.completion_tokens, sample.estimated) == (40, 200, True)


def test_what_went_out_is_passed_on() -> None:
    sent = Sent(prompt_bytes=1234, messages=3, key="summary", running=2, queued=True, asleep=True)
    sample = taken(reply_of(words(4)), sent=sent)
    assert (sample.prompt_bytes, sample.messages, sample.key) == (1234, 3, "summary")
    assert (sample.running, sample.queued, sample.asleep) == (2, True, True)


def test_reasoning_that_is_not_shown_is_no_writing_time() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 300}}
    hidden = taken(reply_of([*words(9), {"choices": [], **usage(20, 309, **details)}]))
    assert (hidden.completion_tokens, hidden.hidden_tokens) == (309, 300)
    shown = [{"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}, *words(9)]
    assert taken(reply_of([*shown, {"choices": [], **usage(20, 309, **details)}])).hidden_tokens == 0


def test_a_reply_that_ran_out_of_tokens_is_capped() -> None:
    assert taken(reply_of([*words(4), chunk(finish="length")])).capped


# --- calls that did not come to their end


def test_who_leaves_has_waited_until_then() -> None:
    nothing = taken(Reply(llm(), 40, 100.0), now=130.0, cut=True)
    assert (nothing.cut, nothing.total_seconds, nothing.first_token_seconds) == (True, 30.0, None)
    some = taken(reply_of(words(9)), now=130.0, cut=True)
    assert (some.total_seconds, some.first_token_seconds, some.completion_tokens) == (30.0, 0.5, 12)


def test_a_server_that_fell_silent_is_judged_by_what_it_wrote_before() -> None:
    sample = taken(reply_of(words(9)), now=160.0, failed=True)
    assert (sample.cut, sample.total_seconds) == (True, 4.5)


def test_a_server_that_failed_without_a_word_teaches_nothing() -> None:
    reply = Reply(llm(), 40, 100.0)
    assert sample_of(reply, SENT, 400.0, failed=True) is None
    assert sample_of(reply, SENT, 400.0, failed=True, cut=True) is None
    reply.add(decode_chunk(b'{"error":{"message":"boom","code":500}}'), lambda: 101.0)
    assert sample_of(reply, SENT, 101.0, failed=True) is None


def test_a_count_from_before_the_cut_is_not_the_last_word() -> None:
    early = reply_of([{"choices": [], **usage(20, 1)}, *words(30)])
    assert taken(early, cut=True).completion_tokens == 38
    exact = reply_of([*words(30), {"choices": [], **usage(20, 64)}])
    assert taken(exact, cut=True).completion_tokens == 64


# --- what is learned from it


def call(server: FakeServer, spec: LLMSpec, prompt: str, reply: Reply) -> Flow[None]:
    assert spec.backend is not None
    backend = get_backend(spec.backend)
    chat = ChatCall(messages=[{"role": "user", "content": prompt}], max_tokens=500)
    exchange = yield Send(backend.chat(spec, chat, None), Limits())
    yield from read(exchange, backend, reply, monotonic, emit=True, secrets=())


def learned_from(server: FakeServer, spec: LLMSpec, calls: int = 4) -> Learned:
    learned, transport = Learned(), Urllib3Transport()
    for i in range(calls):
        reply = Reply(spec, 20, monotonic())
        sync_driver.run(call(server, spec, f"Tell me about {i}.", reply), transport)
        sample = sample_of(reply, SENT, monotonic())
        assert sample is not None
        learned = learn(learned, sample, spec, NOON + i)
    transport.close()
    return learned


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("reasoning", ["", ["hm "] * 30], ids=["plain", "reasoning"])
def test_a_servers_speed_is_learned(fake_server: FakeServers, dialect: BackendName, reasoning: Any) -> None:
    server = fake_server(dialect, tokens_per_sec=200, reply=["word"] * 60, reasoning=reasoning)
    spec = llm(server.url, dialect)
    speeds = speeds_of(learned_from(server, spec), spec)
    assert speeds.speed == pytest.approx(200, rel=0.2)
    assert speeds.seen.speed == 4


def test_speed_is_learned_where_the_server_counts_nothing(fake_server: FakeServers) -> None:
    server = fake_server("vllm", tokens_per_sec=200, reply=["word"] * 60)
    server.fail(faults.NoUsage(), times=None)
    spec = llm(server.url, "vllm")
    assert speeds_of(learned_from(server, spec), spec).speed == pytest.approx(200, rel=0.2)


def test_a_reader_that_takes_its_time_is_not_a_slow_server() -> None:
    spec = llm(speed=200.0)
    reply = reply_of([*words(60), {"choices": [], **usage(20, 60)}], step=0.5)
    reply.held = 29.0
    assert speeds_of(learn(Learned(), taken(reply), spec, NOON), spec).seen.speed == 0
    reply.held = 0.1
    assert speeds_of(learn(Learned(), taken(reply), spec, NOON), spec).speed < 100.0


def test_the_first_words_wait_for_the_slow_server(fake_server: FakeServers) -> None:
    server = fake_server("vllm", tokens_per_sec=200, reply=["word"] * 20)
    server.fail(faults.SlowFirstByte(0.3), times=None)
    spec = llm(server.url, "vllm")
    assert speeds_of(learned_from(server, spec), spec).overhead == pytest.approx(0.3, rel=0.3)
